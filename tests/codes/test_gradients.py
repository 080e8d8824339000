"""`fake_quantize_backward`, the mask of `fake_quantize`, and `QatLayer.backward`."""

import math
import pickle
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from affine_oracles import FORMATS, LIMITS, every_format, every_level

import qatcore
from qatcore import InvalidArgumentError, QatConfig, QatLayer, QuantBits, fake_quantize, fake_quantize_backward

rng = np.random.default_rng


def ends(dtype):
    """Least and greatest code, or value of a floating-point format."""
    greatest = {"float8_e4m3fn": 448.0, "float8_e5m2": 57344.0, "float4_e2m1fn": 6.0}.get(dtype)
    return LIMITS[dtype] if greatest is None else (-greatest, greatest)


def spread(shape, dtype, seed=0, kind=np.float32):
    """Values of which a good part is clipped at scale 1, none of them near an end or the middle of two codes."""
    low, high = ends(dtype)
    v = rng(seed).normal(size=shape) * (high - low) / 2 + (low + high) / 2
    if LIMITS[dtype][1]:
        v = np.floor(v) + rng(seed + 1).uniform(0.05, 0.45, shape)
    return v.astype(kind)


# --- PyTorch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("dtype", ["int2", "int4", "int8", "uint8"])
def test_gradients_are_those_of_pytorch(dtype, axis):
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    low, high = LIMITS[dtype]
    shape = (6, 40, 50)
    x = rng(1).normal(size=shape).astype(np.float32)
    grad = rng(2).normal(size=shape).astype(np.float32)
    channels = 1 if axis is None else shape[axis]
    scale = rng(3).uniform(0.5, 2.0, channels).astype(np.float32) * np.float32(3.0 / (high - low))
    zero_point = rng(4).integers(low, high + 1, channels)

    of_x, of_scale, of_zero_point = (
        torch.tensor(array, dtype=torch.float32, requires_grad=True) for array in (x, scale, zero_point)
    )
    if axis is None:
        out = torch._fake_quantize_learnable_per_tensor_affine(of_x, of_scale, of_zero_point, low, high, 0.75)
    else:
        out = torch._fake_quantize_learnable_per_channel_affine(of_x, of_scale, of_zero_point, axis, low, high, 0.75)
    out.backward(torch.tensor(grad))

    parameters = (scale, zero_point) if axis is not None else (scale[0], zero_point[0])
    result = fake_quantize_backward(grad, x, *parameters, dtype=dtype, axis=axis, grad_factor=0.75)
    np.testing.assert_array_equal(result[0], of_x.grad.numpy())
    # PyTorch sums float32 products in float32.
    size = np.abs(grad).sum() * (high - low) / channels
    np.testing.assert_allclose(result[1], np.squeeze(of_scale.grad.numpy()), rtol=1e-5, atol=1e-7 * size)
    np.testing.assert_allclose(
        result[2], np.squeeze(of_zero_point.grad.numpy()), rtol=1e-5, atol=1e-6 * np.abs(grad).sum() * scale.max()
    )


def test_the_mask_is_that_of_pytorch():
    torch = pytest.importorskip("torch", reason="compares with PyTorch")
    x = spread((3, 1000), "uint8")
    scale, zero_point = np.array([1.0, 0.5, 2.0], np.float32), np.array([0, 128, 200], np.int32)
    _, expected = torch.ops.aten.fake_quantize_per_channel_affine_cachemask(
        torch.tensor(x), torch.tensor(scale), torch.tensor(zero_point), 0, 0, 255
    )
    _, mask = fake_quantize(x, scale, zero_point, dtype="uint8", axis=0, return_mask=True)
    np.testing.assert_array_equal(mask, expected.numpy())


# --- the definition --------------------------------------------------------------------------------------


def exact_gradients(grad, x, scale, zero_point, dtype):
    """The gradients for one scale, by exact fractions but for the division, which is x's type's."""
    low, high = (Fraction(end) - zero_point for end in ends(dtype))
    grad_x, of_scale, of_zero_point, size = [], Fraction(0), Fraction(0), 0.0
    codes = (x / x.dtype.type(scale)).tolist()
    values = fake_quantize(x.astype(np.float64) / float(scale), 1.0, dtype=dtype).tolist()  # of floating-point formats
    for g, v, value in zip(grad.tolist(), codes, values, strict=True):
        if math.isnan(v):
            grad_x.append(0.0)
            continue
        integer = LIMITS[dtype][1] > 0
        if math.isinf(v):
            passes, nearest = False, Fraction(0)
        elif integer:
            nearest = Fraction(round(Fraction(v)))  # half to even
            passes = low <= nearest <= high
        else:
            nearest, passes = Fraction(value), low <= Fraction(v) <= high
        grad_x.append(g if passes else 0.0)
        slope = nearest - Fraction(v) if passes else low if v < 0 else high
        of_scale += Fraction(g) * slope
        size += abs(g * float(slope))
        if not passes:
            of_zero_point -= Fraction(g) * Fraction(float(x.dtype.type(scale)))
    return grad_x, of_scale, of_zero_point, size


@every_level
@every_format
@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
def test_gradients_are_exact_sums(level, dtype, zero_point, kind):
    low, high = ends(dtype)
    x = rng(5).normal(size=1000).astype(kind) * kind(0.3 * (high - low))
    hard = [0.0, -0.0, np.nan, np.inf, -np.inf, 1e-30, *(0.3 * (k + 0.5) for k in range(-9, 9))]
    x[: len(hard)] = hard
    grad = rng(6).normal(size=1000).astype(kind)
    grad_x, of_scale, of_zero_point = fake_quantize_backward(grad, x, 0.3, zero_point, dtype=dtype, grad_factor=1.0)
    expected_x, expected_scale, expected_zero_point, size = exact_gradients(grad, x, kind(0.3), zero_point, dtype)
    np.testing.assert_array_equal(grad_x, expected_x)
    assert grad_x.dtype == kind
    assert abs(Fraction(of_scale) - expected_scale) <= 2.0**-50 * size
    if LIMITS[dtype][1]:
        assert abs(Fraction(of_zero_point) - expected_zero_point) <= 2.0**-50 * float(np.abs(grad).sum()) * 0.3


def smooth(x, scale, zero_point, dtype, base, base_scale):
    """Fake quantisation in which what `base` was rounded by, and which values were clipped, do not change."""
    low, high = (end - zero_point for end in ends(dtype))
    _, mask = fake_quantize(base, base_scale, 0 if zero_point == 0 else int(zero_point), dtype=dtype, return_mask=True)
    v = base / base_scale
    offset = fake_quantize(base, base_scale, int(zero_point), dtype=dtype) / base_scale - v
    return np.where(mask, scale * (x / scale + offset), scale * np.where(v < 0, low, high))


@pytest.mark.parametrize("dtype", ["int2", "int4", "uint4", "int8", "uint8", "float8_e4m3fn", "float4_e2m1fn"])
def test_gradients_are_finite_differences_of_the_smooth_part(dtype):
    x, scale = spread(400, dtype, 7, np.float64) * 0.1, 0.1
    zero_point = int(LIMITS[dtype][0]) // 2 + 1 if LIMITS[dtype][1] else 0
    weight = rng(8).normal(size=400)
    grad_x, of_scale, of_zero_point = fake_quantize_backward(weight, x, scale, zero_point, dtype=dtype, grad_factor=1.0)
    step = 1e-6

    def loss(values, s):
        return weight * smooth(values, s, zero_point, dtype, x, scale)

    assert 20 < np.count_nonzero(grad_x == 0.0) < 380
    np.testing.assert_allclose(
        grad_x, (loss(x + step, scale) - loss(x - step, scale)) / (2 * step), rtol=1e-6, atol=1e-6
    )
    difference = (loss(x, scale + step).sum() - loss(x, scale - step).sum()) / (2 * step)
    np.testing.assert_allclose(of_scale, difference, rtol=1e-6, atol=1e-5 * np.abs(weight).sum())
    if LIMITS[dtype][1]:  # a whole step, since what is clipped is linear in the zero point
        clipped = grad_x == 0.0
        np.testing.assert_allclose(of_zero_point, -(weight[clipped] * scale).sum(), rtol=1e-12)


def test_the_factor_is_that_of_lsq():
    x, grad = rng(9).normal(size=(2, 8, 50))
    for axis, n in ((None, 400), (0, 50), (1, 8)):
        scale = 0.3 if axis is None else np.full(x.shape[axis], 0.3)
        for dtype, greatest in (("int4", 7), ("uint8", 255), ("int2", 1), ("float8_e4m3fn", 448.0)):
            plain = fake_quantize_backward(grad, x, scale, dtype=dtype, axis=axis, grad_factor=1.0)
            scaled = fake_quantize_backward(grad, x, scale, dtype=dtype, axis=axis)
            np.testing.assert_array_equal(plain[0], scaled[0])
            for a, b in zip(plain[1:], scaled[1:], strict=True):
                np.testing.assert_allclose(np.asarray(a) / math.sqrt(n * greatest), b, rtol=1e-15)


# --- shapes, layouts, threads ----------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "zero_point"), FORMATS[::3])
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_channels_are_gradients_of_their_own(dtype, zero_point, axis):
    x, grad = spread((5, 7, 300), dtype), rng(10).normal(size=(5, 7, 300)).astype(np.float32)
    channels = x.shape[axis]
    scale = rng(11).uniform(0.5, 1.5, channels)
    result = fake_quantize_backward(
        grad, x, scale, np.full(channels, zero_point), dtype=dtype, axis=axis, grad_factor=1.0
    )
    values, mask = fake_quantize(x, scale, np.full(channels, zero_point), dtype=dtype, axis=axis, return_mask=True)
    assert result[1].shape == result[2].shape == (channels,)
    for channel in range(channels):
        own = np.take(grad, channel, axis), np.take(x, channel, axis), scale[channel], zero_point
        expected = fake_quantize_backward(*own, dtype=dtype, grad_factor=1.0)
        np.testing.assert_array_equal(np.take(result[0], channel, axis), expected[0])
        np.testing.assert_allclose(result[1][channel], expected[1], rtol=1e-12, atol=1e-9)
        np.testing.assert_allclose(result[2][channel], expected[2], rtol=1e-12, atol=1e-9)
        own_values, own_mask = fake_quantize(*own[1:], dtype=dtype, return_mask=True)
        np.testing.assert_array_equal(np.take(values, channel, axis), own_values)
        np.testing.assert_array_equal(np.take(mask, channel, axis), own_mask)


@every_format
def test_the_mask_comes_with_the_same_values(dtype, zero_point):
    low, high = ends(dtype)
    for kind in (np.float32, np.float64, np.float16, ml_dtypes.bfloat16):
        with np.errstate(all="ignore"):
            x = (rng(12).normal(size=(40, 64)) * (high - low) * 0.3).astype(kind)
        x[0, :4] = np.nan, np.inf, -np.inf, -0.0
        blocks = {"scale": rng(13).uniform(0.2, 0.4, (40, 2)), "axis": 1, "block_size": 32}
        for scales in ({"scale": 0.3}, {"scale": rng(13).uniform(0.2, 0.4, 64), "axis": 1}, blocks):
            arguments = {**scales, "dtype": dtype}
            if "block_size" not in arguments:
                arguments["zero_point"] = np.full(np.shape(arguments["scale"]), zero_point)
            plain = fake_quantize(x, **arguments)
            values, mask = fake_quantize(x, **arguments, return_mask=True)
            assert values.tobytes() == plain.tobytes()
            assert mask.dtype == bool
            assert not mask[0, 0]
            assert not mask[0, 1:3].any()
            if "block_size" not in arguments:
                grad_x, *_ = fake_quantize_backward(np.ones(x.shape), x, **arguments)
                np.testing.assert_array_equal(grad_x == 1, mask)
                assert grad_x.dtype == x.dtype
            out = x.copy()
            again, _ = fake_quantize(out, **arguments, out=out, return_mask=True)
            assert again is out
            assert out.tobytes() == plain.tobytes()


@pytest.mark.usefixtures("_number_of_threads")
def test_gradients_do_not_depend_on_the_threads():
    x, grad = rng(14).normal(size=(2, 3_000_001)).astype(np.float32)
    wide = rng(15).normal(size=(2, 300, 10_007)).astype(np.float32)
    results = []
    for threads in (1, 2, 5):
        qatcore.set_num_threads(threads)
        one = fake_quantize_backward(grad, x, 0.01)
        many = fake_quantize_backward(*wide, np.full(10_007, 0.02), axis=1)
        results.append(b"".join(np.asarray(part).tobytes() for part in (*one, *many)))
    assert results[0] == results[1] == results[2]


def test_any_layout_and_type():
    x, grad = rng(16).normal(size=(2, 30, 20)).astype(np.float32)
    expected = fake_quantize_backward(grad, x, 0.02)
    for layout in (np.asfortranarray, lambda a: np.repeat(a, 2, 0)[::2], lambda a: a.astype(">f4"), np.ndarray.tolist):
        result = fake_quantize_backward(layout(grad), layout(x) if layout is not np.ndarray.tolist else x, 0.02)
        for a, b in zip(result, expected, strict=True):
            np.testing.assert_array_equal(a, b)
    integers = fake_quantize_backward([1, 2], [100, 300], 1.0)
    assert integers[0].dtype == np.float64
    np.testing.assert_array_equal(integers[0], [1.0, 0.0])
    empty = fake_quantize_backward(np.empty((0, 3)), np.empty((0, 3)), np.ones(3), axis=1)
    np.testing.assert_array_equal(empty[1], np.zeros(3))
    scalar = fake_quantize_backward(2.0, 0.5, 0.4, grad_factor=1.0)
    assert scalar[0] == 2.0
    assert scalar[1] == pytest.approx(2 * (1 - 0.5 / 0.4))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"grad": np.ones(3)}, r"^grad: expected the shape of x, \(2, 3\), got \(3,\)$"),
        ({"scale": np.ones(3)}, "^scale: expected a scalar"),
        ({"scale": np.ones(2), "axis": 1}, r"^scale: expected .*\(3,\)"),
        ({"scale": 0.0}, "^scale: expected"),
        ({"scale": np.nan}, "^scale: expected"),
        ({"zero_point": 128}, "^zero_point: expected -128 to 127 for int8, got 128$"),
        ({"zero_point": 1, "dtype": "float8_e4m3fn"}, "^zero_point: expected 0 for float8_e4m3fn, got 1$"),
        ({"axis": 2, "scale": np.ones(3)}, "^axis: expected"),
        ({"dtype": "int3"}, "^dtype: expected one of"),
        ({"grad_factor": math.inf}, "^grad_factor: expected a finite number, got inf$"),
    ],
)
def test_wrong_arguments(arguments, message):
    given = {"grad": np.ones((2, 3)), "x": np.ones((2, 3)), "scale": 0.1} | arguments
    with pytest.raises(InvalidArgumentError, match=message):
        fake_quantize_backward(**given)


@pytest.mark.parametrize("name", ["grad", "x", "scale", "grad_factor"])
def test_wrong_types(name):
    given = {"grad": np.ones((2, 3)), "x": np.ones((2, 3)), "scale": 0.1} | {name: "one"}
    with pytest.raises(TypeError, match=f"^{name}: expected"):
        fake_quantize_backward(**given)
    with pytest.raises(TypeError, match=r"^return_mask: expected a bool"):
        fake_quantize(1.0, 0.1, return_mask=1)


# --- QatLayer --------------------------------------------------------------------------------------------

CONFIGS = [QatConfig(bits, per_channel, symmetric) for bits in QuantBits for per_channel in (False, True)
           for symmetric in (False, True)]  # fmt: skip
every_config = pytest.mark.parametrize(
    "config", CONFIGS, ids=lambda c: f"{c.bits.value}{'-channel' * c.per_channel}{'-symmetric' * c.symmetric}"
)


def trained_layer(config, learn_scales=True):
    """A layer whose scales clip some weights and some of the inputs returned with it."""
    weights, x = rng(20).normal(size=(6, 30)), rng(21).normal(size=(16, 30))
    layer = QatLayer.from_weights(weights, rng(22).normal(size=6), config, learn_scales=learn_scales)
    layer.calibrate_from_data(x)
    layer.weight_scale = np.asarray(layer.weight_scale) * 0.5
    layer.activation_scale *= 0.5
    return layer, x


def smooth_part(layer, values, scale, zero_point, symmetric):
    """Fake quantisation of a layer's values as a function of values and scale, rounding and clipping as they are."""
    if layer.config.bits is QuantBits.FP8:
        least, greatest, zero_point = -448.0, 448.0, 0
        nearest = qatcore.quantize_fp8(values / scale)
        passes = np.abs(values / scale) <= 448.0
    else:
        greatest = {QuantBits.INT2: 1, QuantBits.INT4: 7, QuantBits.INT8: 127}[layer.config.bits]
        least = -greatest if symmetric else -greatest - 1
        v = values / scale + zero_point
        code = np.trunc(v + np.copysign(0.49999999999999994, v))
        nearest, passes = code - zero_point, (code >= least) & (code <= greatest)
    offset = nearest - values / scale
    end = np.where(values / scale < 0, least - zero_point, greatest - zero_point)
    return lambda new, s: np.where(passes, new + s * offset, s * end)


@every_config
def test_layer_gradients_are_finite_differences_of_the_smooth_part(config):
    layer, x = trained_layer(config)
    out = layer.forward_train(x)
    grad_output = rng(23).normal(size=out.shape)
    grad_input = layer.backward(grad_output)

    def column(parameter):
        return np.asarray(parameter)[:, np.newaxis] if config.per_channel else parameter

    s_x, s_w, w, b = layer.activation_scale, layer.weight_scale, layer.weights, layer.bias
    activations = smooth_part(layer, x, s_x, layer.activation_zero_point, False)
    weights = smooth_part(layer, w, column(s_w), column(layer.weight_zero_point), config.symmetric)

    def loss(x=x, s_x=s_x, w=w, s_w=s_w, b=b):
        return (grad_output * (activations(x, s_x) @ weights(w, column(s_w)).T + b)).sum()

    np.testing.assert_allclose(activations(x, s_x) @ weights(w, column(s_w)).T + b, out, rtol=1e-12, atol=1e-12)

    def differences(name, value):
        value = np.asarray(value, np.float64)
        result = np.empty(value.shape)
        for index in np.ndindex(value.shape):
            step = np.zeros(value.shape)
            step[index] = 1e-5
            result[index] = (loss(**{name: value + step}) - loss(**{name: value - step})) / 2e-5
        return result

    close = {"rtol": 1e-6, "atol": 1e-6}
    np.testing.assert_allclose(grad_input, differences("x", x), **close)
    np.testing.assert_allclose(layer.grad_weights, differences("w", w), **close)
    np.testing.assert_allclose(layer.grad_bias, differences("b", b), **close)
    greatest = {QuantBits.INT2: 1, QuantBits.INT4: 7, QuantBits.INT8: 127, QuantBits.FP8: 448}[config.bits]
    n = 30 if config.per_channel else 180
    np.testing.assert_allclose(layer.grad_weight_scale, differences("s_w", s_w) / math.sqrt(n * greatest), **close)
    np.testing.assert_allclose(layer.grad_activation_scale, differences("s_x", s_x) / math.sqrt(30 * greatest), **close)
    assert np.count_nonzero(grad_input == 0.0) > 3
    assert np.count_nonzero(layer.grad_weights == 0.0) > 3


@every_config
def test_what_was_trained_is_what_runs(config):
    layer, x = trained_layer(config)
    for _ in range(20):
        out = layer.forward_train(x)
        layer.backward(out - 1.0)
        layer.weights = layer.weights - 0.01 * layer.grad_weights
        layer.bias = layer.bias - 0.01 * layer.grad_bias
        layer.weight_scale = np.maximum(layer.weight_scale - 0.001 * np.asarray(layer.grad_weight_scale), 1e-3)
        layer.activation_scale = max(layer.activation_scale - 0.001 * layer.grad_activation_scale, 1e-3)
    trained = layer.forward_train(x)
    size = np.abs(x).sum(axis=1, keepdims=True) * np.abs(layer.weights).max()
    assert np.all(np.abs(layer.forward_infer(x) - trained) <= 30 * 2.0**-52 * size)
    assert np.abs(trained - 1.0).mean() < np.abs(trained_layer(config)[0].forward_train(x) - 1.0).mean()


@pytest.mark.parametrize("kind", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int32])
def test_layer_gradients_have_the_shape_and_type_of_the_input(kind):
    layer, x = trained_layer(QatConfig(per_channel=True))
    for shape in ((30,), (16, 30), (0, 30)):
        given = np.resize(x * 3, shape).astype(kind)
        out = layer.forward_train(given)
        grad_input = layer.backward(np.ones_like(out))
        assert grad_input.shape == shape
        assert grad_input.dtype == (np.float64 if kind is np.int32 else kind)
        assert layer.grad_weights.shape == (6, 30)
        assert layer.grad_bias.shape == layer.grad_weight_scale.shape == (6,)


def test_backward_is_for_the_parameters_that_were_used():
    layer, x = trained_layer(QatConfig())
    given = x.copy()
    layer.forward_train(given)
    given[...] = 0.0
    layer.weights, layer.weight_scale, layer.activation_scale = np.zeros((6, 30)), 1.0, 1.0
    layer.config = QatConfig(QuantBits.INT4)
    changed = layer.backward(np.ones((16, 6)))
    other, _ = trained_layer(QatConfig())
    other.forward_train(x)
    np.testing.assert_array_equal(changed, other.backward(np.ones((16, 6))))
    np.testing.assert_array_equal(layer.grad_weights, other.grad_weights)
    assert layer.grad_weight_scale == other.grad_weight_scale


def test_backward_belongs_to_a_forward():
    layer, x = trained_layer(QatConfig(), learn_scales=False)
    with pytest.raises(
        InvalidArgumentError, match=r"^backward: expected a call of forward_train since the last backward, got none"
    ):
        layer.backward(np.ones((16, 6)))
    layer.forward_infer(x)
    with pytest.raises(InvalidArgumentError, match=r"^backward"):
        layer.backward(np.ones((16, 6)))
    layer.forward_train(x)
    with pytest.raises(InvalidArgumentError, match=r"^grad_output: expected shape \(16, 6\), got \(6, 16\)$"):
        layer.backward(np.ones((6, 16)))
    with pytest.raises(TypeError, match=r"^grad_output: expected real numbers"):
        layer.backward(np.ones((16, 6), complex))
    assert layer.grad_weights is None
    copy = pickle.loads(pickle.dumps(layer))  # without what is needed for it
    with pytest.raises(InvalidArgumentError, match=r"^backward"):
        copy.backward(np.ones((16, 6)))
    layer.backward(np.ones((16, 6)))
    assert layer.grad_weight_scale is None
    assert layer.grad_activation_scale is None
    assert not layer.learn_scales
    with pytest.raises(InvalidArgumentError, match=r"^backward"):
        layer.backward(np.ones((16, 6)))


def test_fp8_knows_no_zero_point():
    layer = QatLayer.from_weights(np.eye(2), config=QatConfig(QuantBits.FP8), learn_scales=True)
    layer.activation_scale = 1.0
    x = np.array([[-400.0, 400.0], [500.0, 1.0]])
    results = []
    for zero_point in (0, 100):
        layer.activation_zero_point = layer.weight_zero_point = zero_point
        layer.forward_train(x)
        results.append((layer.backward(np.ones((2, 2))), layer.grad_weights, layer.grad_activation_scale))
    for a, b in zip(*results, strict=True):
        np.testing.assert_array_equal(a, b)


def test_huge_batches_leave_a_usable_range():
    layer = QatLayer(3, 2)
    layer.observe(0.5)
    for x in ([[1.7e308, -1.7e308, 0.0]], [[-1.7e308, 0.0, 0.0]], [[1.7e308, 1.0, 1.0]]):
        layer.forward_train(x)
        assert np.isfinite(layer.activation_range).all()
        assert 0.0 < layer.activation_scale < np.inf


@pytest.mark.parametrize("bits", QuantBits)
def test_values_at_scale_zero_pass(bits):
    layer, x = trained_layer(QatConfig(bits, per_channel=True))
    layer.activation_scale = 0.0
    layer.weight_scale = np.where(np.arange(6) == 2, 0.0, layer.weight_scale)
    grad_output = rng(24).normal(size=(16, 6))
    layer.forward_train(x)
    grad_input = layer.backward(grad_output)
    assert np.count_nonzero(grad_input) == grad_input.size
    np.testing.assert_allclose(layer.grad_weights[2], grad_output[:, 2] @ x, rtol=1e-12)
    assert layer.grad_weight_scale[2] == 0.0
    assert layer.grad_activation_scale == 0.0


@pytest.mark.parametrize("bits", [QuantBits.INT8, QuantBits.INT4])
def test_ranges_are_followed_as_pytorch_follows_them(bits):
    quantization = pytest.importorskip("torch.ao.quantization", reason="compares with PyTorch")
    torch = pytest.importorskip("torch")
    low, high = LIMITS[bits.value]
    observer = quantization.FusedMovingAvgObsFakeQuantize(
        quant_min=low, quant_max=high, dtype=torch.qint8, averaging_constant=0.1
    )
    layer = QatLayer(30, 6, QatConfig(bits))
    layer.observe(0.1)
    assert layer.observing
    for step in range(5):
        x = rng(30 + step).normal(size=(16, 30), loc=step).astype(np.float32)
        fake_quantised = observer(torch.tensor(x))
        layer.forward_train(x)
        own_low, own_high = layer.activation_range
        np.testing.assert_allclose(own_low, float(observer.activation_post_process.min_val), rtol=1e-5)
        np.testing.assert_allclose(own_high, float(observer.activation_post_process.max_val), rtol=1e-5)
        scale, zero_point = observer.calculate_qparams()
        np.testing.assert_allclose(layer.activation_scale, float(scale), rtol=1e-5)
        assert layer.activation_zero_point == int(zero_point)
        ours = fake_quantize(x, float(scale), int(zero_point), dtype=bits)
        np.testing.assert_allclose(fake_quantised.numpy(), ours, rtol=1e-5, atol=float(scale) * 1e-4)
    layer.freeze()
    assert not layer.observing
    frozen = layer.activation_scale, layer.activation_zero_point, layer.activation_range
    layer.forward_train(100 * x)
    assert (layer.activation_scale, layer.activation_zero_point, layer.activation_range) == frozen


def test_observing_sets_the_weights_scales_too():
    layer = QatLayer.from_weights(rng(40).normal(size=(4, 8)), config=QatConfig(per_channel=True))
    layer.weights = layer.weights * 3.0
    stale = layer.weight_scale
    layer.forward_train(np.ones(8))
    np.testing.assert_array_equal(layer.weight_scale, stale)
    layer.observe()
    layer.forward_train(np.ones(8))
    np.testing.assert_array_equal(layer.weight_scale, np.abs(layer.weights).max(axis=1) / 127)


def test_what_observing_leaves_alone():
    layer = QatLayer(3, 2)
    layer.observe()
    for x in (np.empty((0, 3)), np.full((2, 3), np.nan)):
        layer.forward_train(x)
        assert layer.activation_range is None
    with pytest.raises(InvalidArgumentError, match=r"^x: expected 3 inputs"):
        layer.forward_train(np.ones(4))
    assert layer.activation_range is None
    layer.forward_train([np.inf, 1.0, -2.0])
    assert layer.activation_range == (-2.0, 1.0)
    assert pickle.loads(pickle.dumps(layer)).activation_range == (-2.0, 1.0)
    for wrong in (0.0, 1.5, math.nan):
        with pytest.raises(InvalidArgumentError, match=r"^averaging_constant: expected a number above 0, at most 1"):
            layer.observe(wrong)
    with pytest.raises(TypeError, match=r"^averaging_constant"):
        layer.observe("often")
    with pytest.raises(TypeError, match=r"^learn_scales: expected a bool"):
        QatLayer(3, 2, learn_scales=1)
