// The end of the model: final norm (where the spec has one), projection to the vocabulary, cross-entropy.
// Logits exist for one chunk of tokens at a time; their gradient takes their place at once. In FP8
// (Recipe::head) a chunk is what is cast: with current scaling its scales come from its own amaxes.
#pragma once
#include <vector>

#include "model/activations.h"
#include "model/blueprint.h"

namespace octet {

// The token table: what the embedding reads and, when tied, the head multiplies by. [V, D]
struct TokenTable {
  Parameter parameter;
  StorageWeight weight;
};
TokenTable declare_token_table(const Blueprint& blueprint, const char* name);

struct HeadLoss {
  Tensor targets;            // I32 [T]
  Tensor losses;             // F32 [T], written
  float gradient_scale = 0;  // gradients are of gradient_scale * sum of losses
};

class Head {
 public:
  Head(const Blueprint& blueprint, const TokenTable& embedding);

  void plan_stored(MemoryPlan& plan);   // kept from forward to backward
  void plan_output(MemoryPlan& plan);   // written while the last block's activations are still read
  void plan_scratch(MemoryPlan& plan);  // alive during loss() and backward() only
  std::vector<Matmul> matmul_shapes() const;
  const Linear& projection() const { return projection_; }  // its weight is the embedding's table when tied

  void normalise(const Pass& pass, const ResidualStream& in) const;
  const Tensor& stream() const { return residual_; }  // storage [T, D]: after the last block
  // Losses and, in a training pass, the gradients of the table and of what it multiplies.
  void loss(const Pass& pass, const HeadLoss& loss) const;
  // The gradient of the stream that `normalise` read.
  void backward(const Pass& pass, const CastTarget& input_gradient) const;

 private:
  const Tensor& input() const { return spec_.final_norm ? output_ : residual_; }  // of the projection

  TransformerSpec spec_;
  DType storage_;
  int64_t tokens_, chunk_;
  float z_loss_;
  Parameter norm_;  // gain [D]; without tensors when there is no final norm
  Linear projection_;
  Tensor residual_;         // storage [T, D]: what was normalised
  Tensor rstd_;             // F32 [T]
  Tensor output_;           // storage [T, D]: the norm's output
  Tensor output_gradient_;  // storage [T, D]: of input()
  CastBuffers input_;       // of a chunk of input() [chunk, D]; .high is that
  CastBuffers logits_;      // [chunk, V]; .high: logits, then their gradient
};

}  // namespace octet
