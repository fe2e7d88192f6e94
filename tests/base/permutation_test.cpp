#include "base/permutation.h"

#include <cmath>
#include <unordered_set>
#include <vector>

#include "base/error.h"
#include "catch.h"

using namespace octet;

TEST_CASE("permute is a bijection of every small size for several keys") {
  for (const uint64_t key : {uint64_t{0}, uint64_t{1}, uint64_t{0x123456789abcdef0}}) {
    for (uint64_t size = 1; size <= 300; ++size) {
      std::vector<char> hit(size, 0);
      for (uint64_t i = 0; i < size; ++i) {
        const uint64_t image = permute(key, size, i);
        REQUIRE(image < size);
        REQUIRE_FALSE(hit[image]);
        hit[image] = 1;
      }
    }
  }
}

TEST_CASE("permute of sizes around powers of two stays in range and never repeats") {
  for (const uint64_t size :
       {uint64_t{1} << 16, (uint64_t{1} << 17) + 1, uint64_t{1} << 33, (uint64_t{1} << 40) - 1, UINT64_MAX}) {
    std::unordered_set<uint64_t> images;
    const uint64_t count = 20000;
    for (uint64_t i = 0; i < count; ++i) {
      // Both ends and a stride through the middle: 20,000 different indices.
      const uint64_t index = i % 2 ? size - 1 - i / 2 : i / 2;
      const uint64_t image = permute(7, size, index);
      REQUIRE(image < size);
      REQUIRE(images.insert(image).second);
    }
  }
}

TEST_CASE("permute refuses an index outside of the size") {
  CHECK_THROWS_AS(permute(1, 0, 0), Error);
  CHECK_THROWS_AS(permute(1, 10, 10), Error);
}

TEST_CASE("every image is equally likely over keys") {
  // Pearson's chi-square over the full table (index, image). Each of the 8 indices has 7 degrees of freedom;
  // a fair permutation gives 56 +- sqrt(2 * 56) in all. Six deviations: false alarms once in 10^9.
  constexpr uint64_t size = 8, keys = 8000;
  std::vector<double> counts(size * size, 0.0);
  for (uint64_t key = 0; key < keys; ++key)
    for (uint64_t i = 0; i < size; ++i) ++counts[i * size + permute(key, size, i)];
  const double expected = static_cast<double>(keys) / size;
  double chi_square = 0;
  for (const double c : counts) chi_square += (c - expected) * (c - expected) / expected;
  CHECK(std::abs(chi_square - 56.0) < 6.0 * std::sqrt(112.0));
}

TEST_CASE("different keys give unrelated orders, the same key the same order") {
  // Two random permutations agree at k places with probability about exp(-1) / k!: never at 20 of 1000.
  int same = 0, fixed = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    same += permute(1, 1000, i) == permute(2, 1000, i);
    fixed += permute(1, 1000, i) == i;
    CHECK(permute(1, 1000, i) == permute(1, 1000, i));
  }
  CHECK(same < 20);
  CHECK(fixed < 20);
}
