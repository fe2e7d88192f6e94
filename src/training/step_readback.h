// What the host learns of a step. The device's queue copies it into page-locked memory, so that reading it
// waits for that step and for nothing that was enqueued since.
#pragma once
#include <array>
#include <cstdint>
#include <span>

#include "device/device.h"
#include "training/health.h"

namespace octet {

class StepReadback {
 public:
  struct Sizes {
    int64_t sites = 0;
    ObservationLayout observed = {};
    int64_t parameters = 0;                       // whose update RMS is wanted
    int64_t micro_batches = 0, micro_tokens = 0;  // whose token losses are wanted; 0: nobody wants them
  };
  StepReadback(Device& device, const Sizes& sizes);
  ~StepReadback();
  StepReadback(const StepReadback&) = delete;
  StepReadback& operator=(const StepReadback&) = delete;

  // Each enqueues copies for step `step`; its slot is that of step - 2.
  void take_token_losses(int64_t step, int64_t micro, const Tensor& losses);
  void take_statistics(int64_t step, const ScaleTable& table);
  void take_observations(int64_t step, const Observations& observations);
  void take_update_rms(int64_t step, const Tensor& update_rms);
  void take_outcome(int64_t step, const Tensor& loss_sum,
                    const UpdateControl* control);  // the last of a step

  void wait(int64_t step);
  // After wait():
  double loss_sum(int64_t step) const { return slot(step).outcome->loss_sum; }
  const UpdateControl& control(int64_t step) const { return slot(step).outcome->control; }
  const float* token_losses(int64_t step, int64_t micro) const;
  ScaleStatistics statistics(int64_t step) const;
  ObservedNumbers observed(int64_t step) const;
  std::span<const float> update_rms(int64_t step) const;

 private:
  struct Outcome {
    double loss_sum;
    UpdateControl control;
  };
  struct Slot {
    Outcome* outcome = nullptr;
    CastCounters* counters = nullptr;                             // [sites]
    float *amax = nullptr, *scale = nullptr, *inverse = nullptr;  // [sites]
    double *sums = nullptr, *weight_sums = nullptr;               // as Observations
    uint32_t* extremes = nullptr;
    float* cosines = nullptr;
    float* update_rms = nullptr;  // [parameters]
    float* losses = nullptr;      // [micro_batches, micro_tokens]
    uint64_t place = 0;
  };
  const Slot& slot(int64_t step) const { return slots_[static_cast<size_t>(step) % slots_.size()]; }
  Slot& slot(int64_t step) { return slots_[static_cast<size_t>(step) % slots_.size()]; }

  Device& device_;
  Sizes sizes_;
  void* memory_;
  std::array<Slot, 2> slots_;
};

}  // namespace octet
