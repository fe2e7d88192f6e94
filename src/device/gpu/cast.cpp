// From a CastTarget to launches: measure (in the producer's own pass), decide, encode. Which copy gets which
// scale is the specification's: device/cpu/cast.cpp, Encoder::run().
#include "kernels/cast.h"

#include <fmt/format.h>

#include "base/error.h"
#include "device/cast_checks.h"
#include "device/gpu/gpu_device.h"
#include "device/scales.h"
#include "kernels/transpose.h"

namespace octet {
inline namespace OCTET_GPU {
namespace {

uint8_t* codes_of(const Tensor& tensor) {
  return tensor.empty() ? nullptr : static_cast<uint8_t*>(tensor.data);
}
const float* floats_of(const Tensor& tensor) { return tensor.empty() ? nullptr : tensor.as<float>(); }
kernels::CastSource source_of(const Tensor& values) {
  return {.values = values.data,
          .storage = format_of(values),
          .rows = values.rows(),
          .columns = values.columns()};
}
uint64_t* counters_of(const Site& site) { return reinterpret_cast<uint64_t*>(site.counters); }

bool scales_finer(const CastTarget& target) {
  return !target.row_inverse_scale.empty() || !target.column_inverse_scale.empty();
}

void check(const CastTarget& target, int64_t elements) {
  if (!is_float8(target.cast.format))
    throw Error(ExitCode::Internal, "cast: codes are wanted but the site's format is not FP8");
  for (const Tensor& codes : {target.row, target.column}) {
    if (!codes.empty() && (size_of(codes.dtype) != 1 || codes.elements() != elements)) {
      throw Error(ExitCode::Internal, fmt::format("cast: codes {} {} for {} values", name_of(codes.dtype),
                                                  to_string(codes.shape), elements));
    }
  }
}

}  // namespace

// A producer writes row codes itself when their scale does not depend on what it produces. Whether the site
// has a history yet only the device knows: finish_cast() encodes if it has not.
bool GpuDevice::known_scale(const CastTarget& target) const {
  return is_known_before(target.cast.scaling) && !target.row.empty() && !scales_finer(target) &&
         target.cast.rounding == Rounding::Nearest && target.site.scale != nullptr &&
         target.site.counters == nullptr;
}

PendingCast GpuDevice::begin_cast(const CastTarget& target, Scratch& scratch) {
  PendingCast cast;
  cast.target = target;
  if (target.row.empty() && target.column.empty()) return cast;
  const Tensor& shape = target.row.empty() ? target.column : target.row;
  const int64_t rows = target.row.empty() ? shape.columns() : shape.rows();
  const int64_t columns = target.row.empty() ? shape.rows() : shape.columns();

  // [amax, factored amax, scale, column scale, encode], then the finer amaxes.
  auto* words = scratch.take<uint32_t>(5);
  cast.amax = words;
  cast.factored_amax = target.row_factor.empty() ? nullptr : words + 1;
  cast.scale = reinterpret_cast<float*>(words + 2);
  cast.column_scale = reinterpret_cast<float*>(words + 3);
  backend_->clear(words, 5 * sizeof(uint32_t));
  if (in_blocks(target)) return cast;
  if (known_scale(target)) cast.encode = words + 4;
  if (!target.row_inverse_scale.empty() || !target.row_factor.empty())
    cast.row_amax = scratch.take<uint32_t>(rows);
  if (!target.column_inverse_scale.empty()) {
    cast.column_amax = scratch.take<uint32_t>(columns);
    backend_->clear(cast.column_amax, static_cast<size_t>(columns) * sizeof(uint32_t));
  }
  return cast;
}

kernels::Output GpuDevice::output_of(const PendingCast& cast) const {
  const CastTarget& target = cast.target;
  kernels::Output out;
  out.high = target.high.data;
  out.storage = format_of(target.high);
  out.amax = cast.measured_amax();
  out.row_amax = cast.row_amax;
  out.column_amax = cast.column_amax;
  if (cast.encode) {
    out.row = codes_of(target.row);
    out.format = target.cast.format;
    out.scale = target.site.scale;
  }
  return out;
}

uint32_t* PendingCast::measured_amax() const { return in_blocks(target) ? nullptr : amax; }

// The scales and the amax are made with the codes.
void GpuDevice::finish_blocks(const PendingCast& cast, const kernels::CastSource& source) {
  const CastTarget& target = cast.target;
  check_blocks(target, source.rows, source.columns);
  const auto scales = [](const Tensor& tensor) { return tensor.empty() ? nullptr : tensor.as<float>(); };
  kernels::cast_blockwise({.source = source,
                           .cast = target.cast,
                           .rounding_key = target.rounding_key,
                           .squares = target.granularity == ScaleGranularity::Squares,
                           .row = codes_of(target.row),
                           .row_inverse_scale = scales(target.row_inverse_scale),
                           .column = codes_of(target.column),
                           .column_inverse_scale = scales(target.column_inverse_scale),
                           .amax = cast.amax,
                           .counters = counters_of(target.site),
                           .stream = backend_->stream()});
  kernels::decide({.amax = cast.amax,
                   .cast = target.cast,
                   .site_amax = target.site.amax,
                   .scale = cast.scale,
                   .only_record = true,
                   .stream = backend_->stream()});
}

void GpuDevice::finish_cast(const PendingCast& cast, const Tensor& source, const Tensor& column_factor) {
  if (!cast.wanted()) return;
  const CastTarget& target = cast.target;
  check(target, source.elements());
  void* const stream = backend_->stream();
  const kernels::CastSource values{.values = source.data,
                                   .storage = format_of(source),
                                   .column_factor = floats_of(column_factor),
                                   .rows = source.rows(),
                                   .columns = source.columns()};
  if (in_blocks(target)) return finish_blocks(cast, values);
  check_channels(target, source.columns());
  const bool by_row = !target.row_inverse_scale.empty(), by_column = !target.column_inverse_scale.empty();

  kernels::decide({.amax = cast.amax,
                   .cast = target.cast,
                   .site_scale = target.site.scale,
                   .site_inverse_scale = target.site.inverse_scale,
                   .site_amax = target.site.amax,
                   .scale = cast.scale,
                   .encode = cast.encode,
                   .only_record = by_row || by_column,
                   .stream = stream});
  if (by_row) {
    kernels::decide_fine({.amax = cast.row_amax,
                          .inverse_scale = target.row_inverse_scale.as<float>(),
                          .count = values.rows,
                          .cast = target.cast,
                          .stream = stream});
  }
  if (smooths(target)) {
    kernels::decide_smooth({.amax = cast.column_amax,
                            .weight_amax = target.channel_weight_amax.as<float>(),
                            .alpha = target.channel_exponent,
                            .inverse_scale = target.column_inverse_scale.as<float>(),
                            .count = values.columns,
                            .format = target.cast.format,
                            .stream = stream});
  } else if (by_column) {
    kernels::decide_fine({.amax = cast.column_amax,
                          .inverse_scale = target.column_inverse_scale.as<float>(),
                          .count = values.columns,
                          .cast = target.cast,
                          .stream = stream});
  }

  kernels::EncodeArguments encode{};
  encode.source = values;
  encode.format = target.cast.format;
  encode.rounding = target.cast.rounding;
  encode.rounding_key = target.rounding_key;
  encode.row = codes_of(target.row);
  encode.column = codes_of(target.column);
  encode.encode_row = cast.encode;
  encode.stream = stream;
  encode.row_coding.counters = counters_of(target.site);
  if (by_row) {
    encode.row_coding.row_inverse_scale = target.row_inverse_scale.as<float>();
  } else if (by_column) {
    encode.row_coding.column_inverse_scale = target.column_inverse_scale.as<float>();
  } else {
    encode.row_coding.scale = cast.scale;
  }
  encode.column_coding = encode.row_coding;
  if (encode.row) encode.column_coding.counters = nullptr;  // counted once
  encode.column_is_row = encode.row != nullptr;
  if (by_row && by_column) {
    encode.column_coding.row_inverse_scale = nullptr;
    encode.column_coding.column_inverse_scale = target.column_inverse_scale.as<float>();
    encode.column_is_row = false;
  }
  if (!target.row_factor.empty()) {
    kernels::measure_factored({.row_amax = cast.row_amax,
                               .row_factor = target.row_factor.as<float>(),
                               .rows = values.rows,
                               .factored = cast.factored_amax,
                               .stream = stream});
    kernels::decide({.amax = cast.factored_amax,
                     .cast = target.cast,
                     .site_scale = target.column_site.scale,
                     .site_inverse_scale = target.column_site.inverse_scale,
                     .site_amax = target.column_site.amax,
                     .scale = cast.column_scale,
                     .stream = stream});
    encode.column_coding = {};
    encode.column_coding.scale = cast.column_scale;
    encode.column_coding.row_factor = target.row_factor.as<float>();
    encode.column_coding.counters = counters_of(target.column_site);
    encode.column_is_row = false;
  }
  kernels::encode(encode);
}

void GpuDevice::cast(const CastOperation& op) {
  check_part(op);
  if (!op.amax.empty()) return cast_with_amax(op);
  Scratch memory = scratch(cast_scratch_bytes(op.out));
  PendingCast cast = begin_cast(op.out, memory);
  cast.encode = nullptr;  // there is no producer
  const bool copies = !op.out.high.empty() && op.out.high.data != op.source.data;
  if (!cast.wanted() && !copies) return;
  if (copies || cast.measured_amax())
    kernels::measure({.source = {.values = op.source.data,
                                 .storage = format_of(op.source),
                                 .column_factor = floats_of(op.column_factor),
                                 .rows = op.source.rows(),
                                 .columns = op.source.columns()},
                      .amax = cast.measured_amax(),
                      .row_amax = cast.row_amax,
                      .column_amax = cast.column_amax,
                      .high = copies ? op.out.high.data : nullptr,
                      .high_storage = copies ? format_of(op.out.high) : Format::BF16,
                      .stream = backend_->stream()});
  finish_cast(cast, op.source, op.column_factor);
}

// The scale is decided even where a rank has no values: the site is every rank's.
void GpuDevice::cast_with_amax(const CastOperation& op) {
  const CastTarget& target = op.out;
  check(target, op.source.elements());
  Scratch memory = scratch(scratch_size<float>(1));
  auto* const scale = memory.take<float>(1);
  kernels::decide({.amax = static_cast<const uint32_t*>(op.amax.data),
                   .cast = target.cast,
                   .site_scale = target.site.scale,
                   .site_inverse_scale = target.site.inverse_scale,
                   .site_amax = target.site.amax,
                   .scale = scale,
                   .stream = backend_->stream()});
  if (op.source.elements() == 0) return;
  kernels::EncodeArguments encode{};
  encode.source = source_of(op.source);
  encode.format = target.cast.format;
  encode.rounding = target.cast.rounding;
  encode.rounding_key = target.rounding_key;
  encode.first = op.first;
  encode.row = codes_of(target.row);
  encode.column = codes_of(target.column);
  encode.row_coding.scale = scale;
  encode.row_coding.counters = counters_of(target.site);
  encode.column_coding = encode.row_coding;
  if (encode.row) encode.column_coding.counters = nullptr;  // counted once
  encode.column_is_row = encode.row != nullptr;
  encode.stream = backend_->stream();
  kernels::encode(encode);
}

void GpuDevice::measure_amax(const MeasureAmax& op) {
  octet::check(op);
  if (op.source.elements() == 0) return;
  kernels::measure({.source = source_of(op.source),
                    .amax = static_cast<uint32_t*>(op.amax.data),
                    .stream = backend_->stream()});
}

void GpuDevice::transpose_codes(const TransposeCodes& op) {
  octet::check(op);
  kernels::transpose({.codes = static_cast<const uint8_t*>(op.codes.data),
                      .out = static_cast<uint8_t*>(op.transposed.data),
                      .rows = op.codes.rows(),
                      .columns = op.codes.columns(),
                      .stream = backend_->stream()});
}

}  // namespace OCTET_GPU
}  // namespace octet
