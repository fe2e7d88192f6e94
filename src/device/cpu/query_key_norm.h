// The regulariser of one query or key head: values before and after, derivatives, and the terms that the
// gains' gradients are sums of. Equations: numerics/query_key_norm.h; the order of a head's sums:
// numerics/sums.h.
#pragma once
#include <cstdint>

#include "device/device.h"

namespace octet {

struct HeadNorm {
  QkNorm kind;
  const float* gain;  // RMS: [width]; Tanh: [1]; RMSFrozen: nullptr
  float epsilon;
  int64_t width;
};
// Of the heads at this place: queries first, then keys.
HeadNorm head_norm(const QueryKeyNorm& norm, bool is_query, int64_t width);

void normalise_head(const HeadNorm& norm, float* x);
// gradient: of what normalise_head(x) left; becomes that of x.
void normalise_head_backward(const HeadNorm& norm, const float* x, float* gradient);
// sums[i] += what this head adds to the gain's gradient; [width] for Tanh too.
void add_gain_terms(const HeadNorm& norm, const float* x, const float* gradient, float* sums);

}  // namespace octet
