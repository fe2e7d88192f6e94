// AdamW on FP32 masters with moments in FP32, BF16 or FP8.  [Loshchilov & Hutter 1711.05101; Fishman et al.
// 2409.12517, released code]
//
// Order of operations, everything in FP32, one rounding each:
//   g = scale * gradient
//   m = beta1 * m + (1 - beta1) * g;  v = beta2 * v + (1 - beta2) * (g * g)
//   w = w - (decay * w + rate * (m / (sqrt(v) + epsilon)))
// with decay = lr * weight_decay and rate = lr * sqrt(1 - beta2^t) / (1 - beta1^t), computed in double and
// rounded once. (1 - decay, rounded, would bias every weight by up to 3e-8 a step; written as a difference
// nothing as large as w is rounded but the result.) Then m and v are stored (numerics/moments.h).
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <numeric>

#include "base/error.h"
#include "base/platform.h"
#include "device/adamw_rates.h"
#include "device/cpu/amax.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/unpack.h"
#include "numerics/bfloat16.h"
#include "numerics/elementary.h"
#include "numerics/float8.h"
#include "numerics/moments.h"
#include "numerics/scaling.h"

namespace octet {
namespace {

constexpr int64_t span = 1024;  // elements held on the stack at a time

struct Rule {
  float scale, beta1, rest1, beta2, rest2, decay, rate, epsilon;
};

struct MomentSpan {
  float *m, *v;
};
OCTET_VECTORIZED void advance_moments(const Rule& rule, const float* gradient, MomentSpan to, int64_t n) {
  float *m = to.m, *v = to.v;
  for (int64_t i = 0; i < n; ++i) {
    const float g = rule.scale * gradient[i];
    m[i] = rule.beta1 * m[i] + rule.rest1 * g;
    v[i] = rule.beta2 * v[i] + rule.rest2 * (g * g);
  }
}
OCTET_VECTORIZED void update_weights(const Rule& rule, MomentSpan from, float* w, int64_t n) {
  const float *m = from.m, *v = from.v;
  for (int64_t i = 0; i < n; ++i) {
    w[i] = w[i] - (rule.decay * w[i] + rule.rate * (m[i] / (std::sqrt(v[i]) + rule.epsilon)));
  }
}
OCTET_VECTORIZED void decode_e4m3_values(const uint8_t* codes, float inverse, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = decode_moment(Format::E4M3, codes[i], inverse);
}
OCTET_VECTORIZED void decode_e5m2_values(const uint8_t* codes, float inverse, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = decode_moment(Format::E5M2, codes[i], inverse);
}
OCTET_VECTORIZED void encode_first_e4m3(const float* m, float scale, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment(Format::E4M3, Moment::First, m[i], scale);
}
OCTET_VECTORIZED void encode_first_e5m2(const float* m, float scale, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment(Format::E5M2, Moment::First, m[i], scale);
}
OCTET_VECTORIZED void encode_second_e4m3(const float* v, float scale, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment(Format::E4M3, Moment::Second, v[i], scale);
}
OCTET_VECTORIZED void encode_second_e5m2(const float* v, float scale, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment(Format::E5M2, Moment::Second, v[i], scale);
}

// One of the two moments: reads and stores spans of it.
class MomentStore {
 public:
  MomentStore(const MomentTensor& tensor, Moment order) : tensor_(tensor), second_(order == Moment::Second) {
    const DType type = tensor.values.dtype;
    coded_ = type == DType::E4M3 || type == DType::E5M2;
    format_ = type == DType::E4M3 ? Format::E4M3 : Format::E5M2;
  }
  bool coded() const { return coded_; }
  bool one_scale() const { return coded_ && tensor_.block == 0; }
  int64_t block() const { return tensor_.block; }
  Format format() const { return format_; }

  void read(int64_t begin, int64_t n, float* to) const {
    if (!coded_) {
      unpack(tensor_.values.dtype, at(tensor_.values, begin), to, n);
    } else {
      for_blocks(begin, n, [&](int64_t block, int64_t at, int64_t count) {
        const uint8_t* from = tensor_.values.as<uint8_t>() + at;
        const float inverse = tensor_.inverse.as<float>()[block];
        format_ == Format::E4M3 ? decode_e4m3_values(from, inverse, count, to + (at - begin))
                                : decode_e5m2_values(from, inverse, count, to + (at - begin));
      });
    }
  }

  // `shared`: the scale of the whole tensor, when it has one; its inverse is stored by set_inverse() at the
  // end.
  void write(int64_t begin, int64_t n, const float* from, float shared) const {
    if (!coded_) {
      Tensor to = tensor_.values;
      pack(to.dtype, from, at(to, begin), n);
    } else {
      for_blocks(begin, n, [&](int64_t block, int64_t at, int64_t count) {
        const float* values = from + (at - begin);
        float scale = shared;
        if (!one_scale()) {
          const MomentScale own = scale_of(std::bit_cast<float>(amax_bits(values, count)));
          scale = own.scale;
          set_inverse(block, own.inverse);
        }
        uint8_t* to = tensor_.values.as<uint8_t>() + at;
        if (second_) {
          format_ == Format::E4M3 ? encode_second_e4m3(values, scale, count, to)
                                  : encode_second_e5m2(values, scale, count, to);
        } else {
          format_ == Format::E4M3 ? encode_first_e4m3(values, scale, count, to)
                                  : encode_first_e5m2(values, scale, count, to);
        }
      });
    }
  }
  MomentScale scale_of(float amax) const { return moment_scale(format_, amax); }
  void set_inverse(int64_t block, float inverse) const { tensor_.inverse.as<float>()[block] = inverse; }

 private:
  template <class Body>
  void for_blocks(int64_t begin, int64_t n, const Body& body) const {
    const int64_t size = one_scale() ? tensor_.values.elements() : tensor_.block;
    for (int64_t at = begin; at < begin + n;) {
      const int64_t block = at / size, end = std::min((block + 1) * size, begin + n);
      body(block, at, end - at);
      at = end;
    }
  }

  const MomentTensor& tensor_;
  bool second_ = false, coded_ = false;
  Format format_ = Format::E5M2;
};

struct Work {
  const AdamWUpdate& op;
  const Rule& rule;
  const MomentStore &first, &second;

  // m and v of this step, for the `n` elements from `begin` on.
  void moments(int64_t begin, int64_t n, MomentSpan to) const {
    float gradient[span];
    unpack(op.gradient.dtype, at(op.gradient, begin), gradient, n);
    first.read(begin, n, to.m);
    second.read(begin, n, to.v);
    advance_moments(rule, gradient, to, n);
  }
};

// Elements a task takes: whole blocks of both moments.
int64_t span_of(const MomentStore& first, const MomentStore& second) {
  int64_t step = 1;
  for (const MomentStore* moment : {&first, &second}) {
    if (!moment->coded() || moment->one_scale()) continue;
    step = std::lcm(step, moment->block());
    if (moment->block() < 0 || step > span) {
      throw Error(ExitCode::Internal,
                  fmt::format("adamw: moment blocks of {} and {} elements; at most {} together",
                              first.block(), second.block(), span));
    }
  }
  return span / step * step;
}

}  // namespace

void CpuDevice::adamw(const AdamWUpdate& op) {
  check(op);
  if (op.control->apply == 0) {
    if (!op.amax.empty()) measure_amax({op.master, op.amax});
    return;
  }
  const AdamWRates rates = adamw_rates(op);
  const Rule rule{.scale = op.control->scale,
                  .beta1 = op.beta1,
                  .rest1 = 1.0f - op.beta1,
                  .beta2 = op.beta2,
                  .rest2 = 1.0f - op.beta2,
                  .decay = rates.decay,
                  .rate = rates.rate,
                  .epsilon = op.epsilon};
  const MomentStore first(op.first, Moment::First), second(op.second, Moment::Second);
  const Work work{op, rule, first, second};
  const int64_t n = op.master.elements(), step = span_of(first, second), tasks = (n + step - 1) / step;

  // One scale for the tensor is known only after all of it: the moments are computed twice.
  uint32_t first_bits = 0, second_bits = 0;
  if (first.one_scale() || second.one_scale()) {
#pragma omp parallel for num_threads(threads_) schedule(static) reduction(max : first_bits, second_bits)
    for (int64_t task = 0; task < tasks; ++task) {
      const int64_t begin = task * step, count = std::min(step, n - begin);
      float m[span], v[span];
      work.moments(begin, count, {m, v});
      first_bits = std::max(first_bits, amax_bits(m, count));
      second_bits = std::max(second_bits, amax_bits(v, count));
    }
  }
  const MomentScale first_scale = first.scale_of(std::bit_cast<float>(first_bits)),
                    second_scale = second.scale_of(std::bit_cast<float>(second_bits));
  uint32_t largest = 0;
#pragma omp parallel for num_threads(threads_) schedule(static) if (tasks > 1) reduction(max : largest)
  for (int64_t task = 0; task < tasks; ++task) {
    const int64_t begin = task * step, count = std::min(step, n - begin);
    float m[span], v[span];
    work.moments(begin, count, {m, v});
    update_weights(rule, {m, v}, op.master.as<float>() + begin, count);
    if (!op.amax.empty()) largest = std::max(largest, amax_bits(op.master.as<float>() + begin, count));
    first.write(begin, count, m, first_scale.scale);
    second.write(begin, count, v, second_scale.scale);
  }
  if (first.one_scale()) first.set_inverse(0, first_scale.inverse);
  if (second.one_scale()) second.set_inverse(0, second_scale.inverse);
  if (op.amax.empty()) return;
  // Rounding keeps the order, so that the largest magnitude may be rounded instead of each.
  float& amax = *op.amax.as<float>();
  amax = max_magnitude(amax, round_to_bfloat16(std::bit_cast<float>(largest)));
}

}  // namespace octet
