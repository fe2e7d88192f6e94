#include "device/cpu/unpack.h"

#include <cstring>

#include "base/error.h"
#include "base/platform.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"

namespace octet {
namespace {

// The bits of an FP32 from a code, without branches so that loops become vector code. Same values as
// decode_e4m3 and decode_e5m2 (tests: all 256 codes).
OCTET_HD uint32_t bits_of_e4m3(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, magnitude = code & 0x7fu;
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-9f;
  uint32_t subnormal;
  memcpy(&subnormal, &small, 4);
  const uint32_t normal = (magnitude << 20) + ((127u - 7u) << 23);
  const uint32_t finite = magnitude < 8u ? subnormal : normal;
  return (magnitude == 0x7fu ? 0x7fc00000u : finite) | sign;
}
OCTET_HD uint32_t bits_of_e5m2(uint8_t code) {
  const uint32_t sign = static_cast<uint32_t>(code & 0x80u) << 24, magnitude = code & 0x7fu;
  const float small = static_cast<float>(static_cast<int32_t>(magnitude)) * 0x1p-16f;
  uint32_t subnormal;
  memcpy(&subnormal, &small, 4);
  const uint32_t normal = (magnitude << 21) + ((127u - 15u) << 23);
  const uint32_t special = magnitude == 0x7cu ? 0x7f800000u : 0x7fc00000u;
  const uint32_t finite = magnitude < 4u ? subnormal : normal;
  return (magnitude >= 0x7cu ? special : finite) | sign;
}

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
      return e4m3_to_bfloat16(static_cast<const uint8_t*>(from), to, count);
    case DType::E5M2:
      return e5m2_to_bfloat16(static_cast<const uint8_t*>(from), to, count);
    default:
      refuse(type);
  }
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
