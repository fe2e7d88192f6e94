#include "model/parameters.h"

#include "base/random.h"

namespace octet {

Parameter ParameterList::add(const std::string& name, ParameterKind kind, const Shape& shape,
                             const Initial& initial) {
  Parameter parameter;
  parameter.name = name;
  parameter.kind = kind;
  parameter.index = parameters_.size();
  parameter.master =
      (kind == ParameterKind::Vector ? plan_ : masters_).add(name, Category::Masters, DType::F32, shape);
  const DType gradient = kind == ParameterKind::Vector ? DType::F32 : gradient_;
  parameter.gradient = plan_.add(name + ".gradient", Category::Gradients, gradient, shape);
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
                         random_key(seed, Purpose::Initialization, i));
  }
}

StorageWeight::StorageWeight(const Parameter& parameter, DType storage, MemoryPlan& plan)
    : master(parameter.master) {
  if (storage != DType::F32)
    copy = plan.add(parameter.name + ".copy", Category::WorkingWeights, storage, master.shape);
}

void StorageWeight::refresh(Device& device, const MasterPiece& piece) const {
  if (!copy.empty()) device.copy(copy.flat().slice(piece.begin, piece.values.elements()), piece.values);
}

}  // namespace octet
