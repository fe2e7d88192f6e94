// A view of typed memory with a shape. Copying a Tensor copies the view.
#pragma once
#include <array>
#include <cassert>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <string>

#include "numerics/recipe.h"

namespace octet {

enum class DType : uint8_t { F32, BF16, E4M3, E5M2, U8, U16, I32, U32, I64, U64, F64, F16 };

constexpr size_t size_of(DType t) {
  switch (t) {
    case DType::E4M3:
    case DType::E5M2:
    case DType::U8:
      return 1;
    case DType::BF16:
    case DType::F16:
    case DType::U16:
      return 2;
    case DType::F32:
    case DType::I32:
    case DType::U32:
      return 4;
    default:
      return 8;
  }
}
constexpr DType dtype_of(Format f) {
  switch (f) {
    case Format::FP32:
      return DType::F32;
    case Format::BF16:
      return DType::BF16;
    case Format::E4M3:
      return DType::E4M3;
    case Format::FP16:
      return DType::F16;
    default:
      return DType::E5M2;
  }
}
const char* name_of(DType t);  // safetensors spelling: "F32", "BF16", "F8_E4M3", ...

// Up to four dimensions, row-major, 64-bit.
class Shape {
 public:
  Shape() = default;
  Shape(std::initializer_list<int64_t> dims) {
    assert(dims.size() <= 4);
    for (int64_t d : dims) dims_[rank_++] = d;
  }
  int rank() const { return rank_; }
  int64_t operator[](int i) const { return dims_[i]; }
  int64_t elements() const {
    int64_t n = 1;
    for (int i = 0; i < rank_; ++i) n *= dims_[i];
    return n;
  }
  bool operator==(const Shape&) const = default;
  void push_back(int64_t d) {
    assert(rank_ < 4);
    dims_[rank_++] = d;
  }

 private:
  std::array<int64_t, 4> dims_{};
  int rank_ = 0;
};
std::string to_string(const Shape& shape);  // "[8, 256]"

struct Tensor {
  void* data = nullptr;
  DType dtype = DType::F32;
  Shape shape;

  // A tensor that was never planned. (A planned one has a shape, with data == nullptr while measuring.)
  bool empty() const { return shape.rank() == 0; }
  int64_t elements() const { return empty() ? 0 : shape.elements(); }
  size_t bytes() const { return static_cast<size_t>(elements()) * size_of(dtype); }
  int64_t rows() const { return shape[0]; }                        // first dimension
  int64_t columns() const { return shape.elements() / shape[0]; }  // all others together
  template <class T>
  T* as() const {
    assert(sizeof(T) == size_of(dtype));
    return static_cast<T*>(data);
  }
  Tensor flat() const { return {data, dtype, {elements()}}; }
  // Rows [begin, begin + count) of the first dimension, as a view.
  Tensor slice(int64_t begin, int64_t count) const;
};

}  // namespace octet
