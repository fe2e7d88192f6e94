#include "device/scale_table.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "device/device.h"

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
  casts = plan.add("casts", Category::ScaleTable, DType::U8, {count_of_sites, sizeof(Cast)});
}

void upload_casts(Device& device, const ScaleTable& table) {
  std::vector<Cast> rules;
  for (const SiteInfo& site : table.sites) rules.push_back(site.cast);
  if (!rules.empty()) device.copy_from_host(table.casts.data, rules.data(), table.casts.bytes());
}

void check(const ScaleTableUpdate& op) {
  const ScaleTable& table = *op.table;
  const int64_t sites = static_cast<int64_t>(table.sites.size());
  if (op.options.window != table.amax_history.rows() || table.amax_history.columns() != sites ||
      table.counters.elements() != 3 * sites || op.step < 0) {
    throw Error(ExitCode::Internal,
                fmt::format("scale table: step {}, window {}, {} sites; planned {}", op.step,
                            op.options.window, sites, to_string(table.amax_history.shape)));
  }
}

Site ScaleTable::site(int index) const {
  static_assert(sizeof(CastCounters) == 3 * sizeof(uint64_t));
  if (index < 0 || scale.data == nullptr) return {};
  Site site;
  site.scale = scale.as<float>() + index;
  site.inverse_scale = inverse_scale.as<float>() + index;
  site.amax = amax.as<float>() + index;
  if (count || is_counted(sites[static_cast<size_t>(index)].cast.scaling))
    site.counters = static_cast<CastCounters*>(counters.data) + index;
  return site;
}

}  // namespace octet
