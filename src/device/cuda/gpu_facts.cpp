#include "device/cuda/gpu_facts.h"

#include <fmt/format.h>

#include <cstdlib>
#include <sstream>

#include "device/cuda/runtime.h"
#include "device/nvidia/gpu_models.h"

namespace octet {

namespace {

std::string version_of(int version) { return fmt::format("{}.{}", version / 1000, version % 1000 / 10); }

[[noreturn]] void no_device(const std::string& cause, const std::string& remedy) {
  throw Error(ExitCode::Hardware, cause,
              remedy + "; without a GPU: train with --device cpu, selftest with --device interpreter");
}

int attribute(cudaDeviceAttr which, int device) {
  int value = 0;
  check_cuda(cudaDeviceGetAttribute(&value, which, device), "asking the GPU for a fact");
  return value;
}

// "90a" runs on 9.0 alone, "100f" on its family from 10.0 on, "80" on 8.x with x >= 0, "120-virtual" on
// everything from 12.0 on.
bool runs_on(const std::string& architecture, int capability) {
  const int built = std::atoi(architecture.c_str());
  if (built <= 0) return false;
  if (architecture.find("virtual") != std::string::npos) return capability >= built;
  const char last = architecture.back();
  if (last == 'a') return capability == built;
  return capability / 10 == built / 10 && capability >= built;
}

// Dense BF16 FLOP a multiprocessor does in a cycle with FP32 accumulation. Consumer boards of one generation
// do half of what its workstation boards do; the name tells them.
int flops_per_cycle(const GpuFacts& facts) {
  const bool consumer = facts.name.find("GeForce") != std::string::npos;
  if (facts.capability == 80) return 2048;
  if (facts.capability == 90) return 4096;
  if (facts.capability / 10 == 10) return 8192;
  if (facts.capability < 90 || facts.capability / 10 == 12) return consumer ? 512 : 1024;
  return 0;
}

}  // namespace

void check_device_count(const DeviceCount& found) {
  if (found.error == cudaErrorInsufficientDriver && found.driver_version == 0)
    no_device("no NVIDIA driver: libcuda.so.1 could not be loaded",
              "install the driver, or in a container start it with the GPU (docker run --gpus all)");
  if (found.error == cudaErrorInsufficientDriver)
    no_device(fmt::format("the NVIDIA driver speaks CUDA {}, this build needs {}",
                          version_of(found.driver_version), version_of(found.runtime_version)),
              "update the driver");
  if (found.error == cudaErrorNoDevice || (found.error == cudaSuccess && found.count == 0)) {
    if (!found.visible_devices.empty())
      no_device(fmt::format("no GPU is visible: CUDA_VISIBLE_DEVICES is '{}'", found.visible_devices),
                "name an index of nvidia-smi's list there");
    no_device("the NVIDIA driver is there, but it has no GPU", "see what nvidia-smi says");
  }
  if (found.error != cudaSuccess)
    no_device(fmt::format("the GPU cannot be used: {} ({})", cudaGetErrorName(found.error),
                          cudaGetErrorString(found.error)),
              "see what nvidia-smi and dmesg say");
}

void check_architecture(const GpuFacts& facts, const std::string& architectures) {
  const std::string gpu = fmt::format("{} has compute capability {}.{}", facts.name, facts.capability / 10,
                                      facts.capability % 10);
  if (facts.capability < 80)
    no_device(fmt::format("{}, at least 8.0 (Ampere) is needed", gpu), "use a newer GPU");
  std::istringstream list(architectures);
  for (std::string one; list >> one;)
    if (runs_on(one, facts.capability)) return;
  no_device(fmt::format("{}, the kernels of this build are for {}", gpu, architectures),
            fmt::format("build with -DOCTET_CUDA_ARCHITECTURES=\"{}\"", facts.capability));
}

GpuFacts open_gpu(int local_rank) {
  DeviceCount found;
  found.error = cudaGetDeviceCount(&found.count);
  cudaGetLastError();  // the error above is sticky, and it is handled here
  cudaDriverGetVersion(&found.driver_version);
  cudaRuntimeGetVersion(&found.runtime_version);
  if (const char* visible = std::getenv("CUDA_VISIBLE_DEVICES")) found.visible_devices = visible;
  check_device_count(found);

  const int device = local_rank % found.count;
  check_cuda(cudaSetDevice(device), "selecting the GPU");
  cudaDeviceProp properties{};
  check_cuda(cudaGetDeviceProperties(&properties, device), "asking the GPU for its properties");
  GpuFacts facts;
  facts.name = properties.name;
  facts.identity = fmt::format("{:08x}:{:02x}:{:02x}", properties.pciDomainID, properties.pciBusID,
                               properties.pciDeviceID);
  facts.capability = 10 * properties.major + properties.minor;
  facts.processors = properties.multiProcessorCount;
  facts.memory_bytes = properties.totalGlobalMem;
  facts.clock_hz = 1e3 * attribute(cudaDevAttrClockRate, device);
  facts.driver_version = found.driver_version;
  check_architecture(facts, OCTET_KERNEL_ARCHITECTURES);
  return facts;
}

DeviceInfo device_info(const GpuFacts& facts) {
  DeviceInfo info;
  info.identity = facts.identity;
  info.asynchronous = true;
  info.float8_products = facts.capability >= 89;
  info.name = facts.name;
  if (const GpuModel* model = find_gpu_model(facts.name)) {
    info.peak_flops = model->bfloat16_tera_flops * 1e12;
    info.peak_source = fmt::format("NVIDIA's data sheet of the {}, dense BF16", model->name);
    return info;
  }
  const int per_cycle = flops_per_cycle(facts);
  info.peak_flops = facts.clock_hz * facts.processors * per_cycle;
  info.peak_source = info.peak_flops > 0
                         ? fmt::format(
                               "{} multiprocessors x {:.2f} GHz x {} FLOP a cycle (dense BF16, compute "
                               "capability {}.{})",
                               facts.processors, facts.clock_hz * 1e-9, per_cycle, facts.capability / 10,
                               facts.capability % 10)
                         : "unknown for this GPU";
  return info;
}

}  // namespace octet
