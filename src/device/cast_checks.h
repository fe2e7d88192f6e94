// What both devices require of parts of tensors and of transposed codes; Error(Internal) otherwise.
#pragma once
#include "device/device.h"

namespace octet {

void check_part(const CastOperation& op);  // nothing to say where the source is the whole
void check(const MeasureAmax& op);
void check(const TransposeCodes& op);

}  // namespace octet
