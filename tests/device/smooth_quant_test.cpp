// SmoothQuant's column scales: the rule, what they keep, and that everything is undone exactly.
#include "numerics/smooth_quant.h"

#include <limits>

#include "device/op_fixture.h"
#include "error_of.h"

using namespace octet;

namespace {

constexpr float nan_value = std::numeric_limits<float>::quiet_NaN();

size_t at(int64_t i) { return static_cast<size_t>(i); }

// [rows, columns] times a factor a column.
Values columns_times(Values values, const Values& factors) {
  for (size_t i = 0; i < values.size(); ++i) values[i] *= factors[i % factors.size()];
  return values;
}
Values column_amax(const Values& values, size_t columns) {
  Values amax(columns);
  for (size_t i = 0; i < values.size(); ++i)
    amax[i % columns] = std::max(amax[i % columns], std::abs(values[i]));
  return amax;
}

// X cast with smoothed columns.
struct Smoothed {
  CastTarget out;
  Values inverse() const { return read_floats(out.column_inverse_scale); }
};
Smoothed smooth(OpFixture& f, const Tensor& x, const Tensor& weight_amax, float alpha = 0.5f) {
  CastTarget out;
  out.row = f.zeros(DType::E4M3, {x.rows(), x.columns()});
  out.column = f.zeros(DType::E4M3, {x.columns(), x.rows()});
  out.cast = {Format::E4M3};
  out.site = f.site();
  out.column_inverse_scale = f.zeros(DType::F32, {x.columns()});
  out.channel_weight_amax = weight_amax;
  out.channel_exponent = alpha;
  f->cast({x, {}, out});
  return {out};
}

Values decoded(const Bytes& codes, const Values& column_inverse) {
  Values values;
  for (size_t i = 0; i < codes.size(); ++i)
    values.push_back(decode_e4m3(codes[i]) * column_inverse[i % column_inverse.size()]);
  return values;
}

Operand codes(const Tensor& values, const float* inverse_scale,
              ScaleGranularity granularity = ScaleGranularity::Tensor) {
  Operand operand;
  operand.values = values;
  operand.inverse_scale = inverse_scale;
  operand.granularity = granularity;
  return operand;
}
Values product(OpFixture& f, const Operand& a, const Operand& b) {
  Matmul m;
  m.a = a;
  m.b = b;
  m.out = f.zeros(DType::F32, {a.values.rows(), b.values.rows()});
  f->matmul(m);
  return read_floats(m.out);
}

}  // namespace

TEST_CASE("SmoothQuant's scales are s_j / S, both powers of two, by the rule in double", "[smooth_quant]") {
  const float alpha = GENERATE(0.5f, 0.8f);
  OpFixture f;
  const int64_t rows = 67, columns = 131;
  Values spread(at(columns)), weight_amax(at(columns));
  for (int64_t c = 0; c < columns; ++c) spread[at(c)] = std::ldexp(1.0f, static_cast<int>(c % 23) - 11);
  Values values = columns_times(normal_values(rows * columns, 11), spread);
  for (float& v : values) v = round_to_bfloat16(v);
  for (int64_t r = 0; r < rows; ++r) values[at(r * columns + 9)] = 0.0f;  // a column of zeros
  const Values normal = normal_values(columns, 12, 0.1);
  for (int64_t c = 0; c < columns; ++c) weight_amax[at(c)] = std::abs(normal[at(c)]);
  weight_amax[40] = 0;  // taken as 1e-5
  weight_amax[41] = std::numeric_limits<float>::infinity();

  const Values amax = column_amax(values, at(columns));
  std::vector<int> exponent(at(columns));
  double largest = 0;
  for (size_t c = 0; c < amax.size(); ++c) {
    const double a = static_cast<double>(amax[c]), w = std::max(static_cast<double>(weight_amax[c]), 1e-5),
                 by = static_cast<double>(alpha);
    if (a > 0 && std::isfinite(w)) {
      const double logarithm = by * std::log2(a) - (1 - by) * std::log2(w);
      // FP32 has it to a few 2^-24 of the logarithms, which are below 32: not where it lies on a tie.
      REQUIRE(std::abs(logarithm - std::floor(logarithm) - 0.5) > 32 * 8 * 0x1p-24);
      exponent[c] = static_cast<int>(std::lround(logarithm));
    }
    largest = std::max(largest, std::ldexp(a, -exponent[c]));
  }
  const int scale = static_cast<int>(std::floor(std::log2(448 / largest)));
  Values expected;
  for (const int e : exponent) expected.push_back(std::ldexp(1.0f, e - scale));
  Bytes row;
  for (size_t i = 0; i < values.size(); ++i)
    row.push_back(encode_e4m3(values[i] / expected[i % at(columns)]));

  const Smoothed found = smooth(f, f.floats(DType::BF16, {rows, columns}, values),
                                f.floats(DType::F32, {columns}, weight_amax), alpha);
  CHECK(found.inverse() == expected);
  CHECK(read_bytes(found.out.row) == row);
  CHECK(read_bytes(found.out.column) == transposed(row, rows, columns));
  CHECK(*found.out.site.amax == *std::max_element(amax.begin(), amax.end()));
  CHECK(found.out.site.counters->saturated == 0);
  CHECK(std::count(exponent.begin(), exponent.end(), 0) < columns / 4);  // the test saw a rule at work
}

TEST_CASE("a smoothed product is undone exactly, forward and in the weight gradient", "[smooth_quant]") {
  OpFixture f;
  const int64_t tokens = 32, inputs = 48, outputs = 16;
  // Small integers, which E4M3 has exactly, times powers of two by column: those of X over 40 binades, those
  // of W against them.
  const auto integers = [](int64_t count, uint64_t key) {
    Values values(at(count));
    for (int64_t i = 0; i < count; ++i)
      values[at(i)] = static_cast<float>(static_cast<int>(random_bits(key, at(i)) % 15) - 7);
    return values;
  };
  Values of_x(at(inputs)), of_w(at(inputs));
  for (int64_t c = 0; c < inputs; ++c) {
    const int e = static_cast<int>(c % 21) * 2 - 20;
    of_x[at(c)] = std::ldexp(1.0f, e);
    of_w[at(c)] = std::ldexp(1.0f, -e - 6);
  }
  Values x = integers(tokens * inputs, 1), w = integers(outputs * inputs, 2);
  const Values dy = integers(tokens * outputs, 3);
  for (int64_t c = 0; c < inputs; ++c) x[at(c)] = w[at(c)] = 7;  // every column's largest
  Values y(at(tokens * outputs)), dw(at(outputs * inputs));
  for (int64_t t = 0; t < tokens; ++t)
    for (int64_t n = 0; n < outputs; ++n)
      for (int64_t c = 0; c < inputs; ++c) {
        y[at(t * outputs + n)] += x[at(t * inputs + c)] * w[at(n * inputs + c)] * 0x1p-6f;
        dw[at(n * inputs + c)] += dy[at(t * outputs + n)] * x[at(t * inputs + c)] * of_x[at(c)];
      }
  x = columns_times(x, of_x);
  w = columns_times(w, of_w);
  const Tensor source = f.floats(DType::BF16, {tokens, inputs}, x),
               master = f.floats(DType::F32, {outputs, inputs}, w),
               weight_amax = f.zeros(DType::F32, {inputs}), one = f.floats(DType::F32, {1}, {1.0f});
  f->channel_amax({master, weight_amax});

  const auto folded = [&](const Tensor& factors) {
    CastOperation fold;
    fold.source = master;
    fold.column_factor = factors;
    fold.out.row = f.zeros(DType::E4M3, {outputs, inputs});
    fold.out.cast = {Format::E4M3};
    fold.out.site = f.site();
    f->cast(fold);
    return codes(fold.out.row, fold.out.site.inverse_scale);
  };
  CastTarget grad;
  grad.column = f.zeros(DType::E4M3, {outputs, tokens});
  grad.cast = {Format::E4M3};
  grad.site = f.site();
  f->cast({f.floats(DType::BF16, {tokens, outputs}, dy), {}, grad});

  const Smoothed smoothed = smooth(f, source, weight_amax);
  CHECK(product(f, codes(smoothed.out.row, one.as<float>()), folded(smoothed.out.column_inverse_scale)) == y);
  CHECK(product(f, codes(grad.column, grad.site.inverse_scale),
                codes(smoothed.out.column, smoothed.out.column_inverse_scale.as<float>(),
                      ScaleGranularity::Outer)) == dw);

  // The control: with one scale the smaller columns of X are zero.
  CastTarget plain;
  plain.row = f.zeros(DType::E4M3, {tokens, inputs});
  plain.cast = {Format::E4M3};
  plain.site = f.site();
  f->cast({source, {}, plain});
  CHECK(product(f, codes(plain.row, plain.site.inverse_scale), folded({})) != y);
}

TEST_CASE("beside an outlier channel the other channels keep their digits, with one scale they are lost",
          "[smooth_quant]") {
  OpFixture f;
  const int64_t rows = 64, columns = 64, outlier = 3;
  Values factors(at(columns), 1.0f), weight_amax(at(columns), 0.1f);
  factors[at(outlier)] = 0x1p20f;
  const Tensor x =
      f.floats(DType::BF16, {rows, columns}, columns_times(normal_values(rows * columns, 5), factors));
  const auto others = [&](const Values& all) {
    Values kept;
    for (size_t i = 0; i < all.size(); ++i)
      if (i % at(columns) != at(outlier)) kept.push_back(all[i]);
    return kept;
  };
  const Values exact = others(read_floats(x));
  const Smoothed smoothed = smooth(f, x, f.floats(DType::F32, {columns}, weight_amax));
  // sqrt(2^20) of the outlier is left, and the others lie 2^10 below it: half an ulp, 2^-4, and below 2^-6
  // half of a subnormal, 2^-10, where the columns' largest, about 3 deviations, are some 448 / 2^10.
  const double error =
      relative_error(others(decoded(read_bytes(smoothed.out.row), smoothed.inverse())), exact);
  CHECK(error <= 0x1p-4 + 0x1p-10 / (0x1p-3 * 448 / 1024));
  CastTarget plain;
  plain.row = f.zeros(DType::E4M3, {rows, columns});
  plain.cast = {Format::E4M3};
  plain.site = f.site();
  f->cast({x, {}, plain});
  CHECK(relative_error(others(decoded(read_bytes(plain.row), Values(at(columns), *plain.site.inverse_scale))),
                       exact) > 0.99);
}

TEST_CASE("a column that is not finite has a NaN scale and leaves the others theirs", "[smooth_quant]") {
  OpFixture f;
  const int64_t rows = 6, columns = 20;
  Values values = normal_values(rows * columns, 2);
  for (int64_t r = 0; r < rows; ++r) values[at(r * columns + 7)] = 0;  // not the largest
  const Tensor weight_amax = f.floats(DType::F32, {columns}, Values(at(columns), 0.25f));
  const Values before = smooth(f, f.floats(DType::F32, {rows, columns}, values), weight_amax).inverse();
  for (const float bad : {nan_value, std::numeric_limits<float>::infinity()}) {
    values[2 * 20 + 7] = bad;
    const Smoothed found = smooth(f, f.floats(DType::F32, {rows, columns}, values), weight_amax);
    CHECK(std::isinf(*found.out.site.amax));
    for (size_t c = 0; c < before.size(); ++c) {
      if (c == 7)
        CHECK(std::isnan(found.inverse()[c]));
      else
        CHECK(found.inverse()[c] == before[c]);
    }
  }
}

TEST_CASE("smoothed scales and their reciprocals are normal numbers for any amaxes", "[smooth_quant]") {
  const float sizes[] = {0.0f, 0x1p-149f, 1e-30f, 1e-5f, 1.0f, 3e38f};
  for (const float a : sizes)
    for (const float w : {0.0f, 0x1p-149f, 1.0f, 3e38f, nan_value})
      for (const float alpha : {0.01f, 0.5f, 0.99f}) {
        const float smoothed = smoothed_amax(a, w, alpha);
        CHECK(std::isfinite(smoothed));
        for (const float largest : {smoothed, 3e38f}) {
          const float inverse = smoothed_inverse_scale(a, w, alpha, power_of_two_scale(largest, 448.0f));
          CHECK(std::isnormal(inverse));
          CHECK(std::isnormal(1 / inverse));
        }
      }
  CHECK(smoothing_exponent(16, nan_value, 0.5f) == 0);
  CHECK(smoothing_exponent(16, 1, 0.5f) == 2);
  CHECK(smoothing_exponent(16, 0.0625f, 0.25f) == 4);
}

TEST_CASE("a smoothed cast gives the same bits for 1, 2 and 4 threads", "[smooth_quant]") {
  const int64_t rows = 200, columns = 700;
  std::vector<Bytes> results;
  for (const int threads : {1, 2, 4}) {
    OpFixture f(threads);
    const Smoothed found =
        smooth(f, f.floats(DType::BF16, {rows, columns}, normal_values(rows * columns, 77)),
               f.floats(DType::F32, {columns}, Values(at(columns), 0.3f)));
    Bytes all = read_bytes(found.out.row);
    for (const Tensor& t : {found.out.column, found.out.column_inverse_scale}) {
      const Bytes bytes = read_bytes(t);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    results.push_back(all);
  }
  CHECK(results[0] == results[1]);
  CHECK(results[0] == results[2]);
}

TEST_CASE("smoothing without its scales, or beside others, is refused", "[smooth_quant]") {
  OpFixture f;
  const Tensor x = f.zeros(DType::F32, {4, 8}), weight_amax = f.zeros(DType::F32, {8});
  const CastTarget good = smooth(f, x, weight_amax).out;
  const auto refused = [&](const auto& change) {
    CastTarget out = good;
    change(out);
    return std::string(error_of([&] { f->cast({x, {}, out}); }).what());
  };
  CHECK_THAT(refused([&](CastTarget& out) { out.channel_weight_amax = f.zeros(DType::F32, {7}); }),
             contains_text("7 of F32 maxima"));
  CHECK_THAT(refused([&](CastTarget& out) { out.column_inverse_scale = {}; }),
             contains_text("one scale a column"));
  CHECK_THAT(refused([&](CastTarget& out) { out.row_inverse_scale = f.zeros(DType::F32, {4}); }),
             contains_text("one scale a column"));
  for (const float alpha : {0.0f, 1.0f, nan_value})
    CHECK_THAT(refused([&](CastTarget& out) { out.channel_exponent = alpha; }), contains_text("exponent"));
  SwiGluForward swiglu;
  swiglu.gate_up = f.zeros(DType::F32, {4, 16});
  swiglu.out = good;
  swiglu.out.high = f.zeros(DType::F32, {4, 8});
  CHECK_NOTHROW(f->swiglu_forward(swiglu));
  swiglu.mode = SmoothSwiGLU::Channel;
  CHECK_THAT(error_of([&] { f->swiglu_forward(swiglu); }).what(), contains_text("in two ways"));
}
