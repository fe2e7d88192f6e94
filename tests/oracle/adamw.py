"""AdamW with decoupled decay (Loshchilov & Hutter 1711.05101) in the form of Fishman et al. 2409.12517's released code:

  g = scale * gradient;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
  w = (1 - lr decay) w - lr sqrt(1 - b2^t) / (1 - b1^t) m / (sqrt(v) + epsilon)

The hyperparameters are the nearest float32, as a program that keeps them in FP32 sees them. Two references: float64 throughout,
and float32 arithmetic with moments kept as codes (m E4M3, v E5M2) with an exact scale max / amax per block; a positive v never
becomes zero.
"""
import numpy as np

import formats

BETA1, BETA2, EPSILON = (float(np.float32(x)) for x in (0.9, 0.95, 1e-8))


def learning_rate(t):
    return float(np.float32(1e-2 * (1 - t / 40)))


def gradient_scale(t):
    return (1.0, 0.5, 0.25)[t % 3]


def float64_steps(w, gradients, decay):
    """Yields (w, m, v) after every step."""
    decay = float(np.float32(decay))
    w, m, v = w.astype(np.float64), np.zeros(w.shape), np.zeros(w.shape)
    for t, gradient in enumerate(gradients, start=1):
        g, lr = gradient_scale(t) * gradient.astype(np.float64), learning_rate(t)
        m = BETA1 * m + (1 - BETA1) * g
        v = BETA2 * v + (1 - BETA2) * g * g
        w = (1 - lr * decay) * w - lr * np.sqrt(1 - BETA2**t) / (1 - BETA1**t) * m / (np.sqrt(v) + EPSILON)
        yield w, m, v


def store_moment(x, fmt, block):
    """codes, decoded float32 values, inverse scales, and how close the nearest tie of rounding was (relative)."""
    flat = x.ravel()
    assert flat.dtype == np.float32
    codes, decoded, inverses, margin = np.empty(flat.size, np.uint8), np.empty_like(flat), [], np.inf
    for begin in range(0, flat.size, block):
        part = slice(begin, begin + block)
        amax = np.max(np.abs(flat[part]))
        scale = np.float32(fmt.maximum) / amax if amax > 0 else np.float32(1)
        inverse = np.float32(1) / scale
        scaled = (flat[part] * scale).astype(np.float64)
        code = formats.encode(fmt, scaled)
        if fmt is formats.E5M2:
            code = np.where((flat[part] > 0) & (code == 0), 1, code).astype(np.uint8)
        value = formats.round_to(fmt, scaled)
        value = np.where((code == 1) & (value == 0), 2.0**-16, value)
        codes[part], decoded[part] = code, value.astype(np.float32) * inverse
        inverses.append(inverse)
        # A tie is half a step from a value: other correct orders of the same float32 operations move `scaled` a few ulps only.
        up = formats.round_to(fmt, scaled * (1 + 16 * 2.0**-24))
        down = formats.round_to(fmt, scaled * (1 - 16 * 2.0**-24))
        if not np.array_equal(up, down):
            margin = 0
    return codes, decoded.reshape(x.shape), np.array(inverses, np.float32), margin


def float8_steps(w, gradients, decay, block):
    """Yields (w, codes of m, inverse scales of m, codes of v, inverse scales of v, margin) after every step."""
    one, b1, b2, epsilon = (np.float32(x) for x in (1, BETA1, BETA2, EPSILON))
    decay = np.float32(decay)
    w, m, v = w.astype(np.float32), np.zeros(w.shape, np.float32), np.zeros(w.shape, np.float32)
    for t, gradient in enumerate(gradients, start=1):
        lr = np.float32(learning_rate(t))
        g = np.float32(gradient_scale(t)) * gradient
        m = b1 * m + (one - b1) * g
        v = b2 * v + (one - b2) * (g * g)
        rate = np.float32(learning_rate(t) * np.sqrt(1 - BETA2**t) / (1 - BETA1**t))
        w = (one - lr * decay) * w - rate * m / (np.sqrt(v) + epsilon)
        assert w.dtype == np.float32 and m.dtype == np.float32 and v.dtype == np.float32
        m_codes, m, m_inverse, m_margin = store_moment(m, formats.E4M3, block)
        v_codes, v, v_inverse, v_margin = store_moment(v, formats.E5M2, block)
        yield w, m_codes, m_inverse, v_codes, v_inverse, min(m_margin, v_margin)
