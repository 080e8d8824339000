"""Data that is the same on every machine.

It comes from the raw words of a generator, by + - * / alone.  `normal` and `exp` would not do, since their last bits
differ between SIMD variants.
"""

import numpy as np


def words(n, seed):
    return np.random.PCG64(seed).random_raw(n)


def uniform(n, seed):
    return (words(n, seed) >> np.uint64(11)) * 2.0**-53


def bell(n, seed):
    """Return nearly normal values: sums of twelve uniform numbers, added one after the other."""
    total = np.full(n, -6.0)
    for row in uniform(12 * n, seed).reshape(12, n):
        total += row
    return total


def heavy(n, seed):
    """Return values with tails like Student's t with one degree of freedom, cut off at 2**20."""
    return (uniform(n, seed) - 0.5) / (uniform(n, seed + 1) + 2.0**-20)


def adversarial(dtype):
    """Return ties and their neighbours, subnormals, extremes and values that are not finite, of a floating type."""
    integer = np.dtype(f"i{np.dtype(dtype).itemsize}")
    info = np.finfo(dtype)
    ties = np.concatenate([(np.arange(-300, 300) + 0.5) * step for step in (1.0, 0.5, 0.1, 1e-3, 2.0**-10)])
    # E4M3's values and the midpoints between them; subnormal midpoints are multiples of 2**-10.
    fp8 = np.concatenate([np.arange(16, 33) * 2.0 ** float(e) for e in range(-12, 6)])
    centres = np.concatenate([ties, fp8, -fp8]).astype(dtype).view(integer)
    near = np.concatenate([centres - 1, centres, centres + 1]).view(dtype)
    odd = [0.0, -0.0, np.inf, -np.inf, np.nan, info.max, -info.max, info.tiny, info.smallest_subnormal]
    return np.concatenate([near, np.array([*odd, -info.smallest_subnormal], dtype)])


def random_bits(n, seed, dtype):
    """Return values of all exponents, also NaN and infinities."""
    return words(n, seed).view(f"u{np.dtype(dtype).itemsize}")[:n].view(dtype)
