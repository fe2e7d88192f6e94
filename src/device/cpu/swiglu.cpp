// SwiGLU, h = silu(gate) * up, and which scales its FP8 copies get.  [Shazeer 2002.05202; Smooth-SwiGLU:
// Fishman et al. 2409.12517, Eq. 3]
//
//   forward   s = 1 / (1 + e^-gate);  h = (gate * s) * up
//   backward  d gate = dh * up * s * (1 + gate * (1 - s));  d up = dh * (gate * s)
#include "base/platform.h"
#include "device/cpu/cpu_device.h"
#include "device/smooth_swiglu.h"
#include "numerics/elementary.h"

namespace octet {
namespace {

template <class T>
OCTET_HD void forward_row_body(const T* gate, const T* up, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = load(gate[i]);
    store(out + i, g * vector_sigmoid(g) * load(up[i]));
  }
}
OCTET_VECTORIZED void forward_row(const float* gate, const float* up, float* out, int64_t n) {
  forward_row_body(gate, up, out, n);
}
OCTET_VECTORIZED void forward_row(const BFloat16* gate, const BFloat16* up, BFloat16* out, int64_t n) {
  forward_row_body(gate, up, out, n);
}

template <class T>
OCTET_HD void backward_row_body(const T* gate_up, const T* h_gradient, T* out, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const float g = load(gate_up[i]), u = load(gate_up[n + i]), d = load(h_gradient[i]);
    const float s = vector_sigmoid(g);
    store(out + i, d * u * (s * (1.0f + g * (1.0f - s))));
    store(out + n + i, d * (g * s));
  }
}
OCTET_VECTORIZED void backward_row(const float* gate_up, const float* h_gradient, float* out, int64_t n) {
  backward_row_body(gate_up, h_gradient, out, n);
}
OCTET_VECTORIZED void backward_row(const BFloat16* gate_up, const BFloat16* h_gradient, BFloat16* out,
                                   int64_t n) {
  backward_row_body(gate_up, h_gradient, out, n);
}

template <class T>
void forward(const SwiGluForward& op, int threads) {
  const int64_t tokens = op.gate_up.rows(), width = op.out.high.columns();
  const T* gate_up = op.gate_up.as<T>();
  T* out = op.out.high.as<T>();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    const T* gate = gate_up + t * 2 * width;
    forward_row(gate, gate + width, out + t * width, width);
  }
}

template <class T>
void backward(const SwiGluBackward& op, int threads) {
  const int64_t tokens = op.h_gradient.rows(), width = op.h_gradient.columns();
  const T *gate_up = op.gate_up.as<T>(), *h_gradient = op.h_gradient.as<T>();
  T* out = op.out.high.as<T>();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    backward_row(gate_up + t * 2 * width, h_gradient + t * width, out + t * 2 * width, width);
  }
}

}  // namespace

void CpuDevice::swiglu_forward(const SwiGluForward& op) {
  const CastTarget out = smooth_swiglu_target(op.out, op.mode);
  op.gate_up.dtype == DType::F32 ? forward<float>(op, threads_) : forward<BFloat16>(op, threads_);
  finish_cast(out);
}

void CpuDevice::swiglu_backward(const SwiGluBackward& op) {
  op.gate_up.dtype == DType::F32 ? backward<float>(op, threads_) : backward<BFloat16>(op, threads_);
  finish_cast(op.out);
}

}  // namespace octet
