// The core of attention: from rotated queries, keys and values to the heads' outputs, in storage precision or
// in FP8 [device.h, AttentionForward].
#pragma once
#include "model/activations.h"
#include "model/blueprint.h"

namespace octet {

class AttentionCore {
 public:
  // Declares its sites.
  AttentionCore(const Blueprint& blueprint, int block, float softmax_scale);

  bool float8() const { return qkv_site_ >= 0; }
  // Whether backward reads a.qkv and a.attention_output.high. If not, they need not outlive forward.
  bool backward_reads_storage() const { return !float8(); }

  // ---- memory: what forward keeps for backward, and backward's own.
  void plan_kept(MemoryPlan& plan, int64_t tokens, BlockActivations& a) const;
  void plan_gradients(MemoryPlan& plan, int64_t tokens, BlockGradients& g) const;
  // As a shape without data, for Device::workspace_bytes.
  AttentionForward shape(int64_t tokens) const;

  // Reads a.qkv; leaves a.log_sum_exp, and the output as `out` asks.
  void forward(const Pass& pass, const BlockActivations& a, const CastTarget& out) const;
  // Reads g.attention_output; leaves the gradient of a.qkv in g.qkv.high.
  void backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const;

 private:
  int64_t qkv_width() const { return static_cast<int64_t>(heads_ + 2 * kv_heads_) * head_width_; }
  int64_t output_width() const { return static_cast<int64_t>(heads_) * head_width_; }
  void cast(const Pass& pass, const Tensor& source, const Tensor& codes, int site) const;
  CodesBeforehand beforehand(const Pass& pass, const Tensor& codes, int site) const;

  std::string name_;
  DType storage_;
  int context_, heads_, kv_heads_, head_width_;
  float softmax_scale_;
  SoftmaxClip clip_;
  int qkv_site_ = -1, output_site_ = -1;                                               // E4M3
  int output_gradient_site_ = -1, score_gradient_site_ = -1, qkv_gradient_site_ = -1;  // E5M2
};

}  // namespace octet
