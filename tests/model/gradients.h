// One step's gradients of a tiny model, by parameter.
#pragma once
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "catch.h"
#include "model/tiny_model.h"

namespace octet::test {

using Gradients = std::map<std::string, std::vector<double>>;
// `disturb` changes the masters first.
using Disturb = std::function<void(TinyModel&)>;

inline Gradients gradients_of(const TransformerOptions& options, const Disturb& disturb = {}) {
  TinyModel tiny(options);
  CHECK(tiny.placed_bytes == tiny.peak_bytes);
  if (disturb) {
    disturb(tiny);
    tiny.model->refresh_working_weights(0);
  }
  tiny.train(random_batch(options, 0));
  Gradients gradients;
  for (const Parameter& p : tiny.model->parameters()) gradients[p.name] = tiny.values(p.gradient);
  return gradients;
}
inline Gradients gradients_of(const Recipe& recipe, const Disturb& disturb = {}) {
  return gradients_of(tiny(recipe), disturb);
}

// Of a gate_up: gates `factor` times as large and ups as much smaller. Their product stays as it is.
inline Disturb pull_gates_and_ups_apart(const std::string& gate_up, float factor) {
  return [gate_up, factor](TinyModel& tiny) {
    const Tensor& master = tiny.parameter(gate_up).master;
    const int64_t half = master.elements() / 2;
    for (int64_t i = 0; i < 2 * half; ++i) master.as<float>()[i] *= i < half ? factor : 1 / factor;
  };
}

}  // namespace octet::test
