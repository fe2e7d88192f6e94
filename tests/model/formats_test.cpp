// Simulated precision, scales of rows, formats a GEMM and a layer: seen from the model.
#include <algorithm>
#include <functional>

#include "catch.h"
#include "model/block.h"
#include "model/gradients.h"
#include "numerics/small_float.h"

using namespace octet;
using test::Gradients;
using test::gradients_of;
using test::TinyModel;

namespace {

MatmulCounts counts_of(const TransformerOptions& options) {
  TinyModel tiny(options);
  tiny.device->reset_matmul_counts();
  tiny.train(test::random_batch(options, 0));
  return tiny.device->matmul_counts();
}

uint64_t flops_where(const MatmulCounts& counts, const std::function<bool(const MatmulKey&)>& holds) {
  uint64_t flops = 0;
  for (const auto& [key, count] : counts)
    if (holds(key)) flops += count.flops;
  return flops;
}
bool of_block(const MatmulKey& key) {
  return key.gemm_class == GemmClass::Fprop || key.gemm_class == GemmClass::Dgrad ||
         key.gemm_class == GemmClass::Wgrad;
}
bool reduced(const MatmulKey& key) { return key.simulate.reduces(); }
bool float8(const MatmulKey& key) { return size_of(key.a) == 1 && size_of(key.b) == 1; }

Recipe simulated(uint8_t exponent_bits, uint8_t mantissa_bits) {
  Recipe recipe = make_recipe("bf16");
  recipe.simulate = {exponent_bits, mantissa_bits};
  return recipe;
}
Recipe rowwise() {
  Recipe recipe = make_recipe("fp8");
  recipe.smooth_swiglu = SmoothSwiGLU::None;
  recipe.grad.format = Format::E4M3;
  for (Cast* cast : {&recipe.input, &recipe.weight, &recipe.grad}) cast->scaling = Scaling::Rowwise;
  return recipe;
}

struct Step {
  std::vector<uint64_t> losses, gradients;
  bool operator==(const Step&) const = default;
};
Step one_step(const Recipe& recipe) {
  const TransformerOptions options = test::tiny(recipe);
  TinyModel tiny(options);
  tiny.train(test::random_batch(options, 0));
  return {{tiny.hash(tiny.model->token_losses())}, tiny.gradient_hashes()};
}

// The GEMMs of every linear of a block, by class.
std::map<GemmClass, std::vector<Matmul>> products(const Recipe& recipe, int number) {
  const TransformerOptions options = test::tiny(recipe);
  MemoryPlan plan;
  ParameterList parameters(plan, plan, DType::F32);
  ScaleTable scales;
  RopeTable rope = plan_rope(options.spec, plan);
  const Blueprint blueprint{options, plan, parameters, scales, rope};
  const Block block(blueprint, number);
  std::map<GemmClass, std::vector<Matmul>> all;
  for (const Linear* linear : block.linears())
    for (const Matmul& m : linear->matmul_shapes(options.micro_batch * options.spec.context))
      all[m.gemm_class].push_back(m);
  return all;
}

Override override_of(const BlockRange& blocks, const LinearFormats& formats) {
  Override other;
  other.blocks = blocks;
  other.formats = formats;
  return other;
}
constexpr BlockRange first_block{BlockRange::From::First, 0, 1}, last_block{BlockRange::From::Last, 0, 1};

}  // namespace

// ---- simulation

TEST_CASE("simulation reduces both operands of every block GEMM, forward and backward, and nothing else") {
  const MatmulCounts counts = counts_of(test::tiny(simulated(8, 3)));
  for (const auto& [key, count] : counts) {
    INFO(name_of(key.gemm_class));
    CHECK(reduced(key) == of_block(key));
    if (of_block(key)) CHECK(operand_name(key, key.a) == "BF16 truncated to E8M3");
  }
  // All the work of a BF16 step, none of it called FP8.
  const MatmulCounts plain = counts_of(test::tiny("bf16"));
  CHECK(flops_where(counts, reduced) == flops_where(plain, of_block));
  CHECK(flops_where(plain, reduced) == 0);
  CHECK(flops_where(counts, float8) == 0);
}

TEST_CASE("E8M7 is the BF16 run bit for bit, fewer bits are not, and fewer still are further away") {
  const Step bf16 = one_step(make_recipe("bf16"));
  CHECK(one_step(simulated(8, 7)) == bf16);
  CHECK(one_step(simulated(8, 6)).gradients != bf16.gradients);
  CHECK(one_step(simulated(4, 7)).gradients != bf16.gradients);
  const Gradients exact = gradients_of(make_recipe("bf16"));
  double before = 0;
  for (const uint8_t bits : {uint8_t{6}, uint8_t{4}, uint8_t{2}}) {
    const double error = test::relative_error(gradients_of(simulated(8, bits)).at("blocks.0.ffn.down.weight"),
                                              exact.at("blocks.0.ffn.down.weight"));
    CHECK(error > before);
    before = error;
  }
}

TEST_CASE("a simulation ends where blocks are kept in BF16 or overridden") {
  const uint64_t all = flops_where(counts_of(test::tiny(simulated(8, 3))), reduced);
  Recipe recipe = simulated(8, 3);
  recipe.first_blocks_bf16 = 1;
  CHECK(flops_where(counts_of(test::tiny(recipe)), reduced) == all / 2);
  recipe = simulated(8, 3);
  LinearFormats finer = recipe.formats();
  finer.simulate.mantissa_bits = 5;
  recipe.overrides = {override_of(last_block, finer)};
  const MatmulCounts counts = counts_of(test::tiny(recipe));
  for (const int bits : {3, 5})
    CHECK(flops_where(counts, [&](const MatmulKey& key) { return key.simulate.mantissa_bits == bits; }) ==
          all / 2);
}

// ---- scales of rows

TEST_CASE("rowwise: both operands of all three GEMMs have a scale a row, in every layer") {
  for (const auto& [gemm_class, all] : products(rowwise(), 0)) {
    INFO(name_of(gemm_class));
    CHECK(all.size() == 4);
    for (const Matmul& m : all) {
      CHECK(m.a.granularity == ScaleGranularity::Outer);
      CHECK(m.b.granularity == ScaleGranularity::Outer);
    }
  }
  // The negative control: with one scale a tensor only the down projection's input has finer ones.
  for (const auto& [gemm_class, all] : products(make_recipe("fp8"), 0)) {
    const auto finer = std::count_if(all.begin(), all.end(), [](const Matmul& m) {
      return m.a.granularity == ScaleGranularity::Outer || m.b.granularity == ScaleGranularity::Outer;
    });
    CHECK(finer == (gemm_class == GemmClass::Dgrad ? 0 : 1));
  }
}

TEST_CASE("scales of rows keep rows that share a weight with rows 10^10 as large, one scale loses them") {
  const std::string expand = "blocks.1.ffn.gate_up.weight", name = "blocks.1.ffn.down.weight";
  // The ups lie 2^33 below the gates.
  const test::Disturb disturb = test::pull_gates_and_ups_apart(expand, 1e5f);
  const std::vector<double> exact = gradients_of(make_recipe("bf16"), disturb).at(name);
  const auto error = [&](const Recipe& recipe) {
    return test::relative_error(gradients_of(recipe, disturb).at(name), exact);
  };
  Recipe tensorwise = rowwise();
  for (Cast* cast : {&tensorwise.input, &tensorwise.weight, &tensorwise.grad})
    cast->scaling = Scaling::Current;
  CHECK(error(tensorwise) >= 0.9);  // h is zero
  // X and W of gate and up, h and dY: half an ulp of E4M3 each, 2^-4, and as much for the rest of the model.
  CHECK(error(rowwise()) <= 7 * 0x1p-4);
}

// ---- scales of blocks

TEST_CASE("blockwise: vectors of X and dY, squares of W, in every layer and nowhere fast") {
  const auto vectors = ScaleGranularity::Vectors, squares = ScaleGranularity::Squares;
  for (const auto& [gemm_class, all] : products(make_recipe("deepseek"), 0)) {
    INFO(name_of(gemm_class));
    CHECK(all.size() == 4);
    for (const Matmul& m : all) {
      CHECK(m.a.granularity == vectors);
      CHECK(m.b.granularity == (gemm_class == GemmClass::Wgrad ? vectors : squares));
      CHECK_FALSE(m.fast_accumulation);
    }
  }
}

namespace {

// Wider than a block: three of them along the width and the tokens, the last one partial.
TransformerOptions wide(const Recipe& recipe) {
  TransformerOptions options = test::tiny(recipe);
  options.spec.width = 272;
  options.spec.heads = 4;
  options.spec.kv_heads = 2;
  options.spec.head_width = 0;
  options.spec.ffn_width = 304;
  options.spec.context = 144;
  options.head_chunk = 80;
  return options;
}
}  // namespace

TEST_CASE("gradients of DeepSeek-V3's recipe differ from BF16's by roundings to E4M3") {
  const Gradients exact = gradients_of(wide(make_recipe("bf16")));
  for (const HeadFormat head : {HeadFormat::Storage, HeadFormat::FP8}) {
    Recipe recipe = make_recipe("deepseek"), tensorwise = recipe;
    recipe.head = tensorwise.head = head;
    for (Cast* cast : {&tensorwise.input, &tensorwise.weight, &tensorwise.grad})
      cast->scaling = Scaling::Current;
    const Gradients blocks = gradients_of(wide(recipe)), one_scale = gradients_of(wide(tensorwise));
    // As of rows above: X and W of gate and up, h and dY, and as much for the rest of the model.
    const std::string down = "blocks.1.ffn.down.weight";
    CHECK(test::relative_error(blocks.at(down), exact.at(down)) <= 7 * 0x1p-4);
    // No value is rounded further than with one scale a tensor, whose roundings are others.
    for (const auto& [name, gradient] : exact) {
      INFO(name);
      const double error = test::relative_error(blocks.at(name), gradient);
      CHECK(error <= 1.5 * test::relative_error(one_scale.at(name), gradient));
      CHECK(error > 0);
    }
  }
}

TEST_CASE("a block of rows of W that is 10^8 as large costs the other rows nothing, with one scale it does") {
  const std::string expand = "blocks.1.ffn.gate_up.weight", name = "blocks.1.ffn.down.weight";
  const test::Disturb disturb = test::pull_gates_and_ups_apart(expand, 1e4f);  // one scale loses the ups
  const std::vector<double> exact = gradients_of(wide(make_recipe("bf16")), disturb).at(name);
  // Rows of blocks that hold gates and ups both (304 is no multiple of 128) are lost by squares of W as well:
  // channels 0 to 79 of the ups share the gates' last one. The others are kept.
  const auto error = [&](const Recipe& recipe) {
    const std::vector<double> all = gradients_of(wide(recipe), disturb).at(name);
    std::vector<double> kept, expected;
    for (size_t i = 0; i < all.size(); ++i)
      if (i % 304 >= 80) {
        kept.push_back(all[i]);
        expected.push_back(exact[i]);
      }
    return test::relative_error(kept, expected);
  };
  Recipe tensorwise = make_recipe("deepseek");
  for (Cast* cast : {&tensorwise.input, &tensorwise.weight, &tensorwise.grad})
    cast->scaling = Scaling::Current;
  CHECK(error(tensorwise) >= 0.9);
  CHECK(error(make_recipe("deepseek")) <= 7 * 0x1p-4);
}

TEST_CASE("a GEMM that is kept in storage precision runs there, and the others in FP8") {
  Recipe recipe = rowwise();
  const uint64_t all = flops_where(counts_of(test::tiny(recipe)), float8);
  const auto ran = [&](GemmClass gemm_class) {
    return flops_where(counts_of(test::tiny(recipe)),
                       [&](const MatmulKey& key) { return key.gemm_class == gemm_class && float8(key); });
  };
  const auto keep = [&](GemmFormats gemms) { recipe.gemms = gemms; };
  keep({.wgrad = GemmFormat::Storage});  // SwitchBack
  CHECK(ran(GemmClass::Fprop) == all / 3);
  CHECK(ran(GemmClass::Dgrad) == all / 3);
  CHECK(ran(GemmClass::Wgrad) == 0);
  keep({.dgrad = GemmFormat::Storage});
  CHECK(ran(GemmClass::Dgrad) == 0);
  CHECK(ran(GemmClass::Wgrad) == all / 3);
  keep({.fprop = GemmFormat::Storage});
  CHECK(ran(GemmClass::Fprop) == 0);
  CHECK(ran(GemmClass::Dgrad) == all / 3);
}

TEST_CASE("a weight gradient in BF16 reads inputs and gradients as they were before the cast") {
  // With one linear's worth of FP8 in fprop and dgrad the last block's down projection sees the very gradient
  // of the loss; its weight gradient differs from BF16's by what the forward pass did, from FP8's by more.
  Recipe hp = rowwise();
  hp.gemms.wgrad = GemmFormat::Storage;
  const std::string name = "blocks.1.ffn.down.weight";
  const std::vector<double> exact = gradients_of(make_recipe("bf16")).at(name);
  CHECK(test::relative_error(gradients_of(hp).at(name), exact) <
        test::relative_error(gradients_of(rowwise()).at(name), exact));
}

// ---- overrides

TEST_CASE("an override puts the linears it names into other formats, and no others") {
  Recipe recipe = make_recipe("fp8");
  const uint64_t all = flops_where(counts_of(test::tiny(recipe)), float8);
  const TransformerSpec spec = test::tiny(recipe).spec;
  const int64_t tokens = 32;
  const auto three = [&](int64_t elements) { return static_cast<uint64_t>(3 * 2 * tokens * elements); };
  const auto left = [&] { return flops_where(counts_of(test::tiny(recipe)), float8); };
  Override bf16 = override_of(first_block, {});
  SECTION("a block") {
    recipe.overrides = {bf16};
    CHECK(left() == all / 2);
  }
  SECTION("one linear of a block") {
    for (bool& named : bf16.linears) named = false;
    bf16.linears[static_cast<int>(BlockLinear::Qkv)] = true;
    recipe.overrides = {bf16};
    CHECK(left() == all - three(spec.linear_elements(BlockLinear::Qkv)));
  }
  SECTION("the last one that names a linear decides, also about blocks kept in BF16") {
    recipe.first_blocks_bf16 = 2;
    CHECK(left() == 0);
    recipe.overrides = {override_of(first_block, recipe.formats())};
    CHECK(left() == all / 2);
    recipe.overrides.push_back(bf16);
    CHECK(left() == 0);
  }
  SECTION("another format of gradients, sharing the buffers of the blocks' residual gradient") {
    LinearFormats e4m3 = recipe.formats();
    e4m3.grad.format = Format::E4M3;
    recipe.overrides = {override_of(last_block, e4m3)};
    const MatmulCounts counts = counts_of(test::tiny(recipe));
    for (const DType type : {DType::E4M3, DType::E5M2})
      CHECK(flops_where(counts, [&](const MatmulKey& key) {
              return key.gemm_class == GemmClass::Dgrad && key.a == type;
            }) == all / 6);
    CHECK(test::relative_error(gradients_of(recipe).at("embedding.weight"),
                               gradients_of(make_recipe("bf16")).at("embedding.weight")) < 0.5);
  }
}

// ---- head

namespace {

TransformerOptions with_head(bool tied, Recipe recipe) {
  recipe.head = HeadFormat::FP8;
  TransformerOptions options = test::tiny(recipe);
  options.spec.vocabulary = 48;
  options.spec.tied_head = tied;
  options.head_chunk = 16;  // two chunks
  return options;
}

}  // namespace

TEST_CASE("the head's three GEMMs run in FP8 when they are asked to, tied or not") {
  for (const bool tied : {false, true}) {
    TransformerOptions options = with_head(tied, make_recipe("fp8"));
    const auto head = [&](GemmClass c, DType a, DType b) {
      return flops_where(counts_of(options), [&](const MatmulKey& key) {
        return key.gemm_class == c && key.a == a && key.b == b;
      });
    };
    const auto flops = static_cast<uint64_t>(2 * 32 * options.spec.vocabulary * options.spec.width);
    CHECK(head(GemmClass::HeadFprop, DType::E4M3, DType::E4M3) == flops);
    CHECK(head(GemmClass::HeadDgrad, DType::E5M2, DType::E4M3) == flops);
    CHECK(head(GemmClass::HeadWgrad, DType::E5M2, DType::E4M3) == flops);
    options.recipe.head = HeadFormat::Storage;
    CHECK(head(GemmClass::HeadFprop, DType::BF16, DType::BF16) == flops);
  }
}

TEST_CASE("an FP8 head's gradients differ from a BF16 head's by roundings to FP8") {
  for (const bool tied : {false, true})
    for (const Recipe& recipe : {make_recipe("fp8"), rowwise()}) {
      const auto gradient = [&](HeadFormat format) {
        TransformerOptions options = with_head(tied, recipe);
        options.recipe.head = format;
        TinyModel tiny(options);
        tiny.train(test::random_batch(options, 0));
        return tiny.values(tiny.parameter(tied ? "embedding.weight" : "head.weight").gradient);
      };
      const double error = test::relative_error(gradient(HeadFormat::FP8), gradient(HeadFormat::Storage));
      // Each of X, W and dY is rounded by half an ulp at most, 2^-4 or (E5M2) 2^-3; W and X reach the
      // gradient through the logits, X and dY as its operands.
      CHECK(error <= 4 * 0x1p-4 + 0x1p-3);
      CHECK(error > 0);
    }
}

TEST_CASE("the sites of an FP8 head are counted, and evaluation leaves them alone") {
  const TransformerOptions options = with_head(true, make_recipe("fp8"));
  TinyModel tiny(options);
  tiny.model->scales().count = true;
  tiny.train(test::random_batch(options, 0));
  const ScaleTable& table = tiny.model->scales();
  std::map<std::string, uint64_t> elements;
  const auto* counters = static_cast<const CastCounters*>(table.counters.data);
  for (size_t i = 0; i < table.sites.size(); ++i) elements[table.sites[i].name] = counters[i].elements;
  CHECK(elements.at("head.input") == static_cast<uint64_t>(32 * options.spec.width));
  CHECK(elements.at("head.grad") == static_cast<uint64_t>(32 * options.spec.vocabulary));
  const std::vector<uint64_t> scales = tiny.scale_hashes();
  tiny.evaluate(test::random_batch(options, 1));
  CHECK(tiny.scale_hashes()[3] == scales[3]);
  CHECK(tiny.scale_hashes()[4] == scales[4]);
}
