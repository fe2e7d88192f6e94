// Recomputation trades time for memory and changes nothing else.
#include <numeric>

#include "catch.h"
#include "model/tiny_model.h"

using namespace octet;
using test::TinyModel;

namespace {

constexpr Recompute policies[] = {Recompute::None, Recompute::NormsAndSwiGLU, Recompute::Block};

// All that two steps of two micro-batches leave behind.
struct Trace {
  std::vector<uint64_t> losses, gradients, scales;
  bool operator==(const Trace&) const = default;
};

Trace train(const TransformerOptions& options, uint64_t first_batch = 0) {
  TinyModel tiny(options);
  tiny.model->scales().count = true;
  Trace trace;
  for (int64_t step = 0; step < 2; ++step) {
    for (int64_t micro = 0; micro < 2; ++micro) {
      const auto which = first_batch + static_cast<uint64_t>(2 * step + micro);
      tiny.train(test::random_batch(options, which), {step, micro});
      trace.losses.push_back(tiny.hash(tiny.model->token_losses()));
    }
    for (uint64_t hash : tiny.scale_hashes()) trace.scales.push_back(hash);
    tiny.model->update_scales(step);
    tiny.model->refresh_working_weights(step + 1);
  }
  trace.gradients = tiny.gradient_hashes();
  return trace;
}

void same_bits_under_every_policy(const Recipe& recipe, const TransformerSpec& spec) {
  TransformerOptions options = test::tiny(recipe);
  options.spec = spec;
  options.spec.qkv_bias = true;
  const Trace reference = train(options);
  for (Recompute policy : policies) {
    INFO("policy " << static_cast<int>(policy));
    options.recompute = policy;
    const Trace trace = train(options);
    CHECK(trace.losses == reference.losses);
    CHECK(trace.gradients == reference.gradients);
    CHECK(trace.scales == reference.scales);
  }
  // Negative control: other batches leave other bits.
  const Trace other = train(options, 100);
  CHECK(other.losses != reference.losses);
  CHECK(other.gradients != reference.gradients);
}

void same_bits_under_every_policy(const Recipe& recipe) {
  same_bits_under_every_policy(recipe, test::tiny(recipe).spec);
}

}  // namespace

TEST_CASE("recomputation gives the same bits with static scales and a weighted stream") {
  TransformerSpec spec = test::tiny("munit").spec;
  spec.pre_norm = false;
  spec.post_norm = PostNorm::RMS;
  spec.residual = Residual::Weighted;
  spec.parametrization = Parametrization::Unit;
  for (const char* recipe : {"munit", "bf16"}) same_bits_under_every_policy(make_recipe(recipe), spec);
}

TEST_CASE("recomputation gives the same bits with FP8 attention") {
  for (const Scaling scaling : {Scaling::Current, Scaling::Delayed}) {
    Recipe recipe = test::fp8(SmoothSwiGLU::Dual, scaling);
    recipe.attention = AttentionFormat::FP8;
    same_bits_under_every_policy(recipe);
  }
  Recipe mixed = test::fp8(SmoothSwiGLU::Dual);  // one block's core in BF16 beside one in FP8
  mixed.attention = AttentionFormat::FP8;
  mixed.first_blocks_bf16 = 1;
  same_bits_under_every_policy(mixed);
}

TEST_CASE("recomputation gives the same bits in fp32 and bf16") {
  same_bits_under_every_policy(make_recipe("fp32"));
  same_bits_under_every_policy(make_recipe("bf16"));
}

TEST_CASE("recomputation gives the same bits in simulated precision") {
  Recipe recipe = make_recipe("bf16");
  recipe.simulate = {8, 2};
  same_bits_under_every_policy(recipe);
}

TEST_CASE("recomputation gives the same bits in fp8, in every Smooth-SwiGLU mode") {
  for (SmoothSwiGLU mode : test::smooth_modes)
    for (Scaling scaling : {Scaling::Current, Scaling::Delayed}) {
      INFO(test::name_of(mode) << ", scaling " << static_cast<int>(scaling));
      same_bits_under_every_policy(test::fp8(mode, scaling));
    }
}

TEST_CASE("recomputation gives the same bits when roles, roundings and blocks are mixed") {
  Recipe recipe = make_recipe("fp8");
  SECTION("stochastic rounding") { recipe.input.rounding = recipe.grad.rounding = Rounding::Stochastic; }
  SECTION("BF16 first block") { recipe.first_blocks_bf16 = 1; }
  SECTION("BF16 last block") { recipe.last_blocks_bf16 = 1; }
  SECTION("BF16 gradients of outputs") { recipe.grad.format = Format::BF16; }
  SECTION("BF16 inputs") { recipe.input.format = Format::BF16; }
  SECTION("BF16 weights") { recipe.weight.format = Format::BF16; }
  SECTION("BF16 accumulators") { recipe.weight_gradient = Format::BF16; }
  SECTION("scales of rows") {
    recipe.input.scaling = recipe.weight.scaling = recipe.grad.scaling = Scaling::Rowwise;
  }
  SECTION("scales of blocks") { recipe = make_recipe("deepseek"); }
  SECTION("scales of rows, BF16 weight gradients") {
    recipe.input.scaling = recipe.grad.scaling = Scaling::Rowwise;
    recipe.gemms.wgrad = GemmFormat::Storage;
  }
  SECTION("another format of inputs and gradients in one block") {
    LinearFormats other = recipe.formats();
    other.input.format = Format::E5M2;
    other.grad.format = Format::E4M3;
    recipe.overrides = {{{BlockRange::From::Last, 0, 1}, {true, true, true, true}, other}};
  }
  SECTION("an FP8 head") { recipe.head = HeadFormat::FP8; }
  same_bits_under_every_policy(recipe);
}

TEST_CASE("every policy that recomputes more stores less") {
  for (const char* recipe : {"bf16", "fp8"}) {
    TransformerOptions options = test::tiny(recipe);
    options.spec.layers = 8;
    std::vector<size_t> activations;
    for (Recompute policy : policies) {
      options.recompute = policy;
      MemoryPlan plan;
      const Transformer model(nullptr, options, plan);
      size_t bytes = 0;
      for (const MemoryPlan::Item& item : plan.items())
        if (item.category == Category::Activations) bytes += item.bytes;
      activations.push_back(bytes);
    }
    CHECK(activations[1] < activations[0]);
    CHECK(activations[2] < activations[1]);
  }
}
