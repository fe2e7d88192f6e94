// The model's gradient is the derivative of the model's own loss: central differences along random
// directions.
//
//   D(h) = (L(w + h d) - L(w - h d)) / 2h = g.d + c h^2 + e h^4 ...
//   R(h) = (4 D(h) - D(2h)) / 3 = g.d - 4 e h^4 ...          R(2h) - R(h) = -60 e h^4 ...
//
// A loss here is a mean of FP32 token losses; an error n of the mean turns into at most (4 n/h + n/2h) / 3
// = 1.5 n/h of R(h). The truncation error of R(h) is a fifteenth of R(2h) - R(h); a quarter is allowed, for
// the terms behind. Steps are relative to a tensor's own size (d has its RMS).
#include "catch.h"
#include "model/oracle_model.h"
#include "numerics/recipes.h"

using namespace octet;
using namespace octet::oracle;

namespace {

struct Direction {
  std::map<std::string, std::vector<float>> step;  // by parameter
};

// Uniform numbers of a linear congruential generator, deviation 1: nothing depends on their quality.
Direction random_direction(const std::map<std::string, std::vector<float>>& masters,
                           const std::vector<std::string>& names, uint64_t seed) {
  Direction direction;
  uint64_t state = seed;
  for (const std::string& name : names) {
    const std::vector<float>& w = masters.at(name);
    double squares = 0;
    for (float x : w) squares += static_cast<double>(x) * x;
    const double size = std::sqrt(squares / static_cast<double>(w.size()));
    std::vector<float>& step = direction.step[name];
    for (size_t i = 0; i < w.size(); ++i) {
      state = state * 6364136223846793005ull + 1442695040888963407ull;
      const double uniform = static_cast<double>(state >> 11) * 0x1p-53;
      step.push_back(static_cast<float>((2 * uniform - 1) * std::sqrt(3.0) * size));
    }
  }
  return direction;
}

struct Derivative {
  double value, tolerance;
};

Derivative from_losses(OracleModel& model, const Direction& direction, double loss_error) {
  const std::map<std::string, std::vector<float>> start = model.masters();
  constexpr double h = 1.0 / 64;
  // w + h d is rounded to FP32: 2^-24 of w is some 2^-18 of the step, at random, which is below everything
  // else.
  const auto loss_at = [&](double by) {
    for (const auto& [name, step] : direction.step) {
      std::vector<float>& w = model.masters().at(name);
      const std::vector<float>& w0 = start.at(name);
      for (size_t i = 0; i < w.size(); ++i) w[i] = static_cast<float>(w0[i] + by * step[i]);
    }
    model.load();
    return model.mean_loss();
  };
  const auto central = [&](double by) { return (loss_at(by) - loss_at(-by)) / (2 * by); };
  const double one = central(h), two = central(2 * h), four = central(4 * h);
  const double fine = (4 * one - two) / 3, coarse = (4 * two - four) / 3;
  model.masters() = start;
  model.load();
  return {fine, 1.5 * loss_error / h + std::abs(coarse - fine) / 4};
}

double from_gradients(const Gradients& gradients, const Direction& direction) {
  double sum = 0;
  for (const auto& [name, step] : direction.step)
    sum += dot(gradients.at(name), Values(step.begin(), step.end()));
  return sum;
}
// Root mean square of g.d over all directions of this size.
double typical(const Gradients& gradients, const Direction& direction) {
  double sum = 0;
  for (const auto& [name, step] : direction.step) {
    const Values& g = gradients.at(name);
    const Values d(step.begin(), step.end());
    sum += dot(g, g) * dot(d, d) / static_cast<double>(g.size());
  }
  return std::sqrt(sum);
}

}  // namespace

TEST_CASE("the gradient of the whole model is the derivative of its loss", "[finite_difference]") {
  nlohmann::json variant = description("llama").at("variants").at("qkv_bias");
  variant["spec"]["rope_factor"] = 8.0;
  OracleModel model(variant, make_recipe("fp32"));
  const Gradients gradients = model.forward_backward().gradients;
  // The largest FP32 error of one token's loss among the oracle's runs; that of the mean of 64 is smaller.
  const double loss_error = variant.at("fp32").at("token_loss_max").get<double>() / 2;

  std::vector<std::string> names;
  for (const auto& entry : gradients) names.push_back(entry.first);
  std::vector<std::vector<std::string>> groups(
      3, names);  // three directions of everything, then each tensor alone
  for (const std::string& name : names) groups.push_back({name});

  int caught = 0, checks = 0;
  for (size_t i = 0; i < groups.size(); ++i) {
    const Direction direction = random_direction(model.masters(), groups[i], 17 + i);
    const Derivative loss = from_losses(model, direction, loss_error);
    const double gradient = from_gradients(gradients, direction);
    INFO((groups[i].size() > 1 ? std::string("all parameters") : groups[i][0]));
    CAPTURE(loss.value, gradient, loss.tolerance);
    CHECK(std::abs(loss.value - gradient) <= loss.tolerance);
    CHECK(loss.tolerance <= 0.01 * typical(gradients, direction));  // the check is worth something
    if (groups[i].size() > 1) continue;
    // Negative control: half of the gradient missing.
    Gradients broken = gradients;
    Values& g = broken.at(groups[i][0]);
    std::fill(g.begin(), g.begin() + static_cast<int64_t>(g.size() / 2), 0.0);
    ++checks;
    caught += std::abs(loss.value - from_gradients(broken, direction)) > loss.tolerance;
  }
  // The missing half of g.d is itself random: within the tolerance (1 % of its RMS) in one case in a hundred.
  CHECK(caught >= checks - 2);
}

TEST_CASE("the gradient of a model with clipped softmax is the derivative of its loss",
          "[finite_difference]") {
  nlohmann::json plain = description("llama").at("variants").at("qkv_bias");
  // Attention so even that of at most 32 keys none comes near a kink, where there is no derivative.
  plain["spec"]["softmax_scale"] = 0.03;
  nlohmann::json variant = plain;
  variant["spec"]["softmax_clip_low"] = -0.005;
  variant["spec"]["softmax_clip_high"] = 1.25;
  OracleModel model(variant, make_recipe("fp32")), unclipped(plain, make_recipe("fp32"));
  const Gradients gradients = model.forward_backward().gradients,
                  wrong = unclipped.forward_backward().gradients;
  const double loss_error = variant.at("fp32").at("token_loss_max").get<double>() / 2;
  std::vector<std::string> names;
  for (const auto& entry : gradients) names.push_back(entry.first);
  int caught = 0;
  for (uint64_t seed = 17; seed < 20; ++seed) {
    const Direction direction = random_direction(model.masters(), names, seed);
    const Derivative loss = from_losses(model, direction, loss_error);
    CAPTURE(loss.value, from_gradients(gradients, direction), from_gradients(wrong, direction),
            loss.tolerance);
    CHECK(std::abs(loss.value - from_gradients(gradients, direction)) <= loss.tolerance);
    CHECK(loss.tolerance <= 0.01 * typical(gradients, direction));
    caught += std::abs(loss.value - from_gradients(wrong, direction)) > loss.tolerance;
  }
  CHECK(caught == 3);  // the control: the gradient of the model without a clip
}
