"""The histogram of leading bits.

A value's bin is its sign, its exponent and its top 7 mantissa bits.  So the range need not be known in advance, and
nothing is ever rescaled.  The state depends only on the values seen and on how often each was seen.  It does not matter
how they were split, ordered or merged.  docs/numerics.md derives what follows from that.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

FRACTION = 128  # bins in a binade
BINADES = 4096  # a binade's number is sign * 2048 + biased exponent of float64
_NEGATIVE = 2048

#: A channel keeps up to this many nonzero values as they are.  A scale is judged by where values fall between codes.
#: Bins that are 0.8 % wide do not show this for few values, but they do for many.
EXACT_LIMIT = 8192

#: The greatest count.  float64 holds it exactly, and sums of many such counts do not overflow.
LARGEST_COUNT = 1 << 52

_PORTION = 1 << 21  # numbers held at a time, so that memory does not grow with the number of channels

_FloatArray = npt.NDArray[np.float64]

#: The lower and the upper end of each channel's clipping range.
Range = tuple[_FloatArray, _FloatArray]
_Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Bins:
    """The non-empty bins of all channels: in order of the channels, and ascending in each channel.

    No bin counts zeros.  The bins of channel c are those from ``start[c]`` up to, and without, ``start[c + 1]``.
    If a bin reaches infinity, its edge is the largest float.
    """

    low: _FloatArray
    high: _FloatArray
    counts: _Integers
    start: _Integers


@dataclass(frozen=True)
class Pieces:
    """Distributions: intervals with evenly spread mass, and points with counts, in order of the channels."""

    low: _FloatArray
    high: _FloatArray
    mass: _FloatArray
    interval_start: _Integers
    points: _FloatArray
    counts: _FloatArray
    point_start: _Integers


@dataclass(frozen=True, eq=False)
class LeadingBitHistogram:
    """Counts of values by their leading bits, for each channel; never changed once made.

    A channel with at most `EXACT_LIMIT` finite nonzero values keeps them in `values`.  The others have rows of counts.

    Attributes
    ----------
    low, high : ndarray of float64, shape (channels,)
        Least and greatest finite value; +inf and -inf if there is none.  Zero has no sign.
    n_low, n_high : ndarray of int64, shape (channels,)
        How many values equal the least and the greatest one.  Padding and saturation make these counts large.
    n_zero, n_nan, n_posinf, n_neginf, n_nonzero : ndarray of int64, shape (channels,)
        How many values are 0 (of either sign), NaN, +inf, -inf, and finite but not 0.
    values : ndarray of float64, shape (m,)
        Ascending, channel after channel.
    owners : ndarray of int64, shape (n,)
        ``channel * 4096 + sign * 2048 + biased exponent`` of each touched binade, ascending.
    counts : ndarray of int64, shape (n, 128)
        How many finite nonzero values each of the binade's bins holds.
    """

    low: _FloatArray
    high: _FloatArray
    n_low: _Integers
    n_high: _Integers
    n_zero: _Integers
    n_nan: _Integers
    n_posinf: _Integers
    n_neginf: _Integers
    n_nonzero: _Integers
    values: _FloatArray
    owners: _Integers
    counts: _Integers

    @property
    def channels(self) -> int:
        """Number of channels."""
        return self.low.size

    @property
    def n_elements(self) -> _Integers:
        """Number of finite values in each channel."""
        return self.n_nonzero + self.n_zero

    @property
    def is_exact(self) -> npt.NDArray[np.bool_]:
        """Whether each channel keeps its values themselves."""
        return self.n_nonzero <= EXACT_LIMIT

    @property
    def is_searchable(self) -> npt.NDArray[np.bool_]:
        """Whether each channel has a range to search, of a width that float64 can hold."""
        with np.errstate(all="ignore"):
            return (self.low < self.high) & np.isfinite(self.high - self.low)

    def whole_range(self, *, symmetric: bool) -> Range:
        """Return, for each channel, the range that clips nothing."""
        if not symmetric:
            return self.low, self.high
        clip = np.maximum(np.abs(self.low), np.abs(self.high))
        return -clip, clip

    def statistics(self) -> dict[str, npt.NDArray[Any]]:
        """Return the fields with one number for each channel."""
        return {field.name: getattr(self, field.name) for field in fields(self)[:-3]}

    @cached_property
    def value_start(self) -> _Integers:
        """Where each channel's values begin, and where those of the last channel end."""
        return _starts(np.where(self.is_exact, self.n_nonzero, 0))

    @cached_property
    def row_start(self) -> _Integers:
        """Where each channel's rows of counts begin, and where those of the last channel end."""
        return np.searchsorted(self.owners, np.arange(self.channels + 1) * BINADES)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LeadingBitHistogram):
            return NotImplemented
        return all(np.array_equal(getattr(self, f.name), getattr(other, f.name)) for f in fields(self))

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> tuple[Any, ...]:
        # Pickles hold the fields, and not what is derived from them.
        return LeadingBitHistogram, tuple(getattr(self, f.name) for f in fields(self))

    def take(self, channels: _Integers) -> LeadingBitHistogram:
        """Return the histogram of some channels, in the order given."""
        if channels.size == self.channels and (channels == np.arange(self.channels)).all():
            return self
        value_index, _ = _ranges(self.value_start, channels)
        row_index, owner = _ranges(self.row_start, channels)
        return LeadingBitHistogram(
            **{name: statistic[channels] for name, statistic in self.statistics().items()},
            values=self.values[value_index],
            owners=owner * BINADES + self.owners[row_index] % BINADES,
            counts=self.counts[row_index],
        )

    def portions(self, cost: int) -> Iterator[tuple[_Integers, LeadingBitHistogram]]:
        """Yield portions of the channels, each with its histogram, so that work on a portion takes limited memory.

        `cost` is how many numbers a channel needs beyond those for its values or bins.
        """
        size = cost + np.diff(self.value_start) + FRACTION * np.diff(self.row_start)
        portion = np.cumsum(size) // _PORTION
        edges = [0, *(np.flatnonzero(np.diff(portion)) + 1).tolist(), self.channels]
        for start, stop in itertools.pairwise(edges):
            channels = np.arange(start, stop)
            yield channels, self.take(channels)

    def pooled(self) -> LeadingBitHistogram:
        """Return the histogram of all channels' values together."""
        n_nonzero = self.n_nonzero.sum(keepdims=True)
        low, high = self.low.min(keepdims=True, initial=np.inf), self.high.max(keepdims=True, initial=-np.inf)
        values = np.sort(self.values)
        binade, counts = self.owners % BINADES, self.counts
        if n_nonzero[0] > EXACT_LIMIT:
            bits = values.view(np.int64)
            found, occurrences = np.unique((bits >> 45) & (BINADES * FRACTION - 1), return_counts=True)
            kept = np.zeros((BINADES, FRACTION), np.int64)
            kept.reshape(-1)[found] = occurrences
            touched = np.flatnonzero(kept.any(axis=1))
            binade = np.concatenate([binade, touched])
            counts = np.concatenate([counts, kept[touched]])
            order = np.argsort(binade, kind="stable")
            binade, first = np.unique(binade[order], return_index=True)
            counts = np.add.reduceat(counts[order], first, axis=0)
            values = values[:0]
        return LeadingBitHistogram(
            low,
            high,
            self.n_low.sum(keepdims=True, where=self.low == low),
            self.n_high.sum(keepdims=True, where=self.high == high),
            self.n_zero.sum(keepdims=True),
            self.n_nan.sum(keepdims=True),
            self.n_posinf.sum(keepdims=True),
            self.n_neginf.sum(keepdims=True),
            n_nonzero,
            values,
            binade,
            counts,
        )

    def bins(self) -> Bins:
        """Return the non-empty bins."""
        # Sort the rows by their values, ascending.  Negative values start with the last bin of the last binade.
        binade = self.owners % BINADES
        # NumPy's stable sort is the same code on every CPU, and is right on emulated CPUs.
        position = self.owners + np.where(binade & _NEGATIVE, _NEGATIVE - 1 - 2 * binade, 0)
        order = np.argsort(position, kind="stable")
        counts = self.counts[order]
        backwards = self.owners[order] & _NEGATIVE != 0
        counts[backwards] = counts[backwards, ::-1]
        row, column = np.nonzero(counts)
        owner, occurrences = self.owners[order[row]], counts[row, column]
        column = np.where(backwards[row], FRACTION - 1 - column, column)
        if self.values.size:
            # Kept values are ascending, so those of one bin follow each other.
            channel = np.repeat(np.arange(self.channels), np.diff(self.value_start))
            bits = channel * (BINADES * FRACTION) + ((self.values.view(np.int64) >> 45) & (BINADES * FRACTION - 1))
            first = np.flatnonzero(_changes(bits))
            owner = np.concatenate([owner, bits[first] // FRACTION])
            order = np.argsort(owner // BINADES, kind="stable")
            owner = owner[order]
            column = np.concatenate([column, bits[first] % FRACTION])[order]
            occurrences = np.concatenate([occurrences, np.diff(np.append(first, bits.size))])[order]
        magnitude = ((owner & (_NEGATIVE - 1)) << 52) | (column << 45)
        inner = magnitude.view(np.float64)
        outer = np.minimum((magnitude + (1 << 45)).view(np.float64), np.finfo(np.float64).max)
        negative = owner & _NEGATIVE != 0
        return Bins(
            np.where(negative, -outer, inner),
            np.where(negative, -inner, outer),
            occurrences,
            np.searchsorted(owner // BINADES, np.arange(self.channels + 1)),
        )

    def edges(self) -> _FloatArray:
        """Return the edges of all channels' bins, and of a bin that holds 0."""
        pooled = self.pooled()
        bins = pooled.bins()
        low, high = bins.low + 0.0, bins.high + 0.0
        if pooled.n_elements[0] == 0:
            return low
        if pooled.n_zero[0] or low[0] < 0.0 < high[-1]:
            # The bin of 0 reaches to its neighbours, unless the bin of the least subnormals already holds 0.
            index = int(np.searchsorted(low, 0.0))
            left = high[index - 1] if index else 0.0
            right = low[index] if index < low.size else np.finfo(np.float64).smallest_subnormal * (index == 0)
            if left < right:
                low, high = np.insert(low, index, left), np.insert(high, index, right)
        gaps = np.flatnonzero(high[:-1] < low[1:]) + 1
        return np.append(np.insert(low, gaps, high[gaps - 1]), high[-1])

    def pieces(self) -> Pieces:
        """Return the distributions of the finite values, as far as they are known.

        Values that are kept are points.  Otherwise, each bin's mass is spread evenly over the part of the bin within
        the range.  The least and the greatest value are known, so they are points too.
        """
        counted = self.take(np.flatnonzero(~self.is_exact))
        bins = counted.bins()
        channel = np.repeat(np.flatnonzero(~self.is_exact), np.diff(bins.start))
        mass = bins.counts.astype(np.float64)
        low, high = np.maximum(bins.low, self.low[channel]), np.minimum(bins.high, self.high[channel])
        # The extremes are points; zeros are points anyway.
        lowest = counted.low != 0.0
        highest = (counted.high != 0.0) & (counted.low != counted.high)
        mass[bins.start[:-1][lowest]] -= counted.n_low[lowest]
        mass[bins.start[1:][highest] - 1] -= counted.n_high[highest]
        # What is left of a bin may be too narrow to have an inside.  A bin that is tiny beside the range becomes a
        # point too: its inside does not matter, and its density might be infinite.
        largest = np.maximum(np.abs(self.low), np.abs(self.high))[channel]
        narrow = high - low <= np.maximum(np.maximum(np.abs(low), np.abs(high)) * 2.0**-20, largest * 2.0**-60)
        inside = ~narrow & (mass > 0.0)

        kept_channel = np.repeat(np.arange(self.channels), np.diff(self.value_start))
        first = np.flatnonzero(_changes(self.values) | _changes(kept_channel))
        counted_channels = np.flatnonzero(~self.is_exact)
        points = [
            (kept_channel[first], self.values[first], np.diff(np.append(first, self.values.size))),
            (channel[narrow], low[narrow] + (high[narrow] - low[narrow]) * 0.5, mass[narrow]),
            (counted_channels[lowest], counted.low[lowest], counted.n_low[lowest]),
            (counted_channels[highest], counted.high[highest], counted.n_high[highest]),
            (np.arange(self.channels), np.zeros(self.channels), self.n_zero),
        ]
        owner, point, occurrences = (np.concatenate(parts) for parts in zip(*points, strict=True))
        there = np.flatnonzero(occurrences > 0)
        order = there[np.argsort(owner[there], kind="stable")]
        every = np.arange(self.channels + 1)
        return Pieces(
            low[inside],
            high[inside],
            mass[inside],
            np.searchsorted(channel[inside], every),
            point[order],
            occurrences[order].astype(np.float64),
            np.searchsorted(owner[order], every),
        )

    def values_at_ranks(self, ranks: _Integers) -> _FloatArray:
        """Return each channel's value at a rank, 0 to n_elements - 1, among its sorted finite values.

        The value is exact for the extremes, for zeros, and as long as the values are kept.  Otherwise it is
        interpolated linearly inside the bin.  A channel without values gives NaN.
        """
        result = np.full(self.channels, np.nan)
        bins = self.bins()
        negative = _sums(np.where(bins.high <= 0.0, bins.counts, 0), bins.start)
        in_zeros = (negative <= ranks) & (ranks < negative + self.n_zero)
        nonzero_rank = np.where(ranks < negative, ranks, ranks - self.n_zero)
        there = self.n_elements > 0
        exact = np.flatnonzero(there & ~in_zeros & self.is_exact)
        result[exact] = self.values[self.value_start[exact] + nonzero_rank[exact]]
        counted = np.flatnonzero(there & ~in_zeros & ~self.is_exact)
        ranks_below = np.concatenate([[0], np.cumsum(bins.counts)])
        rank = ranks_below[bins.start[counted]] + nonzero_rank[counted]
        index = np.searchsorted(ranks_below, rank, side="right") - 1
        start, stop = np.maximum(bins.low[index], self.low[counted]), np.minimum(bins.high[index], self.high[counted])
        value = start + (stop - start) * ((rank - ranks_below[index] + 0.5) / bins.counts[index])
        result[counted] = np.minimum(np.maximum(value, start), stop)
        result[in_zeros] = 0.0
        for is_extreme, extreme in ((ranks <= 0, self.low), (ranks >= self.n_elements - 1, self.high)):
            chosen = there & is_extreme
            result[chosen] = extreme[chosen]
        return result


#: The fields with counts, in the order of an accumulator's statistics.
COUNT_FIELDS = tuple(field.name for field in fields(LeadingBitHistogram) if field.name.startswith("n_"))


def _starts(sizes: _Integers) -> _Integers:
    return np.concatenate([[0], np.cumsum(sizes)])


def _changes(values: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return which values differ from the one before; the first one always counts as different."""
    changes = np.ones(values.size, np.bool_)
    np.not_equal(values[1:], values[:-1], out=changes[1:])
    return changes


def _sums(values: _Integers, start: _Integers) -> _Integers:
    total = _starts(values)
    return total[start[1:]] - total[start[:-1]]


def _ranges(start: _Integers, channels: _Integers) -> tuple[_Integers, _Integers]:
    """Return the indices of the items of some channels, and for each item the place of its channel in `channels`."""
    sizes = start[channels + 1] - start[channels]
    owner = np.repeat(np.arange(channels.size), sizes)
    return np.arange(owner.size) + (start[channels] - _starts(sizes)[:-1])[owner], owner


class State(NamedTuple):
    """The state of a collector."""

    axis: tuple[int, ...] | None
    groups: int
    shape: tuple[int, ...] | None
    histogram: LeadingBitHistogram
