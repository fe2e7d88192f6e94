#include "training/health.h"

#include <vector>

namespace octet {

Json collect_health(Device& device, ScaleTable& table) {
  const size_t sites = table.sites.size();
  std::vector<float> amax(sites), scale(sites), inverse(sites);
  std::vector<uint64_t> counters(3 * sites);
  device.synchronize();
  if (sites > 0) {
    device.copy_to_host(amax.data(), table.amax.data, sites * sizeof(float));
    device.copy_to_host(scale.data(), table.scale.data, sites * sizeof(float));
    device.copy_to_host(inverse.data(), table.inverse_scale.data, sites * sizeof(float));
    device.copy_to_host(counters.data(), table.counters.data, counters.size() * sizeof(uint64_t));
    device.zero(table.counters);
  }
  Json list = Json::array();
  for (size_t s = 0; s < sites; ++s) {
    const SiteInfo& info = table.sites[s];
    if (!is_float8(info.cast.format)) continue;
    const double elements = static_cast<double>(counters[3 * s]);
    const auto share = [&](uint64_t n) { return elements > 0 ? static_cast<double>(n) / elements : 0.0; };
    // With current scaling the cast leaves only the inverse scale behind.
    const double used = scale[s] != 0 ? scale[s] : inverse[s] != 0 ? 1 / static_cast<double>(inverse[s]) : 0;
    list.push_back({{"name", info.name},
                    {"block", info.block},
                    {"amax", json_number(amax[s])},
                    {"scale", json_number(used)},
                    {"saturated", share(counters[3 * s + 1])},
                    {"flushed", share(counters[3 * s + 2])}});
  }
  return {{"sites", std::move(list)}};
}

}  // namespace octet
