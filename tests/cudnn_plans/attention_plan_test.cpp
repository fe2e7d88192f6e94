// cuDNN builds real plans for GPUs that are not there, from their properties: engines are chosen and code is
// compiled for each generation. What the plans compute is a GPU test's business.
#include "device/cuda/attention_plan.h"

#include <dlfcn.h>
#include <fmt/format.h>

#include <optional>
#include <string>

#include "base/error.h"
#include "catch.h"
#include "device/nvidia/library_scratch.h"

using namespace octet;

namespace {

struct Gpu {
  const char* name;
  int capability, processors, shared_memory, blocks, threads;
};
constexpr Gpu a100{"A100", 80, 108, 166912, 32, 2048}, l40s{"L40S", 89, 142, 101376, 24, 1536},
    h100{"H100", 90, 132, 232448, 32, 2048}, b200{"B200", 100, 148, 232448, 32, 2048},
    rtx5090{"RTX 5090", 120, 170, 101376, 24, 1536};

// The keys cuDNN reads, with what does not differ between these GPUs as it is.
std::string properties(const Gpu& gpu) {
  return fmt::format(
      R"({{"maxGridSize":[2147483647,65535,65535],"maxBlockSize":[1024,1024,64],"regsPerBlock":65536,)"
      R"("multiProcessorCount":{},"warpSize":32,"maxSharedMemoryPerBlock":49152,)"
      R"("maxSharedMemoryPerBlockOptin":{},"reservedSharedMemoryPerBlock":1024,"maxRegistersPerSM":65536,)"
      R"("maxCtasPerSM":{},"maxThreadsPerBlock":1024,"maxThreadsPerSM":{},"pciDeviceId":0,"isTccDriver":0,)"
      R"("supportCoopLaunch":1,"totalGlobalMem":80000000000,"smClockRateKHz":1980000,)"
      R"("memClockRateKHz":2619000,"l2CacheSize":52428800,"cudaDeviceId":0,"deviceVer":{},)"
      R"("driverVer":13000,"deviceName":"NVIDIA {}"}})",
      gpu.processors, gpu.shared_memory, gpu.blocks, gpu.threads, 10 * gpu.capability, gpu.name);
}

// cuDNN opens libcuda.so.1 by name and gets what is loaded under that name.
const Cudnn* cudnn() {
  static const std::optional<Cudnn> library = []() -> std::optional<Cudnn> {
    if (dlopen(OCTET_DRIVER_STAND_IN, RTLD_NOW | RTLD_GLOBAL) == nullptr) {
      WARN("skipped: " << dlerror());
      return std::nullopt;
    }
    try {
      return open_cudnn();
    } catch (const Error& error) {
      WARN("skipped: " << error.what());
      return std::nullopt;
    }
  }();
  return library ? &*library : nullptr;
}

enum class Pass { Forward, Backward, DeterministicBackward };

AttentionKey key_of(Pass pass, int64_t kv_heads, int64_t head_width, int64_t context = 1024) {
  AttentionKey key;
  key.batch = 2;
  key.context = context;
  key.heads = 8;
  key.kv_heads = kv_heads;
  key.head_width = head_width;
  key.backward = pass != Pass::Forward;
  key.deterministic = pass == Pass::DeterministicBackward;
  return key;
}

// Bytes of the plan's workspace.
int64_t build(const Cudnn& library, const Gpu& gpu, const AttentionKey& key) {
  const std::string json = properties(gpu);
  CudnnDescriptor device(library, CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR);
  device.set(CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR, static_cast<int64_t>(json.size()),
             json.data());
  device.finalize("the properties of a GPU");
  return attention_plan(library, key, {.device = &device, .capability = gpu.capability})
      .get_integer(CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE);
}

// `octet plan` counts with at least what cuDNN asks for, and with no more than 64 KiB beyond it.
void check_estimate(const AttentionKey& key, int capability, int64_t asked) {
  if (!key.backward) {
    CHECK(asked <= static_cast<int64_t>(attention_scratch_estimate(key, capability).forward));
    return;
  }
  const AttentionScratch own = attention_scratch(key);
  const auto counted =
      static_cast<int64_t>(attention_scratch_estimate(key, capability).backward -
                           align_workspace(own.out_products) - align_workspace(own.query_accumulator));
  CHECK(asked <= counted);
  CHECK(counted - asked <= (64 << 10) + 256);
}

void build_all(const Gpu& gpu, int64_t kv_heads, int64_t head_width, int64_t context = 1024) {
  const Cudnn* library = cudnn();
  if (library == nullptr) return;
  for (const Pass pass : {Pass::Forward, Pass::Backward, Pass::DeterministicBackward}) {
    const AttentionKey key = key_of(pass, kv_heads, head_width, context);
    INFO(gpu.name << ", " << to_string(key));
    check_estimate(key, gpu.capability, build(*library, gpu, key));
  }
}

}  // namespace

TEST_CASE("cuDNN compiles attention and both its gradients for a Hopper, from packed rows (slow)") {
  build_all(h100, 2, 128);
}

TEST_CASE("cuDNN compiles attention of short contexts, as octet selftest has them, for a Hopper (slow)") {
  build_all(h100, 4, 64, 32);
  build_all(h100, 4, 64, 100);
  build_all(h100, 2, 128, 192);
}

namespace {

// In FP8, grouped and not. What the plans take is what `octet plan` counts with.
void build_float8(const Gpu& gpu, int64_t head_width, std::initializer_list<Pass> passes, int64_t context) {
  const Cudnn* library = cudnn();
  if (library == nullptr) return;
  for (const int64_t kv_heads : {8, 2})
    for (const Pass pass : passes) {
      AttentionKey key = key_of(pass, kv_heads, head_width, context);
      key.float8 = true;
      INFO(gpu.name << ", " << to_string(key));
      check_estimate(key, gpu.capability, build(*library, gpu, key));
    }
}

}  // namespace

TEST_CASE("cuDNN compiles FP8 attention and its gradients, of codes, for a Hopper (slow)") {
  build_float8(h100, 128, {Pass::Forward, Pass::Backward}, 1024);
}

TEST_CASE("cuDNN compiles FP8 attention for a data-centre Blackwell, and for ragged contexts", "[.long]") {
  for (const int64_t width : {64, 128})
    build_float8(b200, width, {Pass::Forward, Pass::Backward, Pass::DeterministicBackward}, 1024);
  build_float8(h100, 128, {Pass::Forward, Pass::Backward}, 200);
}

TEST_CASE("FP8 attention that cuDNN does not have is refused before it is asked, with the alternatives") {
  const Cudnn* library = cudnn();
  if (library == nullptr) return;
  AttentionKey key = key_of(Pass::Forward, 8, 64);
  key.float8 = true;
  for (const Gpu& gpu : {l40s, h100, rtx5090}) {
    try {
      build(*library, gpu, key);
      FAIL("a plan was built");
    } catch (const Error& error) {
      CHECK(error.code() == ExitCode::Hardware);
      CHECK_THAT(error.hint(), contains_text("precision.attention to storage"));
    }
  }
}

TEST_CASE("what cuDNN has no engine for is an error with the whole key") {
  const Cudnn* library = cudnn();
  if (library == nullptr) return;
  try {
    build(*library, a100, key_of(Pass::Backward, 8, 256));  // backward stops at 128 there
    FAIL("a plan was built");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Hardware);
    CHECK_THAT(error.what(), contains_text("attention backward batch 2 context 1024 heads 8:8 x 256"));
    CHECK_THAT(error.what(), contains_text("compute capability 8.0"));
    CHECK(std::string(error.what()).find('\n') == std::string::npos);
  }
}

TEST_CASE("a deterministic backward pass on Hopper costs 2 B H S^2 bytes (slow)") {
  const Cudnn* library = cudnn();
  if (library == nullptr) return;
  constexpr int64_t scores = 2LL * 2 * 8 * 1024 * 1024;
  CHECK(build(*library, h100, key_of(Pass::DeterministicBackward, 8, 64)) >= scores);
  CHECK(build(*library, h100, key_of(Pass::Backward, 8, 64)) < scores);
}

TEST_CASE("cuDNN compiles attention for every generation, grouped and not", "[.long]") {
  for (const Gpu& gpu : {a100, l40s, h100, b200, rtx5090})
    for (const int64_t kv_heads : {8, 2})
      for (const int64_t width : {64, 72, 128}) build_all(gpu, kv_heads, width);
  build_all(h100, 2, 256);
}
