// Muon: what its operations and its iteration share.  [Jordan et al. 2024, "Muon: An optimizer for hidden
// layers in neural networks", kellerjordan.github.io/posts/muon, and github.com/KellerJordan/Muon]
#pragma once
#include <cmath>

#include "base/platform.h"

namespace octet {

// Newton-Schulz: X = a X + (b A + c A A) X with A = X X^T takes a singular value s to a s + b s^3 + c s^5.
struct NewtonSchulz {
  static constexpr float a = 3.4445f, b = -4.7750f, c = 2.0315f;
};

// What a matrix with this sum of squares is multiplied by before: its Frobenius norm, hence its largest
// singular value, becomes 1 at most. FP64 to FP32 once.
OCTET_HD float muon_factor(double squares) { return 1.0f / (static_cast<float>(sqrt(squares)) + 1e-7f); }

// lr * weight_decay, in FP64 and rounded once.
inline float muon_decay(float learning_rate, float weight_decay) {
  return static_cast<float>(static_cast<double>(learning_rate) * static_cast<double>(weight_decay));
}

// How far a matrix of `rows` x `columns` goes along its direction, so that the root mean square of its update
// is that of AdamW's, about 0.2 (orthogonal: 1 / sqrt(max(rows, columns))).  [Liu et al. 2502.16982, eq. 4]
inline float muon_scale(double rows, double columns) {
  return static_cast<float>(0.2 * std::sqrt(rows > columns ? rows : columns));
}

}  // namespace octet
