// Casting a matrix to FP8 codes, row-major and transposed, with every scaling the recipes know.
// The specification is device/cpu/cast.cpp; codes, scales, amaxes and counters are equal to the bit.
//
//   value[r, c] = BF16(source[r, c] * column_factor[c])
//   code[r, c]  = encode(value[r, c] * scale)
//
// Three launches: measure (unless the producer already has), decide, encode. With scales of blocks one:
// cast_blockwise.
#pragma once
#include <cstdint>

#include "kernels/namespace.h"
#include "numerics/recipe.h"

OCTET_KERNELS_BEGIN

struct CastSource {
  const void* values;                    // `storage` [rows, columns]
  octet::Format storage;                 // FP32 or BF16
  const float* column_factor = nullptr;  // [columns] or null
  int64_t rows, columns;
};

// The amaxes, as in output.h. One pass over the source.
struct MeasureArguments {
  CastSource source;
  uint32_t* amax = nullptr;         // [1], max-ed in; null: not wanted
  uint32_t* row_amax = nullptr;     // [rows], written
  uint32_t* column_amax = nullptr;  // [columns], max-ed in
  // Written high copy in `high_storage` (FP32: unrounded product; BF16: rounded), or null.
  void* high = nullptr;
  octet::Format high_storage = octet::Format::BF16;
  Stream stream = nullptr;
};
void measure(const MeasureArguments&);

// factored (max-ed in) = largest BF16(row_amax[r] * |row_factor[r]|): the amax of the source with row
// factors.
struct MeasureFactoredArguments {
  const uint32_t* row_amax;
  const float* row_factor;
  int64_t rows;
  uint32_t* factored;
  Stream stream = nullptr;
};
void measure_factored(const MeasureFactoredArguments&);

// One site's scale from this tensor's amax or, with delayed scaling, from its history: site_scale() of
// device/cpu/cast.cpp. All pointers are device memory; null: not there.
struct DecideArguments {
  const uint32_t* amax;  // [1]; NaN counts as infinity
  octet::Cast cast;
  float* site_scale = nullptr;
  float* site_inverse_scale = nullptr;
  float* site_amax = nullptr;  // max-ed in
  float* scale;                // [1], written: what encode() multiplies by
  uint32_t* encode = nullptr;  // [1], written: 0 when the producer has already written the row codes
                               // (delayed, with history), else 1
  bool only_record = false;    // finer scales: just max the amax into the site
  Stream stream = nullptr;
};
void decide(const DecideArguments&);

// inverse_scale[i] = 1 / fine_scale(cast, amax[i]), NaN where the amax is not finite.
struct DecideFineArguments {
  const uint32_t* amax;  // [count]
  float* inverse_scale;  // [count]
  int64_t count;
  octet::Cast cast;
  Stream stream = nullptr;
};
void decide_fine(const DecideFineArguments&);

// SmoothQuant [numerics/smooth_quant.h]: inverse_scale[j] = s_j / S, NaN where the amax is not finite.
struct DecideSmoothArguments {
  const uint32_t* amax;      // [count], of the columns
  const float* weight_amax;  // [count]
  float alpha;
  float* inverse_scale;  // [count]
  int64_t count;
  octet::Format format;
  Stream stream = nullptr;
};
void decide_smooth(const DecideSmoothArguments&);

// How the codes of one copy are made. Exactly one of scale, row_inverse_scale, column_inverse_scale.
struct Coding {
  const float* scale = nullptr;                 // [1]
  const float* row_inverse_scale = nullptr;     // [rows]
  const float* column_inverse_scale = nullptr;  // [columns]
  const float* row_factor = nullptr;  // [rows]: value[r, c] = BF16(value[r, c] * row_factor[r]) first
  uint64_t* counters = nullptr;       // [3] elements, saturated, flushed: added to; null: not counted
};
struct EncodeArguments {
  CastSource source;
  octet::Format format;
  octet::Rounding rounding = octet::Rounding::Nearest;
  uint64_t rounding_key = 0;  // element = first + r * columns + c of the source, in both copies
  int64_t first = 0;
  uint8_t* row = nullptr;  // [rows, columns] or null
  Coding row_coding = {};
  uint8_t* column = nullptr;             // [columns, rows] or null
  Coding column_coding = {};             // ignored when column_is_row
  bool column_is_row = true;             // the column copy is the transpose of the row copy's codes
  const uint32_t* encode_row = nullptr;  // [1] or null; 0: `row` holds the codes already (see Output)
  Stream stream = nullptr;
};
void encode(const EncodeArguments&);

// Codes with scales of blocks of 128 values [numerics/block_scales.h], the scales, and the amax of all, from
// one read of the source: nothing is measured before. Each copy has its own scales, or both those of squares.
struct BlockwiseArguments {
  CastSource source;
  octet::Cast cast;
  uint64_t rounding_key = 0;           // as in EncodeArguments
  bool squares = false;                // one a 128 x 128
  uint8_t* row = nullptr;              // [rows, columns] or null
  float* row_inverse_scale = nullptr;  // where there is `row`
  uint8_t* column = nullptr;           // [columns, rows] or null
  float* column_inverse_scale = nullptr;
  uint32_t* amax = nullptr;      // [1], max-ed in
  uint64_t* counters = nullptr;  // of one of the copies, as in Coding
  Stream stream = nullptr;
};
void cast_blockwise(const BlockwiseArguments&);

OCTET_KERNELS_END
