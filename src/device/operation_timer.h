// Adds the seconds of its scope to a device's timings under `name`, when timing is on.
#pragma once
#include <functional>
#include <map>
#include <string>

namespace octet {

class OperationTimer {
 public:
  // `wait`: waits for a device that works on its own, so that the time is this operation's; may be empty.
  OperationTimer(bool on, std::map<std::string, double>& timings, const char* name,
                 std::function<void()> wait = {});
  ~OperationTimer();
  OperationTimer(const OperationTimer&) = delete;
  OperationTimer& operator=(const OperationTimer&) = delete;

 private:
  std::map<std::string, double>* timings_;
  const char* name_;
  std::function<void()> wait_;
  double start_ = 0;
};

}  // namespace octet
