#include "training/precision_proof.h"

#include <fmt/format.h>

#include <cmath>

#include "base/error.h"
#include "base/text.h"

namespace octet {
namespace {
bool is_codes(DType t) { return t == DType::E4M3 || t == DType::E5M2; }
bool ran_in_fp8(const MatmulKey& key) { return is_codes(key.a) && is_codes(key.b); }
}  // namespace

double fp8_flop_share(const MatmulCounts& counts) {
  double fp8 = 0, all = 0;
  for (const auto& [key, count] : counts) {
    all += static_cast<double>(count.flops);
    if (ran_in_fp8(key)) fp8 += static_cast<double>(count.flops);
  }
  return all > 0 ? fp8 / all : 0;
}

Json gemm_table(const MatmulCounts& counts) {
  Json table = Json::array();
  for (const auto& [key, count] : counts)
    table.push_back({{"class", name_of(key.gemm_class)},
                     {"a", name_of(key.a)},
                     {"b", name_of(key.b)},
                     {"out", name_of(key.out)},
                     {"implementation", count.implementation},
                     {"calls", count.calls},
                     {"flops", count.flops}});
  return table;
}

std::string format_gemm_table(const MatmulCounts& counts) {
  double all = 0;
  for (const auto& [key, count] : counts) all += static_cast<double>(count.flops);
  std::string text = fmt::format("{:<12} {:<8} {:<8} {:<6} {:<24} {:>7} {:>10} {:>7}", "GEMM", "a", "b",
                                 "out", "implementation", "calls", "FLOPs", "share");
  for (const auto& [key, count] : counts)
    text += fmt::format("\n{:<12} {:<8} {:<8} {:<6} {:<24} {:>7} {:>10} {:>6.1f}%", name_of(key.gemm_class),
                        name_of(key.a), name_of(key.b), name_of(key.out), count.implementation, count.calls,
                        human_count(static_cast<double>(count.flops)),
                        all > 0 ? 100 * static_cast<double>(count.flops) / all : 0);
  return text;
}

double promised_fp8_share(const TransformerSpec& spec, const Recipe& recipe, GemmClass gemm_class) {
  if (gemm_class == GemmClass::Attention) {
    int blocks = 0;
    const int layers = static_cast<int>(spec.layers);
    for (int i = 0; i < layers; ++i) blocks += attention_in_float8(recipe, layers, i) ? 1 : 0;
    return static_cast<double>(blocks) / layers;
  }
  const bool input = is_float8(recipe.input.format), weight = is_float8(recipe.weight.format),
             grad = is_float8(recipe.grad.format);
  bool fp8 = false;
  if (gemm_class == GemmClass::Fprop) fp8 = input && weight;
  if (gemm_class == GemmClass::Dgrad) fp8 = grad && weight;
  if (gemm_class == GemmClass::Wgrad) fp8 = grad && input;
  if (!fp8) return 0;
  const double bf16_blocks =
      std::min<double>(static_cast<double>(spec.layers), recipe.first_blocks_bf16 + recipe.last_blocks_bf16);
  const double width = static_cast<double>(spec.width), ffn = static_cast<double>(spec.ffn_width);
  const double down = ffn * width;
  const double all = width * static_cast<double>(spec.qkv_width()) +
                     static_cast<double>(spec.attention_width()) * width + 2 * ffn * width + down;
  const double of_block = recipe.smooth_swiglu == SmoothSwiGLU::BF16 ? (all - down) / all : 1;
  return of_block * (static_cast<double>(spec.layers) - bf16_blocks) / static_cast<double>(spec.layers);
}

void require_promised_precision(const MatmulCounts& counts, const TransformerSpec& spec,
                                const Recipe& recipe) {
  for (const GemmClass c : {GemmClass::Fprop, GemmClass::Dgrad, GemmClass::Wgrad, GemmClass::Attention}) {
    const double promised = promised_fp8_share(spec, recipe, c);
    double fp8 = 0, all = 0;
    for (const auto& [key, count] : counts) {
      if (key.gemm_class != c) continue;
      all += static_cast<double>(count.flops);
      if (ran_in_fp8(key)) fp8 += static_cast<double>(count.flops);
    }
    const double ran = all > 0 ? fp8 / all : 0;
    // Both sides are ratios of integers below 2^53; 1e-9 is far above their rounding and far below one GEMM.
    // Recomputed blocks repeat some fprop GEMMs, which moves the share of a mixed class, never of a pure one.
    const bool pure = promised == 0 || promised == 1;
    if (pure ? std::abs(ran - promised) > 1e-9 : ran <= 0 || ran >= 1)
      throw Error(ExitCode::Internal,
                  fmt::format("recipe '{}' promises {:.2f}% of {} FLOPs in FP8, {} counted {:.2f}%",
                              recipe.name, 100 * promised, name_of(c),
                              c == GemmClass::Attention ? "the device" : "matmul", 100 * ran),
                  "this is a bug: please report it with the configuration");
  }
}

}  // namespace octet
