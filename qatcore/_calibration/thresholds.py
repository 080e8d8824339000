"""From a histogram to a clipping range.

All from one histogram, so that one pass over the data serves every method.  Nothing here calls a library
for a logarithm, a power or a sum whose order it does not fix: the ranges are the same on every machine.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.config import CalibMethod
from .._base.formats import E4M3_MAX, E4M3_VALUES, INTEGERS, QuantBits
from .._base.scale import scale_and_zero_point
from .._base.threads import for_ranges
from .histogram import LeadingBitHistogram

_FloatArray = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]

#: The lower and the upper end of each channel's clipping range.
Range = tuple[_FloatArray, _FloatArray]

#: The percentile that is taken where none is asked for, the reference's.
PERCENTILE = 99.0

#: Linear bins of the KL search.
KL_BINS = 2048
#: Ranges compared by squared error at most, of those that the divergence cannot tell apart.
_MOST_ALIKE = 128


def min_max_range(h: LeadingBitHistogram) -> Range:
    """Return the least and the greatest finite value of each channel."""
    return h.low, h.high


@np.errstate(all="ignore")
def percentile_range(h: LeadingBitHistogram, p: float) -> Range:
    """Return the range of each channel that leaves out (100 - p) / 2 percent at either end.

    The ranks are the reference's: rounded down at the lower end and up at the upper one.
    """
    n = h.n_elements
    outside = (100.0 - min(max(p, 0.0), 100.0)) / 200.0
    lower = np.minimum(np.floor(n * outside).astype(np.int64), n - 1)
    upper = np.minimum(np.ceil(n * (1.0 - outside)).astype(np.int64), n - 1)
    low, high = h.values_at_ranks(lower), h.values_at_ranks(upper)
    # Zeros among which other values are lost are no range, as is nothing observed.
    lost = (n == 0) | ((low == 0.0) & (high == 0.0) & (h.low < h.high))
    return np.where(lost, np.inf, low), np.where(lost, -np.inf, high)


@np.errstate(all="ignore")
def mse_range(h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool) -> Range:
    """Return the range of each channel whose codes have the least expected squared error.

    Clipping and rounding errors of the codebook that `scale_and_zero_point` makes of the range, integrated
    over each bin.  Searched coarse to fine; min-max itself is a candidate, and it is kept unless another
    gains more than the histogram leaves in doubt.
    """
    symmetric = symmetric or bits is QuantBits.FP8
    low, high = h.low.copy(), h.high.copy()
    searched = np.flatnonzero(_is_searchable(h))
    # An end that the median has reached is not searched.
    middle = np.zeros(h.channels) if symmetric else h.values_at_ranks(h.n_elements // 2)
    shapes = (low[searched] != middle[searched]) * 2 + (high[searched] != middle[searched])
    for shape in np.unique(shapes[:1] if symmetric else shapes).tolist():
        alike = searched if symmetric else searched[shapes == shape]
        axes = [_COARSE] if symmetric else [_COARSE_PAIRS if shape & end else np.ones(1) for end in (2, 1)]
        candidates = int(np.prod([axis.size for axis in axes]))
        for within, part in h.take(alike).portions(4 * candidates):
            channels = alike[within]
            error = SquaredError(part, bits, symmetric=symmetric, include_zero=include_zero)
            low[channels], high[channels] = _least_error(part, error, middle[channels], axes)
    return low, high


def _least_error(h: LeadingBitHistogram, error: SquaredError, middle: _FloatArray, axes: list[_FloatArray]) -> Range:
    """Return the ranges with the least error: about 0 if there is one axis of fractions, else for each end."""
    symmetric = len(axes) == 1
    low, high = whole_range(h, symmetric=symmetric)

    def ends(fractions: list[_FloatArray]) -> Range:
        """Ranges that keep these fractions of what lies below and above the middle."""
        # The whole is the whole, to the bit.
        return tuple(  # type: ignore[return-value]
            np.where(kept == 1.0, end[:, np.newaxis], (middle + kept.T * (end - middle)).T)
            for end, kept in ((low, fractions[0]), (high, fractions[-1]))
        )

    best, least = _coarse_to_fine(
        lambda fractions: error(*ends(fractions)),
        [np.broadcast_to(axis, (h.channels, axis.size)) for axis in axes],
        [33, 33] if symmetric else [13, 13, 9],
    )
    new_low, new_high = (end[:, 0] for end in ends(best))
    gain = error(low[:, np.newaxis], high[:, np.newaxis])[:, 0] - least
    certain = gain > error.doubt((low, high), (new_low, new_high))
    return np.where(certain, new_low, low), np.where(certain, new_high, high)


def kl_range(h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool) -> Range:
    """Return the range of each channel whose codes lose the least information, by a generalised KL divergence.

    After Migacz (2017); docs/numerics.md says what was changed and why.  Of the ranges whose divergences
    sampling cannot tell apart, and the whole range, the one with the least expected squared error is taken.
    """
    low, high = h.low.copy(), h.high.copy()
    searched = np.flatnonzero(_is_searchable(h))
    symmetric = symmetric or bits is QuantBits.FP8

    def search(start: int, stop: int) -> None:
        for channel in searched[start:stop]:
            low[channel], high[channel] = _least_divergence(
                h.take(np.array([channel])), bits, symmetric=symmetric, include_zero=include_zero
            )

    for_ranges(searched.size, 1, search)
    return low, high


@np.errstate(all="ignore")
def _least_divergence(
    h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool
) -> tuple[float, float]:
    """Return the range of one channel."""
    whole = whole_range(h, symmetric=symmetric)
    lowest, highest = float(whole[0][0]), float(whole[1][0])
    origin, width = (0.0, highest / KL_BINS) if symmetric else (lowest, (highest - lowest) / KL_BINS)
    if width == 0.0:
        return lowest, highest
    linear, sums = _linear_bins(h, origin, width, magnitudes=symmetric)
    edges = _level_edges(bits, symmetric)
    levels = edges.size - 1

    def divergence(first: _Indices, stop: _Indices) -> _FloatArray:
        out = np.empty(first.size)
        dispatch.kernels.kl_divergence_sweep(linear, sums, edges, first, stop, out)
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
        high = np.where(stop == KL_BINS, highest, stop * width)
        low = -high
    else:
        first, stop, cost = _search_pairs(divergence, levels, tolerance)
        low = np.where(first == 0, lowest, origin + first * width)
        high = np.where(stop == KL_BINS, highest, origin + stop * width)
        if h.n_zero[0]:  # zeros were left out of the divergence, not of the range
            low, high = np.minimum(low, 0.0), np.maximum(high, 0.0)
    alike = np.flatnonzero(cost <= cost.min() + tolerance)
    alike = alike[:: -(-alike.size // _MOST_ALIKE)]
    # The whole range is always among them: a divergence does not see how far a value is clipped.
    low, high = np.append(low[alike], lowest), np.append(high[alike], highest)
    error = SquaredError(h, bits, symmetric=symmetric, include_zero=include_zero)
    best = int(np.argmin(error(low[np.newaxis], high[np.newaxis])))
    return float(low[best]), float(high[best])


def ranges_by_method(
    h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool
) -> dict[CalibMethod, Range]:
    """Return what each method chooses, the simplest one's first."""
    options = {"symmetric": symmetric, "include_zero": include_zero}
    return {
        CalibMethod.MIN_MAX: min_max_range(h),
        CalibMethod.PERCENTILE: percentile_range(h, PERCENTILE),
        CalibMethod.KL: kl_range(h, bits, **options),
        CalibMethod.MSE: mse_range(h, bits, **options),
    }


@np.errstate(all="ignore")
def expected_errors(
    h: LeadingBitHistogram, ranges: list[Range], bits: QuantBits, *, symmetric: bool, include_zero: bool
) -> tuple[_FloatArray, _FloatArray]:
    """Return the total squared errors of ranges, shape (channels, ranges), and the units they are in.

    Infinite where no scale is: the errors of a range that float64 cannot hold.
    """
    errors, unit = np.empty((h.channels, len(ranges))), np.empty(h.channels)
    for channels, part in h.portions(4 * len(ranges)):
        error = SquaredError(part, bits, symmetric=symmetric, include_zero=include_zero)
        low, high = (np.stack([chosen[end][channels] for chosen in ranges], axis=1) for end in (0, 1))
        errors[channels], unit[channels] = error(low, high), error.unit
    return errors, unit


@np.errstate(all="ignore")
def best_range(
    h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool
) -> tuple[CalibMethod, Range]:
    """Return the method with the least expected squared error, all channels together, and what it chooses.

    Of equally good ones the simplest.
    """
    ranges = ranges_by_method(h, bits, symmetric=symmetric, include_zero=include_zero)
    errors, unit = expected_errors(h, list(ranges.values()), bits, symmetric=symmetric, include_zero=include_zero)
    total = np.zeros(len(ranges))
    share = (unit.min(initial=1.0) / unit[:, np.newaxis]) ** 2
    for row in np.where(share > 0.0, errors * share, 0.0):  # in the order of the channels
        total += row
    method = list(ranges)[int(np.argmin(total))]
    return method, ranges[method]


def whole_range(h: LeadingBitHistogram, *, symmetric: bool) -> Range:
    """Return the range of each channel that clips nothing."""
    if not symmetric:
        return h.low, h.high
    clip = np.maximum(np.abs(h.low), np.abs(h.high))
    return -clip, clip


def _is_searchable(h: LeadingBitHistogram) -> npt.NDArray[np.bool_]:
    """Return whether there is a range to search, and one that float64 can hold."""
    with np.errstate(all="ignore"):
        return (h.low < h.high) & np.isfinite(h.high - h.low)


# --- mean squared error -------------------------------------------------------------------------------

#: Fractions of a range for the coarse search: 8 in each of 14 octaves, and 1.
_COARSE = np.append(np.outer(np.ldexp(1.0, -np.arange(14, 0, -1)), np.arange(8.0, 16.0) / 8.0).reshape(-1), 1.0)
#: Fewer, for the search over both ends.
_COARSE_PAIRS = np.concatenate([np.ldexp(1.0, -np.arange(14, 3, -1)), np.arange(4.0, 33.0) / 32.0])

#: Standard deviations by which values, lying anywhere in their bins, may make a range worse than it looks.
_DEVIATIONS = 4.0

_GRAIN = 1 << 17  # intervals and points that take a thread about 0.2 ms


class SquaredError:
    """The expected squared error of codes: from clipping ranges, some for each channel, to totals.

    Attributes
    ----------
    unit : ndarray of float64, shape (channels,)
        Totals are in squares of 1 / unit.  A power of two: squares of huge values must not overflow, nor those of
        tiny ones vanish.
    """

    @np.errstate(all="ignore")
    def __init__(self, h: LeadingBitHistogram, bits: QuantBits, *, symmetric: bool, include_zero: bool) -> None:
        self._bits = bits
        self._options = {"symmetric": symmetric, "include_zero": include_zero}
        self._distribution, self.unit = scaled_distribution(h, density=True)
        self._size = 1 + (self._distribution[0].size + self._distribution[4].size) // max(h.channels, 1)

    @np.errstate(all="ignore")
    def __call__(self, low: _FloatArray, high: _FloatArray) -> _FloatArray:
        """Return the errors of ranges, shape (channels, candidates)."""
        scale, zero_point = scale_and_zero_point(low, high, self._bits, **self._options)
        out = np.empty(scale.shape)
        scaled = scale * self.unit[:, np.newaxis]
        kernel: Callable[..., None]
        if self._bits is QuantBits.FP8:
            kernel, arguments = dispatch.kernels.e4m3_squared_error, (*self._distribution, scaled)
        else:
            least, greatest = INTEGERS[self._bits].code_range(self._options["symmetric"])
            first = (least - zero_point.astype(np.int64)).astype(np.float64)
            kernel = dispatch.kernels.integer_squared_error
            arguments = (*self._distribution, scaled, first, first + (greatest - least))
        if out.size:
            grain = _GRAIN // self._size + 1
            for_ranges(out.size, grain, lambda begin, stop: kernel(*arguments, out, begin, stop))
        out[np.isnan(out)] = np.inf
        return out

    @np.errstate(all="ignore")
    def doubt(self, whole: Range, other: Range) -> _FloatArray:
        """Return, for each channel, what the errors of two ranges have to differ by to do so on the values themselves.

        Within a bin values may be anywhere: docs/numerics.md has the derivation.  Where the values are kept it is 0.
        """
        low, high, density, start = self._distribution[:4]
        there = np.flatnonzero(density)  # the rest is padding
        channel = np.repeat(np.arange(self.unit.size), np.diff(start))[there]
        low, high, density = low[there], high[there], density[there]
        mass = density * (high - low)
        # In steps of the whole range, whose fourth powers are finite.
        step = scale_and_zero_point(*whole, self._bits, **self._options)[0] * self.unit
        variance = sum(self._variances(low, high, channel, chosen, step) for chosen in (whole, other))
        deviation = np.sqrt(variance)
        by_chance = np.sqrt(np.bincount(channel, mass * variance, self.unit.size))
        unevenness = _unevenness(low, high, density, channel)
        by_shape = np.bincount(channel, mass * math.sqrt(5.0) * unevenness**2 * deviation, self.unit.size)
        return (_DEVIATIONS * by_chance + by_shape) * step**2

    def _variances(
        self, low: _FloatArray, high: _FloatArray, channel: _Indices, chosen: Range, unit: _FloatArray
    ) -> _FloatArray:
        """Return what variance squared errors have in intervals at most, in fourth powers of a unit."""
        scale, zero_point = scale_and_zero_point(*chosen, self._bits, **self._options)
        scale = scale * self.unit
        if self._bits is QuantBits.FP8:  # with three bits of mantissa, and the step of the least normal numbers below
            step = np.maximum(np.maximum(np.abs(low), np.abs(high)) / 8.0, scale[channel] / 512.0)
            first, last = -scale * E4M3_MAX, scale * E4M3_MAX
        else:
            step = scale[channel]
            ends = INTEGERS[self._bits].code_range(self._options["symmetric"])
            first, last = (scale * (float(code) - zero_point) for code in ends)
        beyond = np.maximum(np.maximum(first[channel] - low, high - last[channel]) - step / 2.0, 0.0)
        step, beyond, width = (each / unit[channel] for each in (step, beyond, high - low))
        varies = ((step + 2.0 * beyond) * width) ** 2 / 12.0
        return np.where(beyond > 0.0, varies, np.minimum(varies, step**4 / 180.0))


def _unevenness(low: _FloatArray, high: _FloatArray, density: _FloatArray, channel: _Indices) -> _FloatArray:
    """Return by which part of its own, at most 1, an interval's density differs from a neighbour's.

    Beyond two deviations of the counts, and only where much of the data may lie at one place: in intervals without a
    neighbour, as those of a lattice, and in the outermost, where a density may have no bound.
    """
    left, right = slice(None, -1), slice(1, None)
    inside = channel[left] == channel[right]
    touching = inside & (high[left] == low[right])
    n, width, uneven = density.size, high - low, np.zeros(density.size)
    for one, two in ((right, left), (left, right)):
        beside = np.where(touching, density[two], 0.0)
        chance = 2.0 * np.sqrt(density[one] * width[one] + beside * width[one] * (width[one] / width[two]))
        excess = np.abs(density[one] - beside) / density[one] - chance / (density[one] * width[one])
        uneven[one] = np.maximum(uneven[one], np.where(inside, excess, 0.0))
    is_outermost = ~(np.append(False, inside)[:n] & np.append(inside, False)[:n])
    is_alone = ~(np.append(False, touching)[:n] | np.append(touching, False)[:n])
    return np.where(is_outermost | is_alone, np.minimum(uneven, 1.0), 0.0)


def scaled_distribution(h: LeadingBitHistogram, *, density: bool) -> tuple[tuple[npt.NDArray[Any], ...], _FloatArray]:
    """Return the distributions as the kernels take them, of values times a unit, and the units.

    The mass of intervals is a density, if that is asked for.
    """
    largest = np.maximum(np.abs(h.low), np.abs(h.high))
    unit = np.where(largest < 2.0**-400, 2.0**400, np.where((largest > 2.0**400) & (largest < np.inf), 2.0**-600, 1.0))
    pieces = h.pieces()
    by_interval = np.repeat(unit, np.diff(pieces.interval_start))
    low, high, mass = pieces.low * by_interval, pieces.high * by_interval, pieces.mass
    points = pieces.points * np.repeat(unit, np.diff(pieces.point_start))
    if density:
        mass = mass / (high - low)
    intervals = _padded(pieces.interval_start, low, high, mass)
    return (*intervals, *_padded(pieces.point_start, points, pieces.counts)), unit


def _padded(start: _Indices, *arrays: _FloatArray) -> list[npt.NDArray[Any]]:
    """Lengthen each channel's part of arrays with zeros to a multiple of 8, as the kernels sum; and their starts."""
    sizes = np.diff(start)
    padded_start = np.concatenate([[0], np.cumsum(-(-sizes // 8) * 8)])
    where = np.arange(arrays[0].size) + np.repeat(padded_start[:-1] - start[:-1], sizes)
    padded: list[npt.NDArray[Any]] = [np.zeros(padded_start[-1]) for _ in arrays]
    for target, array in zip(padded, arrays, strict=True):
        target[where] = array
    return [*padded, padded_start]


def _coarse_to_fine(
    cost: Callable[[list[_FloatArray]], _FloatArray], axes: list[_FloatArray], refinements: list[int]
) -> tuple[list[_FloatArray], _FloatArray]:
    """Return the cheapest point of each channel's grid, refined between its neighbours, and its cost.

    Axes have shape (channels, n), the points (channels, 1).  Of equally cheap points the last is taken, the one
    that keeps most.
    """
    for refinement in [*refinements, 0]:
        if len(axes) == 1:
            grid = axes
        else:
            shape = (axes[0].shape[0], axes[0].shape[1], axes[1].shape[1])
            grid = [
                np.broadcast_to(a, shape).reshape(shape[0], -1)
                for a in (axes[0][:, :, np.newaxis], axes[1][:, np.newaxis, :])
            ]
        costs = cost(grid)
        index = costs.shape[1] - 1 - np.argmin(costs[:, ::-1], axis=1, keepdims=True)
        best = [np.take_along_axis(g, index, axis=1) for g in grid]
        if refinement:
            axes = [_between_neighbours(axis, b, refinement) for axis, b in zip(axes, best, strict=True)]
    return best, np.take_along_axis(costs, index, axis=1)[:, 0]


def _between_neighbours(axis: _FloatArray, value: _FloatArray, n: int) -> _FloatArray:
    """Return n steps from the next smaller to the next greater point of each axis, and the value itself."""
    if axis.shape[1] == 1:
        return axis
    start = np.maximum(np.where(axis < value, axis, -np.inf).max(axis=1, keepdims=True), axis[:, :1])
    stop = np.minimum(np.where(axis > value, axis, np.inf).min(axis=1, keepdims=True), axis[:, -1:])
    steps = start + np.arange(n) * ((stop - start) / (n - 1))
    steps[:, -1:] = stop
    return np.sort(np.concatenate([steps, value], axis=1), axis=1)  # what was found is not lost


# --- Kullback-Leibler divergence ----------------------------------------------------------------------


def _linear_bins(
    h: LeadingBitHistogram, origin: float, width: float, *, magnitudes: bool
) -> tuple[_FloatArray, _FloatArray]:
    """Return the mass of one channel in `KL_BINS` linear bins, and its running sums as the divergence needs them.

    The mass of a bin of leading bits is uniform inside it.  Zeros are left out: they have no error, and a
    rectifier's would drown the rest.
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
