#include "numerics/sharpness.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "base/random.h"
#include "catch.h"

using namespace octet;

namespace {

using Values = std::vector<float>;

Values normal_values(size_t n, uint64_t key, double deviation) {
  Values values(n);
  for (size_t i = 0; i < n; ++i)
    values[i] = static_cast<float>(deviation * random_normal(random_key(key, Purpose::Test), i));
  return values;
}

double loss_of(const std::vector<double>& y, size_t target) {
  const double m = *std::max_element(y.begin(), y.end());
  double sum = 0;
  for (const double value : y) sum += std::exp(value - m);
  return std::log(sum) + (m - y[target]);
}

struct Logits {
  Values values;
  size_t target;
  float epsilon;
  std::vector<double> exact() const { return {values.begin(), values.end()}; }
  double reach(size_t i) const {
    return static_cast<double>(epsilon) * (std::abs(static_cast<double>(values[i])) + 1);
  }
  // phi at y + z.
  double sharpness_at(const std::vector<double>& moved) const {
    const double loss = loss_of(exact(), target);
    return 100 * (loss_of(moved, target) - loss) / (1 + loss);
  }
};

double found_of(const Logits& logits) {
  return logit_sharpness(logits.values.data(), static_cast<int64_t>(logits.values.size()),
                         static_cast<int64_t>(logits.target), static_cast<double>(logits.epsilon));
}

// Projected gradient ascent from y, with steps of a tenth of each logit's reach along the sign of the
// gradient and then along the gradient itself: it ends where the box ends.
double by_ascent(const Logits& logits) {
  const size_t n = logits.values.size();
  const std::vector<double> y = logits.exact();
  std::vector<double> z = y;
  for (int step = 0; step < 200; ++step) {
    const double m = *std::max_element(z.begin(), z.end());
    double sum = 0;
    for (const double value : z) sum += std::exp(value - m);
    for (size_t i = 0; i < n; ++i) {
      const double gradient = std::exp(z[i] - m) / sum - (i == logits.target ? 1 : 0);
      const double move = step < 100 ? (gradient > 0 ? 1 : -1) * 0.1 * logits.reach(i) : gradient;
      z[i] = std::clamp(z[i] + move, y[i] - logits.reach(i), y[i] + logits.reach(i));
    }
  }
  return logits.sharpness_at(z);
}

}  // namespace

TEST_CASE("sharpness is the maximum over the box: no random point and no ascent is above it") {
  const double deviation = GENERATE(0.1, 3.0, 30.0);
  const size_t n = GENERATE(size_t{2}, size_t{257}, size_t{3000});
  const float epsilon = GENERATE(5e-4f, 1e-3f, 0.05f);
  Logits logits{normal_values(n, 11, deviation), n / 3, epsilon};
  const double found = found_of(logits);
  CHECK(found >= 0);
  CHECK(found >= by_ascent(logits) - 1e-9);
  double highest = 0;
  for (uint64_t trial = 0; trial < 220; ++trial) {
    std::vector<double> moved = logits.exact();
    for (size_t i = 0; i < n; ++i) {
      const double draw = random_bits(random_key(trial, Purpose::Test), i) * 0x1p-31 - 1;
      // Half of them are corners: the random interior of a box in many dimensions is nowhere near its edge.
      moved[i] += logits.reach(i) * (trial % 2 == 0 ? draw : draw > 0 ? 1 : -1);
    }
    highest = std::max(highest, logits.sharpness_at(moved));
  }
  CHECK(found >= highest - 1e-9);
  // The control: a smaller box has a smaller maximum, below which some of those points would not stay.
  logits.epsilon = epsilon / 16;
  if (found > 1e-6) CHECK(found_of(logits) < highest);  // a sure model has none to begin with
}

TEST_CASE("sharpness grows with epsilon, about in proportion while that is small") {
  Logits logits{normal_values(1000, 5, 3.0), 7, 5e-4f};
  const double one = found_of(logits);
  logits.epsilon = 1e-3f;
  const double two = found_of(logits);
  CHECK(two > one);
  // L is convex along the way to the corner, with slopes between those of its ends: second derivatives are at
  // most the square of the largest move, 2 * 1e-3 * (12 + 1).
  CHECK(two / one == Approx(2).epsilon(0.03));
}

TEST_CASE("sharpness is finite and exact for logits of 1e4 of either sign, and none for a sure model") {
  for (const float scale : {1e4f, -1e4f}) {
    Logits logits{normal_values(500, 3, 1.0), 9, 5e-4f};
    for (float& value : logits.values) value = scale + value;
    const double found = found_of(logits);
    CHECK(std::isfinite(found));
    std::vector<double> corner = logits.exact();
    for (size_t i = 0; i < corner.size(); ++i) corner[i] += (i == 9 ? -1 : 1) * logits.reach(i);
    CHECK(found == Approx(logits.sharpness_at(corner)).epsilon(1e-9));
    // All logits move by about 5, the target's down: the loss grows by about 10.
    CHECK(found * (1 + loss_of(logits.exact(), 9)) / 100 == Approx(10).margin(0.1));
  }
  Logits sure{Values(100, -1e4f), 4, 5e-4f};
  sure.values[4] = 1e4f;
  CHECK(found_of(sure) == 0);
  sure.values[50] = NAN;
  CHECK(std::isnan(found_of(sure)));
}
