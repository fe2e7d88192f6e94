#include "optimizer/adamw.h"

#include <algorithm>
#include <string>
#include <utility>

#include "base/random.h"
#include "numerics/moments.h"
#include "numerics/sums.h"

namespace octet {

namespace {

// Scales per block of `block` elements; 0 = one for the tensor.
int64_t scale_count(int64_t elements, int block) { return block == 0 ? 1 : (elements + block - 1) / block; }

struct MomentPlan {
  const std::string& name;
  Category category;
  Format format;
  const Moments& moments;
};

MomentTensor plan_moment(MemoryPlan& plan, const MomentPlan& moment, const Shape& shape) {
  MomentTensor tensor;
  tensor.block = moment.moments.block;
  tensor.values = plan.add(moment.name, moment.category, dtype_of(moment.format), shape);
  if (!is_coded_moment(moment.format)) return tensor;
  const int64_t scales = scale_count(shape.elements(), tensor.block);
  const bool expanded = moment.moments.range_expansion && is_float8(moment.format);
  tensor.inverse = plan.add(moment.name + (expanded ? ".largest" : ".inverse_scale"), moment.category,
                            DType::F32, {scales});
  if (expanded) tensor.exponents = plan.add(moment.name + ".exponent", moment.category, DType::U8, {scales});
  return tensor;
}

Tensor part(const Tensor& tensor, int64_t begin, int64_t count) { return tensor.flat().slice(begin, count); }

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

// Pieces of parameters that may be split: a multiple of every block of moments that a recipe can name.
constexpr int64_t piece_granularity = int64_t{1} << 14;

}  // namespace

AdamW::AdamW(Device* device, const AdamWOptions& options, const States& states,
             std::span<const Parameter> parameters, MemoryPlan& plan)
    : device_(device), options_(options), seed_(states.seed) {
  states_.reserve(parameters.size());
  for (const Parameter& parameter : parameters) {
    const bool vector = parameter.kind == ParameterKind::Vector;
    MemoryPlan& home = vector || !states.offload ? plan : *states.offload;
    const Moments& moments = states.moments;
    const MomentPlan first{parameter.name + ".first_moment", Category::FirstMoments,
                           vector ? Format::FP32 : moments.first, moments};
    const MomentPlan second{parameter.name + ".second_moment", Category::SecondMoments,
                            vector ? Format::FP32 : moments.second, moments};
    const Shape& shape = parameter.master.shape;
    states_.push_back({plan_moment(home, first, shape), plan_moment(home, second, shape)});
  }
  int64_t pieces = 0;
  for (const Parameter& parameter : parameters) pieces += norm_pieces(parameter.gradient.elements());
  partials_ = plan.add("norm_partials", Category::Other, DType::F64, {pieces});
  control_ = plan.add("update_control", Category::Other, DType::U8, {sizeof(UpdateControl)});
  update_rms_ =
      plan.add("update_rms", Category::Other, DType::F32, {static_cast<int64_t>(parameters.size())});
  int64_t cast = 0;
  const auto is_cast = [&](size_t i) {
    const Parameter& p = parameters[i];
    return p.kind != ParameterKind::Vector && p.shard == 0 && states.splits && !states.splits(i);
  };
  for (size_t i = 0; i < parameters.size(); ++i) cast += is_cast(i) ? 1 : 0;
  if (cast > 0) all_amaxes_ = plan.add("master_amaxes", Category::Other, DType::F32, {cast});
  amaxes_.resize(parameters.size());
  offloaded_partials_.resize(parameters.size());
  int64_t next = 0;
  for (size_t i = 0; i < parameters.size(); ++i)
    if (is_cast(i)) amaxes_[i] = all_amaxes_.slice(next++, 1);
  if (states.offload) plan_slots(parameters, states, plan);
}

void AdamW::plan_slots(std::span<const Parameter> parameters, const States& states, MemoryPlan& plan) {
  const int block = std::max(states.moments.block, 1);
  const bool splittable = states.moments.block != 0 && piece_granularity % block == 0;
  const auto splits = [&](size_t i) { return splittable && states.splits && states.splits(i); };
  int64_t largest = piece_granularity;  // of those that come whole
  for (size_t i = 0; i < parameters.size(); ++i)
    if (parameters[i].kind != ParameterKind::Vector && !splits(i))
      largest = std::max(largest, parameters[i].master.elements());
  const int64_t step = (largest + piece_granularity - 1) / piece_granularity * piece_granularity;
  size_t bytes = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    if (p.kind == ParameterKind::Vector) continue;
    const int64_t elements = p.master.elements(), most = splits(i) ? step : elements;
    for (int64_t begin = 0; begin == 0 || begin < elements; begin += std::max<int64_t>(most, 1))
      offloaded_.push_back({i, begin, std::min(most, elements - begin)});
    size_t piece_bytes = 0;
    PieceState state = at_home(p, {i, 0, std::min(most, elements)});
    for_tensors(state, [&](const Tensor& tensor) { piece_bytes += aligned(tensor.bytes()); });
    bytes = std::max(bytes, piece_bytes);
  }
  for (size_t i = 0; i < slots_.size(); ++i)
    slots_[i] = plan.add("offload.slot" + std::to_string(i), Category::Scratch, DType::U8,
                         {static_cast<int64_t>(bytes)});
}

double AdamW::decay_of(const Parameter& parameter) const {
  switch (parameter.kind) {
    case ParameterKind::Matrix:
      return options_.weight_decay;
    case ParameterKind::Embedding:
      return options_.decay_embeddings ? options_.weight_decay : 0.0;
    case ParameterKind::Vector:
      return 0.0;
  }
  return 0.0;
}

void AdamW::step(std::span<const Parameter> parameters, double learning_rate, int64_t t,
                 const Tensor& loss_sum, double loss_divisor) {
  measure(parameters);
  decide(loss_sum, loss_divisor);
  measure_updates(parameters, t);
  update(parameters, learning_rate, t);
}

const UpdateControl* AdamW::control() const { return static_cast<const UpdateControl*>(control_.data); }

template <class Body>
void AdamW::for_partials(std::span<const Parameter> parameters, Whole whole, const Body& body) {
  int64_t first = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    const int64_t pieces = norm_pieces(p.gradient.elements()), count = p.master.elements();
    const bool others = p.shard == 0 && whole == Whole::No;  // measured by rank 0
    if (p.shard > 0 || others) device_->zero(partials_.slice(first, pieces));
    if (!others && count > 0) body(i, partials_.slice(first + p.begin / norm_piece, norm_pieces(count)));
    first += pieces;
  }
}

void AdamW::measure(std::span<const Parameter> parameters, Whole whole) {
  for_partials(parameters, whole, [&](size_t i, const Tensor& partials) {
    device_->gradient_squares({parameters[i].step_gradient(), partials});
  });
}

void AdamW::measure_updates(std::span<const Parameter> parameters, int64_t t, Whole whole,
                            const std::function<void(const Tensor&)>& add_up) {
  if (!options_.update_clipping && !measures_rms_) return;
  const auto squares = [&](const Tensor& gradient, const MomentTensor& second, const Tensor& partials) {
    device_->update_squares({.gradient = gradient,
                             .second = second,
                             .beta2 = static_cast<float>(options_.beta2),
                             .epsilon = static_cast<float>(options_.epsilon),
                             .step = t,
                             .control = control(),
                             .partials = partials});
  };
  for_partials(parameters, whole, [&](size_t i, const Tensor& partials) {
    if (!offloaded_.empty() && parameters[i].kind != ParameterKind::Vector)
      offloaded_partials_[i] = partials;
    else
      squares(parameters[i].step_gradient(), states_[i].second, partials);
  });
  visit(parameters, Part::SecondMoment, After::Keep, [&](const Piece& piece, const PieceState& state) {
    const Tensor& partials = offloaded_partials_[piece.parameter];
    if (partials.empty() || piece.count == 0) return;
    squares(parameters[piece.parameter].step_gradient().slice(piece.begin, piece.count), state.moments.second,
            partials.slice(piece.begin / norm_piece, norm_pieces(piece.count)));
  });
  if (add_up) add_up(partials_);
  int64_t first = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const int64_t elements = parameters[i].gradient.elements(), pieces = norm_pieces(elements);
    device_->update_rms(
        {partials_.slice(first, pieces), elements, update_rms_.slice(static_cast<int64_t>(i), 1)});
    first += pieces;
  }
}

void AdamW::decide(const Tensor& loss_sum, double loss_divisor) {
  device_->gradient_norm({.partials = partials_,
                          .loss_sum = loss_sum,
                          .loss_divisor = loss_divisor,
                          .clip_norm = static_cast<float>(options_.clip_norm),
                          .control = static_cast<UpdateControl*>(control_.data)});
}

void AdamW::update(std::span<const Parameter> parameters, double learning_rate, int64_t t,
                   const Updated& updated) {
  AdamWUpdate common{};
  common.learning_rate = static_cast<float>(learning_rate);
  common.beta1 = static_cast<float>(options_.beta1);
  common.beta2 = static_cast<float>(options_.beta2);
  common.epsilon = static_cast<float>(options_.epsilon);
  common.step = t;
  common.control = control();
  const auto tell = [&](const Piece& piece, const PieceState& state) {
    const Parameter& p = parameters[piece.parameter];
    const bool last = piece.begin + piece.count == p.master.elements();
    if (updated)
      updated(
          {piece.parameter, p.begin + piece.begin, state.master, last, amaxes_[piece.parameter], state.code});
  };
  if (!all_amaxes_.empty()) device_->zero(all_amaxes_);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& parameter = parameters[i];
    if (!offloaded_.empty() && parameter.kind != ParameterKind::Vector) continue;
    const Piece whole{i, 0, parameter.master.elements()};
    const PieceState state{parameter.master, parameter.master_code, states_[i]};
    if (whole.count > 0) update(parameter, whole, state, common);
    tell(whole, state);
  }
  visit(parameters, Part::All, After::PutBack, [&](const Piece& piece, const PieceState& state) {
    if (piece.count > 0) update(parameters[piece.parameter], piece, state, common);
    tell(piece, state);
  });
}

template <class Body>
void AdamW::visit(std::span<const Parameter> parameters, Part part, After after, const Body& body) {
  if (offloaded_.empty()) return;
  using Lane = Device::Lane;
  const auto home = [&](size_t i) { return at_home(parameters[offloaded_[i].parameter], offloaded_[i]); };
  // A slot is free when its last piece is back, or, where nothing comes back, when it was read.
  const Lane frees = after == After::PutBack ? Lane::Out : Lane::Compute;
  device_->order(Lane::In, Lane::Out);  // what the step before put back is fetched now
  transfer(Lane::In, in_slot(0, home(0)), home(0), part);
  for (size_t i = 0; i < offloaded_.size(); ++i) {
    device_->order(Lane::Compute, Lane::In);
    if (i + 1 < offloaded_.size()) {
      device_->order(Lane::In, frees);
      transfer(Lane::In, in_slot((i + 1) % slots_.size(), home(i + 1)), home(i + 1), part);
    }
    const PieceState state = in_slot(i % slots_.size(), home(i));
    body(offloaded_[i], state);
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

AdamW::PieceState AdamW::at_home(const Parameter& parameter, const Piece& piece) const {
  const State& state = states_[piece.parameter];
  const auto of_piece = [&](const MomentTensor& moment) {
    MomentTensor result = moment;
    result.values = part(moment.values, piece.begin, piece.count);
    if (!moment.inverse.empty() && moment.block > 0)
      result.inverse =
          part(moment.inverse, piece.begin / moment.block, scale_count(piece.count, moment.block));
    if (!moment.exponents.empty())
      result.exponents =
          part(moment.exponents, piece.begin / moment.block, scale_count(piece.count, moment.block));
    return result;
  };
  return {part(parameter.master, piece.begin, piece.count),
          part_of(parameter.master_code, piece.begin, piece.count),
          {of_piece(state.first), of_piece(state.second)}};
}

AdamW::PieceState AdamW::in_slot(size_t slot, const PieceState& home) const {
  auto* next = static_cast<std::byte*>(slots_[slot].data);
  PieceState state = home;
  for_tensors(state, [&](Tensor& tensor) {
    tensor.data = next;
    next += aligned(tensor.bytes());
  });
  return state;
}

void AdamW::transfer(Device::Lane lane, const PieceState& to, const PieceState& from, Part part) {
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

void AdamW::update(const Parameter& parameter, const Piece& piece, const PieceState& state,
                   const AdamWUpdate& common) {
  AdamWUpdate update = common;
  update.master = state.master.flat();
  update.gradient = parameter.step_gradient().slice(piece.begin, piece.count);
  update.first = state.moments.first;
  update.second = state.moments.second;
  update.weight_decay = static_cast<float>(decay_of(parameter));
  update.amax = amaxes_[piece.parameter];
  update.master_code = state.code;
  update.first_element = parameter.begin + piece.begin;
  update.rounding_key =
      random_key(seed_, Purpose::MasterRounding, piece.parameter, static_cast<uint64_t>(common.step));
  if (options_.update_clipping)
    update.update_rms = update_rms_.slice(static_cast<int64_t>(piece.parameter), 1);
  device_->adamw(update);
}

UpdateControl AdamW::read_control() const {
  UpdateControl control;
  device_->copy_to_host(&control, control_.data, sizeof control);
  return control;
}

}  // namespace octet
