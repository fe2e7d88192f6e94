// What tests of producers share: every kind of cast target, a cast made by the kernels as a device orders it
// (kernels/output.h, kernels/cast.h), and the comparison of two targets by their bits.
#pragma once
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

#include "catch.h"
#include "device/op_fixture.h"
#include "device/scales.h"
#include "kernels/cast.h"
#include "kernels/output.h"

namespace octet {

// Which scales a target gets.
struct TargetKind {
  const char* name;
  Cast cast;
  float history = 0;  // the site's scale beforehand
  bool by_row = false, by_column = false, row_factor = false, counted = true;
  ScaleGranularity blocks = ScaleGranularity::Tensor;  // else each copy has scales of these
  float smooth_quant = 0;                              // alpha
};
inline const std::vector<TargetKind>& target_kinds() {
  constexpr Format e4m3 = Format::E4M3, e5m2 = Format::E5M2;
  constexpr Scaling current = Scaling::Current, delayed = Scaling::Delayed, blockwise = Scaling::Blockwise;
  constexpr ScaleRule exact = ScaleRule::Exact, power = ScaleRule::PowerOfTwo;
  constexpr Rounding nearest = Rounding::Nearest, stochastic = Rounding::Stochastic;
  static const std::vector<TargetKind> kinds{
      {.name = "current", .cast = {e4m3, current, power, nearest}},
      {.name = "current, exact", .cast = {e5m2, current, exact, nearest}},
      {.name = "delayed, counted", .cast = {e4m3, delayed, power, nearest}, .history = 200.0f},
      {.name = "delayed", .cast = {e4m3, delayed, exact, nearest}, .history = 90.7f, .counted = false},
      {.name = "delayed, no history", .cast = {e5m2, delayed, power, nearest}, .counted = false},
      {.name = "stochastic", .cast = {e5m2, current, power, stochastic}},
      {.name = "delayed, stochastic", .cast = {e4m3, delayed, exact, stochastic}, .history = 31.3f},
      {.name = "token", .cast = {e4m3, current, power, nearest}, .by_row = true},
      {.name = "channel", .cast = {e4m3, current, power, nearest}, .by_column = true},
      {.name = "dual", .cast = {e4m3, current, power, nearest}, .by_row = true, .by_column = true},
      {.name = "dual, stochastic",
       .cast = {e4m3, current, power, stochastic},
       .by_row = true,
       .by_column = true},
      {.name = "rowwise",
       .cast = {e4m3, Scaling::Rowwise, power, nearest},
       .by_row = true,
       .by_column = true},
      {.name = "smooth quant",
       .cast = {e4m3, current, power, nearest},
       .by_column = true,
       .smooth_quant = 0.5f},
      {.name = "row factor", .cast = {e5m2, current, power, nearest}, .row_factor = true},
      {.name = "blocks", .cast = {e4m3, blockwise, power, nearest}, .blocks = ScaleGranularity::Vectors},
      {.name = "blocks, exact, stochastic",
       .cast = {e5m2, blockwise, exact, stochastic},
       .counted = false,
       .blocks = ScaleGranularity::Vectors},
      {.name = "squares", .cast = {e4m3, blockwise, power, nearest}, .blocks = ScaleGranularity::Squares},
      {.name = "squares, stochastic",
       .cast = {e4m3, blockwise, exact, stochastic},
       .blocks = ScaleGranularity::Squares},
  };
  return kinds;
}

inline const TargetKind& target_kind(const std::string& name) {
  for (const TargetKind& kind : target_kinds()) {
    if (kind.name == name) return kind;
  }
  throw std::out_of_range(name);
}
// Those that differ for a producer: what it measures, and whether it knows the scale of row codes.
inline std::vector<TargetKind> producer_kinds() {
  std::vector<TargetKind> kinds;
  for (const char* name : {"current", "delayed", "delayed, no history", "dual", "row factor", "blocks"})
    kinds.push_back(target_kind(name));
  return kinds;
}

enum class Copies : uint8_t { None, Row, Column, Both };

struct TargetShape {
  int64_t rows, columns;
  DType storage;
  Copies copies;
};
inline CastTarget make_target(OpFixture& f, const TargetKind& kind, const TargetShape& shape) {
  const int64_t rows = shape.rows, columns = shape.columns;
  CastTarget out;
  out.high = f.zeros(shape.storage, {rows, columns});
  if (shape.copies == Copies::None) return out;
  const DType codes = dtype_of(kind.cast.format);
  if (shape.copies != Copies::Column) out.row = f.zeros(codes, {rows, columns});
  if (shape.copies != Copies::Row) out.column = f.zeros(codes, {columns, rows});
  out.cast = kind.cast;
  out.rounding_key = 0x5eed0123456789ull;
  out.site = f.site();
  *out.site.scale = kind.history;
  *out.site.amax = 0.25f;
  if (!kind.counted) out.site.counters = nullptr;
  if (kind.by_row) out.row_inverse_scale = f.zeros(DType::F32, {rows});
  if (kind.by_column) out.column_inverse_scale = f.zeros(DType::F32, {columns});
  if (kind.blocks != ScaleGranularity::Tensor) {
    out.granularity = kind.blocks;
    if (!out.row.empty())
      out.row_inverse_scale = f.zeros(DType::F32, scale_shape(kind.blocks, rows, columns));
    if (!out.column.empty())
      out.column_inverse_scale = f.zeros(DType::F32, scale_shape(kind.blocks, columns, rows));
  }
  if (kind.smooth_quant > 0) {
    Values weight_amax = normal_values(columns, 78, 0.1);
    for (size_t i = 0; i < weight_amax.size(); ++i)
      weight_amax[i] = i % 7 == 3 ? 0.0f : std::fabs(weight_amax[i]);
    if (columns > 4) weight_amax[4] = NAN;  // a weight that is not finite
    out.channel_weight_amax = f.floats(DType::F32, {columns}, weight_amax);
    out.channel_exponent = kind.smooth_quant;
  }
  if (kind.row_factor && !out.column.empty()) {
    Values factors = normal_values(rows, 77);
    for (size_t i = 0; i < factors.size(); ++i)
      factors[i] = std::ldexp(factors[i], static_cast<int>(i % 19) - 9);
    out.row_factor = f.floats(DType::F32, {rows}, factors);
    out.column_site = f.site();
  }
  return out;
}

// A cast by the kernels: output() is what the producer gets, finish() makes the codes.
class KernelCast {
 public:
  explicit KernelCast(const CastTarget& target)
      : target_(target),
        row_amax_(static_cast<size_t>(target.high.rows()), 0xffffffffu),  // written, so no need to clear
        column_amax_(static_cast<size_t>(target.high.columns())) {
    const Cast& cast = target.cast;
    writes_codes_ = cast.scaling == Scaling::Delayed && !target.row.empty() && !by_row() && !by_column() &&
                    cast.rounding == Rounding::Nearest && !target.site.counters;
  }

  kernels::Output output() {
    kernels::Output out;
    out.high = target_.high.data;
    out.storage = target_.high.dtype == DType::F32 ? Format::FP32 : Format::BF16;
    if (!wanted()) return out;
    if (in_blocks(target_)) return out;  // finish() measures
    out.amax = &amax_;
    out.row_amax = row_amax();
    out.column_amax = column_amax();
    if (writes_codes_) {
      out.row = static_cast<uint8_t*>(target_.row.data);
      out.format = target_.cast.format;
      out.scale = target_.site.scale;
    }
    return out;
  }
  void measure(const kernels::CastSource& source) {
    writes_codes_ = false;
    const bool copy = !target_.high.empty() && target_.high.data != source.values;
    const bool measures = wanted() && !in_blocks(target_);
    kernels::measure({.source = source,
                      .amax = measures ? &amax_ : nullptr,
                      .row_amax = measures ? row_amax() : nullptr,
                      .column_amax = measures ? column_amax() : nullptr,
                      .high = copy ? target_.high.data : nullptr,
                      .high_storage = target_.high.dtype == DType::F32 ? Format::FP32 : Format::BF16});
  }
  void finish(const kernels::CastSource& source) {
    if (!wanted()) return;
    const Site& site = target_.site;
    float scale = 0, column_scale = 0;
    uint32_t encode_row = 1;
    if (in_blocks(target_)) return finish_blocks(source);
    kernels::decide({.amax = &amax_,
                     .cast = target_.cast,
                     .site_scale = site.scale,
                     .site_inverse_scale = site.inverse_scale,
                     .site_amax = site.amax,
                     .scale = &scale,
                     .encode = writes_codes_ ? &encode_row : nullptr,
                     .only_record = by_row() || by_column()});
    float* const row_inverse = by_row() ? target_.row_inverse_scale.as<float>() : nullptr;
    float* const column_inverse = by_column() ? target_.column_inverse_scale.as<float>() : nullptr;
    const Format format = target_.cast.format;
    if (row_inverse) {
      kernels::decide_fine({.amax = row_amax_.data(),
                            .inverse_scale = row_inverse,
                            .count = source.rows,
                            .cast = target_.cast});
    }
    if (smooths(target_)) {
      kernels::decide_smooth({.amax = column_amax_.data(),
                              .weight_amax = target_.channel_weight_amax.as<float>(),
                              .alpha = target_.channel_exponent,
                              .inverse_scale = column_inverse,
                              .count = source.columns,
                              .format = format});
    } else if (column_inverse) {
      kernels::decide_fine({.amax = column_amax_.data(),
                            .inverse_scale = column_inverse,
                            .count = source.columns,
                            .cast = target_.cast});
    }
    kernels::EncodeArguments encode{.source = source, .format = format};
    encode.rounding = target_.cast.rounding;
    encode.rounding_key = target_.rounding_key;
    encode.row = target_.row.empty() ? nullptr : static_cast<uint8_t*>(target_.row.data);
    encode.column = target_.column.empty() ? nullptr : static_cast<uint8_t*>(target_.column.data);
    encode.encode_row = writes_codes_ ? &encode_row : nullptr;
    encode.row_coding.counters = reinterpret_cast<uint64_t*>(site.counters);
    encode.row_coding.row_inverse_scale = row_inverse;
    if (!row_inverse) encode.row_coding.column_inverse_scale = column_inverse;
    if (!row_inverse && !column_inverse) encode.row_coding.scale = &scale;
    encode.column_coding = encode.row_coding;
    encode.column_is_row = encode.row != nullptr;
    if (encode.row) encode.column_coding.counters = nullptr;
    if (row_inverse && column_inverse) {
      encode.column_coding.row_inverse_scale = nullptr;
      encode.column_coding.column_inverse_scale = column_inverse;
      encode.column_is_row = false;
    }
    if (!target_.row_factor.empty()) {
      uint32_t factored = 0;
      const float* const factor = target_.row_factor.as<float>();
      kernels::measure_factored(
          {.row_amax = row_amax_.data(), .row_factor = factor, .rows = source.rows, .factored = &factored});
      kernels::decide({.amax = &factored,
                       .cast = target_.cast,
                       .site_scale = target_.column_site.scale,
                       .site_inverse_scale = target_.column_site.inverse_scale,
                       .site_amax = target_.column_site.amax,
                       .scale = &column_scale});
      encode.column_coding = {.scale = &column_scale,
                              .row_factor = factor,
                              .counters = reinterpret_cast<uint64_t*>(target_.column_site.counters)};
      encode.column_is_row = false;
    }
    kernels::encode(encode);
  }
  // After a producer: the source is its high copy.
  void finish() {
    finish({.values = target_.high.data,
            .storage = target_.high.dtype == DType::F32 ? Format::FP32 : Format::BF16,
            .rows = target_.high.rows(),
            .columns = target_.high.columns()});
  }

 private:
  void finish_blocks(const kernels::CastSource& source) {
    const auto codes = [](const Tensor& t) { return t.empty() ? nullptr : static_cast<uint8_t*>(t.data); };
    const auto scales = [](const Tensor& t) { return t.empty() ? nullptr : t.as<float>(); };
    kernels::cast_blockwise({.source = source,
                             .cast = target_.cast,
                             .rounding_key = target_.rounding_key,
                             .squares = target_.granularity == ScaleGranularity::Squares,
                             .row = codes(target_.row),
                             .row_inverse_scale = scales(target_.row_inverse_scale),
                             .column = codes(target_.column),
                             .column_inverse_scale = scales(target_.column_inverse_scale),
                             .amax = &amax_,
                             .counters = reinterpret_cast<uint64_t*>(target_.site.counters)});
    float unused = 0;
    kernels::decide({.amax = &amax_,
                     .cast = target_.cast,
                     .site_amax = target_.site.amax,
                     .scale = &unused,
                     .only_record = true});
  }
  bool wanted() const { return !target_.row.empty() || !target_.column.empty(); }
  bool by_row() const { return !target_.row_inverse_scale.empty(); }
  bool by_column() const { return !target_.column_inverse_scale.empty(); }
  uint32_t* row_amax() { return by_row() || !target_.row_factor.empty() ? row_amax_.data() : nullptr; }
  uint32_t* column_amax() { return by_column() ? column_amax_.data() : nullptr; }

  CastTarget target_;
  uint32_t amax_ = 0;
  std::vector<uint32_t> row_amax_, column_amax_;
  bool writes_codes_ = false;
};

// Elements that differ in their bits. A NaN equals a NaN: which operand's sign and payload an operation
// hands on is up to the compiler, and a GPU has one NaN only.
inline int64_t differences(const Tensor& a, const Tensor& b) {
  if (a.dtype != b.dtype || a.elements() != b.elements()) return -1;
  int64_t count = 0;
  for (int64_t i = 0; i < a.elements(); ++i) {
    const auto size = static_cast<int64_t>(size_of(a.dtype));
    const auto *x = static_cast<const uint8_t*>(a.data) + i * size,
               *y = static_cast<const uint8_t*>(b.data) + i * size;
    if (memcmp(x, y, static_cast<size_t>(size)) == 0) continue;
    const auto is_nan = [&](const uint8_t* at) {
      switch (a.dtype) {
        case DType::F32: {
          float value;
          memcpy(&value, at, sizeof value);
          return std::isnan(value);
        }
        case DType::BF16: {
          BFloat16 value;
          memcpy(&value, at, sizeof value);
          return std::isnan(to_float(value));
        }
        case DType::E4M3:
          return std::isnan(decode_e4m3(*at));
        case DType::E5M2:
          return std::isnan(decode_e5m2(*at));
        default:
          return false;
      }
    };
    count += is_nan(x) && is_nan(y) ? 0 : 1;
  }
  return count;
}
inline void check_same_site(const Site& a, const Site& b) {
  if (!a.scale) return;
  const auto numbers = [](float* first) { return Tensor{first, DType::F32, {3}}; };  // OpFixture::site()
  CHECK(differences(numbers(a.scale), numbers(b.scale)) == 0);
  if (!a.counters) return;
  CHECK(a.counters->elements == b.counters->elements);
  CHECK(a.counters->saturated == b.counters->saturated);
  CHECK(a.counters->flushed == b.counters->flushed);
}
inline void check_same(const CastTarget& a, const CastTarget& b) {
  CHECK(differences(a.high, b.high) == 0);
  if (!a.row.empty()) CHECK(differences(a.row, b.row) == 0);
  if (!a.column.empty()) CHECK(differences(a.column, b.column) == 0);
  if (!a.row_inverse_scale.empty()) CHECK(differences(a.row_inverse_scale, b.row_inverse_scale) == 0);
  if (!a.column_inverse_scale.empty())
    CHECK(differences(a.column_inverse_scale, b.column_inverse_scale) == 0);
  check_same_site(a.site, b.site);
  check_same_site(a.column_site, b.column_site);
}

// Values that find mistakes: normal ones over many binades, and among them zeros of both signs, subnormals
// and what overflows. With `broken` also infinities and NaNs, sparsely, so that some rows and columns have
// none.
enum class Hostility : uint8_t { Finite, Broken };
inline Values hostile_values(int64_t n, uint64_t key, Hostility hostility) {
  Values values = normal_values(n, key);
  for (size_t i = 0; i < values.size(); ++i) {
    const uint32_t word = random_bits(random_key(key, Purpose::Test, 1), i);
    values[i] = std::ldexp(values[i], static_cast<int>(word % 12) - 6);
    const uint32_t kind = (word >> 8) % 64;
    if (kind == 0) values[i] = 0.0f;
    if (kind == 1) values[i] = -0.0f;
    if (kind == 2) values[i] = std::ldexp(values[i], -130);
    if (kind == 3) values[i] = 0x1p-149f;
    if (kind == 4 && (word >> 16) % 64 == 0) values[i] = -3.0e38f;
    if (hostility == Hostility::Broken && (word >> 8) % 509 == 5)
      values[i] = (word >> 20) % 2 ? INFINITY : -NAN;
  }
  return values;
}

}  // namespace octet
