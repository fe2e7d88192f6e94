// The operations of forward and backward: tensors to kernel arguments.
#include "device/gpu/gpu_device.h"

#include <algorithm>

#include "device/group_codes.h"
#include "device/products.h"
#include "device/smooth_swiglu.h"
#include "kernels/activation.h"
#include "kernels/cast.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
#include "kernels/group_codes.h"
#include "kernels/rmsnorm.h"
#include "kernels/rope.h"
#include "kernels/swiglu.h"

namespace octet {
inline namespace OCTET_GPU {

void GpuDevice::embedding_forward(const EmbeddingForward& op) {
  kernels::embedding_forward({.storage = format_of(op.out),
                              .out = op.out.data,
                              .ids = op.tokens.as<int32_t>(),
                              .table = op.table.data,
                              .tokens = op.tokens.elements(),
                              .vocabulary = op.table.rows(),
                              .width = op.table.columns(),
                              .multiplier = op.multiplier,
                              .bad_token = faults_,
                              .stream = backend_->stream()});
}

void GpuDevice::embedding_backward(const EmbeddingBackward& op) {
  const int64_t tokens = op.tokens.elements();
  const auto bytes = static_cast<size_t>(kernels::embedding_scratch_bytes(tokens));
  Scratch memory = scratch(bytes);
  kernels::embedding_backward({.storage = format_of(op.out_gradient),
                               .gradient_storage = format_of(op.table_gradient),
                               .table_gradient = op.table_gradient.data,
                               .ids = op.tokens.as<int32_t>(),
                               .out_gradient = op.out_gradient.data,
                               .tokens = tokens,
                               .vocabulary = op.table_gradient.rows(),
                               .width = op.table_gradient.columns(),
                               .multiplier = op.multiplier,
                               .scratch = memory.take_bytes(bytes),
                               .stream = backend_->stream()});
}

namespace {

// Null where there is no such tensor.
float* floats_or_null(const Tensor& tensor) { return tensor.empty() ? nullptr : tensor.as<float>(); }

}  // namespace

void GpuDevice::rmsnorm_forward(const RmsNormForward& op) {
  check(op);
  Scratch memory = scratch(cast_scratch_bytes(op.out));
  const PendingCast cast = begin_cast(op.out, memory);
  void* sum = op.residual_out.empty() ? nullptr : op.residual_out.data;
  if (!op.branch.empty() && !sum) sum = op.residual.data;
  kernels::rmsnorm_forward({.storage = format_of(op.residual),
                            .residual = op.residual.data,
                            .branch = op.branch.empty() ? nullptr : op.branch.data,
                            .sum = sum,
                            .gain = floats_or_null(op.gain),
                            .rstd = floats_or_null(op.rstd),
                            .branch_gain = floats_or_null(op.branch_gain),
                            .branch_rstd = floats_or_null(op.branch_rstd),
                            .stream_factor = op.stream_factor,
                            .branch_factor = op.branch_factor,
                            .epsilon = op.epsilon,
                            .tokens = op.residual.rows(),
                            .width = op.residual.columns(),
                            .out = output_of(cast),
                            .stream = backend_->stream()});
  finish_cast(cast, op.out.high);
}

void GpuDevice::rmsnorm_backward(const RmsNormBackward& op) {
  const int64_t tokens = op.residual.rows(), width = op.residual.columns();
  const int64_t partials = kernels::rmsnorm_partial_elements(tokens, width);
  Scratch memory = scratch(cast_scratch_bytes(op.residual_gradient) + scratch_size<float>(partials));
  const PendingCast cast = begin_cast(op.residual_gradient, memory);
  kernels::rmsnorm_backward(
      {.storage = format_of(op.residual),
       .out_gradient = op.out_gradient.data,
       .x = op.residual.data,
       .gain = op.gain.as<float>(),
       .rstd = floats_or_null(op.rstd),
       .gradient_in = op.residual_gradient_in.empty() ? nullptr : op.residual_gradient_in.data,
       .gain_gradient = op.gain_gradient.data,
       .gain_gradient_storage = format_of(op.gain_gradient),
       .stream_factor = op.stream_factor,
       .branch_factor = op.branch_factor,
       .weighted_gradient = op.stream_factor != 1 ? op.out_gradient.data : nullptr,
       .partial = memory.take<float>(partials),
       .tokens = tokens,
       .width = width,
       .out = output_of(cast),
       .stream = backend_->stream()});
  finish_cast(cast, op.residual_gradient.high);
}

namespace {

template <class Op>
kernels::RopeShape rope_shape(const Op& op, const Tensor& qkv) {
  return {.tokens = qkv.rows(),
          .context = op.cosine.rows(),
          .heads = op.heads,
          .kv_heads = op.kv_heads,
          .head_width = op.head_width,
          .cosine = op.cosine.template as<float>(),
          .sine = op.sine.template as<float>()};
}
kernels::RopeNorm rope_norm(const QueryKeyNorm& norm) {
  return {.kind = norm.kind,
          .kept = norm.kept.data,
          .query_gain = floats_or_null(norm.query_gain),
          .key_gain = floats_or_null(norm.key_gain),
          .epsilon = norm.epsilon};
}

}  // namespace

void GpuDevice::rope_forward(const RopeForward& op) {
  kernels::rope_forward({.storage = format_of(op.qkv),
                         .qkv = op.qkv.data,
                         .bias = floats_or_null(op.bias),
                         .shape = rope_shape(op, op.qkv),
                         .norm = rope_norm(op.norm),
                         .stream = backend_->stream()});
}

void GpuDevice::rope_backward(const RopeBackward& op) {
  const kernels::RopeShape shape = rope_shape(op, op.qkv_gradient);
  const int64_t partials =
      std::max(op.bias_gradient.empty() ? 0 : kernels::rope_partial_elements(shape),
               is_trained(op.norm.kind) ? kernels::gain_partial_elements(shape) : int64_t{0});
  Scratch memory = scratch(cast_scratch_bytes(op.out) + scratch_size<float>(partials));
  const PendingCast cast = begin_cast(op.out, memory);
  kernels::rope_backward({.storage = format_of(op.qkv_gradient),
                          .qkv_gradient = op.qkv_gradient.data,
                          .bias_gradient = floats_or_null(op.bias_gradient),
                          .query_gain_gradient = floats_or_null(op.query_gain_gradient),
                          .key_gain_gradient = floats_or_null(op.key_gain_gradient),
                          .partial = partials ? memory.take<float>(partials) : nullptr,
                          .shape = shape,
                          .norm = rope_norm(op.norm),
                          .out = output_of(cast),
                          .stream = backend_->stream()});
  finish_cast(cast, op.out.high);
}

void GpuDevice::swiglu_forward(const SwiGluForward& op) {
  const CastTarget target = smooth_swiglu_target(op.out, op.mode);
  Scratch memory = scratch(cast_scratch_bytes(target));
  const PendingCast cast = begin_cast(target, memory);
  kernels::swiglu_forward({.storage = format_of(op.gate_up),
                           .gate_up = op.gate_up.data,
                           .tokens = op.gate_up.rows(),
                           .width = op.gate_up.columns() / 2,
                           .out = output_of(cast),
                           .stream = backend_->stream()});
  finish_cast(cast, op.out.high);
}

void GpuDevice::swiglu_backward(const SwiGluBackward& op) {
  Scratch memory = scratch(cast_scratch_bytes(op.out));
  const PendingCast cast = begin_cast(op.out, memory);
  kernels::swiglu_backward({.storage = format_of(op.gate_up),
                            .gate_up = op.gate_up.data,
                            .h_gradient = op.h_gradient.data,
                            .tokens = op.h_gradient.rows(),
                            .width = op.h_gradient.columns(),
                            .out = output_of(cast),
                            .stream = backend_->stream()});
  finish_cast(cast, op.out.high);
}

void GpuDevice::activation_forward(const ActivationForward& op) {
  const CastTarget target = smooth_swiglu_target(op.out, op.mode);
  Scratch memory = scratch(cast_scratch_bytes(target));
  const PendingCast cast = begin_cast(target, memory);
  kernels::activation_forward({.activation = op.activation,
                               .storage = format_of(op.x),
                               .x = op.x.data,
                               .positive = floats_or_null(op.positive),
                               .negative = floats_or_null(op.negative),
                               .tokens = op.x.rows(),
                               .width = op.x.columns(),
                               .out = output_of(cast),
                               .stream = backend_->stream()});
  finish_cast(cast, op.out.high);
}

void GpuDevice::activation_backward(const ActivationBackward& op) {
  const int64_t partials =
      op.activation == Activation::XIELU ? kernels::activation_partial_elements(op.x.rows()) : 0;
  Scratch memory = scratch(cast_scratch_bytes(op.out) + scratch_size<float>(partials));
  const PendingCast cast = begin_cast(op.out, memory);
  kernels::activation_backward({.activation = op.activation,
                                .storage = format_of(op.x),
                                .x = op.x.data,
                                .h_gradient = op.h_gradient.data,
                                .positive = floats_or_null(op.positive),
                                .negative = floats_or_null(op.negative),
                                .positive_gradient = floats_or_null(op.positive_gradient),
                                .negative_gradient = floats_or_null(op.negative_gradient),
                                .partial = partials ? memory.take<float>(partials) : nullptr,
                                .tokens = op.x.rows(),
                                .width = op.x.columns(),
                                .out = output_of(cast),
                                .stream = backend_->stream()});
  finish_cast(cast, op.out.high);
}

void GpuDevice::cross_entropy(const CrossEntropy& op) {
  kernels::cross_entropy({.storage = format_of(op.logits),
                          .logits = op.logits.data,
                          .targets = op.targets.as<int32_t>(),
                          .loss = op.loss.as<float>(),
                          .tokens = op.logits.rows(),
                          .vocabulary = op.logits.columns(),
                          .gradient_scale = op.gradient_scale,
                          .z_loss = op.z_loss,
                          .backward = op.backward,
                          .bad_target = faults_ + 1,
                          .stream = backend_->stream()});
}

void GpuDevice::encode_groups(const EncodeGroups& op) {
  check(op);
  kernels::encode_groups({.source = op.source.data,
                          .storage = format_of(op.source),
                          .count = op.source.elements(),
                          .codes = op.codes.as<uint8_t>(),
                          .scales = op.scales.as<uint8_t>(),
                          .stream = backend_->stream()});
}

void GpuDevice::decode_groups(const DecodeGroups& op) {
  check(op);
  kernels::decode_groups({.codes = op.codes.as<uint8_t>(),
                          .scales = op.scales.as<uint8_t>(),
                          .out = op.out.data,
                          .storage = format_of(op.out),
                          .count = op.out.elements(),
                          .stream = backend_->stream()});
}

}  // namespace OCTET_GPU
}  // namespace octet
