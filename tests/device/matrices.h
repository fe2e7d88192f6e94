// Random operands of every type for the tests of products, with their values in double.
#pragma once
#include <cmath>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>

#include "base/random.h"
#include "device/device.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"

namespace octet::matrices {

// Uniform in [low, high): a pure function of (key, element).
inline float uniform(uint64_t key, uint64_t element, float low = -1, float high = 1) {
  return low + (high - low) * static_cast<float>(random_bits(key, element) >> 8) * 0x1p-24f;
}

// Memory that owns a tensor's elements.
class Buffer {
 public:
  Buffer(DType type, Shape shape) : bytes_(static_cast<size_t>(shape.elements()) * size_of(type) + 1) {
    tensor.data = bytes_.data();
    tensor.dtype = type;
    tensor.shape = shape;
  }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void set(int64_t i, float x) {
    auto* to = bytes_.data() + i * static_cast<int64_t>(size_of(tensor.dtype));
    const BFloat16 rounded = to_bfloat16(x);
    switch (tensor.dtype) {
      case DType::F32:
        memcpy(to, &x, 4);
        return;
      case DType::BF16:
        memcpy(to, &rounded, 2);
        return;
      case DType::E4M3:
        *to = std::byte{encode_e4m3(x)};
        return;
      default:
        *to = std::byte{encode_e5m2(x)};
    }
  }
  float get(int64_t i) const {
    const auto* from = bytes_.data() + i * static_cast<int64_t>(size_of(tensor.dtype));
    float x;
    BFloat16 rounded;
    switch (tensor.dtype) {
      case DType::F32:
        memcpy(&x, from, 4);
        return x;
      case DType::BF16:
        memcpy(&rounded, from, 2);
        return to_float(rounded);
      case DType::E4M3:
        return decode_e4m3(std::to_integer<uint8_t>(*from));
      default:
        return decode_e5m2(std::to_integer<uint8_t>(*from));
    }
  }
  void fill_uniform(uint64_t key, float low = -1, float high = 1) {
    for (int64_t i = 0; i < tensor.elements(); ++i) set(i, uniform(key, static_cast<uint64_t>(i), low, high));
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

  Tensor tensor;

 private:
  std::vector<std::byte> bytes_;
};

}  // namespace octet::matrices
