#include <algorithm>
#include <limits>

#include "attention_problem.h"
#include "base/error.h"
#include "catch.h"

using namespace octet;
using namespace octet::attention_problem;

namespace {

const Model models[] = {
    {1, 1, 1, 1, 2},     // nothing but itself
    {2, 7, 2, 1, 8},     // shorter than a block, grouped
    {3, 33, 4, 2, 16},   // one past a query block, several windows
    {1, 300, 2, 2, 40},  // beyond a key block; a width that is no multiple of 32
    {2, 64, 6, 2, 64},
};

}  // namespace

TEST_CASE("attention agrees with softmax(Q K^T) V in double") {
  for (const Model& m : models)
    for (const DType storage : {DType::F32, DType::BF16}) {
      Problem p(m, storage, 2);
      p.forward();
      const Reference expected = reference(m, values_of(p.qkv));
      const double tolerance = 2 * relative_error_of_probabilities(m);
      double worst = 0, worst_log = 0;
      for (size_t i = 0; i < expected.out.size(); ++i) {
        const double value = expected.out[i];
        const double rounding = (storage == DType::BF16 ? 0x1p-8 : 0x1p-24) * (std::abs(value) + tolerance);
        worst =
            std::max(worst, std::abs(p.out.get(static_cast<int64_t>(i)) - value) / (tolerance + rounding));
      }
      for (size_t i = 0; i < expected.log_sum_exp.size(); ++i)
        worst_log = std::max(worst_log,
                             std::abs(p.log_sum_exp.get(static_cast<int64_t>(i)) - expected.log_sum_exp[i]));
      INFO("context " << m.context << " width " << m.width << " " << name_of(storage));
      CHECK(worst <= 1);
      // A relative error of the sum is an absolute error of its logarithm; the result is below 16.
      CHECK(worst_log <= relative_error_of_probabilities(m) + 16 * 0x1p-24);
    }
}

TEST_CASE("the tolerance of the attention test detects a wrong group and a missing mask") {
  const Model m{1, 40, 4, 2, 16};
  Problem p(m, DType::F32, 1);
  p.forward();
  const double tolerance = 4 * relative_error_of_probabilities(m);
  const auto differs = [&](const Values& qkv, int64_t rows) {
    const Reference wrong = reference(m, qkv);
    double worst = 0;
    for (int64_t i = 0; i < rows * m.out_columns(); ++i)
      worst = std::max(worst, std::abs(p.out.get(i) - wrong.out[static_cast<size_t>(i)]));
    return worst > tolerance;
  };
  Values qkv = values_of(p.qkv);
  CHECK_FALSE(differs(qkv, m.context));
  for (int64_t t = 0; t < m.context; ++t)  // the two key heads exchanged
    std::swap_ranges(qkv.begin() + t * m.columns() + m.heads * m.width,
                     qkv.begin() + t * m.columns() + (m.heads + 1) * m.width,
                     qkv.begin() + t * m.columns() + (m.heads + 1) * m.width);
  CHECK(differs(qkv, m.context));
}

TEST_CASE("a change of one token changes nothing before it, and something at and after it") {
  const Model m{2, 70, 2, 1, 16};
  for (const int64_t changed : {0, 31, 32, 40, 69}) {
    Problem p(m, DType::BF16, 2), q(m, DType::BF16, 2);
    for (int64_t c = 0; c < m.columns(); ++c)
      q.qkv.set(changed * m.columns() + c, -q.qkv.get(changed * m.columns() + c));
    p.forward();
    q.forward();
    const auto same = [&](int64_t token) {
      for (int64_t c = 0; c < m.out_columns(); ++c)
        if (p.out.get(token * m.out_columns() + c) != q.out.get(token * m.out_columns() + c)) return false;
      return true;
    };
    for (int64_t t = 0; t < m.tokens(); ++t) {
      INFO("token " << t << " after a change of token " << changed);
      // The second window starts at 70: it never sees the first.
      CHECK(same(t) == (t < changed || t >= m.context));
    }
  }
}

TEST_CASE("attention's gradient agrees with finite differences of the reference") {
  const Model small[] = {{1, 1, 1, 1, 2}, {2, 5, 4, 2, 4}, {1, 34, 2, 1, 6}};
  for (const Model& m : small) {
    Problem p(m, DType::F32, 2);
    p.forward();
    p.backward();
    const Values gradient = values_of(p.out_gradient);
    const Values qkv = values_of(p.qkv);
    const auto loss = [&](size_t at, double step) {
      Values moved = qkv;
      moved[at] += step;
      const Reference r = reference(m, moved);
      double sum = 0;
      for (size_t i = 0; i < r.out.size(); ++i) sum += r.out[i] * gradient[i];
      return sum;
    };
    // Central differences with step h: truncation h^2 / 6 times the third derivative (below 2^10 here, from
    // values of at most 2 in a softmax of scale <= 1), cancellation 2^-52 |loss| / h. FP32 arithmetic: a
    // gradient element sums at most heads * context terms of at most 4 * 4, each with the relative error of
    // its probability.
    const double h = 1e-4;
    const double terms = static_cast<double>(m.heads * m.context);
    const double tolerance = h * h / 6 * 1024 + 16 * terms * relative_error_of_probabilities(m) + 1e-9;
    double worst = 0, largest = 0;
    const size_t stride = qkv.size() > 300 ? 7 : 1;
    for (size_t i = 0; i < qkv.size(); i += stride) {
      const double expected = (loss(i, h) - loss(i, -h)) / (2 * h);
      largest = std::max(largest, std::abs(expected));
      worst = std::max(worst, std::abs(p.qkv_gradient.get(static_cast<int64_t>(i)) - expected));
    }
    INFO("context " << m.context);
    CHECK(worst <= tolerance);
    CHECK(largest > 10 * tolerance);  // negative control: gradients of zero would not pass
  }
}

TEST_CASE("attention's gradient agrees with its formula in double beyond a key block, in BF16 too") {
  for (const Model& m : {Model{1, 300, 2, 1, 40}, Model{2, 33, 4, 2, 16}})
    for (const DType storage : {DType::F32, DType::BF16}) {
      Problem p(m, storage, 2);
      p.forward();
      p.backward();
      // From the stored out and log_sum_exp, like the operation: P = exp(s - lse), dS = P (dP - delta) scale.
      const Values qkv = values_of(p.qkv), out = values_of(p.out), dout = values_of(p.out_gradient);
      Values expected(qkv.size()), magnitude(qkv.size());
      const auto add = [&](int64_t at, double x) {
        expected[static_cast<size_t>(at)] += x;
        magnitude[static_cast<size_t>(at)] += std::abs(x);
      };
      const double scale = m.scale();
      double gradient_bound = 0;
      for (int64_t w = 0; w < m.windows; ++w)
        for (int64_t head = 0; head < m.heads; ++head) {
          const int64_t kv = head / (m.heads / m.kv_heads);
          for (int64_t q = 0; q < m.context; ++q) {
            const int64_t query = (w * m.context + q) * m.columns() + head * m.width;
            const int64_t row = (w * m.context + q) * m.out_columns() + head * m.width;
            double delta = 0;
            for (int d = 0; d < m.width; ++d)
              delta += out[static_cast<size_t>(row + d)] * dout[static_cast<size_t>(row + d)];
            for (int64_t k = 0; k <= q; ++k) {
              const int64_t key = (w * m.context + k) * m.columns() + (m.heads + kv) * m.width;
              const int64_t value = key + m.kv_heads * m.width;
              double dot = 0, dp = 0, dp_magnitude = 0;
              for (int d = 0; d < m.width; ++d) {
                dot += qkv[static_cast<size_t>(query + d)] * qkv[static_cast<size_t>(key + d)];
                const double term = dout[static_cast<size_t>(row + d)] * qkv[static_cast<size_t>(value + d)];
                dp += term;
                dp_magnitude += std::abs(term);
              }
              const double probability =
                  std::exp(scale * dot - p.log_sum_exp.get((w * m.heads + head) * m.context + q));
              const double ds = probability * (dp - delta) * scale;
              gradient_bound = std::max(gradient_bound, dp_magnitude + std::abs(delta) + 4);
              for (int d = 0; d < m.width; ++d) {
                add(value + d, probability * dout[static_cast<size_t>(row + d)]);
                add(query + d, ds * qkv[static_cast<size_t>(key + d)]);
                add(key + d, ds * qkv[static_cast<size_t>(query + d)]);
              }
            }
          }
        }
      // Each term carries the relative error of its probability and (width + 4) roundings of dP - delta,
      // which may cancel: bounded through the largest sum |dP| + |delta| times sum of P <= heads * context.
      const double relative = relative_error_of_probabilities(m);
      const double absolute = (static_cast<double>(m.width) + 4) * 0x1p-24 * gradient_bound * 2 * scale *
                              static_cast<double>(m.heads) * static_cast<double>(m.context);
      double worst = 0;
      for (size_t i = 0; i < expected.size(); ++i) {
        const double bound = relative * magnitude[i] + absolute;
        const double rounding = (storage == DType::BF16 ? 0x1p-8 : 0x1p-24) * (std::abs(expected[i]) + bound);
        const double error = std::abs(p.qkv_gradient.get(static_cast<int64_t>(i)) - expected[i]);
        worst = error <= 1e300 ? std::max(worst, error / (bound + rounding)) : 1e9;
      }
      INFO("context " << m.context << " " << name_of(storage));
      CHECK(worst <= 1);
    }
}

TEST_CASE("attention on BF16 is attention on the same values in FP32, rounded once") {
  // On machines with BF16 instructions the first products take another kernel; it must not show.
  const Model m{1, 70, 2, 1, 24};
  Problem half(m, DType::BF16, 1), full(m, DType::F32, 1);
  for (int64_t i = 0; i < half.qkv.tensor.elements(); ++i) full.qkv.set(i, half.qkv.get(i));
  for (int64_t i = 0; i < half.out.tensor.elements(); ++i) full.out_gradient.set(i, half.out_gradient.get(i));
  half.forward();
  full.forward();
  CHECK(half.log_sum_exp.bytes() == full.log_sum_exp.bytes());
  int64_t rounded = 0;
  for (int64_t i = 0; i < half.out.tensor.elements(); ++i) {
    REQUIRE(half.out.get(i) == round_to_bfloat16(full.out.get(i)));
    rounded += half.out.get(i) != full.out.get(i);
  }
  CHECK(rounded > 0);
  for (int64_t i = 0; i < half.out.tensor.elements(); ++i) full.out.set(i, half.out.get(i));
  half.backward();
  full.backward();
  for (int64_t i = 0; i < half.qkv.tensor.elements(); ++i)
    REQUIRE(half.qkv_gradient.get(i) == round_to_bfloat16(full.qkv_gradient.get(i)));
}

TEST_CASE("attention's bits do not depend on the number of threads") {
  const Model m{2, 70, 4, 2, 24};
  Problem one(m, DType::BF16, 1);
  one.forward();
  one.backward();
  for (const int threads : {2, 4}) {
    Problem p(m, DType::BF16, threads);
    p.forward();
    p.backward();
    CHECK(p.out.bytes() == one.out.bytes());
    CHECK(p.log_sum_exp.bytes() == one.log_sum_exp.bytes());
    CHECK(p.qkv_gradient.bytes() == one.qkv_gradient.bytes());
  }
  CHECK(one.out.bytes() != one.out_gradient.bytes());
}

TEST_CASE("scores far apart neither overflow nor lose the largest, and NaN is not hidden") {
  const Model m{1, 40, 1, 1, 2};
  Problem p(m, DType::F32, 1);
  for (int64_t t = 0; t < m.context; ++t) {
    for (int64_t c = 0; c < 4; ++c) p.qkv.set(t * 6 + c, c < 2 ? 1000.0f : static_cast<float>(t) * 10);
    for (int64_t c = 4; c < 6; ++c) p.qkv.set(t * 6 + c, static_cast<float>(t));
  }
  p.forward();
  // The score of the newest key is ahead by more than e^88: its value is the output, exactly.
  for (int64_t t = 0; t < m.context; ++t) CHECK(p.out.get(t * 2) == static_cast<float>(t));
  p.qkv.set(3 * 6, std::numeric_limits<float>::quiet_NaN());
  p.forward();
  CHECK(std::isnan(p.out.get(3 * 2)));
  CHECK_FALSE(std::isnan(p.out.get(2 * 2)));
}

TEST_CASE("attention counts the causal half of its products") {
  // 2 windows of 3 tokens: 6 (query, key) pairs each; 4 heads; 2 * 8 per pair and product.
  CHECK(attention_flops({3, 4, 2, 8}, 6, 2) == 2u * 6 * 4 * 16 * 2);
  CHECK(attention_flops({3, 4, 2, 8}, 6, 5) == 2u * 6 * 4 * 16 * 5);
}

TEST_CASE("attention refuses heads and windows that do not fit") {
  Problem p({1, 6, 2, 1, 4}, DType::F32, 1);
  p.m.heads = 3;
  CHECK_THROWS_AS(p.forward(), Error);
  p.m.heads = 2;
  p.m.context = 4;
  CHECK_THROWS_AS(p.forward(), Error);
}
