#include "base/median.h"

#include <cmath>

#include "catch.h"

using namespace octet;

TEST_CASE("a median is the middle value, or the mean of two, and of nothing it is no number") {
  CHECK(median({5, 1, 3}) == 3);
  CHECK(median({4, 1, 3, 2}) == 2.5);
  CHECK(median({7}) == 7);
  CHECK(median({1e9, 1, 2}) == 2);  // a mean would not be
  CHECK(std::isnan(median({})));
}
