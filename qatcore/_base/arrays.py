"""Turn what users pass into arrays that kernels take, and results into what users passed."""

from __future__ import annotations

import contextlib
import numbers
import sys
from collections.abc import Callable, Iterator
from typing import Any, Literal, overload

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .errors import InvalidArgumentError
from .formats import BFLOAT16
from .types import AnyArray, Floats


def as_plain_array(x: object, name: str) -> npt.NDArray[Any]:
    """Return `x`, which may be a PyTorch tensor, as an array of any dtype and layout."""
    if type(x) is np.ndarray:
        return x
    x = without_tensors(x, name)
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


def without_tensors(x: Any, name: str) -> Any:
    """Return `x` with arrays in place of PyTorch tensors, also inside lists and tuples."""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)  # whoever has a tensor has imported torch
    if tensor is None:
        return x
    if isinstance(x, tensor):
        return _array_of_tensor(x, name)
    if isinstance(x, (list, tuple)) and any(isinstance(item, (tensor, list, tuple)) for item in x):
        return [without_tensors(item, name) for item in x]
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
    return contiguous(array, kernel_dtype(array.dtype, name))


def as_float64(x: object, name: str) -> npt.NDArray[np.float64]:
    """Return `x` as a C-contiguous, aligned float64 array of the same shape."""
    return contiguous(as_array(x, name), np.dtype(np.float64))


def contiguous(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
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
