// The outer step of local SGD.
#include <algorithm>

#include "base/platform.h"
#include "device/cpu/cpu_device.h"

namespace octet {
namespace {

constexpr int64_t block = 4096;

OCTET_VECTORIZED void subtract_from(const float* outer, float* local, int64_t n) {
  for (int64_t i = 0; i < n; ++i) local[i] = outer[i] - local[i];
}

OCTET_VECTORIZED void update(const OuterUpdate& op, int64_t first, int64_t n) {
  float *outer = op.outer.as<float>() + first, *velocity = op.velocity.as<float>() + first,
        *local = op.local.as<float>() + first;
  const float scale = op.scale, rate = op.learning_rate, momentum = op.momentum;
  for (int64_t i = 0; i < n; ++i) {
    const float d = scale * local[i];
    const float u = momentum * velocity[i] + d;
    const float w = outer[i] - rate * (d + momentum * u);
    velocity[i] = u;
    outer[i] = w;
    local[i] = w;
  }
}

}  // namespace

void CpuDevice::outer_difference(const OuterDifference& op) {
  check(op);
  const int64_t n = op.local.elements(), blocks = (n + block - 1) / block;
#pragma omp parallel for num_threads(threads_) schedule(static) if (blocks > 4)
  for (int64_t b = 0; b < blocks; ++b)
    subtract_from(op.outer.as<float>() + b * block, op.local.as<float>() + b * block,
                  std::min(block, n - b * block));
}

void CpuDevice::outer_update(const OuterUpdate& op) {
  check(op);
  const int64_t n = op.local.elements(), blocks = (n + block - 1) / block;
#pragma omp parallel for num_threads(threads_) schedule(static) if (blocks > 4)
  for (int64_t b = 0; b < blocks; ++b) update(op, b * block, std::min(block, n - b * block));
}

}  // namespace octet
