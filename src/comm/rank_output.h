// What the ranks of one machine print, on its way to the launcher's own output.
#pragma once
#include <string>
#include <string_view>

namespace octet {

// Lines of one rank, each with "[rank 3] " before it. A line that does not end is cut at 16 KiB.
class PrefixedLines {
 public:
  explicit PrefixedLines(int rank);
  std::string take(std::string_view bytes);  // the lines that `bytes` completes, prefixed
  std::string rest();                        // what is left of the last line, as a line

 private:
  std::string prefix_, line_;
};

// Bytes on their way to a descriptor that may be slow, full or gone: the launcher must go on forwarding
// signals while nobody reads. Output to a place that is gone is dropped (F41).
class SlowWriter {
 public:
  explicit SlowWriter(int fd) : fd_(fd) {}
  void add(std::string_view bytes);
  // Writes what fits. poll() has said that the descriptor takes something.
  void write_some();
  void discard() { pending_.clear(); }
  bool pending() const { return !pending_.empty(); }
  bool crowded() const { return pending_.size() > size_t{1} << 20; }
  int fd() const { return fd_; }

 private:
  int fd_;
  std::string pending_;
  bool gone_ = false;
};

}  // namespace octet
