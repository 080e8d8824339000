"""Convert arrays to codes and back: integers with the reference's rounding, half away from zero; FP8 half to even."""

from __future__ import annotations

from typing import Literal, overload

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.arrays import elementwise
from .._base.formats import E4M3, E4M3_VALUES, INTEGERS, QuantBits
from .._base.threads import GRAIN, for_ranges
from .._base.types import AnyArray, FloatLike, Floats, FloatT, IntLike
from .._base.validation import as_scale, as_zero_point


@overload
def quantize_int8(x: FloatT, scale: FloatLike, zero_point: IntLike = ...) -> FloatT: ...
@overload
def quantize_int8(x: float, scale: FloatLike, zero_point: IntLike = ...) -> float: ...
@overload
def quantize_int8(x: np.generic, scale: FloatLike, zero_point: IntLike = ...) -> np.generic: ...
@overload
def quantize_int8(x: npt.NDArray[FloatT], scale: FloatLike, zero_point: IntLike = ...) -> npt.NDArray[FloatT]: ...
@overload
def quantize_int8(x: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = ...) -> AnyArray: ...
def quantize_int8(x: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = 0) -> float | np.generic | AnyArray:
    """Quantise to int8 and dequantise again.

    The code is ``q = round_half_away(x / scale + zero_point)`` in float64, saturated to [-128, 127].  The result is
    ``(q - zero_point) * scale``.  NaN has the code 0, and an infinity has the code at the nearer end.

    Parameters
    ----------
    x : scalar or array_like, any shape
        float16, bfloat16, float32, float64 or integers.
    scale : float
        Finite and not negative; 0 returns `x` unchanged.
    zero_point : int
        Any int32.  The difference ``q - zero_point`` wraps in int32.

    Returns
    -------
    scalar or ndarray, like `x`
        In x's floating type; float64 for integers.  For float32, the float64 result is rounded once.
        float16 and bfloat16 are computed as float32, whose result is rounded once more.

    Raises
    ------
    InvalidArgumentError
        If `scale` is NaN, infinite or negative, or `zero_point` is outside int32.
    TypeError
        If `x` does not hold real numbers.

    Notes
    -----
    This is the reference's formula, bit for bit; see docs/numerics.md.  `quantize` follows ONNX instead: it rounds
    half to even, and adds the zero point afterwards.

    Examples
    --------
    >>> quantize_int8([0.3, 1.26, 1e9], 0.5).tolist()
    [0.5, 1.5, 63.5]
    >>> quantize_int8(float("nan"), 0.5, 10)
    -5.0
    """
    return fake_quantize(x, as_scale(scale), as_zero_point(zero_point), QuantBits.INT8)


@overload
def quantize_int4(x: FloatT, scale: FloatLike, zero_point: IntLike = ...) -> FloatT: ...
@overload
def quantize_int4(x: float, scale: FloatLike, zero_point: IntLike = ...) -> float: ...
@overload
def quantize_int4(x: np.generic, scale: FloatLike, zero_point: IntLike = ...) -> np.generic: ...
@overload
def quantize_int4(x: npt.NDArray[FloatT], scale: FloatLike, zero_point: IntLike = ...) -> npt.NDArray[FloatT]: ...
@overload
def quantize_int4(x: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = ...) -> AnyArray: ...
def quantize_int4(x: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = 0) -> float | np.generic | AnyArray:
    """Quantise to int4 and dequantise again.

    This is `quantize_int8` with codes saturated to [-8, 7].

    Parameters
    ----------
    x : scalar or array_like, any shape
        float16, bfloat16, float32, float64 or integers.
    scale : float
        Finite and not negative; 0 returns `x` unchanged.
    zero_point : int
        Any int32.

    Returns
    -------
    scalar or ndarray, like `x`
        In x's floating type; float64 for integers.

    Raises
    ------
    InvalidArgumentError
        If `scale` is NaN, infinite or negative, or `zero_point` is outside int32.
    TypeError
        If `x` does not hold real numbers.

    Examples
    --------
    >>> quantize_int4([0.3, 1.26, 1e9], 0.5).tolist()
    [0.5, 1.5, 3.5]
    """
    return fake_quantize(x, as_scale(scale), as_zero_point(zero_point), QuantBits.INT4)


@overload
def quantize_fp8(x: FloatT) -> FloatT: ...
@overload
def quantize_fp8(x: float) -> float: ...
@overload
def quantize_fp8(x: np.generic) -> np.generic: ...
@overload
def quantize_fp8(x: npt.NDArray[FloatT]) -> npt.NDArray[FloatT]: ...
@overload
def quantize_fp8(x: npt.ArrayLike) -> AnyArray: ...
def quantize_fp8(x: npt.ArrayLike) -> float | np.generic | AnyArray:
    """Round to the nearest FP8 value (OCP E4M3FN).

    Each value is rounded once, with ties to even, and saturates at +-448, as infinities do.  NaN stays NaN, and
    zero keeps its sign.

    Parameters
    ----------
    x : scalar or array_like, any shape
        float16, bfloat16, float32, float64 or integers.

    Returns
    -------
    scalar or ndarray, like `x`
        In x's floating type; float64 for integers.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers.

    Notes
    -----
    The format is from OCP 8-bit Floating Point Specification 1.0: 4 exponent bits with bias 7, 3 mantissa bits,
    subnormals in steps of 2**-9, no infinities.

    Examples
    --------
    >>> quantize_fp8([1.97, 0.001, -1e6]).tolist()
    [2.0, 0.001953125, -448.0]
    """

    def kernel(flat: Floats, out: Floats) -> None:
        for_ranges(flat.size, GRAIN, lambda a, b: dispatch.kernels.round_e4m3(flat[a:b], out[a:b]))

    return elementwise(x, "x", kernel)


@overload
def fake_quantize(
    x: npt.ArrayLike, scale: float, zero_point: int, bits: QuantBits, *, float64: Literal[True]
) -> float | np.float64 | npt.NDArray[np.float64]: ...
@overload
def fake_quantize(
    x: npt.ArrayLike, scale: float, zero_point: int, bits: QuantBits
) -> float | np.generic | AnyArray: ...
def fake_quantize(
    x: npt.ArrayLike, scale: float, zero_point: int, bits: QuantBits, *, float64: bool = False
) -> float | np.generic | AnyArray:
    """Quantise to an integer format and dequantise again, with the reference's rounding.

    The scale is not checked.  With `float64`, all input is taken as float64.
    """
    low, high = INTEGERS[bits].code_range(symmetric=False)

    def kernel(flat: Floats, out: Floats) -> None:
        for_ranges(
            flat.size,
            GRAIN,
            lambda a, b: dispatch.kernels.fake_quantize_integer(flat[a:b], out[a:b], scale, zero_point, low, high),
        )

    return elementwise(x, "x", kernel, float64=float64)


def encode(
    x: Floats,
    scale: npt.NDArray[np.float64],
    zero_point: npt.NDArray[np.int32],
    bits: QuantBits,
    *,
    symmetric: bool = False,
) -> AnyArray:
    """Return the codes of a C-contiguous array: integers rounded half away from zero, FP8 half to even.

    Scale and zero point have shape (), or (channels,) for channels along the leading axis.  Codes have the dtype
    int8 for INT8 and INT4, and float8_e4m3fn for FP8.
    """
    scale = np.atleast_1d(scale)
    if bits is QuantBits.FP8:  # finite values get code 0 at scale 0; 0 / 0 must not become NaN
        scale = np.where(scale == 0.0, np.inf, scale)
    zero_point = np.broadcast_to(zero_point, scale.shape).astype(np.int32)
    codes = np.empty(x.shape, np.uint8 if bits is QuantBits.FP8 else np.int8)
    if x.size:
        # Threads split one channel anywhere, but several channels only between two of them.
        per_part = x.size if scale.size == 1 else scale.size
        inner = x.size // scale.size
        flat, flat_codes = x.reshape(-1), codes.reshape(-1)

        def task(start: int, stop: int) -> None:
            channels = slice(None) if scale.size == 1 else slice(start, stop)
            span = slice(start, stop) if scale.size == 1 else slice(start * inner, stop * inner)
            if bits is QuantBits.FP8:
                dispatch.kernels.encode_e4m3(flat[span], flat_codes[span], scale[channels])
            else:
                low, high = INTEGERS[bits].code_range(symmetric)
                dispatch.kernels.encode_integer(
                    flat[span], flat_codes[span], scale[channels], zero_point[channels], low, high
                )

        for_ranges(per_part, max(1, GRAIN * per_part // x.size), task)
    return codes.view(E4M3) if bits is QuantBits.FP8 else codes


def decode(
    codes: AnyArray, scale: npt.NDArray[np.float64], zero_point: npt.NDArray[np.int32]
) -> npt.NDArray[np.float64]:
    """Return the values of codes, ``(code - zero_point) * scale`` in float64.

    Codes of type float8_e4m3fn are FP8 and have no zero point.  Scale and zero point have shape (), or
    both (channels,) for channels along the leading axis.
    """
    shape = scale.shape + (1,) * (codes.ndim - 1) if scale.ndim else ()
    if codes.dtype.type is E4M3.type:
        values = E4M3_VALUES[codes.view(np.uint8)]
    else:  # the difference wraps in int32, as the reference's does
        values = (codes.astype(np.int64) - zero_point.reshape(shape)).astype(np.int32)
    with np.errstate(all="ignore"):
        return np.asarray(values * scale.reshape(shape))
