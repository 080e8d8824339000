"""Layers and weights in every format, against rational arithmetic."""

from fractions import Fraction
from math import floor

import ml_dtypes
import numpy as np
import pytest
from golden import assert_same_bits

import qatcore
from qatcore import CalibMethod, QatConfig, QatLayer, QuantBits
from qatcore._base import dispatch

every_level = pytest.mark.parametrize("level", dispatch.available_levels(), indirect=True)
every_config = pytest.mark.parametrize(
    "config",
    [QatConfig(bits, c, s) for bits in QuantBits for c in (True, False) for s in (True, False)],
    ids=lambda c: f"{c.bits.value}-{'channel' if c.per_channel else 'tensor'}-{'sym' if c.symmetric else 'affine'}",
)
HIGH = {QuantBits.INT8: 127, QuantBits.INT4: 7, QuantBits.INT2: 1}


def integer_code(x, scale, zero_point, bits, symmetric):
    """The reference's rounding, spelled out: division and sum in float64, then half away from zero."""
    v = float(np.float64(x) / np.float64(scale)) + zero_point
    q = floor(abs(Fraction(v)) + Fraction(1, 2)) * (1 if v > 0 else -1)
    high = HIGH[bits]
    return min(max(q, -high if symmetric else -high - 1), high)


def fp8_value(x, scale):
    """By ml_dtypes, from a quotient that float32 holds nearly always well enough to round the same."""
    quotient = np.clip(np.asarray(x, np.float64) / scale, -448.0, 448.0).astype(np.float32)
    return quotient.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


def expected_infer(layer, x):
    """The sum over (code - zero point) products as rationals, then the three float64 operations."""
    config = layer.config
    rows = []
    for row in np.atleast_2d(x):
        out = []
        for o in range(layer.out_features):
            ws, wz = (
                np.atleast_1d(p)[o if config.per_channel else 0] for p in (layer.weight_scale, layer.weight_zero_point)
            )
            if config.bits is QuantBits.FP8:
                qx = [Fraction(float(v)) for v in fp8_value(row, layer.activation_scale)]
                qw = [Fraction(float(v)) for v in fp8_value(layer.weights[o], ws)]
            else:
                az = layer.activation_zero_point
                qx = [integer_code(v, layer.activation_scale, az, config.bits, False) - az for v in row]
                qw = [integer_code(v, ws, int(wz), config.bits, config.symmetric) - int(wz) for v in layer.weights[o]]
            total = float(sum((a * b for a, b in zip(qx, qw, strict=True)), Fraction(0)))
            out.append(total * (layer.activation_scale * float(ws)) + layer.bias[o])
        rows.append(out)
    return np.array(rows)


def make_layer(config, seed=0, n_in=37, n_out=5, shift=0.0):
    rng = np.random.default_rng(seed)
    weights = rng.normal(size=(n_out, n_in)) * np.linspace(0.1, 2.0, n_out)[:, np.newaxis] + shift
    layer = QatLayer.from_weights(weights, rng.normal(size=n_out), config)
    x = rng.normal(size=(6, n_in)) + 0.5
    layer.calibrate_from_data(x)
    return layer, x


@every_level
@every_config
def test_forward_infer(config, level):
    layer, x = make_layer(config)
    result = layer.forward_infer(x)
    assert_same_bits(result, expected_infer(layer, x))
    for i, row in enumerate(x):
        assert_same_bits(layer.forward_infer(row), result[i])


@every_config
def test_training_and_inference_agree(config):
    """Departure 5: the same codes in both, so they differ by the rounding of float64 sums only."""
    layer, x = make_layer(config)
    np.testing.assert_allclose(layer.forward_train(x), layer.forward_infer(x), rtol=1e-11, atol=1e-12)
    layer, x = make_layer(config, shift=3.0)  # zero points outside int8 where affine
    np.testing.assert_allclose(layer.forward_train(x), layer.forward_infer(x), rtol=1e-10, atol=1e-10)


@every_config
def test_close_to_the_float_layer(config):
    layer, x = make_layer(config, n_in=256)
    exact = x @ layer.weights.T + layer.bias
    error = np.abs(layer.forward_infer(x) - exact).max() / np.abs(exact).max()
    assert error < {QuantBits.INT8: 0.02, QuantBits.INT4: 0.3, QuantBits.INT2: 0.95, QuantBits.FP8: 0.06}[config.bits]


@every_level
def test_zero_points_far_away(level):
    """Sums beyond int64 are still exact."""
    layer = QatLayer(3, 2, QatConfig(symmetric=False))
    layer.weights = np.random.default_rng(1).normal(size=(2, 3))
    layer.weight_scale = layer.activation_scale = 1e-9
    layer.weight_zero_point = -(2**31)
    layer.activation_zero_point = 2**31 - 1
    x = np.array([0.25, -1.0, 3.0])
    assert_same_bits(layer.forward_infer(x), expected_infer(layer, x)[0])


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64])
@every_config
def test_output_type(config, dtype):
    layer, x = make_layer(config)
    x = x.astype(dtype)
    for forward in (layer.forward_infer, layer.forward_train):
        result = forward(x)
        assert result.dtype == dtype
        # computed as for the same values in float64, rounded once at the end
        assert_same_bits(result.astype(np.float64), forward(x.astype(np.float64)).astype(dtype).astype(np.float64))


def test_nan_and_infinity():
    layer, x = make_layer(QatConfig())
    x[0, 0], x[1, 0], x[2, 0] = np.nan, np.inf, -np.inf
    codes = x.copy()
    zero = -layer.activation_zero_point * layer.activation_scale  # NaN has code 0
    codes[0, 0], codes[1, 0], codes[2, 0] = zero, 1e9, -1e9
    assert_same_bits(layer.forward_infer(x), layer.forward_infer(codes))
    layer, x = make_layer(QatConfig(QuantBits.FP8))
    x[0, 0] = np.nan
    result = layer.forward_infer(x)
    assert np.isnan(result[0]).all()
    assert np.isfinite(result[1:]).all()


def test_fp8_depth():
    """Sums of more than 2**17 products: both blocks exact."""
    n = 2**17 + 3
    layer = QatLayer.from_weights(np.full((1, n), 448.0), None, QatConfig(QuantBits.FP8))
    layer.activation_scale = 1.0
    assert layer.forward_infer(np.full(n, 448.0)).tolist() == [448.0 * 448.0 * n]


@every_config
def test_weights_round_trip(config):
    rng = np.random.default_rng(2)
    weights = rng.normal(size=(7, 33)).astype(np.float32) * np.geomspace(0.01, 10, 7, dtype=np.float32)[:, np.newaxis]
    codes, scale, zero_point = qatcore.quantize_model_weights(weights, config)
    back = qatcore.dequantize_weights(codes, scale, zero_point)
    column = np.asarray(scale).reshape(-1, 1)
    if config.bits is QuantBits.FP8:
        assert codes.dtype == ml_dtypes.float8_e4m3fn
        assert not np.any(zero_point)
        assert (np.abs(back - weights) <= np.maximum(np.abs(weights) / 16, column * 2.0**-10) * (1 + 1e-9)).all()
    else:
        assert codes.dtype == np.int8
        assert codes.max() <= HIGH[config.bits]
        assert codes.min() >= -HIGH[config.bits] - (not config.symmetric)
        # half a step, and where affine up to another half for the rounded zero point at the ends
        assert (np.abs(back - weights) <= column * (0.5 if config.symmetric else 1.0) * (1 + 1e-9)).all()
    if config.per_channel:
        assert np.shape(scale) == np.shape(zero_point) == (7,)
        for o in range(7):
            alone = qatcore.quantize_model_weights(weights[o], QatConfig(config.bits, False, config.symmetric))
            assert np.array_equal(codes[o].view(np.uint8), alone[0].view(np.uint8))
            assert (scale[o], zero_point[o]) == alone[1:]
    else:
        assert type(scale) is float
        assert type(zero_point) is int


def test_departure_int4():
    """The evidence for departure 2: 16 evenly spaced weights are two codes in the reference, 16 here."""
    weights = np.linspace(-0.8, 0.7, 16)
    config = QatConfig(QuantBits.INT4, symmetric=False)
    assert set(qatcore.reference.quantize_model_weights(weights, config)[0]) == {-8, 7}
    assert qatcore.quantize_model_weights(weights, config)[0].tolist() == list(range(-8, 8))


def test_initial_weights():
    """The evidence for departure 10."""
    assert (qatcore.reference.QatLayer(64, 32).weights < 0.0).all()
    weights = QatLayer(64, 32).weights
    limit = np.sqrt(6.0 / 96)
    assert abs(np.mean(weights)) < limit / 20
    assert weights.min() < -0.99 * limit
    assert weights.max() > 0.99 * limit


@pytest.mark.parametrize("method", list(CalibMethod))
@every_config
def test_calibration_methods(config, method):
    layer, x = make_layer(config)
    layer.calibrate_from_data(x, method)
    collector = qatcore.CalibrationCollector()
    collector.observe(x)
    arguments = (99.0,) if method is CalibMethod.PERCENTILE else ()
    name = {CalibMethod.KL: "kl_divergence", CalibMethod.AUTO: "best"}.get(method, method.value)
    expected = getattr(collector, f"{name}_scale")(*arguments, bits=config.bits)[:2]
    assert (layer.activation_scale, layer.activation_zero_point) == expected


def test_weights_alone():
    layer, _ = make_layer(QatConfig())
    before = layer.activation_scale, layer.activation_zero_point
    layer.weights = layer.weights * 2.0
    layer.calibrate_from_data([])
    assert layer.weight_scale == np.abs(layer.weights).max() / 127.0
    assert (layer.activation_scale, layer.activation_zero_point) == before
