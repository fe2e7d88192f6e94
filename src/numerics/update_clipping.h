// How large an update is for its tensor, and what is made of it.  [StableAdamW, 2304.13013, 3.2 and algorithm
// 2]
#pragma once
#include "base/platform.h"

namespace octet {

// A gradient's square beside what Adam expects it to be: v of this step, without its bias (times `correction`
// = 1 / (1 - b2^t)), or epsilon^2 (`least`) where that is larger. 1 on average while v follows; far above 1
// when v still knows only much smaller gradients.
OCTET_HD float update_square(float g, float v, float correction, float least) {
  const float corrected = v * correction;
  return (g * g) / (corrected > least ? corrected : least);
}

// What the learning rate of a tensor with this root mean square is multiplied by.
OCTET_HD float update_clip(float rms) { return rms > 1.0f ? 1.0f / rms : 1.0f; }

}  // namespace octet
