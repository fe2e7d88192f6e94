// One pass over the model: the device it runs on, and what its casts leave behind.
#pragma once
#include <cstdint>

#include "base/random.h"
#include "device/device.h"
#include "model/observations.h"

namespace octet {

enum class PassKind : uint8_t {
  Training,    // casts record their amax and are counted
  Recompute,   // the casts of a training pass once more: same scales, same random numbers, nothing recorded
  Evaluation,  // nothing recorded, no copies for backward
};

struct Pass {
  Device& device;
  const ScaleTable& scales;
  const float*
      one;  // F32 [1], device memory: the inverse scale of codes whose scales something else takes up
  float* unrecorded;  // F32 [1], device memory: where the amaxes go that nobody may see
  uint64_t seed = 0;
  uint64_t position = 0;  // of the micro-batch in the run
  PassKind kind = PassKind::Training;
  Tensor master_values = {};  // BF16: room for the numbers of the largest weight, where masters need it
  const Observations* observations = nullptr;

  Pass recomputing() const {
    Pass pass = *this;
    pass.kind = PassKind::Recompute;
    return pass;
  }
  Site site(int index) const {
    Site site = scales.site(index);
    if (kind != PassKind::Training) {
      site.amax = unrecorded;
      site.counters = nullptr;
    }
    return site;
  }
  // Whether somebody looks at what this pass computes; and what there is to see.
  bool observed() const { return observations && observations->on && kind == PassKind::Training; }
  void observe(int block, Observed what, const Tensor& x, const Columns& columns = {}) const {
    if (observed()) observations->observe(device, block, what, x, columns);
  }
  // What the cast of `source` lost. Ranks share out weights, and count each once.
  void observe_cast(int site, const Tensor& source, const Tensor& codes, const InverseScales& inverse) const {
    if (!observed() || !scales.count || codes.empty() || source.elements() == 0) return;
    observations->observe_cast(device, site, {.source = source, .codes = codes, .inverse_scales = inverse});
  }
  uint64_t rounding_key(int site) const {
    return random_key(seed, Purpose::StochasticRounding, static_cast<uint64_t>(site), position);
  }
};

}  // namespace octet
