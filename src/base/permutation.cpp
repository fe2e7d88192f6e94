#include "base/permutation.h"

#include <fmt/format.h>

#include <bit>

#include "base/error.h"
#include "base/random.h"

namespace octet {
namespace {

// A Feistel network is a bijection of [0, 2^(2 * half)) whatever its round function is. Philox as the round
// function and ten rounds leave no structure that a statistical test would see.
struct Feistel {
  uint64_t key;
  int half;  // bits of one half, 4..32
  uint64_t operator()(uint64_t x) const {
    const uint64_t mask = (uint64_t{1} << half) - 1;
    uint64_t left = x >> half, right = x & mask;
    for (uint64_t round = 0; round < 10; ++round) {
      const uint64_t mixed = left ^ (philox(key, right, round).x & mask);
      left = right;
      right = mixed;
    }
    return left << half | right;
  }
};

}  // namespace

uint64_t permute(uint64_t key, uint64_t size, uint64_t index) {
  if (index >= size)
    throw Error(ExitCode::Internal, fmt::format("permute: index {} is not below size {}", index, size));
  // At least 256 values, so that small sizes get well-mixed permutations too.
  const auto bits = static_cast<int>(std::bit_width(size - 1));
  const Feistel feistel{key, bits <= 8 ? 4 : (bits + 1) / 2};
  // Cycle walking: follow the permutation of the larger set until it returns to [0, size). The cycle of
  // `index` itself guarantees an end; on average it takes 2^(2 half) / size steps (< 4 above 64 values).
  uint64_t image = index;
  do {
    image = feistel(image);
  } while (image >= size);
  return image;
}

}  // namespace octet
