#include "device/cpu/unpack.h"

#include <cstring>
#include <string>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "base/error.h"
#include "base/platform.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"

namespace octet {
namespace {

OCTET_HD uint32_t choose(bool condition, uint32_t yes, uint32_t no) {
  const uint32_t mask = 0u - static_cast<uint32_t>(condition);
  return (yes & mask) | (no & ~mask);
}
// The bits of an FP32 from a code, without branches so that loops become vector code. Same values as
// decode_e4m3 and decode_e5m2 (tests: all 256 codes). A subnormal gets the lowest normal's exponent and loses
// the leading one by a subtraction, exactly.
OCTET_HD uint32_t bits_of_e4m3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, magnitude = code & 0x7fu;
  const uint32_t raised = (magnitude << 20) + ((127u - 6u) << 23);
  float small;
  memcpy(&small, &raised, 4);
  small -= 0x1p-6f;
  uint32_t subnormal;
  memcpy(&subnormal, &small, 4);
  const uint32_t finite = choose(magnitude < 8u, subnormal, raised - (1u << 23));
  return choose(magnitude == 0x7fu, 0x7fc00000u, finite) | sign;
}
OCTET_HD uint32_t bits_of_e5m2(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, magnitude = code & 0x7fu;
  const uint32_t raised = (magnitude << 21) + ((127u - 14u) << 23);
  float small;
  memcpy(&small, &raised, 4);
  small -= 0x1p-14f;
  uint32_t subnormal;
  memcpy(&subnormal, &small, 4);
  const uint32_t finite = choose(magnitude < 4u, subnormal, raised - (1u << 23));
  const uint32_t special = choose(magnitude == 0x7cu, 0x7f800000u, 0x7fc00000u);
  return choose(magnitude >= 0x7cu, special, finite) | sign;
}

#if defined(__x86_64__)
// Thirty-two codes at a time by looking them up in registers: a fifth of the arithmetic's time.
struct Table {
  uint16_t positive[128];  // BF16 of the codes without a sign
  bool usable = __builtin_cpu_supports("avx512bw");
  explicit Table(Format format) {
    for (int code = 0; code < 128; ++code)
      positive[code] = static_cast<uint16_t>(
          (format == Format::E4M3 ? bits_of_e4m3 : bits_of_e5m2)(static_cast<uint8_t>(code)) >> 16);
  }
};
__attribute__((target("avx512f,avx512bw"))) int64_t look_up(const Table& table, const uint8_t* from,
                                                            uint16_t* to, int64_t n) {
  const __m512i t0 = _mm512_loadu_si512(table.positive), t1 = _mm512_loadu_si512(table.positive + 32),
                t2 = _mm512_loadu_si512(table.positive + 64), t3 = _mm512_loadu_si512(table.positive + 96);
  int64_t i = 0;
  for (; i + 32 <= n; i += 32) {
    const __m512i code = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from + i)));
    const __m512i low = _mm512_permutex2var_epi16(t0, code, t1),
                  high = _mm512_permutex2var_epi16(t2, code, t3);
    const __m512i value =
        _mm512_mask_blend_epi16(_mm512_test_epi16_mask(code, _mm512_set1_epi16(0x40)), low, high);
    const __m512i sign = _mm512_slli_epi16(_mm512_and_si512(code, _mm512_set1_epi16(0x80)), 8);
    _mm512_storeu_si512(to + i, _mm512_or_si512(value, sign));
  }
  return i;  // the rest is the caller's
}
#endif

OCTET_VECTORIZED void from_bfloat16(const uint16_t* __restrict from, uint32_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint32_t>(from[i]) << 16;
}
OCTET_VECTORIZED void from_e4m3(const uint8_t* __restrict from, uint32_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = bits_of_e4m3(from[i]);
}
OCTET_VECTORIZED void from_e5m2(const uint8_t* __restrict from, uint32_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = bits_of_e5m2(from[i]);
}
OCTET_VECTORIZED void e4m3_to_bfloat16(const uint8_t* __restrict from, uint16_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint16_t>(bits_of_e4m3(from[i]) >> 16);
}
OCTET_VECTORIZED void e5m2_to_bfloat16(const uint8_t* __restrict from, uint16_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = static_cast<uint16_t>(bits_of_e5m2(from[i]) >> 16);
}
OCTET_VECTORIZED void round_row(const float* __restrict from, uint16_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(from[i]).bits;
}

OCTET_VECTORIZED void pair_up(const uint16_t* __restrict first, const uint16_t* __restrict second,
                              uint32_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = first[i] | static_cast<uint32_t>(second[i]) << 16;
}
OCTET_VECTORIZED void widen(const uint16_t* __restrict from, uint32_t* __restrict to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i];
}

[[noreturn]] void refuse(DType type) {
  throw Error(ExitCode::Internal, std::string("no conversion for elements of type ") + name_of(type));
}

}  // namespace

// The FP32 buffer is filled through its bits; -fno-strict-aliasing makes that well defined.
void unpack(DType type, const void* from, float* to, int64_t count) {
  auto* bits = reinterpret_cast<uint32_t*>(to);
  switch (type) {
    case DType::F32:
      memcpy(to, from, static_cast<size_t>(count) * 4);
      return;
    case DType::BF16:
      return from_bfloat16(static_cast<const uint16_t*>(from), bits, count);
    case DType::E4M3:
      return from_e4m3(static_cast<const uint8_t*>(from), bits, count);
    case DType::E5M2:
      return from_e5m2(static_cast<const uint8_t*>(from), bits, count);
    default:
      refuse(type);
  }
}
void unpack_to_bfloat16(DType type, const void* from, uint16_t* to, int64_t count) {
  switch (type) {
    case DType::BF16:
      memcpy(to, from, static_cast<size_t>(count) * 2);
      return;
    case DType::E4M3:
    case DType::E5M2: {
      const auto* codes = static_cast<const uint8_t*>(from);
      int64_t done = 0;
#if defined(__x86_64__)
      static const Table e4m3(Format::E4M3), e5m2(Format::E5M2);
      if (e4m3.usable) done = look_up(type == DType::E4M3 ? e4m3 : e5m2, codes, to, count);
#endif
      if (done == count) return;
      return (type == DType::E4M3 ? e4m3_to_bfloat16 : e5m2_to_bfloat16)(codes + done, to + done,
                                                                         count - done);
    }
    default:
      refuse(type);
  }
}
void interleave(const uint16_t* first, const uint16_t* second, uint32_t* to, int64_t count) {
  if (second)
    pair_up(first, second, to, count);
  else
    widen(first, to, count);
}
void pack(DType type, const float* from, void* to, int64_t count) {
  if (type == DType::F32)
    memcpy(to, from, static_cast<size_t>(count) * 4);
  else if (type == DType::BF16)
    round_row(from, static_cast<uint16_t*>(to), count);
  else
    refuse(type);
}

}  // namespace octet
