#include "device/cpu/blocked_gemm.h"

#include <omp.h>

#include <algorithm>
#include <array>
#include <cstring>

#include "base/platform.h"
#include "device/cpu/epilogue.h"
#include "device/cpu/micro_kernel.h"
#include "device/cpu/unpack.h"
#include "device/scales.h"

namespace octet {
namespace {

// A tile of out is one task. Its slice of a stays in L2 (220 KiB of pairs, 420 KiB of FP32) and a panel of b
// (16 or 32 KiB) in L1. 384 rows measured 0 to 8 % faster than 256 and 512.
constexpr int64_t max_tile_rows = 384, max_tile_columns = 512;
// Rows of a sit 64 bytes off a power of two, so that eight of them do not fall into one cache set.
constexpr int64_t row_pitch = gemm_inner_block + 16;

struct Scratch {
  float* a;     // [max_tile_rows, row_pitch], or panels of the kernel's rows [panel][k][rows]
  float* b;     // panels of the kernel's columns [panel][k][columns]
  float* c;     // [max_tile_rows, max_tile_columns]
  float* rows;  // [32, row_pitch] decoded, before the transpose; also one row of a tile
};
constexpr int64_t a_floats = max_tile_rows * row_pitch, b_floats = max_tile_columns * gemm_inner_block,
                  c_floats = max_tile_rows * max_tile_columns, rows_floats = 32 * row_pitch;
constexpr int64_t floats_per_thread = a_floats + b_floats + c_floats + rows_floats;
static_assert(rows_floats >= max_tile_columns, "a row of a tile is unpacked into `rows`");

struct Slice {
  int64_t outer, outers, inner, inners;
};

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// A packed slice: panel p holds rows (or columns) p * width and following, `width` values of each k side by
// side.
struct Panels {
  float* data;
  int64_t width;
  int64_t stride() const { return gemm_inner_block * width; }
};
// row[0, n), the values of one k, into the panels: panel p gets row[p * width, ...), zeros after the end.
void spread(const float* row, int64_t n, const Panels& to, int64_t k) {
  const int64_t width = to.width, panel_stride = to.stride();
  float* panels = to.data + k * width;
  int64_t i = 0;
  if (width == 32) {
    for (; i + 32 <= n; i += 32, panels += panel_stride) memcpy(panels, row + i, 32 * sizeof(float));
  } else if (width == 16) {
    for (; i + 16 <= n; i += 16, panels += panel_stride) memcpy(panels, row + i, 16 * sizeof(float));
  } else if (width == 8) {
    for (; i + 8 <= n; i += 8, panels += panel_stride) memcpy(panels, row + i, 8 * sizeof(float));
  } else {
    for (; i + width <= n; i += width, panels += panel_stride)
      memcpy(panels, row + i, static_cast<size_t>(width) * sizeof(float));
  }
  if (i < n) {
    std::fill(panels, panels + width, 0.0f);
    std::copy(row + i, row + n, panels);
  }
}

// Which kernel, and what its elements are: FP32 values, or pairs of BF16 values along k.
struct Plan {
  MicroKernel kernel;
  bool pairs;
  int64_t units(int64_t inners) const { return pairs ? (inners + 1) / 2 : inners; }
};
// Codes times scales of blocks need not be BF16 values.
Plan plan_for(const Matmul& m) {
  const bool wide = m.a.values.dtype == DType::F32 || is_blocks(m.a.granularity);
  if (const MicroKernel* kernel = pair_micro_kernel(); kernel && !wide) return {*kernel, true};
  return {micro_kernel(), false};
}

OCTET_VECTORIZED void multiply(float* values, float factor, int64_t n) {
  for (int64_t i = 0; i < n; ++i) values[i] *= factor;
}

// Values in memory order as elements of the kernel (the last pair filled up with zero), times their scales
// where these are of blocks: others are the epilogue's.
struct StoredRow {
  int64_t outer, inner, count;
};
void unpack_row(const Plan& plan, const Operand& x, const StoredRow& row, float* to) {
  const void* from = at(x.values, row.outer * x.values.columns() + row.inner);
  if (plan.pairs) {
    auto* halves = reinterpret_cast<uint16_t*>(to);
    unpack_to_bfloat16(x.values.dtype, from, halves, row.count);
    if (row.count & 1) halves[row.count] = 0;
    return;
  }
  unpack(x.values.dtype, from, to, row.count);
  if (!is_blocks(x.granularity)) return;
  static_assert(gemm_inner_block % scale_block == 0, "a slice begins where a block does");
  const InverseScales scales = inverse_scales(x);
  for (int64_t i = 0; i < row.count; i += scale_block)
    multiply(to + i, scales.at(row.outer, row.inner + i), std::min(scale_block, row.count - i));
}

// [inner, outer] in memory: each k is a row of values that belong side by side. `row`: scratch for one.
struct TransposedSlice {
  const Operand& x;
  const Slice& s;
};
void pack_transposed(const Plan& plan, const TransposedSlice& slice, const Panels& to, float* row) {
  const auto& [x, s] = slice;
  const int64_t pitch = x.values.columns();
  if (plan.pairs) {  // such operands are BF16: codes are never transposed
    const auto* from = static_cast<const uint16_t*>(at(x.values, s.inner * pitch + s.outer));
    for (int64_t k = 0; k < s.inners; k += 2, from += 2 * pitch) {
      interleave(from, k + 1 < s.inners ? from + pitch : nullptr, reinterpret_cast<uint32_t*>(row), s.outers);
      spread(row, s.outers, to, k / 2);
    }
    return;
  }
  for (int64_t k = 0; k < s.inners; ++k) {
    const void* from = at(x.values, (s.inner + k) * pitch + s.outer);
    const float* values = static_cast<const float*>(from);
    if (x.values.dtype != DType::F32) {
      unpack(x.values.dtype, from, row, s.outers);
      values = row;
    }
    spread(values, s.outers, to, k);
  }
}

// What lies in memory as the kernel's elements already needs no unpacking before the transpose.
bool lies_ready(const Plan& plan, const Operand& x, const Slice& s) {
  if (!plan.pairs) return x.values.dtype == DType::F32;
  return x.values.dtype == DType::BF16 && x.values.columns() % 2 == 0 && s.inners % 2 == 0 &&
         reinterpret_cast<uintptr_t>(x.values.data) % alignof(float) == 0;
}

void pack_b(const Plan& plan, const Operand& x, const Slice& s, const Scratch& scratch) {
  const int64_t width = plan.kernel.columns;
  if (x.transposed) return pack_transposed(plan, {x, s}, {scratch.b, width}, scratch.rows);
  const int64_t pitch = x.values.columns(), units = plan.units(s.inners);
  const bool ready = lies_ready(plan, x, s);
  for (int64_t j = 0; j < s.outers; j += width) {
    const int64_t count = std::min(width, s.outers - j);
    float* panel = scratch.b + j * gemm_inner_block;
    TransposeBlock block{scratch.rows, row_pitch, panel, width, count, units};
    if (ready) {
      block.from = static_cast<const float*>(at(x.values, (s.outer + j) * pitch + s.inner));
      block.from_stride = plan.pairs ? pitch / 2 : pitch;
    } else {
      for (int64_t i = 0; i < count; ++i)
        unpack_row(plan, x, {s.outer + j + i, s.inner, s.inners}, scratch.rows + i * row_pitch);
    }
    if (count < width) std::fill(panel, panel + units * width, 0.0f);
    transpose(block);
  }
}

// How the micro-kernel walks over the packed slice of a.
struct PackedA {
  int64_t panel_stride, row_stride, inner_stride;
};
PackedA pack_a(const Plan& plan, const Operand& x, const Slice& s, const Scratch& scratch) {
  const int64_t width = plan.kernel.rows;
  if (x.transposed) {
    const Panels panels{scratch.a, width};
    pack_transposed(plan, {x, s}, panels, scratch.rows);
    return {panels.stride(), 1, width};
  }
  for (int64_t i = 0; i < s.outers; ++i)
    unpack_row(plan, x, {s.outer + i, s.inner, s.inners}, scratch.a + i * row_pitch);
  for (int64_t i = s.outers; i < round_up(s.outers, width); ++i)
    std::fill_n(scratch.a + i * row_pitch, plan.units(s.inners), 0.0f);
  return {width * row_pitch, row_pitch, 1};
}

struct Tile {
  int64_t row, rows, column, columns;
};

void run_tile(const Matmul& m, const Tile& tile, const Plan& plan, const Scratch& scratch) {
  const MicroKernel& kernel = plan.kernel;
  const int64_t inner = m.a.transposed ? m.a.values.rows() : m.a.values.columns();
  for (int64_t k = 0; k < inner; k += gemm_inner_block) {
    const int64_t count = std::min(gemm_inner_block, inner - k);
    pack_b(plan, m.b, {tile.column, tile.columns, k, count}, scratch);
    const PackedA a = pack_a(plan, m.a, {tile.row, tile.rows, k, count}, scratch);
    MicroTile t;
    t.a_row_stride = a.row_stride;
    t.a_inner_stride = a.inner_stride;
    t.b_inner_stride = kernel.columns;
    t.c_row_stride = max_tile_columns;
    t.inner = plan.units(count);
    t.write = k == 0 ? MicroTile::Write::Store : MicroTile::Write::Add;
    for (int64_t j = 0; j < tile.columns; j += kernel.columns) {
      t.b = scratch.b + j * gemm_inner_block;
      for (int64_t i = 0; i < tile.rows; i += kernel.rows) {
        t.a = scratch.a + i / kernel.rows * a.panel_stride;
        t.c = scratch.c + i * max_tile_columns + j;
        kernel.run(t);
      }
    }
  }
  for (int64_t i = 0; i < tile.rows; ++i)
    finish_row(m, {tile.row + i, tile.column, tile.columns}, scratch.c + i * max_tile_columns, scratch.rows);
}

// The tiling that keeps every thread busy to the end; it has no influence on the result.
struct Tiling {
  int64_t rows, columns;
};
Tiling choose_tiling(int64_t m, int64_t n, int threads) {
  Tiling best{max_tile_rows, max_tile_columns};
  double best_cost = 0;
  for (const int64_t rows : {384, 256, 192, 128, 96, 64, 32})
    for (const int64_t columns : {512, 384, 256, 128, 64}) {
      const int64_t tiles = ((m + rows - 1) / rows) * ((n + columns - 1) / columns);
      const double r = static_cast<double>(std::min(rows, round_up(m, 8)));
      const double c = static_cast<double>(std::min(columns, round_up(n, 32)));
      // Packing an element of b costs about as much as multiplying it with 12 others, an element of a half
      // that.
      const double cost = static_cast<double>((tiles + threads - 1) / threads) * (r * c + 12 * c + 6 * r);
      if (best_cost == 0 || cost < best_cost) {
        best_cost = cost;
        best = {rows, columns};
      }
    }
  return best;
}

}  // namespace

size_t blocked_gemm_bytes(int threads) {
  return static_cast<size_t>(threads) * floats_per_thread * sizeof(float);
}

const char* blocked_gemm_name(const Matmul& m) { return plan_for(m).pairs ? "blocked-bf16" : "blocked-f32"; }

void blocked_gemm(const Matmul& m, int threads, std::byte* scratch) {
  const int64_t rows = m.out.rows(), columns = m.out.columns();
  const int64_t inner = m.a.transposed ? m.a.values.rows() : m.a.values.columns();
  if (rows == 0 || columns == 0) return;
  const Plan plan = plan_for(m);
  const Tiling tiling = choose_tiling(rows, columns, threads);
  const int64_t tile_columns = (columns + tiling.columns - 1) / tiling.columns;
  const int64_t tiles = (rows + tiling.rows - 1) / tiling.rows * tile_columns;
  const int used = static_cast<int>(std::min<int64_t>(threads, tiles));
#pragma omp parallel num_threads(used)
  {
    float* base = reinterpret_cast<float*>(scratch) + omp_get_thread_num() * floats_per_thread;
    const Scratch mine{base, base + a_floats, base + a_floats + b_floats,
                       base + a_floats + b_floats + c_floats};
    if (inner == 0) std::fill_n(mine.c, c_floats, 0.0f);
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t row = t / tile_columns * tiling.rows, column = t % tile_columns * tiling.columns;
      run_tile(m,
               {row, std::min(tiling.rows, rows - row), column, std::min(tiling.columns, columns - column)},
               plan, mine);
    }
  }
}

}  // namespace octet
