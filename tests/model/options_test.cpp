// The options of the specification in the life of a model: initial variances (G2), what is frozen (G4),
// memory, recomputation, every recipe.
#include <algorithm>
#include <cstring>
#include <map>

#include "catch.h"
#include "model/tiny_model.h"

using namespace octet;
using test::TinyModel;

namespace {

struct Named {
  const char* name;
  void (*set)(TransformerSpec&);
};
void fog(TransformerSpec& s) {
  s.pre_norm = s.final_norm = false;
  s.post_norm = PostNorm::RMS;
  s.input_multiplier = 1 / s.init_deviation;
}
// Together they use every option, and every option with and without its neighbours.
const Named architectures[] = {
    {"fog-max",
     [](TransformerSpec& s) { fog(s), s.qk_norm = QkNorm::RMSFrozen, s.activation = Activation::XIELU; }},
    {"fog-flash",
     [](TransformerSpec& s) { fog(s), s.qk_norm = QkNorm::Tanh, s.activation = Activation::GELU; }},
    {"op",
     [](TransformerSpec& s) {
       fog(s), s.post_norm = PostNorm::LayerScale, s.qk_norm = QkNorm::RMS, s.activation = Activation::GELU;
     }},
    {"olmo2",
     [](TransformerSpec& s) {
       s.pre_norm = false, s.post_norm = PostNorm::RMS, s.post_norm_initial_gain = 1, s.qk_norm = QkNorm::RMS;
     }},
    {"norms on both sides",
     [](TransformerSpec& s) {
       s.post_norm = PostNorm::RMS, s.activation = Activation::ReLU2, s.tied_head = true;
     }},
    {"no norms", [](TransformerSpec& s) { s.pre_norm = s.final_norm = false, s.qkv_bias = true; }},
};
TransformerOptions with(const Named& architecture, const Recipe& recipe) {
  TransformerOptions options = test::tiny(recipe);
  architecture.set(options.spec);
  return options;
}

// Two micro-batches of a step: losses, gradients and what the casts left.
std::vector<uint64_t> bits(const TransformerOptions& options) {
  TinyModel tiny(options);
  for (int micro = 0; micro < 2; ++micro) tiny.train(test::random_batch(options, 7), {3, micro});
  std::vector<uint64_t> all = tiny.gradient_hashes();
  for (const uint64_t hash : tiny.scale_hashes()) all.push_back(hash);
  uint64_t loss;
  const double sum = tiny.loss_sum();
  CHECK(std::isfinite(sum));
  std::memcpy(&loss, &sum, sizeof loss);
  all.push_back(loss);
  return all;
}
int64_t bytes_of(const TransformerOptions& options, const std::string& part) {
  MemoryPlan plan;
  const Transformer model(nullptr, options, plan);
  int64_t bytes = 0;
  for (const MemoryPlan::Item& item : plan.items())
    if (item.name.find(part) != std::string::npos) bytes += static_cast<int64_t>(item.bytes);
  return bytes;
}

}  // namespace

TEST_CASE("recomputation gives the same bits in every architecture and recipe", "[options]") {
  for (const Named& architecture : architectures) {
    for (const Recipe& recipe :
         {make_recipe("bf16"), make_recipe("fp8"), test::fp8(SmoothSwiGLU::Token),
          test::fp8(SmoothSwiGLU::Channel), test::fp8(SmoothSwiGLU::Dual, Scaling::Delayed)}) {
      INFO(architecture.name << ", " << recipe.name << " " << test::name_of(recipe.smooth_swiglu));
      TransformerOptions options = with(architecture, recipe);
      const std::vector<uint64_t> stored = bits(options);
      options.recompute = Recompute::NormsAndSwiGLU;
      CHECK(bits(options) == stored);
      options.recompute = Recompute::Block;
      CHECK(bits(options) == stored);
    }
  }
}

TEST_CASE("every architecture's gradients in fp8 are near those in fp32, and the plan is what is placed",
          "[options]") {
  for (const Named& architecture : architectures) {
    INFO(architecture.name);
    const auto gradients = [&](const Recipe& recipe) {
      TinyModel tiny(with(architecture, recipe));
      CHECK(tiny.placed_bytes == tiny.peak_bytes);
      tiny.train(test::random_batch(tiny.options, 7));
      std::map<std::string, std::vector<double>> all;
      for (const Parameter& p : tiny.model->parameters()) all[p.name] = tiny.values(p.gradient);
      return all;
    };
    const auto exact = gradients(make_recipe("fp32")), fp8 = gradients(make_recipe("fp8"));
    for (const auto& [name, gradient] : exact) {
      INFO(name);
      // Two E4M3 or E5M2 operands in each of a handful of products, 2^-3 the coarser: nothing exact, but a
      // gradient that is another's, or lacks a term, is at 1 and more.
      if (gradient.size() > 1) CHECK(test::relative_error(fp8.at(name), gradient) < 0.5);
    }
  }
}

TEST_CASE("each architecture counts its parameters exactly and trains them all", "[options]") {
  for (const Named& architecture : architectures) {
    INFO(architecture.name);
    TinyModel tiny(with(architecture, make_recipe("bf16")));
    tiny.train(test::random_batch(tiny.options, 7));
    int64_t elements = 0;
    for (const Parameter& p : tiny.model->parameters()) {
      INFO(p.name);
      elements += p.gradient.elements();
      const std::vector<double> gradient = tiny.values(p.gradient);
      CHECK(std::any_of(gradient.begin(), gradient.end(), [](double x) { return x != 0; }));
    }
    CHECK(elements == tiny.options.spec.parameters());
  }
}

TEST_CASE("gradients that add up over micro-batches are twice those of one", "[options]") {
  // Weight gradients and those of gains, alphas and xIELU's parameters accumulate; FP32, so to a few
  // roundings.
  for (const Named& architecture : architectures) {
    INFO(architecture.name);
    TinyModel once(with(architecture, make_recipe("fp32"))), twice(with(architecture, make_recipe("fp32")));
    const test::Batch batch = test::random_batch(once.options, 7);
    once.train(batch);
    twice.train(batch);
    twice.train(batch);
    for (size_t i = 0; i < once.model->parameters().size(); ++i) {
      std::vector<double> doubled = once.values(once.model->parameters()[i].gradient);
      for (double& x : doubled) x *= 2;
      CHECK(test::relative_error(twice.values(twice.model->parameters()[i].gradient), doubled) <=
            64 * 0x1p-24);
    }
  }
}

TEST_CASE("xIELU starts with both alphas at 0.8", "[options]") {
  TinyModel tiny(with(architectures[0], make_recipe("bf16")));
  const auto value = [&](const char* name) {
    return static_cast<float>(
        tiny.values(tiny.parameter(std::string("blocks.1.ffn.xielu.") + name).master)[0]);
  };
  const Xielu by = xielu_of(value("positive"), value("negative"));
  CHECK(std::abs(by.positive - 0.8f) <= 0x1p-23f);
  CHECK(std::abs(by.negative - 0.8f) <= 0x1p-23f);
}

TEST_CASE("frozen gains are no parameters, and the softmax scale holds them", "[options]") {
  TransformerOptions options = with(architectures[0], make_recipe("fp32"));
  TinyModel frozen(options);
  for (const Parameter& p : frozen.model->parameters()) CHECK(p.name.find("query_norm") == std::string::npos);
  // The same model with the softmax scale spelled out, and one with 1/sqrt(Dh).
  options.spec.softmax_scale = std::sqrt(2.0) / std::sqrt(8.0);
  TinyModel spelled(options);
  options.spec.softmax_scale = 1 / std::sqrt(8.0);
  TinyModel without(options);
  const test::Batch batch = test::random_batch(options, 7);
  for (TinyModel* tiny : {&frozen, &spelled, &without}) tiny->evaluate(batch);
  CHECK(frozen.loss_sum() == spelled.loss_sum());
  CHECK(frozen.loss_sum() != without.loss_sum());
}

TEST_CASE("an option costs its own memory, and none where it is off", "[options]") {
  const Named llama{"llama", [](TransformerSpec&) {}};
  for (const char* part : {"query_keys", "attention_branch", "ffn_branch"}) {
    INFO(part);
    CHECK(bytes_of(with(llama, make_recipe("fp8")), part) == 0);
    CHECK(bytes_of(with(architectures[0], make_recipe("fp8")), part) > 0);
  }
  // Without a norm a BF16 layer reads the residual stream where it is.
  CHECK(bytes_of(with(llama, make_recipe("bf16")), "attention.qkv.input") > 0);
  CHECK(bytes_of(with(architectures[0], make_recipe("bf16")), "attention.qkv.input") == 0);
}

namespace {

double mean_square(const std::vector<double>& x) {
  double sum = 0;
  for (const double v : x) sum += v * v;
  return sum / static_cast<double>(x.size());
}
// The activations called `name` after a forward pass of a wide, deep model.
class WideModel {
 public:
  explicit WideModel(PostNorm post_norm) {
    TransformerOptions options = test::tiny(make_recipe("fp32"));
    TransformerSpec& s = options.spec;
    fog(s);
    s.init_deviation = 0.02;
    s.input_multiplier = 50;
    s.post_norm = post_norm;
    s.qk_norm = QkNorm::RMSFrozen;
    s.activation = Activation::XIELU;
    s.layers = 12, s.width = 256, s.heads = 4, s.kv_heads = 2, s.ffn_width = 512;
    s.context = 128, s.vocabulary = 512;
    options.micro_batch = 2;
    model = std::make_unique<TinyModel>(options);
    model->evaluate(test::random_batch(options, 5));
  }
  double variance(const std::string& name) const { return mean_square(model->values(model->planned(name))); }
  std::unique_ptr<TinyModel> model;
};

}  // namespace

TEST_CASE("FOG starts with unit variance at the first block and about 3 after the last", "[options]") {
  const WideModel fog_model(PostNorm::RMS);
  // 65536 numbers of the table's 131072, rows drawn with repetition: their mean square is within 2 %.
  CHECK(std::abs(fog_model.variance("blocks.0.residual") - 1) <= 0.02);
  // 1 + 2 L (1/L), branches uncorrelated.
  CHECK(std::abs(fog_model.variance("final_norm.residual") - 3) <= 0.15 * 3);
  for (const Parameter& p : fog_model.model->model->parameters()) {
    if (p.name.find("post_norm") == std::string::npos) continue;
    for (const double gain : fog_model.model->values(p.master))
      CHECK(gain == static_cast<double>(static_cast<float>(1 / std::sqrt(12.0))));
  }
  // The control: with the gain alone a branch adds what it happens to be.
  CHECK(std::abs(WideModel(PostNorm::LayerScale).variance("final_norm.residual") - 3) > 0.15 * 3);
}
