#include "device/cpu/codes_beforehand.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/platform.h"
#include "device/cpu/amax.h"
#include "device/cpu/unpack.h"
#include "numerics/float8.h"
#include "numerics/float8_attention.h"

namespace octet {
namespace {

constexpr int64_t piece = 256;
constexpr uint32_t infinity_bits = 0x7f800000u;

OCTET_VECTORIZED void multiply_values(float* values, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= factor;
}
OCTET_VECTORIZED void encode_e4m3_values(const float* values, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_e4m3(values[i]);
}
OCTET_VECTORIZED void encode_e5m2_values(const float* values, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_e5m2(values[i]);
}

void encode_piece(const CodeRule& rule, float* values, int64_t n, uint8_t* codes,
                  CodeStatistics* statistics) {
  if (statistics) statistics->amax = std::max(statistics->amax, amax_bits(values, n));
  multiply_values(values, rule.scale, n);
  (rule.format == Format::E4M3 ? encode_e4m3_values : encode_e5m2_values)(values, n, codes);
  if (!statistics || !rule.counted) return;
  const float max = max_of(rule.format);
  for (int64_t i = 0; i < n; ++i) {
    statistics->counts.saturated += std::abs(values[i]) > max ? 1 : 0;
    statistics->counts.flushed += values[i] != 0.0f && (codes[i] & 0x7fu) == 0 ? 1 : 0;
  }
}

}  // namespace

void CodeStatistics::add(const CodeStatistics& other) {
  amax = std::max(amax, other.amax);
  counts.elements += other.counts.elements;
  counts.saturated += other.counts.saturated;
  counts.flushed += other.counts.flushed;
}

CodeRule rule_of(const CodesBeforehand& made, float start_amax) {
  const float of_site = made.site.scale ? *made.site.scale : 0.0f;
  return {made.cast.format, scale_beforehand(made.cast, of_site, start_amax), made.site.counters != nullptr};
}

void encode_values(const CodeRule& rule, float* values, int64_t count, uint8_t* codes,
                   CodeStatistics& statistics) {
  encode_piece(rule, values, count, codes, &statistics);
  if (rule.counted) statistics.counts.elements += static_cast<uint64_t>(count);
}

void round_to_codes(const CodeRule& rule, float* values, int64_t count, CodeStatistics* statistics) {
  const DType type = dtype_of(rule.format);
  uint8_t codes[piece];
  for (int64_t i = 0; i < count; i += piece) {
    const int64_t n = std::min(piece, count - i);
    encode_piece(rule, values + i, n, codes, statistics);
    unpack(type, codes, values + i, n);
  }
}

float record(const CodesBeforehand& made, const CodeRule& rule, const CodeStatistics& statistics,
             bool finite) {
  const Site& site = made.site;
  const float inverse = finite ? 1.0f / rule.scale : std::numeric_limits<float>::quiet_NaN();
  if (site.amax)
    *site.amax = std::max(*site.amax, std::bit_cast<float>(std::min(statistics.amax, infinity_bits)));
  if (site.inverse_scale) *site.inverse_scale = inverse;
  if (site.counters) {
    site.counters->elements += statistics.counts.elements;
    site.counters->saturated += statistics.counts.saturated;
    site.counters->flushed += statistics.counts.flushed;
  }
  return inverse;
}

void decode_codes(const Tensor& codes, float inverse_scale, const Tensor& to, int threads) {
  const int64_t rows = codes.rows(), columns = codes.columns();
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    Tensor out = to;
    float values[piece];
    for (int64_t c = 0; c < columns; c += piece) {
      const int64_t n = std::min(piece, columns - c), first = r * columns + c;
      unpack(codes.dtype, at(codes, first), values, n);
      multiply_values(values, inverse_scale, n);
      pack(out.dtype, values, at(out, first), n);
    }
  }
}

}  // namespace octet
