#include "kernels/interpreter/interpreter.h"

#include <algorithm>
#include <atomic>
#include <memory>
#include <string>
#include <thread>

#include "kernels/interpreter/block_runner.h"
#include "kernels/interpreter/kernel_name.h"
#include "kernels/launch_error.h"

namespace gpu {
inline namespace interpreted {
namespace {

// Kept from launch to launch for its fibers.
struct KeptRunner {
  std::unique_ptr<BlockRunner> runner = std::make_unique<BlockRunner>();
  ~KeptRunner() {
    Unwatched unwatched;
    runner.reset();
  }
};
BlockRunner& this_runner() {
  static thread_local KeptRunner kept;
  return *kept.runner;
}

std::string to_text(dim3 d) {
  return std::to_string(d.x) + "x" + std::to_string(d.y) + "x" + std::to_string(d.z);
}

// [CUDA C++ Programming Guide, "Technical Specifications per Compute Capability"]
void check_launch(const GridLaunch& launch) {
  const auto refuse = [&](const std::string& why) {
    throw LaunchError(kernel_name(launch) + ", grid " + to_text(launch.grid) + ", block " +
                      to_text(launch.block) + ": " + why);
  };
  const dim3 grid = launch.grid, block = launch.block;
  if (std::min({grid.x, grid.y, grid.z, block.x, block.y, block.z}) == 0) refuse("a size is 0");
  if (grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535) {
    refuse("a grid has at most 2147483647 x 65535 x 65535 blocks");
  }
  if (block.x > max_threads || block.y > max_threads || block.z > 64 ||
      static_cast<uint64_t>(block.x) * block.y * block.z > max_threads) {
    refuse("a block has at most " + std::to_string(max_threads) + " threads, and 64 of them in z");
  }
  if (launch.shared_bytes > max_shared_bytes) {
    refuse("too much shared memory: " + std::to_string(launch.shared_bytes) + " bytes of dynamic shared " +
           "memory, at most " + std::to_string(max_shared_bytes) + " exist on every GPU");
  }
  if (current_thread) refuse("a kernel cannot launch a kernel");
}

}  // namespace

void run_grid(const GridLaunch& launch) {
  Unwatched unwatched;
  check_launch(launch);
  Schedule schedule = Schedule::from_environment();
  const uint64_t blocks = static_cast<uint64_t>(launch.grid.x) * launch.grid.y * launch.grid.z;
  if (blocks > UINT32_MAX)
    throw LaunchError(kernel_name(launch) + ": the interpreter runs fewer than 2^32 blocks");
  std::vector<uint32_t> order(blocks);
  schedule.arrange(order);

  GridEvents events;
  std::atomic<uint64_t> next{0};
  const auto run_blocks = [&](int os_thread) {
    Unwatched unwatched_here;
    Schedule own = schedule.for_os_thread(os_thread);
    for (uint64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < blocks;) {
      this_runner().run(launch, events, own, order[i]);
    }
  };
  release(events.begin);
  std::vector<std::thread> helpers;
  const int os_threads = static_cast<int>(std::min<uint64_t>(blocks, schedule.os_threads()));
  for (int i = 1; i < os_threads; ++i) helpers.emplace_back(run_blocks, i);
  run_blocks(0);
  for (std::thread& helper : helpers) helper.join();
  acquire(events.end);
}

Votes synchronize_block(int predicate, const Place& place) {
  return this_runner().synchronize(predicate, place);
}
WarpAnswer exchange(const WarpRequest& request, const Place& place) {
  return this_runner().exchange(request, place);
}
void fence_memory() { this_runner().fence(); }
int lane_index() { return this_runner().lane(); }
void* shared_array(const void* tag, const char* name, size_t bytes) {
  return this_runner().shared_array(tag, name, bytes);
}
void* dynamic_shared() { return this_runner().dynamic_shared(); }
void fail_misaligned(const void* address, size_t bytes, const Place& place) {
  this_runner().fail(
      std::string("misaligned access at ") + place.operation + " (" + place.file + ":" +
      std::to_string(place.line) + "): " + std::to_string(bytes) + " bytes at an address that is " +
      std::to_string(reinterpret_cast<uintptr_t>(address) % bytes) + " modulo " + std::to_string(bytes));
}

}  // namespace interpreted
}  // namespace gpu
