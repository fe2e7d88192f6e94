#include "model/block.h"

#include <fmt/format.h>

#include <cmath>

namespace octet {

namespace {

struct LinearShape {
  const char* name;
  int64_t outputs, inputs;
};
LinearShape shape_of(const TransformerSpec& spec, BlockLinear which) {
  switch (which) {
    case BlockLinear::Qkv:
      return {"attention.qkv", spec.qkv_width(), spec.width};
    case BlockLinear::Out:
      return {"attention.out", spec.width, spec.attention_width()};
    case BlockLinear::GateUp:
      return {"ffn.gate_up", 2 * spec.ffn_width, spec.width};
    case BlockLinear::Down:
      break;
  }
  return {"ffn.down", spec.width, spec.ffn_width};
}

Parameter declare_gain(const Blueprint& blueprint, int block, const char* norm) {
  return blueprint.parameters.add(fmt::format("blocks.{}.{}.gain", block, norm), ParameterKind::Vector,
                                  {blueprint.spec().width}, Initial{.deviation = 0, .constant = 1});
}

}  // namespace

LinearOptions block_linear(const Blueprint& blueprint, int block, BlockLinear which) {
  const TransformerSpec& spec = blueprint.spec();
  const LinearShape shape = shape_of(spec, which);
  LinearOptions linear;
  linear.name = fmt::format("blocks.{}.{}", block, shape.name);
  linear.block = block;
  linear.outputs = shape.outputs;
  linear.inputs = shape.inputs;
  linear.storage = blueprint.storage();
  linear.initial.deviation = spec.init_deviation;
  // 2 layers additions to the residual stream: its variance stays that of one.
  if (which == BlockLinear::Out || which == BlockLinear::Down)
    linear.initial.deviation /= std::sqrt(2.0 * static_cast<double>(spec.layers));
  linear.formats = formats_of(blueprint.options.recipe, static_cast<int>(spec.layers), block, which);
  return linear;
}

Block::Block(const Blueprint& blueprint, int index)
    : name_(fmt::format("blocks.{}", index)),
      spec_(blueprint.spec()),
      micro_batch_(blueprint.options.micro_batch),
      storage_(blueprint.storage()),
      recompute_(blueprint.options.recompute),
      attention_norm_(declare_gain(blueprint, index, "attention_norm")),
      attention_(blueprint, index),
      ffn_norm_(declare_gain(blueprint, index, "ffn_norm")),
      feed_forward_(blueprint, index) {}

std::array<const Linear*, 4> Block::linears() const {
  return {&attention_.qkv(), &attention_.out(), &feed_forward_.gate_up(), &feed_forward_.down()};
}

// ---- forward and backward

void Block::normalise_input(const Pass& pass, const ResidualStream& in) const {
  const BlockActivations& a = activations_;
  pass.device.rmsnorm_forward({.residual = in.residual,
                               .branch = in.branch,
                               .residual_out = in.branch.empty() ? Tensor{} : a.residual,
                               .gain = attention_norm_.master,
                               .rstd = a.attention_rstd,
                               .epsilon = static_cast<float>(spec_.norm_epsilon),
                               .out = attention_.qkv().input_target(pass, a.attention_input)});
}

void Block::normalise_middle(const Pass& pass, const Tensor& branch) const {
  const BlockActivations& a = activations_;
  pass.device.rmsnorm_forward({.residual = branch.empty() ? a.middle : a.residual,
                               .branch = branch,
                               .residual_out = branch.empty() ? Tensor{} : a.middle,
                               .gain = ffn_norm_.master,
                               .rstd = a.ffn_rstd,
                               .epsilon = static_cast<float>(spec_.norm_epsilon),
                               .out = feed_forward_.gate_up().input_target(pass, a.ffn_input)});
}

ResidualStream Block::forward(const Pass& pass, const ResidualStream& in, const Tensor& branch) const {
  normalise_input(pass, in);
  attention_.forward(pass, activations_, branch);
  normalise_middle(pass, branch);
  feed_forward_.forward(pass, activations_, branch);
  return {activations_.middle, branch};
}

void Block::recompute(const Pass& pass, const Tensor& branch) const {
  const Tensor nothing;
  switch (recompute_) {
    case Recompute::None:
      return;
    case Recompute::NormsAndSwiGLU:
      normalise_input(pass, {activations_.residual, nothing});
      normalise_middle(pass, nothing);
      feed_forward_.activate(pass, activations_);
      return;
    case Recompute::Block:
      normalise_input(pass, {activations_.residual, nothing});
      attention_.forward(pass, activations_, branch);
      normalise_middle(pass, branch);
      feed_forward_.expand(pass, activations_);
      feed_forward_.activate(pass, activations_);
      return;
  }
}

CastTarget Block::output_gradient_target(const Pass& pass, const BlockGradients& g) const {
  return feed_forward_.down().grad_target(pass, g.residual, activations_.hidden);
}

void Block::backward(const Pass& pass, const BlockGradients& g, const CastTarget& input_gradient,
                     const Tensor& branch) const {
  const BlockActivations& a = activations_;
  recompute(pass.recomputing(), branch);
  feed_forward_.backward(pass, a, g);
  pass.device.rmsnorm_backward(
      {.out_gradient = g.norm,
       .residual = a.middle,
       .gain = ffn_norm_.master,
       .rstd = a.ffn_rstd,
       .gain_gradient = ffn_norm_.gradient,
       .residual_gradient_in = g.residual.high,
       .residual_gradient = attention_.out().grad_target(pass, g.residual, a.attention_output)});
  attention_.backward(pass, a, g);
  pass.device.rmsnorm_backward({.out_gradient = g.norm,
                                .residual = a.residual,
                                .gain = attention_norm_.master,
                                .rstd = a.attention_rstd,
                                .gain_gradient = attention_norm_.gradient,
                                .residual_gradient_in = g.residual.high,
                                .residual_gradient = input_gradient});
}

}  // namespace octet
