// All memory of a step is planned before it: nothing is taken from the heap while it runs.
#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <iterator>
#include <memory>
#include <new>
#include <thread>

#include "catch.h"
#include "training/allocation_watch.h"
#include "training/open_device.h"
#include "training/run_memory.h"

using namespace octet;
using octet::testing::AllocationWatch;

namespace {

// Blocks with ragged sizes and chunks of the head that do not divide the tokens.
RunConfig tiny(const std::string& recipe, bool deterministic, int threads,
               const std::vector<std::string>& settings = {}) {
  return parse_config(fmt::format(R"({{
    "run": {{"name": "tiny", "seed": 7, "steps": 8, "deterministic": {}, "threads": {}}},
    "model": {{"layers": 2, "width": 64, "heads": 4, "kv_heads": 2, "ffn_width": 96, "context": 64,
               "vocabulary": 272}},
    "precision": {{"recipe": "{}"}},
    "batch": {{"tokens": 512, "micro": 4, "head_chunk": 96}},
    "schedule": {{"learning_rate": 1e-2, "warmup_steps": 2}}
  }})",
                                  deterministic, threads, recipe),
                      "tiny", settings);
}

class Steps {
 public:
  explicit Steps(const RunConfig& config)
      : config_(config), device_(open_device("cpu", device_options(config))) {
    MemoryPlan device_sizes, host_sizes, no_offload;
    { const RunMemory measured(device_.get(), config_, {device_sizes, host_sizes, no_offload}); }
    device_arena_ = device_->allocate(device_sizes.peak_bytes());
    host_arena_ = device_->allocate(host_sizes.peak_bytes());
    MemoryPlan device_plan(device_arena_, device_sizes.peak_bytes()),
        host_plan(host_arena_, host_sizes.peak_bytes());
    memory_ = std::make_unique<RunMemory>(device_.get(), config_,
                                          RunMemory::Plans{device_plan, host_plan, no_offload});
    memory_->model.initialize();
    const auto tokens = static_cast<size_t>(config_.batch.micro * config_.model.context);
    for (size_t i = 0; i < tokens; ++i) tokens_.push_back(static_cast<int32_t>(i * 37 % 272));
  }
  ~Steps() {
    memory_.reset();
    device_->free(device_arena_);
    device_->free(host_arena_);
  }
  Steps(const Steps&) = delete;
  Steps& operator=(const Steps&) = delete;

  void run(int64_t step) {
    RunMemory& m = *memory_;
    const double tokens = static_cast<double>(config_.batch.tokens);
    device_->reset_matmul_counts();
    m.model.zero_gradients();
    device_->zero(m.model.loss_sum());
    for (int64_t micro = 0; micro < accumulation(config_); ++micro)
      m.model.forward_backward(tokens_.data(), tokens_.data(), static_cast<float>(1 / tokens), {step, micro});
    m.optimizer.step(m.model.parameters(), 1e-2, step + 1, m.model.loss_sum(), tokens);
    loss_ = m.optimizer.read_control().loss;
    m.model.update_scales(step);
    m.model.refresh_working_weights(step + 1);
    m.snapshot.take(*device_);
  }
  float loss() const { return loss_; }
  void forget_workspace() { device_->set_workspace({}); }

 private:
  RunConfig config_;
  std::unique_ptr<Device> device_;
  void *device_arena_ = nullptr, *host_arena_ = nullptr;
  std::unique_ptr<RunMemory> memory_;
  std::vector<int32_t> tokens_;
  float loss_ = 0;
};

// Bookkeeping of a call: counts of products, argument lists of oneDNN. Scratch of even this model is larger:
// its 256 tokens, sorted, take 2 KiB.
constexpr size_t limit = 1024;

// What is not ours to plan: libgomp keeps a record of the threads of a parallel region, 1.5 KiB for one
// thread and some 250 bytes for each other, made when the region begins and freed when it ends or the next
// one has another size. It does not grow with the model. And glibc's table of what is to be done at exit
// grows by 1040 bytes with every 32nd static object of a function, whichever call happens to be that one.
// Where there is no AVX-512, oneDNN's FP32 products pack their operands into 16 KiB that they take
// themselves, whatever scratch they are given.
bool packs_by_itself() {
  std::ifstream file("/proc/cpuinfo");
  const std::string text((std::istreambuf_iterator<char>(file)), std::istreambuf_iterator<char>());
  return text.find("avx512f") == std::string::npos;
}
std::vector<std::string> above_limit(const AllocationWatch& watch) {
  constexpr size_t packed = 32 << 10;
  static const bool packs = packs_by_itself();
  const auto by_onednn = [](const auto& allocation) {
    return packs && allocation.bytes <= packed && allocation.library.rfind("libdnnl", 0) == 0;
  };
  std::vector<std::string> found;
  for (const auto& allocation : watch.of_at_least(limit))
    if (allocation.library.rfind("libgomp", 0) != 0 && !by_onednn(allocation) &&
        !(allocation.bytes == 1040 && allocation.library.rfind("libc.so", 0) == 0))
      found.push_back(fmt::format("{} bytes by {}", allocation.bytes, allocation.library));
  return found;
}

}  // namespace

TEST_CASE("no step takes memory that was not planned, the first one included") {
  if (!AllocationWatch::works()) return;
  for (const char* recipe : {"fp32", "bf16", "fp8", "deepseek"})
    for (const bool deterministic : {true, false})
      for (const int threads : {1, 3}) {
        Steps steps(tiny(recipe, deterministic, threads));
        for (int64_t step = 0; step < 3; ++step) {
          AllocationWatch watch;
          steps.run(step);
          watch.stop();
          INFO(recipe << (deterministic ? " deterministic" : "") << ", " << threads << " threads, step "
                      << step + 1);
          CHECK(above_limit(watch) == std::vector<std::string>());
          CHECK(std::isfinite(steps.loss()));
        }
      }
}

TEST_CASE("no step of Muon takes memory that was not planned") {
  if (!AllocationWatch::works()) return;
  for (const char* recipe : {"fp32", "bf16", "fp8"})
    for (const bool deterministic : {true, false}) {
      Steps steps(tiny(recipe, deterministic, 2, {"optimizer.name=muon", "parallel.zero=0"}));
      for (int64_t step = 0; step < 2; ++step) {
        AllocationWatch watch;
        steps.run(step);
        watch.stop();
        INFO(recipe << (deterministic ? " deterministic" : "") << ", step " << step + 1);
        CHECK(above_limit(watch) == std::vector<std::string>());
        CHECK(std::isfinite(steps.loss()));
      }
    }
}

TEST_CASE("the watch sees scratch that a step makes for itself") {
  if (!AllocationWatch::works()) return;
  Steps steps(tiny("fp8", true, 2));
  steps.forget_workspace();  // the device then grows its own
  AllocationWatch watch;
  steps.run(0);
  watch.stop();
  CHECK_FALSE(above_limit(watch).empty());
}

TEST_CASE("the watch sees every way to ask for memory, in every thread") {
  if (!AllocationWatch::works()) return;
  const auto seen = [](const std::function<void*()>& allocate) {
    AllocationWatch watch;
    void* volatile memory = nullptr;  // volatile: the compiler may not leave the allocation out
    std::thread([&] { memory = allocate(); }).join();
    watch.stop();
    std::free(memory);
    return above_limit(watch).size();
  };
  CHECK(seen([] { return std::malloc(limit); }) == 1);
  CHECK(seen([] { return std::calloc(limit, 1); }) == 1);
  CHECK(seen([] { return std::realloc(nullptr, limit); }) == 1);
  CHECK(seen([] { return std::aligned_alloc(64, limit); }) == 1);
  CHECK(seen([] {
          void* memory = nullptr;
          return ::posix_memalign(&memory, 64, limit) == 0 ? memory : nullptr;
        }) == 1);
  CHECK(seen([] { return ::operator new(limit); }) == 1);
  CHECK(seen([] { return ::operator new (limit, std::align_val_t{64}); }) == 1);
  CHECK(seen([] { return std::malloc(limit - 1); }) == 0);
}
