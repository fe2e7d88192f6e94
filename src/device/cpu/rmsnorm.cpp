// RMSNorm with the residual add in front of it, and the norm or the scale of the branch in front of that.
// [Zhang & Sennrich 1910.07467; LayerScale: Touvron et al. 2103.17239]
//
//   forward   b = branch, branch * branch_gain, or branch * (branch_rstd * branch_factor) * branch_gain
//             x = stream_factor * residual + b (rounded to storage);  rstd = 1 / sqrt(mean(x^2) + epsilon)
//             out = x * rstd * gain, or x
//   backward  g = out_gradient * (gain * branch_factor)
//             dx = rstd * (g - x * rstd^2 * mean(g * x)) + residual_gradient_in
//             gain_gradient[d] += branch_factor * sum_t out_gradient[t, d] * x[t, d] * rstd[t]
//             out_gradient = stream_factor * out_gradient, where that is not 1
//   of a scale alone: rstd is 1 and the mean is left out
//
// The order of sums: numerics/sums.h.
#include <algorithm>
#include <cmath>

#include "base/platform.h"
#include "device/cpu/cpu_device.h"
#include "numerics/elementary.h"
#include "numerics/sums.h"

namespace octet {
namespace {

constexpr int64_t chunk = 512;  // elements of a row converted at a time

template <class T>
struct AddedRow {
  const T *residual, *branch;  // branch: nullptr = none
  const float* branch_gain;    // nullptr = one
  float branch_rstd;
  T* out;  // nullptr = nowhere
  float stream_factor = 1;
};
// Writes x = residual + branch to `out` (when there is a branch or another place); the sum of its squares.
template <class T>
OCTET_HD float add_row_body(const AddedRow<T>& given, int64_t n) {
  const AddedRow<T> row = given;  // as in backward_row_body
  Lanes<float> lanes;
  float x[chunk];
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t count = std::min(chunk, n - begin);
    for (int64_t i = 0; i < count; ++i) x[i] = load(row.residual[begin + i]);
    if (row.branch && row.branch_gain) {
      const float* gain = row.branch_gain + begin;
      for (int64_t i = 0; i < count; ++i)
        x[i] = row.stream_factor * x[i] + load(row.branch[begin + i]) * row.branch_rstd * gain[i];
    } else if (row.branch) {
      for (int64_t i = 0; i < count; ++i) x[i] += load(row.branch[begin + i]);
    }
    if (row.out) {
      for (int64_t i = 0; i < count; ++i) store(row.out + begin + i, x[i]);
      for (int64_t i = 0; i < count; ++i) x[i] = load(row.out[begin + i]);
    }
    add_products(lanes, x, x, count);
  }
  return sum_of(lanes);
}
OCTET_VECTORIZED float add_row(const AddedRow<float>& row, int64_t n) { return add_row_body(row, n); }
OCTET_VECTORIZED float add_row(const AddedRow<BFloat16>& row, int64_t n) { return add_row_body(row, n); }

template <class T>
struct NormalizedRow {
  const T* x;
  float rstd;
  const float* gain;
  T* out;
};
template <class T>
OCTET_HD void normalize_row_body(const NormalizedRow<T>& given, int64_t n) {
  const NormalizedRow<T> row = given;  // as in backward_row_body
  for (int64_t i = 0; i < n; ++i) store(row.out + i, load(row.x[i]) * row.rstd * row.gain[i]);
}
OCTET_VECTORIZED void normalize_row(const NormalizedRow<float>& row, int64_t n) {
  normalize_row_body(row, n);
}
OCTET_VECTORIZED void normalize_row(const NormalizedRow<BFloat16>& row, int64_t n) {
  normalize_row_body(row, n);
}

template <class T>
struct BackwardRow {
  const T *out_gradient, *x, *in;  // in: nullptr = zero
  const float* gain;
  const float* rstd;  // nullptr: one, and nothing was normalised
  T* out;
  float branch_factor = 1;
};
template <class T>
OCTET_HD void backward_row_body(const BackwardRow<T>& given, int64_t n) {
  const BackwardRow<T> row = given;  // a copy that no store can reach, so that the pointers stay in registers
  Lanes<float> lanes;
  float g[chunk], x[chunk];
  for (int64_t begin = 0; begin < (row.rstd ? n : 0); begin += chunk) {
    const int64_t count = std::min(chunk, n - begin);
    for (int64_t i = 0; i < count; ++i) {
      g[i] = load(row.out_gradient[begin + i]) * (row.gain[begin + i] * row.branch_factor);
      x[i] = load(row.x[begin + i]);
    }
    add_products(lanes, g, x, count);
  }
  const float rstd = row.rstd ? *row.rstd : 1.0f;
  const float shrink = row.rstd ? rstd * rstd * (sum_of(lanes) / static_cast<float>(n)) : 0.0f;
  const T* in = row.in ? row.in : row.x;  // any address that may be read
  const float keep = row.in ? 1.0f : 0.0f;
#pragma GCC ivdep  // `in` and `out` may be the same row, never a shifted one
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = load(row.out_gradient[i]) * (row.gain[i] * row.branch_factor);
    store(row.out + i, keep * load(in[i]) + rstd * (gradient - load(row.x[i]) * shrink));
  }
}
OCTET_VECTORIZED void backward_row(const BackwardRow<float>& row, int64_t n) { backward_row_body(row, n); }
OCTET_VECTORIZED void backward_row(const BackwardRow<BFloat16>& row, int64_t n) { backward_row_body(row, n); }

template <class T>
OCTET_HD void weight_row_body(T* row, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(row + i, factor * load(row[i]));
}
OCTET_VECTORIZED void weight_row(float* row, float factor, int64_t n) { weight_row_body(row, factor, n); }
OCTET_VECTORIZED void weight_row(BFloat16* row, float factor, int64_t n) { weight_row_body(row, factor, n); }

// A block of rows of two matrices, `stride` elements apart.
template <class T>
struct GainTerms {
  const T *out_gradient, *x;
  const float* rstd;
  int64_t rows, stride;
};
// sums[i] += sum over the rows, in order, of out_gradient * x * rstd.
template <class T>
OCTET_HD void add_gain_terms_body(const GainTerms<T>& terms, float* sums, int64_t n) {
  for (int64_t r = 0; r < terms.rows; ++r) {
    const T *out_gradient = terms.out_gradient + r * terms.stride, *x = terms.x + r * terms.stride;
    const float rstd = terms.rstd ? terms.rstd[r] : 1.0f;
    for (int64_t i = 0; i < n; ++i) sums[i] += load(out_gradient[i]) * (load(x[i]) * rstd);
  }
}
OCTET_VECTORIZED void add_gain_terms(const GainTerms<float>& terms, float* sums, int64_t n) {
  add_gain_terms_body(terms, sums, n);
}
OCTET_VECTORIZED void add_gain_terms(const GainTerms<BFloat16>& terms, float* sums, int64_t n) {
  add_gain_terms_body(terms, sums, n);
}

template <class T>
T* pointer_or_null(const Tensor& tensor) {
  return tensor.empty() ? nullptr : tensor.as<T>();
}
float rstd_of(float squares, int64_t width, float epsilon) {
  return 1.0f / std::sqrt(squares / static_cast<float>(width) + epsilon);
}

template <class T>
void forward(const RmsNormForward& op, int threads) {
  const int64_t tokens = op.residual.rows(), width = op.residual.columns();
  T* residual = op.residual.as<T>();
  const T* branch = pointer_or_null<T>(op.branch);
  T* sum = op.residual_out.empty() ? (branch ? residual : nullptr) : op.residual_out.as<T>();
  T* out = op.out.high.as<T>();
  float *rstds = pointer_or_null<float>(op.rstd), *branch_rstds = pointer_or_null<float>(op.branch_rstd);
  const float *gain = pointer_or_null<float>(op.gain), *branch_gain = pointer_or_null<float>(op.branch_gain);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t at = t * width;
    AddedRow<T> row{residual + at, branch ? branch + at : nullptr, branch_gain,
                    1.0f,          sum ? sum + at : nullptr,       op.stream_factor};
    if (branch_rstds) {
      const float squares = add_row(AddedRow<T>{branch + at, nullptr, nullptr, 1.0f, nullptr}, width);
      branch_rstds[t] = rstd_of(squares, width, op.epsilon);
      row.branch_rstd = branch_rstds[t] * op.branch_factor;
    }
    const float squares = add_row(row, width);
    if (!gain) continue;
    const float rstd = rstd_of(squares, width, op.epsilon);
    rstds[t] = rstd;
    normalize_row(NormalizedRow<T>{(sum ? sum : residual) + at, rstd, gain, out + at}, width);
  }
}

template <class T>
void gain_gradient(const RmsNormBackward& op, int threads) {
  constexpr int64_t strip = 64, rows = column_chunk;
  const int64_t tokens = op.residual.rows(), width = op.residual.columns();
  const T *out_gradient = op.out_gradient.as<T>(), *x = op.residual.as<T>();
  const float* rstd = pointer_or_null<float>(op.rstd);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t begin = 0; begin < width; begin += strip) {
    const int64_t n = std::min(strip, width - begin);
    float total[strip] = {};
    for (int64_t first = 0; first < tokens; first += rows) {
      float sums[strip] = {};
      const int64_t at = first * width + begin;
      add_gain_terms(GainTerms<T>{out_gradient + at, x + at, rstd ? rstd + first : nullptr,
                                  std::min(rows, tokens - first), width},
                     sums, n);
      for (int64_t i = 0; i < n; ++i) total[i] += sums[i];
    }
    for (int64_t i = 0; i < n; ++i) {
      if (op.gain_gradient.dtype == DType::F32) {
        op.gain_gradient.as<float>()[begin + i] += op.branch_factor * total[i];
      } else {
        BFloat16* to = op.gain_gradient.as<BFloat16>() + begin + i;
        store(to, load(*to) + op.branch_factor * total[i]);
      }
    }
  }
}

template <class T>
void backward(const RmsNormBackward& op, int threads) {
  const int64_t tokens = op.residual.rows(), width = op.residual.columns();
  gain_gradient<T>(op, threads);  // first: `high` may take the place of an input
  T* out_gradient = op.out_gradient.as<T>();
  const T* x = op.residual.as<T>();
  const T* in = pointer_or_null<T>(op.residual_gradient_in);
  T* out = op.residual_gradient.high.as<T>();
  const float* rstd = pointer_or_null<float>(op.rstd);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t at = t * width;
    const BackwardRow<T> row{out_gradient + at,         x + at,   in ? in + at : nullptr, op.gain.as<float>(),
                             rstd ? rstd + t : nullptr, out + at, op.branch_factor};
    backward_row(row, width);
    if (op.stream_factor != 1) weight_row(out_gradient + at, op.stream_factor, width);
  }
}

}  // namespace

void CpuDevice::rmsnorm_forward(const RmsNormForward& op) {
  check(op);
  op.residual.dtype == DType::F32 ? forward<float>(op, threads_) : forward<BFloat16>(op, threads_);
  finish_cast(op.out);
}

void CpuDevice::rmsnorm_backward(const RmsNormBackward& op) {
  op.residual.dtype == DType::F32 ? backward<float>(op, threads_) : backward<BFloat16>(op, threads_);
  finish_cast(op.residual_gradient);
}

}  // namespace octet
