// The order in which blocks and threads run.
#pragma once
#include <cstdint>
#include <vector>

namespace gpu {
inline namespace interpreted {

class Schedule {
 public:
  // From OCTET_INTERPRETER_SCHEDULE and OCTET_INTERPRETER_THREADS (interpreter.h). Throws LaunchError for
  // what it does not know.
  static Schedule from_environment();

  int os_threads() const { return os_threads_; }
  // Changes `order`, a permutation of 0..n-1, into the next one to run in.
  void arrange(std::vector<uint32_t>& order);
  Schedule for_os_thread(int thread) const;  // its own random numbers

 private:
  enum class Kind { Ascending, Descending, Shuffled } kind_ = Kind::Ascending;
  uint64_t random_ = 1;
  int os_threads_ = 1;
};

}  // namespace interpreted
}  // namespace gpu
