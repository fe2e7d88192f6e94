// A GPU device whose kernels run on the kernel interpreter and whose libraries are the CPU device: every
// launch of ours happens on a machine without a GPU. Slow; for `octet selftest` and the tests.
#pragma once
#include <memory>

#include "device/device.h"

namespace octet {

std::unique_ptr<Device> make_interpreted_device(const DeviceOptions& options);

}  // namespace octet
