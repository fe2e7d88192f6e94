// The regulariser of queries and keys, fused with RoPE: against double, derivatives by finite differences.
#include "base/error.h"
#include "catch.h"
#include "device/op_fixture.h"

using namespace octet;

namespace {

struct Model {
  int64_t context, windows;
  int heads, kv_heads, width;
  int64_t tokens() const { return context * windows; }
  int64_t columns() const { return static_cast<int64_t>(heads + 2 * kv_heads) * width; }
  int64_t kept() const { return static_cast<int64_t>(heads + kv_heads) * width; }
};
constexpr QkNorm kinds[] = {QkNorm::RMS, QkNorm::RMSFrozen, QkNorm::Tanh};
constexpr float epsilon = 1e-5f;

struct Problem {
  Model m;
  QkNorm kind;
  Values x, bias, cosine, sine, query_gain, key_gain;
};
Problem problem(const Model& m, QkNorm kind, DType storage) {
  Problem p{m, kind, normal_values(m.tokens() * m.columns(), 1, 1.5, storage), {}, {}, {}, {}, {}};
  for (int64_t s = 0; s < m.context; ++s) {
    for (int64_t i = 0; i < m.width / 2; ++i) {
      const double angle = static_cast<double>(s) * std::pow(100.0, -2.0 * static_cast<double>(i) / m.width);
      p.cosine.push_back(static_cast<float>(std::cos(angle)));
      p.sine.push_back(static_cast<float>(std::sin(angle)));
    }
  }
  const int64_t gains = kind == QkNorm::RMS ? m.width : kind == QkNorm::Tanh ? 1 : 0;
  p.query_gain = normal_values(gains, 3, 0.5);
  p.key_gain = normal_values(gains, 4, 0.5);
  for (float& g : p.query_gain) g += 1;
  for (float& g : p.key_gain) g += 1;
  return p;
}

// Head `head` of row t, regularised and rotated, in double.
std::vector<double> expected_head(const Problem& p, const std::vector<double>& head_values, int head,
                                  int64_t t, const std::vector<double>& gain, bool rope_first = false) {
  const size_t width = static_cast<size_t>(p.m.width), half = width / 2;
  std::vector<double> v = head_values;
  const auto rotate = [&] {
    for (size_t i = 0; i < half; ++i) {
      const size_t at = static_cast<size_t>(t % p.m.context) * half + i;
      const double a = v[i], b = v[half + i], c = static_cast<double>(p.cosine[at]),
                   s = static_cast<double>(p.sine[at]);
      v[i] = a * c - b * s;
      v[half + i] = b * c + a * s;
    }
  };
  if (rope_first) rotate();
  double squares = 0;
  for (const double x : v) squares += x * x;
  const double rstd = 1 / std::sqrt(squares / static_cast<double>(width) + static_cast<double>(epsilon));
  if (head < p.m.heads + p.m.kv_heads) {
    for (size_t i = 0; i < width; ++i) {
      if (p.kind == QkNorm::Tanh) v[i] = std::tanh(gain[0] * v[i]);
      if (p.kind == QkNorm::RMS) v[i] *= rstd * gain[i];
      if (p.kind == QkNorm::RMSFrozen) v[i] *= rstd;
    }
    if (!rope_first) rotate();
  }
  return v;
}
std::vector<double> widened(const Values& values) { return {values.begin(), values.end()}; }
std::vector<double> gain_of(const Problem& p, int head) {
  return widened(head < p.m.heads ? p.query_gain : p.key_gain);
}
std::vector<double> head_of(const Problem& p, const Values& x, int head, int64_t t) {
  const auto at = x.begin() + t * p.m.columns() + head * p.m.width;
  return {at, at + p.m.width};
}

QueryKeyNorm norm_of(OpFixture& f, const Problem& p, DType storage) {
  QueryKeyNorm norm;
  norm.kind = p.kind;
  norm.kept = f.zeros(storage, {p.m.tokens(), p.m.kept()});
  norm.epsilon = epsilon;
  if (!p.query_gain.empty()) {
    norm.query_gain = f.floats(DType::F32, {static_cast<int64_t>(p.query_gain.size())}, p.query_gain);
    norm.key_gain = f.floats(DType::F32, {static_cast<int64_t>(p.key_gain.size())}, p.key_gain);
  }
  return norm;
}
RopeForward forward_of(OpFixture& f, const Problem& p, DType storage) {
  const Model& m = p.m;
  RopeForward op{};
  op.qkv = f.floats(storage, {m.tokens(), m.columns()}, p.x);
  op.cosine = f.floats(DType::F32, {m.context, m.width / 2}, p.cosine);
  op.sine = f.floats(DType::F32, {m.context, m.width / 2}, p.sine);
  op.heads = m.heads, op.kv_heads = m.kv_heads, op.head_width = m.width;
  op.norm = norm_of(f, p, storage);
  return op;
}

struct Back {
  Values dx, query_gain, key_gain;
};
Back backward(OpFixture& f, const Problem& p, DType storage, const Values& gradient) {
  const RopeForward forward = forward_of(f, p, storage);
  f->rope_forward(forward);
  RopeBackward op{};
  op.qkv_gradient = f.floats(storage, forward.qkv.shape, gradient);
  op.cosine = forward.cosine, op.sine = forward.sine;
  op.heads = p.m.heads, op.kv_heads = p.m.kv_heads, op.head_width = p.m.width;
  op.out.high = op.qkv_gradient;  // in place
  op.norm = forward.norm;
  if (!p.query_gain.empty()) {
    op.query_gain_gradient = f.zeros(DType::F32, forward.norm.query_gain.shape);
    op.key_gain_gradient = f.zeros(DType::F32, forward.norm.key_gain.shape);
  }
  f->rope_backward(op);
  return {read_floats(op.out.high), read_floats(op.query_gain_gradient), read_floats(op.key_gain_gradient)};
}

// Roundings of a regularised and rotated value: a head's sum (width / 16 + 6 in a row), root and quotient,
// products and RoPE: relative to the size of a pair.
double bound(const Model& m) { return (static_cast<double>(m.width) / 16 + 30) * 0x1p-24; }

}  // namespace

TEST_CASE("queries and keys are regularised head by head before RoPE, values are not", "[query_key_norm]") {
  const Model m = GENERATE(Model{7, 2, 3, 1, 6}, Model{5, 1, 4, 2, 32}, Model{3, 1, 1, 1, 200});
  for (const QkNorm kind : kinds) {
    for (const DType storage : {DType::F32, DType::BF16}) {
      OpFixture f;
      const Problem p = problem(m, kind, storage);
      const RopeForward op = forward_of(f, p, storage);
      f->rope_forward(op);
      const Values out = read_floats(op.qkv), kept = read_floats(op.norm.kept);
      bool rope_first = true;
      for (int64_t t = 0; t < m.tokens(); ++t) {
        for (int head = 0; head < m.heads + 2 * m.kv_heads; ++head) {
          const std::vector<double> x = head_of(p, p.x, head, t), gain = gain_of(p, head),
                                    expected = expected_head(p, x, head, t, gain),
                                    swapped = expected_head(p, x, head, t, gain, true);
          for (int i = 0; i < m.width; ++i) {
            const size_t at = static_cast<size_t>(t * m.columns() + head * m.width + i),
                         c = static_cast<size_t>(i);
            const size_t half = static_cast<size_t>(m.width / 2), partner = c < half ? c + half : c - half;
            const double size = std::abs(expected[c]) + std::abs(expected[partner]);
            const double allowed = bound(m) * 2 * size + half_ulp(storage) * std::abs(expected[c]);
            REQUIRE(std::abs(static_cast<double>(out[at]) - expected[c]) <= allowed);
            if (head < m.heads + m.kv_heads) {
              rope_first &= std::abs(static_cast<double>(out[at]) - swapped[c]) <= allowed;
              REQUIRE(kept[static_cast<size_t>(t * m.kept() + head * m.width + i)] == p.x[at]);
            }
          }
        }
      }
      // Rotation keeps a head's rms, so without gains the order makes no difference; with them, or a tanh, it
      // does.
      CHECK(rope_first == (kind == QkNorm::RMSFrozen));
    }
  }
}

TEST_CASE("gradients through the regulariser and RoPE agree with finite differences in double",
          "[query_key_norm]") {
  const Model m = GENERATE(Model{7, 10, 3, 1, 6}, Model{5, 1, 4, 2, 32});
  for (const QkNorm kind : kinds) {
    for (const DType storage : {DType::F32, DType::BF16}) {
      OpFixture f;
      const Problem p = problem(m, kind, storage);
      const Values gradient = normal_values(m.tokens() * m.columns(), 9, 1.0, storage);
      const Back back = backward(f, p, storage, gradient);
      std::vector<double> gains[2] = {std::vector<double>(p.query_gain.size()),
                                      std::vector<double>(p.key_gain.size())};
      std::vector<double> terms[2] = {gains[0], gains[1]};
      constexpr double h = 1e-5;
      for (int64_t t = 0; t < m.tokens(); ++t) {
        for (int head = 0; head < m.heads + 2 * m.kv_heads; ++head) {
          const std::vector<double> x = head_of(p, p.x, head, t), g = head_of(p, gradient, head, t);
          const std::vector<double> gain = gain_of(p, head);
          const auto loss = [&](const std::vector<double>& values, const std::vector<double>& with) {
            const std::vector<double> y = expected_head(p, values, head, t, with);
            double sum = 0;
            for (size_t i = 0; i < y.size(); ++i) sum += y[i] * g[i];
            return sum;
          };
          double size = 0;
          for (const double v : g) size = std::max(size, std::abs(v));
          for (size_t i = 0; i < x.size(); ++i) {
            std::vector<double> up = x, down = x;
            up[i] += h, down[i] -= h;
            const double expected = (loss(up, gain) - loss(down, gain)) / (2 * h);
            const size_t at = static_cast<size_t>(t * m.columns() + head * m.width) + i;
            // FP32 terms as large as the largest gradient, times 1/rms and the gain; 1e-6 for the
            // differences.
            REQUIRE(std::abs(static_cast<double>(back.dx[at]) - expected) <=
                    half_ulp(storage) * std::abs(expected) + (bound(m) + 1e-6) * 10 * size);
          }
          if (head >= m.heads + m.kv_heads) continue;
          for (size_t i = 0; i < gain.size(); ++i) {
            std::vector<double> up = gain, down = gain;
            up[i] += h, down[i] -= h;
            const double term = (loss(x, up) - loss(x, down)) / (2 * h);
            const size_t which = head < m.heads ? 0 : 1;
            gains[which][i] += term;
            terms[which][i] += std::abs(term) + (kind == QkNorm::Tanh ? size * m.width : size);
          }
        }
      }
      for (size_t which = 0; which < 2; ++which) {
        const Values& got = which == 0 ? back.query_gain : back.key_gain;
        REQUIRE(got.size() == gains[which].size());
        for (size_t i = 0; i < got.size(); ++i)
          CHECK(std::abs(static_cast<double>(got[i]) - gains[which][i]) <=
                (bound(m) + 80 * 0x1p-24 + 1e-8) * terms[which][i]);
      }
    }
  }
}

TEST_CASE("the gains' gradients have the same bits for 1, 2 and 4 threads", "[query_key_norm]") {
  const Model m{70, 3, 4, 2, 16};
  for (const QkNorm kind : {QkNorm::RMS, QkNorm::Tanh}) {
    const Problem p = problem(m, kind, DType::BF16);
    const Values gradient = normal_values(m.tokens() * m.columns(), 9, 1.0, DType::BF16);
    std::vector<Back> runs;
    for (const int threads : {1, 2, 4}) {
      OpFixture f(threads);
      runs.push_back(backward(f, p, DType::BF16, gradient));
    }
    for (const Back& run : runs) {
      CHECK(run.dx == runs[0].dx);
      CHECK(run.query_gain == runs[0].query_gain);
      CHECK(run.key_gain == runs[0].key_gain);
    }
    CHECK(runs[0].query_gain != runs[0].key_gain);
  }
}

TEST_CASE("a regulariser without its gains or the memory it keeps heads in is refused", "[query_key_norm]") {
  OpFixture f;
  const Problem p = problem({4, 1, 2, 1, 8}, QkNorm::RMS, DType::F32);
  RopeForward op = forward_of(f, p, DType::F32);
  CHECK_NOTHROW(f->rope_forward(op));
  RopeForward broken = op;
  broken.norm.kept = {};
  CHECK_THROWS_AS(f->rope_forward(broken), Error);
  broken = op;
  broken.norm.kind = QkNorm::Tanh;  // which has one alpha, not a gain a column
  CHECK_THROWS_AS(f->rope_forward(broken), Error);
}
