// One line on a terminal that says how far a long job is; nothing when standard error is not a terminal.
#pragma once
#include <cstdint>
#include <string>

namespace octet {

class ProgressBar {
 public:
  explicit ProgressBar(std::string what);
  ~ProgressBar();  // takes the line away
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  void update(uint64_t done, uint64_t all);  // redraws ten times a second at most

 private:
  std::string what_;
  bool terminal_, drawn_ = false;
  double begun_, last_ = 0;
};

}  // namespace octet
