"""Choose the scales of weights, and round weights to codes that keep the sum of each output's weights."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.formats import QuantBits, as_code_format
from .._base.threads import for_ranges
from .._calibration.collector import CalibrationCollector
from .._calibration.thresholds import COARSE_FRACTIONS
from .._codes.affine import dequantize, quantize
from .metric import Noise
from .plan import WeightAxes
from .rewriting import Scale, as_stored

#: Formats of weights: the bits that scales are chosen for, and the type of codes.
WEIGHTS = {
    "int8": (QuantBits.INT8, "int8"),
    "int4": (QuantBits.INT4, "int4"),
    "fp8": (QuantBits.FP8, "float8_e4m3fn"),
}
#: The kernels read rows of a multiple of so many weights; zeros fill them up.  WEIGHT_LANES in weights.pxi agrees.
_LANES = 16
#: From so many weights on, their codes are kept in a temporary file.
_MANY = 1 << 22
#: So many weights at a time are copied into rows, which then stay in the cache of a core.
_PORTION = 1 << 18
#: Fractions for the coarse search for channels in int4, whose errors have more local minima: 32 in each of the last two
#: octaves.
_FINER_FRACTIONS = np.concatenate(
    [
        COARSE_FRACTIONS[(COARSE_FRACTIONS >= 2.0**-7) & (COARSE_FRACTIONS < 0.25)],
        np.arange(32.0, 64.0) / 128.0,
        np.arange(32.0, 65.0) / 64.0,
    ]
)


@dataclass(frozen=True, eq=False)
class Weight:
    """A weight in codes: its scale, its codes, the axis of its output channels, and the SQNR of the codes, in dB."""

    scale: Scale
    codes: npt.NDArray[Any]
    channels: int | None
    sqnr: float


def scaled(weight: Weight, gain: npt.NDArray[np.float64]) -> Scale:
    """Return the scales of a weight whose output channels are multiplied by gains; its codes stay as they are."""
    scale = weight.scale.scale
    if weight.channels is None or (gain == 1.0).all():
        return weight.scale
    shape = [1] * scale.ndim
    shape[weight.channels if scale.ndim > 1 else 0] = gain.size
    return replace(weight.scale, scale=as_stored(scale.astype(np.float64) * gain.reshape(shape), scale.dtype))


class _Rows:
    """How to take a weight apart into rows: the weights that share a scale, or whose codes keep their sum.

    Each index along an axis is a row.  With a block size, each block along the axis is one, and zeros fill up the last.
    """

    def __init__(self, shape: tuple[int, ...], axis: int, block_size: int | None = None) -> None:
        self._shape, self._axis, self._block_size = shape, axis, block_size
        lead = self._view(np.broadcast_to(np.uint8(0), shape)).shape
        self.count = lead[0]
        if block_size is None:
            self._size, self.shape = math.prod(lead[1:]), lead[:1]
        else:
            self._size, self.shape = block_size, (*lead[:-1], -(-lead[-1] // block_size))
        self._each = math.prod(self.shape[1:])
        self.are_blocks = block_size is not None

    def _view(self, array: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return the array with rows along its first axis, or with blocks along its last."""
        return np.moveaxis(array, self._axis, 0 if self._block_size is None else -1)

    def for_portions(self, task: Callable[[int, int], None]) -> None:
        """Call ``task(start, stop)`` for portions of the first axis, on several threads."""
        step = max(_PORTION * self.count // max(math.prod(self._shape), 1), 1)

        def work(start: int, stop: int) -> None:
            for first in range(start, stop, step):
                task(first, min(first + step, stop))

        for_ranges(self.count, max(step // 4, 1), work)

    def taken(self, array: npt.NDArray[Any], start: int, stop: int) -> npt.NDArray[np.float32]:
        """Return a portion of an array as rows, with zeros up to a multiple of `_LANES`."""
        part = self._view(array)[start:stop]
        rows = np.zeros((len(part) * self._each, -(-self._size // _LANES) * _LANES), np.float32)
        for place, piece in self._pieces(rows, part):
            place[...] = piece
        return rows

    def put(self, array: npt.NDArray[Any], start: int, stop: int, rows: npt.NDArray[Any]) -> None:
        """Write rows into a portion of an array."""
        for place, piece in self._pieces(rows, self._view(array)[start:stop]):
            piece[...] = place

    def _pieces(
        self, rows: npt.NDArray[Any], part: npt.NDArray[Any]
    ) -> Iterator[tuple[npt.NDArray[Any], npt.NDArray[Any]]]:
        """Yield pieces of rows, and the pieces of a portion that belong there, in equal shapes; all are views."""
        if self._block_size is None:
            yield rows[:, : self._size].reshape(part.shape), part
            return
        n, size = part.shape[-1], self._block_size
        whole = n // size
        blocks = rows.reshape(*part.shape[:-1], -(-n // size), rows.shape[1])
        yield blocks[..., :whole, :size], part[..., : whole * size].reshape(*part.shape[:-1], whole, size)
        if n % size:
            yield blocks[..., -1, : n % size], part[..., whole * size :]


def _room_for(shape: tuple[int, ...]) -> npt.NDArray[np.int8]:
    """Return an array for codes; if they are many, in a temporary file, whose pages the system can write out.

    Raises
    ------
    OSError
        If there is no room for the file.
    """
    size = math.prod(shape)
    if size < _MANY or not hasattr(os, "posix_fallocate"):
        return np.empty(shape, np.int8)
    with tempfile.TemporaryFile(prefix="qatcore-") as file:
        os.posix_fallocate(file.fileno(), 0, size)  # writing to a mapped file that has no room would end the process
        return np.frombuffer(mmap.mmap(file.fileno(), size), np.int8).reshape(shape)


def weight_scale(weight: npt.NDArray[Any], axes: WeightAxes | None, kind: str, group_size: int) -> Scale:
    """Return the scale of a weight, symmetric and with the least squared error.

    Without axes the whole weight has one scale.  Otherwise each output channel has one.  With int4, each group along
    the axis that is summed over has one, unless the group size is 0.

    A channel of zeros gets the smallest scale of the others.  Any scale can represent 0, but ONNX Runtime's products
    with 4-bit and 8-bit weights have errors in proportion to it.
    """
    bits, dtype = WEIGHTS[kind]
    axis = None if axes is None else axes.channels
    size = None
    if axes is not None and kind == "int4" and group_size and weight.shape[axes.summed] > 1:
        axis, size = axes.summed, min(group_size, weight.shape[axes.summed])
    if axis is None:
        scale = _scale_of_all(weight, bits)
    else:
        scale = _scales_of_rows(weight, _Rows(weight.shape, axis, size), bits)
    finest = np.min(scale, where=scale > 0.0, initial=math.inf)
    scale[scale == 0.0] = finest if finest < math.inf else float(ml_dtypes.finfo(weight.dtype).eps)
    if axis is not None and size is not None:
        scale = np.moveaxis(scale, -1, axis)
    stored = as_stored(scale, weight.dtype)
    # Zeros that take no memory: groups may be many.
    return Scale(dtype, stored, np.broadcast_to(np.int32(0), stored.shape), axis, size)


def _scale_of_all(weight: npt.NDArray[Any], bits: QuantBits) -> npt.NDArray[np.float64]:
    """Return one scale for all weights, which may be very many: it is chosen from their histogram; 0 for zeros."""
    collector = CalibrationCollector()
    collector.observe(weight)
    return np.asarray(collector.mse_scale(bits=bits, symmetric=True)[0] if weight.any() else 0.0)


def _scales_of_rows(weight: npt.NDArray[Any], rows: _Rows, bits: QuantBits) -> npt.NDArray[np.float64]:
    """Return the scale of each row; 0 for a row of zeros."""
    code_format = as_code_format(bits, "bits")
    greatest, is_float = float(code_format.ends[1]), code_format.parameters is not None
    # A scale that is fitted to its codes is near the best for few weights; more weights need the finer search.
    fractions = _FINER_FRACTIONS if bits is QuantBits.INT4 and not rows.are_blocks else COARSE_FRACTIONS
    refinements, fits = (1, 4) if rows.are_blocks else (2, 0)
    scale = np.empty(rows.shape)
    flat = scale.reshape(rows.count, -1)

    def choose(start: int, stop: int) -> None:
        part = rows.taken(weight, start, stop)
        out = flat[start:stop].reshape(-1)
        dispatch.kernels.least_error_scales(part, fractions, refinements, fits, greatest, is_float, out)

    rows.for_portions(choose)
    return scale


def coded_weight(weight: npt.NDArray[Any], scale: Scale, channels: int | None) -> Weight:
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
    noise = Noise()
    if code_format.parameters is not None or channels is None:  # neither has blocks
        symmetric = code_format if code_format.parameters is not None else code_format.symmetric()
        codes = quantize(weight, scale.scale, scale.zero_point, dtype=symmetric, axis=scale.axis)
        noise.add(weight, dequantize(codes, scale.scale, scale.zero_point, axis=scale.axis))
        return Weight(scale, codes, channels, noise.sqnr)
    codes = _room_for(weight.shape)
    axis, scales = channels, scale.scale
    if scale.block_size is not None and scale.axis is not None:
        axis, scales = scale.axis, np.moveaxis(scale.scale, scale.axis, -1)
    rows = _Rows(weight.shape, axis, scale.block_size)
    scales = np.broadcast_to(scales, rows.shape)
    powers = np.empty((rows.count, math.prod(rows.shape[1:]), 2))

    def encode(start: int, stop: int) -> None:
        part = rows.taken(weight, start, stop)
        out, each = np.empty(part.shape, np.int8), powers[start:stop].reshape(-1, 2)
        of_rows = scales[start:stop].astype(np.float64).reshape(-1)
        dispatch.kernels.round_keeping_sums(
            part, of_rows, float(code_format.greatest), out, each, np.empty(part.shape[1])
        )
        rows.put(codes, start, stop, out)

    rows.for_portions(encode)
    noise.signal, noise.noise = powers.reshape(-1, 2).sum(axis=0).tolist()
    if code_format.width < 8:  # such types hold a code in the lowest bits of a byte
        codes &= (1 << code_format.width) - 1
    return Weight(scale, codes.view(code_format.dtype), channels, noise.sqnr)
