#include "training/precision_proof.h"

#include <fmt/format.h>

#include <algorithm>
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
    if (key.gemm_class == GemmClass::Muon) continue;
    all += static_cast<double>(count.flops);
    if (ran_in_fp8(key)) fp8 += static_cast<double>(count.flops);
  }
  return all > 0 ? fp8 / all : 0;
}

Json gemm_table(const MatmulCounts& counts) {
  Json table = Json::array();
  for (const auto& [key, count] : counts)
    table.push_back({{"class", name_of(key.gemm_class)},
                     {"a", operand_name(key, key.a)},
                     {"b", operand_name(key, key.b)},
                     {"out", name_of(key.out)},
                     {"implementation", count.implementation},
                     {"calls", count.calls},
                     {"flops", count.flops}});
  return table;
}

std::string format_gemm_table(const MatmulCounts& counts) {
  double all = 0;
  for (const auto& [key, count] : counts) all += static_cast<double>(count.flops);
  size_t wide = 8;
  for (const auto& [key, count] : counts)
    wide = std::max({wide, operand_name(key, key.a).size(), operand_name(key, key.b).size()});
  std::string text = fmt::format("{:<12} {:<{}} {:<{}} {:<6} {:<24} {:>7} {:>10} {:>7}", "GEMM", "a", wide,
                                 "b", wide, "out", "implementation", "calls", "FLOPs", "share");
  for (const auto& [key, count] : counts)
    text += fmt::format("\n{:<12} {:<{}} {:<{}} {:<6} {:<24} {:>7} {:>10} {:>6.1f}%", name_of(key.gemm_class),
                        operand_name(key, key.a), wide, operand_name(key, key.b), wide, name_of(key.out),
                        count.implementation, count.calls, human_count(static_cast<double>(count.flops)),
                        all > 0 ? 100 * static_cast<double>(count.flops) / all : 0);
  return text;
}

namespace {

bool runs_in_fp8(const LinearFormats& formats, GemmClass gemm_class) {
  switch (gemm_class) {
    case GemmClass::Fprop:
    case GemmClass::HeadFprop:
      return formats.fprop_float8();
    case GemmClass::Dgrad:
    case GemmClass::HeadDgrad:
      return formats.dgrad_float8();
    case GemmClass::Wgrad:
    case GemmClass::HeadWgrad:
      return formats.wgrad_float8();
    default:
      return false;
  }
}

bool in_block_linear(GemmClass c) {
  return c == GemmClass::Fprop || c == GemmClass::Dgrad || c == GemmClass::Wgrad;
}
bool of_head(GemmClass c) {
  return c == GemmClass::HeadFprop || c == GemmClass::HeadDgrad || c == GemmClass::HeadWgrad;
}

// Of the FLOPs of the blocks' linears, those of linears for which `has` holds.
template <class Has>
double block_share(const TransformerSpec& spec, const Recipe& recipe, Has has) {
  const int layers = static_cast<int>(spec.layers);
  int64_t with = 0, all = 0;
  for (int block = 0; block < layers; ++block)
    for (int i = 0; i < block_linears; ++i) {
      const auto which = static_cast<BlockLinear>(i);
      all += spec.linear_elements(which);
      if (has(formats_of(recipe, layers, block, which))) with += spec.linear_elements(which);
    }
  return static_cast<double>(with) / static_cast<double>(all);
}

struct Promise {
  const char* what;
  double share;
};
// Both sides are ratios of integers below 2^53; 1e-9 is far above their rounding and far below one GEMM.
// Recomputed blocks repeat some fprop GEMMs, which moves the share of a mixed class, never of a pure one.
template <class Counts>
void require_share(const MatmulCounts& counts, GemmClass gemm_class, const Recipe& recipe,
                   const Promise& promise, Counts counted) {
  double kept = 0, all = 0;
  for (const auto& [key, count] : counts) {
    if (key.gemm_class != gemm_class) continue;
    all += static_cast<double>(count.flops);
    if (counted(key)) kept += static_cast<double>(count.flops);
  }
  const double ran = all > 0 ? kept / all : 0;
  const bool pure = promise.share == 0 || promise.share == 1;
  if (pure ? std::abs(ran - promise.share) > 1e-9 : ran <= 0 || ran >= 1)
    throw Error(ExitCode::Internal,
                fmt::format("recipe '{}' promises {:.2f}% of {} FLOPs {}, {} counted {:.2f}%", recipe.name,
                            100 * promise.share, name_of(gemm_class), promise.what,
                            gemm_class == GemmClass::Attention ? "the device" : "matmul", 100 * ran),
                "this is a bug: please report it with the configuration");
}

}  // namespace

double promised_fp8_share(const TransformerSpec& spec, const Recipe& recipe, GemmClass gemm_class) {
  if (gemm_class == GemmClass::Attention) {
    int blocks = 0;
    const int layers = static_cast<int>(spec.layers);
    for (int i = 0; i < layers; ++i) blocks += attention_in_float8(recipe, layers, i) ? 1 : 0;
    return static_cast<double>(blocks) / layers;
  }
  if (of_head(gemm_class)) return runs_in_fp8(head_formats(recipe), gemm_class) ? 1 : 0;
  return block_share(spec, recipe,
                     [&](const LinearFormats& formats) { return runs_in_fp8(formats, gemm_class); });
}

void require_promised_precision(const MatmulCounts& counts, const TransformerSpec& spec,
                                const Recipe& recipe) {
  const double simulated =
      block_share(spec, recipe, [](const LinearFormats& formats) { return formats.simulate.reduces(); });
  for (const GemmClass c : {GemmClass::Fprop, GemmClass::Dgrad, GemmClass::Wgrad, GemmClass::HeadFprop,
                            GemmClass::HeadDgrad, GemmClass::HeadWgrad, GemmClass::Attention}) {
    require_share(counts, c, recipe, {"in FP8", promised_fp8_share(spec, recipe, c)}, ran_in_fp8);
    require_share(counts, c, recipe, {"on reduced operands", in_block_linear(c) ? simulated : 0},
                  [](const MatmulKey& key) { return key.simulate.reduces(); });
  }
}

}  // namespace octet
