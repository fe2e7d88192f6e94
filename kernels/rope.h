// Rotary position embedding, rotate-half form, in place on QKV rows, with the optional bias; and its
// backward. Specification and equations: device/cpu/rope.cpp; order of sums: numerics/sums.h. Equal to the
// bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "kernels/output.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct RopeShape {
  int64_t tokens, context;  // position of row t is t % context
  int heads, kv_heads, head_width;
  const float *cosine, *sine;  // [context, head_width / 2]
};

struct RopeForwardArguments {
  octet::Format storage;
  void* qkv;                    // [tokens, (heads + 2 kv_heads) * head_width], in place
  const float* bias = nullptr;  // [(heads + 2 kv_heads) * head_width] or null
  RopeShape shape;
  Stream stream = nullptr;
};
void rope_forward(const RopeForwardArguments&);

struct RopeBackwardArguments {
  octet::Format storage;
  const void* qkv_gradient;        // may be out.high
  float* bias_gradient = nullptr;  // += or null
  float* partial = nullptr;        // scratch [rope_partial_elements(shape)], needed with bias_gradient
  RopeShape shape;
  Output out;
  Stream stream = nullptr;
};
void rope_backward(const RopeBackwardArguments&);
int64_t rope_partial_elements(const RopeShape&);  // ceil(tokens / column_chunk) * row width

OCTET_KERNELS_END
