#include "device/operation_timer.h"

#include <utility>

#include "base/clock.h"

namespace octet {

OperationTimer::OperationTimer(bool on, std::map<std::string, double>& timings, const char* name,
                               std::function<void()> wait)
    : timings_(on ? &timings : nullptr), name_(name), wait_(std::move(wait)) {
  if (!timings_) return;
  if (wait_) wait_();
  start_ = monotonic_seconds();
}
OperationTimer::~OperationTimer() {
  if (!timings_) return;
  if (wait_) wait_();
  (*timings_)[name_] += monotonic_seconds() - start_;
}

}  // namespace octet
