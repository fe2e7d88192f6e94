// Clipped softmax: P' = clip((high - low) P + low, 0, 1) of the visible positions.  [2306.12929, eq. 4]
#include "attention_problem.h"
#include "device/products.h"
#include "error_of.h"

using namespace octet;
using namespace octet::attention_problem;

namespace {

constexpr double u = 0x1p-24;
constexpr SoftmaxClip published{-0.03f, 1.3f};
const double low = static_cast<double>(published.low),
             span = static_cast<double>(published.high - published.low);

// Clipped, probabilities come from log_sum_exp, below 16 and so within 8 u, and a difference from it that is
// within 16 u where it matters.
double relative_error(const Model& m) { return relative_error_of_probabilities(m) + 24 * u; }

const Model models[] = {
    {1, 1, 1, 1, 2}, {2, 7, 2, 1, 8}, {3, 33, 4, 2, 16}, {1, 300, 2, 2, 40}, {2, 64, 6, 2, 64},
};

Problem& clip(Problem& p, const SoftmaxClip& by = published) {
  p.clip = by;
  return p;
}

// One head of one query: what the definition makes of its keys.
struct Row {
  Values p, dp, dp_magnitude;
  double stretched(size_t k) const { return span * p[k] + low; }
  bool open(size_t k) const { return stretched(k) > 0 && stretched(k) < 1; }
  // How near it comes to where the gradient jumps.
  double distance(size_t k) const { return std::min(std::abs(stretched(k)), std::abs(stretched(k) - 1)); }
};
struct Place {
  int64_t window, head, query;
};
// From the stored log_sum_exp, as backward.
Row row_of(const Problem& problem, const Values& qkv, const Values& dout, const Place& at) {
  const Model& m = problem.m;
  const int64_t kv = at.head / (m.heads / m.kv_heads), token = at.window * m.context + at.query;
  const double lse =
      static_cast<double>(problem.log_sum_exp.get((at.window * m.heads + at.head) * m.context + at.query));
  const double* query = qkv.data() + token * m.columns() + at.head * m.width;
  const double* gradient = dout.data() + token * m.out_columns() + at.head * m.width;
  Row row;
  for (int64_t k = 0; k <= at.query; ++k) {
    const double* key = qkv.data() + (at.window * m.context + k) * m.columns() + (m.heads + kv) * m.width;
    const double* value = key + m.kv_heads * m.width;
    double dot = 0, dp = 0, magnitude = 0;
    for (int d = 0; d < m.width; ++d) {
      dot += query[d] * key[d];
      dp += gradient[d] * value[d];
      magnitude += std::abs(gradient[d] * value[d]);
    }
    row.p.push_back(std::exp(static_cast<double>(m.scale()) * dot - lse));
    row.dp.push_back(dp);
    row.dp_magnitude.push_back(magnitude);
  }
  return row;
}

template <class Visit>
void for_rows(const Model& m, const Visit& visit) {
  for (int64_t w = 0; w < m.windows; ++w)
    for (int64_t h = 0; h < m.heads; ++h)
      for (int64_t q = 0; q < m.context; ++q) visit(Place{w, h, q});
}

// The formula's gradient and how far FP32 may lie from it.
struct Expected {
  Values gradient, bound;
};
Expected formula(const Problem& problem) {
  const Model& m = problem.m;
  const Values qkv = values_of(problem.qkv), dout = values_of(problem.out_gradient);
  Expected e{Values(qkv.size()), Values(qkv.size())};
  const double scale = static_cast<double>(m.scale()), relative = relative_error(m),
               sums = static_cast<double>(m.heads * m.context + 4) * u,
               product = (static_cast<double>(m.width) + 4) * u;
  const auto add = [&](int64_t at, double x, double error) {
    e.gradient[static_cast<size_t>(at)] += x;
    e.bound[static_cast<size_t>(at)] += error + sums * std::abs(x);
  };
  for_rows(m, [&](const Place& at) {
    const Row row = row_of(problem, qkv, dout, at);
    const int64_t token = at.window * m.context + at.query, kv = at.head / (m.heads / m.kv_heads);
    double delta = 0, delta_error = 0;
    Values g(row.p.size()), g_error(row.p.size());
    for (size_t k = 0; k < row.p.size(); ++k) {
      g[k] = row.open(k) ? span * row.dp[k] : 0;
      g_error[k] = span * row.dp_magnitude[k] * product;
      // Where FP32 may see the other side of a kink.
      if (row.distance(k) <= span * row.p[k] * relative + 4 * u) g_error[k] += span * std::abs(row.dp[k]);
      delta += row.p[k] * g[k];
      delta_error += row.p[k] * (g_error[k] + (relative + sums) * std::abs(g[k]));
    }
    for (size_t k = 0; k < row.p.size(); ++k) {
      const double ds = row.p[k] * (g[k] - delta) * scale;
      const double ds_error =
          row.p[k] * scale * (g_error[k] + delta_error) +
          std::abs(row.p[k] * scale) * (std::abs(g[k]) + std::abs(delta)) * (relative + 4 * u);
      const double p = clipped(published, row.p[k]), p_error = span * row.p[k] * relative + 4 * u;
      const int64_t query = token * m.columns() + at.head * m.width;
      const int64_t key =
          (at.window * m.context + static_cast<int64_t>(k)) * m.columns() + (m.heads + kv) * m.width;
      for (int d = 0; d < m.width; ++d) {
        const double q_value = qkv[static_cast<size_t>(query + d)],
                     k_value = qkv[static_cast<size_t>(key + d)],
                     o_value = dout[static_cast<size_t>(token * m.out_columns() + at.head * m.width + d)];
        add(query + d, ds * k_value, ds_error * std::abs(k_value));
        add(key + d, ds * q_value, ds_error * std::abs(q_value));
        add(key + m.kv_heads * m.width + d, p * o_value, p_error * std::abs(o_value));
      }
    }
  });
  return e;
}

}  // namespace

TEST_CASE("clipped attention agrees with clip((high - low) softmax(Q K^T) + low) V in double") {
  for (const Model& m : models)
    for (const DType storage : {DType::F32, DType::BF16}) {
      Problem p(m, storage, 2);
      clip(p).forward();
      const Values qkv = values_of(p.qkv);
      const Reference expected = reference(m, qkv, published), unclipped = reference(m, qkv);
      // Values are at most 2, clipped probabilities sum to at most `span`.
      const double tolerance = 2 * (span * relative_error(m) + static_cast<double>(m.context + 4) * 2 * u);
      double worst = 0, control = 0;
      for (size_t i = 0; i < expected.out.size(); ++i) {
        const double found = static_cast<double>(p.out.get(static_cast<int64_t>(i)));
        const double rounding = storage == DType::BF16 ? 0x1p-8 : u;
        const auto error = [&](double value) {
          return std::abs(found - value) / (tolerance + rounding * (std::abs(value) + tolerance));
        };
        worst = std::max(worst, error(expected.out[i]));
        control = std::max(control, error(unclipped.out[i]));
      }
      INFO("context " << m.context << " width " << m.width << " " << name_of(storage));
      CHECK(worst <= 1);
      if (m.context > 1) CHECK(control > 1);  // the only probability of a single key is one
    }
}

TEST_CASE("clipped probabilities are exactly zero and one, and others are not") {
  // Values are the unit vectors: the output is P' itself.
  const Model m{1, 16, 1, 1, 16};
  for (const bool clips : {true, false}) {
    Problem p(m, DType::F32, 1);
    for (int64_t t = 0; t < m.context; ++t)
      for (int64_t d = 0; d < m.width; ++d)
        p.qkv.set(t * m.columns() + 2 * m.width + d, t == d ? 1.0f : 0.0f);
    // Scores far apart.
    for (int64_t t = 0; t < m.context; ++t)
      for (int64_t d = 0; d < m.width; ++d)
        p.qkv.set(t * m.columns() + d, 4 * p.qkv.get(t * m.columns() + d));
    if (clips) clip(p);
    p.forward();
    const Values qkv = values_of(p.qkv), dout = values_of(p.out_gradient);
    int64_t zeros = 0, ones = 0;
    for (int64_t q = 0; q < m.context; ++q) {
      const Row row = row_of(p, qkv, dout, {0, 0, q});
      for (int64_t k = 0; k < m.context; ++k) {
        const float found = p.out.get(q * m.width + k);
        if (k > q) {
          REQUIRE(found == 0);  // masked
          continue;
        }
        const double stretched = row.stretched(static_cast<size_t>(k));
        REQUIRE((stretched == 1 || row.distance(static_cast<size_t>(k)) > 1e-5));
        zeros += found == 0;
        ones += found == 1;
        if (clips) {
          CHECK((found == 0) == (stretched <= 0));
          CHECK((found == 1) == (stretched >= 1));
        }
      }
    }
    if (clips) {
      CHECK(zeros > 10);
      CHECK(ones > 1);
    } else {  // the control
      CHECK(zeros == 0);
      CHECK(ones == 1);  // the first token sees itself alone
    }
  }
}

TEST_CASE("the gradient of clipped attention agrees with finite differences away from the kinks") {
  const Model small[] = {{1, 1, 1, 1, 2}, {2, 5, 4, 2, 4}, {1, 34, 2, 1, 6}};
  for (const Model& m : small) {
    Problem p(m, DType::F32, 2);
    clip(p).forward();
    p.backward();
    const Values gradient = values_of(p.out_gradient), qkv = values_of(p.qkv);
    // A step of one number moves a score by 2 h scale, hence a probability by no more than 4 h of itself.
    const double h = 1e-5;
    int64_t cut = 0, visible = 0;
    for_rows(m, [&](const Place& at) {
      const Row row = row_of(p, qkv, gradient, at);
      for (size_t k = 0; k < row.p.size(); ++k) {
        REQUIRE(row.distance(k) > span * row.p[k] * (4 * h + relative_error(m)) + 4 * u);
        cut += !row.open(k);
        ++visible;
      }
    });
    CHECK(cut > 0);
    if (m.context > 1) CHECK(cut < visible);
    const auto loss = [&](size_t at, double step) {
      Values moved = qkv;
      moved[at] += step;
      const Reference r = reference(m, moved, published);
      double sum = 0;
      for (size_t i = 0; i < r.out.size(); ++i) sum += r.out[i] * gradient[i];
      return sum;
    };
    // Truncation and cancellation of the differences as without a clip, whose derivatives are `span` times
    // as large; FP32's share from the formula's terms.
    const double differences = h * h / 6 * 1024 * span + 0x1p-52 * 1e3 / h;
    const Expected terms = formula(p);
    Problem unclipped(m, DType::F32, 2);
    unclipped.forward();
    unclipped.backward();
    double control = 0;
    const size_t stride = qkv.size() > 300 ? 7 : 1;
    for (size_t i = 0; i < qkv.size(); i += stride) {
      const double expected = (loss(i, h) - loss(i, -h)) / (2 * h), tolerance = differences + terms.bound[i];
      const auto error = [&](const Problem& of) {
        return std::abs(static_cast<double>(of.qkv_gradient.get(static_cast<int64_t>(i))) - expected) /
               tolerance;
      };
      INFO("context " << m.context << ", number " << i);
      CHECK(error(p) <= 1);
      control = std::max(control, error(unclipped));
    }
    if (m.context > 1) CHECK(control > 100);
  }
}

TEST_CASE("the gradient of clipped attention agrees with its formula beyond a key block, in BF16 too") {
  for (const Model& m : {Model{1, 300, 2, 1, 40}, Model{2, 33, 4, 2, 16}})
    for (const DType storage : {DType::F32, DType::BF16}) {
      Problem p(m, storage, 2);
      clip(p).forward();
      p.backward();
      const Expected expected = formula(p);
      double worst = 0, size = 0, bound_size = 0;
      for (size_t i = 0; i < expected.gradient.size(); ++i) {
        const double value = expected.gradient[i], bound = expected.bound[i];
        const double rounding = (storage == DType::BF16 ? 0x1p-8 : u) * (std::abs(value) + bound);
        const double error =
            std::abs(static_cast<double>(p.qkv_gradient.get(static_cast<int64_t>(i))) - value);
        worst = error <= 1e300 ? std::max(worst, error / (bound + rounding)) : 1e9;
        size += value * value;
        bound_size += bound * bound;
      }
      INFO("context " << m.context << " " << name_of(storage));
      CHECK(worst <= 1);
      CHECK(bound_size < 1e-2 * size);  // the bound is worth something: below a tenth of the gradient
    }
}

TEST_CASE("the bits of clipped attention do not depend on the number of threads") {
  const Model m{2, 70, 4, 2, 24};
  Problem one(m, DType::BF16, 1);
  clip(one).forward();
  one.backward();
  for (const int threads : {2, 4}) {
    Problem p(m, DType::BF16, threads);
    clip(p).forward();
    p.backward();
    CHECK(p.out.bytes() == one.out.bytes());
    CHECK(p.log_sum_exp.bytes() == one.log_sum_exp.bytes());
    CHECK(p.qkv_gradient.bytes() == one.qkv_gradient.bytes());
  }
  Problem unclipped(m, DType::BF16, 1);
  unclipped.forward();
  CHECK(unclipped.out.bytes() != one.out.bytes());
}

TEST_CASE("clipped attention does not hide NaN, and lets a sure query be sure") {
  const Model m{1, 40, 1, 1, 2};
  Problem p(m, DType::F32, 1);
  for (int64_t t = 0; t < m.context; ++t)
    for (int64_t c = 0; c < 6; ++c)
      p.qkv.set(t * 6 + c, c < 2 ? 1000.0f : static_cast<float>(c < 4 ? t * 10 : t));
  clip(p).forward();
  for (int64_t t = 0; t < m.context; ++t) CHECK(p.out.get(t * 2) == static_cast<float>(t));
  p.qkv.set(3 * 6, std::numeric_limits<float>::quiet_NaN());
  p.forward();
  CHECK(std::isnan(p.out.get(3 * 2)));
  CHECK_FALSE(std::isnan(p.out.get(2 * 2)));
}

TEST_CASE("a clip that would uncover masked keys, or that is asked of codes, is refused") {
  AttentionForward a{};
  a.qkv.dtype = DType::BF16;
  for (const SoftmaxClip& wrong : {SoftmaxClip{0.1f, 1.3f}, SoftmaxClip{0, 0.9f},
                                   SoftmaxClip{std::numeric_limits<float>::quiet_NaN(), 1.3f}}) {
    a.clip = wrong;
    CHECK_THAT(error_of([&] { check(a); }).what(), contains_text("does not hold [0, 1]"));
  }
  a.clip = published;
  CHECK_NOTHROW(check(a));
  a.qkv.dtype = DType::E4M3;
  CHECK_THAT(error_of([&] { check(a); }).what(), contains_text("in storage precision only"));
  AttentionBackward b{};
  b.qkv.dtype = DType::E4M3;
  b.clip = published;
  CHECK_THAT(error_of([&] { check(b); }).what(), contains_text("in storage precision only"));
}
