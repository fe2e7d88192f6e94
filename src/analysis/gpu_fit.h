// Whether a run fits a GPU, and what to change when it does not.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "config/run_config.h"
#include "device/device.h"
#include "device/gpu/interpreted/planned_gpu.h"

namespace octet {

// What a plan is for: nothing set means the CPU device.
struct PlannedFor {
  const GpuModel* gpu = nullptr;  // a board of the table; it need not be in this machine
  Device* open = nullptr;         // the device itself where it is: its workspace is then no estimate
};

// A change of the configuration, on top of the ones listed before it.
struct FitChange {
  std::string key, value;  // "batch.recompute", "block"
  uint64_t device_bytes = 0;
  bool fits = false;
};

struct GpuFit {
  const GpuModel* gpu = nullptr;
  GpuWorkspace workspace;      // what device.workspace is made of; zeros when the device itself was asked
  uint64_t planned_bytes = 0;  // the arena
  // Assumed: CUDA's context and the code of cuBLASLt, cuDNN and the kernels, which no plan contains.
  uint64_t outside_bytes = uint64_t{1} << 30;
  std::vector<FitChange> changes;  // when it does not fit; the last one may fit

  uint64_t needed_bytes() const { return planned_bytes + outside_bytes; }
  bool fits() const { return needed_bytes() <= gpu->memory_bytes(); }
};

// The changes are those that keep the most of the run first: what only costs time or determinism, last of
// these the host's memory (memory.offload); then what rounds more. Every one is planned like the run itself.
GpuFit gpu_fit(const RunConfig& config, const GpuModel& gpu, const GpuWorkspace& workspace,
               uint64_t planned_bytes);

}  // namespace octet
