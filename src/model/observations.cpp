#include "model/observations.h"

namespace octet {

const char* name_of(Observed what) {
  switch (what) {
    case Observed::BlockOutput:
      return "block_output";
    case Observed::FfnBeforeActivation:
      return "ffn_before_activation";
    case Observed::FfnHidden:
      return "ffn_hidden";
    case Observed::FfnOutput:
      return "ffn_output";
    case Observed::QkvInput:
      return "qkv_input";
    case Observed::Qkv:
      return "qkv";
    case Observed::Query:
      return "query";
    case Observed::Key:
      return "key";
    case Observed::LogSumExp:
      break;
  }
  return "log_sum_exp";
}

void Observations::plan(MemoryPlan& plan, const ObservationLayout& the_layout, int64_t context,
                        int64_t rows) {
  layout = the_layout;
  context_ = context;
  const auto add = [&](const char* name, DType dtype, const Shape& shape) {
    return plan.add(name, Category::Other, dtype, shape);
  };
  sums = add("health.sums", DType::F64, {layout.sums()});
  extremes = add("health.extremes", DType::U32, {layout.extremes()});
  weight_sums = add("health.weight_sums", DType::F64, {layout.weight_sums()});
  cosines = add("health.cosines", DType::F32, {layout.cosines()});
  row_sums_ = add("health.row_sums", DType::F64, {3, rows});
  weight_extremes_ = add("health.weight_extremes", DType::U32, {2});
}

void Observations::clear(Device& device) const {
  for (const Tensor& tensor : {sums, extremes, weight_sums, cosines}) device.zero(tensor);
}

void Observations::observe(Device& device, int block, Observed what, const Tensor& x,
                           const Columns& columns) const {
  TensorStatistics op = statistics_of(x);
  if (columns.columns > 0) {
    op.first = columns.first;
    op.columns = columns.columns;
  }
  if (what != Observed::LogSumExp) op.context = context_;
  op.row_sums = row_sums_;
  op.sums = sums.slice(layout.sums_of(block, what), 4);
  op.extremes = extremes.slice(layout.extremes_of(block, what), 2);
  device.tensor_statistics(op);
  if (what != Observed::FfnHidden) return;
  Tensor amax = extremes.slice(layout.channels_of(block), layout.ffn_width);
  amax.dtype = DType::F32;
  device.channel_amax({x, amax});
}

void Observations::observe_cast(Device& device, int site, CastError op) const {
  op.row_sums = row_sums_;
  op.sums = sums.slice(layout.errors_of(site), 2);
  device.cast_error(op);
}

void Observations::observe_weight(Device& device, int64_t weight, const Tensor& values,
                                  const InverseScales& scales) const {
  TensorStatistics op = statistics_of(values);
  op.inverse_scales = scales;
  op.row_sums = row_sums_;
  op.sums = weight_sums.slice(4 * weight, 4);
  op.extremes = weight_extremes_;
  device.tensor_statistics(op);
}

void Observations::observe_gates(Device& device, int block, const Tensor& values,
                                 const InverseScales& scales) const {
  if (layout.gated)
    device.row_cosines({values, scales, cosines.slice(block * layout.ffn_width, layout.ffn_width)});
}

}  // namespace octet
