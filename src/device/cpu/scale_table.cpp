// Once a step: amaxes into the ring, scales that follow earlier steps refreshed, amaxes and counters cleared.
#include <algorithm>

#include "device/cpu/cpu_device.h"
#include "numerics/adaptive_scaling.h"

namespace octet {

void CpuDevice::scale_table_update(const ScaleTableUpdate& op) {
  ScaleTable& table = *op.table;
  const int64_t sites = static_cast<int64_t>(table.sites.size());
  if (sites == 0) return;
  check(op);
  auto* counters = static_cast<CastCounters*>(table.counters.data);
  float *amax = table.amax.as<float>(), *scale = table.scale.as<float>(),
        *inverse = table.inverse_scale.as<float>();
  const int64_t window = table.amax_history.rows();
  const int64_t newest = op.step % window;
  float* history = table.amax_history.as<float>();
  const bool applied = !op.control || op.control->apply != 0;
  for (int64_t i = 0; applied && i < sites; ++i) {
    history[newest * sites + i] = amax[i];
    const Cast& cast = table.sites[static_cast<size_t>(i)].cast;
    if (!is_float8(cast.format) || !follows_steps(cast.scaling)) continue;
    const CastCounters& n = counters[i];
    scale[i] =
        is_counted(cast.scaling)
            ? adaptive_scale(op.adaptive, cast, {amax[i], n.elements, n.saturated, n.flushed}, scale[i])
            : delayed_scale(op.options, cast, {history + i, sites, newest}, scale[i]);
    if (scale[i] != 0.0f) inverse[i] = 1.0f / scale[i];
  }
  std::fill_n(amax, sites, 0.0f);
  std::fill_n(counters, sites, CastCounters{});
}

}  // namespace octet
