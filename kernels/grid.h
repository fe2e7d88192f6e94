// Grids of kernels that walk over their data.
#pragma once
#include <cstdint>

#include "kernels/gpu.h"

OCTET_KERNELS_BEGIN

// Blocks for `items`, `items_per_block` each, but no more than keep the device busy: the kernel strides by
// the grid.
inline unsigned walking_grid(int64_t items, int64_t items_per_block, int64_t blocks_per_processor = 8) {
  const int64_t blocks = (items + items_per_block - 1) / items_per_block,
                enough = blocks_per_processor * static_cast<int64_t>(gpu::processors());
  return static_cast<unsigned>(blocks < enough ? blocks : enough);
}

OCTET_KERNELS_END
