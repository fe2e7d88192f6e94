// What both devices require of activations kept as codes.
#pragma once
#include "device/device.h"

namespace octet {

// Types, shapes and alignment; Error(Internal) otherwise.
void check(const EncodeGroups& op);
void check(const DecodeGroups& op);

}  // namespace octet
