// Transposing bytes, sixteen by sixteen in registers.
#pragma once
#include <cstdint>
#include <cstring>

namespace octet {

struct ByteMatrix {
  const uint8_t* data;
  int64_t stride, rows, columns;
};

// to[c * to_stride + r] = from[r * stride + c].
inline void transpose_bytes(const ByteMatrix& from, uint8_t* to, int64_t to_stride) {
  using Bytes = uint8_t __attribute__((vector_size(16)));
  constexpr Bytes low = {0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23};
  constexpr Bytes high = {8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31};
  const int64_t full_rows = from.rows / 16 * 16, full_columns = from.columns / 16 * 16;
  for (int64_t c = 0; c < full_columns; c += 16) {
    for (int64_t r = 0; r < full_rows; r += 16) {
      Bytes a[16], b[16];
      for (int i = 0; i < 16; ++i) memcpy(&a[i], from.data + (r + i) * from.stride + c, 16);
      // A perfect shuffle of the 256 bytes, four times: each moves one bit of the row number to the column
      // number.
      for (int round = 0; round < 4; ++round) {
        for (int i = 0; i < 8; ++i) {
          b[2 * i] = __builtin_shuffle(a[i], a[i + 8], low);
          b[2 * i + 1] = __builtin_shuffle(a[i], a[i + 8], high);
        }
        memcpy(a, b, sizeof a);
      }
      for (int i = 0; i < 16; ++i) memcpy(to + (c + i) * to_stride + r, &a[i], 16);
    }
  }
  const auto rest = [&](int64_t r0, int64_t c0, int64_t c1) {
    for (int64_t c = c0; c < c1; ++c) {
      for (int64_t r = r0; r < from.rows; ++r) to[c * to_stride + r] = from.data[r * from.stride + c];
    }
  };
  rest(full_rows, 0, full_columns);
  rest(0, full_columns, from.columns);
}

}  // namespace octet
