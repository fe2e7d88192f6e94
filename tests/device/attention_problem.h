// Attention problems of every shape, their inputs, and the result in double from the definition.
#pragma once
#include <algorithm>
#include <cmath>
#include <vector>

#include "device/cpu/attention.h"
#include "matrices.h"

namespace octet::attention_problem {

using matrices::Buffer;

struct Model {
  int64_t windows, context;
  int heads, kv_heads, width;
  int64_t tokens() const { return windows * context; }
  int64_t columns() const { return static_cast<int64_t>(heads + 2 * kv_heads) * width; }
  int64_t out_columns() const { return static_cast<int64_t>(heads) * width; }
  float scale() const { return 1.0f / std::sqrt(static_cast<float>(width)); }
};

using Values = std::vector<double>;

inline Values values_of(const Buffer& b) {
  Values v;
  for (int64_t i = 0; i < b.tensor.elements(); ++i) v.push_back(b.get(i));
  return v;
}

// What a clip makes of a probability.
inline double clipped(const SoftmaxClip& clip, double p) {
  const double low = static_cast<double>(clip.low), high = static_cast<double>(clip.high);
  return clip.clips() ? std::clamp((high - low) * p + low, 0.0, 1.0) : p;
}

// softmax(scale Q K^T + causal mask) V in double, straight from the definition.
struct Reference {
  Values out, log_sum_exp;
};
inline Reference reference(const Model& m, const Values& qkv, const SoftmaxClip& clip = {}) {
  Reference r{Values(static_cast<size_t>(m.tokens() * m.out_columns())),
              Values(static_cast<size_t>(m.windows * m.heads * m.context))};
  const auto head_row = [&](int64_t token, int64_t head) {
    return qkv.data() + token * m.columns() + head * m.width;
  };
  for (int64_t w = 0; w < m.windows; ++w)
    for (int64_t h = 0; h < m.heads; ++h) {
      const int64_t kv = h / (m.heads / m.kv_heads);
      for (int64_t q = 0; q < m.context; ++q) {
        const double* query = head_row(w * m.context + q, h);
        Values p;
        double maximum = -1e300, sum = 0;
        for (int64_t k = 0; k <= q; ++k) {
          const double* key = head_row(w * m.context + k, m.heads + kv);
          double dot = 0;
          for (int d = 0; d < m.width; ++d) dot += query[d] * key[d];
          p.push_back(static_cast<double>(m.scale()) * dot);
          maximum = std::max(maximum, p.back());
        }
        for (double& x : p) sum += x = std::exp(x - maximum);
        r.log_sum_exp[static_cast<size_t>((w * m.heads + h) * m.context + q)] = maximum + std::log(sum);
        double* out = r.out.data() + (w * m.context + q) * m.out_columns() + h * m.width;
        for (int64_t k = 0; k <= q; ++k) {
          const double* value = head_row(w * m.context + k, m.heads + m.kv_heads + kv);
          for (int d = 0; d < m.width; ++d)
            out[d] += clipped(clip, p[static_cast<size_t>(k)] / sum) * value[d];
        }
      }
    }
  return r;
}

struct Problem {
  Problem(const Model& model, DType storage, int threads)
      : m(model),
        engine(options(), threads),
        qkv(storage, {m.tokens(), m.columns()}),
        out(storage, {m.tokens(), m.out_columns()}),
        out_gradient(storage, out.tensor.shape),
        qkv_gradient(storage, qkv.tensor.shape),
        log_sum_exp(DType::F32, {m.windows, m.heads, m.context}) {
    qkv.fill_uniform(1, -2, 2);
    out_gradient.fill_uniform(2);
    qkv_gradient.fill_uniform(3);
  }
  void forward() {
    AttentionForward a{};
    a.qkv = qkv.tensor;
    a.log_sum_exp = log_sum_exp.tensor;
    a.context = static_cast<int>(m.context);
    a.heads = m.heads;
    a.kv_heads = m.kv_heads;
    a.head_width = m.width;
    a.softmax_scale = m.scale();
    a.out.high = out.tensor;
    a.clip = clip;
    attention_forward(a, engine);
  }
  void backward() {
    attention_backward({qkv.tensor, out.tensor, out_gradient.tensor, log_sum_exp.tensor, qkv_gradient.tensor,
                        static_cast<int>(m.context), m.heads, m.kv_heads, m.width, m.scale(), clip},
                       engine);
  }
  static DeviceOptions options() {
    DeviceOptions o;
    o.deterministic = true;
    return o;
  }

  Model m;
  SoftmaxClip clip = {};
  GemmEngine engine;
  Buffer qkv, out, out_gradient, qkv_gradient, log_sum_exp;
};

// FP32 inside: scores are sums of `width` products of at most 4, scaled by 1/sqrt(width), so their error is
// at most (width + 2) 2^-24 * 4 sqrt(width); a probability's relative error is twice that (numerator and
// sum), plus 2 ulp of exp and `context` additions. Values are at most 2.
inline double relative_error_of_probabilities(const Model& m) {
  const double width = m.width;
  return 2 * (width + 2) * 0x1p-24 * 4 * std::sqrt(width) +
         (2 * static_cast<double>(m.context) + 8) * 0x1p-24;
}

}  // namespace octet::attention_problem
