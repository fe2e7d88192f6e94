// Runs the threads of one block after another on this operating-system thread.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/interpreter/fiber.h"
#include "kernels/interpreter/interpreter.h"
#include "kernels/interpreter/race_check.h"
#include "kernels/interpreter/schedule.h"

namespace gpu {
inline namespace interpreted {

inline constexpr uint32_t max_threads = 1024;  // of a block, on every GPU
// Of a block, on every GPU that we compile for: sm_89 and sm_120 have the least. [CUDA C++ Programming Guide,
// "Technical Specifications per Compute Capability"]
inline constexpr size_t max_static_shared_bytes = 48 * 1024, max_shared_bytes = 99 * 1024;

// Fibers are kept, since making one for the thread sanitizer takes a millisecond. It takes whatever ran on
// one fiber for ordered, so blocks take turns on several sets of fibers: the first blocks of a grid share
// none.
class FiberPool {
 public:
  std::unique_ptr<Fiber> take(size_t set);
  void put(size_t set, std::unique_ptr<Fiber>);

 private:
  std::vector<std::vector<std::unique_ptr<Fiber>>> idle_;
};

class BlockRunner {
 public:
  // Runs block `index` (linear) of the grid to its end.
  void run(const GridLaunch&, GridEvents&, Schedule&, uint64_t index);

  // The operations of the thread that is running.
  Votes synchronize(int predicate, const Place&);
  WarpAnswer exchange(WarpRequest, const Place&);
  void fence();
  int lane() const;
  void* shared_array(const void* tag, const char* name, size_t bytes);
  void* dynamic_shared();
  [[noreturn]] void fail(const std::string& what) const;  // one line that names kernel, block and thread

 private:
  enum class State { Fresh, Ready, AtBarrier, AtWarp, Exited };
  struct KernelThread : Thread {
    BlockRunner* runner;
    State state;
    std::unique_ptr<Fiber> fiber;
    Place place;
    int predicate;
    WarpRequest request;
    WarpAnswer answer;
  };
  struct SharedArray {
    const void* tag;
    void* memory;
    size_t bytes;
  };
  static void thread_main(void* thread);

  void begin(const GridLaunch&, uint64_t index);
  bool run_ready_threads();  // false: nobody could
  void finish_barrier();
  bool finish_exchange(const KernelThread&);
  void end();
  void* allocate_shared(size_t bytes);
  void require_same_place(const KernelThread&, const KernelThread&) const;
  uint32_t number_of(const KernelThread& thread) const {
    return static_cast<uint32_t>(&thread - threads_.get());
  }
  std::string where_threads_are() const;

  FiberPool fibers_;
  size_t fiber_set_ = 0;
  const GridLaunch* launch_ = nullptr;
  GridEvents* grid_events_ = nullptr;
  std::unique_ptr<BlockEvents> events_;
  BlockPosition position_{};
  std::unique_ptr<KernelThread[]> threads_{new KernelThread[max_threads]};
  uint32_t size_ = 0, alive_ = 0, at_barrier_ = 0;
  std::vector<uint32_t> order_;
  KernelThread* running_ = nullptr;
  Votes votes_{};
  uint32_t barriers_ = 0;           // finished ones
  uint32_t at_warp_[32] = {};       // lanes that wait, by warp
  uint8_t exchanges_[32][32] = {};  // finished ordered ones, by warp and lowest lane
  std::vector<SharedArray> shared_;
  void* dynamic_shared_ = nullptr;
};

}  // namespace interpreted
}  // namespace gpu
