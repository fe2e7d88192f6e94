// Global gradient norm and what it decides: clipping, and whether the step is applied at all.
//
// Squares are summed in double: pieces of 16,384 elements in eight lanes each, pieces in order. No step of it
// depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/platform.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/vector_math.h"

namespace octet {
namespace {

constexpr int64_t piece = 1 << 14, wave = 256;  // pieces whose sums are held on the stack at a time

template <class T>
OCTET_HD double squares_body(const T* x, int64_t n) {
  constexpr int64_t lanes = 8;
  double sums[lanes] = {};
  int64_t i = 0;
  for (; i + lanes <= n; i += lanes) {
    for (int64_t l = 0; l < lanes; ++l) {
      const double value = static_cast<double>(load(x[i + l]));
      sums[l] += value * value;
    }
  }
  for (; i < n; ++i) {
    const double value = static_cast<double>(load(x[i]));
    sums[0] += value * value;
  }
  return ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
}
OCTET_VECTORIZED double squares(const float* x, int64_t n) { return squares_body(x, n); }
OCTET_VECTORIZED double squares(const BFloat16* x, int64_t n) { return squares_body(x, n); }

template <class T>
double squares_of(const Tensor& tensor, int threads) {
  const T* x = tensor.as<T>();
  const int64_t n = tensor.elements(), pieces = (n + piece - 1) / piece;
  double total = 0;
  for (int64_t first = 0; first < pieces; first += wave) {
    const int64_t count = std::min(wave, pieces - first);
    double sums[wave];
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 1)
    for (int64_t p = 0; p < count; ++p) {
      const int64_t begin = (first + p) * piece;
      sums[p] = squares(x + begin, std::min(piece, n - begin));
    }
    for (int64_t p = 0; p < count; ++p) total += sums[p];
  }
  return total;
}

}  // namespace

void CpuDevice::gradient_norm(const GradientNorm& op) {
  const OperationTimer timer(timing_, timings_, "gradient norm");
  double total = 0;
  for (const Tensor& gradient : op.gradients) {
    total += gradient.dtype == DType::F32 ? squares_of<float>(gradient, threads_)
                                          : squares_of<BFloat16>(gradient, threads_);
  }
  const float norm = static_cast<float>(std::sqrt(total));
  const float loss = static_cast<float>(*op.loss_sum.as<double>() / op.loss_divisor);
  const bool apply = std::isfinite(norm) && std::isfinite(loss);
  op.control->gradient_norm = norm;
  op.control->loss = loss;
  op.control->apply = apply ? 1u : 0u;
  const bool clip = op.clip_norm > 0.0f && norm > op.clip_norm;
  op.control->scale = !apply ? 0.0f : clip ? op.clip_norm / norm : 1.0f;
}

}  // namespace octet
