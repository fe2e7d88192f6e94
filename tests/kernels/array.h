// Tensors with memory of their own, hard values to put into them, and their comparison bit for bit.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "base/random.h"
#include "device/device.h"
#include "numerics/bfloat16.h"
#include "numerics/float16.h"
#include "numerics/float8.h"
#include "tensor/tensor.h"

// Exactly as many bytes as the tensor has, so that the address sanitizer sees the first one beyond;
// `misaligned` bytes behind a 64-byte boundary.
class Array {
 public:
  Array(octet::DType type, octet::Shape shape, size_t misaligned = 0) {
    tensor_ = {.data = nullptr, .dtype = type, .shape = shape};
    memory_ = std::shared_ptr<std::byte>(
        static_cast<std::byte*>(::operator new (tensor_.bytes() + misaligned, std::align_val_t{64})),
        [](std::byte* p) { ::operator delete (p, std::align_val_t{64}); });
    tensor_.data = memory_.get() + misaligned;
    std::memset(tensor_.data, 0, tensor_.bytes());
  }
  Array(const Array& from) : Array(from.tensor_.dtype, from.tensor_.shape, from.misaligned()) {
    std::memcpy(tensor_.data, from.tensor_.data, tensor_.bytes());
  }
  Array& operator=(const Array&) = delete;

  octet::Tensor tensor() const { return tensor_; }
  operator octet::Tensor() const { return tensor_; }
  void* data() const { return tensor_.data; }
  template <class T>
  T* as() const {
    return tensor_.as<T>();
  }
  int64_t elements() const { return tensor_.elements(); }

  float get(int64_t i) const {
    switch (tensor_.dtype) {
      case octet::DType::F32:
        return as<float>()[i];
      case octet::DType::BF16:
        return octet::to_float(as<octet::BFloat16>()[i]);
      case octet::DType::F16:
        return octet::to_float(as<octet::Float16>()[i]);
      case octet::DType::E4M3:
        return octet::decode_e4m3(as<uint8_t>()[i]);
      default:
        return octet::decode_e5m2(as<uint8_t>()[i]);
    }
  }
  void set(int64_t i, float value) {
    switch (tensor_.dtype) {
      case octet::DType::F32:
        as<float>()[i] = value;
        break;
      case octet::DType::BF16:
        as<octet::BFloat16>()[i] = octet::to_bfloat16(value);
        break;
      case octet::DType::F16:
        as<octet::Float16>()[i] = octet::to_float16(value);
        break;
      case octet::DType::E4M3:
        as<uint8_t>()[i] = octet::encode_e4m3(value);
        break;
      default:
        as<uint8_t>()[i] = octet::encode_e5m2(value);
    }
  }

 private:
  size_t misaligned() const {
    return static_cast<size_t>(static_cast<std::byte*>(tensor_.data) - memory_.get());
  }
  std::shared_ptr<std::byte> memory_;
  octet::Tensor tensor_;
};

// What values an array gets. Tame: normal numbers around one. Wide: magnitudes over many binades, zeros of
// both signs, subnormals. Broken: Wide, with a few infinities, NaNs and numbers near the largest.
enum class Values { Tame, Wide, Broken };

inline float hard_value(Values values, uint64_t key, uint64_t i) {
  const float normal = static_cast<float>(octet::random_normal(key, i));
  if (values == Values::Tame) return normal;
  const octet::Random4 r = octet::philox(key ^ 0x9e3779b97f4a7c15u, i);
  if (values == Values::Broken && r.y % 101 == 0) {
    const float broken[] = {INFINITY, -INFINITY, std::numeric_limits<float>::quiet_NaN(), 3.3e38f, -3.4e38f};
    return broken[r.z % 5];
  }
  if (r.y % 17 == 0) {
    const float small[] = {0.0f, -0.0f, 1e-40f, -3e-39f, 0x1p-149f};
    return small[r.z % 5];
  }
  return normal * std::ldexp(1.0f, static_cast<int>(r.x % 32) - 20);
}
inline void randomize(Array& array, Values values, uint64_t key) {
  for (int64_t i = 0; i < array.elements(); ++i)
    array.set(i, hard_value(values, key, static_cast<uint64_t>(i)));
}

// Elements whose bits differ. Two NaNs are equal: which NaN an operation returns is the processor's choice.
inline int64_t differences(const octet::Tensor& a, const octet::Tensor& b) {
  if (a.dtype != b.dtype || a.elements() != b.elements()) return -1;
  const size_t size = octet::size_of(a.dtype);
  const auto is_nan = [&](const std::byte* at) {
    if (a.dtype == octet::DType::F64) {
      double x;
      std::memcpy(&x, at, 8);
      return std::isnan(x);
    }
    uint32_t u = 0;
    std::memcpy(&u, at, size);
    switch (a.dtype) {
      case octet::DType::F32:
        return (u & 0x7fffffffu) > 0x7f800000u;
      case octet::DType::BF16:
        return (u & 0x7fffu) > 0x7f80u;
      case octet::DType::F16:
        return (u & 0x7fffu) > 0x7c00u;
      case octet::DType::E4M3:
        return (u & 0x7fu) == 0x7fu;
      case octet::DType::E5M2:
        return (u & 0x7fu) > 0x7cu;
      default:
        return false;
    }
  };
  int64_t different = 0;
  for (int64_t i = 0; i < a.elements(); ++i) {
    const auto* x = static_cast<const std::byte*>(a.data) + static_cast<size_t>(i) * size;
    const auto* y = static_cast<const std::byte*>(b.data) + static_cast<size_t>(i) * size;
    different += std::memcmp(x, y, size) != 0 && !(is_nan(x) && is_nan(y));
  }
  return different;
}

// The specification, on one thread.
inline octet::Device& specification() {
  static const std::unique_ptr<octet::Device> device =
      octet::make_cpu_device({.deterministic = true, .threads = 1});
  return *device;
}
