// What a stream is to the interpreter: launches, and whatever else a device enqueues, that run later and in
// order. A device on it behaves as one on a GPU does: the host is ahead, a result is there after run() only,
// and arguments are those of the moment of the launch.
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <utility>

namespace gpu {

class Queue {
 public:
  using Work = std::deque<std::function<void()>>;

  void add(std::function<void()> work) {
    waiting_.push_back(std::move(work));
    ++added_;
  }
  uint64_t added() const { return added_; }
  void run() { run_until(added_); }
  // Runs the first `count` that were ever added, as far as they have not run. What throws, and what waits
  // behind it, is dropped.
  void run_until(uint64_t count) {
    while (added_ - waiting_.size() < count) {
      const std::function<void()> one = std::move(waiting_.front());
      waiting_.pop_front();
      try {
        one();
      } catch (...) {
        waiting_.clear();
        throw;
      }
    }
  }
  // What `enqueue` adds, instead of adding it: a recording, to be played any number of times.
  Work record(const std::function<void()>& enqueue) {
    Work before = std::exchange(waiting_, {});
    const uint64_t count = added_;
    Work recorded;
    try {
      enqueue();
      recorded = std::move(waiting_);
    } catch (...) {
      waiting_ = std::move(before);
      added_ = count;
      throw;
    }
    waiting_ = std::move(before);
    added_ = count;
    return recorded;
  }

 private:
  Work waiting_;
  uint64_t added_ = 0;
};

}  // namespace gpu
