#include "device/nvidia/recipe_on_gpu.h"

#include <fmt/format.h>

#include "base/error.h"
#include "device/nvidia/attention_key.h"
#include "device/nvidia/library_scratch.h"

namespace octet {

namespace {

// The smallest product there is of a recipe's operands, with outer scales where they are codes.
Matmul product_of(const Recipe& recipe) {
  Matmul m;
  m.a.values = {nullptr, dtype_of(recipe.input.format), {16, 16}};
  m.b.values = {nullptr, dtype_of(recipe.weight.format), {16, 16}};
  m.out = {nullptr, dtype_of(recipe.storage), {16, 16}};
  if (recipe.float8()) m.b.granularity = ScaleGranularity::Outer;
  if (recipe.float8() && recipe.weight.scaling == Scaling::Blockwise) {
    m.a.granularity = ScaleGranularity::Vectors;
    m.b.granularity = ScaleGranularity::Squares;
  }
  return m;
}

AttentionKey backward(int64_t head_width, bool deterministic, bool float8 = false) {
  AttentionKey key;
  key.batch = key.heads = key.kv_heads = 1;
  key.context = 64;
  key.head_width = head_width;
  key.backward = true;
  key.deterministic = deterministic;
  key.float8 = float8;
  return key;
}

bool has_backward(int64_t head_width, int capability) {
  try {
    attention_scratch_estimate(backward(head_width, false), capability);
    return true;
  } catch (const Error&) {
    return false;
  }
}

}  // namespace

RecipeOnGpu recipe_on_gpu(const Recipe& recipe, const GemmCapabilities& gpu) {
  RecipeOnGpu found;
  const int c = gpu.capability;
  const std::string has = fmt::format("this GPU has compute capability {}.{}", c / 10, c % 10);
  if (c < 80) {
    found.obstacle = fmt::format("{}, at least 8.0 (Ampere) is needed", has);
    return found;
  }
  OuterScales outer = OuterScales::None;
  try {
    AttentionForward attention{};
    attention.qkv = {nullptr, dtype_of(recipe.storage), {64, 3 * 64}};
    attention.context = 64;
    attention.heads = attention.kv_heads = 1;
    attention.head_width = 64;
    attention_key(attention);
    outer = route(product_of(recipe), gpu).outer;
  } catch (const Error& error) {
    found.obstacle = error.what();
    return found;
  }
  const std::string no_float8_attention = float8_attention_obstacle(backward(128, false, true), c);
  if (recipe.attention == AttentionFormat::FP8 && !no_float8_attention.empty()) {
    found.obstacle = no_float8_attention + ": precision.attention must be storage";
    return found;
  }
  int64_t widest = 64;
  for (int64_t width = widest; width <= 256; width += 8)
    if (has_backward(width, c)) widest = width;
  found.notes.push_back(fmt::format("attention's heads are 64 to {} wide", widest));
  const bool keeps_scores = attention_scratch_estimate(backward(64, true), c).score_matrix > 0;
  found.notes.push_back(
      keeps_scores ? "run.deterministic: attention's backward pass keeps 2 x batch x heads x context^2 bytes"
                   : "run.deterministic: attention's backward pass keeps no scores");
  if (!recipe.float8()) return found;
  const auto rowwise = [](const Cast& cast) { return cast.scaling == Scaling::Rowwise; };
  const bool by_row = rowwise(recipe.input) || rowwise(recipe.weight) || rowwise(recipe.grad);
  const char* scales = by_row                    ? "scales of rows"
                       : recipe.smooth_quant > 0 ? "SmoothQuant's scales"
                                                 : "Smooth-SwiGLU's scales";
  found.notes.push_back(recipe.weight.scaling == Scaling::Blockwise
                            ? "scales of blocks of 128 values ride in cuBLASLt's products"
                        : outer == OuterScales::Library
                            ? fmt::format("{} ride in cuBLASLt's products", scales)
                            : fmt::format("{} are applied by a kernel after the product", scales));
  found.notes.push_back(!no_float8_attention.empty()
                            ? "precision.attention fp8 is refused: cuDNN has none here"
                        : float8_attention_obstacle(backward(64, false, true), c).empty()
                            ? "precision.attention fp8: heads 64 to 128 wide"
                            : "precision.attention fp8: heads 128 wide only");
  if (recipe.weight.scaling == Scaling::Blockwise) return found;  // it has no fast accumulation
  found.notes.push_back(c == 89 || c == 90 ? "precision.fast_accumulation has an effect"
                                           : "precision.fast_accumulation has no effect");
  return found;
}

}  // namespace octet
