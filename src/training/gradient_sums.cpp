#include "training/gradient_sums.h"

#include <algorithm>

namespace octet {
namespace {

bool is_vector(const Parameter& p) { return p.kind == ParameterKind::Vector; }

}  // namespace

GradientReduction::Options GradientSums::options(const Parts& parts) {
  int64_t largest = 0;
  for (const Parameter& p : parts.model.parameters())
    if (!is_vector(p)) largest = std::max(largest, p.padded_gradient.elements());
  return {.wire = parts.config.parallel.reduce,
          .seed = parts.config.run.seed,
          .gradient = dtype_of(parts.config.precision.weight_gradient),
          .largest = largest,
          .use = GradientReduction::Options::Use::AddOnto,
          .together = parts.model.shared_gradients().block};
}

GradientSums::GradientSums(const Parts& parts)
    : device_(parts.device),
      communicator_(parts.communicator),
      ranks_(parts.ranks),
      model_(parts.model),
      reduction_(parts.device, parts.communicator, parts.ranks, options(parts), parts.plan),
      vector_reduction_(parts.device, parts.communicator, parts.ranks,
                        {.wire = GradientWire::FP32,
                         .largest = model_.shared_gradients().vectors.elements(),
                         .use = GradientReduction::Options::Use::AddOnto},
                        parts.plan) {
  if (ranks_ == 1) return;
  const RunConfig& config = parts.config;
  const int64_t micro_batches = config.batch.tokens / config.model.context / config.batch.micro;
  losses_ = parts.plan.add("micro_losses", Category::Batch, DType::F64, {micro_batches});
}

void GradientSums::begin_step() {
  model_.zero_gradients();
  if (ranks_ > 1) device_->zero(losses_);
}

Transformer::GradientsReady GradientSums::micro_batch(int64_t step, const MicroBatchPlace& place) {
  const int64_t micro = place.over_ranks;
  const uint64_t position = position_of({step, micro});
  return [this, position, micro](size_t first, size_t count) {
    finish_group();  // the next block, or the next micro-batch, takes its memory
    if (count == 0) return;
    start({first, count}, position);
    if (ranks_ == 1) return finish_group();
    if (first == 0) device_->accumulate_sum(losses_.slice(micro, 1), model_.token_losses());
  };
}

void GradientSums::start(const Group& group, uint64_t position) {
  group_ = group;
  const int rank = ranks_ == 1 ? 0 : communicator_->rank();
  for (size_t i = group.first; i < group.first + group.count; ++i) {
    const Parameter& p = model_.parameters()[i];
    if (is_vector(p)) continue;
    const int64_t piece = p.padded_gradient.elements() / ranks_;
    const Tensor sum = p.shard > 0 ? p.gradient_sum : p.gradient_sum.slice(rank * piece, piece);
    newest_ = reduction_.add_up_onto(sum, p.padded_gradient, position, i);
  }
  if (group.first > 0) return;  // vectors are complete with the last group
  const SharedGradients& shared = model_.shared_gradients();
  const int64_t piece = shared.vectors.elements() / ranks_;
  newest_vectors_ = vector_reduction_.add_up_onto(shared.vector_sum.slice(rank * piece, piece),
                                                  shared.vectors, position, 0);
}

// What was computed is in the sums; its memory is zero for what is computed next.
void GradientSums::finish_group() {
  if (group_.count == 0) return;
  reduction_.wait(newest_);
  for (size_t i = group_.first; i < group_.first + group_.count; ++i)
    if (const Parameter& p = model_.parameters()[i]; !is_vector(p)) device_->zero(p.padded_gradient);
  if (group_.first == 0) {
    vector_reduction_.wait(newest_vectors_);
    device_->zero(model_.shared_gradients().vectors);
  }
  group_ = {};
}

void GradientSums::gather(const Tensor& whole) {
  const int64_t piece = whole.elements() / ranks_;
  communicator_->all_gather(whole, whole.slice(communicator_->rank() * piece, piece));
}

void GradientSums::finish_gradients() {
  finish_group();
  vector_reduction_.end_step();
  reduction_.end_step();
  if (ranks_ == 1) return;
  const TrafficLabel label(*communicator_, TrafficKind::Gradients);
  for (const Parameter& p : model_.parameters())
    if (!is_vector(p) && p.shard == 0) gather(p.gradient_sum);
  gather(model_.shared_gradients().vector_sum);
  communicator_->wait(communicator_->all_reduce(losses_, Reduction::Sum));
  Tensor in_order = losses_;
  in_order.shape = {losses_.elements(), 1};
  device_->zero(model_.loss_sum());
  device_->add_in_order({.sum = model_.loss_sum(), .sources = in_order});
}

}  // namespace octet
