// Causal self-attention with rotary positions and grouped key-value heads.
//   branch = out(attention(rope(norm(qkv(x) + bias)))),   norm: of queries and keys, where the spec has one
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

  // Reads a.attention_input; leaves a.query_keys, a.qkv, a.log_sum_exp, a.attention_output and branch [T, D].
  void forward(const Pass& pass, const BlockActivations& a, const Tensor& branch) const;
  // Reads g.branch; leaves the gradient of x in g.norm.
  void backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const;

 private:
  QueryKeyNorm query_key_norm(const BlockActivations& a) const;

  int block_;
  QkNorm norm_;
  float norm_epsilon_;
  int heads_, kv_heads_, head_width_;
  RopeTable rope_;
  Linear qkv_;
  Parameter bias_;                   // [(H + 2 K) Dh]; tensors empty when the model has none
  Parameter query_gain_, key_gain_;  // [Dh] or [1]; the same
  AttentionCore core_;
  Linear out_;
};

}  // namespace octet
