// One pre-norm transformer block (activations.h has its equations).
#pragma once
#include <array>
#include <string>

#include "model/attention.h"
#include "model/feed_forward.h"

namespace octet {

// The four linears of a block.
enum class BlockLinear : uint8_t { Qkv, Out, GateUp, Down };

// Name, shape, formats and initial values of one of them.
LinearOptions block_linear(const Blueprint& blueprint, int block, BlockLinear which);

class Block {
 public:
  Block(const Blueprint& blueprint, int index);

  std::array<const Linear*, 4> linears() const;
  const AttentionCore& attention_core() const { return attention_.core(); }

  // ---- memory. `shared` is what all blocks use in turn; each block adds what it lacks.
  void plan_shared(MemoryPlan& plan, BlockActivations& shared) const;
  void plan_attention_gradients(MemoryPlan& plan, BlockGradients& gradients) const;
  void plan_ffn_gradients(MemoryPlan& plan, BlockGradients& gradients) const;
  void plan_residual_gradients(MemoryPlan& plan, BlockGradients& gradients) const;
  void plan_stored(MemoryPlan& plan, const BlockActivations& shared);

  // ---- work
  const Tensor& input() const {
    return activations_.residual;
  }  // storage [T, D]: the first block's is filled outside
  // Returns the stream after the block; its branch is `branch`.
  ResidualStream forward(const Pass& pass, const ResidualStream& in, const Tensor& branch) const;
  // What the producer of the gradient of this block's output must leave in g.residual.
  CastTarget output_gradient_target(const Pass& pass, const BlockGradients& g) const;
  // Reads g.residual; leaves the gradient of the block's input as `input_gradient` asks (.high is
  // g.residual.high). `branch`: storage [T, D] for recomputation.
  void backward(const Pass& pass, const BlockGradients& g, const CastTarget& input_gradient,
                const Tensor& branch) const;

 private:
  void plan_groups(MemoryPlan& plan, const ActivationGroups& groups, BlockActivations& a) const;
  void normalise_input(const Pass& pass, const ResidualStream& in) const;
  void normalise_middle(const Pass& pass, const Tensor& branch) const;
  void recompute(const Pass& pass, const Tensor& branch) const;

  std::string name_;
  TransformerSpec spec_;
  int64_t micro_batch_;
  DType storage_;
  Recompute recompute_;
  Parameter attention_norm_;  // gain [D]
  Attention attention_;
  Parameter ffn_norm_;  // gain [D]
  FeedForward feed_forward_;
  BlockActivations activations_;
};

}  // namespace octet
