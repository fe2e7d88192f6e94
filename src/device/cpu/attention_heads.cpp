#include "device/cpu/attention_heads.h"

#include <fmt/format.h>

#include "base/error.h"
#include "device/cpu/unpack.h"

namespace octet {
namespace {

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

int used_threads(int threads, int64_t tasks) {
  return static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, tasks)));
}

}  // namespace

Geometry geometry(const AttentionShape& s, const Tensor& qkv) {
  const int64_t pitch = static_cast<int64_t>(s.heads + 2 * s.kv_heads) * s.head_width;
  if (s.context < 1 || s.kv_heads < 1 || s.heads % s.kv_heads != 0 || s.head_width < 1 ||
      qkv.columns() != pitch || qkv.rows() % s.context != 0)
    throw Error(
        ExitCode::Internal,
        fmt::format("attention: qkv {} does not hold {} query and {} key/value heads of {} in windows "
                    "of {}",
                    to_string(qkv.shape), s.heads, s.kv_heads, s.head_width, s.context),
        "report this as a bug with the run's configuration");
  Geometry g;
  g.windows = qkv.rows() / s.context;
  g.context = s.context;
  g.heads = s.heads;
  g.kv_heads = s.kv_heads;
  g.width = s.head_width;
  g.padded_width = round_up(s.head_width, query_lanes);
  g.padded_context = round_up(s.context, 8);
  g.kernel = g.stored_kernel = micro_kernel();
  const MicroKernel* pair_kernel = pair_micro_kernel();
  g.pairs = pair_kernel && qkv.dtype != DType::F32 && s.head_width % 2 == 0;
  if (g.pairs) g.stored_kernel = *pair_kernel;
  return g;
}

void multiply(const MicroKernel& kernel, const Product& p) {
  MicroTile t{p.a, p.a_row_stride, p.a_inner_stride, p.b, p.b_stride, p.c, p.c_stride, p.inner, p.write};
  for (int64_t j = 0; j < p.columns; j += kernel.columns)
    for (int64_t i = 0; i < p.rows; i += kernel.rows) {
      t.a = p.a + i * p.a_row_stride;
      t.b = p.b + j;
      t.c = p.c + i * p.c_stride + j;
      kernel.run(t);
    }
}

void load_head(const Geometry& g, const HeadRows& h, float* to) {
  const int64_t pitch = h.from.columns();
  for (int64_t i = 0; i < h.count; ++i) {
    float* row = to + i * g.padded_width;
    unpack(h.from.dtype, at(h.from, (h.first + i) * pitch + h.column), row, g.width);
    std::fill(row + g.width, row + g.padded_width, 0.0f);
  }
  std::fill(to + h.count * g.padded_width, to + h.padded_rows * g.padded_width, 0.0f);
}
void store_head(const Geometry& g, const float* from, const HeadRows& h) {
  Tensor target = h.from;
  for (int64_t i = 0; i < h.count; ++i)
    pack(target.dtype, from + i * g.padded_width, at(target, (h.first + i) * target.columns() + h.column),
         g.width);
}
// The same rows as elements of stored_kernel [padded_rows, stored_pitch]. Callers read stored_inner of them.
void load_stored(const Geometry& g, const HeadRows& h, float* to) {
  if (!g.pairs) return load_head(g, h, to);
  const int64_t pitch = h.from.columns();
  for (int64_t i = 0; i < h.count; ++i)
    unpack_to_bfloat16(h.from.dtype, at(h.from, (h.first + i) * pitch + h.column),
                       reinterpret_cast<uint16_t*>(to + i * g.stored_pitch()), g.width);
  std::fill(to + h.count * g.stored_pitch(), to + h.padded_rows * g.stored_pitch(), 0.0f);
}
// 32 rows of stored_kernel's elements, one row a lane.
void stored_to_lanes(const Geometry& g, const float* rows, float* lanes) {
  transpose({rows, g.stored_pitch(), lanes, query_lanes, query_lanes, g.stored_inner()});
}
// [32, padded_width] to [padded_width, 32] and back.
void to_lanes(const Geometry& g, const float* rows, float* lanes) {
  transpose({rows, g.padded_width, lanes, query_lanes, query_lanes, g.padded_width});
}
void from_lanes(const Geometry& g, const float* lanes, float* rows) {
  transpose({lanes, query_lanes, rows, g.padded_width, g.padded_width, query_lanes});
}

int64_t forward_floats(const Geometry& g) {
  return 2 * g.keys_floats() + 3 * g.block_floats() + key_block * query_lanes;
}
ForwardScratch forward_scratch(const Geometry& g, float* base) {
  ForwardScratch s;
  s.keys = base;
  s.values = s.keys + g.keys_floats();
  s.rows = s.values + g.keys_floats();
  s.queries = s.rows + g.block_floats();
  s.out = s.queries + g.block_floats();
  s.scores = s.out + g.block_floats();
  return s;
}

int64_t backward_floats(const Geometry& g) {
  return 5 * g.keys_floats() + 7 * g.block_floats() + 2 * key_block * query_lanes;
}
BackwardScratch backward_scratch(const Geometry& g, float* base) {
  BackwardScratch s;
  float** whole[] = {&s.keys, &s.stored_keys, &s.stored_values, &s.key_gradient, &s.value_gradient};
  for (float** p : whole) {
    *p = base;
    base += g.keys_floats();
  }
  float** block[] = {&s.queries,   &s.out_gradient,        &s.rows, &s.query_lanes_, &s.out_gradient_lanes,
                     &s.out_lanes, &s.query_gradient_lanes};
  for (float** p : block) {
    *p = base;
    base += g.block_floats();
  }
  s.scores = base;
  s.score_gradient = base + key_block * query_lanes;
  return s;
}

Team forward_team(const Geometry& g, int threads) {
  const int64_t tasks = g.windows * g.heads;
  return {tasks, used_threads(threads, tasks), forward_floats(g)};
}
Team backward_team(const Geometry& g, int threads) {
  const int64_t tasks = g.windows * g.kv_heads;
  return {tasks, used_threads(threads, tasks), backward_floats(g)};
}

}  // namespace octet
