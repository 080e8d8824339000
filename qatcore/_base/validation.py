"""Check arguments: numbers, flags, members, axes, masks, scales and zero points."""

from __future__ import annotations

import enum
import math
import numbers
import operator
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from .arrays import as_array, as_float64, as_plain_array, contiguous, kernel_dtype, without_tensors
from .errors import InvalidArgumentError
from .formats import MINIFLOATS, SUB_BYTE_INTEGERS

INT32 = np.iinfo(np.int32)
MOST_AXES = 64  # NumPy's arrays have no more

_Member = TypeVar("_Member", bound=enum.Enum)


def as_member(kind: type[_Member], value: object, name: str) -> _Member:
    """Return `value` if it is a member of the enumeration, or the member whose value it is."""
    if isinstance(value, kind):
        return value
    expected = ", ".join(f"{kind.__name__}.{member.name}" for member in kind)
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {expected}, got {type(value).__name__}")
    try:
        return kind(value)
    except ValueError:
        raise InvalidArgumentError(f"{name}: expected one of {expected}, got {value!r}") from None


def as_flag(value: object, name: str) -> bool:
    """Return `value` as a bool; anything but a bool is a `TypeError`."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")


def as_number(value: object, name: str) -> float:
    """Return a real scalar as a float."""
    value = _single(value, name)
    if isinstance(value, np.generic):
        kernel_dtype(value.dtype, name)
    elif not isinstance(value, numbers.Real):
        raise TypeError(f"{name}: expected a real number, got {_kind(value)}")
    try:
        return float(value)
    except OverflowError:
        raise InvalidArgumentError(f"{name}: expected a number that float64 can hold, got a larger one") from None


def as_scale(value: object, name: str = "scale") -> float:
    """Return a scale as a float; NaN, infinite and negative scales are invalid."""
    scale = as_number(value, name)
    if not (0.0 <= scale < math.inf):
        raise InvalidArgumentError(f"{name}: expected a finite number that is not negative, got {scale}")
    return scale


def as_tensor_scale(value: Any) -> np.float32:
    """Return NVFP4's scale of a whole tensor as a float32, which must be positive and finite."""
    with np.errstate(all="ignore"):
        scale = np.float32(as_number(value, "tensor_scale"))
    if not 0.0 < scale < math.inf:
        raise InvalidArgumentError(f"tensor_scale: expected a positive finite number, also in float32, got {value}")
    return scale


def as_share(value: object, name: str) -> float:
    """Return a share, above 0 and at most 1, as a float."""
    share = as_number(value, name)
    if not 0.0 < share <= 1.0:
        raise InvalidArgumentError(f"{name}: expected a number above 0, at most 1, got {share}")
    return share


def as_percentile(value: object) -> float:
    """Return a percentile as a float, above 0 and at most 100."""
    percentile = as_number(value, "percentile")
    if not 0.0 < percentile <= 100.0:
        raise InvalidArgumentError(f"percentile: expected more than 0 and at most 100, got {value}")
    return percentile


def as_grad_factor(value: object) -> float:
    """Return `grad_factor` as a float, which must be finite."""
    factor = as_number(value, "grad_factor")
    if not math.isfinite(factor):
        raise InvalidArgumentError(f"grad_factor: expected a finite number, got {factor}")
    return factor


def as_zero_point(value: object, name: str = "zero_point") -> int:
    """Return a zero point as an int; one outside int32 is invalid."""
    value = _single(value, name)
    try:
        zero_point = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {_kind(value)}") from None
    if not INT32.min <= zero_point <= INT32.max:
        raise InvalidArgumentError(f"{name}: expected an int32, {INT32.min} to {INT32.max}, got {zero_point}")
    return zero_point


def as_count(value: object, name: str, least: int = 1) -> int:
    """Return a number of things as an int; less than `least` is invalid."""
    try:
        count = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {_kind(value)}") from None
    if count < least:
        raise InvalidArgumentError(f"{name}: expected at least {least}, got {count}")
    return count


def as_axis(axis: object, ndim: int) -> int:
    """Return an axis of an array with `ndim` dimensions as a number that is not negative."""
    try:
        position = operator.index(axis)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"axis: expected an integer or None, got {type(axis).__name__}") from None
    if not -ndim <= position < ndim:
        raise InvalidArgumentError(f"axis: expected an axis of an array with {ndim} dimensions, got {position}")
    return position % ndim


def as_axes(axis: object) -> tuple[int, ...]:
    """Return the axes of a collector, which may count from the end, as a tuple."""
    axes = as_index(axis, "axis")
    if not axes or len(set(axes)) < len(axes) or not all(abs(a) <= MOST_AXES for a in axes):
        raise InvalidArgumentError(
            f"axis: expected one axis, or several different ones, from -{MOST_AXES} to {MOST_AXES}, got {axis}"
        )
    return axes


def as_index(value: object, name: str = "index") -> tuple[int, ...]:
    """Return an integer or several as a tuple of integers."""
    items = value if isinstance(value, (tuple, list)) else (value,)
    try:
        if any(isinstance(item, (bool, np.bool_)) for item in items):
            raise TypeError
        return tuple(operator.index(item) for item in items)
    except TypeError:
        raise TypeError(f"{name}: expected an integer or a tuple of them, got {value!r}") from None


def as_blocks(block_size: object, shape: tuple[int, ...], position: int | None) -> tuple[int, ...]:
    """Return the shape of the scales of an array's blocks."""
    size = as_count(block_size, "block_size")
    if position is None:
        raise InvalidArgumentError(
            "axis: expected the axis along which blocks lie, got None; pass axis with block_size"
        )
    if shape[position] % size:
        raise InvalidArgumentError(f"block_size: expected a divisor of the axis's length {shape[position]}, got {size}")
    return *shape[:position], shape[position] // size, *shape[position + 1 :]


def as_mask(mask: object, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    """Return a mask of bools, broadcast to `shape`."""
    array = as_plain_array(mask, "mask")
    if array.dtype != np.bool_:
        raise TypeError(f"mask: expected an array of bool, got {array.dtype}")
    try:
        return np.broadcast_to(array, shape)
    except ValueError:
        raise InvalidArgumentError(f"mask: expected a shape that broadcasts to {shape}, got {array.shape}") from None


def as_scales(value: object, shape: tuple[int, ...], name: str) -> npt.NDArray[np.float64]:
    """Return one scale as float64 of shape (), or an array of scales as float64 of the given shape."""
    if isinstance(value, numbers.Number):
        return np.array(as_scale(value, name))
    if isinstance(value, (list, tuple)) and all(isinstance(item, numbers.Real) for item in value):
        value = np.array([as_scale(item, name) for item in value])  # also integers too large for NumPy
    array = as_float64(value, name)
    _check_shape(array, shape, name)
    right = (array >= 0.0) & (array < np.inf)
    if not right.all():
        raise InvalidArgumentError(
            f"{name}: expected finite numbers that are not negative, got {first_wrong(array, right)}"
        )
    return array


def as_positive_scales(
    scale: Any, expected: tuple[int, ...], computed: np.dtype[Any], *, scalar: bool
) -> npt.NDArray[Any]:
    """Return a copy of the scales in the type computed in, where they must be positive and finite.

    They must have the expected shape; with `scalar`, a scalar passes too.
    """
    array = as_array(scale, "scale")
    if array.shape != expected and not (scalar and array.ndim == 0):
        wanted = f"{'a scalar or ' if scalar else ''}shape {expected}"
        raise InvalidArgumentError(f"scale: expected {wanted}, got {_shown_shape(array)}")
    with np.errstate(all="ignore"):
        scales = np.array(array, computed)  # a copy
    right = (scales > 0) & (scales < np.inf)
    if not right.all():
        raise InvalidArgumentError(
            f"scale: expected positive finite numbers, also in {computed}, got {first_wrong(array, right)}"
        )
    return scales


def as_block_scales(
    scale: Any, dtype: np.dtype[Any], shape: tuple[int, ...], axis: int
) -> tuple[int, npt.NDArray[Any]]:
    """Return the position of an axis and the scales of its blocks."""
    position = as_axis(axis, len(shape))
    array = as_plain_array(scale, "scale")
    if array.dtype.type is not dtype.type:
        raise TypeError(f"scale: expected an array of {dtype}, got {array.dtype}")
    n = array.shape[position] if array.ndim == len(shape) else 0
    fits = array.shape == (*shape[:position], n, *shape[position + 1 :])
    if not fits or (shape[position] % n if n else shape[position]):
        raise InvalidArgumentError(
            f"scale: expected the shape of codes, {shape}, but a divisor of {shape[position]} along axis"
            f" {position}, got {array.shape}"
        )
    return position, np.ascontiguousarray(array)


def as_zero_points(value: object, shape: tuple[int, ...], name: str) -> npt.NDArray[np.int32]:
    """Return one zero point as int32 of shape (), or an array of zero points as int32 of the given shape."""
    if isinstance(value, numbers.Number):
        return np.array(as_zero_point(value, name), np.int32)
    if isinstance(value, (list, tuple)) and all(isinstance(item, int) for item in value):
        value = np.array([as_zero_point(item, name) for item in value], np.int32)  # also integers too large for NumPy
    array = as_plain_array(value, name)
    if array.dtype.type in SUB_BYTE_INTEGERS:
        array = array.astype(np.int32)  # NumPy does not count these types as integers
    elif array.dtype.type in MINIFLOATS and not array.astype(np.float32).any():
        array = np.zeros(array.shape, np.int32)  # in ONNX, zero points have the type of the codes
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name}: expected integers, got {array.dtype}")
    _check_shape(array, shape, name)
    right = (array >= INT32.min) & (array <= INT32.max)
    if not right.all():
        raise InvalidArgumentError(
            f"{name}: expected int32 values, {INT32.min} to {INT32.max}, got {first_wrong(array, right)}"
        )
    return contiguous(array, np.dtype(np.int32))


def as_spec_parameter(value: Any, name: str, kinds: str, dtype: np.dtype[Any], dimensions: int) -> np.ndarray[Any, Any]:
    """Return a specification's scale or zero point as a new, read-only array."""
    try:
        array = as_plain_array(value, name)
    except InvalidArgumentError:
        raise InvalidArgumentError(f"{name}: expected numbers in rows of equal length, got {value!r}") from None
    if array.ndim != dimensions:
        expected = "a number" if dimensions == 0 else f"an array of {dimensions} dimensions, one for each axis"
        raise InvalidArgumentError(f"{name}: expected {expected}, got {value!r}")
    if array.size and array.dtype.kind not in kinds:
        if array.dtype.kind == "O" and all(type(item) is int for item in array.reshape(-1)):  # too large for any dtype
            raise InvalidArgumentError(f"{name}: expected {dtype} values, got {value!r}")
        raise TypeError(f"{name}: expected {'integers' if kinds == 'iu' else 'real numbers'}, got {value!r}")
    if dtype.kind == "i" and array.size and not (array.min() >= -(2**31) and array.max() < 2**31):
        raise InvalidArgumentError(f"{name}: expected int32 values, got {value!r}")
    result = array.astype(dtype)
    result.setflags(write=False)
    return result


def _single(value: object, name: str) -> object:
    """Return the element of an array or tensor without dimensions, and anything else as it is."""
    value = without_tensors(value, name)
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


def first_wrong(array: npt.NDArray[Any], right: npt.NDArray[np.bool_]) -> str:
    """Return the first wrong number of an array, and its index, as text for a message."""
    place = np.unravel_index(int(np.argmin(right)), right.shape)
    if not place:
        return str(array[()])
    return f"{array[place]} at index {place[0] if len(place) == 1 else tuple(map(int, place))}"


def _check_shape(array: npt.NDArray[Any], shape: tuple[int, ...], name: str) -> None:
    if array.ndim and array.shape != shape:
        expected = f"a scalar or shape {shape}" if shape else "a scalar"
        raise InvalidArgumentError(f"{name}: expected {expected}, got shape {array.shape}")


def _shown_shape(array: npt.NDArray[Any]) -> str:
    return f"shape {array.shape}" if array.ndim else "a scalar"


def _kind(value: object) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
