// Rotary position embedding, rotate-half form, in place on QKV rows, after the optional bias and the optional
// regulariser of queries and keys; and its backward. Specification and equations: device/cpu/rope.cpp; order
// of sums: numerics/sums.h. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "kernels/output.h"
#include "numerics/query_key_norm.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct RopeShape {
  int64_t tokens, context;  // position of row t is t % context
  int heads, kv_heads, head_width;
  const float *cosine, *sine;  // [context, head_width / 2]
};

// The regulariser [numerics/query_key_norm.h], for heads of at most widest_regularised_head values.
struct RopeNorm {
  octet::QkNorm kind = octet::QkNorm::None;
  void* kept = nullptr;  // [tokens, (heads + kv_heads) * head_width]: written in forward, read in backward
  const float *query_gain = nullptr, *key_gain = nullptr;  // [head_width] (RMS), [1] (Tanh) or null
  float epsilon = 0;
};

struct RopeForwardArguments {
  octet::Format storage;
  void* qkv;                    // [tokens, (heads + 2 kv_heads) * head_width], in place
  const float* bias = nullptr;  // [(heads + 2 kv_heads) * head_width] or null
  RopeShape shape;
  RopeNorm norm = {};
  Stream stream = nullptr;
};
void rope_forward(const RopeForwardArguments&);

struct RopeBackwardArguments {
  octet::Format storage;
  const void* qkv_gradient;                                            // may be out.high
  float* bias_gradient = nullptr;                                      // += or null
  float *query_gain_gradient = nullptr, *key_gain_gradient = nullptr;  // +=, where there are gains
  // Scratch: rope_partial_elements(shape) are needed with bias_gradient, gain_partial_elements(shape) with
  // gains.
  float* partial = nullptr;
  RopeShape shape;
  RopeNorm norm = {};
  Output out;
  Stream stream = nullptr;
};
void rope_backward(const RopeBackwardArguments&);
int64_t rope_partial_elements(const RopeShape&);  // ceil(tokens / column_chunk) * row width
int64_t gain_partial_elements(const RopeShape&);

// Those with a regulariser, without the bias gradient: what the above call.
void regularised_rope_forward(const RopeForwardArguments&);
void regularised_rope_backward(const RopeBackwardArguments&);

OCTET_KERNELS_END
