#include "numerics/adaptive_scaling.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "base/random.h"
#include "catch.h"

using namespace octet;

namespace {

constexpr Cast quantile{Format::E4M3, Scaling::Quantile}, following{Format::E5M2, Scaling::Following};

// The share of the values that lies above t times their deviation, and where values end.
struct Distribution {
  const char* name;
  std::function<double(double)> above;
  double amax = 100;
};
const Distribution gaussian{"Gaussian", [](double t) { return std::erfc(t / std::sqrt(2.0)); }};
const Distribution laplacian{"Laplacian", [](double t) { return std::exp(-std::sqrt(2.0) * t); }};
const Distribution cauchy{"Cauchy", [](double t) { return 1 - 2 / 3.14159265358979 * std::atan(t); }, 1e9};

// A step of a tensor so large that its counts are the distribution's.
CastsOfStep counted(const Distribution& d, double threshold) {
  constexpr double elements = 0x1p50;
  const auto above = static_cast<uint64_t>(std::llround(elements * d.above(threshold)));
  return {static_cast<float>(d.amax), static_cast<uint64_t>(elements), above, 0};
}

constexpr size_t tensor_size = 16384;
std::vector<float> normal_values(uint64_t step) {
  std::vector<float> values(tensor_size);
  for (size_t i = 0; i < values.size(); ++i)
    values[i] = static_cast<float>(random_normal(random_key(step, Purpose::Test), i));
  return values;
}

CastsOfStep cast(const std::vector<float>& values, float scale, Format format) {
  CastsOfStep step;
  for (const float x : values) {
    step.amax = max_magnitude(step.amax, x);
    step.saturated += std::fabs(x * scale) > max_of(format);
    step.flushed += x != 0 && (encode(format, x * scale) & 0x7f) == 0;
  }
  step.elements = values.size();
  return step;
}

// In dB, of the values up to `largest`.
double snr(const std::vector<float>& values, float scale, float largest) {
  double signal = 0, noise = 0;
  for (const float x : values) {
    if (std::fabs(x) > largest) continue;
    const double error =
        static_cast<double>(decode(Format::E4M3, encode(Format::E4M3, x * scale)) / scale - x);
    signal += static_cast<double>(x) * static_cast<double>(x);
    noise += error * error;
  }
  return 10 * std::log10(signal / noise);
}

// The rule as docs/numerics.md writes it, in long double.
long double reference(const AdaptiveScaling& options, const CastsOfStep& step, long double present) {
  const long double threshold = 448 / present,
                    p = static_cast<long double>(step.saturated) / static_cast<long double>(step.elements),
                    q = static_cast<long double>(options.above);
  const long double cap = std::max(static_cast<long double>(step.amax), threshold * 15 / 16);
  return 448 / std::min(threshold * std::min(1 + (p / q - 1) / 16, 2.0L), cap);
}

}  // namespace

TEST_CASE("a quantile's scale is the rule's, within the roundings of its few operations") {
  for (const double above : {1e-6, 1e-4, 0.1})
    for (uint64_t i = 0; i < 2000; ++i) {
      const AdaptiveScaling options{.above = above};
      const uint64_t elements = 1 + random_bits(1, i) % 1000000;
      const CastsOfStep step{
          std::ldexp(1.5f, static_cast<int>(random_bits(2, i) % 60) - 30), elements,
          i % 3 ? static_cast<uint64_t>(2.5 * above * static_cast<double>(elements)) : i % elements, 0};
      const float present = std::ldexp(1.25f, static_cast<int>(random_bits(3, i) % 60) - 30);
      const auto expected = reference(options, step, static_cast<long double>(present));
      const auto found = static_cast<long double>(adaptive_scale(options, quantile, step, present));
      // Rounded to FP32 once; in FP64 five times before, of which one loses the binades of p / q - 1.
      REQUIRE(std::fabs(found - expected) <= 0x1.01p-24L * expected);
    }
}

TEST_CASE("a quantile's scale ends where the wanted share saturates, from above and below") {
  for (const Distribution& d : {gaussian, laplacian, cauchy})
    for (const double above : {1e-6, 1e-4, 1e-2, 0.1})
      for (const double start : {0.01, 1e6}) {
        float scale = 448 / static_cast<float>(start);
        const AdaptiveScaling options{.above = above};
        double p = 0;
        for (int step = 0; step < 600; ++step) {
          const CastsOfStep now = counted(d, 448 / static_cast<double>(scale));
          p = share_of(now.saturated, now.elements);
          scale = adaptive_scale(options, quantile, now, scale);
        }
        INFO(d.name << ", above " << above << ", from " << start << ": " << p);
        CHECK(std::fabs(p - above) <= 1e-3 * above);
      }
}

TEST_CASE("a calm step lowers a quantile's threshold by a sixteenth, however calm it is") {
  const AdaptiveScaling options{.above = 1e-4};
  for (const float amax : {0x1p-20f, 0.01f, 0.5f}) {
    const float scale = adaptive_scale(options, quantile, {amax, 1000000, 0, 0}, 448);  // T was 1
    CHECK(std::fabs(scale - 448 * 16 / 15.0f) <= 448 * 0x1p-22f);
  }
}

TEST_CASE("a quantile's threshold stays within a sixteenth of where values end sharply") {
  const Distribution uniform{"uniform", [](double t) { return std::max(1 - t, 0.0); }, 1};
  float scale = 448;
  for (int step = 0; step < 100; ++step) {
    scale = adaptive_scale({}, quantile, counted(uniform, 448 / static_cast<double>(scale)), scale);
    CHECK(scale >= 448);
    CHECK(scale <= 448 / (15 / 16.0f) * (1 + 0x1p-23f));
  }
}

TEST_CASE("on samples of a Gaussian the saturated share is that which is wanted, but for chance") {
  constexpr int steps = 120, judged = 60;
  const AdaptiveScaling options{.above = 1e-3};
  float scale = 0;
  uint64_t saturated = 0;
  for (uint64_t step = 0; step < steps; ++step) {
    const std::vector<float> values = normal_values(step);
    const CastsOfStep now = cast(values, scale == 0 ? exact_scale(4, e4m3_max) : scale, Format::E4M3);
    if (step >= steps - judged) saturated += now.saturated;
    scale = adaptive_scale(options, quantile, now, scale);
  }
  // 983 are expected; their deviation is at most that of independent steps, 31.
  const double ratio = static_cast<double>(saturated) / (judged * tensor_size * options.above);
  CHECK(ratio > 0.84);
  CHECK(ratio < 1.16);
}

TEST_CASE("an outlier takes an amax's scale along, a quantile's not: the other values keep their accuracy") {
  const AdaptiveScaling options{.above = 1e-3};
  constexpr float outlier = 1e6f;
  float by_quantile = 0, by_current = 0, by_delayed = 0;
  float history[16] = {};
  std::vector<float> values;
  for (uint64_t step = 0; step < 60; ++step) {
    values = normal_values(step);
    if (step >= 10) values[step] = outlier;
    const float used = by_quantile;
    const CastsOfStep now = cast(values, used == 0 ? exact_scale(4, e4m3_max) : used, Format::E4M3);
    by_quantile = adaptive_scale(options, quantile, now, used);
    by_current = exact_scale(now.amax, e4m3_max);
    history[step % 16] = now.amax;
    by_delayed = delayed_scale({}, {Format::E4M3, Scaling::Delayed},
                               {history, 1, static_cast<int64_t>(step % 16)}, by_delayed);
  }
  // Rounding a Gaussian leaves 7.0e-4 of its square as noise. Of the share q above T = 3.29 deviations the
  // square of what is cut off is about 2 / T^2, so that twice q adds 3.7e-4: 29.7 dB.
  CHECK(snr(values, by_quantile, 10) >= 29.7);
  CHECK(snr(values, by_current, 10) < 1);  // the negative control: everything else is flushed
  CHECK(snr(values, by_delayed, 10) < 1);
}

TEST_CASE(
    "a scale that follows goes down by a binade when too much saturates, else up when too much vanishes") {
  const AdaptiveScaling options{.saturated = 0.01, .flushed = 0.1};
  const auto next = [&](uint64_t saturated, uint64_t flushed, float present = 8) {
    return adaptive_scale(options, following, {1.0f, 1000, saturated, flushed}, present);
  };
  CHECK(next(0, 0) == 8);
  CHECK(next(10, 100) == 8);  // at the limits
  CHECK(next(11, 0) == 4);
  CHECK(next(0, 101) == 16);
  CHECK(next(11, 101) == 4);
  CHECK(next(11, 0, 0x1p-126f) == 0x1p-126f);
  CHECK(next(0, 101, 0x1p126f) == 0x1p126f);
  CHECK(next(0, 101, 12) == 24);  // not only of powers of two
}

TEST_CASE("a scale that follows goes along with gradients that shrink by forty binades, and back") {
  const AdaptiveScaling options{.saturated = 0.01, .flushed = 0.1};
  const std::vector<float> normal = normal_values(0);
  const float first = adaptive_scale(options, following, cast(normal, 1, Format::E5M2), 0);
  float scale = first, highest = first, flushed_by_first = 0;
  for (int step = 0; step < 200; ++step) {
    std::vector<float> values = normal;
    for (float& x : values) x *= std::exp2(-0.4f * static_cast<float>(step < 100 ? step : 200 - step));
    const CastsOfStep now = cast(values, scale, Format::E5M2);
    // One step after a limit 2^0.4 times as many lie below the flushed, and above 2.58 / 2^0.4 deviations 5.1
    // %.
    CHECK(share_of(now.saturated, now.elements) < 0.06);
    CHECK(share_of(now.flushed, now.elements) < 0.145);
    scale = adaptive_scale(options, following, now, scale);
    highest = std::max(highest, scale);
    if (step == 100) flushed_by_first = static_cast<float>(cast(values, first, Format::E5M2).flushed);
  }
  CHECK(highest >= 0x1p12f * first);
  CHECK(scale <= 2 * first);
  CHECK(flushed_by_first == static_cast<float>(tensor_size));  // the negative control
}

TEST_CASE("before a usable amax there is no scale, and a step without casts or with a broken amax keeps it") {
  const float infinity = std::numeric_limits<float>::infinity(), none = std::nanf("");
  for (const Cast& rule : {quantile, following}) {
    for (const float amax : {0.0f, infinity, none})
      for (const float present : {0.0f, 8.0f})
        CHECK(adaptive_scale({}, rule, {amax, 100, 50, 50}, present) == present);
    CHECK(adaptive_scale({}, rule, {3.0f, 0, 0, 0}, 8.0f) == 8.0f);
  }
  CHECK(adaptive_scale({}, quantile, {3.0f, 100, 0, 0}, 0) == 448.0f / 3.0f);
  CHECK(adaptive_scale({}, following, {3.0f, 100, 0, 0}, 0) == 16384.0f);  // 57344 / 3 = 19115
  CHECK(adaptive_scale({}, {Format::E5M2, Scaling::Following, ScaleRule::Exact}, {3.0f, 100, 0, 0}, 0) ==
        57344.0f / 3.0f);
}

TEST_CASE("counts of several ranks give the bits of one rank's") {
  for (uint64_t i = 0; i < 1000; ++i) {
    const CastsOfStep one{1.0f, 1 + random_bits(4, i), random_bits(5, i) % 1000, random_bits(6, i) % 1000};
    for (const uint64_t ranks : {3u, 7u, 1024u}) {
      const CastsOfStep all{one.amax, ranks * one.elements, ranks * one.saturated, ranks * one.flushed};
      for (const Cast& rule : {quantile, following})
        REQUIRE(adaptive_scale({}, rule, one, 3.7f) == adaptive_scale({}, rule, all, 3.7f));
    }
  }
}
