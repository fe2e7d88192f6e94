#include "training/detector.h"

#include <cmath>
#include <limits>

#include "catch.h"

using namespace octet;

TEST_CASE("the deviation is that from the median in units of 1.4826 MAD") {
  SpikeDetector detector(6, 16);
  for (double x = 1; x <= 9; ++x) detector.observe(x);  // median 5, MAD 2
  CHECK(detector.deviation(5) == 0);
  CHECK(detector.deviation(5 + 2 * 1.4826) == Approx(1).epsilon(1e-12));
  CHECK_FALSE(detector.is_spike(5 + 5.9 * 2 * 1.4826));
  CHECK(detector.is_spike(5 + 6.1 * 2 * 1.4826));
  CHECK_FALSE(detector.is_spike(-1000));  // falling is no spike
}

TEST_CASE("too few values make no spike, and a plateau does not make noise one") {
  SpikeDetector detector(6, 128);
  for (int i = 0; i < 31; ++i) detector.observe(2);
  CHECK_FALSE(detector.is_spike(100));
  detector.observe(2);
  CHECK(detector.is_spike(100));
  CHECK_FALSE(detector.is_spike(2 * (1 + 1e-6)));
}

TEST_CASE("values that are not finite never enter the window") {
  SpikeDetector detector(6, 16), clean(6, 16);
  for (int i = 0; i < 20; ++i) {
    detector.observe(i % 3);
    clean.observe(i % 3);
    detector.observe(std::nan(""));
    detector.observe(std::numeric_limits<double>::infinity());
  }
  CHECK(detector.history() == clean.history());
  CHECK(std::isinf(detector.deviation(std::nan(""))));
}

TEST_CASE("the history is the whole state") {
  SpikeDetector one(6, 16);
  for (int i = 0; i < 40; ++i) one.observe(1.0 / (i + 1));
  CHECK(one.history().size() == 16);
  SpikeDetector two(6, 16);
  two.restore(one.history());
  for (const double x : {0.01, 0.1, 1.0, 10.0}) CHECK(one.deviation(x) == two.deviation(x));
}
