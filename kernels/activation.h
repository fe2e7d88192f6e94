// Activations with one input, with the amaxes of their FP8 copies, and their backward. Specification:
// device/cpu/activation.cpp; equations: numerics/activation.h. Results are equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "kernels/output.h"
#include "numerics/activation.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct ActivationForwardArguments {
  octet::Activation activation;  // not a gated one
  octet::Format storage;
  const void* x;                    // [tokens, width]
  const float* positive = nullptr;  // [1]: xIELU's parameters, on the device
  const float* negative = nullptr;
  int64_t tokens, width;
  Output out;  // [tokens, width]
  Stream stream = nullptr;
};
void activation_forward(const ActivationForwardArguments&);

struct ActivationBackwardArguments {
  octet::Activation activation;
  octet::Format storage;
  const void* x;           // [tokens, width]
  const void* h_gradient;  // [tokens, width]
  const float* positive = nullptr;
  const float* negative = nullptr;
  float* positive_gradient = nullptr;  // += [1], xIELU only
  float* negative_gradient = nullptr;
  float* partial = nullptr;  // scratch [activation_partial_elements(tokens)], xIELU only
  int64_t tokens, width;
  Output out;  // [tokens, width]
  Stream stream = nullptr;
};
void activation_backward(const ActivationBackwardArguments&);
int64_t activation_partial_elements(int64_t tokens);  // two sums for each row and each chunk of rows

OCTET_KERNELS_END
