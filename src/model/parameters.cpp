#include "model/parameters.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/random.h"
#include "numerics/masters.h"
#include "numerics/sums.h"

namespace octet {

namespace {

int64_t divided(int64_t elements, int64_t pieces) { return (elements + pieces - 1) / pieces; }
// Vectors begin where other tensors do.
int64_t aligned_floats(int64_t count) {
  constexpr auto together = static_cast<int64_t>(MemoryPlan::alignment / sizeof(float));
  return divided(count, together) * together;
}

}  // namespace

ParameterList::ParameterList(MemoryPlan& plan, MemoryPlan& masters, DType gradient, const Sharding& sharding,
                             const std::vector<int64_t>& vectors, MasterFormat master)
    : plan_(plan), masters_(masters), gradient_(gradient), master_format_(master), sharding_(sharding) {
  constexpr int64_t staged = norm_piece * 16;  // 1 MiB
  if (master != MasterFormat::FP32)
    staging_ = plan.add("initial_values", Category::Scratch, DType::F32, {staged});
  if (!sharding.gradients) return;
  int64_t elements = 0;
  for (const int64_t count : vectors) elements += aligned_floats(count);
  const Shape padded{divided(elements, sharding.ranks) * sharding.ranks};
  shared_.vectors = plan.add("vectors.micro_gradient", Category::Scratch, DType::F32, padded);
  shared_.vector_sum = plan.add("vectors.gradient", Category::Gradients, DType::F32, padded);
  gradients_ = {shared_.vectors, shared_.vector_sum};
}

void ParameterList::begin_slot(int slot) {
  slot_ = static_cast<size_t>(slot);
  slots_[slot_].next = 0;
}

Parameter ParameterList::add(const std::string& name, ParameterKind kind, const Shape& shape,
                             const Initial& initial, const std::vector<int64_t>& matrices) {
  Parameter parameter;
  parameter.name = name;
  parameter.kind = kind;
  parameter.matrices = matrices;
  parameter.learning_rate_factor = initial.learning_rate_factor;
  parameter.index = parameters_.size();
  const bool vector = kind == ParameterKind::Vector;
  const int64_t elements = shape.elements();
  Shape own = shape;
  // Shards end where a piece of the gradient norm ends, so that its order of sums does not depend on them.
  if (!vector && sharding_.ranks > 1 && elements >= sharding_.ranks * norm_piece) {
    parameter.shard = divided(norm_pieces(elements), sharding_.ranks) * norm_piece;
    parameter.begin = std::min(sharding_.rank * parameter.shard, elements);
    own = {std::min(parameter.shard, elements - parameter.begin)};
  }
  plan_master(parameter, own);
  if (!sharding_.gradients)
    plan_gradient(parameter, shape);
  else if (vector)
    take_vector_gradient(parameter, shape);
  else
    plan_sharded_gradient(parameter, shape);
  parameters_.push_back(parameter);
  initial_.push_back(initial);
  return parameter;
}

void ParameterList::plan_master(Parameter& parameter, const Shape& own) {
  const bool vector = parameter.kind == ParameterKind::Vector;
  MemoryPlan& home = vector ? plan_ : masters_;
  MasterCode& code = parameter.master_code;
  if (!vector) code.format = master_format_;
  parameter.offloaded = &home != &plan_;
  parameter.master = home.add(parameter.name, Category::Masters, values_dtype(code.format), own);
  const int64_t n = own.elements();
  if (code.format == MasterFormat::BF16Remainder)
    code.rest = home.add(parameter.name + ".remainder", Category::Masters, DType::U16, own);
  if (code.format == MasterFormat::BF16Kahan)
    code.rest = home.add(parameter.name + ".compensation", Category::Masters, DType::BF16, own);
  if (code.format == MasterFormat::FP16Scaled)
    code.inverse = home.add(parameter.name + ".inverse_scale", Category::Masters, DType::F32,
                            {divided(n, master_block)});
}

void ParameterList::plan_gradient(Parameter& parameter, const Shape& shape) {
  const bool vector = parameter.kind == ParameterKind::Vector;
  const Shape padded = parameter.shard > 0 ? Shape{sharding_.ranks * parameter.shard} : shape;
  parameter.padded_gradient =
      plan_.add(parameter.name + ".gradient", Category::Gradients, vector ? DType::F32 : gradient_, padded);
  parameter.gradient = parameter.padded_gradient;
  parameter.gradient.shape = shape;
  gradients_.push_back(parameter.padded_gradient);
}

void ParameterList::plan_sharded_gradient(Parameter& parameter, const Shape& shape) {
  const int64_t ranks = sharding_.ranks,
                piece = parameter.shard > 0 ? parameter.shard : divided(shape.elements(), ranks);
  Slot& slot = slots_[slot_];
  if (slot.next == slot.buffers.size()) {
    slot.buffers.push_back(
        plan_.add(parameter.name + ".micro_gradient", Category::Scratch, gradient_, {ranks * piece}));
    gradients_.push_back(slot.buffers.back());
    if (slot_ == 0) shared_.block.push_back(ranks * piece);
  }
  parameter.padded_gradient = slot.buffers[slot.next++];
  if (parameter.padded_gradient.elements() != ranks * piece)
    throw Error(ExitCode::Internal,
                fmt::format("{}: {} elements of gradient scratch, {} are needed", parameter.name,
                            parameter.padded_gradient.elements(), ranks * piece));
  parameter.gradient = parameter.padded_gradient.slice(0, shape.elements());
  parameter.gradient.shape = shape;
  parameter.gradient_sum = plan_.add(parameter.name + ".gradient", Category::Gradients, DType::F32,
                                     {parameter.shard > 0 ? parameter.shard : ranks * piece});
  gradients_.push_back(parameter.gradient_sum);
}

void ParameterList::take_vector_gradient(Parameter& parameter, const Shape& shape) {
  const int64_t begin = next_vector_, elements = shape.elements();
  next_vector_ += aligned_floats(elements);
  if (next_vector_ > shared_.vectors.elements())
    throw Error(ExitCode::Internal, fmt::format("{}: {} elements of vectors were announced", parameter.name,
                                                shared_.vectors.elements()));
  parameter.gradient = shared_.vectors.slice(begin, elements);
  parameter.gradient.shape = shape;
  parameter.padded_gradient = parameter.gradient;
  parameter.gradient_sum = shared_.vector_sum.slice(begin, elements);
}

void ParameterList::zero_gradients(Device& device) const {
  for (const Tensor& memory : gradients_) device.zero(memory);
}

void ParameterList::initialize(Device& device, uint64_t seed) const {
  for (size_t i = 0; i < parameters_.size(); ++i) {
    const Parameter& p = parameters_[i];
    const bool staged = p.master_code.format != MasterFormat::FP32;
    const int64_t n = p.master.elements(), most = staged ? staging_.elements() : std::max<int64_t>(n, 1);
    for (int64_t at = 0; at < n; at += most) {
      const int64_t count = std::min(most, n - at);
      const Tensor to = staged ? staging_.slice(0, count) : p.master;
      if (initial_[i].deviation == 0)
        device.fill(to, static_cast<float>(initial_[i].constant));
      else
        device.fill_normal(to, static_cast<float>(initial_[i].deviation),
                           random_key(seed, Purpose::Initialization, i), static_cast<uint64_t>(p.begin + at));
      if (staged)
        device.write_masters({to, p.master.flat().slice(at, count), part_of(p.master_code, at, count)});
    }
  }
}

void ParameterList::initial_values(size_t parameter, uint64_t seed, int64_t first,
                                   std::span<float> values) const {
  const Initial& initial = initial_[parameter];
  const auto deviation = static_cast<double>(static_cast<float>(initial.deviation));
  const uint64_t key = random_key(seed, Purpose::Initialization, parameter);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = initial.deviation == 0
                    ? static_cast<float>(initial.constant)
                    : static_cast<float>(deviation * random_normal(key, static_cast<uint64_t>(first) + i));
}

void copy_values(Device& device, const Tensor& to, const MasterPiece& piece) {
  const Tensor from = piece.values.flat();
  if (piece.code.is_plain())
    device.copy(to.flat(), from);
  else
    device.read_masters({from, piece.code, to.flat()});
}

StorageWeight::StorageWeight(const Parameter& parameter, DType storage, MemoryPlan& plan)
    : master(parameter.master) {
  const bool is_master = parameter.master_code.is_plain() && master.dtype == storage &&
                         parameter.shard == 0 && !parameter.offloaded;
  if (!is_master)
    copy = plan.add(parameter.name + ".copy", Category::WorkingWeights, storage, parameter.gradient.shape);
}

void StorageWeight::refresh(Device& device, const MasterPiece& piece) const {
  if (!copy.empty()) copy_values(device, copy.flat().slice(piece.begin, piece.values.elements()), piece);
}

}  // namespace octet
