#include "model/spec.h"

#include <algorithm>
#include <cmath>

#include "catch.h"
#include "model/tiny_model.h"

using namespace octet;

namespace {

TransformerSpec llama3_8b() {
  TransformerSpec spec;
  spec.layers = 32;
  spec.width = 4096;
  spec.heads = 32;
  spec.kv_heads = 8;
  spec.ffn_width = 14336;
  spec.context = 8192;
  spec.vocabulary = 128256;
  return spec;
}

std::vector<std::string> broken_keys(const TransformerSpec& spec, bool float8) {
  std::vector<std::string> keys;
  for (const SpecProblem& problem : check(spec, float8)) keys.push_back(problem.key);
  return keys;
}

}  // namespace

TEST_CASE("parameter counts are those that model cards publish") {
  CHECK(llama3_8b().parameters() == 8'030'261'248);  // Llama 3 8B

  TransformerSpec qwen;  // Qwen2.5-0.5B: tied head, bias on queries, keys and values
  qwen.layers = 24;
  qwen.width = 896;
  qwen.heads = 14;
  qwen.kv_heads = 2;
  qwen.ffn_width = 4864;
  qwen.vocabulary = 151936;
  qwen.tied_head = true;
  qwen.qkv_bias = true;
  CHECK(qwen.parameters() == 494'032'768);

  TransformerSpec llama2;  // Llama-2 7B
  llama2.layers = 32;
  llama2.width = 4096;
  llama2.heads = llama2.kv_heads = 32;
  llama2.ffn_width = 11008;
  llama2.vocabulary = 32000;
  CHECK(llama2.parameters() == 6'738'415'616);
}

TEST_CASE("weights of GEMMs are everything but the untied embedding, gains and biases") {
  const TransformerSpec spec = llama3_8b();
  CHECK(spec.matmul_parameters() ==
        spec.parameters() - spec.vocabulary * spec.width - (2 * spec.layers + 1) * spec.width);
  TransformerSpec tied = spec;
  tied.tied_head = true;
  CHECK(tied.matmul_parameters() == spec.matmul_parameters());  // the head multiplies all the same
}

TEST_CASE("model FLOPs count a weight six times and the causal half of attention") {
  const TransformerSpec spec = llama3_8b();
  // Scores and values: 2 GEMMs of 2 S Dh H, halved by the mask, forward once and backward twice.
  const double attention = 3.0 * 2 * 2 * 8192 * 4096 / 2 * 32;
  CHECK(spec.flops_per_token() == 6.0 * static_cast<double>(spec.matmul_parameters()) + attention);
}

TEST_CASE("a sound specification has no problems") {
  CHECK(check(llama3_8b(), true).empty());
  CHECK(check(test::tiny("fp8").spec, true).empty());
}

TEST_CASE("every broken rule is reported, not only the first") {
  TransformerSpec spec;
  spec.layers = 0;
  spec.heads = 6;
  spec.width = 256;
  spec.kv_heads = 4;
  spec.norm_epsilon = 0;
  const std::vector<std::string> keys = broken_keys(spec, false);
  for (const char* key : {"layers", "heads", "kv_heads", "norm_epsilon"})
    CHECK(std::count(keys.begin(), keys.end(), key) == 1);
  CHECK(std::count(keys.begin(), keys.end(), "width") == 0);
}

TEST_CASE("FP8 wants widths in multiples of 16, other formats do not") {
  TransformerSpec spec = test::tiny("fp8").spec;
  spec.ffn_width = 40;
  CHECK(broken_keys(spec, true) == std::vector<std::string>{"ffn_width"});
  CHECK(broken_keys(spec, false).empty());
}

TEST_CASE("options that do not go together are refused") {
  TransformerSpec spec = test::tiny("bf16").spec;
  spec.post_norm_initial_gain = 0.5;
  CHECK(broken_keys(spec, false) == std::vector<std::string>{"post_norm_initial_gain"});
  spec.post_norm = PostNorm::LayerScale;
  CHECK(broken_keys(spec, false).empty());
  spec.head_width = 1024;
  CHECK(broken_keys(spec, false).empty());
  spec.qk_norm = QkNorm::RMSFrozen;
  CHECK(broken_keys(spec, false) == std::vector<std::string>{"qk_norm"});
  spec.head_width = 0;
  spec.input_multiplier = 0;
  CHECK(broken_keys(spec, false) == std::vector<std::string>{"input_multiplier"});
}

TEST_CASE("a weighted stream and parametrization unit say what they need") {
  TransformerSpec spec = test::tiny("bf16").spec;
  spec.residual_tau = 0.3;
  CHECK(broken_keys(spec, false) == std::vector<std::string>{"residual_tau"});
  spec.residual = Residual::Weighted;
  CHECK(broken_keys(spec, false) == std::vector<std::string>{"residual"});
  spec.pre_norm = false;
  spec.post_norm = PostNorm::RMS;
  CHECK(broken_keys(spec, false).empty());
  spec.parametrization = Parametrization::Unit;
  CHECK(broken_keys(spec, false).empty());
  spec.tied_head = true;
  spec.input_multiplier = 2;
  CHECK(broken_keys(spec, false) == std::vector<std::string>{"tied_head", "input_multiplier"});
}

// [2502.05967, table 2, with multipliers taken into the weights: deviation times multiplier, rate times
// multiplier]
TEST_CASE("parametrization unit is mu-nit Scaling's table") {
  TransformerSpec spec;
  spec.width = 1024, spec.heads = 8, spec.kv_heads = 8, spec.ffn_width = 4096;
  spec.parametrization = Parametrization::Unit;
  spec.base_width = 256;
  const double sqrt_width = std::sqrt(1024.0), transfer = std::sqrt(256.0 / 1024.0);
  CHECK(spec.table_deviation() == 1);
  CHECK(spec.head_deviation() == 1 / 1024.0);
  CHECK(spec.head_learning_rate() == 1 / 1024.0);
  for (const BlockLinear which : {BlockLinear::Qkv, BlockLinear::Out, BlockLinear::Up}) {
    CHECK(spec.linear_deviation(which) == 1 / sqrt_width);
    CHECK(spec.linear_learning_rate(which) == transfer / sqrt_width);
  }
  CHECK(spec.linear_deviation(BlockLinear::Down) == 1 / 64.0);
  CHECK(spec.linear_learning_rate(BlockLinear::Down) == transfer / 64.0);
  spec.parametrization = Parametrization::Standard;
  CHECK(spec.linear_learning_rate(BlockLinear::Down) == 1);
  CHECK(spec.head_deviation() == spec.init_deviation);
}

TEST_CASE("tau falls with depth, through the two values that the paper states") {
  TransformerSpec spec;
  CHECK(spec.residual_tau_() == 0);
  spec.residual = Residual::Weighted;
  spec.layers = 4;
  CHECK(std::abs(spec.residual_tau_() - 0.4) < 1e-15);
  spec.layers = 100;
  CHECK(std::abs(spec.residual_tau_() - 0.1) < 1e-15);
  spec.layers = 1;
  CHECK(spec.residual_tau_() < 1);
  spec.residual_tau = 0.25;
  CHECK(spec.residual_tau_() == 0.25);
}

TEST_CASE("a clipped softmax stretches probabilities over zero and one, not into them") {
  const auto broken = [](double low, double high) {
    TransformerSpec spec = test::tiny("bf16").spec;
    spec.softmax_clip_low = low, spec.softmax_clip_high = high;
    return broken_keys(spec, false);
  };
  for (const double low : {0.0, -0.03, -0.99}) CHECK(broken(low, 1.3).empty());
  for (const double low : {0.01, -1.0, std::nan("")})
    CHECK(broken(low, 1) == std::vector<std::string>{"softmax_clip_low"});
  for (const double high : {0.99, HUGE_VAL, std::nan("")})
    CHECK(broken(0, high) == std::vector<std::string>{"softmax_clip_high"});
}

TEST_CASE("frozen gains are part of the softmax scale: 0.125 at 128") {
  TransformerSpec spec;
  spec.width = 1024, spec.heads = 8, spec.kv_heads = 4;
  CHECK(spec.softmax_scale_() == 1 / std::sqrt(128.0));
  spec.qk_norm = QkNorm::RMSFrozen;
  CHECK(std::abs(spec.softmax_scale_() - 0.125) < 1e-16);
  spec.qk_norm = QkNorm::RMS;
  CHECK(spec.softmax_scale_() == 1 / std::sqrt(128.0));
  spec.softmax_scale = 0.3;
  CHECK(spec.softmax_scale_() == 0.3);
}

TEST_CASE("a model that breaks a rule is not built, and the error names every key") {
  TransformerOptions options = test::tiny("fp8");
  options.spec.width = 36;
  options.spec.ffn_width = 40;
  MemoryPlan plan;
  try {
    const Transformer model(nullptr, options, plan);
    FAIL("built");
  } catch (const Error& error) {
    CHECK(error.code() == ExitCode::Usage);
    CHECK(std::string(error.what()).find("model.width") != std::string::npos);
    CHECK(std::string(error.what()).find("model.ffn_width") != std::string::npos);
  }
}
