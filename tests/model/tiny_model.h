// A two-layer Llama on the CPU device, small enough to train in milliseconds, and ways to look inside it.
#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/hash.h"
#include "base/random.h"
#include "model/transformer.h"
#include "numerics/bfloat16.h"
#include "numerics/recipes.h"

namespace octet::test {

inline TransformerOptions tiny(const Recipe& recipe) {
  TransformerOptions options;
  options.spec.layers = 2;
  options.spec.width = 32;
  options.spec.heads = 4;
  options.spec.kv_heads = 2;
  options.spec.ffn_width = 48;
  options.spec.context = 16;
  options.spec.vocabulary = 40;
  options.spec.init_deviation = 0.1;
  options.recipe = recipe;
  options.micro_batch = 2;
  options.head_chunk = 32;
  options.seed = 1234;
  return options;
}
inline TransformerOptions tiny(const std::string& recipe) { return tiny(make_recipe(recipe)); }

inline Recipe fp8(SmoothSwiGLU smooth, Scaling scaling = Scaling::Current) {
  Recipe recipe = make_recipe("fp8");
  recipe.smooth_swiglu = smooth;
  recipe.input.scaling = recipe.weight.scaling = recipe.grad.scaling = scaling;
  return recipe;
}
inline const char* name_of(SmoothSwiGLU mode) {
  constexpr const char* names[] = {"none", "token", "channel", "dual", "bf16"};
  return names[static_cast<int>(mode)];
}
inline constexpr SmoothSwiGLU smooth_modes[] = {
    SmoothSwiGLU::None, SmoothSwiGLU::Token, SmoothSwiGLU::Channel, SmoothSwiGLU::Dual, SmoothSwiGLU::BF16};

struct Batch {
  std::vector<int32_t> tokens, targets;
};
// `windows` random windows; each target is the token that follows.
inline Batch random_batch(const TransformerOptions& options, uint64_t which, int64_t windows) {
  Batch batch;
  const auto vocabulary = static_cast<uint32_t>(options.spec.vocabulary);
  const uint64_t key = random_key(99, Purpose::Test, which);
  uint64_t element = 0;
  for (int64_t window = 0; window < windows; ++window) {
    auto token = static_cast<int32_t>(random_bits(key, element++) % vocabulary);
    for (int64_t i = 0; i < options.spec.context; ++i) {
      batch.tokens.push_back(token);
      token = static_cast<int32_t>(random_bits(key, element++) % vocabulary);
      batch.targets.push_back(token);
    }
  }
  return batch;
}
inline Batch random_batch(const TransformerOptions& options, uint64_t which) {
  return random_batch(options, which, options.micro_batch);
}

inline DeviceOptions deterministic(int threads = 1) {
  DeviceOptions options;
  options.deterministic = true;
  options.threads = threads;
  return options;
}

// Device memory for a plan, returned at the end.
class Arena {
 public:
  Arena(Device& device, size_t bytes) : device_(device), data_(device.allocate(bytes)), bytes_(bytes) {}
  ~Arena() { device_.free(data_); }
  Arena(const Arena&) = delete;
  Arena& operator=(const Arena&) = delete;
  MemoryPlan plan() const { return MemoryPlan(data_, bytes_); }
  void* data() const { return data_; }

 private:
  Device& device_;
  void* data_;
  size_t bytes_;
};

class TinyModel {
 public:
  explicit TinyModel(const TransformerOptions& model_options,
                     const DeviceOptions& device_options = deterministic())
      : options(model_options), device(make_cpu_device(device_options)) {
    MemoryPlan measured;
    { const Transformer sizes(device.get(), options, measured); }
    peak_bytes = measured.peak_bytes();
    items = measured.items();
    arena_ = std::make_unique<Arena>(*device, peak_bytes);
    MemoryPlan placed = arena_->plan();
    model = std::make_unique<Transformer>(device.get(), options, placed);
    placed_bytes = placed.peak_bytes();
    model->initialize();
    model->zero_gradients();
    device->zero(model->loss_sum());
  }

  float gradient_scale() const {
    return 1.0f / static_cast<float>(options.micro_batch * options.spec.context);
  }
  void train(const Batch& batch, MicroStep where = {}) {
    model->forward_backward(batch.tokens.data(), batch.targets.data(), gradient_scale(), where);
  }
  void evaluate(const Batch& batch) { model->forward(batch.tokens.data(), batch.targets.data()); }

  // What the plan calls `name`.
  Tensor planned(const std::string& name) const {
    for (const MemoryPlan::Item& item : items)
      if (item.name == name)
        return {static_cast<std::byte*>(arena_->data()) + item.offset, item.dtype, item.shape};
    throw Error(ExitCode::Internal, "nothing is planned as " + name);
  }
  const Parameter& parameter(const std::string& name) {
    for (const Parameter& candidate : model->parameters())
      if (candidate.name == name) return candidate;
    throw Error(ExitCode::Internal, "no parameter " + name);
  }
  std::vector<std::byte> bytes(const Tensor& tensor) const {
    std::vector<std::byte> host(tensor.bytes());
    if (!host.empty()) device->copy_to_host(host.data(), tensor.data, host.size());
    return host;
  }
  std::vector<double> values(const Tensor& tensor) const {
    const std::vector<std::byte> host = bytes(tensor);
    std::vector<double> result;
    for (int64_t i = 0; i < tensor.elements(); ++i) {
      const auto n = static_cast<size_t>(i);
      if (tensor.dtype == DType::F32)
        result.push_back(static_cast<double>(reinterpret_cast<const float*>(host.data())[n]));
      else if (tensor.dtype == DType::BF16)
        result.push_back(static_cast<double>(to_float(reinterpret_cast<const BFloat16*>(host.data())[n])));
      else
        result.push_back(reinterpret_cast<const double*>(host.data())[n]);
    }
    return result;
  }
  uint64_t hash(const Tensor& tensor) const {
    const std::vector<std::byte> host = bytes(tensor);
    return hash64(host.data(), host.size());
  }
  std::vector<uint64_t> gradient_hashes() {
    std::vector<uint64_t> hashes;
    for (const Parameter& p : model->parameters()) hashes.push_back(hash(p.gradient));
    return hashes;
  }
  std::vector<uint64_t> master_hashes() {
    std::vector<uint64_t> hashes;
    for (const Parameter& p : model->parameters()) hashes.push_back(hash(p.master));
    return hashes;
  }
  // Amaxes, histories, scales and counters.
  std::vector<uint64_t> scale_hashes() {
    const ScaleTable& table = model->scales();
    if (table.sites.empty()) return {};
    return {hash(table.amax_history), hash(table.scale), hash(table.inverse_scale), hash(table.amax),
            hash(table.counters)};
  }
  double loss_sum() const { return values(model->loss_sum())[0]; }

  TransformerOptions options;
  std::unique_ptr<Device> device;
  std::vector<MemoryPlan::Item> items;
  size_t peak_bytes = 0, placed_bytes = 0;

 private:
  std::unique_ptr<Arena> arena_;

 public:
  std::unique_ptr<Transformer> model;
};

// |a - b| / |b| in the Frobenius norm.
inline double relative_error(const std::vector<double>& a, const std::vector<double>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    difference += (a[i] - b[i]) * (a[i] - b[i]);
    norm += b[i] * b[i];
  }
  return std::sqrt(difference / norm);
}

}  // namespace octet::test
