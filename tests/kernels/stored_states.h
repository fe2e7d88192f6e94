// Masters and moments of a test, as they are stored.
#pragma once
#include <cstdint>
#include <optional>

#include "array.h"

#include "kernels/masters.h"
#include "kernels/moments.h"
#include "numerics/masters.h"

inline octet::Format format_of(octet::DType type) {
  switch (type) {
    case octet::DType::F32:
      return octet::Format::FP32;
    case octet::DType::BF16:
      return octet::Format::BF16;
    case octet::DType::F16:
      return octet::Format::FP16;
    case octet::DType::E4M3:
      return octet::Format::E4M3;
    default:
      return octet::Format::E5M2;
  }
}

struct MomentArray {
  MomentArray(octet::DType type, int block_size, int64_t count, size_t misaligned, bool expanded)
      : values(type, {count}, misaligned), block(block_size) {
    const octet::Shape scales{block ? (count + block - 1) / block : 1};
    if (octet::size_of(type) == 1 || type == octet::DType::F16) inverse.emplace(octet::DType::F32, scales);
    if (octet::size_of(type) == 1 && expanded) exponents.emplace(octet::DType::U8, scales);
  }
  MomentArray(const MomentArray&) = default;
  octet::MomentTensor tensor() const {
    return {values, inverse ? inverse->tensor() : octet::Tensor(), block,
            exponents ? exponents->tensor() : octet::Tensor()};
  }
  octet::kernels::MomentArguments arguments() const {
    return {.values = values.data(),
            .format = format_of(values.tensor().dtype),
            .inverse = inverse ? inverse->as<float>() : nullptr,
            .block = block,
            .exponents = exponents ? exponents->as<uint8_t>() : nullptr};
  }
  int64_t differences_from(const MomentArray& other) const {
    return differences(values, other.values) + (inverse ? differences(*inverse, *other.inverse) : 0) +
           (exponents ? differences(*exponents, *other.exponents) : 0);
  }

  Array values;
  std::optional<Array> inverse, exponents;
  int block;
};

// Masters of random numbers.
struct MasterArray {
  MasterArray(octet::MasterFormat master, int64_t count, size_t misaligned)
      : values(octet::values_dtype(master), {count}, misaligned), format(master) {
    if (format == octet::MasterFormat::BF16Remainder)
      rest.emplace(octet::DType::U16, octet::Shape{count}, misaligned);
    if (format == octet::MasterFormat::BF16Kahan)
      rest.emplace(octet::DType::BF16, octet::Shape{count}, misaligned);
    if (format == octet::MasterFormat::FP16Scaled)
      inverse.emplace(octet::DType::F32,
                      octet::Shape{(count + octet::master_block - 1) / octet::master_block});
    Array numbers(octet::DType::F32, {count});
    randomize(numbers, Values::Tame, 1);
    specification().write_masters({numbers, values, code()});
  }
  octet::MasterCode code() const {
    return {format, rest ? rest->tensor() : octet::Tensor(), inverse ? inverse->tensor() : octet::Tensor()};
  }
  octet::kernels::MasterArguments arguments() const {
    return {.values = values.data(),
            .format = format,
            .rest = rest ? static_cast<uint16_t*>(rest->data()) : nullptr,
            .inverse = inverse ? inverse->as<float>() : nullptr};
  }
  int64_t differences_from(const MasterArray& other) const {
    return differences(values, other.values) + (rest ? differences(*rest, *other.rest) : 0) +
           (inverse ? differences(*inverse, *other.inverse) : 0);
  }
  // The numbers that the model sees.
  Array numbers() const {
    Array to(octet::DType::F32, {values.elements()});
    specification().read_masters({values, code(), to});
    return to;
  }

  Array values;
  std::optional<Array> rest, inverse;
  octet::MasterFormat format;
};
