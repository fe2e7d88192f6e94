#include "numerics/block_codes.h"

#include <cmath>
#include <limits>

#include "catch.h"

using namespace octet;

TEST_CASE("a block's scale puts its largest value above max / 2, not above max, mu moves it by binades") {
  for (float amax = 0x1p-149f; amax < 0x1p127f; amax *= 1.37f) {
    if (amax <= e4m3_max * 0x1p-126f) {  // beyond the largest scale
      CHECK(block_scale(amax, 0).scale == 0x1p126f);
      amax *= 2;
      continue;
    }
    const float scaled = amax * block_scale(amax, 0).scale;
    CHECK(scaled > e4m3_max / 2);
    CHECK(scaled <= e4m3_max);
    if (amax < 0x1p100f && amax > 0x1p-100f) {
      CHECK(block_scale(amax, 3).scale == 8 * block_scale(amax, 0).scale);
      CHECK(block_scale(amax, -5).scale == block_scale(amax, 0).scale / 32);
    }
  }
  CHECK(block_scale(0.0f, 0).scale == 1.0f);
}

TEST_CASE("the inverse scale on the wire undoes the scale exactly, at the ends of its range too") {
  for (float amax = 0x1p-149f; amax < std::numeric_limits<float>::infinity(); amax *= 1.9f) {
    if (amax < 0x1p-148f) amax *= 2;
    for (const int log2_mu : {-300, -7, 0, 1, 300}) {
      const BlockScale scale = block_scale(amax, log2_mu);
      CHECK(scale.inverse >= 1);
      CHECK(scale.inverse <= 253);
      CHECK(scale.scale * e8m0_value(scale.inverse) == 1.0f);
    }
  }
  CHECK(e8m0_value(127) == 1.0f);  // OCP Microscaling Formats 1.0, 5.4.1
  CHECK(e8m0_value(0) == 0x1p-127f);
  CHECK(e8m0_value(254) == 0x1p127f);
  CHECK(std::isnan(e8m0_value(255)));
}

TEST_CASE("a block with a value that is not finite has a NaN for a scale, the largest finite one has not") {
  CHECK(block_scale(INFINITY, 0).inverse == e8m0_nan);
  CHECK(block_scale(NAN, 0).inverse == e8m0_nan);
  CHECK(block_scale(std::numeric_limits<float>::max(), 0).inverse != e8m0_nan);
}

TEST_CASE("messages are whole 16-byte words with room for every code and scale, and cost 1 % beyond a byte") {
  for (const int64_t n : {1, 15, 16, 17, 255, 256, 257, 4096, 100000}) {
    CHECK(coded_bytes(n) % 16 == 0);
    CHECK(message_bytes(n) % 16 == 0);
    CHECK(coded_bytes(n) >= n);
    CHECK(message_bytes(n) - coded_bytes(n) >= (n + 255) / 256);
    if (n >= 4096) CHECK(static_cast<double>(message_bytes(n)) <= 1.01 * static_cast<double>(n));
  }
}
