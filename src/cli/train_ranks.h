// octet train --ranks N: this very command line as N processes of this machine.
#pragma once
#include <CLI/CLI.hpp>
#include <set>
#include <string>
#include <vector>

#include "config/run_config.h"

namespace octet {

// The command line that `command` was parsed from, less the options named, in a form that parses to the same.
std::vector<std::string> arguments_again(const CLI::App& command, const std::set<std::string>& without);

struct RanksRequest {
  const CLI::App& command;  // train
  const RunConfig& config;
  int ranks = 1, max_restarts = 0;
};
// The exit code of the ranks. A restart goes on from what this start has saved (--resume auto, without
// --overwrite); before the first save it begins as the first start did. Faults are injected only once.
int train_ranks(const RanksRequest& request);

}  // namespace octet
