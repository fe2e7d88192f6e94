// history[newest, i] = amax[i] (unless *apply is 0);  amax[i] = 0;  scale[i] = delayed_scale(history[:, i])
// of delayed FP8 sites. A thread a site. Reads and writes at most 4 (window + 7) bytes a site, some hundred
// sites: bound by the latency of a launch and of the loads, a few microseconds once a step.
#include "kernels/scale_table.h"

#include "kernels/gpu.h"
#include "numerics/scaling.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 128;

struct Table {
  int64_t sites;
  const octet::Cast* casts;
  octet::DelayedScaling options;
  int64_t newest;
  float *amax_history, *amax, *scale, *inverse_scale;
  const uint32_t* apply;
};

__global__ void __launch_bounds__(threads) update_kernel(Table table) {
  const int64_t i = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  if (i >= table.sites) return;
  const float amax = table.amax[i];
  table.amax[i] = 0.0f;
  if (table.apply != nullptr && *table.apply == 0) return;
  table.amax_history[table.newest * table.sites + i] = amax;
  const octet::Cast cast = table.casts[i];
  if (cast.scaling != Scaling::Delayed || (cast.format != Format::E4M3 && cast.format != Format::E5M2))
    return;
  const float scale =
      delayed_scale(table.options, cast, {table.amax_history + i, table.sites, table.newest}, table.scale[i]);
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
              Table{.sites = args.sites,
                    .casts = args.casts,
                    .options = args.options,
                    .newest = args.newest,
                    .amax_history = args.amax_history,
                    .amax = args.amax,
                    .scale = args.scale,
                    .inverse_scale = args.inverse_scale,
                    .apply = args.apply});
}

OCTET_KERNELS_END
