// Which scales the FP8 copies of h = SwiGLU(gate, up) get.  [Fishman et al. 2409.12517, Eq. 3;
// docs/numerics.md, "Smooth-SwiGLU"]
#pragma once
#include "device/device.h"

namespace octet {

// The target with exactly the finer scales that `mode` asks for; Error(Internal) when one is missing. Scales
// of blocks and SmoothQuant's stay as they are.
CastTarget smooth_swiglu_target(CastTarget out, SmoothSwiGLU mode);

}  // namespace octet
