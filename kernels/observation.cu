// Statistics of tensors for the health monitor.
//
//   rows     sums of x, x^2, x^4 of each row; extremes     a warp a row, 4 (FP32), 2 (BF16) or 1 (codes)
//   bytes
//                                                           a value and six FP64 operations: bound by memory
//                                                           where FP64 is fast, by those elsewhere
//   finish   kurtosis of rows and sequences, their sums     24 bytes a row by one block: latency of
//                                                           rows / 256 loads
//   channels largest |x| of each column                     bound by memory
//   cosines  of row pairs                                   bound by memory
//   errors   squares of x and of x - decoded codes          3 or 5 bytes a value: bound by memory
//
// Run at statistics steps only, so none of it is tuned beyond coalesced loads.
#include "kernels/observation.h"

#include <cmath>

#include "kernels/block.h"
#include "kernels/gpu.h"
#include "kernels/grid.h"
#include "kernels/values.cuh"
#include "numerics/float8.h"
#include "numerics/sums.h"

OCTET_KERNELS_BEGIN
namespace {

constexpr unsigned threads = 256;
constexpr int64_t warps = threads / 32;
static_assert(sum_lanes == 32 * vector_values, "eight neighbours a thread are a warp's lanes");
static_assert(sum_lanes == threads, "a block has a thread for each lane");

// A matrix whose rows a warp reads, eight values a thread. T is float, BFloat16 or uint8_t (codes).
template <class T, Access access>
struct Matrix {
  const T* values;
  int64_t width;
  octet::Format format;
  octet::InverseScales inverse_scales;

  // v = [row, column .. column + 8), the first `count` of them; the others are zero.
  __device__ __forceinline__ void read(int64_t row, int64_t column, int64_t count, float (&v)[8]) const {
    const T* const from = values + row * width + column;
    if constexpr (sizeof(T) == 1) {
#pragma unroll
      for (int i = 0; i < 8; ++i)
        v[i] = i < count ? decode(format, from[i]) * inverse_scales.at(row, column + i) : 0.0f;
    } else {
      if (access == Access::Vectors && count >= vector_values)
        load8(from, v);
      else
        load_some(from, count, v);
    }
  }
};

struct Sums {
  double lanes[8] = {};
  __device__ __forceinline__ double total() const { return sum_of_lanes(lanes); }
};

__device__ __forceinline__ int64_t first_row() {
  return static_cast<int64_t>(blockIdx.x) * warps + threadIdx.x / 32;
}
__device__ __forceinline__ int64_t row_step() { return static_cast<int64_t>(gridDim.x) * warps; }

struct RowsOf {
  int64_t rows, first, columns;
  double* row_sums;
  uint32_t* extremes;
};

template <class M>
__global__ void __launch_bounds__(threads) rows_kernel(M x, RowsOf a) {
  const int64_t lane = threadIdx.x % 32;
  uint32_t highest = 0, largest = 0;
  for (int64_t row = first_row(); row < a.rows; row += row_step()) {
    Sums first, second, fourth;
    for (int64_t i = vector_values * lane; i < a.columns; i += sum_lanes) {
      const int64_t count = a.columns - i;
      float v[8];
      x.read(row, a.first + i, count, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const double value = static_cast<double>(v[j]), square = value * value;
        first.lanes[j] += value;  // a missing value is +0, which changes nothing
        second.lanes[j] += square;
        fourth.lanes[j] += square * square;
        if (j >= count) continue;
        const uint32_t order = ordered_bits(v[j]), magnitude = __float_as_uint(v[j]) & 0x7fffffffu;
        highest = order > highest ? order : highest;
        largest = magnitude > largest ? magnitude : largest;
      }
    }
    const double sums[3] = {first.total(), second.total(), fourth.total()};
    if (lane < 3) a.row_sums[lane * a.rows + row] = sums[lane];
  }
  highest = __reduce_max_sync(all_lanes, highest);
  largest = __reduce_max_sync(all_lanes, largest);
  if (lane == 0) atomicMax(a.extremes, highest);
  if (lane == 1) atomicMax(a.extremes + 1, largest);
}

// The sum of numerics/sums.h over the values of all threads, thread l being lane l. The sum is thread 0's.
__device__ __forceinline__ double sum_over_threads(double value) {
  GPU_SHARED(double, lanes, sum_lanes);
  __syncthreads();  // readers of an earlier call are done
  lanes[threadIdx.x] = value;
  for (unsigned width = sum_lanes / 2; width > 0; width /= 2) {
    __syncthreads();
    if (threadIdx.x < width) lanes[threadIdx.x] += lanes[threadIdx.x + width];
  }
  return threadIdx.x == 0 ? lanes[0] : 0.0;
}

struct FinishStatistics {
  int64_t rows, columns, context;
  const double* row_sums;
  double* sums;
};
__global__ void __launch_bounds__(threads) finish_statistics_kernel(FinishStatistics a) {
  const double* const first = a.row_sums;
  const double* const second = first + a.rows;
  const double* const fourth = second + a.rows;
  const double n = static_cast<double>(a.columns), m = static_cast<double>(a.context) * n;
  double of_rows = 0, values = 0, squares = 0, of_sequences = 0;
  for (int64_t r = threadIdx.x; r < a.rows; r += threads) {
    of_rows += kurtosis(n, second[r], fourth[r]);
    values += first[r];
    squares += second[r];
  }
  of_rows = sum_over_threads(of_rows);
  values = sum_over_threads(values);
  squares = sum_over_threads(squares);
  for (int64_t s = 0; s < a.rows; s += a.context) {
    double own_second = 0, own_fourth = 0;
    for (int64_t r = threadIdx.x; r < a.context; r += threads) {
      own_second += second[s + r];
      own_fourth += fourth[s + r];
    }
    own_second = sum_over_threads(own_second);
    own_fourth = sum_over_threads(own_fourth);
    of_sequences += kurtosis(m, own_second, own_fourth);
  }
  if (threadIdx.x != 0) return;
  a.sums[0] += of_rows;
  a.sums[1] += of_sequences;
  a.sums[2] += values / n;
  a.sums[3] += squares / n;
}

// A thread has eight neighbouring columns, or one, and the rows threadIdx.y, threadIdx.y + 8, ... of its
// chunk.
constexpr unsigned row_threads = 8;
constexpr int64_t chunk_rows = 512;

template <class T, Access access>
__global__ void __launch_bounds__(threads)
    channels_kernel(const T* __restrict__ x, int64_t rows, int64_t columns, float* amax) {
  constexpr int own = access == Access::Vectors ? vector_values : 1;
  const int64_t column = (static_cast<int64_t>(blockIdx.x) * 32 + threadIdx.x) * own;
  if (column >= columns) return;
  const int64_t begin = static_cast<int64_t>(blockIdx.y) * chunk_rows,
                end = begin + chunk_rows < rows ? begin + chunk_rows : rows;
  float largest[own] = {};
  for (int64_t r = begin + threadIdx.y; r < end; r += row_threads) {
    const T* const from = x + r * columns + column;
    if constexpr (access == Access::Vectors) {
      float v[8];
      load8(from, v);
#pragma unroll
      for (int j = 0; j < own; ++j) largest[j] = max_magnitude(largest[j], v[j]);
    } else {
      largest[0] = max_magnitude(largest[0], octet::load(*from));
    }
  }
#pragma unroll
  for (int j = 0; j < own; ++j) raise_amax(amax + column + j, largest[j]);
}

template <class M>
__global__ void __launch_bounds__(threads) cosines_kernel(M x, int64_t pairs, float* __restrict__ cosines) {
  const int64_t lane = threadIdx.x % 32;
  for (int64_t row = first_row(); row < pairs; row += row_step()) {
    Sums a, b, ab;
    for (int64_t i = vector_values * lane; i < x.width; i += sum_lanes) {
      float u[8], v[8];
      x.read(row, i, x.width - i, u);
      x.read(pairs + row, i, x.width - i, v);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const double first = static_cast<double>(u[j]), second = static_cast<double>(v[j]);
        a.lanes[j] += first * first;
        b.lanes[j] += second * second;
        ab.lanes[j] += first * second;
      }
    }
    const double squares = a.total() * b.total(), product = ab.total();
    if (lane == 0) cosines[row] = squares == 0.0 ? 0.0f : static_cast<float>(product / sqrt(squares));
  }
}

template <class S, class C>
__global__ void __launch_bounds__(threads) errors_kernel(S source, C codes, int64_t rows, double* row_sums) {
  const int64_t lane = threadIdx.x % 32;
  for (int64_t row = first_row(); row < rows; row += row_step()) {
    Sums square, error;
    for (int64_t i = vector_values * lane; i < source.width; i += sum_lanes) {
      const int64_t count = source.width - i;
      float v[8], decoded[8];
      source.read(row, i, count, v);
      codes.read(row, i, count, decoded);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        const double value = static_cast<double>(round_to_bfloat16(v[j])),
                     difference = value - static_cast<double>(decoded[j]);
        square.lanes[j] += value * value;
        error.lanes[j] += difference * difference;
      }
    }
    const double sums[2] = {square.total(), error.total()};
    if (lane < 2) row_sums[lane * rows + row] = sums[lane];
  }
}

__global__ void __launch_bounds__(threads)
    finish_errors_kernel(int64_t rows, const double* __restrict__ row_sums, double* sums) {
  double square = 0, error = 0;
  for (int64_t r = threadIdx.x; r < rows; r += threads) {
    square += row_sums[r];
    error += row_sums[rows + r];
  }
  square = sum_over_threads(square);
  error = sum_over_threads(error);
  if (threadIdx.x != 0) return;
  sums[0] += square;
  sums[1] += error;
}

// Host side: body(matrix) with the matrix's type of values and how they may be read from column `first` on.
template <class T, class Body>
void with_access(const ObservedValues& x, int64_t first, const Body& body) {
  const T* const values = static_cast<const T*>(x.values);
  if (in_vectors(x.width, values) && first % vector_values == 0)
    body(Matrix<T, Access::Vectors>{values, x.width, x.format, x.inverse_scales});
  else
    body(Matrix<T, Access::Single>{values, x.width, x.format, x.inverse_scales});
}
template <class Body>
void with_codes(const ObservedValues& x, const Body& body) {
  body(Matrix<uint8_t, Access::Single>{static_cast<const uint8_t*>(x.values), x.width, x.format,
                                       x.inverse_scales});
}
template <class Body>
void with_matrix(const ObservedValues& x, int64_t first, const Body& body) {
  if (octet::is_float8(x.format))
    with_codes(x, body);
  else
    with_storage(x.format, [&](auto type) { with_access<decltype(type)>(x, first, body); });
}

}  // namespace

void tensor_statistics(const TensorStatisticsArguments& args) {
  const int64_t rows = args.x.rows;
  if (rows <= 0) return;
  with_matrix(args.x, args.first, [&](auto matrix) {
    gpu::launch(rows_kernel<decltype(matrix)>,
                {.grid = walking_grid(rows, warps), .block = threads, .stream = args.stream}, matrix,
                RowsOf{.rows = rows,
                       .first = args.first,
                       .columns = args.columns,
                       .row_sums = args.row_sums,
                       .extremes = args.extremes});
  });
  gpu::launch(finish_statistics_kernel, {.grid = 1, .block = threads, .stream = args.stream},
              FinishStatistics{.rows = rows,
                               .columns = args.columns,
                               .context = args.context,
                               .row_sums = args.row_sums,
                               .sums = args.sums});
}

void channel_amax(const ChannelAmaxArguments& args) {
  if (args.rows <= 0 || args.columns <= 0) return;
  with_storage(args.storage, [&](auto type) {
    using T = decltype(type);
    const T* const x = static_cast<const T*>(args.x);
    const bool vectors = in_vectors(args.columns, x);
    const int64_t own = 32 * (vectors ? vector_values : 1);
    const dim3 grid(static_cast<unsigned>((args.columns + own - 1) / own),
                    static_cast<unsigned>((args.rows + chunk_rows - 1) / chunk_rows));
    gpu::launch(vectors ? channels_kernel<T, Access::Vectors> : channels_kernel<T, Access::Single>,
                {.grid = grid, .block = dim3(32, row_threads), .stream = args.stream}, x, args.rows,
                args.columns, args.amax);
  });
}

void row_cosines(const RowCosinesArguments& args) {
  const int64_t pairs = args.x.rows / 2;
  if (pairs <= 0) return;
  with_matrix(args.x, 0, [&](auto matrix) {
    gpu::launch(cosines_kernel<decltype(matrix)>,
                {.grid = walking_grid(pairs, warps), .block = threads, .stream = args.stream}, matrix, pairs,
                args.cosines);
  });
}

void cast_error(const CastErrorArguments& args) {
  const int64_t rows = args.codes.rows;
  if (rows <= 0) return;
  const ObservedValues source{
      .values = args.source, .format = args.storage, .rows = rows, .width = args.codes.width};
  with_matrix(source, 0, [&](auto values) {
    with_codes(args.codes, [&](auto codes) {
      gpu::launch(errors_kernel<decltype(values), decltype(codes)>,
                  {.grid = walking_grid(rows, warps), .block = threads, .stream = args.stream}, values, codes,
                  rows, args.row_sums);
    });
  });
  gpu::launch(finish_errors_kernel, {.grid = 1, .block = threads, .stream = args.stream}, rows, args.row_sums,
              args.sums);
}

OCTET_KERNELS_END
