#include "base/error.h"
#include "catch.h"
#include "device/op_fixture.h"
#include "numerics/sums.h"

using namespace octet;

namespace {

struct Case {
  int64_t tokens, width;
  DType storage;
};
constexpr Activation activations[] = {Activation::GELU, Activation::ReLU2, Activation::XIELU};
constexpr float p = 0.3f, n = -0.9f;

double softplus(double x) { return std::log1p(std::exp(x)); }
double exact(Activation activation, double x, double positive = static_cast<double>(p),
             double negative = static_cast<double>(n)) {
  if (activation == Activation::GELU) return 0.5 * x * std::erfc(-x * std::sqrt(0.5));
  if (activation == Activation::ReLU2) return x > 0 ? x * x : 0;
  return (x > 0 ? softplus(positive) * x * x : (0.5 + softplus(negative)) * (std::expm1(x) - x)) + 0.5 * x;
}

struct Backward {
  Values x, gradient, dx;
  double positive = 0, negative = 0;
};
Backward backward(OpFixture& f, Activation activation, const Case& c) {
  Backward run{normal_values(c.tokens * c.width, 1, 2.0, c.storage),
               normal_values(c.tokens * c.width, 2, 1.0, c.storage),
               {}};
  ActivationBackward op{};
  op.activation = activation;
  op.x = f.floats(c.storage, {c.tokens, c.width}, run.x);
  op.h_gradient = f.floats(c.storage, {c.tokens, c.width}, run.gradient);
  op.out.high = f.zeros(c.storage, {c.tokens, c.width});
  if (activation == Activation::XIELU) {
    op.positive = f.floats(DType::F32, {1}, {p});
    op.negative = f.floats(DType::F32, {1}, {n});
    op.positive_gradient = f.floats(DType::F32, {1}, {3.0f});
    op.negative_gradient = f.floats(DType::F32, {1}, {-5.0f});
  }
  f->activation_backward(op);
  run.dx = read_floats(op.out.high);
  if (activation == Activation::XIELU) {
    run.positive = static_cast<double>(*op.positive_gradient.as<float>());
    run.negative = static_cast<double>(*op.negative_gradient.as<float>());
  }
  return run;
}

}  // namespace

TEST_CASE("activations are their functions, rounded once", "[activation]") {
  const Case c = GENERATE(Case{1, 1, DType::F32}, Case{3, 37, DType::F32}, Case{4, 600, DType::BF16});
  for (const Activation activation : activations) {
    OpFixture f;
    const Values x = normal_values(c.tokens * c.width, 1, 3.0, c.storage);
    ActivationForward op{};
    op.activation = activation;
    op.x = f.floats(c.storage, {c.tokens, c.width}, x);
    op.positive = f.floats(DType::F32, {1}, {p});
    op.negative = f.floats(DType::F32, {1}, {n});
    op.out.high = f.zeros(c.storage, {c.tokens, c.width});
    f->activation_forward(op);
    const Values h = read_floats(op.out.high);
    for (size_t i = 0; i < h.size(); ++i) {
      const double d = static_cast<double>(x[i]), expected = exact(activation, d);
      // As in tests/numerics: 32 roundings, and the square in GELU's exponent; of terms no larger than |x| (1
      // + |x|).
      const double terms =
          activation == Activation::XIELU ? std::abs(d) * (1 + std::abs(d)) : std::abs(expected);
      REQUIRE(std::abs(static_cast<double>(h[i]) - expected) <=
              (34 + d * d / 2) * 0x1p-24 * terms + half_ulp(c.storage) * std::abs(expected));
    }
  }
}

TEST_CASE("activation gradients agree with finite differences in double, xIELU's parameters too",
          "[activation]") {
  const Case c = GENERATE(Case{1, 1, DType::F32}, Case{150, 77, DType::F32}, Case{3, 700, DType::BF16});
  for (const Activation activation : activations) {
    OpFixture f;
    const Backward run = backward(f, activation, c);
    const double step = 1e-5;
    double positive = 0, negative = 0, positive_terms = 0, negative_terms = 0;
    for (size_t i = 0; i < run.x.size(); ++i) {
      const double x = static_cast<double>(run.x[i]), g = static_cast<double>(run.gradient[i]);
      const double expected = g * (exact(activation, x + step) - exact(activation, x - step)) / (2 * step);
      // 40 roundings of terms of at most |g| (1 + |x| (1 + x^2 / 2)); 1e-9 for the differences.
      REQUIRE(std::abs(static_cast<double>(run.dx[i]) - expected) <=
              half_ulp(c.storage) * std::abs(expected) +
                  (40 * 0x1p-24 + 1e-9) * std::abs(g) * (1 + std::abs(x) * (1 + x * x / 2)));
      if (activation != Activation::XIELU) continue;
      const double dp = static_cast<double>(p), dn = static_cast<double>(n);
      const double by_p = g * (exact(activation, x, dp + step, dn) - exact(activation, x, dp - step, dn)) /
                          (2 * step),
                   by_n = g * (exact(activation, x, dp, dn + step) - exact(activation, x, dp, dn - step)) /
                          (2 * step);
      positive += by_p, negative += by_n;
      positive_terms += std::abs(by_p), negative_terms += std::abs(by_n);
    }
    if (activation != Activation::XIELU) continue;
    // Sums of FP32: width / 256 + 8 in a row, 64 in a chunk, the chunks; 20 roundings of a term; 1e-9 as
    // above.
    const double bound =
        (static_cast<double>(c.width) / 256 + 8 + 64 + static_cast<double>(c.tokens) / 64 + 20) * 0x1p-24 +
        1e-9;
    CHECK(std::abs(run.positive - 3 - positive) <=
          bound * positive_terms + 0x1p-23 * (3 + std::abs(positive)));
    CHECK(std::abs(run.negative + 5 - negative) <=
          bound * negative_terms + 0x1p-23 * (5 + std::abs(negative)));
    if (c.tokens > 1) CHECK(std::abs(positive - negative) > 0.1);  // one is not the other
  }
}

TEST_CASE("xIELU's parameter gradients sum rows, then chunks of 64 tokens, for any number of threads",
          "[activation]") {
  const Case c{150, 520, DType::BF16};
  std::vector<Backward> runs;
  for (const int threads : {1, 2, 4}) {
    OpFixture f(threads);
    runs.push_back(backward(f, Activation::XIELU, c));
  }
  for (const Backward& run : runs) {
    CHECK(run.positive == runs[0].positive);
    CHECK(run.negative == runs[0].negative);
    CHECK(run.dx == runs[0].dx);
  }
  // The control: the same terms, straight through.
  float straight = 0;
  const Xielu by = xielu_of(p, n);
  for (size_t i = 0; i < runs[0].x.size(); ++i)
    straight += runs[0].gradient[i] * activation_slopes<Activation::XIELU>(runs[0].x[i], by).positive;
  CHECK(static_cast<double>(3.0f + straight * xielu_chain(p)) != runs[0].positive);
}

TEST_CASE("an activation's codes are those of a cast of its result, with the scales a mode asks for",
          "[activation]") {
  OpFixture f;
  constexpr int64_t tokens = 24, width = 48;
  for (const SmoothSwiGLU mode :
       {SmoothSwiGLU::None, SmoothSwiGLU::Token, SmoothSwiGLU::Channel, SmoothSwiGLU::Dual}) {
    ActivationForward op{};
    op.activation = Activation::GELU;
    op.mode = mode;
    Values x = normal_values(tokens * width, 1, 2.0, DType::BF16);
    x[5] = 4096;  // one outlier: its row and its column get scales of their own
    op.x = f.floats(DType::BF16, {tokens, width}, x);
    const auto target = [&] {
      CastTarget out;
      out.high = f.zeros(DType::BF16, {tokens, width});
      out.row = f.zeros(DType::E4M3, {tokens, width});
      out.column = f.zeros(DType::E4M3, {width, tokens});
      out.cast.format = Format::E4M3;
      out.site = f.site();
      out.row_inverse_scale = f.zeros(DType::F32, {tokens});
      out.column_inverse_scale = f.zeros(DType::F32, {width});
      return out;
    };
    op.out = target();
    f->activation_forward(op);
    CastTarget again = target();
    again.high = {};
    if (mode == SmoothSwiGLU::None || mode == SmoothSwiGLU::Channel) again.row_inverse_scale = {};
    if (mode == SmoothSwiGLU::None || mode == SmoothSwiGLU::Token) again.column_inverse_scale = {};
    f->cast({op.out.high, {}, again});
    CHECK(read_bytes(again.row) == read_bytes(op.out.row));
    CHECK(read_bytes(again.column) == read_bytes(op.out.column));
    const bool by_row = mode == SmoothSwiGLU::Token || mode == SmoothSwiGLU::Dual;
    CHECK((op.out.row_inverse_scale.as<float>()[1] != 0) == by_row);
  }
}

TEST_CASE("a gated activation is refused by the operation of those that are not", "[activation]") {
  OpFixture f;
  ActivationForward op{};
  op.activation = Activation::SwiGLU;
  op.x = f.zeros(DType::F32, {2, 4});
  op.out.high = f.zeros(DType::F32, {2, 4});
  CHECK_THROWS_AS(f->activation_forward(op), Error);
}
