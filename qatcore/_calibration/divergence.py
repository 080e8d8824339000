"""Find the range whose codes lose the least information, by a generalised Kullback-Leibler divergence."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.formats import E4M3_MAX, E4M3_VALUES, INTEGERS, QuantBits
from .._base.scale import Target
from .._base.threads import for_ranges
from .histogram import LeadingBitHistogram, Range
from .squared_error import SquaredError

_FloatArray = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]


#: Linear bins of the KL search.
KL_BINS = 2048
#: How many ranges are compared by squared error at most, if the divergence cannot tell more of them apart.
_MOST_ALIKE = 128


def kl_range(h: LeadingBitHistogram, target: Target) -> Range:
    """Return, for each channel, the range whose codes lose the least information, by a generalised KL divergence.

    The search is based on Migacz (2017); docs/numerics.md says what was changed and why.  Some divergences differ from
    the least by no more than sampling noise.  Among these ranges and the whole range, the search takes the one with the
    least expected squared error.
    """
    low, high = h.low.copy(), h.high.copy()
    searched = np.flatnonzero(h.is_searchable)

    def search(start: int, stop: int) -> None:
        for channel in searched[start:stop]:
            low[channel], high[channel] = _least_divergence(h.take(np.array([channel])), target)

    for_ranges(searched.size, 1, search)
    return low, high


@np.errstate(all="ignore")
def _least_divergence(h: LeadingBitHistogram, target: Target) -> tuple[float, float]:
    """Return the range of one channel."""
    symmetric = target.is_even
    whole = h.whole_range(symmetric=symmetric)
    lowest, highest = float(whole[0][0]), float(whole[1][0])
    origin, width = (0.0, highest / KL_BINS) if symmetric else (lowest, (highest - lowest) / KL_BINS)
    if width == 0.0:
        return lowest, highest
    linear, sums = _linear_bins(h, origin, width, magnitudes=symmetric)
    edges = _level_edges(target)
    levels = edges.size - 1

    def divergence(first: _Indices, stop: _Indices) -> _FloatArray:
        out = np.empty(first.size)
        dispatch.kernels.kl_divergence_sweep(linear, sums, edges, first, stop, out)
        return out

    # With m cells, twice the divergence varies like chi-squared with m degrees of freedom.  This is two deviations.
    tolerance = np.sqrt(2.0 * sums[3, -1])
    if symmetric:
        # Try every eighth end, then all ends near the cheapest one.  Neighbours differ by less than the sampling noise.
        stop = np.append(np.arange(levels, KL_BINS, 8), KL_BINS)
        cost = divergence(np.zeros_like(stop), stop)
        nearer = np.clip(stop[np.argmin(cost)] + np.arange(-7, 8), levels, KL_BINS)
        stop = np.append(stop, nearer)
        cost = np.append(cost, divergence(np.zeros_like(nearer), nearer))
        high = np.where(stop == KL_BINS, highest, stop * width)
        low = -high
    else:
        first, stop, cost = _search_pairs(divergence, levels, tolerance)
        low = np.where(first == 0, lowest, origin + first * width)
        high = np.where(stop == KL_BINS, highest, origin + stop * width)
        if h.n_zero[0]:  # the divergence leaves zeros out, but the range must hold them
            low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    alike = np.flatnonzero(cost <= cost.min() + tolerance)
    alike = alike[:: -(-alike.size // _MOST_ALIKE)]
    # The whole range is always compared too, because a divergence ignores how far a value is clipped.
    low, high = np.append(low[alike], lowest), np.append(high[alike], highest)
    error = SquaredError(h, target)
    best = int(np.argmin(error(low[np.newaxis], high[np.newaxis])))
    return float(low[best]), float(high[best])


def _linear_bins(
    h: LeadingBitHistogram, origin: float, width: float, *, magnitudes: bool
) -> tuple[_FloatArray, _FloatArray]:
    """Return the mass of one channel in `KL_BINS` linear bins, and the running sums that the divergence needs.

    The mass of a bin of leading bits is spread evenly over that bin.  Zeros are left out: they have no error, and the
    zeros of a rectifier would drown the rest.
    """
    bins = h.bins()
    low, high, counts = np.maximum(bins.low, h.low), np.minimum(bins.high, h.high), bins.counts
    if magnitudes:
        low, high = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
    linear, cells = np.zeros((2, KL_BINS))
    dispatch.kernels.spread_counts(low, high, counts.astype(np.float64), origin, width, linear)
    dispatch.kernels.spread_counts(low, high, np.ones(counts.size), origin, width, cells)
    sums = np.empty((4, KL_BINS + 1))
    dispatch.kernels.kl_prefix_sums(linear, cells, sums)
    return linear, sums


def _level_edges(target: Target) -> _FloatArray:
    """Return the boundaries between the levels of a format, as fractions of the clipping range.

    A level is the set of values nearest to one code.  For symmetric formats, levels and boundaries are magnitudes.
    """
    if target.bits is QuantBits.FP8:
        levels = E4M3_VALUES[:127] / E4M3_MAX
    elif target.symmetric:
        levels = np.arange(INTEGERS[target.bits].high + 1) / INTEGERS[target.bits].high
    else:
        levels = np.arange(INTEGERS[target.bits].steps + 1) / INTEGERS[target.bits].steps
    return np.concatenate([[0.0], (levels[:-1] + levels[1:]) / 2.0, [1.0]])


def _search_pairs(
    divergence: Callable[[_Indices, _Indices], _FloatArray], levels: int, tolerance: float
) -> tuple[_Indices, _Indices, _FloatArray]:
    """Return the pairs of ends that were tried, and their costs.

    The first pairs are all those in steps of 64 bins.  Steps of 16, 4 and 1 bins follow, each around the cheapest pair
    of the step before.  The last ones are 16 by 16 pairs over all that are within the tolerance.
    """
    tried: list[tuple[_Indices, _Indices, _FloatArray]] = []

    def evaluate(firsts: _Indices, stops: _Indices) -> None:
        first, stop = (g.reshape(-1) for g in np.meshgrid(np.unique(firsts), np.unique(stops), indexing="ij"))
        wide = stop - first >= levels
        tried.append((first[wide], stop[wide], divergence(first[wide], stop[wide])))

    def collected() -> tuple[_Indices, _Indices, _FloatArray]:
        first, stop, cost = (np.concatenate(parts) for parts in zip(*tried, strict=True))
        return first, stop, cost

    evaluate(np.arange(0, KL_BINS, 64), np.arange(64, KL_BINS + 1, 64))
    for step in (16, 4, 1):
        first, stop, cost = tried[-1]
        cheapest = int(np.argmin(cost))
        around = np.arange(-4, 5) * step
        evaluate(np.clip(first[cheapest] + around, 0, KL_BINS), np.clip(stop[cheapest] + around, 0, KL_BINS))
    first, stop, cost = collected()
    alike = cost <= cost.min() + tolerance
    evaluate(*(ends.min() + np.arange(16) * np.ptp(ends) // 15 for ends in (first[alike], stop[alike])))
    return collected()
