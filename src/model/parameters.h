// Trainable tensors as the model declares them, and their working copies in storage precision.
#pragma once
#include <array>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "device/device.h"
#include "tensor/memory_plan.h"
#include "tensor/parameter.h"

namespace octet {

// What a parameter starts from: deviation * normal, or a constant when deviation is 0; and how fast it
// learns, Parameter::learning_rate_factor.
struct Initial {
  double deviation = 0, constant = 0;
  double learning_rate_factor = 1;
};

// What ranks exchange of sharded gradients.
struct SharedGradients {
  // Of all vectors, next to each other so that they travel at once. F32 [ranks * piece]: of a micro-batch, of
  // the step.
  Tensor vectors, vector_sum;
  std::vector<int64_t> block;  // elements of the gradients of a block, padded, as they are declared
};

// The parameters in the order of their declaration; each declaration plans a master and a gradient.
//
// Where gradients are sharded, what backward adds to is scratch: blocks take turns with two slots of it, so
// that the gradients of one are on their way while the next block's are computed; tables have the third. What
// stays is gradient_sum.
class ParameterList {
 public:
  static constexpr int table_slot = 2;  // and 0, 1: of blocks with an even number, an odd one

  // `gradient`: type of the gradients of matrices and embeddings; those of vectors are always F32.
  // `masters`: where the masters of matrices and embeddings go; those of vectors, which operations read
  // themselves, stay in `plan`. Of those with at least norm_piece elements a rank, this one keeps a shard.
  // `vectors`: the sizes of all vectors, where gradients are sharded.
  // `master`: how those of matrices and embeddings are stored.
  ParameterList(MemoryPlan& plan, MemoryPlan& masters, DType gradient, const Sharding& sharding = {},
                const std::vector<int64_t>& vectors = {}, MasterFormat master = MasterFormat::FP32);

  // The parameters declared from now on have this slot's scratch, in the order in which those before had it.
  void begin_slot(int slot);
  // `matrices`: Parameter::matrices.
  Parameter add(const std::string& name, ParameterKind kind, const Shape& shape, const Initial& initial,
                const std::vector<int64_t>& matrices = {});
  std::vector<Parameter>& all() { return parameters_; }
  const std::vector<Parameter>& all() const { return parameters_; }
  const SharedGradients& shared_gradients() const { return shared_; }
  void zero_gradients(Device& device) const;  // all of them, sums and scratch
  // Masters from the seed: a pure function of (seed, place in the list, element), whatever the recipe; then
  // rounded to nearest to their format.
  void initialize(Device& device, uint64_t seed) const;
  // The same numbers before they are rounded: elements [first, first + values.size()) of a parameter.
  void initial_values(size_t parameter, uint64_t seed, int64_t first, std::span<float> values) const;

 private:
  struct Slot {
    std::vector<Tensor> buffers;
    size_t next = 0;
  };
  void plan_master(Parameter& parameter, const Shape& own);
  void plan_gradient(Parameter& parameter, const Shape& shape);
  void plan_sharded_gradient(Parameter& parameter, const Shape& shape);
  void take_vector_gradient(Parameter& parameter, const Shape& shape);

  MemoryPlan &plan_, &masters_;
  DType gradient_;
  MasterFormat master_format_;
  Tensor staging_;  // F32: initial values on their way to masters that are not FP32
  Sharding sharding_;
  std::array<Slot, 3> slots_;
  size_t slot_ = table_slot;
  SharedGradients shared_;
  int64_t next_vector_ = 0;        // its first element
  std::vector<Tensor> gradients_;  // the memory of all gradients, each once
  std::vector<Parameter> parameters_;
  std::vector<Initial> initial_;
};

// The numbers of a piece, rounded to the type of `to` if need be.
void copy_values(Device& device, const Tensor& to, const MasterPiece& piece);

// A weight as GEMMs in storage precision and the embedding read it: the master itself when it is whole, on
// the device and stored as that, otherwise a copy.
struct StorageWeight {
  Tensor master, copy;

  StorageWeight() = default;
  StorageWeight(const Parameter& parameter, DType storage, MemoryPlan& plan);
  const Tensor& values() const { return copy.empty() ? master : copy; }
  void refresh(Device& device, const MasterPiece& piece) const;
};

}  // namespace octet
