// Numbers of FP8 attention that are not a cast's. [docs/numerics.md, "FP8 attention"]
#pragma once
#include <cmath>

#include "base/platform.h"
#include "numerics/recipe.h"
#include "numerics/scaling.h"

namespace octet {

// Probabilities lie in [0, 1]: E4M3(P * 256) never saturates, and is a normal number down to P = 2^-14.
inline constexpr float probability_scale = 256.0f;

// ---- scales that are needed before the tensor exists
//
// A fused kernel takes the scales of what it makes: of O, of dS, of dQ, dK and dV. They are delayed; a site
// without history starts from an amax that the codes going in allow.

// O is an average of rows of V, which are at most `largest_input` = 448 x their inverse scale.
OCTET_HD float output_start(float largest_input) { return largest_input; }

// For dS and for dQ, dK and dV. |dS| <= 2 Dh |softmax scale| max|dO| max|V| and sums of n terms are at most n
// times as large, but bounds of that kind would flush what gradients really are. So n terms count as sqrt(n),
// which is what terms of random signs come to, and eight binades are left above it. E5M2 has 30 binades of
// normal numbers.
struct GradientStart {
  float score;  // of dS, for values and gradients up to one
  float sum;    // of a sum of dS's or P's rows or columns, for terms up to one
};
inline GradientStart gradient_start(int context, int heads_per_key, int head_width, float softmax_scale) {
  constexpr float room = 256.0f;
  return {2.0f * room * std::sqrt(static_cast<float>(head_width)) * std::fabs(softmax_scale),
          std::sqrt(static_cast<float>(context) * static_cast<float>(heads_per_key))};
}
OCTET_HD float score_gradient_start(const GradientStart& start, float largest_input, float largest_gradient) {
  return start.score * largest_input * largest_gradient;
}
// dQ, dK are sums of dS times keys and queries, dV one of P times dO.
OCTET_HD float qkv_gradient_start(const GradientStart& start, float largest_input, float largest_gradient) {
  const float by_scores = score_gradient_start(start, largest_input, largest_gradient) * largest_input;
  const float by_values = 256.0f * largest_gradient;
  return start.sum * (by_scores > by_values ? by_scores : by_values);
}

// The scale of a site whose codes are made with it: its own, or without history the one for `start_amax`.
OCTET_HD float scale_beforehand(const Cast& cast, float site_scale, float start_amax) {
  return site_scale != 0.0f ? site_scale : scale_for(cast.rule, start_amax, max_of(cast.format));
}

}  // namespace octet
