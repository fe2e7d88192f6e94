// A keyed permutation of [0, size) computed on the fly: a balanced Feistel network with cycle walking.
#pragma once
#include <cstdint>

namespace octet {
// The image of `index` under the permutation named by `key`; a bijection of [0, size) for every key. size
// >= 1.
uint64_t permute(uint64_t key, uint64_t size, uint64_t index);
}  // namespace octet
