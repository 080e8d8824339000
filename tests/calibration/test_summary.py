"""Summaries: every number against the data itself, and independent of how the data came."""

import itertools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from brute_force import code_range, squared_error

import qatcore
from qatcore import CalibMethod, CalibrationCollector, InvalidArgumentError, QuantBits

RNG = np.random.default_rng(0)
DATA = {
    "few": RNG.standard_normal(500) * 3 + 1,
    "normal": RNG.standard_normal(60_000),
    "offset": RNG.uniform(3.0, 7.0, 60_000),
    "lognormal": RNG.lognormal(size=60_000),
    "rectified": np.maximum(RNG.standard_normal(60_000), 0.0),
    "huge": RNG.standard_normal(60_000) * 1e300,
    "tiny": RNG.standard_normal(60_000) * 1e-200,
}
METHODS = [CalibMethod.MIN_MAX, CalibMethod.PERCENTILE, CalibMethod.KL, CalibMethod.MSE]


def observed(x, **keywords):
    collector = CalibrationCollector(**keywords)
    collector.observe(x)
    return collector


@pytest.mark.parametrize("name", DATA)
def test_statistics(name):
    x = DATA[name]
    summary = observed(np.concatenate([x, [np.nan, np.inf, np.inf, -np.inf]])).summary()
    assert (summary.n_elements, summary.n_zero) == (x.size, np.sum(x == 0.0))
    assert (summary.n_nan, summary.n_posinf, summary.n_neginf) == (1, 2, 1)
    assert (summary.min_val, summary.max_val) == (x.min(), x.max())
    exact = x.size <= 8192
    scaled = x / np.abs(x).max()  # whose squares do not overflow
    std = np.std(scaled) * np.abs(x).max()
    assert summary.mean == pytest.approx(
        math.fsum(scaled) / x.size * np.abs(x).max(), abs=std * (1e-12 if exact else 1e-4)
    )
    assert summary.std == pytest.approx(std, rel=1e-12 if exact else 1e-4)
    ordered = np.sort(x)
    for p, value in summary.percentiles.items():
        expected = ordered[math.ceil(p / 100 * x.size) - 1]
        assert value == expected if exact else value == pytest.approx(expected, rel=2.0**-7)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", ["few", "normal", "offset", "lognormal", "rectified"])
def test_signal_to_noise(name, symmetric):
    """Against what the scales do to the data."""
    x = DATA[name]
    collector = observed(x)
    sqnr = collector.summary(symmetric=symmetric).sqnr
    for bits, method in itertools.product(QuantBits, METHODS):
        (spec,) = qatcore.choose_specs({"x": collector}, method, bits=bits, symmetric=symmetric)
        if bits is QuantBits.FP8:
            error = np.mean((qatcore.quantize_fp8(x / spec.scale) * spec.scale - x) ** 2)
        else:
            codes = code_range({QuantBits.INT8: 8, QuantBits.INT4: 4, QuantBits.INT2: 2}[bits], symmetric)
            error = squared_error(x, spec.scale, spec.zero_point, codes)
        measured = 10 * np.log10(np.mean(x**2) / error)
        assert sqnr[bits][method] == pytest.approx(measured, abs=1e-9 if x.size <= 8192 else 0.15)


@pytest.mark.parametrize(("x", "expected"), [
    ([], math.nan), ([np.nan], math.nan), ([0.0, 0.0], math.nan), (np.arange(-128.0, 128.0), math.inf),
    ([5e-324, -5e-324], 0.0), ([1.7e308, -1.7e308], math.nan),
])  # fmt: skip
def test_signal_to_noise_of_odd_data(x, expected):
    sqnr = observed(x).summary().sqnr[QuantBits.INT8][CalibMethod.MIN_MAX]
    assert sqnr == expected or (math.isnan(expected) and math.isnan(sqnr))


@pytest.mark.parametrize("n", [1, 10, 999, 1000, 1001, 2000, 8000])
def test_percentiles_are_ranks(n):
    """The least value that at least that share of the values does not exceed, by rational arithmetic."""
    for p, value in observed(np.arange(1, n + 1)).summary().percentiles.items():
        assert value == math.ceil(Fraction(str(p)) * n / 100)


def test_order_and_splits_leave_no_trace():
    for x in DATA.values():
        one, other = observed(x), CalibrationCollector()
        for part in np.array_split(RNG.permutation(x), 7):
            other.observe(part)
        ours, theirs = one.summary(), other.summary()
        assert vars(ours) == vars(theirs)


@pytest.mark.slow
def test_channels():
    x = np.stack([x for x in DATA.values() if x.size == 60_000], axis=1)
    summary = observed(x, axis=1).summary()
    for index in range(x.shape[1]):
        single = observed(x[:, index]).summary()
        for name, value in vars(single).items():
            ours = getattr(summary, name)
            if name == "percentiles":
                assert {p: array[index] for p, array in ours.items()} == value
            elif name == "sqnr":
                for bits, by_method in value.items():
                    assert {method: array[index] for method, array in ours[bits].items()} == by_method
            elif name != "symmetric":
                assert ours[index] == value
    text = str(observed(x, axis=1).summary())
    assert "channels     6;" in text


def test_the_table():
    text = str(observed(np.append(DATA["normal"], [np.nan, 0.0])).summary(symmetric=True))
    lines = text.splitlines()
    assert lines[0] == "values       60,001 finite, 1 zero, 1 NaN"
    assert max(map(len, lines)) <= 80
    assert lines[-5].split() == ["SQNR", "in", "dB", "min_max", "percentile", "kl", "mse", "(symmetric)"]
    assert str(CalibrationCollector().summary()) == "values       0 finite"
    with pytest.raises(TypeError, match="symmetric: expected a bool"):
        CalibrationCollector().summary(symmetric=1)


# --- the recommended method ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("bits", list(QuantBits))
@pytest.mark.parametrize("symmetric", [True, False])
def test_best_scale_is_the_best(name, bits, symmetric):
    collector = observed(DATA[name])
    sqnr = collector.summary(symmetric=symmetric).sqnr[bits]
    scale, zero_point, method = collector.best_scale(bits=bits, symmetric=symmetric)
    assert method is max(sqnr, key=lambda m: sqnr[m])
    (spec,) = qatcore.choose_specs({"x": collector}, "auto", bits=bits, symmetric=symmetric)
    assert (spec.scale, spec.zero_point, spec.method) == (scale, zero_point, method)
    assert qatcore.choose_specs({"x": collector}, method, bits=bits, symmetric=symmetric) == [spec]


def test_best_scale_of_channels_is_one_method():
    x = np.stack([DATA["normal"], DATA["lognormal"]], axis=1)
    collector = observed(x, axis=1)
    scale, zero_point, method = collector.best_scale(bits=QuantBits.INT4)
    assert scale.shape == zero_point.shape == (2,)
    errors = {}
    for other in METHODS:
        (spec,) = qatcore.choose_specs({"x": collector}, other, bits=QuantBits.INT4)
        errors[other] = sum(
            squared_error(x[:, c], spec.scale[c], spec.zero_point[c], code_range(4, False)) for c in range(2)
        )
    assert errors[method] == pytest.approx(min(errors.values()), rel=0.02)


@pytest.mark.parametrize("bits", QuantBits)
@pytest.mark.parametrize("symmetric", [False, True])
def test_sqnr_is_that_of_the_codes(bits, symmetric):
    x = np.random.default_rng(2).normal(0.3, 1.0, 50_000).astype(np.float32)
    collector = CalibrationCollector()
    collector.observe(x)
    for scale, zero_point in (
        collector.mse_scale(bits=bits, symmetric=symmetric),
        (0.1, 0 if symmetric or bits is QuantBits.FP8 else 1),
    ):
        if bits is QuantBits.FP8:
            values = np.clip(x / scale, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(float) * scale
        else:
            least, greatest = code_range(int(bits.value[3:]), symmetric)
            values = (np.clip(np.rint(x / scale) + zero_point, least, greatest) - zero_point) * scale
        expected = 10 * np.log10(np.square(x, dtype=float).sum() / np.square(x - values).sum())
        assert collector.sqnr(scale, zero_point, bits=bits, symmetric=symmetric) == pytest.approx(expected, abs=0.1)


def test_sqnr_of_channels_and_what_it_refuses():
    channels = CalibrationCollector(axis=1)
    channels.observe(np.random.default_rng(3).normal(size=(500, 3)) * [1.0, 10.0, 0.0])
    found = channels.sqnr([0.01, 0.1, 1.0])
    assert found.shape == (3,)
    assert found[0] == channels.channel(0).sqnr(0.01)
    assert found[1] == channels.channel(1).sqnr(0.1)
    assert np.isnan(found[2])
    np.testing.assert_array_equal(channels.sqnr(0.1)[:2], [channels.channel(i).sqnr(0.1) for i in range(2)])
    with pytest.raises(InvalidArgumentError, match="zero_point: expected 0 for FP8, got 3"):
        channels.sqnr(0.1, 3, bits="fp8")
    for scale, zero_point in (([0.1, 0.1], 0), (-1.0, 0), (np.inf, 0), (0.1, 2**40)):
        with pytest.raises(InvalidArgumentError):
            channels.sqnr(scale, zero_point)
