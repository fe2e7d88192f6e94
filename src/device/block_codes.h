// What both devices require of gradients on the wire.
#pragma once
#include "device/device.h"

namespace octet {

// Types, shapes and alignment; Error(Internal) otherwise.
void check(const EncodeBlocks& op);
void check(const DecodeBlocks& op);

}  // namespace octet
