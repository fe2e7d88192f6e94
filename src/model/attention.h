// Causal self-attention with rotary positions and grouped key-value heads.
//   branch = out(attention(rope(qkv(x) + bias)))
#pragma once
#include <vector>

#include "model/attention_core.h"

namespace octet {

class Attention {
 public:
  Attention(const Blueprint& blueprint, int block);

  const Linear& qkv() const { return qkv_; }
  const Linear& out() const { return out_; }
  const AttentionCore& core() const { return core_; }

  // Reads a.attention_input; leaves a.qkv, a.log_sum_exp, a.attention_output and branch [T, D].
  void forward(const Pass& pass, const BlockActivations& a, const Tensor& branch) const;
  // Reads g.residual; leaves the gradient of the norm's output in g.norm.
  void backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const;

 private:
  int heads_, kv_heads_, head_width_;
  RopeTable rope_;
  Linear qkv_;
  Parameter bias_;  // [(H + 2 K) Dh]; tensors empty when the model has none
  AttentionCore core_;
  Linear out_;
};

}  // namespace octet
