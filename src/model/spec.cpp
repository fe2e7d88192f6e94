#include "model/spec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

namespace octet {

namespace {

// Elements of the four weights of one block.
int64_t block_matrices(const TransformerSpec& s) {
  int64_t elements = 0;
  for (int i = 0; i < block_linears; ++i) elements += s.linear_elements(static_cast<BlockLinear>(i));
  return elements;
}

// Collects broken rules; a rule reads `rules.require(holds, key, what it says)`.
class Rules {
 public:
  void require(bool holds, const char* key, std::string message) {
    if (!holds) problems_.push_back({key, std::move(message)});
  }
  void positive(const char* key, int64_t value) {
    require(value > 0, key, fmt::format("must be at least 1, found {}", value));
  }
  void positive(const char* key, double value) {
    require(value > 0 && std::isfinite(value), key,
            fmt::format("must be a positive finite number, found {}", value));
  }
  std::vector<SpecProblem> take() { return std::move(problems_); }

 private:
  std::vector<SpecProblem> problems_;
};

void check_sizes(Rules& rules, const TransformerSpec& s) {
  rules.positive("layers", s.layers);
  rules.positive("width", s.width);
  rules.positive("heads", s.heads);
  rules.positive("kv_heads", s.kv_heads);
  rules.positive("ffn_width", s.ffn_width);
  rules.positive("context", s.context);
  rules.require(s.vocabulary >= 2, "vocabulary", fmt::format("must be at least 2, found {}", s.vocabulary));
  rules.require(s.head_width >= 0, "head_width",
                fmt::format("must be positive, or 0 for width / heads, found {}", s.head_width));
  if (s.heads <= 0 || s.kv_heads <= 0 || s.width <= 0 || s.head_width < 0) return;
  rules.require(s.head_width != 0 || s.width % s.heads == 0, "heads",
                fmt::format("{} heads do not divide width {} (or give head_width)", s.heads, s.width));
  rules.require(s.heads % s.kv_heads == 0, "kv_heads",
                fmt::format("{} key-value heads do not divide {} heads", s.kv_heads, s.heads));
  rules.require(s.head_width_() > 0 && s.head_width_() % 2 == 0, "head_width",
                fmt::format("must be even (RoPE rotates pairs), found {}", s.head_width_()));
}

void check_constants(Rules& rules, const TransformerSpec& s) {
  rules.positive("norm_epsilon", s.norm_epsilon);
  rules.positive("rope_base", s.rope_base);
  rules.positive("init_deviation", s.init_deviation);
  rules.require(s.softmax_scale >= 0 && std::isfinite(s.softmax_scale), "softmax_scale",
                fmt::format("must be positive, or 0 for 1/sqrt(head_width), found {}", s.softmax_scale));
  // Probabilities are stretched over [0, 1], not into it: what is masked must stay zero.
  rules.require(s.softmax_clip_low > -1 && s.softmax_clip_low <= 0, "softmax_clip_low",
                fmt::format("must be above -1 and at most 0 (0 = off), found {}", s.softmax_clip_low));
  rules.require(s.softmax_clip_high >= 1 && s.softmax_clip_high < 3.4e38, "softmax_clip_high",
                fmt::format("must be at least 1 (1 = off) and finite, found {}", s.softmax_clip_high));
  const RopeScaling& rope = s.rope_scaling;
  rules.require(rope.factor >= 1 && std::isfinite(rope.factor), "rope_scaling/factor",
                fmt::format("must be at least 1 (1 = off), found {}", rope.factor));
  if (rope.factor != 1) {
    rules.positive("rope_scaling/original_context", rope.original_context);
    rules.positive("rope_scaling/low_frequency_factor", rope.low_frequency_factor);
    rules.require(rope.high_frequency_factor > rope.low_frequency_factor,
                  "rope_scaling/high_frequency_factor",
                  fmt::format("must exceed low_frequency_factor {}, found {}", rope.low_frequency_factor,
                              rope.high_frequency_factor));
  }
}

void check_options(Rules& rules, const TransformerSpec& s) {
  rules.positive("input_multiplier", s.input_multiplier);
  rules.require(s.post_norm_initial_gain >= 0 && std::isfinite(s.post_norm_initial_gain),
                "post_norm_initial_gain",
                fmt::format("must be positive, or 0 for 1/sqrt(layers), found {}", s.post_norm_initial_gain));
  rules.require(s.post_norm_initial_gain == 0 || s.post_norm != PostNorm::None, "post_norm_initial_gain",
                fmt::format("{} is the gain of a post_norm, and there is none", s.post_norm_initial_gain));
  rules.require(s.residual == Residual::Sum || (!s.pre_norm && s.post_norm == PostNorm::RMS), "residual",
                "\"weighted\" adds branches of deviation one: it needs post_norm \"rms\" and pre_norm false");
  rules.require(
      s.residual_tau >= 0 && s.residual_tau < 1, "residual_tau",
      fmt::format("must be above 0 and below 1, or 0 for a value by depth, found {}", s.residual_tau));
  rules.require(s.residual_tau == 0 || s.residual == Residual::Weighted, "residual_tau",
                fmt::format("{} weights a residual stream that is \"sum\"", s.residual_tau));
  rules.positive("base_width", s.base_width);
  rules.require(
      s.parametrization == Parametrization::Standard || !s.tied_head, "tied_head",
      "parametrization \"unit\" starts the token table from a deviation of 1 and the head from 1/width: "
      "they cannot be one");
  rules.require(s.parametrization == Parametrization::Standard || s.input_multiplier == 1, "input_multiplier",
                fmt::format("found {}; parametrization \"unit\" starts the token table from a deviation of 1",
                            s.input_multiplier));
  rules.require(s.qk_norm == QkNorm::None || s.heads <= 0 || s.head_width_() <= widest_regularised_head,
                "qk_norm",
                fmt::format("needs heads of at most {}, found {}", widest_regularised_head,
                            s.heads > 0 ? s.head_width_() : 0));
}

// Eight-bit GEMMs want 16-byte rows in both orientations.
void check_float8(Rules& rules, const TransformerSpec& s) {
  const auto aligned = [&](const char* key, const char* what, int64_t value) {
    rules.require(value % 16 == 0, key,
                  fmt::format("FP8 needs {} in multiples of 16, found {}", what, value));
  };
  aligned("width", "width", s.width);
  aligned("ffn_width", "ffn_width", s.ffn_width);
  if (s.heads <= 0) return;
  aligned("heads", "heads x head_width", s.attention_width());
  aligned("kv_heads", "(heads + 2 kv_heads) x head_width", s.qkv_width());
}

}  // namespace

int64_t TransformerSpec::linear_elements(BlockLinear which) const {
  const int64_t outputs = which == BlockLinear::Qkv  ? qkv_width()
                          : which == BlockLinear::Up ? up_width()
                                                     : width;
  return outputs * linear_inputs(which);
}

int64_t TransformerSpec::parameters() const {
  const int64_t tables = (tied_head ? 1 : 2) * vocabulary * width;
  int64_t sum = tables + layers * block_matrices(*this);
  for (const int64_t elements : vectors()) sum += elements;
  return sum;
}

std::vector<int64_t> TransformerSpec::vectors() const {
  std::vector<int64_t> block;
  const int64_t head_gain = qk_norm == QkNorm::RMS ? head_width_() : 1;
  if (pre_norm) block.insert(block.end(), 2, width);
  if (post_norm != PostNorm::None) block.insert(block.end(), 2, width);
  if (qkv_bias) block.push_back(qkv_width());
  if (is_trained(qk_norm)) block.insert(block.end(), 2, head_gain);
  if (activation == Activation::XIELU) block.insert(block.end(), 2, 1);
  std::vector<int64_t> all;
  for (int64_t i = 0; i < layers; ++i) all.insert(all.end(), block.begin(), block.end());
  if (final_norm) all.push_back(width);
  return all;
}

double TransformerSpec::softmax_scale_() const {
  if (softmax_scale != 0) return softmax_scale;
  const double gain = qk_norm == QkNorm::RMSFrozen ? frozen_gain_squared : 1.0;
  return gain / std::sqrt(static_cast<double>(head_width_()));
}

double TransformerSpec::post_norm_initial_gain_() const {
  return post_norm_initial_gain != 0 ? post_norm_initial_gain : 1.0 / std::sqrt(static_cast<double>(layers));
}

// 2 layers additions to the residual stream: its variance stays that of one. A post_norm says itself how much
// of a branch is added.
double TransformerSpec::projection_deviation() const {
  if (post_norm != PostNorm::None) return init_deviation;
  return init_deviation / std::sqrt(2.0 * static_cast<double>(layers));
}

int64_t TransformerSpec::linear_inputs(BlockLinear which) const {
  if (which == BlockLinear::Out) return attention_width();
  return which == BlockLinear::Down ? ffn_width : width;
}

double TransformerSpec::linear_deviation(BlockLinear which) const {
  if (parametrization == Parametrization::Unit)
    return 1.0 / std::sqrt(static_cast<double>(linear_inputs(which)));
  const bool projects_back = which == BlockLinear::Out || which == BlockLinear::Down;
  return projects_back ? projection_deviation() : init_deviation;
}

double TransformerSpec::table_deviation() const {
  return parametrization == Parametrization::Unit ? 1.0 : init_deviation;
}

double TransformerSpec::head_deviation() const {
  return parametrization == Parametrization::Unit ? 1.0 / static_cast<double>(width) : init_deviation;
}

double TransformerSpec::linear_learning_rate(BlockLinear which) const {
  if (parametrization == Parametrization::Standard) return 1;
  const double of_width = std::sqrt(static_cast<double>(base_width) / static_cast<double>(width));
  return of_width * linear_deviation(which);
}

double TransformerSpec::head_learning_rate() const {
  return parametrization == Parametrization::Unit ? head_deviation() : 1.0;
}

// A power law through the two values that the paper's text has: 0.4 for 4 layers, 0.1 for 100.
double TransformerSpec::residual_tau_() const {
  if (residual == Residual::Sum || residual_tau != 0) return residual == Residual::Sum ? 0.0 : residual_tau;
  const double falls = std::log(0.4 / 0.1) / std::log(100.0 / 4.0);
  return std::min(1.0, 0.4 * std::pow(4.0 / static_cast<double>(layers), falls));
}

int64_t TransformerSpec::matmul_parameters() const {
  return layers * block_matrices(*this) + vocabulary * width;
}

double TransformerSpec::flops_per_token() const {
  // A weight costs a multiply and an add in each of fprop, dgrad and wgrad. Attention: QK^T and PV forward,
  // twice that backward, 2 S H Dh each at full context; the causal half of it is work.
  const double attention =
      6.0 * static_cast<double>(layers * context) * static_cast<double>(attention_width());
  return 6.0 * static_cast<double>(matmul_parameters()) + attention;
}

std::vector<SpecProblem> check(const TransformerSpec& spec, bool float8) {
  Rules rules;
  check_sizes(rules, spec);
  check_constants(rules, spec);
  check_options(rules, spec);
  if (float8) check_float8(rules, spec);
  return rules.take();
}

}  // namespace octet
