// Rotary position embedding, rotate-half form, on the query and key heads of qkv rows, after their
// regulariser.
//   forward   x = stored + bias;  x = norm(kept), kept = x rounded to storage, when there is a regulariser;
//             (x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin)   x1, x2: halves of a head
//   backward  (y1, y2) -> (y1 cos + y2 sin, y2 cos - y1 sin);  then the regulariser's;
//             bias gradient += sum over tokens of the result
// The gains' gradients sum over the heads of each chunk of 64 tokens, head by head, then over the chunks.
// FP32 inside, one rounding when stored. The bias gradient sums the *stored* values (in the order of
// numerics/sums.h), so a device that makes it in a second pass over memory gets the same number. Value heads
// only take the bias.
#include "device/cpu/rope.h"
#include "device/cpu/cpu_device.h"

#include <algorithm>
#include <utility>

#include "base/error.h"
#include "base/platform.h"
#include "device/cpu/gemm_state.h"
#include "device/cpu/query_key_norm.h"
#include "device/cpu/unpack.h"
#include "fmt/format.h"
#include "numerics/sums.h"

namespace octet {
namespace {

struct Angles {
  const float *cosine, *sine;  // [half]
};
OCTET_VECTORIZED void rotate(float* __restrict first, float* __restrict second, Angles by, int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = first[i], b = second[i];
    first[i] = a * by.cosine[i] - b * by.sine[i];
    second[i] = b * by.cosine[i] + a * by.sine[i];
  }
}
OCTET_VECTORIZED void rotate_back(float* __restrict first, float* __restrict second, Angles by,
                                  int64_t half) {
  for (int64_t i = 0; i < half; ++i) {
    const float a = first[i], b = second[i];
    first[i] = a * by.cosine[i] + b * by.sine[i];
    second[i] = b * by.cosine[i] - a * by.sine[i];
  }
}
OCTET_VECTORIZED void add(float* __restrict x, const float* __restrict y, int64_t n) {
  for (int64_t i = 0; i < n; ++i) x[i] += y[i];
}

// A row is worked on in pieces that fit the stack: one head.
constexpr int64_t widest_head = 1024;

void check(const RopeShape& s, const Tensor& qkv, const QueryKeyNorm& norm) {
  const bool none = norm.kind == QkNorm::None;
  const int64_t gains = norm.kind == QkNorm::RMS ? s.head_width : norm.kind == QkNorm::Tanh ? 1 : 0;
  if (norm.kept.elements() != (none ? 0 : qkv.rows() * (s.heads + s.kv_heads) * s.head_width) ||
      norm.query_gain.elements() != gains || norm.key_gain.elements() != gains ||
      (!none && s.head_width > widest_regularised_head))
    throw Error(ExitCode::Internal,
                fmt::format("rope: kept heads {} and gains {}, {} do not fit the regulariser of heads of {}",
                            to_string(norm.kept.shape), to_string(norm.query_gain.shape),
                            to_string(norm.key_gain.shape), s.head_width));
  if (s.head_width % 2 != 0 || s.head_width < 2 || s.head_width > widest_head ||
      qkv.columns() != static_cast<int64_t>(s.heads + 2 * s.kv_heads) * s.head_width ||
      s.cosine->columns() != s.head_width / 2 || !(s.sine->shape == s.cosine->shape))
    throw Error(
        ExitCode::Internal,
        fmt::format("rope: qkv {} and tables {} do not fit {} + 2 x {} heads of {} (even, at most {})",
                    to_string(qkv.shape), to_string(s.cosine->shape), s.heads, s.kv_heads, s.head_width,
                    widest_head),
        "report this as a bug with the run's configuration");
}

}  // namespace

void rope_forward(const RopeForward& r, int threads) {
  check({r.heads, r.kv_heads, r.head_width, &r.cosine, &r.sine}, r.qkv, r.norm);
  const int64_t width = r.head_width, half = width / 2, context = r.cosine.rows();
  const float *cosine = r.cosine.as<float>(), *sine = r.sine.as<float>();
  const int64_t rotated = r.heads + r.kv_heads, all = rotated + r.kv_heads;
  const float* bias = r.bias.empty() ? nullptr : r.bias.as<float>();
  const int64_t rows = r.qkv.rows(), touched = bias ? all : rotated;
  const bool regularised = r.norm.kind != QkNorm::None;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t t = 0; t < rows; ++t) {
    const int64_t position = t % context;
    alignas(64) float x[widest_head];
    Tensor qkv = r.qkv, keep = r.norm.kept;
    for (int64_t head = 0; head < touched; ++head) {
      void* stored = at(qkv, (t * all + head) * width);
      unpack(qkv.dtype, stored, x, width);
      if (bias) add(x, bias + head * width, width);
      if (regularised && head < rotated) {
        void* kept = at(keep, (t * rotated + head) * width);
        pack(keep.dtype, x, kept, width);
        unpack(keep.dtype, kept, x, width);
        normalise_head(head_norm(r.norm, head < r.heads, width), x);
      }
      if (head < rotated) rotate(x, x + half, {cosine + position * half, sine + position * half}, half);
      pack(qkv.dtype, x, stored, width);
    }
  }
}

void rope_backward(const RopeBackward& r, int threads) {
  check({r.heads, r.kv_heads, r.head_width, &r.cosine, &r.sine}, r.qkv_gradient, r.norm);
  const int64_t width = r.head_width, half = width / 2, context = r.cosine.rows();
  const float *cosine = r.cosine.as<float>(), *sine = r.sine.as<float>();
  const int64_t rotated = r.heads + r.kv_heads, all = rotated + r.kv_heads, rows = r.qkv_gradient.rows();
  // Over heads, so that a head's bias gradient is one thread's sum.
#pragma omp parallel for num_threads(threads) schedule(dynamic, 1)
  for (int64_t head = 0; head < all; ++head) {
    alignas(64) float x[widest_head], kept[widest_regularised_head];
    Tensor out = r.out.high;
    float* bias = r.bias_gradient.empty() ? nullptr : r.bias_gradient.as<float>() + head * width;
    alignas(64) float sums[widest_head] = {}, total[widest_head] = {};
    for (int64_t t = 0; t < rows; ++t) {
      const int64_t element = (t * all + head) * width, position = t % context;
      unpack(r.qkv_gradient.dtype, at(r.qkv_gradient, element), x, width);
      if (head < rotated) rotate_back(x, x + half, {cosine + position * half, sine + position * half}, half);
      if (head < rotated && r.norm.kind != QkNorm::None) {
        unpack(r.norm.kept.dtype, at(r.norm.kept, (t * rotated + head) * width), kept, width);
        normalise_head_backward(head_norm(r.norm, head < r.heads, width), kept, x);
      }
      pack(out.dtype, x, at(out, element), width);
      if (bias) {
        unpack(out.dtype, at(std::as_const(out), element), x, width);
        add(sums, x, width);
        if ((t + 1) % column_chunk == 0 || t + 1 == rows) {
          add(total, sums, width);
          std::fill_n(sums, width, 0.0f);
        }
      }
    }
    if (bias) add(bias, total, width);
  }
}

int64_t query_key_gain_elements(int64_t tokens, int64_t head_width) {
  return (tokens + column_chunk - 1) / column_chunk * 2 * head_width;
}

void query_key_gain_gradients(const RopeBackward& r, int threads, float* chunk_sums) {
  check({r.heads, r.kv_heads, r.head_width, &r.cosine, &r.sine}, r.qkv_gradient, r.norm);
  const int64_t width = r.head_width, half = width / 2, context = r.cosine.rows();
  const float *cosine = r.cosine.as<float>(), *sine = r.sine.as<float>();
  const int64_t rotated = r.heads + r.kv_heads, all = rotated + r.kv_heads, rows = r.qkv_gradient.rows();
  const int64_t chunks = (rows + column_chunk - 1) / column_chunk;
#pragma omp parallel for num_threads(threads) schedule(static)
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    float* const total = chunk_sums + chunk * 2 * width;
    std::fill_n(total, 2 * width, 0.0f);
    for (int64_t head = 0; head < rotated; ++head) {
      const HeadNorm norm = head_norm(r.norm, head < r.heads, width);
      alignas(64) float x[widest_regularised_head], kept[widest_regularised_head],
          sums[widest_regularised_head] = {};
      for (int64_t t = chunk * column_chunk; t < std::min(rows, (chunk + 1) * column_chunk); ++t) {
        const int64_t position = t % context;
        unpack(r.qkv_gradient.dtype, at(r.qkv_gradient, (t * all + head) * width), x, width);
        unpack(r.norm.kept.dtype, at(r.norm.kept, (t * rotated + head) * width), kept, width);
        rotate_back(x, x + half, {cosine + position * half, sine + position * half}, half);
        add_gain_terms(norm, kept, x, sums);
      }
      add(total + (head < r.heads ? 0 : width), sums, width);
    }
  }
  for (int64_t which = 0; which < 2; ++which) {
    alignas(64) float total[widest_regularised_head] = {};
    for (int64_t chunk = 0; chunk < chunks; ++chunk)
      add(total, chunk_sums + (2 * chunk + which) * width, width);
    float* const gradient = (which == 0 ? r.query_gain_gradient : r.key_gain_gradient).as<float>();
    if (r.norm.kind == QkNorm::RMS) {
      add(gradient, total, width);
    } else {  // one alpha for all of them
      Lanes<float> lanes;
      add_values(lanes, total, width);
      *gradient += sum_of(lanes);
    }
  }
}

void CpuDevice::rope_forward(const RopeForward& r) { octet::rope_forward(r, threads_); }
void CpuDevice::rope_backward(const RopeBackward& r) {
  if (is_trained(r.norm.kind)) {  // first: `high` may take the place of an input
    const int64_t elements = query_key_gain_elements(r.qkv_gradient.rows(), r.head_width);
    void* const sums = gemm_->workspace().reserve(static_cast<size_t>(elements) * sizeof(float));
    query_key_gain_gradients(r, threads_, static_cast<float*>(sums));
  }
  octet::rope_backward(r, threads_);
  finish_cast(r.out);
}

}  // namespace octet
