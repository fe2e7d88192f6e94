#include "model/parameters.h"

#include <algorithm>

#include "base/random.h"
#include "numerics/sums.h"

namespace octet {

Parameter ParameterList::add(const std::string& name, ParameterKind kind, const Shape& shape,
                             const Initial& initial) {
  Parameter parameter;
  parameter.name = name;
  parameter.kind = kind;
  parameter.index = parameters_.size();
  const bool vector = kind == ParameterKind::Vector;
  const int64_t elements = shape.elements();
  Shape own = shape, padded = shape;
  // Shards end where a piece of the gradient norm ends, so that its order of sums does not depend on them.
  if (!vector && sharding_.ranks > 1 && elements >= sharding_.ranks * norm_piece) {
    parameter.shard = (norm_pieces(elements) + sharding_.ranks - 1) / sharding_.ranks * norm_piece;
    parameter.begin = std::min(sharding_.rank * parameter.shard, elements);
    own = {std::min(parameter.shard, elements - parameter.begin)};
    padded = {sharding_.ranks * parameter.shard};
  }
  parameter.master = (vector ? plan_ : masters_).add(name, Category::Masters, DType::F32, own);
  parameter.padded_gradient =
      plan_.add(name + ".gradient", Category::Gradients, vector ? DType::F32 : gradient_, padded);
  parameter.gradient = parameter.padded_gradient;
  parameter.gradient.shape = shape;
  parameters_.push_back(parameter);
  initial_.push_back(initial);
  return parameter;
}

void ParameterList::initialize(Device& device, uint64_t seed) const {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Tensor& master = parameters_[i].master;
    if (initial_[i].deviation == 0)
      device.fill(master, static_cast<float>(initial_[i].constant));
    else
      device.fill_normal(master, static_cast<float>(initial_[i].deviation),
                         random_key(seed, Purpose::Initialization, i),
                         static_cast<uint64_t>(parameters_[i].begin));
  }
}

StorageWeight::StorageWeight(const Parameter& parameter, DType storage, MemoryPlan& plan)
    : master(parameter.master) {
  if (storage != DType::F32 || parameter.shard > 0)
    copy = plan.add(parameter.name + ".copy", Category::WorkingWeights, storage, parameter.gradient.shape);
}

void StorageWeight::refresh(Device& device, const MasterPiece& piece) const {
  if (!copy.empty()) device.copy(copy.flat().slice(piece.begin, piece.values.elements()), piece.values);
}

}  // namespace octet
