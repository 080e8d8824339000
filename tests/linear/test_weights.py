"""Weights of every magnitude that float32 has keep their codes; and weights that are 0."""

import itertools

import numpy as np
import pytest

import qatcore
from qatcore import QatConfig, QatLayer, QuantBits

CONFIGS = [QatConfig(*options) for options in itertools.product(QuantBits, (False, True), (False, True))]
each_config = pytest.mark.parametrize("config", CONFIGS, ids=repr)
LEAST = float(np.finfo(np.float32).tiny)
GREATEST = {QuantBits.INT2: 1, QuantBits.INT4: 7, QuantBits.INT8: 127, QuantBits.FP8: 448}


def weights(magnitude):
    """Of this greatest magnitude, and each channel of another one."""
    w = np.random.default_rng(0).uniform(-1.0, 1.0, (4, 64)) * [[1.0], [0.5], [0.25], [0.125]]
    w[0, 0] = 1.0
    return (w * magnitude).astype(np.float32)


@each_config
@pytest.mark.parametrize("power", range(-38, 39))
def test_every_magnitude(config, power):
    """A step is the range's part until that is below float32's normal numbers, and the error is half a step at most."""
    w = weights(10.0**power)
    exact = w.astype(np.float64)
    codes, scale, zero_point = qatcore.quantize_model_weights(w, config)
    axis = 1 if config.per_channel else None
    low, high = exact.min(axis=axis), exact.max(axis=axis)
    steps = 2 * GREATEST[config.bits] + 1
    if config.bits is QuantBits.FP8 or config.symmetric:
        wanted = np.maximum(np.abs(low), np.abs(high)) / GREATEST[config.bits]
    else:
        wanted = (high - low) / steps
    np.testing.assert_array_equal(scale, np.maximum(wanted, LEAST))
    column = np.reshape(scale, (-1, 1))
    error = np.abs(qatcore.dequantize_weights(codes, scale, zero_point) - exact)
    if config.bits is QuantBits.FP8:  # of three bits of mantissa, in steps of 2**-9 below the normal numbers
        most = np.maximum(np.abs(exact) * 2.0**-4, column * 2.0**-10)
    else:
        most = column / 2 if config.symmetric else column  # a rounded zero point clips half a step more at one end
    assert (error <= most * (1.0 + 1e-12)).all()
    assert codes.astype(np.float32).any() or (scale == LEAST).all()


@pytest.mark.parametrize("power", range(-34, 37, 5))
@pytest.mark.parametrize("bits", ["int8", "int4", "fp8"])
def test_layers(bits, power):
    """Outputs are as near to the exact ones, beside them, as for weights of magnitude 1; before, they were 0."""
    x = np.random.default_rng(1).uniform(-1.0, 1.0, (16, 64))
    errors = []
    for w in (weights(1.0), weights(2.0 ** round(power * 3.3219))):
        layer = QatLayer.from_weights(w, config=QatConfig(bits, per_channel=True))
        layer.calibrate_from_data(x)
        exact = x @ w.astype(np.float64).T
        errors.append(np.abs(layer.forward_infer(x) - exact).max() / np.abs(exact).max())
    assert errors[1] == pytest.approx(errors[0], rel=1e-6)


@each_config
def test_weights_of_zero(config):
    """A channel that was pruned, beside others, or a whole tensor."""
    w = weights(1.0)
    w[1] = 0.0
    _, scale, zero_point = qatcore.quantize_model_weights(w, config)
    if config.per_channel:
        assert (scale[1], zero_point[1]) == (2.0**-12, 0)
    codes, scale, zero_point = qatcore.quantize_model_weights(np.zeros((4, 64)), config)
    assert not codes.astype(np.float32).any()
    assert np.all(scale == 2.0**-12)
    assert not np.any(zero_point)


def test_followed_ranges_of_zeros():
    """Of activations a batch of zeros, of weights that are all 0."""
    layer = QatLayer.from_weights(np.zeros((2, 3)))
    layer.observe()
    layer.forward_train(np.zeros((5, 3)))
    assert (layer.activation_scale, layer.activation_zero_point) == (2.0**-12, 0)
    assert (layer.weight_scale, layer.weight_zero_point) == (2.0**-12, 0)


@pytest.mark.parametrize("power", range(-38, 39))
def test_nvfp4(power):
    """Its scale for the tensor is a float32 as well."""
    x = weights(10.0**power)
    codes, scale, tensor_scale = qatcore.quantize_nvfp4(x)
    greatest = np.abs(x).astype(np.float64).max()
    assert tensor_scale == np.float32(max(greatest / (6 * 448), LEAST))
    error = np.abs(qatcore.dequantize_nvfp4(codes, scale, tensor_scale, dtype="float64") - x)
    # Half of the widest step, 2 of 6, and a block's scale is rounded by a sixteenth; or the least step there is.
    assert error.max() <= max(greatest * (1 / 6 + 1 / 12), LEAST * 2.0**-9)


def test_nvfp4_of_subnormals():
    """The scale was 1 where the greatest magnitude / 2688 vanishes in float32, so everything was 0."""
    x = np.full(16, 1e-38, np.float32)
    codes, scale, tensor_scale = qatcore.quantize_nvfp4(x)
    values = qatcore.dequantize_nvfp4(codes, scale, tensor_scale)
    np.testing.assert_allclose(values, x, rtol=0.07)
