// What happens to gradients, masters and moments once a step: the gradient on the wire and its norm, AdamW,
// Muon, masters, the scale table, local SGD. The conventions are those of operations.h.
#pragma once
#include <cstdint>

#include "device/scale_table.h"
#include "numerics/recipe.h"
#include "tensor/parameter.h"
#include "tensor/tensor.h"

namespace octet {

// What the update of a step may do; written on the device so that no host round trip is needed.
struct UpdateControl {
  float gradient_norm;  // global L2 norm before clipping
  float scale;          // what gradients are multiplied by (clipping)
  float loss;           // mean loss of the step
  uint32_t apply;       // 0: loss or norm is not finite, the update changes nothing
  // 0: every gradient is finite. Else 1 + the first piece with a value that is not, of the pieces of
  // norm_piece values (numerics/sums.h) of all gradients in their order.
  uint32_t nonfinite_piece;
};
// partials[p] = sum of the squares of piece p: norm_piece values of the gradient (numerics/sums.h).
struct GradientSquares {
  Tensor gradient;
  Tensor partials;  // F64 [norm_pieces(elements)]
};
// gradient_norm = sqrt(sum of partials); control->loss = loss_sum[0] / loss_divisor; apply = both are finite.
struct GradientNorm {
  Tensor partials;  // F64: of all gradients, in their order
  Tensor loss_sum;  // F64 [1]: sum of the step's token losses
  double loss_divisor = 1;
  float clip_norm = 0;     // 0 = no clipping
  UpdateControl* control;  // device memory, written
};

void check(const GradientSquares& op);  // Error(Internal) when the partials do not fit the gradient

struct MomentTensor {
  Tensor values;   // F32, BF16, or codes in FP16 or FP8; the master's shape
  Tensor inverse;  // F32 [ceil(n / block)] (block 0: [1]) inverse scales; empty for F32 and BF16
  int block = 128;
  // FP8 with range expansion: U8 [ceil(n / block)], sixteenths of k; `inverse` has the largest magnitudes.
  Tensor exponents = {};
};
// Of the update of one tensor that these gradients would make, in pieces of norm_piece elements
// (numerics/sums.h):
//   partials[p] = sum over piece p of g^2 / max(v / (1 - b2^t), epsilon^2)
// with g = scale * gradient and v after this step, in FP32; FP64 sums. Zero when the step is not applied.
struct UpdateSquares {
  Tensor gradient;
  MomentTensor second;  // before the step
  float beta2, epsilon;
  int64_t step;                  // t, from 1
  const UpdateControl* control;  // device memory
  Tensor partials;               // F64 [norm_pieces(elements)]
};
// rms = sqrt(sum of partials / elements): StableAdamW's RMS_t of a tensor.  [2304.13013, 3.2]
struct UpdateRms {
  Tensor partials;  // F64: of the whole tensor
  int64_t elements = 1;
  Tensor rms;  // F32 [1], written
};
// One AdamW update of one tensor.  [Fishman et al., released code; docs/numerics.md]
//   g = scale * gradient;  m = b1 m + (1-b1) g;  v = b2 v + (1-b2) g^2
//   w = (1 - lr*decay) w - lr * sqrt(1-b2^t)/(1-b1^t) * m / (sqrt(v) + epsilon)
// m and v as computed in FP32 drive the update; then they are stored (exact scale, round to nearest, v > 0
// never below the smallest subnormal). w is stored as master_code says, rounded once.
struct AdamWUpdate {
  Tensor master, gradient;
  MomentTensor first, second;
  float learning_rate, beta1, beta2, epsilon, weight_decay;
  int64_t step;                  // t, from 1
  const UpdateControl* control;  // device memory
  // F32 [1] or empty: as measure_amax of the masters' numbers after it, also where the update is not applied.
  Tensor amax = {};
  MasterCode master_code = {};
  // For stochastic rounding: random_bits(rounding_key, first_element + i) of element i; a multiple of 4.
  uint64_t rounding_key = 0;
  int64_t first_element = 0;
  // F32 [1] or empty: of UpdateRms. lr is divided by what it exceeds 1 by.  [2304.13013, algorithm 2]
  Tensor update_rms = {};
};

// ---- Muon: a matrix goes along its momentum made orthogonal.  [Jordan et al. 2024,
// kellerjordan.github.io/posts/muon, and its code; Liu et al. 2502.16982; docs/numerics.md, "Muon"]

// The momentum of one tensor, and Nesterov's direction from it:
//   g = scale * gradient;  m = momentum * m + (1 - momentum) * g
//   direction = (1 - momentum) * g + momentum * m
// m as computed in FP32 makes the direction, then it is stored, as AdamW's is. Neither is written when the
// step is not applied.
struct MuonMomentum {
  Tensor gradient;
  MomentTensor first;
  Tensor direction;  // storage, as many
  float momentum;
  const UpdateControl* control;  // device memory
};
// x = x * (1 / (sqrt(sum of partials) + 1e-7)), in place, rounded once: to a Frobenius norm of 1.
struct Normalize {
  Tensor x;         // storage
  Tensor partials;  // F64, of GradientSquares
};
// out[i] = alpha * x[i] + beta * y[i], rounded once. out may be x or y.
struct WeightedSum {
  Tensor x, y, out;  // storage
  float alpha, beta;
};
// w = w - (lr * weight_decay * w + lr * direction), read and stored as AdamW's masters are.
struct MuonUpdate {
  Tensor master;
  MasterCode master_code;
  Tensor direction;  // storage, as many
  float learning_rate, weight_decay;
  const UpdateControl* control;  // device memory
  // The rest as AdamWUpdate's.
  Tensor amax = {};
  uint64_t rounding_key = 0;
  int64_t first_element = 0;
};
void check(const MuonMomentum& op);  // Error(Internal) when types or shapes do not fit
void check(const Normalize& op);
void check(const WeightedSum& op);
void check(const MuonUpdate& op);

// values = the numbers that the model sees of these masters: F32, or rounded to BF16.
struct ReadMasters {
  Tensor master;
  MasterCode code;
  Tensor values;  // F32 or BF16, as many
};
// Masters from numbers in FP32, rounded to nearest: initial weights.
struct WriteMasters {
  Tensor values;  // F32
  Tensor master;
  MasterCode code;
};
void check(const ReadMasters& op);  // Error(Internal) when types or shapes do not fit
void check(const WriteMasters& op);
void check(const UpdateSquares& op);

// Pushes this step's amaxes into the history and refreshes the scales of delayed sites, and from the counters
// those of sites that follow them; clears `amax` and the counters.
// With a control that says 0 these are cleared only: a step that was not applied leaves no trace.
// [numerics/scaling.h, numerics/adaptive_scaling.h]
struct ScaleTableUpdate {
  ScaleTable* table;
  DelayedScaling options;
  int64_t step;
  const UpdateControl* control = nullptr;  // device memory; null: applied
  AdaptiveScaling adaptive = {};
};

// Codes of a gradient for the wire, in messages of `piece` values each [numerics/block_codes.h]:
//   code = E4M3(source * scale of its block), rounded stochastically
// with random_bits(rounding_key, p * coded_bytes(piece) + i) for value i of message p. What lies beyond the
// source is zero.
struct EncodeBlocks {
  Tensor source;    // F32 or BF16 [n]
  Tensor messages;  // U8 [pieces, message_bytes(piece)], 16-byte aligned; n <= pieces * piece
  int64_t piece = 0;
  int log2_mu = 0;  // every scale is multiplied by 2^log2_mu
  uint64_t rounding_key = 0;
  Tensor saturated;  // U32 [1]: += finite values beyond the largest code
};
// out[p * piece + i] = sum over s of value i of message [s, p]: in FP32 in the order of s, rounded once to
// out. With `accumulate` the sum begins with what out holds.
struct DecodeBlocks {
  Tensor messages;  // U8 [sources, pieces, message_bytes(piece)], 16-byte aligned
  Tensor out;       // F32 or BF16 [n], n <= pieces * piece
  int64_t piece = 0;
  bool accumulate = false;
};
// sum[i] = ((sum[i] + sources[0][i]) + sources[1][i]) + ..., in the type of the sum.
struct AddInOrder {
  Tensor sum;      // F32 or F64 [n]
  Tensor sources;  // [S, n]: F32 or BF16 onto F32, F64 onto F64
};
void check(const AddInOrder& op);  // Error(Internal) when types or shapes do not fit

// Local SGD [2311.08105, algorithm 1]. How far a rank's own masters went from those that all ranks had:
//   local[i] = outer[i] - local[i]
struct OuterDifference {
  Tensor outer, local;  // F32 [n]
};
// The outer step, with Nesterov's momentum, on the sum of all ranks' differences; then the rank's masters are
// everybody's again. Every operation is rounded to FP32 by itself, in this order:
//   d = scale * local;  velocity = momentum * velocity + d
//   outer = outer - learning_rate * (d + momentum * velocity);  local = outer
struct OuterUpdate {
  Tensor outer, velocity, local;  // F32 [n]
  float scale = 1, learning_rate = 1, momentum = 0;
};
void check(const OuterDifference& op);  // Error(Internal) when they are not F32 of one size
void check(const OuterUpdate& op);

}  // namespace octet
