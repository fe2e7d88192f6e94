// The feed-forward network, gated [Shazeer 2002.05202] or not.
//   branch = down(h),   h = silu(gate) * up with [gate | up] = gate_up(x),   or h = f(up(x))
#pragma once
#include "model/activations.h"
#include "model/blueprint.h"

namespace octet {

class FeedForward {
 public:
  FeedForward(const Blueprint& blueprint, int block);

  const Linear& up() const { return up_; }  // ffn.gate_up or ffn.up
  const Linear& down() const { return down_; }

  // Reads a.ffn_input; leaves a.up, a.hidden and branch [T, D].
  void forward(const Pass& pass, const BlockActivations& a, const Tensor& branch) const;
  // Its parts, for recomputation: x -> a.up, a.up -> a.hidden, a.hidden -> branch.
  void expand(const Pass& pass, const BlockActivations& a) const;
  void activate(const Pass& pass, const BlockActivations& a) const;
  void contract(const Pass& pass, const BlockActivations& a, const Tensor& branch) const;
  // Reads g.branch; leaves the gradient of x in g.norm.
  void backward(const Pass& pass, const BlockActivations& a, const BlockGradients& g) const;

 private:
  int block_;
  Activation activation_;
  Linear up_;
  Parameter positive_, negative_;  // [1]: of xIELU; else without tensors
  Linear down_;
};

}  // namespace octet
