#include "device/cpu/softmax_lanes.h"

#include <cstring>
#include <limits>

#include "base/platform.h"

namespace octet {
namespace {

// Sixteen queries. The compiler cuts it into what the instruction set has; the arithmetic per lane is the
// same.
typedef float Lanes __attribute__((vector_size(64)));
typedef int32_t Integers __attribute__((vector_size(64)));
constexpr int halves = query_lanes / 16;

#define OCTET_LANES inline __attribute__((always_inline))
#pragma GCC diagnostic ignored "-Wpsabi"  // always inlined: never passed in registers that may not exist

OCTET_LANES Lanes load(const float* from) {
  Lanes x;
  memcpy(&x, from, sizeof x);
  return x;
}
OCTET_LANES void store(float* to, const Lanes& x) { memcpy(to, &x, sizeof x); }
OCTET_LANES Lanes broadcast(float x) { return Lanes{} + x; }

// e^x for x <= 88: x = n ln 2 + r, |r| <= ln 2 / 2, e^r by a polynomial of degree 6 (coefficients: Cephes
// expf), error below 2 ulp. Zero below -87.33, where the result would be subnormal; NaN stays NaN.
OCTET_LANES Lanes exponential(const Lanes& any) {
  const Integers tiny = any < broadcast(-87.33f);
  const Lanes x = tiny ? broadcast(-87.33f) : any;
  const Lanes shifted = x * 1.44269504088896341f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer
  const Lanes n = shifted - 12582912.0f;
  const Lanes r = (x - n * 0.693359375f) - n * -2.12194440e-4f;
  Lanes p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  Integers bits;
  memcpy(&bits, &shifted, sizeof bits);
  bits = (bits - 0x4b400000 + 127) << 23;
  Lanes power;
  memcpy(&power, &bits, sizeof power);
  p = p * power;
  return tiny ? Lanes{} : p;
}

OCTET_LANES Lanes larger(const Lanes& a, const Lanes& b) { return a < b ? b : a; }

// scale * s, and -infinity where the key lies behind the query.
OCTET_LANES Lanes masked_score(const ScoreBlock& block, int64_t key, int half) {
  Lanes s = load(block.scores + key * query_lanes + half * 16) * block.scale;
  const int64_t behind = block.first_key + key - block.first_query - half * 16;
  if (behind > 0) {
    const Integers lane = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Integers masked = lane < (Integers{} + static_cast<int32_t>(behind));
    s = masked ? broadcast(-std::numeric_limits<float>::infinity()) : s;
  }
  return s;
}

}  // namespace

OCTET_VECTORIZED void softmax_step(const ScoreBlock& block, RunningSoftmax& running) {
  for (int half = 0; half < halves; ++half) {
    float* scores = block.scores + half * 16;
    const Lanes before = load(running.maximum + half * 16);
    Lanes maximum = before;
    for (int64_t k = 0; k < block.keys; ++k) {
      const Lanes s = masked_score(block, k, half);
      store(scores + k * query_lanes, s);
      maximum = larger(maximum, s);
    }
    const Lanes correction = exponential(before - maximum);
    Lanes sum{};
    for (int64_t k = 0; k < block.keys; ++k) {
      const Lanes p = exponential(load(scores + k * query_lanes) - maximum);
      store(scores + k * query_lanes, p);
      sum = sum + p;
    }
    store(running.maximum + half * 16, maximum);
    store(running.correction + half * 16, correction);
    store(running.sum + half * 16, load(running.sum + half * 16) * correction + sum);
  }
}

OCTET_VECTORIZED void softmax_gradient(const ScoreBlock& block, const SoftmaxGradient& g) {
  for (int half = 0; half < halves; ++half) {
    const Lanes log_sum_exp = load(g.log_sum_exp + half * 16), delta = load(g.delta + half * 16);
    for (int64_t k = 0; k < block.keys; ++k) {
      const Lanes p = exponential(masked_score(block, k, half) - log_sum_exp);
      float* gradient = g.gradient + k * query_lanes + half * 16;
      store(block.scores + k * query_lanes + half * 16, p);
      store(gradient, p * (load(gradient) - delta) * block.scale);
    }
  }
}

OCTET_VECTORIZED void softmax_probabilities(const ScoreBlock& block, const float* log_sum_exp) {
  for (int half = 0; half < halves; ++half) {
    const Lanes subtracted = load(log_sum_exp + half * 16);
    for (int64_t k = 0; k < block.keys; ++k)
      store(block.scores + k * query_lanes + half * 16,
            exponential(masked_score(block, k, half) - subtracted));
  }
}

namespace {

OCTET_LANES Lanes clipped(const Lanes& stretched) {
  const Lanes below = stretched < broadcast(0.0f) ? Lanes{} : stretched;
  return below > broadcast(1.0f) ? broadcast(1.0f) : below;
}
// What reaches the probability itself: nothing where it was clipped.
OCTET_LANES Lanes through_clip(const Lanes& stretched, const Lanes& gradient, float span) {
  const Integers open = (stretched > broadcast(0.0f)) & (stretched < broadcast(1.0f));
  return open ? gradient * span : Lanes{};
}

}  // namespace

OCTET_VECTORIZED void clip_probabilities(const ScoreBlock& block, const LaneClip& clip) {
  for (int half = 0; half < halves; ++half) {
    for (int64_t k = 0; k < block.keys; ++k) {
      float* const at = block.scores + k * query_lanes + half * 16;
      store(at, clipped(load(at) * clip.span + clip.low));
    }
  }
}

OCTET_VECTORIZED void add_clipped_products(const ScoreBlock& block, const LaneClip& clip,
                                           const SoftmaxGradient& g, float* delta) {
  for (int half = 0; half < halves; ++half) {
    const Lanes log_sum_exp = load(g.log_sum_exp + half * 16);
    Lanes sum = load(delta + half * 16);
    for (int64_t k = 0; k < block.keys; ++k) {
      const Lanes p = exponential(masked_score(block, k, half) - log_sum_exp);
      const Lanes gradient = load(g.gradient + k * query_lanes + half * 16);
      sum = sum + p * through_clip(p * clip.span + clip.low, gradient, clip.span);
    }
    store(delta + half * 16, sum);
  }
}

OCTET_VECTORIZED void clipped_softmax_gradient(const ScoreBlock& block, const LaneClip& clip,
                                               const SoftmaxGradient& g) {
  for (int half = 0; half < halves; ++half) {
    const Lanes log_sum_exp = load(g.log_sum_exp + half * 16), delta = load(g.delta + half * 16);
    for (int64_t k = 0; k < block.keys; ++k) {
      const Lanes p = exponential(masked_score(block, k, half) - log_sum_exp);
      const Lanes stretched = p * clip.span + clip.low;
      float* const gradient = g.gradient + k * query_lanes + half * 16;
      store(block.scores + k * query_lanes + half * 16, clipped(stretched));
      store(gradient, p * (through_clip(stretched, load(gradient), clip.span) - delta) * block.scale);
    }
  }
}

OCTET_VECTORIZED void probability_gradient(const ProbabilityGradient& g) {
  for (int half = 0; half < halves; ++half) {
    const Lanes delta = load(g.delta + half * 16);
    for (int64_t k = 0; k < g.keys; ++k) {
      const int64_t at = k * query_lanes + half * 16;
      store(g.gradient + at,
            load(g.probabilities + at) * (load(g.gradient + at) * g.factor - delta) * g.scale);
    }
  }
}

OCTET_VECTORIZED void multiply_lanes(float* x, const float* factor, int64_t rows) {
  for (int half = 0; half < halves; ++half) {
    const Lanes f = load(factor + half * 16);
    for (int64_t i = 0; i < rows; ++i) {
      float* at = x + i * query_lanes + half * 16;
      store(at, load(at) * f);
    }
  }
}
OCTET_VECTORIZED void divide_lanes(float* x, const float* divisor, int64_t rows) {
  for (int half = 0; half < halves; ++half) {
    const Lanes d = load(divisor + half * 16);
    for (int64_t i = 0; i < rows; ++i) {
      float* at = x + i * query_lanes + half * 16;
      store(at, load(at) / d);
    }
  }
}
OCTET_VECTORIZED void dot_lanes(const float* a, const float* b, float* out, int64_t rows) {
  for (int half = 0; half < halves; ++half) {
    Lanes sum{};
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t at = i * query_lanes + half * 16;
      sum = sum + load(a + at) * load(b + at);
    }
    store(out + half * 16, sum);
  }
}

}  // namespace octet
