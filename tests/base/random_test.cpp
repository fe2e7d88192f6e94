#include "base/random.h"

#include <cmath>
#include <set>

#include "catch.h"

using namespace octet;

TEST_CASE("philox gives the published known answers") {
  // Random123, kat_vectors, philox4x32 with 10 rounds: {counter, key, result}.
  const Random4 zero = philox(0, 0, 0);
  CHECK((zero.x == 0x6627e8d5u && zero.y == 0xe169c58du && zero.z == 0xbc57ac4cu && zero.w == 0x9b00dbd8u));
  const Random4 ones = philox(UINT64_MAX, UINT64_MAX, UINT64_MAX);
  CHECK((ones.x == 0x408f276du && ones.y == 0x41c83b0eu && ones.z == 0xa20bc7c6u && ones.w == 0x6d5451fdu));
  // counter 243f6a88 85a308d3 13198a2e 03707344, key a4093822 299f31d0: digits of pi
  const Random4 pi = philox(0x299f31d0a4093822u, 0x85a308d3243f6a88u, 0x0370734413198a2eu);
  CHECK((pi.x == 0xd16cfe09u && pi.y == 0x94fdccebu && pi.z == 0x5001e420u && pi.w == 0x24126ea1u));
}

TEST_CASE("random_bits of four neighbours are the four words of one block") {
  const Random4 block = philox(99, 5);
  CHECK(random_bits(99, 20) == block.x);
  CHECK(random_bits(99, 21) == block.y);
  CHECK(random_bits(99, 22) == block.z);
  CHECK(random_bits(99, 23) == block.w);
}

TEST_CASE("keys differ by seed, purpose and coordinates") {
  std::set<uint64_t> keys;
  int made = 0;
  for (const uint64_t seed : {0, 1})
    for (const Purpose purpose :
         {Purpose::Initialization, Purpose::StochasticRounding, Purpose::DataOrder, Purpose::Test})
      for (uint64_t a = 0; a < 8; ++a)
        for (uint64_t b = 0; b < 8; ++b, ++made) keys.insert(random_key(seed, purpose, a, b));
  CHECK(static_cast<int>(keys.size()) == made);
}

TEST_CASE("random_normal has the moments of a standard normal") {
  // Standard errors of n samples: mean 1/sqrt(n), variance sqrt(2/n), kurtosis sqrt(24/n). Four of them.
  constexpr int n = 200000;
  double sum = 0, squares = 0, fourth = 0, largest = 0;
  for (int i = 0; i < n; ++i) {
    const double z = random_normal(5, static_cast<uint64_t>(i));
    sum += z;
    squares += z * z;
    fourth += z * z * z * z;
    largest = std::max(largest, std::abs(z));
  }
  CHECK(std::abs(sum / n) < 4 / std::sqrt(static_cast<double>(n)));
  CHECK(std::abs(squares / n - 1) < 4 * std::sqrt(2.0 / n));
  CHECK(std::abs(fourth / n - 3) < 4 * std::sqrt(96.0 / n));  // variance of z^4 is 96
  CHECK(largest < 6.77);                                      // sqrt(-2 log 2^-33)
}
