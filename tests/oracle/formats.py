"""BF16, E4M3 and E5M2 as arithmetic on float64: nothing here knows how any other program stores them.

A binary format with p significand bits after the point, smallest normal exponent e_min and largest finite value M rounds
x to the nearest multiple of 2^(max(floor(log2|x|), e_min) - p), ties to even, and saturates at M (OCP OFP8 1.0, Micikevicius
et al. 2209.05433). BF16 does not saturate, but nothing in the fixtures comes near its end.
"""
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Format:
    name: str
    fraction_bits: int
    exponent_bits: int
    bias: int
    maximum: float

    @property
    def smallest_normal_exponent(self):
        return 1 - self.bias


BF16 = Format("BF16", 7, 8, 127, float(2.0**127 * (2 - 2.0**-7)))
E4M3 = Format("E4M3", 3, 4, 7, 448.0)
E5M2 = Format("E5M2", 2, 5, 15, 57344.0)


def round_to(fmt, x):
    """Nearest value of the format, ties to even, saturating."""
    x = np.asarray(x, dtype=np.float64)
    _, exponent = np.frexp(x)  # |x| = [0.5, 1) * 2^exponent
    exponent = np.maximum(exponent - 1, fmt.smallest_normal_exponent)
    quantum = np.ldexp(1.0, exponent - fmt.fraction_bits)
    rounded = np.rint(x / quantum) * quantum  # the division is exact: quantum is a power of two
    return np.clip(rounded, -fmt.maximum, fmt.maximum)


def encode(fmt, x):
    """Bit patterns of the rounded values."""
    value = round_to(fmt, x)
    magnitude = np.abs(value)
    _, exponent = np.frexp(magnitude)
    exponent -= 1
    normal = exponent >= fmt.smallest_normal_exponent
    normal &= magnitude > 0
    quantum = np.ldexp(1.0, np.where(normal, exponent, fmt.smallest_normal_exponent) - fmt.fraction_bits)
    steps = (magnitude / quantum).astype(np.int64)  # includes the hidden bit when normal
    biased = np.where(normal, exponent + fmt.bias - 1, 0)  # minus one: the hidden bit carries into the exponent field
    code = (biased << fmt.fraction_bits) + steps
    sign = np.signbit(x).astype(np.int64) << (fmt.fraction_bits + fmt.exponent_bits)
    return (code | sign).astype(np.uint8 if fmt.fraction_bits < 7 else np.uint16)


def power_of_two_scale(amax, maximum):
    """2^floor(log2(maximum / amax)), 1 for a zero amax; exact."""
    amax = np.asarray(amax, dtype=np.float64)
    safe = np.where(amax > 0, amax, 1.0)
    fraction_m, exponent_m = np.frexp(maximum)
    fraction_a, exponent_a = np.frexp(safe)
    exponent = exponent_m - exponent_a - (fraction_m < fraction_a)
    return np.where(amax > 0, np.ldexp(1.0, np.clip(exponent, -126, 126)), 1.0)


def self_test():
    import ml_dtypes

    random = np.random.default_rng(0)
    for fmt, dtype in ((BF16, ml_dtypes.bfloat16), (E4M3, ml_dtypes.float8_e4m3fn), (E5M2, ml_dtypes.float8_e5m2)):
        values = random.standard_normal(200_000) * np.exp2(random.uniform(-22, 7, 200_000))
        every = np.arange(256 if fmt.fraction_bits < 7 else 65536).astype(np.uint8 if fmt.fraction_bits < 7 else np.uint16)
        with np.errstate(invalid="ignore"):  # NaNs among all the patterns
            every = every.view(dtype).astype(np.float64)
        every = np.sort(every[np.isfinite(every)])
        midpoints = (every[1:] + every[:-1]) / 2
        midpoints = midpoints[np.abs(midpoints) > 1e-30]
        values = np.concatenate([values, every[np.abs(every) < 1e30], midpoints[np.abs(midpoints) < 1e30]])
        values = values.astype(np.float32)  # ml_dtypes rounds from float32
        values = values[np.abs(values) <= fmt.maximum]
        theirs = values.astype(dtype)
        assert np.array_equal(round_to(fmt, values), theirs.astype(np.float64)), fmt.name
        assert np.array_equal(encode(fmt, values), theirs.view(encode(fmt, [0.0]).dtype)), fmt.name
        if fmt is not BF16:  # saturation
            assert np.array_equal(round_to(fmt, [1e9, -1e9]), [fmt.maximum, -fmt.maximum])
    scale = power_of_two_scale([0.0, 448.0, 449.0, 224.0, 1.0, 3e-3], 448.0)
    assert np.array_equal(scale, [1.0, 1.0, 0.5, 2.0, 256.0, 2.0**17]), scale


if __name__ == "__main__":
    self_test()
    print("formats agree with ml_dtypes")
