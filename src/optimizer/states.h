// What the optimizer keeps of parameters: moments beside the masters, whole or in pieces.
#pragma once
#include <cstdint>

#include "device/device.h"
#include "numerics/moments.h"
#include "numerics/recipe.h"
#include "tensor/memory_plan.h"
#include "tensor/parameter.h"

namespace octet {

// Muon's momentum is the first; it has no second, whose tensors are then empty.
struct OptimizerState {
  MomentTensor first, second;
};

// A part of a parameter's elements.
struct StatePiece {
  size_t parameter;  // place in the list
  int64_t begin, count;
};
// Its master and moments, wherever they are.
struct PieceState {
  Tensor master;
  MasterCode code;
  OptimizerState moments;
};

// In the recipe's formats; those of vectors are FP32.
MomentTensor plan_moment(MemoryPlan& plan, const Parameter& parameter, Moment order, const Moments& moments);
// `piece` begins where a block of its moments does, and of its masters.
PieceState part_of(const Parameter& parameter, const OptimizerState& state, const StatePiece& piece);

}  // namespace octet
