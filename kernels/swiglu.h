// SwiGLU, h = silu(gate) * up, with the amaxes of its FP8 copies, and its backward. Specification and
// equations: device/cpu/swiglu.cpp. Results are equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "kernels/output.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct SwiGluForwardArguments {
  octet::Format storage;
  const void* gate_up;  // [tokens, 2 width]: gate, then up
  int64_t tokens, width;
  Output out;  // [tokens, width]
  Stream stream = nullptr;
};
void swiglu_forward(const SwiGluForwardArguments&);

struct SwiGluBackwardArguments {
  octet::Format storage;
  const void* gate_up;     // [tokens, 2 width]
  const void* h_gradient;  // [tokens, width]
  int64_t tokens, width;
  Output out;  // [tokens, 2 width]
  Stream stream = nullptr;
};
void swiglu_backward(const SwiGluBackwardArguments&);

OCTET_KERNELS_END
