// Which linears leave FP8 after a step (precision.fallback). A pure function of numbers that all ranks have.
#pragma once
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "model/spec.h"
#include "training/health.h"
#include "training/segment.h"

namespace octet {

struct FallbackEvidence {
  int64_t step = 0;
  const TransformerSpec& spec;
  const Recipe& recipe;             // of the step
  const Health* health = nullptr;   // null: no statistics in this step
  bool dropped = false;             // its loss or a gradient was not finite
  std::span<const SiteInfo> sites;  // read when it was dropped, with
  std::span<const float> amax;      // what they saw in this step
};

// Of the linears in FP8 those that passed a limit, in the order of the forward pass, each with one reason.
// Values that are not finite spread from where they arise, so a dropped step gives at most one of those: the
// first in the forward pass with such an input or weight, else the first in the backward pass with such a
// gradient. Kurtosis is measured of the inputs of qkv and down. At most as many as asked for are to be taken.
std::vector<Fallback> linears_past_limits(const FallbackOptions& limits, const FallbackEvidence& evidence);

// "blocks.0.ffn.down runs in BF16 from step 13 on: 1.6 % of the values of one of its casts saturated, limit
// ..."
std::string describe(const Fallback& fallback);

}  // namespace octet
