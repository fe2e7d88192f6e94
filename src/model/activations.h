// The activations of a block, by name: what forward keeps for backward, and the gradients on their way back.
#pragma once
#include "model/linear.h"
#include "model/transformer.h"

namespace octet {

// The residual stream between two norms: its value is residual + branch; the next norm makes the sum, and on
// the way scales the branch by a gain, or normalises it too (post_norm), and weights the two.
struct ResidualStream {
  Tensor residual;     // storage [T, D]
  Tensor branch;       // storage [T, D], or empty
  Tensor branch_gain;  // F32 [D], or empty
  Tensor branch_rstd;  // F32 [T] or empty: where 1/rms of the branch goes
  float stream_factor = 1, branch_factor = 1;
};

//   r' = r + post(attention(norm(r))),   r'' = r' + post(down(h)),   h = f(up(norm(r')))
//   f, norm and post as the spec says: norm may be left out, and h = silu(gate) * up, [gate | up] =
//   gate_up(norm(r'))
struct BlockActivations {
  Tensor residual;               // storage [T, D]: r
  Tensor attention_rstd;         // F32 [T]
  CastBuffers attention_input;   // norm(r) [T, D]; without a norm .high is `residual`
  Tensor query_keys;             // storage [T, (H + K) Dh], before their regulariser
  Tensor qkv;                    // storage [T, (H + 2 K) Dh], queries and keys rotated
  Tensor log_sum_exp;            // F32 [B, H, S]
  CastBuffers attention_output;  // [T, H Dh], the heads side by side; .high is read by attention's backward
  // FP8 attention: what its backward reads instead of qkv and attention_output.high. Codes, E4M3.
  Tensor qkv_codes;              // [T, (H + 2 K) Dh]
  Tensor output_codes;           // [T, H Dh]
  Tensor attention_branch;       // storage [T, D]: attention's, where post_norm reads it in backward
  Tensor attention_branch_rstd;  // F32 [T]
  Tensor middle;                 // storage [T, D]: r'
  Tensor ffn_rstd;               // F32 [T]
  CastBuffers ffn_input;         // norm(r') [T, D]; without a norm .high is `middle`
  Tensor up;                     // storage [T, F], or [gate | up] [T, 2 F]
  CastBuffers hidden;            // h [T, F]
  Tensor ffn_branch;             // storage [T, D]: the feed-forward network's
  Tensor ffn_branch_rstd;        // F32 [T]; written by whoever adds the branch
};

// Groups of those fields.
struct ActivationGroups {
  bool
      residual;  // the block's input, what the cast of the block's output gradient reads, and ffn_branch_rstd
  bool norms;    // attention_input, ffn_input
  bool hidden;   // hidden
  bool others;
};

// The recompute policy: the groups that every block stores. The others live in memory that all blocks share,
// and backward recomputes them there.
constexpr ActivationGroups stored_groups(Recompute policy) {
  switch (policy) {
    case Recompute::NormsAndSwiGLU:
      return {.residual = true, .norms = false, .hidden = false, .others = true};
    case Recompute::Block:
      return {.residual = true, .norms = false, .hidden = false, .others = false};
    default:
      return {.residual = true, .norms = true, .hidden = true, .others = true};
  }
}
constexpr ActivationGroups recomputed_groups(Recompute policy) {
  const ActivationGroups stored = stored_groups(policy);
  return {!stored.residual, !stored.norms, !stored.hidden, !stored.others};
}

// One of those fields, kept for backward as codes [numerics/group_codes.h]. `values` is memory that all
// blocks use in turn.
struct SavedCodes {
  Tensor values;  // storage [T, n]
  Tensor codes;   // E4M3 [T, n]
  Tensor scales;  // U8 [T, n / 16]
};

// Gradients of the loss, one set for all blocks.
struct BlockGradients {
  CastBuffers residual;  // of the residual stream [T, D]
  CastBuffers branch;  // what enters `down` and the attention's `out`: without post_norm the same as residual
  Tensor norm;         // of a norm's output: storage [T, D]; without a norm the same as residual.high
  Tensor hidden;       // of h: storage [T, F]
  CastBuffers up;      // [T, F] or [T, 2 F]
  Tensor attention_output;  // storage [T, H Dh]
  CastBuffers qkv;          // [T, (H + 2 K) Dh]
  // FP8 attention. Codes, E5M2.
  Tensor attention_output_codes;  // [T, H Dh]
  Tensor attention_qkv_codes;     // [T, (H + 2 K) Dh]
};

}  // namespace octet
