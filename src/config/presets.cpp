#include "config/presets.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "base/error.h"
#include "base/text.h"

namespace octet {
namespace {

TransformerSpec named(const char* name) {
  TransformerSpec spec;
  spec.preset = name;
  return spec;
}

// ---- families of the FOG paper, qwen3 and munit  [Hernandez-Cano et al. 2505.20524; options read in the
// paper and its released code]
//
//   name         norms               queries, keys   activation  from
//   llama        before              –               swiglu      Llama 3
//   llama-smooth the same model: what is smooth is the recipe's (precision.smooth_swiglu)
//   qwen3        before              rms, trained    swiglu      Qwen3
//   olmo2        after, gain 1       rms, trained    swiglu      OLMo-2 (which normalises all heads at once)
//   op           none, LayerScale    rms, trained    gelu        He et al. 2405.19279 as the FOG paper has it
//   fog-max      after, 1/sqrt(L)    rms, frozen     xielu
//   fog-opt      after, 1/sqrt(L)    rms, frozen     gelu
//   fog-flash    after, 1/sqrt(L)    tanh            gelu        post norm: our choice, the paper's table is
//   an image
//   munit        after, gain 1       –               gelu        mu-nit Scaling 2502.05967, with RMSNorm for
//   its LayerNorm and RoPE; the stream is weighted, and weights start from numbers of deviation one
//
// OP and FOG have no final norm, and multiply the embedding by 1 / init_deviation. That OP has neither is our
// reading of the paper's ablation, which goes from OP to FOG-opt by freezing gains and adding post norms.

struct Family {
  const char* name;
  bool pre_norm = true, ends_like_fog = false;
  PostNorm post_norm = PostNorm::None;
  double post_norm_initial_gain = 0;
  QkNorm qk_norm = QkNorm::None;
  Activation activation = Activation::SwiGLU;
  Parametrization parametrization = Parametrization::Standard;
};
const Family families[] = {
    {.name = "llama"},
    {.name = "llama-smooth"},
    {.name = "qwen3", .qk_norm = QkNorm::RMS},
    {.name = "olmo2",
     .pre_norm = false,
     .post_norm = PostNorm::RMS,
     .post_norm_initial_gain = 1,
     .qk_norm = QkNorm::RMS},
    {.name = "op",
     .pre_norm = false,
     .ends_like_fog = true,
     .post_norm = PostNorm::LayerScale,
     .qk_norm = QkNorm::RMS,
     .activation = Activation::GELU},
    {.name = "fog-max",
     .pre_norm = false,
     .ends_like_fog = true,
     .post_norm = PostNorm::RMS,
     .qk_norm = QkNorm::RMSFrozen,
     .activation = Activation::XIELU},
    {.name = "fog-opt",
     .pre_norm = false,
     .ends_like_fog = true,
     .post_norm = PostNorm::RMS,
     .qk_norm = QkNorm::RMSFrozen,
     .activation = Activation::GELU},
    {.name = "fog-flash",
     .pre_norm = false,
     .ends_like_fog = true,
     .post_norm = PostNorm::RMS,
     .qk_norm = QkNorm::Tanh,
     .activation = Activation::GELU},
    {.name = "munit",
     .pre_norm = false,
     .post_norm = PostNorm::RMS,
     .post_norm_initial_gain = 1,
     .activation = Activation::GELU,
     .parametrization = Parametrization::Unit},
};

// The family's options; without a gate the network is one and a half times as wide, so that it has as many
// parameters.
void apply(const Family& family, TransformerSpec& s) {
  s.pre_norm = family.pre_norm;
  s.post_norm = family.post_norm;
  s.post_norm_initial_gain = family.post_norm_initial_gain;
  s.qk_norm = family.qk_norm;
  s.activation = family.activation;
  if (family.parametrization == Parametrization::Unit) {
    s.parametrization = Parametrization::Unit;
    s.residual = Residual::Weighted;
    s.tied_head = false;
  }
  if (!is_gated(s.activation)) s.ffn_width = s.ffn_width * 3 / 2;
  if (!family.ends_like_fog) return;
  s.final_norm = false;
  s.input_multiplier = 1 / s.init_deviation;
}

TransformerSpec paper_size(const char* size) {
  TransformerSpec s;
  s.context = 4096, s.vocabulary = 131072, s.rope_base = 500000;
  s.rope_scaling.factor = 8;  // Llama 3.1's, which is what the released code's switch stands for
  if (std::string(size) == "390m") {
    s.layers = 16, s.width = 1024, s.heads = 8, s.kv_heads = 4, s.ffn_width = 4096, s.tied_head = true;
  } else if (std::string(size) == "1.5b") {
    s.layers = 16, s.width = 2048, s.heads = 16, s.kv_heads = 8, s.ffn_width = 8192;
  } else {
    s.layers = 32, s.width = 4096, s.heads = 32, s.kv_heads = 8, s.ffn_width = 14336;
  }
  return s;
}

// Each family in a small shape to start from, and in the three sizes of the paper.
void add_families(std::vector<TransformerSpec>& models) {
  for (const Family& family : families) {
    TransformerSpec small = named(family.name);
    apply(family, small);
    models.push_back(small);
    for (const char* size : {"390m", "1.5b", "8b"}) {
      TransformerSpec s = paper_size(size);
      s.preset = fmt::format("{}-{}", family.name, size);
      apply(family, s);
      models.push_back(s);
    }
  }
}

// The published shapes (layers, width, heads, kv_heads, ffn_width, vocabulary); context is a usual training
// window, not the longest the published model was extended to.
std::vector<TransformerSpec> all_models() {
  std::vector<TransformerSpec> models;
  add_families(models);
  {
    // GPT-2 small's depth and width with Llama blocks; vocabulary of GPT-2 (50257) padded to 128.
    TransformerSpec s = named("llama-124m");
    s.layers = 12, s.width = 768, s.heads = 12, s.kv_heads = 12, s.ffn_width = 2048;
    s.context = 1024, s.vocabulary = 50304, s.tied_head = true;
    models.push_back(s);
  }
  {
    // GPT-2 medium's depth and width with Llama blocks.
    TransformerSpec s = named("llama-350m");
    s.layers = 24, s.width = 1024, s.heads = 16, s.kv_heads = 16, s.ffn_width = 2816;
    s.context = 1024, s.vocabulary = 50304, s.tied_head = true;
    models.push_back(s);
  }
  {
    // TinyLlama-1.1B (arXiv 2401.02385).
    TransformerSpec s = named("llama-1b");
    s.layers = 22, s.width = 2048, s.heads = 32, s.kv_heads = 4, s.ffn_width = 5632;
    s.context = 2048, s.vocabulary = 32000;
    models.push_back(s);
  }
  {
    // Llama-3.2-3B, without its long-context frequency scaling.
    TransformerSpec s = named("llama-3b");
    s.layers = 28, s.width = 3072, s.heads = 24, s.kv_heads = 8, s.ffn_width = 8192;
    s.context = 4096, s.vocabulary = 128256, s.tied_head = true, s.rope_base = 500000;
    models.push_back(s);
  }
  {
    // Llama-2-7B (arXiv 2307.09288).
    TransformerSpec s = named("llama-7b");
    s.layers = 32, s.width = 4096, s.heads = 32, s.kv_heads = 32, s.ffn_width = 11008;
    s.context = 4096, s.vocabulary = 32000;
    models.push_back(s);
  }
  {
    // Llama-3-8B (arXiv 2407.21783). Frequency scaling came with 3.1 and long contexts; off here.
    TransformerSpec s = named("llama3-8b");
    s.layers = 32, s.width = 4096, s.heads = 32, s.kv_heads = 8, s.ffn_width = 14336;
    s.context = 8192, s.vocabulary = 128256, s.rope_base = 500000;
    models.push_back(s);
  }
  // Qwen2.5 (arXiv 2412.15115).
  {
    TransformerSpec s = named("qwen2.5-0.5b");
    s.layers = 24, s.width = 896, s.heads = 14, s.kv_heads = 2, s.ffn_width = 4864, s.vocabulary = 151936;
    s.tied_head = true;
    models.push_back(s);
  }
  {
    TransformerSpec s = named("qwen2.5-1.5b");
    s.layers = 28, s.width = 1536, s.heads = 12, s.kv_heads = 2, s.ffn_width = 8960, s.vocabulary = 151936;
    s.tied_head = true;
    models.push_back(s);
  }
  {
    TransformerSpec s = named("qwen2.5-7b");
    s.layers = 28, s.width = 3584, s.heads = 28, s.kv_heads = 4, s.ffn_width = 18944, s.vocabulary = 152064;
    models.push_back(s);
  }
  for (TransformerSpec& s : models) {
    if (s.preset.rfind("qwen2.5", 0) == 0) {
      s.context = 4096, s.qkv_bias = true, s.norm_epsilon = 1e-6, s.rope_base = 1e6;
    }
  }
  return models;
}

}  // namespace

std::vector<std::string> model_names() {
  std::vector<std::string> names;
  for (const TransformerSpec& spec : all_models()) names.push_back(spec.preset);
  return names;
}

TransformerSpec make_model(const std::string& preset) {
  for (const TransformerSpec& spec : all_models()) {
    if (spec.preset == preset) return spec;
  }
  const std::vector<std::string> names = model_names();
  const std::string near = nearest(preset, names);
  throw Error(ExitCode::Usage, fmt::format("unknown model preset \"{}\"", escape_control(preset)),
              near.empty() ? fmt::format("known presets: {}", fmt::join(names, ", "))
                           : fmt::format("did you mean \"{}\"?", near));
}

}  // namespace octet
