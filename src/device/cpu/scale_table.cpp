// Once a step: amaxes into the ring, delayed scales refreshed, amaxes cleared.
#include <algorithm>

#include "device/cpu/cpu_device.h"
#include "numerics/scaling.h"

namespace octet {

void CpuDevice::scale_table_update(const ScaleTableUpdate& op) {
  ScaleTable& table = *op.table;
  const int64_t sites = static_cast<int64_t>(table.sites.size());
  if (sites == 0) return;
  check(op);
  if (op.control && op.control->apply == 0) {
    std::fill_n(table.amax.as<float>(), sites, 0.0f);
    return;
  }
  const int64_t window = table.amax_history.rows();
  const int64_t newest = op.step % window;
  float* history = table.amax_history.as<float>();
  float *amax = table.amax.as<float>(), *scale = table.scale.as<float>(),
        *inverse = table.inverse_scale.as<float>();
  for (int64_t i = 0; i < sites; ++i) {
    history[newest * sites + i] = amax[i];
    amax[i] = 0.0f;
    const Cast& cast = table.sites[static_cast<size_t>(i)].cast;
    if (cast.scaling != Scaling::Delayed || !is_float8(cast.format)) continue;
    scale[i] = delayed_scale(op.options, cast, {history + i, sites, newest}, scale[i]);
    if (scale[i] != 0.0f) inverse[i] = 1.0f / scale[i];
  }
}

}  // namespace octet
