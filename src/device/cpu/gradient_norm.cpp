// Global gradient norm and what it decides: clipping, and whether the step is applied at all.
//
// Squares are summed in double, in pieces of 16,384 elements, each in the 256 lanes of numerics/sums.h; so
// are the pieces. No step of it depends on the number of threads.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/platform.h"
#include "device/cpu/cpu_device.h"
#include "numerics/elementary.h"
#include "numerics/sums.h"

namespace octet {
namespace {

constexpr int64_t piece = norm_piece, wave = 256;  // pieces whose sums are held on the stack at a time

template <class T>
OCTET_HD double squares_body(const T* x, int64_t n) {
  double sums[sum_lanes] = {};
  int64_t i = 0;
  for (; i + sum_lanes <= n; i += sum_lanes) {
    for (int64_t l = 0; l < sum_lanes; ++l) {
      const double value = static_cast<double>(load(x[i + l]));
      sums[l] += value * value;
    }
  }
  for (int64_t l = 0; i + l < n; ++l) {
    const double value = static_cast<double>(load(x[i + l]));
    sums[l] += value * value;
  }
  Lanes<double> lanes;
  memcpy(lanes.sums, sums, sizeof sums);
  return sum_of(lanes);
}
OCTET_VECTORIZED double squares(const float* x, int64_t n) { return squares_body(x, n); }
OCTET_VECTORIZED double squares(const BFloat16* x, int64_t n) { return squares_body(x, n); }

// All pieces of all gradients as one list, summed in the lanes of numerics/sums.h.
struct Total {
  Lanes<double> lanes;
  int64_t pieces = 0, nonfinite = -1;  // the first piece that is not finite
  void add(double sum) {
    if (nonfinite < 0 && !std::isfinite(sum)) nonfinite = pieces;
    lanes.sums[pieces++ % sum_lanes] += sum;
  }
};

template <class T>
void add_squares(const Tensor& tensor, int threads, Total& total) {
  const T* x = tensor.as<T>();
  const int64_t n = tensor.elements(), pieces = (n + piece - 1) / piece;
  for (int64_t first = 0; first < pieces; first += wave) {
    const int64_t count = std::min(wave, pieces - first);
    double sums[wave];
#pragma omp parallel for num_threads(threads) schedule(static) if (count > 1)
    for (int64_t p = 0; p < count; ++p) {
      const int64_t begin = (first + p) * piece;
      sums[p] = squares(x + begin, std::min(piece, n - begin));
    }
    for (int64_t p = 0; p < count; ++p) total.add(sums[p]);
  }
}

}  // namespace

void CpuDevice::gradient_norm(const GradientNorm& op) {
  const OperationTimer timer(timing_, timings_, "gradient norm");
  Total total;
  for (const Tensor& gradient : op.gradients) {
    gradient.dtype == DType::F32 ? add_squares<float>(gradient, threads_, total)
                                 : add_squares<BFloat16>(gradient, threads_, total);
  }
  const float norm = static_cast<float>(std::sqrt(sum_of(total.lanes)));
  const float loss = static_cast<float>(*op.loss_sum.as<double>() / op.loss_divisor);
  const bool apply = std::isfinite(norm) && std::isfinite(loss);
  op.control->gradient_norm = norm;
  op.control->loss = loss;
  op.control->apply = apply ? 1u : 0u;
  op.control->nonfinite_piece = static_cast<uint32_t>(total.nonfinite + 1);
  const bool clip = op.clip_norm > 0.0f && norm > op.clip_norm;
  op.control->scale = !apply ? 0.0f : clip ? op.clip_norm / norm : 1.0f;
}

}  // namespace octet
