"""From what was observed of activations, and from weights, to scales."""

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
from .._base.validation import as_number
from .._calibration.calibrate import choose_scale
from .._calibration.collector import CalibrationCollector
from .plan import WeightAxes
from .rewriting import Scale, as_stored, passes


@dataclass(frozen=True, eq=False)
class Activation:
    """How an activation becomes codes, by which method, and the SQNR in dB that this promises."""

    scale: Scale
    method: CalibMethod
    sqnr: float


#: Codes of activations: what their ranges are chosen for, and what is added to zero points.
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


#: Representable scales that are tried for one whose codes a Clip lets pass.
_STEPS_TO_CLIP = 4
#: Percent of the values of a tensor that the percentile method keeps, unless told otherwise.
PERCENTILE = 99.99


def as_percentile(value: object) -> float:
    """Return percent of values to keep."""
    percentile = as_number(value, "percentile")
    if not 0.0 < percentile <= 100.0:
        raise InvalidArgumentError(f"percentile: expected more than 0 and at most 100, got {value}")
    return percentile


def activation_scales(
    collectors: dict[str, CalibrationCollector],
    method: CalibMethod,
    percentile: float,
    kind: str,
    types: dict[str, np.dtype[Any]],
) -> dict[str, Activation]:
    """Return how each tensor becomes codes, with 0 among their values.

    Raises
    ------
    InvalidArgumentError
        If a tensor has had no finite value.
    """
    for name, collector in collectors.items():
        if not collector.n_elements:
            raise InvalidArgumentError(f"calibration: no finite value of {name} was seen; exclude the nodes about it")
    chosen: dict[str, Activation] = {}

    def choose(name: str) -> None:
        chosen[name] = activation_scale(collectors[name], method, percentile, kind, types[name])

    for_each(list(collectors), choose)
    return chosen


def activation_scale(
    collector: CalibrationCollector, method: CalibMethod, percentile: float, kind: str, dtype: np.dtype[Any]
) -> Activation:
    """Return how what a collector has seen, of this type, becomes codes."""
    bits, offset, codes = ACTIVATIONS[kind]
    symmetric = bits is QuantBits.FP8
    target = Target(bits, symmetric, include_zero=True)
    scale, zero_point, by = choose_scale(collector, method, target, percentile)
    stored = Scale(codes, as_stored(np.asarray(scale), dtype), np.asarray(zero_point + offset, np.int32))
    sqnr = collector.sqnr(float(stored.scale), zero_point, bits=bits, symmetric=symmetric)
    return Activation(stored, by, float(sqnr))


def inside_clip(scale: Scale, low: npt.NDArray[Any] | None, high: npt.NDArray[Any] | None) -> Scale:
    """Return the scale of what a Clip to these bounds lets pass, so that its codes stand for nothing beyond them.

    A range that ends where the Clip does may be beyond it by the rounding of the scale, and ONNX Runtime computes what
    comes before the Clip in integers only if it is not.  A few of the least steps make up for that.
    """
    tried = scale
    for _ in range(_STEPS_TO_CLIP):
        if passes(tried, low, high):
            return tried
        tried = replace(tried, scale=np.nextafter(tried.scale, np.zeros_like(tried.scale)))
    return scale


def weight_scale(weight: npt.NDArray[Any], axes: WeightAxes | None, kind: str, group_size: int) -> Scale:
    """Return the scale of a weight, symmetric and with the least squared error.

    One for all of it without axes; otherwise one for each output channel, or, of int4, for each group along the axis
    that is summed over.
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
    """Return the scales of blocks along an axis; zeros that fill the last one cost nothing."""
    collector = CalibrationCollector(tuple(range(weight.ndim)), groups=size)
    collector.observe(whole_blocks(weight, axis, size))
    blocks = np.moveaxis(_least_error(collector, bits, weight.dtype), -1, axis)
    return Scale(dtype, as_stored(blocks, weight.dtype), np.zeros(blocks.shape, np.int32), axis, size)


def _least_error(collector: CalibrationCollector, bits: QuantBits, dtype: np.dtype[Any]) -> npt.NDArray[np.float64]:
    """Return a symmetric scale for each channel; as fine as the finest of the others where all weights are 0.

    Any scale stands for 0, but ONNX Runtime's products with weights of 4 and 8 bits have errors in proportion to it.
    """
    scale = np.asarray(collector.mse_scale(bits=bits, symmetric=True)[0])
    idle = np.asarray((collector.min_val == 0.0) & (collector.max_val == 0.0))
    finest = np.min(scale, where=~idle, initial=math.inf)
    return np.where(idle, finest if finest < math.inf else np.finfo(dtype).eps, scale)


def whole_blocks(array: npt.NDArray[Any], axis: int, size: int) -> npt.NDArray[Any]:
    """Return an array with an axis as the last one, which zeros lengthen to a multiple of a size."""
    moved = np.moveaxis(array, axis, -1)
    return np.pad(moved, [(0, 0)] * (array.ndim - 1) + [(0, -moved.shape[-1] % size)])
