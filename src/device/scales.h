// Where the inverse scales of codes are, whatever their granularity.
#pragma once
#include "device/operations.h"
#include "numerics/block_scales.h"

namespace octet {

// The tensor of them for codes [outer, inner].
Shape scale_shape(ScaleGranularity granularity, int64_t outer, int64_t inner);
// Of an operand's codes, which are never transposed.
InverseScales inverse_scales(const Operand& codes);

// Of the two copies of a cast's source [rows, columns], each in coordinates of the source. Without values: it
// is the site's scale. One set of scales serves both copies where there is only one (Smooth-SwiGLU `token`,
// `channel`).
struct CastScales {
  InverseScales row, column;
};
CastScales cast_scales(const CastTarget& target, int64_t rows, int64_t columns);
// SmoothQuant: the scales of the columns follow from the weight's too.
inline bool smooths(const CastTarget& target) { return !target.channel_weight_amax.empty(); }
// Each copy has scales of its own: the column copy is not the transpose of the row copy's codes.
bool copies_differ(const CastTarget& target);
// Scales of blocks: which each copy has, and no more beside them. Error(Internal) otherwise.
bool in_blocks(const CastTarget& target);
void check_blocks(const CastTarget& target, int64_t rows, int64_t columns);

}  // namespace octet
