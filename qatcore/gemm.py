"""Exact integer matrix products."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from . import _dispatch
from ._arrays import as_plain_array
from ._threads import for_ranges
from .errors import InvalidArgumentError

#: Multiply-adds that are worth a thread.
_GRAIN = 1 << 23


def int8_matmul(a: Any, b: Any) -> npt.NDArray[np.int64]:
    """Return the matrix product of int8 matrices, exact for every inner dimension.

    Parameters
    ----------
    a : array_like of int8, shape (m, k)
    b : array_like of int8, shape (k, n)

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
    left, right = _as_int8_matrix(a, "a"), _as_int8_matrix(b, "b")
    if left.shape[1] != right.shape[0]:
        raise InvalidArgumentError(f"b: expected {left.shape[1]} rows, as many as a has columns, got {right.shape[0]}")
    return multiply_codes(left, widened(right.T))


def _as_int8_matrix(x: Any, name: str) -> npt.NDArray[np.int8]:
    array = as_plain_array(x, name)
    if array.dtype != np.int8:
        raise TypeError(f"{name}: expected an array of int8, got {array.dtype}")
    if array.ndim != 2:
        raise InvalidArgumentError(f"{name}: expected a matrix, got shape {array.shape}")
    return array


def widened(codes: npt.NDArray[np.int8]) -> npt.NDArray[np.int16]:
    """Return codes as the kernel takes them."""
    return np.ascontiguousarray(codes, np.int16)


def multiply_codes(codes: npt.NDArray[np.int8], rows: npt.NDArray[np.int16]) -> npt.NDArray[np.int64]:
    """Return ``codes @ rows.T`` for codes (m, k) and widened codes (n, k)."""
    left = widened(codes)
    m, n, k = left.shape[0], rows.shape[0], left.shape[1]
    out = np.zeros((m, n), np.int64)
    if out.size and k:
        if m >= n:
            grain = max(1, _GRAIN // (n * k))
            for_ranges(m, grain, lambda i, j: _dispatch.kernels.multiply_int16(left[i:j], rows, out[i:j]))
        else:
            grain = max(1, _GRAIN // (m * k))
            for_ranges(n, grain, lambda i, j: _dispatch.kernels.multiply_int16(left, rows[i:j], out[:, i:j]))
    return out
