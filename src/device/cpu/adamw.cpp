// AdamW on masters in any format of numerics/masters.h, moments in FP32, BF16, FP16 or FP8.  [Loshchilov &
// Hutter 1711.05101; Fishman et al. 2409.12517, released code]
//
// Order of operations, everything in FP32, one rounding each:
//   g = scale * gradient
//   m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * (g * g)
//   w = w - (decay * w + rate * (m / (sqrt(v) + epsilon)))
// with decay = lr * weight_decay and rate = lr * sqrt(1 - beta2^t) / (1 - beta1^t), computed in double and
// rounded once. (1 - decay, rounded, would bias every weight by up to 3e-8 a step; written as a difference
// nothing as large as w is rounded but the result.) Then w, m and v are stored (numerics/masters.h,
// numerics/moments.h). With update_rms both decay and rate are multiplied by update_clip(rms) first.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/platform.h"
#include "device/adamw_rates.h"
#include "device/cpu/amax.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/stored_master.h"
#include "device/cpu/stored_moment.h"
#include "device/cpu/unpack.h"
#include "numerics/bfloat16.h"
#include "numerics/masters.h"
#include "numerics/moments.h"
#include "numerics/scaling.h"
#include "numerics/update_clipping.h"

namespace octet {
namespace {

constexpr int64_t span = 1024;  // elements held on the stack at a time

struct Rule {
  float scale, beta1, rest1, beta2, rest2, decay, rate, epsilon;
};

struct MomentSpan {
  float *m, *v;
};
OCTET_VECTORIZED void advance_moments(const Rule& rule, const float* gradient, MomentSpan to, int64_t n) {
  float *m = to.m, *v = to.v;
  for (int64_t i = 0; i < n; ++i) {
    const float g = rule.scale * gradient[i];
    m[i] = rule.beta1 * m[i] + rule.rest1 * g;
    v[i] = rule.beta2 * v[i] + rule.rest2 * (g * g);
  }
}
OCTET_VECTORIZED void update_weights(const Rule& rule, MomentSpan from, float* w, int64_t n) {
  const float *m = from.m, *v = from.v;
  for (int64_t i = 0; i < n; ++i) {
    w[i] = w[i] - (rule.decay * w[i] + rule.rate * (m[i] / (std::sqrt(v[i]) + rule.epsilon)));
  }
}
struct Work {
  const AdamWUpdate& op;
  const Rule& rule;
  const StoredMoment &first, &second;

  // m and v of this step, for the `n` elements from `begin` on.
  void moments(int64_t begin, int64_t n, MomentSpan to) const {
    float gradient[span];
    unpack(op.gradient.dtype, at(op.gradient, begin), gradient, n);
    first.read(begin, n, to.m);
    second.read(begin, n, to.v);
    advance_moments(rule, gradient, to, n);
  }
};

// Elements a task takes: whole blocks of both moments, and of masters that have blocks.
int64_t span_of(const StoredMoment& first, const StoredMoment& second, const MasterCode& master) {
  int64_t step = master.inverse.empty() ? 1 : master_block;
  for (const StoredMoment* moment : {&first, &second}) {
    if (!moment->coded() || moment->one_scale()) continue;
    step = std::lcm(step, moment->block());
    if (moment->block() < 0 || step > span) {
      throw Error(
          ExitCode::Internal,
          fmt::format("adamw: moment blocks of {} and {} elements{}; at most {} together", first.block(),
                      second.block(), master.inverse.empty() ? "" : ", master blocks of 128", span));
    }
  }
  return span / step * step;
}

}  // namespace

void CpuDevice::adamw(const AdamWUpdate& op) {
  check(op);
  const StoredMasters masters(op.master, op.master_code);
  if (op.control->apply == 0) {
    if (!op.amax.empty()) masters.raise_amax(op.master.elements(), op.amax);
    return;
  }
  const AdamWRates rates = adamw_rates(op);
  const float clip = op.update_rms.empty() ? 1.0f : update_clip(*op.update_rms.as<float>());
  const Rule rule{.scale = op.control->scale,
                  .beta1 = op.beta1,
                  .rest1 = 1.0f - op.beta1,
                  .beta2 = op.beta2,
                  .rest2 = 1.0f - op.beta2,
                  .decay = rates.decay * clip,
                  .rate = rates.rate * clip,
                  .epsilon = op.epsilon};
  const StoredMoment first(op.first, Moment::First), second(op.second, Moment::Second);
  const Work work{op, rule, first, second};
  const StoredMasters::Draws draws{op.rounding_key, op.first_element};
  const bool in_place = op.master_code.format == MasterFormat::FP32;
  const int64_t n = op.master.elements(), step = span_of(first, second, op.master_code),
                tasks = (n + step - 1) / step;

  // One scale for the tensor is known only after all of it: the moments are computed twice.
  uint32_t first_bits = 0, second_bits = 0;
  if (first.one_scale() || second.one_scale()) {
#pragma omp parallel for num_threads(threads_) schedule(static) reduction(max : first_bits, second_bits)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t begin = task * step, count = std::min(step, n - begin);
      float m[span], v[span];
      work.moments(begin, count, {m, v});
      first_bits = std::max(first_bits, amax_bits(m, count));
      second_bits = std::max(second_bits, amax_bits(v, count));
    }
  }
  const MomentScale first_scale = first.scale_of(std::bit_cast<float>(first_bits)),
                    second_scale = second.scale_of(std::bit_cast<float>(second_bits));
  uint32_t largest = 0;
#pragma omp parallel for num_threads(threads_) schedule(static) if (tasks > 1) reduction(max : largest)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * step, count = std::min(step, n - begin);
    float m[span], v[span], copy[span];
    work.moments(begin, count, {m, v});
    float* const w = in_place ? op.master.as<float>() + begin : copy;
    if (!in_place) masters.load(begin, count, w);
    update_weights(rule, {m, v}, w, count);
    if (!in_place) masters.store(begin, count, w, &draws);
    if (!op.amax.empty()) {
      if (!in_place) masters.values(begin, count, w);
      largest = std::max(largest, amax_bits(w, count));
    }
    first.write(begin, count, m, first_scale.scale);
    second.write(begin, count, v, second_scale.scale);
  }
  if (first.one_scale()) first.set_inverse(0, first_scale.inverse);
  if (second.one_scale()) second.set_inverse(0, second_scale.inverse);
  if (!op.amax.empty()) raise_master_amax(op.amax, largest);
}

}  // namespace octet
