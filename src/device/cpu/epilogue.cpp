#include "device/cpu/epilogue.h"

#include "base/platform.h"
#include "device/cpu/unpack.h"

namespace octet {
namespace {

OCTET_VECTORIZED void scale(float* x, float a, float b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = (x[i] * a) * b;
}
OCTET_VECTORIZED void scale_by_row(float* __restrict x, float a, const float* __restrict b, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = (x[i] * a) * b[i];
}
OCTET_VECTORIZED void add(float* __restrict x, const float* __restrict old, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = old[i] + x[i];
}

}  // namespace

void finish_row(const Matmul& m, const OutputRow& r, float* sum, float* old) {
  const bool blocks = is_blocks(m.a.granularity);  // in the operands' values already
  if (!blocks && (m.a.inverse_scale || m.b.inverse_scale)) {
    float a = 1.0f;
    if (m.a.inverse_scale) a = m.a.inverse_scale[m.a.granularity == ScaleGranularity::Outer ? r.row : 0];
    if (m.b.inverse_scale && m.b.granularity == ScaleGranularity::Outer)
      scale_by_row(sum, a, m.b.inverse_scale + r.column, r.columns);
    else
      scale(sum, a, m.b.inverse_scale ? m.b.inverse_scale[0] : 1.0f, r.columns);
  }
  Tensor out = m.out;
  void* to = at(out, r.row * m.out.columns() + r.column);
  if (m.accumulate) {
    unpack(m.out.dtype, to, old, r.columns);
    add(sum, old, r.columns);
  }
  pack(m.out.dtype, sum, to, r.columns);
}

}  // namespace octet
