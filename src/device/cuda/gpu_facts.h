// What is known about the GPU of a run, and why there may be none.
#pragma once
#include <cuda_runtime.h>

#include <cstddef>
#include <string>

#include "base/error.h"
#include "device/device.h"

namespace octet {

struct GpuFacts {
  std::string name;      // "NVIDIA H200"
  std::string identity;  // PCI address: 0000:3b:00
  int capability = 0;    // 90: compute capability 9.0
  int processors = 0;    // streaming multiprocessors
  double clock_hz = 0;   // highest of the multiprocessors; 0: unknown
  size_t memory_bytes = 0;
  int driver_version = 0;  // CUDA that the driver speaks, 13000: 13.0
};

// Selects the visible GPU number `local_rank`, modulo their number. Error(Hardware): see cuda_device.h.
GpuFacts open_gpu(int local_rank);

// What cudaGetDeviceCount said, and what there is to say about it.
struct DeviceCount {
  cudaError_t error = cudaSuccess;
  int count = 0;
  int driver_version = 0, runtime_version = 0;  // 13000: 13.0; driver 0: none
  std::string visible_devices;                  // CUDA_VISIBLE_DEVICES, empty: not set
};
void check_device_count(const DeviceCount& count);  // Error(Hardware) with one remedy for each cause

// Error(Hardware) for a GPU before Ampere, or one for which none of `architectures` ("80 90a 120-virtual", as
// they were given to the build) has kernels.
void check_architecture(const GpuFacts& facts, const std::string& architectures);

// Dense BF16 FLOP/s with FP32 accumulation: NVIDIA's number for boards known by name, otherwise
// multiprocessors x clock x the generation's FLOP per cycle.
DeviceInfo device_info(const GpuFacts& facts);

}  // namespace octet
