#include "analysis/selftest.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>

#include "base/error.h"
#include "numerics/bfloat16.h"

namespace octet {
namespace {

double value_at(const Workbench::Output& output, size_t i) {
  const std::byte* data = output.data.data() + i * size_of(output.dtype);
  switch (output.dtype) {
    case DType::F32: {
      float x;
      std::memcpy(&x, data, sizeof x);
      return static_cast<double>(x);
    }
    case DType::F64: {
      double x;
      std::memcpy(&x, data, sizeof x);
      return x;
    }
    case DType::BF16: {
      BFloat16 x;
      std::memcpy(&x, data, sizeof x);
      return static_cast<double>(to_float(x));
    }
    default:
      return static_cast<double>(data[0]);
  }
}

// NaNs are equal whatever their payload: a GPU makes another one than a CPU.
bool same(const Workbench::Output& a, const Workbench::Output& b, size_t i) {
  const size_t size = size_of(a.dtype);
  if (std::memcmp(a.data.data() + i * size, b.data.data() + i * size, size) == 0) return true;
  const bool number = a.dtype == DType::F32 || a.dtype == DType::BF16 || a.dtype == DType::F64;
  return number && std::isnan(value_at(a, i)) && std::isnan(value_at(b, i));
}

void compare_bits(const Workbench::Output& expected, const Workbench::Output& found, SelftestRow& row) {
  const size_t count = expected.data.size() / size_of(expected.dtype);
  size_t different = 0, first = 0;
  for (size_t i = 0; i < count; ++i) {
    if (same(expected, found, i)) continue;
    if (different++ == 0) first = i;
  }
  if (different == 0) return;
  row.passed = false;
  row.error = std::max(row.error, static_cast<double>(different) / static_cast<double>(count));
  if (row.detail.empty())
    row.detail = fmt::format("{}: {} of {} differ, the first at {}: {} expected, {} found", expected.name,
                             different, count, first, value_at(expected, first), value_at(found, first));
}

void compare_norm(const Workbench::Output& expected, const Workbench::Output& found, SelftestRow& row) {
  const size_t count = expected.data.size() / size_of(expected.dtype);
  double difference = 0, norm = 0;
  for (size_t i = 0; i < count; ++i) {
    const double e = value_at(expected, i), d = value_at(found, i) - e;
    difference += d * d;
    norm += e * e;
  }
  const double error = norm > 0 ? std::sqrt(difference / norm) : std::sqrt(difference);
  row.error = std::max(row.error, error);
  if (error <= row.bound) return;  // false for NaN
  row.passed = false;
  if (row.detail.empty())
    row.detail = fmt::format("{}: relative error {:.3g}, at most {:.3g}", expected.name, error, row.bound);
}

}  // namespace

Workbench::~Workbench() {
  for (void* pointer : owned_) device_.free(pointer);
}

Tensor Workbench::zeros(DType dtype, Shape shape) {
  Tensor tensor{nullptr, dtype, shape};
  tensor.data = device_.allocate(std::max<size_t>(tensor.bytes(), 1));
  owned_.push_back(tensor.data);
  return tensor;
}

Tensor Workbench::bytes(DType dtype, Shape shape, const void* data) {
  const Tensor tensor = zeros(dtype, shape);
  device_.copy_from_host(tensor.data, data, tensor.bytes());
  return tensor;
}

Tensor Workbench::floats(DType dtype, Shape shape, const std::vector<float>& values) {
  if (dtype == DType::F32) return bytes(dtype, shape, values.data());
  std::vector<BFloat16> narrow;
  narrow.reserve(values.size());
  for (const float x : values) narrow.push_back(to_bfloat16(x));
  return bytes(dtype, shape, narrow.data());
}

Site Workbench::site(float scale) {
  const Tensor numbers = floats(DType::F32, {3}, {scale, scale > 0 ? 1.0f / scale : 0.0f, 0.0f});
  const Tensor counters = zeros(DType::U64, {3});
  float* f = numbers.as<float>();
  return {f, f + 1, f + 2, static_cast<CastCounters*>(counters.data)};
}

void Workbench::output(const std::string& name, const Tensor& tensor) { outputs_.emplace_back(name, tensor); }

void Workbench::output(const std::string& name, const Site& site) {
  outputs_.emplace_back(name + " scale, inverse, amax", Tensor{site.scale, DType::F32, {3}});
  if (site.counters) outputs_.emplace_back(name + " counters", Tensor{site.counters, DType::U64, {3}});
}

std::vector<Workbench::Output> Workbench::read_outputs() {
  device_.synchronize();
  std::vector<Output> read;
  for (const auto& [name, tensor] : outputs_) {
    Output output{name, tensor.dtype, std::vector<std::byte>(tensor.bytes())};
    device_.copy_to_host(output.data.data(), tensor.data, tensor.bytes());
    read.push_back(std::move(output));
  }
  return read;
}

SelftestRow run_case(const SelftestCase& one, Device& reference, Device& tested) {
  SelftestRow row{one.operation, one.variant, 0, one.bound, true, ""};
  try {
    Workbench expected(reference), found(tested);
    one.run(expected);
    one.run(found);
    const std::vector<Workbench::Output> a = expected.read_outputs(), b = found.read_outputs();
    if (a.empty()) throw Error(ExitCode::Internal, "nothing is compared");
    for (size_t i = 0; i < a.size(); ++i) {
      const bool number = a[i].dtype == DType::F32 || a[i].dtype == DType::BF16 || a[i].dtype == DType::F64;
      one.bound > 0 && number ? compare_norm(a[i], b[i], row) : compare_bits(a[i], b[i], row);
    }
  } catch (const std::exception& error) {
    row.passed = false;
    row.detail = error.what();
  }
  return row;
}

}  // namespace octet
