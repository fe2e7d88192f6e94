#include "model/rope.h"

#include <cmath>

namespace octet {

namespace {

constexpr double pi = 3.14159265358979323846;

// Llama 3: wavelengths well inside the original context stay, those beyond it are stretched by `factor`, and
// in between the two are blended.
double scaled(double frequency, const RopeScaling& scaling) {
  if (scaling.factor == 1) return frequency;
  const double periods = static_cast<double>(scaling.original_context) * frequency / (2 * pi);
  const double slow = scaling.low_frequency_factor, fast = scaling.high_frequency_factor;
  if (periods > fast) return frequency;
  if (periods < slow) return frequency / scaling.factor;
  const double blend = (periods - slow) / (fast - slow);
  return (1 - blend) * frequency / scaling.factor + blend * frequency;
}

}  // namespace

std::vector<double> rope_frequencies(const TransformerSpec& spec) {
  const int64_t width = spec.head_width_();
  std::vector<double> frequencies;
  for (int64_t i = 0; i < width / 2; ++i) {
    const double exponent = -2.0 * static_cast<double>(i) / static_cast<double>(width);
    frequencies.push_back(scaled(std::pow(spec.rope_base, exponent), spec.rope_scaling));
  }
  return frequencies;
}

RopeTable plan_rope(const TransformerSpec& spec, MemoryPlan& plan) {
  const Shape shape{spec.context, spec.head_width_() / 2};
  return {plan.add("rope.cosine", Category::Other, DType::F32, shape),
          plan.add("rope.sine", Category::Other, DType::F32, shape)};
}

void fill_rope(const TransformerSpec& spec, Device& device, const RopeTable& table) {
  std::vector<float> cosine, sine;
  for (int64_t position = 0; position < spec.context; ++position) {
    for (double frequency : rope_frequencies(spec)) {
      const double angle = static_cast<double>(position) * frequency;
      cosine.push_back(static_cast<float>(std::cos(angle)));
      sine.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  device.copy_from_host(table.cosine.data, cosine.data(), table.cosine.bytes());
  device.copy_from_host(table.sine.data, sine.data(), table.sine.bytes());
}

}  // namespace octet
