// The whole model against the oracle (fixtures/oracle_llama*): losses and every gradient, in every recipe.
// What may differ, and why the recipes are compared through statistics: tests/oracle/README.md.
#include "catch.h"
#include "model/oracle_model.h"
#include "numerics/recipes.h"

using namespace octet;
using namespace octet::oracle;

namespace {

const nlohmann::json& oracle_json() {
  static const nlohmann::json json = description("llama");
  return json;
}

double largest_difference(const Values& a, const Values& b) {
  double largest = 0;
  for (size_t i = 0; i < b.size(); ++i) largest = std::max(largest, std::abs(a[i] - b[i]));
  return largest;
}

// The oracle's own FP32 runs err by 2^-23 at every stored value and sum in a random order; the largest of 48
// such errors, times four for chains it does not model (polynomials of exp and log), is the bound.
constexpr double single_precision_margin = 4;

// Gradients that a correct FP32 program cannot have.
std::vector<std::string> outside_single_precision(const Result& result, const Fixture& fixture,
                                                  const nlohmann::json& fp32) {
  std::vector<std::string> outside;
  for (const auto& [name, gradient] : result.gradients) {
    const Values expected = fixture.values("gradient." + name);
    const double bound =
        single_precision_margin * fp32.at("gradients").at(name).at("to_nominal_max").get<double>();
    const double error = relative_error(gradient, expected);
    // |a - b| <= d |b| implies cos(a, b) >= sqrt(1 - d^2); the 2^-50 is for its own sums.
    if (!(error <= bound && cosine(gradient, expected) >= std::sqrt(1 - bound * bound) - 0x1p-50))
      outside.push_back(name);
  }
  return outside;
}

// Statistics of the 48 noisy runs: six standard deviations.
bool typical(double value, const nlohmann::json& statistics, const std::string& what) {
  const double mean = statistics.at(what + "_mean"), deviation = statistics.at(what + "_deviation");
  return std::abs(value - mean) <= 6 * deviation;
}
// Gradients whose rounding error against the exact gradient, or share of it, is not that of the recipe.
std::vector<std::string> atypical(const Gradients& gradients, const Fixture& exact,
                                  const nlohmann::json& recipe) {
  std::vector<std::string> out;
  for (const auto& [name, gradient] : gradients) {
    const Values reference = exact.values("gradient." + name);
    const nlohmann::json& statistics = recipe.at("gradients").at(name);
    if (!typical(relative_error(gradient, reference), statistics, "to_exact") ||
        !typical(projection(gradient, reference), statistics, "projection")) {
      out.push_back(name);
    }
  }
  return out;
}
// The same deviations over all tensors at once, in units of the most unusual of the 48 runs.
double overall_deviation(const Gradients& gradients, const Fixture& exact, const nlohmann::json& recipe,
                         const std::string& what) {
  double squares = 0;
  for (const auto& [name, gradient] : gradients) {
    const Values reference = exact.values("gradient." + name);
    const nlohmann::json& statistics = recipe.at("gradients").at(name);
    const double value =
        what == "to_exact" ? relative_error(gradient, reference) : projection(gradient, reference);
    const double deviation = (value - statistics.at(what + "_mean").get<double>()) /
                             statistics.at(what + "_deviation").get<double>();
    squares += deviation * deviation;
  }
  return std::sqrt(squares / static_cast<double>(gradients.size())) /
         recipe.at(what + "_rms_max").get<double>();
}
// Farther from the oracle's run than 1.5 times the farthest of its 48 noisy runs.
std::vector<std::string> far_from_nominal(const Gradients& gradients, const Fixture& nominal,
                                          const nlohmann::json& recipe) {
  std::vector<std::string> out;
  for (const auto& [name, gradient] : gradients) {
    const Values expected = nominal.values("gradient." + name);
    const double bound = 1.5 * recipe.at("gradients").at(name).at("to_nominal_max").get<double>();
    if (!(relative_error(gradient, expected) <= bound &&
          cosine(gradient, expected) >= std::sqrt(1 - bound * bound))) {
      out.push_back(name);
    }
  }
  return out;
}

Recipe recipe_of(const std::string& name) {
  if (name == "bf16") return make_recipe(name);
  Recipe recipe = make_recipe("fp8");
  const std::map<std::string, SmoothSwiGLU> modes = {{"fp8_dual", SmoothSwiGLU::Dual},
                                                     {"fp8_token", SmoothSwiGLU::Token},
                                                     {"fp8_channel", SmoothSwiGLU::Channel},
                                                     {"fp8_none", SmoothSwiGLU::None},
                                                     {"fp8_bf16", SmoothSwiGLU::BF16}};
  recipe.smooth_swiglu = modes.at(name);
  return recipe;
}

}  // namespace

TEST_CASE("oracle: losses and gradients in FP32", "[oracle]") {
  for (const std::string variant : {"plain", "tied_head", "rope_scaling", "qkv_bias", "z_loss"}) {
    INFO(variant);
    const nlohmann::json& json = oracle_json().at("variants").at(variant);
    const nlohmann::json& fp32 = json.at("fp32");
    const Fixture fixture("llama_" + variant);
    OracleModel model(json, make_recipe("fp32"));
    const Result result = model.forward_backward();

    CHECK(result.gradients.size() == fp32.at("gradients").size());
    const double loss_bound = single_precision_margin * fp32.at("token_loss_max").get<double>();
    CHECK(largest_difference(result.token_losses, fixture.values("token_losses")) <= loss_bound);
    CHECK(outside_single_precision(result, fixture, fp32) == std::vector<std::string>{});
    CHECK(model.token_losses() == result.token_losses);  // forward alone gives the same bits

    // Negative control: key head 0 in the place of query head 0 (16 rows of 64).
    std::vector<float>& qkv = model.masters().at("blocks.1.attention.qkv.weight");
    std::swap_ranges(qkv.begin(), qkv.begin() + 16 * 64, qkv.begin() + 4 * 16 * 64);
    model.load();
    const Result swapped = model.forward_backward();
    CHECK(largest_difference(swapped.token_losses, fixture.values("token_losses")) > 100 * loss_bound);
    CHECK(outside_single_precision(swapped, fixture, fp32).size() == result.gradients.size());
  }
}

TEST_CASE("oracle: one parameter off by a percent is noticed in FP32", "[oracle]") {
  const nlohmann::json& json = oracle_json().at("variants").at("plain");
  const Fixture fixture("llama_plain");
  OracleModel model(json, make_recipe("fp32"));
  model.masters().at("blocks.0.ffn_norm.gain")[7] *= 1.01f;
  model.load();
  CHECK_FALSE(outside_single_precision(model.forward_backward(), fixture, json.at("fp32")).empty());
}

TEST_CASE("oracle: the variants are different models", "[oracle]") {
  // Negative control of the test above: the plain model does not pass for any variant.
  OracleModel model(oracle_json().at("variants").at("plain"), make_recipe("fp32"));
  const Result result = model.forward_backward();
  for (const std::string variant : {"rope_scaling", "qkv_bias", "z_loss"}) {
    CHECK_FALSE(outside_single_precision(result, Fixture("llama_" + variant),
                                         oracle_json().at("variants").at(variant).at("fp32"))
                    .empty());
  }
}

TEST_CASE("oracle: the recipes round where, and as much as, the oracle does", "[oracle]") {
  const Fixture exact("llama_plain");
  for (const std::string name : {"bf16", "fp8_dual", "fp8_token", "fp8_channel", "fp8_none", "fp8_bf16"}) {
    INFO(name);
    // Folding a power of two from one operand into the other changes codes only where they underflow, and
    // nothing does here: the statistics of `channel` are those of `none`.
    const nlohmann::json& recipe = oracle_json().at("recipes").at(name == "fp8_channel" ? "fp8_none" : name);
    OracleModel model(oracle_json().at("variants").at("plain"), recipe_of(name));
    const Result result = model.forward_backward();
    CHECK(typical(OracleModel::mean(result.token_losses), recipe, "mean_loss"));
    CHECK(atypical(result.gradients, exact, recipe) == std::vector<std::string>{});
    CHECK(overall_deviation(result.gradients, exact, recipe, "to_exact") <= 1.5);
    CHECK(overall_deviation(result.gradients, exact, recipe, "projection") <= 1.5);
    if (name != "bf16" && name != "fp8_dual") continue;

    const Fixture nominal("llama_" + name);
    CHECK(largest_difference(result.token_losses, nominal.values("token_losses")) <=
          1.5 * recipe.at("token_loss_max").get<double>());
    CHECK(far_from_nominal(result.gradients, nominal, recipe) == std::vector<std::string>{});

    // The same with whatever library the device prefers when nobody asked for a fixed order of sums.
    OracleModel fast(oracle_json().at("variants").at("plain"), recipe_of(name), {false, 1});
    const Result fast_result = fast.forward_backward();
    CHECK(atypical(fast_result.gradients, exact, recipe) == std::vector<std::string>{});
    CHECK(far_from_nominal(fast_result.gradients, nominal, recipe) == std::vector<std::string>{});

    // Negative control: another recipe's gradients are not this one's.
    const std::string other = name == "bf16" ? "fp8_dual" : "bf16";
    CHECK(atypical(result.gradients, exact, oracle_json().at("recipes").at(other)).size() ==
          result.gradients.size());
  }
}

TEST_CASE("oracle: a gradient cast to another format is noticed", "[oracle]") {
  Recipe finer = make_recipe("fp8");
  finer.grad.format = Format::E4M3;
  OracleModel model(oracle_json().at("variants").at("plain"), finer);
  const Result result = model.forward_backward();
  // E4M3 has one more significant bit than E5M2: the gradients come out closer to the exact ones.
  CHECK(overall_deviation(result.gradients, Fixture("llama_plain"),
                          oracle_json().at("recipes").at("fp8_dual"), "to_exact") > 1.5);
}

TEST_CASE("oracle: a merged Smooth-SwiGLU scale leaves every loss as it was, bit for bit", "[oracle]") {
  // w1 of the paper is the up projection, w3 the down projection; the gate is inside the SiLU and stays. The
  // scales are powers of two and nothing underflows, so no rounding changes.
  const Fixture merge("merge");
  OracleModel model(oracle_json().at("variants").at("plain"), make_recipe("fp32"));
  const Values before = model.token_losses();
  for (const std::string block : {"blocks.0.ffn.", "blocks.1.ffn."}) {
    model.masters().at(block + "gate_up.weight") = merge.floats(block + "gate_up.weight");
    model.masters().at(block + "down.weight") = merge.floats(block + "down.weight");
  }
  model.load();
  CHECK(model.token_losses() == before);

  // Negative control: the scale on the gate.
  std::vector<float>& gate_up = model.masters().at("blocks.0.ffn.gate_up.weight");
  std::swap_ranges(gate_up.begin(), gate_up.begin() + 96 * 64, gate_up.begin() + 96 * 64);
  model.load();
  CHECK(largest_difference(model.token_losses(), before) > 1e-3);
}
