#include "device/cuda/cuda_device.h"

#include "device/cuda/cuda_backend.h"
#include "device/gpu/gpu_device.h"

namespace octet {

std::unique_ptr<Device> make_cuda_device(const DeviceOptions& options) {
  return std::make_unique<GpuDevice>(std::make_unique<CudaBackend>(options), options);
}

}  // namespace octet
