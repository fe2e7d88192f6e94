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
//
// Clipped (SoftmaxClip) P' = clip((high - low) P + low, 0, 1) needs P itself, so both directions go over the
// keys twice: forward first for log_sum_exp, backward first for delta = sum(P g), since sum(dO O) is another
// number then.
//
//   O = P'^T V   g = (high - low) dP where P' was not clipped, else 0   dS = P (g - delta) scale   dV = P' dO
#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "device/cpu/attention.h"
#include "device/cpu/attention_heads.h"
#include "device/cpu/cpu_device.h"
#include "device/cpu/float8_attention.h"

namespace octet {
namespace {

// ---- forward

LaneClip lane_clip(const SoftmaxClip& clip) { return {clip.high - clip.low, clip.low}; }

// One block of queries, its output's lanes in s.out; log_sum_exp of each lane.
void clipped_block(const AttentionForward& a, const Geometry& g, int64_t q, int64_t count,
                   const ForwardScratch& s, float* log_sum_exp) {
  const LaneClip clip = lane_clip(a.clip);
  const int64_t visible = g.visible_keys(q, count);
  const auto for_keys = [&](const auto& body) {
    for (int64_t k = 0; k < visible; k += key_block) {
      const int64_t keys = std::min(key_block, visible - k);
      multiply(g.stored_kernel,
               {s.keys + k * g.stored_pitch(), g.stored_pitch(), 1, s.queries, query_lanes, s.scores,
                query_lanes, keys, query_lanes, g.stored_inner(), MicroTile::Write::Store});
      body(ScoreBlock{s.scores, keys, k, q, a.softmax_scale});
    }
  };
  RunningSoftmax running;
  std::fill_n(running.maximum, query_lanes, -std::numeric_limits<float>::infinity());
  std::fill_n(running.sum, query_lanes, 0.0f);
  for_keys([&](const ScoreBlock& scores) { softmax_step(scores, running); });
  for (int i = 0; i < query_lanes; ++i) log_sum_exp[i] = running.maximum[i] + std::log(running.sum[i]);
  for_keys([&](const ScoreBlock& scores) {
    softmax_probabilities(scores, log_sum_exp);
    clip_probabilities(scores, clip);
    multiply(g.kernel, {s.values + scores.first_key * g.padded_width, 1, g.padded_width, scores.scores,
                        query_lanes, s.out, query_lanes, g.padded_width, query_lanes, scores.keys,
                        scores.first_key == 0 ? MicroTile::Write::Store : MicroTile::Write::Add});
  });
}

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
    if (a.clip.clips()) {
      alignas(64) float of_lanes[query_lanes];
      clipped_block(a, g, q, count, s, of_lanes);
      from_lanes(g, s.out, s.rows);
      store_head(g, s.rows, {a.out.high, first + q, count, head * g.width, query_lanes});
      std::copy_n(of_lanes, count, log_sum_exp + q);
      continue;
    }
    RunningSoftmax running;
    std::fill_n(running.maximum, query_lanes, -std::numeric_limits<float>::infinity());
    std::fill_n(running.sum, query_lanes, 0.0f);
    const int64_t visible = g.visible_keys(q, count);
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

void backward_block(const AttentionBackward& a, const Geometry& g, QueryBlock block,
                    const BackwardScratch& s) {
  using Write = MicroTile::Write;
  const auto [window, head, q] = block;
  const int64_t first = window * g.context + q, column = head * g.width;
  const int64_t count = std::min<int64_t>(query_lanes, g.context - q), visible = g.visible_keys(q, count);
  load_head(g, {a.qkv, first, count, column, query_lanes}, s.queries);
  load_head(g, {a.out_gradient, first, count, column, query_lanes}, s.out_gradient);
  load_head(g, {a.out, first, count, column, query_lanes}, s.rows);
  to_lanes(g, s.out_gradient, s.out_gradient_lanes);
  to_lanes(g, s.rows, s.out_lanes);
  alignas(64) float delta[query_lanes], log_sum_exp[query_lanes];
  const bool clips = a.clip.clips();
  if (clips)
    std::fill_n(delta, query_lanes, 0.0f);
  else
    dot_lanes(s.out_gradient_lanes, s.out_lanes, delta, g.width);
  load_stored(g, {a.out_gradient, first, count, column, query_lanes}, s.rows);
  stored_to_lanes(g, s.rows, s.out_gradient_lanes);
  load_stored(g, {a.qkv, first, count, column, query_lanes}, s.rows);
  stored_to_lanes(g, s.rows, s.query_lanes_);
  std::fill_n(log_sum_exp, query_lanes, std::numeric_limits<float>::infinity());
  std::copy_n(a.log_sum_exp.as<float>() + (window * g.heads + head) * g.context + q, count, log_sum_exp);

  const LaneClip clip = lane_clip(a.clip);
  const SoftmaxGradient gradient{s.score_gradient, log_sum_exp, delta};
  const int64_t w = g.padded_width;
  const auto scores_and_gradient = [&](int64_t k) {
    const int64_t keys = std::min(key_block, visible - k), pitch = g.stored_pitch(), inner = g.stored_inner();
    multiply(g.stored_kernel, {s.stored_keys + k * pitch, pitch, 1, s.query_lanes_, query_lanes, s.scores,
                               query_lanes, keys, query_lanes, inner, Write::Store});
    multiply(g.stored_kernel, {s.stored_values + k * pitch, pitch, 1, s.out_gradient_lanes, query_lanes,
                               s.score_gradient, query_lanes, keys, query_lanes, inner, Write::Store});
    return ScoreBlock{s.scores, keys, k, q, a.softmax_scale};
  };
  for (int64_t k = 0; clips && k < visible; k += key_block)
    add_clipped_products(scores_and_gradient(k), clip, gradient, delta);
  for (int64_t k = 0; k < visible; k += key_block) {
    const float* block_keys = s.keys + k * w;
    const ScoreBlock scores = scores_and_gradient(k);
    const int64_t keys = scores.keys;
    if (clips)
      clipped_softmax_gradient(scores, clip, gradient);
    else
      softmax_gradient(scores, gradient);
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

}  // namespace

size_t attention_scratch_bytes(const AttentionForward& a, int threads) {
  const Geometry g = geometry(shape_of(a), a.qkv);
  return std::max(forward_team(g, threads).bytes(), backward_team(g, threads).bytes());
}

void attention_forward(const AttentionForward& a, GemmEngine& engine) {
  if (in_float8(a)) return float8_attention_forward(a, engine);
  const Geometry g = geometry(shape_of(a), a.qkv);
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
  if (in_float8(a)) return float8_attention_backward(a, engine);
  const Geometry g = geometry(shape_of(a), a.qkv);
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
  check(a);
  octet::attention_forward(a, *gemm_);
  finish_cast(a.out);
  count_products(a, "blocked-f32", counts_);
}
void CpuDevice::attention_backward(const AttentionBackward& a) {
  check(a);
  octet::attention_backward(a, *gemm_);
  count_products(a, "blocked-f32", counts_);
}

}  // namespace octet
