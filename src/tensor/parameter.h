// A trainable tensor: what the optimizer owns and what the model accumulates into.
#pragma once
#include <string>

#include "tensor/tensor.h"

namespace octet {

enum class ParameterKind : uint8_t {
  Matrix,     // weight of a linear layer: FP8 moments, weight decay
  Embedding,  // token table and untied head: FP8 moments, weight decay selectable
  Vector,     // gains, biases, scalars: FP32 moments, no decay
};

struct Parameter {
  std::string name;  // "blocks.3.attention.qkv.weight"
  ParameterKind kind = ParameterKind::Matrix;
  Tensor master;    // FP32
  Tensor gradient;  // FP32 or BF16, same shape
};

}  // namespace octet
