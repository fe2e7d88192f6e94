// FP8 cast statistics: what each site's tensor looked like and what the cast did to it.
#pragma once
#include "device/device.h"
#include "training/metrics.h"

namespace octet {

// The fields of a "health" record from this step's amaxes and counters; then the counters are zero again.
// Call before the scales are updated, which clears the amaxes.
Json collect_health(Device& device, ScaleTable& table);

}  // namespace octet
