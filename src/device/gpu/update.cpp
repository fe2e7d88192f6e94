// Once a step: the gradient on the wire and its norm, AdamW, the scale table.
#include <cstddef>

#include "device/adamw_rates.h"
#include "device/block_codes.h"
#include "device/gpu/gpu_device.h"
#include "kernels/adamw.h"
#include "kernels/add_in_order.h"
#include "kernels/block_codes.h"
#include "kernels/gradient_norm.h"
#include "kernels/masters.h"
#include "kernels/muon.h"
#include "kernels/outer_update.h"
#include "kernels/scale_table.h"
#include "kernels/update_rms.h"
#include "numerics/muon.h"

namespace octet {
inline namespace OCTET_GPU {

static_assert(sizeof(kernels::Control) == sizeof(UpdateControl) &&
                  offsetof(kernels::Control, gradient_norm) == offsetof(UpdateControl, gradient_norm) &&
                  offsetof(kernels::Control, scale) == offsetof(UpdateControl, scale) &&
                  offsetof(kernels::Control, loss) == offsetof(UpdateControl, loss) &&
                  offsetof(kernels::Control, apply) == offsetof(UpdateControl, apply) &&
                  offsetof(kernels::Control, nonfinite_piece) == offsetof(UpdateControl, nonfinite_piece),
              "kernels::Control is UpdateControl as the kernels see it");

void GpuDevice::encode_blocks(const EncodeBlocks& op) {
  check(op);
  kernels::encode_blocks({.source = op.source.data,
                          .storage = format_of(op.source),
                          .count = op.source.elements(),
                          .messages = op.messages.as<uint8_t>(),
                          .pieces = op.messages.rows(),
                          .piece = op.piece,
                          .log2_mu = op.log2_mu,
                          .rounding_key = op.rounding_key,
                          .saturated = op.saturated.as<uint32_t>(),
                          .stream = backend_->stream()});
}

void GpuDevice::decode_blocks(const DecodeBlocks& op) {
  check(op);
  kernels::decode_blocks({.messages = op.messages.as<uint8_t>(),
                          .sources = op.messages.shape[0],
                          .pieces = op.messages.shape[1],
                          .piece = op.piece,
                          .out = op.out.data,
                          .storage = format_of(op.out),
                          .count = op.out.elements(),
                          .accumulate = op.accumulate,
                          .stream = backend_->stream()});
}

void GpuDevice::add_in_order(const AddInOrder& op) {
  check(op);
  if (op.sum.dtype == DType::F64)
    kernels::add_doubles_in_order({.sum = op.sum.as<double>(),
                                   .values = op.sources.as<double>(),
                                   .sources = op.sources.rows(),
                                   .count = op.sum.elements(),
                                   .stream = backend_->stream()});
  else
    kernels::add_in_order({.sum = op.sum.as<float>(),
                           .values = op.sources.data,
                           .storage = format_of(op.sources),
                           .sources = op.sources.rows(),
                           .count = op.sum.elements(),
                           .stream = backend_->stream()});
}

void GpuDevice::outer_difference(const OuterDifference& op) {
  check(op);
  kernels::outer_difference({.outer = op.outer.as<float>(),
                             .local = op.local.as<float>(),
                             .count = op.local.elements(),
                             .stream = backend_->stream()});
}

void GpuDevice::outer_update(const OuterUpdate& op) {
  check(op);
  kernels::outer_update({.outer = op.outer.as<float>(),
                         .velocity = op.velocity.as<float>(),
                         .local = op.local.as<float>(),
                         .count = op.outer.elements(),
                         .scale = op.scale,
                         .learning_rate = op.learning_rate,
                         .momentum = op.momentum,
                         .stream = backend_->stream()});
}

void GpuDevice::gradient_squares(const GradientSquares& op) {
  check(op);
  kernels::squares({.values = op.gradient.data,
                    .storage = format_of(op.gradient),
                    .count = op.gradient.elements(),
                    .partial = op.partials.as<double>(),
                    .stream = backend_->stream()});
}

void GpuDevice::gradient_norm(const GradientNorm& op) {
  kernels::finish_norm({.partial = op.partials.as<double>(),
                        .count = op.partials.elements(),
                        .loss_sum = op.loss_sum.as<double>(),
                        .loss_divisor = op.loss_divisor,
                        .clip_norm = op.clip_norm,
                        .control = reinterpret_cast<kernels::Control*>(op.control),
                        .stream = backend_->stream()});
}

namespace {

kernels::MomentArguments arguments_of(const MomentTensor& m) {
  return {.values = m.values.data,
          .format = format_of(m.values),
          .inverse = m.inverse.empty() ? nullptr : m.inverse.as<float>(),
          .block = m.block,
          .exponents = m.exponents.empty() ? nullptr : m.exponents.as<uint8_t>()};
}
kernels::MasterArguments arguments_of(const Tensor& master, const MasterCode& code) {
  return {.values = master.data,
          .format = code.format,
          .rest = static_cast<uint16_t*>(code.rest.data),
          .inverse = static_cast<float*>(code.inverse.data)};
}

}  // namespace

void GpuDevice::update_squares(const UpdateSquares& op) {
  check(op);
  const UpdateSquareRates rates = update_square_rates(op);
  kernels::update_squares({.gradient = op.gradient.data,
                           .gradient_storage = format_of(op.gradient),
                           .second = arguments_of(op.second),
                           .count = op.gradient.elements(),
                           .beta2 = op.beta2,
                           .correction = rates.correction,
                           .least = rates.least,
                           .control = reinterpret_cast<const kernels::Control*>(op.control),
                           .partial = op.partials.as<double>(),
                           .stream = backend_->stream()});
}

void GpuDevice::update_rms(const UpdateRms& op) {
  kernels::update_rms({.partial = op.partials.as<double>(),
                       .count = op.partials.elements(),
                       .elements = op.elements,
                       .rms = op.rms.as<float>(),
                       .stream = backend_->stream()});
}

void GpuDevice::read_masters(const ReadMasters& op) {
  check(op);
  kernels::read_masters({.master = arguments_of(op.master, op.code),
                         .to = op.values.data,
                         .storage = format_of(op.values),
                         .count = op.master.elements(),
                         .stream = backend_->stream()});
}

void GpuDevice::write_masters(const WriteMasters& op) {
  check(op);
  kernels::write_masters({.from = op.values.as<float>(),
                          .master = arguments_of(op.master, op.code),
                          .count = op.master.elements(),
                          .stream = backend_->stream()});
}

void GpuDevice::adamw(const AdamWUpdate& op) {
  check(op);
  const AdamWRates rates = adamw_rates(op);
  Scratch memory = scratch(scratch_size<uint32_t>(2));
  uint32_t* amaxes = nullptr;
  if ((!op.first.inverse.empty() && op.first.block == 0) ||
      (!op.second.inverse.empty() && op.second.block == 0)) {
    amaxes = memory.take<uint32_t>(2);
    backend_->clear(amaxes, 2 * sizeof(uint32_t));
  }
  kernels::adamw({.master = arguments_of(op.master, op.master_code),
                  .gradient = op.gradient.data,
                  .gradient_storage = format_of(op.gradient),
                  .first = arguments_of(op.first),
                  .second = arguments_of(op.second),
                  .count = op.master.elements(),
                  .beta1 = op.beta1,
                  .beta2 = op.beta2,
                  .epsilon = op.epsilon,
                  .decay = rates.decay,
                  .rate = rates.rate,
                  .control = reinterpret_cast<const kernels::Control*>(op.control),
                  .amaxes = amaxes,
                  .master_amax = op.amax.empty() ? nullptr : static_cast<uint32_t*>(op.amax.data),
                  .rounding_key = op.rounding_key,
                  .first_element = op.first_element,
                  .update_rms = op.update_rms.empty() ? nullptr : op.update_rms.as<float>(),
                  .stream = backend_->stream()});
}

void GpuDevice::muon_momentum(const MuonMomentum& op) {
  check(op);
  Scratch memory = scratch(scratch_size<uint32_t>(1));
  uint32_t* amax = nullptr;
  if (!op.first.inverse.empty() && op.first.block == 0) {
    amax = memory.take<uint32_t>(1);
    backend_->clear(amax, sizeof(uint32_t));
  }
  kernels::muon_momentum({.gradient = op.gradient.data,
                          .gradient_storage = format_of(op.gradient),
                          .first = arguments_of(op.first),
                          .direction = op.direction.data,
                          .direction_storage = format_of(op.direction),
                          .count = op.gradient.elements(),
                          .momentum = op.momentum,
                          .control = reinterpret_cast<const kernels::Control*>(op.control),
                          .amax = amax,
                          .stream = backend_->stream()});
}

void GpuDevice::normalize(const Normalize& op) {
  check(op);
  kernels::normalize({.x = op.x.data,
                      .storage = format_of(op.x),
                      .count = op.x.elements(),
                      .partial = op.partials.as<double>(),
                      .stream = backend_->stream()});
}

void GpuDevice::weighted_sum(const WeightedSum& op) {
  check(op);
  kernels::weighted_sum({.x = op.x.data,
                         .y = op.y.data,
                         .out = op.out.data,
                         .storage = format_of(op.out),
                         .count = op.out.elements(),
                         .alpha = op.alpha,
                         .beta = op.beta,
                         .stream = backend_->stream()});
}

void GpuDevice::muon_update(const MuonUpdate& op) {
  check(op);
  kernels::muon_update({.master = arguments_of(op.master, op.master_code),
                        .direction = op.direction.data,
                        .direction_storage = format_of(op.direction),
                        .count = op.master.elements(),
                        .decay = muon_decay(op.learning_rate, op.weight_decay),
                        .rate = op.learning_rate,
                        .control = reinterpret_cast<const kernels::Control*>(op.control),
                        .master_amax = op.amax.empty() ? nullptr : static_cast<uint32_t*>(op.amax.data),
                        .rounding_key = op.rounding_key,
                        .first_element = op.first_element,
                        .stream = backend_->stream()});
}

void GpuDevice::scale_table_update(const ScaleTableUpdate& op) {
  ScaleTable& table = *op.table;
  if (table.sites.empty()) return;
  check(op);
  const int64_t window = table.amax_history.rows();
  kernels::update_scale_table({.sites = static_cast<int64_t>(table.sites.size()),
                               .casts = static_cast<const Cast*>(table.casts.data),
                               .options = op.options,
                               .adaptive = op.adaptive,
                               .newest = op.step % window,
                               .amax_history = table.amax_history.as<float>(),
                               .amax = table.amax.as<float>(),
                               .scale = table.scale.as<float>(),
                               .inverse_scale = table.inverse_scale.as<float>(),
                               .counters = table.counters.as<uint64_t>(),
                               .apply = op.control ? &op.control->apply : nullptr,
                               .stream = backend_->stream()});
}

}  // namespace OCTET_GPU
}  // namespace octet
