"""MX and NVFP4: against an independent reading of the OCP standard in fractions, and torchao."""

import functools
import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from affine_oracles import every_level
from inputs import BFLOAT16, LAYOUTS, assert_same, laid_out
from values import adversarial, random_bits, uniform

import qatcore
from qatcore import InvalidArgumentError

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)
ELEMENTS = ["float4_e2m1fn", "float8_e4m3fn", "float8_e5m2", "int8"]
every_element = pytest.mark.parametrize("dtype", ELEMENTS)


def values_of_element(dtype):
    """All values of an element format as fractions, and their codes: finite ones, by the standard's tables 1 to 6."""
    if dtype == "int8":
        return {Fraction(code, 64): np.int8(code).tobytes() for code in range(-128, 128)}
    exponent_bits, mantissa_bits, bias = {
        "float4_e2m1fn": (2, 1, 1),
        "float8_e4m3fn": (4, 3, 7),
        "float8_e5m2": (5, 2, 15),
    }[dtype]
    found = {}
    for code in range(1 << (exponent_bits + mantissa_bits)):
        exponent, mantissa = code >> mantissa_bits, code & ((1 << mantissa_bits) - 1)
        if (dtype == "float8_e4m3fn" and code == 0x7F) or (dtype == "float8_e5m2" and exponent == 31):
            continue  # NaN and infinity
        fraction = Fraction(mantissa, 1 << mantissa_bits)
        value = (1 + fraction) * Fraction(2) ** (exponent - bias) if exponent else fraction * Fraction(2) ** (1 - bias)
        found[value] = bytes([code])
    return found


def nearest(exact, negative, dtype, table):
    """The code nearest to a fraction, of two the even one, saturating."""
    if dtype == "int8":
        code = min(max(round(exact * 64), -127), 127)
        return np.int8(code).tobytes()
    magnitudes = list(table)
    index = min(range(len(magnitudes)), key=lambda i: (abs(magnitudes[i] - abs(exact)), i % 2))
    sign = (0x08 if dtype == "float4_e2m1fn" else 0x80) if negative else 0
    return bytes([table[magnitudes[index]][0] | sign])


def by_the_standard(block, dtype):
    """Section 6.3: the scale's exponent, and the codes of a block's finite values."""
    table = values_of_element(dtype)
    greatest_power = math.floor(math.log2(max(table))) if dtype != "int8" else 0
    magnitudes = [abs(Fraction(float(v))) for v in block]
    largest = max(magnitudes)
    if largest:
        power = largest.numerator.bit_length() - largest.denominator.bit_length()
        power -= Fraction(2) ** power > largest
        shared = min(max(power - greatest_power, -127), 127)
    else:
        shared = -127
    scale = Fraction(2) ** shared
    codes = [nearest(Fraction(float(v)) / scale, bool(np.signbit(v)), dtype, table) for v in block]
    return shared, b"".join(codes)


def hard_blocks(kind, block_size, n):
    """Blocks at every magnitude, at both ends, with ties, of zeros."""
    exponents = uniform(n, 1) * (np.finfo(kind).maxexp - np.finfo(kind).minexp + 20) + np.finfo(kind).minexp - 20
    exponents[::3] = np.floor(uniform(n, 2)[::3] * 12) - 6
    with np.errstate(all="ignore"):
        x = (uniform(n * block_size, 3).reshape(n, block_size) - 0.5) * np.exp2(np.floor(exponents))[:, np.newaxis]
        x[1::4] = np.round(x[1::4] * 2.0**4) * 2.0**-4  # ties and exact values
        x = x.astype(kind)
    x[5] = 0.0
    x[6] = -0.0
    x[7] = np.finfo(kind).smallest_subnormal
    x[8] = np.finfo(kind).max
    x[9, :3] = [6.0, 1.25, -1.75]
    return np.where(np.isfinite(x), x, 0.0).astype(kind)


@functools.cache
def hard_blocks_by_the_standard(kind, block_size, n, dtype):
    """The same for every level, and slow."""
    return [by_the_standard(row, dtype) for row in hard_blocks(kind, block_size, n)]


@pytest.mark.slow
@every_level
@every_element
@pytest.mark.parametrize("kind", [np.float32, np.float64], ids=["float32", "float64"])
def test_mx_is_the_standard(level, kind, dtype):
    for block_size in (32, 5):
        x = hard_blocks(kind, block_size, 120)
        codes, scale = qatcore.quantize_mx(x, dtype, block_size)
        assert (str(codes.dtype), codes.shape) == (dtype, x.shape)
        assert (scale.dtype, scale.shape) == (E8M0, (120, 1))
        expected_blocks = hard_blocks_by_the_standard(kind, block_size, 120, dtype)
        for of_row, scale_of_row, (shared, expected) in zip(
            codes, scale.view(np.uint8)[:, 0], expected_blocks, strict=True
        ):
            assert scale_of_row == shared + 127
            assert of_row.tobytes() == expected


@every_level
@every_element
def test_mx_values_are_products(level, dtype):
    """Each code by each scale, exact where float32 can hold it."""
    codes = np.arange(256 if dtype != "float4_e2m1fn" else 16, dtype=np.uint8).view(dtype)
    scales = np.arange(256, dtype=np.uint8).view(E8M0)
    unit = 2.0**-6 if dtype == "int8" else 1.0
    with np.errstate(all="ignore"):
        exact = codes.astype(np.float64) * unit * scales.astype(np.float64)[:, np.newaxis]
        for kind in (np.dtype(np.float32), np.dtype(np.float64), np.dtype(np.float16), BFLOAT16):
            values = qatcore.dequantize_mx(np.tile(codes, (256, 1)), scales[:, np.newaxis], dtype=kind)
            assert_same(values, exact.astype(np.float32).astype(kind) if kind != np.float64 else exact)
        finite = np.isfinite(exact) & (np.abs(exact) <= np.finfo(np.float32).max)
        assert (exact.astype(np.float32).astype(np.float64) == exact)[finite].all()


@every_element
@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
def test_mx_axes(axis, dtype):
    x = np.random.default_rng(0).normal(size=(12, 24, 36)).astype(np.float32) * 100
    codes, scale = qatcore.quantize_mx(x, dtype, 12, axis=axis)
    moved = np.ascontiguousarray(np.moveaxis(x, axis, -1))
    expected_codes, expected_scale = qatcore.quantize_mx(moved, dtype, 12)
    assert_same(codes, np.ascontiguousarray(np.moveaxis(expected_codes, -1, axis)))
    assert_same(scale, np.ascontiguousarray(np.moveaxis(expected_scale, -1, axis)))
    values = qatcore.dequantize_mx(codes, scale, axis=axis)
    expected = qatcore.dequantize_mx(expected_codes, expected_scale)
    assert_same(values, np.ascontiguousarray(np.moveaxis(expected, -1, axis)))


@every_element
@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_mx_of_what_is_not_finite(kind, dtype):
    x = np.ones((4, 2, 32), kind)
    x[0, 0, 3] = np.nan
    x[1, 1, :2] = [np.inf, -np.inf]
    x[2, 0, 5:7] = [np.inf, np.nan]
    codes, scale = qatcore.quantize_mx(x, dtype)
    exponents = scale.view(np.uint8)[..., 0]
    assert (exponents[[0, 2], 0] == 255).all()
    assert (codes[[0, 2], 0].view(np.uint8) == 0).all()
    values = qatcore.dequantize_mx(codes, scale, dtype=kind)
    assert np.isnan(values[[0, 2], 0]).all()
    assert np.isfinite(values[0, 1]).all()
    largest = qatcore.quantize_mx(np.full(32, np.finfo(kind).max, kind), dtype)
    assert codes[1, 1, 0] == largest[0][0]
    assert exponents[1, 1] == largest[1].view(np.uint8)[0]
    assert values[1, 1, 0] == -values[1, 1, 1]
    assert (values[1, 1, 2:] == 0.0).all()


@every_element
def test_mx_of_other_types(dtype):
    bits = np.arange(2**16, dtype=np.uint16)
    for kind in (np.dtype(np.float16), BFLOAT16):
        x = bits.view(kind)
        assert_same(qatcore.quantize_mx(x, dtype), qatcore.quantize_mx(x.astype(np.float32), dtype))
    x = np.arange(-64, 64)
    assert_same(qatcore.quantize_mx(x, dtype), qatcore.quantize_mx(x.astype(np.float64), dtype))
    assert_same(qatcore.quantize_mx(x.tolist(), dtype), qatcore.quantize_mx(x.astype(np.float64), dtype))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout, tmp_path):
    x = np.random.default_rng(0).normal(size=(3, 4, 32)).astype(np.float32)
    given = laid_out(layout, x, tmp_path)
    codes, scale = qatcore.quantize_mx(x)
    assert_same(qatcore.quantize_mx(given), (codes, scale))
    four = qatcore.quantize_nvfp4(x)
    assert_same(qatcore.quantize_nvfp4(given), four)
    if layout != "buffer":  # the array interface has no name for these types
        paths = tmp_path / "codes", tmp_path / "scale"
        for path in paths:
            path.mkdir()
        given = [laid_out(layout, *each) for each in zip((codes, scale), paths, strict=True)]
        assert_same(qatcore.dequantize_mx(*given), qatcore.dequantize_mx(codes, scale))
        given = [laid_out(layout, *each) for each in zip(four[:2], paths, strict=True)]
        assert_same(qatcore.dequantize_nvfp4(*given, four[2]), qatcore.dequantize_nvfp4(*four))


@pytest.mark.parametrize("shape", [(0,), (0, 32), (32, 0), (2, 0, 32)], ids=str)
def test_empty(shape):
    codes, scale = qatcore.quantize_mx(np.ones(shape), axis=shape.index(32) if 32 in shape else 0)
    assert codes.shape == shape
    assert scale.size == 0
    assert qatcore.dequantize_mx(codes, scale, axis=shape.index(32) if 32 in shape else 0).shape == shape


@pytest.mark.parametrize("dtype", ELEMENTS[:3])
def test_mx_equals_torchao(dtype):
    torch = pytest.importorskip("torch")
    mx_tensor = pytest.importorskip("torchao.prototype.mx_formats.mx_tensor")
    x = hard_blocks(np.float32, 32, 40_000)
    x[20, 3] = np.nan
    element = {"float4_e2m1fn": torch.float4_e2m1fn_x2}.get(dtype) or getattr(torch, dtype)
    scale, packed = mx_tensor.to_mx(torch.from_numpy(x), element, 32)
    codes, ours = qatcore.quantize_mx(x, dtype)
    assert np.array_equal(scale.view(torch.uint8).numpy().reshape(-1), ours.view(np.uint8).reshape(-1))
    theirs = packed.view(torch.uint8).numpy().reshape(x.shape[0], -1)
    if dtype == "float4_e2m1fn":
        theirs = qatcore.unpack_int4(theirs.reshape(-1), x.shape, dtype=dtype).view(np.uint8)
    # Elements of blocks with the least scale, 2**-127, are divided by 2**-126 there.
    usual = np.isfinite(x).all(axis=1) & (ours.view(np.uint8)[:, 0] > 0)
    assert usual.sum() > 25_000
    assert np.array_equal(theirs[usual], codes.view(np.uint8)[usual])


# --- NVFP4 -----------------------------------------------------------------------------------------------


def rounded32(exact):
    """A fraction rounded to float32: doubles hold what is asked for here with bits to spare."""
    return np.float32(float(exact))


def by_the_recipe(x, tensor_scale):
    """Codes and scales of finite float32 blocks, step by step in NumPy and ml_dtypes."""
    e4m3 = np.dtype(ml_dtypes.float8_e4m3fn)
    largest = np.abs(x).max(axis=-1, keepdims=True)
    ratio = np.clip(largest / np.float32(6.0) / tensor_scale, np.float32(2.0**-9), np.float32(448.0))
    scale = ratio.astype(e4m3)
    step = scale.astype(np.float32) * tensor_scale
    return np.clip(x / step, -6.0, 6.0).astype(ml_dtypes.float4_e2m1fn), scale


@every_level
def test_nvfp4_is_the_recipe(level):
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(500, 40, 16)) * np.exp2(rng.integers(-12, 12, (500, 40, 1)))).astype(np.float32)
    x[3, 4] = 0.0
    for given in (None, 0.01, 1.0):
        codes, scale, tensor_scale = qatcore.quantize_nvfp4(x, given)
        assert type(tensor_scale) is np.float32
        assert tensor_scale == np.float32(np.abs(x).max() / np.float32(2688.0) if given is None else given)
        expected_codes, expected_scale = by_the_recipe(x, tensor_scale)
        assert_same(codes, expected_codes)
        assert_same(scale, expected_scale)
        values = qatcore.dequantize_nvfp4(codes, scale, tensor_scale)
        steps = scale.astype(np.float32) * tensor_scale
        assert_same(values, codes.astype(np.float32) * steps)
        wide = qatcore.dequantize_nvfp4(codes, scale, tensor_scale, dtype=np.float64)
        assert_same(wide, codes.astype(np.float64) * (scale.astype(np.float64) * np.float64(tensor_scale)))


@every_level
def test_nvfp4_of_doubles(level):
    """In fractions: one rounding a step."""
    x = (np.random.default_rng(1).normal(size=(60, 16)) * np.exp2(np.arange(60.0) % 9)[:, np.newaxis]).astype(
        np.float64
    )
    codes, scale, tensor_scale = qatcore.quantize_nvfp4(x)
    assert tensor_scale == rounded32(Fraction(float(np.abs(x).max())) / 2688)
    table = values_of_element("float4_e2m1fn")
    for row, of_row, scale_of_row in zip(x, codes, scale[:, 0], strict=True):
        step = Fraction(float(scale_of_row)) * Fraction(float(tensor_scale))  # 28 bits: exact in float64
        quotients = [Fraction(float(v) / float(step)) for v in row]
        expected = [nearest(q, bool(v < 0), "float4_e2m1fn", table) for q, v in zip(quotients, row, strict=True)]
        assert of_row.tobytes() == b"".join(expected)
        ratio = float(np.abs(row).max()) / 6.0 / float(tensor_scale)  # a double, rounded once to E4M3
        fine = [Fraction(v) for v in np.arange(256, dtype=np.uint8).view(E4M3)[1:127].astype(float).tolist()]
        below, above = max(v for v in fine if v <= ratio), min((v for v in fine if v >= ratio), default=fine[-1])
        if 2 * Fraction(ratio) != below + above:
            assert Fraction(float(scale_of_row)) == (below if 2 * Fraction(ratio) < below + above else above)


def test_nvfp4_of_what_is_not_finite_or_tiny():
    x = np.ones((5, 16), np.float32)
    x[0, 3] = np.nan
    x[1] = 0.0
    x[2] = 1e-30
    codes, scale, tensor_scale = qatcore.quantize_nvfp4(x)
    assert tensor_scale == np.float32(np.float32(1.0) / np.float32(2688.0))
    values = qatcore.dequantize_nvfp4(codes, scale, tensor_scale)
    assert np.isnan(values[0]).all()
    assert (codes[0].view(np.uint8) == 0).all()
    assert (values[1:3] == 0.0).all()
    assert values[3:].tolist() == [[float(np.float32(6.0) * (np.float32(448.0) * tensor_scale))] * 16] * 2
    for constant in (0.0, np.nan, np.inf):
        assert qatcore.quantize_nvfp4(np.full(16, constant))[2] == 1.0


def test_nvfp4_along_any_axis():
    x = np.random.default_rng(3).normal(size=(16, 32, 48)).astype(np.float32)
    for axis in range(-3, 3):
        codes, scale, tensor_scale = qatcore.quantize_nvfp4(x, axis=axis)
        expected = qatcore.quantize_nvfp4(np.moveaxis(x, axis, -1))
        moved = np.moveaxis(codes, axis, -1), np.moveaxis(scale, axis, -1), tensor_scale
        assert_same(moved, expected)
        values = qatcore.dequantize_nvfp4(codes, scale, tensor_scale, axis=axis)
        assert_same(np.moveaxis(values, axis, -1), qatcore.dequantize_nvfp4(*expected))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_nvfp4_of_infinities(kind):
    """They become the greatest finite magnitude, and the others are what they were."""
    x = np.ones((3, 16), kind)
    x[0, :3] = [np.inf, -np.inf, 5.376]
    x[1, :2] = [np.nan, -3.0]
    codes, scale, tensor_scale = qatcore.quantize_nvfp4(x)
    assert tensor_scale == np.float32(kind(5.376) / kind(2688.0))
    assert codes[0, :4].astype(float).tolist() == [6.0, -6.0, 6.0, 1.0]
    assert scale.astype(float)[[0, 2], 0].tolist() == [448.0, 80.0]
    assert np.isnan(scale[1, 0])
    x[0, :2] = [5.376, -5.376]
    assert_same(qatcore.quantize_nvfp4(x), (codes, scale, tensor_scale))


def test_nvfp4_of_what_float32_does_not_hold():
    codes, scale, tensor_scale = qatcore.quantize_nvfp4(np.array([1e300, -1e300, 1.0, *[0.0] * 13]))
    assert tensor_scale == np.float32(np.finfo(np.float32).max / 2688.0)
    assert codes[:3].astype(float).tolist() == [6.0, -6.0, 0.0]
    assert math.isfinite(qatcore.dequantize_nvfp4(codes, scale, tensor_scale, dtype=np.float64).max())


def test_nvfp4_equals_torchao():
    """Which multiplies by reciprocals: codes may differ where the quotient is next to a tie."""
    torch = pytest.importorskip("torch")
    nvfp4_tensor = pytest.importorskip("torchao.prototype.mx_formats.nvfp4_tensor")
    rng = np.random.default_rng(2)
    x = (rng.normal(size=(4096, 512)) * np.exp2(rng.integers(-4, 4, (4096, 1)))).astype(np.float32)
    codes, scale, tensor_scale = qatcore.quantize_nvfp4(x)
    theirs = nvfp4_tensor.nvfp4_quantize(torch.from_numpy(x), 16, torch.tensor(tensor_scale))
    assert np.array_equal(theirs[0].view(torch.uint8).numpy().reshape(-1), scale.view(np.uint8).reshape(-1))
    unpacked = qatcore.unpack_int4(theirs[1].view(torch.uint8).numpy().reshape(-1), x.shape, dtype="float4_e2m1fn")
    different = unpacked != codes
    quotient = np.abs(x / np.repeat(scale.astype(np.float32) * tensor_scale, 16, axis=-1))[different].astype(float)
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert np.abs(quotient[:, np.newaxis] / ties - 1.0).min(axis=1).max(initial=0.0) < 2.0**-21
    assert different.mean() < 1e-4


# --- refused ---------------------------------------------------------------------------------------------

X = np.ones((4, 32), np.float32)
MX = qatcore.quantize_mx(X)
NVFP4 = qatcore.quantize_nvfp4(X)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (
            lambda: qatcore.quantize_mx(X, "int4"),
            InvalidArgumentError,
            "dtype: expected one of float4_e2m1fn, .* got int4",
        ),
        (
            lambda: qatcore.quantize_mx(X, "fp4"),
            InvalidArgumentError,
            f"dtype: expected one of {', '.join(ELEMENTS)}, got 'fp4'",
        ),
        (
            lambda: qatcore.quantize_nvfp4(X, -1.0),
            InvalidArgumentError,
            "tensor_scale: expected a positive finite number, also in float32, got -1.0",
        ),
        (
            lambda: qatcore.quantize_mx(X, block_size=5),
            InvalidArgumentError,
            "block_size: expected a divisor of .* 32, got 5",
        ),
        (lambda: qatcore.quantize_mx(X, block_size=0), InvalidArgumentError, "block_size: expected at least 1"),
        (
            lambda: qatcore.quantize_mx(X, axis=2),
            InvalidArgumentError,
            "axis: expected an axis of an array with 2 dimensions",
        ),
        (
            lambda: qatcore.quantize_mx(1.0),
            InvalidArgumentError,
            "axis: expected an axis of an array with 0 dimensions",
        ),
        (lambda: qatcore.quantize_mx(X, axis=None), TypeError, "axis: expected an integer"),
        (lambda: qatcore.quantize_mx(["a"]), TypeError, "x: expected real numbers"),
        (lambda: qatcore.dequantize_mx(X, MX[1]), TypeError, "codes: expected an array of float4_e2m1fn or"),
        (
            lambda: qatcore.dequantize_mx(MX[0], X[:, :1]),
            TypeError,
            "scale: expected an array of float8_e8m0fnu, got float32",
        ),
        (
            lambda: qatcore.dequantize_mx(MX[0], MX[1][:3]),
            InvalidArgumentError,
            r"scale: expected the shape of codes, \(4, 32\)",
        ),
        (lambda: qatcore.dequantize_mx(MX[0], np.tile(MX[1], 5)), InvalidArgumentError, "a divisor of 32 along axis 1"),
        (
            lambda: qatcore.dequantize_mx(*MX, dtype="int8"),
            InvalidArgumentError,
            "dtype: expected float32, float64, float16 or",
        ),
        (
            lambda: qatcore.quantize_nvfp4(X[:, :24]),
            InvalidArgumentError,
            "x: expected a multiple of 16 elements along axis -1, got 24",
        ),
        (
            lambda: qatcore.quantize_nvfp4(X, 0.0),
            InvalidArgumentError,
            "tensor_scale: expected a positive finite number",
        ),
        (lambda: qatcore.quantize_nvfp4(X, 1e-60), InvalidArgumentError, "tensor_scale: .*also in float32"),
        (lambda: qatcore.quantize_nvfp4(X, math.nan), InvalidArgumentError, "tensor_scale: "),
        (lambda: qatcore.quantize_nvfp4(X, "1"), TypeError, "tensor_scale: expected a real number"),
        (
            lambda: qatcore.dequantize_nvfp4(MX[0], *NVFP4[1:]),
            TypeError,
            "codes: expected an array of float4_e2m1fn, got",
        ),
        (
            lambda: qatcore.dequantize_nvfp4(NVFP4[0], NVFP4[1][:, :1], 1.0),
            InvalidArgumentError,
            "one for each block of 16",
        ),
        (lambda: qatcore.dequantize_nvfp4(*NVFP4[:2], -1.0), InvalidArgumentError, "tensor_scale: "),
    ],
)
def test_refused(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_mx_of_anything():
    """Random bits, every exponent: what comes back is as close as the format allows, or saturated."""
    x = random_bits(32 * 20_000, 7, np.float32).reshape(-1, 32)
    x = np.where(np.isfinite(x), x, np.float32(0.0))
    x[:, :4] = np.resize(adversarial(np.float32)[:-10], (x.shape[0], 4))
    for dtype in ELEMENTS:
        codes, scale = qatcore.quantize_mx(x, dtype)
        values = qatcore.dequantize_mx(codes, scale, dtype=np.float64)
        largest = np.abs(x).max(axis=1, keepdims=True).astype(np.float64)
        # Half of the widest step below the greatest magnitude, or what lies beyond the greatest value.
        allowed = {"float4_e2m1fn": 0.25, "float8_e4m3fn": 0.125, "float8_e5m2": 0.125, "int8": 2.0**-6}[dtype]
        assert (np.abs(values - x) <= np.maximum(allowed * largest, 2.0**-127)).all()


def test_as_many_dimensions_as_numpy_has():
    x = np.ones((1,) * 63 + (32,))
    x[..., 3] = np.nan
    assert np.isnan(qatcore.quantize_mx(x)[1].astype(float)).all()
    assert np.isnan(qatcore.quantize_nvfp4(x)[1].astype(float)).reshape(-1).tolist() == [True, False]
