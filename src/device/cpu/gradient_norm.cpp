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

template <class T>
void squares_of_pieces(const Tensor& tensor, int threads, double* partials) {
  const T* x = tensor.as<T>();
  const int64_t n = tensor.elements(), pieces = norm_pieces(n);
#pragma omp parallel for num_threads(threads) schedule(static) if (pieces > 1)
  for (int64_t p = 0; p < pieces; ++p) {
    const int64_t begin = p * norm_piece;
    partials[p] = squares(x + begin, std::min(norm_piece, n - begin));
  }
}

}  // namespace

void CpuDevice::gradient_squares(const GradientSquares& op) {
  check(op);
  double* partials = op.partials.as<double>();
  op.gradient.dtype == DType::F32 ? squares_of_pieces<float>(op.gradient, threads_, partials)
                                  : squares_of_pieces<BFloat16>(op.gradient, threads_, partials);
}

void CpuDevice::gradient_norm(const GradientNorm& op) {
  const double* partials = op.partials.as<double>();
  const int64_t pieces = op.partials.elements();
  Lanes<double> lanes;
  int64_t nonfinite = -1;  // the first piece that is not finite
  for (int64_t p = 0; p < pieces; ++p) {
    if (nonfinite < 0 && !std::isfinite(partials[p])) nonfinite = p;
    lanes.sums[p % sum_lanes] += partials[p];
  }
  const float norm = static_cast<float>(std::sqrt(sum_of(lanes)));
  const float loss = static_cast<float>(*op.loss_sum.as<double>() / op.loss_divisor);
  const bool apply = std::isfinite(norm) && std::isfinite(loss);
  op.control->gradient_norm = norm;
  op.control->loss = loss;
  op.control->apply = apply ? 1u : 0u;
  op.control->nonfinite_piece = static_cast<uint32_t>(nonfinite + 1);
  const bool clip = op.clip_norm > 0.0f && norm > op.clip_norm;
  op.control->scale = !apply ? 0.0f : clip ? op.clip_norm / norm : 1.0f;
}

}  // namespace octet
