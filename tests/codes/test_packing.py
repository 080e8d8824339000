"""Codes packed several a byte: against onnx's own packing, and back."""

import ml_dtypes
import numpy as np
import pytest
from affine_oracles import every_level
from inputs import LAYOUTS, assert_same, laid_out

import qatcore
from qatcore import InvalidArgumentError

PACKED = {4: (qatcore.pack_int4, qatcore.unpack_int4), 2: (qatcore.pack_int2, qatcore.unpack_int2)}
TYPES = [("int4", 4), ("uint4", 4), ("float4_e2m1fn", 4), ("int2", 2), ("uint2", 2)]
every_type = pytest.mark.parametrize(("dtype", "width"), TYPES)


def codes_of_type(n, width, dtype, seed=0):
    return np.random.default_rng(seed).integers(0, 2**width, n, np.uint8).view(dtype)


def by_hand(codes, width):
    """One byte after the other."""
    flat = codes.reshape(-1).view(np.uint8) & (2**width - 1)
    packed = [0] * (-(-flat.size * width // 8))
    for i, code in enumerate(flat.tolist()):
        packed[i * width // 8] |= code << (i * width % 8)
    return np.array(packed, np.uint8)


@every_level
@every_type
@pytest.mark.parametrize("n", [0, 1, 2, 3, 4, 5, 7, 8, 9, 63, 64, 65, 1027])
def test_sizes(level, n, dtype, width):
    pack, unpack = PACKED[width]
    codes = codes_of_type(n, width, dtype)
    packed = pack(codes)
    assert_same(packed, by_hand(codes, width))
    assert unpack(packed, n, dtype=dtype).tobytes() == codes.tobytes()
    assert_same(unpack(packed.tobytes(), (n,), dtype=dtype).view(np.uint8), codes.view(np.uint8))


@every_type
def test_as_onnx_packs(dtype, width):
    onnx = pytest.importorskip("onnx")
    pack, unpack = PACKED[width]
    for shape in [(5, 7), (3, 3, 3), (1,), (200, 1001)]:
        codes = codes_of_type(int(np.prod(shape)), width, dtype).reshape(shape)
        tensor = onnx.numpy_helper.from_array(codes)
        assert pack(codes).tobytes() == tensor.raw_data
        assert unpack(tensor.raw_data, shape, dtype=dtype).tobytes() == onnx.numpy_helper.to_array(tensor).tobytes()


@pytest.mark.parametrize("threads", [1, 3])
@every_type
@pytest.mark.usefixtures("_number_of_threads")
def test_large_arrays_and_threads(threads, dtype, width):
    pack, unpack = PACKED[width]
    codes = codes_of_type(3_000_001, width, dtype)
    qatcore.set_num_threads(threads)
    packed = pack(codes)
    back = unpack(packed, codes.shape, dtype=dtype)
    padded = np.zeros(-(-codes.size * width // 8) * (8 // width), np.uint8)
    padded[: codes.size] = codes.view(np.uint8)
    shifted = padded.reshape(-1, 8 // width) << (np.arange(8 // width) * width).astype(np.uint8)
    assert_same(packed, np.bitwise_or.reduce(shifted, axis=1))
    assert back.tobytes() == codes.tobytes()


@pytest.mark.parametrize("layout", LAYOUTS)
@every_type
def test_layouts(layout, dtype, width, tmp_path):
    codes = codes_of_type(60, width, dtype).reshape(3, 4, 5)
    if layout != "buffer":  # the array interface has no name for these types
        assert_same(PACKED[width][0](laid_out(layout, codes, tmp_path)), by_hand(codes, width))


def test_integers_of_eight_bits():
    assert qatcore.pack_int4(np.array([-8, 7, -1], np.int8)).tolist() == [0x78, 0x0F]
    assert qatcore.pack_int4(np.array([15, 8], np.uint8)).tolist() == [0x8F]
    assert qatcore.pack_int2(np.array([-2, 1, -1, 0], np.int8)).tolist() == [0b00110110]
    assert qatcore.unpack_int4(b"\x8f", 2, dtype="uint4").tolist() == [15, 8]
    assert qatcore.unpack_int4(b"\x8f", (1, 2)).tolist() == [[-1, -8]]
    assert qatcore.unpack_int4(bytearray(b"\x8f"), 1, dtype=ml_dtypes.uint4).tolist() == [15]
    assert qatcore.unpack_int4(b"", (0, 3)).shape == (0, 3)


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda: qatcore.pack_int4(np.int8([8])), InvalidArgumentError, "codes: expected -8 to 7 for int8, got 8 to 8"),
        (lambda: qatcore.pack_int4(np.uint8([16])), InvalidArgumentError, "codes: expected 0 to 15 for uint8"),
        (
            lambda: qatcore.pack_int2(np.int8([-3, 0])),
            InvalidArgumentError,
            "codes: expected -2 to 1 for int8, got -3 to 0",
        ),
        (
            lambda: qatcore.pack_int4([1, 2]),
            TypeError,
            "codes: expected an array of int4, uint4, float4_e2m1fn, int8 or",
        ),
        (lambda: qatcore.pack_int2(np.zeros(2, "int4")), TypeError, "codes: expected an array of int2, uint2, int8 or"),
        (
            lambda: qatcore.unpack_int4(b"abc", 4),
            InvalidArgumentError,
            r"packed: expected shape \(2,\) for 4 codes of 4 bits",
        ),
        (lambda: qatcore.unpack_int4(np.zeros((2, 1), np.uint8), 4), InvalidArgumentError, r"got \(2, 1\)"),
        (
            lambda: qatcore.unpack_int2(b"ab", 9),
            InvalidArgumentError,
            r"packed: expected shape \(3,\) for 9 codes of 2",
        ),
        (lambda: qatcore.unpack_int4(b"a", -1), InvalidArgumentError, "shape: expected at least 0, got -1"),
        (
            lambda: qatcore.unpack_int4(b"", (0, 2**70)),
            InvalidArgumentError,
            "shape: .* got \\(0, 1180591620717411303424",
        ),
        (lambda: qatcore.unpack_int4(b"a", (1,) * 65), InvalidArgumentError, "shape: .*65"),
        (lambda: qatcore.unpack_int4(b"a", 2.0), TypeError, "shape: expected an integer"),
        (
            lambda: qatcore.unpack_int4(b"a", 2, dtype="int8"),
            InvalidArgumentError,
            "dtype: expected one of int4, uint4,",
        ),
        (
            lambda: qatcore.unpack_int4(np.zeros(1, np.int8), 2),
            TypeError,
            "packed: expected bytes or an array of uint8",
        ),
        (lambda: qatcore.unpack_int4("ab", 2), TypeError, "packed: "),
    ],
)
def test_refused(call, error, said):
    with pytest.raises(error, match=said):
        call()


def test_views_of_bytes():
    data = bytes(range(64, 80))
    for view in (memoryview(data), memoryview(data)[::2], memoryview(data)[::-1], bytearray(data)):
        expected = np.array(bytearray(view), np.uint8)
        assert (
            qatcore.unpack_int4(view, 2 * expected.size).tolist()
            == qatcore.unpack_int4(expected, 2 * expected.size).tolist()
        )
