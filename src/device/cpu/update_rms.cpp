// The root mean square of the updates of a tensor, before they are made. Its sums have the order of the
// gradient norm: pieces of 16,384 elements in FP64, so that shards and threads do not matter.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/platform.h"
#include "device/adamw_rates.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/stored_moment.h"
#include "device/cpu/unpack.h"
#include "numerics/sums.h"
#include "numerics/update_clipping.h"

namespace octet {
namespace {

constexpr int64_t span = 1024;  // elements held on the stack at a time
static_assert(norm_piece % span == 0 && span % sum_lanes == 0);

struct Rule {
  float scale, beta2, rest2, correction, least;
};

OCTET_VECTORIZED void add_squares(const Rule& rule, const float* gradient, const float* v, int64_t n,
                                  double* lanes) {
  for (int64_t i = 0; i < n; i += sum_lanes) {
    const int64_t count = n - i < sum_lanes ? n - i : sum_lanes;
    for (int64_t l = 0; l < count; ++l) {
      const float g = rule.scale * gradient[i + l];
      const float next = rule.beta2 * v[i + l] + rule.rest2 * (g * g);
      lanes[l] += static_cast<double>(update_square(g, next, rule.correction, rule.least));
    }
  }
}

}  // namespace

void CpuDevice::update_squares(const UpdateSquares& op) {
  check(op);
  if (op.control->apply == 0) return zero(op.partials);
  const UpdateSquareRates rates = update_square_rates(op);
  const Rule rule{op.control->scale, op.beta2, 1.0f - op.beta2, rates.correction, rates.least};
  const StoredMoment second(op.second, Moment::Second);
  const int64_t n = op.gradient.elements(), pieces = norm_pieces(n);
  double* partials = op.partials.as<double>();
#pragma omp parallel for num_threads(threads_) schedule(static) if (pieces > 1)
  for (int64_t p = 0; p < pieces; ++p) {
    Lanes<double> lanes;
    const int64_t end = std::min((p + 1) * norm_piece, n);
    for (int64_t begin = p * norm_piece; begin < end; begin += span) {
      const int64_t count = std::min(span, end - begin);
      float gradient[span], v[span];
      unpack(op.gradient.dtype, at(op.gradient, begin), gradient, count);
      second.read(begin, count, v);
      add_squares(rule, gradient, v, count, lanes.sums);
    }
    partials[p] = sum_of(lanes);
  }
}

void CpuDevice::update_rms(const UpdateRms& op) {
  const double* partials = op.partials.as<double>();
  Lanes<double> lanes;
  for (int64_t p = 0; p < op.partials.elements(); ++p) lanes.sums[p % sum_lanes] += partials[p];
  *op.rms.as<float>() = static_cast<float>(std::sqrt(sum_of(lanes) / static_cast<double>(op.elements)));
}

}  // namespace octet
