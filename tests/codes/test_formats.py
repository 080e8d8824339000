"""Every format on a million values, per tensor, per axis and in blocks: against ONNX Runtime and ml_dtypes."""

import functools

import numpy as np
import pytest
from affine_oracles import (
    FLOAT_TYPES,
    FLOAT_VALUES,
    LIMITS,
    WIDTHS,
    by_onnx_runtime,
    codes_of,
    divided,
    every_code_type,
    every_level,
    hard_scales,
    many_scales,
    points_of,
    values_of,
)
from inputs import BFLOAT16, assert_same
from values import adversarial, random_bits, uniform

import qatcore
from qatcore import InvalidArgumentError

SHAPE = (16, 64, 1024)
#: The axis, the size of blocks, and how many scales there are along the axis.
LAYOUTS = {
    "tensor": (None, None),
    "axis 0": (0, None),
    "axis 1": (1, None),
    "axis 2": (2, None),
    "blocks of 32, last": (2, 32),
    "blocks of 16, last": (-1, 16),
    "blocks of 2, first": (0, 2),
    "blocks of 8, middle": (1, 8),
    "blocks of the axis": (1, 64),
    "blocks of one": (2, 1),
}


def scale_shape(shape, axis, block_size):
    if axis is None:
        return ()
    if block_size is None:
        return (shape[axis],)
    position = axis % len(shape)
    return *shape[:position], shape[position] // block_size, *shape[position + 1 :]


def spread(scales, shape, axis, block_size):
    """Scales as an array that goes with x."""
    if axis is None:
        return scales
    if block_size is None:
        others = tuple(i for i in range(len(shape)) if i != axis % len(shape))
        return np.expand_dims(scales, others)
    return np.repeat(scales, block_size, axis=axis)


@functools.cache
def million(dtype, layout, kind=np.float32):
    """Scales, zero points and values, of which a part is hard for their scale and a part is anything."""
    axis, block_size = LAYOUTS[layout]
    wanted = scale_shape(SHAPE, axis, block_size)
    n = int(np.prod(wanted))
    kind = np.dtype(kind)
    usual = np.exp2(np.floor(uniform(n, 90) * 20) - 10) * (1.0 + uniform(n, 91))
    scales = np.where(uniform(n, 92) < 0.9, usual, np.resize(hard_scales(kind), n)).astype(kind)
    scales[uniform(n, 93) < 0.05] = many_scales("any", kind, 1)[0]
    scales = scales.reshape(wanted)
    least, greatest = LIMITS[dtype]
    zero_points = np.resize([least, greatest, (least + greatest) // 3, 0], n).reshape(wanted).astype(dtype)
    along = np.broadcast_to(spread(scales, SHAPE, axis, block_size), SHAPE).reshape(-1)
    size = along.size
    with np.errstate(all="ignore"):
        points = np.resize(points_of(dtype), size)
        x = (points * along.astype(np.float64)).astype(kind)
        x = (x.view(f"i{kind.itemsize}") + (words_of(size, 94) % 5 - 2)).view(kind)  # and their neighbours
        x = np.where(words_of(size, 95) % 4 == 0, ((uniform(size, 96) - 0.5) * 600.0 * along).astype(kind), x)
        x = np.where(words_of(size, 97) % 8 == 0, random_bits(size, 98, kind), x)
    hard = adversarial(kind)
    x[: hard.size] = hard
    return scales, zero_points, np.where(np.isnan(x), kind.type(np.nan), x).reshape(SHAPE)


def words_of(n, seed):
    return (uniform(n, seed) * 2**30).astype(np.int32)


@functools.cache
def expected(dtype, layout):
    """Codes and values by ONNX Runtime, or where it lacks the type by NumPy and ml_dtypes."""
    axis, block_size = LAYOUTS[layout]
    scales, zero_points, x = million(dtype, layout)
    if dtype == "float4_e2m1fn":
        along = spread(scales, SHAPE, axis, block_size)
        greatest = FLOAT_VALUES[dtype][-1]
        codes = np.clip(divided(x, along), -greatest, greatest).astype(dtype)
        return codes, values_of(codes, along, 0)
    numbers = np.where(np.isnan(x), np.float32(0.0), x)
    place = {"axis": axis or 0, "block_size": block_size or 0}
    codes = by_onnx_runtime("QuantizeLinear", numbers, scales, zero_points, **place)
    return codes, by_onnx_runtime("DequantizeLinear", codes, scales, zero_points, **place)


@pytest.mark.slow
@every_level
@every_code_type
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_million_values(level, dtype, layout):
    axis, block_size = LAYOUTS[layout]
    scales, zero_points, x = million(dtype, layout)
    codes, values = expected(dtype, layout)
    where = {"axis": axis, "block_size": block_size}
    zero_points = 0 if dtype in FLOAT_TYPES else zero_points
    assert_same(qatcore.dequantize(codes, scales, zero_points, **where), values)
    nan = np.isnan(x) & (dtype in FLOAT_TYPES)
    numbers = x if dtype == "float4_e2m1fn" else np.where(nan, np.float32(0.0), x)  # integers: NaN is as 0
    assert_same(qatcore.quantize(numbers, scales, zero_points, dtype=dtype, **where), codes)
    assert_same(qatcore.fake_quantize(numbers, scales, zero_points, dtype=dtype, **where), values)


@pytest.mark.slow
@every_level
@every_code_type
@pytest.mark.parametrize("layout", ["tensor", "axis 1", "blocks of 16, last", "blocks of 8, middle"])
def test_a_million_doubles(level, dtype, layout):
    axis, block_size = LAYOUTS[layout]
    scales, zero_points, x = million(dtype, layout, np.float64)
    along = spread(scales, SHAPE, axis, block_size)
    offset = spread(zero_points, SHAPE, axis, block_size)
    offset = 0 if dtype in FLOAT_TYPES else offset.astype(np.int32)
    codes = codes_of(divided(x, along), offset, dtype)
    values = values_of(codes, along, offset)
    where = {"axis": axis, "block_size": block_size}
    zero_points = 0 if dtype in FLOAT_TYPES else zero_points
    assert_same(qatcore.quantize(x, scales, zero_points, dtype=dtype, **where), codes)
    assert_same(qatcore.dequantize(codes, scales, zero_points, dtype="float64", **where), values)
    assert_same(qatcore.fake_quantize(x, scales, zero_points, dtype=dtype, **where), values)


@pytest.mark.slow
@every_code_type
@pytest.mark.parametrize("layout", ["tensor", "axis 1", "blocks of 32, last", "blocks of 8, middle"])
def test_float16(dtype, layout):
    """ONNX Runtime computes it in float32; and bfloat16, which it does not take, is the same from float32."""
    axis, block_size = LAYOUTS[layout]
    scales, zero_points, x = million(dtype, layout)
    where = {"axis": axis, "block_size": block_size}
    place = {"axis": axis or 0, "block_size": block_size or 0}
    for kind in (np.dtype(np.float16), BFLOAT16):
        with np.errstate(all="ignore"):
            some = np.clip(scales, 1e-4, 1e4).astype(kind)
            given = np.where(np.isnan(x), np.float32(0.0), x).astype(kind)
        offset = 0 if dtype in FLOAT_TYPES else zero_points
        codes = qatcore.quantize(given, some, offset, dtype=dtype, **where)
        values = qatcore.dequantize(codes, some, offset, dtype=kind, **where)
        if kind == np.float16 and dtype != "float4_e2m1fn":
            assert_same(codes, by_onnx_runtime("QuantizeLinear", given, some, zero_points, **place))
            assert_same(values, by_onnx_runtime("DequantizeLinear", codes, some, zero_points, **place))
        wide = given.astype(np.float32), some.astype(np.float32), offset
        assert_same(codes, qatcore.quantize(*wide, dtype=dtype, **where))
        with np.errstate(over="ignore"):
            assert_same(values, qatcore.dequantize(codes, *wide[1:], **where).astype(kind))
        assert_same(qatcore.fake_quantize(given, some, offset, dtype=dtype, **where), values)


@pytest.mark.parametrize("shape", [(12,), (3, 12), (12, 5), (4, 12, 5), (12, 1), (1, 12, 300), (2, 12, 1, 3)], ids=str)
@every_code_type
def test_blocks_are_a_loop(shape, dtype):
    """Whatever the axis and the size, and wherever threads or patterns would cut."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=shape) * 4.0).astype(np.float32)
    least, greatest = LIMITS[dtype]
    axis = shape.index(12)
    for block_size in (1, 2, 3, 4, 6, 12):
        wanted = scale_shape(shape, axis, block_size)
        scales = rng.random(wanted) + 0.05
        zero_points = rng.integers(least, greatest + 1, wanted)
        codes = np.empty(shape, dtype)
        for index in np.ndindex(wanted):
            here = list(index)
            here[axis] = slice(index[axis] * block_size, (index[axis] + 1) * block_size)
            codes[tuple(here)] = qatcore.quantize(x[tuple(here)], scales[index], int(zero_points[index]), dtype=dtype)
        where = {"axis": axis, "block_size": block_size}
        assert_same(qatcore.quantize(x, scales, zero_points, dtype=dtype, **where), codes)
        values = qatcore.dequantize(codes, scales, zero_points, **where)
        assert_same(
            values,
            values_of(codes, np.float32(np.repeat(scales, block_size, axis)), np.repeat(zero_points, block_size, axis)),
        )
        assert_same(qatcore.fake_quantize(x, scales, zero_points, dtype=dtype, **where), values)


def test_upper_bits_of_codes_do_not_count():
    """As in ml_dtypes, which for float4_e2m1fn takes the sign from another one."""
    given = np.arange(256, dtype=np.uint8)
    for dtype in ("int2", "uint2", "int4", "uint4", "float4_e2m1fn"):
        expected_values = (given % 2 ** WIDTHS[dtype]).view(dtype).astype(np.float32)
        assert_same(qatcore.dequantize(given.view(dtype), 1.0), expected_values)


def test_zero_points_of_the_codes_type():
    for dtype in ("int2", "uint2", "int4", "uint4"):
        for zero_point in (LIMITS[dtype][1], 0):
            expected_codes = qatcore.quantize([0.5, 1.0, -3.0], 0.5, zero_point, dtype=dtype)
            for given in (np.array(zero_point).astype(dtype), np.array(zero_point).astype(dtype)[()]):
                assert_same(qatcore.quantize([0.5, 1.0, -3.0], 0.5, given, dtype=dtype), expected_codes)


def test_swapped_bytes():
    codes = np.array([-3, 300, 32767], ">i2")
    assert qatcore.dequantize(codes, 0.5).tolist() == [-1.5, 150.0, 16383.5]
    out = np.empty(3, ">i2")
    assert qatcore.quantize([1.0, -2.0, 1e9], 0.5, dtype="int16", out=out) is out
    assert out.tolist() == [2, -4, 32767]
    assert qatcore.quantize([1.0], 0.5, dtype=np.dtype(">u2")).dtype == np.uint16
    odd = np.zeros(7, np.uint8)[1:].view(np.int16)
    assert qatcore.dequantize(odd, 0.5).tolist() == [0.0] * 3


X = np.ones((4, 6), np.float32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"axis": 1, "block_size": 4}, "block_size: expected a divisor of the axis's length 6, got 4"),
        ({"axis": 1, "block_size": 0}, "block_size: expected at least 1, got 0"),
        ({"axis": 1, "block_size": -3}, "block_size: expected at least 1, got -3"),
        ({"block_size": 3}, "axis: expected the axis along which blocks lie, got None; pass axis with block_size"),
        ({"axis": 2, "block_size": 3}, "axis: expected an axis of an array with 2 dimensions, got 2"),
        ({"axis": 1, "block_size": 3, "scale": 1.0}, r"scale: expected shape \(4, 2\), got a scalar"),
        ({"axis": 1, "block_size": 3, "scale": np.ones((2, 4))}, r"scale: expected shape \(4, 2\), got shape \(2, 4\)"),
        ({"axis": 1, "block_size": 3, "scale": np.zeros((4, 2))}, "scale: expected positive finite numbers"),
        ({"axis": 1, "scale": np.ones((4, 2))}, r"scale: expected shape \(6,\), got shape \(4, 2\)"),
        (
            {"axis": 1, "block_size": 3, "scale": np.ones((4, 2)), "zero_point": [0, 1]},
            r"zero_point: expected a scalar or shape \(4, 2\), got shape \(2,\)",
        ),
        ({"scale": 1.0, "zero_point": 8, "dtype": "int4"}, "zero_point: expected -8 to 7 for int4, got 8"),
        ({"scale": 1.0, "zero_point": -1, "dtype": "uint2"}, "zero_point: expected 0 to 3 for uint2, got -1"),
        ({"scale": 1.0, "zero_point": 1, "dtype": "float8_e5m2"}, "zero_point: expected 0 for float8_e5m2, got 1"),
        ({"scale": 1.0, "dtype": "int3"}, "dtype: expected one of int2, uint2, int4, uint4, int8, .*, got 'int3'"),
        ({"scale": 1.0, "dtype": np.float32}, "dtype: expected one of int2"),
    ],
)
def test_refused(options, said):
    options = {"scale": np.ones((4, 2)), **options}
    with pytest.raises(InvalidArgumentError, match=said):
        qatcore.quantize(X, **options)
    with pytest.raises(InvalidArgumentError, match=said):
        qatcore.fake_quantize(X, **options)
    dtype = options.pop("dtype", "int8")
    if "dtype" not in said:
        with pytest.raises(InvalidArgumentError, match=said):
            qatcore.dequantize(X.astype(dtype), **options)


def test_block_sizes_of_other_types():
    for block_size in (2.0, "2", [2]):
        with pytest.raises(TypeError, match="block_size: expected an integer"):
            qatcore.quantize(X, np.ones((4, 3)), axis=1, block_size=block_size)
    assert qatcore.quantize(X, np.ones((4, 3)), axis=1, block_size=np.int64(2)).shape == (4, 6)


def test_a_zero_point_of_the_codes_type():
    """As ONNX's nodes have it."""
    for dtype in ("float8_e4m3fn", "float8_e5m2", "float4_e2m1fn"):
        zero = np.zeros((), dtype)
        assert_same(qatcore.quantize(X, 0.5, zero, dtype=dtype), qatcore.quantize(X, 0.5, dtype=dtype))
        with pytest.raises(TypeError, match=f"zero_point: expected integers, got {dtype}"):
            qatcore.quantize(X, 0.5, np.ones((), dtype), dtype=dtype)
    with pytest.raises(TypeError, match="zero_point: expected integers, got object"):
        qatcore.quantize(X, 0.5, None)


def test_formats_by_the_names_of_calibration():
    for bits, dtype in (("INT2", "int2"), ("INT4", "int4"), ("INT8", "int8"), ("FP8", "float8_e4m3fn")):
        assert_same(qatcore.quantize(X, 0.5, dtype=qatcore.QuantBits[bits]), qatcore.quantize(X, 0.5, dtype=dtype))


def test_messages_say_where_and_are_short():
    scale = np.ones((40, 60))
    scale[7, 30] = -2.0
    with pytest.raises(InvalidArgumentError, match=r"got -2.0 at index \(7, 30\)$"):
        qatcore.quantize(np.ones((40, 120)), scale.tolist(), axis=1, block_size=2)
    with pytest.raises(InvalidArgumentError, match=r"^dtype: .{,250}$"):
        qatcore.quantize(X, 0.5, dtype="x" * 10_000)
