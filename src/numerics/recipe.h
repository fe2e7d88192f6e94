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

namespace octet {

enum class Format : uint8_t { FP32, BF16, E4M3, E5M2 };

constexpr bool is_float8(Format f) { return f == Format::E4M3 || f == Format::E5M2; }

enum class Scaling : uint8_t {
  Current,  // scale from the amax of this very tensor
  Delayed,  // scale from the amaxes of earlier steps (numerics/scaling.h)
};
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

enum class AmaxAlgorithm : uint8_t { Max, MostRecent };

// Delayed scaling: one refresh a step, from the last `window` steps. [Fishman et al. 2409.12517, released
// code]
struct DelayedScaling {
  int window = 16;  // steps remembered
  AmaxAlgorithm algorithm = AmaxAlgorithm::Max;
  int margin = 0;  // binades left free above the amax
  bool operator==(const DelayedScaling&) const = default;
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
  bool operator==(const Moments&) const = default;
};

// The two products of the attention core and their four gradients. FP8: Q, K, V, P and O in E4M3, their
// gradients in E5M2; softmax in FP32; scaling and rule of what is cast before the core are input's and grad's
// (docs/numerics.md, "FP8 attention").  [Hernandez-Cano et al. 2505.20524, FP8DPA]
enum class AttentionFormat : uint8_t { Storage, FP8 };

struct Recipe {
  std::string name = "bf16";
  Format storage = Format::BF16;  // activations between operations: FP32 or BF16
  Cast input, weight, grad;       // the three roles of every block linear
  DelayedScaling delayed;
  SmoothSwiGLU smooth_swiglu = SmoothSwiGLU::None;
  FastAccumulation fast_accumulation;
  Format weight_gradient = Format::FP32;            // accumulator across micro-batches: FP32 or BF16
  int first_blocks_bf16 = 0, last_blocks_bf16 = 0;  // blocks whose linears stay in BF16
  Moments moments;
  AttentionFormat attention = AttentionFormat::Storage;
  bool operator==(const Recipe&) const = default;

  bool float8() const { return is_float8(input.format) && is_float8(weight.format); }
};

// Whether the attention core of a block runs in FP8: where the linears around it do.
inline bool attention_in_float8(const Recipe& recipe, int layers, int block) {
  return recipe.attention == AttentionFormat::FP8 && block >= recipe.first_blocks_bf16 &&
         block < layers - recipe.last_blocks_bf16;
}

// Named recipes: numerics/recipes.h.

}  // namespace octet
