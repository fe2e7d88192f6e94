// A transformer with the oracle's parameters, tokens and targets.
#pragma once
#include <algorithm>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include "model/transformer.h"
#include "oracle_fixture.h"

namespace octet::oracle {

inline TransformerSpec spec_of(const nlohmann::json& variant) {
  const nlohmann::json& s = variant.at("spec");
  TransformerSpec spec;
  spec.layers = s.at("layers");
  spec.width = s.at("width");
  spec.heads = s.at("heads");
  spec.kv_heads = s.at("kv_heads");
  spec.ffn_width = s.at("ffn_width");
  spec.vocabulary = s.at("vocabulary");
  spec.context = s.at("context");
  spec.norm_epsilon = s.at("norm_epsilon");
  spec.rope_base = s.at("rope_base");
  spec.rope_scaling.factor = s.at("rope_factor");
  spec.rope_scaling.low_frequency_factor = s.at("rope_low_frequency_factor");
  spec.rope_scaling.high_frequency_factor = s.at("rope_high_frequency_factor");
  spec.rope_scaling.original_context = s.at("rope_original_context");
  spec.tied_head = s.at("tied_head");
  spec.qkv_bias = s.at("qkv_bias");
  spec.softmax_scale = s.value("softmax_scale", 0.0);
  spec.softmax_clip_low = s.value("softmax_clip_low", 0.0);
  spec.softmax_clip_high = s.value("softmax_clip_high", 1.0);
  if (!s.contains("activation")) return spec;
  const std::map<std::string, PostNorm> post = {
      {"none", PostNorm::None}, {"rms", PostNorm::RMS}, {"layer_scale", PostNorm::LayerScale}};
  const std::map<std::string, QkNorm> qk = {{"none", QkNorm::None},
                                            {"rms", QkNorm::RMS},
                                            {"rms_frozen", QkNorm::RMSFrozen},
                                            {"tanh", QkNorm::Tanh}};
  const std::map<std::string, Activation> activation = {{"swiglu", Activation::SwiGLU},
                                                        {"gelu", Activation::GELU},
                                                        {"relu2", Activation::ReLU2},
                                                        {"xielu", Activation::XIELU}};
  spec.pre_norm = s.at("pre_norm");
  spec.final_norm = s.at("final_norm");
  spec.post_norm = post.at(s.at("post_norm"));
  spec.qk_norm = qk.at(s.at("qk_norm"));
  spec.activation = activation.at(s.at("activation"));
  spec.input_multiplier = s.at("input_multiplier");
  spec.residual_tau = s.at("residual_tau");
  spec.residual = spec.residual_tau == 0 ? Residual::Sum : Residual::Weighted;
  return spec;
}

using Gradients = std::map<std::string, Values>;
struct Result {
  Values token_losses;
  Gradients gradients;
};

class OracleModel {
 public:
  OracleModel(const nlohmann::json& variant, const Recipe& recipe, const DeviceOptions& device = {true, 1},
              const std::string& inputs_name = "llama_inputs")
      : device_(make_cpu_device(device)) {
    TransformerOptions options;
    options.spec = spec_of(variant);
    options.recipe = recipe;
    options.micro_batch = variant.at("spec").at("batch");
    options.head_chunk = 48;  // does not divide the 64 tokens
    options.z_loss = variant.at("spec").at("z_loss");
    MemoryPlan measured;
    { const Transformer measure(nullptr, options, measured); }
    arena_ = device_->allocate(measured.peak_bytes());
    MemoryPlan placed(arena_, measured.peak_bytes());
    model_ = std::make_unique<Transformer>(device_.get(), options, placed);
    model_->initialize();
    const Fixture inputs(inputs_name);
    for (Parameter& p : model_->parameters()) masters_[p.name] = inputs.floats(p.name);
    tokens_ = inputs.integers("tokens");
    targets_ = inputs.integers("targets");
    load();
  }
  ~OracleModel() {
    model_.reset();
    device_->free(arena_);
  }
  OracleModel(const OracleModel&) = delete;
  OracleModel& operator=(const OracleModel&) = delete;

  // Change these, then load().
  std::map<std::string, std::vector<float>>& masters() { return masters_; }
  void load() {
    for (Parameter& p : model_->parameters()) {
      device_->copy_from_host(p.master.data, masters_.at(p.name).data(), p.master.bytes());
    }
    model_->refresh_working_weights(0);
  }

  Result forward_backward() {
    model_->zero_gradients();
    device_->zero(model_->loss_sum());
    model_->forward_backward(tokens_.data(), targets_.data(), 1.0f / static_cast<float>(tokens_.size()), {});
    Result result{values(model_->token_losses()), {}};
    for (Parameter& p : model_->parameters()) result.gradients[p.name] = values(p.gradient);
    return result;
  }
  Values token_losses() {
    model_->forward(tokens_.data(), targets_.data());
    return values(model_->token_losses());
  }
  double mean_loss() { return mean(token_losses()); }
  static double mean(const Values& x) {
    double sum = 0;
    for (double v : x) sum += v;
    return sum / static_cast<double>(x.size());
  }

 private:
  Values values(const Tensor& t) {
    device_->synchronize();
    std::vector<uint8_t> raw(t.bytes());
    device_->copy_to_host(raw.data(), t.data, raw.size());
    return decode_all(t.dtype, raw.data(), t.elements());
  }

  std::unique_ptr<Device> device_;
  void* arena_ = nullptr;
  std::unique_ptr<Transformer> model_;
  std::map<std::string, std::vector<float>> masters_;
  std::vector<int32_t> tokens_, targets_;
};

}  // namespace octet::oracle
