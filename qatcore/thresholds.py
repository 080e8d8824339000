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
from .histogram import LeadingBitHistogram
from .scale import scale_and_zero_point

_FloatArray = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]

#: Linear bins of the KL search.
KL_BINS = 2048
#: Ranges compared by squared error at most, of those that the divergence cannot tell apart.
_MOST_ALIKE = 128


def min_max_range(h: LeadingBitHistogram) -> tuple[float, float]:
    """Return the least and the greatest finite value."""
    return h.low, h.high


@np.errstate(all="ignore")
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


@np.errstate(all="ignore")
def mse_range(h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool) -> tuple[float, float]:
    """Return the range whose codes have the least expected squared error.

    Clipping and rounding errors of the codebook that `scale_and_zero_point` makes of the range, integrated
    over each bin.  Searched coarse to fine; min-max itself is a candidate, and it is kept unless another
    gains more than the histogram can tell.
    """
    if not _searchable(h):
        return h.low, h.high
    error = _squared_error(h, bits, symmetric=symmetric, include_zero=include_zero)
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
    margin = 0.0 if h.values is not None else 1.5 / np.sqrt(float(h.n_elements))
    if not least < cost(whole)[0] * (1.0 - margin):
        best = whole
    chosen = ends(best)
    return float(chosen[0][0]), float(chosen[1][0])


@np.errstate(all="ignore")
def kl_range(h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool) -> tuple[float, float]:
    """Return the range whose codes lose the least information, by a generalised KL divergence.

    After Migacz (2017); docs/numerics.md says what was changed and why.  Of the ranges whose divergences
    sampling cannot tell apart, and the whole range, the one with the least expected squared error is taken.
    """
    if not _searchable(h):
        return h.low, h.high
    symmetric = symmetric or bits is QuantBits.FP8
    clip = max(abs(h.low), abs(h.high))
    origin, width = (0.0, clip / KL_BINS) if symmetric else (h.low, (h.high - h.low) / KL_BINS)
    if width == 0.0:
        return h.low, h.high
    linear, sums = _linear_bins(h, origin, width, magnitudes=symmetric)
    edges = _level_edges(bits, symmetric)
    levels = edges.size - 1

    def divergence(first: _Indices, stop: _Indices) -> _FloatArray:
        out = np.empty(first.size)
        _dispatch.kernels.kl_divergence_sweep(linear, sums, edges, first, stop, out)
        return out

    # With m cells twice the divergence varies like chi-squared with m degrees of freedom: two deviations.
    tolerance = np.sqrt(2.0 * sums[3, -1])
    if symmetric:
        # Every eighth, then those about the cheapest: neighbours differ by less than the divergence's own noise.
        stop = np.append(np.arange(levels, KL_BINS, 8), KL_BINS)
        cost = divergence(np.zeros_like(stop), stop)
        nearer = np.clip(stop[np.argmin(cost)] + np.arange(-7, 8), levels, KL_BINS)
        stop = np.append(stop, nearer)
        cost = np.append(cost, divergence(np.zeros_like(nearer), nearer))
        high = np.where(stop == KL_BINS, clip, stop * width)
        low = -high
    else:
        first, stop, cost = _search_pairs(divergence, levels, tolerance)
        low = np.where(first == 0, h.low, origin + first * width)
        high = np.where(stop == KL_BINS, h.high, origin + stop * width)
        if h.n_zero:  # zeros were left out of the divergence, not of the range
            low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    alike = np.flatnonzero(cost <= cost.min() + tolerance)
    alike = alike[:: -(-alike.size // _MOST_ALIKE)]
    # The whole range is always among them: a divergence does not see how far a value is clipped.
    whole = (-clip, clip) if symmetric else (h.low, h.high)
    low, high = np.append(low[alike], whole[0]), np.append(high[alike], whole[1])
    best = int(np.argmin(_squared_error(h, bits, symmetric=symmetric, include_zero=include_zero)(low, high)))
    return float(low[best]), float(high[best])


def _searchable(h: LeadingBitHistogram) -> bool:
    """Whether there is a range to search, and one that float64 can hold."""
    with np.errstate(over="ignore"):
        return h.low < h.high and bool(np.isfinite(np.float64(h.high) - np.float64(h.low)))


# --- mean squared error -------------------------------------------------------------------------------

#: Fractions of a range for the coarse search: 8 in each of 14 octaves, and 1.
_COARSE = np.append(np.outer(np.ldexp(1.0, -np.arange(14, 0, -1)), np.arange(8.0, 16.0) / 8.0).reshape(-1), 1.0)
#: Fewer, for the search over both ends.
_COARSE_PAIRS = np.concatenate([np.ldexp(1.0, -np.arange(14, 3, -1)), np.arange(4.0, 33.0) / 32.0])


def _padded(*arrays: _FloatArray) -> list[_FloatArray]:
    """Lengthen arrays with zeros to a multiple of 8, as the kernels sum."""
    return [np.concatenate([a, np.zeros(-a.size % 8)]) for a in arrays]


def _squared_error(
    h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool
) -> Callable[[_FloatArray, _FloatArray], _FloatArray]:
    """Return a function from clipping ranges to the total squared error of their codes, in some unit."""
    # A power of two, so exact: squares of huge values must not overflow.
    unit = 2.0**-600 if max(abs(h.low), abs(h.high)) > 2.0**400 else 1.0
    pieces = h.pieces()
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


def _linear_bins(
    h: LeadingBitHistogram, origin: float, width: float, *, magnitudes: bool
) -> tuple[_FloatArray, _FloatArray]:
    """Return the mass of `KL_BINS` linear bins, and its running sums as the divergence needs them.

    The mass of a bin of leading bits is uniform inside it.  Zeros are left out: they have no error, and a
    rectifier's would drown the rest.
    """
    low, high, counts = h.bins()
    low, high = np.maximum(low, h.low), np.minimum(high, h.high)
    if magnitudes:
        low, high = np.minimum(np.abs(low), np.abs(high)), np.maximum(np.abs(low), np.abs(high))
    linear, cells = np.zeros((2, KL_BINS))
    _dispatch.kernels.spread_counts(low, high, counts.astype(np.float64), origin, width, linear)
    _dispatch.kernels.spread_counts(low, high, np.ones(counts.size), origin, width, cells)
    sums = np.empty((4, KL_BINS + 1))
    _dispatch.kernels.kl_prefix_sums(linear, cells, sums)
    return linear, sums


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
    divergence: Callable[[_Indices, _Indices], _FloatArray], levels: int, tolerance: float
) -> tuple[_Indices, _Indices, _FloatArray]:
    """Return pairs of ends and what they cost.

    At steps of 64, 16, 4 and 1 bins around the cheapest, then 16 by 16 over those within the tolerance.
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
