"""Draw what a collector has observed; needs Matplotlib, the extra ``plot``."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

try:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "qatcore.plot needs Matplotlib: pip install 'qatcore[plot]'", name=_missing.name
    ) from _missing

from ._base.config import CalibMethod
from ._base.errors import InvalidArgumentError
from ._base.formats import QuantBits
from ._base.scale import Target
from ._base.validation import as_flag, as_member
from ._calibration.collector import CalibrationCollector
from ._calibration.histogram import LeadingBitHistogram, Range
from ._calibration.squared_error import expected_errors
from ._calibration.thresholds import ranges_by_method

__all__ = ["histogram"]

_LEAST, _GREATEST = 1e-305, 1e305  # beyond these, Matplotlib's arithmetic overflows
_BARS = 400
_CANDIDATES = 300
_LINES = {
    CalibMethod.MIN_MAX: ("#4d4d4d", "-", "v"),
    CalibMethod.PERCENTILE: ("#0072b2", "--", "s"),
    CalibMethod.KL: ("#d55e00", "-.", "D"),
    CalibMethod.MSE: ("#009e73", "-", "o"),
}

_FloatArray = npt.NDArray[np.float64]


def histogram(
    collector: CalibrationCollector,
    *,
    bits: QuantBits | str = QuantBits.INT8,
    symmetric: bool = False,
    figure: Figure | None = None,
) -> Figure:
    """Draw the observed distribution, the range that each method chooses, and the error of other ranges.

    The upper plot shows how many values lie in equal intervals, on a logarithmic axis, and the range that each method
    chooses.  The lower plot shows the expected squared error, divided by the least one shown.  Along a curve, one end
    of the range moves, and the other stays where the MSE search puts it.  For symmetric and FP8 codes, both ends move.

    Parameters
    ----------
    collector : CalibrationCollector
        A collector without an axis, such as ``collector.channel(i)`` or ``collector.pooled()``.
    bits : QuantBits or str
    symmetric : bool
    figure : matplotlib.figure.Figure, optional
        An empty figure to draw into.  If left out, it is a new one of 8 by 6 inches.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("histogram.png")`` writes it; notebooks show it.

    Raises
    ------
    InvalidArgumentError
        If the collector has an axis, or has not observed two different finite values.  If the greatest magnitude it has
        observed is not between 1e-305 and 1e305.  If the figure is not empty.
    TypeError
        If an argument has a wrong type.

    Examples
    --------
    >>> collector = CalibrationCollector()
    >>> collector.observe(np.random.default_rng(0).standard_normal(10_000))
    >>> figure = histogram(collector, bits=QuantBits.INT4)
    >>> [axes.get_ylabel() for axes in figure.axes]
    ['values', 'squared error / least']
    """
    if not isinstance(collector, CalibrationCollector):
        raise TypeError(f"collector: expected a CalibrationCollector, got {type(collector).__name__}")
    bits, symmetric = as_member(QuantBits, bits, "bits"), as_flag(symmetric, "symmetric")
    if collector.axis is not None:
        raise InvalidArgumentError(
            f"collector: expected a collector without an axis, got {collector!r}; pass its channel(i) or pooled()"
        )
    h = collector._histogram
    low, high = float(h.low[0]), float(h.high[0])
    if not (low < high and _LEAST < max(abs(low), abs(high)) < _GREATEST):
        raise InvalidArgumentError(
            f"collector: expected different values, the greatest magnitude between {_LEAST:g} and {_GREATEST:g}, "
            f"got {collector!r}"
        )
    if figure is None:
        figure = Figure(figsize=(8.0, 6.0), layout="constrained")
    elif not isinstance(figure, Figure):
        raise TypeError(f"figure: expected a matplotlib Figure, got {type(figure).__name__}")
    elif figure.axes:
        raise InvalidArgumentError(f"figure: expected an empty figure, got one with {len(figure.axes)} axes")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=[3, 2])
    target = Target(bits, symmetric)
    ranges = ranges_by_method(h, target)
    _draw_counts(above, h, low, high)
    _draw_errors(below, h, ranges, target)
    for method, (starts, stops) in ranges.items():
        colour, style, _ = _LINES[method]
        start, stop = float(starts[0]), float(stops[0])
        label = f"{method.value}: {start:.4g} to {stop:.4g}"
        ends = [start, stop]
        if symmetric or bits is QuantBits.FP8:
            ends = _mirrored(start, stop, h)
            label = f"{method.value}: ±{abs(ends[0]):.4g}"
        for end in ends:
            # Draw the lines behind the bars, which may be narrow.
            above.axvline(end, color=colour, linestyle=style, linewidth=1.3, label=label, zorder=0.5)
            label = "_"  # the second line gets no entry in the legend
    above.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
    kind = "FP8" if bits is QuantBits.FP8 else f"{bits.value}, {'symmetric' if symmetric else 'affine'}"
    above.set_title(f"{int(h.n_elements[0]):,} values; clips for {kind}", fontsize="medium")
    return figure


def _mirrored(start: float, stop: float, h: LeadingBitHistogram) -> list[float]:
    """Return the ends of a symmetric range, on the sides that have values."""
    clip = max(abs(start), abs(stop))
    return [end for end, there in ((-clip, h.low[0] < 0.0), (clip, h.high[0] > 0.0)) if there]


def _draw_counts(axes: Axes, h: LeadingBitHistogram, low: float, high: float) -> None:
    """Draw the histogram, with its bins spread over equal intervals."""
    edges = low + np.arange(_BARS + 1) * ((high - low) / _BARS)
    edges[-1] = high
    pieces = h.pieces()
    # The mass below each edge.
    below = np.zeros(_BARS + 1)
    for start, stop, mass in zip(pieces.low, pieces.high, pieces.mass, strict=True):
        below += mass * np.clip((edges - start) / (stop - start), 0.0, 1.0)
    counts = np.diff(below)
    counts += np.histogram(pieces.points, edges, weights=pieces.counts)[0]
    axes.stairs(counts, edges, fill=True, color="#9db4c8", edgecolor="#9db4c8", linewidth=1.2, baseline=0.5)
    axes.set_yscale("log")
    axes.set_ylim(bottom=0.5)
    axes.set_ylabel("values")


def _draw_errors(axes: Axes, h: LeadingBitHistogram, ranges: dict[CalibMethod, Range], target: Target) -> None:
    """Draw the error as a function of where the range ends."""
    low, high = float(h.low[0]), float(h.high[0])
    best_low, best_high = (float(end[0]) for end in ranges[CalibMethod.MSE])
    fractions = np.arange(1, _CANDIDATES + 1) / _CANDIDATES

    def errors(lows: _FloatArray, highs: _FloatArray) -> _FloatArray:
        candidates: list[Range] = [(lows[i : i + 1], highs[i : i + 1]) for i in range(lows.size)]
        total, _ = expected_errors(h, candidates, target)
        return np.asarray(total[0])

    curves = []
    if target.is_even:
        clip = fractions * max(abs(low), abs(high))
        cost = errors(-clip, clip)
        curves += [(end, cost) for end in (clip, -clip) if ((low <= end) & (end <= high)).any()]
    else:
        middle = float(h.values_at_ranks(h.n_elements // 2)[0])
        if middle < high:
            highs = middle + fractions * (high - middle)
            curves.append((highs, errors(np.full(_CANDIDATES, best_low), highs)))
        if low < middle:
            lows = middle + fractions * (low - middle)
            curves.append((lows, errors(lows, np.full(_CANDIDATES, best_high))))
    chosen = errors(*(np.array([float(chosen[end][0]) for chosen in ranges.values()]) for end in (0, 1)))
    every = np.concatenate([chosen, *(cost for _, cost in curves)])
    unit = float(np.min(every[every > 0.0], initial=np.inf))
    unit = unit if unit < np.inf else 1.0

    def drawn(cost: Any) -> Any:
        """Return the height at which to draw a cost; the logarithmic axis has no 0, so 0 goes below all others."""
        return np.maximum(cost / unit, 0.5)

    for places, cost in curves:
        axes.plot(places, drawn(cost), color="#7a7a7a", linewidth=1.2)
    for method, cost in zip(ranges, chosen, strict=True):
        colour, _, marker = _LINES[method]
        label = f"{method.value}: {cost / unit:.3g}"
        start, stop = (float(end[0]) for end in ranges[method])
        for place in _mirrored(start, stop, h) if target.is_even else [start, stop]:
            axes.plot(
                [place], [drawn(cost)], color=colour, marker=marker, linestyle="", markersize=6, label=label, alpha=0.8
            )
            label = "_"
    axes.set_yscale("log")
    axes.set_ylim(top=float(np.max(drawn(chosen))) * 30)
    axes.set_ylabel("squared error / least")
    axes.set_xlabel(
        "where the range ends" + ("" if target.is_even else " (curve: this end alone is moved; marks: whole ranges)")
    )
    axes.legend(fontsize="small", loc="upper left", bbox_to_anchor=(1.0, 1.0))
