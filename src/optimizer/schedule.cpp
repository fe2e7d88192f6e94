#include "optimizer/schedule.h"

#include <algorithm>
#include <cmath>

namespace octet {

namespace {

constexpr double pi = 3.14159265358979323846;

// 0 at the first of `steps` steps, 1 at the last; a single step is the last.
double progress(int64_t index, int64_t steps) {
  if (steps <= 1 || index >= steps - 1) return 1.0;
  return static_cast<double>(index) / static_cast<double>(steps - 1);
}

// From 1 down to `floor` as `falling` goes from 1 to 0.
double above(double floor, double falling) { return floor + (1.0 - floor) * falling; }

double wsd(const ScheduleOptions& options, int64_t step, int64_t total_steps) {
  const auto wanted =
      static_cast<int64_t>(std::llround(options.cooldown_fraction * static_cast<double>(total_steps)));
  const int64_t start = std::max(options.warmup_steps, total_steps - wanted);
  if (step < start) return 1.0;
  // The first step of the cooldown is already below the peak, the last one is at the floor.
  const double done = static_cast<double>(step - start + 1) / static_cast<double>(total_steps - start);
  return above(options.final_fraction, 1.0 - std::sqrt(std::min(done, 1.0)));
}

}  // namespace

double learning_rate(const ScheduleOptions& options, int64_t step, int64_t total_steps) {
  const double peak = options.learning_rate;
  total_steps = std::max<int64_t>(total_steps - options.final_steps, 1);
  step = std::min(step, total_steps - 1);
  if (step < options.warmup_steps)
    return peak * static_cast<double>(step + 1) / static_cast<double>(options.warmup_steps);
  const double p = progress(step - options.warmup_steps, total_steps - options.warmup_steps);
  switch (options.name) {
    case ScheduleName::Constant:
      return peak;
    case ScheduleName::Linear:
      return peak * above(options.final_fraction, 1.0 - p);
    case ScheduleName::Cosine:
      return peak * above(options.final_fraction, 0.5 * (1.0 + std::cos(pi * p)));
    case ScheduleName::WSD:
      return peak * wsd(options, step, total_steps);
  }
  return peak;
}

}  // namespace octet
