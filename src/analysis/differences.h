// What two runs differ in beside their recipes: a verdict about recipes means what it says only when that is
// nothing.
#pragma once
#include <string>
#include <vector>

#include "analysis/run_history.h"

namespace octet {

struct Difference {
  std::string key, baseline, variant;  // "/schedule/learning_rate", "0.01", "0.001"; or "validation data"
};

// Every configuration key with another value, outside /precision and outside what cannot reach a number
// (names, paths, logging, saving, threads); data by their fingerprints, not by their paths; the device; and
// what was changed on the way by resuming.
std::vector<Difference> other_differences(const RunHistory& baseline, const RunHistory& variant);

// Both validated on the same windows.
bool same_validation(const std::vector<Difference>& differences);
// The schedule, or the horizon of one that depends on it: at one step the two runs are at different places.
bool same_schedule(const std::vector<Difference>& differences, const RunHistory& baseline);

// "/schedule/learning_rate (0.01 and 0.001), validation data (5f.. and 81..)"
std::string describe(const std::vector<Difference>& differences);

}  // namespace octet
