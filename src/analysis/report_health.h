// What a report shows of a run's health: when each warning came, outliers and logits by block, what casts
// did.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "analysis/run_history.h"

namespace octet {

// A warning, and how long it came before the first loss spike.
struct LeadTime {
  int64_t step = 0;
  std::string message;
  std::optional<int64_t> before_spike;  // steps; negative: after it; empty: there was no spike
};
// The warnings of a run and its first spike. Where something was injected, from then on: what came before
// does not tell of it.
struct Alarms {
  bool watched = false;  // the run has health records
  // The step of the first spike, as the run's detector (health.spike_deviations) or failure.h found it, or of
  // the first update that was not applied; empty: none.
  std::optional<int64_t> spike;
  std::vector<LeadTime> warnings;  // by step
};
Alarms alarms_of(const RunHistory& run);
// "warned at step 120, 80 steps before the first spike (step 200): block 3: what the first warning begins
// with".
std::string describe(const Alarms& alarms);

std::string health_section(const RunHistory& run);  // HTML; empty when nothing was recorded

}  // namespace octet
