// FP8 cast statistics: what each site's tensor looked like and what the cast did to it.
#pragma once
#include <span>

#include "device/scale_table.h"
#include "training/metrics.h"

namespace octet {

// Of one step, by site: copies of the scale table's tensors before its update.
struct ScaleStatistics {
  std::span<const float> amax, scale, inverse_scale;
  std::span<const CastCounters> counters;
};

// The fields of a "health" record.
Json health_record(const ScaleTable& table, const ScaleStatistics& statistics);

}  // namespace octet
