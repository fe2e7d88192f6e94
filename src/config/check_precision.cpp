#include "config/check_precision.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

#include "base/text.h"
#include "numerics/small_float.h"

namespace octet {
namespace {

using Problems = std::vector<RuleProblem>;

// One linear layer's formats, and where in the file they stand: the section or one of its overrides.
struct Formats {
  const LinearFormats& formats;
  Format storage;
  std::string at;  // "/precision", "/precision/overrides/2"

  struct Role {
    const char* name;
    const Cast* cast;
  };
  std::vector<Role> roles() const {
    return {{"input", &formats.input}, {"weight", &formats.weight}, {"grad", &formats.grad}};
  }
  // Of the roles in FP8.
  bool any(Scaling scaling) const {
    const std::vector<Role> all = roles();
    return std::any_of(all.begin(), all.end(), [&](const Role& role) {
      return is_float8(role.cast->format) && role.cast->scaling == scaling;
    });
  }
  RuleProblem problem(const std::string& key, const std::string& message) const {
    return {at + key, {"/precision"}, message};
  }
  RuleProblem format_problem(const char* role, const std::string& message) const {
    return problem(fmt::format("/{}/format", role), message);
  }
};

void check_roles(const Formats& f, Problems& out) {
  for (const auto& [role, cast] : f.roles()) {
    if (cast->format == Format::FP32 && f.storage != Format::FP32)
      out.push_back(f.format_problem(role,
                                     "found \"fp32\" with /precision/storage \"bf16\"; an fp32 operand needs "
                                     "fp32 storage (recipe \"fp32\")"));
    if (cast->format == Format::BF16 && f.storage == Format::FP32)
      out.push_back(
          f.format_problem(role,
                           "found \"bf16\" with /precision/storage \"fp32\"; an operand that is not "
                           "FP8 has the format of the storage"));
    if (!is_float8(cast->format)) continue;
    if (cast->rounding == Rounding::Stochastic && cast != &f.formats.grad)
      out.push_back(f.problem(fmt::format("/{}/rounding", role),
                              "found \"stochastic\"; only grad may be rounded stochastically"));
    if (cast->scaling == Scaling::Rowwise && cast->rule == ScaleRule::Exact)
      out.push_back(f.problem(fmt::format("/{}/rule", role),
                              "found \"exact\" with scaling \"rowwise\"; scales of rows are powers of two"));
  }
}

void check_pairs(const Formats& f, Problems& out) {
  const Cast &input = f.formats.input, &weight = f.formats.weight, &grad = f.formats.grad;
  const bool float8 = is_float8(input.format) && is_float8(weight.format);
  if (is_float8(input.format) != is_float8(weight.format)) {
    out.push_back(f.format_problem(
        is_float8(input.format) ? "weight" : "input",
        "one of input and weight is FP8 and the other is not; their product needs both or neither"));
  } else if (is_float8(grad.format) && !float8) {
    out.push_back(f.format_problem(
        "grad", "grad is FP8 while input and weight are not; every product needs both operands in FP8"));
  }
  // FP8 GEMMs multiply E4M3 by E4M3 or by E5M2, never E5M2 by E5M2.
  const auto both_e5m2 = [](const Cast& a, const Cast& b) {
    return a.format == Format::E5M2 && b.format == Format::E5M2;
  };
  if (both_e5m2(input, weight) || both_e5m2(grad, weight) || both_e5m2(grad, input)) {
    const char* role = both_e5m2(input, weight) || both_e5m2(grad, weight) ? "weight" : "input";
    out.push_back(f.format_problem(
        role, "found \"e5m2\" for two operands that are multiplied; a GEMM takes at most one E5M2 operand"));
  }
}

void check_smooth(const Formats& f, Problems& out) {
  const SmoothSwiGLU mode = f.formats.smooth;
  if (mode != SmoothSwiGLU::Token && mode != SmoothSwiGLU::Channel) return;
  if (f.any(Scaling::Rowwise))
    out.push_back(
        f.problem("/smooth_swiglu",
                  fmt::format("found \"{}\" with scaling \"rowwise\", which gives the down projection's "
                              "input a scale a token and a channel itself; allowed: none, dual, bf16",
                              mode == SmoothSwiGLU::Token ? "token" : "channel")));
}

// SmoothQuant's scales are of columns and powers of two, made from the tensor at hand; W takes them up, and
// is cast for itself then.
void check_smooth_quant(const Formats& f, Problems& out) {
  const LinearFormats& l = f.formats;
  if (l.smooth_quant == 0 || !l.float8()) return;
  const auto require = [&](bool holds, const char* key, const char* why) {
    if (!holds) out.push_back(f.problem(key, why));
  };
  require(l.fprop_float8(), "/smooth_quant",
          "smooths the operands of fprop, and gemms/fprop is \"storage\"; allowed: \"by_roles\", or "
          "smooth_quant 0");
  require(l.smooth == SmoothSwiGLU::None, "/smooth_swiglu",
          "is not \"none\" with smooth_quant, which scales the down projection's input as every other "
          "linear's; allowed: none");
  require(
      l.input.scaling == Scaling::Current, "/input/scaling",
      "is not \"current\" with smooth_quant, whose scales come from the tensor at hand; allowed: current");
  require(l.input.rule == ScaleRule::PowerOfTwo, "/input/rule",
          "found \"exact\" with smooth_quant, whose scales are powers of two; allowed: power_of_two");
  require(l.weight.scaling == Scaling::Current || l.weight.scaling == Scaling::Delayed, "/weight/scaling",
          "with smooth_quant the weight is cast once more, with its columns' scales; allowed: current, "
          "delayed");
  require(!is_float8(l.grad.format) || is_one_scale(l.grad.scaling), "/grad/scaling",
          "with smooth_quant grad has one scale a tensor; allowed: any but rowwise and blockwise");
}

// Scales of blocks are a product's matter: both operands have them, and they are applied where partial sums
// of 128 products are added up in FP32.
void check_blockwise(const Formats& f, Problems& out) {
  if (!f.any(Scaling::Blockwise)) return;
  for (const auto& [role, cast] : f.roles())
    if (is_float8(cast->format) && cast->scaling != Scaling::Blockwise)
      out.push_back(
          f.problem(fmt::format("/{}/scaling", role),
                    "is not \"blockwise\" and that of another role is; both operands of a product "
                    "have scales of blocks or neither: set /precision/scaling to \"blockwise\" or to "
                    "another for all"));
  if (f.formats.smooth != SmoothSwiGLU::None)
    out.push_back(f.problem("/smooth_swiglu",
                            "is not \"none\" with scaling \"blockwise\", which gives the down projection's "
                            "input scales of blocks; allowed: none"));
  const FastAccumulation& fast = f.formats.fast_accumulation;
  const std::pair<const char*, bool> gemms[] = {{"fprop", fast.fprop && f.formats.fprop_float8()},
                                                {"dgrad", fast.dgrad && f.formats.dgrad_float8()},
                                                {"wgrad", fast.wgrad && f.formats.wgrad_float8()}};
  for (const auto& [gemm, on] : gemms)
    if (on)
      out.push_back(
          f.problem(fmt::format("/fast_accumulation/{}", gemm),
                    "found true with scaling \"blockwise\", which adds up in FP32 every 128 products; "
                    "allowed: false"));
}

// A static scale is derived from what values the model starts with.
void check_static(const RunConfig& c, const Formats& f, Problems& out) {
  if (!f.any(Scaling::Static)) return;
  const std::vector<std::string> involved = {"/precision", "/model/parametrization", "/model/preset"};
  for (const auto& [role, cast] : f.roles())
    if (cast->scaling == Scaling::Static && is_float8(cast->format) &&
        c.model.parametrization != Parametrization::Unit)
      out.push_back({fmt::format("{}/{}/scaling", f.at, role), involved,
                     "\"static\" with /model/parametrization \"standard\", whose numbers have no known size; "
                     "allowed: with \"unit\" (the model preset \"munit\")"});
  if (c.model.parametrization == Parametrization::Unit && !c.model.pre_norm &&
      c.model.residual != Residual::Weighted)
    out.push_back(
        {"/model/residual", involved,
         "found \"sum\" beside scaling \"static\": linears read the stream itself, which then grows "
         "with depth; allowed: \"weighted\", or /model/pre_norm true"});
  if (c.precision.attention == AttentionFormat::FP8)
    out.push_back({"/precision/attention", involved,
                   "found \"fp8\" beside scaling \"static\": what is inside attention has no static scale; "
                   "allowed: \"storage\""});
  if (c.precision.head == HeadFormat::FP8)
    out.push_back({"/precision/head", involved,
                   "found \"fp8\" beside scaling \"static\", which is that of blocks; allowed: \"storage\""});
  if (f.formats.smooth != SmoothSwiGLU::None && f.formats.smooth != SmoothSwiGLU::BF16)
    out.push_back({f.at + "/smooth_swiglu", involved,
                   "measures scales, and scaling \"static\" is there not to; allowed: none, bf16"});
}

// Scales that follow what casts count.
void check_adaptive(const RunConfig& c, const Formats& f, Problems& out) {
  if (c.fallback.saturated > 0 && f.any(Scaling::Quantile) &&
      c.fallback.saturated <= 4 * c.precision.adaptive.above)
    out.push_back(
        {"/precision/fallback/saturated",
         {"/precision"},
         fmt::format("found {:g} with scaling \"quantile\", which saturates {:g} on purpose, in "
                     "some steps more; allowed: above {:g} (4 x /precision/adaptive/above)",
                     c.fallback.saturated, c.precision.adaptive.above, 4 * c.precision.adaptive.above)});
}

void check_simulation(const Formats& f, Problems& out) {
  if (!f.formats.simulate.reduces()) return;
  const std::string format = name_of(f.formats.simulate);
  if (f.storage == Format::FP32)
    out.push_back(
        f.problem("/simulate", fmt::format("found {}; it reduces BF16 operands, and "
                                           "/precision/storage is \"fp32\": use the recipe \"bf16\"",
                                           format)));
  const std::vector<Formats::Role> roles = f.roles();
  if (std::any_of(roles.begin(), roles.end(), [](const auto& role) { return is_float8(role.cast->format); }))
    out.push_back(f.problem("/simulate", fmt::format("found {} beside operands in FP8; it reduces BF16 "
                                                     "operands: use the recipe \"bf16\", or no simulation",
                                                     format)));
}

void check_overrides(const RunConfig& c, Problems& out) {
  const Recipe& r = c.precision;
  for (size_t i = 0; i < r.overrides.size(); ++i) {
    const Override& other = r.overrides[i];
    const Formats f{other.formats, r.storage, fmt::format("/precision/overrides/{}", i)};
    check_roles(f, out);
    check_pairs(f, out);
    check_smooth(f, out);
    check_smooth_quant(f, out);
    check_blockwise(f, out);
    check_static(c, f, out);
    check_simulation(f, out);
    check_adaptive(c, f, out);
    // Linears share buffers of scales, which lie differently.
    if (other.formats.float8() && r.float8() &&
        f.any(Scaling::Blockwise) != (r.weight.scaling == Scaling::Blockwise))
      out.push_back(
          f.problem("/scaling",
                    "\"blockwise\" for some FP8 linears and not for others; allowed: for all that are "
                    "FP8, or for none"));
    if (other.formats.float8() && !r.float8())
      out.push_back(
          f.problem("", fmt::format("puts linears into FP8, and the recipe around it is \"{}\"; allowed: "
                                    "FP8 for the section, and an override for what stays in BF16",
                                    escape_control(r.name))));
    const int64_t end = other.blocks.end, all = std::numeric_limits<int>::max();
    if (end != all && end > c.model.layers)
      out.push_back(
          {f.at + "/blocks",
           {"/precision", "/model/layers", "/model/preset"},
           fmt::format("reaches to block {} of {}; blocks are counted from 0", end - 1, c.model.layers)});
  }
}

bool any_block_in_float8(const RunConfig& c) {
  const int layers = static_cast<int>(c.model.layers);
  for (int block = 0; block < layers; ++block)
    for (int i = 0; i < block_linears; ++i)
      if (formats_of(c.precision, layers, block, static_cast<BlockLinear>(i)).float8()) return true;
  return false;
}

// A recipe's name says whether there are FP8 operands.
void check_name(const RunConfig& c, Problems& out) {
  const Recipe& r = c.precision;
  const bool wide = r.name == "fp32" || r.name == "bf16";
  const bool no_float8 =
      !is_float8(r.input.format) && !is_float8(r.weight.format) && !is_float8(r.grad.format);
  if (!wide && no_float8)
    out.push_back({"/precision/recipe",
                   {"/precision"},
                   fmt::format("the recipe is called \"{}\" but the fields beside it leave no FP8 "
                               "operand; call it \"bf16\"",
                               escape_control(r.name))});
  if (wide && (r.float8() || is_float8(r.grad.format)))
    out.push_back({"/precision/recipe",
                   {"/precision"},
                   fmt::format("the recipe is called \"{}\" but its operands are FP8; call it \"fp8\"",
                               escape_control(r.name))});
}

void check_blocks(const RunConfig& c, Problems& out) {
  const Recipe& r = c.precision;
  const std::vector<std::string> involved = {"/precision", "/model/layers", "/model/preset"};
  const int kept = r.first_blocks_bf16 + r.last_blocks_bf16;
  if (kept > c.model.layers) {
    out.push_back({"/precision/first_blocks_bf16",
                   {"/precision/last_blocks_bf16", "/model/layers", "/model/preset"},
                   fmt::format("first {} and last {} blocks in BF16 are more than the {} blocks there are",
                               r.first_blocks_bf16, r.last_blocks_bf16, c.model.layers)});
  } else if (r.float8() && kept == c.model.layers && r.overrides.empty()) {
    out.push_back(
        {"/precision/recipe", involved,
         fmt::format("first {} and last {} blocks in BF16 leave none of the {} in FP8; use the recipe "
                     "\"bf16\"",
                     r.first_blocks_bf16, r.last_blocks_bf16, c.model.layers)});
  } else if (r.float8() && !any_block_in_float8(c)) {
    out.push_back({"/precision/recipe", involved,
                   "gemms and overrides leave no product of any block in FP8; use the recipe \"bf16\""});
  }
}

void check_head(const RunConfig& c, Problems& out) {
  const Recipe& r = c.precision;
  if (r.head == HeadFormat::Storage) return;
  const std::vector<std::string> involved = {"/precision", "/model/vocabulary", "/model/preset",
                                             "/batch/head_chunk"};
  if (!r.float8())
    out.push_back(
        {"/precision/head", involved,
         fmt::format("found \"fp8\" in the recipe \"{}\", whose operands are not FP8; use the recipe "
                     "\"fp8\", or \"storage\"",
                     escape_control(r.name))});
  constexpr int64_t together = 16;
  if (c.model.vocabulary % together != 0)
    out.push_back(
        {"/precision/head", involved,
         fmt::format("found \"fp8\" with a vocabulary of {}, whose gradient is summed over it; allowed: "
                     "a multiple of {}: set /model/vocabulary to {} (no token has the ids above), or "
                     "\"storage\"",
                     c.model.vocabulary, together,
                     (c.model.vocabulary + together - 1) / together * together)});
  if (c.batch.head_chunk % together != 0 && c.batch.head_chunk < c.batch.micro * c.model.context)
    out.push_back({"/batch/head_chunk", involved,
                   fmt::format("found {} with /precision/head \"fp8\"; allowed: a multiple of {} tokens",
                               c.batch.head_chunk, together)});
}

void check_attention(const RunConfig& c, Problems& out) {
  if (c.precision.attention == AttentionFormat::FP8 && !c.precision.float8())
    out.push_back({"/precision/attention",
                   {"/precision"},
                   "found \"fp8\" while the linear layers around attention are not FP8; allowed: "
                   "\"storage\", or an FP8 recipe"});
  if (c.precision.attention == AttentionFormat::FP8 &&
      (is_counted(c.precision.input.scaling) || is_counted(c.precision.grad.scaling)))
    out.push_back({"/precision/attention",
                   {"/precision"},
                   "found \"fp8\" beside a scaling \"quantile\" or \"following\" of input or grad, which is "
                   "that of linear layers; allowed: \"storage\", or \"current\" and \"delayed\" scaling"});
  const double low = c.model.softmax_clip_low, high = c.model.softmax_clip_high;
  if (c.precision.attention == AttentionFormat::FP8 && (low != 0 || high != 1))
    out.push_back({"/precision/attention",
                   {"/precision", "/model/softmax_clip_low", "/model/softmax_clip_high", "/model/preset"},
                   fmt::format("found \"fp8\" with a clipped softmax (/model/softmax_clip_low {:g}, "
                               "/model/softmax_clip_high {:g}), which FP8 attention does not have; allowed: "
                               "\"storage\", or a softmax that is not clipped (0 and 1)",
                               low, high)});
}

void check_preset(const RunConfig& c, Problems& out) {
  const Recipe& r = c.precision;
  const bool by_row = r.input.scaling == Scaling::Rowwise;  // the down projection's input is then `dual`
  if (c.model.preset.starts_with("llama-smooth") && r.float8() && !by_row &&
      r.smooth_swiglu == SmoothSwiGLU::None)
    out.push_back({"/precision/smooth_swiglu",
                   {"/precision", "/model/preset"},
                   fmt::format("found \"none\" with the model preset \"{}\", which is named after it: choose "
                               "\"dual\", \"token\" or \"channel\", or a preset \"llama\"",
                               c.model.preset)});
}

}  // namespace

void check_precision(const RunConfig& c, std::vector<RuleProblem>& out) {
  const LinearFormats formats = c.precision.formats();
  const Formats section{formats, c.precision.storage, "/precision"};
  check_roles(section, out);
  check_pairs(section, out);
  check_smooth(section, out);
  check_smooth_quant(section, out);
  if (formats.smooth_quant > 0 && !formats.float8())
    out.push_back(section.problem(
        "/smooth_quant", "smooths operands in FP8, and there are none; allowed: 0, or an FP8 recipe"));
  check_blockwise(section, out);
  check_static(c, section, out);
  check_simulation(section, out);
  check_adaptive(c, section, out);
  check_name(c, out);
  check_overrides(c, out);
  check_blocks(c, out);
  check_head(c, out);
  check_attention(c, out);
  check_preset(c, out);
}

}  // namespace octet
