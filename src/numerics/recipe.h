// The recipe: which number format, scaling and rounding every role of a linear layer and every optimizer
// state gets.
//
// The rule of the house: codes are always made from the value rounded to the storage format (BF16). A fused
// producer, a separate cast pass, a recomputation and the gathering of BF16 weights therefore give the same
// bits.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "base/platform.h"

namespace octet {

enum class Format : uint8_t { FP32, BF16, E4M3, E5M2, FP16 };  // FP16: of moments only

constexpr bool is_float8(Format f) { return f == Format::E4M3 || f == Format::E5M2; }

enum class Scaling : uint8_t {
  Current,  // scale from the amax of this very tensor
  Delayed,  // scale from the amaxes of earlier steps (numerics/scaling.h)
  // One a row of every GEMM operand, from that row of this very tensor. Rows lie along the dimension that the
  // GEMM does not sum over, so the two copies of a tensor have scales of their own, each undone exactly.
  // Power of two, amax taken as at least 1e-12.  [torchao float8, "rowwise"]
  Rowwise,
  // Blocks of this very tensor, along the dimension that the GEMM sums over: 1 x 128 values of input and
  // grad, measured in each copy for itself, 128 x 128 of the weight, whose two copies have the same scales.
  // Amax taken as at least 1e-12.  [DeepSeek-V3, 2412.19437, 3.3.2; numerics/block_scales.h]
  Blockwise,
  // Never changes: what makes the standard deviation one that the model has at the start.
  // [mu-nit Scaling, 2502.05967; docs/numerics.md, "Static scales"]
  Static,
  // From earlier steps, as Delayed, but from how many values saturated and became zero instead of the largest
  // (AdaptiveScaling).
  Quantile,
  Following,
};
// One scale for the whole tensor, kept in its site.
OCTET_HD constexpr bool is_one_scale(Scaling s) { return s != Scaling::Rowwise && s != Scaling::Blockwise; }
// That scale is there before the cast, but for a site's first step.
OCTET_HD constexpr bool is_known_before(Scaling s) { return is_one_scale(s) && s != Scaling::Current; }
// It follows what casts count.
OCTET_HD constexpr bool is_counted(Scaling s) { return s == Scaling::Quantile || s == Scaling::Following; }
// It is refreshed once a step.
OCTET_HD constexpr bool follows_steps(Scaling s) { return s == Scaling::Delayed || is_counted(s); }
enum class ScaleRule : uint8_t { PowerOfTwo, Exact };
enum class Rounding : uint8_t { Nearest, Stochastic };

// The rule for one role of a linear layer.
struct Cast {
  Format format = Format::BF16;
  Scaling scaling = Scaling::Current;
  ScaleRule rule = ScaleRule::PowerOfTwo;
  Rounding rounding = Rounding::Nearest;
  bool operator==(const Cast&) const = default;
};

// Whether one of a layer's three GEMMs runs in FP8 when its operands' roles are FP8, or in storage precision
// whatever they are (wgrad: SwitchBack, 2304.13013; torchao's rowwise_with_gw_hp).
enum class GemmFormat : uint8_t { ByRoles, Storage };
struct GemmFormats {
  GemmFormat fprop = GemmFormat::ByRoles, dgrad = GemmFormat::ByRoles, wgrad = GemmFormat::ByRoles;
  bool operator==(const GemmFormats&) const = default;
};

// ExMy: what BF16 operands are reduced to before they are multiplied, without any scale; the products and
// everything around them stay what they are. E8M7 is BF16 itself: nothing is reduced.
// [numerics/small_float.h; Lee et al. 2405.18710]
enum class SmallRounding : uint8_t { Truncate, Nearest };
enum class Underflow : uint8_t { Flush, Clamp };  // below the smallest normal number: to zero, or up to it
struct SmallFloat {
  uint8_t exponent_bits = 8, mantissa_bits = 7;
  SmallRounding rounding = SmallRounding::Truncate;
  Underflow underflow = Underflow::Flush;
  auto operator<=>(const SmallFloat&) const = default;

  constexpr bool reduces() const { return exponent_bits < 8 || mantissa_bits < 7; }
};

enum class AmaxAlgorithm : uint8_t { Max, MostRecent };

// Delayed scaling: one refresh a step, from the last `window` steps. [Fishman et al. 2409.12517, released
// code]
struct DelayedScaling {
  int window = 16;  // steps remembered
  AmaxAlgorithm algorithm = AmaxAlgorithm::Max;
  int margin = 0;  // binades left free above the amax
  bool operator==(const DelayedScaling&) const = default;
};

// Scales that follow the share of values that saturated or became zero in a step, one refresh a step.
// [numerics/adaptive_scaling.h; docs/numerics.md, "Scales that follow the distribution"]
struct AdaptiveScaling {
  double above = 1e-4;  // Quantile: the share of |x| that lies above what the scale maps to the largest code
  double saturated = 1e-4;  // Following: the scale is halved when a larger share saturates
  double flushed = 0.01;    // Following: doubled when a larger share of the values becomes zero
  bool operator==(const AdaptiveScaling&) const = default;
};

// How the input of the down projection h = SwiGLU(gate, up) is scaled (docs/numerics.md, "Smooth-SwiGLU").
enum class SmoothSwiGLU : uint8_t {
  None,     // one scale for the tensor (the negative control)
  Token,    // one per token; the weight gradient's dY takes it up (Fishman's released code, scale from the
            // product)
  Channel,  // one per channel, folded into the down projection's columns (Fishman Eq. 3)
  Dual,     // one per token for fprop's copy, one per channel for wgrad's: each exactly undone by its GEMM
  BF16,     // the down projection runs in BF16 (Fishman's diagnostic)
};

// Where FP8 products may leave partial sums in the tensor cores' own precision, which on Ada and Hopper is
// about 14 bits, instead of adding runs of them in FP32 (docs/numerics.md, "Accumulation in FP8 products").
struct FastAccumulation {
  bool fprop = true, dgrad = false, wgrad = false;
  bool operator==(const FastAccumulation&) const = default;
};

struct Moments {
  Format first = Format::E4M3;
  Format second = Format::E5M2;
  int block = 128;  // elements per exact scale; 0 = one scale a tensor
  // FP8 moments: a block's values are raised to a power that spreads them over the format's range before they
  // are rounded (COAT 2410.19313, dynamic range expansion).
  bool range_expansion = false;
  bool operator==(const Moments&) const = default;
};

// How the optimizer stores the masters of matrices and embeddings (numerics/masters.h).
enum class MasterFormat : uint8_t {
  FP32,
  BF16Remainder,   // BF16 and 16 bits more, together the FP32
  BF16Kahan,       // BF16 and a compensation in BF16
  BF16Stochastic,  // BF16, rounded stochastically
  BF16Nearest,     // BF16, rounded to nearest: the control, which loses small updates
  FP16Scaled,      // FP16 with power-of-two scales
};

// The four linears of a block.
enum class BlockLinear : uint8_t { Qkv, Out, Up, Down };
inline constexpr int block_linears = 4;

// How one linear layer runs. A format that is not FP8 means storage precision.
struct LinearFormats {
  Cast input, weight, grad;
  GemmFormats gemms;
  SmallFloat simulate;
  SmoothSwiGLU smooth = SmoothSwiGLU::None;  // how the input is scaled; of the down projection only
  FastAccumulation fast_accumulation;        // of the GEMMs that run in FP8
  double smooth_quant = 0;                   // alpha of SmoothQuant; 0: off (docs/numerics.md, "SmoothQuant")
  bool operator==(const LinearFormats&) const = default;

  // A GEMM runs in FP8 when both its operands' roles are FP8 and nothing keeps it in storage precision.
  bool fprop_float8() const { return runs(gemms.fprop, input, weight); }
  bool dgrad_float8() const { return runs(gemms.dgrad, grad, weight); }
  bool wgrad_float8() const { return runs(gemms.wgrad, grad, input); }
  bool float8() const { return fprop_float8() || dgrad_float8() || wgrad_float8(); }
  // Every product reads the weight as codes of one scale, made of the master alone: ranks may gather these.
  bool gathers_codes() const {
    return fprop_float8() && dgrad_float8() && is_one_scale(weight.scaling) &&
           smooth != SmoothSwiGLU::Channel && smooth_quant == 0;
  }

 private:
  static bool runs(GemmFormat gemm, const Cast& a, const Cast& b) {
    return gemm == GemmFormat::ByRoles && is_float8(a.format) && is_float8(b.format);
  }
};

// Blocks by number, counted from the first or from the last one.
struct BlockRange {
  enum class From : uint8_t { First, Last } from = From::First;
  int begin = 0, end = 0;  // [begin, end) of the blocks in that order
  bool operator==(const BlockRange&) const = default;

  bool contains(int block, int layers) const {
    const int place = from == From::First ? block : layers - 1 - block;
    return begin <= place && place < end;
  }
};
// Linears that run otherwise than the recipe's other ones.
struct Override {
  BlockRange blocks;
  bool linears[block_linears] = {true, true, true, true};  // by BlockLinear
  LinearFormats formats;
  bool operator==(const Override&) const = default;
};

enum class HeadFormat : uint8_t { Storage, FP8 };

// The two products of the attention core and their four gradients. FP8: Q, K, V, P and O in E4M3, their
// gradients in E5M2; softmax in FP32; scaling and rule of what is cast before the core are input's and grad's
// (docs/numerics.md, "FP8 attention").  [Hernandez-Cano et al. 2505.20524, FP8DPA]
enum class AttentionFormat : uint8_t { Storage, FP8 };

// What non-linear operations read in backward: as forward computed it, or as E4M3 codes in groups of 16,
// which backward decodes (numerics/group_codes.h; COAT 2410.19313, mixed granularity).
enum class SavedActivations : uint8_t { Storage, FP8 };

struct Recipe {
  std::string name = "bf16";
  Format storage = Format::BF16;  // activations between operations: FP32 or BF16
  Cast input, weight, grad;       // the three roles of every block linear
  GemmFormats gemms;
  SmallFloat simulate;
  DelayedScaling delayed;
  AdaptiveScaling adaptive;
  double smooth_quant = 0;  // of every block linear: s = amax(X_j)^alpha / amax(W_j)^(1-alpha), X/s and W*s
  SmoothSwiGLU smooth_swiglu = SmoothSwiGLU::None;
  FastAccumulation fast_accumulation;
  Format weight_gradient = Format::FP32;            // accumulator across micro-batches: FP32 or BF16
  int first_blocks_bf16 = 0, last_blocks_bf16 = 0;  // blocks whose linears stay in BF16
  std::vector<Override> overrides;                  // the last one that names a linear decides
  HeadFormat head = HeadFormat::Storage;            // FP8: by the roles above
  Moments moments;
  MasterFormat master = MasterFormat::FP32;
  AttentionFormat attention = AttentionFormat::Storage;
  SavedActivations saved_activations = SavedActivations::Storage;
  bool operator==(const Recipe&) const = default;

  bool float8() const { return is_float8(input.format) && is_float8(weight.format); }
  // Of a linear that nothing overrides.
  LinearFormats formats() const {
    return {input, weight, grad, gemms, simulate, smooth_swiglu, fast_accumulation, smooth_quant};
  }
};

// How the head runs. Neither the blocks' overrides nor a simulation are its own.
inline LinearFormats head_formats(const Recipe& recipe) {
  if (recipe.head == HeadFormat::Storage) return {};
  LinearFormats formats = recipe.formats();
  formats.simulate = {};
  formats.smooth = SmoothSwiGLU::None;
  formats.smooth_quant = 0;
  return formats;
}

// How a linear of a block runs.
inline LinearFormats formats_of(const Recipe& recipe, int layers, int block, BlockLinear which) {
  LinearFormats formats = recipe.formats();
  if (block < recipe.first_blocks_bf16 || block >= layers - recipe.last_blocks_bf16) formats = {};
  for (const Override& other : recipe.overrides)
    if (other.linears[static_cast<int>(which)] && other.blocks.contains(block, layers))
      formats = other.formats;
  if (which != BlockLinear::Down) formats.smooth = SmoothSwiGLU::None;
  if (formats.smooth == SmoothSwiGLU::BF16) formats = {};
  // A scale a row of each operand is what `dual` is.
  if (which == BlockLinear::Down && formats.input.scaling == Scaling::Rowwise)
    formats.smooth = SmoothSwiGLU::Dual;
  if (!formats.fprop_float8() && !formats.wgrad_float8()) formats.smooth = SmoothSwiGLU::None;
  // Where tokens or channels have scales of their own there is none to follow what is counted.
  if (formats.smooth != SmoothSwiGLU::None && is_counted(formats.input.scaling))
    formats.input.scaling = Scaling::Current;
  return formats;
}

// Whether the attention core of a block runs in FP8: where the linears around it do.
inline bool attention_in_float8(const Recipe& recipe, int layers, int block) {
  return recipe.attention == AttentionFormat::FP8 && block >= recipe.first_blocks_bf16 &&
         block < layers - recipe.last_blocks_bf16;
}

// Named recipes: numerics/recipes.h.

}  // namespace octet
