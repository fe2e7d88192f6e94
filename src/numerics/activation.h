// The activations of a feed-forward network, element by element, and their derivatives: FP32 arithmetic that
// every device shares, so that results agree to the bit.
//
//   swiglu   h = silu(gate) * up, two inputs (device/cpu/swiglu.cpp)                 [Shazeer 2002.05202]
//   gelu     h = x Phi(x), Phi by the error function, not by tanh: this is what PyTorch's GELU computes
//   unless
//            told otherwise, which the networks we follow use; the tanh form is up to 5e-4 off and no cheaper
//   relu2    h = max(x, 0)^2                                                         [So et al. 2109.08668]
//   xielu    h = a x^2 + b x                    x > 0
//            h = c (e^x - 1 - x) + b x          x <= 0                               [Huang & Schlag
//            2411.13010] b = 0.5, a = softplus(p), c = b + softplus(n); p and n are trained
//
// The released xIELU clamps the exponent at -1e-6 because e^x - 1 - x loses its digits there. Ours does not
// (expm1_and_rest), so the function needs no clamp: value 0 and slope b at 0 from both sides. Between -1e-6
// and 0 the two differ by less than 1e-6 c.
#pragma once
#include <cstdint>

#include "base/platform.h"
#include "numerics/elementary.h"

namespace octet {

enum class Activation : uint8_t { SwiGLU, GELU, ReLU2, XIELU };

constexpr bool is_gated(Activation a) { return a == Activation::SwiGLU; }

inline constexpr float xielu_beta = 0.5f;
inline constexpr double xielu_initial_alpha = 0.8;  // of a and c

struct Xielu {
  float positive = 0, negative = 0;  // a and c
};
OCTET_HD Xielu xielu_of(float p, float n) { return {vector_softplus(p), xielu_beta + vector_softplus(n)}; }
// d a / d p and d c / d n.
OCTET_HD float xielu_chain(float parameter) { return vector_sigmoid(parameter); }

// Not gated ones only.
template <Activation activation>
OCTET_HD float activate(float x, Xielu by) {
  if constexpr (activation == Activation::GELU) {
    return x * vector_normal(x).cumulative;
  } else if constexpr (activation == Activation::ReLU2) {
    const float kept = x < 0.0f ? 0.0f : x;
    return kept * kept;
  } else {
    static_assert(activation == Activation::XIELU, "a gated activation has two inputs");
    const float curved = x > 0.0f ? by.positive * (x * x) : by.negative * expm1_and_rest(x).rest;
    return curved + xielu_beta * x;
  }
}

// dh/dx, and for xIELU dh/da and dh/dc.
struct ActivationSlopes {
  float x, positive, negative;
};
template <Activation activation>
OCTET_HD ActivationSlopes activation_slopes(float x, Xielu by) {
  if constexpr (activation == Activation::GELU) {
    const NormalDistribution normal = vector_normal(x);
    return {normal.cumulative + x * (0.398942280401432678f * normal.bell), 0.0f, 0.0f};
  } else if constexpr (activation == Activation::ReLU2) {
    return {x < 0.0f ? 0.0f : 2.0f * x, 0.0f, 0.0f};
  } else {
    static_assert(activation == Activation::XIELU, "a gated activation has two inputs");
    const Expm1 e = expm1_and_rest(x);
    const bool right = x > 0.0f;
    return {(right ? 2.0f * by.positive * x : by.negative * e.expm1) + xielu_beta, right ? x * x : 0.0f,
            right ? 0.0f : e.rest};
  }
}

}  // namespace octet
