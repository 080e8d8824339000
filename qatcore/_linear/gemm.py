"""Exact integer matrix products, and linear layers on codes."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypedDict, Unpack, overload

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.arrays import as_float64, as_plain_array, float_dtype, writable
from .._base.errors import InvalidArgumentError
from .._base.formats import INTEGERS, QuantBits
from .._base.threads import for_ranges, get_num_threads
from .._base.types import AnyArray, ArrayT, DTypeOf, Floats, IntLike, ScalarT
from .._base.validation import as_scales, as_zero_point, as_zero_points
from .._codes.reference_rounding import encode

_PANEL = 16  # columns of the packed layout
_SEGMENT = 64  # rows

#: Multiply-adds that are worth a thread of their own: at least 0.1 ms of work for a vector unit.
_GRAIN = 1 << 26
#: Threads split rows and columns at multiples of these, so that register tiles stay whole.
_ROWS, _COLUMNS = 32, 64

_EXACT_FLOAT = 2**53  # float64 holds every integer up to this one
_EXACT_DEPTH = 1 << 16  # the sum of so many products fits int32


class PackedInt8Matrix:
    """An int8 matrix that is packed once, to be the right operand of many products.

    Pack weights when a model is loaded; then each product reads them at the speed of memory.  All CPU levels use the
    same layout, so a pickled matrix works on another machine.  A packed matrix never changes, and many threads may
    use it.

    Parameters
    ----------
    b : array_like of int8, shape (k, n)
        In any memory layout.  Pass weights of shape (out, in) transposed; transposing copies nothing.

    Raises
    ------
    InvalidArgumentError
        If `b` is not a matrix.
    TypeError
        If `b` is not int8.

    Notes
    -----
    The layout is panels of 16 columns.  A panel takes four rows at a time, and stores the four bytes of each of its
    columns together.  The bytes are offset by 128 to be unsigned, as ``vpdpbusd`` and AMX's tiles take them.  The
    size in bytes is k, rounded up to a multiple of 64, times n, rounded up to a multiple of 16.

    Examples
    --------
    >>> weights = PackedInt8Matrix(np.array([[1, 2], [3, 4], [5, 6]], np.int8))
    >>> weights
    PackedInt8Matrix(shape=(3, 2))
    >>> int8_matmul(np.array([[1, 0, -1]], np.int8), weights)
    array([[-4, -4]])
    """

    def __init__(self, b: npt.ArrayLike) -> None:
        array = _as_int8_matrix(b, "b")
        self._shape: tuple[int, int] = array.shape
        self._panels = _packed(array)
        # Multiplying by a row of ones sums the columns.
        self._column_sums = _products(np.ones((1, array.shape[0]), np.int8), self._panels, array.shape[1])[0]

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        panels = _aligned_empty(self._panels.shape, np.uint8)  # pickles do not keep the alignment
        panels[...] = self._panels
        self._panels = panels

    def __repr__(self) -> str:
        return f"PackedInt8Matrix(shape={self._shape})"

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's shape, (k, n)."""
        return self._shape

    @property
    def column_sums(self) -> npt.NDArray[np.int64]:
        """The sums of the columns, int64 of shape (n,), which products with zero points need."""
        sums: npt.NDArray[np.int64] = self._column_sums.copy()
        return sums


#: An int8 matrix, packed or not.
Int8Matrix: TypeAlias = npt.ArrayLike | PackedInt8Matrix


def int8_matmul(a: npt.ArrayLike, b: Int8Matrix) -> npt.NDArray[np.int64]:
    """Return the matrix product of int8 matrices, exact for every inner dimension.

    Parameters
    ----------
    a : array_like of int8, shape (m, k)
    b : array_like of int8 or PackedInt8Matrix, shape (k, n)
        An array is packed for this product only.

    Returns
    -------
    ndarray of int64, shape (m, n)

    Raises
    ------
    InvalidArgumentError
        If an operand is not a matrix, or the inner dimensions differ.
    TypeError
        If an operand is not int8.

    Examples
    --------
    >>> int8_matmul(np.array([[100, -128]], np.int8), np.array([[100], [-128]], np.int8))
    array([[26384]])
    """
    left = _as_int8_matrix(a, "a")
    if isinstance(b, PackedInt8Matrix):
        _check_depth(left, b.shape)
        return _products(left, b._panels, b.shape[1])
    right = _as_int8_matrix(b, "b")
    _check_depth(left, right.shape)
    return _products(left, _packed(right), right.shape[1])


class _ZeroPoints(TypedDict, total=False):
    """Parameters that all overloads share; no result's type depends on them."""

    a_zero_point: IntLike
    b_zero_point: npt.ArrayLike


@overload
def int8_linear(
    a: npt.ArrayLike,
    b: Int8Matrix,
    scale: npt.ArrayLike,
    bias: npt.ArrayLike | None = ...,
    *,
    dtype: npt.DTypeLike = ...,
    out: ArrayT,
    **zero_points: Unpack[_ZeroPoints],
) -> ArrayT: ...
@overload
def int8_linear(
    a: npt.ArrayLike,
    b: Int8Matrix,
    scale: npt.ArrayLike,
    bias: npt.ArrayLike | None = ...,
    *,
    dtype: Literal["float32"] = ...,
    out: None = ...,
    **zero_points: Unpack[_ZeroPoints],
) -> npt.NDArray[np.float32]: ...
@overload
def int8_linear(
    a: npt.ArrayLike,
    b: Int8Matrix,
    scale: npt.ArrayLike,
    bias: npt.ArrayLike | None = ...,
    *,
    dtype: Literal["float64"],
    out: None = ...,
    **zero_points: Unpack[_ZeroPoints],
) -> npt.NDArray[np.float64]: ...
@overload
def int8_linear(
    a: npt.ArrayLike,
    b: Int8Matrix,
    scale: npt.ArrayLike,
    bias: npt.ArrayLike | None = ...,
    *,
    dtype: DTypeOf[ScalarT],
    out: None = ...,
    **zero_points: Unpack[_ZeroPoints],
) -> npt.NDArray[ScalarT]: ...
@overload
def int8_linear(
    a: npt.ArrayLike,
    b: Int8Matrix,
    scale: npt.ArrayLike,
    bias: npt.ArrayLike | None = ...,
    *,
    dtype: npt.DTypeLike,
    out: None = ...,
    **zero_points: Unpack[_ZeroPoints],
) -> AnyArray: ...
def int8_linear(
    a: npt.ArrayLike,
    b: Int8Matrix,
    scale: npt.ArrayLike,
    bias: npt.ArrayLike | None = None,
    *,
    a_zero_point: IntLike = 0,
    b_zero_point: npt.ArrayLike = 0,
    dtype: npt.DTypeLike = "float32",
    out: AnyArray | None = None,
) -> AnyArray:
    """Return ``((a - a_zero_point) @ (b - b_zero_point)) * scale + bias`` for int8 codes.

    The integers are exact.  The scale and the bias take one operation each, in float64, and the result is rounded
    once to `dtype`.  Unless the integers are too large for float64, no matrix of integers is written to memory.

    Parameters
    ----------
    a : array_like of int8, shape (m, k)
    b : array_like of int8 or PackedInt8Matrix, shape (k, n)
        An array is packed for this product only.
    scale : float or array_like, shape (n,)
        Usually the product of both operands' scales.  Finite and not negative.
    bias : float or array_like, shape (n,), optional
        0 if left out.
    a_zero_point : int
        Any int32.
    b_zero_point : int or array_like, shape (n,)
        Any int32.
    dtype : {"float32", "float64"}
        Type of the result.  If `out` is given, its type is used instead.
    out : ndarray, shape (m, n), optional
        Array into which the result is written.

    Returns
    -------
    ndarray, shape (m, n)
        `out` itself if it is given.

    Raises
    ------
    InvalidArgumentError
        If shapes do not fit, or a scale or zero point is outside its range.  If `dtype` or `out` is not as described.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    The formula is ``sum (a - za)(b - zb) = sum a b - zb sum a - za sum b + k za zb``, from gemmlowp's "Low-precision
    matrix multiplication".  If zero points or k are large, for example k above 65,536, float64 might not hold the
    integers.  Then they are computed in int64 first, or as Python's integers if int64 might be too small.

    Examples
    --------
    >>> a = np.array([[-128, 127]], np.int8)
    >>> int8_linear(a, np.array([[1], [2]], np.int8), 0.5, a_zero_point=-128)
    array([[255.]], dtype=float32)
    """
    left = _as_int8_matrix(a, "a")
    right = b if isinstance(b, PackedInt8Matrix) else PackedInt8Matrix(b)
    _check_depth(left, right.shape)
    n = right.shape[1]
    biases = as_float64(0.0 if bias is None else bias, "bias")
    if biases.shape not in ((), (n,)):
        raise InvalidArgumentError(f"bias: expected a scalar or shape ({n},), got shape {biases.shape}")
    scaling = Scaling(
        right,
        as_scales(scale, (n,), "scale"),
        biases,
        as_zero_point(a_zero_point, "a_zero_point"),
        as_zero_points(b_zero_point, (n,), "b_zero_point"),
    )
    kind = float_dtype(dtype, out)
    shape = (left.shape[0], n)
    if out is None:
        out = empty_result(shape, kind)
    with writable(out, shape, kind, (left, right._panels)) as result:
        scaling.apply(np.ascontiguousarray(left), result)
    return out


@dataclass(frozen=True)
class Encoding:
    """How floating-point rows become codes, with the reference's rounding."""

    scale: float
    zero_point: int
    bits: QuantBits


class Scaling:
    """A packed matrix, with the scale, bias and zero points that turn its integer products into values.

    Parameters
    ----------
    b : PackedInt8Matrix
    scale : ndarray of float64, shape () or (n,)
    bias : ndarray of float64, shape () or (n,)
    a_zero_point : int
    b_zero_point : ndarray of int32, shape () or (n,)
    """

    def __init__(
        self,
        b: PackedInt8Matrix,
        scale: npt.NDArray[np.float64],
        bias: npt.NDArray[np.float64],
        a_zero_point: int,
        b_zero_point: npt.NDArray[np.int32],
    ) -> None:
        self._b = b
        self._scale, self._bias = scale, bias
        self._a_zero_point, self._b_zero_point = a_zero_point, b_zero_point
        self._row_terms = bool(b_zero_point.any())
        k, n = b.shape
        # No integer on the way exceeds this bound.  Codes are at most 128 in magnitude; 384 leaves a margin.
        greatest = int(np.abs(b_zero_point.astype(np.int64)).max(initial=0)) if self._row_terms else 0
        self._bound = k * (128 + abs(a_zero_point)) * (384 + greatest)
        self._columns: npt.NDArray[np.float64] | None = None
        if k <= _EXACT_DEPTH and self._bound < _EXACT_FLOAT:
            columns = _aligned_empty((4, n), np.float64)
            columns[0] = b_zero_point
            np.multiply(b._column_sums, float(a_zero_point), out=columns[1])
            if self._row_terms:
                columns[1] -= columns[0] * (k * a_zero_point)
            columns[2] = scale
            columns[3] = bias
            self._columns = columns

    def apply(self, rows: Floats | npt.NDArray[np.int8], out: Floats, encoding: Encoding | None = None) -> None:
        """Multiply C-contiguous rows by the matrix, and write the scaled products into `out`.

        Rows of int8 are codes.  Floating-point rows become codes by `encoding`, and each block of them is encoded,
        multiplied and scaled while it is in cache.
        """
        if not out.size:
            return
        columns, panels, row_terms = self._columns, self._b._panels, self._row_terms
        if columns is None or not self._b.shape[0]:
            codes = rows
            if encoding is not None:
                zero_point = np.array(encoding.zero_point, np.int32)
                codes = encode(rows, np.array(encoding.scale), zero_point, encoding.bits)  # type: ignore[arg-type]
            with np.errstate(all="ignore"):
                out[...] = self._exact_totals(codes).astype(np.float64) * self._scale + self._bias
            return
        parameters = (1.0, 0.0, 0.0, 0.0)
        if encoding is not None:
            low, high = INTEGERS[encoding.bits].code_range(symmetric=False)
            parameters = (encoding.scale, float(encoding.zero_point), float(low), float(high))

        def task(rows_here: slice, first: int, stop: int) -> None:
            multiply = dispatch.gemm(out[rows_here].shape[0]).multiply_scaled
            multiply(rows[rows_here], panels, columns, row_terms, out[rows_here], *parameters, first, stop)

        _for_blocks(out.shape[0], out.shape[1], rows.shape[1], task)

    def _exact_totals(self, codes: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return sum (a - za)(b - zb) as int64, or as Python's integers if int64 might be too small."""
        k, n = self._b.shape
        products: npt.NDArray[Any] = _products(codes, self._b._panels, n)
        row_sums: npt.NDArray[Any] = codes.sum(axis=1, dtype=np.int64)[:, np.newaxis]
        column_sums: npt.NDArray[Any] = self._b._column_sums
        a_zero_point: Any = self._a_zero_point
        b_zero_point: npt.NDArray[Any] = self._b_zero_point.astype(np.int64)
        if self._bound >= 2**62:
            products, row_sums, column_sums, b_zero_point = (
                array.astype(object) for array in (products, row_sums, column_sums, b_zero_point)
            )
        return np.asarray(
            products - b_zero_point * row_sums - a_zero_point * column_sums + k * a_zero_point * b_zero_point
        )


def _products(left: npt.NDArray[np.int8], panels: npt.NDArray[np.uint8], n: int) -> npt.NDArray[np.int64]:
    m, k = left.shape
    if not k:
        return np.zeros((m, n), np.int64)
    out = empty_result((m, n), np.int64)
    if out.size:
        rows = np.ascontiguousarray(left)

        def task(rows_here: slice, first: int, stop: int) -> None:
            multiply = dispatch.gemm(out[rows_here].shape[0]).multiply
            multiply(rows[rows_here], panels, out[rows_here], first, stop)

        _for_blocks(m, n, k, task)
    return out


def _for_blocks(m: int, n: int, k: int, task: Callable[[slice, int, int], None]) -> None:
    """Call ``task(rows, first column, stop column)`` for blocks that together make up a result of shape (m, n)."""
    work = m * n * k
    if work < 2 * _GRAIN or get_num_threads() == 1:
        task(slice(None), 0, n)
        return
    # Split by rows, so that each row is encoded only once; by columns if there are few rows.
    by_rows = m >= min(n, 8 * _ROWS)
    size, length = (_ROWS, m) if by_rows else (_COLUMNS, n)
    units = -(-length // size)

    def unit_task(start: int, stop: int) -> None:
        begin, end = start * size, min(stop * size, length)
        if by_rows:
            task(slice(begin, end), 0, n)
        else:
            task(slice(None), begin, end)

    for_ranges(units, max(1, _GRAIN * units // work), unit_task)


def _packed(b: npt.NDArray[np.int8]) -> npt.NDArray[np.uint8]:
    """Return the panels of b, shape (k, n), as the notes of `PackedInt8Matrix` describe them."""
    k, n = b.shape
    panels = _aligned_empty((-(-n // _PANEL), -(-k // _SEGMENT), _PANEL * _SEGMENT), np.uint8)
    if panels.size:
        if not (b.flags.c_contiguous or b.flags.f_contiguous):
            b = np.ascontiguousarray(b)
        grain = max(1, (1 << 21) // (panels.shape[1] * panels.shape[2]))
        for_ranges(panels.shape[0], grain, lambda i, j: dispatch.kernels.pack_int8(b, panels, i, j))
    return panels


def _aligned_empty(shape: tuple[int, ...], dtype: Any) -> npt.NDArray[Any]:
    """Return an array that starts at a cache line, so that a vector or tile crosses a line only where a row does."""
    kind = np.dtype(dtype)
    size = math.prod(shape) * kind.itemsize
    memory = np.empty(size + 63, np.uint8)
    start = -memory.ctypes.data % 64
    array: npt.NDArray[Any] = memory[start : start + size].view(kind).reshape(shape)
    return array


def empty_result(shape: tuple[int, int], dtype: Any) -> npt.NDArray[Any]:
    """Return an array for a product; it is aligned if it is large enough to be worth the two microseconds."""
    return _aligned_empty(shape, dtype) if math.prod(shape) > 1 << 14 else np.empty(shape, dtype)


def _as_int8_matrix(x: Any, name: str) -> npt.NDArray[np.int8]:
    array = as_plain_array(x, name)
    if array.dtype != np.int8:
        raise TypeError(f"{name}: expected an array of int8, got {array.dtype}")
    if array.ndim != 2:
        raise InvalidArgumentError(f"{name}: expected a matrix, got shape {array.shape}")
    return array


def _check_depth(a: npt.NDArray[np.int8], shape: tuple[int, ...]) -> None:
    if a.shape[1] != shape[0]:
        raise InvalidArgumentError(f"b: expected {a.shape[1]} rows, as many as a has columns, got {shape[0]}")
