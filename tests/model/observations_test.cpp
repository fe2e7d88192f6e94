// What the health monitor sees of a model, against the same computed by hand, and that looking changes
// nothing.
#include "model/observations.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "catch.h"
#include "numerics/observation.h"
#include "tiny_model.h"

using namespace octet;
using octet::test::TinyModel;

namespace {

TransformerOptions watched(const Recipe& recipe, Recompute recompute = Recompute::None) {
  TransformerOptions options = test::tiny(recipe);
  options.recompute = recompute;
  options.observe = true;
  return options;
}
TransformerOptions watched(const char* recipe) { return watched(make_recipe(recipe)); }

// Masters as they are, then `micros` micro-batches that are looked at, weight casts included.
void look(TinyModel& tiny, int micros = 1) {
  Transformer& model = *tiny.model;
  model.observations().clear(*tiny.device);
  model.observations().on = true;
  model.scales().count = !model.scales().sites.empty();
  model.refresh_working_weights(1);
  for (int micro = 0; micro < micros; ++micro)
    tiny.train(test::random_batch(tiny.options, static_cast<uint64_t>(micro)), {1, micro});
  model.observe_weights();
  model.observations().on = false;
  model.scales().count = false;
}

struct Statistics {
  double kurtosis, sequence_kurtosis, mean, square, highest, amax;
};
Statistics seen(TinyModel& tiny, int block, Observed what, int micros = 1) {
  const Observations& o = tiny.model->observations();
  const double tokens = static_cast<double>(tiny.options.micro_batch * tiny.options.spec.context * micros),
               sequences = static_cast<double>(tiny.options.micro_batch * micros);
  const double* sums = o.sums.as<double>() + o.layout.sums_of(block, what);
  const uint32_t* extremes = o.extremes.as<uint32_t>() + o.layout.extremes_of(block, what);
  return {sums[0] / tokens,
          sums[1] / sequences,
          sums[2] / tokens,
          sums[3] / tokens,
          static_cast<double>(from_ordered_bits(extremes[0])),
          static_cast<double>(std::bit_cast<float>(extremes[1]))};
}

// The same of values [tokens, width], computed plainly.
Statistics of(const std::vector<double>& x, int64_t width, int64_t context) {
  const auto kurtosis_of = [&](size_t begin, size_t end) {
    double squares = 0, fourths = 0;
    for (size_t i = begin; i < end; ++i) squares += x[i] * x[i], fourths += std::pow(x[i], 4);
    return static_cast<double>(end - begin) * fourths / squares / squares;
  };
  const auto w = static_cast<size_t>(width), s = static_cast<size_t>(context) * w;
  Statistics all{0, 0, 0, 0, -INFINITY, 0};
  for (size_t i = 0; i < x.size(); i += w) all.kurtosis += kurtosis_of(i, i + w) * static_cast<double>(w);
  for (size_t i = 0; i < x.size(); i += s)
    all.sequence_kurtosis += kurtosis_of(i, i + s) * static_cast<double>(s);
  for (const double v : x) {
    all.mean += v;
    all.square += v * v;
    all.highest = std::max(all.highest, v);
    all.amax = std::max(all.amax, std::abs(v));
  }
  for (double* total : {&all.kurtosis, &all.sequence_kurtosis, &all.mean, &all.square})
    *total /= static_cast<double>(x.size());
  return all;
}
void check_near(const Statistics& a, const Statistics& b, double bound) {
  CHECK(std::abs(a.kurtosis / b.kurtosis - 1) < bound);
  CHECK(std::abs(a.sequence_kurtosis / b.sequence_kurtosis - 1) < bound);
  CHECK(std::abs(a.mean - b.mean) < bound * std::sqrt(b.square));
  CHECK(std::abs(a.square / b.square - 1) < bound);
  CHECK(std::abs(a.highest / b.highest - 1) < bound);
  CHECK(std::abs(a.amax / b.amax - 1) < bound);
}

std::vector<uint64_t> traces(TinyModel& tiny) {
  std::vector<uint64_t> all = tiny.gradient_hashes();
  for (const uint64_t hash : tiny.scale_hashes()) all.push_back(hash);
  all.push_back(std::bit_cast<uint64_t>(tiny.loss_sum()));
  return all;
}
// Sums, extremes, weights and cosines.
std::vector<uint64_t> numbers(TinyModel& tiny) {
  const Observations& o = tiny.model->observations();
  return {tiny.hash(o.sums), tiny.hash(o.extremes), tiny.hash(o.weight_sums), tiny.hash(o.cosines)};
}

}  // namespace

TEST_CASE("observations of the first block are those of its tensors, computed by hand") {
  TinyModel tiny(watched("fp32"));
  look(tiny, 2);
  const TransformerSpec& spec = tiny.options.spec;
  const std::vector<double> table = tiny.values(tiny.parameter("embedding.weight").master),
                            weight = tiny.values(tiny.parameter("blocks.0.attention.qkv.weight").master);
  const auto width = static_cast<size_t>(spec.width), rows = static_cast<size_t>(spec.qkv_width()),
             queries = static_cast<size_t>(spec.attention_width());
  std::vector<double> input, qkv;
  double query_squares = 0;
  size_t query_values = 0;
  for (const uint64_t micro : {0u, 1u}) {
    for (const int32_t token : test::random_batch(tiny.options, micro).tokens) {
      const double* x = table.data() + static_cast<size_t>(token) * width;
      const double square = std::inner_product(x, x + width, x, 0.0) / static_cast<double>(width);
      const double scale = 1 / std::sqrt(square + spec.norm_epsilon);
      for (size_t i = 0; i < width; ++i) input.push_back(scale * x[i]);
      const double* norm = input.data() + input.size() - width;
      for (size_t r = 0; r < rows; ++r) {
        qkv.push_back(std::inner_product(norm, norm + width, weight.data() + r * width, 0.0));
        if (r < queries) query_squares += qkv.back() * qkv.back(), ++query_values;
      }
    }
  }
  // Values with a relative error of some 2^-20 (FP32 sums of 32 products), to the fourth power.
  check_near(seen(tiny, 0, Observed::QkvInput, 2), of(input, spec.width, spec.context), 1e-5);
  check_near(seen(tiny, 0, Observed::Qkv, 2), of(qkv, spec.qkv_width(), spec.context), 1e-5);
  // Rotation keeps squares.
  const double square = query_squares / static_cast<double>(query_values);
  CHECK(std::abs(seen(tiny, 0, Observed::Query, 2).square / square - 1) < 1e-5);
  // The stream after block 0 is the input of block 1's norm, whose gains are one: kurtosis of a token is the
  // same.
  CHECK(std::abs(seen(tiny, 1, Observed::QkvInput, 2).kurtosis /
                     seen(tiny, 0, Observed::BlockOutput, 2).kurtosis -
                 1) < 1e-5);
  // log-sum-exp is at least the largest logit, which is at most |q| |k|.
  const double dot = static_cast<double>(spec.head_width_()) * seen(tiny, 0, Observed::Query, 2).amax *
                     seen(tiny, 0, Observed::Key, 2).amax /
                     std::sqrt(static_cast<double>(spec.head_width_()));
  CHECK(seen(tiny, 0, Observed::LogSumExp, 2).highest <= dot + std::log(static_cast<double>(spec.context)));
  CHECK(seen(tiny, 0, Observed::LogSumExp, 2).highest > 0);
  // Weights: mean squares of the masters.
  const Observations& o = tiny.model->observations();
  const std::vector<size_t> weights = tiny.model->observed_weights();
  CHECK(weights.size() == 2 + 2 * 4);
  for (size_t w = 0; w < weights.size(); ++w) {
    const Parameter& p = tiny.model->parameters()[weights[w]];
    const std::vector<double> values = tiny.values(p.master);
    const double sum = std::inner_product(values.begin(), values.end(), values.begin(), 0.0);
    const double rows_of_it = static_cast<double>(p.master.rows());
    CHECK(std::abs(o.weight_sums.as<double>()[4 * w + 3] / rows_of_it * static_cast<double>(values.size()) /
                       sum -
                   1) < 1e-12);
  }
}

TEST_CASE("looking changes no gradient, scale or loss, and costs no memory where nobody looks") {
  for (const char* recipe : {"fp32", "bf16", "fp8"}) {
    TinyModel plain(test::tiny(recipe)), looked(watched(recipe)), blind(watched(recipe));
    for (TinyModel* tiny : {&plain, &looked, &blind}) {
      tiny->model->scales().count = !tiny->model->scales().sites.empty();
      tiny->model->observations().on = tiny == &looked;
      tiny->model->refresh_working_weights(1);
      for (int micro = 0; micro < 3; ++micro)
        tiny->train(test::random_batch(tiny->options, static_cast<uint64_t>(micro)), {1, micro});
    }
    INFO(recipe);
    CHECK(traces(plain) == traces(looked));
    CHECK(traces(plain) == traces(blind));
    const std::vector<double> sums = blind.values(blind.model->observations().sums);
    CHECK(std::all_of(sums.begin(), sums.end(), [](double x) { return x == 0; }));  // off means off
    CHECK(looked.values(looked.model->observations().sums) != sums);
    CHECK_FALSE(plain.model->observations().planned());
    CHECK(plain.peak_bytes < blind.peak_bytes);
  }
}

TEST_CASE("recomputation and evaluation are not looked at") {
  for (const char* recipe : {"bf16", "fp8"}) {
    std::vector<std::vector<uint64_t>> all;
    for (const Recompute recompute : {Recompute::None, Recompute::NormsAndSwiGLU, Recompute::Block}) {
      TinyModel tiny(watched(make_recipe(recipe), recompute));
      look(tiny);
      all.push_back(numbers(tiny));
      tiny.model->observations().on = true;
      tiny.evaluate(test::random_batch(tiny.options, 5));
      CHECK(numbers(tiny) == all.back());
    }
    CHECK(all[0] == all[1]);
    CHECK(all[0] == all[2]);
  }
}

TEST_CASE("every cast to FP8 has its signal to noise, in every mode of Smooth-SwiGLU") {
  for (const SmoothSwiGLU mode : test::smooth_modes) {
    for (const Scaling scaling : {Scaling::Current, Scaling::Delayed}) {
      TinyModel tiny(watched(test::fp8(mode, scaling)));
      look(tiny);
      const Observations& o = tiny.model->observations();
      const auto& sites = tiny.model->scales().sites;
      REQUIRE_FALSE(sites.empty());
      int folded = 0;
      for (size_t s = 0; s < sites.size(); ++s) {
        const double* sums = o.sums.as<double>() + o.layout.errors_of(static_cast<int64_t>(s));
        INFO(test::name_of(mode) << " " << sites[s].name << " " << sums[0] << " " << sums[1]);
        // Codes made of other values than a tensor's own (weights with scales folded in, gradients with
        // tokens' scales) have no signal to compare with; `channel` has its down projection's weight in the
        // transpose only.
        const bool factors = sites[s].name.find("_with_") != std::string::npos,
                   transposed = mode == SmoothSwiGLU::Channel &&
                                sites[s].name.find("ffn.down.weight") != std::string::npos;
        if (factors || transposed) {
          CHECK(sums[0] == 0);
          ++folded;
          continue;
        }
        // Half an ulp at most of each value; gradients have few values far below the largest.
        const double decibels = 10 * std::log10(sums[0] / sums[1]);
        const double worst = sites[s].cast.format == Format::E4M3 ? 24.08 : 18.06;  // (2^-4)^2, (2^-3)^2
        CHECK(decibels > worst);
        CHECK(decibels < worst + 16);
      }
      CHECK((folded > 0) == (mode == SmoothSwiGLU::Token || mode == SmoothSwiGLU::Channel));
    }
  }
}

TEST_CASE("casts before FP8 attention have their signal to noise, those inside its kernels none") {
  Recipe recipe = make_recipe("fp8");
  recipe.attention = AttentionFormat::FP8;
  for (const Recompute recompute : {Recompute::None, Recompute::Block}) {
    TinyModel tiny(watched(recipe, recompute));
    look(tiny);
    const Observations& o = tiny.model->observations();
    const auto& sites = tiny.model->scales().sites;
    int before = 0, inside = 0;
    for (size_t s = 0; s < sites.size(); ++s) {
      const auto at = sites[s].name.find(".core.");
      if (at == std::string::npos) continue;
      const std::string what = sites[s].name.substr(at + 6);
      const double* sums = o.sums.as<double>() + o.layout.errors_of(static_cast<int64_t>(s));
      INFO(sites[s].name << " " << sums[0] << " " << sums[1]);
      if (what != "qkv" && what != "output_grad") {
        CHECK(sums[0] == 0);  // the values before were never in memory
        ++inside;
        continue;
      }
      ++before;
      const double decibels = 10 * std::log10(sums[0] / sums[1]);
      const double worst = sites[s].cast.format == Format::E4M3 ? 24.08 : 18.06;
      CHECK(decibels > worst);
      CHECK(decibels < worst + 16);
    }
    CHECK(before == 2 * tiny.options.spec.layers);
    CHECK(inside == 3 * tiny.options.spec.layers);
  }
}

// (S9)
TEST_CASE("an aligned neuron is the most aligned one, and the channel with the largest activation") {
  for (const char* recipe : {"fp32", "bf16", "fp8"}) {
    TinyModel tiny(watched(recipe));
    const auto align = [&](const char* name, int64_t neuron, float factor) {
      const Tensor weight = tiny.parameter(name).master;
      const int64_t width = tiny.options.spec.width, ffn = tiny.options.spec.ffn_width;
      float* const up = weight.as<float>() + (ffn + neuron) * width;
      float* const gate = weight.as<float>() + neuron * width;
      for (int64_t i = 0; i < width; ++i) gate[i] = up[i] = factor * up[i];
    };
    const auto aligned = [&](int block) {
      const Observations& o = tiny.model->observations();
      const float* cosines = o.cosines.as<float>() + block * o.layout.ffn_width;
      return std::max_element(cosines, cosines + o.layout.ffn_width,
                              [](float a, float b) { return std::abs(a) < std::abs(b); }) -
             cosines;
    };
    const auto largest = [&](int block) {
      const Observations& o = tiny.model->observations();
      const uint32_t* amax = o.extremes.as<uint32_t>() + o.layout.channels_of(block);
      return std::max_element(amax, amax + o.layout.ffn_width) - amax;
    };
    look(tiny);
    const auto before = std::pair(aligned(1), aligned(0));
    CHECK(
        std::abs(tiny.model->observations().cosines.as<float>()[tiny.options.spec.ffn_width + before.first]) <
        0.9f);
    for (const int64_t neuron : {int64_t{0}, int64_t{29}}) {
      align("blocks.1.ffn.gate_up.weight", neuron, 30);
      look(tiny);
      INFO(recipe << ", neuron " << neuron);
      const float cosine =
          tiny.model->observations().cosines.as<float>()[tiny.options.spec.ffn_width + neuron];
      CHECK(std::abs(cosine - 1) < 1e-6f);
      if (neuron == 29) continue;  // the first one is aligned still
      CHECK(aligned(1) == neuron);
      CHECK(largest(1) == neuron);
      CHECK(aligned(0) == before.second);  // the other block's
    }
  }
}

TEST_CASE("observations have the same bits for any number of threads") {
  std::vector<std::vector<uint64_t>> all;
  for (const int threads : {1, 3}) {
    TinyModel tiny(watched("fp8"), test::deterministic(threads));
    look(tiny, 2);
    all.push_back(numbers(tiny));
  }
  CHECK(all[0] == all[1]);
}
