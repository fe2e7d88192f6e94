// history[newest, i] = amax[i] (unless *apply is 0);  amax[i], counters[i] = 0;  scale[i] of FP8 sites =
// delayed_scale(history[:, i]) or adaptive_scale(amax[i], counters[i]). A thread a site. Reads and writes at
// most 4 (window + 7) + 48 bytes a site, some hundred sites: bound by the latency of a launch and of the
// loads, a few microseconds once a step.
#include "kernels/scale_table.h"

#include "kernels/gpu.h"
#include "numerics/adaptive_scaling.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 128;

__global__ void __launch_bounds__(threads) update_kernel(ScaleTableArguments table) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= table.sites) return;
  uint64_t* const counters = table.counters + 3 * i;
  const octet::CastsOfStep step{table.amax[i], counters[0], counters[1], counters[2]};
  table.amax[i] = 0.0f;
  counters[0] = counters[1] = counters[2] = 0;
  if (table.apply != nullptr && *table.apply == 0) return;
  table.amax_history[table.newest * table.sites + i] = step.amax;
  const octet::Cast cast = table.casts[i];
  const bool counted = is_counted(cast.scaling);
  if (cast.format != Format::E4M3 && cast.format != Format::E5M2) return;
  if (!follows_steps(cast.scaling)) return;
  const float present = table.scale[i];
  const float scale = counted ? adaptive_scale(table.adaptive, cast, step, present)
                              : delayed_scale(table.options, cast,
                                              {table.amax_history + i, table.sites, table.newest}, present);
  table.scale[i] = scale;
  if (scale != 0.0f) table.inverse_scale[i] = 1.0f / scale;
}

}  // namespace

void update_scale_table(const ScaleTableArguments& args) {
  if (args.sites <= 0) return;
  gpu::launch(update_kernel,
              {.grid = static_cast<unsigned>((args.sites + threads - 1) / threads),
               .block = threads,
               .stream = args.stream},
              args);
}

OCTET_KERNELS_END
