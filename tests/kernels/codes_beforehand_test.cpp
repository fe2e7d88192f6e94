#include "kernels/codes_beforehand.h"

#include <cmath>
#include <limits>

#include "array.h"
#include "catch.h"
#include "device/cpu/codes_beforehand.h"
#include "environment.h"

using namespace octet;

namespace {

constexpr float infinity = std::numeric_limits<float>::infinity(),
                not_a_number = std::numeric_limits<float>::quiet_NaN();

struct Shape2 {
  int64_t count;
  size_t misaligned = 0;
};

// Values that differ from the specification's.
int64_t wrong_values(DType codes_type, DType storage, const Shape2& s, float inverse) {
  const Array codes(codes_type, {1, s.count}, s.misaligned), out(storage, {1, s.count}, 4 * s.misaligned),
      expected(storage, {1, s.count});
  for (int64_t i = 0; i < s.count; ++i)
    codes.as<uint8_t>()[i] = static_cast<uint8_t>(i < 256 ? i : random_bits(3, static_cast<uint64_t>(i)));
  decode_codes(codes, inverse, expected, 1);
  kernels::decode({.codes = codes.as<uint8_t>(),
                   .format = codes_type == DType::E4M3 ? Format::E4M3 : Format::E5M2,
                   .inverse_scale = &inverse,
                   .to = out.data(),
                   .storage = storage == DType::F32 ? Format::FP32 : Format::BF16,
                   .count = s.count});
  return differences(out, expected);
}

}  // namespace

TEST_CASE("decode gives the specification's values for all codes, ragged and unaligned") {
  for (const DType codes : {DType::E4M3, DType::E5M2})
    for (const DType storage : {DType::BF16, DType::F32})
      for (const Shape2& s : {Shape2{1}, Shape2{7}, Shape2{8}, Shape2{256}, Shape2{1003}, Shape2{300, 1}})
        for (const float inverse : {0x1p-7f, 1.0f / 90.7f, not_a_number}) {
          CAPTURE(name_of(codes), name_of(storage), s.count, s.misaligned, inverse);
          CHECK(wrong_values(codes, storage, s, inverse) == 0);
        }
  for (const char* schedule : schedules) {
    const InterpreterSetting order("SCHEDULE", schedule), threads("THREADS", "2");
    CHECK(wrong_values(DType::E5M2, DType::BF16, {5000}, 0x1p-7f) == 0);
  }
}

TEST_CASE("scales beforehand are the site's or the start's, as the specification has them") {
  const GradientStart start = gradient_start(300, 4, 64, 0.125f);
  for (const ScaleRule rule : {ScaleRule::PowerOfTwo, ScaleRule::Exact})
    for (const float history : {0.0f, 96.0f})
      for (const float qkv : {0x1p-6f, 0.013f, not_a_number})
        for (const float gradient : {0x1p-40f, 3e-7f, infinity}) {
          const auto check = [&](Format format, kernels::StartOf of, float start_amax) {
            CodesBeforehand made;
            made.cast = {format, Scaling::Delayed, rule, Rounding::Nearest};
            float site = history, scale = -1, inverse = -1, amaxes[3] = {5, 6, 7};
            made.site.scale = &site;
            kernels::scale_beforehand({.cast = made.cast,
                                       .site_scale = &site,
                                       .start_of = of,
                                       .start = start,
                                       .qkv_inverse_scale = &qkv,
                                       .gradient_inverse_scale = &gradient,
                                       .scale = &scale,
                                       .inverse_scale = &inverse,
                                       .amaxes = amaxes,
                                       .amax_count = 2});
            CHECK(scale == rule_of(made, start_amax).scale);
            CHECK(inverse == 1.0f / scale);
            CHECK((amaxes[0] == 0 && amaxes[1] == 0 && amaxes[2] == 7));
          };
          const float input = e4m3_max * qkv, out = e5m2_max * gradient;
          check(Format::E4M3, kernels::StartOf::Output, output_start(input));
          check(Format::E5M2, kernels::StartOf::ScoreGradient, score_gradient_start(start, input, out));
          check(Format::E5M2, kernels::StartOf::QkvGradient, qkv_gradient_start(start, input, out));
        }
}

TEST_CASE("a site's books after the fact: the largest amax, and NaN for what was not finite") {
  struct Case {
    float amaxes[3], other, before, amax;
    bool finite;
  };
  for (const Case& c :
       {Case{{1, 3, 2}, 9, 0, 3, true}, Case{{1, 3, 2}, 9, 4, 4, true}, Case{{0, 0, 0}, 0, 0, 0, true},
        Case{{1, infinity, 2}, 0, 0, infinity, false}, Case{{not_a_number, 1, 2}, 0, 5, infinity, false},
        Case{{1, 3, 2}, not_a_number, 0, 3, false}}) {
    CAPTURE(c.amaxes[0], c.amaxes[1], c.other, c.before);
    const float scale = 24;
    float inverse = 0, site_inverse = 0, site_amax = c.before;
    kernels::record_beforehand({.scale = &scale,
                                .amaxes = c.amaxes,
                                .amax_count = 3,
                                .other_amax = &c.other,
                                .inverse_scale = &inverse,
                                .site_inverse_scale = &site_inverse,
                                .site_amax = &site_amax});
    CHECK(site_amax == c.amax);
    CHECK(std::isnan(inverse) == !c.finite);
    CHECK(std::isnan(site_inverse) == !c.finite);
    if (c.finite) CHECK((inverse == 1.0f / 24 && site_inverse == 1.0f / 24));
  }
}
