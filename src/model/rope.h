// Rotary position embedding: the angles.  [Su et al. 2104.09864; frequency scaling: Llama 3, 2407.21783]
#pragma once
#include <vector>

#include "device/device.h"
#include "model/spec.h"
#include "tensor/memory_plan.h"

namespace octet {

struct RopeTable {
  Tensor cosine, sine;  // F32 [S, Dh / 2]
};

// Radians per position of each of the Dh / 2 pairs: base^(-2 i / Dh), the slow ones divided by the scaling's
// factor.
std::vector<double> rope_frequencies(const TransformerSpec& spec);

RopeTable plan_rope(const TransformerSpec& spec, MemoryPlan& plan);
void fill_rope(const TransformerSpec& spec, Device& device, const RopeTable& table);

}  // namespace octet
