#include "training/local_sgd.h"

#include <algorithm>

namespace octet {
namespace {

bool is_vector(const Parameter& p) { return p.kind == ParameterKind::Vector; }

bool is_refreshed(const SiteInfo& site) {
  return is_float8(site.cast.format) && follows_steps(site.cast.scaling);
}

}  // namespace

GradientReduction::Options LocalSgd::reduction_options(const Parts& parts) {
  int64_t largest = 0;
  for (const Parameter& p : parts.model.parameters())
    if (!is_vector(p)) largest = std::max(largest, p.master.elements());
  return {.wire = parts.config.parallel.reduce,
          .seed = parts.config.run.seed,
          .gradient = DType::F32,
          .largest = largest};
}

LocalSgd::LocalSgd(const Parts& parts)
    : device_(parts.device),
      communicator_(parts.communicator),
      ranks_(parts.ranks),
      options_(parts.config.parallel),
      model_(parts.model),
      reduction_(parts.device, parts.communicator, parts.ranks, reduction_options(parts), parts.plan) {
  for (const Parameter& p : model_.parameters()) {
    outer_.push_back(parts.plan.add(p.name + ".outer", Category::OuterStates, DType::F32, p.master.shape));
    velocities_.push_back({p.name + ".velocity", parts.plan.add(p.name + ".velocity", Category::OuterStates,
                                                                DType::F32, p.master.shape)});
  }
}

void LocalSgd::masters_set() {
  for (const Parameter& p : model_.parameters()) device_->copy(outer_[p.index], p.master);
}

// Differences are on their way while the optimizer updates the parameters that follow.
void LocalSgd::take(const MasterPiece& piece, int64_t step, const Optimizer::Updated& hand_on) {
  if (!agrees_after(step)) return hand_on(piece);
  const Parameter& p = model_.parameters()[piece.parameter];
  device_->outer_difference({outer_[p.index].flat(), p.master.flat()});
  if (ranks_ == 1) return;
  const TrafficLabel label(*communicator_, TrafficKind::Gradients);
  if (is_vector(p))
    newest_ = communicator_->all_reduce(p.master, Reduction::Sum);
  else
    newest_reduction_ = reduction_.all_reduce(p.master, static_cast<uint64_t>(step), p.index);
}

void LocalSgd::finish_update(int64_t step, const Optimizer::Updated& hand_on) {
  if (!agrees_after(step)) return;
  merge_scales(step);
  if (ranks_ > 1) {
    reduction_.wait(newest_reduction_);
    communicator_->wait(newest_);
    reduction_.end_step();
  }
  for (const Parameter& p : model_.parameters()) {
    device_->outer_update({.outer = outer_[p.index].flat(),
                           .velocity = velocities_[p.index].tensor.flat(),
                           .local = p.master.flat(),
                           .scale = 1.0f / static_cast<float>(ranks_),
                           .learning_rate = static_cast<float>(options_.outer_learning_rate),
                           .momentum = static_cast<float>(options_.outer_momentum)});
    hand_on({p.index, p.begin, p.master});
  }
}

// The largest amaxes of all ranks, step by step, and the delayed scales they make. Where a broken newest amax
// keeps the scale as it is, and where scales follow counters, which are cleared by now, it is rank 0's. A
// rank that did not apply this step has an older one in its place.
void LocalSgd::merge_scales(int64_t step) {
  ScaleTable& scales = model_.scales();
  if (ranks_ == 1 || std::none_of(scales.sites.begin(), scales.sites.end(), is_refreshed)) return;
  Tensor bits = scales.amax_history;
  bits.dtype = DType::U32;  // not negative: in the order of their bits
  communicator_->all_reduce(bits, Reduction::Max);
  communicator_->broadcast(scales.scale, 0);
  communicator_->wait(communicator_->broadcast(scales.inverse_scale, 0));
  const int64_t newest = (step - 1) % scales.amax_history.rows();
  device_->copy(scales.amax, scales.amax_history.slice(newest, 1).flat());
  model_.update_scales(step - 1);  // the ring has the same amax again
}

}  // namespace octet
