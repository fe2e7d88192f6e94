#include "device/observation.h"

#include <algorithm>
#include <numeric>

#include "catch.h"
#include "op_fixture.h"

using namespace octet;

namespace {

struct Seen {
  double rows, sequences, sum, squares;  // means of the kurtoses; sums
  float highest, largest;
};

// One tensor, observed in `context` rows a sequence; columns 0: all.
struct Question {
  Shape shape;
  int64_t context, first = 0, columns = 0;
};
Seen observe(OpFixture& f, const Tensor& x, const Question& q, const InverseScales& scales = {}) {
  TensorStatistics op = statistics_of(x);
  op.inverse_scales = scales;
  op.context = q.context;
  op.first = q.first;
  if (q.columns > 0) op.columns = q.columns;
  op.row_sums = f.zeros(DType::F64, {3 * x.rows()});
  op.sums = f.zeros(DType::F64, {4});
  op.extremes = f.zeros(DType::U32, {2});
  f->tensor_statistics(op);
  const double* s = op.sums.as<double>();
  const double rows = static_cast<double>(x.rows()), sequences = rows / static_cast<double>(q.context);
  float largest;
  std::memcpy(&largest, op.extremes.as<uint32_t>() + 1, 4);
  const double n = static_cast<double>(op.columns);
  return {s[0] / rows, s[1] / sequences, n * s[2], n * s[3], from_ordered_bits(op.extremes.as<uint32_t>()[0]),
          largest};
}
Seen observe(const Values& values, const Question& q, DType dtype = DType::F32) {
  OpFixture f;
  return observe(f, f.floats(dtype, q.shape, values), q);
}

// A Laplacian of a normal's deviation, from two uniform numbers a value.
Values laplacian(int64_t n, double scale) {
  Values values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    const Random4 r = philox(random_key(5, Purpose::Test), static_cast<uint64_t>(i));
    const double u = (static_cast<double>(r.x) + 0.5) * 0x1p-32;
    values[static_cast<size_t>(i)] = static_cast<float>((r.y & 1 ? scale : -scale) * std::log(u));
  }
  return values;
}

struct Powers {
  long double squares = 0, fourths = 0;
  void add(float x) {
    const long double value = x;
    squares += value * value;
    fourths += value * value * value * value;
  }
  double kurtosis(int64_t n) const {
    const long double count = static_cast<long double>(n), mean = squares / count;
    return mean == 0 ? 0 : static_cast<double>(fourths / count / (mean * mean));
  }
};

}  // namespace

// (K1)
TEST_CASE("kurtosis is 3 of a Gaussian, 6 of a Laplacian, D of one value and 1 of a constant") {
  constexpr int64_t rows = 64, width = 4096;
  for (const double scale : {1e-6, 1.0, 1e4}) {
    const Question whole{{rows, width}, rows};
    const Seen gaussian = observe(normal_values(rows * width, 1, scale), whole);
    CHECK(gaussian.rows > 2.9);
    CHECK(gaussian.rows < 3.1);
    CHECK(gaussian.sequences > 2.9);
    CHECK(gaussian.sequences < 3.1);
    const Seen laplace = observe(laplacian(rows * width, scale), whole);
    CHECK(laplace.rows > 5.7);
    CHECK(laplace.rows < 6.3);
    CHECK(laplace.sequences > 5.7);
    CHECK(laplace.sequences < 6.3);
    const Seen constant = observe(Values(rows * width, static_cast<float>(-scale)), whole);
    CHECK(std::abs(constant.rows - 1) < 1e-12);
    CHECK(std::abs(constant.sequences - 1) < 1e-12);
    CHECK(constant.highest == static_cast<float>(-scale));
    CHECK(constant.largest == static_cast<float>(scale));
  }
  Values one(3 * 1000, 0.0f);
  for (size_t r = 0; r < 3; ++r) one[r * 1000 + 17 * r] = 1e4f;
  const Seen single = observe(one, {{3, 1000}, 1});
  CHECK(single.rows == 1000.0);  // exactly
  CHECK(single.sequences == 1000.0);
  const Seen zeros = observe(Values(8, 0.0f), {{2, 4}, 2});
  CHECK(zeros.rows == 0.0);
  CHECK(zeros.sequences == 0.0);
}

TEST_CASE("a channel of magnitude R among Gaussians has the kurtosis of its moments") {
  constexpr int64_t rows = 64, width = 4096;
  for (const double r : {10.0, 30.0, 100.0, 1000.0}) {
    const double n = width, square = (n - 1 + r * r) / n, fourth = (3 * (n - 1) + r * r * r * r) / n;
    Values values = normal_values(rows * width, 3);
    for (int64_t row = 0; row < rows; ++row)
      values[static_cast<size_t>(row * width + 7)] = static_cast<float>(r);
    const Seen seen = observe(values, {{rows, width}, rows});
    INFO("R = " << r << ": " << seen.rows);
    // Six standard errors of the mean of 64 rows' squares, which go in twice: sqrt(2 / (64 * 4096)) each.
    CHECK(std::abs(seen.rows / (fourth / square / square) - 1) < 12 * std::sqrt(2.0 / (rows * n)));
  }
}

TEST_CASE("the kurtosis of a power of two times a tensor has its bits") {
  const Values values = normal_values(12 * 300, 2, 1, DType::BF16);
  Values scaled = values;
  for (float& x : scaled) x *= 0x1p-40f;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const Seen a = observe(values, {{12, 300}, 4}, dtype), b = observe(scaled, {{12, 300}, 4}, dtype);
    CHECK(a.rows == b.rows);
    CHECK(a.sequences == b.sequences);
    CHECK(a.sum == b.sum * 0x1p40);
    CHECK(a.squares == b.squares * 0x1p80);
  }
}

TEST_CASE("statistics are those of the columns asked for, by row and by sequence") {
  for (const DType dtype : {DType::F32, DType::BF16}) {
    for (const Question& q : {Question{{6, 1300}, 2, 0, 1300}, Question{{6, 1300}, 3, 11, 1030},
                              Question{{6, 40}, 6, 8, 1}, Question{{1, 3}, 1, 0, 3}}) {
      const int64_t rows = q.shape[0], width = q.shape[1];
      Values values = normal_values(rows * width, 7, 3, dtype);
      for (size_t i = 0; i < values.size(); i += 13) values[i] = rounded(dtype, values[i] * 50);
      const Seen seen = observe(values, q, dtype);
      double of_rows = 0, of_sequences = 0, sum = 0, squares = 0;
      float highest = -INFINITY, largest = 0;
      Powers sequence;
      for (int64_t r = 0; r < rows; ++r) {
        Powers row;
        for (int64_t c = q.first; c < q.first + q.columns; ++c) {
          const float x = values[static_cast<size_t>(r * width + c)];
          row.add(x);
          sequence.add(x);
          sum += static_cast<double>(x);
          squares += static_cast<double>(x) * static_cast<double>(x);
          highest = std::max(highest, x);
          largest = std::max(largest, std::abs(x));
        }
        of_rows += row.kurtosis(q.columns);
        if ((r + 1) % q.context == 0) {
          of_sequences += sequence.kurtosis(q.context * q.columns);
          sequence = {};
        }
      }
      const double sequences = static_cast<double>(rows / q.context);
      // A few thousand additions in FP64.
      CHECK(std::abs(seen.rows * static_cast<double>(rows) / of_rows - 1) < 1e-12);
      CHECK(std::abs(seen.sequences * sequences / of_sequences - 1) < 1e-12);
      CHECK(std::abs(seen.squares / squares - 1) < 1e-12);
      CHECK(std::abs(seen.sum - sum) <
            1e-11 * std::sqrt(squares) * std::sqrt(static_cast<double>(rows * width)));
      CHECK(seen.highest == highest);
      CHECK(seen.largest == largest);
    }
  }
  // An outlier token: the mean over tokens does not see what the sequence does.
  Values values = normal_values(64 * 256, 9);
  for (size_t i = 0; i < 256; ++i) values[5 * 256 + i] *= 100;
  const Seen seen = observe(values, {{64, 256}, 64});
  CHECK(seen.rows < 4);
  CHECK(seen.sequences > 20);
}

TEST_CASE("what is not finite shows in every statistic") {
  for (const float bad : {NAN, INFINITY, -INFINITY}) {
    Values values = normal_values(4 * 100, 1);
    values[250] = bad;
    const Seen seen = observe(values, {{4, 100}, 2});
    CHECK(std::isnan(seen.rows));
    CHECK(std::isnan(seen.sequences));
    CHECK_FALSE(std::isfinite(seen.sum));
    CHECK_FALSE(std::isfinite(seen.largest));
    CHECK(std::isnan(seen.highest) == std::isnan(bad));
  }
}

TEST_CASE("the integers of ordered_bits are in the order of the numbers") {
  const float inf = INFINITY;
  const float numbers[] = {-inf, -3e38f, -1, -1e-40f, -0.0f, 0.0f, 1e-40f, 1, 3e38f, inf, NAN};
  for (size_t i = 0; i + 1 < std::size(numbers); ++i)
    CHECK(ordered_bits(numbers[i]) < ordered_bits(numbers[i + 1]));
  CHECK(ordered_bits(-NAN) == ordered_bits(NAN));
  CHECK(ordered_bits(-inf) > 0);
  for (const float x : numbers) {
    const float back = from_ordered_bits(ordered_bits(x));
    CHECK((std::isnan(x) ? std::isnan(back) : back == x && std::signbit(back) == std::signbit(x)));
  }
  CHECK(std::isnan(from_ordered_bits(0)));  // nothing was seen
}

TEST_CASE("statistics of codes are those of their values, wherever their scales are") {
  OpFixture f;
  constexpr int64_t rows = 6, width = 300;
  const Tensor codes = f.zeros(DType::E4M3, {rows, width});
  const Values values = normal_values(rows * width, 4, 30);
  for (size_t i = 0; i < values.size(); ++i) codes.as<uint8_t>()[i] = encode_e4m3(values[i]);
  Values scales(6 * 5);
  std::iota(scales.begin(), scales.end(), 1.0f);
  const float* const s = f.floats(DType::F32, {30}, scales).as<float>();
  const InverseScales grids[] = {{}, {s + 3}, {s, 1, 1, 1, 0}, {s, 1, 60, 5, 1}, {s, 2, 100, 3, 1}};
  for (const InverseScales& grid : grids) {
    Values decoded(values.size());
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < width; ++c) {
        const size_t i = static_cast<size_t>(r * width + c);
        const float scale = grid.values ? grid.values[r / grid.row_block * grid.row_stride +
                                                      c / grid.column_block * grid.column_stride]
                                        : 1.0f;
        decoded[i] = decode_e4m3(codes.as<uint8_t>()[i]) * scale;
      }
    const Seen seen = observe(f, codes, {{rows, width}, 3}, grid);
    const Seen expected = observe(decoded, {{rows, width}, 3});
    CHECK(seen.rows == expected.rows);
    CHECK(seen.sequences == expected.sequences);
    CHECK(seen.squares == expected.squares);
    CHECK(seen.highest == expected.highest);
  }
}

TEST_CASE("a channel's amax is its largest magnitude over the tokens, and grows over micro-batches") {
  for (const DType dtype : {DType::F32, DType::BF16}) {
    for (const Shape& shape : {Shape{7, 1}, Shape{33, 600}}) {
      OpFixture f;
      const Tensor amax = f.zeros(DType::F32, {shape[1]});
      Values expected(static_cast<size_t>(shape[1]), 0.0f);
      for (const uint64_t micro : {1u, 2u}) {
        const Values x = normal_values(shape.elements(), micro, 3, dtype);
        f->channel_amax({f.floats(dtype, shape, x), amax});
        for (size_t i = 0; i < x.size(); ++i) {
          float& channel = expected[i % expected.size()];
          channel = std::max(channel, std::abs(x[i]));
        }
      }
      CHECK(read_floats(amax) == expected);
    }
  }
  OpFixture f;
  const Tensor amax = f.zeros(DType::F32, {2});
  f->channel_amax({f.floats(DType::F32, {2, 2}, {1, INFINITY, NAN, 2}), amax});
  CHECK(std::isnan(amax.as<float>()[0]));
  CHECK(std::isinf(amax.as<float>()[1]));
}

// (S9)
TEST_CASE("the cosine of an aligned pair of rows is one, of an opposite one minus one") {
  constexpr int64_t pairs = 5, width = 700;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    OpFixture f;
    Values x = normal_values(2 * pairs * width, 8, 0.02, dtype);
    const auto row = [&](int64_t r) { return x.begin() + r * width; };
    std::transform(row(1), row(2), row(pairs + 1), [](float v) { return 4 * v; });
    std::transform(row(2), row(3), row(pairs + 2), [](float v) { return -0.5f * v; });
    std::fill(row(3), row(4), 0.0f);
    const Tensor cosines = f.zeros(DType::F32, {pairs});
    f->row_cosines({f.floats(dtype, {2 * pairs, width}, x), {}, cosines});
    double ab = 0, a = 0, b = 0;
    for (int64_t i = 0; i < width; ++i) {
      const double u = static_cast<double>(row(0)[i]), v = static_cast<double>(row(pairs)[i]);
      ab += u * v, a += u * u, b += v * v;
    }
    CHECK(std::abs(static_cast<double>(cosines.as<float>()[0]) - ab / std::sqrt(a * b)) < 1e-7);
    CHECK(cosines.as<float>()[1] == 1.0f);
    CHECK(cosines.as<float>()[2] == -1.0f);
    CHECK(cosines.as<float>()[3] == 0.0f);
    CHECK(std::abs(cosines.as<float>()[4]) < 0.2f);  // random rows: about 1 / sqrt(700)
  }
}

TEST_CASE("the error of a cast is what rounding to nearest does, and shows saturation and flushing") {
  constexpr int64_t rows = 64, width = 1000;
  const auto decibels = [&](Format format, double deviation, float scale) {
    OpFixture f;
    const Tensor source = f.floats(DType::F32, {rows, width}, normal_values(rows * width, 1, deviation));
    CastOperation cast{source, {}, {}};
    cast.out.row = f.zeros(dtype_of(format), {rows, width});
    cast.out.cast = {.format = format, .scaling = scale > 0 ? Scaling::Delayed : Scaling::Current};
    cast.out.site = f.site();
    *cast.out.site.scale = scale;
    *cast.out.site.inverse_scale = scale > 0 ? 1 / scale : 0;
    f->cast(cast);
    CastError op{source,
                 cast.out.row,
                 {cast.out.site.inverse_scale},
                 f.zeros(DType::F64, {2 * rows}),
                 f.zeros(DType::F64, {2})};
    f->cast_error(op);
    double squares = 0, errors = 0;
    for (int64_t i = 0; i < rows * width; ++i) {
      const double x = static_cast<double>(round_to_bfloat16(source.as<float>()[i])),
                   e = x - static_cast<double>(decode(format, cast.out.row.as<uint8_t>()[i]) *
                                               *cast.out.site.inverse_scale);
      squares += x * x;
      errors += e * e;
    }
    const double* s = op.sums.as<double>();
    CHECK(std::abs(s[0] / squares - 1) < 1e-12);
    CHECK(std::abs(s[1] / errors - 1) < 1e-12);
    return 10 * std::log10(s[0] / s[1]);
  };
  // The sum over binades of P(binade) ulp^2 / 12: 7.0e-4 of the variance in E4M3, four times that in E5M2.
  CHECK(std::abs(decibels(Format::E4M3, 1, 0) - 31.5) < 0.3);
  CHECK(std::abs(decibels(Format::E5M2, 1, 0) - 25.5) < 0.3);
  CHECK(decibels(Format::E4M3, 1, 448 * 4) < 15);  // saturates
  CHECK(decibels(Format::E4M3, 1e-3, 0.25f) < 1);  // flushes
}

TEST_CASE("observations have the same bits for any number of threads") {
  std::vector<Bytes> all[3];
  for (const int threads : {1, 2, 4}) {
    OpFixture f(threads);
    const Values x = normal_values(50 * 1100, 5, 2);
    TensorStatistics op = statistics_of(f.floats(DType::BF16, {50, 1100}, x));
    op.context = 25;
    op.row_sums = f.zeros(DType::F64, {150});
    op.sums = f.zeros(DType::F64, {4});
    op.extremes = f.zeros(DType::U32, {2});
    f->tensor_statistics(op);
    const Tensor amax = f.zeros(DType::F32, {1100}), cosines = f.zeros(DType::F32, {25});
    f->channel_amax({op.x, amax});
    f->row_cosines({op.x, {}, cosines});
    const size_t run = threads == 1 ? 0 : threads == 2 ? 1 : 2;
    for (const Tensor& t : {op.sums, op.extremes, amax, cosines}) all[run].push_back(read_bytes(t));
  }
  CHECK(all[0] == all[1]);
  CHECK(all[0] == all[2]);
}

TEST_CASE("an observation that does not fit is refused before it is made") {
  OpFixture f;
  const Tensor x = f.zeros(DType::F32, {6, 8}), sums = f.zeros(DType::F64, {4});
  TensorStatistics op = statistics_of(x);
  op.row_sums = f.zeros(DType::F64, {18});
  op.sums = sums;
  op.extremes = f.zeros(DType::U32, {2});
  f->tensor_statistics(op);
  TensorStatistics wrong = op;
  wrong.context = 4;
  CHECK_THROWS(f->tensor_statistics(wrong));
  wrong = op;
  wrong.first = 1;
  CHECK_THROWS(f->tensor_statistics(wrong));
  wrong = op;
  wrong.row_sums = f.zeros(DType::F64, {17});
  CHECK_THROWS(f->tensor_statistics(wrong));
  CHECK_THROWS(f->channel_amax({x, f.zeros(DType::F32, {7})}));
  CHECK_THROWS(f->row_cosines({x, {}, f.zeros(DType::F32, {6})}));
  CHECK_THROWS(f->cast_error({x, f.zeros(DType::E4M3, {8, 6}), {}, op.row_sums, sums}));
}
