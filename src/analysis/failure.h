// When a run counts as failed, and what a spike is: the definitions of this program, in one place.
//
// "To FP8 and Back Again" [Lee et al., arXiv 2405.18710] compares precisions by how many runs fail and by the
// spikes of their loss, but its definition of a failed run was not to be found; these are ours.
//
//   failed  (i)   a loss is not finite, or the run was stopped for its numbers;
//           (ii)  the average loss at the end is more than 0.25 above that of the best BF16 run;
//           (iii) the average rises more than 0.5 above its lowest so far, and is not back within 5 % of the
//                 run's steps
//   spike   a step's loss is above the average before it by more than 5 average absolute deviations
//
// Averages are exponential with decay 0.99 a step, and bias-corrected; deviations are from the average before
// the step. The first 20 records have no spikes: the averages know too little.
#pragma once
#include <cstdint>
#include <limits>
#include <string>
#include <vector>

#include "analysis/run_history.h"

namespace octet {

namespace failure {
inline constexpr double decay = 0.99, above_best = 0.25, rise = 0.5, return_share = 0.05,
                        spike_deviations = 5;
inline constexpr int64_t warm_up = 20;  // records
}  // namespace failure

struct RunOutcome {
  bool failed = false;
  std::string why;                                               // of a failure: which rule, with numbers
  double final_loss = std::numeric_limits<double>::quiet_NaN();  // averaged; NaN without a finite loss
  std::vector<int64_t> spikes;                                   // their steps
  int64_t judged = 0;                                            // steps that could be spikes
  double spikes_per_thousand() const {
    return judged > 0 ? 1000.0 * static_cast<double>(spikes.size()) / static_cast<double>(judged) : 0;
  }
};

// `steps`: what the run was to train. `best`: the final loss of the best BF16 run; NaN: rule (ii) is silent.
RunOutcome outcome_of(const RunHistory& run, int64_t steps, double best);

}  // namespace octet
