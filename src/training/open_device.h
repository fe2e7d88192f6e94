// The device a name stands for.
#pragma once
#include <memory>
#include <string>

#include "config/run_config.h"
#include "device/device.h"

namespace octet {
// "cpu", "cuda", "interpreter" (the CUDA kernels on this CPU: slow) or "auto": a GPU where there is a driver,
// otherwise the CPU; a warning says why a GPU that is there is not used. Error(Hardware) with the remedy when
// "cuda" is not to be had.
std::unique_ptr<Device> open_device(const std::string& name, const DeviceOptions& options);
// What a run asks of its device. Whoever plans, measures or trains a run opens the device with these, so that
// all three have the same workspace.
DeviceOptions device_options(const RunConfig& config, int local_rank = 0);
}  // namespace octet
