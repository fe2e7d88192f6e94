// Rows of stored values to FP32 and back: what every operation on mixed types reads and writes with.
#pragma once
#include <cstdint>

#include "tensor/tensor.h"

namespace octet {

// F32, BF16, E4M3 or E5M2 to FP32: exact.
void unpack(DType type, const void* from, float* to, int64_t count);
// BF16, E4M3 or E5M2 to BF16: exact (a code has at most four significant bits).
void unpack_to_bfloat16(DType type, const void* from, uint16_t* to, int64_t count);
// to[i] = first[i] in the lower half, second[i] in the upper; second null: zeros.
void interleave(const uint16_t* first, const uint16_t* second, uint32_t* to, int64_t count);
// FP32 to F32 or BF16: one rounding to nearest even.
void pack(DType type, const float* from, void* to, int64_t count);

inline const void* at(const Tensor& t, int64_t element) {
  return static_cast<const std::byte*>(t.data) + element * static_cast<int64_t>(size_of(t.dtype));
}
inline void* at(Tensor& t, int64_t element) {
  return static_cast<std::byte*>(t.data) + element * static_cast<int64_t>(size_of(t.dtype));
}

}  // namespace octet
