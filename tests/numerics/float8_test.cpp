#include "numerics/float8.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"
#include "catch.h"
#include "numerics/bfloat16.h"
#ifdef OCTET_HAS_CUDA_FP8
#include <cuda_fp8.h>
#endif

using namespace octet;

namespace {

struct Layout {
  Format format;
  int mantissa, bias, last;  // last finite code
};
const Layout layouts[] = {{Format::E4M3, 3, 7, 0x7e}, {Format::E5M2, 2, 15, 0x7b}};

float from_bits(uint32_t bits) {
  float x;
  std::memcpy(&x, &bits, 4);
  return x;
}
uint32_t bits_of(float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, 4);
  return bits;
}

// The value of a non-negative finite code, from the definition of the format.
double value_of(const Layout& layout, int code) {
  const int exponent = code >> layout.mantissa, fraction = code & ((1 << layout.mantissa) - 1);
  return exponent == 0
             ? std::ldexp(fraction, 1 - layout.bias - layout.mantissa)
             : std::ldexp((1 << layout.mantissa) + fraction, exponent - layout.bias - layout.mantissa);
}

// Independent encoder: the nearest value of the table, found by walking up the midpoints of neighbours, which
// are exact in double. The walk starts where the last one ended, so that ascending inputs cost one
// comparison.
class NearestWalk {
 public:
  explicit NearestWalk(const Layout& layout) : last_(layout.last) {
    for (int code = 0; code < last_; ++code)
      middle_[code] = 0.5 * (value_of(layout, code) + value_of(layout, code + 1));
  }
  uint8_t operator()(float x) {
    const int sign = std::signbit(x) ? 0x80 : 0;
    if (std::isnan(x)) return 0x7f;
    const double a = std::fabs(static_cast<double>(x));
    if (a < previous_) code_ = 0;
    previous_ = a;
    // A tie belongs to the even one of the two codes.
    while (code_ < last_ && (a > middle_[code_] || (a == middle_[code_] && code_ % 2 == 1))) ++code_;
    return static_cast<uint8_t>(code_ | sign);
  }

 private:
  int last_, code_ = 0;
  double previous_ = 0;
  std::array<double, 128> middle_{};
};

// How many of the 2^32 floats, visited with a stride, encode differently from the walk.
int64_t disagreements(const Layout& layout, uint64_t stride) {
  constexpr uint64_t chunks = 256, chunk = (uint64_t{1} << 32) / chunks;
  int64_t wrong = 0;
#pragma omp parallel for reduction(+ : wrong)
  for (uint64_t c = 0; c < chunks; ++c) {
    NearestWalk nearest(layout);
    for (uint64_t u = c * chunk; u < (c + 1) * chunk; u += stride) {
      const float x = from_bits(static_cast<uint32_t>(u));
      wrong += encode(layout.format, x) != nearest(x);
    }
  }
  return wrong;
}

}  // namespace

TEST_CASE("every code decodes to the value of its definition and encodes back to itself") {
  for (const Layout& layout : layouts) {
    for (int code = 0; code <= layout.last; ++code) {
      const float value = decode(layout.format, static_cast<uint8_t>(code));
      CHECK(static_cast<double>(value) == value_of(layout, code));
      CHECK(encode(layout.format, value) == code);
      CHECK(encode(layout.format, -value) == (code | 0x80));
      CHECK(bits_of(decode(layout.format, static_cast<uint8_t>(code | 0x80))) ==
            (bits_of(value) | 0x80000000u));
      CHECK(round_to_bfloat16(value) == value);  // FP8 is exact in BF16
    }
  }
}

TEST_CASE("the limits of the formats are those of the specification") {
  CHECK(decode_e4m3(0x7e) == 448.0f);
  CHECK(decode_e4m3(0x08) == 0x1p-6f);
  CHECK(decode_e4m3(0x01) == e4m3_min_subnormal);
  CHECK(decode_e5m2(0x7b) == 57344.0f);
  CHECK(decode_e5m2(0x04) == 0x1p-14f);
  CHECK(decode_e5m2(0x01) == e5m2_min_subnormal);
  CHECK(std::isnan(decode_e4m3(0x7f)));
  CHECK(std::isnan(decode_e4m3(0xff)));
  CHECK(decode_e5m2(0x7c) == std::numeric_limits<float>::infinity());
  CHECK(decode_e5m2(0xfc) == -std::numeric_limits<float>::infinity());
  for (const uint8_t nan : std::initializer_list<uint8_t>{0x7d, 0x7e, 0x7f, 0xfd, 0xfe, 0xff})
    CHECK(std::isnan(decode_e5m2(nan)));
}

TEST_CASE("every midpoint goes to the even code, and its two float neighbours to their own side") {
  for (const Layout& layout : layouts) {
    for (int code = 0; code < layout.last; ++code) {
      const auto middle = static_cast<float>(0.5 * (value_of(layout, code) + value_of(layout, code + 1)));
      CHECK(encode(layout.format, middle) == code + (code & 1));
      CHECK(encode(layout.format, std::nextafter(middle, 0.0f)) == code);
      CHECK(encode(layout.format, std::nextafter(middle, 1e9f)) == code + 1);
      CHECK(encode(layout.format, -middle) == ((code + (code & 1)) | 0x80));
    }
  }
}

TEST_CASE("encoding saturates: large numbers and infinities become the largest, NaN stays NaN") {
  constexpr float infinity = std::numeric_limits<float>::infinity();
  for (const Layout& layout : layouts) {
    const float max = max_of(layout.format);
    for (const float x : {max, std::nextafter(max, infinity), 2 * max, 3e38f, infinity}) {
      CHECK(encode(layout.format, x) == layout.last);
      CHECK(encode(layout.format, -x) == (layout.last | 0x80));
      CHECK(encode_stochastic(layout.format, x, 0) == layout.last);
      CHECK(encode_stochastic(layout.format, -x, UINT32_MAX) == (layout.last | 0x80));
    }
    for (const uint32_t nan : {0x7f800001u, 0x7fc00000u, 0x7fffffffu}) {
      CHECK(encode(layout.format, from_bits(nan)) == 0x7f);
      CHECK(encode(layout.format, from_bits(nan | 0x80000000u)) == 0x7f);
      CHECK(encode_stochastic(layout.format, from_bits(nan), 123) == 0x7f);
      CHECK(encode_stochastic(layout.format, from_bits(nan | 0x80000000u), 123) == 0x7f);
    }
  }
}

TEST_CASE("encoders agree with the nearest value of the table over a sample of all floats") {
  for (const Layout& layout : layouts) CHECK(disagreements(layout, 4099) == 0);
}

TEST_CASE("encoders agree with the nearest value of the table over all 2^32 floats", "[.long]") {
  for (const Layout& layout : layouts) CHECK(disagreements(layout, 1) == 0);
}

TEST_CASE("the reference would notice an encoder that rounds ties away or truncates") {
  NearestWalk nearest(layouts[0]);
  CHECK(nearest(1.0625f) == encode_e4m3(1.0f));   // the tie between 1 and 1.125 goes to the even 1
  CHECK(nearest(1.1875f) == encode_e4m3(1.25f));  // between 1.125 and 1.25, to the even 1.25
  CHECK(nearest(1.0625001f) == encode_e4m3(1.125f));
}

#ifdef OCTET_HAS_CUDA_FP8
TEST_CASE("encoders agree with CUDA's cuda_fp8.h over a sample of all floats") {
  int64_t wrong = 0;
  const auto compare = [&](float x) {
    const uint8_t e4m3 = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E4M3);
    const uint8_t e5m2 = __nv_cvt_float_to_fp8(x, __NV_SATFINITE, __NV_E5M2);
    wrong += encode_e4m3(x) != e4m3 || encode_e5m2(x) != e5m2;
  };
  for (uint64_t u = 0; u < uint64_t{1} << 32; u += 8191) compare(from_bits(static_cast<uint32_t>(u)));
  for (const uint32_t special :
       {0x7f800000u, 0xff800000u, 0x7fc00000u, 0x00000000u, 0x80000000u, 0x7f7fffffu})
    compare(from_bits(special));
  CHECK(wrong == 0);
}
#endif

TEST_CASE("stochastic rounding leaves every code what it is, whatever the random bits") {
  for (const Layout& layout : layouts)
    for (int code = 0; code <= layout.last; ++code)
      for (const uint32_t random : {0u, 1u, 0x7fffffffu, UINT32_MAX}) {
        const float value = decode(layout.format, static_cast<uint8_t>(code));
        CHECK(encode_stochastic(layout.format, value, random) == code);
        CHECK(encode_stochastic(layout.format, -value, random) == (code | 0x80));
      }
}

TEST_CASE("stochastic rounding goes up in exactly the right share of all random numbers") {
  // 2^20 discarded bits of a normal E4M3 number: run through all their values.
  const uint32_t base = bits_of(1.5f);
  for (const uint32_t fraction : {0u, 1u, 77777u, 1u << 19, (1u << 20) - 1}) {
    const float x = from_bits(base | fraction);
    uint32_t up = 0;
    for (uint32_t r = 0; r < 1u << 20; ++r)
      up += encode_stochastic(Format::E4M3, x, r << 12) != encode_e4m3(1.5f);
    CHECK(up == fraction);
  }
  // A quarter, a half, three quarters of the smallest subnormal.
  for (const Format f : {Format::E4M3, Format::E5M2}) {
    const float step = decode(f, 1);
    for (int quarter = 0; quarter <= 4; ++quarter) {
      int up = 0;
      for (uint32_t r = 0; r < 256; ++r)
        up += encode_stochastic(f, 0.25f * static_cast<float>(quarter) * step, r << 24);
      CHECK(up == 64 * quarter);
    }
  }
}

TEST_CASE("the mean of a million stochastic roundings is x within four standard errors") {
  const int draws = 1'000'000;
  for (const Layout& layout : layouts) {
    for (const float x : {1.0f / 3, -2.7f, 100.1f, 0.0013f, -0x1.88p-11f, 3e-6f, 447.0f}) {
      double sum = 0, squares = 0;
      for (int i = 0; i < draws; ++i) {
        const double q = decode(
            layout.format, encode_stochastic(layout.format, x, random_bits(17, static_cast<uint64_t>(i))));
        sum += q;
        squares += (q - x) * (q - x);
      }
      const double standard_error = std::sqrt(squares / draws / draws);
      INFO("x = " << x);
      CHECK(std::abs(sum / draws - static_cast<double>(x)) <= 4 * standard_error);
      // Negative control: round to nearest is off by far more, as all of these lie between two codes.
      CHECK(std::abs(decode(layout.format, encode(layout.format, x)) - x) > 4 * standard_error);
    }
  }
}

TEST_CASE("BF16 rounds to nearest even, keeps NaN and overflows to infinity") {
  CHECK(round_to_bfloat16(1.0f + 0x1p-8f) == 1.0f);              // tie to even
  CHECK(round_to_bfloat16(1.0f + 0x1.8p-7f) == 1.0f + 0x1p-6f);  // tie to even, upwards
  CHECK(round_to_bfloat16(1.0f + 0x1.01p-8f) == 1.0f + 0x1p-7f);
  CHECK(std::isinf(round_to_bfloat16(3.4028234e38f)));
  CHECK(std::isnan(round_to_bfloat16(from_bits(0x7f800001u))));
  for (uint32_t code = 0; code < 0x10000u; ++code) {
    const float x = to_float(BFloat16{static_cast<uint16_t>(code)});
    if (!std::isnan(x)) REQUIRE(to_bfloat16(x).bits == code);
  }
}
