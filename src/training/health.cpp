#include "training/health.h"

namespace octet {

Json health_record(const ScaleTable& table, const ScaleStatistics& statistics) {
  Json list = Json::array();
  for (size_t s = 0; s < table.sites.size(); ++s) {
    const SiteInfo& info = table.sites[s];
    if (!is_float8(info.cast.format)) continue;
    const CastCounters& counters = statistics.counters[s];
    const double elements = static_cast<double>(counters.elements);
    const auto share = [&](uint64_t n) { return elements > 0 ? static_cast<double>(n) / elements : 0.0; };
    const float scale = statistics.scale[s], inverse = statistics.inverse_scale[s];
    // With current scaling the cast leaves only the inverse scale behind.
    const double used = scale != 0 ? scale : inverse != 0 ? 1 / static_cast<double>(inverse) : 0;
    list.push_back({{"name", info.name},
                    {"block", info.block},
                    {"amax", json_number(statistics.amax[s])},
                    {"scale", json_number(used)},
                    {"saturated", share(counters.saturated)},
                    {"flushed", share(counters.flushed)}});
  }
  return {{"sites", std::move(list)}};
}

}  // namespace octet
