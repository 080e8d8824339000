"""Inputs that users may pass, the functions that take them, and the results.

`FUNCTIONS` holds every public function that reads an array, and `LAYOUTS` every way to lay one out.  `int_formula` and
`infer` compute results in exact Python arithmetic.
"""

import math
from fractions import Fraction
from functools import partial
from types import SimpleNamespace

import ml_dtypes
import numpy as np
import pytest

import qatcore
from qatcore import CalibMethod, QatConfig, QuantBits, reference
from qatcore._base.arrays import as_plain_array

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)

FLOATS = [np.dtype(np.float64), np.dtype(np.float32), np.dtype(np.float16), BFLOAT16]
INTEGERS = [np.dtype(code) for code in "bBhHiIlLqQ"]
BOOL = np.dtype(np.bool_)

each_module = pytest.mark.parametrize("module", [qatcore, reference], ids=["qatcore", "reference"])

# --- comparing ---------------------------------------------------------------------------------------


def assert_same(actual, expected):
    """Require the same types, shapes, dtypes and bits, also the sign of zero; any NaN equals any NaN."""
    assert type(actual) is type(expected)
    if isinstance(expected, (tuple, list)):
        assert len(actual) == len(expected)
        for a, e in zip(actual, expected, strict=True):
            assert_same(a, e)
    elif isinstance(expected, (np.ndarray, np.generic, float)):
        actual, expected = np.asarray(actual), np.asarray(expected)
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        with np.errstate(all="ignore"):  # comparing a signalling NaN may warn
            given = expected == expected  # noqa: PLR0124 (not NaN, for every dtype)
            assert np.array_equal(actual == actual, given)  # noqa: PLR0124
        assert actual[given].tobytes() == expected[given].tobytes()
    else:
        assert actual == expected


def state(collector):
    """Return everything that a collector of either module reports."""
    methods = [collector.min_max_scale(), collector.percentile_scale(90.0), collector.kl_divergence_scale()]
    values = [collector.n_elements, collector.min_val, collector.max_val, methods]
    if isinstance(collector, reference.CalibrationCollector):
        return [*values, collector.samples, collector.histogram]
    counts = [collector.n_zero, collector.n_nan, collector.n_posinf, collector.n_neginf]
    return [*values, counts, collector.mse_scale(), *collector.histogram()]


def layer_state(layer):
    """Return the public state of a layer of either module."""
    names = ["weight_scale", "weight_zero_point", "activation_scale", "activation_zero_point"]
    parameters = [np.array(layer.weights), np.array(layer.bias), *(getattr(layer, name) for name in names)]
    return [layer.in_features, layer.out_features, layer.config, *parameters]


# --- the formulas, exactly ---------------------------------------------------------------------------

CODES = {QuantBits.INT8: (-128, 127), QuantBits.INT4: (-8, 7), QuantBits.INT2: (-2, 1)}
E4M3_VALUES = [float(v) for v in np.arange(127, dtype=np.uint8).view(E4M3)]  # code -> magnitude


def round_half_away(v):
    """Return the integer nearest to a finite float, ties away from zero."""
    nearest = math.floor(abs(Fraction(v)) + Fraction(1, 2))
    return -nearest if v < 0.0 else nearest


def divided(a, b):
    """Return a / b for floats, as IEEE 754 defines it."""
    if b:
        return a / b
    return math.nan if math.isnan(a) or a == 0.0 else math.copysign(math.inf, a) * math.copysign(1.0, b)


def integer_code(x, scale, zero_point, low, high):
    """Return the code of x in the reference: NaN gives 0, and everything else saturates."""
    v = divided(x, scale) + zero_point
    if math.isnan(v):
        return 0
    if math.isinf(v):
        return low if v < 0 else high
    return min(max(round_half_away(v), low), high)


def wrapped_int32(i):
    return (i + 2**31) % 2**32 - 2**31


def int_formula(bits, x, scale, zero_point):
    """Return the result of `quantize_int8` or `quantize_int4` for a float."""
    if scale == 0.0:
        return x
    code = integer_code(x, scale, zero_point, *CODES[bits])
    return float(wrapped_int32(code - zero_point)) * scale


def nearest_e4m3(x):
    """Return the nearest E4M3 value, ties to the even code, saturated; NaN stays NaN."""
    if math.isnan(x):
        return x
    magnitude = Fraction(min(abs(x), 448.0))
    code = min(range(127), key=lambda c: (abs(Fraction(E4M3_VALUES[c]) - magnitude), c % 2))
    return math.copysign(E4M3_VALUES[code], x)


def infer(layer, x):
    """Return `QatLayer.forward_infer` of one row, from the layer's public parameters, with exact sums."""
    config, (out, _) = layer.config, layer.weights.shape
    x = [float(v) for v in x]
    scales = np.broadcast_to(layer.weight_scale, out).tolist()
    zero_points = np.broadcast_to(layer.weight_zero_point, out).tolist()
    result = []
    for row, scale, zero_point, bias in zip(layer.weights.tolist(), scales, zero_points, layer.bias, strict=True):
        if config.bits is QuantBits.FP8:
            qx = [nearest_e4m3(divided(v, layer.activation_scale)) for v in x]
            qw = [nearest_e4m3(divided(w, scale)) for w in row]
            total = math.nan
            if not any(map(math.isnan, qx + qw)):
                total = sum(Fraction(a) * Fraction(b) for a, b in zip(qx, qw, strict=True))
        else:
            low, high = CODES[config.bits]
            zx = layer.activation_zero_point
            qx = [integer_code(v, layer.activation_scale, zx, low, high) for v in x]
            qw = [integer_code(w, scale, zero_point, -high if config.symmetric else low, high) for w in row]
            total = sum((a - zx) * (b - zero_point) for a, b in zip(qx, qw, strict=True))
        result.append(float(total) * (layer.activation_scale * scale) + float(bias))
    return result


# --- every function ----------------------------------------------------------------------------------

CONFIGS = [
    QatConfig(bits, per_channel, symmetric)
    for bits in QuantBits
    for per_channel in (False, True)
    for symmetric in (False, True)
]
REFERENCE_CONFIGS = [config for config in CONFIGS if config.bits is not QuantBits.INT2]


def make_layer(module=qatcore, config=None, shape=(5, 4)):
    """Return a calibrated layer with random weights, the same in each call."""
    config = config or QatConfig()
    rng = np.random.default_rng(7)
    weights, bias = rng.normal(size=shape), rng.normal(size=shape[0])
    if module is qatcore:
        layer = qatcore.QatLayer.from_weights(weights, bias, config)
    else:
        layer = reference.QatLayer(shape[1], shape[0], config)
        layer.weights, layer.bias = weights, bias
    layer.calibrate_from_data(np.linspace(-1.0, 3.0, 300))
    return layer


def _observe(module, x):
    collector = module.CalibrationCollector()
    collector.observe(x)
    return state(collector)


def _observe_masked(mask):
    collector = qatcore.CalibrationCollector()
    collector.observe(np.arange(12.0).reshape(3, 4), mask=mask)
    return state(collector)


def _calibrate_layer(module, x):
    return [module.calibrate_layer([x, x], method) for method in (CalibMethod.MIN_MAX, CalibMethod.KL)]


def _calibrate_model(module, x):
    return [(spec.scale, spec.zero_point) for spec in module.calibrate_model({"a": [x], "b": [x, x]})]


def _dataset(x):
    dataset = qatcore.CalibrationDataset()
    dataset.push(x)
    return qatcore.calibrate_layer(dataset)


def _from_weights(x):
    layer = qatcore.QatLayer.from_weights(x, config=QatConfig(per_channel=True))
    return [layer.weight_scale, layer.forward_infer(np.ones(4))]


def _assigned(module, name, x):
    layer = make_layer(module, QatConfig(per_channel=module is qatcore), shape=(3, 4) if name == "weights" else (4, 4))
    setattr(layer, name, x)
    return [layer.forward_infer(np.ones(4)), layer.forward_train(np.ones(4))]


def _calibrated(module, x):
    layer = make_layer(module)
    layer.calibrate_from_data(x)
    return layer_state(layer)


def _packed(b):
    packed = qatcore.PackedInt8Matrix(b)
    return [packed.shape, packed.column_sums, qatcore.int8_matmul(np.eye(packed.shape[0], dtype=np.int8), packed)]


def _forward(module, method, config, x):
    return getattr(make_layer(module, config), method)(x)


def _gradients(x):
    try:
        shape = as_plain_array(x, "x").shape
    except (TypeError, ValueError):  # x is no array
        shape = ()
    # Division by this scale is exact in every type, and the gradients are 0 or 1.
    grad_x, *others = qatcore.fake_quantize_backward(np.ones(shape), x, 0.5, 3)
    return [grad_x.astype(np.float64), *others]


def _backward(grad_output):
    layer = make_layer(shape=(4, 5))
    layer.forward_train(np.linspace(-1.0, 1.0, 15).reshape(3, 5))
    return [layer.backward(grad_output), layer.grad_weights, layer.grad_bias]


class Function:
    """A public function of one array.

    `kind` says what the array holds, and `argument` is its name in messages.  `result` is the type of the result:
    "like" for the floating type of the argument, "float64", or None if it does not depend on that type.
    """

    def __init__(self, call, kind, argument, result=None):
        self.call, self.kind, self.argument, self.result = call, kind, argument, result

    def __call__(self, x):
        return self.call(x)


def _functions():
    every = {}
    for prefix, module in (("", qatcore), ("reference.", reference)):
        result = "like" if module is qatcore else "float64"
        for name in ("quantize_int8", "quantize_int4"):
            call = partial(getattr(module, name), scale=0.37, zero_point=3)
            every[prefix + name] = Function(call, "matrix", "x", result)
        every[prefix + "quantize_fp8"] = Function(module.quantize_fp8, "matrix", "x", result)
        for name, call, argument in (
            ("CalibrationCollector.observe", _observe, "x" if module is qatcore else "tensor"),
            ("calibrate_layer", _calibrate_layer, "x" if module is qatcore else "tensor"),
            ("calibrate_model", _calibrate_model, "x" if module is qatcore else "tensor"),
            ("QatLayer.calibrate_from_data", _calibrated, "x|activations"),
        ):
            every[prefix + name] = Function(partial(call, module), "matrix", argument)
        for name in ("weights", "bias"):
            call = partial(_assigned, module, name)
            every[f"{prefix}QatLayer.{name}"] = Function(call, "matrix" if name == "weights" else "vector", name)
        for method in ("forward_train", "forward_infer"):
            for config in CONFIGS if module is qatcore else REFERENCE_CONFIGS[:1]:
                call = partial(_forward, module, method, config)
                options = f"[{config.bits.value},{config.per_channel:d},{config.symmetric:d}]"
                every[f"{prefix}QatLayer.{method}{options}"] = Function(call, "matrix", "x", result)
        call = partial(module.dequantize_weights, scale=0.37, zero_point=3)
        every[prefix + "dequantize_weights"] = Function(call, "codes", "codes|weights")
    for config in CONFIGS:
        options = f"[{config.bits.value},{config.per_channel:d},{config.symmetric:d}]"
        call = partial(qatcore.quantize_model_weights, config=config)
        every["quantize_model_weights" + options] = Function(call, "matrix", "weights")
    for dtype, zero_point in (("int8", 3), ("uint8", 131), ("float8_e4m3fn", 0)):
        # Every floating type holds this scale, so float64 and the other types agree.
        arguments = {"scale": 0.375, "zero_point": zero_point, "dtype": dtype}
        every[f"quantize[{dtype}]"] = Function(partial(qatcore.quantize, **arguments), "matrix", "x")
        every[f"fake_quantize[{dtype}]"] = Function(partial(qatcore.fake_quantize, **arguments), "matrix", "x", "like")
    right, left = np.arange(8, dtype=np.int8).reshape(4, 2), np.arange(6, dtype=np.int8).reshape(2, 3)
    scales, codes = np.linspace(0.1, 0.4, 4), np.arange(12, dtype=np.int8).reshape(4, 3)
    every |= {
        "QatLayer.from_weights": Function(_from_weights, "matrix", "weights"),
        "CalibrationDataset.push": Function(_dataset, "matrix", "row"),
        "CalibrationCollector.observe[mask]": Function(_observe_masked, "mask", "mask"),
        "reference.quantize_model_weights": Function(reference.quantize_model_weights, "matrix", "weights|tensor"),
        "reference.kl_divergence_symmetric": Function(
            lambda p: reference.kl_divergence_symmetric(p, scales), "vector", "p"
        ),
        "reference.kl_divergence_symmetric[q]": Function(
            lambda q: reference.kl_divergence_symmetric(scales, q), "vector", "q"
        ),
        "dequantize_weights[fp8]": Function(partial(qatcore.dequantize_weights, scale=0.37), "fp8 codes", "codes"),
        "dequantize_weights[scale]": Function(lambda s: qatcore.dequantize_weights(codes, s, 3), "vector", "scale"),
        "dequantize_weights[zero_point]": Function(
            lambda z: qatcore.dequantize_weights(codes, scales, z), "integers", "zero_point"
        ),
        "quantize[zero_point]": Function(
            lambda z: qatcore.quantize(codes / 3, scales, z, axis=0), "integers", "zero_point"
        ),
        "fake_quantize[zero_point]": Function(
            lambda z: qatcore.fake_quantize(codes / 3, scales, z, axis=0), "integers", "zero_point"
        ),
        "fake_quantize_backward[x]": Function(_gradients, "matrix", "x"),
        "fake_quantize_backward[grad]": Function(
            lambda grad: qatcore.fake_quantize_backward(grad, codes.T / 3, 0.375, 3), "matrix", "grad"
        ),
        "QatLayer.backward": Function(_backward, "matrix", "grad_output"),
        "dequantize[int8]": Function(partial(qatcore.dequantize, scale=0.37, zero_point=3), "any codes", "codes"),
        "dequantize[float8_e4m3fn]": Function(partial(qatcore.dequantize, scale=0.37), "fp8 codes", "codes"),
        "dequantize[zero_point]": Function(
            lambda z: qatcore.dequantize(codes, scales, z, axis=0), "integers", "zero_point"
        ),
        "int8_linear[a]": Function(lambda a: qatcore.int8_linear(a, right, 0.3, [1.0, 2.0]), "codes", "a"),
        "int8_linear[b]": Function(lambda b: qatcore.int8_linear(left, b, scales, a_zero_point=7), "codes", "b"),
        "int8_linear[scale]": Function(lambda s: qatcore.int8_linear(codes, codes.T, s, 2.0), "vector", "scale"),
        "int8_linear[bias]": Function(lambda bias: qatcore.int8_linear(codes, codes.T, 0.3, bias), "vector", "bias"),
        "int8_linear[b_zero_point]": Function(
            lambda z: qatcore.int8_linear(codes, codes.T, 0.3, b_zero_point=z), "integers", "b_zero_point"
        ),
        "PackedInt8Matrix": Function(_packed, "codes", "b"),
        "int8_matmul[a]": Function(lambda a: qatcore.int8_matmul(a, right), "codes", "a"),
        "int8_matmul[b]": Function(lambda b: qatcore.int8_matmul(left, b), "codes", "b"),
        "QatLayer.weight_scale": Function(partial(_assigned, qatcore, "weight_scale"), "vector", "weight_scale"),
        "QatLayer.weight_zero_point": Function(
            partial(_assigned, qatcore, "weight_zero_point"), "integers", "weight_zero_point"
        ),
    }
    return every


FUNCTIONS = _functions()


each_function = pytest.mark.parametrize("name", FUNCTIONS)

ELEMENTWISE = [f"{prefix}quantize_{name}" for prefix in ("", "reference.") for name in ("int8", "int4", "fp8")]
each_elementwise = pytest.mark.parametrize("name", ELEMENTWISE)


def sample(kind, dtype=np.float64):
    """Return values of a kind; matrices and vectors have the type `dtype`."""
    rng = np.random.default_rng(11)
    return {
        "codes": lambda: rng.integers(-128, 128, (3, 4)).astype(np.int8),
        "any codes": lambda: rng.integers(-128, 128, (3, 4)).astype(np.int8),
        "fp8 codes": lambda: rng.integers(0, 256, (3, 4)).astype(np.uint8).view(E4M3),
        "mask": lambda: rng.integers(0, 2, (3, 4)).astype(np.bool_),
        "integers": lambda: np.array([-7, 0, 3, 100], np.int32),
        "vector": lambda: np.array([0.25, 0.0, 1.5, 3.0], dtype),
        "matrix": lambda: _matrix(rng, np.dtype(dtype)),
    }[kind]()


def _matrix(rng, dtype):
    """Return hard values among ordinary ones."""
    if dtype.kind in "biu":
        x = rng.integers(0, 2 if dtype.kind == "b" else 100, (3, 4)).astype(dtype)
        if dtype.kind != "b":
            x[0, :2] = np.iinfo(dtype).min, np.iinfo(dtype).max
        return x
    limits = ml_dtypes.finfo(dtype)
    x = (rng.normal(size=(3, 4)) * 3.0).astype(dtype)
    x[0] = np.nan, np.inf, -np.inf, -0.0
    x[1, :2] = limits.smallest_subnormal, limits.max / 4
    x[2, :2] = 0.37 * 1.5, -0.37 * 2.5
    return x


def of_kind(*kinds):
    """Return the names of the functions that take arrays of these kinds."""
    return [name for name, function in FUNCTIONS.items() if function.kind in kinds]


# --- every layout ------------------------------------------------------------------------------------


def fortran(x):
    return np.asfortranarray(x)


def strided(x):
    wide = np.zeros([3 * n for n in x.shape], x.dtype)
    out = wide[tuple(slice(1, None, 3) for _ in x.shape)]
    out[...] = x
    return out


def negative_strides(x):
    return np.flip(np.flip(x).copy())


def transposed(x):
    return np.ascontiguousarray(x.T).T


def misaligned(x):
    out = np.ndarray(x.shape, x.dtype, bytearray(x.nbytes + 1), offset=1)
    out[...] = x
    return out


def field_of_records(x):
    """Return a field of records, with strides that are no multiple of the item size."""
    records = np.zeros(x.shape, [("tag", np.uint8), ("value", x.dtype)])
    records["value"] = x
    return records["value"]


def read_only(x):
    x = x.copy()
    x.setflags(write=False)
    return x


def big_endian(x):
    return x.astype(x.dtype.newbyteorder(">"))


def memory_mapped(x, path):
    path = path / "x.bin"
    path.write_bytes(b"head." + x.tobytes())
    return np.memmap(path, x.dtype, "r", offset=5, shape=x.shape)


def convertible(x):
    class Tensor:
        def __array__(self, dtype=None, copy=None):
            return np.array(x, dtype)

    return Tensor()


def buffer(x):
    """Return an object that exposes NumPy's array interface and is no array."""
    return SimpleNamespace(__array_interface__=x.__array_interface__, owner=x)


def subclass(x):
    class Array(np.ndarray):
        pass

    return x.copy().view(Array)


def nested_list(x):
    """Return nested lists of NumPy scalars, which keep their type."""
    return [nested_list(row) for row in x] if x.ndim else x[()]


def nested_tuple(x):
    return tuple(list(row) if row.ndim else row[()] for row in x)


LAYOUTS = {
    f.__name__: f
    for f in (
        fortran,
        strided,
        negative_strides,
        transposed,
        misaligned,
        field_of_records,
        read_only,
        big_endian,
        memory_mapped,
        convertible,
        buffer,
        subclass,
        nested_list,
        nested_tuple,
    )
}


def laid_out(layout, x, path):
    """Return the values of x in a layout; `path` is a directory for files."""
    return memory_mapped(x, path) if layout == "memory_mapped" else LAYOUTS[layout](x)


# --- values worth quantising -------------------------------------------------------------------------


def hard_values(scale, zero_point):
    """Return ties and their neighbours, extremes, values that are not finite, and values of many magnitudes."""
    rng = np.random.default_rng(5)
    ties = [(k + 0.5 - zero_point) * scale for k in range(-131, 131)]
    near = [math.nextafter(t, side) for t in ties for side in (math.inf, -math.inf)]
    special = [0.0, -0.0, math.nan, math.inf, -math.inf, 5e-324, -5e-324, 1.7e308, -1.7e308]
    spread = rng.normal(size=200) * 2.0 ** rng.integers(-300, 300, 200)
    return np.array([*ties, *near, *special, *spread.tolist()])
