// Token embedding and its deterministic backward. Specification: device/cpu/embedding.cpp. Equal to the bit.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct EmbeddingForwardArguments {
  octet::Format storage;
  void* out;           // [tokens, width]
  const int32_t* ids;  // [tokens]
  const void* table;   // [vocabulary, width]
  int64_t tokens, vocabulary, width;
  float multiplier = 1;
  uint32_t* bad_token = nullptr;  // set to 1 + t (max-ed in) when id t is out of range; its row becomes zero
  Stream stream = nullptr;
};
void embedding_forward(const EmbeddingForwardArguments&);

// table_gradient[id] += the rows of out_gradient with that id, times the multiplier, summed in FP32 in token
// order, rounded once.
struct EmbeddingBackwardArguments {
  octet::Format storage;           // of out_gradient
  octet::Format gradient_storage;  // of table_gradient
  void* table_gradient;            // [vocabulary, width]
  const int32_t* ids;              // [tokens]; ids out of range are skipped (forward has reported them)
  const void* out_gradient;        // [tokens, width]
  int64_t tokens, vocabulary, width;
  float multiplier = 1;
  void* scratch;  // embedding_scratch_bytes(), 256-byte aligned
  Stream stream = nullptr;
};
void embedding_backward(const EmbeddingBackwardArguments&);
int64_t embedding_scratch_bytes(int64_t tokens);  // the tokens sorted by id, stably

OCTET_KERNELS_END
