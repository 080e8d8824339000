"""Compute the expected squared error of codes from a histogram."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.formats import E4M3_MAX, QuantBits
from .._base.scale import Target, scale_and_zero_point
from .._base.threads import for_ranges
from .histogram import LeadingBitHistogram, Range

_FloatArray = npt.NDArray[np.float64]
_Indices = npt.NDArray[np.int64]


#: Values may lie anywhere in their bins, so a range may be worse than it looks: by this many standard deviations.
_DEVIATIONS = 4.0
_CLUSTER = 16  # bins of a run, between empty ones, that may be one narrow cluster of values
_GRAIN = 1 << 17  # a thread takes about 0.2 ms for so many intervals and points


class SquaredError:
    """Compute the total expected squared error of codes, for several clipping ranges of each channel.

    Attributes
    ----------
    unit : ndarray of float64, shape (channels,)
        Values are multiplied by it, so totals are in units of 1 / unit².  It is a power of two, chosen so that squares
        of huge values do not overflow and squares of tiny values do not vanish.
    """

    @np.errstate(all="ignore")
    def __init__(self, h: LeadingBitHistogram, target: Target) -> None:
        self._target = target
        self._distribution, self.unit = scaled_distribution(h, density=True)
        self._size = 1 + (self._distribution[0].size + self._distribution[4].size) // max(h.channels, 1)

    @np.errstate(all="ignore")
    def __call__(self, low: _FloatArray, high: _FloatArray) -> _FloatArray:
        """Return the errors of ranges; the ends and the result have shape (channels, candidates)."""
        scale, zero_point = scale_and_zero_point(low, high, self._target)
        out = np.empty(scale.shape)
        scaled = scale * self.unit[:, np.newaxis]
        kernel: Callable[..., None]
        if self._target.bits is QuantBits.FP8:
            kernel, arguments = dispatch.kernels.e4m3_squared_error, (*self._distribution, scaled)
        else:
            least, greatest = self._target.code_range
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
        """Return, for each channel, how far apart the errors of two ranges must be to differ on the values too.

        The histogram does not say where in a bin the values are; docs/numerics.md has the derivation.
        If a channel keeps its values, the result is 0.
        """
        low, high, density, start = self._distribution[:4]
        there = np.flatnonzero(density)  # the rest is padding
        channel = np.repeat(np.arange(self.unit.size), np.diff(start))[there]
        low, high, density = low[there], high[there], density[there]
        mass = density * (high - low)
        # Compute in steps of the whole range: their fourth powers are finite.
        scales = [scale_and_zero_point(*chosen, self._target) for chosen in (whole, other)]
        step = scales[0][0] * self.unit
        variance = sum(self._variances(low, high, channel, *chosen, step) for chosen in scales)
        deviation = np.sqrt(variance)
        by_chance = np.sqrt(np.bincount(channel, mass * variance, self.unit.size))
        unevenness = _unevenness(low, high, density, channel)
        by_shape = np.bincount(channel, mass * math.sqrt(5.0) * unevenness**2 * deviation, self.unit.size)
        return (_DEVIATIONS * by_chance + by_shape) * step**2

    def _variances(
        self,
        low: _FloatArray,
        high: _FloatArray,
        channel: _Indices,
        scale: _FloatArray,
        zero_point: npt.NDArray[np.int32],
        unit: _FloatArray,
    ) -> _FloatArray:
        """Return the greatest variance that squared errors can have in each interval, in fourth powers of `unit`."""
        scale = scale * self.unit
        if self._target.bits is QuantBits.FP8:
            # A step is at most 1/8 of a value: three mantissa bits.  It stays the same below the least normal one.
            step = np.maximum(np.maximum(np.abs(low), np.abs(high)) / 8.0, scale[channel] / 512.0)
            first, last = -scale * E4M3_MAX, scale * E4M3_MAX
        else:
            step = scale[channel]
            ends = self._target.code_range
            first, last = (scale * (float(code) - zero_point) for code in ends)
        beyond = np.maximum(np.maximum(first[channel] - low, high - last[channel]) - step / 2.0, 0.0)
        step, beyond, width = (each / unit[channel] for each in (step, beyond, high - low))
        varies = ((step + 2.0 * beyond) * width) ** 2 / 12.0
        return np.where(beyond > 0.0, varies, np.minimum(varies, step**4 / 180.0))


def _unevenness(low: _FloatArray, high: _FloatArray, density: _FloatArray, channel: _Indices) -> _FloatArray:
    """Return the relative difference between an interval's density and those of its neighbours, at most 1.

    Two standard deviations of the counts are subtracted.  An interval without a neighbour on one side differs by 1.

    The result is 0 unless much of the data may lie at one place.  That may be so in short runs of intervals, as of a
    lattice or a narrow cluster, and in the outermost intervals, because a density may have no bound there.
    """
    left, right = slice(None, -1), slice(1, None)
    inside = channel[left] == channel[right]
    touching = inside & (high[left] == low[right])
    mass, width, uneven = density * (high - low), high - low, np.zeros(density.size)
    for one, two in ((right, left), (left, right)):
        beside, chance = np.zeros(density.size), mass.copy()
        beside[one] = np.where(touching, density[two], 0.0)
        chance[one] += beside[one] * width[one] * (width[one] / width[two])
        excess = np.abs(density - beside) / density - 2.0 * np.sqrt(chance) / mass
        uneven = np.maximum(uneven, excess)
    is_outermost = ~(np.append(False, inside)[: mass.size] & np.append(inside, False)[: mass.size])
    run = np.cumsum(~np.append(False, touching)[: mass.size])
    is_short = np.bincount(run)[run] <= _CLUSTER
    return np.where(is_outermost | is_short, np.minimum(uneven, 1.0), 0.0)


@np.errstate(all="ignore")
def expected_errors(h: LeadingBitHistogram, ranges: list[Range], target: Target) -> tuple[_FloatArray, _FloatArray]:
    """Return the total squared errors of ranges, shape (channels, ranges), and the units, shape (channels,).

    The error is infinite if float64 cannot hold the width of a range, because then there is no scale.
    """
    errors, unit = np.empty((h.channels, len(ranges))), np.empty(h.channels)
    for channels, part in h.portions(4 * len(ranges)):
        error = SquaredError(part, target)
        low, high = (np.stack([chosen[end][channels] for chosen in ranges], axis=1) for end in (0, 1))
        errors[channels], unit[channels] = error(low, high), error.unit
    return errors, unit


def scaled_distribution(h: LeadingBitHistogram, *, density: bool) -> tuple[tuple[npt.NDArray[Any], ...], _FloatArray]:
    """Return the distributions of values times a unit, as the kernels take them, and each channel's unit.

    If `density` is True, intervals have a density instead of a mass.
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
    """Pad each channel's part of arrays with zeros, and return the arrays and where the parts start.

    The parts' lengths become multiples of 8, because kernels add in eight running sums.
    """
    sizes = np.diff(start)
    padded_start = np.concatenate([[0], np.cumsum(-(-sizes // 8) * 8)])
    where = np.arange(arrays[0].size) + np.repeat(padded_start[:-1] - start[:-1], sizes)
    padded: list[npt.NDArray[Any]] = [np.zeros(padded_start[-1]) for _ in arrays]
    for target, array in zip(padded, arrays, strict=True):
        target[where] = array
    return [*padded, padded_start]
