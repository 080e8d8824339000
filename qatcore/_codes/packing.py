"""Pack codes of 4 and 2 bits, several to a byte, as ONNX stores them."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.arrays import as_plain_array
from .._base.errors import InvalidArgumentError
from .._base.formats import CODE_FORMATS, as_code_format
from .._base.threads import GRAIN, for_ranges
from .._base.types import AnyArray
from .._base.validation import as_count


def pack_int4(codes: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Pack codes of 4 bits, two to a byte.

    Parameters
    ----------
    codes : array_like, any shape
        int4, uint4, float4_e2m1fn, or int8 from -8 to 7, or uint8 from 0 to 15.

    Returns
    -------
    ndarray of uint8, shape (ceil(codes.size / 2),)
        The codes in C order, the first of each two in the lower bits.  If the number of codes is odd, the last byte's
        upper bits are 0.

    Raises
    ------
    InvalidArgumentError
        If a code needs more than 4 bits.
    TypeError
        If `codes` has another type.

    See Also
    --------
    unpack_int4 : Unpack such bytes.

    Notes
    -----
    ONNX's TensorProto stores these types in this way in ``raw_data``.

    Examples
    --------
    >>> pack_int4(np.array([1, -1, 7], np.int8)).tolist()
    [241, 7]
    """
    return _packed(codes, 4)


def unpack_int4(
    packed: npt.ArrayLike, shape: int | tuple[int, ...] | list[int], *, dtype: npt.DTypeLike = "int4"
) -> AnyArray:
    r"""Unpack codes of 4 bits.

    Parameters
    ----------
    packed : bytes, or ndarray of uint8, shape (ceil(n / 2),)
    shape : int, or tuple or list of int
        Shape of the result, which has n elements in all.
    dtype : {"int4", "uint4", "float4_e2m1fn"} or dtype
        Type of the codes.

    Returns
    -------
    ndarray of `dtype`, shape `shape`

    Raises
    ------
    InvalidArgumentError
        If the shape of `packed` does not fit, or `dtype` or `shape` is not as described.
    TypeError
        If an argument has a wrong type.

    See Also
    --------
    pack_int4 : Pack codes into such bytes.

    Examples
    --------
    >>> print(unpack_int4(b"\xf1\x07", 3))
    [1 -1 7]
    """
    return _unpacked(packed, shape, dtype, 4)


def pack_int2(codes: npt.ArrayLike) -> npt.NDArray[np.uint8]:
    """Pack codes of 2 bits, four to a byte.

    Parameters
    ----------
    codes : array_like, any shape
        int2, uint2, or int8 from -2 to 1, or uint8 from 0 to 3.

    Returns
    -------
    ndarray of uint8, shape (ceil(codes.size / 4),)
        The codes in C order, the first of each four in the lowest bits.  Unused bits of the last byte are 0.

    Raises
    ------
    InvalidArgumentError
        If a code needs more than 2 bits.
    TypeError
        If `codes` has another type.

    See Also
    --------
    unpack_int2 : Unpack such bytes.

    Examples
    --------
    >>> pack_int2(np.array([1, -1, 0, -2, 1], np.int8)).tolist()
    [141, 1]
    """
    return _packed(codes, 2)


def unpack_int2(
    packed: npt.ArrayLike, shape: int | tuple[int, ...] | list[int], *, dtype: npt.DTypeLike = "int2"
) -> AnyArray:
    r"""Unpack codes of 2 bits.

    Parameters
    ----------
    packed : bytes, or ndarray of uint8, shape (ceil(n / 4),)
    shape : int, or tuple or list of int
        Shape of the result, which has n elements in all.
    dtype : {"int2", "uint2"} or dtype
        Type of the codes.

    Returns
    -------
    ndarray of `dtype`, shape `shape`

    Raises
    ------
    InvalidArgumentError
        If the shape of `packed` does not fit, or `dtype` or `shape` is not as described.
    TypeError
        If an argument has a wrong type.

    See Also
    --------
    pack_int2 : Pack codes into such bytes.

    Examples
    --------
    >>> print(unpack_int2(b"\x8d\x01", 5))
    [1 -1 0 -2 1]
    """
    return _unpacked(packed, shape, dtype, 2)


#: For each number of bits, the names of the types whose codes have so many.
_NAMES = {width: [str(each.dtype) for each in CODE_FORMATS if each.width == width] for width in (2, 4)}


def _packed(codes: npt.ArrayLike, width: int) -> npt.NDArray[np.uint8]:
    array = as_plain_array(codes, "codes")
    if array.dtype.type in (np.int8, np.uint8):
        least = -(1 << (width - 1)) if array.dtype.type is np.int8 else 0
        greatest = least + (1 << width) - 1
        if array.size and not least <= array.min() <= array.max() <= greatest:
            raise InvalidArgumentError(
                f"codes: expected {least} to {greatest} for {array.dtype}, got {array.min()} to {array.max()}"
            )
    elif all(array.dtype.type is not each.dtype.type for each in CODE_FORMATS if each.width == width):
        raise TypeError(f"codes: expected an array of {', '.join(_NAMES[width])}, int8 or uint8, got {array.dtype}")
    per_byte = 8 // width
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    packed = np.empty(-(-flat.size // per_byte), np.uint8)
    whole = flat.size // per_byte
    if whole:
        for_ranges(whole, GRAIN, lambda a, b: dispatch.kernels.pack_codes(flat, packed, width, a, b))
    if whole < packed.size:
        last = np.zeros(per_byte, np.uint8)
        last[: flat.size - whole * per_byte] = flat[whole * per_byte :]
        dispatch.kernels.pack_codes(last, packed[whole:], width, 0, 1)
    return packed


def _unpacked(
    packed: npt.ArrayLike, shape: int | tuple[int, ...] | list[int], dtype: npt.DTypeLike, width: int
) -> AnyArray:
    code_format = as_code_format(dtype, "dtype", _NAMES[width])
    sizes = tuple(as_count(n, "shape", 0) for n in (shape if isinstance(shape, tuple | list) else (shape,)))
    if isinstance(packed, bytes | bytearray):
        packed = np.frombuffer(packed, np.uint8)
    array = as_plain_array(packed, "packed")
    if array.dtype.type is not np.uint8:
        raise TypeError(f"packed: expected bytes or an array of uint8, got {array.dtype}")
    n = math.prod(sizes)
    per_byte = 8 // width
    expected = -(-n // per_byte)
    if array.shape != (expected,):
        raise InvalidArgumentError(
            f"packed: expected shape ({expected},) for {n} codes of {width} bits, got {array.shape}"
        )
    array = np.ascontiguousarray(array)
    codes = np.empty(expected * per_byte, np.uint8)
    if expected:
        for_ranges(expected, GRAIN, lambda a, b: dispatch.kernels.unpack_codes(array, codes, width, a, b))
    try:
        return codes[:n].view(code_format.dtype).reshape(sizes)
    except (ValueError, OverflowError) as error:  # no array can have this shape
        raise InvalidArgumentError(f"shape: {error}, got {sizes}") from None
