// A GPU device whose kernels run on the kernel interpreter and whose libraries are the CPU device: every
// launch of ours happens on a machine without a GPU. Slow; for `octet selftest` and the tests.
#pragma once
#include <functional>
#include <memory>

#include "device/device.h"

namespace octet {

// What a library's calls for this work take.
using LibraryScratchBytes = std::function<size_t(const DeviceWork&)>;

// When copies to the device run, of all the moments that Device::order() allows: at the last, when somebody
// waits for them, or at the first, while everything else is still late. A missing order shows in one of the
// two.
enum class Fetches : uint8_t { Late, Early };

// `planned_as` answers workspace_bytes() for the libraries instead of the CPU device: a plan for another GPU.
std::unique_ptr<Device> make_interpreted_device(const DeviceOptions& options,
                                                LibraryScratchBytes planned_as = {},
                                                Fetches fetches = Fetches::Late);

}  // namespace octet
