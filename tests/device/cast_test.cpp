#include <bit>
#include <limits>

#include "catch.h"
#include "device/op_fixture.h"
#include "numerics/scaling.h"

using namespace octet;

namespace {

struct Codes {
  Tensor row, column;
};
Codes make_codes(OpFixture& f, Format format, int64_t rows, int64_t columns) {
  return {f.zeros(dtype_of(format), {rows, columns}), f.zeros(dtype_of(format), {columns, rows})};
}

CastTarget target(const Codes& codes, const Cast& cast, const Site& site) {
  CastTarget out;
  out.row = codes.row;
  out.column = codes.column;
  out.cast = cast;
  out.site = site;
  return out;
}

float amax_of(const Values& values) {
  float amax = 0;
  for (const float v : values) amax = std::max(amax, std::abs(v));
  return amax;
}

struct Rule {
  Format format;
  ScaleRule scale;
  DType source;
};

}  // namespace

TEST_CASE("codes are the encoded BF16 value times the scale, and the column copy is their transpose",
          "[cast]") {
  const auto [format, scale_rule, source_type] = GENERATE(
      Rule{Format::E4M3, ScaleRule::PowerOfTwo, DType::BF16},
      Rule{Format::E5M2, ScaleRule::PowerOfTwo, DType::F32}, Rule{Format::E4M3, ScaleRule::Exact, DType::F32},
      Rule{Format::E5M2, ScaleRule::Exact, DType::BF16});
  for (const auto& [rows, columns] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {1, 300}, {17, 1}, {16, 16}, {3, 5}, {64, 256}, {65, 257}, {130, 531}}) {
    CAPTURE(rows, columns);
    OpFixture f;
    const Values values = normal_values(rows * columns, 7, 3e-4, source_type);
    const Tensor source = f.floats(source_type, {rows, columns}, values);
    const Codes codes = make_codes(f, format, rows, columns);
    const Cast cast{format, Scaling::Current, scale_rule, Rounding::Nearest};
    const Site site = f.site();
    f->cast({source, {}, target(codes, cast, site)});

    Values bf16 = values;
    for (float& v : bf16) v = round_to_bfloat16(v);
    const float scale = scale_for(scale_rule, amax_of(bf16), max_of(format));
    CHECK(*site.amax == amax_of(bf16));
    CHECK(*site.scale == scale);
    CHECK(*site.inverse_scale == 1.0f / scale);
    Bytes expected(values.size());
    for (size_t i = 0; i < values.size(); ++i) expected[i] = encode(format, bf16[i] * scale);
    CHECK(read_bytes(codes.row) == expected);
    CHECK(read_bytes(codes.column) == transposed(expected, rows, columns));
  }
}

TEST_CASE("an FP32 value is rounded to BF16 before it is encoded", "[cast]") {
  // 1.0625 is the midpoint of the E4M3 neighbours 1 and 1.125 and goes to the even code, 1. A value above it
  // by less than half a BF16 step rounds to it.
  const float above = 1.0625f + 0x1p-10f;
  REQUIRE(round_to_bfloat16(above) == 1.0625f);
  REQUIRE(encode_e4m3(above) != encode_e4m3(1.0625f));  // the control: rounding once gives another code
  OpFixture f;
  const Tensor source = f.floats(DType::F32, {1, 2}, {above, 256.0f});  // 256: power-of-two scale 1
  const Codes codes = make_codes(f, Format::E4M3, 1, 2);
  f->cast({source, {}, target(codes, {Format::E4M3}, f.site())});
  CHECK(read_bytes(codes.row)[0] == encode_e4m3(1.0625f));
}

TEST_CASE("one copy alone equals the same copy of a pair", "[cast]") {
  OpFixture f;
  const int64_t rows = 70, columns = 90;
  const Tensor source = f.floats(DType::BF16, {rows, columns}, normal_values(rows * columns, 3));
  const Codes both = make_codes(f, Format::E4M3, rows, columns),
              alone = make_codes(f, Format::E4M3, rows, columns);
  f->cast({source, {}, target(both, {Format::E4M3}, f.site())});
  f->cast({source, {}, target({alone.row, {}}, {Format::E4M3}, f.site())});
  f->cast({source, {}, target({{}, alone.column}, {Format::E4M3}, f.site())});
  CHECK(read_bytes(alone.row) == read_bytes(both.row));
  CHECK(read_bytes(alone.column) == read_bytes(both.column));
}

TEST_CASE("the site's amax is the maximum over a step's casts", "[cast]") {
  OpFixture f;
  const Codes codes = make_codes(f, Format::E4M3, 1, 3);
  const Site site = f.site();
  for (const float largest : {2.0f, 5.0f, 3.0f}) {
    f->cast({f.floats(DType::F32, {1, 3}, {0.5f, -largest, 1.0f}), {}, target(codes, {Format::E4M3}, site)});
    CHECK(*site.inverse_scale == 1.0f / power_of_two_scale(largest, 448.0f));
  }
  CHECK(*site.amax == 5.0f);
}

TEST_CASE("delayed scaling uses the table's scale, and the tensor's own amax while there is no history",
          "[cast]") {
  OpFixture f;
  const Values values = {0.25f, -3.0f, 100.0f, 1e-3f};
  const Tensor source = f.floats(DType::F32, {2, 2}, values);
  const Codes codes = make_codes(f, Format::E4M3, 2, 2);
  const Cast cast{Format::E4M3, Scaling::Delayed};
  const Site site = f.site();
  f->cast({source, {}, target(codes, cast, site)});
  CHECK(*site.scale == 0.0f);  // the state machine alone writes it
  CHECK(*site.inverse_scale == 0.25f);
  CHECK(decode_e4m3(read_bytes(codes.row)[2]) * 0.25f == 96.0f);  // 100 between 96 and 104

  *site.scale = 16.0f;  // from a calmer past: 100 * 16 saturates
  f->cast({source, {}, target(codes, cast, site)});
  CHECK(*site.scale == 16.0f);
  CHECK(*site.inverse_scale == 1.0f / 16.0f);
  CHECK(decode_e4m3(read_bytes(codes.row)[2]) == 448.0f);
  CHECK(*site.amax == 100.0f);
}

TEST_CASE("row and column scales are powers of two of the row's or column's own maximum", "[cast]") {
  OpFixture f;
  const int64_t rows = 67, columns = 131;
  Values values = normal_values(rows * columns, 11, 1.0, DType::BF16);
  for (int64_t c = 0; c < columns; ++c) values[static_cast<size_t>(5 * columns + c)] = 0.0f;  // a zero row
  for (int64_t r = 0; r < rows; ++r) values[static_cast<size_t>(r * columns + 9)] = 0.0f;     // a zero column
  values[static_cast<size_t>(17 * columns + 33)] = 1e6f;
  for (float& v : values) v = round_to_bfloat16(v);
  const Tensor source = f.floats(DType::BF16, {rows, columns}, values);
  Values row_inverse(static_cast<size_t>(rows)), column_inverse(static_cast<size_t>(columns));
  for (int64_t r = 0; r < rows; ++r) {
    float amax = 0;
    for (int64_t c = 0; c < columns; ++c)
      amax = std::max(amax, std::abs(values[static_cast<size_t>(r * columns + c)]));
    row_inverse[static_cast<size_t>(r)] = 1.0f / power_of_two_scale(amax, 448.0f);
  }
  for (int64_t c = 0; c < columns; ++c) {
    float amax = 0;
    for (int64_t r = 0; r < rows; ++r)
      amax = std::max(amax, std::abs(values[static_cast<size_t>(r * columns + c)]));
    column_inverse[static_cast<size_t>(c)] = 1.0f / power_of_two_scale(amax, 448.0f);
  }
  CHECK(row_inverse[5] == 1.0f);
  CHECK(column_inverse[9] == 1.0f);
  Bytes by_row(values.size()), by_column(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    by_row[i] = encode_e4m3(values[i] / row_inverse[i / static_cast<size_t>(columns)]);
    by_column[i] = encode_e4m3(values[i] / column_inverse[i % static_cast<size_t>(columns)]);
  }

  const auto run = [&](bool with_row, bool with_column) {
    const Codes codes = make_codes(f, Format::E4M3, rows, columns);
    CastTarget out = target(codes, {Format::E4M3}, f.site());
    if (with_row) out.row_inverse_scale = f.zeros(DType::F32, {rows});
    if (with_column) out.column_inverse_scale = f.zeros(DType::F32, {columns});
    f->cast({source, {}, out});
    if (with_row) CHECK(read_floats(out.row_inverse_scale) == row_inverse);
    if (with_column) CHECK(read_floats(out.column_inverse_scale) == column_inverse);
    CHECK(*out.site.amax == round_to_bfloat16(1e6f));
    return std::pair(read_bytes(codes.row), read_bytes(codes.column));
  };
  const auto dual = run(true, true), token = run(true, false), channel = run(false, true);
  CHECK(dual.first == by_row);
  CHECK(dual.second == transposed(by_column, rows, columns));
  CHECK(token.first == by_row);
  CHECK(token.second == transposed(by_row, rows, columns));
  CHECK(channel.first == by_column);
  CHECK(channel.second == transposed(by_column, rows, columns));
  CHECK(by_row != by_column);
}

TEST_CASE("a row factor goes into the column copy alone, with a scale of its own", "[cast]") {
  OpFixture f;
  const int64_t rows = 33, columns = 18;
  const Values values = normal_values(rows * columns, 5, 1.0, DType::BF16);
  Values factor(static_cast<size_t>(rows));
  for (size_t r = 0; r < factor.size(); ++r) factor[r] = std::ldexp(1.0f, static_cast<int>(r % 7) - 3);
  Values product = values;
  for (size_t i = 0; i < product.size(); ++i) product[i] *= factor[i / static_cast<size_t>(columns)];
  const Codes codes = make_codes(f, Format::E5M2, rows, columns);
  CastTarget out = target(codes, {Format::E5M2}, f.site());
  out.row_factor = f.floats(DType::F32, {rows}, factor);
  out.column_site = f.site();
  f->cast({f.floats(DType::BF16, {rows, columns}, values), {}, out});
  const float scale = power_of_two_scale(amax_of(values), e5m2_max),
              column_scale = power_of_two_scale(amax_of(product), e5m2_max);
  Bytes row(values.size()), column(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    row[i] = encode_e5m2(values[i] * scale);
    column[i] = encode_e5m2(product[i] * column_scale);
  }
  CHECK(*out.site.amax == amax_of(values));
  CHECK(*out.column_site.amax == amax_of(product));
  CHECK(*out.column_site.inverse_scale == 1.0f / column_scale);
  CHECK(read_bytes(codes.row) == row);
  CHECK(read_bytes(codes.column) == transposed(column, rows, columns));
}

TEST_CASE("stochastic rounding is a function of key and element, the same in both copies", "[cast]") {
  OpFixture f;
  const int64_t rows = 19, columns = 261;
  const Values values = normal_values(rows * columns, 21, 1.0, DType::BF16);
  const Tensor source = f.floats(DType::BF16, {rows, columns}, values);
  const Cast cast{Format::E5M2, Scaling::Current, ScaleRule::PowerOfTwo, Rounding::Stochastic};
  const auto run = [&](uint64_t key) {
    const Codes codes = make_codes(f, Format::E5M2, rows, columns);
    CastTarget out = target(codes, cast, f.site());
    out.rounding_key = key;
    f->cast({source, {}, out});
    CHECK(read_bytes(codes.column) == transposed(read_bytes(codes.row), rows, columns));
    return read_bytes(codes.row);
  };
  const float scale = power_of_two_scale(amax_of(values), e5m2_max);
  Bytes expected(values.size()), nearest(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    expected[i] = encode_stochastic(Format::E5M2, values[i] * scale, random_bits(99, i));
    nearest[i] = encode_e5m2(values[i] * scale);
  }
  CHECK(run(99) == expected);
  CHECK(run(100) != expected);
  CHECK(nearest != expected);
}

TEST_CASE("counters count elements, saturated and flushed values once per cast", "[cast]") {
  OpFixture f;
  // With the table's scale 1: 500 and -1000 saturate, 2^-11 and -2^-12 vanish, zeros are neither.
  const Values values = {500.0f, -1000.0f, 448.0f, 0x1p-11f, -0x1p-12f, 0.0f, -0.0f, 1.0f, 0x1p-9f};
  const Tensor source = f.floats(DType::F32, {3, 3}, values);
  const Codes codes = make_codes(f, Format::E4M3, 3, 3);
  for (const bool column_only : {false, true}) {
    Site site = f.site();
    *site.scale = 1.0f;
    CastTarget out = target(codes, {Format::E4M3, Scaling::Delayed}, site);
    if (column_only) out.row = {};
    f->cast({source, {}, out});
    f->cast({source, {}, out});
    CHECK(site.counters->elements == 18);
    CHECK(site.counters->saturated == 4);
    CHECK(site.counters->flushed == 4);
    site.counters = nullptr;  // off: nothing to write to
    out.site = site;
    f->cast({source, {}, out});
  }
}

TEST_CASE("a non-finite value makes its inverse scale NaN, so that saturation cannot hide it", "[cast]") {
  OpFixture f;
  const float bad = GENERATE(std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                             std::numeric_limits<float>::quiet_NaN());
  Values values = normal_values(6 * 20, 2);
  values[2 * 20 + 7] = bad;
  const Tensor source = f.floats(DType::F32, {6, 20}, values);
  const Codes codes = make_codes(f, Format::E4M3, 6, 20);
  CastTarget out = target(codes, {Format::E4M3}, f.site());
  f->cast({source, {}, out});
  CHECK(std::isnan(*out.site.inverse_scale));
  CHECK(std::isinf(*out.site.amax));

  out.row_inverse_scale = f.zeros(DType::F32, {6});
  out.column_inverse_scale = f.zeros(DType::F32, {20});
  f->cast({source, {}, out});
  for (int64_t r = 0; r < 6; ++r) CHECK(std::isnan(out.row_inverse_scale.as<float>()[r]) == (r == 2));
  for (int64_t c = 0; c < 20; ++c) CHECK(std::isnan(out.column_inverse_scale.as<float>()[c]) == (c == 7));
}

TEST_CASE("cast writes the storage copy, with folded column factors", "[cast]") {
  OpFixture f;
  const int64_t rows = 5, columns = 300;
  const Values values = normal_values(rows * columns, 31);
  Values factor(static_cast<size_t>(columns));
  for (size_t c = 0; c < factor.size(); ++c) factor[c] = std::ldexp(1.0f, static_cast<int>(c % 5) - 2);
  const Tensor master = f.floats(DType::F32, {rows, columns}, values);
  const Tensor factors = f.floats(DType::F32, {columns}, factor);
  const Codes codes = make_codes(f, Format::E4M3, rows, columns);
  CastTarget out = target(codes, {Format::E4M3}, f.site());
  out.high = f.zeros(DType::BF16, {rows, columns});
  f->cast({master, factors, out});
  Values folded = values;
  for (size_t i = 0; i < folded.size(); ++i)
    folded[i] = round_to_bfloat16(values[i] * factor[i % factor.size()]);
  CHECK(read_floats(out.high) == folded);
  const float scale = power_of_two_scale(amax_of(folded), 448.0f);
  Bytes expected(folded.size());
  for (size_t i = 0; i < folded.size(); ++i) expected[i] = encode_e4m3(folded[i] * scale);
  CHECK(read_bytes(codes.row) == expected);

  CastTarget plain;  // no codes: a conversion
  plain.high = f.zeros(DType::F32, {rows, columns});
  f->cast({master, {}, plain});
  CHECK(read_floats(plain.high) == values);
}

TEST_CASE("a cast gives the same bits for 1, 2 and 4 threads", "[cast]") {
  const int64_t rows = 200, columns = 700;
  const Values values = normal_values(rows * columns, 77);
  std::vector<Bytes> results;
  for (const int threads : {1, 2, 4}) {
    OpFixture f(threads);
    const Codes codes = make_codes(f, Format::E4M3, rows, columns);
    CastTarget out = target(codes, {Format::E4M3}, f.site());
    out.row_inverse_scale = f.zeros(DType::F32, {rows});
    out.column_inverse_scale = f.zeros(DType::F32, {columns});
    f->cast({f.floats(DType::BF16, {rows, columns}, values), {}, out});
    Bytes all;
    for (const Tensor& t : {codes.row, codes.column, out.row_inverse_scale, out.column_inverse_scale}) {
      const Bytes bytes = read_bytes(t);
      all.insert(all.end(), bytes.begin(), bytes.end());
    }
    results.push_back(all);
  }
  CHECK(results[0] == results[1]);
  CHECK(results[0] == results[2]);
}

TEST_CASE("codes of the wrong size are refused", "[cast]") {
  OpFixture f;
  const Tensor source = f.zeros(DType::F32, {4, 4});
  CHECK_THROWS(f->cast({source, {}, target(make_codes(f, Format::E4M3, 4, 3), {Format::E4M3}, f.site())}));
  CHECK_THROWS(f->cast({source, {}, target(make_codes(f, Format::E4M3, 4, 4), {Format::BF16}, f.site())}));
}
