// RoPE as functions, so that it can be tested without a device.
#pragma once
#include "device/device.h"

namespace octet {

struct RopeShape {
  int heads, kv_heads, head_width;
  const Tensor *cosine, *sine;
};

void rope_forward(const RopeForward& rope, int threads);
// Writes out.high and adds to bias_gradient; casts nothing.
void rope_backward(const RopeBackward& rope, int threads);
// The gradients of the regulariser's gains, before rope_backward() may write over its input. chunk_sums:
// scratch [query_key_gain_elements()].
void query_key_gain_gradients(const RopeBackward& rope, int threads, float* chunk_sums);
int64_t query_key_gain_elements(int64_t tokens, int64_t head_width);

}  // namespace octet
