// Softmax over blocks of scores that lie key-major: scores[key][query lane], 32 queries side by side.
// Each query is one lane of vector code, so no sum crosses lanes and the order of every sum is the order of
// the keys.
#pragma once
#include <cstdint>

namespace octet {

inline constexpr int query_lanes = 32;

struct ScoreBlock {
  float* scores;  // [keys, 32]: dot products in, probabilities out
  int64_t keys;
  int64_t first_key, first_query;  // a key behind its query is masked: probability exactly zero
  float scale;
};

// One step of the running softmax over key blocks.
//   m' = max(m, max(scale * s));  p = exp(scale * s - m');  correction = exp(m - m');
//   l = l * correction + sum(p)
struct RunningSoftmax {
  alignas(64) float maximum[query_lanes];     // m; -infinity before the first block
  alignas(64) float sum[query_lanes];         // l
  alignas(64) float correction[query_lanes];  // what the output so far is multiplied by
};
void softmax_step(const ScoreBlock& block, RunningSoftmax& running);

// p = exp(scale * s - log_sum_exp), in place;  gradient (dP in) = p * (dP - delta) * scale.
struct SoftmaxGradient {
  float* gradient;           // [keys, 32]
  const float* log_sum_exp;  // [32]; +infinity in a lane without a query
  const float* delta;        // [32]: sum over the head of out_gradient * out
};
void softmax_gradient(const ScoreBlock& block, const SoftmaxGradient& g);

// p = exp(scale * s - log_sum_exp), in place.
void softmax_probabilities(const ScoreBlock& block, const float* log_sum_exp);

// Clipped softmax [operations.h, SoftmaxClip]: p' = clip(span p + low, 0, 1) in place, after
// softmax_probabilities. As low <= 0, masked keys stay zero; NaN stays NaN.
struct LaneClip {
  float span, low;  // span: high - low
};
void clip_probabilities(const ScoreBlock& block, const LaneClip& clip);
// Its gradient. With p as above and g = span dP where 0 < span p + low < 1, else 0:
//   add_clipped_products     delta[lane] += sum over the keys, ascending, of p g;  scores and dP stay
//   clipped_softmax_gradient scores become p';  gradient (dP in) = p * (g - delta) * scale
void add_clipped_products(const ScoreBlock& block, const LaneClip& clip, const SoftmaxGradient& g,
                          float* delta);
void clipped_softmax_gradient(const ScoreBlock& block, const LaneClip& clip, const SoftmaxGradient& g);

// gradient (dO V^T in codes' units) = p * (factor * gradient - delta) * scale.
struct ProbabilityGradient {
  const float* probabilities;  // [keys, 32]
  float* gradient;             // [keys, 32]
  const float* delta;          // [32]
  int64_t keys;
  float factor, scale;
};
void probability_gradient(const ProbabilityGradient& g);

// x[row][lane] *= factor[lane];  x[row][lane] /= divisor[lane].
void multiply_lanes(float* x, const float* factor, int64_t rows);
void divide_lanes(float* x, const float* divisor, int64_t rows);
// out[lane] = sum over rows, ascending, of a[row][lane] * b[row][lane].
void dot_lanes(const float* a, const float* b, float* out, int64_t rows);

}  // namespace octet
