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

// Which lines are shown: the first, the last, and no two others within `seconds`.
class LineLimit {
 public:
  explicit LineLimit(double seconds) : seconds_(seconds) {}
  bool due(const ProgressLine& line, double now);  // `now` monotonic

 private:
  double seconds_, last_ = 0;
  bool first_ = true;
};

// Prints to standard output: a line a second at most on a terminal, every two seconds in a file or a pipe.
// metrics.jsonl has every step. What cannot be written is lost, and training goes on (F41).
class Progress {
 public:
  Progress();
  void show(const ProgressLine& line);
  void note(const std::string& text);  // validation, checkpoints, tables

 private:
  LineLimit limit_;
};

}  // namespace octet
