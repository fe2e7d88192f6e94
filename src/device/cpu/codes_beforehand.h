// Codes whose scale is known before they are made, and what their site gets to know of them
// [device.h, CodesBeforehand].
#pragma once
#include <cstdint>

#include "device/device.h"

namespace octet {

struct CodeRule {
  Format format;
  float scale;
  bool counted = false;
};
struct CodeStatistics {
  uint32_t amax = 0;  // bits of the largest magnitude before scaling: NaN above infinity above every number
  CastCounters counts{};

  void add(const CodeStatistics& other);
  bool finite() const { return amax < 0x7f800000u; }
};

// The rule of these codes: the site's scale, or that for `start_amax`.
CodeRule rule_of(const CodesBeforehand& made, float start_amax);
// codes[i] = encode(values[i] * scale). The values are spent.
void encode_values(const CodeRule& rule, float* values, int64_t count, uint8_t* codes,
                   CodeStatistics& statistics);
// values[i] = what encode(values[i] * scale) decodes to, its scale still on it. No statistics: null.
// `counts.elements` stays: the caller knows how many of the values are some.
void round_to_codes(const CodeRule& rule, float* values, int64_t count, CodeStatistics* statistics);
// The site learns its amax, counters and inverse scale, which is NaN unless `finite`; returns that.
float record(const CodesBeforehand& made, const CodeRule& rule, const CodeStatistics& statistics,
             bool finite);
// to[i] = codes[i] * inverse_scale, rounded to storage; exact for powers of two.
void decode_codes(const Tensor& codes, float inverse_scale, const Tensor& to, int threads);

}  // namespace octet
