"""Quantising as ONNX does: against its runtime, exact fractions, NumPy's division and ml_dtypes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from digest import adversarial, random_bits, uniform, words
from inputs import BFLOAT16, E4M3, E4M3_VALUES, FLOATS, INTEGERS, LAYOUTS, assert_same, laid_out
from inputs import nearest_e4m3 as exact_e4m3

import qatcore
from qatcore import InvalidArgumentError, _dispatch, _threads, affine

every_level = pytest.mark.parametrize("level", _dispatch.available_levels(), indirect=True)
both_types = pytest.mark.parametrize("kind", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "float8_e4m3fn": (0, 0)}  # of zero points
INTEGER_FORMATS = [("int8", -128), ("int8", -3), ("int8", 127), ("uint8", 0), ("uint8", 131), ("uint8", 255)]
FORMATS = [*INTEGER_FORMATS, ("float8_e4m3fn", 0)]
every_format = pytest.mark.parametrize(("dtype", "zero_point"), FORMATS)
every_code_type = pytest.mark.parametrize("dtype", LIMITS)


# --- data ------------------------------------------------------------------------------------------------


def hard_scales(kind):
    """Around one and other powers of two, inexact, subnormal, at both ends."""
    info = np.finfo(kind)
    ones = [1.0, 1.0 - info.epsneg, 1.0 + info.eps, 2.0 - info.eps, 0.1, 1.0 / 3.0, 1e-3]
    ends = [info.smallest_subnormal, info.tiny * 0.3, info.tiny * (1.0 - info.eps), info.tiny, info.max / 3, info.max]
    return np.array([*ones, *ends], kind)


def near(x):
    """x and two neighbours on either side; some of what is not finite comes out as NaN."""
    integer = np.dtype(f"i{x.dtype.itemsize}")
    offsets = np.arange(-2, 3, dtype=integer)
    return (x.view(integer)[..., np.newaxis] + offsets).view(x.dtype).reshape(*x.shape[:-1], -1)


def near_multiples(points, scales):
    """Where x / scale is close to a point, a row a scale; the products are rounded once."""
    with np.errstate(over="ignore"):
        return near((points * scales.astype(np.float64)[:, np.newaxis]).astype(scales.dtype))


TIES = np.arange(-258, 258) + 0.5
# Between neighbours among E4M3's values, and where rounding would overflow.
MIDPOINTS = np.add(E4M3_VALUES, [*E4M3_VALUES[1:], 480.0]) / 2.0
E4M3_POINTS = np.concatenate([E4M3_VALUES, MIDPOINTS, [480.0, 512.0]])
E4M3_POINTS = np.concatenate([E4M3_POINTS, -E4M3_POINTS])


def hard_values(scale, dtype):
    """Hard ones for any scale, then for this."""
    scale = np.asarray(scale)
    points = E4M3_POINTS if dtype == "float8_e4m3fn" else TIES
    bits = random_bits(4_000, 60, scale.dtype)
    return np.concatenate([adversarial(scale.dtype), bits, near_multiples(points, scale.reshape(1))[0]])


SCALES = {
    "any": lambda mantissa, exponent, last: (mantissa, exponent),
    "mantissas of ones": lambda mantissa, exponent, last: (~np.zeros_like(mantissa), exponent),
    "above powers of two": lambda mantissa, exponent, last: (mantissa % 4, exponent),
    "near one": lambda mantissa, exponent, last: (mantissa, last // 2 - exponent % 2),
    "subnormal": lambda mantissa, exponent, last: (mantissa >> exponent % 20, exponent * 0),
    "small": lambda mantissa, exponent, last: (mantissa, 1 + exponent % 60),
    "great": lambda mantissa, exponent, last: (mantissa, last - exponent % 3),
}


def many_scales(name, kind, n):
    info = np.finfo(kind)
    mantissa, exponent = words(2 * n, 61).reshape(2, n)
    last = 2 * info.maxexp - 2  # the biased exponent of the greatest numbers
    mantissa, exponent = SCALES[name](mantissa >> np.uint64(64 - info.nmant), exponent % np.uint64(last + 1), last)
    bits = (exponent << np.uint64(info.nmant)) | (mantissa & np.uint64(2**info.nmant - 1))
    scales = np.maximum(bits, 1).astype(f"u{kind.itemsize}").view(kind)
    if name == "great":
        scales[0] = info.max
    return scales


# --- oracles ---------------------------------------------------------------------------------------------


def divided(x, scale):
    with np.errstate(all="ignore"):
        return x / scale


def nearest_e4m3(v):
    """The codes nearest to v by bisection over the midpoints."""
    magnitude = np.abs(v)
    code = np.searchsorted(MIDPOINTS[:-1], magnitude, side="left")  # a tie stays below ...
    tie = MIDPOINTS[np.minimum(code, 125)] == magnitude
    code += tie & (code < 126) & (code % 2 == 1)  # ... unless that code is odd
    code = np.where(np.isnan(v), 127, code) + np.where(np.signbit(v), 128, 0)
    return code.astype(np.uint8).view(E4M3)


def codes_of(quotient, zero_point, dtype):
    """What NumPy makes of x / scale."""
    if dtype == "float8_e4m3fn":
        return nearest_e4m3(quotient)
    least, greatest = LIMITS[dtype]
    steps = np.rint(np.where(np.isnan(quotient), 0.0, quotient))
    return (np.clip(steps, least - zero_point, greatest - zero_point) + zero_point).astype(dtype)


def values_of(codes, scale, zero_point):
    """(codes - zero_point) * scale in the scale's type."""
    steps = codes if codes.dtype == E4M3 else codes.astype(np.int32) - zero_point
    with np.errstate(over="ignore"):
        return steps.astype(scale.dtype) * scale


def rounded(exact, kind):
    """A fraction rounded to a float of a type, half to even."""
    info = np.finfo(kind)
    if not exact:
        return 0.0
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, info.minexp) - info.nmant)
    result = round(exact / step) * step  # half to even
    if abs(result) > Fraction(float(info.max)):
        return math.inf if result > 0 else -math.inf
    return float(result)


def exact_code(x, scale, zero_point, dtype):
    """The code of x: the quotient rounded to their type, that rounded to a step, the step moved and saturated."""
    least, greatest = LIMITS[dtype]
    if math.isnan(x):
        return zero_point
    if math.isinf(x):
        return greatest if x > 0 else least
    quotient = rounded(Fraction(float(x)) / Fraction(float(scale)), x.dtype)
    if math.isinf(quotient):
        return greatest if quotient > 0 else least
    return min(max(round(Fraction(quotient)) + zero_point, least), greatest)


ONNX_TYPES = {"float32": "FLOAT", "int8": "INT8", "uint8": "UINT8", "float8_e4m3fn": "FLOAT8E4M3FN"}


def by_onnx_runtime(operator, x, scale, zero_point, axis=0):
    """The operator on the CPU.

    Its arguments are constants and codes of E4M3 leave as floats: from NumPy, the runtime takes no E4M3.
    """
    import onnx
    import onnxruntime

    def type_of(array):
        return getattr(onnx.TensorProto, ONNX_TYPES[array.dtype.name])

    arguments = {"x": x, "scale": scale, "zero_point": zero_point}
    constants = [
        onnx.helper.make_tensor(name, type_of(array), array.shape, array.tobytes(), raw=True)
        for name, array in arguments.items()
    ]
    nodes = [onnx.helper.make_node(operator, list(arguments), ["y"], axis=axis)]
    result = zero_point if operator == "QuantizeLinear" else scale
    if result.dtype == E4M3:
        nodes.append(onnx.helper.make_node("Cast", ["y"], ["values"], to=onnx.TensorProto.FLOAT))
    name, of = ("values", onnx.TensorProto.FLOAT) if result.dtype == E4M3 else ("y", type_of(result))
    outputs = [onnx.helper.make_tensor_value_info(name, of, x.shape)]
    graph = onnx.helper.make_graph(nodes, "graph", [], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # other tests fork
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0].astype(result.dtype)


# --- ONNX Runtime ----------------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("scale", hard_scales(np.float32), ids=repr)
def test_quantize_equals_onnx_runtime(scale, dtype, zero_point):
    x = hard_values(scale, dtype)
    x = x[~np.isnan(x)]
    expected = by_onnx_runtime("QuantizeLinear", x, np.array(scale), np.array(zero_point).astype(dtype))
    assert_same(qatcore.quantize(x, scale, zero_point, dtype=dtype), expected)


def channels(shape, axis, dtype):
    """Scales, zero points and values that are hard for them."""
    count = shape[axis]
    scale = np.resize(hard_scales(np.float32), count)
    least, greatest = LIMITS[dtype]
    zero_point = np.resize([least, greatest, (least + greatest) // 3, 0], count).astype(dtype)
    broadcast = np.expand_dims(scale, tuple(i for i in range(len(shape)) if i != axis % len(shape)))
    points = np.concatenate([adversarial(np.float32), E4M3_POINTS.astype(np.float32)])
    with np.errstate(over="ignore"):
        x = np.resize(points[~np.isnan(points)][::-1], shape) * broadcast
    x[np.isnan(x)] = 0.0
    return x, scale, zero_point


@every_code_type
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("shape", [(13, 26, 39), (26, 3, 300), (2, 600, 13)])
def test_axis_equals_onnx_runtime(shape, axis, dtype):
    x, scale, zero_point = channels(shape, axis, dtype)
    codes = by_onnx_runtime("QuantizeLinear", x, scale, zero_point, axis)
    given = zero_point if codes.dtype != E4M3 else 0
    assert_same(qatcore.quantize(x, scale, given, dtype=dtype, axis=axis), codes)
    values = by_onnx_runtime("DequantizeLinear", codes, scale, zero_point, axis)
    assert_same(qatcore.dequantize(codes, scale, given, axis=axis), values)
    assert_same(qatcore.fake_quantize(x, scale, given, dtype=dtype, axis=axis), values)


@every_format
@pytest.mark.parametrize("scale", hard_scales(np.float32), ids=repr)
def test_dequantize_equals_onnx_runtime(scale, dtype, zero_point):
    codes = np.arange(256, dtype=np.uint8).view(dtype)
    expected = by_onnx_runtime("DequantizeLinear", codes, np.array(scale), np.array(zero_point).astype(dtype))
    assert_same(qatcore.dequantize(codes, scale, zero_point), expected)


# --- exact arithmetic ------------------------------------------------------------------------------------


@both_types
@pytest.mark.parametrize(("dtype", "zero_point"), INTEGER_FORMATS)
def test_quantize_in_fractions(kind, dtype, zero_point):
    least, greatest = LIMITS[dtype]
    steps = np.unique([least - zero_point - 1, least - zero_point, -1, 0, 1, greatest - zero_point]) + 0.5
    many = np.concatenate([many_scales(name, kind, 3) for name in SCALES])
    for scale in [*hard_scales(kind), *many]:
        x = np.concatenate([near_multiples(steps, scale.reshape(1))[0], adversarial(kind)[-10:]])
        expected = np.array([exact_code(v, scale, zero_point, dtype) for v in x], dtype)
        assert_same(qatcore.quantize(x, scale, zero_point, dtype=dtype), expected)
        assert_same(codes_of(divided(x, scale), zero_point, dtype), expected)  # the oracle of other tests


@both_types
@every_format
def test_dequantize_in_fractions(kind, dtype, zero_point):
    codes = np.arange(256, dtype=np.uint8).view(dtype)
    for scale in hard_scales(kind):
        steps = [float(code) - zero_point for code in codes]
        exact = [
            v if math.isnan(v) else math.copysign(rounded(Fraction(v) * Fraction(float(scale)), kind), v) for v in steps
        ]
        expected = np.array(exact, kind)
        assert_same(qatcore.dequantize(codes, scale, zero_point, dtype=kind), expected)
        assert_same(values_of(codes, scale, zero_point), expected)  # the oracle of other tests


@every_level
@both_types
@every_code_type
def test_what_is_not_finite(level, kind, dtype):
    x = np.array([np.nan, -np.nan, np.inf, -np.inf] * 40, kind)
    for scale in hard_scales(kind):
        if dtype == "float8_e4m3fn":
            values = qatcore.quantize(x, scale, dtype=dtype).astype(np.float64).reshape(-1, 4)
            assert np.isnan(values[:, :2]).all()
            assert (values[:, 2:] == [448.0, -448.0]).all()
            continue
        least, greatest = LIMITS[dtype]
        for zero_point in (least, 5, greatest):
            codes = qatcore.quantize(x, scale, zero_point, dtype=dtype)
            assert codes.tolist() == [zero_point, zero_point, greatest, least] * 40


# --- division --------------------------------------------------------------------------------------------
#
# A build may multiply by the reciprocal and correct the product: every code has to be that of the true quotient.


def check_division(x, scale, dtypes, axis):
    """The codes and values of x, whose scales lie along an axis, are those of NumPy's division."""
    others = tuple(i for i in range(x.ndim) if i != axis)
    along = np.expand_dims(scale, others)
    quotient = divided(x, along)
    for dtype in dtypes:
        least, greatest = LIMITS[dtype]
        zero_point = np.resize([least, (least + greatest) // 3, greatest], scale.size)
        codes = codes_of(quotient, np.expand_dims(zero_point, others), dtype)
        values = values_of(codes, along, np.expand_dims(zero_point, others))
        assert_same(qatcore.quantize(x, scale, zero_point, dtype=dtype, axis=axis), codes)
        assert_same(qatcore.fake_quantize(x, scale, zero_point, dtype=dtype, axis=axis), values)


def rows_for(scales, points):
    """A row a scale: near its multiples, between them, and anything."""
    n, kind = scales.size, scales.dtype
    between = (uniform(n * 64, 62).reshape(n, 64) - 0.5) * 600.0
    with np.errstate(all="ignore"):
        between = (between * scales.astype(np.float64)[:, np.newaxis]).astype(kind)
    anything = random_bits(n * 64, 63, kind).reshape(n, 64)
    ends = np.broadcast_to(adversarial(kind)[-10:], (n, 10))
    subnormal = anything.view(f"u{kind.itemsize}") % (1 << np.finfo(kind).nmant)
    return np.hstack([near_multiples(points, scales), between, anything, ends, subnormal.view(kind)])


@every_level
@both_types
@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize(
    ("points", "dtypes"), [(TIES, ["int8", "uint8"]), (E4M3_POINTS, ["float8_e4m3fn"])], ids=["integers", "e4m3"]
)
def test_division_near_every_tie(level, kind, name, points, dtypes):
    scales = many_scales(name, kind, 300)
    x = rows_for(scales, points)
    check_division(x, scales, dtypes, 0)
    check_division(np.ascontiguousarray(x.T), scales, dtypes, 1)


@every_level
@both_types
def test_division_of_anything(level, kind):
    """Every exponent by every exponent: quotients overflow, underflow, and are subnormal."""
    n = 300_000
    x = random_bits(n, 64, kind)
    scale = np.concatenate([many_scales(name, kind, n // len(SCALES) + 1) for name in SCALES])[:n]
    check_division(x, scale, LIMITS, 0)


@every_level
@both_types
def test_division_of_like_by_like(level, kind):
    """Random mantissas whose quotients are within the codes, at every exponent."""
    scale = np.concatenate([many_scales(name, kind, 40_000) for name in SCALES])
    with np.errstate(all="ignore"):
        x = ((uniform(scale.size, 65) - 0.5) * 600.0 * scale).astype(kind)
    check_division(x, scale, LIMITS, 0)


@every_level
@both_types
def test_one_scale(level, kind):
    """Without an axis, for sizes around those of vectors and pages."""
    for scale in [*hard_scales(kind), *(many_scales(name, kind, 1)[0] for name in SCALES)]:
        for dtype, zero_point in FORMATS:
            x = hard_values(scale, dtype)
            codes = codes_of(divided(x, scale), zero_point, dtype)
            values = values_of(codes, scale, zero_point)
            for stop in (1, 15, 33, 511, 513, 1025, x.size):
                given = x[-stop:]
                assert_same(qatcore.quantize(given, scale, zero_point, dtype=dtype), codes[-stop:])
                assert_same(qatcore.dequantize(codes[-stop:], scale, zero_point, dtype=kind), values[-stop:])
                assert_same(qatcore.fake_quantize(given, scale, zero_point, dtype=dtype), values[-stop:])


# --- E4M3 ------------------------------------------------------------------------------------------------


@every_level
@both_types
def test_e4m3_equals_ml_dtypes(level, kind):
    """Which makes NaN of what overflows, so it is clipped first, and rounds float64 twice, by way of float32."""
    x = near_multiples(E4M3_POINTS, np.ones(1, kind))[0]
    with np.errstate(invalid="ignore"):
        expected = np.clip(x, -448.0, 448.0).astype(E4M3)
    expected = np.where(x.astype(np.float32) == x, expected, nearest_e4m3(x))
    assert_same(qatcore.quantize(x, 1.0, dtype=E4M3), expected)
    assert_same(qatcore.fake_quantize(x, 1.0, dtype=E4M3), expected.astype(kind))
    beyond = x[np.abs(x) > 448.0]
    assert beyond.size > 20
    assert_same(qatcore.quantize(beyond, 1.0, dtype=E4M3).astype(kind), np.copysign(kind.type(448.0), beyond))


@both_types
def test_e4m3_in_fractions(kind):
    x = near_multiples(E4M3_POINTS, np.ones(1, kind))[0]
    expected = np.array([exact_e4m3(float(v)) for v in x])
    assert_same(qatcore.quantize(x, 1.0, dtype=E4M3).astype(np.float64), expected)
    assert_same(nearest_e4m3(x).astype(np.float64), expected)  # the oracle of other tests


@every_level
@both_types
def test_e4m3_codes_come_back(level, kind):
    codes = np.arange(256, dtype=np.uint8).view(E4M3)
    values = qatcore.dequantize(codes, 1.0, dtype=kind)
    assert_same(values, codes.astype(kind))
    assert_same(qatcore.quantize(values, 1.0, dtype=E4M3), codes)
    assert_same(qatcore.quantize(values * 0.375, 0.375, dtype=E4M3), codes)


# --- one pass or two -------------------------------------------------------------------------------------


@every_level
@both_types
@every_format
def test_fake_quantize_is_both(level, kind, dtype, zero_point):
    for scale in hard_scales(kind):
        x = hard_values(scale, dtype)
        codes = qatcore.quantize(x, scale, zero_point, dtype=dtype)
        values = qatcore.dequantize(codes, scale, zero_point, dtype=kind)
        assert_same(qatcore.fake_quantize(x, scale, zero_point, dtype=dtype), values)
    x = random_bits(130 * 26, 66, kind).reshape(10, 26, 13)
    for axis in range(3):
        scale = np.resize(hard_scales(kind), x.shape[axis])
        codes = qatcore.quantize(x, scale, zero_point, dtype=dtype, axis=axis)
        values = qatcore.dequantize(codes, scale, zero_point, dtype=kind, axis=axis)
        assert_same(qatcore.fake_quantize(x, scale, zero_point, dtype=dtype, axis=axis), values)


@pytest.mark.parametrize("kind", [np.dtype(np.float16), BFLOAT16], ids=str)
@every_format
@pytest.mark.parametrize("scale", [0.1, 1.0, 2.0**-133, 3e38, 700.0])
def test_half_types_are_computed_in_float32(kind, dtype, zero_point, scale):
    x = np.arange(2**16, dtype=np.uint16).view(kind)
    wide = x.astype(np.float32)
    codes = codes_of(divided(wide, np.float32(scale)), zero_point, dtype)
    assert_same(qatcore.quantize(x, scale, zero_point, dtype=dtype), codes)
    with np.errstate(over="ignore"):
        expected = values_of(codes, np.float32(scale), zero_point).astype(kind)
    assert_same(qatcore.fake_quantize(x, scale, zero_point, dtype=dtype), expected)


@every_code_type
@pytest.mark.parametrize("kind", [*INTEGERS, np.dtype(np.bool_)], ids=lambda dtype: dtype.name + dtype.char)
def test_integers_are_taken_as_float64(kind, dtype):
    info = np.iinfo(kind if kind.kind != "b" else np.uint8)
    x = np.array([info.min, info.max, 0, 1, 2, 3, info.max // 3, info.max - 1], kind)
    for scale in (0.1, 2.0**-1060, 1e18, 2.0):
        for function in (qatcore.quantize, qatcore.fake_quantize):
            expected = function(x.astype(np.float64), scale, dtype=dtype)
            assert_same(function(x, scale, dtype=dtype), expected)
            assert_same(function(x.tolist(), scale, dtype=dtype), expected)


def test_the_scale_is_rounded_to_the_type():
    """0.1 in float32 is greater than 0.1."""
    x = np.array([0.25], np.float32)
    assert qatcore.quantize(x, 0.1).tolist() == [2]
    assert qatcore.quantize(x.astype(np.float64), 0.1).tolist() == [2]  # 2.5, to even
    assert qatcore.quantize(x.astype(np.float64), np.float32(0.1)).tolist() == [2]
    assert qatcore.quantize(np.nextafter(x, np.inf, dtype=np.float32), 0.1).tolist() == [3]
    assert qatcore.dequantize(np.int8([3]), 0.1, dtype="float64").tolist() == [3 * 0.1]
    assert qatcore.dequantize(np.int8([3]), 0.1).tolist() == [float(np.float32(3) * np.float32(0.1))]
    assert qatcore.fake_quantize(x, 0.1).tolist() == [float(np.float32(2) * np.float32(0.1))]


# --- axes ------------------------------------------------------------------------------------------------

SHAPES = [
    *[(3,), (1,), (0,), (700,)],
    *[(3, 1), (1, 3), (1, 1), (300, 2), (2, 300), (1, 300), (3, 255), (3, 256), (3, 257), (700, 3)],
    *[(2, 3, 4), (3, 1, 5), (2, 3, 300), (2, 300, 3), (300, 1, 2), (1, 1, 1), (5, 16, 16), (2, 1, 3, 4)],
    *[(0, 3), (3, 0), (2, 0, 3), (0, 0)],
]


@every_code_type
@both_types
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_axis_is_a_loop_over_channels(shape, kind, dtype):
    rng = np.random.default_rng(0)
    least, greatest = LIMITS[dtype]
    x = (rng.normal(size=shape) * 40.0).astype(kind)
    for axis in range(-len(shape), len(shape)):
        scale = rng.random(shape[axis]) + 0.05
        for zero_point in (rng.integers(least, greatest + 1, shape[axis]), least):
            codes, values = np.empty(shape, dtype), np.empty(shape, kind)
            for i, (s, z) in enumerate(zip(scale, np.broadcast_to(zero_point, shape[axis]), strict=True)):
                here = (slice(None),) * (axis % len(shape)) + (i,)
                codes[here] = qatcore.quantize(x[here], s, z, dtype=dtype)
                values[here] = qatcore.dequantize(codes[here], s, z, dtype=kind)
            assert_same(qatcore.quantize(x, scale, zero_point, dtype=dtype, axis=axis), codes)
            assert_same(qatcore.dequantize(codes, scale, zero_point, dtype=kind, axis=axis), values)
            assert_same(qatcore.fake_quantize(x, scale, zero_point, dtype=dtype, axis=axis), values)


@every_code_type
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_0d_and_empty(shape, kind, dtype):
    x = np.ones(shape, kind)
    codes = qatcore.quantize(x, 0.5, dtype=dtype)
    assert_same(codes, np.full(shape, 2).astype(dtype))
    assert_same(qatcore.dequantize(codes, 0.5), np.ones(shape, np.float32))
    assert_same(qatcore.fake_quantize(x, 0.5, dtype=dtype), x)


@pytest.mark.parametrize("axis", [1, np.int8(1), np.uint64(1), np.array(1), -1, np.int64(-1)], ids=repr)
def test_types_of_axes(axis):
    x = np.arange(6.0).reshape(2, 3)
    assert qatcore.quantize(x, [1.0, 2.0, 0.5], axis=axis).tolist() == [[0, 0, 4], [3, 2, 10]]


# --- layouts and types of arguments ----------------------------------------------------------------------


@every_code_type
@pytest.mark.parametrize("axis", [None, 0, 1, 2])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, axis, dtype, tmp_path):
    x = np.random.default_rng(1).normal(size=(3, 4, 5)).astype(np.float32)
    scale = 0.01 if axis is None else np.linspace(0.01, 0.02, x.shape[axis])
    options = {"dtype": dtype, "axis": axis}
    given = laid_out(layout, x, tmp_path)
    codes, values = qatcore.quantize(x, scale, **options), qatcore.fake_quantize(x, scale, **options)
    assert_same(qatcore.quantize(given, scale, **options), codes)
    assert_same(qatcore.fake_quantize(given, scale, **options), values)
    if layout != "buffer" or dtype != "float8_e4m3fn":  # the array interface has no name for this type
        given = laid_out(layout, codes, tmp_path)
        assert_same(qatcore.dequantize(given, scale, axis=axis), values)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts_of_scales(layout, tmp_path):
    x = np.arange(12.0).reshape(3, 4)
    scale, zero_point = np.array([0.25, 0.5, 1.0, 2.0], np.float32), np.array([0, -3, 7, 100], np.int16)
    expected = qatcore.quantize(x, scale, zero_point, axis=1)
    given = laid_out(layout, scale, tmp_path)
    assert_same(qatcore.quantize(x, given, zero_point, axis=1), expected)
    given = laid_out(layout, zero_point, tmp_path)
    assert_same(qatcore.quantize(x, scale, given, axis=1), expected)


@pytest.mark.parametrize("scale", [0.5, np.float32(0.5), np.float16(0.5), BFLOAT16.type(0.5), np.array(0.5, ">f4")])
@pytest.mark.parametrize("zero_point", [3, np.int8(3), np.uint64(3), np.array(3), np.array(3, ">i2")], ids=repr)
def test_types_of_scales(scale, zero_point):
    assert qatcore.quantize([0.25, 0.75, 1e9], scale, zero_point).tolist() == [3, 5, 127]
    assert qatcore.fake_quantize([0.25, 0.75, 1e9], scale, zero_point).tolist() == [0.0, 1.0, 62.0]
    assert qatcore.dequantize(np.uint8([0, 3, 255]), scale, zero_point).tolist() == [-1.5, 0.0, 126.0]


@pytest.mark.parametrize("scale", [1, True, np.int8(1), np.array(1)], ids=repr)
def test_integers_as_scales(scale):
    assert qatcore.quantize([0.5, 1.5, -1e9], scale).tolist() == [0, 2, -128]


@pytest.mark.parametrize(
    ("name", "forms"),
    [
        ("int8", ["int8", "i1", "b", np.int8, np.dtype(np.int8)]),
        ("uint8", ["uint8", "u1", "B", np.uint8, np.dtype(np.uint8)]),
        ("float8_e4m3fn", ["float8_e4m3fn", E4M3, E4M3.type]),
    ],
)
def test_names_of_code_types(name, forms):
    for form in forms:
        assert qatcore.quantize([1.0], 1.0, dtype=form).dtype.name == name
        assert qatcore.fake_quantize([1e9], 1.0, dtype=form) == {"int8": 127, "uint8": 255}.get(name, 448)


def test_scalars():
    for x in (0.75, np.float64(0.75), np.float32(0.75), np.float16(0.75), BFLOAT16.type(0.75)):
        assert_same(qatcore.quantize(x, 0.5), np.int8(2))
        assert_same(qatcore.quantize(x, 0.5, dtype="uint8"), np.uint8(2))
        assert_same(qatcore.quantize(x, 0.5, dtype=E4M3), E4M3.type(1.5))
        assert_same(qatcore.fake_quantize(x, 0.5), type(x)(1.0))
    for x in (3, True, np.int8(3), np.uint64(3), np.bool_(True)):
        assert_same(qatcore.quantize(x, 0.5), np.int8(2 * x.real))
        assert type(qatcore.fake_quantize(x, 0.5)) is (np.float64 if isinstance(x, np.generic) else float)
        assert qatcore.fake_quantize(x, 0.5) == x
    for code in (np.int8(3), np.uint8(3), E4M3.type(3)):
        assert_same(qatcore.dequantize(code, 0.5), np.float32(1.5))
        assert_same(qatcore.dequantize(code, 0.5, dtype="float64"), np.float64(1.5))
        assert_same(qatcore.dequantize(np.array(code), 0.5), np.array(1.5, np.float32))
    out = np.array(0, np.int8)
    assert qatcore.quantize(0.75, 0.5, out=out) is out
    assert out == 2


# --- out -------------------------------------------------------------------------------------------------


def outs(shape, dtype):
    """Arrays to write into, of every layout."""
    yield np.empty(shape, dtype)
    yield np.empty(shape, dtype, order="F")
    yield np.empty((*shape[:-1], 2 * shape[-1]), dtype)[..., ::2]
    yield np.empty(shape, dtype)[::-1]
    yield np.ndarray(shape, dtype, bytearray(math.prod(shape) * dtype.itemsize + 1), offset=1)
    yield np.empty(shape, dtype.newbyteorder(">"))
    yield np.empty(shape, dtype).view(type("Array", (np.ndarray,), {}))


@pytest.mark.parametrize("axis", [None, 0, 1])
@every_code_type
def test_out(dtype, axis):
    for kind in FLOATS:
        x = np.random.default_rng(2).normal(size=(5, 300)).astype(kind)
        scale = 0.01 if axis is None else np.linspace(0.01, 0.02, x.shape[axis])
        options = {"dtype": dtype, "axis": axis}
        codes, values = qatcore.quantize(x, scale, **options), qatcore.fake_quantize(x, scale, **options)
        for out in outs(x.shape, codes.dtype):
            assert qatcore.quantize(x, scale, **options, out=out) is out
            assert_same(np.array(out).astype(codes.dtype), codes)
        for out in outs(x.shape, kind):
            assert qatcore.fake_quantize(x, scale, **options, out=out) is out
            assert_same(np.array(out).astype(kind), values)
    for kind in (np.dtype(np.float32), np.dtype(np.float64)):
        values = qatcore.dequantize(codes, scale, axis=axis, dtype=kind)
        for out in outs(codes.shape, kind):
            assert qatcore.dequantize(codes, scale, axis=axis, out=out) is out  # whose type is the result's
            assert_same(np.array(out).astype(kind), values)


@pytest.mark.parametrize("kind", FLOATS, ids=str)
@every_code_type
def test_out_is_the_input(kind, dtype):
    original = np.random.default_rng(3).normal(size=(300, 300)).astype(kind)
    expected = qatcore.fake_quantize(original, 0.01, dtype=dtype)
    x = original.copy()
    assert qatcore.fake_quantize(x, 0.01, dtype=dtype, out=x) is x
    assert_same(x, expected)
    for view in (lambda x: x.T, lambda x: x[::-1], lambda x: x[:, ::-1]):
        x = original.copy()
        qatcore.fake_quantize(x, 0.01, dtype=dtype, out=view(x))
        assert_same(view(x).copy(), expected)
        x = original.copy()
        qatcore.fake_quantize(view(x), 0.01, dtype=dtype, out=view(x))
        assert_same(x, expected)
    for first, second in ((0, 1), (1, 0), (0, 200), (200, 0)):  # before and after the input
        x = np.concatenate([original.reshape(-1)] * 2)
        given, out = x[first:][:90_000], x[second:][:90_000]
        expected = qatcore.fake_quantize(given.copy(), 0.01, dtype=dtype)
        qatcore.fake_quantize(given, 0.01, dtype=dtype, out=out)
        assert_same(out, expected)


@every_code_type
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("offset", [0, 1, 4000])
def test_codes_and_values_in_one_memory(dtype, kind, offset):
    x = np.random.default_rng(4).normal(size=5000).astype(kind)
    codes, values = qatcore.quantize(x, 0.01, dtype=dtype), qatcore.fake_quantize(x, 0.01, dtype=dtype)
    memory = x.copy()
    out = memory.view(np.uint8)[offset:][:5000].view(dtype)
    assert_same(qatcore.quantize(memory, 0.01, dtype=dtype, out=out), codes)
    memory = np.empty_like(x)
    given = memory.view(np.uint8)[offset:][:5000].view(dtype)
    given[...] = codes
    assert_same(qatcore.dequantize(given, 0.01, out=memory), values)


def test_out_in_the_memory_of_scales():
    """Parameters are read before anything is written."""
    x = np.random.default_rng(5).normal(size=(4, 300)).astype(np.float32)
    scale, zero_point = np.array([0.1, 0.2, 0.3, 0.4], np.float32), np.array([1, 2, 3, 4], np.int32)
    expected = qatcore.fake_quantize(x, scale, zero_point, axis=0)
    out = np.zeros_like(x)
    given = out.reshape(-1)[:4]
    given[...] = scale
    assert_same(qatcore.fake_quantize(x, given, zero_point, axis=0, out=out), expected)
    given = out.reshape(-1)[:4].view(np.int32)
    given[...] = zero_point
    assert_same(qatcore.fake_quantize(x, scale, given, axis=0, out=out), expected)


def refused_outs(shape, dtype):
    read_only = np.full(shape, 7).astype(dtype)
    read_only.setflags(write=False)
    yield read_only, InvalidArgumentError, "out: expected a writable array, got a read-only one"
    yield np.full((6, 2), 7).astype(dtype), InvalidArgumentError, r"out: expected shape \(3, 4\), got \(6, 2\)"
    yield np.full((3, 1), 7).astype(dtype), InvalidArgumentError, r"out: expected shape \(3, 4\), got \(3, 1\)"
    yield np.full(shape, 7), InvalidArgumentError, r"out: expected .*, got int64"
    yield np.ma.array(np.full(shape, 7).astype(dtype)), TypeError, "out: masked arrays are not written"
    yield [[7] * 4] * 3, TypeError, "out: expected an ndarray, got list"


@every_code_type
def test_outs_that_are_refused(dtype):
    x = np.ones((3, 4), np.float32)
    codes = qatcore.quantize(x, 0.5, dtype=dtype)
    for function, given, result in (
        (qatcore.quantize, x, codes.dtype),
        (qatcore.fake_quantize, x, x.dtype),
        (qatcore.dequantize, codes, x.dtype),
    ):
        for out, error, message in refused_outs(x.shape, result):
            options = {} if function is qatcore.dequantize else {"dtype": dtype}
            with pytest.raises(error, match=f"^{message}"):
                function(given, 0.5, **options, out=out)
            assert (np.asarray(out) == 7).all()
    with pytest.raises(InvalidArgumentError, match=r"^out: expected float8_e4m3fn, got uint8$"):
        qatcore.quantize(x, 0.5, dtype=E4M3, out=np.empty((3, 4), np.uint8))
    with pytest.raises(InvalidArgumentError, match=r"^out: expected float32, got float64$"):
        qatcore.fake_quantize(x, 0.5, out=np.empty((3, 4)))
    with pytest.raises(InvalidArgumentError, match=r"^out: expected float32 or float64, got float16$"):
        qatcore.dequantize(codes, 0.5, out=np.empty((3, 4), np.float16))


def test_out_is_untouched_by_errors():
    x = np.ones((3, 4), np.float32)
    codes = np.ones((3, 4), np.int8)
    out, values = np.full((3, 4), 7, np.int8), np.full((3, 4), 7, np.float32)
    wrong = [
        {"scale": 0.0},
        {"scale": [1.0, 1.0, 0.0], "axis": 0},
        {"scale": [1.0, 1.0], "axis": 0},
        {"scale": 1.0, "axis": 2},
        {"scale": 1.0, "zero_point": 128},
        {"scale": 1.0, "zero_point": 0.5},
        {"scale": [1.0] * 3, "zero_point": [0, 0, 128], "axis": 0},
    ]
    for options in wrong:
        for function, given, target in (
            (qatcore.quantize, x, out),
            (qatcore.dequantize, codes, values),
            (qatcore.fake_quantize, x, values),
        ):
            with pytest.raises((InvalidArgumentError, TypeError)):
                function(given, **options, out=target)
            assert (target == 7).all()
    for given in (x * 1j, np.ma.array(x), "1", [[1.0], [1.0, 2.0]]):
        for function, target in ((qatcore.quantize, out), (qatcore.fake_quantize, values)):
            with pytest.raises((InvalidArgumentError, TypeError)):
                function(given, 1.0, out=target)
            assert (target == 7).all()


# --- threads ---------------------------------------------------------------------------------------------


@both_types
@every_code_type
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_threads(kind, dtype, axis, monkeypatch):
    """An array long enough to be split, within rows too."""
    x = ((uniform(801_000, 67) - 0.5) * 100.0).astype(kind).reshape(89, 9000)
    scale = 0.1 if axis is None else np.linspace(0.1, 0.2, x.shape[axis])
    results = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(_threads, "_num_threads", threads)
        codes = qatcore.quantize(x, scale, dtype=dtype, axis=axis)
        values = qatcore.dequantize(codes, scale, dtype=kind, axis=axis)
        results.append([codes, values, qatcore.fake_quantize(x, scale, dtype=dtype, axis=axis)])
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    assert_same(results[0][2], results[0][1])


@every_level
@pytest.mark.parametrize("threads", [2, 3, 7])
@pytest.mark.parametrize(("shape", "axis"), [((1000,), None), ((3, 7, 50), 1), ((2, 4, 301), 1), ((500, 3), 1)])
def test_threads_split_anywhere(level, threads, shape, axis, monkeypatch):
    monkeypatch.setattr(affine, "GRAIN", 100)
    x = np.random.default_rng(6).normal(size=shape)
    scale = 0.01 if axis is None else np.linspace(0.01, 0.02, shape[axis])
    zero_point = 5 if axis is None else np.arange(shape[axis])
    for dtype, z in (("int8", zero_point), ("uint8", zero_point), ("float8_e4m3fn", 0)):
        results = []
        for n in (1, threads):
            monkeypatch.setattr(_threads, "_num_threads", n)
            codes = qatcore.quantize(x, scale, z, dtype=dtype, axis=axis)
            values = qatcore.dequantize(codes, scale, z, axis=axis)
            results.append([codes, values, qatcore.fake_quantize(x, scale, z, dtype=dtype, axis=axis)])
        assert_same(results[1], results[0])


# --- errors ----------------------------------------------------------------------------------------------

X = np.ones((3, 4), np.float32)
CALLS = {
    "quantize": lambda scale, zero_point=0, **options: qatcore.quantize(X, scale, zero_point, **options),
    "fake_quantize": lambda scale, zero_point=0, **options: qatcore.fake_quantize(X, scale, zero_point, **options),
    "dequantize": lambda scale, zero_point=0, dtype="int8", **options: qatcore.dequantize(
        X.astype(dtype), scale, zero_point, **options
    ),
}
every_call = pytest.mark.parametrize("call", CALLS.values(), ids=list(CALLS))


@every_call
@pytest.mark.parametrize(
    "scale", [0.0, -0.0, 0, -1.0, -1, -5e-324, math.nan, math.inf, -math.inf, np.float16(0), np.array(-1.0)], ids=repr
)
def test_scales_that_are_none(call, scale):
    message = r"^scale: expected positive finite numbers, in float32 too, got "
    with pytest.raises(InvalidArgumentError, match=message):
        call(scale)
    with pytest.raises(InvalidArgumentError, match=message):
        call([1.0, 2.0, float(scale), 1.0], axis=1)


@every_call
@pytest.mark.parametrize("scale", [1e-46, 5e-324, 2.0**-150, 1e39, 1.7e308], ids=repr)
def test_scales_that_float32_does_not_hold(call, scale):
    with pytest.raises(InvalidArgumentError, match=r"^scale: expected positive finite numbers, in float32 too, got"):
        call(scale)
    with pytest.raises(InvalidArgumentError, match=r"^scale: expected positive finite numbers, in float32 too, got"):
        call([1.0, scale, 1.0], axis=0)
    for half in (np.float16, BFLOAT16):
        with pytest.raises(InvalidArgumentError, match=r"^scale: expected .* in float32 too"):
            qatcore.quantize(X.astype(half), scale)
    wide = X.astype(np.float64)
    codes = codes_of(divided(wide, scale), 0, "int8")
    assert_same(qatcore.quantize(wide, scale), codes)
    assert_same(qatcore.fake_quantize(wide, scale), values_of(codes, np.float64(scale), 0))
    assert qatcore.dequantize(np.int8([1]), scale, dtype="float64").tolist() == [scale]


@every_call
def test_scales_at_the_ends(call):
    for scale in (2.0**-149, float(np.finfo(np.float32).max)):
        assert call(scale).shape == (3, 4)


@every_call
@pytest.mark.parametrize(
    ("scale", "options", "message"),
    [
        ([1.0] * 3, {}, "scale: expected a scalar, got shape (3,)"),
        ([1.0], {}, "scale: expected a scalar, got shape (1,)"),
        ([], {}, "scale: expected a scalar, got shape (0,)"),
        (1.0, {"axis": 0}, "scale: expected shape (3,), got a scalar"),
        ([1.0] * 4, {"axis": 0}, "scale: expected shape (3,), got shape (4,)"),
        ([1.0], {"axis": 0}, "scale: expected shape (3,), got shape (1,)"),
        ([1.0] * 3, {"axis": 1}, "scale: expected shape (4,), got shape (3,)"),
        ([1.0] * 3, {"axis": -1}, "scale: expected shape (4,), got shape (3,)"),
        ([[1.0]] * 3, {"axis": 0}, "scale: expected shape (3,), got shape (3, 1)"),
        (1.0, {"axis": 2}, "axis: expected one of an array with 2 dimensions, got 2"),
        (1.0, {"axis": -3}, "axis: expected one of an array with 2 dimensions, got -3"),
        (1.0, {"axis": 2**70}, f"axis: expected one of an array with 2 dimensions, got {2**70}"),
        (1.0, {"zero_point": [0]}, "zero_point: expected a scalar, got shape (1,)"),
        ([1.0] * 3, {"axis": 0, "zero_point": [0] * 4}, "zero_point: expected a scalar or shape (3,), got shape (4,)"),
        ([1.0] * 3, {"axis": 0, "zero_point": [[0]] * 3}, "a scalar or shape (3,), got shape (3, 1)"),
        (1.0, {"zero_point": 128}, "zero_point: expected -128 to 127 for int8, got 128"),
        (1.0, {"zero_point": -129}, "zero_point: expected -128 to 127 for int8, got -129"),
        (1.0, {"zero_point": 256, "dtype": "uint8"}, "zero_point: expected 0 to 255 for uint8, got 256"),
        (1.0, {"zero_point": -1, "dtype": "uint8"}, "zero_point: expected 0 to 255 for uint8, got -1"),
        (1.0, {"zero_point": 1, "dtype": E4M3}, "zero_point: expected 0 for float8_e4m3fn, got 1"),
        (1.0, {"zero_point": 2**31}, "zero_point: expected an int32, -2147483648 to 2147483647, got 2147483648"),
        ([1.0] * 3, {"axis": 0, "zero_point": [0, 128, 0]}, "zero_point: expected -128 to 127 for int8, got [0, 128"),
        ([1.0] * 3, {"axis": 0, "zero_point": [0, 1, 0], "dtype": E4M3}, "zero_point: expected 0 for float8_e4m3fn"),
    ],
)
def test_parameters_that_do_not_fit(call, scale, options, message):
    with pytest.raises(InvalidArgumentError) as caught:
        call(scale, **options)
    assert message in str(caught.value)


@every_call
@pytest.mark.parametrize("scale", [None, "0.5", b"1", 1j, [None], ["1"], {}, np.ones(3, complex)], ids=repr)
def test_scales_of_another_type(call, scale):
    with pytest.raises(TypeError, match=r"^scale: expected real numbers .*, got "):
        call(scale)


@every_call
@pytest.mark.parametrize("zero_point", [None, "0", 0.0, 1.5, 1j, np.float32(0), np.array(0.0), [0.0], {}], ids=repr)
def test_zero_points_of_another_type(call, zero_point):
    with pytest.raises(TypeError, match=r"^zero_point: expected .*(integer|real number).*, got "):
        call(1.0, zero_point)


@every_call
@pytest.mark.parametrize(("axis", "kind"), [(1.0, "float"), ("0", "str"), ([0], "list"), ((0,), "tuple")])
def test_axes_of_another_type(call, axis, kind):
    with pytest.raises(TypeError, match=f"^axis: expected an integer or None, got {kind}$"):
        call([1.0] * 3, axis=axis)


def test_masked_scales():
    with pytest.raises(TypeError, match=r"^scale: masked arrays are not read"):
        qatcore.quantize(X, np.ma.array([1.0] * 3), axis=0)
    with pytest.raises(TypeError, match=r"^zero_point: masked arrays are not read"):
        qatcore.quantize(X, [1.0] * 3, np.ma.array([1] * 3), axis=0)


def test_no_axis_of_a_scalar():
    for call in (qatcore.quantize, qatcore.fake_quantize):
        for axis in (0, -1):
            with pytest.raises(InvalidArgumentError, match=f"^axis: .* an array with 0 dimensions, got {axis}$"):
                call(1.0, [1.0], axis=axis)


@pytest.mark.parametrize("function", [qatcore.quantize, qatcore.fake_quantize])
@pytest.mark.parametrize("dtype", ["int4", "int16", "float8_e5m2", "float32", np.int32, "", "?", [], {}], ids=repr)
def test_code_types_that_are_none(function, dtype):
    with pytest.raises(InvalidArgumentError, match=r"^dtype: expected one of int8, uint8, float8_e4m3fn, got "):
        function(X, 1.0, dtype=dtype)


@pytest.mark.parametrize("function", [qatcore.quantize, qatcore.fake_quantize])
def test_code_type_none_is_none(function):
    """To NumPy None is float64."""
    with pytest.raises(InvalidArgumentError, match=r"^dtype: expected one of int8, uint8, float8_e4m3fn, got None$"):
        function(X, 1.0, dtype=None)


@pytest.mark.parametrize(
    "codes", [[1, 2], 1, 1.0, np.int16([1]), np.int32([1]), np.bool_([True]), np.float32([1]), ["1"], None], ids=repr
)
def test_codes_of_another_type(codes):
    given = np.asarray(codes).dtype
    message = f"^codes: expected one of int8, uint8, float8_e4m3fn, got {given}$"
    with pytest.raises(TypeError, match=message):
        qatcore.dequantize(codes, 1.0)


@pytest.mark.parametrize("dtype", ["float16", BFLOAT16, "int8", np.longdouble, "float8_e4m3fn"], ids=str)
def test_value_types_that_are_none(dtype):
    with pytest.raises(InvalidArgumentError, match=r"^dtype: expected float32 or float64, got "):
        qatcore.dequantize(np.int8([1]), 1.0, dtype=dtype)
    with pytest.raises(TypeError, match=r"^dtype: expected float32 or float64, got 'text'$"):
        qatcore.dequantize(np.int8([1]), 1.0, dtype="text")
