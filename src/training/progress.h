// The line a person watches.
#pragma once
#include <cstdint>
#include <string>

namespace octet {

struct ProgressLine {
  int64_t step = 0, steps = 0;
  double loss = 0, gradient_norm = 0, learning_rate = 0;
  double tokens_per_second = 0;
  double peak_share = -1;  // of a stated peak; negative: none is stated
  uint64_t memory_bytes = 0;
  double seconds_left = -1;  // negative: unknown
  bool skipped = false;
};
std::string format_progress(const ProgressLine& line);

// Prints to standard output: every line when it is a file or a pipe, at most one a second on a terminal. The
// first and the last step always show.
class Progress {
 public:
  Progress();
  void show(const ProgressLine& line);
  void note(const std::string& text);  // validation, checkpoints, tables

 private:
  bool terminal_;
  double last_ = 0;
  bool first_ = true;
};

}  // namespace octet
