#include "training/data_parallel.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"

namespace octet {
namespace {

// Amaxes are not negative: their bits are in their order, NaN above all.
Tensor magnitude_bits(Tensor amaxes) {
  amaxes.dtype = DType::U32;
  return amaxes;
}

}  // namespace

DataParallel::DataParallel(Device* device, Communicator* communicator, int ranks, const RunConfig& config,
                           Transformer& model, AdamW& optimizer, MemoryPlan& plan)
    : device_(device),
      communicator_(communicator),
      ranks_(ranks),
      storage_(dtype_of(config.precision.storage)),
      model_(model),
      optimizer_(optimizer) {
  const bool shards_gradients = config.parallel.zero > 1;
  if (ranks == 1 && !shards_gradients) return;
  int64_t largest = 0, largest_shard = 0;
  for (const Parameter& p : model.parameters()) {
    if (p.kind != ParameterKind::Vector) largest = std::max(largest, p.padded_gradient.elements());
    sharded_ = sharded_ || p.shard > 0;
    if (model.code_shard(p.index))
      code_gathers_.push_back({p.index});
    else
      largest_shard = std::max(largest_shard, p.shard);
  }
  const GradientReduction::Options options{.wire = config.parallel.reduce,
                                           .seed = config.run.seed,
                                           .gradient = dtype_of(config.precision.weight_gradient),
                                           .largest = largest};
  reduction_.emplace(device, communicator, ranks,
                     shards_gradients ? GradientSums::options(options, model) : options, plan);
  if (shards_gradients) sums_.emplace(device, communicator, ranks, config, model, *reduction_, plan);
  if (!code_gathers_.empty())
    amaxes_ = plan.add("weight_amaxes", Category::Scratch, DType::F32,
                       {static_cast<int64_t>(code_gathers_.size())});
  if (largest_shard == 0) return;
  const int64_t bytes = ranks * largest_shard * static_cast<int64_t>(size_of(storage_));
  for (Gather& gather : gathers_)
    gather.buffer = plan.add("weight_gather", Category::Scratch, DType::U8, {bytes});
}

void DataParallel::begin_step() {
  if (sums_)
    sums_->begin_step();
  else
    model_.zero_gradients();
  device_->zero(model_.loss_sum());
}

Transformer::GradientsReady DataParallel::reduce_as_ready(int64_t step, const MicroBatchPlace& place) {
  if (sums_) return sums_->add_as_ready(step, place.over_ranks);
  if (ranks_ == 1 || !place.last) return {};
  return [this, step](size_t first, size_t count) {
    const TrafficLabel label(*communicator_, TrafficKind::Gradients);
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

void DataParallel::finish_gradients() {
  if (sums_) {
    sums_->finish_step();
    return reduction_->end_step();
  }
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
  communicator_->wait(communicator_->all_reduce(magnitude_bits(scales.amax), Reduction::Max));
}

void DataParallel::merge_counters() {
  const ScaleTable& scales = model_.scales();
  if (ranks_ > 1 && !scales.sites.empty())
    communicator_->wait(communicator_->all_reduce(scales.counters, Reduction::Sum));
}

void DataParallel::merge_observations() {
  if (ranks_ == 1) return;
  const Observations& observations = model_.observations();
  communicator_->all_reduce(observations.sums, Reduction::Sum);
  communicator_->wait(communicator_->all_reduce(observations.extremes, Reduction::Max));
}

// ---- weights

std::string DataParallel::describe_gather() const {
  if (!sharded_) return {};
  size_t values = 0;
  for (const Parameter& p : model_.parameters()) values += p.shard > 0 && !model_.code_shard(p.index) ? 1 : 0;
  const std::string storage = storage_ == DType::F32 ? "fp32" : "bf16";
  if (code_gathers_.empty())
    return fmt::format("weights are gathered in {} ({})", storage,
                       plural(static_cast<int64_t>(values), "tensor"));
  return fmt::format("weights are gathered as fp8 codes ({}), {} ({})",
                     plural(static_cast<int64_t>(code_gathers_.size()), "tensor"), storage, values);
}

void DataParallel::update(double learning_rate, int64_t step) {
  optimizer_.update(model_.parameters(), learning_rate, step,
                    [&](const MasterPiece& piece) { take(piece, step); });
  finish_gathers(step);
}

void DataParallel::refresh_working_weights(int64_t step) {
  for (const Parameter& p : model_.parameters()) take({p.index, p.begin, p.master}, step);
  finish_gathers(step);
}

// What every rank casts whole is counted once.
void DataParallel::refresh(const MasterPiece& piece, int64_t step) {
  ScaleTable& scales = model_.scales();
  const bool count = scales.count;
  scales.count = count && (ranks_ == 1 || communicator_->rank() == 0);
  model_.refresh_working_weight(piece, step);
  scales.count = count;
}

void DataParallel::take(const MasterPiece& piece, int64_t step) {
  const Parameter& p = model_.parameters()[piece.parameter];
  if (p.shard == 0) return refresh(piece, step);
  const int64_t count = piece.values.elements();
  if (const CodeShard* shard = model_.code_shard(piece.parameter)) {
    if (count > 0)
      device_->copy(shard->values.flat().slice(piece.begin - p.begin, count), piece.values.flat());
    return;
  }
  Gather& gather = gathers_[next_gather_];
  if (!gather.open) {
    finish(gather, step);
    gather.open = true;
    gather.parameter = piece.parameter;
    gather.whole = {gather.buffer.data, storage_, {ranks_ * p.shard}};
  }
  if (count > 0) device_->copy(gather.whole.slice(piece.begin, count), piece.values.flat());
  if (!piece.last) return;
  const TrafficLabel label(*communicator_, TrafficKind::Weights);
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
  refresh({gather.parameter, 0, gather.whole.slice(0, elements)}, step);
}

void DataParallel::finish_gathers(int64_t step) {
  for (size_t i = 0; i < gathers_.size(); ++i) finish(gathers_[(next_gather_ + i) % gathers_.size()], step);
  gather_codes(step);
}

// One small reduction of all amaxes, then each weight's codes while those before it are on their way.
void DataParallel::gather_codes(int64_t step) {
  if (code_gathers_.empty()) return;
  const TrafficLabel label(*communicator_, TrafficKind::Weights);
  const auto amax_of = [&](size_t i) { return amaxes_.slice(static_cast<int64_t>(i), 1); };
  device_->zero(amaxes_);
  for (size_t i = 0; i < code_gathers_.size(); ++i)
    device_->measure_amax({model_.code_shard(code_gathers_[i].parameter)->values, amax_of(i)});
  communicator_->wait(communicator_->all_reduce(magnitude_bits(amaxes_), Reduction::Max));
  for (size_t i = 0; i < code_gathers_.size(); ++i) {
    CodeGather& gather = code_gathers_[i];
    model_.encode_shard(gather.parameter, amax_of(i), step);
    const int64_t shard = model_.parameters()[gather.parameter].shard;
    const Tensor& codes = model_.code_shard(gather.parameter)->codes;
    gather.ticket = communicator_->all_gather(codes, codes.slice(communicator_->rank() * shard, shard));
  }
  for (const CodeGather& gather : code_gathers_) {
    communicator_->wait(gather.ticket);
    model_.finish_codes(gather.parameter);
  }
}

// ---- checkpoints

GradientReduction::State DataParallel::reduction_state() { return reduction_ ? reduction_->state() : alone_; }

void DataParallel::restore(const GradientReduction::State& state) {
  alone_ = state;
  if (reduction_) reduction_->restore(state);
}

}  // namespace octet
