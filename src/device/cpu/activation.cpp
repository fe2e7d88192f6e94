// Activations with one input, and their derivatives: numerics/activation.h over rows. xIELU's two parameters
// get their gradients from sums over a row (256 lanes), then over the tokens (chunks of 64): numerics/sums.h.
#include <algorithm>

#include "base/error.h"
#include "base/platform.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/embedding.h"
#include "device/cpu/gemm_state.h"
#include "device/smooth_swiglu.h"
#include "numerics/activation.h"
#include "numerics/sums.h"

namespace octet {
namespace {

constexpr int64_t chunk = 512;  // elements of a row worked on at a time

template <Activation activation, class T>
OCTET_HD void forward_row_body(const T* x, T* out, int64_t n, Xielu by) {
  for (int64_t i = 0; i < n; ++i) store(out + i, activate<activation>(load(x[i]), by));
}
OCTET_VECTORIZED void gelu_row(const float* x, float* out, int64_t n) {
  forward_row_body<Activation::GELU>(x, out, n, {});
}
OCTET_VECTORIZED void gelu_row(const BFloat16* x, BFloat16* out, int64_t n) {
  forward_row_body<Activation::GELU>(x, out, n, {});
}
OCTET_VECTORIZED void relu2_row(const float* x, float* out, int64_t n) {
  forward_row_body<Activation::ReLU2>(x, out, n, {});
}
OCTET_VECTORIZED void relu2_row(const BFloat16* x, BFloat16* out, int64_t n) {
  forward_row_body<Activation::ReLU2>(x, out, n, {});
}
OCTET_VECTORIZED void xielu_row(const float* x, float* out, int64_t n, Xielu by) {
  forward_row_body<Activation::XIELU>(x, out, n, by);
}
OCTET_VECTORIZED void xielu_row(const BFloat16* x, BFloat16* out, int64_t n, Xielu by) {
  forward_row_body<Activation::XIELU>(x, out, n, by);
}

template <Activation activation, class T>
OCTET_HD void backward_row_body(const T* x, const T* h_gradient, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i)
    store(out + i, load(h_gradient[i]) * activation_slopes<activation>(load(x[i]), {}).x);
}
OCTET_VECTORIZED void gelu_backward_row(const float* x, const float* g, float* out, int64_t n) {
  backward_row_body<Activation::GELU>(x, g, out, n);
}
OCTET_VECTORIZED void gelu_backward_row(const BFloat16* x, const BFloat16* g, BFloat16* out, int64_t n) {
  backward_row_body<Activation::GELU>(x, g, out, n);
}
OCTET_VECTORIZED void relu2_backward_row(const float* x, const float* g, float* out, int64_t n) {
  backward_row_body<Activation::ReLU2>(x, g, out, n);
}
OCTET_VECTORIZED void relu2_backward_row(const BFloat16* x, const BFloat16* g, BFloat16* out, int64_t n) {
  backward_row_body<Activation::ReLU2>(x, g, out, n);
}

// Sums over a row of what the gradients of a and c are made of.
struct XieluSums {
  float positive, negative;
};
template <class T>
OCTET_HD XieluSums xielu_backward_row_body(const T* x, const T* h_gradient, T* out, int64_t n, Xielu by) {
  Lanes<float> positive, negative;
  float p[chunk], c[chunk];
  for (int64_t begin = 0; begin < n; begin += chunk) {
    const int64_t count = std::min(chunk, n - begin);
    for (int64_t i = 0; i < count; ++i) {
      const float gradient = load(h_gradient[begin + i]);
      const ActivationSlopes slopes = activation_slopes<Activation::XIELU>(load(x[begin + i]), by);
      store(out + begin + i, gradient * slopes.x);
      p[i] = gradient * slopes.positive;
      c[i] = gradient * slopes.negative;
    }
    add_values(positive, p, count);
    add_values(negative, c, count);
  }
  return {sum_of(positive), sum_of(negative)};
}
OCTET_VECTORIZED XieluSums xielu_backward_row(const float* x, const float* g, float* out, int64_t n,
                                              Xielu by) {
  return xielu_backward_row_body(x, g, out, n, by);
}
OCTET_VECTORIZED XieluSums xielu_backward_row(const BFloat16* x, const BFloat16* g, BFloat16* out, int64_t n,
                                              Xielu by) {
  return xielu_backward_row_body(x, g, out, n, by);
}

template <class Op>
Xielu parameters_of(const Op& op) {
  if (op.activation != Activation::XIELU) return {};
  return xielu_of(*op.positive.template as<float>(), *op.negative.template as<float>());
}

template <class T>
void forward(const ActivationForward& op, int threads) {
  const int64_t tokens = op.x.rows(), width = op.x.columns();
  const T* x = op.x.as<T>();
  T* out = op.out.high.as<T>();
  const Xielu by = parameters_of(op);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t at = t * width;
    if (op.activation == Activation::GELU) gelu_row(x + at, out + at, width);
    if (op.activation == Activation::ReLU2) relu2_row(x + at, out + at, width);
    if (op.activation == Activation::XIELU) xielu_row(x + at, out + at, width, by);
  }
}

template <class T>
void backward(const ActivationBackward& op, int threads, XieluSums* sums) {
  const int64_t tokens = op.x.rows(), width = op.x.columns();
  const T *x = op.x.as<T>(), *g = op.h_gradient.as<T>();
  T* out = op.out.high.as<T>();
  const Xielu by = parameters_of(op);
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const int64_t at = t * width;
    if (op.activation == Activation::GELU) gelu_backward_row(x + at, g + at, out + at, width);
    if (op.activation == Activation::ReLU2) relu2_backward_row(x + at, g + at, out + at, width);
    if (op.activation == Activation::XIELU) sums[t] = xielu_backward_row(x + at, g + at, out + at, width, by);
  }
}

void add_parameter_gradients(const ActivationBackward& op, const XieluSums* rows) {
  const int64_t tokens = op.x.rows();
  XieluSums total{};
  for (int64_t first = 0; first < tokens; first += column_chunk) {
    XieluSums sums{};
    for (int64_t t = first; t < std::min(tokens, first + column_chunk); ++t) {
      sums.positive += rows[t].positive;
      sums.negative += rows[t].negative;
    }
    total.positive += sums.positive;
    total.negative += sums.negative;
  }
  *op.positive_gradient.as<float>() += total.positive * xielu_chain(*op.positive.as<float>());
  *op.negative_gradient.as<float>() += total.negative * xielu_chain(*op.negative.as<float>());
}

void require_one_input(Activation activation) {
  if (is_gated(activation))
    throw Error(ExitCode::Internal, "activation: a gated one has an operation of its own");
}

}  // namespace

void CpuDevice::activation_forward(const ActivationForward& op) {
  require_one_input(op.activation);
  const CastTarget out = smooth_swiglu_target(op.out, op.mode);
  op.x.dtype == DType::F32 ? forward<float>(op, threads_) : forward<BFloat16>(op, threads_);
  finish_cast(out);
}

void CpuDevice::activation_backward(const ActivationBackward& op) {
  require_one_input(op.activation);
  // What the embedding's backward plans for its tokens is just enough for a pair of sums a token.
  static_assert(sizeof(XieluSums) == sizeof(uint64_t));
  XieluSums* const sums =
      op.activation == Activation::XIELU
          ? reinterpret_cast<XieluSums*>(gemm_->workspace().reserve(embedding_scratch_bytes(op.x.rows())))
          : nullptr;
  op.x.dtype == DType::F32 ? backward<float>(op, threads_, sums) : backward<BFloat16>(op, threads_, sums);
  if (sums) add_parameter_gradients(op, sums);
  finish_cast(op.out);
}

}  // namespace octet
