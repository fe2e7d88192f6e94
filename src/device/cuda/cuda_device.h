// The device of NVIDIA GPUs: the kernels of kernels/, cuBLASLt and cuDNN. Nothing of CUDA is needed to
// include this, and nothing of CUDA is loaded before the call.
#pragma once
#include <memory>

#include "device/device.h"

namespace octet {

// The first GPU that CUDA_VISIBLE_DEVICES leaves. Error(Hardware), each with its own remedy: no driver, too
// old a driver, no GPU, too old a GPU, a GPU this build has no kernels for, cuBLASLt or cuDNN missing or too
// old.
std::unique_ptr<Device> make_cuda_device(const DeviceOptions& options);

}  // namespace octet
