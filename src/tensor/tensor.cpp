#include "tensor/tensor.h"

#include <fmt/format.h>

#include "base/error.h"

namespace octet {

const char* name_of(DType t) {
  switch (t) {
    case DType::F32:
      return "F32";
    case DType::BF16:
      return "BF16";
    case DType::F16:
      return "F16";
    case DType::E4M3:
      return "F8_E4M3";
    case DType::E5M2:
      return "F8_E5M2";
    case DType::U8:
      return "U8";
    case DType::U16:
      return "U16";
    case DType::I32:
      return "I32";
    case DType::U32:
      return "U32";
    case DType::I64:
      return "I64";
    case DType::U64:
      return "U64";
    case DType::F64:
      return "F64";
  }
  return "?";
}

std::string to_string(const Shape& shape) {
  std::string text = "[";
  for (int i = 0; i < shape.rank(); ++i) text += fmt::format("{}{}", i ? ", " : "", shape[i]);
  return text + "]";
}

Tensor Tensor::slice(int64_t begin, int64_t count) const {
  if (empty() || begin < 0 || count < 0 || begin > shape[0] - count)
    throw Error(ExitCode::Internal, fmt::format("slice [{}, {} + {}) of a tensor of shape {}", begin, begin,
                                                count, to_string(shape)));
  Tensor part = *this;
  part.shape = Shape{};
  part.shape.push_back(count);
  int64_t row = 1;
  for (int i = 1; i < shape.rank(); ++i) {
    part.shape.push_back(shape[i]);
    row *= shape[i];
  }
  if (data) part.data = static_cast<std::byte*>(data) + static_cast<size_t>(begin * row) * size_of(dtype);
  return part;
}

}  // namespace octet
