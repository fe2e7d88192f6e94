// A GPU that is not in this machine, to plan a run for: the kernels' scratch is what their code says, the
// libraries' an upper bound or an estimate (device/nvidia/library_scratch.h).
#pragma once
#include <memory>

#include "device/device.h"
#include "device/nvidia/gpu_models.h"
#include "device/nvidia/library_scratch.h"

namespace octet {

// What device.workspace is made of. Operations follow each other and share it: it is as large as the largest.
struct GpuWorkspace {
  size_t kernels = 0;                      // exact
  size_t products = 0;                     // an upper bound
  size_t operands = 0;                     // exact: reduced copies of operands, beside the libraries' own
  AttentionScratchEstimate attention;      // an estimate
  AttentionScratchEstimate deterministic;  // what it would be with DeviceOptions::deterministic
  size_t bytes() const;
};

struct PlannedGpu {
  std::unique_ptr<Device> device;           // only to be asked for its workspace
  std::shared_ptr<GpuWorkspace> workspace;  // of the latest question
};

// The newest libraries are assumed. workspace_bytes() throws Error for work that this GPU cannot do.
PlannedGpu plan_gpu(const GpuModel& gpu, const DeviceOptions& options);

}  // namespace octet
