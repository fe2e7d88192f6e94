// Attention in FP8: every product is one of decoded codes with FP32 sums; softmax in FP32.
//
// Forward goes over the keys twice: first for log_sum_exp, then with P = exp(scale S - log_sum_exp), which so
// is backward's to the bit, and whose rounding depends on no block's running maximum.
//
// Tasks, blocks and the order of sums are those of attention.cpp. Scales of operands are powers of two (or,
// with exact scales, FP32 numbers) that are multiplied to finished sums, once.
#include "device/cpu/float8_attention.h"

#include <omp.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "device/cpu/attention_heads.h"
#include "device/cpu/codes_beforehand.h"
#include "device/cpu/unpack.h"
#include "numerics/float8_attention.h"

namespace octet {
namespace {

using Write = MicroTile::Write;

constexpr CodeRule probability_rule{Format::E4M3, probability_scale};
constexpr float probability_inverse_scale = 1.0f / probability_scale;

// One head's rows of finished sums [padded rows, padded_width], times `factor`, to codes.
struct HeadCodes {
  const Tensor& codes;
  int64_t first, count, column;
  float factor;
};
void encode_head(const Geometry& g, float* rows, const HeadCodes& to, const CodeRule& rule,
                 CodeStatistics& statistics) {
  for (int64_t i = 0; i < to.count; ++i) {
    float* row = rows + i * g.padded_width;
    for (int64_t c = 0; c < g.width; ++c) row[c] *= to.factor;
    uint8_t* codes = static_cast<uint8_t*>(to.codes.data) + (to.first + i) * to.codes.columns() + to.column;
    encode_values(rule, row, g.width, codes, statistics);
  }
}

// ---- forward

struct Forward {
  const AttentionForward& a;
  Geometry g;
  float score_scale;  // softmax scale and inverse scales of queries and keys
  float out_factor;   // inverse scales of probabilities and values
  CodeRule out;
};

void scores_of(const Geometry& g, const float* keys, int64_t count, const float* queries, float* scores) {
  multiply(g.stored_kernel, {keys, g.stored_pitch(), 1, queries, query_lanes, scores, query_lanes, count,
                             query_lanes, g.stored_inner(), Write::Store});
}

void forward_block(const Forward& f, QueryBlock block, const ForwardScratch& s, CodeStatistics& statistics) {
  const Geometry& g = f.g;
  const auto [window, head, q] = block;
  const int64_t first = window * g.context + q, count = std::min<int64_t>(query_lanes, g.context - q),
                visible = g.visible_keys(q, count);
  load_stored(g, {f.a.qkv, first, count, head * g.width, query_lanes}, s.rows);
  stored_to_lanes(g, s.rows, s.queries);
  const auto for_keys = [&](const auto& body) {
    for (int64_t k = 0; k < visible; k += key_block) {
      const int64_t keys = std::min(key_block, visible - k);
      scores_of(g, s.keys + k * g.stored_pitch(), keys, s.queries, s.scores);
      body(ScoreBlock{s.scores, keys, k, q, f.score_scale});
    }
  };
  RunningSoftmax running;
  std::fill_n(running.maximum, query_lanes, -std::numeric_limits<float>::infinity());
  std::fill_n(running.sum, query_lanes, 0.0f);
  for_keys([&](const ScoreBlock& scores) { softmax_step(scores, running); });

  alignas(64) float log_sum_exp[query_lanes];
  std::fill_n(log_sum_exp, query_lanes, std::numeric_limits<float>::infinity());
  for (int64_t i = 0; i < count; ++i) log_sum_exp[i] = running.maximum[i] + std::log(running.sum[i]);
  std::copy_n(log_sum_exp, count, f.a.log_sum_exp.as<float>() + (window * g.heads + head) * g.context + q);

  for_keys([&](const ScoreBlock& scores) {
    softmax_probabilities(scores, log_sum_exp);
    round_to_codes(probability_rule, scores.scores, scores.keys * query_lanes, nullptr);
    multiply(g.kernel, {s.values + scores.first_key * g.padded_width, 1, g.padded_width, scores.scores,
                        query_lanes, s.out, query_lanes, g.padded_width, query_lanes, scores.keys,
                        scores.first_key == 0 ? Write::Store : Write::Add});
  });
  from_lanes(g, s.out, s.rows);
  encode_head(g, s.rows, {f.a.out_codes.codes, first, count, head * g.width, f.out_factor}, f.out,
              statistics);
}

void forward_task(const Forward& f, WindowHead task, const ForwardScratch& s, CodeStatistics& statistics) {
  const Geometry& g = f.g;
  const int64_t first = task.window * g.context, kv = task.head / (g.heads / g.kv_heads);
  load_stored(g, {f.a.qkv, first, g.context, (g.heads + kv) * g.width, g.padded_context}, s.keys);
  load_head(g, {f.a.qkv, first, g.context, (g.heads + g.kv_heads + kv) * g.width, g.padded_context},
            s.values);
  for (int64_t q = 0; q < g.context; q += query_lanes)
    forward_block(f, {task.window, task.head, q}, s, statistics);
}

// ---- backward

struct Backward {
  const AttentionBackward& a;
  Geometry g;
  // Products of inverse scales, and of the softmax scale with those of queries and keys.
  float score_scale, product_factor, delta_factor, score_gradient_factor, value_gradient_factor;
  CodeRule score_gradient, qkv_gradient;
};
struct BackwardStatistics {
  CodeStatistics score_gradient, qkv_gradient;
  void add(const BackwardStatistics& other) {
    score_gradient.add(other.score_gradient);
    qkv_gradient.add(other.qkv_gradient);
  }
};

// Decoded rows of the block's queries, of dO and O, as the products want them; delta = sum(dO O).
void load_block(const Backward& b, QueryBlock block, const BackwardScratch& s, float* delta) {
  const Geometry& g = b.g;
  const int64_t first = block.window * g.context + block.first, column = block.head * g.width,
                count = std::min<int64_t>(query_lanes, g.context - block.first);
  const auto rows = [&](const Tensor& from) { return HeadRows{from, first, count, column, query_lanes}; };
  load_head(g, rows(b.a.qkv), s.queries);
  load_head(g, rows(b.a.out_gradient), s.out_gradient);
  load_head(g, rows(b.a.out), s.rows);
  to_lanes(g, s.out_gradient, s.out_gradient_lanes);
  to_lanes(g, s.rows, s.out_lanes);
  dot_lanes(s.out_gradient_lanes, s.out_lanes, delta, g.width);
  for (int i = 0; i < query_lanes; ++i) delta[i] *= b.delta_factor;
  load_stored(g, rows(b.a.out_gradient), s.rows);
  stored_to_lanes(g, s.rows, s.out_gradient_lanes);
  load_stored(g, rows(b.a.qkv), s.rows);
  stored_to_lanes(g, s.rows, s.query_lanes_);
}

void backward_block(const Backward& b, QueryBlock block, const BackwardScratch& s,
                    BackwardStatistics& statistics) {
  const Geometry& g = b.g;
  const auto [window, head, q] = block;
  const int64_t first = window * g.context + q, count = std::min<int64_t>(query_lanes, g.context - q),
                visible = g.visible_keys(q, count), w = g.padded_width;
  alignas(64) float delta[query_lanes], log_sum_exp[query_lanes];
  load_block(b, block, s, delta);
  std::fill_n(log_sum_exp, query_lanes, std::numeric_limits<float>::infinity());
  std::copy_n(b.a.log_sum_exp.as<float>() + (window * g.heads + head) * g.context + q, count, log_sum_exp);
  if (b.score_gradient.counted)  // query q + i sees q + i + 1 keys
    statistics.score_gradient.counts.elements += static_cast<uint64_t>(count * q + count * (count + 1) / 2);

  for (int64_t k = 0; k < visible; k += key_block) {
    const int64_t keys = std::min(key_block, visible - k), values = keys * query_lanes;
    scores_of(g, s.stored_keys + k * g.stored_pitch(), keys, s.query_lanes_, s.scores);
    scores_of(g, s.stored_values + k * g.stored_pitch(), keys, s.out_gradient_lanes, s.score_gradient);
    softmax_probabilities({s.scores, keys, k, q, b.score_scale}, log_sum_exp);
    probability_gradient({s.scores, s.score_gradient, delta, keys, b.product_factor, b.a.softmax_scale});
    round_to_codes(probability_rule, s.scores, values, nullptr);
    round_to_codes(b.score_gradient, s.score_gradient, values, &statistics.score_gradient);
    multiply(g.kernel, {s.keys + k * w, 1, w, s.score_gradient, query_lanes, s.query_gradient_lanes,
                        query_lanes, w, query_lanes, keys, k == 0 ? Write::Store : Write::Add});
    multiply(g.kernel, {s.score_gradient, query_lanes, 1, s.queries, w, s.key_gradient + k * w, w, keys, w,
                        query_lanes, Write::Add});
    multiply(g.kernel, {s.scores, query_lanes, 1, s.out_gradient, w, s.value_gradient + k * w, w, keys, w,
                        query_lanes, Write::Add});
  }
  from_lanes(g, s.query_gradient_lanes, s.rows);
  encode_head(g, s.rows,
              {b.a.qkv_gradient_codes.codes, first, count, head * g.width, b.score_gradient_factor},
              b.qkv_gradient, statistics.qkv_gradient);
}

void backward_task(const Backward& b, WindowHead task, const BackwardScratch& s,
                   BackwardStatistics& statistics) {
  const Geometry& g = b.g;
  const int64_t first = task.window * g.context, group = g.heads / g.kv_heads;
  const HeadRows keys{b.a.qkv, first, g.context, (g.heads + task.head) * g.width, g.padded_context};
  const HeadRows values{b.a.qkv, first, g.context, (g.heads + g.kv_heads + task.head) * g.width,
                        g.padded_context};
  load_head(g, keys, s.keys);
  load_stored(g, keys, s.stored_keys);
  load_stored(g, values, s.stored_values);
  std::fill_n(s.key_gradient, g.keys_floats(), 0.0f);
  std::fill_n(s.value_gradient, g.keys_floats(), 0.0f);
  for (int64_t head = task.head * group; head < (task.head + 1) * group; ++head)
    for (int64_t q = 0; q < g.context; q += query_lanes)
      backward_block(b, {task.window, head, q}, s, statistics);
  const Tensor& codes = b.a.qkv_gradient_codes.codes;
  encode_head(g, s.key_gradient, {codes, first, g.context, keys.column, b.score_gradient_factor},
              b.qkv_gradient, statistics.qkv_gradient);
  encode_head(g, s.value_gradient, {codes, first, g.context, values.column, b.value_gradient_factor},
              b.qkv_gradient, statistics.qkv_gradient);
}

}  // namespace

void float8_attention_forward(const AttentionForward& a, GemmEngine& engine) {
  const float inverse = *a.qkv_inverse_scale;
  const Forward f{a, geometry(shape_of(a), a.qkv), a.softmax_scale * (inverse * inverse),
                  inverse * probability_inverse_scale,
                  rule_of(a.out_codes, output_start(e4m3_max * inverse))};
  const Team team = forward_team(f.g, engine.threads());
  float* scratch = reinterpret_cast<float*>(engine.workspace().reserve(team.bytes()));
  CodeStatistics all;
#pragma omp parallel num_threads(team.threads)
  {
    const ForwardScratch mine = forward_scratch(f.g, scratch + omp_get_thread_num() * team.floats);
    CodeStatistics statistics;
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < team.tasks; ++t)
      forward_task(f, {t / f.g.heads, t % f.g.heads}, mine, statistics);
#pragma omp critical
    all.add(statistics);
  }
  const float out_inverse = record(a.out_codes, f.out, all, all.finite());
  if (!a.out.high.empty()) decode_codes(a.out_codes.codes, out_inverse, a.out.high, engine.threads());
}

void float8_attention_backward(const AttentionBackward& a, GemmEngine& engine) {
  const float qkv = *a.qkv_inverse_scale, out = *a.out_inverse_scale,
              gradient = *a.out_gradient_inverse_scale;
  const GradientStart start = gradient_start(a.context, a.heads / a.kv_heads, a.head_width, a.softmax_scale);
  const float largest_input = e4m3_max * qkv, largest_gradient = e5m2_max * gradient;
  const CodeRule score =
      rule_of(a.score_gradient, score_gradient_start(start, largest_input, largest_gradient));
  const CodeRule result =
      rule_of(a.qkv_gradient_codes, qkv_gradient_start(start, largest_input, largest_gradient));
  const Backward b{a,
                   geometry(shape_of(a), a.qkv),
                   a.softmax_scale * (qkv * qkv),
                   gradient * qkv,
                   gradient * out,
                   1.0f / score.scale * qkv,
                   probability_inverse_scale * gradient,
                   score,
                   result};
  const Team team = backward_team(b.g, engine.threads());
  float* scratch = reinterpret_cast<float*>(engine.workspace().reserve(team.bytes()));
  BackwardStatistics all;
#pragma omp parallel num_threads(team.threads)
  {
    const BackwardScratch mine = backward_scratch(b.g, scratch + omp_get_thread_num() * team.floats);
    BackwardStatistics statistics;
#pragma omp for schedule(dynamic, 1)
    for (int64_t t = 0; t < team.tasks; ++t)
      backward_task(b, {t / b.g.kv_heads, t % b.g.kv_heads}, mine, statistics);
#pragma omp critical
    all.add(statistics);
  }
  // dS saturates inside, where no NaN would tell.
  const bool finite = all.score_gradient.finite() && all.qkv_gradient.finite();
  record(a.score_gradient, score, all.score_gradient, all.score_gradient.finite());
  const float inverse = record(a.qkv_gradient_codes, result, all.qkv_gradient, finite);
  if (!a.qkv_gradient.empty())
    decode_codes(a.qkv_gradient_codes.codes, inverse, a.qkv_gradient, engine.threads());
}

}  // namespace octet
