#include "device/cpu/micro_kernel.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>

#if defined(__x86_64__)
#include <immintrin.h>
#define OCTET_X86 1
#endif

namespace octet {
namespace {

// Plain C++ for any machine. Where the hardware has a fused multiply-add it is asked for by name.
void run_plain(const MicroTile& t) {
  constexpr int rows = 4, columns = 16;
  float sum[rows][columns] = {};
  for (int64_t step = 0; step < t.inner; ++step) {
    const int64_t k = std::min(step ^ 1, t.inner - 1);
    const float* b = t.b + k * t.b_inner_stride;
    for (int i = 0; i < rows; ++i) {
      const float a = t.a[i * t.a_row_stride + k * t.a_inner_stride];
      for (int j = 0; j < columns; ++j) {
#if defined(FP_FAST_FMAF)
        sum[i][j] = std::fma(a, b[j], sum[i][j]);
#else
        sum[i][j] += a * b[j];
#endif
      }
    }
  }
  for (int i = 0; i < rows; ++i) {
    float* c = t.c + i * t.c_row_stride;
    for (int j = 0; j < columns; ++j) c[j] = t.write == MicroTile::Write::Add ? c[j] + sum[i][j] : sum[i][j];
  }
}

#ifdef OCTET_X86
// 8 x 32: 16 accumulators hide the latency of two fused multiply-adds a cycle, and 8 divides every head
// width. Two row pointers with three strides each, so that eight rows do not need eight registers.
#define OCTET_AVX512_STEP(k)                                                         \
  {                                                                                  \
    const float *low = a_low + (k)*ks, *high = a_high + (k)*ks, *b_row = b + (k)*bs; \
    const __m512 b0 = _mm512_loadu_ps(b_row), b1 = _mm512_loadu_ps(b_row + 16);      \
    const float* row[rows] = {low,  low + rs,  low + 2 * rs,  low + rs3,             \
                              high, high + rs, high + 2 * rs, high + rs3};           \
    _Pragma("GCC unroll 8") for (int i = 0; i < rows; ++i) {                         \
      const __m512 x = _mm512_set1_ps(*row[i]);                                      \
      sum[i][0] = OCTET_MULTIPLY_ADD(x, b0, sum[i][0]);                              \
      sum[i][1] = OCTET_MULTIPLY_ADD(x, b1, sum[i][1]);                              \
    }                                                                                \
  }
#define OCTET_AVX512_FINISH                                          \
  _Pragma("GCC unroll 8") for (int i = 0; i < rows; ++i) {           \
    float* c = t.c + i * t.c_row_stride;                             \
    if (t.write == MicroTile::Write::Add) {                          \
      sum[i][0] = _mm512_add_ps(_mm512_loadu_ps(c), sum[i][0]);      \
      sum[i][1] = _mm512_add_ps(_mm512_loadu_ps(c + 16), sum[i][1]); \
    }                                                                \
    _mm512_storeu_ps(c, sum[i][0]);                                  \
    _mm512_storeu_ps(c + 16, sum[i][1]);                             \
  }
#define OCTET_AVX512_START                                                                       \
  constexpr int rows = 8;                                                                        \
  const int64_t rs = t.a_row_stride, rs3 = 3 * rs, ks = t.a_inner_stride, bs = t.b_inner_stride; \
  const float *a_low = t.a, *a_high = t.a + 4 * rs, *b = t.b;                                    \
  __m512 sum[rows][2];                                                                           \
  _Pragma("GCC unroll 8") for (int i = 0; i < rows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();

#define OCTET_MULTIPLY_ADD(x, y, z) _mm512_fmadd_ps(x, y, z)
__attribute__((target("avx512f"), optimize("O3"))) void run_avx512(const MicroTile& t) {
  OCTET_AVX512_START
  int64_t k = 0;
#pragma GCC unroll 2
  for (; k + 2 <= t.inner; k += 2) {
    OCTET_AVX512_STEP(1)
    OCTET_AVX512_STEP(0)
    a_low += 2 * ks;
    a_high += 2 * ks;
    b += 2 * bs;
  }
  if (k < t.inner) OCTET_AVX512_STEP(0)
  OCTET_AVX512_FINISH
}
#undef OCTET_MULTIPLY_ADD
// sum + second * second, then + first * first, each fused.  [Intel SDM, VDPBF16PS; the same on Zen 4,
// measured]
#define OCTET_MULTIPLY_ADD(x, y, z) _mm512_dpbf16_ps(z, (__m512bh)(x), (__m512bh)(y))
__attribute__((target("avx512f,avx512bf16"), optimize("O3"))) void run_avx512_pairs(const MicroTile& t) {
  OCTET_AVX512_START
#pragma GCC unroll 4
  for (int64_t k = 0; k < t.inner; ++k) {
    OCTET_AVX512_STEP(0)
    a_low += ks;
    a_high += ks;
    b += bs;
  }
  OCTET_AVX512_FINISH
}
#undef OCTET_MULTIPLY_ADD

// 4 x 16 in eight of the sixteen registers.
#define OCTET_AVX2_STEP(k)                                                        \
  {                                                                               \
    const float *a_row = a + (k)*ks, *b_row = b + (k)*bs;                         \
    const __m256 b0 = _mm256_loadu_ps(b_row), b1 = _mm256_loadu_ps(b_row + 8);    \
    const float* row[rows] = {a_row, a_row + rs, a_row + 2 * rs, a_row + 3 * rs}; \
    _Pragma("GCC unroll 4") for (int i = 0; i < rows; ++i) {                      \
      const __m256 x = _mm256_set1_ps(*row[i]);                                   \
      sum[i][0] = _mm256_fmadd_ps(x, b0, sum[i][0]);                              \
      sum[i][1] = _mm256_fmadd_ps(x, b1, sum[i][1]);                              \
    }                                                                             \
  }
__attribute__((target("avx2,fma"), optimize("O3"))) void run_avx2(const MicroTile& t) {
  constexpr int rows = 4;
  const int64_t rs = t.a_row_stride, ks = t.a_inner_stride, bs = t.b_inner_stride;
  const float *a = t.a, *b = t.b;
  __m256 sum[rows][2];
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
  int64_t k = 0;
#pragma GCC unroll 2
  for (; k + 2 <= t.inner; k += 2) {
    OCTET_AVX2_STEP(1)
    OCTET_AVX2_STEP(0)
    a += 2 * ks;
    b += 2 * bs;
  }
  if (k < t.inner) OCTET_AVX2_STEP(0)
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
    float* c = t.c + i * t.c_row_stride;
    if (t.write == MicroTile::Write::Add) {
      sum[i][0] = _mm256_add_ps(_mm256_loadu_ps(c), sum[i][0]);
      sum[i][1] = _mm256_add_ps(_mm256_loadu_ps(c + 8), sum[i][1]);
    }
    _mm256_storeu_ps(c, sum[i][0]);
    _mm256_storeu_ps(c + 8, sum[i][1]);
  }
}

// Eight rows of eight in registers; three rounds of exchanges.
__attribute__((target("avx2"))) void transpose8(const float* from, int64_t from_stride, float* to,
                                                int64_t to_stride) {
  __m256 r[8], s[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) r[i] = _mm256_loadu_ps(from + i * from_stride);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(to + i * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(to + (i + 4) * to_stride, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
__attribute__((target("avx2"))) void transpose_avx2(const TransposeBlock& t) {
  const int64_t rows = t.rows / 8 * 8, columns = t.columns / 8 * 8;
  for (int64_t j = 0; j < columns; j += 8)
    for (int64_t i = 0; i < rows; i += 8)
      transpose8(t.from + i * t.from_stride + j, t.from_stride, t.to + j * t.to_stride + i, t.to_stride);
  for (int64_t i = 0; i < t.rows; ++i)
    for (int64_t j = i < rows ? columns : 0; j < t.columns; ++j)
      t.to[j * t.to_stride + i] = t.from[i * t.from_stride + j];
}
#endif

struct Available {
  std::array<MicroKernel, 3> kernels{};
  int count = 0;
  MicroKernel pairs{};
  Available() {
#ifdef OCTET_X86
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bf16"))
      pairs = {8, 32, "avx512-bf16", run_avx512_pairs};
    if (__builtin_cpu_supports("avx512f")) kernels[count++] = {8, 32, "avx512", run_avx512};
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
      kernels[count++] = {4, 16, "avx2", run_avx2};
#endif
    kernels[count++] = {4, 16, "plain", run_plain};
  }
};
const Available& available() {
  static const Available found;
  return found;
}

}  // namespace

const MicroKernel& micro_kernel() { return available().kernels[0]; }
const MicroKernel* micro_kernels(int& count) {
  count = available().count;
  return available().kernels.data();
}

const MicroKernel* pair_micro_kernel() { return available().pairs.run ? &available().pairs : nullptr; }

void transpose(const TransposeBlock& t) {
#ifdef OCTET_X86
  if (micro_kernel().run != run_plain) return transpose_avx2(t);
#endif
  for (int64_t i = 0; i < t.rows; ++i)
    for (int64_t j = 0; j < t.columns; ++j) t.to[j * t.to_stride + i] = t.from[i * t.from_stride + j];
}

}  // namespace octet
