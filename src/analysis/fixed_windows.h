// Context windows that do not depend on the run, for measurements: numbers of several runs are of one text.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/run_config.h"

namespace octet {

// The first windows in the order of validation windows, in whole micro-batches: rows of windows that are not
// there have targets of -1.
struct FixedWindows {
  int64_t count = 0, batches = 0;        // count: no more than there are
  std::vector<int32_t> tokens, targets;  // [batches, micro * context]
  std::vector<std::string> files;        // as they were named
};
// Of `files`; without any, of the run's validation shards, or else its training shards. Error(Data) when they
// hold no window.
FixedWindows fixed_windows(const RunConfig& config, int64_t wanted,
                           const std::vector<std::string>& files = {});

}  // namespace octet
