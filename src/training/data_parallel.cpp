#include "training/data_parallel.h"

#include <algorithm>

namespace octet {

DataParallel::DataParallel(Device* device, Communicator* communicator, int ranks, const RunConfig& config,
                           Transformer& model, AdamW& optimizer, MemoryPlan& plan)
    : device_(device),
      communicator_(communicator),
      ranks_(ranks),
      storage_(dtype_of(config.precision.storage)),
      model_(model),
      optimizer_(optimizer) {
  if (ranks == 1) return;
  int64_t largest = 0, largest_shard = 0;
  for (const Parameter& p : model.parameters()) {
    if (p.kind != ParameterKind::Vector) largest = std::max(largest, p.padded_gradient.elements());
    largest_shard = std::max(largest_shard, p.shard);
  }
  reduction_.emplace(device, communicator, ranks,
                     GradientReduction::Options{.wire = config.parallel.reduce,
                                                .seed = config.run.seed,
                                                .gradient = dtype_of(config.precision.weight_gradient),
                                                .largest = largest},
                     plan);
  sharded_ = largest_shard > 0;
  if (!sharded_) return;
  const int64_t bytes = ranks * largest_shard * static_cast<int64_t>(size_of(storage_));
  for (Gather& gather : gathers_)
    gather.buffer = plan.add("weight_gather", Category::Scratch, DType::U8, {bytes});
}

Transformer::GradientsReady DataParallel::reduce_as_ready(int64_t step) {
  if (ranks_ == 1) return {};
  return [this, step](size_t first, size_t count) {
    for (size_t i = first; i < first + count; ++i) {
      const Parameter& p = model_.parameters()[i];
      if (p.kind == ParameterKind::Vector)
        newest_ = communicator_->all_reduce(p.gradient, Reduction::Sum);
      else if (p.shard > 0)
        newest_reduction_ = reduction_->reduce_scatter(p.padded_gradient, static_cast<uint64_t>(step), i);
      else
        newest_reduction_ = reduction_->all_reduce(p.gradient, static_cast<uint64_t>(step), i);
    }
  };
}

void DataParallel::finish_gradients(int64_t step) {
  (void)step;
  if (ranks_ == 1) return;
  newest_ = communicator_->all_reduce(model_.loss_sum(), Reduction::Sum);
  reduction_->wait(newest_reduction_);
  communicator_->wait(newest_);
  reduction_->end_step();
}

void DataParallel::decide(double loss_divisor) {
  // What every rank has whole is measured once.
  const bool whole = !sharded_ || communicator_->rank() == 0;
  optimizer_.measure(model_.parameters(), whole ? AdamW::Whole::Yes : AdamW::Whole::No);
  if (sharded_) add_up(optimizer_.norm_partials());
  optimizer_.decide(model_.loss_sum(), loss_divisor);
}

void DataParallel::add_up(const Tensor& sums) {
  if (ranks_ > 1) communicator_->wait(communicator_->all_reduce(sums, Reduction::Sum));
}

void DataParallel::merge_amaxes() {
  const ScaleTable& scales = model_.scales();
  if (ranks_ == 1 || scales.sites.empty()) return;
  Tensor bits = scales.amax;
  bits.dtype = DType::U32;  // amaxes are not negative: their bits are in their order, NaN above all
  communicator_->wait(communicator_->all_reduce(bits, Reduction::Max));
}

void DataParallel::update(double learning_rate, int64_t step) {
  optimizer_.update(model_.parameters(), learning_rate, step,
                    [&](const MasterPiece& piece) { take(piece, step); });
  for (size_t i = 0; i < gathers_.size(); ++i) finish(gathers_[(next_gather_ + i) % gathers_.size()], step);
}

void DataParallel::refresh_working_weights(int64_t step) {
  if (!sharded_) return model_.refresh_working_weights(step);
  for (const Parameter& p : model_.parameters()) take({p.index, p.begin, p.master}, step);
  for (size_t i = 0; i < gathers_.size(); ++i) finish(gathers_[(next_gather_ + i) % gathers_.size()], step);
}

void DataParallel::take(const MasterPiece& piece, int64_t step) {
  const Parameter& p = model_.parameters()[piece.parameter];
  if (p.shard == 0) return model_.refresh_working_weight(piece, step);
  Gather& gather = gathers_[next_gather_];
  if (!gather.open) {
    finish(gather, step);
    gather.open = true;
    gather.parameter = piece.parameter;
    gather.whole = {gather.buffer.data, storage_, {ranks_ * p.shard}};
  }
  if (const int64_t count = piece.values.elements(); count > 0)
    device_->copy(gather.whole.slice(piece.begin, count), piece.values.flat());
  if (!piece.last) return;
  gather.ticket =
      communicator_->all_gather(gather.whole, gather.whole.slice(communicator_->rank() * p.shard, p.shard));
  gather.open = false;
  gather.under_way = true;
  next_gather_ = (next_gather_ + 1) % gathers_.size();
}

void DataParallel::finish(Gather& gather, int64_t step) {
  if (!gather.under_way) return;
  communicator_->wait(gather.ticket);
  gather.under_way = false;
  const int64_t elements = model_.parameters()[gather.parameter].gradient.elements();
  model_.refresh_working_weight({gather.parameter, 0, gather.whole.slice(0, elements)}, step);
}

}  // namespace octet
