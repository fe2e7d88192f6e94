#include "model/attention.h"

#include <fmt/format.h>

#include "model/block.h"

namespace octet {

namespace {

Parameter declare_bias(const Blueprint& blueprint, int block) {
  if (!blueprint.spec().qkv_bias) return {};
  return blueprint.parameters.add(fmt::format("blocks.{}.attention.qkv.bias", block), ParameterKind::Vector,
                                  {blueprint.spec().qkv_width()}, Initial{});
}

Parameter declare_gain(const Blueprint& blueprint, int block, const char* whose) {
  const TransformerSpec& spec = blueprint.spec();
  if (!is_trained(spec.qk_norm)) return {};
  const bool rms = spec.qk_norm == QkNorm::RMS;
  return blueprint.parameters.add(
      fmt::format("blocks.{}.attention.{}_norm.{}", block, whose, rms ? "gain" : "alpha"),
      ParameterKind::Vector, {rms ? spec.head_width_() : 1}, Initial{.deviation = 0, .constant = 1});
}

}  // namespace

Attention::Attention(const Blueprint& blueprint, int block)
    : block_(block),
      norm_(blueprint.spec().qk_norm),
      norm_epsilon_(static_cast<float>(blueprint.spec().norm_epsilon)),
      heads_(static_cast<int>(blueprint.spec().heads)),
      kv_heads_(static_cast<int>(blueprint.spec().kv_heads)),
      head_width_(static_cast<int>(blueprint.spec().head_width_())),
      rope_(blueprint.rope),
      qkv_(block_linear(blueprint, block, BlockLinear::Qkv), blueprint),
      bias_(declare_bias(blueprint, block)),
      query_gain_(declare_gain(blueprint, block, "query")),
      key_gain_(declare_gain(blueprint, block, "key")),
      core_(blueprint, block, static_cast<float>(blueprint.spec().softmax_scale_())),
      out_(block_linear(blueprint, block, BlockLinear::Out), blueprint) {}

QueryKeyNorm Attention::query_key_norm(const BlockActivations& a) const {
  return {.kind = norm_,
          .kept = a.query_keys,
          .query_gain = query_gain_.master,
          .key_gain = key_gain_.master,
          .epsilon = norm_epsilon_};
}

void Attention::forward(const Pass& pass, const BlockActivations& a, const Tensor& branch) const {
  pass.observe(block_, Observed::QkvInput, a.attention_input.high);
  qkv_.fprop(pass, a.attention_input, a.qkv);
  pass.observe(block_, Observed::Qkv, a.qkv);
  pass.device.rope_forward({.qkv = a.qkv,
                            .bias = bias_.master,
                            .cosine = rope_.cosine,
                            .sine = rope_.sine,
                            .heads = heads_,
                            .kv_heads = kv_heads_,
                            .head_width = head_width_,
                            .norm = query_key_norm(a)});
  const int64_t query_columns = heads_ * head_width_, key_columns = kv_heads_ * head_width_;
  pass.observe(block_, Observed::Query, a.qkv, {0, query_columns});
  pass.observe(block_, Observed::Key, a.qkv, {query_columns, key_columns});
  core_.forward(pass, a, out_.input_target(pass, a.attention_output));
  pass.observe(block_, Observed::LogSumExp, a.log_sum_exp);
  out_.fprop(pass, a.attention_output, branch);
}

void Attention::backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const {
  out_.dgrad(pass, g.branch, g.attention_output);
  out_.wgrad(pass, g.branch, a.attention_output);
  core_.backward(pass, a, g);
  pass.device.rope_backward({.qkv_gradient = g.qkv.high,
                             .bias_gradient = bias_.gradient,
                             .cosine = rope_.cosine,
                             .sine = rope_.sine,
                             .heads = heads_,
                             .kv_heads = kv_heads_,
                             .head_width = head_width_,
                             .out = qkv_.grad_target(pass, g.qkv, a.attention_input),
                             .norm = query_key_norm(a),
                             .query_gain_gradient = query_gain_.gradient,
                             .key_gain_gradient = key_gain_.gradient});
  qkv_.dgrad(pass, g.qkv, g.norm);
  qkv_.wgrad(pass, g.qkv, a.attention_input);
}

}  // namespace octet
