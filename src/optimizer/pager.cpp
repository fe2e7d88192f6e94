#include "optimizer/pager.h"

#include <algorithm>
#include <string>

namespace octet {

namespace {

// Pieces of parameters that may be split: a multiple of every block of moments that a recipe can name.
constexpr int64_t piece_granularity = int64_t{1} << 14;

size_t aligned(size_t bytes) {
  return (bytes + MemoryPlan::alignment - 1) / MemoryPlan::alignment * MemoryPlan::alignment;
}

// The tensors of a state in one order, those that exist.
template <class Moment, class Body>
void for_moment(Moment& moment, const Body& body) {
  for (auto* tensor : {&moment.values, &moment.inverse, &moment.exponents})
    if (!tensor->empty()) body(*tensor);
}
template <class State, class Body>
void for_tensors(State& state, const Body& body) {
  for (auto* tensor : {&state.master, &state.code.rest, &state.code.inverse})
    if (!tensor->empty()) body(*tensor);
  for_moment(state.moments.first, body);
  for_moment(state.moments.second, body);
}

}  // namespace

StatePager::StatePager(Device* device, const States& states, int block, const Splits& splits,
                       MemoryPlan& plan)
    : device_(device) {
  const std::span<const Parameter> parameters = states.parameters;
  const bool splittable = block != 0 && piece_granularity % block == 0;
  const auto may_split = [&](size_t i) { return splittable && splits && splits(i); };
  int64_t largest = piece_granularity;  // of those that come whole
  for (size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i].kind != ParameterKind::Vector && !may_split(i))
      largest = std::max(largest, parameters[i].master.elements());
  const int64_t step = (largest + piece_granularity - 1) / piece_granularity * piece_granularity;
  size_t bytes = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    if (p.kind == ParameterKind::Vector) continue;
    const int64_t elements = p.master.elements(), most = may_split(i) ? step : elements;
    for (int64_t begin = 0; begin == 0 || begin < elements; begin += std::max<int64_t>(most, 1))
      pieces_.push_back({i, begin, std::min(most, elements - begin)});
    size_t piece_bytes = 0;
    PieceState state = part_of(p, states.moments[i], {i, 0, std::min(most, elements)});
    for_tensors(state, [&](const Tensor& tensor) { piece_bytes += aligned(tensor.bytes()); });
    bytes = std::max(bytes, piece_bytes);
  }
  for (size_t i = 0; i < slots_.size(); ++i)
    slots_[i] = plan.add("offload.slot" + std::to_string(i), Category::Scratch, DType::U8,
                         {static_cast<int64_t>(bytes)});
}

void StatePager::visit(const States& states, Part part, After after, const Body& body) const {
  if (pieces_.empty()) return;
  using Lane = Device::Lane;
  const auto home = [&](size_t i) {
    const size_t parameter = pieces_[i].parameter;
    return part_of(states.parameters[parameter], states.moments[parameter], pieces_[i]);
  };
  // A slot is free when its last piece is back, or, where nothing comes back, when it was read.
  const Lane frees = after == After::PutBack ? Lane::Out : Lane::Compute;
  device_->order(Lane::In, Lane::Out);  // what the step before put back is fetched now
  transfer(Lane::In, in_slot(0, home(0)), home(0), part);
  for (size_t i = 0; i < pieces_.size(); ++i) {
    device_->order(Lane::Compute, Lane::In);
    if (i + 1 < pieces_.size()) {
      device_->order(Lane::In, frees);
      transfer(Lane::In, in_slot((i + 1) % slots_.size(), home(i + 1)), home(i + 1), part);
    }
    const PieceState state = in_slot(i % slots_.size(), home(i));
    body(pieces_[i], state);
    if (after == After::Keep) continue;
    device_->order(Lane::Out, Lane::Compute);
    transfer(Lane::Out, home(i), state, part);
  }
  // Whoever waits for the device finds the states at home; the next visit finds the slots free.
  if (after == After::PutBack)
    device_->order(Lane::Compute, Lane::Out);
  else
    device_->order(Lane::In, Lane::Compute);
}

PieceState StatePager::in_slot(size_t slot, const PieceState& home) const {
  auto* next = static_cast<std::byte*>(slots_[slot].data);
  PieceState state = home;
  for_tensors(state, [&](Tensor& tensor) {
    tensor.data = next;
    next += aligned(tensor.bytes());
  });
  return state;
}

void StatePager::transfer(Device::Lane lane, const PieceState& to, const PieceState& from, Part part) const {
  std::vector<void*> targets;
  const auto for_part = [&](const PieceState& state, const auto& body) {
    part == Part::All ? for_tensors(state, body) : for_moment(state.moments.second, body);
  };
  for_part(to, [&](const Tensor& tensor) { targets.push_back(tensor.data); });
  size_t i = 0;
  for_part(from, [&](const Tensor& tensor) {
    device_->copy_on_lane(lane, targets[i++], tensor.data, tensor.bytes());
  });
}

}  // namespace octet
