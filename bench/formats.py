"""Time the other number formats, blocks, microscaling and packing, beside copying the bytes read or written."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np

import qatcore

from .checks import near, require, same
from .elementwise import SCALE
from .peers import OneNode
from .settings import Settings, counted
from .timing import Row

FLOATS = {"float8_e5m2": 57344.0, "float4_e2m1fn": 6.0}
LIMITS = {
    "int2": (-2, 1),
    "uint2": (0, 3),
    "int4": (-8, 7),
    "uint4": (0, 15),
    "uint8": (0, 255),
    "int16": (-32768, 32767),
    "uint16": (0, 65535),
}

#: torchao multiplies by reciprocals, so a value next to a tie may rarely get the neighbouring code.
TIES = 1e-4


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    n = settings.size(2**24)
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    for dtype in (*LIMITS, *FLOATS):
        yield to_codes(x, dtype, settings)
        yield from_codes(x, dtype, settings)
    yield from blocks(x, settings)
    yield from microscaling(x, settings)
    yield from nvfp4(x, settings)
    yield from packing(n)


def zero_point_of(dtype: str) -> int:
    """Return a zero point for a format, other than 0 if the format allows one."""
    return sum(LIMITS.get(dtype, (0, 0))) // 3


def codes_of(x: np.ndarray, dtype: str) -> np.ndarray:
    """Return codes by ONNX's definition of QuantizeLinear, in NumPy and ml_dtypes: the oracle."""
    steps = x / np.float32(SCALE)
    if dtype in FLOATS:
        return np.clip(steps, -FLOATS[dtype], FLOATS[dtype]).astype(dtype)
    return np.clip(np.rint(steps) + zero_point_of(dtype), *LIMITS[dtype]).astype(dtype)


def in_onnx_runtime(operator: str, given: np.ndarray, dtype: str, expected: np.ndarray, threads: int) -> OneNode:
    """Return a session of one operator, after checking that it computes `expected`."""
    theirs = np.empty_like(expected)
    scale, zero_point = np.array(SCALE, np.float32), np.array(zero_point_of(dtype), dtype)
    session = OneNode(operator, {"x": given, "scale": scale, "zero_point": zero_point}, theirs, threads)
    session()
    same(f"{operator} {dtype}, ONNX Runtime", theirs, expected)
    return session


def to_codes(x: np.ndarray, dtype: str, settings: Settings) -> Row:
    """Row: float32 to codes."""
    row = Row(f"quantize float32 -> {dtype}, {counted(x.size)}")
    zero_point, expected = zero_point_of(dtype), codes_of(x, dtype)
    out, copy = np.empty(x.shape, dtype), x.copy()
    qatcore.quantize(x, SCALE, zero_point, dtype=dtype, out=out)
    same(row.work, out.view(f"u{out.itemsize}"), expected.view(f"u{out.itemsize}"))
    row.ours(lambda: qatcore.quantize(x, SCALE, zero_point, dtype=dtype, out=out))
    if np.dtype(dtype).kind not in "iu":  # the cast alone, of values that are in range
        clipped = np.clip(x, *(LIMITS.get(dtype, (-6.0, 6.0))))
        cast = np.empty_like(out)
        row.peer("ml_dtypes: as numpy.copyto", lambda: np.copyto(cast, clipped, casting="unsafe"))
    elif settings.peers:
        session = in_onnx_runtime("QuantizeLinear", x, dtype, expected, settings.threads)
        row.peer("ONNX Runtime: QuantizeLinear", session)
    if settings.peers and dtype == "float8_e5m2":
        import torch

        tensor, result = torch.from_numpy(x), torch.empty(x.shape, dtype=torch.float8_e5m2)
        row.peer("torch: copy_ to float8_e5m2", lambda: result.copy_(tensor))
    row.limit("numpy.copyto of x", lambda: np.copyto(copy, x))
    return row


def from_codes(x: np.ndarray, dtype: str, settings: Settings) -> Row:
    """Row: codes to float32."""
    row = Row(f"dequantize {dtype} -> float32, {counted(x.size)}")
    zero_point, codes = zero_point_of(dtype), codes_of(x, dtype)
    expected = (codes.astype(np.float32) - np.float32(zero_point)) * np.float32(SCALE)
    out, copy = np.empty_like(x), x.copy()
    qatcore.dequantize(codes, SCALE, zero_point, out=out)
    same(row.work, out, expected)
    row.ours(lambda: qatcore.dequantize(codes, SCALE, zero_point, out=out))
    if np.dtype(dtype).kind not in "iu":
        cast = np.empty_like(x)
        row.peer("ml_dtypes: as numpy.copyto", lambda: np.copyto(cast, codes))
    elif settings.peers:
        session = in_onnx_runtime("DequantizeLinear", codes, dtype, expected, settings.threads)
        row.peer("ONNX Runtime: DequantizeLinear", session)
    row.limit("numpy.copyto of the result", lambda: np.copyto(copy, out))
    return row


def blocks(x: np.ndarray, settings: Settings) -> Iterator[Row]:
    """Rows: blocks of 32 elements, along the last axis and along the first."""
    x = x[: x.size // 4096 * 4096].reshape(-1, 4096)
    copy = x.copy()
    rng = np.random.default_rng(3)
    for axis in (1, 0):
        size = 32
        shape = (x.shape[0], x.shape[1] // size) if axis else (x.shape[0] // size, x.shape[1])
        if 0 in shape:
            continue
        x = x[: x.shape[0] // size * size] if axis == 0 else x
        scales = rng.uniform(0.01, 0.05, shape).astype(np.float32)
        along = np.repeat(scales, size, axis=axis)
        for dtype in ("int8", "int4"):
            limits = (-128, 127) if dtype == "int8" else (-8, 7)
            expected = np.clip(np.rint(x / along), *limits).astype(dtype)
            row = Row(f"quantize float32 -> {dtype} in blocks of {size} along axis {axis}, {counted(x.size)}")
            out = np.empty(x.shape, dtype)

            def ours(
                x: np.ndarray = x,
                scales: np.ndarray = scales,
                dtype: str = dtype,
                axis: int = axis,
                out: np.ndarray = out,
            ) -> np.ndarray:
                return qatcore.quantize(x, scales, dtype=dtype, axis=axis, block_size=32, out=out)

            ours()
            same(row.work, out.view(np.uint8), expected.view(np.uint8))
            row.ours(ours)
            if settings.peers and dtype == "int8":
                theirs = np.empty_like(out)
                inputs = {"x": x, "scale": scales, "zero_point": np.zeros(shape, np.int8)}
                session = OneNode("QuantizeLinear", inputs, theirs, settings.threads, axis=axis, block_size=size)
                session()
                same(f"{row.work}, ONNX Runtime", theirs, expected)
                row.peer("ONNX Runtime: QuantizeLinear", session)
            row.limit("numpy.copyto of x", lambda copy=copy[: x.shape[0]], x=x: np.copyto(copy, x))  # type: ignore[misc]
            yield row


def microscaling(x: np.ndarray, settings: Settings) -> Iterator[Row]:
    """Rows: float32 to the OCP microscaling formats and back."""
    x = x[: x.size // 32 * 32].reshape(-1, 32)
    copy = x.copy()
    largest = np.abs(x).max(axis=1, keepdims=True)
    for dtype, power in (("float8_e4m3fn", 8), ("float8_e5m2", 15), ("float4_e2m1fn", 2), ("int8", 0)):
        scale = np.exp2(np.floor(np.log2(largest)) - power).astype(np.float32)
        if dtype == "int8":
            expected = np.clip(np.rint(x / scale * 64), -127, 127).astype(np.int8)
        else:
            greatest = float(ml_dtypes.finfo(dtype).max)
            expected = np.clip(x / scale, -greatest, greatest).astype(dtype)
        row = Row(f"quantize_mx float32 -> {dtype}, blocks of 32, {counted(x.size)}")
        codes, scales = qatcore.quantize_mx(x, dtype)
        same(row.work, codes.view(np.uint8), expected.view(np.uint8))
        same(row.work, scales.astype(np.float32), scale)
        row.ours(lambda dtype=dtype: qatcore.quantize_mx(x, dtype))  # type: ignore[misc]
        if settings.peers and dtype != "int8":
            import torch
            from torchao.prototype.mx_formats.mx_tensor import to_mx

            tensor = torch.from_numpy(x)
            element = torch.float4_e2m1fn_x2 if dtype == "float4_e2m1fn" else getattr(torch, dtype)
            their_scales, _ = to_mx(tensor, element, 32)
            same(row.work, their_scales.view(torch.uint8).numpy().reshape(scales.shape), scales.view(np.uint8))
            row.peer("torchao: to_mx", lambda tensor=tensor, element=element: to_mx(tensor, element, 32))  # type: ignore[misc]
        row.limit("x.copy()", x.copy)
        yield row

        row = Row(f"dequantize_mx {dtype} -> float32, blocks of 32, {counted(x.size)}")
        unit = np.float32(2.0**-6 if dtype == "int8" else 1.0)
        same(row.work, qatcore.dequantize_mx(codes, scales), expected.astype(np.float32) * (scale * unit))
        row.ours(lambda codes=codes, scales=scales: qatcore.dequantize_mx(codes, scales))  # type: ignore[misc]
        row.limit("x.copy()", copy.copy)
        yield row


def nvfp4(x: np.ndarray, settings: Settings) -> Iterator[Row]:
    """Rows: float32 to NVFP4 and back."""
    x = x[: x.size // 4096 * 4096].reshape(-1, 4096)
    row = Row(f"quantize_nvfp4 float32, {counted(x.size)}")
    codes, scale, tensor_scale = qatcore.quantize_nvfp4(x)
    steps = np.repeat(scale.astype(np.float32) * tensor_scale, 16, axis=1)
    same(row.work, codes.view(np.uint8), np.clip(x / steps, -6.0, 6.0).astype(codes.dtype).view(np.uint8))
    row.ours(lambda: qatcore.quantize_nvfp4(x, float(tensor_scale)))
    if settings.peers:
        import torch
        from torchao.prototype.mx_formats.nvfp4_tensor import nvfp4_quantize

        tensor, given = torch.from_numpy(x), torch.tensor(tensor_scale)
        scales, packed = nvfp4_quantize(tensor, 16, given)
        require(row.work, scales.view(torch.uint8).numpy().tobytes() == scale.tobytes(), "torchao's scales differ")
        theirs = qatcore.unpack_int4(packed.view(torch.uint8).numpy().reshape(-1), x.shape, dtype="float4_e2m1fn")
        near(f"{row.work}, torchao", theirs.astype(np.float32), codes.astype(np.float32), 0, unless=TIES)
        row.peer("torchao: nvfp4_quantize", lambda: nvfp4_quantize(tensor, 16, given))
    row.limit("x.copy()", x.copy)
    yield row

    row = Row(f"dequantize_nvfp4 -> float32, {counted(x.size)}")
    same(row.work, qatcore.dequantize_nvfp4(codes, scale, tensor_scale), codes.astype(np.float32) * steps)
    row.ours(lambda: qatcore.dequantize_nvfp4(codes, scale, float(tensor_scale)))
    row.limit("x.copy()", x.copy)
    yield row


def packing(n: int) -> Iterator[Row]:
    """Rows: pack several codes into each byte, and unpack them."""
    for width, pack, unpack in (
        (4, qatcore.pack_int4, qatcore.unpack_int4),
        (2, qatcore.pack_int2, qatcore.unpack_int2),
    ):
        dtype = f"uint{width}"
        codes = np.random.default_rng(4).integers(0, 2**width, n, np.uint8)
        typed, each = codes.view(dtype), 8 // width

        def in_numpy(codes: np.ndarray = codes, each: int = each, width: int = width) -> np.ndarray:
            packed = codes[::each].copy()
            for i in range(1, each):
                packed |= codes[i::each] << np.uint8(width * i)
            return packed

        row = Row(f"pack_int{width}, {counted(n)}")
        same(row.work, pack(typed), in_numpy())
        row.ours(lambda typed=typed, pack=pack: pack(typed))  # type: ignore[misc]
        row.peer("numpy: shifts of strided views", in_numpy)
        row.limit("codes.copy()", codes.copy)
        yield row

        row = Row(f"unpack_int{width}, {counted(n)}")
        packed = pack(typed)
        same(row.work, unpack(packed, n, dtype=dtype).view(np.uint8), codes)
        row.ours(lambda packed=packed, unpack=unpack, dtype=dtype: unpack(packed, n, dtype=dtype))  # type: ignore[misc]
        row.limit("codes.copy()", codes.copy)
        yield row
