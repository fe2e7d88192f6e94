// The operations of a transformer, as arguments: what each computes, on which shapes and types, what it
// rounds.
//
// Conventions, everywhere:
//  - T tokens (rows of a micro-batch, T = B * S), D width, F ffn_width, H heads, K kv_heads, Dh head_width,
//    V vocabulary.
//  - "storage" is the recipe's activation type: F32 or BF16. Arithmetic inside an operation is FP32; a result
//    is rounded once, when it is stored. Codes are made from the value rounded to storage
//    (numerics/recipe.h).
//  - Tensors are row-major and do not overlap unless the operation says "in place".
//  - Sums have a fixed order (numerics/sums.h): same inputs, same bits, on any device and any number of
//    threads. Matmul and attention are exempt: their order is their library's unless `deterministic`.
#pragma once
#include <cstdint>
#include <map>
#include <string>

#include "device/observation.h"
#include "device/scale_table.h"
#include "device/update_operations.h"
#include "numerics/activation.h"
#include "numerics/query_key_norm.h"
#include "numerics/recipe.h"
#include "tensor/tensor.h"

namespace octet {

// ---- casting
// ---------------------------------------------------------------------------------------------------

// How many inverse scales codes [outer, inner] have, and how they lie. The product sums over `inner`.
enum class ScaleGranularity : uint8_t {
  Tensor,   // [1]
  Outer,    // [outer]: one a row
  Vectors,  // [scale_blocks(inner), outer]: one a 1 x 128  [numerics/block_scales.h]
  Squares,  // [scale_blocks(outer), square_pitch(inner)]: one a 128 x 128
};
constexpr bool is_blocks(ScaleGranularity g) {
  return g == ScaleGranularity::Vectors || g == ScaleGranularity::Squares;
}

// Where and how an operation leaves its result [rows, columns]. The device makes as many passes as the
// scaling needs; the model does not know. A tensor, row or column with a non-finite value gets a NaN inverse
// scale: saturation must not hide a diverged step.
struct CastTarget {
  Tensor high;    // storage [rows, columns]; on the CPU always present
  Tensor row;     // codes [rows, columns], or empty
  Tensor column;  // codes of the transpose [columns, rows], or empty
  Cast cast;      // read only when row or column is present
  Site site;
  // Scales finer than the site's, both F32, both holding *inverse* scales after the cast, from this very
  // tensor: fine_scale(). Codes are made with the reciprocals of these. The site keeps amax and counters.
  Tensor row_inverse_scale;                                // of `row`, as granularity says
  Tensor column_inverse_scale;                             // of `column`; Outer: one per column of the source
  ScaleGranularity granularity = ScaleGranularity::Outer;  // of the two; never Tensor
  // SmoothQuant, with column scales that serve both copies: the inverse scale of column j is s_j / S with
  //   s_j = 2^round(log2(amax(source, j)^exponent / channel_weight_amax[j]^(1 - exponent)))
  // and S the scale of the tensor source[:, j] / s_j. Empty: S / s_j is the scale of column j itself.
  Tensor channel_weight_amax;  // F32 [columns]
  float channel_exponent = 0;
  // F32 [rows]: `column` is made from source[t, :] * row_factor[t] (Smooth-SwiGLU `token`: dY takes up the
  // tokens' scales), with its own scale in column_site.
  Tensor row_factor;
  Site column_site;
  uint64_t rounding_key = 0;  // for stochastic rounding: a pure function of (seed, step, micro-batch, site)
};

// What a GEMM reads.
struct Operand {
  Tensor values;                         // F32, BF16 or codes
  bool transposed = false;               // false: [outer, inner]; true: [inner, outer] (F32 and BF16 only)
  const float* inverse_scale = nullptr;  // codes only
  ScaleGranularity granularity = ScaleGranularity::Tensor;
};

// Attention: the products inside the attention core, counted by the attention operations themselves (causal
// part only).
// Muon: those of the optimizer.
enum class GemmClass : uint8_t { Fprop, Dgrad, Wgrad, HeadFprop, HeadDgrad, HeadWgrad, Attention, Muon };
const char* name_of(GemmClass c);

// out[M, N] (+)= sum_k a[M, k] * b[N, k] * inverse scales. FP32 accumulation; one rounding to out's type.
// Allowed operand pairs: F32/F32, BF16/BF16, E4M3/E4M3, E4M3/E5M2, E5M2/E4M3. Anything else is
// Error(Internal). Scales of blocks are on both operands, squares on one of them at most; each value is then
// code * inverse scale, rounded to FP32 (exact for powers of two), before it is multiplied. With `simulate`
// (BF16 operands only) both operands are reduced to that format first, in
// copies: what others read of them stays as it is.
struct Matmul {
  Operand a, b;
  Tensor out;               // F32 or BF16 [M, N]
  bool accumulate = false;  // out += (an F32 or BF16 accumulator)
  // Codes only: partial sums may stay in the tensor cores' own precision. The CPU's are FP32 either way.
  bool fast_accumulation = false;
  GemmClass gemm_class = GemmClass::Fprop;
  SmallFloat simulate = {};
};

// Counted by matmul itself from the operands it was given.
struct MatmulKey {
  GemmClass gemm_class;
  DType a, b, out;
  SmallFloat simulate = {};  // what BF16 operands were reduced to
  auto operator<=>(const MatmulKey&) const = default;
};
std::string operand_name(const MatmulKey& key, DType operand);  // "E4M3", "BF16 truncated to E8M3"
struct MatmulCount {
  uint64_t calls = 0, flops = 0;
  std::string implementation;
};  // implementation: "blocked-f32", "onednn-bf16", ...
using MatmulCounts = std::map<MatmulKey, MatmulCount>;

// ---- operations
// ------------------------------------------------------------------------------------------------

// out[t] = table[tokens[t]] * multiplier.
struct EmbeddingForward {
  Tensor out;
  Tensor tokens;
  Tensor table;
  float multiplier = 1;
};  // [T, D] storage; I32 [T]; [V, D] storage
// table_gradient[tokens[t]] += out_gradient[t] * multiplier; each row summed in token order.
struct EmbeddingBackward {
  Tensor table_gradient;
  Tensor tokens;
  Tensor out_gradient;
  float multiplier = 1;
};  // [V, D]

// residual += branch (when branch is given; rounded to storage); out = residual * rstd * gain. The branch may
// be scaled or normalised on its way, and the two weighted, rounded once:
//   residual = stream_factor * residual + branch_factor * branch * branch_rstd * branch_gain
struct RmsNormForward {
  Tensor residual;      // storage [T, D], in place
  Tensor branch;        // storage [T, D] or empty
  Tensor residual_out;  // storage [T, D] or empty: the sum is written here instead of in place
  Tensor gain;          // F32 [D]; empty: there is a branch, and out is the sum, high in the sum's place
  Tensor rstd;          // F32 [T], written; empty without gain
  float epsilon = 1e-5f;
  CastTarget out;           // [T, D]
  Tensor branch_gain = {};  // F32 [D] or empty: the branch is added as it is
  Tensor branch_rstd = {};  // F32 [T], written, or empty: the branch is scaled, not normalised
  float stream_factor = 1, branch_factor = 1;  // other than 1 with branch_rstd only
};
void check(const RmsNormForward& op);  // Error(Internal) when what there is does not go together
// residual_gradient += d(norm)/d(residual) * out_gradient. The sum is rounded to storage, then cast.
// Also the backward of what was scaled or normalised before it was added.
struct RmsNormBackward {
  Tensor out_gradient;           // storage [T, D]
  Tensor residual;               // storage [T, D], as normalised in forward
  Tensor gain;                   // F32 [D]
  Tensor rstd;                   // F32 [T]; empty: scaled by the gain only
  Tensor gain_gradient;          // += [D]
  Tensor residual_gradient_in;   // storage [T, D] or empty (= zero)
  CastTarget residual_gradient;  // [T, D]; .high may be the same memory as residual_gradient_in
  // Of a branch that was weighted: out_gradient counts branch_factor times, and becomes stream_factor *
  // out_gradient in place, rounded once, when it has been read.
  float stream_factor = 1, branch_factor = 1;
};

// The regulariser of query and key heads [numerics/query_key_norm.h]; its statistics come from `kept`.
struct QueryKeyNorm {
  QkNorm kind = QkNorm::None;
  Tensor kept;                  // storage [T, (H+K)Dh]: the heads before it. Forward writes, backward reads
  Tensor query_gain, key_gain;  // F32: RMS [Dh], Tanh [1] (alpha), else empty
  float epsilon = 1e-5f;        // of the two RMS
};
// QKV rows are [H query heads | K key heads | K value heads] x Dh. In place: the bias (if any), the
// regulariser (before which heads are rounded to storage), then rotate-half RoPE on query and key heads.
// Position of row t is t % S.
struct RopeForward {
  Tensor qkv;
  Tensor bias;
  Tensor cosine, sine;
  int heads, kv_heads, head_width;
  QueryKeyNorm norm = {};
};  // storage [T,(H+2K)Dh]; F32 or empty; F32 [S, Dh/2]
struct RopeBackward {
  Tensor qkv_gradient;   // storage [T, (H+2K)Dh] after rotation: read
  Tensor bias_gradient;  // += F32 [(H+2K)Dh] or empty
  Tensor cosine, sine;
  int heads, kv_heads, head_width;
  CastTarget out;  // gradient before all of it; .high may be the same memory as qkv_gradient
  QueryKeyNorm norm = {};
  Tensor query_gain_gradient = {}, key_gain_gradient = {};  // +=, where there are gains
};

// Codes that are made with a scale that is known beforehand, straight from FP32: nothing of them was in
// storage. The scale is the site's; without history (0) that of a start which the operation states
// [numerics/float8_attention.h]. The cast is delayed and rounds to nearest. The site's inverse scale is
// written: NaN if a value was not finite.
struct CodesBeforehand {
  Tensor codes;  // empty where they do not leave the operation
  Cast cast;
  Site site;
};

// Clipped softmax: probabilities P become clip((high - low) P + low, 0, 1), which are exactly zero or one
// where P is small or large enough, and have no gradient there. Positions that are masked stay zero. Not in
// FP8. [Bondarenko et al. 2306.12929, eq. 4]
struct SoftmaxClip {
  float low = 0, high = 1;  // gamma <= 0, zeta >= 1
  bool clips() const { return low != 0 || high != 1; }
};

// Causal softmax(scale * Q K^T) V per context window of S tokens; softmax and sums in FP32.
//
// In FP8 when qkv is codes: S = Q K^T and O = P' V are products of codes, accumulated in FP32, with
//   P' = E4M3(exp(scale * S - log_sum_exp) * 256) / 256.
// O becomes codes (start: the largest of V); out.high is what these decode to, and `out` is cast from that.
struct AttentionForward {
  Tensor qkv;          // storage, or E4M3 codes [T, (H+2K)Dh]
  Tensor log_sum_exp;  // F32 [B, H, S], natural log of the softmax sum, written
  int context, heads, kv_heads, head_width;
  float softmax_scale;
  CastTarget out;  // [T, H*Dh]
  SoftmaxClip clip = {};
  // FP8 only:
  const float* qkv_inverse_scale = nullptr;
  CodesBeforehand out_codes = {};  // E4M3 [T, H*Dh]
};
// In FP8 when qkv is codes; then all six products are of codes, with P' as in forward and
//   dP = dO V^T   dS = P (dP - sum(dO O)) scale   dS' = E5M2(dS)   dQ = dS' K   dK = dS'^T Q   dV = P'^T dO.
// qkv_gradient is what the codes of dQ, dK and dV decode to.
struct AttentionBackward {
  Tensor qkv, out, out_gradient;  // storage, or E4M3, E4M3 and E5M2 codes
  Tensor log_sum_exp;
  Tensor qkv_gradient;  // storage [T, (H+2K)Dh], written
  int context, heads, kv_heads, head_width;
  float softmax_scale;
  SoftmaxClip clip = {};
  // FP8 only:
  const float *qkv_inverse_scale = nullptr, *out_inverse_scale = nullptr,
              *out_gradient_inverse_scale = nullptr;
  CodesBeforehand score_gradient = {};      // of dS; its codes stay inside
  CodesBeforehand qkv_gradient_codes = {};  // E5M2 [T, (H+2K)Dh]
};

// gate_up rows are [F gate | F up]; h = silu(gate) * up. `mode` says which scales `out` gets:
//   None: the site's, or those of blocks. Dual: out.row_inverse_scale and out.column_inverse_scale. Token:
//   out.row_inverse_scale for both copies (column = transpose of row). Channel: out.column_inverse_scale for
//   both copies.  Scales come from the product h.
struct SwiGluForward {
  Tensor gate_up;
  SmoothSwiGLU mode = SmoothSwiGLU::None;
  CastTarget out;
};  // storage [T, 2F] -> [T, F]
struct SwiGluBackward {
  Tensor gate_up;
  Tensor h_gradient;
  CastTarget out;
};  // [T, 2F], [T, F] -> [T, 2F]

// h = f(x) for an activation with one input [numerics/activation.h]; `mode` as for SwiGLU.
struct ActivationForward {
  Activation activation;
  Tensor x;                   // storage [T, F]
  Tensor positive, negative;  // F32 [1]: p and n of xIELU, else empty
  SmoothSwiGLU mode = SmoothSwiGLU::None;
  CastTarget out;  // [T, F]
};
struct ActivationBackward {
  Activation activation;
  Tensor x, h_gradient;  // storage [T, F]
  Tensor positive, negative;
  Tensor positive_gradient, negative_gradient;  // += F32 [1]: rows first, then over the tokens
  CastTarget out;                               // [T, F]
};

// Softmax cross-entropy with optional z-loss, over a chunk of tokens.  loss = lse - logit[target]; logits
// become (softmax - onehot + 2 z_loss lse softmax) * gradient_scale when `backward`, rounded to storage.
struct CrossEntropy {
  Tensor logits;   // storage [Tc, V], in place
  Tensor targets;  // I32 [Tc]; negative = ignored (loss 0, gradient 0)
  Tensor loss;     // F32 [Tc], written (cross-entropy alone, without the z term)
  float gradient_scale = 0;
  float z_loss = 0;
  bool backward = true;
};

// target from source as it stands: working weights after an update (source F32 master), gradients that enter
// a linear. column_factor (F32 [columns], optional) multiplies the source's columns first (Smooth-SwiGLU
// `channel`: folded weights).
//
// With `amax`, which somebody has measured already, the source is read once. It may then be a part of a
// larger tensor with one scale, row codes only: `amax` is the whole tensor's, and value i of the part is
// element first + i of it, for stochastic rounding. Together the parts have the codes, the scale and the
// counts of one cast of the whole, and each records the whole's amax.
struct CastOperation {
  Tensor source;
  Tensor column_factor;
  CastTarget out;
  Tensor amax = {};  // F32 [1], of measure_amax or adamw; empty: not known yet
  int64_t first = 0;
};

// amax = max(amax, largest magnitude of the values rounded to BF16), which is what a cast of them measures.
// NaN is above infinity, and a cast takes it as infinity.
struct MeasureAmax {
  Tensor source;  // F32 or BF16
  Tensor amax;    // F32 [1], not negative
};

// transposed[c, r] = codes[r, c].
struct TransposeCodes {
  Tensor codes;       // one byte each [rows, columns]
  Tensor transposed;  // [columns, rows]
};

// Activations that backward reads, kept as codes [numerics/group_codes.h]. Groups follow each other in the
// order of the values; none goes over the end of a row when rows are multiples of 16.
struct EncodeGroups {
  Tensor source;  // F32 or BF16, n values, n a multiple of 16
  Tensor codes;   // E4M3, n
  Tensor scales;  // U8, n / 16: inverse scales, E8M0
};
struct DecodeGroups {
  Tensor codes, scales;
  Tensor out;  // F32 or BF16, n values
};

// Every operation, once: its name and its arguments. Device declares them from this list, and so does every
// device that implements them.
// clang-format off
#define OCTET_DEVICE_OPERATIONS(operation) \
  operation(matmul, Matmul) \
  operation(cast, CastOperation) \
  operation(measure_amax, MeasureAmax) \
  operation(transpose_codes, TransposeCodes) \
  operation(embedding_forward, EmbeddingForward) \
  operation(embedding_backward, EmbeddingBackward) \
  operation(rmsnorm_forward, RmsNormForward) \
  operation(rmsnorm_backward, RmsNormBackward) \
  operation(rope_forward, RopeForward) \
  operation(rope_backward, RopeBackward) \
  operation(attention_forward, AttentionForward) \
  operation(attention_backward, AttentionBackward) \
  operation(swiglu_forward, SwiGluForward) \
  operation(swiglu_backward, SwiGluBackward) \
  operation(activation_forward, ActivationForward) \
  operation(activation_backward, ActivationBackward) \
  operation(cross_entropy, CrossEntropy) \
  operation(gradient_squares, GradientSquares) \
  operation(gradient_norm, GradientNorm) \
  operation(update_squares, UpdateSquares) \
  operation(update_rms, UpdateRms) \
  operation(adamw, AdamWUpdate) \
  operation(muon_momentum, MuonMomentum) \
  operation(normalize, Normalize) \
  operation(weighted_sum, WeightedSum) \
  operation(muon_update, MuonUpdate) \
  operation(read_masters, ReadMasters) \
  operation(write_masters, WriteMasters) \
  operation(scale_table_update, ScaleTableUpdate) \
  operation(encode_blocks, EncodeBlocks) \
  operation(decode_blocks, DecodeBlocks) \
  operation(encode_groups, EncodeGroups) \
  operation(decode_groups, DecodeGroups) \
  operation(add_in_order, AddInOrder) \
  operation(outer_difference, OuterDifference) \
  operation(outer_update, OuterUpdate) \
  operation(tensor_statistics, TensorStatistics) \
  operation(channel_amax, ChannelAmax) \
  operation(row_cosines, RowCosines) \
  operation(cast_error, CastError)
// clang-format on

}  // namespace octet
