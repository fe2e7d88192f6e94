// What a transformer is made of. Llama-class models exist; the other fields are planned (OLMo-2, OP, FOG) and
// refused with a clear message until they do.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "numerics/recipe.h"

namespace octet {

enum class PostNorm : uint8_t { None, RMS, LayerScale };
enum class QkNorm : uint8_t { None, RMS, RMSFrozen, Tanh };
enum class Activation : uint8_t { SwiGLU, GELU, ReLU2, XIELU };

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
  double init_deviation = 0.02;  // residual projections: divided by sqrt(2 * layers)
  bool pre_norm = true, final_norm = true;
  PostNorm post_norm = PostNorm::None;
  double post_norm_initial_gain = 0;  // 0: 1/sqrt(layers)
  QkNorm qk_norm = QkNorm::None;
  double softmax_scale = 0;  // 0: 1/sqrt(head_width)
  double input_multiplier = 1;
  Activation activation = Activation::SwiGLU;
  bool operator==(const TransformerSpec&) const = default;

  int64_t head_width_() const { return head_width ? head_width : width / heads; }
  int64_t qkv_width() const { return (heads + 2 * kv_heads) * head_width_(); }
  int64_t attention_width() const { return heads * head_width_(); }
  int64_t linear_elements(BlockLinear which) const;  // of its weight, in one block
  int64_t parameters() const;                        // exact, tied head counted once
  int64_t matmul_parameters() const;                 // weights that take part in GEMMs: block linears + head
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
