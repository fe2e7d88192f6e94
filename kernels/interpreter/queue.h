// What a stream is to the interpreter: launches, and whatever else a device enqueues, that run later and in
// order. A device on it behaves as one on a GPU does: the host is ahead, a result is there after run() only,
// and arguments are those of the moment of the launch.
#pragma once
#include <functional>
#include <utility>
#include <vector>

namespace gpu {

class Queue {
 public:
  using Work = std::vector<std::function<void()>>;

  void add(std::function<void()> work) { waiting_.push_back(std::move(work)); }
  // Runs what waits. What throws, or waited behind it, is dropped.
  void run() {
    const Work work = std::exchange(waiting_, {});
    for (const auto& one : work) one();
  }
  // What `enqueue` adds, instead of adding it: a recording, to be played any number of times.
  Work record(const std::function<void()>& enqueue) {
    Work before = std::exchange(waiting_, {});
    try {
      enqueue();
    } catch (...) {
      waiting_ = std::move(before);
      throw;
    }
    return std::exchange(waiting_, std::move(before));
  }

 private:
  Work waiting_;
};

}  // namespace gpu
