"""Turn weights into codes and back, so that the weights of an output keep their sum."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.formats import CodeFormat, as_code_format
from .._codes.affine import dequantize, quantize
from .ranges import whole_blocks
from .rewriting import Scale


def weight_codes(weight: npt.NDArray[Any], scale: Scale, channels: int | None) -> npt.NDArray[Any]:
    """Return the codes of a weight; integer codes are rounded up or down so that sums are kept.

    The error of an output is the sum of its weights' errors times their inputs.  Inputs behind a rectifier, or of an
    even background, are much alike, so that the sum of the weights' errors counts.  With weights rounded to nearest,
    this sum is a random walk, which is many steps long if there are many weights.

    So if the sum is wrong by n steps, the n weights nearest to a tie are rounded the other way.  Then the sum is wrong
    by at most half a step, and the squared error hardly grows.

    Parameters
    ----------
    weight : ndarray of float32 or float16
    scale : Scale
    channels : int or None
        The axis of the outputs; without one, weights are rounded to nearest.  If there are blocks, each block keeps its
        sum.
    """
    code_format = as_code_format(scale.dtype, "dtype")
    if code_format.parameters is not None:
        return _nearest(weight, scale, code_format)
    nearest = _nearest(weight, scale, code_format.symmetric())  # many runtimes need symmetric codes
    if channels is None:
        return nearest
    most = code_format.greatest
    exact = np.clip(weight.astype(np.float64) / _scale_of_each(scale, weight.shape), -most, most)
    integers = nearest.astype(np.int32)
    codes, rest = (_rows(array, scale, channels) for array in (integers, exact - integers))
    missing = np.rint(rest.sum(axis=1, keepdims=True))
    step = np.sign(missing).astype(np.int32)
    # Exact values stay: clipped weights, and the zeros that fill up a block.
    free = rest * step > 0.0
    order = np.argsort(np.where(free, -step * rest, np.inf), axis=1, kind="stable")
    moved = np.zeros(codes.shape, bool)
    np.put_along_axis(moved, order, np.arange(codes.shape[1]) < np.abs(missing), axis=1)
    return _from_rows(codes + step * (moved & free), weight.shape, scale, channels).astype(nearest.dtype)


def weight_values(codes: npt.NDArray[Any], scale: Scale) -> npt.NDArray[Any]:
    """Return the values that the codes of a weight stand for."""
    if scale.block_size is None:
        values: npt.NDArray[Any] = dequantize(codes, scale.scale, scale.zero_point, axis=scale.axis)
        return values
    values = codes.astype(scale.scale.dtype)
    values *= _scale_of_each(scale, codes.shape)
    return values


def _nearest(weight: npt.NDArray[Any], scale: Scale, code_format: CodeFormat) -> npt.NDArray[Any]:
    """Return the nearest codes; a last block may be shorter than the others."""
    axis, block_size = scale.axis, scale.block_size
    missing = 0 if axis is None or block_size is None else -weight.shape[axis] % block_size
    filled = np.pad(weight, [(0, missing * (a == axis)) for a in range(weight.ndim)]) if missing else weight
    codes: npt.NDArray[Any] = quantize(
        filled, scale.scale, scale.zero_point, dtype=code_format, axis=axis, block_size=block_size
    )
    return codes[tuple(map(slice, weight.shape))]


def _scale_of_each(scale: Scale, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return the scale of each element, or an array that broadcasts to that."""
    if scale.axis is None:
        return scale.scale
    if scale.block_size is None:
        return scale.scale.reshape([-1 if axis == scale.axis else 1 for axis in range(len(shape))])
    return np.repeat(scale.scale, scale.block_size, axis=scale.axis)[tuple(map(slice, shape))]


def _rows(array: npt.NDArray[Any], scale: Scale, channels: int) -> npt.NDArray[Any]:
    """Return as rows the elements whose sum is kept: an output's, or a block's, filled up with zeros."""
    if scale.block_size is None or scale.axis is None:
        moved = np.moveaxis(array, channels, 0)
        return moved.reshape(moved.shape[0], -1)
    return whole_blocks(array, scale.axis, scale.block_size).reshape(-1, scale.block_size)


def _from_rows(rows: npt.NDArray[Any], shape: tuple[int, ...], scale: Scale, channels: int) -> npt.NDArray[Any]:
    """Return the array of this shape that has these rows."""
    if scale.block_size is None or scale.axis is None:
        others = [n for axis, n in enumerate(shape) if axis != channels]
        return np.moveaxis(rows.reshape(shape[channels], *others), 0, channels)
    others = [n for axis, n in enumerate(shape) if axis != scale.axis]
    filled = rows.reshape(*others, -1)
    return np.moveaxis(filled[..., : shape[scale.axis]], -1, scale.axis)
