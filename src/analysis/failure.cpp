#include "analysis/failure.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "base/error.h"

namespace octet {
namespace {

// Exponential, bias-corrected: a plain mean of what has been seen, at the beginning.
struct Average {
  double sum = 0, weight = 0;
  void add(double value, double kept) {
    sum = kept * sum + (1 - kept) * value;
    weight = kept * weight + (1 - kept);
  }
  double value() const { return weight > 0 ? sum / weight : std::numeric_limits<double>::quiet_NaN(); }
};

}  // namespace

RunOutcome outcome_of(const RunHistory& run, int64_t steps, double best) {
  RunOutcome outcome;
  const auto fail = [&](const std::string& why) {
    if (!outcome.failed) outcome.why = why;
    outcome.failed = true;
  };
  Average loss, deviation;
  double lowest = std::numeric_limits<double>::infinity();
  int64_t before = 0, seen = 0, above_since = -1;
  const double patience = failure::return_share * static_cast<double>(steps);
  for (const StepRecord& step : run.steps) {
    if (!std::isfinite(step.loss)) {
      fail(fmt::format("the loss of step {} is not finite", step.step));
      continue;
    }
    // A log that passes steps over is averaged over as many steps as one that does not.
    const double kept = std::pow(failure::decay, static_cast<double>(seen > 0 ? step.step - before : 1));
    if (seen > 0) {
      const double above = step.loss - loss.value();
      if (seen >= failure::warm_up) {
        ++outcome.judged;
        if (above > failure::spike_deviations * deviation.value()) outcome.spikes.push_back(step.step);
      }
      deviation.add(std::abs(above), kept);
    }
    loss.add(step.loss, kept);
    before = step.step;
    ++seen;
    lowest = std::min(lowest, loss.value());
    if (loss.value() <= lowest + failure::rise) {
      above_since = -1;
    } else if (above_since < 0) {
      above_since = step.step;
    } else if (static_cast<double>(step.step - above_since) > patience) {
      fail(
          fmt::format("the average loss rose to {:.3f}, {:.3f} above its lowest, at step {} and did not "
                      "come back within {:.0f} steps",
                      loss.value(), loss.value() - lowest, above_since, patience));
    }
  }
  outcome.final_loss = loss.value();
  if (run.status && run.status->state == "failed" &&
      run.status->exit_code == static_cast<int>(ExitCode::Numerics))
    fail(fmt::format("stopped after step {}: {}", run.status->step, run.status->reason));
  if (outcome.final_loss > best + failure::above_best)
    fail(fmt::format("the average loss at the end, {:.3f}, is {:.3f} above the best BF16 run's",
                     outcome.final_loss, outcome.final_loss - best));
  return outcome;
}

}  // namespace octet
