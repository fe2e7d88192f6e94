// The operations of forward and backward: tensors to kernel arguments.
#include "device/gpu/gpu_device.h"
#include "device/smooth_swiglu.h"
#include "kernels/cross_entropy.h"
#include "kernels/embedding.h"
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
                               .scratch = memory.take_bytes(bytes),
                               .stream = backend_->stream()});
}

void GpuDevice::rmsnorm_forward(const RmsNormForward& op) {
  Scratch memory = scratch(cast_scratch_bytes(op.out));
  const PendingCast cast = begin_cast(op.out, memory);
  void* sum = op.residual_out.empty() ? nullptr : op.residual_out.data;
  if (!op.branch.empty() && !sum) sum = op.residual.data;
  kernels::rmsnorm_forward({.storage = format_of(op.residual),
                            .residual = op.residual.data,
                            .branch = op.branch.empty() ? nullptr : op.branch.data,
                            .sum = sum,
                            .gain = op.gain.as<float>(),
                            .rstd = op.rstd.as<float>(),
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
       .rstd = op.rstd.as<float>(),
       .gradient_in = op.residual_gradient_in.empty() ? nullptr : op.residual_gradient_in.data,
       .gain_gradient = op.gain_gradient.data,
       .gain_gradient_storage = format_of(op.gain_gradient),
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

}  // namespace

void GpuDevice::rope_forward(const RopeForward& op) {
  kernels::rope_forward({.storage = format_of(op.qkv),
                         .qkv = op.qkv.data,
                         .bias = op.bias.empty() ? nullptr : op.bias.as<float>(),
                         .shape = rope_shape(op, op.qkv),
                         .stream = backend_->stream()});
}

void GpuDevice::rope_backward(const RopeBackward& op) {
  const kernels::RopeShape shape = rope_shape(op, op.qkv_gradient);
  const int64_t partials = op.bias_gradient.empty() ? 0 : kernels::rope_partial_elements(shape);
  Scratch memory = scratch(cast_scratch_bytes(op.out) + scratch_size<float>(partials));
  const PendingCast cast = begin_cast(op.out, memory);
  kernels::rope_backward({.storage = format_of(op.qkv_gradient),
                          .qkv_gradient = op.qkv_gradient.data,
                          .bias_gradient = op.bias_gradient.empty() ? nullptr : op.bias_gradient.as<float>(),
                          .partial = partials ? memory.take<float>(partials) : nullptr,
                          .shape = shape,
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

}  // namespace OCTET_GPU
}  // namespace octet
