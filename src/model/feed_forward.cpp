#include "model/feed_forward.h"

#include "model/block.h"

namespace octet {

FeedForward::FeedForward(const Blueprint& blueprint, int block)
    : block_(block),
      gate_up_(block_linear(blueprint, block, BlockLinear::GateUp), blueprint),
      down_(block_linear(blueprint, block, BlockLinear::Down), blueprint) {}

void FeedForward::expand(const Pass& pass, const BlockActivations& a) const {
  gate_up_.fprop(pass, a.ffn_input, a.gate_up);
}

void FeedForward::activate(const Pass& pass, const BlockActivations& a) const {
  pass.device.swiglu_forward(
      {.gate_up = a.gate_up, .mode = down_.smooth(), .out = down_.input_target(pass, a.hidden)});
}

void FeedForward::forward(const Pass& pass, const BlockActivations& a, const Tensor& branch) const {
  expand(pass, a);
  pass.observe(block_, Observed::FfnBeforeActivation, a.gate_up);
  activate(pass, a);
  pass.observe(block_, Observed::FfnHidden, a.hidden.high);
  down_.fprop(pass, a.hidden, branch);
  pass.observe(block_, Observed::FfnOutput, branch);
}

void FeedForward::backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const {
  down_.dgrad(pass, g.residual, g.hidden);
  down_.wgrad(pass, g.residual, a.hidden);
  pass.device.swiglu_backward({.gate_up = a.gate_up,
                               .h_gradient = g.hidden,
                               .out = gate_up_.grad_target(pass, g.gate_up, a.ffn_input)});
  gate_up_.dgrad(pass, g.gate_up, g.norm);
  gate_up_.wgrad(pass, g.gate_up, a.ffn_input);
}

}  // namespace octet
