#include "numerics/moments.h"

#include <cmath>
#include <limits>
#include <vector>

#include "base/random.h"
#include "catch.h"

using namespace octet;

namespace {

std::vector<float> gaussian(int count, float deviation, uint64_t key) {
  std::vector<float> values(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i)
    values[static_cast<size_t>(i)] =
        deviation * static_cast<float>(random_normal(key, static_cast<uint64_t>(i)));
  return values;
}

std::vector<float> round_trip(Format f, Moment moment, const std::vector<float>& values) {
  std::vector<uint8_t> codes(values.size());
  const float inverse = encode_moment_block(f, moment, values, codes.data());
  std::vector<float> back(values.size());
  decode_moment_block(f, codes, inverse, back.data());
  return back;
}

}  // namespace

TEST_CASE(
    "a block comes back within half an ulp of its format, or half the smallest subnormal of its scale") {
  for (const auto& [format, half_ulp] : {std::pair{Format::E4M3, 0x1p-4f}, {Format::E5M2, 0x1p-3f}}) {
    const float smallest = decode(format, 1);
    for (const float deviation : {1e-12f, 1e-3f, 1.0f, 1e9f}) {
      const std::vector<float> values = gaussian(128, deviation, 11);
      float amax = 0;
      for (const float v : values) amax = max_magnitude(amax, v);
      const std::vector<float> back = round_trip(format, Moment::First, values);
      // Three roundings to FP32 come on top: the scale, the product, the product with the inverse.
      constexpr float slack = 1 + 4 * 0x1p-23f;
      for (size_t i = 0; i < values.size(); ++i) {
        const float bound =
            std::max(half_ulp * std::abs(values[i]), 0.5f * smallest * amax / max_of(format)) * slack +
            4 * 0x1p-23f * std::abs(values[i]);
        CHECK(std::abs(back[i] - values[i]) <= bound);
      }
    }
  }
}

TEST_CASE("the largest element of a block gets the largest code and comes back within FP32 rounding") {
  for (const Format f : {Format::E4M3, Format::E5M2})
    for (uint64_t i = 0; i < 2000; ++i) {
      const float amax =
          std::ldexp(1.0f + static_cast<float>(random_bits(2, i)) * 0x1p-33f, static_cast<int>(i % 180) - 90);
      const MomentScale s = moment_scale(f, amax);
      const uint8_t code = encode_moment(f, Moment::First, amax, s.scale);
      REQUIRE(decode(f, code) == max_of(f));
      REQUIRE(std::abs(decode_moment(f, code, s.inverse) - amax) <= 2 * 0x1p-24f * amax);
    }
}

TEST_CASE("a second moment above zero never becomes zero, however small beside its block") {
  for (const Format f : {Format::E4M3, Format::E5M2}) {
    const std::vector<float> values{1.0f, 1e-30f, 1e-45f, 0.0f};
    const std::vector<float> second = round_trip(f, Moment::Second, values);
    CHECK(second[1] > 0.0f);
    CHECK(second[2] > 0.0f);
    CHECK(second[3] == 0.0f);  // zero stays zero
    // Negative control: without the floor they vanish.
    CHECK(round_trip(f, Moment::First, values)[1] == 0.0f);
    // Also in blocks so small that the exact scale overflows.
    for (const float tiny : {1e-45f, 1e-40f, 1e-36f}) {
      const std::vector<float> back = round_trip(f, Moment::Second, {tiny, tiny / 2});
      CHECK(back[0] > 0.0f);
      CHECK(std::isfinite(back[0]));
    }
  }
}

TEST_CASE("blocks of zeros stay zeros; broken values keep the scale usable") {
  for (const Format f : {Format::E4M3, Format::E5M2}) {
    CHECK(round_trip(f, Moment::Second, {0.0f, 0.0f}) == std::vector<float>{0.0f, 0.0f});
    for (const float amax :
         {0.0f, std::numeric_limits<float>::infinity(), std::numeric_limits<float>::quiet_NaN()}) {
      CHECK(moment_scale(f, amax).scale == 1.0f);
      CHECK(moment_scale(f, amax).inverse == 1.0f);
    }
    for (const float amax : {1e-45f, 1e-36f, 1.0f, 3.4e38f}) {
      CHECK(std::isnormal(moment_scale(f, amax).scale));
      CHECK(std::isnormal(moment_scale(f, amax).inverse));
    }
  }
}

TEST_CASE("storing what was just read changes nothing: codes are stable") {
  for (const Format f : {Format::E4M3, Format::E5M2}) {
    const std::vector<float> once = round_trip(f, Moment::Second, gaussian(128, 1.0f, 3));
    const std::vector<float> twice = round_trip(f, Moment::Second, once);
    for (size_t i = 0; i < once.size(); ++i)
      CHECK(std::abs(twice[i] - once[i]) <=
            4 * 0x1p-24f * std::abs(once[i]));  // the scales' FP32 rounding only
  }
}

// ---- calibration (O4)
// --------------------------------------------------------------------------------------
//
// 4096 parameters whose gradients have log-normal sizes (sigma 1.5) and shrink tenfold half way; Adam with
// beta 0.9 and 0.95, moments stored after every step, updates from what is stored. E4M3 for m throughout.

namespace {

// How v is stored; FP32 leaves m alone too: the reference.
enum class VScale { FP32, Exact, PowerOfTwo, Block128 };
enum class Floor { No, Yes };

struct Variant {
  Format format;
  VScale scale;
  Floor floor;
  std::vector<float> m, v;  // as decoded from storage

  void store(std::span<float> moment, Format f, Moment which) const {
    std::vector<uint8_t> codes(moment.size());
    if (which == Moment::Second && scale == VScale::PowerOfTwo) {
      float amax = 0;
      for (const float x : moment) amax = max_magnitude(amax, x);
      const float s = power_of_two_scale(amax, max_of(f));
      for (float& x : moment) x = decode(f, encode(f, x * s)) / s;
      return;
    }
    const Moment rule = which == Moment::Second && floor == Floor::Yes ? Moment::Second : Moment::First;
    const float inverse = encode_moment_block(f, rule, moment, codes.data());
    decode_moment_block(f, codes, inverse, moment.data());
  }
  void step(const std::vector<float>& gradient) {
    for (size_t i = 0; i < m.size(); ++i) {
      m[i] = 0.9f * m[i] + 0.1f * gradient[i];
      v[i] = 0.95f * v[i] + 0.05f * gradient[i] * gradient[i];
    }
    if (scale == VScale::FP32) return;
    store(m, Format::E4M3, Moment::First);
    const size_t block = scale == VScale::Block128 ? 128 : v.size();
    for (size_t begin = 0; begin < v.size(); begin += block)
      store(std::span(v).subspan(begin, block), format, Moment::Second);
  }
};

struct Outcome {
  double relative_error, max_ratio, log_ratio;  // of the updates, of the largest update, mean log2(v_q / v)
};

std::vector<Outcome> calibrate(std::vector<Variant> variants) {
  constexpr size_t parameters = 4096;
  constexpr int steps = 4000;
  std::vector<float> size(parameters), gradient(parameters);
  for (size_t i = 0; i < parameters; ++i)
    size[i] = 1e-3f * static_cast<float>(std::exp(1.5 * random_normal(1, i)));
  Variant reference{Format::FP32, VScale::FP32, Floor::No, {}, {}};
  reference.m.assign(parameters, 0), reference.v.assign(parameters, 0);
  for (Variant& variant : variants) variant.m.assign(parameters, 0), variant.v.assign(parameters, 0);
  std::vector<double> largest(variants.size(), 0);
  double reference_largest = 0;
  // Without the bias corrections: at t = 4000 both are 1 to FP32 precision.
  const auto update = [](const Variant& x, size_t i) { return x.m[i] / (std::sqrt(x.v[i]) + 1e-8); };
  for (int t = 1; t <= steps; ++t) {
    const float shrink = t > steps / 2 ? 0.1f : 1.0f;
    for (size_t i = 0; i < parameters; ++i) {
      const uint64_t draw = static_cast<uint64_t>(t) * parameters + i;
      gradient[i] = shrink * size[i] * static_cast<float>(random_normal(2, draw));
    }
    reference.step(gradient);
    for (Variant& variant : variants) variant.step(gradient);
  }
  std::vector<Outcome> outcomes;
  for (size_t i = 0; i < parameters; ++i)
    reference_largest = std::max(reference_largest, std::abs(update(reference, i)));
  for (const Variant& variant : variants) {
    double difference = 0, norm = 0, max = 0, logs = 0;
    int counted = 0;
    for (size_t i = 0; i < parameters; ++i) {
      const double u = update(variant, i), r = update(reference, i);
      difference += (u - r) * (u - r);
      norm += r * r;
      max = std::max(max, std::abs(u));
      if (variant.v[i] > 0) logs += std::log2(variant.v[i] / reference.v[i]), ++counted;
    }
    outcomes.push_back({std::sqrt(difference / norm), max / reference_largest, logs / counted});
  }
  return outcomes;
}

}  // namespace

TEST_CASE("FP8 moments with exact scales and a floor give Adam's updates; the alternatives do not") {
  const std::vector<Outcome> outcomes = calibrate({
      {Format::E5M2, VScale::Exact, Floor::Yes, {}, {}},
      {Format::E5M2, VScale::Block128, Floor::Yes, {}, {}},
      {Format::E4M3, VScale::Exact, Floor::No, {}, {}},
      {Format::E5M2, VScale::PowerOfTwo, Floor::No, {}, {}},
  });
  for (int house = 0; house < 2; ++house) {
    CHECK(outcomes[house].relative_error <= 0.15);
    CHECK(outcomes[house].max_ratio <= 2.0);
    CHECK(std::abs(outcomes[house].log_ratio) < 0.5);
  }
  // Negative controls: v in E4M3 without a floor explodes; power-of-two scales let v rise and never decay.
  CHECK(outcomes[2].relative_error > 10.0);
  CHECK(outcomes[3].log_ratio > 4.0);
}
