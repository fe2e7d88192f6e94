// Softmax cross-entropy with z-loss over a chunk of tokens; its gradient takes the place of the logits.
// Specification and equations: device/cpu/cross_entropy.cpp. The sums are equal to the bit; log and exp in
// FP64 are the device's own (1 ulp of FP64), so loss and gradient agree but for ties of the last rounding.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct CrossEntropyArguments {
  octet::Format storage;
  void* logits;            // [tokens, vocabulary], in place
  const int32_t* targets;  // [tokens]; negative = ignored (loss 0, gradient 0)
  float* loss;             // [tokens], written
  int64_t tokens, vocabulary;
  float gradient_scale = 0, z_loss = 0;
  bool backward = true;
  // Set to 1 + t (max-ed in) when target t is not below the vocabulary, whose row is then left alone: checked
  // by the host when it next reads results.
  uint32_t* bad_target = nullptr;
  Stream stream = nullptr;
};
void cross_entropy(const CrossEntropyArguments&);

OCTET_KERNELS_END
