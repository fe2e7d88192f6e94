#include "device/cpu/query_key_norm.h"

#include <cmath>

#include "base/platform.h"
#include "numerics/sums.h"

namespace octet {
namespace {

constexpr int64_t most_pieces = widest_regularised_head / 16;

// sum of a[i] * b[i] over a head.
OCTET_VECTORIZED float sum_of_products(const float* a, const float* b, int64_t width) {
  const int64_t half = width / 2, count = (half + 7) / 8;
  float pieces[most_pieces] = {};
  for (int64_t piece = 0; piece < count; ++piece) {
    float pairs[8];
    for (int64_t l = 0; l < 8; ++l) {
      const int64_t i = 8 * piece + l;
      pairs[l] = i < half ? a[i] * b[i] + a[half + i] * b[half + i] : 0.0f;
    }
    pieces[piece] = sum_of_pairs(pairs);
  }
  int64_t distance = 1;
  while (2 * distance < count) distance *= 2;
  for (; count > 1 && distance > 0; distance /= 2) {
    for (int64_t l = 0; l < distance; ++l) pieces[l] += pieces[l + distance];
  }
  return pieces[0];
}
float rstd_of(const HeadNorm& norm, const float* x) {
  const float mean = sum_of_products(x, x, norm.width) / static_cast<float>(norm.width);
  return 1.0f / std::sqrt(mean + norm.epsilon);
}
bool is_rms(const HeadNorm& norm) { return norm.kind != QkNorm::Tanh; }

OCTET_VECTORIZED void scale(float* x, float rstd, const float* gain, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * rstd * gain[i];
}
OCTET_VECTORIZED void scale(float* x, float rstd, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = x[i] * rstd;
}
OCTET_VECTORIZED void squash(float* x, float alpha, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] = vector_tanh(alpha * x[i]).value;
}
OCTET_VECTORIZED void multiply(float* x, const float* y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] *= y[i];
}
OCTET_VECTORIZED void take_off(float* gradient, const float* x, float rstd, float shrink, int64_t n) {
  for (int64_t i = 0; i < n; ++i) gradient[i] = rstd * (gradient[i] - x[i] * shrink);
}
OCTET_VECTORIZED void squash_backward(const float* x, float* gradient, float alpha, int64_t n) {
  for (int64_t i = 0; i < n; ++i) gradient[i] = gradient[i] * vector_tanh(alpha * x[i]).slope * alpha;
}
OCTET_VECTORIZED void add_rms_terms(const float* x, const float* gradient, float rstd, float* sums,
                                    int64_t n) {
  for (int64_t i = 0; i < n; ++i) sums[i] += gradient[i] * (x[i] * rstd);
}
OCTET_VECTORIZED void add_tanh_terms(const float* x, const float* gradient, float alpha, float* sums,
                                     int64_t n) {
  for (int64_t i = 0; i < n; ++i) sums[i] += gradient[i] * vector_tanh(alpha * x[i]).slope * x[i];
}

}  // namespace

HeadNorm head_norm(const QueryKeyNorm& norm, bool is_query, int64_t width) {
  const Tensor& gain = is_query ? norm.query_gain : norm.key_gain;
  return {norm.kind, gain.empty() ? nullptr : gain.as<float>(), norm.epsilon, width};
}

void normalise_head(const HeadNorm& norm, float* x) {
  if (!is_rms(norm)) return squash(x, *norm.gain, norm.width);
  const float rstd = rstd_of(norm, x);
  norm.gain ? scale(x, rstd, norm.gain, norm.width) : scale(x, rstd, norm.width);
}

void normalise_head_backward(const HeadNorm& norm, const float* x, float* gradient) {
  if (!is_rms(norm)) return squash_backward(x, gradient, *norm.gain, norm.width);
  if (norm.gain) multiply(gradient, norm.gain, norm.width);
  const float rstd = rstd_of(norm, x);
  const float mean = sum_of_products(gradient, x, norm.width) / static_cast<float>(norm.width);
  take_off(gradient, x, rstd, rstd * rstd * mean, norm.width);
}

void add_gain_terms(const HeadNorm& norm, const float* x, const float* gradient, float* sums) {
  if (is_rms(norm))
    add_rms_terms(x, gradient, rstd_of(norm, x), sums, norm.width);
  else
    add_tanh_terms(x, gradient, *norm.gain, sums, norm.width);
}

}  // namespace octet
