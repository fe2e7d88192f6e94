#include <algorithm>

#include "base/platform.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/unpack.h"

namespace octet {
namespace {

constexpr int64_t block = 1024;  // of sums, in the first-level cache

OCTET_VECTORIZED void add_floats(float* sum, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}
OCTET_VECTORIZED void add_doubles(double* sum, const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}

}  // namespace

void CpuDevice::add_in_order(const AddInOrder& op) {
  check(op);
  const int64_t n = op.sum.elements(), sources = op.sources.rows(), blocks = (n + block - 1) / block;
#pragma omp parallel for num_threads(threads_) schedule(static) if (blocks > 16)
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = b * block, count = std::min(block, n - first);
    float values[block];
    for (int64_t s = 0; s < sources; ++s) {
      const void* const source = at(op.sources, s * n + first);
      if (op.sum.dtype == DType::F64) {
        add_doubles(op.sum.as<double>() + first, static_cast<const double*>(source), count);
      } else {
        unpack(op.sources.dtype, source, values, count);
        add_floats(op.sum.as<float>() + first, values, count);
      }
    }
  }
}

}  // namespace octet
