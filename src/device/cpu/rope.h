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

}  // namespace octet
