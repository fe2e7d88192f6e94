// Softmax cross-entropy with z-loss, one row of logits at a time, in place.
//
//   lse = m + log(sum_v e^(x_v - m)), m = max x;  loss = log(sum) + (m - x_target): no large numbers cancel
//   dx_v = (softmax_v * (1 + 2 z_loss lse) - [v = target]) * gradient_scale
#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "base/error.h"
#include "base/platform.h"
#include "device/cpu/cpu_device.h"
#include "numerics/elementary.h"
#include "numerics/sums.h"

namespace octet {
namespace {

// The FP32 sum of a chunk is added in double, so long rows lose nothing.
constexpr int64_t chunk = cross_entropy_chunk;

template <class T>
OCTET_HD float largest_body(const T* x, int64_t n) {
  constexpr int64_t lane_count = 16;
  float lanes[lane_count];
  for (int64_t l = 0; l < lane_count; ++l) lanes[l] = -std::numeric_limits<float>::infinity();
  int64_t i = 0;
  for (; i + lane_count <= n; i += lane_count) {
    for (int64_t l = 0; l < lane_count; ++l) {
      const float value = load(x[i + l]);
      lanes[l] = value > lanes[l] ? value : lanes[l];
    }
  }
  for (int64_t l = 0; i + l < n; ++l) {
    const float value = load(x[i + l]);
    lanes[l] = value > lanes[l] ? value : lanes[l];
  }
  float m = lanes[0];
  for (int64_t l = 1; l < lane_count; ++l) m = lanes[l] > m ? lanes[l] : m;
  return m;
}
OCTET_VECTORIZED float largest(const float* x, int64_t n) { return largest_body(x, n); }
OCTET_VECTORIZED float largest(const BFloat16* x, int64_t n) { return largest_body(x, n); }

template <class T>
OCTET_HD double sum_exp_body(const T* x, float m, int64_t n) {
  double sum = 0;
  float e[chunk];
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t count = std::min(chunk, n - begin);
    for (int64_t i = 0; i < count; ++i) e[i] = vector_exp(load(x[begin + i]) - m);
    Lanes<float> lanes;
    add_values(lanes, e, count);
    sum += static_cast<double>(sum_of(lanes));
  }
  return sum;
}
OCTET_VECTORIZED double sum_exp(const float* x, float m, int64_t n) { return sum_exp_body(x, m, n); }
OCTET_VECTORIZED double sum_exp(const BFloat16* x, float m, int64_t n) { return sum_exp_body(x, m, n); }

// x = factor * e^(x - m), and `target` less at the target.
template <class T>
OCTET_HD void gradient_body(T* x, float m, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(x + i, factor * vector_exp(load(x[i]) - m));
}
OCTET_VECTORIZED void gradient(float* x, float m, float factor, int64_t n) { gradient_body(x, m, factor, n); }
OCTET_VECTORIZED void gradient(BFloat16* x, float m, float factor, int64_t n) {
  gradient_body(x, m, factor, n);
}

template <class T>
void run(const CrossEntropy& op, int threads) {
  const int64_t tokens = op.logits.rows(), vocabulary = op.logits.columns();
  T* logits = op.logits.as<T>();
  const int32_t* targets = op.targets.as<int32_t>();
  float* loss = op.loss.as<float>();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    T* x = logits + t * vocabulary;
    const int32_t target = targets[t];
    if (target < 0) {
      loss[t] = 0;
      if (op.backward) std::memset(x, 0, static_cast<size_t>(vocabulary) * sizeof(T));
      continue;
    }
    const float m = largest(x, vocabulary), at_target = load(x[target]);
    const double sum = sum_exp(x, m, vocabulary), log_sum = std::log(sum);
    const double below = static_cast<double>(m) - static_cast<double>(at_target);
    loss[t] = static_cast<float>(log_sum + below);
    if (!op.backward) continue;
    const double lse = static_cast<double>(m) + log_sum;
    const double weight =
        (1.0 + 2.0 * static_cast<double>(op.z_loss) * lse) * static_cast<double>(op.gradient_scale);
    gradient(x, m, static_cast<float>(weight / sum), vocabulary);
    // The target's own entry is a difference of nearly equal numbers when the model is sure.
    store(x + target,
          static_cast<float>(weight * std::exp(-(log_sum + below)) - static_cast<double>(op.gradient_scale)));
  }
}

}  // namespace

void CpuDevice::cross_entropy(const CrossEntropy& op) {
  const int32_t* targets = op.targets.as<int32_t>();
  for (int64_t t = 0; t < op.logits.rows(); ++t) {
    if (targets[t] >= op.logits.columns()) {
      throw Error(ExitCode::Internal, fmt::format("cross entropy: target {} is {}, there are {} logits", t,
                                                  targets[t], op.logits.columns()));
    }
  }
  op.logits.dtype == DType::F32 ? run<float>(op, threads_) : run<BFloat16>(op, threads_);
}

}  // namespace octet
