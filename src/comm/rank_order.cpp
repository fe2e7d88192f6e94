#include "comm/rank_order.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/error.h"
#include "base/platform.h"
#include "numerics/bfloat16.h"

namespace octet {
namespace {

constexpr int64_t block = 1024;  // of accumulators, in the first-level cache

OCTET_VECTORIZED void add_f32(float* sum, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}
OCTET_VECTORIZED void add_f64(double* sum, const double* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}
OCTET_VECTORIZED void add_u64(uint64_t* sum, const uint64_t* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += x[i];
}
OCTET_VECTORIZED void add_bf16(float* sum, const BFloat16* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) sum[i] += to_float(x[i]);
}
OCTET_VECTORIZED void widen_bf16(float* to, const BFloat16* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_float(x[i]);
}
OCTET_VECTORIZED void round_bf16(BFloat16* to, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) to[i] = to_bfloat16(x[i]);
}
OCTET_VECTORIZED void max_f32(float* most, const float* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) most[i] = most[i] >= x[i] || most[i] != most[i] ? most[i] : x[i];
}
OCTET_VECTORIZED void max_u32(uint32_t* most, const uint32_t* x, int64_t n) {
  for (int64_t i = 0; i < n; ++i) most[i] = most[i] >= x[i] ? most[i] : x[i];
}

template <class T>
using Fold = void (*)(T*, const T*, int64_t);

template <class T>
void fold_all(Fold<T> fold, std::span<const void* const> sources, void* out, int64_t count) {
  T result[block];
  for (int64_t at = 0; at < count; at += block) {
    const int64_t n = std::min(block, count - at);
    std::copy_n(static_cast<const T*>(sources[0]) + at, n, result);
    for (const void* source : sources.subspan(1)) fold(result, static_cast<const T*>(source) + at, n);
    std::copy_n(result, n, static_cast<T*>(out) + at);
  }
}

void sum_bf16(std::span<const void* const> sources, void* out, int64_t count) {
  float sum[block];
  for (int64_t at = 0; at < count; at += block) {
    const int64_t n = std::min(block, count - at);
    widen_bf16(sum, static_cast<const BFloat16*>(sources[0]) + at, n);
    for (const void* source : sources.subspan(1)) add_bf16(sum, static_cast<const BFloat16*>(source) + at, n);
    round_bf16(static_cast<BFloat16*>(out) + at, sum, n);
  }
}

}  // namespace

bool can_reduce(DType dtype, Reduction reduction) {
  if (reduction == Reduction::Sum)
    return dtype == DType::F32 || dtype == DType::F64 || dtype == DType::BF16 || dtype == DType::U64;
  return dtype == DType::F32 || dtype == DType::U32;
}

void reduce_in_rank_order(DType dtype, Reduction reduction, std::span<const void* const> sources, void* out,
                          int64_t count) {
  if (!can_reduce(dtype, reduction))
    throw Error(ExitCode::Internal,
                fmt::format("no {} of {} over ranks", reduction == Reduction::Sum ? "sum" : "maximum",
                            name_of(dtype)));
  if (reduction == Reduction::Max)
    dtype == DType::F32 ? fold_all<float>(max_f32, sources, out, count)
                        : fold_all<uint32_t>(max_u32, sources, out, count);
  else if (dtype == DType::F32)
    fold_all<float>(add_f32, sources, out, count);
  else if (dtype == DType::F64)
    fold_all<double>(add_f64, sources, out, count);
  else if (dtype == DType::U64)
    fold_all<uint64_t>(add_u64, sources, out, count);
  else
    sum_bf16(sources, out, count);
}

}  // namespace octet
