// The plan holds what the formulas say, and placing agrees with measuring.
#include <map>

#include "catch.h"
#include "model/tiny_model.h"

using namespace octet;
using test::TinyModel;

namespace {

// Sizes whose buffers are multiples of the alignment, so that sums of items are sums of the plan.
TransformerOptions roomy(const Recipe& recipe) {
  TransformerOptions options = test::tiny(recipe);
  options.spec.width = 64;
  options.spec.ffn_width = 128;
  options.spec.context = 64;
  options.spec.vocabulary = 64;
  return options;
}

std::vector<MemoryPlan::Item> items_of(const TransformerOptions& options) {
  MemoryPlan plan;
  const Transformer model(nullptr, options, plan);
  return plan.items();
}
int64_t bytes_in(const std::vector<MemoryPlan::Item>& items, Category category,
                 const std::string& prefix = "") {
  int64_t bytes = 0;
  for (const MemoryPlan::Item& item : items)
    if (item.category == category && item.name.rfind(prefix, 0) == 0)
      bytes += static_cast<int64_t>(item.bytes);
  return bytes;
}

struct Sizes {
  explicit Sizes(const TransformerOptions& o)
      : parameters(o.spec.parameters()),
        tables(2 * o.spec.vocabulary * o.spec.width),
        matrices(o.spec.matmul_parameters() - o.spec.vocabulary * o.spec.width),
        vectors(parameters - tables - matrices),
        tokens(o.micro_batch * o.spec.context),
        width(o.spec.width),
        qkv(o.spec.qkv_width()),
        attention(o.spec.attention_width()),
        ffn(o.spec.ffn_width),
        heads(o.spec.heads) {}
  int64_t parameters, tables, matrices, vectors, tokens, width, qkv, attention, ffn, heads;
};

}  // namespace

TEST_CASE("masters and gradients cost what their formats say") {
  TransformerOptions options = roomy(make_recipe("fp8"));
  const Sizes n(options);
  CHECK(bytes_in(items_of(options), Category::Masters) == 4 * n.parameters);
  CHECK(bytes_in(items_of(options), Category::Gradients) == 4 * n.parameters);
  options.recipe.weight_gradient = Format::BF16;
  CHECK(bytes_in(items_of(options), Category::Gradients) == 2 * (n.parameters - n.vectors) + 4 * n.vectors);
}

TEST_CASE("working weights: none in fp32, a BF16 copy in bf16, two FP8 copies of block weights in fp8") {
  const auto working = [](const Recipe& recipe) {
    return bytes_in(items_of(roomy(recipe)), Category::WorkingWeights);
  };
  const Sizes n(roomy(make_recipe("bf16")));
  CHECK(working(make_recipe("fp32")) == 0);
  CHECK(working(make_recipe("bf16")) == 2 * (n.matrices + n.tables));
  CHECK(working(make_recipe("fp8")) == 2 * n.matrices + 2 * n.tables);
  // A role that is not FP8 brings the BF16 copy back beside the codes that are still read.
  Recipe recipe = make_recipe("fp8");
  recipe.grad.format = Format::BF16;
  CHECK(working(recipe) == (1 + 2) * n.matrices + 2 * n.tables);
}

TEST_CASE("a block stores the activations its policy names") {
  const auto block = [](const Recipe& recipe, Recompute policy) {
    TransformerOptions options = roomy(recipe);
    options.recompute = policy;
    return bytes_in(items_of(options), Category::Activations, "blocks.1.");
  };
  const Sizes n(roomy(make_recipe("bf16")));
  // r, r', qkv, attention output and [gate | up] in storage; two rstd and the log-sum-exp in F32.
  const int64_t stream = n.width, sums = 4 * (2 + n.heads),
                others = n.width + n.qkv + n.attention + 2 * n.ffn, norms = 2 * n.width, hidden = n.ffn;
  SECTION("bf16") {
    const Recipe recipe = make_recipe("bf16");
    CHECK(block(recipe, Recompute::None) == n.tokens * (2 * (stream + others + norms + hidden) + sums));
    CHECK(block(recipe, Recompute::NormsAndSwiGLU) == n.tokens * (2 * (stream + others) + sums));
    CHECK(block(recipe, Recompute::Block) == n.tokens * 2 * stream);
  }
  SECTION("fp8: one byte for what only a GEMM reads") {
    const Recipe recipe = make_recipe("fp8");
    const int64_t codes = n.attention, channel_scales = 4 * n.ffn;
    CHECK(block(recipe, Recompute::None) ==
          n.tokens * (2 * (stream + others) + codes + norms + hidden + sums) + channel_scales);
    CHECK(block(recipe, Recompute::NormsAndSwiGLU) == n.tokens * (2 * (stream + others) + codes + sums));
    CHECK(block(recipe, Recompute::Block) == n.tokens * 2 * stream);
  }
  SECTION("fp32") {
    CHECK(block(make_recipe("fp32"), Recompute::None) ==
          n.tokens * (4 * (stream + others + norms + hidden) + sums));
  }
  SECTION("token scales are always kept: the next block's backward reads them first") {
    CHECK(block(test::fp8(SmoothSwiGLU::Token), Recompute::Block) == n.tokens * (2 * stream + 4));
  }
}

TEST_CASE("the scale table has a row of state a site") {
  const TransformerOptions options = roomy(make_recipe("fp8"));
  const int64_t sites = 2 * 4 * 3;
  CHECK(bytes_in(items_of(options), Category::ScaleTable) ==
        sites * (4 * (options.recipe.delayed.window + 3) + 24 + static_cast<int64_t>(sizeof(Cast))));
  CHECK(bytes_in(items_of(roomy(make_recipe("bf16"))), Category::ScaleTable) == 0);
}

TEST_CASE("placing takes exactly what measuring found") {
  for (const char* recipe : {"fp32", "bf16", "fp8"})
    for (Recompute policy : {Recompute::None, Recompute::NormsAndSwiGLU, Recompute::Block}) {
      TransformerOptions options = test::tiny(recipe);
      options.recompute = policy;
      const TinyModel tiny(options);
      CHECK(tiny.placed_bytes == tiny.peak_bytes);
      // Negative control: in an arena one alignment smaller it refuses to be built.
      const test::Arena arena(*tiny.device, tiny.peak_bytes - MemoryPlan::alignment);
      MemoryPlan tight = arena.plan();
      CHECK_THROWS_AS(Transformer(tiny.device.get(), options, tight), Error);
    }
}

TEST_CASE("logits of all tokens never exist at once") {
  TransformerOptions options = roomy(make_recipe("bf16"));
  options.spec.vocabulary = 32768;
  const auto scratch = [&](int64_t chunk) {
    options.head_chunk = chunk;
    return bytes_in(items_of(options), Category::Scratch, "scratch");
  };
  // The head dominates the scratch at this vocabulary: 64 tokens fewer save 64 rows of BF16 logits.
  CHECK(scratch(128) - scratch(64) == 64 * 32768 * 2);
}

TEST_CASE("what is planned without a device is what the default CPU device gets") {
  const TransformerOptions options = test::tiny("fp8");
  MemoryPlan without, with;
  const Transformer model_without(nullptr, options, without);
  const std::unique_ptr<Device> device = make_cpu_device({});
  const Transformer model_with(device.get(), options, with);
  CHECK(without.peak_bytes() == with.peak_bytes());
}

TEST_CASE("FP8 attention keeps queries, keys, values and its output as codes: a byte instead of two") {
  const auto stored = [](AttentionFormat attention) {
    TransformerOptions options = roomy(make_recipe("fp8"));
    options.recipe.attention = attention;
    return bytes_in(items_of(options), Category::Activations, "blocks.1.");
  };
  const Sizes n(roomy(make_recipe("fp8")));
  CHECK(stored(AttentionFormat::Storage) - stored(AttentionFormat::FP8) == n.tokens * (n.qkv + n.attention));
}
