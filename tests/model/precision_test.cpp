// What ran in which format, as the matrix products counted it.
#include <array>

#include "catch.h"
#include "model/block.h"
#include "model/tiny_model.h"

using namespace octet;
using test::TinyModel;

namespace {

struct Total {
  uint64_t calls = 0, flops = 0;
};
// Of linear layers, by class and operands.
Total total(const MatmulCounts& counts, GemmClass gemm_class, DType a, DType b) {
  Total sum;
  for (const auto& [key, count] : counts)
    if (key.gemm_class == gemm_class && key.a == a && key.b == b) {
      sum.calls += count.calls;
      sum.flops += count.flops;
    }
  return sum;
}
bool float8(DType t) { return t == DType::E4M3 || t == DType::E5M2; }
uint64_t float8_flops(const MatmulCounts& counts) {
  uint64_t flops = 0;
  for (const auto& [key, count] : counts)
    if (float8(key.a) && float8(key.b)) flops += count.flops;
  return flops;
}
bool in_a_linear(GemmClass c) {
  return c == GemmClass::Fprop || c == GemmClass::Dgrad || c == GemmClass::Wgrad ||
         c == GemmClass::HeadFprop || c == GemmClass::HeadDgrad || c == GemmClass::HeadWgrad;
}

MatmulCounts counts_of(const TransformerOptions& options) {
  TinyModel tiny(options);
  tiny.device->reset_matmul_counts();
  tiny.train(test::random_batch(options, 0));
  return tiny.device->matmul_counts();
}

uint64_t block_flops(const TransformerSpec& spec, int64_t tokens) {
  const int64_t per_block = spec.width * (spec.qkv_width() + spec.attention_width() + 3 * spec.ffn_width);
  return static_cast<uint64_t>(2 * tokens * per_block);
}

}  // namespace

TEST_CASE("in fp8 every GEMM of every block reads FP8 codes, the head reads BF16") {
  const TransformerOptions options = test::tiny("fp8");
  const auto layers = static_cast<uint64_t>(options.spec.layers);
  const int64_t tokens = options.micro_batch * options.spec.context;
  const uint64_t gemm = layers * block_flops(options.spec, tokens);
  const MatmulCounts counts = counts_of(options);
  const auto is = [&](GemmClass c, DType a, DType b, uint64_t calls, uint64_t flops) {
    const Total sum = total(counts, c, a, b);
    CHECK(sum.calls == calls);
    CHECK(sum.flops == flops);
  };
  is(GemmClass::Fprop, DType::E4M3, DType::E4M3, 4 * layers, gemm);
  is(GemmClass::Dgrad, DType::E5M2, DType::E4M3, 4 * layers, gemm);
  is(GemmClass::Wgrad, DType::E5M2, DType::E4M3, 4 * layers, gemm);
  const auto head = static_cast<uint64_t>(2 * tokens * options.spec.vocabulary * options.spec.width);
  for (GemmClass c : {GemmClass::HeadFprop, GemmClass::HeadDgrad, GemmClass::HeadWgrad})
    is(c, DType::BF16, DType::BF16, 1, head);
  CHECK(float8_flops(counts) == 3 * gemm);
}

TEST_CASE("all formats do the same work: six times the weights of GEMMs") {
  for (const char* recipe : {"fp32", "bf16", "fp8"}) {
    const TransformerOptions options = test::tiny(recipe);
    uint64_t flops = 0;
    for (const auto& [key, count] : counts_of(options))
      if (in_a_linear(key.gemm_class)) flops += count.flops;
    const int64_t tokens = options.micro_batch * options.spec.context;
    CHECK(flops == static_cast<uint64_t>(6 * tokens * options.spec.matmul_parameters()));
  }
  CHECK(float8_flops(counts_of(test::tiny("bf16"))) == 0);
  CHECK(float8_flops(counts_of(test::tiny("fp32"))) == 0);
}

TEST_CASE("the counter follows what ran: linears that stay in BF16 leave the FP8 count") {
  TransformerOptions options = test::tiny("fp8");
  const int64_t tokens = options.micro_batch * options.spec.context;
  const uint64_t all = float8_flops(counts_of(options)), block = 3 * block_flops(options.spec, tokens);
  const auto down = static_cast<uint64_t>(2 * tokens * options.spec.width * options.spec.ffn_width);
  REQUIRE(all == 2 * block);

  SECTION("first block") {
    options.recipe.first_blocks_bf16 = 1;
    CHECK(float8_flops(counts_of(options)) == block);
  }
  SECTION("first and last block: nothing is left") {
    options.recipe.first_blocks_bf16 = options.recipe.last_blocks_bf16 = 1;
    CHECK(float8_flops(counts_of(options)) == 0);
  }
  SECTION("Smooth-SwiGLU bf16: the down projections") {
    options.recipe.smooth_swiglu = SmoothSwiGLU::BF16;
    CHECK(float8_flops(counts_of(options)) == all - 2 * 3 * down);
  }
  SECTION("a GEMM is FP8 only when both of its operands are") {
    options.recipe.grad.format = Format::BF16;
    const MatmulCounts counts = counts_of(options);
    CHECK(total(counts, GemmClass::Fprop, DType::E4M3, DType::E4M3).flops == all / 3);
    CHECK(total(counts, GemmClass::Dgrad, DType::BF16, DType::BF16).flops == all / 3);
    CHECK(total(counts, GemmClass::Wgrad, DType::BF16, DType::BF16).flops == all / 3);
  }
  SECTION("output gradients may be E4M3") {
    options.recipe.grad.format = Format::E4M3;
    CHECK(total(counts_of(options), GemmClass::Wgrad, DType::E4M3, DType::E4M3).flops == all / 3);
  }
}

TEST_CASE("recomputation shows in the count") {
  TransformerOptions options = test::tiny("fp8");
  const auto fprop = [&](Recompute policy) {
    options.recompute = policy;
    return total(counts_of(options), GemmClass::Fprop, DType::E4M3, DType::E4M3).calls;
  };
  const auto layers = static_cast<uint64_t>(options.spec.layers);
  CHECK(fprop(Recompute::None) == 4 * layers);
  CHECK(fprop(Recompute::NormsAndSwiGLU) == 4 * layers);
  CHECK(fprop(Recompute::Block) == 7 * layers);  // all but the down projection once more
}

TEST_CASE("evaluation gives the training losses and touches nothing") {
  std::vector<Recipe> recipes{make_recipe("fp32"), make_recipe("bf16")};
  for (SmoothSwiGLU mode : test::smooth_modes) {
    recipes.push_back(test::fp8(mode, Scaling::Current));
    recipes.push_back(test::fp8(mode, Scaling::Delayed));
  }
  recipes.push_back(test::fp8(SmoothSwiGLU::None, Scaling::Rowwise));
  recipes.push_back(make_recipe("deepseek"));
  recipes.push_back(make_recipe("bf16"));
  recipes.back().simulate = {8, 2};
  for (const Recipe& recipe : recipes) {
    INFO(recipe.name << " " << test::name_of(recipe.smooth_swiglu));
    const TransformerOptions options = test::tiny(recipe);
    TinyModel tiny(options);
    tiny.model->scales().count = true;
    tiny.train(test::random_batch(options, 0));
    tiny.model->update_scales(0);
    tiny.model->refresh_working_weights(1);
    tiny.train(test::random_batch(options, 1));
    const uint64_t training_losses = tiny.hash(tiny.model->token_losses());
    const std::vector<uint64_t> scales = tiny.scale_hashes(), gradients = tiny.gradient_hashes();

    tiny.evaluate(test::random_batch(options, 2));
    CHECK(tiny.hash(tiny.model->token_losses()) != training_losses);
    tiny.evaluate(test::random_batch(options, 1));
    CHECK(tiny.hash(tiny.model->token_losses()) == training_losses);
    CHECK(tiny.gradient_hashes() == gradients);
    if (!recipe.float8()) continue;
    const std::vector<uint64_t> after = tiny.scale_hashes();
    CHECK(after[0] == scales[0]);  // history
    CHECK(after[3] == scales[3]);  // amax
    CHECK(after[4] == scales[4]);  // counters
    // Negative control: training on those batches does record.
    tiny.train(test::random_batch(options, 2));
    CHECK(tiny.scale_hashes()[4] != scales[4]);
  }
}

namespace {

// [fprop, dgrad, wgrad] of every linear of the first block that asks for fast accumulation.
std::array<int, 3> fast_products(const TransformerOptions& options) {
  MemoryPlan plan;
  ParameterList parameters(plan, plan, DType::F32);
  ScaleTable scales;
  RopeTable rope = plan_rope(options.spec, plan);
  const Blueprint blueprint{options, plan, parameters, scales, rope};
  const Block block(blueprint, 0);
  std::array<int, 3> count{};
  for (const Linear* linear : block.linears())
    for (const Matmul& m : linear->matmul_shapes(options.micro_batch * options.spec.context))
      count.at(static_cast<size_t>(m.gemm_class)) += m.fast_accumulation;
  return count;
}

}  // namespace

TEST_CASE("fast accumulation is asked for by the products the recipe names, and by no BF16 product") {
  TransformerOptions options = test::tiny("fp8");
  CHECK(fast_products(options) == std::array{4, 0, 0});  // the default of the field
  CHECK(fast_products(test::tiny("bf16")) == std::array{0, 0, 0});
  options.recipe.fast_accumulation = {.fprop = false, .dgrad = true, .wgrad = false};
  CHECK(fast_products(options) == std::array{0, 4, 0});
  options.recipe.fast_accumulation = {.fprop = false, .dgrad = false, .wgrad = true};
  CHECK(fast_products(options) == std::array{0, 0, 4});
  options.recipe.smooth_swiglu = SmoothSwiGLU::BF16;  // the down projection has no FP8 product left
  CHECK(fast_products(options) == std::array{0, 0, 3});
  options.recipe.first_blocks_bf16 = 1;
  CHECK(fast_products(options) == std::array{0, 0, 0});
}

TEST_CASE("with FP8 attention every product of every block reads FP8 codes, attention's six included") {
  TransformerOptions options = test::tiny("fp8");
  options.recipe.attention = AttentionFormat::FP8;
  const auto layers = static_cast<uint64_t>(options.spec.layers);
  const auto product = [&](int64_t blocks) {  // one of attention's, over the causal half
    const TransformerSpec& s = options.spec;
    return static_cast<uint64_t>(blocks * options.micro_batch * s.heads * s.context * (s.context + 1) *
                                 s.head_width_());
  };
  const MatmulCounts counts = counts_of(options);
  const Total forward = total(counts, GemmClass::Attention, DType::E4M3, DType::E4M3),
              gradients = total(counts, GemmClass::Attention, DType::E5M2, DType::E4M3);
  CHECK(forward.calls == 2 * layers);  // Q K^T and P V; Q K^T once more in backward
  CHECK(forward.flops == 3 * product(options.spec.layers));
  CHECK(gradients.calls == layers);
  CHECK(gradients.flops == 4 * product(options.spec.layers));
  CHECK(total(counts, GemmClass::Attention, DType::BF16, DType::BF16).calls == 0);
  for (const auto& [key, count] : counts) {
    INFO(octet::name_of(key.gemm_class) << " " << octet::name_of(key.a) << " x " << octet::name_of(key.b));
    const bool head = key.gemm_class == GemmClass::HeadFprop || key.gemm_class == GemmClass::HeadDgrad ||
                      key.gemm_class == GemmClass::HeadWgrad;
    CHECK((float8(key.a) && float8(key.b)) == !head);
  }
  // A block that stays in BF16 keeps its attention there.
  options.recipe.first_blocks_bf16 = 1;
  const MatmulCounts mixed = counts_of(options);
  CHECK(total(mixed, GemmClass::Attention, DType::BF16, DType::BF16).flops == 7 * product(1));
  CHECK(total(mixed, GemmClass::Attention, DType::E4M3, DType::E4M3).flops ==
        3 * product(options.spec.layers - 1));
}
