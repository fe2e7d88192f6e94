#include "numerics/group_codes.h"

#include <cmath>
#include <limits>

#include "catch.h"
#include "error_of.h"
#include "op_fixture.h"

using namespace octet;

namespace {

constexpr int64_t n = 64 * code_group;

// Groups of very different size, down to BF16's subnormals, and one of zeros.
Values values_of_many_sizes(DType dtype) {
  Values values = normal_values(n, 3);
  for (size_t i = 0; i < values.size(); ++i) {
    const auto group = static_cast<int>(i / code_group);
    values[i] = group == 5 ? 0 : rounded(dtype, std::ldexp(values[i], 4 * (group - 32)));
  }
  return values;
}

struct Kept {
  Tensor codes, scales;
};
Kept encode(OpFixture& on, const Tensor& source) {
  const Kept kept{on.zeros(DType::E4M3, {source.elements()}),
                  on.zeros(DType::U8, {source.elements() / code_group})};
  on->encode_groups({.source = source, .codes = kept.codes, .scales = kept.scales});
  return kept;
}
Values round_trip(OpFixture& on, const Values& values, DType dtype) {
  const Kept kept = encode(on, on.floats(dtype, {static_cast<int64_t>(values.size())}, values));
  const Tensor out = on.zeros(dtype, {static_cast<int64_t>(values.size())});
  on->decode_groups({.codes = kept.codes, .scales = kept.scales, .out = out});
  return read_floats(out);
}

}  // namespace

// Half an ulp of E4M3, or half its smallest subnormal where the largest of the group, scaled, is above 224.
TEST_CASE("a kept activation comes back within half an ulp of E4M3, whatever its group's neighbours are") {
  OpFixture on;
  for (const DType dtype : {DType::F32, DType::BF16}) {
    const Values values = values_of_many_sizes(DType::BF16), back = round_trip(on, values, dtype);
    double worst = 0;
    for (size_t i = 0; i < values.size(); ++i) {
      double largest = 0;
      for (size_t j = i / code_group * code_group; j < (i / code_group + 1) * code_group; ++j)
        largest = std::max(largest, std::abs(static_cast<double>(values[j])));
      const double x = values[i], error = std::abs(static_cast<double>(back[i]) - x);
      worst = std::max(worst, error / (0x1p-4 * std::abs(x) + 0x1p-10 / 224 * largest + 0x1p-134));
    }
    CHECK(worst <= 1);
    CHECK(worst > 0.9);  // the bound is tight
  }
}

TEST_CASE("one scale a tensor would lose the small groups beside a large one") {
  OpFixture on;
  const Values values = values_of_many_sizes(DType::BF16);
  float amax = 0;
  for (const float v : values) amax = std::max(amax, std::abs(v));
  const float scale = power_of_two_scale(amax, e4m3_max);
  size_t lost = 0, lost_in_groups = 0;
  const Values back = round_trip(on, values, DType::BF16);
  for (size_t i = 0; i < values.size(); ++i) {
    if (values[i] == 0) continue;
    lost += decode_e4m3(encode_e4m3(values[i] * scale)) == 0;
    lost_in_groups += back[i] == 0;
  }
  CHECK(lost > values.size() / 2);
  CHECK(lost_in_groups < values.size() / 100);  // below 2^-10 of 448 in their own group
}

TEST_CASE("a group with a value that is not finite comes back as NaN, and no other") {
  OpFixture on;
  for (const float broken :
       {std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
    Values values = normal_values(4 * code_group, 1);
    values[code_group + 3] = broken;
    const Values back = round_trip(on, values, DType::F32);
    for (size_t i = 0; i < back.size(); ++i) CHECK(std::isnan(back[i]) == (i / code_group == 1));
  }
}

TEST_CASE("activations that do not fit their codes are refused") {
  OpFixture on;
  const Tensor source = on.floats(DType::F32, {32}, normal_values(32, 1));
  const EncodeGroups right{
      .source = source, .codes = on.zeros(DType::E4M3, {32}), .scales = on.zeros(DType::U8, {2})};
  CHECK_NOTHROW(on->encode_groups(right));
  EncodeGroups wrong = right;
  wrong.scales = on.zeros(DType::U8, {1});
  CHECK(std::string(error_of([&] { on->encode_groups(wrong); }).what()).find("encode_groups: 32 values") ==
        0);
  wrong = right;
  wrong.source.shape = {24};
  CHECK_THROWS_AS(on->encode_groups(wrong), Error);
  CHECK_THROWS_AS(on->decode_groups({.codes = right.scales, .scales = right.scales, .out = source}), Error);
}
