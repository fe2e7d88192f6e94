#include "training/step_readback.h"

#include <cstddef>
#include <type_traits>

namespace octet {
namespace {

size_t aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

}  // namespace

// Measured with nothing there, then cut from memory.
StepReadback::StepReadback(Device& device, const Sizes& sizes) : device_(device), sizes_(sizes) {
  std::byte* next = nullptr;
  const auto take = [&next](auto*& pointer, int64_t count) {
    pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(next);
    next += aligned(static_cast<size_t>(count) * sizeof(*pointer));
  };
  const auto cut = [&] {
    for (Slot& slot : slots_) {
      take(slot.outcome, 1);
      take(slot.counters, sizes.sites);
      for (float** per_site : {&slot.amax, &slot.scale, &slot.inverse}) take(*per_site, sizes.sites);
      take(slot.sums, sizes.observed.sums());
      take(slot.weight_sums, sizes.observed.weight_sums());
      take(slot.extremes, sizes.observed.extremes());
      take(slot.cosines, sizes.observed.cosines());
      take(slot.update_rms, sizes.parameters);
      take(slot.losses, sizes.micro_batches * sizes.micro_tokens);
    }
  };
  cut();
  memory_ = device.allocate_host(reinterpret_cast<uintptr_t>(next));
  next = static_cast<std::byte*>(memory_);
  cut();
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

void StepReadback::take_observations(int64_t step, const Observations& observations) {
  const Slot& s = slot(step);
  device_.download(s.sums, observations.sums.data, observations.sums.bytes());
  device_.download(s.weight_sums, observations.weight_sums.data, observations.weight_sums.bytes());
  device_.download(s.extremes, observations.extremes.data, observations.extremes.bytes());
  device_.download(s.cosines, observations.cosines.data, observations.cosines.bytes());
}

void StepReadback::take_update_rms(int64_t step, const Tensor& update_rms) {
  device_.download(slot(step).update_rms, update_rms.data, update_rms.bytes());
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

ObservedNumbers StepReadback::observed(int64_t step) const {
  const Slot& s = slot(step);
  const auto count = [](int64_t n) { return static_cast<size_t>(n); };
  const ObservationLayout& layout = sizes_.observed;
  return {.sums = {s.sums, count(layout.sums())},
          .weight_sums = {s.weight_sums, count(layout.weight_sums())},
          .extremes = {s.extremes, count(layout.extremes())},
          .cosines = {s.cosines, count(layout.cosines())}};
}

std::span<const float> StepReadback::update_rms(int64_t step) const {
  return {slot(step).update_rms, static_cast<size_t>(sizes_.parameters)};
}

}  // namespace octet
