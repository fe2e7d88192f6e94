#include "optimizer/optimizer.h"

#include "base/random.h"
#include "numerics/sums.h"

namespace octet {

Optimizer::Optimizer(Device* device, const OptimizerOptions& options, const States& states,
                     std::span<const Parameter> parameters, MemoryPlan& plan)
    : device_(device), options_(options), seed_(states.seed) {
  states_.reserve(parameters.size());
  for (const Parameter& parameter : parameters) {
    MemoryPlan& home = parameter.kind == ParameterKind::Vector || !states.offload ? plan : *states.offload;
    State state{plan_moment(home, parameter, Moment::First, states.moments), {}};
    if (!is_muons(options, parameter))
      state.second = plan_moment(home, parameter, Moment::Second, states.moments);
    states_.push_back(state);
  }
  int64_t pieces = 0;
  for (const Parameter& parameter : parameters) pieces += norm_pieces(parameter.gradient.elements());
  partials_ = plan.add("norm_partials", Category::Other, DType::F64, {pieces});
  control_ = plan.add("update_control", Category::Other, DType::U8, {sizeof(UpdateControl)});
  update_rms_ =
      plan.add("update_rms", Category::Other, DType::F32, {static_cast<int64_t>(parameters.size())});
  plan_amaxes(parameters, states.splits, plan);
  offloaded_partials_.resize(parameters.size());
  const auto splits = [&](size_t i) {
    return states.splits && states.splits(i) && !is_muons(options, parameters[i]);
  };
  if (states.offload) pager_ = StatePager(device, {parameters, states_}, states.moments.block, splits, plan);
  if (options.name == OptimizerName::Muon)
    muon_ = Muon(device, {static_cast<float>(options.muon_momentum), options.muon_steps, states.storage},
                 parameters, plan);
}

void Optimizer::plan_amaxes(std::span<const Parameter> parameters, const StatePager::Splits& splits,
                            MemoryPlan& plan) {
  const auto is_cast = [&](size_t i) {
    const Parameter& p = parameters[i];
    return p.kind != ParameterKind::Vector && p.shard == 0 && splits && !splits(i);
  };
  int64_t cast = 0, next = 0;
  for (size_t i = 0; i < parameters.size(); ++i) cast += is_cast(i) ? 1 : 0;
  if (cast > 0) all_amaxes_ = plan.add("master_amaxes", Category::Other, DType::F32, {cast});
  amaxes_.resize(parameters.size());
  for (size_t i = 0; i < parameters.size(); ++i)
    if (is_cast(i)) amaxes_[i] = all_amaxes_.slice(next++, 1);
}

double Optimizer::decay_of(const Parameter& parameter) const {
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

void Optimizer::step(std::span<const Parameter> parameters, double learning_rate, int64_t t,
                     const Tensor& loss_sum, double loss_divisor) {
  measure(parameters);
  decide(loss_sum, loss_divisor);
  measure_updates(parameters, t);
  update(parameters, learning_rate, t);
}

const UpdateControl* Optimizer::control() const { return static_cast<const UpdateControl*>(control_.data); }

template <class Body>
void Optimizer::for_partials(std::span<const Parameter> parameters, Whole whole, const Body& body) {
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

void Optimizer::measure(std::span<const Parameter> parameters, Whole whole) {
  for_partials(parameters, whole, [&](size_t i, const Tensor& partials) {
    device_->gradient_squares({parameters[i].step_gradient(), partials});
  });
}

void Optimizer::measure_updates(std::span<const Parameter> parameters, int64_t t, Whole whole,
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
    if (is_muons(options_, parameters[i]))
      device_->zero(partials);
    else if (pager_.has(parameters[i]))
      offloaded_partials_[i] = partials;
    else
      squares(parameters[i].step_gradient(), states_[i].second, partials);
  });
  const auto of_piece = [&](const StatePiece& piece, const PieceState& state) {
    const Tensor& partials = offloaded_partials_[piece.parameter];
    if (partials.empty() || piece.count == 0) return;
    squares(parameters[piece.parameter].step_gradient().slice(piece.begin, piece.count), state.moments.second,
            partials.slice(piece.begin / norm_piece, norm_pieces(piece.count)));
  };
  pager_.visit({parameters, states_}, StatePager::Part::SecondMoment, StatePager::After::Keep, of_piece);
  if (add_up) add_up(partials_);
  int64_t first = 0;
  for (size_t i = 0; i < parameters.size(); ++i) {
    const int64_t elements = parameters[i].gradient.elements(), pieces = norm_pieces(elements);
    device_->update_rms(
        {partials_.slice(first, pieces), elements, update_rms_.slice(static_cast<int64_t>(i), 1)});
    first += pieces;
  }
}

void Optimizer::decide(const Tensor& loss_sum, double loss_divisor) {
  device_->gradient_norm({.partials = partials_,
                          .loss_sum = loss_sum,
                          .loss_divisor = loss_divisor,
                          .clip_norm = static_cast<float>(options_.clip_norm),
                          .control = static_cast<UpdateControl*>(control_.data)});
}

void Optimizer::update(std::span<const Parameter> parameters, double learning_rate, int64_t t,
                       const Updated& updated) {
  const auto visit = [&](const StatePiece& piece, const PieceState& state) {
    const Parameter& p = parameters[piece.parameter];
    if (piece.count > 0) update(p, piece, state, {learning_rate, t});
    const bool last = piece.begin + piece.count == p.master.elements();
    if (updated)
      updated(
          {piece.parameter, p.begin + piece.begin, state.master, last, amaxes_[piece.parameter], state.code});
  };
  if (!all_amaxes_.empty()) device_->zero(all_amaxes_);
  for (size_t i = 0; i < parameters.size(); ++i) {
    const Parameter& p = parameters[i];
    if (!pager_.has(p)) visit({i, 0, p.master.elements()}, {p.master, p.master_code, states_[i]});
  }
  pager_.visit({parameters, states_}, StatePager::Part::All, StatePager::After::PutBack, visit);
}

void Optimizer::update(const Parameter& parameter, const StatePiece& piece, const PieceState& state,
                       const Step& step) {
  is_muons(options_, parameter) ? muon(parameter, piece, state, step) : adamw(parameter, piece, state, step);
}

void Optimizer::adamw(const Parameter& parameter, const StatePiece& piece, const PieceState& state,
                      const Step& step) {
  AdamWUpdate update{};
  update.master = state.master.flat();
  update.gradient = parameter.step_gradient().slice(piece.begin, piece.count);
  update.first = state.moments.first;
  update.second = state.moments.second;
  update.learning_rate = static_cast<float>(step.learning_rate * parameter.learning_rate_factor);
  update.beta1 = static_cast<float>(options_.beta1);
  update.beta2 = static_cast<float>(options_.beta2);
  update.epsilon = static_cast<float>(options_.epsilon);
  // Decay follows the rate that was asked for.
  update.weight_decay = static_cast<float>(decay_of(parameter) / parameter.learning_rate_factor);
  update.step = step.t;
  update.control = control();
  update.amax = amaxes_[piece.parameter];
  update.master_code = state.code;
  update.first_element = parameter.begin + piece.begin;
  update.rounding_key = rounding_key(piece, step);
  if (options_.update_clipping)
    update.update_rms = update_rms_.slice(static_cast<int64_t>(piece.parameter), 1);
  device_->adamw(update);
}

// A whole parameter.
void Optimizer::muon(const Parameter& parameter, const StatePiece& piece, const PieceState& state,
                     const Step& step) {
  MuonUpdate update{};
  update.master = state.master.flat();
  update.master_code = state.code;
  update.learning_rate = static_cast<float>(step.learning_rate);  // its own factor is of Adam's updates
  update.weight_decay = static_cast<float>(decay_of(parameter));
  update.control = control();
  update.amax = amaxes_[piece.parameter];
  update.rounding_key = rounding_key(piece, step);
  muon_.update(parameter, state.moments, update);
}

uint64_t Optimizer::rounding_key(const StatePiece& piece, const Step& step) const {
  return random_key(seed_, Purpose::MasterRounding, piece.parameter, static_cast<uint64_t>(step.t));
}

UpdateControl Optimizer::read_control() const {
  UpdateControl control;
  device_->copy_to_host(&control, control_.data, sizeof control);
  return control;
}

}  // namespace octet
