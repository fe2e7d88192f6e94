// Learning rates as pure functions of (step, options, total steps).
#pragma once
#include <cstdint>

namespace octet {

enum class ScheduleName : uint8_t { Constant, Linear, Cosine, WSD };

struct ScheduleOptions {
  ScheduleName name = ScheduleName::Cosine;
  double learning_rate = 1e-3;  // peak
  int64_t warmup_steps = 0;     // step s < warmup: peak * (s + 1) / warmup
  double final_fraction = 0.1;  // of the peak, reached at the last step
  double cooldown_fraction =
      0.2;  // WSD: last part of the run, falling as 1 - sqrt(progress)  [Haegele et al. 2405.18392]
  int64_t final_steps = 0;  // the schedule ends so many steps before the run, which stay at its last rate
  bool operator==(const ScheduleOptions&) const = default;
};

double learning_rate(const ScheduleOptions& options, int64_t step, int64_t total_steps);  // step from 0

}  // namespace octet
