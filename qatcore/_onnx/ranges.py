"""Choose the scales of observed activations and of weights."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.formats import QuantBits
from .._base.scale import Target
from .._base.threads import for_each
from .._calibration.calibrate import choose_scale
from .._calibration.collector import CalibrationCollector
from .plan import WeightAxes
from .rewriting import Scale, as_stored, passes


@dataclass(frozen=True, eq=False)
class Activation:
    """The scale of an activation, the method that chose it, and the SQNR in dB that it promises."""

    scale: Scale
    method: CalibMethod
    sqnr: float


#: Formats of activations: the bits that ranges are chosen for, what is added to zero points, and the type of codes.
ACTIVATIONS = {
    "uint8": (QuantBits.INT8, 128, "uint8"),
    "int8": (QuantBits.INT8, 0, "int8"),
    "fp8": (QuantBits.FP8, 0, "float8_e4m3fn"),
}
WEIGHTS = {
    "int8": (QuantBits.INT8, "int8"),
    "int4": (QuantBits.INT4, "int4"),
    "fp8": (QuantBits.FP8, "float8_e4m3fn"),
}


#: How many neighbouring scales are tried to find one whose codes stay inside the bounds of a Clip.
_STEPS_TO_CLIP = 4
#: Percent of the values of a tensor that the percentile method keeps by default.
PERCENTILE = 99.99


def activation_scales(
    collectors: dict[str, CalibrationCollector],
    method: CalibMethod,
    percentile: float,
    kind: str,
    types: dict[str, np.dtype[Any]],
) -> dict[str, Activation]:
    """Return the scale of each tensor; each range includes 0.

    Raises
    ------
    InvalidArgumentError
        If a tensor had no finite value.
    """
    for name, collector in collectors.items():
        if not collector.n_elements:
            raise InvalidArgumentError(f"calibration: no finite value of {name} was seen; exclude its nodes")
    chosen: dict[str, Activation] = {}

    def choose(name: str) -> None:
        chosen[name] = activation_scale(collectors[name], method, percentile, kind, types[name])

    for_each(list(collectors), choose)
    return chosen


def activation_scale(
    collector: CalibrationCollector, method: CalibMethod, percentile: float, kind: str, dtype: np.dtype[Any]
) -> Activation:
    """Return the scale of the values that a collector has seen; they have this type."""
    bits, offset, codes = ACTIVATIONS[kind]
    symmetric = bits is QuantBits.FP8
    target = Target(bits, symmetric, include_zero=True)
    scale, zero_point, by = choose_scale(collector, method, target, percentile)
    stored = Scale(codes, as_stored(np.asarray(scale), dtype), np.asarray(zero_point + offset, np.int32))
    sqnr = collector.sqnr(float(stored.scale), zero_point, bits=bits, symmetric=symmetric)
    return Activation(stored, by, float(sqnr))


def inside_clip(scale: Scale, low: npt.NDArray[Any] | None, high: npt.NDArray[Any] | None) -> Scale:
    """Return the scale, or one a few least steps smaller, whose codes stay inside the bounds of a Clip.

    The rounding of the scale may move the end of a range beyond the bound of the Clip.  ONNX Runtime computes what
    comes before the Clip in integers only if the range stays inside.  If no scale tried does that, the scale stays.
    """
    tried = scale
    for _ in range(_STEPS_TO_CLIP):
        if passes(tried, low, high):
            return tried
        tried = replace(tried, scale=np.nextafter(tried.scale, np.zeros_like(tried.scale)))
    return scale


def weight_scale(weight: npt.NDArray[Any], axes: WeightAxes | None, kind: str, group_size: int) -> Scale:
    """Return the scale of a weight, symmetric and with the least squared error.

    Without axes the whole weight has one scale.  Otherwise each output channel has one.  With int4, each group along
    the axis that is summed over has one, unless the group size is 0.
    """
    bits, dtype = WEIGHTS[kind]
    if axes is not None and kind == "int4" and group_size and weight.shape[axes.summed] > 1:
        return _grouped(weight, axes.summed, bits, dtype, min(group_size, weight.shape[axes.summed]))
    axis = None if axes is None else axes.channels
    collector = CalibrationCollector(axis)
    collector.observe(weight)
    scale = as_stored(_least_error(collector, bits, weight.dtype), weight.dtype)
    return Scale(dtype, scale, np.zeros(scale.shape, np.int32), axis)


def _grouped(weight: npt.NDArray[Any], axis: int, bits: QuantBits, dtype: str, size: int) -> Scale:
    """Return the scales of blocks along an axis; the zeros that fill up the last block add no error."""
    collector = CalibrationCollector(tuple(range(weight.ndim)), groups=size)
    collector.observe(whole_blocks(weight, axis, size))
    blocks = np.moveaxis(_least_error(collector, bits, weight.dtype), -1, axis)
    return Scale(dtype, as_stored(blocks, weight.dtype), np.zeros(blocks.shape, np.int32), axis, size)


def _least_error(collector: CalibrationCollector, bits: QuantBits, dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """Return a symmetric scale for each channel; a channel of zeros gets the smallest scale of the others.

    Any scale can represent 0, but ONNX Runtime's products with 4-bit and 8-bit weights have errors in proportion to it.
    """
    scale = np.asarray(collector.mse_scale(bits=bits, symmetric=True)[0])
    idle = np.asarray((collector.min_val == 0.0) & (collector.max_val == 0.0))
    finest = np.min(scale, where=~idle, initial=math.inf)
    return np.where(idle, finest if finest < math.inf else np.finfo(dtype).eps, scale)


def whole_blocks(array: npt.NDArray[Any], axis: int, size: int) -> npt.NDArray[Any]:
    """Return an array with this axis as the last one, padded with zeros to a multiple of the size."""
    moved = np.moveaxis(array, axis, -1)
    return np.pad(moved, [(0, 0)] * (array.ndim - 1) + [(0, -moved.shape[-1] % size)])
