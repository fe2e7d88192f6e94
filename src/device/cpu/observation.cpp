// What the health monitor looks at: statistics of tensors, maxima of channels, alignment of rows, errors of
// casts.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <type_traits>

#include "base/platform.h"
#include "device/cpu/amax.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/unpack.h"
#include "numerics/sums.h"

namespace octet {
namespace {

constexpr int64_t tile = 1024;
static_assert(tile % sum_lanes == 0, "a tile's first value is in the first lane");

// What is added up of the values of a row, a tile at a time.
struct PowerSums {
  Lanes<double> first, second, fourth;
};
OCTET_VECTORIZED void add_powers(const float* x, int64_t n, PowerSums& sums) {
  for (int64_t i = 0; i < n; i += sum_lanes) {
    const int64_t lanes = std::min(sum_lanes, n - i);
    for (int64_t l = 0; l < lanes; ++l) {
      const double value = static_cast<double>(x[i + l]), square = value * value;
      sums.first.sums[l] += value;
      sums.second.sums[l] += square;
      sums.fourth.sums[l] += square * square;
    }
  }
}
OCTET_VECTORIZED uint32_t highest_bits(const float* x, int64_t n) {
  uint32_t highest = 0;
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t bits = ordered_bits(x[i]);
    highest = bits > highest ? bits : highest;
  }
  return highest;
}

struct DotSums {
  Lanes<double> a, b, ab;
};
OCTET_VECTORIZED void add_dots(const float* a, const float* b, int64_t n, DotSums& sums) {
  for (int64_t i = 0; i < n; i += sum_lanes) {
    const int64_t lanes = std::min(sum_lanes, n - i);
    for (int64_t l = 0; l < lanes; ++l) {
      const double x = static_cast<double>(a[i + l]), y = static_cast<double>(b[i + l]);
      sums.a.sums[l] += x * x;
      sums.b.sums[l] += y * y;
      sums.ab.sums[l] += x * y;
    }
  }
}

struct ErrorSums {
  Lanes<double> square, error;
};
OCTET_VECTORIZED void add_errors(const float* x, const float* decoded, int64_t n, ErrorSums& sums) {
  for (int64_t i = 0; i < n; i += sum_lanes) {
    const int64_t lanes = std::min(sum_lanes, n - i);
    for (int64_t l = 0; l < lanes; ++l) {
      const double value = static_cast<double>(round_to_bfloat16(x[i + l])),
                   error = value - static_cast<double>(decoded[i + l]);
      sums.square.sums[l] += value * value;
      sums.error.sums[l] += error * error;
    }
  }
}

// Values of a row as FP32, decoded and scaled where they are codes.
struct RowPart {
  int64_t row, column, count;
};
void read(const Tensor& x, const InverseScales& scales, const RowPart& part, float* to) {
  unpack(x.dtype, at(x, part.row * x.columns() + part.column), to, part.count);
  if (!scales.values) return;
  if (scales.column_stride == 0) {
    const float scale = scales.at(part.row, 0);
    for (int64_t i = 0; i < part.count; ++i) to[i] *= scale;
  } else {
    for (int64_t i = 0; i < part.count; ++i) to[i] *= scales.at(part.row, part.column + i);
  }
}

// Rows r of [0, rows) in the lanes of numerics/sums.h, row r counted from the first.
template <class Value>
double sum_over_rows(int64_t rows, const Value& value) {
  Lanes<double> lanes;
  for (int64_t r = 0; r < rows; ++r) lanes.sums[r % sum_lanes] += value(r);
  return sum_of(lanes);
}

}  // namespace

void CpuDevice::tensor_statistics(const TensorStatistics& op) {
  check(op);
  const int64_t rows = op.x.rows();
  double* const first = op.row_sums.as<double>();
  double* const second = first + rows;
  double* const fourth = second + rows;
  uint32_t highest = 0, largest = 0;
#pragma omp parallel for num_threads(threads_) schedule(static) reduction(max \
                                                                          : highest, largest) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) {
    PowerSums sums;
    float values[tile];
    for (int64_t c = 0; c < op.columns; c += tile) {
      const int64_t n = std::min(tile, op.columns - c);
      read(op.x, op.inverse_scales, {r, op.first + c, n}, values);
      add_powers(values, n, sums);
      highest = std::max(highest, highest_bits(values, n));
      largest = std::max(largest, amax_bits(values, n));
    }
    first[r] = sum_of(sums.first);
    second[r] = sum_of(sums.second);
    fourth[r] = sum_of(sums.fourth);
  }
  const double n = static_cast<double>(op.columns), m = static_cast<double>(op.context) * n;
  double sequences = 0;
  for (int64_t s = 0; s < rows; s += op.context)
    sequences += kurtosis(m, sum_over_rows(op.context, [&](int64_t r) { return second[s + r]; }),
                          sum_over_rows(op.context, [&](int64_t r) { return fourth[s + r]; }));
  double* const out = op.sums.as<double>();
  out[0] += sum_over_rows(rows, [&](int64_t r) { return kurtosis(n, second[r], fourth[r]); });
  out[1] += sequences;
  out[2] += sum_over_rows(rows, [&](int64_t r) { return first[r]; }) / n;
  out[3] += sum_over_rows(rows, [&](int64_t r) { return second[r]; }) / n;
  uint32_t* const extremes = op.extremes.as<uint32_t>();
  extremes[0] = std::max(extremes[0], highest);
  extremes[1] = std::max(extremes[1], largest);
}

void CpuDevice::channel_amax(const ChannelAmax& op) {
  check(op);
  const int64_t rows = op.x.rows(), columns = op.x.columns();
  constexpr int64_t width = 256;
#pragma omp parallel for num_threads(threads_) schedule(static) if (columns > width)
  for (int64_t c = 0; c < columns; c += width) {
    const int64_t n = std::min(width, columns - c);
    float values[width];
    uint32_t largest[width];
    std::memcpy(largest, op.amax.as<float>() + c, static_cast<size_t>(n) * 4);
    for (int64_t r = 0; r < rows; ++r) {
      read(op.x, {}, {r, c, n}, values);
      column_amax_bits(values, n, largest);
    }
    std::memcpy(op.amax.as<float>() + c, largest, static_cast<size_t>(n) * 4);
  }
}

void CpuDevice::row_cosines(const RowCosines& op) {
  check(op);
  const int64_t pairs = op.cosines.elements(), width = op.x.columns();
#pragma omp parallel for num_threads(threads_) schedule(static) if (pairs > 1)
  for (int64_t i = 0; i < pairs; ++i) {
    DotSums sums;
    float a[tile], b[tile];
    for (int64_t c = 0; c < width; c += tile) {
      const int64_t n = std::min(tile, width - c);
      read(op.x, op.inverse_scales, {i, c, n}, a);
      read(op.x, op.inverse_scales, {pairs + i, c, n}, b);
      add_dots(a, b, n, sums);
    }
    const double squares = sum_of(sums.a) * sum_of(sums.b);
    op.cosines.as<float>()[i] =
        squares == 0 ? 0.0f : static_cast<float>(sum_of(sums.ab) / std::sqrt(squares));
  }
}

void CpuDevice::cast_error(const CastError& op) {
  check(op);
  const int64_t rows = op.source.rows(), columns = op.source.columns();
  double* const square = op.row_sums.as<double>();
  double* const error = square + rows;
#pragma omp parallel for num_threads(threads_) schedule(static) if (rows > 1)
  for (int64_t r = 0; r < rows; ++r) {
    ErrorSums sums;
    float values[tile], decoded[tile];
    for (int64_t c = 0; c < columns; c += tile) {
      const int64_t n = std::min(tile, columns - c);
      read(op.source, {}, {r, c, n}, values);
      read(op.codes, op.inverse_scales, {r, c, n}, decoded);
      add_errors(values, decoded, n, sums);
    }
    square[r] = sum_of(sums.square);
    error[r] = sum_of(sums.error);
  }
  op.sums.as<double>()[0] += sum_over_rows(rows, [&](int64_t r) { return square[r]; });
  op.sums.as<double>()[1] += sum_over_rows(rows, [&](int64_t r) { return error[r]; });
}

}  // namespace octet
