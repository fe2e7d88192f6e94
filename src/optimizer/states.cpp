#include "optimizer/states.h"

#include <string>

namespace octet {

namespace {

// Scales per block of `block` elements; 0 = one for the tensor.
int64_t scale_count(int64_t elements, int block) { return block == 0 ? 1 : (elements + block - 1) / block; }

Tensor part(const Tensor& tensor, int64_t begin, int64_t count) { return tensor.flat().slice(begin, count); }

MomentTensor part_of(const MomentTensor& moment, const StatePiece& piece) {
  if (moment.values.empty()) return moment;
  MomentTensor result = moment;
  result.values = part(moment.values, piece.begin, piece.count);
  const int64_t first = moment.block > 0 ? piece.begin / moment.block : 0;
  if (!moment.inverse.empty() && moment.block > 0)
    result.inverse = part(moment.inverse, first, scale_count(piece.count, moment.block));
  if (!moment.exponents.empty())
    result.exponents = part(moment.exponents, first, scale_count(piece.count, moment.block));
  return result;
}

}  // namespace

MomentTensor plan_moment(MemoryPlan& plan, const Parameter& parameter, Moment order, const Moments& moments) {
  const bool first = order == Moment::First;
  const std::string name = parameter.name + (first ? ".first_moment" : ".second_moment");
  const Category category = first ? Category::FirstMoments : Category::SecondMoments;
  const Format format = parameter.kind == ParameterKind::Vector ? Format::FP32
                        : first                                 ? moments.first
                                                                : moments.second;
  const Shape& shape = parameter.master.shape;
  MomentTensor tensor;
  tensor.block = moments.block;
  tensor.values = plan.add(name, category, dtype_of(format), shape);
  if (!is_coded_moment(format)) return tensor;
  const int64_t scales = scale_count(shape.elements(), tensor.block);
  const bool expanded = moments.range_expansion && is_float8(format);
  tensor.inverse =
      plan.add(name + (expanded ? ".largest" : ".inverse_scale"), category, DType::F32, {scales});
  if (expanded) tensor.exponents = plan.add(name + ".exponent", category, DType::U8, {scales});
  return tensor;
}

PieceState part_of(const Parameter& parameter, const OptimizerState& state, const StatePiece& piece) {
  return {part(parameter.master, piece.begin, piece.count),
          part_of(parameter.master_code, piece.begin, piece.count),
          {part_of(state.first, piece), part_of(state.second, piece)}};
}

}  // namespace octet
