"""What may be passed to the functions that quantise as ONNX does, and what is refused."""

import math

import ml_dtypes
import numpy as np
import pytest
from affine_oracles import both_types, codes_of, divided, every_code_type, every_level, values_of
from inputs import BFLOAT16, E4M3, FLOATS, LAYOUTS, assert_same, laid_out
from values import uniform

import qatcore
from qatcore import InvalidArgumentError
from qatcore._base import threads
from qatcore._codes import affine

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
    if layout != "buffer" or np.dtype(dtype).kind in "iu":  # the array interface has no name for other types
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
        ("uint16", ["uint16", "u2", "H", np.uint16, np.dtype(">u2")]),
        ("float8_e4m3fn", ["float8_e4m3fn", E4M3, E4M3.type]),
        ("int4", ["int4", ml_dtypes.int4, np.dtype(ml_dtypes.int4)]),
    ],
)
def test_names_of_code_types(name, forms):
    for form in forms:
        assert qatcore.quantize([1.0], 1.0, dtype=form).dtype.name == name
        assert qatcore.fake_quantize([1e9], 1.0, dtype=form) == {
            "int8": 127,
            "uint8": 255,
            "uint16": 65535,
            "int4": 7,
        }.get(name, 448)


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
    size = 5000 * np.dtype(dtype).itemsize
    out = memory.view(np.uint8)[offset:][:size].view(dtype)
    assert_same(qatcore.quantize(memory, 0.01, dtype=dtype, out=out), codes)
    memory = np.empty_like(x)
    given = memory.view(np.uint8)[offset:][:size].view(dtype)
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


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_out_is_a_matrix():
    x = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    out = np.matrix(np.zeros((2, 3), np.int8))
    assert qatcore.quantize(x, 0.5, out=out) is out
    assert out.tolist() == [[0, 2, 4], [6, 8, 10]]
    values = np.matrix(np.zeros((2, 3)))
    assert qatcore.dequantize(out, 0.5, out=values) is values
    assert values.tolist() == x.tolist()


def refused_outs(shape, dtype):
    read_only = np.full(shape, 7).astype(dtype)
    read_only.setflags(write=False)
    yield read_only, InvalidArgumentError, "out: expected a writable array, got a read-only one"
    yield np.full((6, 2), 7).astype(dtype), InvalidArgumentError, r"out: expected shape \(3, 4\), got \(6, 2\)"
    yield np.full((3, 1), 7).astype(dtype), InvalidArgumentError, r"out: expected shape \(3, 4\), got \(3, 1\)"
    yield np.full(shape, 7), InvalidArgumentError, r"out: expected .*, got int64"
    yield np.ma.array(np.full(shape, 7).astype(dtype)), TypeError, "out: expected a plain array, got a masked one"
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
            untouched = np.full(1, 7).astype(np.asarray(out).dtype)  # 2 bits hold no 7
            assert (np.asarray(out) == untouched).all()
    with pytest.raises(InvalidArgumentError, match=r"^out: expected float8_e4m3fn, got uint8$"):
        qatcore.quantize(x, 0.5, dtype=E4M3, out=np.empty((3, 4), np.uint8))
    with pytest.raises(InvalidArgumentError, match=r"^out: expected float32, got float64$"):
        qatcore.fake_quantize(x, 0.5, out=np.empty((3, 4)))
    with pytest.raises(InvalidArgumentError, match=r"^out: expected float32, float64, float16 or bfloat16, got int64$"):
        qatcore.dequantize(codes, 0.5, out=np.empty((3, 4), np.int64))


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
    for n in (1, 2, 3):
        monkeypatch.setattr(threads, "_num_threads", n)
        codes = qatcore.quantize(x, scale, dtype=dtype, axis=axis)
        values = qatcore.dequantize(codes, scale, dtype=kind, axis=axis)
        results.append([codes, values, qatcore.fake_quantize(x, scale, dtype=dtype, axis=axis)])
    assert_same(results[1], results[0])
    assert_same(results[2], results[0])
    assert_same(results[0][2], results[0][1])


@every_level
@pytest.mark.parametrize("several", [2, 3, 7])
@pytest.mark.parametrize(("shape", "axis"), [((1000,), None), ((3, 7, 50), 1), ((2, 4, 301), 1), ((500, 3), 1)])
def test_threads_split_anywhere(level, several, shape, axis, monkeypatch):
    monkeypatch.setattr(affine, "GRAIN", 100)
    x = np.random.default_rng(6).normal(size=shape)
    scale = 0.01 if axis is None else np.linspace(0.01, 0.02, shape[axis])
    zero_point = 5 if axis is None else np.arange(shape[axis])
    for dtype, z in (("int8", zero_point), ("uint8", zero_point), ("float8_e4m3fn", 0)):
        results = []
        for n in (1, several):
            monkeypatch.setattr(threads, "_num_threads", n)
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
    message = r"^scale: expected positive finite numbers, also in float32, got "
    with pytest.raises(InvalidArgumentError, match=message):
        call(scale)
    with pytest.raises(InvalidArgumentError, match=message):
        call([1.0, 2.0, float(scale), 1.0], axis=1)


@every_call
@pytest.mark.parametrize("scale", [1e-46, 5e-324, 2.0**-150, 1e39, 1.7e308], ids=repr)
def test_scales_that_float32_does_not_hold(call, scale):
    with pytest.raises(InvalidArgumentError, match=r"^scale: expected positive finite numbers, also in float32, got"):
        call(scale)
    with pytest.raises(InvalidArgumentError, match=r"^scale: expected positive finite numbers, also in float32, got"):
        call([1.0, scale, 1.0], axis=0)
    for half in (np.float16, BFLOAT16):
        with pytest.raises(InvalidArgumentError, match=r"^scale: expected .* also in float32"):
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
        ([1.0] * 3, {}, "scale: expected a scalar or shape (1,), got shape (3,)"),
        ([[1.0]], {}, "scale: expected a scalar or shape (1,), got shape (1, 1)"),
        ([], {}, "scale: expected a scalar or shape (1,), got shape (0,)"),
        (1.0, {"axis": 0}, "scale: expected shape (3,), got a scalar"),
        ([1.0] * 4, {"axis": 0}, "scale: expected shape (3,), got shape (4,)"),
        ([1.0], {"axis": 0}, "scale: expected shape (3,), got shape (1,)"),
        ([1.0] * 3, {"axis": 1}, "scale: expected shape (4,), got shape (3,)"),
        ([1.0] * 3, {"axis": -1}, "scale: expected shape (4,), got shape (3,)"),
        ([[1.0]] * 3, {"axis": 0}, "scale: expected shape (3,), got shape (3, 1)"),
        (1.0, {"axis": 2}, "axis: expected an axis of an array with 2 dimensions, got 2"),
        (1.0, {"axis": -3}, "axis: expected an axis of an array with 2 dimensions, got -3"),
        (1.0, {"axis": 2**70}, f"axis: expected an axis of an array with 2 dimensions, got {2**70}"),
        (1.0, {"zero_point": [0, 0]}, "zero_point: expected a scalar or shape (1,), got shape (2,)"),
        (1.0, {"zero_point": [[0]]}, "zero_point: expected a scalar or shape (1,), got shape (1, 1)"),
        ([1.0] * 3, {"axis": 0, "zero_point": [0] * 4}, "zero_point: expected a scalar or shape (3,), got shape (4,)"),
        ([1.0] * 3, {"axis": 0, "zero_point": [[0]] * 3}, "a scalar or shape (3,), got shape (3, 1)"),
        (1.0, {"zero_point": 128}, "zero_point: expected -128 to 127 for int8, got 128"),
        (1.0, {"zero_point": -129}, "zero_point: expected -128 to 127 for int8, got -129"),
        (1.0, {"zero_point": 256, "dtype": "uint8"}, "zero_point: expected 0 to 255 for uint8, got 256"),
        (1.0, {"zero_point": -1, "dtype": "uint8"}, "zero_point: expected 0 to 255 for uint8, got -1"),
        (1.0, {"zero_point": 1, "dtype": E4M3}, "zero_point: expected 0 for float8_e4m3fn, got 1"),
        (1.0, {"zero_point": 2**31}, "zero_point: expected an int32, -2147483648 to 2147483647, got 2147483648"),
        ([1.0] * 3, {"axis": 0, "zero_point": [0, 128, 0]}, "expected -128 to 127 for int8, got 128 at index 1"),
        (
            [1.0, 2.0, np.inf],
            {"axis": 0},
            "scale: expected positive finite numbers, also in float32, got inf at index 2",
        ),
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
    with pytest.raises(TypeError, match=r"^scale: expected a plain array, got a masked one"):
        qatcore.quantize(X, np.ma.array([1.0] * 3), axis=0)
    with pytest.raises(TypeError, match=r"^zero_point: expected a plain array, got a masked one"):
        qatcore.quantize(X, [1.0] * 3, np.ma.array([1] * 3), axis=0)


def test_no_axis_of_a_scalar():
    for call in (qatcore.quantize, qatcore.fake_quantize):
        for axis in (0, -1):
            with pytest.raises(InvalidArgumentError, match=f"^axis: .* an array with 0 dimensions, got {axis}$"):
                call(1.0, [1.0], axis=axis)


@pytest.mark.parametrize("function", [qatcore.quantize, qatcore.fake_quantize])
@pytest.mark.parametrize("dtype", ["int3", "int32", "float8_e4m3", "float32", np.int32, "", "?", [], {}], ids=repr)
def test_code_types_that_are_none(function, dtype):
    with pytest.raises(InvalidArgumentError, match=r"^dtype: expected one of int2, .*, int8, uint8, .*, got "):
        function(X, 1.0, dtype=dtype)


@pytest.mark.parametrize("function", [qatcore.quantize, qatcore.fake_quantize])
def test_code_type_none_is_none(function):
    """To NumPy None is float64."""
    with pytest.raises(InvalidArgumentError, match=r"^dtype: expected one of int2, .*, got None$"):
        function(X, 1.0, dtype=None)


@pytest.mark.parametrize(
    "codes", [[1, 2], 1, 1.0, np.int32([1]), np.bool_([True]), np.float32([1]), ["1"], None], ids=repr
)
def test_codes_of_another_type(codes):
    given = np.asarray(codes).dtype
    message = f"^codes: expected one of int2, .*, got {given}$"
    with pytest.raises(TypeError, match=message):
        qatcore.dequantize(codes, 1.0)


@pytest.mark.parametrize("dtype", ["int8", np.longdouble, "float8_e4m3fn"], ids=str)
def test_value_types_that_are_none(dtype):
    with pytest.raises(InvalidArgumentError, match=r"^dtype: expected float32, float64, float16 or bfloat16, got "):
        qatcore.dequantize(np.int8([1]), 1.0, dtype=dtype)
    with pytest.raises(TypeError, match=r"^dtype: expected float32, float64, float16 or bfloat16, got 'text'$"):
        qatcore.dequantize(np.int8([1]), 1.0, dtype="text")
    with pytest.raises(
        InvalidArgumentError, match=r"^dtype: expected float32, float64, float16 or bfloat16, got None$"
    ):
        qatcore.dequantize(np.int8([1]), 1.0, dtype=None)
