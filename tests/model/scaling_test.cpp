// Delayed scaling and Smooth-SwiGLU, seen from the model.
#include "numerics/scaling.h"

#include <map>

#include "catch.h"
#include "model/gradients.h"

using namespace octet;
using test::Gradients;
using test::gradients_of;
using test::TinyModel;

namespace {

std::vector<double> scales_of(TinyModel& tiny) { return tiny.values(tiny.model->scales().scale); }

void finish_step(TinyModel& tiny, int64_t step) {
  tiny.model->update_scales(step);
  tiny.model->refresh_working_weights(step + 1);
}

}  // namespace

TEST_CASE("delayed scales of a step depend on earlier steps only") {
  TransformerOptions options = test::tiny(test::fp8(SmoothSwiGLU::None, Scaling::Delayed));
  options.recipe.attention = AttentionFormat::FP8;
  TinyModel a(options), b(options);
  for (TinyModel* tiny : {&a, &b}) {
    tiny->train(test::random_batch(options, 0), {0, 0});
    finish_step(*tiny, 0);
  }
  const std::vector<double> before = scales_of(a);
  REQUIRE(before == scales_of(b));

  // Step 1 differs: a trains on another batch with larger weights than b.
  const Tensor gain = a.parameter("blocks.0.attention_norm.gain").master;
  a.device->fill(gain, 64.0f);
  a.train(test::random_batch(options, 1), {1, 0});
  b.train(test::random_batch(options, 2), {1, 0});
  CHECK(scales_of(a) == before);
  CHECK(scales_of(b) == before);

  // Only the next step sees it.
  finish_step(a, 1);
  finish_step(b, 1);
  CHECK(scales_of(a) != scales_of(b));
}

TEST_CASE("a delayed scale is the rule's scale of the largest amax in the window") {
  TransformerOptions options = test::tiny(test::fp8(SmoothSwiGLU::None, Scaling::Delayed));
  options.recipe.attention = AttentionFormat::FP8;
  TinyModel tiny(options);
  const ScaleTable& table = tiny.model->scales();
  std::vector<double> largest(table.sites.size(), 0.0);
  for (int64_t step = 0; step < 3; ++step) {
    tiny.train(test::random_batch(options, static_cast<uint64_t>(step)), {step, 0});
    const std::vector<double> amax = tiny.values(table.amax);
    for (size_t i = 0; i < amax.size(); ++i) largest[i] = std::max(largest[i], amax[i]);
    finish_step(tiny, step);
    const std::vector<double> scale = scales_of(tiny);
    for (size_t i = 0; i < scale.size(); ++i) {
      INFO(table.sites[i].name);
      CHECK(scale[i] == static_cast<double>(power_of_two_scale(static_cast<float>(largest[i]),
                                                               max_of(table.sites[i].cast.format))));
    }
  }
}

TEST_CASE(
    "FP8 attention has five sites a block, delayed where a fused kernel needs their scales beforehand") {
  for (const Scaling scaling : {Scaling::Current, Scaling::Delayed}) {
    TransformerOptions options = test::tiny(test::fp8(SmoothSwiGLU::Dual, scaling));
    options.recipe.attention = AttentionFormat::FP8;
    options.recipe.last_blocks_bf16 = 1;
    MemoryPlan plan;
    Transformer model(nullptr, options, plan);
    std::map<std::string, Cast> cores;
    for (const SiteInfo& site : model.scales().sites)
      if (site.name.find(".core.") != std::string::npos) cores[site.name] = site.cast;
    const auto is = [&](const char* what, Format format, Scaling expected) {
      const Cast cast = cores.at(std::string("blocks.0.attention.core.") + what);
      CHECK(cast == Cast{format, expected, ScaleRule::PowerOfTwo, Rounding::Nearest});
    };
    CHECK(cores.size() == 5);  // none in the last block
    is("qkv", Format::E4M3, scaling);
    is("output", Format::E4M3, Scaling::Delayed);
    is("output_grad", Format::E5M2, scaling);
    is("score_grad", Format::E5M2, Scaling::Delayed);
    is("qkv_grad", Format::E5M2, Scaling::Delayed);
  }
}

TEST_CASE("every FP8 role of every linear has its site, by name") {
  const auto names = [](const Recipe& recipe) {
    MemoryPlan plan;
    TransformerOptions options = test::tiny(recipe);
    Transformer model(nullptr, options, plan);
    std::map<std::string, int> blocks;
    for (const SiteInfo& site : model.scales().sites) blocks[site.name] = site.block;
    return blocks;
  };
  const std::map<std::string, int> dual = names(test::fp8(SmoothSwiGLU::Dual));
  CHECK(dual.size() == 2 * 4 * 3);
  for (const char* linear : {"attention.qkv", "attention.out", "ffn.gate_up", "ffn.down"})
    for (const char* role : {"input", "weight", "grad"}) {
      const std::string name = std::string("blocks.1.") + linear + "." + role;
      REQUIRE(dual.count(name) == 1);
      CHECK(dual.at(name) == 1);
    }
  CHECK(names(test::fp8(SmoothSwiGLU::Token)).count("blocks.0.ffn.down.grad_with_token_scales") == 1);
  CHECK(names(test::fp8(SmoothSwiGLU::Channel)).count("blocks.0.ffn.down.weight_with_channel_scales") == 1);
  CHECK(names(test::fp8(SmoothSwiGLU::BF16)).count("blocks.0.ffn.down.input") == 0);
  CHECK(names(make_recipe("bf16")).empty());
}

TEST_CASE("counted sites count each value of a step once, recomputed or not, and no evaluation") {
  Recipe recipe = test::fp8(SmoothSwiGLU::Dual, Scaling::Quantile);
  recipe.weight.scaling = Scaling::Current;
  recipe.grad.scaling = Scaling::Following;
  std::vector<uint64_t> plain;
  for (const Recompute recompute : {Recompute::None, Recompute::Block}) {
    TransformerOptions options = test::tiny(recipe);
    options.recompute = recompute;
    TinyModel tiny(options);
    const ScaleTable& table = tiny.model->scales();
    const auto* counters = static_cast<const CastCounters*>(table.counters.data);
    std::vector<uint64_t> elements;
    for (int64_t micro = 0; micro < 2; ++micro) tiny.train(test::random_batch(options, 0), {0, micro});
    tiny.evaluate(test::random_batch(options, 1));
    tiny.device->synchronize();
    const int64_t tokens = options.micro_batch * options.spec.context;
    for (size_t s = 0; s < table.sites.size(); ++s) {
      const std::string& name = table.sites[s].name;
      INFO(name);
      elements.push_back(counters[s].elements);
      const bool counted = is_counted(table.sites[s].cast.scaling);
      CHECK(counted == (!name.ends_with(".weight") && name.find("down.input") == std::string::npos));
      CHECK((counters[s].elements > 0) == counted);
      if (name.ends_with("qkv.input"))
        CHECK(counters[s].elements == static_cast<uint64_t>(2 * tokens * options.spec.width));
    }
    if (recompute == Recompute::None) plain = elements;
    CHECK(elements == plain);
  }
}

TEST_CASE("without outliers every Smooth-SwiGLU mode is as good as plain FP8") {
  const Gradients exact = gradients_of(make_recipe("bf16"));
  const Gradients plain = gradients_of(test::fp8(SmoothSwiGLU::None));
  for (SmoothSwiGLU mode : test::smooth_modes) {
    INFO(test::name_of(mode));
    const Gradients smooth = gradients_of(test::fp8(mode));
    for (const auto& [name, gradient] : exact) {
      INFO(name);
      const double error = test::relative_error(smooth.at(name), gradient);
      CHECK(error <= 1.5 * test::relative_error(plain.at(name), gradient));
      CHECK(error > 0);
    }
  }
}

TEST_CASE("with an outlier channel the smooth modes keep the other channels, plain FP8 loses them") {
  constexpr int64_t channel = 17;
  const auto make_outlier = [](TinyModel& tiny) {
    // Gate and up rows of one channel aligned and large: h = silu(gate) * up grows with their square.
    for (const char* name : {"blocks.0.ffn.gate_up.weight", "blocks.1.ffn.gate_up.weight"}) {
      const Tensor& master = tiny.parameter(name).master;
      const int64_t width = master.columns(), gate = channel * width,
                    up = (tiny.options.spec.ffn_width + channel) * width;
      auto* values = master.as<float>();
      for (int64_t i = 0; i < width; ++i) values[up + i] = values[gate + i] *= 1000.0f;
    }
    // Nobody reads the channel, so that the rest of the model stays calm.
    for (const char* name : {"blocks.0.ffn.down.weight", "blocks.1.ffn.down.weight"}) {
      const Tensor& master = tiny.parameter(name).master;
      for (int64_t row = 0; row < master.rows(); ++row)
        master.as<float>()[row * master.columns() + channel] = 0.0f;
    }
  };
  // The down projection's gradient without the outlier's column.
  const auto others = [](const Gradients& gradients) {
    std::vector<double> kept;
    const std::vector<double>& all = gradients.at("blocks.1.ffn.down.weight");
    for (size_t i = 0; i < all.size(); ++i)
      if (static_cast<int64_t>(i) % 48 != channel) kept.push_back(all[i]);
    return kept;
  };
  const std::vector<double> exact = others(gradients_of(make_recipe("bf16"), make_outlier));
  const auto error = [&](SmoothSwiGLU mode) {
    return test::relative_error(others(gradients_of(test::fp8(mode), make_outlier)), exact);
  };
  // The other channels lie below plain FP8's smallest subnormal: nearly all of their gradient is lost.
  const double plain = error(SmoothSwiGLU::None), rest = error(SmoothSwiGLU::BF16);
  CHECK(plain >= 0.75);
  CHECK(rest > 0);
  // Channel scales add the rounding of h (E4M3, 2^-4 at most) and dY (E5M2, 2^-3) to what the rest of the
  // model has.
  CHECK(error(SmoothSwiGLU::Channel) <= rest + 0x1p-4 + 0x1p-3);
  // Dual has them in wgrad; its fprop is scaled by token, and here every token has the outlier.
  CHECK(error(SmoothSwiGLU::Dual) <= plain / 2);
}

TEST_CASE("weights rounded stochastically draw new random numbers every step, the same at the same step") {
  for (const Rounding rounding : {Rounding::Stochastic, Rounding::Nearest}) {
    Recipe recipe = test::fp8(SmoothSwiGLU::None);
    recipe.weight.rounding = rounding;
    TinyModel tiny(test::tiny(recipe));
    const test::Batch batch = test::random_batch(tiny.options, 0);
    const auto losses_at = [&](int64_t step) {
      tiny.model->refresh_working_weights(step);
      tiny.evaluate(batch);
      return tiny.hash(tiny.model->token_losses());
    };
    const uint64_t first = losses_at(1);
    CHECK((losses_at(2) != first) == (rounding == Rounding::Stochastic));
    CHECK(losses_at(1) == first);
  }
}

// ---- static scales [2502.05967]

namespace {

TransformerOptions unit_model() {
  TransformerOptions options = test::tiny(make_recipe("munit"));
  TransformerSpec& s = options.spec;
  s.width = 64, s.heads = 4, s.kv_heads = 4, s.ffn_width = 256, s.context = 64, s.vocabulary = 64;
  s.pre_norm = false;
  s.post_norm = PostNorm::RMS;
  s.post_norm_initial_gain = 1;
  s.activation = Activation::GELU;
  s.parametrization = Parametrization::Unit;
  s.residual = Residual::Weighted;
  options.batch_tokens = 1024;
  return options;
}

}  // namespace

TEST_CASE("static scales make initial deviations one, and never move") {
  const TransformerOptions options = unit_model();
  TinyModel tiny(options);
  const ScaleTable& table = tiny.model->scales();
  const std::vector<double> scales = scales_of(tiny);
  REQUIRE(scales.size() == 2 * 4 * 3);
  const auto ends = [](const std::string& name, const char* end) { return name.ends_with(end); };
  for (size_t i = 0; i < scales.size(); ++i) {
    const std::string& name = table.sites[i].name;
    INFO(name);
    const double expected = ends(name, ".input")            ? 1
                            : ends(name, ".grad")           ? 64.0 * 1024.0
                            : ends(name, "ffn.down.weight") ? 16
                                                            : 8;
    CHECK(scales[i] == expected);
  }
  tiny.train(test::random_batch(options, 0), {0, 0});
  finish_step(tiny, 0);
  CHECK(scales_of(tiny) == scales);
}

TEST_CASE("what a unit model casts is of the size that static scales expect, at any width") {
  for (const int64_t width : {64, 256}) {
    TransformerOptions options = unit_model();
    options.spec.width = width, options.spec.ffn_width = 4 * width;
    options.batch_tokens = options.micro_batch * options.spec.context;
    TinyModel tiny(options);
    ScaleTable& table = tiny.model->scales();
    table.count = true;
    tiny.train(test::random_batch(options, 0), {0, 0});
    const auto* counters = static_cast<const CastCounters*>(table.counters.data);
    const std::vector<double> amax = tiny.values(table.amax), scales = scales_of(tiny);
    for (size_t i = 0; i < table.sites.size(); ++i) {
      INFO(table.sites[i].name << " of " << width);
      if (table.sites[i].name.ends_with(".weight")) continue;  // cast when the model began
      const double elements = static_cast<double>(counters[i].elements);
      CHECK(counters[i].elements > 0);
      CHECK(counters[i].saturated == 0);
      // Gaussians have 2^-7 of their mass below 2^-7 sigma, and E4M3 flushes what is below 2^-10; gelu(x) is
      // that small for one x in ten.
      const double most = table.sites[i].name.ends_with("down.input") ? 0.3 : 0.02;
      CHECK(static_cast<double>(counters[i].flushed) / elements <= most);
      CHECK(amax[i] * scales[i] < 448);
    }
  }
}

// The largest of a few thousand Gaussians is 3 to 5 deviations. What is derived is the stream's gradient: a
// branch's is sqrt(tau) / rms of it, from 0.3 to 8 (an average of up to 64 values).
TEST_CASE("gradients of a unit model are as large as their static scale expects, not by far another one") {
  const auto outside = [](int64_t width, int64_t batch_tokens) {
    TransformerOptions options = unit_model();
    options.spec.width = width, options.spec.ffn_width = 4 * width;
    options.batch_tokens = batch_tokens;
    TinyModel tiny(options);
    tiny.train(test::random_batch(options, 0), {0, 0});
    const std::vector<double> amax = tiny.values(tiny.model->scales().amax), scales = scales_of(tiny);
    int count = 0;
    for (size_t i = 0; i < amax.size(); ++i) {
      if (!tiny.model->scales().sites[i].name.ends_with(".grad")) continue;
      const double seen = amax[i] * scales[i];
      INFO(tiny.model->scales().sites[i].name << ": " << seen);
      if (seen < 3 * 0.3 / 2 || seen > 5 * 8) ++count;
    }
    return count;
  };
  const int64_t tokens = 2 * 64;  // of the micro-batch, which gradients are means over here
  for (const int64_t width : {64, 256}) {
    CHECK(outside(width, tokens) == 0);
    CHECK(outside(width, tokens * 256) == 8);
    CHECK(outside(width, tokens / 64) == 8);
  }
}

TEST_CASE("a stream that is weighted keeps a deviation of one, one that is a sum does not") {
  const auto variance = [](Residual residual) {
    TransformerOptions options = unit_model();
    options.recipe = make_recipe("fp32");
    options.spec.layers = 12;
    options.spec.residual = residual;
    TinyModel tiny(options);
    tiny.evaluate(test::random_batch(options, 5));
    double sum = 0;
    const std::vector<double> x = tiny.values(tiny.planned("final_norm.residual"));
    for (const double v : x) sum += v * v;
    return sum / static_cast<double>(x.size());
  };
  // (1 - tau) a + tau b of what is uncorrelated; branches and the stream are so at first, within a tenth.
  CHECK(std::abs(variance(Residual::Weighted) - 1) < 0.2);
  CHECK(variance(Residual::Sum) > 10);  // 1 + 2 L
}
