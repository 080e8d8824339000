"""Choose the scales of observed activations."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.formats import QuantBits, as_code_format
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


#: Formats of activations, and the type of their codes.
ACTIVATIONS = {"uint8": "uint8", "int8": "int8", "fp8": "float8_e4m3fn", "uint16": "uint16", "int16": "int16"}
#: Formats whose ranges hold all that was observed: their codes are so many that clipping never pays.
WIDE = frozenset({"uint16", "int16"})


#: How many neighbouring scales are tried to find one whose codes stay inside the bounds of a Clip.
_STEPS_TO_CLIP = 4
#: A squared error is large from this part of the power on, and much larger if it is so many times as large.
_LARGE, _MUCH = 1e-3, 4.0
#: A number of at least so many steps is made whole steps, which changes the step by a sixth at most.
_FEW_STEPS = 3
#: Percent of the values of a tensor that the percentile method keeps by default.
PERCENTILE = 99.99


def activation_scales(
    collectors: dict[str, CalibrationCollector],
    method: CalibMethod,
    percentile: float,
    kind: str,
    types: dict[str, np.dtype[Any]],
    *,
    symmetric: bool = False,
    by_sign: bool = False,
) -> dict[str, Activation]:
    """Return the scale of each tensor; each range includes 0, or is `symmetric` about it.

    If `by_sign`, tensors that have no negative values get unsigned codes with a zero point of 0, and others get signed
    ones.

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
        collector, dtype = collectors[name], types[name]
        positive = by_sign and kind == "uint8" and collector.min_val >= 0.0
        chosen_kind = "int8" if by_sign and not positive else kind
        chosen[name] = activation_scale(
            collector, method, percentile, chosen_kind, dtype, symmetric=symmetric and not positive
        )

    for_each(list(collectors), choose)
    return chosen


def activation_scale(
    collector: CalibrationCollector,
    method: CalibMethod,
    percentile: float,
    kind: str,
    dtype: np.dtype[Any],
    *,
    symmetric: bool = False,
) -> Activation:
    """Return the scale of the values that a collector has seen; they have this type."""
    codes = ACTIVATIONS[kind]
    code_format = as_code_format(codes, "codes")
    # Of unsigned codes, the middle one is the 0 of symmetric ranges.
    middle = 0 if code_format.parameters is not None or code_format.least else (code_format.greatest + 1) // 2
    if kind in WIDE:
        return _wide_scale(collector, codes, middle, dtype, symmetric=symmetric)
    bits, symmetric = (QuantBits.FP8, True) if kind == "fp8" else (QuantBits.INT8, symmetric)
    scale, zero_point, by = choose_scale(collector, method, Target(bits, symmetric, include_zero=True), percentile)
    stored = Scale(codes, as_stored(np.asarray(scale), dtype), np.asarray(zero_point + middle, np.int32))
    sqnr = collector.sqnr(float(stored.scale), zero_point, bits=bits, symmetric=symmetric)
    return Activation(stored, by, float(sqnr))


def _wide_scale(
    collector: CalibrationCollector, codes: str, middle: int, dtype: np.dtype[Any], *, symmetric: bool
) -> Activation:
    """Return the scale of 16-bit codes for all values that a collector has seen."""
    least, greatest = (int(end) for end in as_code_format(codes, "codes").ends)
    low, high = min(float(collector.min_val), 0.0), max(float(collector.max_val), 0.0)
    step = max(-low, high) / (greatest - middle) if symmetric else (high - low) / (greatest - least)
    stored = as_stored(np.asarray(step or 1.0), dtype)
    zero = middle if symmetric else round(least - low / float(stored))
    scale = Scale(codes, stored, np.asarray(min(max(zero, least), greatest), np.int32))
    return Activation(scale, CalibMethod.MIN_MAX, math.nan)


def hard_sigmoid_scale(
    collector: CalibrationCollector, chosen: Activation, alpha: float, beta: Fraction, *, swish: bool
) -> Scale | None:
    """Return the scale of a tensor from which a HardSigmoid is computed, so that a Clip of its codes does the same.

    Return None if the errors would be large, and much larger than with the scale that was chosen for the tensor alone.
    They are if a hard swish has small values only.

    The range begins where the HardSigmoid does, at -beta / alpha.  With a zero point z, counted from the least code,
    the scale is beta / (alpha z).  Then alpha x + beta = alpha scale (c - z) + beta = alpha scale c, and the code
    z / beta has the value 1.

    The range ends about where the given one does.

    Parameters
    ----------
    collector : CalibrationCollector
    chosen : Activation
        The scale that was chosen for the tensor alone.
    alpha, beta : float, Fraction
        Of the HardSigmoid.
    swish : bool
        Whether the result is multiplied by the tensor.
    """
    scale = chosen.scale
    least, most = as_code_format(scale.dtype, "codes").ends
    width, start = most - least, float(beta) / alpha
    whole = beta.numerator  # z / beta is a code, and so an integer, if z is a multiple of this
    end = float(scale.scale) * (most - int(scale.zero_point))
    zero = int(min(max(round(start * width / (start + end) / whole), 1), width // whole) * whole)
    counts, edges = collector.histogram()
    values, counts = (edges[:-1] + edges[1:])[counts > 0] / 2.0, counts[counts > 0]

    def result(x: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        gate = np.clip(alpha * x + float(beta), 0.0, 1.0)
        return x * gate if swish else gate

    exact = result(values)

    def power(of: npt.NDArray[np.float64]) -> float:
        return float(np.cumsum(counts * of**2)[-1])  # added up one after the other, as on every machine

    def error(zero: int, step: float) -> float:
        codes = np.clip(np.rint(values / step) + zero, 0, width)
        return power(result((codes - zero) * step) - exact)

    if not values.size:
        return None
    fitted, plain = error(zero, start / zero), error(int(scale.zero_point - least), float(scale.scale))
    if fitted > max(_MUCH * plain, _LARGE * power(exact)):
        return None
    step = np.asarray(start / zero, scale.scale.dtype)
    return replace(scale, scale=step, zero_point=np.asarray(zero + least, np.int32))


def shifted(scale: Scale, number: float) -> tuple[Scale, Scale] | None:
    """Return scales with which a tensor and its sum with a number have the same codes; None if there are none nearby.

    The given scale is that of the sum.  Its step is changed a little, so that the number is whole steps, and the sum
    only has another zero point.
    """
    steps = round(number / float(scale.scale))
    least, most = as_code_format(scale.dtype, "codes").ends
    zero = int(scale.zero_point) + steps
    if abs(steps) < _FEW_STEPS or not least <= zero <= most:
        return None
    scale = replace(scale, scale=np.asarray(number / steps, scale.scale.dtype))
    return replace(scale, zero_point=np.asarray(zero, np.int32)), scale


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
