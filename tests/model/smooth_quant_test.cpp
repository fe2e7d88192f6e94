// SmoothQuant of every block linear, seen from the model.
#include <map>

#include "catch.h"
#include "error_of.h"
#include "model/gradients.h"

using namespace octet;
using test::Gradients;
using test::gradients_of;
using test::TinyModel;

namespace {

Recipe smoothed(double alpha = 0.5) {
  Recipe recipe = test::fp8(SmoothSwiGLU::None);
  recipe.smooth_quant = alpha;
  return recipe;
}
constexpr const char* linears[] = {"attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"};

std::map<std::string, int> sites_of(const TransformerOptions& options) {
  MemoryPlan plan;
  Transformer model(nullptr, options, plan);
  std::map<std::string, int> names;
  for (const SiteInfo& site : model.scales().sites) names[site.name] = site.block;
  return names;
}

}  // namespace

TEST_CASE("SmoothQuant is every FP8 linear's of a block and nobody else's", "[smooth_quant]") {
  TransformerOptions options = test::tiny(smoothed());
  options.spec.vocabulary = 48;
  options.recipe.head = HeadFormat::FP8;
  options.recipe.first_blocks_bf16 = 1;
  const std::map<std::string, int> names = sites_of(options);
  for (const char* linear : linears) {
    INFO(linear);
    CHECK(names.count(std::string("blocks.1.") + linear + ".weight_with_channel_scales") == 1);
    CHECK(names.count(std::string("blocks.0.") + linear + ".weight_with_channel_scales") == 0);
  }
  CHECK(names.count("head.weight") == 1);
  CHECK(names.count("head.weight_with_channel_scales") == 0);

  // Its memory: the weights' maxima, and a scale a column of the inputs.
  const auto bytes = [](const Recipe& recipe, const char* part) {
    MemoryPlan plan;
    const Transformer model(nullptr, test::tiny(recipe), plan);
    int64_t sum = 0;
    for (const MemoryPlan::Item& item : plan.items())
      if (item.name.find(part) != std::string::npos)
        sum += Tensor{nullptr, item.dtype, item.shape}.elements();
    return sum;
  };
  CHECK(bytes(smoothed(), "channel_amax") == 2 * (32 + 32 + 32 + 48));
  CHECK(bytes(smoothed(0), "channel_amax") == 0);
}

TEST_CASE("without outliers SmoothQuant is as good as plain FP8", "[smooth_quant]") {
  const Gradients exact = gradients_of(make_recipe("bf16")), plain = gradients_of(smoothed(0)),
                  smooth = gradients_of(smoothed());
  for (const auto& [name, gradient] : exact) {
    INFO(name);
    CHECK(test::relative_error(smooth.at(name), gradient) <=
          1.5 * test::relative_error(plain.at(name), gradient));
  }
}

TEST_CASE("with an outlier channel in front of a linear SmoothQuant keeps the others, plain FP8 loses them",
          "[smooth_quant]") {
  constexpr int64_t channel = 5, width = 32;
  constexpr float factor = 0x1p20f;
  // The norm's gain blows a channel up, the linear's weight takes it back: the model stays what it is.
  for (const auto& [gain, weight] :
       {std::pair{"blocks.1.attention_norm.gain", "blocks.1.attention.qkv.weight"},
        std::pair{"blocks.1.ffn_norm.gain", "blocks.1.ffn.gate_up.weight"}}) {
    INFO(weight);
    const test::Disturb outlier = [gain = gain, weight = weight](TinyModel& tiny) {
      tiny.parameter(gain).master.as<float>()[channel] *= factor;
      const Tensor& master = tiny.parameter(weight).master;
      for (int64_t row = 0; row < master.rows(); ++row) master.as<float>()[row * width + channel] /= factor;
    };
    const auto others = [name = std::string(weight)](const Gradients& gradients) {
      std::vector<double> kept;
      const std::vector<double>& all = gradients.at(name);
      for (size_t i = 0; i < all.size(); ++i)
        if (static_cast<int64_t>(i) % width != channel) kept.push_back(all[i]);
      return kept;
    };
    const std::vector<double> exact = others(gradients_of(make_recipe("bf16"), outlier));
    const auto error = [&](const Recipe& recipe, const test::Disturb& disturb) {
      return test::relative_error(others(gradients_of(recipe, disturb)), exact);
    };
    const double calm = error(smoothed(0), {});
    CHECK(calm < 0.3);
    CHECK(error(smoothed(0), outlier) >= 0.9);
    // X and W of this product rounded otherwise: half an ulp of E4M3 each.
    CHECK(error(smoothed(), outlier) <= calm + 2 * 0x1p-4);
  }
}

TEST_CASE("recomputed, evaluated and delayed, SmoothQuant has the bits of a pass", "[smooth_quant]") {
  for (const bool norms : {true, false})
    for (const Scaling weight : {Scaling::Current, Scaling::Delayed}) {
      INFO((norms ? "norms in front" : "no norms") << ", weight " << static_cast<int>(weight));
      TransformerOptions options = test::tiny(smoothed());
      options.spec.pre_norm = options.spec.final_norm = norms;
      options.recipe.weight.scaling = options.recipe.grad.scaling = weight;
      const auto bits = [&](Recompute recompute) {
        options.recompute = recompute;
        TinyModel tiny(options);
        for (int micro = 0; micro < 2; ++micro) tiny.train(test::random_batch(options, 7), {3, micro});
        std::vector<uint64_t> all = tiny.gradient_hashes();
        for (const uint64_t hash : tiny.scale_hashes()) all.push_back(hash);
        const uint64_t losses = tiny.hash(tiny.model->token_losses());
        all.push_back(losses);
        tiny.evaluate(test::random_batch(options, 7));
        CHECK(tiny.hash(tiny.model->token_losses()) == losses);
        return all;
      };
      const std::vector<uint64_t> stored = bits(Recompute::None);
      CHECK(bits(Recompute::NormsAndSwiGLU) == stored);
      CHECK(bits(Recompute::Block) == stored);
    }
}

TEST_CASE("SmoothQuant reads whole FP32 masters on the device and refuses what has none", "[smooth_quant]") {
  const auto refusal = [](TransformerOptions options, bool offload) {
    return error_of([&] {
      MemoryPlan plan, host;
      const Transformer model(nullptr, options, plan, offload ? &host : nullptr);
    });
  };
  TransformerOptions options = test::tiny(smoothed());
  CHECK_THAT(refusal(options, true).what(), contains_text("offloaded masters: smooth_quant"));
  options.sharding = {.ranks = 2};
  CHECK_THAT(refusal(options, false).what(), contains_text("sharded masters: smooth_quant"));
  options.sharding = {};
  options.recipe.master = MasterFormat::FP16Scaled;
  const Error masters = refusal(options, false);
  CHECK_THAT(masters.what(), contains_text("smooth_quant multiplies FP32 masters"));
  CHECK_THAT(masters.hint(), contains_text("precision.master \"fp32\""));
}
