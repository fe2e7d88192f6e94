#include "model/feed_forward.h"

#include <fmt/format.h>

#include <cmath>

#include "model/block.h"

namespace octet {

namespace {

// The parameter whose softplus is `alpha`.
double before_softplus(double alpha) { return std::log(std::expm1(alpha)); }

Parameter declare_xielu(const Blueprint& blueprint, int block, const char* which, double initial) {
  if (blueprint.spec().activation != Activation::XIELU) return {};
  return blueprint.parameters.add(fmt::format("blocks.{}.ffn.xielu.{}", block, which), ParameterKind::Vector,
                                  {1}, Initial{.deviation = 0, .constant = initial});
}

}  // namespace

FeedForward::FeedForward(const Blueprint& blueprint, int block)
    : block_(block),
      activation_(blueprint.spec().activation),
      up_(block_linear(blueprint, block, BlockLinear::Up), blueprint),
      positive_(declare_xielu(blueprint, block, "positive", before_softplus(xielu_initial_alpha))),
      negative_(declare_xielu(blueprint, block, "negative",
                              before_softplus(xielu_initial_alpha - static_cast<double>(xielu_beta)))),
      down_(block_linear(blueprint, block, BlockLinear::Down), blueprint) {}

void FeedForward::expand(const Pass& pass, const BlockActivations& a) const {
  up_.fprop(pass, a.ffn_input, a.up);
}

void FeedForward::activate(const Pass& pass, const BlockActivations& a) const {
  const CastTarget out = down_.input_target(pass, a.hidden);
  if (is_gated(activation_)) return pass.device.swiglu_forward({a.up, down_.smooth(), out});
  pass.device.activation_forward({.activation = activation_,
                                  .x = a.up,
                                  .positive = positive_.master,
                                  .negative = negative_.master,
                                  .mode = down_.smooth(),
                                  .out = out});
}

void FeedForward::contract(const Pass& pass, const BlockActivations& a, const Tensor& branch) const {
  down_.fprop(pass, a.hidden, branch);
}

void FeedForward::forward(const Pass& pass, const BlockActivations& a, const Tensor& branch) const {
  expand(pass, a);
  pass.observe(block_, Observed::FfnBeforeActivation, a.up);
  activate(pass, a);
  pass.observe(block_, Observed::FfnHidden, a.hidden.high);
  contract(pass, a, branch);
  pass.observe(block_, Observed::FfnOutput, branch);
}

void FeedForward::backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const {
  down_.dgrad(pass, g.branch, g.hidden);
  down_.wgrad(pass, g.branch, a.hidden);
  const CastTarget out = up_.grad_target(pass, g.up, a.ffn_input);
  if (is_gated(activation_))
    pass.device.swiglu_backward({.gate_up = a.up, .h_gradient = g.hidden, .out = out});
  else
    pass.device.activation_backward({.activation = activation_,
                                     .x = a.up,
                                     .h_gradient = g.hidden,
                                     .positive = positive_.master,
                                     .negative = negative_.master,
                                     .positive_gradient = positive_.gradient,
                                     .negative_gradient = negative_.gradient,
                                     .out = out});
  up_.dgrad(pass, g.up, g.norm);
  up_.wgrad(pass, g.up, a.ffn_input);
}

}  // namespace octet
