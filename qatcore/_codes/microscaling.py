"""Blocks that share a scale of 8 bits: OCP's microscaling formats and NVIDIA's NVFP4."""

from __future__ import annotations

import math
from typing import Any, Literal, overload

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.arrays import as_floats, as_plain_array, float_dtype
from .._base.errors import InvalidArgumentError
from .._base.formats import E4M3, E4M3_MAX, CodeFormat, as_code_format
from .._base.scale import MIN_SCALE
from .._base.threads import GRAIN, for_ranges
from .._base.types import AnyArray, DTypeOf, FloatLike, ScalarT
from .._base.validation import as_axis, as_block_scales, as_blocks, as_tensor_scale
from .affine import FLOATS, ScaledFormat, blockwise, floats_for

_E8M0 = np.dtype(ml_dtypes.float8_e8m0fnu)


def _named_format(name: str) -> CodeFormat:
    return as_code_format(name, "dtype")


_E2M1 = _named_format("float4_e2m1fn")
_E2M1_MAX = 6.0
#: For each element format: the exponent of its greatest value, and the factor between codes and values.
_ELEMENTS = {"float4_e2m1fn": (2, 1.0), "float8_e4m3fn": (8, 1.0), "float8_e5m2": (15, 1.0), "int8": (0, 2.0**-6)}
#: int8 without -128, which would stand for a value beyond float32 at the greatest scale.
_SYMMETRIC_INT8 = CodeFormat(np.dtype(np.int8), 8, -127, 127)
_BLOCK_OF_NVFP4 = 16
_LEAST_E4M3 = 2.0**-9


def quantize_mx(
    x: npt.ArrayLike, dtype: npt.DTypeLike = "float8_e4m3fn", block_size: int = 32, *, axis: int = -1
) -> tuple[AnyArray, AnyArray]:
    """Quantise to a microscaling format, in which each block shares a power of two as its scale.

    Parameters
    ----------
    x : array_like, at least one dimension
        float32, float64, float16 or bfloat16; integers are taken as float64.
    dtype : {"float8_e4m3fn", "float8_e5m2", "float4_e2m1fn", "int8"} or dtype
        Type of the codes.
    block_size : int
        How many neighbouring elements along the axis share a scale; 32 in the standard.
    axis : int
        Axis along which blocks lie.

    Returns
    -------
    codes : ndarray of `dtype`, shape of `x`
    scale : ndarray of float8_e8m0fnu
        One for each block: the shape of `x`, but ``x.shape[axis] // block_size`` elements along the axis.

    Raises
    ------
    InvalidArgumentError
        If `dtype` is not one of these, `axis` is not an axis of `x`, or `block_size` does not divide its length.
    TypeError
        If an argument has a wrong type.

    See Also
    --------
    dequantize_mx : Return the values of such codes.

    Notes
    -----
    This follows OCP Microscaling Formats (MX) v1.0, sections 5 and 6.3.  A block's scale is 2**e.  Here e is
    the exponent of the block's greatest magnitude, less the exponent of the format's greatest value, clipped to -127
    to 127.  The format's exponent is 2 for float4_e2m1fn, 8 for float8_e4m3fn, 15 for float8_e5m2 and 0 for int8.  The
    elements are divided by the scale and rounded to nearest, ties to even, saturating.  int8 codes are -127 to 127, and
    count multiples of 2**-6.

    The standard leaves infinities and NaN open.  Here an infinity counts as the greatest finite number of the type
    computed in, and saturates.  A block that holds a NaN has the scale NaN and codes 0, so all its values are NaN.

    Examples
    --------
    >>> codes, scale = quantize_mx([0.5, -3.0, 1.25, 6.0], "float4_e2m1fn", 2)
    >>> print(codes, scale)
    [1 -6 1 6] [0.5 1]
    """
    code_format = as_code_format(dtype, "dtype", _ELEMENTS)
    exponent, unit = _ELEMENTS[str(code_format.dtype)]
    floats = as_floats(x, "x")
    position = as_axis(axis, floats.ndim)
    blocks = as_blocks(block_size, floats.shape, position)
    greatest = _greatest_magnitudes(floats, position, blocks)
    mantissa = np.finfo(floats.dtype).nmant
    infinity = np.array(np.inf, floats.dtype).view(greatest.dtype)
    bias = (1 << (floats.itemsize * 8 - mantissa - 2)) - 1
    powers = np.minimum(greatest >> mantissa, 2 * bias) - (bias + exponent)
    powers = np.clip(powers, -127, 127)
    has_nan = greatest > infinity
    steps = np.ldexp(floats.dtype.type(unit), np.where(has_nan, 0, powers))
    element = _SYMMETRIC_INT8 if code_format.dtype == np.int8 else code_format
    codes = _quantized(floats, steps, has_nan, element, position)
    scale = np.where(has_nan, 255, powers + 127).astype(np.uint8)
    return codes, scale.view(_E8M0)


@overload
def dequantize_mx(
    codes: npt.ArrayLike, scale: npt.ArrayLike, *, axis: int = ..., dtype: Literal["float32"] = ...
) -> npt.NDArray[np.float32]: ...
@overload
def dequantize_mx(
    codes: npt.ArrayLike, scale: npt.ArrayLike, *, axis: int = ..., dtype: Literal["float64"]
) -> npt.NDArray[np.float64]: ...
@overload
def dequantize_mx(
    codes: npt.ArrayLike, scale: npt.ArrayLike, *, axis: int = ..., dtype: DTypeOf[ScalarT]
) -> npt.NDArray[ScalarT]: ...
@overload
def dequantize_mx(codes: npt.ArrayLike, scale: npt.ArrayLike, *, axis: int = ..., dtype: npt.DTypeLike) -> AnyArray: ...
def dequantize_mx(
    codes: npt.ArrayLike, scale: npt.ArrayLike, *, axis: int = -1, dtype: npt.DTypeLike = "float32"
) -> AnyArray:
    """Return the values of microscaling codes.

    Parameters
    ----------
    codes : ndarray of float8_e4m3fn, float8_e5m2, float4_e2m1fn or int8, at least one dimension
    scale : ndarray of float8_e8m0fnu
        The shape of `codes`, but a divisor of ``codes.shape[axis]`` along the axis.
    axis : int
        Axis along which blocks lie.
    dtype : {"float32", "float64", "float16", "bfloat16"} or dtype
        Type of the values.

    Returns
    -------
    ndarray of `dtype`, shape of `codes`
        Exact in float32, except for products beyond its range, which are infinite.  A scale of NaN gives NaN.

    Raises
    ------
    InvalidArgumentError
        If `scale` does not fit `codes`, or `axis` or `dtype` is not as described.
    TypeError
        If an argument has a wrong type.

    See Also
    --------
    quantize_mx : Return such codes.

    Examples
    --------
    >>> codes, scale = quantize_mx([0.5, -3.0, 1.25, 6.0], "float4_e2m1fn", 2)
    >>> dequantize_mx(codes, scale)
    array([ 0.5, -3. ,  1. ,  6. ], dtype=float32)
    """
    array, code_format = _as_codes(codes, tuple(_ELEMENTS))
    kind = float_dtype(dtype, None, FLOATS)
    position, scales = as_block_scales(scale, _E8M0, array.shape, axis)
    computed = np.dtype(np.float64 if kind == np.float64 else np.float32)
    exponents = scales.view(np.uint8).astype(np.int32)
    steps = np.ldexp(computed.type(_ELEMENTS[str(code_format.dtype)][1]), np.minimum(exponents, 254) - 127)
    steps[exponents == 255] = np.nan
    return _dequantized(array, steps, code_format, position, kind)


def quantize_nvfp4(
    x: npt.ArrayLike, tensor_scale: FloatLike | None = None, *, axis: int = -1
) -> tuple[AnyArray, AnyArray, np.float32]:
    """Quantise to NVFP4: float4_e2m1fn in blocks of 16 with E4M3 scales, and one float32 scale for the tensor.

    Parameters
    ----------
    x : array_like, at least one dimension
        float32, float64, float16 or bfloat16; integers are taken as float64.
    tensor_scale : float, optional
        Positive and finite, also when rounded to float32.  If left out, it is the greatest finite magnitude divided by
        6 * 448, at least 2**-126.  If that magnitude is 0, it is 1.
    axis : int
        Axis along which blocks lie.

    Returns
    -------
    codes : ndarray of float4_e2m1fn, shape of `x`
    scale : ndarray of float8_e4m3fn
        One for each block: the shape of `x`, but ``x.shape[axis] // 16`` elements along the axis.
    tensor_scale : float32
        The one given, rounded to float32, or the one computed.

    Raises
    ------
    InvalidArgumentError
        If `tensor_scale` is out of its range, `axis` is not an axis of `x`, or 16 does not divide its length.
    TypeError
        If an argument has a wrong type.

    See Also
    --------
    dequantize_nvfp4 : Return the values of such codes.

    Notes
    -----
    A block's scale is its greatest magnitude / 6 / `tensor_scale`, rounded to E4M3, at least 2**-9 and at most 448.
    The elements are divided by the product of both scales, which is rounded first.  The quotients are rounded to
    nearest, ties to even, saturating.  All this is computed in float64 for float64, otherwise in float32.

    Infinities and numbers beyond float32 count as float32's greatest number for the scales, and saturate.  If
    `tensor_scale` is left out, an infinity becomes the greatest finite magnitude of `x`, up to rounding.  It becomes
    more if that magnitude is too small for a tensor scale of its own.  A block that holds a NaN has the scale NaN and
    codes 0, so all its values are NaN.

    Examples
    --------
    >>> codes, scale, tensor_scale = quantize_nvfp4(np.arange(32.0))
    >>> print(codes[:16])
    [0 0.5 1 1 1.5 2 2 3 3 3 4 4 4 6 6 6]
    >>> print(scale)
    [224 448]
    """
    floats = as_floats(x, "x")
    position = as_axis(axis, floats.ndim)
    if floats.shape[position] % _BLOCK_OF_NVFP4:
        raise InvalidArgumentError(
            f"x: expected a multiple of {_BLOCK_OF_NVFP4} elements along axis {axis}, got {floats.shape[position]}"
        )
    blocks = as_blocks(_BLOCK_OF_NVFP4, floats.shape, position)
    greatest = _greatest_magnitudes(floats, position, blocks).view(floats.dtype)
    has_nan = np.isnan(greatest)
    if tensor_scale is not None:
        all_scale = as_tensor_scale(tensor_scale)
    else:
        finite = greatest if np.isfinite(greatest).all() else np.abs(floats[np.isfinite(floats)])
        limited = min(finite.max(initial=0.0), np.finfo(np.float32).max)
        all_scale = np.float32(max(limited / (_E2M1_MAX * E4M3_MAX), MIN_SCALE) if limited else 1.0)
    greatest = np.minimum(np.where(has_nan, 0.0, greatest), np.finfo(np.float32).max).astype(floats.dtype)
    with np.errstate(over="ignore"):
        scale = np.clip(greatest / floats.dtype.type(_E2M1_MAX) / floats.dtype.type(all_scale), _LEAST_E4M3, E4M3_MAX)
    rounded = np.empty(scale.shape, scale.dtype)
    dispatch.kernels.round_e4m3(scale.reshape(-1), rounded.reshape(-1))
    steps = rounded * floats.dtype.type(all_scale)
    steps = np.maximum(steps, np.finfo(floats.dtype).smallest_subnormal)
    codes = _quantized(floats, steps, has_nan, _E2M1, position)
    rounded[has_nan] = np.nan
    return codes, rounded.astype(E4M3), all_scale


@overload
def dequantize_nvfp4(
    codes: npt.ArrayLike,
    scale: npt.ArrayLike,
    tensor_scale: FloatLike,
    *,
    axis: int = ...,
    dtype: Literal["float32"] = ...,
) -> npt.NDArray[np.float32]: ...
@overload
def dequantize_nvfp4(
    codes: npt.ArrayLike, scale: npt.ArrayLike, tensor_scale: FloatLike, *, axis: int = ..., dtype: Literal["float64"]
) -> npt.NDArray[np.float64]: ...
@overload
def dequantize_nvfp4(
    codes: npt.ArrayLike, scale: npt.ArrayLike, tensor_scale: FloatLike, *, axis: int = ..., dtype: DTypeOf[ScalarT]
) -> npt.NDArray[ScalarT]: ...
@overload
def dequantize_nvfp4(
    codes: npt.ArrayLike, scale: npt.ArrayLike, tensor_scale: FloatLike, *, axis: int = ..., dtype: npt.DTypeLike
) -> AnyArray: ...
def dequantize_nvfp4(
    codes: npt.ArrayLike,
    scale: npt.ArrayLike,
    tensor_scale: FloatLike,
    *,
    axis: int = -1,
    dtype: npt.DTypeLike = "float32",
) -> AnyArray:
    """Return the values of NVFP4 codes.

    Parameters
    ----------
    codes : ndarray of float4_e2m1fn, at least one dimension
    scale : ndarray of float8_e4m3fn
        The shape of `codes`, but ``codes.shape[axis] // 16`` elements along the axis.
    tensor_scale : float
        Positive and finite, also when rounded to float32.
    axis : int
        Axis along which blocks lie.
    dtype : {"float32", "float64", "float16", "bfloat16"} or dtype
        Type of the values.  float64 is computed in float64, the others in float32.

    Returns
    -------
    ndarray of `dtype`, shape of `codes`
        Each code times the product of both scales, which is rounded first.

    Raises
    ------
    InvalidArgumentError
        If `scale` does not fit `codes`, or another argument is not as described.
    TypeError
        If an argument has a wrong type.

    See Also
    --------
    quantize_nvfp4 : Return such codes.

    Examples
    --------
    >>> dequantize_nvfp4(*quantize_nvfp4(np.arange(16.0)))[:8]
    array([0.  , 1.25, 2.5 , 2.5 , 3.75, 5.  , 5.  , 7.5 ], dtype=float32)
    """
    array, code_format = _as_codes(codes, ("float4_e2m1fn",))
    kind = float_dtype(dtype, None, FLOATS)
    position, scales = as_block_scales(scale, E4M3, array.shape, axis)
    if scales.shape[position] * _BLOCK_OF_NVFP4 != array.shape[position]:
        raise InvalidArgumentError(
            f"scale: expected {array.shape[position] / _BLOCK_OF_NVFP4:g} along the axis, one for each block of"
            f" {_BLOCK_OF_NVFP4}, got {scales.shape[position]}"
        )
    computed = np.float64 if kind == np.float64 else np.float32
    steps = np.multiply(scales.astype(computed), as_tensor_scale(tensor_scale), dtype=computed)
    return _dequantized(array, steps, code_format, position, kind)


def _as_codes(codes: Any, names: tuple[str, ...]) -> tuple[npt.NDArray[Any], CodeFormat]:
    array = as_plain_array(codes, "codes")
    for code_format in map(_named_format, names):
        if array.dtype.type is code_format.dtype.type:
            return array, code_format
    raise TypeError(f"codes: expected an array of {' or '.join(names)}, got {array.dtype}")


def _greatest_magnitudes(x: npt.NDArray[Any], position: int, blocks: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the bits of the greatest magnitude in each block; NaN counts as the greatest."""
    integer = np.int32 if x.dtype == np.float32 else np.int64
    out = np.zeros(blocks, integer)
    if out.size and x.size:
        inner = math.prod(blocks[position + 1 :])
        size = x.shape[position] // blocks[position]
        source, target = x.reshape(-1).view(integer), out.reshape(-1)
        kernel = dispatch.kernels.greatest_magnitudes
        for_ranges(
            out.size // inner, max(GRAIN // (size * inner), 1), lambda a, b: kernel(source, target, size, inner, a, b)
        )
    return out


def _scaled(shape: tuple[int, ...], steps: npt.NDArray[Any], code_format: CodeFormat, position: int) -> ScaledFormat:
    inner = math.prod(shape[position + 1 :])
    zero_points = np.zeros(steps.size, np.int32)
    return blockwise(code_format, steps.reshape(-1), zero_points, inner, shape[position] // steps.shape[position])


def _quantized(
    x: npt.NDArray[Any],
    steps: npt.NDArray[Any],
    has_nan: npt.NDArray[np.bool_],
    code_format: CodeFormat,
    position: int,
) -> npt.NDArray[Any]:
    """Return the codes, which are 0 in blocks that hold a NaN."""
    codes = np.empty(x.shape, code_format.dtype)
    if x.size:
        _scaled(x.shape, steps, code_format, position).quantize(x, codes)
        inner = math.prod(x.shape[position + 1 :])
        by_block = codes.view(np.uint8).reshape(-1, x.shape[position] // steps.shape[position], inner)
        by_block.transpose(0, 2, 1)[has_nan.reshape(-1, inner)] = 0
    return codes


def _dequantized(
    codes: npt.NDArray[Any], steps: npt.NDArray[Any], code_format: CodeFormat, position: int, kind: np.dtype[Any]
) -> npt.NDArray[Any]:
    out = np.empty(codes.shape, kind)
    if codes.size:
        with floats_for(out, steps.dtype) as values:
            _scaled(codes.shape, steps, code_format, position).dequantize(np.ascontiguousarray(codes), values)
    return out
