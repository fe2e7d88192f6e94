// What a device needs of an AdamWUpdate beside its tensors.
#pragma once
#include "device/device.h"

namespace octet {

// Shapes of moments and scales; Error(Internal) otherwise.
void check(const AdamWUpdate& update);

// w = w - (decay * w + rate * (m / (sqrt(v) + epsilon))): computed in FP64, rounded once.
struct AdamWRates {
  float decay;  // lr * weight_decay
  float rate;   // lr * sqrt(1 - beta2^t) / (1 - beta1^t)
};
AdamWRates adamw_rates(const AdamWUpdate& update);

// update_square() of numerics/update_clipping.h: 1 / (1 - beta2^t) and epsilon^2, each rounded once.
struct UpdateSquareRates {
  float correction, least;
};
UpdateSquareRates update_square_rates(const UpdateSquares& update);

}  // namespace octet
