// Casting: the one place of the CPU device where FP8 codes are made.
//
//   value[r, c] = BF16(source[r, c] * factors)      the house rule: codes come from the BF16 value
//   code[r, c]  = encode(value[r, c] * scale)       scale of the site, of row r, of column c or of a block
//
// Two passes: amaxes (per tensor, row, column or block), then codes. The second works on tiles, so that the
// codes of the transpose are written from the tile's codes while these are in the L1 cache.
//
// A tensor, row or column that contains an infinity or a NaN gets a NaN inverse scale: saturation must not
// turn a diverged step into a finite one. NaN reaches the loss or the gradient norm and the step is dropped.
#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "base/platform.h"
#include "base/random.h"
#include "device/cast_checks.h"
#include "device/cpu/amax.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/transpose.h"
#include "device/cpu/unpack.h"
#include "device/scales.h"
#include "numerics/bfloat16.h"
#include "numerics/float8.h"
#include "numerics/scaling.h"
#include "numerics/smooth_quant.h"

namespace octet {
namespace {

constexpr int64_t tile_rows = 64, tile_columns = 256;
constexpr uint32_t infinity_bits = 0x7f800000u;

OCTET_VECTORIZED void round_values(const float* from, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = round_to_bfloat16(from[i]);
}
OCTET_VECTORIZED void round_multiples(const float* from, float factor, int64_t n, float* to) {
  for (int64_t i = 0; i < n; ++i) to[i] = round_to_bfloat16(from[i] * factor);
}
OCTET_VECTORIZED void scale_values(float* values, float scale, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= scale;
}
OCTET_VECTORIZED void scale_by_column(float* values, const float* scales, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= scales[i];
}
OCTET_VECTORIZED void encode_values_e4m3(const float* values, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_e4m3(values[i]);
}
OCTET_VECTORIZED void encode_values_e5m2(const float* values, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_e5m2(values[i]);
}
OCTET_VECTORIZED void random_words(uint64_t key, uint64_t first_block, int64_t blocks, uint32_t* words) {
  for (int64_t i = 0; i < blocks; ++i) {
    const Random4 r = philox(key, first_block + static_cast<uint64_t>(i));
    words[4 * i] = r.x;
    words[4 * i + 1] = r.y;
    words[4 * i + 2] = r.z;
    words[4 * i + 3] = r.w;
  }
}
struct Draws {
  const float* values;
  const uint32_t* words;  // a random one each
};
OCTET_VECTORIZED void encode_stochastic_values(Format format, Draws draws, int64_t n, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = encode_stochastic(format, draws.values[i], draws.words[i]);
}

// `count` values of a row from `column` on.
struct RowPart {
  int64_t row, column, count;
};

// What is cast: a matrix, optionally with factors on its columns.
struct Source {
  Tensor values;
  const float* column_factor = nullptr;

  int64_t rows() const { return values.rows(); }
  int64_t columns() const { return values.elements() == 0 ? 0 : values.columns(); }
  void read_unrounded(const RowPart& part, float* to) const {
    unpack(values.dtype, at(values, part.row * columns() + part.column), to, part.count);
    if (column_factor) scale_by_column(to, column_factor + part.column, part.count);
  }
  // The same, rounded to BF16.
  void read(const RowPart& part, float* to) const {
    read_unrounded(part, to);
    if (values.dtype == DType::F32 || column_factor) round_values(to, part.count, to);
  }
  // NaN above infinity.
  uint32_t row_magnitude_bits(int64_t r) const {
    uint32_t largest = 0;
    if (values.dtype == DType::BF16 && !column_factor) {
      largest = amax_bits(values.as<BFloat16>() + r * columns(), columns());
    } else {
      float buffer[tile_columns];
      for (int64_t c = 0; c < columns(); c += tile_columns) {
        const int64_t n = std::min(tile_columns, columns() - c);
        read({r, c, n}, buffer);
        largest = std::max(largest, amax_bits(buffer, n));
      }
    }
    return largest;
  }
  uint32_t row_amax_bits(int64_t r) const {
    return std::min(row_magnitude_bits(r), infinity_bits);  // NaN counts as infinity
  }
};

// The copy with one set of scales: how its codes are made.
struct Coding {
  Cast cast;
  float scale = 1;                      // when there are no finer ones
  InverseScales inverse_scales;         // the finer ones
  const float* column_scale = nullptr;  // where columns have their own: of the current tile's
  const float* row_factor = nullptr;    // [rows]
  uint64_t rounding_key = 0;
  uint64_t first = 0;  // number of the source's first value, for random numbers
  CastCounters* counters = nullptr;

  void make(const Source& source, const RowPart& part, uint8_t* codes, CastCounters& counts) const {
    const auto [r, c, n] = part;
    float values[tile_columns];
    source.read(part, values);
    if (row_factor) round_multiples(values, row_factor[r], n, values);
    if (column_scale) {
      scale_by_column(values, column_scale, n);
    } else if (inverse_scales.values) {
      const int64_t together = inverse_scales.column_stride == 0 ? n : inverse_scales.column_block;
      for (int64_t i = 0; i < n; i += together)
        scale_values(values + i, 1.0f / inverse_scales.at(r, c + i), std::min(together, n - i));
    } else {
      scale_values(values, scale, n);
    }
    if (cast.rounding == Rounding::Stochastic) {
      uint32_t words[tile_columns + 8];
      const uint64_t element = first + static_cast<uint64_t>(r * source.columns() + c);
      const int64_t skip = static_cast<int64_t>(element & 3);
      random_words(rounding_key, element >> 2, (skip + n + 3) / 4, words);
      encode_stochastic_values(cast.format, {values, words + skip}, n, codes);
    } else if (cast.format == Format::E4M3) {
      encode_values_e4m3(values, n, codes);
    } else {
      encode_values_e5m2(values, n, codes);
    }
    if (counters) {
      const float max = max_of(cast.format);
      counts.elements += static_cast<uint64_t>(n);
      for (int64_t i = 0; i < n; ++i) {
        counts.saturated += std::abs(values[i]) > max ? 1 : 0;
        counts.flushed += values[i] != 0.0f && (codes[i] & 0x7fu) == 0 ? 1 : 0;
      }
    }
  }
};

void add(CastCounters* to, const CastCounters& counts) {
  if (!to) return;
  to->elements += counts.elements;
  to->saturated += counts.saturated;
  to->flushed += counts.flushed;
}

float finite_or_infinite(float amax) {  // NaN counts as infinity
  return std::bit_cast<float>(std::min(std::bit_cast<uint32_t>(amax), infinity_bits));
}

float inverse_or_nan(float scale, float amax) {
  return std::isfinite(amax) ? 1.0f / scale : std::numeric_limits<float>::quiet_NaN();
}

// Records the amax and decides the scale of one site for this cast.
float site_scale(const Site& site, const Cast& cast, float amax) {
  if (site.amax) *site.amax = std::max(*site.amax, amax);
  const bool history = is_known_before(cast.scaling) && site.scale && *site.scale != 0.0f;
  const float scale = history ? *site.scale : scale_for(cast.rule, amax, max_of(cast.format));
  if (cast.scaling == Scaling::Current && site.scale) *site.scale = scale;
  if (site.inverse_scale) *site.inverse_scale = inverse_or_nan(scale, amax);
  return scale;
}

void check(const Source& source, const CastTarget& out) {
  const auto wrong = [](const std::string& what) { return Error(ExitCode::Internal, "cast: " + what); };
  if (source.values.dtype != DType::F32 && source.values.dtype != DType::BF16) {
    throw wrong(fmt::format("source is {}", name_of(source.values.dtype)));
  }
  if (!is_float8(out.cast.format)) throw wrong("codes are wanted but the site's format is not FP8");
  for (const Tensor& codes : {out.row, out.column}) {
    if (!codes.empty() && (size_of(codes.dtype) != 1 || codes.elements() != source.values.elements())) {
      throw wrong(fmt::format("codes {} {} for values {}", name_of(codes.dtype), to_string(codes.shape),
                              to_string(source.values.shape)));
    }
  }
}

struct Encoder {
  const Source& source;
  const CastTarget& out;
  int threads;
  uint64_t first = 0;
  const float* whole_amax = nullptr;  // of the tensor that the source is a part of

  bool row_scales() const { return !out.row_inverse_scale.empty(); }
  bool column_scales() const { return !out.column_inverse_scale.empty(); }
  bool blocks() const { return in_blocks(out); }
  static float amax_of(uint32_t bits) { return std::bit_cast<float>(std::min(bits, infinity_bits)); }
  float fine_inverse(uint32_t bits) const {
    const float amax = amax_of(bits);
    return inverse_or_nan(fine_scale(out.cast, amax), amax);
  }

  // Pass 1a: amax of every row, hence of the tensor (and of the tensor with row factors).
  struct Amaxes {
    float tensor, factored;
  };
  Amaxes measure_rows() const {
    const int64_t rows = source.rows();
    float* inverse = row_scales() && !blocks() ? out.row_inverse_scale.as<float>() : nullptr;
    const float* factor = out.row_factor.empty() ? nullptr : out.row_factor.as<float>();
    uint32_t tensor = 0, factored = 0;
#pragma omp parallel for num_threads(threads) schedule(static) reduction(max : tensor, factored)
    for (int64_t r = 0; r < rows; ++r) {
      const uint32_t bits = source.row_amax_bits(r);
      const float amax = std::bit_cast<float>(bits);
      tensor = std::max(tensor, bits);
      if (inverse) inverse[r] = fine_inverse(bits);
      if (factor) {
        // Rounding is monotonic, so the largest rounded product is the rounded product of the largest.
        const uint32_t product = std::bit_cast<uint32_t>(round_to_bfloat16(amax * std::abs(factor[r])));
        factored = std::max(factored, std::min(product, infinity_bits));
      }
    }
    return {std::bit_cast<float>(tensor), std::bit_cast<float>(factored)};
  }

  // Pass 1b: amax of every column.
  void measure_columns() const {
    const int64_t rows = source.rows(), columns = source.columns();
    constexpr int64_t width = 128;
    float* inverse = out.column_inverse_scale.as<float>();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t begin = 0; begin < columns; begin += width) {
      const int64_t n = std::min(width, columns - begin);
      float values[width];
      uint32_t largest[width] = {};
      for (int64_t r = 0; r < rows; ++r) {
        source.read({r, begin, n}, values);
        column_amax_bits(values, n, largest);
      }
      for (int64_t c = 0; c < n; ++c)
        inverse[begin + c] = smooths(out) ? amax_of(largest[c]) : fine_inverse(largest[c]);
    }
    if (smooths(out)) smooth_columns();
  }
  // SmoothQuant: from the amaxes of the columns, which stand where their inverse scales will.
  void smooth_columns() const {
    const int64_t columns = source.columns();
    float* const column = out.column_inverse_scale.as<float>();
    const float* const weight = out.channel_weight_amax.as<float>();
    const float alpha = out.channel_exponent;
    float amax = 0;
    for (int64_t c = 0; c < columns; ++c) amax = std::max(amax, smoothed_amax(column[c], weight[c], alpha));
    const float scale = power_of_two_scale(amax, max_of(out.cast.format));
    for (int64_t c = 0; c < columns; ++c)
      column[c] = smoothed_inverse_scale(column[c], weight[c], alpha, scale);
  }

  // Pass 1c: amaxes of the blocks of 128 rows and 128 columns, of their rows and of their columns.
  void measure_blocks() const {
    const int64_t rows = source.rows(), columns = source.columns();
    const CastScales scales = cast_scales(out, rows, columns);
    const bool squares = out.granularity == ScaleGranularity::Squares;
    const auto row_of = [&](int64_t r, int64_t c, uint32_t bits) {
      if (row_scales()) out.row_inverse_scale.as<float>()[scales.row.index(r, c)] = fine_inverse(bits);
    };
    const auto column_of = [&](int64_t r, int64_t c, uint32_t bits) {
      if (column_scales())
        out.column_inverse_scale.as<float>()[scales.column.index(r, c)] = fine_inverse(bits);
    };
    const int64_t across = scale_blocks(columns), down = scale_blocks(rows);
#pragma omp parallel for num_threads(threads) schedule(static)
    for (int64_t block = 0; block < across * down; ++block) {
      const int64_t r0 = block / across * scale_block, c0 = block % across * scale_block;
      const int64_t height = std::min(scale_block, rows - r0), width = std::min(scale_block, columns - c0);
      float values[scale_block];
      uint32_t of_columns[scale_block] = {}, of_all = 0;
      for (int64_t r = r0; r < r0 + height; ++r) {
        source.read({r, c0, width}, values);
        const uint32_t of_row = amax_bits(values, width);
        of_all = std::max(of_all, of_row);
        column_amax_bits(values, width, of_columns);
        if (!squares) row_of(r, c0, of_row);
      }
      if (squares) {
        row_of(r0, c0, of_all);
        column_of(r0, c0, of_all);
      } else {
        for (int64_t c = 0; c < width; ++c) column_of(r0, c0 + c, of_columns[c]);
      }
    }
  }

  void run() const {
    check(source, out);
    check_channels(out, source.columns());
    const Amaxes amaxes = whole_amax ? Amaxes{finite_or_infinite(*whole_amax), 0} : measure_rows();
    if (blocks()) {
      check_blocks(out, source.rows(), source.columns());
      measure_blocks();
    } else if (column_scales()) {
      measure_columns();
    }

    Coding row;
    row.cast = out.cast;
    row.rounding_key = out.rounding_key;
    row.first = first;
    row.counters = out.site.counters;
    const bool finer = row_scales() || column_scales();
    if (finer) {  // the site keeps the statistics
      if (out.site.amax) *out.site.amax = std::max(*out.site.amax, amaxes.tensor);
    } else {
      row.scale = site_scale(out.site, out.cast, amaxes.tensor);
    }
    Coding column = row;
    column.counters = out.row.empty() ? row.counters : nullptr;
    const CastScales scales = cast_scales(out, source.rows(), source.columns());
    row.inverse_scales = scales.row;
    column.inverse_scales = scales.column;
    bool transpose_row = !copies_differ(out);  // the column copy holds the row copy's codes
    if (!out.row_factor.empty()) {
      column = Coding();
      column.cast = out.cast;
      column.rounding_key = out.rounding_key;
      column.row_factor = out.row_factor.as<float>();
      column.scale = site_scale(out.column_site, out.cast, amaxes.factored);
      column.counters = out.column_site.counters;
      transpose_row = false;
    }
    encode_tiles(row, column, transpose_row);
  }

  // Scales of a tile's columns where each has its own, which no row of the tile changes.
  static const float* scales_of_columns(const InverseScales& inverse, const RowPart& part, float* scales) {
    if (!inverse.values || inverse.column_block != 1 || inverse.column_stride == 0) return nullptr;
    for (int64_t c = 0; c < part.count; ++c) scales[c] = 1.0f / inverse.at(part.row, part.column + c);
    return scales;
  }
  // Pass 2: codes, tile by tile. transpose_row: column copy = transpose of the row copy.
  void encode_tiles(const Coding& row_rule, const Coding& column_rule, bool transpose_row) const {
    static_assert(scale_block % tile_rows == 0);
    const int64_t rows = source.rows(), columns = source.columns();
    const int64_t across = (columns + tile_columns - 1) / tile_columns,
                  down = (rows + tile_rows - 1) / tile_rows;
    uint8_t* to_row = out.row.empty() ? nullptr : out.row.as<uint8_t>();
    uint8_t* to_column = out.column.empty() ? nullptr : out.column.as<uint8_t>();
    uint64_t elements = 0, saturated = 0, flushed = 0, column_elements = 0, column_saturated = 0,
             column_flushed = 0;
#pragma omp parallel for num_threads(threads) schedule(static) \
    reduction(+ : elements, saturated, flushed, column_elements, column_saturated, column_flushed)
    for (int64_t tile = 0; tile < across * down; ++tile) {
      const int64_t r0 = tile / across * tile_rows, c0 = tile % across * tile_columns;
      const int64_t height = std::min(tile_rows, rows - r0), width = std::min(tile_columns, columns - c0);
      alignas(64) uint8_t codes[tile_rows * tile_columns];
      float scales[tile_columns];
      CastCounters counts{}, column_counts{};
      if (to_row) {
        Coding rule = row_rule;
        rule.column_scale = scales_of_columns(rule.inverse_scales, {r0, c0, width}, scales);
        for (int64_t r = 0; r < height; ++r) {
          rule.make(source, {r0 + r, c0, width}, to_row + (r0 + r) * columns + c0, counts);
        }
      }
      if (to_column) {
        const uint8_t* from = to_row ? to_row + r0 * columns + c0 : codes;
        int64_t stride = columns;
        if (!to_row || !transpose_row) {
          Coding rule = column_rule;
          rule.column_scale = scales_of_columns(rule.inverse_scales, {r0, c0, width}, scales);
          for (int64_t r = 0; r < height; ++r) {
            rule.make(source, {r0 + r, c0, width}, codes + r * tile_columns, column_counts);
          }
          from = codes;
          stride = tile_columns;
        }
        transpose_bytes({from, stride, height, width}, to_column + c0 * rows + r0, rows);
      }
      elements += counts.elements;
      saturated += counts.saturated;
      flushed += counts.flushed;
      column_elements += column_counts.elements;
      column_saturated += column_counts.saturated;
      column_flushed += column_counts.flushed;
    }
    add(row_rule.counters, {elements, saturated, flushed});
    add(column_rule.counters, {column_elements, column_saturated, column_flushed});
  }
};

// The copy in storage precision: rounded once, by pack().
void write_high(const Source& source, const Tensor& high, int threads) {
  const int64_t rows = source.rows(), columns = source.columns();
  const bool direct = source.values.dtype == DType::F32 && !source.column_factor;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    Tensor out = high;
    float values[tile_columns];
    for (int64_t c = 0; c < columns; c += tile_columns) {
      const RowPart part{r, c, std::min(tile_columns, columns - c)};
      if (!direct) source.read_unrounded(part, values);
      pack(out.dtype, direct ? source.values.as<float>() + r * columns + c : values, at(out, r * columns + c),
           part.count);
    }
  }
}

}  // namespace

void CpuDevice::finish_cast(const CastTarget& out) {
  if (out.row.empty() && out.column.empty()) return;
  const Source source{out.high};
  Encoder{source, out, threads_}.run();
}

void CpuDevice::cast(const CastOperation& operation) {
  Source source{operation.source};
  if (!operation.column_factor.empty()) source.column_factor = operation.column_factor.as<float>();
  const CastTarget& out = operation.out;
  if (!out.high.empty() && out.high.data != operation.source.data) write_high(source, out.high, threads_);
  if (out.row.empty() && out.column.empty()) return;
  check_part(operation);
  Encoder{source, out, threads_, static_cast<uint64_t>(operation.first),
          operation.amax.empty() ? nullptr : operation.amax.as<float>()}
      .run();
}

void CpuDevice::measure_amax(const MeasureAmax& operation) {
  check(operation);
  if (operation.source.elements() == 0) return;
  const Source source{operation.source};
  const int64_t rows = source.rows();
  uint32_t largest = 0;
#pragma omp parallel for num_threads(threads_) schedule(static) reduction(max : largest)
  for (int64_t r = 0; r < rows; ++r) largest = std::max(largest, source.row_magnitude_bits(r));
  float& amax = *operation.amax.as<float>();
  amax = max_magnitude(amax, std::bit_cast<float>(largest));
}

void CpuDevice::transpose_codes(const TransposeCodes& operation) {
  check(operation);
  const int64_t rows = operation.codes.rows(), columns = operation.codes.columns();
  const auto* from = static_cast<const uint8_t*>(operation.codes.data);
  auto* to = static_cast<uint8_t*>(operation.transposed.data);
  const int64_t across = (columns + tile_columns - 1) / tile_columns,
                down = (rows + tile_rows - 1) / tile_rows;
#pragma omp parallel for num_threads(threads_) schedule(static)
  for (int64_t tile = 0; tile < across * down; ++tile) {
    const int64_t r = tile / across * tile_rows, c = tile % across * tile_columns;
    transpose_bytes(
        {from + r * columns + c, columns, std::min(tile_rows, rows - r), std::min(tile_columns, columns - c)},
        to + c * rows + r, rows);
  }
}

}  // namespace octet
