"""The streaming histogram of leading bits.

A value's bin is its sign, its exponent and its top 7 mantissa bits.  So there is no range to know in
advance, nothing is ever rescaled, and the state is a function of the multiset of values alone, however
they were split, ordered or merged.  docs/numerics.md derives what follows from that.
"""

from __future__ import annotations

import struct
import threading
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from . import _dispatch
from ._arrays import kernel_dtype
from ._threads import for_ranges

FRACTION = 128  # bins in a binade
_EXPONENTS = 2048  # of float64; a binade's number is sign * 2048 + biased exponent

#: Up to so many nonzero values are kept as they are.  A scale is judged by where values fall between codes,
#: and of a few values 0.8 % wide bins do not tell; of many they do.
EXACT_LIMIT = 8192

_BUFFER = 1 << 16  # elements converted at a time
_LARGEST_CALL = 1 << 30  # elements, well below what an int32 count holds
_GRAIN = 1 << 19  # elements worth a thread: it has its own tables to drain

_FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Pieces:
    """A distribution as mass uniform on intervals, and counted points, both in ascending order."""

    low: _FloatArray
    high: _FloatArray
    mass: _FloatArray
    points: _FloatArray
    counts: _FloatArray


@dataclass(frozen=True, eq=False)
class LeadingBitHistogram:
    """Counts of values by their leading bits; never changed once made.

    Attributes
    ----------
    binades : ndarray of int32, shape (n,)
        Numbers of the touched binades, ascending: ``sign * 2048 + biased exponent`` of float64.
    counts : ndarray of int64, shape (n, 128)
        How many finite nonzero values each bin holds.
    values : ndarray of float64 or None
        The finite nonzero values themselves, ascending, while there are at most `EXACT_LIMIT`.
    low, high : float
        Least and greatest finite value; +inf and -inf if there is none.  Zero has no sign.
    n_low, n_high : int
        How many values are the least and the greatest one: fills and saturated values are many.
    n_zero, n_nan, n_posinf, n_neginf : int
    """

    binades: npt.NDArray[np.int32]
    counts: npt.NDArray[np.int64]
    values: _FloatArray | None
    low: float
    high: float
    n_low: int
    n_high: int
    n_zero: int
    n_nan: int
    n_posinf: int
    n_neginf: int

    @property
    def n_elements(self) -> int:
        """Number of finite values."""
        return int(self.counts.sum()) + self.n_zero

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, LeadingBitHistogram):
            return NotImplemented
        # The values follow from the multiset as the counts do, but two multisets may share their counts.
        same_values = (
            np.array_equal(self.values, other.values)
            if self.values is not None and other.values is not None
            else self.values is other.values
        )
        return (
            same_values
            and self._scalars() == other._scalars()
            and np.array_equal(self.binades, other.binades)
            and np.array_equal(self.counts, other.counts)
        )

    __hash__ = None  # type: ignore[assignment]

    def _scalars(self) -> tuple[float | int, ...]:
        return (self.low, self.high, self.n_low, self.n_high, self.n_zero, self.n_nan, self.n_posinf, self.n_neginf)

    def merged(self, other: LeadingBitHistogram) -> LeadingBitHistogram:
        """Return the histogram of both multisets together."""
        if np.array_equal(self.binades, other.binades):  # as batch after batch of a tensor
            binades, counts = self.binades, self.counts + other.counts
        else:
            binades = np.union1d(self.binades, other.binades)
            counts = np.zeros((binades.size, FRACTION), np.int64)
            for part in (self, other):
                counts[np.searchsorted(binades, part.binades)] += part.counts
        values = None
        if self.values is not None and other.values is not None:
            values = _kept(np.concatenate([self.values, other.values]))
        low, high = min(self.low, other.low), max(self.high, other.high)
        return LeadingBitHistogram(
            binades,
            counts,
            values,
            low,
            high,
            sum(part.n_low for part in (self, other) if part.low == low),
            sum(part.n_high for part in (self, other) if part.high == high),
            self.n_zero + other.n_zero,
            self.n_nan + other.n_nan,
            self.n_posinf + other.n_posinf,
            self.n_neginf + other.n_neginf,
        )

    def bins(self) -> tuple[_FloatArray, _FloatArray, npt.NDArray[np.int64]]:
        """Return lower edges, upper edges and counts of the non-empty bins, ascending in value.

        Zeros are not among them.  Where a bin meets infinity its edge is the largest float.
        """
        row, column = np.nonzero(self.counts)
        binade = self.binades[row].astype(np.int64)
        least = ((binade & (_EXPONENTS - 1)) << 52) | (column.astype(np.int64) << 45)
        most = least + (1 << 45)
        inner = least.view(np.float64)
        outer = np.minimum(most.view(np.float64), np.finfo(np.float64).max)
        negative = binade >= _EXPONENTS
        low = np.where(negative, -outer, inner)
        high = np.where(negative, -inner, outer)
        order = np.argsort(low, kind="stable")
        return low[order], high[order], self.counts[row, column][order]

    def pieces(self) -> Pieces:
        """Return the distribution of the finite values as well as it is known.

        The values themselves while they are kept; else each bin's mass, uniform on the part of the bin
        within the range, with the least and the greatest value, which are known, as points.
        """
        if self.values is not None:
            points, occurrences = np.unique(self.values, return_counts=True)
            counts = occurrences.astype(np.float64)
            intervals = np.empty((3, 0))
        else:
            low, high, held = self.bins()
            mass = held.astype(np.float64)
            low, high = np.maximum(low, self.low), np.minimum(high, self.high)
            ends = [(self.low, self.n_low, 0), (self.high, self.n_high, -1)]
            ends = [end for end in ends[: 1 if self.low == self.high else 2] if end[0] != 0.0]
            points = np.array([value for value, _, _ in ends])
            counts = np.array([float(n) for _, n, _ in ends])
            for _, n, index in ends:
                mass[index] -= n
            # What is left of a bin may be too narrow to have an inside.
            narrow = high - low <= np.maximum(np.abs(low), np.abs(high)) * 2.0**-20
            middle = low[narrow] + (high[narrow] - low[narrow]) * 0.5
            points = np.concatenate([points, middle])
            counts = np.concatenate([counts, mass[narrow]])
            inside = ~narrow & (mass > 0.0)
            intervals = np.stack([low[inside], high[inside], mass[inside]])
        points = np.append(points, 0.0)
        counts = np.append(counts, float(self.n_zero))
        order = np.argsort(points, kind="stable")
        order = order[counts[order] > 0.0]
        return Pieces(intervals[0], intervals[1], intervals[2], points[order], counts[order])

    def value_at_rank(self, rank: int) -> float:
        """Return the value of the given rank, 0 to n_elements - 1, among the sorted finite values.

        Exact for the extremes, for zeros and while the values are kept; else linear inside the bin.
        """
        if rank <= 0:
            return self.low
        if rank >= self.n_elements - 1:
            return self.high
        low, high, counts = self.bins()
        negative = int(counts[high <= 0.0].sum())
        if negative <= rank < negative + self.n_zero:
            return 0.0
        if rank >= negative:
            rank -= self.n_zero
        if self.values is not None:
            return float(self.values[rank])
        ranks_below = np.cumsum(counts)
        index = int(np.searchsorted(ranks_below, rank, side="right"))
        below = int(ranks_below[index - 1]) if index else 0
        start, stop = max(float(low[index]), self.low), min(float(high[index]), self.high)
        value = start + (stop - start) * ((rank - below + 0.5) / int(counts[index]))
        return min(max(value, start), stop)


EMPTY = LeadingBitHistogram(
    np.empty(0, np.int32), np.empty((0, FRACTION), np.int64), np.empty(0), float("inf"), float("-inf"), 0, 0, 0, 0, 0, 0
)


def _kept(values: _FloatArray) -> _FloatArray | None:
    return np.sort(values) if values.size <= EXACT_LIMIT else None


def leading_bit_histogram(x: npt.NDArray[Any], *, keep_values: bool = True) -> LeadingBitHistogram:
    """Return the histogram of an array of any real type and layout, read in constant memory.

    Its `values` are None if they are not to be kept, however few there are.
    """
    if x.size == 0:
        return EMPTY
    dtype = kernel_dtype(x.dtype, "x")
    if x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned and x.size <= _LARGEST_CALL:
        return _count_chunk(x.reshape(-1), keep_values)
    return _count_buffered(x, dtype, keep_values)


@np.errstate(all="ignore")
def _count_buffered(x: npt.NDArray[Any], dtype: np.dtype[Any], keep_values: bool) -> LeadingBitHistogram:
    x = np.atleast_1d(x)  # NumPy before 2.3 leaves the buffer of a 0-d operand unfilled
    total = EMPTY
    # Any order does, so walk in memory order; converted, misaligned or strided data passes a buffer.
    iterator: Any = np.nditer(  # NumPy's stubs know neither "contig" nor what one operand yields
        x,
        flags=["external_loop", "buffered", "growinner"],
        op_flags=[["readonly", "contig", "nbo", "aligned"]],  # type: ignore[call-overload]
        op_dtypes=[dtype],
        casting="same_kind",
        order="K",
        buffersize=_BUFFER,
    )
    with iterator:
        for chunk in iterator:
            for start in range(0, chunk.size, _LARGEST_CALL):
                total = total.merged(_count_chunk(chunk[start : start + _LARGEST_CALL], keep_values))
    return total


def _count_chunk(chunk: npt.NDArray[Any], keep_values: bool) -> LeadingBitHistogram:
    parts: list[LeadingBitHistogram] = []
    for_ranges(chunk.size, _GRAIN, lambda a, b: parts.append(_count_range(chunk[a:b], keep_values)))
    total = parts[0]
    for part in parts[1:]:
        total = total.merged(part)
    return total


_scratch = threading.local()


def _count_range(x: npt.NDArray[Any], keep_values: bool) -> LeadingBitHistogram:
    """Count one contiguous float32 or float64 range on this thread."""
    single = x.dtype == np.float32
    bits = x.view(np.int32 if single else np.int64)
    exponents = 256 if single else _EXPONENTS
    mantissa = 23 if single else 52
    stats = np.empty(10, np.int64)
    # A thread's tables are all zero between calls.  They are taken away while they are not, so that an
    # interrupt in between loses them rather than spoils the next counts.
    name = bits.dtype.name
    tables = _scratch.__dict__.pop(name, None)
    if tables is None:
        tables = np.zeros((4, 2 * exponents * FRACTION), np.int32)
    _dispatch.kernels.count_leading_bits(bits, tables, stats)
    low_key, high_key, n_zero, n_nan, n_posinf, n_neginf, least, most, n_low, n_high = stats.tolist()
    first, last = max(least >> mantissa, 1), most >> mantissa
    binades = np.empty(2 * max(last - first + 1, 0), np.int32)
    counts = np.empty((binades.size + 1, FRACTION), np.int64)  # a row to spare: no empty last one
    n, lowest = _dispatch.kernels.drain_leading_bits(tables, exponents, first, last, binades, counts)
    _scratch.__dict__[name] = tables
    binades, counts = binades[:n].copy(), counts[:n].copy()
    if single:  # the same exponents and signs as float64 counts them
        binades = (binades >> 8) * np.int32(_EXPONENTS) + (binades & 255) + np.int32(1023 - 127)
    n_finite = x.size - n_nan - n_posinf - n_neginf
    low = _float_of_key(low_key, single) if n_finite else float("inf")
    high = _float_of_key(high_key, single) if n_finite else float("-inf")
    histogram = LeadingBitHistogram(
        binades,
        counts,
        None,
        low,
        high,
        0 if not n_finite else n_low if low else n_zero,  # keys tell zeros of either sign apart
        0 if not n_finite else n_high if high else n_zero,
        n_zero,
        n_nan,
        n_posinf,
        n_neginf,
    )
    if lowest > n_zero:
        histogram = _with_subnormals(histogram, bits, single)
    if keep_values and n_finite - n_zero <= EXACT_LIMIT:
        values = _kept(x[np.isfinite(x) & (x != 0)].astype(np.float64))
        histogram = replace(histogram, values=values)
    return histogram


def _float_of_key(key: int, single: bool) -> float:
    """Return the value of an order key, -0 as +0."""
    integer, floating, largest = ("<i", "<f", 2**31 - 1) if single else ("<q", "<d", 2**63 - 1)
    bits = key if key >= 0 else key ^ largest
    value: float = struct.unpack(floating, struct.pack(integer, bits))[0]
    return value + 0.0


def _with_subnormals(h: LeadingBitHistogram, bits: npt.NDArray[Any], single: bool) -> LeadingBitHistogram:
    """Add the subnormals of an array, which the tables do not hold by float64's bins, from its bits."""
    infinity_bit = 23 if single else 52
    magnitude = bits & np.iinfo(bits.dtype).max
    chosen = (magnitude > 0) & (magnitude >> infinity_bit == 0)
    magnitude = magnitude[chosen].astype(np.int64)
    if single:  # normal in float64; the product of an integer and a power of two is exact
        magnitude = (magnitude.astype(np.float64) * 2.0**-149).view(np.int64)
    bins = (magnitude >> 45) + (bits[chosen] < 0) * (_EXPONENTS * FRACTION)
    found, counts = np.unique(bins, return_counts=True)
    binades = np.unique(found // FRACTION).astype(np.int32)
    table = np.zeros((binades.size, FRACTION), np.int64)
    table[np.searchsorted(binades, found // FRACTION), found % FRACTION] = counts
    return h.merged(replace(EMPTY, binades=binades, counts=table))
