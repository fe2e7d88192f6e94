// A trainable tensor: what the optimizer owns and what the model accumulates into.
#pragma once
#include <string>
#include <vector>

#include "tensor/tensor.h"

namespace octet {

enum class ParameterKind : uint8_t {
  Matrix,     // weight of a linear layer: FP8 moments, weight decay
  Embedding,  // token table and untied head: FP8 moments, weight decay selectable
  Vector,     // gains, biases, scalars: FP32 moments, no decay
};

// How a master is stored: numbers of the format in the master's own tensor, and what it needs beside them.
// [numerics/masters.h]
struct MasterCode {
  MasterFormat format = MasterFormat::FP32;
  Tensor rest;     // U16 [n]: remainder; BF16 [n]: compensation
  Tensor inverse;  // F32 [ceil(n / master_block)]: inverse scales

  // Whether its numbers are those the model sees, in FP32 or BF16.
  bool is_plain() const {
    return format != MasterFormat::BF16Remainder && format != MasterFormat::FP16Scaled;
  }
};
// Of elements [begin, begin + count); begin is a multiple of master_block.
MasterCode part_of(const MasterCode& code, int64_t begin, int64_t count);
constexpr DType values_dtype(MasterFormat format) {
  return format == MasterFormat::FP32         ? DType::F32
         : format == MasterFormat::FP16Scaled ? DType::F16
                                              : DType::BF16;
}

// FP32 values of a parameter, or of some of its elements, on the device; or as its master is stored.
struct MasterPiece {
  size_t parameter = 0;  // index
  int64_t begin = 0;     // first element
  Tensor values;         // F32, BF16; or the master's, where `code` is not plain
  bool last = true;      // of its parameter on this rank
  Tensor amax = {};      // F32 [1] or empty: of the whole parameter, as Device::measure_amax has it
  MasterCode code = {};
};

struct Parameter {
  std::string name;  // "blocks.3.attention.qkv.weight"
  ParameterKind kind = ParameterKind::Matrix;
  size_t index = 0;  // in the model's list
  // Rows of the matrices that it holds one below the other: Q, K and V; gate and up. Empty: it is one.
  std::vector<int64_t> matrices;
  double learning_rate_factor = 1;  // of its update, not of weight decay
  // Of master_code's format; on the device or, offloaded, in the host's page-locked memory. Sharded: flat,
  // the elements [begin, begin + master.elements()), which may be none.
  Tensor master;
  MasterCode master_code;
  bool offloaded = false;  // the master is in host memory
  int64_t begin = 0;
  Tensor gradient;  // FP32 or BF16, of the whole shape: what backward adds to
  // Sharded: elements of every rank's shard, the last ones' padding included, and the gradient with its
  // padding, [ranks * shard]. 0: every rank has the whole.
  int64_t shard = 0;
  Tensor padded_gradient;
  // Where gradients are sharded too, `gradient` is a micro-batch's, in memory that other parameters use as
  // well, and this is the step's: FP32 [shard] of this rank, or all of it and padding, [ranks * piece].
  Tensor gradient_sum;

  MasterPiece piece() const { return {index, begin, master, true, {}, master_code}; }
  // What the optimizer reads: the gradient of the master's elements.
  Tensor step_gradient() const {
    return gradient_sum.empty() ? gradient.flat().slice(begin, master.elements())
                                : gradient_sum.flat().slice(0, master.elements());
  }
};

// What a rank keeps of large parameters (ZeRO, 1910.02054, 5): a part of the masters and moments, and of the
// gradients where `gradients`.
struct Sharding {
  int rank = 0, ranks = 1;
  bool gradients = false;
};

// A sharded weight that nothing reads but as codes with one scale: its codes are gathered, not its values.
struct CodeShard {
  Tensor values;  // BF16, any shape: this rank's elements [begin, begin + master.elements()), rounded
  Tensor codes;   // [ranks * shard]: the codes as they lie, padded
};

}  // namespace octet
