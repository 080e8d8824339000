"""FP8: nearest-even E4M3 by an independent search over its 256 codes, and by ml_dtypes."""

from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from golden import assert_same_bits

import qatcore
from qatcore import QuantBits
from qatcore._base import dispatch
from qatcore._base.formats import E4M3_VALUES
from qatcore._codes.reference_rounding import encode

every_level = pytest.mark.parametrize("level", dispatch.available_levels(), indirect=True)


def positive_values():
    """The non-negative E4M3 values, ascending, from the specification: 1.mmm * 2**(e - 7), 0.mmm * 2**-6."""
    values = []
    for code in range(0x7F):
        exponent, mantissa = code >> 3, code & 7
        if exponent:
            values.append(Fraction(8 + mantissa, 8) * Fraction(2) ** (exponent - 7))
        else:
            values.append(Fraction(mantissa, 8) * Fraction(2) ** -6)
    return values


VALUES = positive_values()


def by_ml_dtypes(x):
    """ml_dtypes makes NaN of what overflows; clipped first, nothing does."""
    with np.errstate(invalid="ignore"):
        return np.clip(x.astype(np.float32), -448.0, 448.0).astype(ml_dtypes.float8_e4m3fn)


def nearest(x):
    """The nearest value by a search over all of them in rational arithmetic, ties to the even code."""
    if np.isnan(x):
        return float("nan")
    magnitude = abs(Fraction(x)) if np.isfinite(x) else VALUES[-1]
    code = min(range(len(VALUES)), key=lambda c: (abs(VALUES[c] - magnitude), c & 1))
    return float(np.copysign(float(VALUES[code]), x))


def hard_cases():
    """All values, all midpoints, the neighbours of both, and the ends of float64."""
    values = np.array([float(v) for v in VALUES])
    middles = (values[:-1] + values[1:]) / 2.0
    points = np.concatenate([values, middles, [464.0, 480.0, 1e300, 5e-324, 2.0**-1022, 2.0**-11, 1e-300]])
    around = np.concatenate([points, np.nextafter(points, 0.0), np.nextafter(points, np.inf)])
    around = np.concatenate([around, [np.finfo(np.float64).max, np.inf]])
    return np.concatenate([around, -around, [np.nan]])


def test_values_of_the_codes():
    expected = [float(v) for v in VALUES]
    assert E4M3_VALUES[:0x7F].tolist() == expected
    assert E4M3_VALUES[0x80:0xFF].tolist() == [-v for v in expected]
    assert np.isnan(E4M3_VALUES[[0x7F, 0xFF]]).all()


@pytest.mark.slow
@every_level
def test_hard_cases(level):
    x = hard_cases()
    assert_same_bits(qatcore.quantize_fp8(x), np.array([nearest(v) for v in x]))


@every_level
def test_a_million_float64(level):
    """Against a search by bisection over midpoints, which is independent of the kernel's arithmetic."""
    rng = np.random.default_rng(1)
    x = (rng.random(1_000_000) + 1.0) * 2.0 ** rng.integers(-14, 11, 1_000_000) * rng.choice([-1.0, 1.0], 1_000_000)
    values = np.array([float(v) for v in VALUES])
    middles = (values[:-1] + values[1:]) / 2.0
    below = np.searchsorted(middles, np.abs(x), side="left")  # a tie stays below ...
    tie = (below < middles.size) & (middles[np.minimum(below, middles.size - 1)] == np.abs(x))
    code = below + (tie & (below % 2 == 1))  # ... unless that code is odd
    assert_same_bits(qatcore.quantize_fp8(x), np.copysign(values[code], x))


@every_level
def test_float32_equals_ml_dtypes(level):
    rng = np.random.default_rng(2)
    x = rng.integers(0, 2**32, 1_000_000, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        x = np.concatenate([x, hard_cases().astype(np.float32)])
    expected = by_ml_dtypes(x)
    result = qatcore.quantize_fp8(x)
    assert_same_bits(result, expected.astype(np.float32))
    codes = encode(x, np.array(1.0), np.array(0, np.int32), QuantBits.FP8)
    given = ~np.isnan(x)
    assert np.array_equal(codes[given].view(np.uint8), expected[given].view(np.uint8))
    assert np.isnan(codes[~given].astype(np.float32)).all()


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16])
def test_half_types_equal_ml_dtypes(dtype):
    x = np.arange(2**16, dtype=np.uint16).view(dtype)
    given = ~np.isnan(x.astype(np.float32))
    result = qatcore.quantize_fp8(x)
    assert result.dtype == dtype
    expected = by_ml_dtypes(x[given]).astype(dtype)
    assert np.array_equal(result[given].view(np.uint16), expected.view(np.uint16))
    assert np.isnan(result[~given].astype(np.float32)).all()


def test_departure_from_the_reference():
    """The evidence for departure 3: without carry, values are off by more than half a step."""
    x = np.linspace(1.0, 2.0, 3201)[:-1]
    error = np.abs(qatcore.reference.quantize_fp8(x) - x)
    assert np.mean(error > 1.0 / 16) == pytest.approx(1 / 16, abs=0.001)
    assert np.abs(qatcore.quantize_fp8(x) - x).max() <= 1.0 / 16
