// What a transformer is made of. Each option is a field of its own; presets (config/presets.h) set several at
// once: Llama, Qwen3, OLMo-2, OP and FOG are such sets.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "numerics/activation.h"
#include "numerics/query_key_norm.h"
#include "numerics/recipe.h"

namespace octet {

// What happens to a branch before it is added to the residual stream: gain * norm(branch) or gain * branch.
enum class PostNorm : uint8_t { None, RMS, LayerScale };

// What weights start from and how fast they learn. Unit: so that products of numbers of deviation one have
// deviation one, whatever the width, and learning rates hold for every width (mu-nit Scaling, 2502.05967,
// table 2, with the multipliers of its products taken into the weights, which changes nothing: its eq. 16). A
// block's linear starts from 1/sqrt(inputs) and learns sqrt(base_width / width) / sqrt(inputs) as fast as is
// asked, the head from 1/width and 1/width as fast, the token table from 1.
enum class Parametrization : uint8_t { Standard, Unit };

// How a branch is added to the stream. Weighted: sqrt(1 - tau) x + sqrt(tau) f(x), which keeps a deviation of
// one.  [2502.05967, eq. 11]
enum class Residual : uint8_t { Sum, Weighted };

struct RopeScaling {  // Llama-3 frequency scaling; factor 1 = off
  double factor = 1, low_frequency_factor = 1, high_frequency_factor = 4;
  int64_t original_context = 8192;
  bool operator==(const RopeScaling&) const = default;
};

struct TransformerSpec {
  std::string preset = "llama";
  int64_t layers = 4, width = 256, heads = 4, kv_heads = 4, head_width = 0 /* 0: width / heads */,
          ffn_width = 704;
  int64_t context = 256, vocabulary = 257;
  bool tied_head = false, qkv_bias = false;
  double norm_epsilon = 1e-5, rope_base = 10000;
  RopeScaling rope_scaling;
  double init_deviation = 0.02;  // residual projections without post_norm: divided by sqrt(2 * layers)
  bool pre_norm = true, final_norm = true;
  PostNorm post_norm = PostNorm::None;
  double post_norm_initial_gain = 0;  // 0: 1/sqrt(layers)
  QkNorm qk_norm = QkNorm::None;
  double softmax_scale = 0;     // 0: 1/sqrt(head_width), with frozen gains sqrt(2)/sqrt(head_width)
  double input_multiplier = 1;  // of the embedding
  Parametrization parametrization = Parametrization::Standard;
  int64_t base_width = 256;  // Unit: the width at which learning rates were found
  Residual residual = Residual::Sum;
  double residual_tau = 0;  // Weighted; 0: 0.4 (4 / layers)^0.43
  // Clipped softmax, clip((high - low) P + low, 0, 1). [2306.12929]
  double softmax_clip_low = 0, softmax_clip_high = 1;
  Activation activation = Activation::SwiGLU;
  bool operator==(const TransformerSpec&) const = default;

  int64_t head_width_() const { return head_width ? head_width : width / heads; }
  int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_width_(); }
  int64_t attention_width() const { return heads * head_width_(); }
  int64_t linear_elements(BlockLinear which) const;  // of its weight, in one block
  int64_t up_width() const { return (is_gated(activation) ? 2 : 1) * ffn_width; }  // of ffn.gate_up or ffn.up
  double softmax_scale_() const;
  double post_norm_initial_gain_() const;
  // Of weights: their initial deviation, and what the learning rate of their updates is multiplied by.
  double projection_deviation() const;  // of the projections back to the residual stream, Standard
  double linear_deviation(BlockLinear which) const;
  double table_deviation() const;
  double head_deviation() const;
  double linear_learning_rate(BlockLinear which) const;
  double head_learning_rate() const;
  double residual_tau_() const;  // 0 for Sum
  int64_t linear_inputs(BlockLinear which) const;
  // Elements of everything that is not a matrix or a table, in no order.
  std::vector<int64_t> vectors() const;
  int64_t parameters() const;         // exact, tied head counted once
  int64_t matmul_parameters() const;  // weights that take part in GEMMs: block linears + head
  // Model FLOPs of one token, forward + backward, at full context: 6 * matmul_parameters + causal attention
  // counted once.
  double flops_per_token() const;
};

// A broken rule: which field (JSON key of the "model" section) and one sentence.
struct SpecProblem {
  std::string key, message;
};
std::vector<SpecProblem> check(const TransformerSpec& spec, bool float8);

}  // namespace octet
