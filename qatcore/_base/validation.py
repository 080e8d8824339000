"""Check arguments, and turn what users pass into what kernels take."""

from __future__ import annotations

import contextlib
import enum
import math
import numbers
import operator
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar, overload

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .errors import InvalidArgumentError
from .formats import BFLOAT16, MINIFLOATS, SUB_BYTE_INTEGERS
from .types import AnyArray, Floats

INT32 = np.iinfo(np.int32)

_Member = TypeVar("_Member", bound=enum.Enum)


def as_plain_array(x: object, name: str) -> npt.NDArray[Any]:
    """Return `x`, which may be a PyTorch tensor, as an array of any dtype and layout."""
    if type(x) is np.ndarray:
        return x
    x = _without_tensors(x, name)
    if isinstance(x, np.ma.MaskedArray) or (
        isinstance(x, (list, tuple)) and any(isinstance(item, np.ma.MaskedArray) for item in x)
    ):
        raise TypeError(
            f"{name}: expected a plain array, got a masked one, whose mask would be lost; pass .data or .compressed()"
        )
    try:
        return np.asarray(x)
    except ValueError as error:  # a ragged list
        raise InvalidArgumentError(f"{name}: expected an array: {error}") from None


def _without_tensors(x: Any, name: str) -> Any:
    """Return `x` with arrays in place of PyTorch tensors, also inside lists and tuples."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # whoever has a tensor has imported torch
    if tensor is None:
        return x
    if isinstance(x, tensor):
        return _array_of_tensor(x, name)
    if isinstance(x, (list, tuple)) and any(isinstance(item, (tensor, list, tuple)) for item in x):
        return [_without_tensors(item, name) for item in x]
    return x


def _array_of_tensor(tensor: Any, name: str) -> npt.NDArray[Any]:
    """Return a tensor's values as an array, a view if possible, without what autograd has recorded."""
    if tensor.device.type != "cpu":
        raise TypeError(f"{name}: expected a tensor on the CPU, got one on {tensor.device}; pass it with .cpu()")
    kind = str(tensor.dtype).removeprefix("torch.")
    try:
        plain = tensor.detach().resolve_neg()
        if kind != "bfloat16" and not kind.startswith("float8_"):
            return np.asarray(plain.numpy())
        # In NumPy, these types come from ml_dtypes, which PyTorch does not know.  So the bits are passed as integers.
        bits = sys.modules["torch"].int16 if kind == "bfloat16" else sys.modules["torch"].uint8
        return np.asarray(plain.view(bits).numpy()).view(getattr(ml_dtypes, kind))
    except (AttributeError, RuntimeError, TypeError) as error:  # NumPy lacks its type or layout, or it has no values
        reason = str(error).partition("\n")[0]
        raise TypeError(f"{name}: expected a dense tensor of real numbers, got one of {kind}: {reason}") from None


def as_array(x: object, name: str) -> npt.NDArray[Any]:
    """Return `x` as an array of real numbers of a type that this package reads, in any layout."""
    array = as_plain_array(x, name)
    kernel_dtype(array.dtype, name)
    return array


def kernel_dtype(dtype: np.dtype[Any], name: str) -> np.dtype[Any]:
    """Return the type as which kernels read an array of `dtype`: float32 or float64.

    It holds all values of `dtype` exactly, except integers beyond 2**53, which round to float64.
    """
    if dtype.type in (np.float32, np.float16, BFLOAT16.type):
        return np.dtype(np.float32)
    if dtype.type is np.float64 or dtype.kind in "biu":
        return np.dtype(np.float64)
    raise TypeError(f"{name}: expected real numbers (float16, bfloat16, float32, float64 or integers), got {dtype}")


def result_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the type of a result for input of `dtype`: `dtype` itself if it is floating, float64 if it is integer."""
    return np.dtype(np.float64) if dtype.kind in "biu" else dtype.newbyteorder("=")


def as_floats(x: object, name: str) -> Floats:
    """Return `x` as a C-contiguous, aligned float32 or float64 array of the same shape."""
    array = as_array(x, name)
    return _contiguous(array, kernel_dtype(array.dtype, name))


def as_float64(x: object, name: str) -> npt.NDArray[np.float64]:
    """Return `x` as a C-contiguous, aligned float64 array of the same shape."""
    return _contiguous(as_array(x, name), np.dtype(np.float64))


def _contiguous(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    if array.dtype == dtype and array.flags.c_contiguous and array.flags.aligned:
        return array
    with np.errstate(invalid="ignore"):  # converting a signalling NaN is no error
        return array.astype(dtype, order="C")


SINGLE_OR_DOUBLE: tuple[type, ...] = (np.float32, np.float64)


def float_dtype(dtype: Any, out: Any, allowed: tuple[type, ...] = SINGLE_OR_DOUBLE) -> np.dtype[Any]:
    """Return the type of a result, if it is allowed: the type of `out`, or `dtype` if there is no `out`."""
    given = isinstance(out, np.ndarray)
    if dtype is None:  # NumPy would read it as float64
        raise InvalidArgumentError(f"dtype: expected {_one_of(allowed)}, got None")
    try:
        kind: np.dtype[Any] = np.dtype(out.dtype if given else dtype).newbyteorder("=")
    except TypeError:
        raise TypeError(f"dtype: expected {_one_of(allowed)}, got {dtype!r}") from None
    if kind.type not in allowed:
        raise InvalidArgumentError(f"{'out' if given else 'dtype'}: expected {_one_of(allowed)}, got {kind}")
    return kind


def _one_of(types: tuple[type, ...]) -> str:
    *names, last = (str(np.dtype(kind)) for kind in types)
    return f"{', '.join(names)} or {last}"


@contextlib.contextmanager
def writable(
    out: Any, shape: tuple[int, ...], dtype: np.dtype[Any], inputs: tuple[npt.NDArray[Any], ...]
) -> Iterator[npt.NDArray[Any]]:
    """Yield a C-contiguous array to write a result into; the result is in `out` afterwards.

    If `out` is None, the array is new.  Otherwise it is `out` itself, or a temporary array if `out` has another layout
    or overlaps an input.  An input that lies element for element where `out` does is no overlap.
    """
    if out is None:
        yield np.empty(shape, dtype)
        return
    if not isinstance(out, np.ndarray):
        raise TypeError(f"out: expected an ndarray, got {type(out).__name__}")
    if isinstance(out, np.ma.MaskedArray):
        raise TypeError("out: expected a plain array, got a masked one, whose mask would be wrong; pass .data")
    if out.shape != shape:
        raise InvalidArgumentError(f"out: expected shape {shape}, got {out.shape}")
    if out.dtype.newbyteorder("=") != dtype:
        raise InvalidArgumentError(f"out: expected {dtype}, got {out.dtype}")
    if not out.flags.writeable:
        raise InvalidArgumentError("out: expected a writable array, got a read-only one")
    direct = out.flags.c_contiguous and out.flags.aligned and out.dtype.isnative
    if direct and not any(_overlaps(out, array) for array in inputs):
        yield out.view(np.ndarray)  # np.matrix would stay two-dimensional
        return
    result = np.empty(shape, dtype)
    yield result
    out[...] = result


def _overlaps(out: npt.NDArray[Any], array: npt.NDArray[Any]) -> bool:
    if not np.may_share_memory(out, array):
        return False
    return not (out.ctypes.data == array.ctypes.data and out.strides == array.strides and out.dtype == array.dtype)


@overload
def elementwise(
    x: object, name: str, kernel: Callable[[Floats, Floats], None], *, float64: Literal[True]
) -> float | np.float64 | npt.NDArray[np.float64]: ...
@overload
def elementwise(
    x: object, name: str, kernel: Callable[[Floats, Floats], None], *, float64: bool = ...
) -> float | np.generic | AnyArray: ...
def elementwise(
    x: object, name: str, kernel: Callable[[Floats, Floats], None], *, float64: bool = False
) -> float | np.generic | AnyArray:
    """Apply ``kernel(flat input, flat output)`` to a scalar or an array, and return a result of the same kind.

    A Python number gives a float, a NumPy scalar gives a NumPy scalar, and anything else gives an array of the same
    shape.  The result has the input's floating type.  For integers, or if `float64` is true, it has float64.
    """
    array = as_array(x, name)
    dtype = np.dtype(np.float64) if float64 else result_dtype(array.dtype)
    flat = (as_float64(array, name) if float64 else as_floats(array, name)).reshape(-1)
    out = np.empty_like(flat)
    if flat.size:
        kernel(flat, out)
    with np.errstate(all="ignore"):  # NaN is expected here, and values may overflow to infinity in float16
        result = out.reshape(array.shape).astype(dtype, copy=False)
    if isinstance(x, numbers.Number) and not isinstance(x, np.generic):
        return float(result)
    return result[()] if isinstance(x, np.generic) else result


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


def _single(value: object, name: str) -> object:
    """Return the element of an array or tensor without dimensions, and anything else as it is."""
    value = _without_tensors(value, name)
    return value[()] if isinstance(value, np.ndarray) and value.ndim == 0 else value


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


def as_share(value: object, name: str) -> float:
    """Return a share, above 0 and at most 1, as a float."""
    share = as_number(value, name)
    if not 0.0 < share <= 1.0:
        raise InvalidArgumentError(f"{name}: expected a number above 0, at most 1, got {share}")
    return share


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
    return _contiguous(array, np.dtype(np.int32))


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


def _kind(value: object) -> str:
    return f"an array of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
