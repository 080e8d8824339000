"""Choose the scales of observed activations."""

from __future__ import annotations

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
