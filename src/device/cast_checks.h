// What both devices require of parts of tensors and of transposed codes; Error(Internal) otherwise.
#pragma once
#include "device/device.h"

namespace octet {

void check_part(const CastOperation& op);  // nothing to say where the source is the whole
// SmoothQuant: one set of scales, of columns, and a maximum of the weight's column for each. Nothing to say
// without.
void check_channels(const CastTarget& target, int64_t columns);
void check(const MeasureAmax& op);
void check(const TransposeCodes& op);

}  // namespace octet
