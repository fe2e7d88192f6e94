#include "training/step_readback.h"

#include <cstddef>

namespace octet {
namespace {

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

StepReadback::StepReadback(Device& device, const Sizes& sizes) : device_(device), sizes_(sizes) {
  const auto sites = static_cast<size_t>(sizes.sites),
             losses = static_cast<size_t>(sizes.micro_batches * sizes.micro_tokens);
  const size_t outcome = aligned(sizeof(Outcome)), counters = aligned(sites * sizeof(CastCounters)),
               per_site = aligned(sites * sizeof(float)), all_losses = aligned(losses * sizeof(float)),
               bytes = outcome + counters + 3 * per_site + all_losses;
  memory_ = device.allocate_host(slots_.size() * bytes);
  auto* next = static_cast<std::byte*>(memory_);
  const auto take = [&next](size_t count) {
    std::byte* const taken = next;
    next += count;
    return static_cast<void*>(taken);
  };
  for (Slot& slot : slots_) {
    slot.outcome = static_cast<Outcome*>(take(outcome));
    slot.counters = static_cast<CastCounters*>(take(counters));
    slot.amax = static_cast<float*>(take(per_site));
    slot.scale = static_cast<float*>(take(per_site));
    slot.inverse = static_cast<float*>(take(per_site));
    slot.losses = static_cast<float*>(take(all_losses));
  }
}

StepReadback::~StepReadback() { device_.free_host(memory_); }

void StepReadback::take_token_losses(int64_t step, int64_t micro, const Tensor& losses) {
  device_.download(slot(step).losses + micro * sizes_.micro_tokens, losses.data, losses.bytes());
}

void StepReadback::take_statistics(int64_t step, const ScaleTable& table) {
  const Slot& s = slot(step);
  device_.download(s.amax, table.amax.data, table.amax.bytes());
  device_.download(s.scale, table.scale.data, table.scale.bytes());
  device_.download(s.inverse, table.inverse_scale.data, table.inverse_scale.bytes());
  device_.download(s.counters, table.counters.data, table.counters.bytes());
}

void StepReadback::take_outcome(int64_t step, const Tensor& loss_sum, const UpdateControl* control) {
  Slot& s = slot(step);
  device_.download(&s.outcome->loss_sum, loss_sum.data, sizeof(double));
  device_.download(&s.outcome->control, control, sizeof(UpdateControl));
  s.place = device_.mark();
}

void StepReadback::wait(int64_t step) { device_.wait(slot(step).place); }

const float* StepReadback::token_losses(int64_t step, int64_t micro) const {
  return slot(step).losses + micro * sizes_.micro_tokens;
}

ScaleStatistics StepReadback::statistics(int64_t step) const {
  const Slot& s = slot(step);
  const auto sites = static_cast<size_t>(sizes_.sites);
  return {{s.amax, sites}, {s.scale, sites}, {s.inverse, sites}, {s.counters, sites}};
}

}  // namespace octet
