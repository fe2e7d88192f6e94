// The device a name stands for.
#pragma once
#include <memory>
#include <string>

#include "device/device.h"

namespace octet {
// "auto", "cpu" or "cuda"; Error(Hardware) for a device this build does not have.
std::unique_ptr<Device> open_device(const std::string& name, const DeviceOptions& options);
}  // namespace octet
