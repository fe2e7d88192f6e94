// Trainable tensors as the model declares them, and their working copies in storage precision.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "device/device.h"
#include "tensor/memory_plan.h"
#include "tensor/parameter.h"

namespace octet {

// What a parameter starts from: deviation * normal, or a constant when deviation is 0.
struct Initial {
  double deviation = 0, constant = 0;
};

// The parameters in the order of their declaration; each declaration plans a master and a gradient.
class ParameterList {
 public:
  // `gradient`: type of the gradients of matrices and embeddings; those of vectors are always F32.
  // `masters`: where the masters of matrices and embeddings go; those of vectors, which operations read
  // themselves, stay in `plan`. Of those with at least norm_piece elements a rank, this one keeps a shard.
  ParameterList(MemoryPlan& plan, MemoryPlan& masters, DType gradient, const Sharding& sharding = {})
      : plan_(plan), masters_(masters), gradient_(gradient), sharding_(sharding) {}

  Parameter add(const std::string& name, ParameterKind kind, const Shape& shape, const Initial& initial);
  std::vector<Parameter>& all() { return parameters_; }
  const std::vector<Parameter>& all() const { return parameters_; }
  // Masters from the seed: a pure function of (seed, place in the list, element), whatever the recipe.
  void initialize(Device& device, uint64_t seed) const;

 private:
  MemoryPlan &plan_, &masters_;
  DType gradient_;
  Sharding sharding_;
  std::vector<Parameter> parameters_;
  std::vector<Initial> initial_;
};

// A weight as GEMMs in storage precision and the embedding read it: the master itself when storage is F32 and
// it is whole, otherwise a copy.
struct StorageWeight {
  Tensor master, copy;

  StorageWeight() = default;
  StorageWeight(const Parameter& parameter, DType storage, MemoryPlan& plan);
  const Tensor& values() const { return copy.empty() ? master : copy; }
  void refresh(Device& device, const MasterPiece& piece) const;
};

}  // namespace octet
