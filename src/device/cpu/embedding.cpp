// Token embedding: a row look-up, times a constant; its backward adds every token's gradient, times the same,
// to the row it came from.
#include <fmt/format.h>

#include <algorithm>
#include <cstring>

#include "base/error.h"
#include "base/platform.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/embedding.h"
#include "device/cpu/gemm_state.h"
#include "numerics/elementary.h"

namespace octet {
namespace {

void check_tokens(const Tensor& tokens, int64_t vocabulary) {
  const int32_t* ids = tokens.as<int32_t>();
  for (int64_t t = 0; t < tokens.elements(); ++t) {
    if (ids[t] < 0 || ids[t] >= vocabulary) {
      throw Error(ExitCode::Internal,
                  fmt::format("embedding: token {} is {}, the table has {} rows", t, ids[t], vocabulary));
    }
  }
}

OCTET_VECTORIZED void add_row(const float* from, float multiplier, float* sums, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sums[i] += from[i] * multiplier;
}
OCTET_VECTORIZED void add_row(const BFloat16* from, float multiplier, float* sums, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sums[i] += to_float(from[i]) * multiplier;
}
OCTET_VECTORIZED void scale_row(const float* from, float multiplier, float* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = from[i] * multiplier;
}
OCTET_VECTORIZED void scale_row(const BFloat16* from, float multiplier, BFloat16* to, int64_t n) {
  for (int64_t i = 0; i < n; ++i) store(to + i, to_float(from[i]) * multiplier);
}

template <class T>
void look_up_scaled(const EmbeddingForward& op, int threads) {
  const int32_t* ids = op.tokens.as<int32_t>();
  const int64_t tokens = op.tokens.elements(), width = op.table.columns();
  const T* table = op.table.as<T>();
  T* out = op.out.as<T>();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < tokens; ++t)
    scale_row(table + ids[t] * width, op.multiplier, out + t * width, width);
}

constexpr int64_t strip = 64;  // columns of the table one task works on

// `order`: (token id << 32 | position), sorted. Each row is read once, summed in FP32, rounded once.
template <class Gradient, class Storage>
void scatter_strip(const EmbeddingBackward& op, const uint64_t* order, int64_t begin) {
  const int64_t width = op.table_gradient.columns(), n = std::min(strip, width - begin);
  const Storage* from = op.out_gradient.as<Storage>() + begin;
  Gradient* table = op.table_gradient.as<Gradient>() + begin;
  const size_t tokens = static_cast<size_t>(op.tokens.elements());
  float sums[strip];
  for (size_t i = 0; i < tokens;) {
    const uint64_t id = order[i] >> 32;
    Gradient* row = table + static_cast<int64_t>(id) * width;
    for (int64_t c = 0; c < n; ++c) sums[c] = load(row[c]);
    for (; i < tokens && order[i] >> 32 == id; ++i) {
      add_row(from + static_cast<int64_t>(order[i] & 0xffffffffu) * width, op.multiplier, sums, n);
    }
    for (int64_t c = 0; c < n; ++c) store(row + c, sums[c]);
  }
}

}  // namespace

void CpuDevice::embedding_forward(const EmbeddingForward& op) {
  check_tokens(op.tokens, op.table.rows());
  if (op.multiplier != 1.0f)
    return op.table.dtype == DType::F32 ? look_up_scaled<float>(op, threads_)
                                        : look_up_scaled<BFloat16>(op, threads_);
  const int32_t* ids = op.tokens.as<int32_t>();
  const int64_t tokens = op.tokens.elements();
  const size_t row = static_cast<size_t>(op.table.columns()) * size_of(op.table.dtype);
  std::byte* out = static_cast<std::byte*>(op.out.data);
  const std::byte* table = static_cast<const std::byte*>(op.table.data);
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int64_t t = 0; t < tokens; ++t) {
    std::memcpy(out + static_cast<size_t>(t) * row, table + static_cast<size_t>(ids[t]) * row, row);
  }
}

void CpuDevice::embedding_backward(const EmbeddingBackward& op) {
  check_tokens(op.tokens, op.table_gradient.rows());
  const int32_t* ids = op.tokens.as<int32_t>();
  const size_t tokens = static_cast<size_t>(op.tokens.elements());
  auto* order =
      reinterpret_cast<uint64_t*>(gemm_->workspace().reserve(embedding_scratch_bytes(op.tokens.elements())));
  for (size_t t = 0; t < tokens; ++t) order[t] = static_cast<uint64_t>(ids[t]) << 32 | t;
  std::sort(order, order + tokens);
  const bool wide_sum = op.table_gradient.dtype == DType::F32, wide = op.out_gradient.dtype == DType::F32;
  const auto work = wide_sum ? (wide ? scatter_strip<float, float> : scatter_strip<float, BFloat16>)
                             : (wide ? scatter_strip<BFloat16, float> : scatter_strip<BFloat16, BFloat16>);
  const int64_t width = op.table_gradient.columns();
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int64_t begin = 0; begin < width; begin += strip) work(op, order, begin);
}

}  // namespace octet
