// The automatic scale of reduced gradients: mu is halved when more than 0.001 % of a step's values saturate,
// and doubled after 1000 steps in which they did not.  [Peng et al. 2310.18313, "automatic scaling"; there mu
// grows by 2^(1/1000) a step]
//
// Powers of two only, so that mu rounds nothing. It never passes 2^largest_log2: a block's scale already puts
// its largest value into (max / 2, max] (numerics/block_codes.h), so a mu of 2 saturates at least one value
// in 256 wherever a block is not zero, 390 times what is allowed. So it rests at 1 and blocks alone scale;
// a mu of another origin finds its way back.
#pragma once
#include <cstdint>

namespace octet {

struct AutomaticScale {
  static constexpr int largest_log2 = 0, smallest_log2 = -64;
  static constexpr int clean_steps_to_double = 1000;
  static constexpr uint64_t values_per_saturated = 100000;  // 0.001 %

  int log2_mu = 0;
  int clean_steps = 0;

  // A step has ended in which `saturated` of `values` exceeded the format's largest value.
  void step(uint64_t saturated, uint64_t values) {
    if (saturated > values / values_per_saturated) {
      clean_steps = 0;
      if (log2_mu > smallest_log2) --log2_mu;
    } else if (++clean_steps >= clean_steps_to_double) {
      clean_steps = 0;
      if (log2_mu < largest_log2) ++log2_mu;
    }
  }
  bool operator==(const AutomaticScale&) const = default;
};

}  // namespace octet
