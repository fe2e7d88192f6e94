#include "config/presets.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <optional>

#include "base/error.h"
#include "base/text.h"

namespace octet {
namespace {

TransformerSpec named(const char* name) {
  TransformerSpec spec;
  spec.preset = name;
  return spec;
}

// The published shapes (layers, width, heads, kv_heads, ffn_width, vocabulary); context is a usual training
// window, not the longest the published model was extended to.
std::vector<TransformerSpec> all_models() {
  std::vector<TransformerSpec> models;
  models.push_back(named("llama"));
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

std::vector<std::string> planned_model_names() {
  return {"olmo2", "op", "fog-max", "fog-opt", "fog-flash", "qwen3"};
}

TransformerSpec make_model(const std::string& preset) {
  for (const TransformerSpec& spec : all_models()) {
    if (spec.preset == preset) return spec;
  }
  const std::vector<std::string> names = model_names(), planned = planned_model_names();
  if (std::find(planned.begin(), planned.end(), preset) != planned.end()) {
    throw Error(ExitCode::Usage,
                fmt::format("model preset \"{}\" is planned but not part of this version", preset),
                fmt::format("the presets of this version: {}", fmt::join(names, ", ")));
  }
  const std::string near = nearest(preset, names);
  throw Error(ExitCode::Usage, fmt::format("unknown model preset \"{}\"", escape_control(preset)),
              near.empty() ? fmt::format("known presets: {}", fmt::join(names, ", "))
                           : fmt::format("did you mean \"{}\"?", near));
}

}  // namespace octet
