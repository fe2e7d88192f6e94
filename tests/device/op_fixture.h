// What the tests of single operations share: a device that owns its tensors, numbers in and out of them, and
// error measures.
#pragma once
#include <cmath>
#include <memory>
#include <string>
#include <vector>

#include "base/random.h"
#include "device/device.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"

namespace octet {

using Values = std::vector<float>;
using Bytes = std::vector<uint8_t>;

inline constexpr double half_ulp_bf16 = 0x1p-8;  // relative, of a value rounded to BF16
inline constexpr double half_ulp_f32 = 0x1p-24;

inline float rounded(DType dtype, float x) { return dtype == DType::BF16 ? round_to_bfloat16(x) : x; }
inline double half_ulp(DType dtype) { return dtype == DType::BF16 ? half_ulp_bf16 : half_ulp_f32; }

// deviation * normal(key, i), rounded to `dtype`.
inline Values normal_values(int64_t n, uint64_t key, double deviation = 1.0, DType dtype = DType::F32) {
  Values values(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) {
    values[static_cast<size_t>(i)] =
        rounded(dtype, static_cast<float>(deviation * random_normal(random_key(key, Purpose::Test),
                                                                    static_cast<uint64_t>(i))));
  }
  return values;
}

class OpFixture {
 public:
  explicit OpFixture(int threads = 2)
      : device_(make_cpu_device({.deterministic = true, .threads = threads})) {}
  ~OpFixture() {
    for (void* pointer : owned_) device_->free(pointer);
  }
  OpFixture(const OpFixture&) = delete;
  OpFixture& operator=(const OpFixture&) = delete;

  Device& device() { return *device_; }
  Device* operator->() { return device_.get(); }

  Tensor zeros(DType dtype, Shape shape) {
    Tensor tensor{nullptr, dtype, shape};
    tensor.data = device_->allocate(std::max<size_t>(tensor.bytes(), 1));
    owned_.push_back(tensor.data);
    return tensor;
  }
  Tensor floats(DType dtype, Shape shape, const Values& values) {
    Tensor tensor = zeros(dtype, shape);
    for (size_t i = 0; i < values.size(); ++i) {
      if (dtype == DType::F32) tensor.as<float>()[i] = values[i];
      if (dtype == DType::BF16) tensor.as<BFloat16>()[i] = to_bfloat16(values[i]);
    }
    return tensor;
  }
  Tensor integers(const std::vector<int32_t>& values) {
    Tensor tensor = zeros(DType::I32, {static_cast<int64_t>(values.size())});
    std::copy(values.begin(), values.end(), tensor.as<int32_t>());
    return tensor;
  }
  Site site() {
    const Tensor numbers = zeros(DType::F32, {3});
    const Tensor counters = zeros(DType::U64, {3});
    float* f = numbers.as<float>();
    return {f, f + 1, f + 2, static_cast<CastCounters*>(counters.data)};
  }

 private:
  std::unique_ptr<Device> device_;
  std::vector<void*> owned_;
};

inline Values read_floats(const Tensor& tensor) {
  Values values(static_cast<size_t>(tensor.elements()));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = tensor.dtype == DType::F32 ? tensor.as<float>()[i] : to_float(tensor.as<BFloat16>()[i]);
  }
  return values;
}
inline Bytes read_bytes(const Tensor& tensor) {
  const uint8_t* data = static_cast<const uint8_t*>(tensor.data);
  return tensor.empty() ? Bytes() : Bytes(data, data + tensor.bytes());
}
inline Bytes transposed(const Bytes& codes, int64_t rows, int64_t columns) {
  Bytes out(codes.size());
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < columns; ++c) {
      out[static_cast<size_t>(c * rows + r)] = codes[static_cast<size_t>(r * columns + c)];
    }
  }
  return out;
}

// ||a - b|| / ||b||, Frobenius.
template <class A, class B>
double relative_error(const std::vector<A>& a, const std::vector<B>& b) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < a.size(); ++i) {
    const double d = static_cast<double>(a[i]) - static_cast<double>(b[i]);
    difference += d * d;
    norm += static_cast<double>(b[i]) * static_cast<double>(b[i]);
  }
  return std::sqrt(difference / norm);
}

}  // namespace octet
