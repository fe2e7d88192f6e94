// One transformer block (activations.h has its equations).
#pragma once
#include <array>
#include <string>
#include <vector>

#include "model/attention.h"
#include "model/feed_forward.h"

namespace octet {

std::string name_of_linear(const TransformerSpec& spec, int block, BlockLinear which);  // "blocks.3.ffn.down"
// Name, shape, formats and initial values of one of them.
LinearOptions block_linear(const Blueprint& blueprint, int block, BlockLinear which);

class Block {
 public:
  Block(const Blueprint& blueprint, int index);

  std::array<const Linear*, 4> linears() const;
  const AttentionCore& attention_core() const { return attention_.core(); }

  // ---- memory. `shared` is what all blocks use in turn; each block adds what it lacks.
  void plan_shared(MemoryPlan& plan, BlockActivations& shared) const;
  void plan_passing(MemoryPlan& plan, BlockActivations& shared) const;  // values that no block keeps
  void plan_attention_gradients(MemoryPlan& plan, BlockGradients& gradients) const;
  void plan_ffn_gradients(MemoryPlan& plan, BlockGradients& gradients) const;
  void plan_residual_gradients(MemoryPlan& plan, BlockGradients& gradients) const;
  void plan_stored(MemoryPlan& plan, const BlockActivations& shared);

  // ---- work
  const Tensor& input() const {
    return activations_.residual;
  }  // storage [T, D]: the first block's is filled outside
  // Returns the stream after the block. `branch`: storage [T, D], for branches that are added as they are.
  ResidualStream forward(const Pass& pass, const ResidualStream& in, const Tensor& branch) const;
  // What the producer of the gradient of this block's output must leave in g.residual.
  CastTarget output_gradient_target(const Pass& pass, const BlockGradients& g) const;
  // Reads g.residual; leaves the gradient of the block's input as `input_gradient` asks (.high is
  // g.residual.high). `branch` as for forward, for recomputation.
  void backward(const Pass& pass, const BlockGradients& g, const CastTarget& input_gradient,
                const Tensor& branch) const;

 private:
  // A norm in front of a layer, as forward leaves it and backward finds it.
  struct PreNorm {
    const Parameter& gain;
    const Tensor& sum;   // storage [T, D]: what is normalised
    const Tensor& rstd;  // F32 [T]
  };
  PreNorm attention_norm() const {
    return {attention_norm_, activations_.residual, activations_.attention_rstd};
  }
  PreNorm ffn_norm() const { return {ffn_norm_, activations_.middle, activations_.ffn_rstd}; }
  bool scales_branches() const { return spec_.post_norm != PostNorm::None; }
  ResidualStream after_attention(const Tensor& branch) const;
  ResidualStream after_ffn(const Tensor& branch) const;

  // The wide tensors that a block hands from operation to operation, and what backward finds of them.
  enum class Kept : uint8_t { Values, Codes, Nothing };
  struct Wide {
    Tensor BlockActivations::*tensor;
    std::string field;
    int64_t width;
    Kept kept;
  };
  std::vector<Wide> wide_tensors() const;
  void encode(const Pass& pass) const;
  void decode(const Pass& pass) const;

  void plan_groups(MemoryPlan& plan, const ActivationGroups& groups, BlockActivations& a) const;
  void add_and_normalise(const Pass& pass, const ResidualStream& in, const PreNorm& norm,
                         const CastTarget& out) const;
  void normalise_input(const Pass& pass, const ResidualStream& in) const;
  void normalise_middle(const Pass& pass, const ResidualStream& in) const;
  void recompute(const Pass& pass, const Tensor& branch) const;
  void norm_backward(const Pass& pass, const BlockGradients& g, const PreNorm& norm,
                     const CastTarget& gradient) const;
  void branch_backward(const Pass& pass, const BlockGradients& g, const Parameter& gain,
                       const ResidualStream& stream, const CastTarget& gradient) const;

  std::string name_;
  int index_;
  TransformerSpec spec_;
  int64_t micro_batch_;
  DType storage_;
  Recompute recompute_;
  bool saves_codes_;
  float stream_factor_, branch_factor_;  // of the sum after each layer
  // Gains [D]; tensors empty where the spec has no such norm.
  Parameter attention_norm_;
  Attention attention_;
  Parameter attention_post_norm_, ffn_norm_;
  FeedForward feed_forward_;
  Parameter ffn_post_norm_;
  BlockActivations activations_;
  std::vector<SavedCodes> saved_codes_;
};

}  // namespace octet
