// Casts with scales of blocks of 128 values, and what they are for.
#include "device/scales.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "catch.h"
#include "device/op_fixture.h"
#include "numerics/scaling.h"

using namespace octet;

namespace {

struct Size {
  int64_t rows, columns;
};

CastTarget target(OpFixture& f, const Cast& cast, ScaleGranularity granularity, const Size& size) {
  CastTarget out;
  out.row = f.zeros(dtype_of(cast.format), {size.rows, size.columns});
  out.column = f.zeros(dtype_of(cast.format), {size.columns, size.rows});
  out.cast = cast;
  out.site = f.site();
  out.granularity = granularity;
  out.row_inverse_scale = f.zeros(DType::F32, scale_shape(granularity, size.rows, size.columns));
  out.column_inverse_scale = f.zeros(DType::F32, scale_shape(granularity, size.columns, size.rows));
  out.rounding_key = 99;
  return out;
}

// A plain loop: the inverse scale of the block [r0, r1) x [c0, c1).
float inverse_of(const Values& values, int64_t columns, const Cast& cast, const Size& from, const Size& to) {
  float amax = 1e-12f;
  for (int64_t r = from.rows; r < to.rows; ++r)
    for (int64_t c = from.columns; c < to.columns; ++c)
      amax = std::max(amax, std::fabs(values[static_cast<size_t>(r * columns + c)]));
  return 1.0f /
         (cast.rule == ScaleRule::Exact ? 448.0f / amax * (1 - 0x1p-22f) : power_of_two_scale(amax, 448.0f));
}

uint8_t code_of(const Cast& cast, float value, float inverse, uint64_t element) {
  const float scaled = value * (1.0f / inverse);
  return cast.rounding == Rounding::Stochastic
             ? encode_stochastic(cast.format, scaled, random_bits(99, element))
             : encode_e4m3(scaled);
}

constexpr Cast blockwise{Format::E4M3, Scaling::Blockwise};

}  // namespace

TEST_CASE("each copy has a scale per 128 values along its rows, measured for itself", "[cast]") {
  OpFixture f;
  for (const Size size : {Size{1, 1}, Size{3, 130}, Size{257, 40}, Size{130, 300}})
    for (const DType storage : {DType::BF16, DType::F32})
      for (const Rounding rounding : {Rounding::Nearest, Rounding::Stochastic})
        for (const ScaleRule rule : {ScaleRule::PowerOfTwo, ScaleRule::Exact}) {
          const auto [rows, columns] = size;
          Values values = normal_values(rows * columns, 7, 1.0, DType::BF16);
          for (size_t i = 0; i < values.size(); ++i)
            values[i] = std::ldexp(values[i], static_cast<int>(i / 64 % 40) - 20);
          for (int64_t c = 0; c < std::min<int64_t>(columns, 128); ++c) values[static_cast<size_t>(c)] = 0;
          Cast cast = blockwise;
          cast.rounding = rounding;
          cast.rule = rule;
          const CastTarget out = target(f, cast, ScaleGranularity::Vectors, size);
          f->cast({f.floats(storage, {rows, columns}, values), {}, out});
          int64_t wrong = 0;
          float largest = 0;
          for (int64_t r = 0; r < rows; ++r)
            for (int64_t c = 0; c < columns; ++c) {
              const auto i = static_cast<size_t>(r * columns + c);
              const int64_t r0 = r / 128 * 128, c0 = c / 128 * 128;
              const float of_row = inverse_of(values, columns, cast, {r, c0},
                                              {r + 1, std::min(c0 + 128, columns)}),
                          of_column =
                              inverse_of(values, columns, cast, {r0, c}, {std::min(r0 + 128, rows), c + 1});
              wrong += out.row_inverse_scale.as<float>()[c / 128 * rows + r] != of_row;
              wrong += out.column_inverse_scale.as<float>()[r / 128 * columns + c] != of_column;
              wrong += out.row.as<uint8_t>()[i] != code_of(cast, values[i], of_row, i);
              wrong += out.column.as<uint8_t>()[c * rows + r] != code_of(cast, values[i], of_column, i);
              largest = std::max(largest, std::fabs(values[i]));
            }
          INFO(rows << " x " << columns);
          CHECK(wrong == 0);
          CHECK(*out.site.amax == largest);
          CHECK(out.site.counters->elements == static_cast<uint64_t>(rows * columns));
          CHECK(*out.site.scale == 0.0f);
        }
}

TEST_CASE("squares have one scale per 128 x 128, the same in both copies", "[cast]") {
  OpFixture f;
  for (const Size size : {Size{1, 1}, Size{300, 130}, Size{128, 700}}) {
    const auto [rows, columns] = size;
    Values values = normal_values(rows * columns, 8, 1.0, DType::BF16);
    for (size_t i = 0; i < values.size(); ++i)
      values[i] = std::ldexp(values[i], static_cast<int>(i / 128 % 9) - 4);
    const CastTarget out = target(f, blockwise, ScaleGranularity::Squares, size);
    f->cast({f.floats(DType::F32, {rows, columns}, values), {}, out});
    int64_t wrong = 0;
    const int64_t pitch = square_pitch(columns), column_pitch = square_pitch(rows);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        const auto i = static_cast<size_t>(r * columns + c);
        const int64_t r0 = r / 128 * 128, c0 = c / 128 * 128;
        const float inverse = inverse_of(values, columns, blockwise, {r0, c0},
                                         {std::min(r0 + 128, rows), std::min(c0 + 128, columns)});
        const uint8_t code = code_of(blockwise, values[i], inverse, i);
        wrong += out.row_inverse_scale.as<float>()[r / 128 * pitch + c / 128] != inverse;
        wrong += out.column_inverse_scale.as<float>()[c / 128 * column_pitch + r / 128] != inverse;
        wrong += out.row.as<uint8_t>()[i] != code;
        wrong += out.column.as<uint8_t>()[c * rows + r] != code;
      }
    CHECK(wrong == 0);
  }
}

TEST_CASE("a block with an infinity or a NaN has a NaN scale, and no other block", "[cast]") {
  OpFixture f;
  for (const float broken : {std::numeric_limits<float>::infinity(), std::nanf("")}) {
    Values values = normal_values(200 * 300, 3);
    values[150 * 300 + 270] = broken;
    const CastTarget out = target(f, blockwise, ScaleGranularity::Vectors, {200, 300});
    f->cast({f.floats(DType::BF16, {200, 300}, values), {}, out});
    for (int64_t i = 0; i < 3 * 200; ++i)
      CHECK(std::isnan(out.row_inverse_scale.as<float>()[i]) == (i == 2 * 200 + 150));
    for (int64_t i = 0; i < 2 * 300; ++i)
      CHECK(std::isnan(out.column_inverse_scale.as<float>()[i]) == (i == 300 + 270));
    CHECK(std::isinf(*out.site.amax));
  }
}

TEST_CASE("scales of blocks of another shape, or beside no codes, are refused", "[cast]") {
  OpFixture f;
  const Tensor source = f.floats(DType::BF16, {3, 130}, normal_values(3 * 130, 3));
  CastTarget out = target(f, blockwise, ScaleGranularity::Vectors, {3, 130});
  out.row_inverse_scale.shape = {3, 2};  // the other way round
  CHECK_THROWS_AS(f->cast({source, {}, out}), Error);
  out = target(f, blockwise, ScaleGranularity::Vectors, {3, 130});
  out.column = {};
  CHECK_THROWS_AS(f->cast({source, {}, out}), Error);
  out.column_inverse_scale = {};
  CHECK_NOTHROW(f->cast({source, {}, out}));
}

// What 128 values share is what an outlier spoils: with one scale a tensor it spoils all of them.
TEST_CASE("one block of outliers costs the other blocks nothing, with one scale it costs them everything") {
  OpFixture f;
  constexpr int64_t rows = 256, columns = 512;
  Values values = normal_values(rows * columns, 12, 1.0, DType::BF16);
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < columns; ++c) {
      const bool outlier = r < 128 && c < 128;
      float& v = values[static_cast<size_t>(r * columns + c)];
      v = round_to_bfloat16(v * (outlier ? 1e4f : 1e-3f));
    }
  const Tensor source = f.floats(DType::BF16, {rows, columns}, values);
  // Relative error of everything outside the block.
  const auto error = [&](const CastTarget& out, const InverseScales& scales) {
    double lost = 0, norm = 0;
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        if (r < 128 && c < 128) continue;
        const auto i = static_cast<size_t>(r * columns + c);
        const double x = values[i],
                     y = static_cast<double>(decode_e4m3(out.row.as<uint8_t>()[i])) * scales.at(r, c);
        lost += (x - y) * (x - y);
        norm += x * x;
      }
    return std::sqrt(lost / norm);
  };
  for (const ScaleGranularity granularity : {ScaleGranularity::Vectors, ScaleGranularity::Squares}) {
    const CastTarget out = target(f, blockwise, granularity, {rows, columns});
    f->cast({source, {}, out});
    // Half an ulp of E4M3 is 2^-4 of a normal number; of a subnormal 2^-10 / 224 of the largest of its block,
    // which among normal numbers is less than 6 of their deviations.
    CHECK(error(out, cast_scales(out, rows, columns).row) <= 0x1p-4 + 6 * 0x1p-10 / 224);
  }
  CastTarget one = target(f, {Format::E4M3}, ScaleGranularity::Outer, {rows, columns});
  one.row_inverse_scale = one.column_inverse_scale = {};
  f->cast({source, {}, one});
  CHECK(error(one, {.values = one.site.inverse_scale}) >= 0.99);
}
