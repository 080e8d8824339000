"""Quantise and dequantise as ONNX's QuantizeLinear and DequantizeLinear do."""

from __future__ import annotations

import contextlib
import math
import numbers
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt
from numpy.typing import ArrayLike, DTypeLike, NDArray

from .._base import dispatch
from .._base.arrays import as_array, as_floats, as_plain_array, float_dtype, kernel_dtype, result_dtype, writable
from .._base.errors import InvalidArgumentError
from .._base.formats import BFLOAT16, CodeDType, CodeFormat, as_code_format
from .._base.threads import GRAIN, for_ranges
from .._base.types import AnyArray, ArrayT, DTypeOf, FloatT, Mask, ScalarT
from .._base.validation import as_axis, as_blocks, as_flag, as_positive_scales, as_zero_points, first_wrong

#: Types that values may have.
FLOATS: tuple[type, ...] = (np.float32, np.float64, np.float16, BFLOAT16.type)
#: A kernel's inner loop should have at least this many elements.
_RUN = 256
_NO_PARAMETERS = np.empty(0, np.int32)
#: Scales between these two are positive and finite in float32 and float64.
_LEAST_USUAL, _GREATEST_USUAL = 1e-37, 1e38

Scalar: TypeAlias = float | np.generic


class _Rest(TypedDict, total=False):
    """Parameters that all overloads share; no result's type depends on them."""

    axis: int | None
    block_size: int | None
    out: None


class _FakeRest(_Rest, total=False):
    dtype: CodeDType


class _WithoutMask(_FakeRest, total=False):
    return_mask: Literal[False]


@overload
def quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    dtype: CodeDType = ...,
    axis: int | None = ...,
    block_size: int | None = ...,
    out: ArrayT,
) -> ArrayT: ...
@overload
def quantize(
    x: Scalar, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: Literal["int8"] = ..., **rest: Unpack[_Rest]
) -> np.int8: ...
@overload
def quantize(
    x: Scalar, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: DTypeOf[ScalarT], **rest: Unpack[_Rest]
) -> ScalarT: ...
@overload
def quantize(
    x: Scalar, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: CodeDType, **rest: Unpack[_Rest]
) -> np.generic: ...
@overload
def quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: Literal["int8"] = ..., **rest: Unpack[_Rest]
) -> NDArray[np.int8]: ...
@overload
def quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: Literal["uint8"], **rest: Unpack[_Rest]
) -> NDArray[np.uint8]: ...
@overload
def quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: DTypeOf[ScalarT], **rest: Unpack[_Rest]
) -> NDArray[ScalarT]: ...
@overload
def quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: CodeDType, **rest: Unpack[_Rest]
) -> AnyArray: ...
def quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    dtype: CodeDType = "int8",
    axis: int | None = None,
    block_size: int | None = None,
    out: AnyArray | None = None,
) -> Scalar | AnyArray:
    """Quantise to codes: ``saturate(round_half_even(x / scale) + zero_point)``.

    Parameters
    ----------
    x : scalar or array_like, any shape
        float32, float64, float16 or bfloat16; integers are taken as float64.
    scale : float or array_like, shape (1,), or (x.shape[axis],) with an axis
        Positive and finite, also when rounded to float32 if `x` is computed in float32.  With `block_size`, it has
        the shape of `x`, but ``x.shape[axis] // block_size`` elements along the axis.
    zero_point : int, or array_like with a shape that `scale` may have
        Within the range of the codes; 0 for floating-point formats.
    dtype : str, dtype or QuantBits
        Type of the codes: int2, uint2, int4, uint4, int8, uint8, int16, uint16, float8_e4m3fn, float8_e5m2 or
        float4_e2m1fn.
    axis : int, optional
        Axis along which scales and zero points vary.  Without it, all elements share one of each.
    block_size : int, optional
        How many neighbouring elements along the axis share a scale and a zero point.
    out : ndarray of `dtype`, shape of `x`, optional
        Array into which the codes are written.

    Returns
    -------
    scalar or ndarray of `dtype`, shape of `x`
        The codes; `out` itself if it is given.

    Raises
    ------
    InvalidArgumentError
        If a scale or zero point is out of its range or has a wrong shape.  If `axis` is not an axis of `x`, or
        `block_size` does not divide its length.  If `dtype` or `out` is not as described.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    This is ONNX's QuantizeLinear.  float64 is computed in float64, the other floating types in float32.  The scale is
    first rounded to that type, and the division is a true one.  Infinities saturate.

    For integer codes, NaN gets the zero point as its code, which stands for 0.  Floating-point formats are rounded half
    to even, once, and saturate at their greatest value.  NaN stays NaN.  float4_e2m1fn has no NaN; there it becomes -0,
    or 0 if its sign bit is set, as in ml_dtypes.

    Examples
    --------
    >>> quantize([0.25, 0.75, -1e9], 0.5)
    array([   0,    2, -128], dtype=int8)
    >>> quantize([[1.0, 2.0], [3.0, 4.0]], [0.1, 0.2], [0, 10], dtype="uint8", axis=1)
    array([[10, 20],
           [30, 30]], dtype=uint8)
    >>> print(quantize([1.0, 3.0, 10.0, 30.0], [0.5, 10.0], dtype="float4_e2m1fn", axis=0, block_size=2))
    [2 6 1 3]
    """
    code_format = as_code_format(dtype, "dtype")
    floats = as_floats(x, "x")
    scaled = scaled_format(floats.shape, floats.dtype, scale, zero_point, axis, block_size, code_format)
    with writable(out, floats.shape, code_format.dtype, (floats,)) as result:
        scaled.quantize(floats, result)
    return _like_input(x, result, out)


@overload
def dequantize(
    codes: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    axis: int | None = ...,
    block_size: int | None = ...,
    dtype: DTypeLike = ...,
    out: ArrayT,
) -> ArrayT: ...
@overload
def dequantize(
    codes: np.generic,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    dtype: Literal["float32"] = ...,
    **rest: Unpack[_Rest],
) -> np.float32: ...
@overload
def dequantize(
    codes: np.generic, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: DTypeLike, **rest: Unpack[_Rest]
) -> np.generic: ...
@overload
def dequantize(
    codes: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    dtype: Literal["float32"] = ...,
    **rest: Unpack[_Rest],
) -> NDArray[np.float32]: ...
@overload
def dequantize(
    codes: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: Literal["float64"], **rest: Unpack[_Rest]
) -> NDArray[np.float64]: ...
@overload
def dequantize(
    codes: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: DTypeOf[ScalarT], **rest: Unpack[_Rest]
) -> NDArray[ScalarT]: ...
@overload
def dequantize(
    codes: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = ..., *, dtype: DTypeLike, **rest: Unpack[_Rest]
) -> AnyArray: ...
def dequantize(
    codes: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    axis: int | None = None,
    block_size: int | None = None,
    dtype: DTypeLike = "float32",
    out: AnyArray | None = None,
) -> Scalar | AnyArray:
    """Return the values of codes: ``(codes - zero_point) * scale``.

    Parameters
    ----------
    codes : scalar or array_like, any shape
        Codes of a type that `quantize` returns.
    scale : float or array_like, shape (1,), or (codes.shape[axis],) with an axis
        Positive and finite, also when rounded to the type computed in.  With `block_size`, it has the shape of
        `codes`, but ``codes.shape[axis] // block_size`` elements along the axis.
    zero_point : int, or array_like with a shape that `scale` may have
        Within the range of the codes; 0 for floating-point formats.
    axis : int, optional
        Axis along which scales and zero points vary.  Without it, all elements share one of each.
    block_size : int, optional
        How many neighbouring elements along the axis share a scale and a zero point.
    dtype : {"float32", "float64", "float16", "bfloat16"} or dtype
        Type of the values.  If `out` is given, its type is used instead.  float64 is computed in float64, the others
        in float32.
    out : ndarray, shape of `codes`, optional
        Array into which the values are written.

    Returns
    -------
    scalar or ndarray of `dtype`, shape of `codes`
        The values; `out` itself if it is given.

    Raises
    ------
    InvalidArgumentError
        If a scale or zero point is out of its range or has a wrong shape.  If `axis` is not an axis of `codes`, or
        `block_size` does not divide its length.  If `dtype` or `out` is not as described.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    This is ONNX's DequantizeLinear.

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
    kind = float_dtype(dtype, out, FLOATS)
    computed = kernel_dtype(kind, "dtype")
    scaled = scaled_format(array.shape, computed, scale, zero_point, axis, block_size, code_format)
    array = np.require(array, code_format.dtype, ["C", "A"])
    with writable(out, array.shape, kind, (array,)) as result, floats_for(result, computed) as values:
        scaled.dequantize(array, values)
    return _like_input(codes, result, out)


@overload
def fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    dtype: CodeDType = ...,
    axis: int | None = ...,
    block_size: int | None = ...,
    out: ArrayT,
    return_mask: Literal[False] = ...,
) -> ArrayT: ...
@overload
def fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    dtype: CodeDType = ...,
    axis: int | None = ...,
    block_size: int | None = ...,
    out: ArrayT,
    return_mask: Literal[True],
) -> tuple[ArrayT, Mask]: ...
@overload
def fake_quantize(x: FloatT, scale: ArrayLike, zero_point: ArrayLike = ..., **rest: Unpack[_WithoutMask]) -> FloatT: ...
@overload
def fake_quantize(x: float, scale: ArrayLike, zero_point: ArrayLike = ..., **rest: Unpack[_WithoutMask]) -> float: ...
@overload
def fake_quantize(
    x: np.generic, scale: ArrayLike, zero_point: ArrayLike = ..., **rest: Unpack[_WithoutMask]
) -> np.generic: ...
@overload
def fake_quantize(
    x: NDArray[FloatT], scale: ArrayLike, zero_point: ArrayLike = ..., **rest: Unpack[_WithoutMask]
) -> NDArray[FloatT]: ...
@overload
def fake_quantize(
    x: ArrayLike, scale: ArrayLike, zero_point: ArrayLike = ..., **rest: Unpack[_WithoutMask]
) -> AnyArray: ...
@overload
def fake_quantize(
    x: float, scale: ArrayLike, zero_point: ArrayLike = ..., *, return_mask: Literal[True], **rest: Unpack[_FakeRest]
) -> tuple[float, Mask]: ...
@overload
def fake_quantize(
    x: np.generic,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    return_mask: Literal[True],
    **rest: Unpack[_FakeRest],
) -> tuple[np.generic, Mask]: ...
@overload
def fake_quantize(
    x: NDArray[FloatT],
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    return_mask: Literal[True],
    **rest: Unpack[_FakeRest],
) -> tuple[NDArray[FloatT], Mask]: ...
@overload
def fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    return_mask: Literal[True],
    **rest: Unpack[_FakeRest],
) -> tuple[AnyArray, Mask]: ...
@overload
def fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = ...,
    *,
    dtype: CodeDType = ...,
    axis: int | None = ...,
    block_size: int | None = ...,
    out: AnyArray | None = ...,
    return_mask: bool,
) -> Scalar | AnyArray | tuple[Scalar | AnyArray, Mask]: ...
def fake_quantize(
    x: ArrayLike,
    scale: ArrayLike,
    zero_point: ArrayLike = 0,
    *,
    dtype: CodeDType = "int8",
    axis: int | None = None,
    block_size: int | None = None,
    out: AnyArray | None = None,
    return_mask: bool = False,
) -> Scalar | AnyArray | tuple[Scalar | AnyArray, Mask]:
    """Quantise and dequantise, and return the values that the codes stand for.

    Parameters
    ----------
    x : scalar or array_like, any shape
        float32, float64, float16 or bfloat16; integers are taken as float64.
    scale : float or array_like, shape (1,), or (x.shape[axis],) with an axis
        Positive and finite, also when rounded to float32 if `x` is computed in float32.  With `block_size`, it has
        the shape of `x`, but ``x.shape[axis] // block_size`` elements along the axis.
    zero_point : int, or array_like with a shape that `scale` may have
        Within the range of the codes; 0 for floating-point formats.
    dtype : str, dtype or QuantBits
        Type of the codes in between, one that `quantize` takes.
    axis : int, optional
        Axis along which scales and zero points vary.  Without it, all elements share one of each.
    block_size : int, optional
        How many neighbouring elements along the axis share a scale and a zero point.
    out : ndarray of the result's type, shape of `x`, optional
        Array into which the values are written; may be `x`.
    return_mask : bool
        Whether to return `mask` as well.  It is computed in the same pass.

    Returns
    -------
    scalar or ndarray, like `x`
        In x's floating type; float64 for integers.  `out` itself if it is given.
    mask : ndarray of bool, shape of `x`, if `return_mask`
        True where nothing was clipped, so that the gradient passes straight through.  For integer codes, this means
        that ``round_half_even(x / scale) + zero_point`` is a code.  For floating-point formats, it means that the
        magnitude of ``x / scale`` is at most the greatest value.  False for NaN.

    Raises
    ------
    InvalidArgumentError
        If a scale or zero point is out of its range or has a wrong shape.  If `axis` is not an axis of `x`, or
        `block_size` does not divide its length.  If `dtype` or `out` is not as described.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    For float32 and float64 this is ``dequantize(quantize(x, ...), ..., dtype=x.dtype)``, bit for bit, in one pass.
    float16 and bfloat16 are computed in float32 and rounded to their type.  `fake_quantize_backward` has the gradients.

    Examples
    --------
    >>> fake_quantize([0.25, 0.75, -1e9], 0.5)
    array([  0.,   1., -64.])
    >>> fake_quantize([0.25, 0.75, -1e9], 0.5, return_mask=True)
    (array([  0.,   1., -64.]), array([ True,  True, False]))
    """
    code_format = as_code_format(dtype, "dtype")
    given = as_array(x, "x")
    floats = as_floats(given, "x")
    kind = result_dtype(given.dtype)
    scaled = scaled_format(floats.shape, floats.dtype, scale, zero_point, axis, block_size, code_format)
    mask = np.empty(floats.shape, np.bool_) if as_flag(return_mask, "return_mask") else None
    with writable(out, floats.shape, kind, (floats,)) as result, floats_for(result, floats.dtype) as values:
        if mask is None:
            scaled.quantize_dequantize(floats, values)
        else:
            scaled.quantize_dequantize_masked(floats, values, mask)
    values_like_x = _like_input(x, result, out)
    return values_like_x if mask is None else (values_like_x, mask)


@contextlib.contextmanager
def floats_for(result: npt.NDArray[Any], computed: np.dtype[Any]) -> Iterator[npt.NDArray[Any]]:
    """Yield an array to compute in; its values end up in `result`, rounded if need be."""
    if result.dtype == computed:
        yield result
        return
    values = np.empty(result.shape, computed)
    yield values
    with np.errstate(all="ignore"):  # NaN is expected here, and float16 may overflow
        result[...] = values


@dataclass(frozen=True)
class ScaledFormat:
    """A format of codes, with scales and zero points laid out as kernels/affine.pxi reads them."""

    code_format: CodeFormat
    scale: npt.NDArray[Any]
    zero_point: npt.NDArray[np.int32]
    inner: int
    pattern: int = 1
    repeats: int = 1

    def quantize(self, x: npt.NDArray[Any], codes: npt.NDArray[Any]) -> None:
        """Write the codes of `x`, which has the type computed in."""
        kernels = dispatch.kernels
        kernel = kernels.quantize_float if self._is_float else kernels.quantize_integer
        self._run(kernel, x.reshape(-1), self._stored(codes))

    def dequantize(self, codes: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Write the values of codes."""
        kernels = dispatch.kernels
        kernel = kernels.dequantize_float if self._is_float else kernels.dequantize_integer
        self._run(kernel, self._stored(codes), out.reshape(-1))

    def quantize_dequantize(self, x: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
        """Quantise `x`, and write the values of its codes."""
        kernels = dispatch.kernels
        kernel = kernels.quantize_dequantize_float if self._is_float else kernels.quantize_dequantize_integer
        self._run(kernel, x.reshape(-1), out.reshape(-1))

    def quantize_dequantize_masked(
        self, x: npt.NDArray[Any], out: npt.NDArray[Any], mask: npt.NDArray[np.bool_]
    ) -> None:
        """Quantise `x`, write the values of its codes, and set `mask` where nothing was clipped."""
        flat, flat_out, passes = x.reshape(-1), out.reshape(-1), mask.reshape(-1).view(np.uint8)

        def task(start: int, stop: int) -> None:
            dispatch.kernels.fake_quantize_masked(flat, flat_out, passes, *self.arguments, start, stop)

        if flat.size:
            for_ranges(flat.size, GRAIN, task)

    @property
    def arguments(self) -> tuple[Any, ...]:
        """The arguments for scales and format that kernels/gradients.pxi takes."""
        parameters = self.code_format.parameters
        format_or_none = _NO_PARAMETERS if parameters is None else parameters
        layout = (self.inner, self.pattern, self.repeats)
        return self.scale, self.zero_point, *layout, *self.code_format.ends, format_or_none

    @property
    def _is_float(self) -> bool:
        return self.code_format.parameters is not None

    def _stored(self, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return codes.reshape(-1).view(self.code_format.storage)

    def _run(self, kernel: Any, source: npt.NDArray[Any], target: npt.NDArray[Any]) -> None:
        n = source.size
        if not n:
            return
        code_format = self.code_format
        layout = (self.inner, self.pattern, self.repeats)
        arguments: tuple[Any, ...] = (self.scale, *layout, code_format.parameters)
        if not self._is_float:
            arguments = self.scale, self.zero_point, *layout, code_format.least, code_format.greatest

        def task(start: int, stop: int) -> None:
            kernel(source, target, *arguments, start, stop)

        for_ranges(n, GRAIN, task)


def scaled_format(
    shape: tuple[int, ...],
    computed: np.dtype[Any],
    scale: Any,
    zero_point: Any,
    axis: int | None,
    block_size: int | None,
    code_format: CodeFormat,
) -> ScaledFormat:
    """Check the arguments, and return a format with the scales for an array of this shape."""
    size = math.prod(shape)
    least, greatest = code_format.least, code_format.greatest
    usual = axis is None and block_size is None and type(scale) is float and type(zero_point) is int
    if usual and _LEAST_USUAL < scale < _GREATEST_USUAL and least <= zero_point <= greatest:
        # Checking these scalars as arrays would take longer than quantising a small array.
        return constant(code_format, np.array([scale], computed), np.array([zero_point], np.int32), size)
    position = None if axis is None else as_axis(axis, len(shape))
    blocks = None if block_size is None else as_blocks(block_size, shape, position)
    if blocks is not None:
        expected = blocks
    elif position is not None:
        expected = (shape[position],)
    else:
        expected = (1,)  # ONNX treats this shape as a scalar
    scales = as_positive_scales(scale, expected, computed, scalar=position is None)
    zero_points = as_zero_points(zero_point, expected, "zero_point")
    right = (zero_points >= least) & (zero_points <= greatest)
    if not right.all():
        range_of_codes = f"{least} to {greatest}" if greatest else "0"
        raise InvalidArgumentError(
            f"zero_point: expected {range_of_codes} for {code_format.dtype}, got {first_wrong(zero_points, right)}"
        )
    # Copies, because `out` may share their memory.
    scales, zero_points = scales.reshape(-1), np.array(np.broadcast_to(zero_points, expected)).reshape(-1)
    if position is None or not size:
        return constant(code_format, scales, zero_points, size)
    inner = math.prod(shape[position + 1 :])
    if blocks is None:
        return channelwise(code_format, scales, zero_points, inner)
    return blockwise(code_format, scales, zero_points, inner, shape[position] // blocks[position])


def constant(
    code_format: CodeFormat, scale: npt.NDArray[Any], zero_point: npt.NDArray[np.int32], size: int
) -> ScaledFormat:
    """Return a format with one scale for all `size` elements of an array."""
    return ScaledFormat(code_format, scale, zero_point, inner=max(size, 2))


def channelwise(
    code_format: CodeFormat, scales: npt.NDArray[Any], zero_points: npt.NDArray[np.int32], inner: int
) -> ScaledFormat:
    """Return a format that applies each scale to `inner` elements in turn, and then starts again."""
    if inner >= _RUN:
        return ScaledFormat(code_format, scales, zero_points, inner)
    # Repeat the scales until one pattern is as long as a run should be.
    repeats = max(1, -(-_RUN // (scales.size * inner)))
    scales, zero_points = (np.tile(np.repeat(array, inner), repeats) for array in (scales, zero_points))
    return ScaledFormat(code_format, scales, zero_points, 1, pattern=scales.size)


def blockwise(
    code_format: CodeFormat, scales: npt.NDArray[Any], zero_points: npt.NDArray[np.int32], inner: int, block: int
) -> ScaledFormat:
    """Return a format that applies `inner` scales to `block` rows of `inner` elements, then the next ones."""
    if block == 1:
        return ScaledFormat(code_format, scales, zero_points, 1, pattern=scales.size)
    if inner == 1:
        return ScaledFormat(code_format, scales, zero_points, block)
    # Join short rows into one pattern.  Long rows stay single, because a pattern takes memory.
    rows = next(n for n in (8, 4, 2, 1) if n == 1 or (block % n == 0 and inner * n <= _RUN))
    if rows > 1:
        scales, zero_points = (
            np.tile(array.reshape(-1, inner), (1, rows)).reshape(-1) for array in (scales, zero_points)
        )
    return ScaledFormat(code_format, scales, zero_points, 1, pattern=inner * rows, repeats=block // rows)


def _like_input(x: Any, result: npt.NDArray[Any], out: AnyArray | None) -> Scalar | AnyArray:
    """Return `out` if it was given, a scalar for a scalar, else the array."""
    if out is not None:
        return out
    if isinstance(x, numbers.Number) and result.dtype == np.float64 and not isinstance(x, np.generic):
        return float(result)
    return result[()] if isinstance(x, (numbers.Number, np.generic)) else result
