// Attention: the library's, with what it leaves to us. In storage precision that is the codes of its output.
// In FP8 the library takes scales and leaves codes and amaxes: before it go the scales, after it the books of
// the sites and the decoded values.
#include "device/gpu/gpu_device.h"
#include "device/products.h"
#include "kernels/cast.h"
#include "kernels/codes_beforehand.h"

namespace octet {
inline namespace OCTET_GPU {
namespace {

kernels::DecodeArguments decoding(const Tensor& codes, const float* inverse_scale, const Tensor& to,
                                  void* stream) {
  return {.codes = static_cast<const uint8_t*>(codes.data),
          .format = format_of(codes),
          .inverse_scale = inverse_scale,
          .to = to.data,
          .storage = format_of(to),
          .count = codes.elements(),
          .stream = stream};
}

}  // namespace

void GpuDevice::attention_forward(const AttentionForward& op) {
  octet::check(op);
  if (in_float8(op))
    float8_attention_forward(op);
  else
    count_products(op, backend_->attention_forward(op), counts_);
  Scratch memory = scratch(cast_scratch_bytes(op.out));
  PendingCast cast = begin_cast(op.out, memory);
  if (!cast.wanted()) return;
  cast.encode = nullptr;
  if (cast.measured_amax())
    kernels::measure({.source = {.values = op.out.high.data,
                                 .storage = format_of(op.out.high),
                                 .rows = op.out.high.rows(),
                                 .columns = op.out.high.columns()},
                      .amax = cast.amax,
                      .row_amax = cast.row_amax,
                      .column_amax = cast.column_amax,
                      .stream = backend_->stream()});
  finish_cast(cast, op.out.high);
}

void GpuDevice::float8_attention_forward(const AttentionForward& op) {
  Float8Numbers& n = *float8_numbers_;
  const Site& site = op.out_codes.site;
  void* const stream = backend_->stream();
  kernels::scale_beforehand({.cast = op.out_codes.cast,
                             .site_scale = site.scale,
                             .start_of = kernels::StartOf::Output,
                             .qkv_inverse_scale = op.qkv_inverse_scale,
                             .scale = &n.scale,
                             .amaxes = n.amaxes,
                             .stream = stream});
  AttentionForward library = op;
  library.out = {};
  library.out_codes.site = {&n.scale, nullptr, n.amaxes, site.counters};
  count_products(op, backend_->attention_forward(library), counts_);
  kernels::record_beforehand({.scale = &n.scale,
                              .amaxes = n.amaxes,
                              .inverse_scale = &n.inverse_scale,
                              .site_inverse_scale = site.inverse_scale,
                              .site_amax = site.amax,
                              .stream = stream});
  kernels::decode(decoding(op.out_codes.codes, &n.inverse_scale, op.out.high, stream));
}

void GpuDevice::attention_backward(const AttentionBackward& op) {
  octet::check(op);
  if (in_float8(op))
    float8_attention_backward(op);
  else
    count_products(op, backend_->attention_backward(op), counts_);
}

void GpuDevice::float8_attention_backward(const AttentionBackward& op) {
  Float8Numbers& n = *float8_numbers_;
  const Site &score = op.score_gradient.site, &qkv = op.qkv_gradient_codes.site;
  void* const stream = backend_->stream();
  kernels::ScaleBeforehandArguments scale{
      .cast = op.score_gradient.cast,
      .site_scale = score.scale,
      .start_of = kernels::StartOf::ScoreGradient,
      .start = gradient_start(op.context, op.heads / op.kv_heads, op.head_width, op.softmax_scale),
      .qkv_inverse_scale = op.qkv_inverse_scale,
      .gradient_inverse_scale = op.out_gradient_inverse_scale,
      .scale = &n.score_scale,
      .inverse_scale = &n.score_inverse_scale,
      .amaxes = &n.score_amax,
      .stream = stream};
  kernels::scale_beforehand(scale);
  scale.cast = op.qkv_gradient_codes.cast;
  scale.site_scale = qkv.scale;
  scale.start_of = kernels::StartOf::QkvGradient;
  scale.scale = &n.scale;
  scale.inverse_scale = nullptr;
  scale.amaxes = n.amaxes;
  scale.amax_count = 3;
  kernels::scale_beforehand(scale);

  AttentionBackward library = op;
  library.qkv_gradient = {};
  library.score_gradient.site = {&n.score_scale, &n.score_inverse_scale, &n.score_amax, score.counters};
  library.qkv_gradient_codes.site = {&n.scale, nullptr, n.amaxes, qkv.counters};
  count_products(op, backend_->attention_backward(library), counts_);

  kernels::record_beforehand({.scale = &n.score_scale,
                              .amaxes = &n.score_amax,
                              .inverse_scale = &n.score_inverse_scale,
                              .site_inverse_scale = score.inverse_scale,
                              .site_amax = score.amax,
                              .stream = stream});
  kernels::record_beforehand({.scale = &n.scale,
                              .amaxes = n.amaxes,
                              .amax_count = 3,
                              .other_amax = &n.score_amax,
                              .inverse_scale = &n.inverse_scale,
                              .site_inverse_scale = qkv.inverse_scale,
                              .site_amax = qkv.amax,
                              .stream = stream});
  kernels::decode(decoding(op.qkv_gradient_codes.codes, &n.inverse_scale, op.qkv_gradient, stream));
}

}  // namespace OCTET_GPU
}  // namespace octet
