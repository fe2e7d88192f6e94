#include "catch.h"
#include "model/tiny_model.h"

using namespace octet;
using test::TinyModel;

namespace {

std::vector<uint64_t> gradients(const TransformerOptions& options, const DeviceOptions& device) {
  TinyModel tiny(options, device);
  tiny.train(test::random_batch(options, 0));
  std::vector<uint64_t> hashes = tiny.gradient_hashes();
  hashes.push_back(tiny.hash(tiny.model->token_losses()));
  return hashes;
}

}  // namespace

TEST_CASE("a second run gives the same bits") {
  for (const char* recipe : {"fp32", "bf16", "fp8"}) {
    const TransformerOptions options = test::tiny(recipe);
    CHECK(gradients(options, {}) == gradients(options, {}));
  }
}

TEST_CASE("deterministic runs give the same bits with 1, 2 and 4 threads") {
  for (const char* recipe : {"fp32", "bf16", "fp8"}) {
    const TransformerOptions options = test::tiny(recipe);
    const std::vector<uint64_t> reference = gradients(options, test::deterministic(1));
    CHECK(gradients(options, test::deterministic(2)) == reference);
    CHECK(gradients(options, test::deterministic(4)) == reference);
  }
}

TEST_CASE(
    "scales of rows and blocks, simulated operands and an FP8 head give the same bits with 1, 2 and 4 "
    "threads") {
  Recipe rowwise = make_recipe("fp8"), simulated = make_recipe("bf16"), head = make_recipe("fp8");
  rowwise.input.scaling = rowwise.weight.scaling = rowwise.grad.scaling = Scaling::Rowwise;
  simulated.simulate = {4, 3, SmallRounding::Nearest};
  head.head = HeadFormat::FP8;
  Recipe blocks = make_recipe("deepseek");
  blocks.head = HeadFormat::FP8;
  for (const Recipe& recipe : {rowwise, simulated, head, blocks}) {
    TransformerOptions options = test::tiny(recipe);
    options.spec.vocabulary = 48;
    const std::vector<uint64_t> reference = gradients(options, test::deterministic(1));
    CHECK(gradients(options, test::deterministic(2)) == reference);
    CHECK(gradients(options, test::deterministic(4)) == reference);
  }
}

TEST_CASE("stochastic rounding depends on seed, step and micro-batch, and on nothing else") {
  Recipe recipe = make_recipe("fp8");
  recipe.grad.rounding = Rounding::Stochastic;
  const TransformerOptions options = test::tiny(recipe);
  const auto gradients_at = [&](MicroStep where) {
    TinyModel tiny(options);
    tiny.train(test::random_batch(options, 0), where);
    return tiny.gradient_hashes();
  };
  CHECK(gradients_at({3, 1}) == gradients_at({3, 1}));
  CHECK(gradients_at({3, 1}) != gradients_at({3, 2}));
  CHECK(gradients_at({3, 1}) != gradients_at({4, 1}));
}

TEST_CASE("initial weights depend on the seed, not on the recipe") {
  const auto masters = [](const char* recipe, uint64_t seed) {
    TransformerOptions options = test::tiny(recipe);
    options.seed = seed;
    return TinyModel(options).master_hashes();
  };
  CHECK(masters("bf16", 7) == masters("fp8", 7));
  CHECK(masters("bf16", 7) == masters("fp32", 7));
  CHECK(masters("bf16", 7) != masters("bf16", 8));
}

TEST_CASE("weights start normal, residual projections narrower, gains at one, biases at zero") {
  TransformerOptions options = test::tiny("bf16");
  options.spec.qkv_bias = true;
  options.spec.init_deviation = 0.02;
  TinyModel tiny(options);
  // Sample deviation of n normals: standard error sigma / sqrt(2 n); five of them.
  const auto deviation_is = [&](const char* name, double expected) {
    const std::vector<double> values = tiny.values(tiny.parameter(name).master);
    double square = 0;
    for (double v : values) square += v * v;
    const auto n = static_cast<double>(values.size());
    CHECK(std::abs(std::sqrt(square / n) - expected) < 5 * expected / std::sqrt(2 * n));
  };
  deviation_is("embedding.weight", 0.02);
  deviation_is("blocks.0.attention.qkv.weight", 0.02);
  deviation_is("blocks.1.ffn.gate_up.weight", 0.02);
  deviation_is("blocks.0.attention.out.weight", 0.02 / std::sqrt(4.0));
  deviation_is("blocks.1.ffn.down.weight", 0.02 / std::sqrt(4.0));
  deviation_is("head.weight", 0.02);
  for (const char* name : {"blocks.0.attention_norm.gain", "blocks.1.ffn_norm.gain", "final_norm.gain"})
    for (double v : tiny.values(tiny.parameter(name).master)) CHECK(v == 1.0);
  for (double v : tiny.values(tiny.parameter("blocks.0.attention.qkv.bias").master)) CHECK(v == 0.0);
}
