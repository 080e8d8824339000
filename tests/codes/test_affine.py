"""Quantising as ONNX does: against its runtime, exact fractions, NumPy's division and ml_dtypes."""

import math
from fractions import Fraction

import numpy as np
import pytest
from affine_oracles import (
    FLOAT_TYPES,
    FLOAT_VALUES,
    FORMATS,
    INTEGER_FORMATS,
    LIMITS,
    SCALES,
    WIDTHS,
    both_types,
    by_onnx_runtime,
    codes_of,
    divided,
    every_code,
    every_code_type,
    every_float_type,
    every_format,
    every_level,
    exact_code,
    hard_scales,
    hard_values,
    many_scales,
    near_multiples,
    nearest_float,
    points_of,
    rounded,
    values_of,
)
from inputs import BFLOAT16, FLOATS, INTEGERS, assert_same
from values import adversarial, random_bits, uniform

import qatcore

# --- ONNX Runtime ----------------------------------------------------------------------------------------

IN_ONNX_RUNTIME = [each for each in FORMATS if each[0] != "float4_e2m1fn"]
in_onnx_runtime = pytest.mark.parametrize(("dtype", "zero_point"), IN_ONNX_RUNTIME)


@in_onnx_runtime
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
    points = np.concatenate([adversarial(np.float32), points_of(dtype).astype(np.float32)])
    with np.errstate(over="ignore"):
        x = np.resize(points[~np.isnan(points)][::-1], shape) * broadcast
    x[np.isnan(x)] = 0.0
    return x, scale, zero_point


@pytest.mark.parametrize("dtype", dict(IN_ONNX_RUNTIME))
@pytest.mark.parametrize("axis", [0, 1, -1])
@pytest.mark.parametrize("shape", [(13, 26, 39), (26, 3, 300), (2, 600, 13)])
def test_axis_equals_onnx_runtime(shape, axis, dtype):
    x, scale, zero_point = channels(shape, axis, dtype)
    codes = by_onnx_runtime("QuantizeLinear", x, scale, zero_point, axis)
    given = zero_point if dtype not in FLOAT_VALUES else 0
    assert_same(qatcore.quantize(x, scale, given, dtype=dtype, axis=axis), codes)
    values = by_onnx_runtime("DequantizeLinear", codes, scale, zero_point, axis)
    assert_same(qatcore.dequantize(codes, scale, given, axis=axis), values)
    assert_same(qatcore.fake_quantize(x, scale, given, dtype=dtype, axis=axis), values)


@in_onnx_runtime
@pytest.mark.parametrize("scale", hard_scales(np.float32), ids=repr)
def test_dequantize_equals_onnx_runtime(scale, dtype, zero_point):
    codes = every_code(dtype)
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
    codes = every_code(dtype)[:: 1 if WIDTHS[dtype] < 16 else 251]
    for scale in hard_scales(kind):
        steps = [float(code) - zero_point for code in codes]
        exact = [
            v if not math.isfinite(v) else math.copysign(rounded(Fraction(v) * Fraction(float(scale)), kind), v)
            for v in steps
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
        if dtype in FLOAT_VALUES:
            values = qatcore.quantize(x, scale, dtype=dtype).astype(np.float64).reshape(-1, 4)
            greatest = FLOAT_VALUES[dtype][-1]
            if dtype == "float4_e2m1fn":  # which has no NaN
                assert_same(values[:, :2], np.tile([-0.0, 0.0], (40, 1)))
            else:
                assert np.isnan(values[:, :2]).all()
            assert (values[:, 2:] == [greatest, -greatest]).all()
            continue
        least, greatest = LIMITS[dtype]
        for zero_point in (least, min(greatest, 5), greatest):
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
@pytest.mark.parametrize("dtypes", [["int16", "int8", "uint4"], *([name] for name in FLOAT_TYPES)], ids="-".join)
def test_division_near_every_tie(level, kind, name, dtypes):
    scales = many_scales(name, kind, 200)
    x = rows_for(scales, points_of(dtypes[0]))
    check_division(x, scales, dtypes, 0)
    check_division(np.ascontiguousarray(x.T), scales, dtypes, 1)


@every_level
@both_types
def test_division_of_anything(level, kind):
    """Every exponent by every exponent: quotients overflow, underflow, and are subnormal."""
    n = 150_000
    x = random_bits(n, 64, kind)
    scale = np.concatenate([many_scales(name, kind, n // len(SCALES) + 1) for name in SCALES])[:n]
    check_division(x, scale, LIMITS, 0)


@every_level
@both_types
def test_division_of_like_by_like(level, kind):
    """Random mantissas whose quotients are within the codes, at every exponent."""
    scale = np.concatenate([many_scales(name, kind, 20_000) for name in SCALES])
    with np.errstate(all="ignore"):
        x = ((uniform(scale.size, 65) - 0.5) * 600.0 * scale).astype(kind)
    check_division(x, scale, LIMITS, 0)


@pytest.mark.slow
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


# --- floating-point formats -------------------------------------------------------------------------------


@every_level
@both_types
@every_float_type
def test_floats_equal_ml_dtypes(level, kind, dtype):
    """Which makes NaN or infinity of what overflows, so it is clipped first, and rounds float64 twice."""
    greatest = FLOAT_VALUES[dtype][-1]
    x = near_multiples(points_of(dtype), np.ones(1, kind))[0]
    with np.errstate(invalid="ignore"):
        expected = np.clip(x, -greatest, greatest).astype(np.float32).astype(dtype)
    expected = np.where(x.astype(np.float32) == x, expected, nearest_float(x, dtype))
    assert_same(qatcore.quantize(x, 1.0, dtype=dtype), expected)
    assert_same(qatcore.fake_quantize(x, 1.0, dtype=dtype), expected.astype(kind))
    beyond = x[np.abs(x) > greatest]
    assert beyond.size > 20
    assert_same(qatcore.quantize(beyond, 1.0, dtype=dtype).astype(kind), np.copysign(kind.type(greatest), beyond))


@both_types
@every_float_type
def test_floats_in_fractions(kind, dtype):
    values = [Fraction(v) for v in FLOAT_VALUES[dtype]]
    x = near_multiples(points_of(dtype), np.ones(1, kind))[0]
    x = x[np.isfinite(x)]
    x = x[:: max(x.size // 400, 1)]

    def exact(v):
        nearest = min(range(len(values)), key=lambda code: (abs(values[code] - abs(Fraction(v))), code % 2))
        return math.copysign(float(values[nearest]), v)

    expected = np.array([exact(float(v)) for v in x])
    assert_same(qatcore.quantize(x, 1.0, dtype=dtype).astype(np.float64), expected)
    assert_same(nearest_float(x, dtype).astype(np.float64), expected)  # the oracle of other tests


@every_level
@both_types
@every_float_type
def test_codes_of_floats_come_back(level, kind, dtype):
    codes = every_code(dtype)
    values = qatcore.dequantize(codes, 1.0, dtype=kind)
    assert_same(values, codes.astype(kind))
    finite = np.isfinite(values)
    assert_same(qatcore.quantize(values, 1.0, dtype=dtype)[finite], codes[finite])
    assert_same(qatcore.quantize(values * 0.375, 0.375, dtype=dtype)[finite], codes[finite])


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
    for axis in range(len(shape)):
        scale = rng.random(shape[axis]) + 0.05
        for zero_point in (rng.integers(least, greatest + 1, shape[axis]), least):
            codes, values = np.empty(shape, dtype), np.empty(shape, kind)
            for i, (s, z) in enumerate(zip(scale, np.broadcast_to(zero_point, shape[axis]), strict=True)):
                here = (slice(None),) * axis + (i,)
                codes[here] = qatcore.quantize(x[here], s, z, dtype=dtype)
                values[here] = qatcore.dequantize(codes[here], s, z, dtype=kind)
            for same in (axis, axis - len(shape)):
                assert_same(qatcore.quantize(x, scale, zero_point, dtype=dtype, axis=same), codes)
                assert_same(qatcore.dequantize(codes, scale, zero_point, dtype=kind, axis=same), values)
                assert_same(qatcore.fake_quantize(x, scale, zero_point, dtype=dtype, axis=same), values)


@every_code_type
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (0, 3), (2, 0, 4)], ids=str)
@pytest.mark.parametrize("kind", FLOATS, ids=str)
def test_0d_and_empty(shape, kind, dtype):
    x = np.ones(shape, kind)
    codes = qatcore.quantize(x, 0.5, dtype=dtype)
    steps = min(LIMITS[dtype][1] or 2, 2)
    assert_same(codes, np.full(shape, steps).astype(dtype))
    assert_same(qatcore.dequantize(codes, 0.5), np.full(shape, steps / 2.0, np.float32))
    assert_same(qatcore.fake_quantize(x, 0.5, dtype=dtype), np.full(shape, steps / 2.0).astype(kind))


@pytest.mark.parametrize("axis", [1, np.int8(1), np.uint64(1), np.array(1), -1, np.int64(-1)], ids=repr)
def test_types_of_axes(axis):
    x = np.arange(6.0).reshape(2, 3)
    assert qatcore.quantize(x, [1.0, 2.0, 0.5], axis=axis).tolist() == [[0, 0, 4], [3, 2, 10]]
