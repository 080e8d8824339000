"""Summarise what was observed: statistics, and the quality that each method promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.config import CalibMethod
from .._base.formats import E4M3_MAX, QuantBits
from .._base.scale import Target
from .._base.types import Count, FloatOrArray
from .histogram import LeadingBitHistogram
from .squared_error import expected_errors, scaled_distribution
from .thresholds import ranges_by_method

#: The percentiles in a summary, in tenths of a percent.  They are integers, so that ranks are computed exactly.
TENTHS = (1, 10, 100, 500, 900, 990, 999)
_DB = 4.342944819032518  # 10 / log(10)

_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class CalibrationSummary:
    """Statistics of what a collector has observed.

    If the collector has an axis, every number is an array of the collector's shape; otherwise it is a Python number.
    No number depends on the order in which the values came.  ``print`` shows a table.

    Attributes
    ----------
    n_elements, n_zero, n_nan, n_posinf, n_neginf : int
        How many values are finite, 0, NaN, +inf and -inf.
    min_val, max_val : float
        The least and the greatest finite value; +inf and -inf if there is none.
    mean, std : float
        Mean and population standard deviation of the finite values; NaN if there is none.  They are estimated from the
        histogram.  As long as at most 8,192 nonzero values were observed, they are exact but for rounding.
    percentiles : dict of float to float
        For each percentage, the least value that at least so many percent of the finite values do not exceed.  NaN if
        there is none.
    sqnr : dict of QuantBits to dict of CalibMethod to float
        The signal-to-quantisation-noise ratio that each method's scale promises, in dB.  It is +inf if there is no
        error.  It is NaN if there is no signal, or if float64 cannot hold the scale.
    symmetric : bool
        Whether `sqnr` is for symmetric codes.
    """

    n_elements: Count
    n_zero: Count
    n_nan: Count
    n_posinf: Count
    n_neginf: Count
    min_val: FloatOrArray
    max_val: FloatOrArray
    mean: FloatOrArray
    std: FloatOrArray
    percentiles: dict[float, FloatOrArray]
    sqnr: dict[QuantBits, dict[CalibMethod, FloatOrArray]]
    symmetric: bool

    def __str__(self) -> str:
        unusual = {"zero": self.n_zero, "NaN": self.n_nan, "+inf": self.n_posinf, "-inf": self.n_neginf}
        counted = [f"{np.sum(n):,} {name}" for name, n in unusual.items() if np.any(n)]
        lines = [f"values       {np.sum(self.n_elements):,} finite" + "".join(f", {text}" for text in counted)]
        if np.ndim(self.n_elements):
            channels = " x ".join(map(str, np.shape(self.n_elements)))
            lines += [f"channels     {channels}; each line below gives the least and the greatest of them"]
        if np.any(self.n_elements):
            lines += [f"least        {_written(self.min_val)}", f"greatest     {_written(self.max_val)}"]
            lines += [f"mean         {_written(self.mean)}", f"std          {_written(self.std)}"]
            lines += [f"{f'{p:g}%':<12} {_written(value)}" for p, value in self.percentiles.items()]
            methods = list(next(iter(self.sqnr.values())))
            width = 12 if np.ndim(self.n_elements) == 0 else 18
            kind = "symmetric" if self.symmetric else "affine"
            lines += ["", f"SQNR in dB   {''.join(f'{method.value:>{width}}' for method in methods)}   ({kind})"]
            for bits, by_method in self.sqnr.items():
                cells = (_written(by_method[method], ".1f") for method in methods)
                lines.append(f"{bits.value:<13}" + "".join(f"{cell:>{width}}" for cell in cells))
        return "\n".join(lines)


def summarize(h: LeadingBitHistogram, *, symmetric: bool) -> dict[str, Any]:
    """Return the fields of a summary, with arrays of shape (channels,)."""
    mean, std, power = _moments(h)
    sqnr = {}
    for bits in QuantBits:
        target = Target(bits, symmetric)
        ranges = ranges_by_method(h, target)
        errors, _ = expected_errors(h, list(ranges.values()), target)
        sqnr[bits] = {method: _decibels(power, errors[:, i], h) for i, method in enumerate(ranges)}
    n = h.n_elements
    return {
        "n_elements": n,
        "n_zero": h.n_zero,
        "n_nan": h.n_nan,
        "n_posinf": h.n_posinf,
        "n_neginf": h.n_neginf,
        "min_val": h.low,
        "max_val": h.high,
        "mean": mean,
        "std": std,
        "percentiles": {tenths / 10.0: h.values_at_ranks(-(-n * tenths // 1000) - 1) for tenths in TENTHS},
        "sqnr": sqnr,
        "symmetric": symmetric,
    }


@np.errstate(all="ignore")
def promised_sqnr(
    h: LeadingBitHistogram, scale: _FloatArray, zero_point: npt.NDArray[np.int32], target: Target
) -> _FloatArray:
    """Return the signal-to-quantisation-noise ratio in dB that each channel's scale promises."""
    if target.bits is QuantBits.FP8:
        low, high = -scale * E4M3_MAX, scale * E4M3_MAX
    else:
        low, high = (scale * (end - zero_point.astype(np.float64)) for end in target.code_range)
    errors, _ = expected_errors(h, [(low, high)], target)
    return _decibels(_moments(h)[2], errors[:, 0], h)


@np.errstate(all="ignore")
def _moments(h: LeadingBitHistogram) -> tuple[_FloatArray, _FloatArray, _FloatArray]:
    """Return the mean, the standard deviation, and the sum of squares in `SquaredError`'s units, of each channel."""
    mean, std, power = np.full((3, h.channels), np.nan)
    for channels, part in h.portions(16):
        distribution, unit = scaled_distribution(part, density=False)
        n = part.n_elements.astype(np.float64)
        about_zero, about_mean = np.empty((2, 2, part.channels))
        dispatch.kernels.moments(*distribution, np.zeros(part.channels), about_zero)
        centre = np.where(n > 0, about_zero[0] / n, 0.0)
        # Rounding must not take the mean beyond the extremes.
        centre = np.minimum(np.maximum(centre, part.low * unit), part.high * unit)
        dispatch.kernels.moments(*distribution, np.where(n > 0, centre, 0.0), about_mean)
        mean[channels] = np.where(n > 0, centre / unit, np.nan)
        std[channels] = np.where(n > 0, np.sqrt(about_mean[1] / n) / unit, np.nan)
        power[channels] = about_zero[1]
    return mean, std, power


@np.errstate(all="ignore")
def _decibels(power: _FloatArray, error: _FloatArray, h: LeadingBitHistogram) -> _FloatArray:
    ratio = power / error
    logarithm = np.full(ratio.size, np.nan)
    usual = np.isfinite(ratio) & (ratio > 0.0)
    logs = np.empty(int(usual.sum()))
    dispatch.kernels.natural_logs(np.ascontiguousarray(ratio[usual]), logs)
    logarithm[usual] = logs * _DB
    logarithm[(error == 0.0) & (power > 0.0)] = np.inf
    # Values whose squares vanish are far below the least scale.  They all become 0, so the error is the signal: 0 dB.
    vanishing = (power == 0.0) & (np.maximum(np.abs(h.low), np.abs(h.high)) > 0.0) & (h.n_elements > 0)
    logarithm[vanishing] = 0.0
    return logarithm


def _written(value: Any, form: str = ".4g") -> str:
    """Return a number as text; for an array, the least and the greatest number."""
    if np.ndim(value) == 0:
        return format(value, form)
    there = np.asarray(value)[~np.isnan(value)]
    if there.size == 0:
        return "nan"
    return f"{there.min():{form}} to {there.max():{form}}"
