// Attention on codes (G6 of the FP8 literature: FOG, FP8DPA), against attention in double.
#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "catch.h"
#include "device/products.h"
#include "numerics/float8_attention.h"
#include "op_fixture.h"

using namespace octet;

namespace {

using Doubles = std::vector<double>;

struct Model {
  int64_t windows, context;
  int heads, kv_heads, width;
  int64_t tokens() const { return windows * context; }
  int64_t columns() const { return static_cast<int64_t>(heads + 2 * kv_heads) * width; }
  int64_t out_columns() const { return static_cast<int64_t>(heads) * width; }
  // The softmax scale of a QK norm whose gain is frozen at 2^(1/4): sqrt(2 / Dh).
  float scale() const { return std::sqrt(2.0f / static_cast<float>(width)); }
  int kv(int head) const { return head / (heads / kv_heads); }
};

// Normal numbers; queries and keys divided by the root mean square of their head, as behind a QK norm.
Values after_qk_norm(const Model& m, uint64_t key) {
  Values v = normal_values(m.tokens() * m.columns(), key);
  for (int64_t t = 0; t < m.tokens(); ++t)
    for (int h = 0; h < m.heads + m.kv_heads; ++h) {
      float* head = v.data() + t * m.columns() + h * m.width;
      double squares = 0;
      for (int d = 0; d < m.width; ++d)
        squares += static_cast<double>(head[d]) * static_cast<double>(head[d]);
      for (int d = 0; d < m.width; ++d) head[d] /= static_cast<float>(std::sqrt(squares / m.width));
    }
  for (float& x : v) x = round_to_bfloat16(x);
  return v;
}

// What a rounding does to a number: nothing, or codes of a format with a scale.
struct Rounded {
  Format format = Format::FP32;
  float scale = 1;
  double operator()(double x) const {
    if (!is_float8(format)) return x;
    return static_cast<double>(decode(format, encode(format, static_cast<float>(x) * scale))) /
           static_cast<double>(scale);
  }
};

// One head of the definition, forward and backward, in double. `dp` is dO V^T.
struct Head {
  Doubles p, dp;  // [context, context]
};
struct Reference {
  Doubles out, gradient;  // of qkv
};
// softmax(scale Q K^T) V and its gradient from the definition, with `probability` applied where P is
// multiplied.
Reference reference(const Model& m, const Doubles& qkv, const Doubles& out_gradient,
                    const Rounded& probability = {}) {
  const int64_t s = m.context, d = m.width;
  Reference r{Doubles(static_cast<size_t>(m.tokens() * m.out_columns())), Doubles(qkv.size())};
  for (int64_t w = 0; w < m.windows; ++w)
    for (int h = 0; h < m.heads; ++h) {
      const auto at = [&](int64_t token, int64_t head) {
        return static_cast<size_t>((w * s + token) * m.columns() + head * d);
      };
      const auto out_at = [&](int64_t token) {
        return static_cast<size_t>((w * s + token) * m.out_columns() + h * d);
      };
      const int64_t key = m.heads + m.kv(h), value = m.heads + m.kv_heads + m.kv(h);
      for (int64_t q = 0; q < s; ++q) {
        Doubles p(static_cast<size_t>(q + 1)), dp(p.size());
        double largest = -1e300, sum = 0, delta = 0;
        for (int64_t k = 0; k <= q; ++k) {
          double dot = 0;
          for (int64_t c = 0; c < d; ++c)
            dot += qkv[at(q, h) + static_cast<size_t>(c)] * qkv[at(k, key) + static_cast<size_t>(c)];
          p[static_cast<size_t>(k)] = dot * static_cast<double>(m.scale());
          largest = std::max(largest, p[static_cast<size_t>(k)]);
        }
        for (double& x : p) sum += x = std::exp(x - largest);
        for (double& x : p) x /= sum;
        for (int64_t k = 0; k <= q; ++k) {
          const double rounded = probability(p[static_cast<size_t>(k)]);
          for (int64_t c = 0; c < d; ++c)
            r.out[out_at(q) + static_cast<size_t>(c)] += rounded * qkv[at(k, value) + static_cast<size_t>(c)];
        }
        if (out_gradient.empty()) continue;
        for (int64_t c = 0; c < d; ++c)
          delta +=
              out_gradient[out_at(q) + static_cast<size_t>(c)] * r.out[out_at(q) + static_cast<size_t>(c)];
        for (int64_t k = 0; k <= q; ++k) {
          double dot = 0;
          for (int64_t c = 0; c < d; ++c)
            dot +=
                out_gradient[out_at(q) + static_cast<size_t>(c)] * qkv[at(k, value) + static_cast<size_t>(c)];
          const double ds = p[static_cast<size_t>(k)] * (dot - delta) * static_cast<double>(m.scale());
          for (int64_t c = 0; c < d; ++c) {
            const auto i = static_cast<size_t>(c);
            r.gradient[at(q, h) + i] += ds * qkv[at(k, key) + i];
            r.gradient[at(k, key) + i] += ds * qkv[at(q, h) + i];
            r.gradient[at(k, value) + i] += p[static_cast<size_t>(k)] * out_gradient[out_at(q) + i];
          }
        }
      }
    }
  return r;
}

double cosine(const Values& a, const Doubles& b) {
  double ab = 0, aa = 0, bb = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double x = static_cast<double>(a[i]);
    ab += x * b[i], aa += x * x, bb += b[i] * b[i];
  }
  return ab / std::sqrt(aa * bb);
}
Doubles widened(const Values& values) { return {values.begin(), values.end()}; }

// Attention on codes, as a model runs it.
struct Problem {
  explicit Problem(const Model& model, int threads = 2, ScaleRule rule = ScaleRule::PowerOfTwo)
      : m(model), f(threads) {
    qkv_values = after_qk_norm(m, 1);
    gradient_values = normal_values(m.tokens() * m.out_columns(), 2, 1e-4, DType::BF16);
    qkv = target(Format::E4M3, m.columns());
    out_gradient = target(Format::E5M2, m.out_columns());
    const auto beforehand = [&](Format format, int64_t columns) {
      CodesBeforehand made;
      made.cast = {format, Scaling::Delayed, rule, Rounding::Nearest};
      if (columns > 0) made.codes = f.zeros(dtype_of(format), {m.tokens(), columns});
      made.site = f.site();
      return made;
    };
    out = beforehand(Format::E4M3, m.out_columns());
    score_gradient = beforehand(Format::E5M2, 0);
    qkv_gradient = beforehand(Format::E5M2, m.columns());
    high = f.zeros(DType::BF16, {m.tokens(), m.out_columns()});
    gradient = f.zeros(DType::BF16, {m.tokens(), m.columns()});
    log_sum_exp = f.zeros(DType::F32, {m.windows, m.heads, m.context});
  }
  CastTarget target(Format format, int64_t columns) {
    CastTarget made;
    made.row = f.zeros(dtype_of(format), {m.tokens(), columns});
    made.cast.format = format;
    made.site = f.site();
    return made;
  }
  void forward() {
    f->cast({.source = f.floats(DType::BF16, {m.tokens(), m.columns()}, qkv_values),
             .column_factor = {},
             .out = qkv});
    f->attention_forward(forward_operation());
  }
  AttentionForward forward_operation() const {
    AttentionForward a{};
    a.qkv = qkv.row;
    a.log_sum_exp = log_sum_exp;
    a.context = static_cast<int>(m.context);
    a.heads = m.heads;
    a.kv_heads = m.kv_heads;
    a.head_width = m.width;
    a.softmax_scale = m.scale();
    a.out.high = high;
    a.qkv_inverse_scale = qkv.site.inverse_scale;
    a.out_codes = out;
    return a;
  }
  void backward() {
    f->cast({.source = f.floats(DType::BF16, {m.tokens(), m.out_columns()}, gradient_values),
             .column_factor = {},
             .out = out_gradient});
    f->attention_backward(backward_operation());
  }
  AttentionBackward backward_operation() const {
    AttentionBackward a{};
    a.qkv = qkv.row;
    a.out = out.codes;
    a.out_gradient = out_gradient.row;
    a.log_sum_exp = log_sum_exp;
    a.qkv_gradient = gradient;
    a.context = static_cast<int>(m.context);
    a.heads = m.heads;
    a.kv_heads = m.kv_heads;
    a.head_width = m.width;
    a.softmax_scale = m.scale();
    a.qkv_inverse_scale = qkv.site.inverse_scale;
    a.out_inverse_scale = out.site.inverse_scale;
    a.out_gradient_inverse_scale = out_gradient.site.inverse_scale;
    a.score_gradient = score_gradient;
    a.qkv_gradient_codes = qkv_gradient;
    return a;
  }
  // What the codes going in stand for.
  static Doubles decoded(const Tensor& codes, const Site& site) {
    Doubles values;
    const Format format = codes.dtype == DType::E4M3 ? Format::E4M3 : Format::E5M2;
    for (const uint8_t code : read_bytes(codes))
      values.push_back(static_cast<double>(decode(format, code)) * static_cast<double>(*site.inverse_scale));
    return values;
  }
  // As after a step: the scales that the amaxes give.
  void keep_history() {
    for (const CodesBeforehand* made : {&out, &score_gradient, &qkv_gradient}) {
      *made->site.scale = scale_for(made->cast.rule, *made->site.amax, max_of(made->cast.format));
      *made->site.counters = {};
    }
  }

  Model m;
  OpFixture f;
  Values qkv_values, gradient_values;
  CastTarget qkv, out_gradient;
  CodesBeforehand out, score_gradient, qkv_gradient;
  Tensor high, gradient, log_sum_exp;
};

constexpr Model small{2, 70, 4, 2, 32};

void check_accuracy(const Model& m) {
  Problem p(m);
  const Reference exact = reference(m, widened(p.qkv_values), widened(p.gradient_values));
  p.forward();
  p.backward();
  p.keep_history();
  for (const char* scales : {"started", "delayed"}) {
    INFO(scales << ", context " << m.context);
    p.forward();
    p.backward();
    const Values out = read_floats(p.high), gradient = read_floats(p.gradient);
    const double error = relative_error(out, exact.out), backward = relative_error(gradient, exact.gradient);
    CAPTURE(error, backward, cosine(gradient, exact.gradient));
    CHECK(error <= 0.08);
    CHECK(backward <= 0.15);
    CHECK(cosine(gradient, exact.gradient) >= 0.99);
    CHECK(error > 0.005);  // it was not BF16
  }
}

}  // namespace

TEST_CASE("FP8 attention is within 0.08 of exact attention, its gradient within 0.15 (slow)") {
  check_accuracy({1, 256, 2, 1, 128});
}
TEST_CASE("FP8 attention over 2048 tokens is within 0.08, its gradient within 0.15", "[.long]") {
  check_accuracy({1, 2048, 1, 1, 128});
}

TEST_CASE(
    "what FP8 attention adds to the rounding of its inputs is what its formats lose, element by element") {
  // Against exact attention on the same codes: a probability moves by half an ulp of E4M3 or half its
  // smallest step, 2^-10 / 256, its value by that times |v|; the result by half an ulp or half a smallest
  // step of its own. FP32 loses less than 2^-14 of sum P |v|: a score is within 36 x 2^-24 x 8 (sums of 32
  // products, |q| |k| <= 32, scale 1/4), which counts twice, and there are sums of 70 terms.
  Problem p(small);
  p.forward();
  p.keep_history();
  p.forward();
  const Doubles qkv = Problem::decoded(p.qkv.row, p.qkv.site);
  const Reference exact = reference(small, qkv, {});
  Doubles magnitudes = qkv;
  for (int64_t t = 0; t < small.tokens(); ++t)  // of values only: P stays what it is
    for (int64_t c = (small.heads + small.kv_heads) * small.width; c < small.columns(); ++c) {
      double& v = magnitudes[static_cast<size_t>(t * small.columns() + c)];
      v = std::abs(v);
    }
  const Reference sums = reference(small, magnitudes, {});
  const double largest = static_cast<double>(e4m3_max) * static_cast<double>(*p.qkv.site.inverse_scale),
               step = 0x1p-10 / static_cast<double>(*p.out.site.scale);
  const Values out = read_floats(p.high);
  double worst = 0;
  for (size_t i = 0; i < out.size(); ++i) {
    const auto keys = static_cast<double>(static_cast<int64_t>(i) / small.out_columns() % small.context + 1);
    const double inside = (0x1p-4 + 0x1p-14) * sums.out[i] + keys * 0x1p-18 * largest,
                 bound = inside + 0x1p-4 * (std::abs(exact.out[i]) + inside) + step;
    worst = std::max(worst, std::abs(static_cast<double>(out[i]) - exact.out[i]) / bound);
  }
  CHECK(worst <= 1);
  CHECK(worst > 0.05);  // the bound is of the size of what it bounds
}

TEST_CASE("probabilities without their scale, and E5M2 throughout, are measurably worse") {
  const Model m{1, 512, 1, 1, 64};
  const Values values = after_qk_norm(m, 1);
  const Doubles exact = reference(m, widened(values), {}).out;
  const auto codes = [&](Format format) {
    Doubles rounded = widened(values);
    const Rounded input{format, power_of_two_scale(4, max_of(format))};
    for (double& x : rounded) x = input(x);
    return rounded;
  };
  const Doubles e4m3 = codes(Format::E4M3);
  const auto last_quarter = [](const Doubles& all) {
    return Doubles(all.begin() + static_cast<std::ptrdiff_t>(all.size() / 4 * 3), all.end());
  };
  // What rounding the probabilities alone does to the last tokens, whose average probability, 1/448, lies at
  // the smallest subnormal number of E4M3.
  const auto by_probabilities = [&](float scale) {
    return relative_error(last_quarter(reference(m, e4m3, {}, {Format::E4M3, scale}).out),
                          last_quarter(reference(m, e4m3, {}).out));
  };
  CHECK(by_probabilities(probability_scale) < 0x1p-4);
  CHECK(by_probabilities(1) > 3 * by_probabilities(probability_scale));

  const auto all_in = [&](Format format) {
    return relative_error(reference(m, codes(format), {}, {format, probability_scale}).out, exact);
  };
  CHECK(all_in(Format::E5M2) > 1.5 * all_in(Format::E4M3));

  // And E4M3 is what the device does, whose rounding of the result comes on top.
  Problem p(m);
  p.forward();
  const double device = relative_error(read_floats(p.high), exact);
  CHECK(device < all_in(Format::E4M3) + 0x1p-4);
  CHECK(device < all_in(Format::E5M2));
}

TEST_CASE("with scales that stand, a change of one token changes nothing before it in FP8") {
  Problem p(small);
  p.forward();
  p.keep_history();
  p.qkv.cast.scaling = Scaling::Delayed;
  *p.qkv.site.scale = 1.0f / *p.qkv.site.inverse_scale;
  p.forward();
  const Values before = read_floats(p.high);
  for (const int64_t changed : {0, 31, 32, 69}) {
    Problem q(small);
    q.qkv.cast.scaling = Scaling::Delayed;
    *q.qkv.site.scale = *p.qkv.site.scale;
    *q.out.site.scale = *p.out.site.scale;
    for (int64_t c = 0; c < small.columns(); ++c)
      q.qkv_values[static_cast<size_t>(changed * small.columns() + c)] *= -1;
    q.forward();
    const Values after = read_floats(q.high);
    for (int64_t t = 0; t < small.tokens(); ++t) {
      const auto row = [&](const Values& v) { return v.begin() + t * small.out_columns(); };
      INFO("token " << t << " after a change of token " << changed);
      CHECK(std::equal(row(before), row(before) + small.out_columns(), row(after)) ==
            (t < changed || t >= small.context));
    }
  }
}

TEST_CASE("FP8 attention has the same bits for any number of threads, and decodes what it encoded") {
  Problem one(small, 1);
  one.forward();
  one.backward();
  for (const int threads : {2, 4}) {
    Problem p(small, threads);
    p.forward();
    p.backward();
    CHECK(read_bytes(p.high) == read_bytes(one.high));
    CHECK(read_bytes(p.out.codes) == read_bytes(one.out.codes));
    CHECK(read_bytes(p.gradient) == read_bytes(one.gradient));
    for (const auto made : {&Problem::out, &Problem::score_gradient, &Problem::qkv_gradient}) {
      CHECK(*(p.*made).site.amax == *(one.*made).site.amax);
      CHECK((p.*made).site.counters->elements == (one.*made).site.counters->elements);
      CHECK((p.*made).site.counters->flushed == (one.*made).site.counters->flushed);
    }
  }
  const Doubles decoded = Problem::decoded(one.out.codes, one.out.site);
  const Values high = read_floats(one.high);
  CHECK(std::equal(high.begin(), high.end(), decoded.begin(),
                   [](float a, double b) { return static_cast<double>(a) == b; }));
}

TEST_CASE("a site without history starts from what the codes going in allow, and nothing saturates") {
  for (const ScaleRule rule : {ScaleRule::PowerOfTwo, ScaleRule::Exact}) {
    Problem p(small, 2, rule);
    p.forward();
    p.backward();
    const float largest = e4m3_max * *p.qkv.site.inverse_scale,
                gradient = e5m2_max * *p.out_gradient.site.inverse_scale;
    const GradientStart start = gradient_start(70, 2, 32, small.scale());
    CHECK(1.0f / *p.out.site.inverse_scale == scale_for(rule, output_start(largest), e4m3_max));
    CHECK(1.0f / *p.score_gradient.site.inverse_scale ==
          Approx(scale_for(rule, score_gradient_start(start, largest, gradient), e5m2_max)).epsilon(1e-6));
    CHECK(1.0f / *p.qkv_gradient.site.inverse_scale ==
          Approx(scale_for(rule, qkv_gradient_start(start, largest, gradient), e5m2_max)).epsilon(1e-6));
    for (const CodesBeforehand* made : {&p.out, &p.score_gradient, &p.qkv_gradient}) {
      CHECK(*made->site.amax > 0);
      CHECK(*made->site.scale == 0);  // the step's end decides
      CHECK(made->site.counters->saturated == 0);
      CHECK(made->site.counters->elements > 0);
    }
    // Every visible pair of each head is counted.
    CHECK(p.score_gradient.site.counters->elements == 2 * 4 * 70 * 71 / 2);
    CHECK(p.qkv_gradient.site.counters->elements == static_cast<uint64_t>(small.tokens() * small.columns()));
  }
}

TEST_CASE("a scale that is too large saturates and is counted, what it hides cannot become finite") {
  Problem p(small);
  p.forward();
  *p.out.site.scale = 2 * e4m3_max / *p.out.site.amax;
  p.forward();
  CHECK(p.out.site.counters->saturated > 0);
  CHECK(*p.out.site.inverse_scale == Approx(1 / *p.out.site.scale));

  // A value that is not finite: the cast's inverse scale is NaN, and with it everything.
  p.qkv_values[5] = std::numeric_limits<float>::infinity();
  p.forward();
  p.backward();
  CHECK(std::isnan(read_floats(p.high)[0]));
  CHECK(std::isnan(read_floats(p.gradient)[0]));
  CHECK(std::isnan(*p.out.site.inverse_scale));

  // dS overflows, and would saturate: gradients of 1e26 times values of 1e20.
  Problem q(small);
  for (size_t i = 0; i < q.qkv_values.size(); ++i)
    if (static_cast<int64_t>(i) % small.columns() >= (small.heads + small.kv_heads) * small.width)
      q.qkv_values[i] *= 1e20f;
  for (float& x : q.gradient_values) x *= 1e30f;
  q.forward();
  q.backward();
  CHECK(std::isnan(read_floats(q.gradient)[0]));
}

TEST_CASE("products inside FP8 attention are counted by their operands") {
  Problem p(small);
  p.forward();
  p.backward();
  MatmulCounts counts = p.f->matmul_counts();
  const uint64_t one = attention_flops(shape_of(p.forward_operation()), small.tokens(), 1);
  CHECK(counts.size() == 3);
  CHECK(counts[{GemmClass::Attention, DType::E4M3, DType::E4M3, DType::E4M3}].flops == 2 * one);
  CHECK(counts[{GemmClass::Attention, DType::E4M3, DType::E4M3, DType::E5M2}].flops == one);
  CHECK(counts[{GemmClass::Attention, DType::E5M2, DType::E4M3, DType::E5M2}].flops == 4 * one);
}

TEST_CASE("codes without their scale, or of another format, are refused") {
  Problem p(small);
  p.forward();
  AttentionForward forward = p.forward_operation();
  forward.qkv_inverse_scale = nullptr;
  CHECK_THROWS_AS(p.f->attention_forward(forward), Error);
  forward = p.forward_operation();
  forward.out_codes.cast.format = Format::E5M2;
  CHECK_THROWS_AS(p.f->attention_forward(forward), Error);
  AttentionBackward backward = p.backward_operation();
  backward.out_gradient.dtype = DType::E4M3;
  CHECK_THROWS_AS(p.f->attention_backward(backward), Error);
  backward = p.backward_operation();
  backward.qkv = p.gradient;  // storage beside codes
  CHECK_THROWS_AS(p.f->attention_backward(backward), Error);
}
