"""What degenerate data gives, for each method: defined in docs/calibration.md, and the same for a channel."""

import itertools

import numpy as np
import pytest

from qatcore import CalibMethod, CalibrationCollector, QuantBits
from qatcore._base.scale import Target
from qatcore._calibration.calibrate import choose_scale

METHODS = list(CalibMethod)
NOTHING = (1.0, 0)
FORMATS = [*itertools.product((QuantBits.INT8, QuantBits.INT4), (False, True)), (QuantBits.FP8, True)]
STEPS = {QuantBits.INT8: 255, QuantBits.INT4: 15}
GREATEST = {QuantBits.INT8: 127, QuantBits.INT4: 7, QuantBits.FP8: 448}


def every_answer(*batches):
    """Yield method, format, symmetry and answer; of a collector, and of a channel beside others."""
    single, channels = CalibrationCollector(), CalibrationCollector(axis=1)
    for batch in batches:
        x = np.asarray(batch, np.float64).reshape(-1)
        single.observe(batch)
        channels.observe(np.stack([x, np.zeros_like(x), np.arange(x.size)], axis=1))
    for bits, symmetric in FORMATS:
        for method in METHODS:
            scale, zero_point, _ = choose_scale(single, method, Target(bits, symmetric))
            if batches and method is not CalibMethod.AUTO:  # which is one method for all channels
                scales, zero_points, _ = choose_scale(channels, method, Target(bits, symmetric))
                assert (scales[0], zero_points[0]) == (scale, zero_point)
            yield method, bits, symmetric, (scale, zero_point)


@pytest.mark.parametrize("batches", [[], [[]], [[], []], [[np.nan] * 300], [[np.inf, -np.inf, np.nan]]], ids=str)
def test_nothing_finite(batches):
    for *_, answer in every_answer(*batches):
        assert answer == NOTHING


@pytest.mark.parametrize("n", [1, 300, 20_000])
def test_only_zeros(n):
    for *_, answer in every_answer(np.zeros(n), -np.zeros(n)):
        assert answer == (2.0**-12, 0)


@pytest.mark.parametrize("n", [300, 20_000])
def test_zeros_that_hide_the_rest(n):
    """A percentile that leaves nothing but zeros leaves no range: what is not 0 would all be clipped."""
    collector = CalibrationCollector()
    collector.observe([*np.zeros(n), 1.0, 2.0])
    for bits, symmetric in FORMATS:
        assert collector.percentile_scale(50.0, bits=bits, symmetric=symmetric) == NOTHING


@pytest.mark.parametrize("n", [1, 300, 20_000])
@pytest.mark.parametrize("value", [5.0, -3.0, 1e-3, 1e300])
def test_one_value(n, value):
    """No range where affine; symmetric codes have it exactly, as their greatest."""
    for _, bits, symmetric, answer in every_answer(np.full(n, value)):
        assert answer == ((abs(value) / GREATEST[bits], 0) if symmetric else NOTHING)


@pytest.mark.parametrize("n", [300, 20_000])
def test_an_all_zero_first_batch(n):
    """As if it had come last: what the later ones say counts."""
    x = np.random.default_rng(0).standard_normal(n)
    first, last = list(every_answer(np.zeros(n), x)), list(every_answer(x, np.zeros(n)))
    assert first == last
    for method, bits, symmetric, (scale, _) in first:
        clip = scale * (GREATEST[bits] if symmetric else STEPS[bits] / 2)
        assert 0.3 * np.abs(x).max() < clip <= 1.05 * np.abs(x).max() or method is CalibMethod.PERCENTILE


@pytest.mark.parametrize("n", [300, 20_000])
@pytest.mark.parametrize("unit", [5e-324, 1e-310, 1e-42])
def test_tiny_values(n, unit):
    """No scale is below float32's least normal number; codes for values far below it are one and the same."""
    x = np.random.default_rng(1).integers(-1000, 1000, n) * unit
    for *_, (scale, zero_point) in every_answer(x):
        assert scale == 2.0**-126 == np.finfo(np.float32).tiny
        assert -128 <= zero_point <= 127


@pytest.mark.parametrize("exponent", [-126, -100, -40, -39, 0, 40, 115])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("n", [300, 20_000])
def test_scales_are_in_proportion(n, kind, exponent):
    """Multiples of another power of two have that multiple of the scale, to the bit, at every magnitude."""
    x = np.random.default_rng(2).integers(-2000, 3000, n).astype(kind)  # exact in float32 at each of these powers
    with np.errstate(over="ignore"):
        moved = np.ldexp(x, exponent)
    assert np.isfinite(moved).all()
    for (*_, (scale, zero_point)), (*_, answer) in zip(every_answer(x), every_answer(moved), strict=True):
        assert scale > 1.0 or exponent > -126  # so that none is below the least one
        assert answer == (scale * 2.0**exponent, zero_point)


@pytest.mark.parametrize("n", [300, 20_000])
def test_huge_values(n):
    x = np.random.default_rng(2).standard_normal(n) * 1e300
    for method, bits, symmetric, (scale, zero_point) in every_answer(x):
        clip = scale * (GREATEST[bits] if symmetric else STEPS[bits] / 2)
        assert 0.3 * np.abs(x).max() < clip <= 1.05 * np.abs(x).max() or method is CalibMethod.PERCENTILE
        assert -128 <= zero_point <= 127
    for *_, (scale, _) in every_answer([1e300, -1e300] * 150):
        assert 0 < scale < 1e300


def test_a_range_beyond_float64():
    """Affine the scale is infinite, and says that there is none; symmetric ones are whole."""
    for _, bits, symmetric, (scale, _) in every_answer([1.7e308, -1.7e308] * 150):
        assert scale == (1.7e308 / GREATEST[bits] if symmetric else np.inf)


def test_float16_overflow():
    """What float16 could not hold came as infinity, which is counted and does not count."""
    with np.errstate(over="ignore"):
        x = np.array([70000.0, -70000.0, *np.linspace(-65504, 65504, 301)]).astype(np.float16)
    finite = x[np.isfinite(x)]
    assert list(every_answer(x)) == list(every_answer(finite))
    collector = CalibrationCollector()
    collector.observe(x)
    assert (collector.n_posinf, collector.n_neginf, collector.max_val) == (1, 1, 65504.0)


@pytest.mark.parametrize("value", [1.1, -1.7, 1e30])
def test_two_neighbouring_values(value):
    """The scale is large enough for an int32 to be the zero point, and both values have codes."""
    x = np.sort([value, np.nextafter(value, np.inf)])
    for _, bits, symmetric, (scale, zero_point) in every_answer([*x] * 200):
        if symmetric:
            assert zero_point == 0
            continue
        low, high = -(STEPS[bits] + 1) // 2, STEPS[bits] // 2
        assert abs(x).min() <= scale * (2**31 - 2**8) <= abs(x).max() * (1.0 + 2.0**-52)
        assert low <= round(x[0] / scale) + zero_point <= high
        assert abs((round(x[0] / scale)) * scale - x[0]) <= scale / 2
