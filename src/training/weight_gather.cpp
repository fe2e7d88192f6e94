#include "training/weight_gather.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/text.h"
#include "model/parameters.h"

namespace octet {

WeightGather::WeightGather(const StepExchange::Parts& parts)
    : device_(parts.device),
      communicator_(parts.communicator),
      ranks_(parts.ranks),
      storage_(dtype_of(parts.config.precision.storage)),
      model_(parts.model) {
  int64_t largest_shard = 0;
  for (const Parameter& p : model_.parameters()) {
    sharded_ = sharded_ || p.shard > 0;
    if (model_.code_shard(p.index))
      code_gathers_.push_back({p.index});
    else
      largest_shard = std::max(largest_shard, p.shard);
  }
  if (!code_gathers_.empty())
    amaxes_ = parts.plan.add("weight_amaxes", Category::Scratch, DType::F32,
                             {static_cast<int64_t>(code_gathers_.size())});
  if (largest_shard == 0) return;
  const int64_t bytes = ranks_ * largest_shard * static_cast<int64_t>(size_of(storage_));
  for (Gather& gather : gathers_)
    gather.buffer = parts.plan.add("weight_gather", Category::Scratch, DType::U8, {bytes});
}

std::string WeightGather::describe() const {
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

// What every rank casts whole is counted once, but where scales follow shares, which are the same.
void WeightGather::refresh(const MasterPiece& piece, int64_t step) {
  ScaleTable& scales = model_.scales();
  const bool count = scales.count;
  scales.count = count && (ranks_ == 1 || communicator_->rank() == 0);
  model_.refresh_working_weight(piece, step);
  scales.count = count;
}

void WeightGather::take(const MasterPiece& piece, int64_t step) {
  const Parameter& p = model_.parameters()[piece.parameter];
  if (p.shard == 0) return refresh(piece, step);
  const int64_t count = piece.values.elements();
  if (const CodeShard* shard = model_.code_shard(piece.parameter)) {
    if (count > 0) copy_values(*device_, shard->values.flat().slice(piece.begin - p.begin, count), piece);
    return;
  }
  Gather& gather = gathers_[next_gather_];
  if (!gather.open) {
    finish(gather, step);
    gather.open = true;
    gather.parameter = piece.parameter;
    gather.whole = {gather.buffer.data, storage_, {ranks_ * p.shard}};
  }
  if (count > 0) copy_values(*device_, gather.whole.slice(piece.begin, count), piece);
  if (!piece.last) return;
  const TrafficLabel label(*communicator_, TrafficKind::Weights);
  gather.ticket =
      communicator_->all_gather(gather.whole, gather.whole.slice(communicator_->rank() * p.shard, p.shard));
  gather.open = false;
  gather.under_way = true;
  next_gather_ = (next_gather_ + 1) % gathers_.size();
}

void WeightGather::finish(Gather& gather, int64_t step) {
  if (!gather.under_way) return;
  communicator_->wait(gather.ticket);
  gather.under_way = false;
  const int64_t elements = model_.parameters()[gather.parameter].gradient.elements();
  refresh({gather.parameter, 0, gather.whole.slice(0, elements)}, step);
}

void WeightGather::finish(int64_t step) {
  for (size_t i = 0; i < gathers_.size(); ++i) finish(gathers_[(next_gather_ + i) % gathers_.size()], step);
  gather_codes(step);
}

// One small reduction of all amaxes, then each weight's codes while those before it are on their way.
void WeightGather::gather_codes(int64_t step) {
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

}  // namespace octet
