// A run that somebody is about to train as one of several: whose folder it is, and whether what is in there
// already is that very run.
#pragma once
#include <filesystem>
#include <string>
#include <vector>

#include "config/run_config.h"

namespace octet {

struct PlannedRun {
  RunConfig config;
  std::filesystem::path folder;
  std::vector<std::string> inject = {};  // into its state (training/state_injection.h)
};

// What to do to train it again: the remedy of errors about its folder.
std::string afresh(const PlannedRun& run);

// What is in the folder goes on only as the very run that was planned: a change on the way, which octet train
// records and allows, would be judged under the new label. Error(Usage) names what differs.
void require_same_run(const PlannedRun& run);

}  // namespace octet
