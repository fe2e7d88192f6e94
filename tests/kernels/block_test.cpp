#include "kernels/block.h"

#include <cmath>
#include <vector>

#include "base/random.h"
#include "catch.h"
#include "environment.h"
#include "numerics/sums.h"

using namespace octet;

namespace {

__global__ void reduce_twice(const float* in, float* sums, float* magnitudes, float* amax) {
  const unsigned block = blockIdx.x, thread = kernels::thread_in_block();
  const unsigned threads = blockDim.x * blockDim.y * blockDim.z;
  const float value = in[block * threads + thread];
  const float sum = kernels::block_sum(value), doubled = kernels::block_sum(2.0f * value);
  const float magnitude = kernels::block_max_magnitude(value);
  sums[block * threads + thread] = sum;
  if (doubled != 2.0f * sum)
    sums[block * threads + thread] = NAN;  // exact, so the second call is independent
  magnitudes[block * threads + thread] = magnitude;
  if (thread == 0) kernels::raise_amax(amax, magnitude);
}

// One warp a row; every thread writes the sum that it got.
template <class T>
__global__ void sum_rows(const float* in, int64_t width, T* out) {
  T lanes[8] = {};
  for (int64_t i = 8 * threadIdx.x; i < width; i += sum_lanes) {
    for (int64_t j = 0; j < 8 && i + j < width; ++j)
      lanes[j] += static_cast<T>(in[blockIdx.x * width + i + j]);
  }
  out[32 * blockIdx.x + threadIdx.x] = kernels::sum_of_lanes(lanes);
}

std::vector<float> values(size_t count) {
  std::vector<float> x(count);
  for (size_t i = 0; i < count; ++i) x[i] = static_cast<float>(random_normal(3, i));
  return x;
}
// The order that block.h promises.
float tree_sum(const float* x, size_t threads) {
  float total = 0.0f;
  for (size_t warp = 0; warp < threads / 32; ++warp) {
    float v[32];
    for (size_t i = 0; i < 32; ++i) v[i] = x[32 * warp + i];
    for (size_t distance = 16; distance > 0; distance /= 2) {
      for (size_t i = 0; i < distance; ++i) v[i] += v[i + distance];
    }
    total = warp == 0 ? v[0] : total + v[0];
  }
  return total;
}

}  // namespace

TEST_CASE("block reductions give the promised order's bits to every thread, in every schedule") {
  for (const dim3 block : {dim3(32), dim3(8, 4, 3), dim3(1024)}) {
    const unsigned threads = block.x * block.y * block.z, blocks = 3;
    const std::vector<float> x = values(threads * blocks);
    int unlike_left_to_right = 0;
    for (const char* schedule : schedules) {
      const InterpreterSetting order("SCHEDULE", schedule);
      std::vector<float> sums(x.size()), magnitudes(x.size());
      float amax = 0.0f, largest_of_all = 0.0f;
      gpu::launch(reduce_twice, {.grid = blocks, .block = block}, x.data(), sums.data(), magnitudes.data(),
                  &amax);
      int wrong = 0;
      for (unsigned b = 0; b < blocks; ++b) {
        const float* const own = x.data() + b * threads;
        float left_to_right = 0.0f, largest = 0.0f;
        for (unsigned i = 0; i < threads; ++i) {
          left_to_right += own[i];
          largest = std::fmax(largest, std::fabs(own[i]));
        }
        largest_of_all = std::fmax(largest_of_all, largest);
        for (unsigned i = 0; i < threads; ++i) {
          wrong += sums[b * threads + i] != tree_sum(own, threads);
          wrong += magnitudes[b * threads + i] != largest;
        }
        unlike_left_to_right += sums[b * threads] != left_to_right;
      }
      CHECK(wrong == 0);
      CHECK(amax == largest_of_all);
    }
    CHECK(unlike_left_to_right > 0);  // the comparison can tell orders apart
  }
}

TEMPLATE_TEST_CASE("a warp's sum of a row has the bits of numerics/", "", float, double) {
  for (const int64_t width : {1, 7, 8, 255, 256, 257, 1000, 4096}) {
    const std::vector<float> x = values(static_cast<size_t>(3 * width));
    std::vector<TestType> out(3 * 32);
    gpu::launch(sum_rows<TestType>, {.grid = 3, .block = 32}, x.data(), width, out.data());
    int wrong = 0, unlike_left_to_right = 0;
    for (int64_t row = 0; row < 3; ++row) {
      Lanes<TestType> lanes;
      add_values(lanes, x.data() + row * width, width);
      const TestType expected = sum_of(lanes);
      TestType left_to_right = 0;
      for (int64_t i = 0; i < width; ++i)
        left_to_right += static_cast<TestType>(x[static_cast<size_t>(row * width + i)]);
      for (int64_t i = 0; i < 32; ++i) wrong += out[static_cast<size_t>(32 * row + i)] != expected;
      unlike_left_to_right += expected != left_to_right;
    }
    INFO("width " << width);
    CHECK(wrong == 0);
    // The comparison can tell orders apart (in double, these sums of floats are exact).
    if (width >= 1000 && sizeof(TestType) == 4) CHECK(unlike_left_to_right > 0);
  }
}

TEST_CASE("the largest magnitude keeps an infinity, and a NaN above it") {
  std::vector<float> x(64, 1.0f), sums(64), magnitudes(64);
  float amax = 0.0f;
  x[40] = -INFINITY;
  gpu::launch(reduce_twice, {.grid = 1, .block = 64}, x.data(), sums.data(), magnitudes.data(), &amax);
  CHECK(magnitudes[0] == INFINITY);
  CHECK(amax == INFINITY);
  x[50] = -NAN;
  gpu::launch(reduce_twice, {.grid = 1, .block = 64}, x.data(), sums.data(), magnitudes.data(), &amax);
  CHECK(std::isnan(magnitudes[63]));
  CHECK(std::isnan(amax));
}
