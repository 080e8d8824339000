"""Choose clipping ranges from a histogram.

All methods use the same histogram, so one pass over the data serves all of them.  The ranges are the same on every
machine.  So nothing here asks a library for a logarithm, for a power, or for a sum in an order that may differ.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from .._base.config import CalibMethod
from .._base.scale import Target
from .divergence import kl_range
from .histogram import LeadingBitHistogram, Range
from .squared_error import SquaredError, expected_errors

_FloatArray = npt.NDArray[np.float64]


#: The default percentile, which is the reference's too.
PERCENTILE = 99.0
#: Fractions of a range for the coarse search: 8 in each of 14 octaves, and 1.
COARSE_FRACTIONS = np.append(
    np.outer(np.ldexp(1.0, -np.arange(14, 0, -1)), np.arange(8.0, 16.0) / 8.0).reshape(-1), 1.0
)
#: Fewer fractions, for the search over both ends.
_COARSE_PAIRS = np.concatenate([np.ldexp(1.0, -np.arange(14, 3, -1)), np.arange(4.0, 33.0) / 32.0])


def min_max_range(h: LeadingBitHistogram) -> Range:
    """Return the least and the greatest finite value of each channel."""
    return h.low, h.high


@np.errstate(all="ignore")
def percentile_range(h: LeadingBitHistogram, p: float) -> Range:
    """Return, for each channel, the range that leaves out (100 - p) / 2 percent at either end.

    The ranks are the reference's: rounded down at the lower end and up at the upper one.
    """
    n = h.n_elements
    outside = (100.0 - min(max(p, 0.0), 100.0)) / 200.0
    lower = np.minimum(np.floor(n * outside).astype(np.int64), n - 1)
    upper = np.minimum(np.ceil(n * (1.0 - outside)).astype(np.int64), n - 1)
    low, high = h.values_at_ranks(lower), h.values_at_ranks(upper)
    # There is no range if nothing was observed, or if only zeros are left of data that has other values.
    lost = (n == 0) | ((low == 0.0) & (high == 0.0) & (h.low < h.high))
    return np.where(lost, np.inf, low), np.where(lost, -np.inf, high)


@np.errstate(all="ignore")
def mse_range(h: LeadingBitHistogram, target: Target) -> Range:
    """Return, for each channel, the range whose codes have the least expected squared error.

    The error is the squared error of clipping and rounding to the codes that `scale_and_zero_point` gives for the
    range, integrated over each bin.  The search goes from coarse to fine.  The whole range is a candidate.  It is kept
    unless another range gains more than the histogram leaves in doubt.
    """
    symmetric = target.is_even
    low, high = h.low.copy(), h.high.copy()
    searched = np.flatnonzero(h.is_searchable)
    # An end that equals the median is not searched.
    middle = np.zeros(h.channels) if symmetric else h.values_at_ranks(h.n_elements // 2)
    shapes = (low[searched] != middle[searched]) * 2 + (high[searched] != middle[searched])
    for shape in np.unique(shapes[:1] if symmetric else shapes).tolist():
        alike = searched if symmetric else searched[shapes == shape]
        axes = [COARSE_FRACTIONS] if symmetric else [_COARSE_PAIRS if shape & end else np.ones(1) for end in (2, 1)]
        candidates = int(np.prod([axis.size for axis in axes]))
        for within, part in h.take(alike).portions(4 * candidates):
            channels = alike[within]
            error = SquaredError(part, target)
            low[channels], high[channels] = _least_error(part, error, middle[channels], axes)
    return low, high


def _least_error(h: LeadingBitHistogram, error: SquaredError, middle: _FloatArray, axes: list[_FloatArray]) -> Range:
    """Return the ranges with the least error.

    With one axis of fractions, ranges are symmetric about 0; with two axes, each end is searched.
    """
    symmetric = len(axes) == 1
    low, high = h.whole_range(symmetric=symmetric)

    def ends(fractions: list[_FloatArray]) -> Range:
        """Return ranges that keep these fractions of the ways from the middle to the ends."""
        # The fraction 1 gives the end itself, to the bit.
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


def _coarse_to_fine(
    cost: Callable[[list[_FloatArray]], _FloatArray], axes: list[_FloatArray], refinements: list[int]
) -> tuple[list[_FloatArray], _FloatArray]:
    """Return the cheapest point of each channel's grid, and its cost.

    Each refinement makes a finer grid between the neighbours of the cheapest point.  Axes have shape (channels, n), and
    points (channels, 1).  Among equally cheap points, the last one is taken, because it keeps most.
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
    return np.sort(np.concatenate([steps, value], axis=1), axis=1)  # keep what was found


def ranges_by_method(h: LeadingBitHistogram, target: Target) -> dict[CalibMethod, Range]:
    """Return the range that each method chooses, the simplest method first."""
    return {
        CalibMethod.MIN_MAX: min_max_range(h),
        CalibMethod.PERCENTILE: percentile_range(h, PERCENTILE),
        CalibMethod.KL: kl_range(h, target),
        CalibMethod.MSE: mse_range(h, target),
    }


@np.errstate(all="ignore")
def best_range(h: LeadingBitHistogram, target: Target) -> tuple[CalibMethod, Range]:
    """Return the method with the least expected squared error over all channels together, and its ranges.

    Among equally good methods, it is the simplest one.
    """
    ranges = ranges_by_method(h, target)
    errors, unit = expected_errors(h, list(ranges.values()), target)
    total = np.zeros(len(ranges))
    share = (unit.min(initial=1.0) / unit[:, np.newaxis]) ** 2
    for row in np.where(share > 0.0, errors * share, 0.0):  # in the order of the channels
        total += row
    method = list(ranges)[int(np.argmin(total))]
    return method, ranges[method]
