#include "device/cpu/stored_moment.h"

#include <algorithm>
#include <bit>

#include "base/platform.h"
#include "device/cpu/amax.h"
#include "device/cpu/unpack.h"

namespace octet {
namespace {

Format format_of(DType type) {
  switch (type) {
    case DType::F32:
      return Format::FP32;
    case DType::BF16:
      return Format::BF16;
    case DType::F16:
      return Format::FP16;
    case DType::E4M3:
      return Format::E4M3;
    default:
      return Format::E5M2;
  }
}

// A loop each, so that each becomes vector code.
OCTET_VECTORIZED void decode_e4m3_values(const uint8_t* codes, float inverse, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = decode_moment(Format::E4M3, codes[i], inverse);
}
OCTET_VECTORIZED void decode_e5m2_values(const uint8_t* codes, float inverse, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = decode_moment(Format::E5M2, codes[i], inverse);
}
OCTET_VECTORIZED void decode_fp16_values(const uint16_t* codes, float inverse, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = decode_moment_fp16(codes[i], inverse);
}
OCTET_VECTORIZED void encode_first_e4m3(const float* m, float scale, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment(Format::E4M3, Moment::First, m[i], scale);
}
OCTET_VECTORIZED void encode_first_e5m2(const float* m, float scale, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment(Format::E5M2, Moment::First, m[i], scale);
}
OCTET_VECTORIZED void encode_first_fp16(const float* m, float scale, int64_t n, uint16_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment_fp16(Moment::First, m[i], scale);
}
OCTET_VECTORIZED void encode_second_e4m3(const float* v, float scale, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment(Format::E4M3, Moment::Second, v[i], scale);
}
OCTET_VECTORIZED void encode_second_e5m2(const float* v, float scale, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment(Format::E5M2, Moment::Second, v[i], scale);
}
OCTET_VECTORIZED void encode_second_fp16(const float* v, float scale, int64_t n, uint16_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_moment_fp16(Moment::Second, v[i], scale);
}

struct Expansion {
  Format format;
  float largest, power;
};
OCTET_VECTORIZED void decode_expanded_values(const Expansion& by, const uint8_t* codes, int64_t n,
                                             float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = decode_expanded(by.format, codes[i], by.largest, by.power);
}
OCTET_VECTORIZED void encode_first_expanded(const Expansion& by, const float* m, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i)
    codes[i] = encode_expanded(by.format, Moment::First, m[i], by.largest, by.power);
}
OCTET_VECTORIZED void encode_second_expanded(const Expansion& by, const float* v, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i)
    codes[i] = encode_expanded(by.format, Moment::Second, v[i], by.largest, by.power);
}

}  // namespace

StoredMoment::StoredMoment(const MomentTensor& tensor, Moment order)
    : tensor_(tensor), order_(order), format_(format_of(tensor.values.dtype)) {}

template <class Body>
void StoredMoment::for_blocks(int64_t begin, int64_t n, const Body& body) const {
  const int64_t size = one_scale() ? tensor_.values.elements() : tensor_.block;
  for (int64_t at = begin; at < begin + n;) {
    const int64_t block = at / size, end = std::min((block + 1) * size, begin + n);
    body(block, at, end - at);
    at = end;
  }
}

void StoredMoment::read(int64_t begin, int64_t n, float* to) const {
  if (!coded()) return unpack(tensor_.values.dtype, at(tensor_.values, begin), to, n);
  for_blocks(begin, n, [&](int64_t block, int64_t first, int64_t count) {
    const void* from = at(tensor_.values, first);
    const auto* codes = static_cast<const uint8_t*>(from);
    const float inverse = tensor_.inverse.as<float>()[block];
    float* values = to + (first - begin);
    if (expanded()) {
      const ExpandedScale scale{inverse, tensor_.exponents.as<uint8_t>()[block]};
      decode_expanded_values({format_, scale.largest, inverse_exponent_of(scale)}, codes, count, values);
    } else if (format_ == Format::FP16) {
      decode_fp16_values(static_cast<const uint16_t*>(from), inverse, count, values);
    } else {
      format_ == Format::E4M3 ? decode_e4m3_values(codes, inverse, count, values)
                              : decode_e5m2_values(codes, inverse, count, values);
    }
  });
}

void StoredMoment::write(int64_t begin, int64_t n, const float* from, float shared) const {
  if (!coded()) {
    Tensor to = tensor_.values;
    return pack(to.dtype, from, at(to, begin), n);
  }
  for_blocks(begin, n, [&](int64_t block, int64_t first, int64_t count) {
    const float* values = from + (first - begin);
    if (expanded()) return write_expanded(block, first, values, count);
    float scale = shared;
    if (!one_scale()) {
      const MomentScale own = scale_of(std::bit_cast<float>(amax_bits(values, count)));
      scale = own.scale;
      set_inverse(block, own.inverse);
    }
    encode(values, scale, first, count);
  });
}

void StoredMoment::write_expanded(int64_t block, int64_t first, const float* values, int64_t n) const {
  uint32_t rank = 0xffffffffu;
  for (int64_t i = 0; i < n; ++i) rank = std::min(rank, nonzero_rank(values[i]));
  const ExpandedScale scale =
      expanded_scale(format_, std::bit_cast<float>(amax_bits(values, n)), magnitude_of_rank(rank));
  set_inverse(block, scale.largest);
  tensor_.exponents.as<uint8_t>()[block] = scale.sixteenths;
  const Expansion by{format_, scale.largest, exponent_of(scale)};
  uint8_t* codes = tensor_.values.as<uint8_t>() + first;
  order_ == Moment::First ? encode_first_expanded(by, values, n, codes)
                          : encode_second_expanded(by, values, n, codes);
}

void StoredMoment::encode(const float* values, float scale, int64_t first, int64_t n) const {
  Tensor tensor = tensor_.values;
  void* const to = at(tensor, first);
  auto* codes = static_cast<uint8_t*>(to);
  const bool second = order_ == Moment::Second;
  if (format_ == Format::FP16) {
    (second ? encode_second_fp16 : encode_first_fp16)(values, scale, n, static_cast<uint16_t*>(to));
  } else if (format_ == Format::E4M3) {
    (second ? encode_second_e4m3 : encode_first_e4m3)(values, scale, n, codes);
  } else {
    (second ? encode_second_e5m2 : encode_first_e5m2)(values, scale, n, codes);
  }
}

}  // namespace octet
