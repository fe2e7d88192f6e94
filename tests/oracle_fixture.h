// Reads the fixtures that tests/oracle made, and the measures in which tensors are compared.
// What a comparison may demand is derived in tests/oracle/README.md.
#pragma once
#include <cmath>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "base/files.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "tensor/safetensors.h"

namespace octet::oracle {

using Values = std::vector<double>;

// Any host tensor, decoded.
inline Values decode_all(DType dtype, const void* data, int64_t n) {
  Values out(static_cast<size_t>(n));
  const auto fill = [&](auto decode_at) {
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<double>(decode_at(i));
  };
  switch (dtype) {
    case DType::F32:
      fill([&](size_t i) { return static_cast<const float*>(data)[i]; });
      break;
    case DType::F64:
      fill([&](size_t i) { return static_cast<const double*>(data)[i]; });
      break;
    case DType::BF16:
      fill([&](size_t i) { return to_float(static_cast<const BFloat16*>(data)[i]); });
      break;
    case DType::E4M3:
      fill([&](size_t i) { return decode_e4m3(static_cast<const uint8_t*>(data)[i]); });
      break;
    case DType::E5M2:
      fill([&](size_t i) { return decode_e5m2(static_cast<const uint8_t*>(data)[i]); });
      break;
    case DType::U8:
      fill([&](size_t i) { return static_cast<const uint8_t*>(data)[i]; });
      break;
    case DType::I32:
      fill([&](size_t i) { return static_cast<const int32_t*>(data)[i]; });
      break;
    default:
      throw Error(ExitCode::Internal, "oracle fixture: unexpected type");
  }
  return out;
}

class Fixture {
 public:
  explicit Fixture(const std::string& name)
      : reader_(std::string(OCTET_FIXTURES) + "/oracle_" + name + ".safetensors", ExitCode::Data) {}

  bool contains(const std::string& tensor) const { return reader_.contains(tensor); }
  Shape shape(const std::string& tensor) const { return reader_.find(tensor).shape; }
  std::vector<uint8_t> bytes(const std::string& tensor) const {
    const SafetensorsEntry& entry = reader_.find(tensor);
    std::vector<uint8_t> raw(entry.bytes);
    reader_.read(entry, raw.data());
    return raw;
  }
  Values values(const std::string& tensor) const {
    const SafetensorsEntry& entry = reader_.find(tensor);
    return decode_all(entry.dtype, bytes(tensor).data(), entry.shape.elements());
  }
  std::vector<float> floats(const std::string& tensor) const {
    const Values x = values(tensor);
    return {x.begin(), x.end()};
  }
  std::vector<int32_t> integers(const std::string& tensor) const {
    const Values x = values(tensor);
    std::vector<int32_t> out;
    for (double v : x) out.push_back(static_cast<int32_t>(v));
    return out;
  }

 private:
  SafetensorsReader reader_;
};

inline nlohmann::json description(const std::string& name) {
  return nlohmann::json::parse(
      read_text(std::string(OCTET_FIXTURES) + "/oracle_" + name + ".json", ExitCode::Data));
}

inline double dot(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += a[i] * b[i];
  return sum;
}
// ||a - b|| / ||b||, Frobenius.
inline double relative_error(const Values& a, const Values& b) {
  double sum = 0;
  for (size_t i = 0; i < a.size(); ++i) sum += (a[i] - b[i]) * (a[i] - b[i]);
  return std::sqrt(sum / dot(b, b));
}
inline double cosine(const Values& a, const Values& b) {
  return dot(a, b) / std::sqrt(dot(a, a) * dot(b, b));
}
// How much of b is in a: <a, b> / <b, b>.
inline double projection(const Values& a, const Values& b) { return dot(a, b) / dot(b, b); }
inline double largest_magnitude(const Values& a) {
  double largest = 0;
  for (double x : a) largest = std::max(largest, std::abs(x));
  return largest;
}

// Distance of neighbouring BF16 values around x: 8 significant bits.
inline double bfloat16_step(double x) {
  return x == 0 ? 0x1p-133 : std::ldexp(1.0, std::max(std::ilogb(x), -126) - 7);
}

// Two BF16 tensors made from the same inputs, one with FP32 arithmetic and one with exact arithmetic.
struct StorageDifference {
  int64_t elements = 0, different = 0;
  double worst = 0;  // |a - b| in units of what one value may differ by
};
// `roundings` FP32 roundings (a sum of K terms counts K) lie between input and result: the unrounded values
// differ by at most roundings * 2^-24 of the largest term; after rounding, by that and one BF16 step.
inline StorageDifference compare_storage(const Values& a, const Values& b, int roundings) {
  StorageDifference result;
  const double absolute = roundings * 0x1p-24 * largest_magnitude(b);
  for (size_t i = 0; i < b.size(); ++i) {
    ++result.elements;
    if (a[i] == b[i]) continue;
    ++result.different;
    const double step = std::max(bfloat16_step(a[i]), bfloat16_step(b[i]));
    const double worst = std::abs(a[i] - b[i]) / (step + absolute);
    if (!(worst <= result.worst)) result.worst = worst;
  }
  return result;
}
// A value lands on the other side of a tie when a tie (one every BF16 step, 2^-8 to 2^-7 of the value) lies
// within the FP32 error, at most roundings * 2^-24 of the value on either side: a share of roundings * 2^-15;
// plus a handful for small tensors.
inline int64_t allowed_differences(int64_t elements, int roundings) {
  return 4 + static_cast<int64_t>(static_cast<double>(elements) * roundings * 0x1p-15);
}

}  // namespace octet::oracle
