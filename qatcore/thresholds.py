"""From a histogram to a clipping range.

All from one histogram, so that one pass over the data serves every method.  Nothing here calls a library
for a logarithm, a power or a sum whose order it does not fix: the ranges are the same on every machine.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from . import _dispatch
from .config import QuantBits
from .formats import E4M3_MAX, E4M3_VALUES, INTEGERS
from .histogram import LeadingBitHistogram, Pieces
from .scale import scale_and_zero_point

_FloatArray = npt.NDArray[np.float64]

#: Linear bins of the KL search.
KL_BINS = 2048


def min_max_range(h: LeadingBitHistogram) -> tuple[float, float]:
    """Return the least and the greatest finite value."""
    return h.low, h.high


def percentile_range(h: LeadingBitHistogram, p: float) -> tuple[float, float]:
    """Return the range that leaves out (100 - p) / 2 percent at either end.

    The ranks are the reference's: rounded down at the lower end and up at the upper one.
    """
    n = h.n_elements
    if n == 0:
        return h.low, h.high
    lower = (100.0 - min(max(p, 0.0), 100.0)) / 200.0
    lower_rank = min(int(np.floor(n * lower)), n - 1)
    upper_rank = min(int(np.ceil(n * (1.0 - lower))), n - 1)
    return h.value_at_rank(lower_rank), h.value_at_rank(upper_rank)


def mse_range(h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool) -> tuple[float, float]:
    """Return the range whose codes have the least expected squared error.

    Clipping and rounding errors of the codebook that `scale_and_zero_point` makes of the range, integrated
    over each bin.  Searched coarse to fine; min-max itself is a candidate, and it is kept unless another
    gains more than the histogram can tell.
    """
    if not _searchable(h):
        return h.low, h.high
    # A power of two, so exact: squares of huge values must not overflow.
    unit = 2.0**-600 if max(abs(h.low), abs(h.high)) > 2.0**400 else 1.0
    error = _squared_error(h.pieces(), unit, bits, symmetric=symmetric, include_zero=include_zero)
    symmetric = symmetric or bits is QuantBits.FP8
    clip = max(abs(h.low), abs(h.high))
    middle = 0.0 if symmetric else h.value_at_rank(h.n_elements // 2)
    low, high = (-clip, clip) if symmetric else (h.low, h.high)

    def ends(fractions: _FloatArray) -> tuple[_FloatArray, _FloatArray]:
        """Ranges that keep these fractions of what lies below and above the middle."""
        below, above = fractions[0], fractions[-1]
        # The whole is the whole, to the bit.
        return (
            np.where(below == 1.0, low, middle + below * (low - middle)),
            np.where(above == 1.0, high, middle + above * (high - middle)),
        )

    def cost(fractions: _FloatArray) -> _FloatArray:
        return error(*ends(fractions))

    if symmetric:
        axes = [_COARSE]
        refinements = [33, 33]
    else:
        axes = [_COARSE_PAIRS if end != middle else np.ones(1) for end in (low, high)]
        refinements = [13, 13, 9]
    whole = np.ones((len(axes), 1))
    best, least = _coarse_to_fine(cost, axes, refinements)
    # Within bins values are only known to be somewhere; the estimate is off by a fraction of 1 / sqrt(n).
    margin = 0.0 if h.values is not None else 0.5 / np.sqrt(float(h.n_elements))
    if not least < cost(whole)[0] * (1.0 - margin):
        best = whole
    chosen = ends(best)
    return float(chosen[0][0]), float(chosen[1][0])


def kl_range(h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool) -> tuple[float, float]:
    """Return the range whose codes lose the least information, by a generalised KL divergence.

    After Migacz (2017); docs/numerics.md says what was changed and why.
    """
    if not _searchable(h):
        return h.low, h.high
    low, high, counts = h.bins()
    low, high = np.maximum(low, h.low), np.minimum(high, h.high)
    mass = counts.astype(np.float64)
    symmetric = symmetric or bits is QuantBits.FP8
    if symmetric:
        clip = max(abs(h.low), abs(h.high))
        low, high = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
        origin, width = 0.0, clip / KL_BINS
    else:
        origin, width = h.low, (h.high - h.low) / KL_BINS
    if width == 0.0:
        return h.low, h.high
    linear = np.zeros(KL_BINS)
    _dispatch.kernels.spread_counts(low, high, mass, origin, width, linear)
    sums = np.empty((3, KL_BINS + 1))
    _dispatch.kernels.kl_prefix_sums(linear, sums)
    edges = _level_edges(bits, symmetric)
    levels = edges.size - 1

    def divergence(first: npt.NDArray[np.int64], stop: npt.NDArray[np.int64]) -> _FloatArray:
        out = np.empty(first.size)
        _dispatch.kernels.kl_divergence_sweep(linear, sums, edges, first, stop, out)
        return out

    if symmetric:
        stops = np.arange(levels, KL_BINS + 1)
        cost = divergence(np.zeros_like(stops), stops)
        stop = int(stops[cost.size - 1 - int(np.argmin(cost[::-1]))])  # of equals, what clips least
        clip = clip if stop == KL_BINS else stop * width
        return -clip, clip
    first, stop = _search_pairs(divergence, levels)
    chosen_low = h.low if first == 0 else origin + first * width
    chosen_high = h.high if stop == KL_BINS else origin + stop * width
    if h.n_zero:  # zeros were left out of the divergence, not of the range
        chosen_low, chosen_high = min(chosen_low, 0.0), max(chosen_high, 0.0)
    return chosen_low, chosen_high


def _searchable(h: LeadingBitHistogram) -> bool:
    """Whether there is a range to search, and one that float64 can hold."""
    with np.errstate(over="ignore"):
        return h.low < h.high and bool(np.isfinite(np.float64(h.high) - np.float64(h.low)))


# --- mean squared error -------------------------------------------------------------------------------

#: Fractions of a range for the coarse search: 8 in each of 14 octaves, and 1.
_COARSE = np.append(np.outer(2.0 ** -np.arange(14.0, 0.0, -1.0), np.arange(8.0, 16.0) / 8.0).reshape(-1), 1.0)
#: Fewer, for the search over both ends.
_COARSE_PAIRS = np.concatenate([2.0 ** -np.arange(14.0, 3.0, -1.0), np.arange(4.0, 33.0) / 32.0])


def _padded(*arrays: _FloatArray) -> list[_FloatArray]:
    """Lengthen arrays with zeros to a multiple of 8, as the kernels sum."""
    return [np.concatenate([a, np.zeros(-a.size % 8)]) for a in arrays]


def _squared_error(
    pieces: Pieces, unit: float, bits: QuantBits, *, symmetric: bool, include_zero: bool
) -> Callable[[_FloatArray, _FloatArray], _FloatArray]:
    """Return a function from clipping ranges to the total squared error of their codes, times unit**2."""
    density = pieces.mass / ((pieces.high - pieces.low) * unit)
    distribution = [
        *_padded(pieces.low * unit, pieces.high * unit, density),
        *_padded(pieces.points * unit, pieces.counts),
    ]

    def error(low: _FloatArray, high: _FloatArray) -> _FloatArray:
        scale, zero_point = scale_and_zero_point(low, high, bits, symmetric=symmetric, include_zero=include_zero)
        out = np.empty(scale.size)
        if bits is QuantBits.FP8:
            _dispatch.kernels.e4m3_squared_error(*distribution, scale * unit, out)
        else:
            least, greatest = INTEGERS[bits].code_range(symmetric)
            first = (least - zero_point.astype(np.int64)).astype(np.float64)
            last = first + (greatest - least)
            _dispatch.kernels.integer_squared_error(*distribution, scale * unit, first, last, out)
        out[np.isnan(out)] = np.inf
        return out

    return error


def _coarse_to_fine(
    cost: Callable[[_FloatArray], _FloatArray], axes: list[_FloatArray], refinements: list[int]
) -> tuple[_FloatArray, float]:
    """Return the cheapest point of a grid, refined between its neighbours, and its cost.

    Of equally cheap points the last is taken, the one that keeps most.
    """
    for refinement in [*refinements, 0]:
        grid = np.stack([g.reshape(-1) for g in np.meshgrid(*axes, indexing="ij")])
        costs = cost(grid)
        index = costs.size - 1 - int(np.argmin(costs[::-1]))
        best, least = grid[:, index : index + 1], float(costs[index])
        if refinement:
            axes = [_between_neighbours(axis, float(b[0]), refinement) for axis, b in zip(axes, best, strict=True)]
    return best, least


def _between_neighbours(axis: _FloatArray, value: float, n: int) -> _FloatArray:
    index = int(np.searchsorted(axis, value))
    start, stop = axis[max(index - 1, 0)], axis[min(index + 1, axis.size - 1)]
    if start == stop:
        return axis
    steps = start + np.arange(n) * ((stop - start) / (n - 1))
    steps[-1] = stop
    return np.unique(np.append(steps, value))  # what was found is not lost


# --- Kullback-Leibler divergence ----------------------------------------------------------------------


def _level_edges(bits: QuantBits, symmetric: bool) -> _FloatArray:
    """Return the boundaries between the levels of a format, as fractions of the clipping range.

    For symmetric formats those of the magnitudes: a level's values are nearer to it than to any other.
    """
    if bits is QuantBits.FP8:
        levels = E4M3_VALUES[:127] / E4M3_MAX
    elif symmetric:
        levels = np.arange(INTEGERS[bits].high + 1) / INTEGERS[bits].high
    else:
        levels = np.arange(INTEGERS[bits].steps + 1) / INTEGERS[bits].steps
    return np.concatenate([[0.0], (levels[:-1] + levels[1:]) / 2.0, [1.0]])


def _search_pairs(
    divergence: Callable[[npt.NDArray[np.int64], npt.NDArray[np.int64]], _FloatArray], levels: int
) -> tuple[int, int]:
    """Return the cheapest pair of ends, at steps of 64, 16, 4 and 1 bins."""
    firsts = np.arange(0, KL_BINS, 64)
    stops = np.arange(64, KL_BINS + 1, 64)
    for step in (16, 4, 1, 0):
        first, stop = (g.reshape(-1) for g in np.meshgrid(firsts, stops, indexing="ij"))
        wide = stop - first >= levels
        first, stop = first[wide], stop[wide]
        cost = divergence(first, stop)
        width = np.where(cost == cost.min(), stop - first, 0)
        index = int(np.argmax(width))  # of equals, what clips least
        best = int(first[index]), int(stop[index])
        if step:
            around = np.arange(-4, 5) * step
            firsts = np.unique(np.clip(best[0] + around, 0, KL_BINS))
            stops = np.unique(np.clip(best[1] + around, 0, KL_BINS))
    return best
