#include "config/precision_fields.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>
#include <limits>

#include "config/field_builders.h"
#include "numerics/recipes.h"
#include "numerics/small_float.h"

namespace octet {
namespace {

using namespace field_builders;
using List = std::vector<Field>;

// ---- overrides of linears

constexpr const char* linear_names[] = {"qkv", "out", "gate_up", "down"};
static_assert(std::size(linear_names) == block_linears);
constexpr const char* up_without_a_gate = "up";  // "gate_up" of a model that has no gate
constexpr int all_blocks = std::numeric_limits<int>::max();

bool names_linear(const Json& linears, int which) {
  const auto has = [&](const char* name) { return std::count(linears.begin(), linears.end(), name) > 0; };
  return has(linear_names[which]) ||
         (static_cast<BlockLinear>(which) == BlockLinear::Up && has(up_without_a_gate));
}

Json written(const BlockRange& blocks) {
  if (blocks.begin > 0) return Json::array({blocks.begin, blocks.end - 1});
  if (blocks.end == all_blocks) return "all";
  return fmt::format("{}:{}", blocks.from == BlockRange::From::First ? "first" : "last", blocks.end);
}
BlockRange blocks_of(const Json& value) {
  BlockRange blocks;
  if (value.is_array()) {
    blocks.begin = value[0].get<int>();
    blocks.end = value[1].get<int>() + 1;
    return blocks;
  }
  const std::string text = value.get<std::string>();
  if (text.starts_with("last")) blocks.from = BlockRange::From::Last;
  blocks.end = text == "all" ? all_blocks : std::stoi(text.substr(text.find(':') + 1));
  return blocks;
}

void set_formats(Recipe& recipe, const LinearFormats& formats) {
  recipe.input = formats.input;
  recipe.weight = formats.weight;
  recipe.grad = formats.grad;
  recipe.gemms = formats.gemms;
  recipe.simulate = formats.simulate;
  recipe.smooth_swiglu = formats.smooth;
  recipe.smooth_quant = formats.smooth_quant;
  recipe.fast_accumulation = formats.fast_accumulation;
}

Json written(const Override& other) {
  Json entry = Json::object();
  entry["blocks"] = written(other.blocks);
  entry["linears"] = Json::array();
  for (int i = 0; i < block_linears; ++i)
    if (other.linears[i]) entry["linears"].push_back(linear_names[i]);
  RunConfig part;
  set_formats(part.precision, other.formats);
  for (const Field& field : fields())
    if (field.of_linear && !field.shorthand) entry[Json::json_pointer(in_precision(field))] = field.get(part);
  return entry;
}

// What an override leaves out is as in the section, or as in the recipe that it names.
Override override_of(const Json& entry, const RunConfig& c) {
  Override other;
  other.blocks.end = all_blocks;
  if (entry.contains("blocks")) other.blocks = blocks_of(entry["blocks"]);
  if (entry.contains("linears"))
    for (int i = 0; i < block_linears; ++i) other.linears[i] = names_linear(entry["linears"], i);
  RunConfig part;
  part.precision = entry.contains("recipe") ? make_recipe(entry["recipe"].get<std::string>()) : c.precision;
  for (const Field& field : fields()) {
    if (!field.of_linear) continue;
    const Json::json_pointer at(in_precision(field));
    if (entry.contains(at)) field.set(part, entry.at(at));
  }
  other.formats = part.precision.formats();
  return other;
}

// ---- stages of a schedule

Json written(const PrecisionStage& stage) {
  RunConfig part;
  part.precision = stage.precision;
  Json precision = Json::object();
  for (const Field& field : fields())
    if (field.of_stage && !field.shorthand)
      precision[Json::json_pointer(in_precision(field))] = field.get(part);
  return {{"from", stage.from}, {"precision", precision}};
}

// Read as the section "precision" is: what it leaves out is as in its recipe, whatever the stage before has.
PrecisionStage stage_of(const Json& entry, const RunConfig&) {
  RunConfig part = default_config();
  for (const Field& field : fields()) {
    if (!field.of_stage) continue;
    const Json::json_pointer at(in_precision(field));
    if (entry.at("precision").contains(at)) field.set(part, entry.at("precision").at(at));
  }
  return {entry.at("from").get<int64_t>(), part.precision};
}

// A list of objects, each written as written() says; `read` makes one of an object and of the configuration.
template <class At, class Read>
Field list_of(Field field, At at, Read read) {
  field.get = [at](const RunConfig& c) {
    Json list = Json::array();
    for (const auto& entry : at(c)) list.push_back(written(entry));
    return list;
  };
  field.set = [at, read](RunConfig& c, const Json& v) {
    std::decay_t<decltype(at(c))> list;
    for (const Json& entry : v) list.push_back(read(entry, c));
    at(c) = std::move(list);
  };
  return field;
}

void add_fallback(List& list) {
  list.push_back(
      number("/precision/fallback/saturated", AT(fallback.saturated), {0, 1, false, true},
             about("a linear leaves FP8 when more than this share of the values of one of its casts "
                   "saturates in a step with statistics; 0: never",
                   Recorded)));
  list.push_back(
      boolean("/precision/fallback/nonfinite", AT(fallback.nonfinite),
              about("a linear leaves FP8 when a step is dropped and it is the first whose operands or "
                    "gradient are not finite",
                    Recorded)));
  list.push_back(
      number("/precision/fallback/kurtosis", AT(fallback.kurtosis), {0, 1e12},
             about("a linear (qkv, down) leaves FP8 when the kurtosis of its input is above this in a "
                   "step with statistics; 0: never",
                   Recorded)));
  list.push_back(integer("/precision/fallback/at_most", AT(fallback.at_most), {1, 1e6},
                         about("linears that may leave FP8; beyond, the run goes on and warns", Recorded)));
}

const Names<Format> formats = {
    {Format::FP32, "fp32"}, {Format::BF16, "bf16"}, {Format::E4M3, "e4m3"}, {Format::E5M2, "e5m2"}};
const Names<Format> moment_formats = {{Format::FP32, "fp32"},
                                      {Format::BF16, "bf16"},
                                      {Format::FP16, "fp16"},
                                      {Format::E4M3, "e4m3"},
                                      {Format::E5M2, "e5m2"}};
const Names<Format> wide_formats = {{Format::FP32, "fp32"}, {Format::BF16, "bf16"}};
const Names<Scaling> scalings = {{Scaling::Current, "current"},    {Scaling::Delayed, "delayed"},
                                 {Scaling::Rowwise, "rowwise"},    {Scaling::Blockwise, "blockwise"},
                                 {Scaling::Static, "static"},      {Scaling::Quantile, "quantile"},
                                 {Scaling::Following, "following"}};
const Names<GemmFormat> gemm_formats = {{GemmFormat::ByRoles, "by_roles"}, {GemmFormat::Storage, "storage"}};
const Names<ScaleRule> rules = {{ScaleRule::PowerOfTwo, "power_of_two"}, {ScaleRule::Exact, "exact"}};
const Names<Rounding> roundings = {{Rounding::Nearest, "nearest"}, {Rounding::Stochastic, "stochastic"}};

// "e2m0" to "e8m7".
std::string name_of_format(const SmallFloat& format) {
  return fmt::format("e{}m{}", format.exponent_bits, format.mantissa_bits);
}
Field simulate() {
  Field field =
      base("/precision/simulate", ValueKind::Choice,
           about("BF16 operands of the blocks' products are reduced to this; e8m7: they are not", Recorded));
  for (int x = small_exponent_bits_from; x <= small_exponent_bits_to; ++x)
    for (int y = 0; y <= small_mantissa_bits_to; ++y) field.choices.push_back(fmt::format("e{}m{}", x, y));
  field.choices_in_short = "\"exmy\" of 2 to 8 exponent bits x and 0 to 7 mantissa bits y, as in \"e8m3\"";
  field.get = [](const RunConfig& c) { return Json(name_of_format(c.precision.simulate)); };
  field.set = [](RunConfig& c, const Json& v) {
    const std::string text = v.get<std::string>();
    c.precision.simulate.exponent_bits = static_cast<uint8_t>(text[1] - '0');
    c.precision.simulate.mantissa_bits = static_cast<uint8_t>(text[3] - '0');
  };
  return field;
}

template <class At>
void add_role(List& list, const std::string& role, At at) {
  const std::string at_role = "/precision/" + role;
  const auto part = [at](auto get) {
    return [ at, get ](auto& c) -> auto& { return get(at(c)); };
  };
  list.push_back(choice((at_role + "/format").c_str(), part(AT(format)), formats,
                        about("number format of this operand", Recorded)));
  list.push_back(
      choice((at_role + "/scaling").c_str(), part(AT(scaling)), scalings,
             about("scale from this tensor's amax, from earlier steps' amaxes or what their casts saturated "
                   "(quantile, following), one a row or a block of 128 of each GEMM's operand, or one that "
                   "never changes",
                   Recorded)));
  list.push_back(choice((at_role + "/rounding").c_str(), part(AT(rounding)), roundings,
                        about("rounding to FP8", Recorded)));
  list.push_back(choice((at_role + "/rule").c_str(), part(AT(rule)), rules,
                        about("scales that are powers of two, or exactly max / amax", Recorded)));
}

// What LinearFormats holds: the roles, and how products use them.
void mark_parts_of_linears(List& list) {
  for (Field& field : list)
    for (const char* part : {"scaling", "input/", "weight/", "grad/", "gemms/", "simulate", "smooth_swiglu",
                             "smooth_quant", "fast_accumulation/"})
      if (field.pointer.starts_with(std::string("/precision/") + part)) field.of_linear = true;
}
}  // namespace

void add_precision(List& list) {
  Field recipe = word("/precision/recipe", AT(precision.name), recipe_names(),
                      {"a recipe by name; the keys beside it override", Recorded, false});
  recipe.set = [](RunConfig& c, const Json& v) { c.precision = make_recipe(v.get<std::string>()); };
  list.push_back(recipe);
  Field scaling =
      choice("/precision/scaling", AT(precision.input.scaling), scalings,
             about("sets the scaling of input and grad; \"rowwise\", \"blockwise\" and \"static\" that of "
                   "weight too, which another takes back to \"current\"",
                   Recorded));
  scaling.shorthand = true;
  scaling.set = [](RunConfig& c, const Json& v) {
    for (const auto& [value, name] : scalings)
      if (v == name) {
        c.precision.input.scaling = c.precision.grad.scaling = value;
        const auto of_weights_too = [](Scaling s) { return !is_one_scale(s) || s == Scaling::Static; };
        Scaling& weight = c.precision.weight.scaling;
        if (of_weights_too(value))
          weight = value;
        else if (of_weights_too(weight))
          weight = Scaling::Current;
      }
  };
  list.push_back(scaling);
  list.push_back(choice("/precision/storage", AT(precision.storage), wide_formats,
                        about("format of activations between operations", Recorded)));
  add_role(list, "input", AT(precision.input));
  add_role(list, "weight", AT(precision.weight));
  add_role(list, "grad", AT(precision.grad));
  list.push_back(integer("/precision/delayed/window", AT(precision.delayed.window), {1, 4096},
                         about("delayed scaling: steps remembered", Recorded)));
  list.push_back(
      choice("/precision/delayed/algorithm", AT(precision.delayed.algorithm),
             Names<AmaxAlgorithm>{{AmaxAlgorithm::Max, "max"}, {AmaxAlgorithm::MostRecent, "most_recent"}},
             about("delayed scaling: which remembered amax counts", Recorded)));
  list.push_back(integer("/precision/delayed/margin", AT(precision.delayed.margin), {0, 16},
                         about("delayed scaling: binades left free above the amax", Recorded)));
  list.push_back(number("/precision/adaptive/above", AT(precision.adaptive.above), {1e-6, 0.1},
                        about("scaling \"quantile\": the share of the values that saturates", Recorded)));
  list.push_back(
      number("/precision/adaptive/saturated", AT(precision.adaptive.saturated), {0, 0.1},
             about("scaling \"following\": the scale is halved when a larger share saturates", Recorded)));
  list.push_back(number(
      "/precision/adaptive/flushed", AT(precision.adaptive.flushed), {0, 0.5},
      about("scaling \"following\": it is doubled when a larger share becomes zero instead", Recorded)));
  list.push_back(choice("/precision/smooth_swiglu", AT(precision.smooth_swiglu),
                        Names<SmoothSwiGLU>{{SmoothSwiGLU::None, "none"},
                                            {SmoothSwiGLU::Token, "token"},
                                            {SmoothSwiGLU::Channel, "channel"},
                                            {SmoothSwiGLU::Dual, "dual"},
                                            {SmoothSwiGLU::BF16, "bf16"}},
                        about("how the input of the down projection is scaled", Recorded)));
  list.push_back(number("/precision/smooth_quant", AT(precision.smooth_quant), {0, 1, false, true},
                        about("SmoothQuant of the blocks' FP8 linears: alpha of X's largest in "
                              "amax(X_j)^alpha / amax(W_j)^(1 - alpha); 0: off",
                              Recorded)));
  list.push_back(
      choice("/precision/gemms/fprop", AT(precision.gemms.fprop), gemm_formats,
             about("outputs: in FP8 where both operands' roles are, or in storage precision", Recorded)));
  list.push_back(choice("/precision/gemms/dgrad", AT(precision.gemms.dgrad), gemm_formats,
                        about("input gradients: the same", Recorded)));
  list.push_back(choice("/precision/gemms/wgrad", AT(precision.gemms.wgrad), gemm_formats,
                        about("weight gradients: the same; \"storage\" is SwitchBack", Recorded)));
  list.push_back(simulate());
  list.push_back(
      choice("/precision/simulate_rounding", AT(precision.simulate.rounding),
             Names<SmallRounding>{{SmallRounding::Truncate, "truncate"}, {SmallRounding::Nearest, "nearest"}},
             about("simulate: mantissa bits are cut off, or rounded to nearest even", Recorded)));
  list.push_back(
      choice("/precision/simulate_underflow", AT(precision.simulate.underflow),
             Names<Underflow>{{Underflow::Flush, "flush"}, {Underflow::Clamp, "clamp"}},
             about("simulate: magnitudes below the smallest normal become zero, or it", Recorded)));
  list.push_back(
      boolean("/precision/fast_accumulation/fprop", AT(precision.fast_accumulation.fprop),
              about("FP8 outputs: sums in the tensor cores' 14 bits, faster on Hopper and Ada", Recorded)));
  list.push_back(
      boolean("/precision/fast_accumulation/dgrad", AT(precision.fast_accumulation.dgrad),
              about("FP8 input gradients: the same; false adds runs of products in FP32", Recorded)));
  list.push_back(
      boolean("/precision/fast_accumulation/wgrad", AT(precision.fast_accumulation.wgrad),
              about("FP8 weight gradients: the same; false adds runs of products in FP32", Recorded)));
  list.push_back(choice("/precision/weight_gradient", AT(precision.weight_gradient), wide_formats,
                        about("accumulator of weight gradients across micro-batches", Recorded)));
  list.push_back(integer("/precision/first_blocks_bf16", AT(precision.first_blocks_bf16), {0, 1024},
                         about("first blocks whose linear layers stay in BF16", Recorded)));
  list.push_back(integer("/precision/last_blocks_bf16", AT(precision.last_blocks_bf16), {0, 1024},
                         about("last blocks whose linear layers stay in BF16", Recorded)));
  list.push_back(
      choice("/precision/head", AT(precision.head),
             Names<HeadFormat>{{HeadFormat::Storage, "storage"}, {HeadFormat::FP8, "fp8"}},
             about("products of the head: in storage precision, or by the roles above", Recorded)));
  list.push_back(
      choice("/precision/attention", AT(precision.attention),
             Names<AttentionFormat>{{AttentionFormat::Storage, "storage"}, {AttentionFormat::FP8, "fp8"}},
             about("products inside attention: in the storage's format, or in FP8", Recorded)));
  list.push_back(
      choice("/precision/saved_activations", AT(precision.saved_activations),
             Names<SavedActivations>{{SavedActivations::Storage, "storage"}, {SavedActivations::FP8, "fp8"}},
             about("what norms and activations read in backward: in the storage's format, or a byte a value",
                   Recorded)));
  list.push_back(choice("/precision/moments/first", AT(precision.moments.first), moment_formats,
                        about("format of Adam's first moment", Forbidden)));
  list.push_back(choice("/precision/moments/second", AT(precision.moments.second), moment_formats,
                        about("format of Adam's second moment", Forbidden)));
  list.push_back(integer("/precision/moments/block", AT(precision.moments.block), {0, 1024},
                         about("elements that share a scale; 0: one scale a tensor", Forbidden)));
  list.push_back(
      boolean("/precision/moments/range_expansion", AT(precision.moments.range_expansion),
              about("FP8 moments are spread over their format's range, block by block (COAT)", Forbidden)));
  list.push_back(choice("/precision/master", AT(precision.master),
                        Names<MasterFormat>{{MasterFormat::FP32, "fp32"},
                                            {MasterFormat::BF16Remainder, "bf16_remainder"},
                                            {MasterFormat::BF16Kahan, "bf16_kahan"},
                                            {MasterFormat::BF16Stochastic, "bf16_stochastic"},
                                            {MasterFormat::BF16Nearest, "bf16_nearest"},
                                            {MasterFormat::FP16Scaled, "fp16_scaled"}},
                        about("how the optimizer stores matrices and embeddings; bf16_nearest is a control "
                              "that loses small updates",
                              Forbidden)));
  mark_parts_of_linears(list);
  list.push_back(
      list_of(base("/precision/overrides", ValueKind::Overrides,
                   about("linears that run otherwise; the last one that names a linear decides", Recorded)),
              AT(precision.overrides), override_of));
  for (Field& field : list) field.of_stage = field.pointer.starts_with("/precision/");
  add_fallback(list);
  list.push_back(
      list_of(base("/precision_schedule", ValueKind::Stages,
                   about("stages that follow the section \"precision\": from which step on, and what "
                         "is then in its place",
                         Recorded)),
              AT(precision_schedule), stage_of));
}

std::string in_precision(const Field& field) { return field.pointer.substr(std::size("/precision") - 1); }

}  // namespace octet
