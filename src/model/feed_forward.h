// The gated feed-forward network.  [Shazeer 2002.05202]
//   branch = down(h),   h = silu(gate) * up,   [gate | up] = gate_up(x)
#pragma once
#include "model/activations.h"
#include "model/blueprint.h"

namespace octet {

class FeedForward {
 public:
  FeedForward(const Blueprint& blueprint, int block);

  const Linear& gate_up() const { return gate_up_; }
  const Linear& down() const { return down_; }

  // Reads a.ffn_input; leaves a.gate_up, a.hidden and branch [T, D].
  void forward(const Pass& pass, const BlockActivations& a, const Tensor& branch) const;
  // Its parts, for recomputation: x -> a.gate_up and a.gate_up -> a.hidden.
  void expand(const Pass& pass, const BlockActivations& a) const;
  void activate(const Pass& pass, const BlockActivations& a) const;
  // Reads g.residual; leaves the gradient of the norm's output in g.norm.
  void backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const;

 private:
  int block_;
  Linear gate_up_, down_;
};

}  // namespace octet
