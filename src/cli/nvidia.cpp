// The NVIDIA driver, asked without linking it: a machine without one is not in error.
#include <dlfcn.h>
#include <fmt/format.h>

#include <array>
#include <memory>

#include "cli/machine.h"

namespace octet {
namespace {

struct CloseLibrary {
  void operator()(void* handle) const { dlclose(handle); }
};
using Library = std::unique_ptr<void, CloseLibrary>;

Library open_library(const char* name) { return Library(dlopen(name, RTLD_NOW | RTLD_LOCAL)); }

template <class F>
F* symbol(const Library& library, const char* name) {
  return reinterpret_cast<F*>(dlsym(library.get(), name));
}

// The driver's ABI, as far as it is needed here (CUDA driver API and NVML reference manuals): results are 0
// for success; devices are integers; attributes 75 and 76 are the compute capability.
constexpr int capability_major = 75, capability_minor = 76;

void inspect_devices(const Library& cuda, NvidiaDriver& out) {
  auto* count_of = symbol<int(int*)>(cuda, "cuDeviceGetCount");
  auto* get = symbol<int(int*, int)>(cuda, "cuDeviceGet");
  auto* name_of = symbol<int(char*, int, int)>(cuda, "cuDeviceGetName");
  auto* attribute = symbol<int(int*, int, int)>(cuda, "cuDeviceGetAttribute");
  auto* memory = symbol<int(size_t*, int)>(cuda, "cuDeviceTotalMem_v2");
  if (!count_of || !get || !name_of || !attribute || !memory) {
    out.problem = "libcuda.so.1 lacks a function it should have";
    return;
  }
  int count = 0;
  if (const int result = count_of(&count); result != 0) {
    out.problem = fmt::format("cuDeviceGetCount returned {}", result);
    return;
  }
  for (int i = 0; i < count; ++i) {
    int device = 0;
    NvidiaDevice facts;
    std::array<char, 256> name{};
    size_t bytes = 0;
    if (get(&device, i) != 0) continue;
    if (name_of(name.data(), static_cast<int>(name.size()) - 1, device) == 0) facts.name = name.data();
    attribute(&facts.major, capability_major, device);
    attribute(&facts.minor, capability_minor, device);
    if (memory(&bytes, device) == 0) facts.memory_bytes = bytes;
    out.devices.push_back(facts);
  }
}

std::string driver_version() {
  const Library nvml = open_library("libnvidia-ml.so.1");
  if (!nvml) return {};
  auto* initialize = symbol<int()>(nvml, "nvmlInit_v2");
  auto* shutdown = symbol<int()>(nvml, "nvmlShutdown");
  auto* version = symbol<int(char*, unsigned)>(nvml, "nvmlSystemGetDriverVersion");
  if (!initialize || !shutdown || !version || initialize() != 0) return {};
  std::array<char, 96> text{};
  const bool good = version(text.data(), static_cast<unsigned>(text.size()) - 1) == 0;
  shutdown();
  return good ? text.data() : "";
}

}  // namespace

NvidiaDriver inspect_nvidia() {
  NvidiaDriver out;
  // Never closed: the driver starts threads of its own that must not lose their code.
  Library cuda = open_library("libcuda.so.1");
  if (!cuda) return out;
  out.present = true;
  auto* initialize = symbol<int(unsigned)>(cuda, "cuInit");
  auto* version = symbol<int(int*)>(cuda, "cuDriverGetVersion");
  if (version) version(&out.cuda_version);
  out.driver_version = driver_version();
  if (const int result = initialize ? initialize(0) : -1; result != 0)
    out.problem = fmt::format("cuInit returned {}{}", result, result == 100 ? ": no device" : "");
  else
    inspect_devices(cuda, out);
  (void)cuda.release();
  return out;
}

}  // namespace octet
