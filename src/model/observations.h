// What the health monitor sees of a step: statistics of activations, errors of casts, weights. Enqueued
// inside forward and backward of statistics steps, beside the work of every step, which it does not touch.
#pragma once
#include <cstdint>

#include "device/device.h"
#include "tensor/memory_plan.h"

namespace octet {

// Of each block. The first eight are those whose kurtosis FOG (2505.20524) follows.
enum class Observed : uint8_t {
  BlockOutput,          // the residual stream after the block [T, D]
  FfnBeforeActivation,  // [T, F], gated: [gate | up] [T, 2 F]
  FfnHidden,            // what enters the second projection [T, F]
  FfnOutput,            // [T, D]
  QkvInput,             // [T, D]
  Qkv,                  // as the projection leaves it [T, (H + 2 K) Dh]
  Query,                // as attention reads it, after QK norm and rotation [T, H Dh]
  Key,                  // likewise [T, K Dh]
  LogSumExp,            // of attention [B, H, S]: only its maximum means anything
};
inline constexpr int observed_tensors = 9;
const char* name_of(Observed what);  // "qkv_input"

// Of a tensor with other columns beside these; columns 0: all.
struct Columns {
  int64_t first = 0, columns = 0;
};

// Where what is in the tensors of Observations, and in copies of them.
struct ObservationLayout {
  int64_t blocks = 0, ffn_width = 0, sites = 0, weights = 0;
  bool gated = true;  // feed-forward networks are: their hidden channels have a gate and an up projection

  // F64: of each observed tensor TensorStatistics::sums, then of each site CastError::sums.
  int64_t sums_of(int64_t block, Observed what) const { return 4 * place(block, what); }
  int64_t errors_of(int64_t site) const { return 4 * blocks * observed_tensors + 2 * site; }
  int64_t sums() const { return errors_of(sites); }
  // U32: of each observed tensor TensorStatistics::extremes, then amaxes of the hidden channels of each
  // block.
  int64_t extremes_of(int64_t block, Observed what) const { return 2 * place(block, what); }
  int64_t channels_of(int64_t block) const { return 2 * blocks * observed_tensors + block * ffn_width; }
  int64_t extremes() const { return channels_of(blocks); }
  // F64: of each weight TensorStatistics::sums.
  int64_t weight_sums() const { return 4 * weights; }
  // F32: of each block's hidden channels the cosine of its gate's and its up projection's weights.
  int64_t cosines() const { return blocks * ffn_width; }

 private:
  static int64_t place(int64_t block, Observed what) {
    return block * observed_tensors + static_cast<int64_t>(what);
  }
};

// Sums and extremes are over the micro-batches of a step; several ranks add and maximise theirs.
class Observations {
 public:
  // `context`: tokens of a sequence; `rows`: the most of any tensor that is looked at.
  void plan(MemoryPlan& plan, const ObservationLayout& layout, int64_t context, int64_t rows);
  bool planned() const { return !sums.empty(); }
  void clear(Device& device) const;

  // FfnHidden: its channels' amaxes too.
  void observe(Device& device, int block, Observed what, const Tensor& x, const Columns& columns = {}) const;
  // `op` without scratch and sums.
  void observe_cast(Device& device, int site, CastError op) const;
  // A weight as products read it.
  void observe_weight(Device& device, int64_t weight, const Tensor& values,
                      const InverseScales& scales) const;
  // [gate | up] [2 F, D]; anything else has no pairs.
  void observe_gates(Device& device, int block, const Tensor& values, const InverseScales& scales) const;

  bool on = false;  // this step is looked at
  ObservationLayout layout;
  Tensor sums, extremes;        // as the layout says; to be reduced over ranks
  Tensor weight_sums, cosines;  // the same on every rank

 private:
  int64_t context_ = 0;
  Tensor row_sums_;         // F64 [3, rows]
  Tensor weight_extremes_;  // U32 [2]: nobody reads them
};

}  // namespace octet
