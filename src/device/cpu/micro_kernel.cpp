#include "device/cpu/micro_kernel.h"

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
  for (int64_t k = 0; k < t.inner; ++k) {
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
// width.
__attribute__((target("avx512f"), optimize("O3"))) void run_avx512(const MicroTile& t) {
  constexpr int rows = 8, columns = 32;
  __m512 sum[rows][2];
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) sum[i][0] = sum[i][1] = _mm512_setzero_ps();
  // Two row pointers with three-stride addressing each, so that eight rows do not need eight registers.
  const int64_t rs = t.a_row_stride, ks = t.a_inner_stride, bs = t.b_inner_stride;
  const float* low = t.a;
  const float* high = t.a + 4 * rs;
  const float* b = t.b;
  const int64_t rs3 = 3 * rs;
#pragma GCC unroll 4
  for (int64_t k = 0; k < t.inner; ++k) {
    const __m512 b0 = _mm512_loadu_ps(b), b1 = _mm512_loadu_ps(b + 16);
    const float* row[rows] = {low,  low + rs,  low + 2 * rs,  low + rs3,
                              high, high + rs, high + 2 * rs, high + rs3};
#pragma GCC unroll 8
    for (int i = 0; i < rows; ++i) {
      const __m512 a = _mm512_set1_ps(*row[i]);
      sum[i][0] = _mm512_fmadd_ps(a, b0, sum[i][0]);
      sum[i][1] = _mm512_fmadd_ps(a, b1, sum[i][1]);
    }
    low += ks;
    high += ks;
    b += bs;
  }
#pragma GCC unroll 8
  for (int i = 0; i < rows; ++i) {
    float* c = t.c + i * t.c_row_stride;
    if (t.write == MicroTile::Write::Add) {
      sum[i][0] = _mm512_add_ps(_mm512_loadu_ps(c), sum[i][0]);
      sum[i][1] = _mm512_add_ps(_mm512_loadu_ps(c + 16), sum[i][1]);
    }
    _mm512_storeu_ps(c, sum[i][0]);
    _mm512_storeu_ps(c + columns / 2, sum[i][1]);
  }
}

// 4 x 16 in eight of the sixteen registers.
__attribute__((target("avx2,fma"), optimize("O3"))) void run_avx2(const MicroTile& t) {
  constexpr int rows = 4, columns = 16;
  __m256 sum[rows][2];
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) sum[i][0] = sum[i][1] = _mm256_setzero_ps();
  const int64_t rs = t.a_row_stride, ks = t.a_inner_stride, bs = t.b_inner_stride;
  const float* a_row = t.a;
  const float* b = t.b;
#pragma GCC unroll 4
  for (int64_t k = 0; k < t.inner; ++k) {
    const __m256 b0 = _mm256_loadu_ps(b), b1 = _mm256_loadu_ps(b + 8);
    const float* row[rows] = {a_row, a_row + rs, a_row + 2 * rs, a_row + 3 * rs};
#pragma GCC unroll 4
    for (int i = 0; i < rows; ++i) {
      const __m256 a = _mm256_set1_ps(*row[i]);
      sum[i][0] = _mm256_fmadd_ps(a, b0, sum[i][0]);
      sum[i][1] = _mm256_fmadd_ps(a, b1, sum[i][1]);
    }
    a_row += ks;
    b += bs;
  }
#pragma GCC unroll 4
  for (int i = 0; i < rows; ++i) {
    float* c = t.c + i * t.c_row_stride;
    if (t.write == MicroTile::Write::Add) {
      sum[i][0] = _mm256_add_ps(_mm256_loadu_ps(c), sum[i][0]);
      sum[i][1] = _mm256_add_ps(_mm256_loadu_ps(c + 8), sum[i][1]);
    }
    _mm256_storeu_ps(c, sum[i][0]);
    _mm256_storeu_ps(c + columns / 2, sum[i][1]);
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
  Available() {
#ifdef OCTET_X86
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

void transpose(const TransposeBlock& t) {
#ifdef OCTET_X86
  if (micro_kernel().run != run_plain) return transpose_avx2(t);
#endif
  for (int64_t i = 0; i < t.rows; ++i)
    for (int64_t j = 0; j < t.columns; ++j) t.to[j * t.to_stride + i] = t.from[i * t.from_stride + j];
}

}  // namespace octet
