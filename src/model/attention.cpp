#include "model/attention.h"

#include <fmt/format.h>

#include <cmath>

#include "model/block.h"

namespace octet {

namespace {

float softmax_scale(const TransformerSpec& spec) {
  if (spec.softmax_scale != 0) return static_cast<float>(spec.softmax_scale);
  return static_cast<float>(1.0 / std::sqrt(static_cast<double>(spec.head_width_())));
}

Parameter declare_bias(const Blueprint& blueprint, int block) {
  if (!blueprint.spec().qkv_bias) return {};
  return blueprint.parameters.add(fmt::format("blocks.{}.attention.qkv.bias", block), ParameterKind::Vector,
                                  {blueprint.spec().qkv_width()}, Initial{});
}

}  // namespace

Attention::Attention(const Blueprint& blueprint, int block)
    : heads_(static_cast<int>(blueprint.spec().heads)),
      kv_heads_(static_cast<int>(blueprint.spec().kv_heads)),
      head_width_(static_cast<int>(blueprint.spec().head_width_())),
      rope_(blueprint.rope),
      qkv_(block_linear(blueprint, block, BlockLinear::Qkv), blueprint),
      bias_(declare_bias(blueprint, block)),
      core_(blueprint, block, softmax_scale(blueprint.spec())),
      out_(block_linear(blueprint, block, BlockLinear::Out), blueprint) {}

void Attention::forward(const Pass& pass, const BlockActivations& a, const Tensor& branch) const {
  qkv_.fprop(pass, a.attention_input, a.qkv);
  pass.device.rope_forward({.qkv = a.qkv,
                            .bias = bias_.master,
                            .cosine = rope_.cosine,
                            .sine = rope_.sine,
                            .heads = heads_,
                            .kv_heads = kv_heads_,
                            .head_width = head_width_});
  core_.forward(pass, a, out_.input_target(pass, a.attention_output));
  out_.fprop(pass, a.attention_output, branch);
}

void Attention::backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const {
  out_.dgrad(pass, g.residual, g.attention_output);
  out_.wgrad(pass, g.residual, a.attention_output);
  core_.backward(pass, a, g);
  pass.device.rope_backward({.qkv_gradient = g.qkv.high,
                             .bias_gradient = bias_.gradient,
                             .cosine = rope_.cosine,
                             .sine = rope_.sine,
                             .heads = heads_,
                             .kv_heads = kv_heads_,
                             .head_width = head_width_,
                             .out = qkv_.grad_target(pass, g.qkv, a.attention_input)});
  qkv_.dgrad(pass, g.qkv, g.norm);
  qkv_.wgrad(pass, g.qkv, a.attention_input);
}

}  // namespace octet
