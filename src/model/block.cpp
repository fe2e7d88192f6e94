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
  const int64_t inputs = spec.linear_inputs(which);
  switch (which) {
    case BlockLinear::Qkv:
      return {"attention.qkv", spec.qkv_width(), inputs};
    case BlockLinear::Out:
      return {"attention.out", spec.width, inputs};
    case BlockLinear::Up:
      return {is_gated(spec.activation) ? "ffn.gate_up" : "ffn.up", spec.up_width(), inputs};
    case BlockLinear::Down:
      break;
  }
  return {"ffn.down", spec.width, inputs};
}

// The matrices that a linear is.
std::vector<int64_t> matrices_of(const TransformerSpec& spec, BlockLinear which) {
  if (which == BlockLinear::Qkv) {
    const int64_t keys = spec.kv_heads * spec.head_width_();
    return {spec.attention_width(), keys, keys};
  }
  if (which == BlockLinear::Up && is_gated(spec.activation)) return {spec.ffn_width, spec.ffn_width};
  return {};
}

Parameter declare_pre_norm(const Blueprint& blueprint, int block, const char* norm) {
  if (!blueprint.spec().pre_norm) return {};
  return blueprint.parameters.add(fmt::format("blocks.{}.{}.gain", block, norm), ParameterKind::Vector,
                                  {blueprint.spec().width}, Initial{.deviation = 0, .constant = 1});
}
Parameter declare_post_norm(const Blueprint& blueprint, int block, const char* norm) {
  const TransformerSpec& spec = blueprint.spec();
  if (spec.post_norm == PostNorm::None) return {};
  return blueprint.parameters.add(fmt::format("blocks.{}.{}.gain", block, norm), ParameterKind::Vector,
                                  {spec.width},
                                  Initial{.deviation = 0, .constant = spec.post_norm_initial_gain_()});
}

}  // namespace

std::string name_of_linear(const TransformerSpec& spec, int block, BlockLinear which) {
  return fmt::format("blocks.{}.{}", block, shape_of(spec, which).name);
}

LinearOptions block_linear(const Blueprint& blueprint, int block, BlockLinear which) {
  const TransformerSpec& spec = blueprint.spec();
  const LinearShape shape = shape_of(spec, which);
  LinearOptions linear;
  linear.name = name_of_linear(spec, block, which);
  linear.block = block;
  linear.outputs = shape.outputs;
  linear.inputs = shape.inputs;
  linear.matrices = matrices_of(spec, which);
  linear.storage = blueprint.storage();
  const bool projects_back = which == BlockLinear::Out || which == BlockLinear::Down;
  linear.initial = {.deviation = spec.linear_deviation(which),
                    .learning_rate_factor = spec.linear_learning_rate(which)};
  linear.gradient_deviation = blueprint.gradient_deviation();
  linear.reads_stream = !projects_back && !spec.pre_norm;
  linear.formats = formats_of(blueprint.options.recipe, static_cast<int>(spec.layers), block, which);
  return linear;
}

Block::Block(const Blueprint& blueprint, int index)
    : name_(fmt::format("blocks.{}", index)),
      index_(index),
      spec_(blueprint.spec()),
      micro_batch_(blueprint.options.micro_batch),
      storage_(blueprint.storage()),
      recompute_(blueprint.options.recompute),
      saves_codes_(blueprint.options.recipe.saved_activations == SavedActivations::FP8),
      stream_factor_(static_cast<float>(std::sqrt(1 - spec_.residual_tau_()))),
      branch_factor_(spec_.residual == Residual::Sum ? 1.0f
                                                     : static_cast<float>(std::sqrt(spec_.residual_tau_()))),
      attention_norm_(declare_pre_norm(blueprint, index, "attention_norm")),
      attention_(blueprint, index),
      attention_post_norm_(declare_post_norm(blueprint, index, "attention_post_norm")),
      ffn_norm_(declare_pre_norm(blueprint, index, "ffn_norm")),
      feed_forward_(blueprint, index),
      ffn_post_norm_(declare_post_norm(blueprint, index, "ffn_post_norm")) {}

std::array<const Linear*, 4> Block::linears() const {
  return {&attention_.qkv(), &attention_.out(), &feed_forward_.up(), &feed_forward_.down()};
}

// ---- forward and backward

ResidualStream Block::after_attention(const Tensor& branch) const {
  const BlockActivations& a = activations_;
  if (!scales_branches()) return {a.residual, branch, {}, {}};
  return {a.residual,     a.attention_branch, attention_post_norm_.master, a.attention_branch_rstd,
          stream_factor_, branch_factor_};
}

ResidualStream Block::after_ffn(const Tensor& branch) const {
  const BlockActivations& a = activations_;
  if (!scales_branches()) return {a.middle, branch, {}, {}};
  return {a.middle, a.ffn_branch, ffn_post_norm_.master, a.ffn_branch_rstd, stream_factor_, branch_factor_};
}

void Block::add_and_normalise(const Pass& pass, const ResidualStream& in, const PreNorm& norm,
                              const CastTarget& out) const {
  if (!spec_.pre_norm && in.branch.empty()) {  // the sum is there, and is what the layer reads
    if (!out.row.empty() || !out.column.empty())
      pass.device.cast({.source = in.residual, .column_factor = {}, .out = out});
    return;
  }
  pass.device.rmsnorm_forward({.residual = in.residual,
                               .branch = in.branch,
                               .residual_out = in.branch.empty() ? Tensor{} : norm.sum,
                               .gain = norm.gain.master,
                               .rstd = norm.rstd,
                               .epsilon = static_cast<float>(spec_.norm_epsilon),
                               .out = out,
                               .branch_gain = in.branch_gain,
                               .branch_rstd = in.branch_rstd,
                               .stream_factor = in.stream_factor,
                               .branch_factor = in.branch_factor});
}

void Block::normalise_input(const Pass& pass, const ResidualStream& in) const {
  const CastTarget out = attention_.qkv().input_target(pass, activations_.attention_input);
  add_and_normalise(pass, in, attention_norm(), out);
}

void Block::normalise_middle(const Pass& pass, const ResidualStream& in) const {
  const CastTarget out = feed_forward_.up().input_target(pass, activations_.ffn_input);
  add_and_normalise(pass, in, ffn_norm(), out);
}

ResidualStream Block::forward(const Pass& pass, const ResidualStream& in, const Tensor& branch) const {
  const ResidualStream middle = after_attention(branch), out = after_ffn(branch);
  normalise_input(pass, in);
  if (index_ > 0) pass.observe(index_ - 1, Observed::BlockOutput, activations_.residual);
  attention_.forward(pass, activations_, middle.branch);
  normalise_middle(pass, middle);
  feed_forward_.forward(pass, activations_, out.branch);
  if (pass.kind != PassKind::Evaluation) encode(pass);
  return out;
}

void Block::encode(const Pass& pass) const {
  for (const SavedCodes& saved : saved_codes_)
    pass.device.encode_groups({.source = saved.values, .codes = saved.codes, .scales = saved.scales});
}

void Block::decode(const Pass& pass) const {
  for (const SavedCodes& saved : saved_codes_)
    pass.device.decode_groups({.codes = saved.codes, .scales = saved.scales, .out = saved.values});
}

void Block::recompute(const Pass& pass, const Tensor& branch) const {
  const BlockActivations& a = activations_;
  switch (recompute_) {
    case Recompute::None:
      return;
    case Recompute::NormsAndSwiGLU:
      normalise_input(pass, {a.residual, {}, {}, {}});
      normalise_middle(pass, {a.middle, {}, {}, {}});
      feed_forward_.activate(pass, a);
      return;
    case Recompute::Block: {
      const ResidualStream middle = after_attention(branch);
      normalise_input(pass, {a.residual, {}, {}, {}});
      attention_.forward(pass, a, middle.branch);
      normalise_middle(pass, middle);
      feed_forward_.expand(pass, a);
      feed_forward_.activate(pass, a);
      if (scales_branches()) feed_forward_.contract(pass, a, a.ffn_branch);
      return;
    }
  }
}

CastTarget Block::output_gradient_target(const Pass& pass, const BlockGradients& g) const {
  if (!scales_branches()) return feed_forward_.down().grad_target(pass, g.branch, activations_.hidden);
  CastTarget target;
  target.high = g.residual.high;
  return target;
}

// The gradient of a norm's output becomes that of the stream, to which it is added; without a norm dgrad has
// added it already.
void Block::norm_backward(const Pass& pass, const BlockGradients& g, const PreNorm& norm,
                          const CastTarget& gradient) const {
  if (!spec_.pre_norm) {
    if (!gradient.row.empty() || !gradient.column.empty())
      pass.device.cast({.source = g.residual.high, .column_factor = {}, .out = gradient});
    return;
  }
  pass.device.rmsnorm_backward({.out_gradient = g.norm,
                                .residual = norm.sum,
                                .gain = norm.gain.master,
                                .rstd = norm.rstd,
                                .gain_gradient = norm.gain.gradient,
                                .residual_gradient_in = g.residual.high,
                                .residual_gradient = gradient});
}

// The gradient of the stream becomes that of a branch before post_norm, and its own weight comes onto it.
void Block::branch_backward(const Pass& pass, const BlockGradients& g, const Parameter& gain,
                            const ResidualStream& stream, const CastTarget& gradient) const {
  pass.device.rmsnorm_backward({.out_gradient = g.residual.high,
                                .residual = stream.branch,
                                .gain = gain.master,
                                .rstd = stream.branch_rstd,
                                .gain_gradient = gain.gradient,
                                .residual_gradient_in = {},
                                .residual_gradient = gradient,
                                .stream_factor = stream.stream_factor,
                                .branch_factor = stream.branch_factor});
}

void Block::backward(const Pass& pass, const BlockGradients& g, const CastTarget& input_gradient,
                     const Tensor& branch) const {
  const BlockActivations& a = activations_;
  decode(pass);
  recompute(pass.recomputing(), branch);
  const CastTarget out_gradient = attention_.out().grad_target(pass, g.branch, a.attention_output);
  CastTarget middle_gradient = out_gradient;
  if (scales_branches()) {
    middle_gradient = {};
    middle_gradient.high = g.residual.high;
    branch_backward(pass, g, ffn_post_norm_, after_ffn(branch),
                    feed_forward_.down().grad_target(pass, g.branch, a.hidden));
  }
  feed_forward_.backward(pass, a, g);
  norm_backward(pass, g, ffn_norm(), middle_gradient);
  if (scales_branches())
    branch_backward(pass, g, attention_post_norm_, after_attention(branch), out_gradient);
  attention_.backward(pass, a, g);
  norm_backward(pass, g, attention_norm(), input_gradient);
}

}  // namespace octet
