// Muon's operations beside its products: momentum, normalisation, sums, the step of the masters.
//
// Order of operations, everything in FP32, one rounding each:
//   g = scale * gradient;  m = momentum * m + (1 - momentum) * g
//   direction = (1 - momentum) * g + momentum * m
//   x = x * (1 / (norm + 1e-7)), norm = sqrt(sum of partials) in FP64, rounded once
//   out = alpha * x + beta * y
//   w = w - (decay * w + rate * direction), decay = lr * weight_decay in double, rounded once
// Then m, direction, x, out and w are stored.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "base/error.h"
#include "base/platform.h"
#include "device/cpu/amax.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/stored_master.h"
#include "device/cpu/stored_moment.h"
#include "device/cpu/unpack.h"
#include "numerics/muon.h"
#include "numerics/sums.h"

namespace octet {
namespace {

constexpr int64_t span = 1024;  // elements held on the stack at a time

struct MomentumRule {
  float scale, momentum, rest;
};
OCTET_VECTORIZED void advance(const MomentumRule& rule, float* gradient, float* m, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = rule.scale * gradient[i];
    m[i] = rule.momentum * m[i] + rule.rest * g;
    gradient[i] = rule.rest * g + rule.momentum * m[i];
  }
}
OCTET_VECTORIZED void multiply(float factor, float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = factor * x[i];
}
OCTET_VECTORIZED void add(const WeightedSum& op, float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = op.alpha * x[i] + op.beta * y[i];
}
struct StepRule {
  float decay, rate;
};
OCTET_VECTORIZED void step(const StepRule& rule, const float* direction, float* w, int64_t n) {
  for (int64_t i = 0; i < n; ++i) w[i] = w[i] - (rule.decay * w[i] + rule.rate * direction[i]);
}

// Elements a task takes: whole blocks of the momentum.
int64_t span_of(const StoredMoment& first) {
  if (!first.coded() || first.one_scale()) return span;
  if (first.block() < 0 || first.block() > span)
    throw Error(ExitCode::Internal,
                fmt::format("muon_momentum: blocks of {} elements; at most {}", first.block(), span));
  return span / first.block() * first.block();
}

}  // namespace

void CpuDevice::muon_momentum(const MuonMomentum& op) {
  check(op);
  if (op.control->apply == 0) return;
  const MomentumRule rule{op.control->scale, op.momentum, 1.0f - op.momentum};
  const StoredMoment first(op.first, Moment::First);
  const int64_t n = op.gradient.elements(), each = span_of(first), tasks = (n + each - 1) / each;
  // m, and the direction in the gradient's place.
  const auto compute = [&](int64_t begin, int64_t count, float* m, float* gradient) {
    unpack(op.gradient.dtype, at(op.gradient, begin), gradient, count);
    first.read(begin, count, m);
    advance(rule, gradient, m, count);
  };
  // One scale for the tensor is known only after all of it: the momentum is computed twice.
  uint32_t largest = 0;
  if (first.one_scale()) {
#pragma omp parallel for num_threads(threads_) schedule(static) reduction(max : largest)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t begin = task * each, count = std::min(each, n - begin);
      float m[span], direction[span];
      compute(begin, count, m, direction);
      largest = std::max(largest, amax_bits(m, count));
    }
  }
  const MomentScale scale = first.scale_of(std::bit_cast<float>(largest));
#pragma omp parallel for num_threads(threads_) schedule(static) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * each, count = std::min(each, n - begin);
    float m[span], direction[span];
    compute(begin, count, m, direction);
    Tensor to = op.direction;
    pack(to.dtype, direction, at(to, begin), count);
    first.write(begin, count, m, scale.scale);
  }
  if (first.one_scale()) first.set_inverse(0, scale.inverse);
}

void CpuDevice::normalize(const Normalize& op) {
  check(op);
  const double* partials = op.partials.as<double>();
  Lanes<double> lanes;
  for (int64_t p = 0; p < op.partials.elements(); ++p) lanes.sums[p % sum_lanes] += partials[p];
  const float factor = muon_factor(sum_of(lanes));
  const int64_t n = op.x.elements(), tasks = (n + span - 1) / span;
#pragma omp parallel for num_threads(threads_) schedule(static) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * span, count = std::min(span, n - begin);
    Tensor x = op.x;
    float values[span];
    unpack(x.dtype, at(x, begin), values, count);
    multiply(factor, values, count);
    pack(x.dtype, values, at(x, begin), count);
  }
}

void CpuDevice::weighted_sum(const WeightedSum& op) {
  check(op);
  const int64_t n = op.out.elements(), tasks = (n + span - 1) / span;
#pragma omp parallel for num_threads(threads_) schedule(static) if (tasks > 1)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * span, count = std::min(span, n - begin);
    float x[span], y[span];
    unpack(op.x.dtype, at(op.x, begin), x, count);
    unpack(op.y.dtype, at(op.y, begin), y, count);
    add(op, x, y, count);
    Tensor out = op.out;
    pack(out.dtype, x, at(out, begin), count);
  }
}

void CpuDevice::muon_update(const MuonUpdate& op) {
  check(op);
  const StoredMasters masters(op.master, op.master_code);
  const int64_t n = op.master.elements(), tasks = (n + span - 1) / span;
  if (op.control->apply == 0) {
    if (!op.amax.empty()) masters.raise_amax(n, op.amax);
    return;
  }
  const StepRule rule{muon_decay(op.learning_rate, op.weight_decay), op.learning_rate};
  const StoredMasters::Draws draws{op.rounding_key, op.first_element};
  uint32_t largest = 0;
#pragma omp parallel for num_threads(threads_) schedule(static) if (tasks > 1) reduction(max : largest)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * span, count = std::min(span, n - begin);
    float w[span], direction[span];
    masters.load(begin, count, w);
    unpack(op.direction.dtype, at(op.direction, begin), direction, count);
    step(rule, direction, w, count);
    masters.store(begin, count, w, &draws);
    if (op.amax.empty()) continue;
    masters.values(begin, count, w);
    largest = std::max(largest, amax_bits(w, count));
  }
  if (!op.amax.empty()) raise_master_amax(op.amax, largest);
}

}  // namespace octet
