"""Time arrays to codes and back, beside copying the same bytes."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import qatcore

from .checks import near, same
from .peers import OneNode
from .settings import Settings, counted
from .timing import Row, faster, within

SCALE, ZERO_POINT = 0.0371, 3
E4M3 = ml_dtypes.float8_e4m3fn

#: PyTorch multiplies by the reciprocal, so a value next to a tie may rarely get the neighbouring code.
TIES = 1e-4


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    n = settings.size(2**24)
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    yield from fake_quantize(x, settings)
    yield from to_int8(x, settings)
    yield from_int8(x, settings)
    yield to_e4m3(x, settings)
    yield from_e4m3(x, settings)
    del x
    yield from reference(settings)
    yield from per_channel(settings)


def int8_codes(x: np.ndarray, scale: np.ndarray | float, zero_point: np.ndarray | int) -> np.ndarray:
    """Return int8 codes by ONNX's definition of QuantizeLinear, in NumPy: the oracle."""
    return np.clip(np.rint(x / np.float32(scale)) + zero_point, -128, 127).astype(np.int8)


def fake_quantize(x: np.ndarray, settings: Settings) -> Iterator[Row]:
    """Rows: float32 to float32 through int8, into an existing array, and into a new one as torch does."""
    out, copy = np.empty_like(x), x.copy()
    codes = int8_codes(x, SCALE, ZERO_POINT).astype(np.float32)
    expected = (codes - np.float32(ZERO_POINT)) * np.float32(SCALE)
    row = Row(f"fake_quantize float32, {counted(x.size)}")
    qatcore.fake_quantize(x, SCALE, ZERO_POINT, out=out)
    same(row.work, out, expected)
    row.ours(lambda: qatcore.fake_quantize(x, SCALE, ZERO_POINT, out=out))
    row.limit("numpy.copyto", lambda: np.copyto(copy, x), within(1.15))
    yield row

    chart = f"fake-quantise float32 to int8 steps, {counted(x.size)}"
    row = Row(f"fake_quantize float32, {counted(x.size)}, into a new array", chart=chart)
    same(row.work, qatcore.fake_quantize(x, SCALE, ZERO_POINT), expected)
    row.ours(lambda: qatcore.fake_quantize(x, SCALE, ZERO_POINT))
    if settings.peers:
        import torch

        tensor = torch.from_numpy(x)

        def theirs() -> torch.Tensor:
            return torch.fake_quantize_per_tensor_affine(tensor, SCALE, ZERO_POINT, -128, 127)

        near(f"{row.work}, torch", theirs().numpy(), expected, 1e-6, unless=TIES)
        row.peer("torch: fake_quantize_per_tensor_affine", theirs, faster(7))
    row.limit("x.copy()", x.copy)
    yield row


def to_int8(x: np.ndarray, settings: Settings) -> Iterator[Row]:
    """Rows: float32 to int8 codes, into an existing array, and into a new one as torch does."""
    out, copy = np.empty(x.shape, np.int8), x.copy()
    expected = int8_codes(x, SCALE, ZERO_POINT)
    row = Row(f"quantize float32 -> int8, {counted(x.size)}", chart=f"float32 to int8 codes, {counted(x.size)}")
    qatcore.quantize(x, SCALE, ZERO_POINT, out=out)
    same(row.work, out, expected)
    row.ours(lambda: qatcore.quantize(x, SCALE, ZERO_POINT, out=out))
    if settings.peers:
        theirs = np.empty_like(out)
        inputs = {"x": x, "scale": np.array(SCALE, np.float32), "zero_point": np.array(ZERO_POINT, np.int8)}
        session = OneNode("QuantizeLinear", inputs, theirs, settings.threads)
        session()
        same(f"{row.work}, ONNX Runtime", theirs, expected)
        row.peer("ONNX Runtime: QuantizeLinear", session, faster(0.95))
    row.limit("numpy.copyto of x", lambda: np.copyto(copy, x))
    yield row

    row = Row(f"quantize float32 -> int8, {counted(x.size)}, into a new array")
    same(row.work, qatcore.quantize(x, SCALE, ZERO_POINT), expected)
    row.ours(lambda: qatcore.quantize(x, SCALE, ZERO_POINT))
    if settings.peers:
        import torch

        tensor = torch.from_numpy(x)

        def quantized() -> torch.Tensor:
            return torch.quantize_per_tensor(tensor, SCALE, ZERO_POINT, torch.qint8)

        near(f"{row.work}, torch", quantized().int_repr().numpy(), expected, 0, unless=TIES)
        row.peer("torch: quantize_per_tensor", quantized, faster(0.95))
    row.limit("numpy.copyto of x", lambda: np.copyto(copy, x))
    yield row


def from_int8(x: np.ndarray, settings: Settings) -> Row:
    """Row: int8 codes to float32."""
    row = Row(f"dequantize int8 -> float32, {counted(x.size)}")
    codes, out, copy = int8_codes(x, SCALE, ZERO_POINT), np.empty_like(x), x.copy()
    expected = (codes.astype(np.float32) - np.float32(ZERO_POINT)) * np.float32(SCALE)
    qatcore.dequantize(codes, SCALE, ZERO_POINT, out=out)
    same(row.work, out, expected)
    row.ours(lambda: qatcore.dequantize(codes, SCALE, ZERO_POINT, out=out))
    if settings.peers:
        theirs = np.empty_like(out)
        inputs = {"x": codes, "scale": np.array(SCALE, np.float32), "zero_point": np.array(ZERO_POINT, np.int8)}
        session = OneNode("DequantizeLinear", inputs, theirs, settings.threads)
        session()
        same(f"{row.work}, ONNX Runtime", theirs, expected)
        row.peer("ONNX Runtime: DequantizeLinear", session)
    row.limit("numpy.copyto of the result", lambda: np.copyto(copy, out))
    return row


def to_e4m3(x: np.ndarray, settings: Settings) -> Row:
    """Row: float32 to FP8 codes."""
    row = Row(
        f"quantize float32 -> float8_e4m3fn, {counted(x.size)}", chart=f"float32 to FP8 (E4M3) codes, {counted(x.size)}"
    )
    x = np.clip(x * np.float32(40.0), -448.0, 448.0)  # beyond 448, the peers give NaN and qatcore gives 448
    out, copy = np.empty(x.shape, E4M3), x.copy()
    expected = x.astype(E4M3)
    qatcore.quantize(x, 1.0, dtype="float8_e4m3fn", out=out)
    same(row.work, out.view(np.uint8), expected.view(np.uint8))
    row.ours(lambda: qatcore.quantize(x, 1.0, dtype="float8_e4m3fn", out=out))
    theirs = np.empty_like(out)
    row.peer("ml_dtypes: as numpy.copyto", lambda: np.copyto(theirs, x, casting="unsafe"), faster(12))
    if settings.peers:
        import torch

        tensor = torch.from_numpy(x)
        same(f"{row.work}, torch", tensor.to(torch.float8_e4m3fn).view(torch.uint8).numpy(), expected.view(np.uint8))
        result = torch.empty(tensor.shape, dtype=torch.float8_e4m3fn)
        row.peer("torch: copy_ to float8_e4m3fn", lambda: result.copy_(tensor), faster(1.8))
    row.limit("numpy.copyto of x", lambda: np.copyto(copy, x))
    return row


def from_e4m3(x: np.ndarray, settings: Settings) -> Row:
    """Row: FP8 codes to float32."""
    row = Row(
        f"dequantize float8_e4m3fn -> float32, {counted(x.size)}",
        chart=f"FP8 (E4M3) codes to float32, {counted(x.size)}",
    )
    codes, out, copy = (x * np.float32(40.0)).clip(-448.0, 448.0).astype(E4M3), np.empty_like(x), x.copy()
    expected = codes.astype(np.float32)
    qatcore.dequantize(codes, 1.0, out=out)
    same(row.work, out, expected)
    row.ours(lambda: qatcore.dequantize(codes, 1.0, out=out))
    theirs = np.empty_like(out)
    row.peer("ml_dtypes: as numpy.copyto", lambda: np.copyto(theirs, codes), faster(8))
    if settings.peers:
        import torch

        tensor = torch.from_numpy(codes.view(np.uint8)).view(torch.float8_e4m3fn)
        same(f"{row.work}, torch", tensor.to(torch.float32).numpy(), expected)
        result = torch.empty(tensor.shape, dtype=torch.float32)
        row.peer("torch: copy_ to float32", lambda: result.copy_(tensor))
    row.limit("numpy.copyto of the result", lambda: np.copyto(copy, out))
    return row


def reference(settings: Settings) -> Iterator[Row]:
    """Rows: functions of qatcore.reference, which return a new array, beside copying into a new array."""
    x = np.random.default_rng(1).normal(scale=30.0, size=settings.size(2**23))
    quantize_int8, quantize_fp8 = qatcore.reference.quantize_int8, qatcore.reference.quantize_fp8

    row = Row(f"reference.quantize_int8 float64, {counted(x.size)}")
    v = x / 0.5 + ZERO_POINT
    codes = np.clip(np.where(v < 0.0, np.ceil(v - 0.5), np.floor(v + 0.5)), -128, 127)
    same(row.work, quantize_int8(x, 0.5, ZERO_POINT), (codes - ZERO_POINT) * 0.5)
    del v, codes
    row.ours(lambda: quantize_int8(x, 0.5, ZERO_POINT))
    row.limit("x.copy()", x.copy, within(1.15))
    yield row

    row = Row(f"reference.quantize_fp8 float64, {counted(x.size)}")
    magnitude = np.minimum(np.abs(x), 448.0)
    # A binade has eight values.  The mantissa is clipped to the last one; it does not carry into the exponent.
    step = np.ldexp(1.0, np.maximum(np.frexp(magnitude)[1] - 4, -9))
    first = np.where(magnitude < 2.0**-6, 0.0, 8.0)
    eighths = np.minimum(np.floor(magnitude / step - first + 0.5), 7.0) + first
    same(row.work, quantize_fp8(x), np.copysign(eighths * step, x))
    del magnitude, step, first, eighths
    row.ours(lambda: quantize_fp8(x))
    row.limit("x.copy()", x.copy, within(1.6))
    yield row


def per_channel(settings: Settings) -> Iterator[Row]:
    """Rows: a scale for each row, and one for each column."""
    side = settings.side(4096)
    rng = np.random.default_rng(2)
    x = rng.normal(size=(side, side)).astype(np.float32)
    scales = rng.uniform(0.01, 0.05, side).astype(np.float32)
    zero_points = rng.integers(-20, 20, side, np.int8)
    copy = x.copy()
    for axis, shape in ((0, (-1, 1)), (1, (1, -1))):
        row = Row(f"quantize float32 -> int8 along axis {axis}, {side} x {side}")
        out = np.empty(x.shape, np.int8)
        expected = int8_codes(x, scales.reshape(shape), zero_points.reshape(shape))

        def ours(axis: int = axis, out: np.ndarray = out) -> np.ndarray:
            return qatcore.quantize(x, scales, zero_points, axis=axis, out=out)

        ours()
        same(row.work, out, expected)
        row.ours(ours)
        if settings.peers:
            theirs = np.empty_like(out)
            inputs = {"x": x, "scale": scales, "zero_point": zero_points}
            session = OneNode("QuantizeLinear", inputs, theirs, settings.threads, axis=axis)
            session()
            same(f"{row.work}, ONNX Runtime", theirs, expected)
            row.peer("ONNX Runtime: QuantizeLinear", session)
        row.limit("numpy.copyto of x", lambda: np.copyto(copy, x))
        yield row
