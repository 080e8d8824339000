"""int8 products are exact, at every size and with every micro-kernel."""

import copy
import pickle
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import qatcore
from qatcore._base import dispatch

# float64 holds every partial sum of these sizes exactly, so its BLAS is an oracle, and a fast one.


def random_codes(seed, *shape):
    return np.random.default_rng(seed).integers(-128, 128, shape, np.int8)


@pytest.mark.parametrize("k", [1, 3, 4, 5, 63, 64, 65, 130, 1023, 1024, 1025, 4096, 4097])
def test_sizes(product, k):
    """Around the edges of tiles, panels, segments and blocks."""
    for m in (1, 2, 3, 4, 5, 6, 7, 16, 17, 33):
        for n in (1, 2, 8, 15, 16, 17, 33, 64, 65, 97):
            a, b = random_codes(m, m, k), random_codes(n, k, n)
            expected = a.astype(np.float64) @ b.astype(np.float64)
            result = qatcore.int8_matmul(a, b)
            assert result.dtype == np.int64
            assert np.array_equal(result, expected)
            assert np.array_equal(qatcore.int8_matmul(a, qatcore.PackedInt8Matrix(b)), expected)


@pytest.mark.parametrize(
    "shape",
    [
        (700, 40, 100),
        (300, 3000, 20),
        (97, 66_000, 3),
        (1000, 1, 1),
        (200, 4200, 200),
        (70, 1000, 600),
        (100, 70_000, 70),
    ],
)
def test_several_blocks(product, shape):
    """Of rows, of columns, of both, and with sums that grow part by part of the depth."""
    m, k, n = shape
    a, b = random_codes(0, m, k), random_codes(1, k, n)
    assert np.array_equal(qatcore.int8_matmul(a, b), a.astype(np.float64) @ b.astype(np.float64))
    zero_point = np.arange(n) - n // 2
    linear = qatcore.int8_linear(a, b, 1.0, a_zero_point=3, b_zero_point=zero_point, dtype="float64")
    assert np.array_equal(linear, (a - 3.0) @ (b - np.float64(zero_point)))


@pytest.mark.parametrize("k", [65_535, 65_536, 65_537, 131_072, 131_073])
def test_extremes_do_not_overflow(product, k):
    """At k = 131,072 a sum of (-128)**2 in int32 is off by one bit, and one of -128 * 255 long before."""
    for m in (2, 5):
        a = np.full((m, k), -128, np.int8)
        assert qatcore.int8_matmul(a, a.T).tolist() == [[k * 16384] * m] * m
        b = np.full((k, 3), 127, np.int8)
        assert qatcore.int8_matmul(a, b).tolist() == [[k * -128 * 127] * 3] * m
        assert qatcore.int8_matmul(-1 - a, b).tolist() == [[k * 127 * 127] * 3] * m
        assert qatcore.int8_linear(a, b, 1.0, dtype="float64").tolist() == [[k * -128.0 * 127] * 3] * m


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0), (0, 0, 0)])
def test_empty(product, shape):
    m, k, n = shape
    a, b = np.zeros((m, k), np.int8), np.zeros((k, n), np.int8)
    packed = qatcore.PackedInt8Matrix(b)
    assert packed.column_sums.tolist() == [0] * n
    for right in (b, packed):
        result = qatcore.int8_matmul(a, right)
        assert result.shape == (m, n)
        assert result.dtype == np.int64
        assert not result.any()
        linear = qatcore.int8_linear(a, right, 0.5, 2.0, a_zero_point=1)
        assert linear.shape == (m, n)
        assert (linear == 2.0).all()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(700, 3000, 200), (3, 4000, 30_000), (64, 1100, 3001)])
def test_threads(product, threads, shape, monkeypatch):
    monkeypatch.setattr(qatcore._base.threads, "_num_threads", threads)
    monkeypatch.setattr(qatcore._linear.gemm, "_GRAIN", 1 << 20)
    a, b = random_codes(0, *shape[:2]), random_codes(1, *shape[1:])
    expected = a.astype(np.float64) @ b.astype(np.float64)
    packed = qatcore.PackedInt8Matrix(b)
    assert np.array_equal(qatcore.int8_matmul(a, packed), expected)
    assert np.array_equal(qatcore.int8_linear(a, packed, 1.0, dtype="float64"), expected)
    assert np.array_equal(packed.column_sums, b.sum(axis=0, dtype=np.int64))


@pytest.mark.parametrize(
    "transform", [np.asfortranarray, lambda x: x[::-1, ::-1], lambda x: np.repeat(x, 2, 1)[:, ::2]]
)
def test_layouts(transform):
    a, b = random_codes(0, 9, 70), random_codes(1, 70, 35)
    expected = a.astype(np.int64) @ b.astype(np.int64)
    if np.array_equal(transform(a), a):
        assert np.array_equal(qatcore.int8_matmul(transform(a), transform(b)), expected)
        assert np.array_equal(qatcore.int8_linear(transform(a), transform(b), 1.0), expected)
    else:
        assert np.array_equal(qatcore.int8_matmul(transform(a), transform(b)), expected[::-1, ::-1])


# --- packed matrices -------------------------------------------------------------------------------------


def test_a_packed_matrix_keeps_its_values():
    b = random_codes(0, 70, 35)
    packed = qatcore.PackedInt8Matrix(b)
    expected = np.eye(70, dtype=np.int8)
    assert np.array_equal(qatcore.int8_matmul(expected, packed), b)
    b[...] = 0
    assert qatcore.int8_matmul(expected, packed).any()
    assert packed.shape == (70, 35)
    assert repr(packed) == "PackedInt8Matrix(shape=(70, 35))"
    packed.column_sums[...] = 0
    assert packed.column_sums.any()


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies(copied):
    b = random_codes(0, 70, 35)
    other = copied(qatcore.PackedInt8Matrix(b))
    assert np.array_equal(qatcore.int8_matmul(np.eye(70, dtype=np.int8), other), b)
    assert np.array_equal(other.column_sums, b.sum(axis=0, dtype=np.int64))
    assert other._panels.ctypes.data % 64 == 0


def test_a_packed_matrix_serves_many_threads():
    b = random_codes(0, 300, 200)
    packed = qatcore.PackedInt8Matrix(b)
    lefts = [random_codes(seed, 1 + 7 * seed, 300) for seed in range(16)]
    with ThreadPoolExecutor(4) as pool:
        products = list(pool.map(lambda a: qatcore.int8_matmul(a, packed), lefts * 5))
        values = list(pool.map(lambda a: qatcore.int8_linear(a, packed, 1.0, dtype="float64"), lefts * 5))
    for a, product, value in zip(lefts * 5, products, values, strict=True):
        assert np.array_equal(product, a.astype(np.float64) @ b.astype(np.float64))
        assert np.array_equal(value, product)


def test_what_a_packed_matrix_tells_cannot_be_set():
    packed = qatcore.PackedInt8Matrix(random_codes(0, 3, 2))
    for name in ("shape", "column_sums"):
        with pytest.raises(AttributeError):
            setattr(packed, name, None)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickles_of_empty_matrices(protocol):
    for shape in ((0, 0), (3, 0), (0, 3)):
        other = pickle.loads(pickle.dumps(qatcore.PackedInt8Matrix(np.zeros(shape, np.int8)), protocol))
        assert other.shape == shape
        assert qatcore.int8_matmul(np.zeros((2, shape[0]), np.int8), other).tolist() == [[0] * shape[1]] * 2


@pytest.mark.parametrize(
    ("b", "error", "message"),
    [
        ([[1, 2]], TypeError, "b: expected an array of int8, got int64"),
        (np.uint8([[1, 2]]), TypeError, "b: expected an array of int8, got uint8"),
        (None, TypeError, "b: expected an array of int8, got object"),
        (
            np.ma.array(np.int8([[1]])),
            TypeError,
            "b: expected a plain array, got a masked one, whose mask would be lost",
        ),
        (np.int8([1, 2]), qatcore.InvalidArgumentError, "b: expected a matrix, got shape (2,)"),
        (np.int8(1), qatcore.InvalidArgumentError, "b: expected a matrix, got shape ()"),
        (np.int8([[[1]]]), qatcore.InvalidArgumentError, "b: expected a matrix, got shape (1, 1, 1)"),
        ([np.int8([1]), np.int8([1, 2])], qatcore.InvalidArgumentError, "b: expected an array: "),
    ],
)
def test_what_cannot_be_packed(b, error, message):
    one = np.int8([[1]])
    for call in (
        qatcore.PackedInt8Matrix,
        lambda b: qatcore.int8_matmul(one, b),
        lambda b: qatcore.int8_linear(one, b, 1.0),
    ):
        with pytest.raises(error, match=f"^{re.escape(message)}"):
            call(b)


def test_a_packed_matrix_is_no_left_operand():
    packed = qatcore.PackedInt8Matrix(np.int8([[1]]))
    for call in (lambda: qatcore.int8_matmul(packed, packed), lambda: qatcore.int8_linear(packed, packed, 1.0)):
        with pytest.raises(TypeError, match=r"^a: expected an array of int8, got object$"):
            call()


# --- linear layers of codes ------------------------------------------------------------------------------


def exact_linear(a, b, scale, bias, zero_points):
    """Python's integers, then two operations in float64."""
    left = a.astype(object) - zero_points[0]
    right = b.astype(object) - np.asarray(zero_points[1]).astype(object)
    return (left @ right).astype(np.float64) * scale + bias


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 5, 3), (4, 64, 16), (5, 130, 70), (33, 65, 33)])
@pytest.mark.parametrize(
    ("a_zero_point", "b_zero_point"),
    [(0, 0), (-128, 3), (127, -128), (10**6, -(10**6)), (2**31 - 1, -(2**31)), (-(2**31), -(2**31))],
)
def test_linear(product, dtype, shape, a_zero_point, b_zero_point):
    m, k, n = shape
    rng = np.random.default_rng(0)
    a, b = random_codes(2, m, k), random_codes(3, k, n)
    for scale, bias, zero_point in (
        (0.3, 0.0, b_zero_point),
        (rng.random(n), rng.normal(size=n) * 1e3, rng.integers(min(b_zero_point, 0), max(b_zero_point, 0) + 1, n)),
    ):
        expected = exact_linear(a, b, scale, bias, (a_zero_point, zero_point)).astype(dtype)
        for right in (b, qatcore.PackedInt8Matrix(b)):
            result = qatcore.int8_linear(
                a, right, scale, bias, a_zero_point=a_zero_point, b_zero_point=zero_point, dtype=dtype
            )
            assert result.dtype == dtype
            assert result.tobytes() == expected.tobytes()


@pytest.mark.parametrize("zero_points", [(2**23, 2**13), (2**22 + 5, 2**14 - 9), (2**31 - 1, 127), (5, 2**31 - 1)])
def test_linear_at_the_limits_of_float64(product, zero_points):
    """Where a sum may pass 2**53, and where int64 is left for Python's integers."""
    for k in (64, 1 << 16, (1 << 16) + 1):
        a = np.full((2, k), -128, np.int8)
        b = np.full((k, 2), 127, np.int8)
        b[0] = 126  # an odd sum
        first, second = zero_points
        exact = (-128 - first) * ((126 - second) + (127 - second) * (k - 1))
        result = qatcore.int8_linear(
            a, b, 1.0, a_zero_point=zero_points[0], b_zero_point=zero_points[1], dtype="float64"
        )
        assert result.tolist() == [[float(exact)] * 2] * 2


def test_linear_into_an_array():
    a, b = random_codes(2, 6, 7), random_codes(3, 7, 5)
    expected = a.astype(np.float64) @ b.astype(np.float64)
    for out in (
        np.empty((6, 5)),
        np.empty((6, 5), np.float32),
        np.empty((6, 5), np.float32, order="F"),
        np.empty((6, 10))[:, ::2],
        np.empty((6, 5), ">f8"),
    ):
        assert qatcore.int8_linear(a, b, 1.0, out=out) is out
        assert np.array_equal(out, expected)
    memory = np.zeros(6 * 5 * 8, np.int8)
    memory[: a.size] = a.reshape(-1)
    out = memory.view(np.float64).reshape(6, 5)
    qatcore.int8_linear(memory[: a.size].reshape(a.shape), b, 1.0, out=out)  # over its own input
    assert np.array_equal(out, expected)


def test_linear_into_arrays_of_other_layouts():
    a, b = random_codes(2, 6, 7), random_codes(3, 7, 5)
    expected = qatcore.int8_linear(a, b, 0.3, 1.0, a_zero_point=5, dtype="float64")
    memory = np.zeros(6 * 5 * 8 + 1, np.int8)
    misaligned = memory[1:].view(np.float64).reshape(6, 5)
    flipped, subclass = np.empty((6, 5))[::-1, ::-1], np.empty((6, 5)).view(type("Array", (np.ndarray,), {}))
    for out in (misaligned, flipped, np.empty((5, 6)).T, subclass):
        assert qatcore.int8_linear(a, b, 0.3, 1.0, a_zero_point=5, out=out) is out
        assert np.array_equal(np.asarray(out), expected)


def test_linear_into_an_array_decides_the_type():
    a, b = random_codes(2, 6, 7), random_codes(3, 7, 5)
    for kind, other in ((np.float32, "float64"), (np.float64, "float32")):
        out = np.empty((6, 5), kind)
        qatcore.int8_linear(a, b, 0.3, dtype=other, out=out)
        assert out.tobytes() == qatcore.int8_linear(a, b, 0.3, dtype=kind).tobytes()


def test_linear_over_its_own_operands():
    """Also in the memory of scales and biases, which are read before anything is written."""
    a, b = random_codes(2, 40, 50), random_codes(3, 50, 40)
    scale, bias = np.linspace(0.1, 0.2, 40), np.linspace(-1.0, 1.0, 40)
    zero_point = np.arange(40, dtype=np.int32)
    expected = qatcore.int8_linear(a, b, scale, bias, b_zero_point=zero_point, dtype="float64")
    for name in ("a", "b", "scale", "bias", "b_zero_point"):
        arguments = {"a": a, "b": b, "scale": scale, "bias": bias, "b_zero_point": zero_point}
        out = np.zeros((40, 40))
        value = arguments[name]
        inside = out.reshape(-1).view(np.int8)[: value.nbytes].view(value.dtype).reshape(value.shape)
        inside[...] = value
        qatcore.int8_linear(**arguments | {name: inside}, out=out)
        assert np.array_equal(out, expected)


def test_linear_leaves_an_array_as_it_was():
    a, b = random_codes(2, 6, 7), random_codes(3, 7, 5)
    out = np.full((6, 5), 7.0)
    for options in (
        {"scale": -1.0},
        {"scale": [1.0] * 4},
        {"scale": 1.0, "bias": [1.0]},
        {"scale": 1.0, "bias": 1j},
        {"scale": 1.0, "a_zero_point": 2**31},
        {"scale": 1.0, "a_zero_point": 0.5},
        {"scale": 1.0, "b_zero_point": [0.5] * 5},
    ):
        with pytest.raises((TypeError, qatcore.InvalidArgumentError)):
            qatcore.int8_linear(a, b, **options, out=out)
        assert (out == 7.0).all()


@pytest.mark.parametrize("zero_points", [(0, 0), (3, -5), (2**31 - 1, -(2**31))])
def test_linear_of_one_for_all_columns(product, zero_points):
    """A scalar is an array of equal numbers; Python's numbers and NumPy's are the same."""
    a, b = random_codes(2, 6, 7), random_codes(3, 7, 5)
    first, second = zero_points
    expected = qatcore.int8_linear(a, b, 0.5, 2.0, a_zero_point=first, b_zero_point=second)
    for scale in (np.float32(0.5), np.array(0.5), [0.5] * 5, np.full(5, 0.5, np.float16), np.full(5, 0.5, ">f4")):
        for bias in (2, np.int8(2), [2.0] * 5, np.full(5, 2)):
            for z in (np.int64(second), np.array(second), [second] * 5, np.full(5, second, ">i8")):
                result = qatcore.int8_linear(a, b, scale, bias, a_zero_point=np.int64(first), b_zero_point=z)
                assert result.tobytes() == expected.tobytes()


def test_linear_rows_do_not_depend_on_each_other(product):
    a, b = random_codes(2, 33, 130), qatcore.PackedInt8Matrix(random_codes(3, 130, 70))
    scale, bias = np.linspace(0.1, 0.2, 70), np.linspace(-1e3, 1e3, 70)
    together = qatcore.int8_linear(a, b, scale, bias, a_zero_point=3)
    for i in range(33):
        assert np.array_equal(qatcore.int8_linear(a[i : i + 1], b, scale, bias, a_zero_point=3)[0], together[i])
    assert np.array_equal(qatcore.int8_linear(a[::-2], b, scale, bias, a_zero_point=3), together[::-2])


@pytest.mark.parametrize("zero_points", [(3, -5), (2**31 - 1, -(2**31))])
def test_linear_of_extreme_parameters(product, zero_points):
    """Without a warning, of which products that overflow would give many."""
    a, b = random_codes(2, 6, 7), random_codes(3, 7, 6)
    scale = np.array([0.0, 5e-324, 1.7e308, 1.0, 1e40, 1e-46])
    bias = np.array([np.inf, -0.0, 1.0, np.nan, -np.inf, 1.7e308])
    with np.errstate(all="ignore"):
        exact = exact_linear(a, b, scale, bias, zero_points)
        for dtype in ("float32", "float64"):
            expected = exact.astype(dtype)
            with np.errstate(all="warn"):
                result = qatcore.int8_linear(
                    a, b, scale, bias, a_zero_point=zero_points[0], b_zero_point=zero_points[1], dtype=dtype
                )
            assert np.array_equal(result, expected, equal_nan=True)


def test_linear_refuses():
    a, b = random_codes(2, 6, 7), random_codes(3, 7, 5)
    linear = qatcore.int8_linear
    for call, message in (
        (lambda: linear(a, a, 1.0), "b: expected 7 rows, as many as a has columns, got 6"),
        (lambda: linear(a, qatcore.PackedInt8Matrix(a), 1.0), "b: expected 7 rows, as many as a has columns, got 6"),
        (lambda: linear(a, b, -1.0), "scale: expected a finite number that is not negative, got -1.0"),
        (lambda: linear(a, b, [1.0] * 4), "scale: expected a scalar or shape (5,), got shape (4,)"),
        (lambda: linear(a, b, 1.0, [1.0]), "bias: expected a scalar or shape (5,), got shape (1,)"),
        (lambda: linear(a, b, 1.0, a_zero_point=2**31), "a_zero_point: expected an int32, "),
        (lambda: linear(a, b, 1.0, b_zero_point=[0]), "b_zero_point: expected a scalar or shape (5,), got shape (1,)"),
        (lambda: linear(a, b, 1.0, dtype="int32"), "dtype: expected float32 or float64, got int32"),
        (lambda: linear(a, b, 1.0, out=np.empty((5, 6))), "out: expected shape (6, 5), got (5, 6)"),
        (lambda: linear(a, b, 1.0, out=np.empty((6, 5), int)), "out: expected float32 or float64, got int64"),
    ):
        with pytest.raises(qatcore.InvalidArgumentError) as caught:
            call()
        assert str(caught.value).startswith(message)
    read_only = np.empty((6, 5))
    read_only.setflags(write=False)
    with pytest.raises(qatcore.InvalidArgumentError, match="out: expected a writable array, got a read-only one"):
        linear(a, b, 1.0, out=read_only)
    with pytest.raises(TypeError, match="out: expected an ndarray, got list"):
        linear(a, b, 1.0, out=[[0.0] * 5] * 6)
    with pytest.raises(TypeError, match="a: expected an array of int8, got float64"):
        linear(a.astype(float), b, 1.0)


def test_the_module_in_use_does_not_matter():
    """A matrix packed under one build multiplies under all."""
    a, b = random_codes(2, 40, 300), random_codes(3, 300, 50)
    packed = qatcore.PackedInt8Matrix(b)
    expected = qatcore.int8_matmul(a, b)
    for level in dispatch.available_levels():
        few, many = dispatch.load_gemms(level)
        for module in {few, many}:
            out = np.empty_like(expected)
            module.multiply(a, packed._panels, out, 0, 50)
            assert np.array_equal(out, expected)


# --- rows become codes on their way ----------------------------------------------------------------------


def defined_codes(x, scale, zero_point, low, high):
    """round_half_away(x / scale + zero_point) in float64, saturated; NaN gives 0."""
    with np.errstate(all="ignore"):
        v = x.astype(np.float64) / scale + zero_point
        return np.nan_to_num(np.clip(np.trunc(v + np.copysign(np.nextafter(0.5, 0.0), v)), low, high)) + 0.0


SCALES = [1.0, 0.5, 1 / 3, 0.0371, 1.0 - 2.0**-24, 1.0 + 2.0**-52, np.pi * 1e-20, 7e25]
SCALES += [2.0**-100, np.nextafter(2.0**-100, 1.0), 2.0**100, np.nextafter(2.0**100, 0.0), 2.0**-140, 1e-300, 2.0**126]


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("zero_point", [0, 3, -128, 127, 256, -256, 257, 2**31 - 1])
def test_codes_are_those_of_the_definition(product, scale, zero_point, kind):
    """Multiplying by the identity gives the codes: at every tie and next to it, and where nothing is finite."""
    side = 128
    identity = qatcore.PackedInt8Matrix(np.eye(side, dtype=np.int8))
    columns = np.zeros((4, side))
    columns[2] = 1.0
    rng = np.random.default_rng(0)
    with np.errstate(over="ignore"):
        ties = ((np.arange(-130, 131) + 0.5 - zero_point) * scale).astype(kind)
        spread = ((rng.uniform(-140, 140, 900) - zero_point) * scale).astype(kind)
        huge = (rng.normal(size=99) * 2.0 ** rng.integers(-140, 127, 99)).astype(kind)
    near = [ties]
    for step in (-np.inf, np.inf):
        neighbour = ties
        for _ in range(3):
            with np.errstate(over="ignore"):
                neighbour = np.nextafter(neighbour, kind(step))
            near.append(neighbour)
    info = np.finfo(kind)
    odd = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, info.max, -info.max, info.smallest_subnormal, info.tiny], kind)
    for values in (np.concatenate([*near, spread, huge, odd]), spread, np.concatenate([spread, ties[:3], odd[:1]])):
        x = np.resize(rng.permutation(values), (-(-values.size // side), side))
        out = np.empty(x.shape)
        product.multiply_scaled(x, identity._panels, columns, False, out, scale, zero_point, -128.0, 127.0, 0, side)
        assert out.tobytes() == defined_codes(x, scale, zero_point, -128, 127).tobytes()
        product.multiply_scaled(x, identity._panels, columns, False, out, scale, zero_point, -8.0, 7.0, 0, side)
        assert out.tobytes() == defined_codes(x, scale, zero_point, -8, 7).tobytes()
