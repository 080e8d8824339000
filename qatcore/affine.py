"""Quantise and dequantise as ONNX's QuantizeLinear and DequantizeLinear do."""

from __future__ import annotations

import math
import numbers
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _dispatch
from ._arrays import as_array, as_floats, as_plain_array, as_zero_points, float_dtype, result_dtype, writable
from ._threads import GRAIN, for_ranges
from .errors import InvalidArgumentError
from .formats import CodeFormat, as_code_format

#: Elements with one scale that a kernel's inner loop should have at least.
_RUN = 256
#: Scales in between are positive and finite in every type.
_LEAST_USUAL, _GREATEST_USUAL = 1e-37, 1e38


def quantize(
    x: Any,
    scale: Any,
    zero_point: Any = 0,
    *,
    dtype: Any = "int8",
    axis: int | None = None,
    out: npt.NDArray[Any] | None = None,
) -> Any:
    """Quantise to codes: ``saturate(round_half_even(x / scale) + zero_point)``.

    Parameters
    ----------
    x : scalar or array_like, any shape
        float32, float64, float16 or bfloat16; integers are taken as float64.
    scale : float, or array_like, shape (x.shape[axis],)
        Positive and finite, also as float32 if `x` is computed in float32.
    zero_point : int, or array_like, shape (x.shape[axis],)
        Among the codes; 0 for float8_e4m3fn.
    dtype : {"int8", "uint8", "float8_e4m3fn"} or dtype
        Of the codes.
    axis : int, optional
        Along which scales and zero points lie; without it there is one for all.
    out : ndarray of `dtype`, shape of `x`, optional
        Where the codes are written.

    Returns
    -------
    scalar or ndarray of `dtype`, shape of `x`

    Raises
    ------
    InvalidArgumentError
        If a scale or zero point is out of its range or does not fit `axis`, `axis` is none of x's, or `dtype`
        or `out` is not as described.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    ONNX's QuantizeLinear.  float64 is computed in float64, the other floating types in float32, with the scale
    rounded to that type; the division is a true one.  The code of NaN is the zero point, which stands for 0;
    infinities saturate.  float8_e4m3fn is rounded half to even, once, and saturates at ±448; its NaN stays NaN.

    Examples
    --------
    >>> quantize([0.25, 0.75, -1e9], 0.5)
    array([   0,    2, -128], dtype=int8)
    >>> quantize([[1.0, 2.0], [3.0, 4.0]], [0.1, 0.2], [0, 10], dtype="uint8", axis=1)
    array([[10, 20],
           [30, 30]], dtype=uint8)
    """
    code_format = as_code_format(dtype, "dtype")
    floats = as_floats(x, "x")
    scaling = _scaling(floats.shape, floats.dtype, scale, zero_point, axis, code_format)
    with writable(out, floats.shape, code_format.dtype, (floats,)) as result:
        flat, codes = floats.reshape(-1), result.reshape(-1).view(np.uint8)
        kernels = _dispatch.kernels
        if code_format.is_integer:
            scaling.run(kernels.quantize_integer, flat, codes, code_format.least, code_format.greatest)
        else:
            scaling.run(kernels.quantize_e4m3, flat, codes)
    return _like_input(x, result, out)


def dequantize(
    codes: Any,
    scale: Any,
    zero_point: Any = 0,
    *,
    axis: int | None = None,
    dtype: Any = "float32",
    out: npt.NDArray[Any] | None = None,
) -> Any:
    """Return the values of codes: ``(codes - zero_point) * scale``.

    Parameters
    ----------
    codes : scalar or array_like of int8, uint8 or float8_e4m3fn, any shape
    scale : float, or array_like, shape (codes.shape[axis],)
        Positive and finite, also as `dtype`.
    zero_point : int, or array_like, shape (codes.shape[axis],)
        Among the codes; 0 for float8_e4m3fn.
    axis : int, optional
        Along which scales and zero points lie; without it there is one for all.
    dtype : {"float32", "float64"} or dtype
        Of the values, and of the multiplication; that of `out` where it is given.
    out : ndarray, shape of `codes`, optional
        Where the values are written.

    Returns
    -------
    scalar or ndarray of `dtype`, shape of `codes`

    Raises
    ------
    InvalidArgumentError
        If a scale or zero point is out of its range or does not fit `axis`, `axis` is none of codes', or `dtype`
        or `out` is not as described.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    ONNX's DequantizeLinear.

    Examples
    --------
    >>> dequantize(np.array([-128, 0, 2], np.int8), 0.5)
    array([-64.,   0.,   1.], dtype=float32)
    """
    array = as_plain_array(codes, "codes")
    try:
        code_format = as_code_format(array.dtype, "codes")
    except InvalidArgumentError as error:
        raise TypeError(str(error)) from None
    kind = float_dtype(dtype, out)
    scaling = _scaling(array.shape, kind, scale, zero_point, axis, code_format)
    array = np.ascontiguousarray(array).reshape(array.shape)
    with writable(out, array.shape, kind, (array,)) as result:
        code_bytes, flat = array.reshape(-1).view(np.uint8), result.reshape(-1)
        kernels = _dispatch.kernels
        if code_format.is_integer:
            scaling.run(kernels.dequantize_integer, code_bytes, flat, code_format.least)
        else:
            scaling.run(kernels.dequantize_e4m3, code_bytes, flat)
    return _like_input(codes, result, out)


def fake_quantize(
    x: Any,
    scale: Any,
    zero_point: Any = 0,
    *,
    dtype: Any = "int8",
    axis: int | None = None,
    out: npt.NDArray[Any] | None = None,
) -> Any:
    """Quantise and dequantise: what is left of values that were quantised.

    Parameters
    ----------
    x : scalar or array_like, any shape
    scale : float, or array_like, shape (x.shape[axis],)
        Positive and finite, also as float32 if `x` is computed in float32.
    zero_point : int, or array_like, shape (x.shape[axis],)
        Among the codes; 0 for float8_e4m3fn.
    dtype : {"int8", "uint8", "float8_e4m3fn"} or dtype
        Of the codes in between.
    axis : int, optional
        Along which scales and zero points lie; without it there is one for all.
    out : ndarray of the result's type, shape of `x`, optional
        Where the values are written; may be `x`.

    Returns
    -------
    scalar or ndarray, like `x`
        In x's floating type; float64 for integers.

    Raises
    ------
    InvalidArgumentError
        If a scale or zero point is out of its range or does not fit `axis`, `axis` is none of x's, or `dtype`
        or `out` is not as described.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    For float32 and float64 this is ``dequantize(quantize(x, ...), ..., dtype=x.dtype)``, bit for bit, in one pass.
    float16 and bfloat16 are computed in float32 and rounded to their type.

    Examples
    --------
    >>> fake_quantize([0.25, 0.75, -1e9], 0.5)
    array([  0.,   1., -64.])
    """
    code_format = as_code_format(dtype, "dtype")
    given = as_array(x, "x")
    floats = as_floats(given, "x")
    kind = result_dtype(given.dtype)
    scaling = _scaling(floats.shape, floats.dtype, scale, zero_point, axis, code_format)
    with writable(out, floats.shape, kind, (floats,)) as result:
        values = result if kind == floats.dtype else np.empty(floats.shape, floats.dtype)
        flat, flat_values = floats.reshape(-1), values.reshape(-1)
        kernels = _dispatch.kernels
        if code_format.is_integer:
            limits = code_format.least, code_format.greatest
            scaling.run(kernels.quantize_dequantize_integer, flat, flat_values, *limits)
        else:
            scaling.run(kernels.quantize_dequantize_e4m3, flat, flat_values)
        if values is not result:
            with np.errstate(all="ignore"):  # NaN is no accident here, and float16 overflows
                result[...] = values
    return _like_input(x, result, out)


@dataclass(frozen=True)
class _Scaling:
    """Scales and zero points as the kernels take them."""

    scale: npt.NDArray[Any]
    zero_point: npt.NDArray[np.int32] | None  # None for formats without
    inner: int

    def run(self, kernel: Any, source: npt.NDArray[Any], target: npt.NDArray[Any], *limits: int) -> None:
        """Apply a kernel of `_affine.pxi` to flat arrays."""
        n = source.size
        if not n:
            return
        parameters = (self.scale,) if self.zero_point is None else (self.scale, self.zero_point)
        inner = self.inner

        def task(start: int, stop: int) -> None:
            kernel(source, target, *parameters, inner, *limits, start, stop)

        for_ranges(n, GRAIN, task)


def _scaling(
    shape: tuple[int, ...],
    computed: np.dtype[Any],
    scale: Any,
    zero_point: Any,
    axis: int | None,
    code_format: CodeFormat,
) -> _Scaling:
    channels, inner = None, math.prod(shape)
    least, greatest = code_format.least, code_format.greatest
    usual = axis is None and type(scale) is float and type(zero_point) is int
    if usual and _LEAST_USUAL < scale < _GREATEST_USUAL and least <= zero_point <= greatest:
        # Its checks by way of arrays would take longer than a small array itself.
        offsets = np.array([zero_point], np.int32) if code_format.is_integer else None
        return _Scaling(np.array([scale], computed), offsets, inner)
    if axis is not None:
        position = _as_axis(axis, len(shape))
        channels = shape[position]
        inner = math.prod(shape[position + 1 :])
    scales = _as_positive(scale, channels, computed)
    zero_points = as_zero_points(zero_point, channels, "zero_point")
    if not ((zero_points >= least) & (zero_points <= greatest)).all():
        expected = f"{least} to {greatest}" if code_format.is_integer else "0"
        raise InvalidArgumentError(f"zero_point: expected {expected} for {code_format.dtype}, got {zero_point}")
    if channels is not None:
        zero_points = np.broadcast_to(zero_points, scales.shape)
        if inner < _RUN:  # one pattern of scales, as long as a run should be
            repeats = max(1, -(-_RUN // max(1, channels * inner)))
            scales, zero_points = (np.tile(np.repeat(array, inner), repeats) for array in (scales, zero_points))
            inner = 1
    scales, zero_points = np.atleast_1d(scales), np.array(zero_points, ndmin=1)  # copies: `out` may lie where they do
    return _Scaling(scales, zero_points if code_format.is_integer else None, inner)


def _as_axis(axis: object, ndim: int) -> int:
    try:
        position = operator.index(axis)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"axis: expected an integer or None, got {type(axis).__name__}") from None
    if not -ndim <= position < ndim:
        raise InvalidArgumentError(f"axis: expected one of an array with {ndim} dimensions, got {position}")
    return position % ndim


def _as_positive(scale: Any, channels: int | None, computed: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return scales of shape () or (channels,), positive and finite in the type computed in."""
    array = as_array(scale, "scale")
    expected: tuple[int, ...] = () if channels is None else (channels,)
    if array.shape != expected:
        wanted = "a scalar" if channels is None else f"shape {expected}"
        raise InvalidArgumentError(f"scale: expected {wanted}, got {_shown_shape(array)}")
    with np.errstate(all="ignore"):
        scales = np.array(array, computed)  # a copy, contiguous
    if not ((scales > 0) & (scales < np.inf)).all():
        raise InvalidArgumentError(f"scale: expected positive finite numbers, in {computed} too, got {scale}")
    return scales


def _shown_shape(array: npt.NDArray[Any]) -> str:
    return f"shape {array.shape}" if array.ndim else "a scalar"


def _like_input(x: Any, result: npt.NDArray[Any], out: npt.NDArray[Any] | None) -> Any:
    """Return `out` if it was given, a scalar for a scalar, else the array."""
    if out is not None:
        return out
    if isinstance(x, numbers.Number) and result.dtype == np.float64 and not isinstance(x, np.generic):
        return float(result)
    return result[()] if isinstance(x, (numbers.Number, np.generic)) else result
