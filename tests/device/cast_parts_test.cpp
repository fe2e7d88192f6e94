// A tensor whose parts are cast by those who hold them: the codes, the scale and the counts of one cast.
#include <limits>

#include "catch.h"
#include "device/op_fixture.h"

using namespace octet;

namespace {

constexpr int64_t rows = 48, columns = 96, elements = rows * columns;

struct Cast96 {
  Bytes codes;
  std::vector<float> site;  // scale, inverse, amax
  std::vector<uint64_t> counters;
  bool operator==(const Cast96&) const = default;
};

// `ends`: of the parts; one end: the whole. `forgetful`: each part is cast as if it were the whole.
struct Way {
  std::vector<int64_t> ends;
  bool forgetful = false, from_zero = false;
};

Cast96 cast_in_parts(const Values& values, const Cast& cast, float history, const Way& way) {
  OpFixture f;
  const Tensor source = f.floats(DType::F32, {elements}, values), amax = f.zeros(DType::F32, {1});
  const Tensor row = f.zeros(dtype_of(cast.format), {elements});
  Site all;
  Cast96 result;
  result.counters.assign(3, 0);
  int64_t begin = 0;
  for (const int64_t end : way.ends) f->measure_amax({source.slice(begin, end - begin), amax}), begin = end;
  begin = 0;
  for (const int64_t end : way.ends) {
    CastOperation op;
    op.source = source.slice(begin, end - begin);
    op.out.row = row.slice(begin, end - begin);
    op.out.cast = cast;
    op.out.site = f.site();  // each rank has its own
    *op.out.site.scale = history;
    op.out.rounding_key = 99;
    if (way.ends.size() > 1 && !way.forgetful) {
      op.amax = amax;
      op.first = way.from_zero ? 0 : begin;
    }
    f->cast(op);
    const Site& site = op.out.site;
    const std::vector<float> numbers = {*site.scale, *site.inverse_scale, *site.amax};
    if (begin == 0) result.site = numbers;
    if (!std::isnan(numbers[1])) CHECK((numbers == result.site || way.forgetful));
    result.counters[0] += site.counters->elements;
    result.counters[1] += site.counters->saturated;
    result.counters[2] += site.counters->flushed;
    begin = end;
  }
  result.codes = read_bytes(row);
  return result;
}

Values hard_values() {
  Values values = normal_values(elements, 3, 1e-3);
  for (size_t i = 0; i < values.size(); i += 13) values[i] *= 1e-6f;  // will be flushed
  values[4000] = 0.25f;                                               // the amax, in the last part
  return values;
}

}  // namespace

TEST_CASE("parts cast with the whole's amax have the codes, scale, amax and counts of one cast", "[cast]") {
  const Values values = hard_values();
  const std::vector<int64_t> parts = {1000, 1003, 1003, 3584, elements};
  for (const Scaling scaling : {Scaling::Current, Scaling::Delayed})
    for (const float history : {0.0f, 65536.0f})  // the second saturates
      for (const Rounding rounding : {Rounding::Nearest, Rounding::Stochastic}) {
        CAPTURE(static_cast<int>(scaling), history, static_cast<int>(rounding));
        const Cast cast{Format::E4M3, scaling, ScaleRule::PowerOfTwo, rounding};
        const Cast96 whole = cast_in_parts(values, cast, history, {{elements}});
        CHECK((cast_in_parts(values, cast, history, {parts}) == whole));
        CHECK(whole.counters[0] == elements);
        CHECK(whole.counters[2] > 0);
        const bool known = scaling == Scaling::Delayed && history != 0;
        CHECK((whole.counters[1] > 0) == known);
        // Controls: amaxes of their own, random numbers from the beginning.
        if (!known) CHECK_FALSE((cast_in_parts(values, cast, history, {parts, true}).codes == whole.codes));
        const bool other_numbers =
            !(cast_in_parts(values, cast, history, {parts, false, true}).codes == whole.codes);
        CHECK(other_numbers == (rounding == Rounding::Stochastic));
      }
}

TEST_CASE("a NaN or infinity in one part makes the inverse scale of every part NaN", "[cast]") {
  const Cast cast{Format::E4M3, Scaling::Delayed, ScaleRule::PowerOfTwo, Rounding::Nearest};
  for (const float broken :
       {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity()}) {
    Values values = hard_values();
    values[20] = broken;
    OpFixture f;
    const Tensor source = f.floats(DType::F32, {elements}, values), amax = f.zeros(DType::F32, {1});
    const Tensor first = source.slice(0, 96), second = source.slice(96, 96);
    const auto inverse_of = [&](const Tensor& part) {
      CastOperation op;
      op.source = part;
      op.amax = amax;
      op.out.row = f.zeros(DType::E4M3, {96});
      op.out.cast = cast;
      op.out.site = f.site();
      *op.out.site.scale = 16;
      f->cast(op);
      return *op.out.site.inverse_scale;
    };
    f->measure_amax({second, amax});
    CHECK(inverse_of(second) == 1.0f / 16);  // control: without the broken one
    f->measure_amax({first, amax});
    f->measure_amax({second, amax});
    CHECK(std::isnan(inverse_of(first)));
    CHECK(std::isnan(inverse_of(second)));
  }
}

TEST_CASE("codes are transposed at any shape", "[cast]") {
  for (const auto& [r, c] : std::vector<std::pair<int64_t, int64_t>>{
           {1, 1}, {1, 300}, {17, 1}, {16, 16}, {64, 256}, {65, 257}, {130, 531}}) {
    CAPTURE(r, c);
    OpFixture f;
    const Tensor codes = f.zeros(DType::E5M2, {r, c}), out = f.zeros(DType::E5M2, {c, r});
    for (int64_t i = 0; i < r * c; ++i)
      codes.as<uint8_t>()[i] = static_cast<uint8_t>(random_bits(5, static_cast<uint64_t>(i)));
    f->transpose_codes({codes, out});
    CHECK(read_bytes(out) == transposed(read_bytes(codes), r, c));
  }
}

TEST_CASE("parts that would not be parts of one cast are refused", "[cast]") {
  OpFixture f;
  CastOperation op;
  op.source = f.zeros(DType::F32, {4, 8});
  op.out.row = f.zeros(DType::E4M3, {4, 8});
  op.out.cast = {Format::E4M3, Scaling::Current, ScaleRule::PowerOfTwo, Rounding::Nearest};
  op.out.site = f.site();
  op.first = 8;
  CHECK_THROWS_WITH(f->cast(op), contains_text("a part of a tensor without the amax of the whole"));
  op.amax = f.zeros(DType::F32, {1});
  CHECK_NOTHROW(f->cast(op));
  op.out.column = f.zeros(DType::E4M3, {8, 4});
  CHECK_THROWS_WITH(f->cast(op), contains_text("a part of a tensor has row codes and nothing else"));
  op.first = 0;
  CHECK_NOTHROW(f->cast(op));
  op.out.high = f.zeros(DType::BF16, {4, 8});
  CHECK_THROWS_WITH(f->cast(op), contains_text("codes of one scale and nothing else"));
  CHECK_THROWS_WITH(f->transpose_codes({f.zeros(DType::E4M3, {4, 8}), f.zeros(DType::E4M3, {4, 8})}),
                    contains_text("transpose_codes: F8_E4M3 [4, 8] to F8_E4M3 [4, 8]"));
  CHECK_THROWS_WITH(f->measure_amax({f.zeros(DType::E4M3, {4}), op.amax}),
                    contains_text("source is F8_E4M3"));
}
