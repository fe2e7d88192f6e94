// Transposing a tile of bytes: four rows at a time in registers, then through shared memory.
#pragma once
#include <cstdint>

#include "kernels/gpu.h"

OCTET_KERNELS_BEGIN

inline constexpr int byte_tile_rows = 128, byte_tile_words = byte_tile_rows / 4;

// Word w of a column holds the codes of rows 4 w .. 4 w + 3. Quadruples of words are permuted by the column's
// group, eight of which lie beside each other: the words that a warp writes at once (4 neighbouring w, 8
// groups of `group_columns`) lie in 32 banks, and 16-byte reads stay whole.
template <int group_columns>
__device__ __forceinline__ int byte_tile_word(int column, int w) {
  return column * byte_tile_words + ((w / 4 ^ (column / group_columns & 7)) * 4 + w % 4);
}

// words[j] = byte j of each of the rows, the first row lowest.
__device__ __forceinline__ void transpose4(uint32_t a, uint32_t b, uint32_t c, uint32_t d,
                                           uint32_t (&words)[4]) {
  const uint32_t ab_low = __byte_perm(a, b, 0x5140), ab_high = __byte_perm(a, b, 0x7362);
  const uint32_t cd_low = __byte_perm(c, d, 0x5140), cd_high = __byte_perm(c, d, 0x7362);
  words[0] = __byte_perm(ab_low, cd_low, 0x5410);
  words[1] = __byte_perm(ab_low, cd_low, 0x7632);
  words[2] = __byte_perm(ab_high, cd_high, 0x5410);
  words[3] = __byte_perm(ab_high, cd_high, 0x7632);
}

OCTET_KERNELS_END
