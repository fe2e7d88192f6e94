#include "device/operation_cost.h"

#include <initializer_list>

#include "device/products.h"

namespace octet {
namespace {

uint64_t sum(std::initializer_list<Tensor> tensors) {
  uint64_t bytes = 0;
  for (const Tensor& t : tensors) bytes += t.bytes();
  return bytes;
}
uint64_t written(const CastTarget& target) { return sum({target.high, target.row, target.column}); }

}  // namespace

uint64_t least_bytes(const Matmul& op) {
  return sum({op.a.values, op.b.values, op.out}) + (op.accumulate ? op.out.bytes() : 0);
}
uint64_t least_bytes(const CastOperation& op) {
  const bool in_place = op.out.high.data == op.source.data;
  return op.source.bytes() + written(op.out) - (in_place ? op.out.high.bytes() : 0);
}
uint64_t least_bytes(const MeasureAmax& op) { return op.source.bytes(); }
uint64_t least_bytes(const TransposeCodes& op) { return sum({op.codes, op.transposed}); }
uint64_t least_bytes(const EmbeddingForward& op) { return op.tokens.bytes() + 2 * op.out.bytes(); }
uint64_t least_bytes(const EmbeddingBackward& op) { return sum({op.tokens, op.out_gradient}); }
uint64_t least_bytes(const RmsNormForward& op) {
  // Without a norm out.high is the sum.
  const uint64_t stored = op.branch.empty() || op.gain.empty() ? 0 : op.residual.bytes();
  return sum({op.residual, op.branch, op.branch_gain, op.branch_rstd, op.gain, op.rstd}) + stored +
         written(op.out);
}
uint64_t least_bytes(const RmsNormBackward& op) {
  return sum({op.out_gradient, op.residual, op.gain, op.rstd, op.residual_gradient_in}) +
         2 * op.gain_gradient.bytes() + written(op.residual_gradient) +
         (op.stream_factor != 1 ? op.out_gradient.bytes() : 0);
}
uint64_t least_bytes(const RopeForward& op) {
  // Value heads only take the bias.
  const uint64_t all = 2 * op.qkv.bytes(), kept = op.norm.kept.bytes();
  if (!op.bias.empty()) return all + kept;
  const auto rotated = static_cast<uint64_t>(op.heads + op.kv_heads);
  return all / (rotated + static_cast<uint64_t>(op.kv_heads)) * rotated + kept;
}
uint64_t least_bytes(const RopeBackward& op) {
  return op.qkv_gradient.bytes() + op.norm.kept.bytes() + 2 * op.bias_gradient.bytes() + written(op.out);
}
uint64_t least_bytes(const AttentionForward& op) {
  return sum({op.qkv, op.log_sum_exp, op.out_codes.codes}) + written(op.out);
}
uint64_t least_bytes(const AttentionBackward& op) {
  return sum({op.qkv, op.out, op.out_gradient, op.log_sum_exp, op.qkv_gradient, op.qkv_gradient_codes.codes});
}
uint64_t least_bytes(const SwiGluForward& op) { return op.gate_up.bytes() + written(op.out); }
uint64_t least_bytes(const SwiGluBackward& op) { return sum({op.gate_up, op.h_gradient}) + written(op.out); }
uint64_t least_bytes(const ActivationForward& op) { return op.x.bytes() + written(op.out); }
uint64_t least_bytes(const ActivationBackward& op) { return sum({op.x, op.h_gradient}) + written(op.out); }
uint64_t least_bytes(const CrossEntropy& op) {
  return (op.backward ? 2 : 1) * op.logits.bytes() + sum({op.targets, op.loss});
}
uint64_t least_bytes(const GradientSquares& op) { return sum({op.gradient, op.partials}); }
uint64_t least_bytes(const GradientNorm& op) { return op.partials.bytes(); }
uint64_t least_bytes(const UpdateSquares& op) {
  return sum({op.gradient, op.second.values, op.second.inverse, op.second.exponents, op.partials});
}
uint64_t least_bytes(const UpdateRms& op) { return op.partials.bytes(); }
uint64_t least_bytes(const AdamWUpdate& op) {
  return op.gradient.bytes() +
         2 * sum({op.master, op.master_code.rest, op.master_code.inverse, op.first.values, op.first.inverse,
                  op.first.exponents, op.second.values, op.second.inverse, op.second.exponents});
}
uint64_t least_bytes(const MuonMomentum& op) {
  return sum({op.gradient, op.direction}) + 2 * sum({op.first.values, op.first.inverse, op.first.exponents});
}
uint64_t least_bytes(const Normalize& op) { return 2 * op.x.bytes() + op.partials.bytes(); }
uint64_t least_bytes(const WeightedSum& op) { return sum({op.x, op.y, op.out}); }
uint64_t least_bytes(const MuonUpdate& op) {
  return op.direction.bytes() + 2 * sum({op.master, op.master_code.rest, op.master_code.inverse});
}
uint64_t least_bytes(const ReadMasters& op) {
  return sum({op.master, op.code.rest, op.code.inverse, op.values});
}
uint64_t least_bytes(const WriteMasters& op) {
  return sum({op.values, op.master, op.code.rest, op.code.inverse});
}
uint64_t least_bytes(const ScaleTableUpdate& op) {
  return 2 * op.table->amax.bytes() + op.table->counters.bytes();
}
uint64_t least_bytes(const EncodeBlocks& op) { return sum({op.source, op.messages}); }
uint64_t least_bytes(const DecodeBlocks& op) {
  return sum({op.messages, op.out}) + (op.accumulate ? op.out.bytes() : 0);
}
uint64_t least_bytes(const EncodeGroups& op) { return sum({op.source, op.codes, op.scales}); }
uint64_t least_bytes(const DecodeGroups& op) { return sum({op.codes, op.scales, op.out}); }
uint64_t least_bytes(const AddInOrder& op) { return op.sources.bytes() + 2 * op.sum.bytes(); }
uint64_t least_bytes(const OuterDifference& op) { return op.outer.bytes() + 2 * op.local.bytes(); }
uint64_t least_bytes(const OuterUpdate& op) { return 2 * sum({op.outer, op.velocity, op.local}); }
uint64_t least_bytes(const TensorStatistics& op) {
  return op.x.bytes() / static_cast<uint64_t>(op.x.columns()) * static_cast<uint64_t>(op.columns);
}
uint64_t least_bytes(const ChannelAmax& op) { return op.x.bytes(); }
uint64_t least_bytes(const RowCosines& op) { return op.x.bytes(); }
uint64_t least_bytes(const CastError& op) { return sum({op.source, op.codes}); }

uint64_t flops(const Matmul& op) { return matmul_flops(op); }
uint64_t flops(const AttentionForward& op) { return attention_flops(shape_of(op), op.qkv.rows(), 2); }
uint64_t flops(const AttentionBackward& op) { return attention_flops(shape_of(op), op.qkv.rows(), 5); }

}  // namespace octet
