// Causal attention with grouped queries, one context window at a time.
//
// Storage in, FP32 inside (scores, softmax and the probabilities stay FP32 between the products; nothing is
// rounded to BF16 on the way), out rounded once. Blocks of 32 queries meet blocks of 256 keys; a block's
// scores lie key-major, one query a lane, which is at once the layout the next product reads
// (micro_kernel.h).
//
// Forward: a task is one (window, head), with a running softmax over the key blocks.
// Backward: a task is one (window, key/value head). It recomputes the probabilities from log_sum_exp; the
// gradients of its key/value head are summed over the heads of the group, then the query blocks, ascending.
// So no result depends on the number of threads.
//
// The two products of stored values (S and dP) run on the BF16 kernel where there is one: the same bits
// (micro_kernel.h) in half the time.
//
//   S = K Q^T   P = exp(scale S - lse)   O = P^T V
//   dP = V dO^T   dS = P (dP - sum(dO O)) scale   dQ = dS^T K   dK = dS Q   dV = P dO
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "base/error.h"
#include "device/cpu/attention.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/gemm_state.h"
#include "device/cpu/micro_kernel.h"
#include "device/cpu/softmax_lanes.h"
#include "device/cpu/unpack.h"
#include "fmt/format.h"

namespace octet {
namespace {

constexpr int64_t key_block = 256;

int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// The sizes both directions share.
struct Geometry {
  int64_t windows, context, heads, kv_heads, width;
  int64_t padded_width;    // of a head, in the FP32 copies: a multiple of 32, the rest zero
  int64_t padded_context;  // a multiple of 8
  MicroKernel kernel;
  MicroKernel stored_kernel;  // for products of two stored operands: pairs of BF16 where possible
  bool pairs;

  // Of an operand of stored_kernel, in its elements: pitch of a row, length of the inner dimension.
  int64_t stored_pitch() const { return pairs ? padded_width / 2 : padded_width; }
  int64_t stored_inner() const { return pairs ? width / 2 : width; }
  int64_t keys_floats() const { return padded_context * padded_width; }
  int64_t block_floats() const { return query_lanes * padded_width; }
};

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
  g.pairs = pair_kernel && qkv.dtype == DType::BF16 && s.head_width % 2 == 0;
  if (g.pairs) g.stored_kernel = *pair_kernel;
  return g;
}

// c [rows, columns] (+)= a b with the micro-kernel; rows and columns are multiples of the kernel's.
struct Product {
  const float* a;
  int64_t a_row_stride, a_inner_stride;
  const float* b;
  int64_t b_stride;
  float* c;
  int64_t c_stride;
  int64_t rows, columns, inner;
  MicroTile::Write write;
};
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

// `count` rows of one head, from column `column` of a storage matrix, as FP32 [padded_rows, padded_width].
struct HeadRows {
  const Tensor& from;
  int64_t first, count, column, padded_rows;
};
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

// ---- forward

struct ForwardScratch {
  float *keys, *values;         // [padded_context, padded_width]
  float *rows, *queries, *out;  // [32, padded_width], [padded_width, 32] twice
  float* scores;                // [key_block, 32]
};
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

// A head of a context window: a query head, or a key/value head.
struct WindowHead {
  int64_t window, head;
};

void forward_task(const AttentionForward& a, const Geometry& g, WindowHead task, const ForwardScratch& s) {
  const auto [window, head] = task;
  const int64_t first = window * g.context, kv = head / (g.heads / g.kv_heads);
  load_stored(g, {a.qkv, first, g.context, (g.heads + kv) * g.width, g.padded_context}, s.keys);
  load_head(g, {a.qkv, first, g.context, (g.heads + g.kv_heads + kv) * g.width, g.padded_context}, s.values);
  float* log_sum_exp = a.log_sum_exp.as<float>() + (window * g.heads + head) * g.context;
  for (int64_t q = 0; q < g.context; q += query_lanes) {
    const int64_t count = std::min<int64_t>(query_lanes, g.context - q);
    load_stored(g, {a.qkv, first + q, count, head * g.width, query_lanes}, s.rows);
    stored_to_lanes(g, s.rows, s.queries);
    RunningSoftmax running;
    std::fill_n(running.maximum, query_lanes, -std::numeric_limits<float>::infinity());
    std::fill_n(running.sum, query_lanes, 0.0f);
    const int64_t visible = round_up(q + count, 8);
    for (int64_t k = 0; k < visible; k += key_block) {
      const int64_t keys = std::min(key_block, visible - k);
      multiply(g.stored_kernel,
               {s.keys + k * g.stored_pitch(), g.stored_pitch(), 1, s.queries, query_lanes, s.scores,
                query_lanes, keys, query_lanes, g.stored_inner(), MicroTile::Write::Store});
      softmax_step({s.scores, keys, k, q, a.softmax_scale}, running);
      if (k > 0) multiply_lanes(s.out, running.correction, g.padded_width);
      multiply(g.kernel,
               {s.values + k * g.padded_width, 1, g.padded_width, s.scores, query_lanes, s.out, query_lanes,
                g.padded_width, query_lanes, keys, k == 0 ? MicroTile::Write::Store : MicroTile::Write::Add});
    }
    divide_lanes(s.out, running.sum, g.padded_width);
    from_lanes(g, s.out, s.rows);
    store_head(g, s.rows, {a.out.high, first + q, count, head * g.width, query_lanes});
    for (int64_t i = 0; i < count; ++i) log_sum_exp[q + i] = running.maximum[i] + std::log(running.sum[i]);
  }
}

// ---- backward

struct BackwardScratch {
  float *keys, *stored_keys, *stored_values, *key_gradient,
      *value_gradient;                   // [padded_context, padded_width]
  float *queries, *out_gradient, *rows;  // [32, padded_width]
  float *query_lanes_, *out_gradient_lanes, *out_lanes, *query_gradient_lanes;  // [padded_width, 32]
  float *scores, *score_gradient;                                               // [key_block, 32]
};
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

// One block of 32 queries of one head against every key it sees.
struct QueryBlock {
  int64_t window, head, first;
};
void backward_block(const AttentionBackward& a, const Geometry& g, QueryBlock block,
                    const BackwardScratch& s) {
  using Write = MicroTile::Write;
  const auto [window, head, q] = block;
  const int64_t first = window * g.context + q, column = head * g.width;
  const int64_t count = std::min<int64_t>(query_lanes, g.context - q), visible = round_up(q + count, 8);
  load_head(g, {a.qkv, first, count, column, query_lanes}, s.queries);
  load_head(g, {a.out_gradient, first, count, column, query_lanes}, s.out_gradient);
  load_head(g, {a.out, first, count, column, query_lanes}, s.rows);
  to_lanes(g, s.out_gradient, s.out_gradient_lanes);
  to_lanes(g, s.rows, s.out_lanes);
  alignas(64) float delta[query_lanes], log_sum_exp[query_lanes];
  dot_lanes(s.out_gradient_lanes, s.out_lanes, delta, g.width);
  load_stored(g, {a.out_gradient, first, count, column, query_lanes}, s.rows);
  stored_to_lanes(g, s.rows, s.out_gradient_lanes);
  load_stored(g, {a.qkv, first, count, column, query_lanes}, s.rows);
  stored_to_lanes(g, s.rows, s.query_lanes_);
  std::fill_n(log_sum_exp, query_lanes, std::numeric_limits<float>::infinity());
  std::copy_n(a.log_sum_exp.as<float>() + (window * g.heads + head) * g.context + q, count, log_sum_exp);

  const int64_t w = g.padded_width;
  for (int64_t k = 0; k < visible; k += key_block) {
    const int64_t keys = std::min(key_block, visible - k);
    const float* block_keys = s.keys + k * w;
    const int64_t pitch = g.stored_pitch(), inner = g.stored_inner();
    multiply(g.stored_kernel, {s.stored_keys + k * pitch, pitch, 1, s.query_lanes_, query_lanes, s.scores,
                               query_lanes, keys, query_lanes, inner, Write::Store});
    multiply(g.stored_kernel, {s.stored_values + k * pitch, pitch, 1, s.out_gradient_lanes, query_lanes,
                               s.score_gradient, query_lanes, keys, query_lanes, inner, Write::Store});
    softmax_gradient({s.scores, keys, k, q, a.softmax_scale}, {s.score_gradient, log_sum_exp, delta});
    multiply(g.kernel, {block_keys, 1, w, s.score_gradient, query_lanes, s.query_gradient_lanes, query_lanes,
                        w, query_lanes, keys, k == 0 ? Write::Store : Write::Add});
    multiply(g.kernel, {s.score_gradient, query_lanes, 1, s.queries, w, s.key_gradient + k * w, w, keys, w,
                        query_lanes, Write::Add});
    multiply(g.kernel, {s.scores, query_lanes, 1, s.out_gradient, w, s.value_gradient + k * w, w, keys, w,
                        query_lanes, Write::Add});
  }
  from_lanes(g, s.query_gradient_lanes, s.rows);
  store_head(g, s.rows, {a.qkv_gradient, first, count, column, query_lanes});
}

void backward_task(const AttentionBackward& a, const Geometry& g, WindowHead task, const BackwardScratch& s) {
  const auto [window, kv] = task;
  const int64_t first = window * g.context, group = g.heads / g.kv_heads;
  const HeadRows keys{a.qkv, first, g.context, (g.heads + kv) * g.width, g.padded_context};
  const HeadRows values{a.qkv, first, g.context, (g.heads + g.kv_heads + kv) * g.width, g.padded_context};
  load_head(g, keys, s.keys);
  load_stored(g, keys, s.stored_keys);
  load_stored(g, values, s.stored_values);
  std::fill_n(s.key_gradient, g.keys_floats(), 0.0f);
  std::fill_n(s.value_gradient, g.keys_floats(), 0.0f);
  for (int64_t head = kv * group; head < (kv + 1) * group; ++head)
    for (int64_t q = 0; q < g.context; q += query_lanes) backward_block(a, g, {window, head, q}, s);
  store_head(g, s.key_gradient, {a.qkv_gradient, first, g.context, keys.column, g.padded_context});
  store_head(g, s.value_gradient, {a.qkv_gradient, first, g.context, values.column, g.padded_context});
}

// Threads that work on independent tasks, each with scratch of its own.
struct Team {
  int64_t tasks;
  int threads;
  int64_t floats;  // of scratch, a thread
  size_t bytes() const { return static_cast<size_t>(floats * threads) * sizeof(float); }
};
int used_threads(int threads, int64_t tasks) {
  return static_cast<int>(std::clamp<int64_t>(threads, 1, std::max<int64_t>(1, tasks)));
}
Team forward_team(const Geometry& g, int threads) {
  const int64_t tasks = g.windows * g.heads;
  return {tasks, used_threads(threads, tasks), forward_floats(g)};
}
Team backward_team(const Geometry& g, int threads) {
  const int64_t tasks = g.windows * g.kv_heads;
  return {tasks, used_threads(threads, tasks), backward_floats(g)};
}

}  // namespace

size_t attention_scratch_bytes(const AttentionForward& a, int threads) {
  const Geometry g = geometry({a.context, a.heads, a.kv_heads, a.head_width}, a.qkv);
  return std::max(forward_team(g, threads).bytes(), backward_team(g, threads).bytes());
}

void attention_forward(const AttentionForward& a, GemmEngine& engine) {
  const Geometry g = geometry({a.context, a.heads, a.kv_heads, a.head_width}, a.qkv);
  const Team team = forward_team(g, engine.threads());
  float* scratch = reinterpret_cast<float*>(engine.workspace().reserve(team.bytes()));
#pragma omp parallel num_threads(team.threads)
  {
    const ForwardScratch mine = forward_scratch(g, scratch + omp_get_thread_num() * team.floats);
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < team.tasks; ++t) forward_task(a, g, {t / g.heads, t % g.heads}, mine);
  }
}

void attention_backward(const AttentionBackward& a, GemmEngine& engine) {
  const Geometry g = geometry({a.context, a.heads, a.kv_heads, a.head_width}, a.qkv);
  const Team team = backward_team(g, engine.threads());
  float* scratch = reinterpret_cast<float*>(engine.workspace().reserve(team.bytes()));
#pragma omp parallel num_threads(team.threads)
  {
    const BackwardScratch mine = backward_scratch(g, scratch + omp_get_thread_num() * team.floats);
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < team.tasks; ++t) backward_task(a, g, {t / g.kv_heads, t % g.kv_heads}, mine);
  }
}

void CpuDevice::attention_forward(const AttentionForward& a) {
  octet::attention_forward(a, *gemm_);
  finish_cast(a.out);
  MatmulCount& count = counts_[{GemmClass::Attention, a.qkv.dtype, a.qkv.dtype, a.out.high.dtype}];
  ++count.calls;
  count.flops += attention_flops({a.context, a.heads, a.kv_heads, a.head_width}, a.qkv.rows(), 2);
  count.implementation = "blocked-f32";
}
void CpuDevice::attention_backward(const AttentionBackward& a) {
  octet::attention_backward(a, *gemm_);
  MatmulCount& count = counts_[{GemmClass::Attention, a.qkv.dtype, a.qkv.dtype, a.qkv_gradient.dtype}];
  ++count.calls;
  count.flops += attention_flops({a.context, a.heads, a.kv_heads, a.head_width}, a.qkv.rows(), 5);
  count.implementation = "blocked-f32";
}

}  // namespace octet
