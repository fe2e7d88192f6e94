#include "kernels/interpreter/block_runner.h"
#include "kernels/launch_error.h"

#include <algorithm>
#include <bit>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <map>
#include <new>

#include "kernels/interpreter/kernel_name.h"

namespace gpu {
inline namespace interpreted {

constinit thread_local const Thread* current_thread = nullptr;

namespace {

std::string to_text(const uint3& v) {
  return "(" + std::to_string(v.x) + "," + std::to_string(v.y) + "," + std::to_string(v.z) + ")";
}
std::string to_text(const Place& place) {
  return std::string(place.operation) + " (" + place.file + ":" + std::to_string(place.line) + ")";
}
std::string to_text(uint32_t mask) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%08x", mask);
  return text;
}

}  // namespace

std::unique_ptr<Fiber> FiberPool::take(size_t set) {
  if (idle_.size() <= set) idle_.resize(set + 1);
  if (idle_[set].empty()) return std::make_unique<Fiber>();
  std::unique_ptr<Fiber> fiber = std::move(idle_[set].back());
  idle_[set].pop_back();
  return fiber;
}
void FiberPool::put(size_t set, std::unique_ptr<Fiber> fiber) { idle_[set].push_back(std::move(fiber)); }

// ---- one block

void BlockRunner::run(const GridLaunch& launch, GridEvents& grid_events, Schedule& schedule, uint64_t index) {
  Unwatched unwatched;
  grid_events_ = &grid_events;
  begin(launch, index);
  while (alive_ > 0) {
    schedule.arrange(order_);  // anew each time, so that shuffled threads overtake each other
    bool progress = run_ready_threads();
    if (at_barrier_ == size_) {
      finish_barrier();
      progress = true;
    }
    if (!progress) fail("deadlock: " + where_threads_are());
  }
  end();
}

void BlockRunner::begin(const GridLaunch& launch, uint64_t index) {
  launch_ = &launch;
  position_.grid = launch.grid;
  position_.block = launch.block;
  position_.index = {static_cast<unsigned>(index % launch.grid.x),
                     static_cast<unsigned>(index / launch.grid.x % launch.grid.y),
                     static_cast<unsigned>(index / launch.grid.x / launch.grid.y)};
  size_ = alive_ = launch.block.x * launch.block.y * launch.block.z;
  at_barrier_ = 0;
  order_.resize(size_);
  for (uint32_t i = 0; i < size_; ++i) {
    KernelThread& thread = threads_[i];
    thread.index = {i % launch.block.x, i / launch.block.x % launch.block.y,
                    i / launch.block.x / launch.block.y};
    thread.block = &position_;
    thread.runner = this;
    thread.state = State::Fresh;
  }
  if (launch.shared_bytes) dynamic_shared_ = allocate_shared(launch.shared_bytes);
  if (race_check) {
    events_ = std::make_unique<BlockEvents>();
    const uint64_t sets = size_ <= 256 ? 4 : 2;  // a process has at most 8000 such fibers
    fiber_set_ = index < sets ? index : ((index * 0x9e3779b97f4a7c15u) >> 33) % sets;
  }
}

void BlockRunner::end() {
  for (uint32_t i = 0; i < size_; ++i) {
    if (threads_[i].fiber) fibers_.put(fiber_set_, std::move(threads_[i].fiber));
  }
  for (const SharedArray& array : shared_) std::free(array.memory);
  shared_.clear();
  std::free(dynamic_shared_);
  dynamic_shared_ = nullptr;
  events_.reset();
}

bool BlockRunner::run_ready_threads() {
  bool progress = false;
  for (const uint32_t i : order_) {
    KernelThread& thread = threads_[i];
    if (thread.state == State::Fresh) {
      thread.fiber = fibers_.take(fiber_set_);
      thread.fiber->start(&BlockRunner::thread_main, &thread);
      thread.state = State::Ready;
    }
    if (thread.state != State::Ready) continue;
    progress = true;
    running_ = &thread;
    current_thread = &thread;
    thread.fiber->resume();
    current_thread = nullptr;
    if (thread.state == State::Exited) {
      --alive_;
      // At once, so that threads without barriers run on one warm stack; but to the thread sanitizer two
      // threads of a block on one fiber would be ordered.
      if (!race_check) fibers_.put(fiber_set_, std::move(thread.fiber));
    }
  }
  running_ = nullptr;
  return progress;
}

void BlockRunner::thread_main(void* argument) {
  KernelThread& thread = *static_cast<KernelThread*>(argument);
  BlockRunner& runner = *thread.runner;
  acquire(runner.grid_events_->begin);
  runner.launch_->run_thread(runner.launch_->call);
  release(runner.grid_events_->end);
  thread.state = State::Exited;
  thread.fiber->finish();
}

// ---- barriers

Votes BlockRunner::synchronize(int predicate, const Place& place) {
  KernelThread& self = *running_;
  const uint32_t turn = barriers_ % 2;
  if (race_check) release(events_->barrier[turn]);
  self.predicate = predicate;
  self.place = place;
  self.state = State::AtBarrier;
  ++at_barrier_;
  self.fiber->suspend();
  if (race_check) acquire(events_->barrier[turn]);
  return votes_;
}

void BlockRunner::finish_barrier() {
  votes_ = {0, 1, 0};
  for (uint32_t i = 0; i < size_; ++i) {
    require_same_place(threads_[0], threads_[i]);
    const int predicate = threads_[i].predicate != 0;
    votes_.any |= predicate;
    votes_.all &= predicate;
    votes_.count += predicate;
    threads_[i].state = State::Ready;
  }
  at_barrier_ = 0;
  ++barriers_;
}

void BlockRunner::require_same_place(const KernelThread& a, const KernelThread& b) const {
  const auto same = [](const char* x, const char* y) { return x == y || std::strcmp(x, y) == 0; };
  if (a.place.line == b.place.line && same(a.place.operation, b.place.operation) &&
      same(a.place.file, b.place.file)) {
    return;
  }
  fail("threads of one barrier or warp operation are at different places: thread " +
       std::to_string(number_of(a)) + " at " + to_text(a.place) + ", thread " + std::to_string(number_of(b)) +
       " at " + to_text(b.place));
}

// ---- warps

WarpAnswer BlockRunner::exchange(WarpRequest request, const Place& place) {
  KernelThread& self = *running_;
  const uint32_t number = number_of(self), warp = number / 32, lane = number % 32;
  if (!(request.mask >> lane & 1)) {
    fail(to_text(place) + ": the thread's lane " + std::to_string(lane) + " is not in its own mask " +
         to_text(request.mask));
  }
  // The last warp of a block may be short; a full mask means all of it there.
  const uint32_t lanes = std::min(32u, size_ - warp * 32);
  if (lanes < 32) request.mask &= (1u << lanes) - 1;
  if (request.source >= 0 && !(request.mask >> request.source & 1)) {
    fail(to_text(place) + ": lane " + std::to_string(lane) + " reads the inactive lane " +
         std::to_string(request.source) + ", which is not in mask " + to_text(request.mask));
  }
  const bool ordered = race_check && request.memory == WarpRequest::Memory::Ordered;
  const int lowest = std::countr_zero(request.mask);
  const uint32_t turn = exchanges_[warp][lowest] % 2;
  if (ordered) release(events_->warp[warp][lowest][turn]);
  self.request = request;
  self.place = place;
  self.state = State::AtWarp;
  at_warp_[warp] |= 1u << lane;
  if ((at_warp_[warp] & request.mask) == request.mask && finish_exchange(self)) {
    if (ordered) ++exchanges_[warp][lowest];
  } else {
    self.fiber->suspend();
  }
  if (ordered) acquire(events_->warp[warp][lowest][turn]);
  return self.answer;
}

// All lanes of the mask wait; answers them if they wait for each other.
bool BlockRunner::finish_exchange(const KernelThread& last) {
  KernelThread* const warp = &threads_[number_of(last) / 32 * 32];
  const uint32_t mask = last.request.mask;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if ((mask >> lane & 1) && warp[lane].request.mask != mask) return false;
  }
  uint32_t ballot = 0;
  uint64_t folded = 0;
  bool first = true;
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    require_same_place(last, warp[lane]);
    const uint64_t value = warp[lane].request.value;
    if (value) ballot |= 1u << lane;
    if (last.request.combine) folded = first ? value : last.request.combine(folded, value);
    first = false;
  }
  for (uint32_t lane = 0; lane < 32; ++lane) {
    if (!(mask >> lane & 1)) continue;
    KernelThread& thread = warp[lane];
    const int source = thread.request.source;
    const uint64_t value = source < 0 ? thread.request.value : warp[source].request.value;
    thread.answer = {last.request.combine ? folded : value, ballot, mask};
    thread.state = State::Ready;
  }
  at_warp_[number_of(last) / 32] &= ~mask;
  return true;
}

void BlockRunner::fence() {
  acquire(grid_events_->fence);
  release(grid_events_->fence);
}
int BlockRunner::lane() const { return static_cast<int>(number_of(*running_) % 32); }

// ---- shared memory

void* BlockRunner::allocate_shared(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 16, bytes) != 0) throw std::bad_alloc();
  std::memset(memory, 0xff, bytes);
  return memory;
}

void* BlockRunner::shared_array(const void* tag, const char* name, size_t bytes) {
  Unwatched unwatched;
  for (const SharedArray& array : shared_) {
    if (array.tag == tag) return array.memory;
  }
  size_t total = bytes;
  for (const SharedArray& array : shared_) total += array.bytes;
  if (total > max_static_shared_bytes || total + launch_->shared_bytes > max_shared_bytes) {
    fail("too much shared memory: with " + std::string(name) + " the block has " + std::to_string(total) +
         " bytes of static and " + std::to_string(launch_->shared_bytes) +
         " of dynamic shared memory, at most " + std::to_string(max_static_shared_bytes) + " and together " +
         std::to_string(max_shared_bytes) + " exist on every GPU");
  }
  if (launch_->shared_bytes <= shared_without_asking &&
      total + launch_->shared_bytes > max_static_shared_bytes)
    fail("too much shared memory without asking: with " + std::string(name) + " the block has " +
         std::to_string(total) + " bytes of static and " + std::to_string(launch_->shared_bytes) +
         " of dynamic shared memory; static arrays beside dynamic memory have room for " +
         std::to_string(max_static_shared_bytes - shared_without_asking) + " bytes");
  shared_.push_back({tag, allocate_shared(bytes), bytes});
  return shared_.back().memory;
}

void* BlockRunner::dynamic_shared() {
  if (dynamic_shared_ == nullptr)
    fail("the kernel uses dynamic shared memory, but Launch::shared_bytes is 0");
  return dynamic_shared_;
}

// ---- diagnosis

std::string BlockRunner::where_threads_are() const {
  std::map<std::string, std::string> places;  // description -> thread numbers as ranges
  std::vector<std::string> in_order;
  for (uint32_t i = 0; i < size_;) {
    const auto describe = [&](const KernelThread& thread) -> std::string {
      if (thread.state == State::Exited) return "left the kernel";
      if (thread.state == State::AtBarrier) return "wait at " + to_text(thread.place);
      return "wait at " + to_text(thread.place) + " with mask " + to_text(thread.request.mask);
    };
    const std::string description = describe(threads_[i]);
    uint32_t last = i;
    while (last + 1 < size_ && describe(threads_[last + 1]) == description) ++last;
    std::string& ranges = places[description];
    if (ranges.empty()) in_order.push_back(description);
    ranges += (ranges.empty() ? "" : ",") + std::to_string(i) + (last > i ? "-" + std::to_string(last) : "");
    i = last + 1;
  }
  std::string text;
  for (const std::string& description : in_order) {
    text += (text.empty() ? "threads " : "; threads ") + places[description] + " " + description;
  }
  return text;
}

void BlockRunner::fail(const std::string& what) const {
  Unwatched unwatched;
  std::string line = "kernel interpreter: " + kernel_name(*launch_) + ", block " + to_text(position_.index);
  if (running_) line += ", thread " + to_text(running_->index);
  line += ": " + what + "\n";
  std::fflush(stdout);
  std::fputs(line.c_str(), stderr);
  std::abort();
}

}  // namespace interpreted
}  // namespace gpu
