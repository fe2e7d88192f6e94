// Every option of the specification against the oracle in FP32 (fixtures/oracle_architectures*): losses and
// every gradient, within what float32 programs differ by when the order of their sums changes.
#include "catch.h"
#include "model/oracle_model.h"
#include "numerics/recipes.h"

using namespace octet;
using namespace octet::oracle;

namespace {

const nlohmann::json& variant(const std::string& name) {
  static const nlohmann::json json = description("architectures");
  return json.at("variants").at(name);
}
std::unique_ptr<OracleModel> model_of(const nlohmann::json& variant) {
  return std::make_unique<OracleModel>(variant, make_recipe("fp32"), DeviceOptions{true, 1},
                                       "architectures_inputs");
}

// The oracle's float32 runs vary the order of sums over channels and neurons only, not those over heads, keys
// and tokens, nor the elementary functions: four times the largest error of 24 of them.
constexpr double margin = 4;

// What cannot be a float32 result of this variant: "losses" and gradients by name.
std::vector<std::string> outside(const Result& result, const std::string& name) {
  const Fixture fixture("architectures_" + name);
  const nlohmann::json& fp32 = variant(name).at("fp32");
  std::vector<std::string> out;
  const Values losses = fixture.values("token_losses");
  double largest = 0;
  for (size_t i = 0; i < losses.size(); ++i)
    largest = std::max(largest, std::abs(result.token_losses[i] - losses[i]));
  if (!(largest <= margin * fp32.at("token_loss_max").get<double>())) out.push_back("losses");
  for (const auto& [parameter, gradient] : result.gradients) {
    const double bound = margin * fp32.at("gradients").at(parameter).at("to_nominal_max").get<double>();
    if (!(relative_error(gradient, fixture.values("gradient." + parameter)) <= bound))
      out.push_back(parameter);
  }
  return out;
}

const char* const names[] = {"fog_max",  "fog_opt", "fog_flash",      "op",
                             "olmo2",    "qwen3",   "all_at_once",    "norms_on_both_sides",
                             "no_norms", "munit",   "clipped_softmax"};

}  // namespace

TEST_CASE("oracle: every option's losses and gradients in FP32", "[oracle][architectures]") {
  for (const char* name : names) {
    INFO(name);
    const std::unique_ptr<OracleModel> model = model_of(variant(name));
    const Result result = model->forward_backward();
    CHECK(result.gradients.size() == variant(name).at("fp32").at("gradients").size());
    CHECK(outside(result, name) == std::vector<std::string>{});
    CHECK(model->token_losses() == result.token_losses);  // forward alone gives the same bits
  }
}

TEST_CASE("oracle: an option that is another one is noticed", "[oracle][architectures]") {
  const auto noticed = [](const char* name, const char* key, const nlohmann::json& value) {
    INFO(name << " with another " << key);
    nlohmann::json other = variant(name);
    CHECK(other["spec"][key] != value);
    other["spec"][key] = value;
    const std::vector<std::string> found = outside(model_of(other)->forward_backward(), name);
    CHECK(std::count(found.begin(), found.end(), "losses") == 1);
  };
  noticed("fog_max", "input_multiplier", 4.001);
  noticed("fog_max", "softmax_scale", 0.499);
  noticed("fog_opt", "activation", "relu2");
  noticed("fog_opt", "qk_norm", "none");
  noticed("qwen3", "qk_norm", "rms_frozen");
  noticed("op", "post_norm", "rms");
  noticed("no_norms", "rope_base", 101.0);
  noticed("munit", "residual_tau", 0.301);
  noticed("clipped_softmax", "softmax_clip_high", 1.301);
  noticed("clipped_softmax", "softmax_clip_low", -0.1001);
}

TEST_CASE("oracle: a gain, an alpha or a parameter of xIELU off by a percent is noticed",
          "[oracle][architectures]") {
  const auto noticed = [](const char* name, const char* parameter) {
    INFO(name << ", " << parameter);
    const std::unique_ptr<OracleModel> model = model_of(variant(name));
    model->masters().at(parameter)[0] *= 1.01f;
    model->load();
    CHECK(outside(model->forward_backward(), name).size() > 1);
  };
  noticed("fog_max", "blocks.0.ffn.xielu.negative");
  noticed("fog_max", "blocks.1.ffn.xielu.positive");
  noticed("fog_flash", "blocks.0.attention.query_norm.alpha");
  noticed("fog_flash", "blocks.1.attention.key_norm.alpha");
  noticed("op", "blocks.0.attention_post_norm.gain");
  noticed("olmo2", "blocks.1.ffn_post_norm.gain");
  noticed("qwen3", "blocks.0.attention.query_norm.gain");
  noticed("munit", "blocks.0.ffn_post_norm.gain");
}
