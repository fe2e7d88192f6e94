#include "device/scale_table.h"

#include <algorithm>

namespace octet {

void ScaleTable::plan(MemoryPlan& plan, int window) {
  const int64_t count_of_sites = static_cast<int64_t>(sites.size());
  if (count_of_sites == 0) return;
  const int64_t rows = std::max(window, 1);
  amax_history = plan.add("amax history", Category::ScaleTable, DType::F32, {rows, count_of_sites});
  scale = plan.add("scale", Category::ScaleTable, DType::F32, {count_of_sites});
  inverse_scale = plan.add("inverse scale", Category::ScaleTable, DType::F32, {count_of_sites});
  amax = plan.add("amax", Category::ScaleTable, DType::F32, {count_of_sites});
  counters = plan.add("cast counters", Category::ScaleTable, DType::U64, {count_of_sites, 3});
}

Site ScaleTable::site(int index) const {
  static_assert(sizeof(CastCounters) == 3 * sizeof(uint64_t));
  if (index < 0 || scale.data == nullptr) return {};
  Site site;
  site.scale = scale.as<float>() + index;
  site.inverse_scale = inverse_scale.as<float>() + index;
  site.amax = amax.as<float>() + index;
  if (count) site.counters = static_cast<CastCounters*>(counters.data) + index;
  return site;
}

}  // namespace octet
