"""Histograms of leading bits that are added to in place, one for each channel."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import _dispatch
from .histogram import BINADES, EXACT_LIMIT, FRACTION, LeadingBitHistogram

_Integers = npt.NDArray[np.int64]

# Columns of the statistics, as _accumulate.pxi has them.
LOW_KEY, HIGH_KEY, N_LOW, N_HIGH, N_ZERO, N_NAN, N_POSINF, N_NEGINF, N_NONZERO, N_ROWS = range(10)
#: Those that count, by the names of a histogram's fields.
COUNTS = {
    "n_low": N_LOW,
    "n_high": N_HIGH,
    "n_zero": N_ZERO,
    "n_nan": N_NAN,
    "n_posinf": N_POSINF,
    "n_neginf": N_NEGINF,
    "n_nonzero": N_NONZERO,
}

_INT64 = np.iinfo(np.int64)
_FEWEST_ROWS = 32

_scratch = threading.local()


class _Rows(NamedTuple):
    """Rows of counts with room for more: all of them zero."""

    owners: _Integers  # (capacity,) the channel and binade of each row
    owned: npt.NDArray[np.int32]  # (channels, width) the numbers of each channel's rows
    counts: _Integers  # (capacity, 128)
    used: _Integers  # (1,) how many rows there are


class Accumulator:
    """The state of `channels` histograms.

    What it holds is always whole: room is made first, and one call of a kernel, which no interrupt can break, then
    adds everything.  Not safe from several threads at once.

    Attributes
    ----------
    stats : ndarray of int64, shape (channels, 10)
    values : ndarray of float64, shape (channels, capacity)
        The finite nonzero values of channels that have at most `EXACT_LIMIT`, at the front of their rows.
    """

    def __init__(self, channels: int) -> None:
        self.stats = np.zeros((channels, N_ROWS + 1), np.int64)
        self.stats[:, [LOW_KEY, HIGH_KEY]] = _INT64.max, _INT64.min
        self.values = np.empty((channels, 0))
        self._rows = _empty_rows(channels, 0, 0)

    @classmethod
    def of_values(cls, values: npt.NDArray[np.float64], stats: _Integers) -> Accumulator:
        """Return channels that have kept their values, at most `EXACT_LIMIT` each."""
        self = cls.__new__(cls)
        self.stats, self.values = stats, values
        self._rows = _empty_rows(stats.shape[0], 0, 0)
        return self

    @classmethod
    def of_binades(cls, stats: _Integers, binades: npt.NDArray[Any], counts: _Integers) -> Accumulator:
        """Return one channel that is counted, from its binades and their counts."""
        self = cls(1)
        n = binades.size
        self.stats[0] = np.append(stats, n)
        self._rows = _Rows(binades.astype(np.int64), np.arange(n, dtype=np.int32)[np.newaxis], counts, np.array([n]))
        return self

    @property
    def channels(self) -> int:
        """How many there are."""
        return int(self.stats.shape[0])

    def add(self, other: Accumulator) -> None:
        """Add what another one of as many channels holds."""
        if other is self:
            other = self.trimmed()
        if self.channels == 0:
            return
        tables = _row_tables()
        self._make_room_for_values(other)
        rows, others = self._rows, other._rows
        added = (other.stats, other.values, others.owners, others.owned)
        new, widest = _dispatch.kernels.count_new_rows(
            self.stats, self.values, rows.owners, rows.owned, *added, EXACT_LIMIT, tables
        )
        if new:
            rows = self.make_room(int(rows.used[0]) + new, widest)
        _dispatch.kernels.add_channels(self.stats, self.values, *rows, *added, others.counts, EXACT_LIMIT, tables)

    def tabulate(
        self,
        bits: npt.NDArray[Any],
        buffer: npt.NDArray[Any],
        tables: npt.NDArray[np.int32],
        incomplete: npt.NDArray[np.uint8],
    ) -> None:
        """Add counts from the bits of an array (outer, channels, inner), as the kernel does; rows have to be there."""
        _dispatch.kernels.tabulate_channels(bits, buffer, tables, self.stats, *self._rows, incomplete, _row_tables())

    def _make_room_for_values(self, other: Accumulator) -> None:
        held = self.stats[:, N_NONZERO]
        total = held + other.stats[:, N_NONZERO]
        needed = int(total.max(initial=0, where=total <= EXACT_LIMIT))
        # Channels that outgrow the limit in this very addition are still read.
        kept = int(held.max(initial=0, where=held <= EXACT_LIMIT))
        capacity = self.values.shape[1]
        if needed > capacity or 4 * max(needed, kept) < capacity:
            values = np.empty((self.channels, max(kept, min(2 * needed, EXACT_LIMIT))))
            values[:, :kept] = self.values[:, :kept]
            self.values = values

    def make_room(self, needed: int, widest: int) -> _Rows:
        """Make room for so many rows, and so many of a channel."""
        rows = self._rows
        capacity, width = rows.owners.size, rows.owned.shape[1]
        if needed > capacity or widest > width:
            if needed > capacity:
                capacity = max(needed, 2 * capacity, _FEWEST_ROWS)
            if widest > width:
                width = max(widest, width + width // 2)
            more = _empty_rows(self.channels, capacity, width)
            n = int(rows.used[0])
            more.owners[:n], more.counts[:n], more.used[0] = rows.owners[:n], rows.counts[:n], n
            more.owned[:, : rows.owned.shape[1]] = rows.owned
            self._rows = rows = more
        return rows

    def trimmed(self) -> Accumulator:
        """Return the same state in memory of its own, no more of it than needed."""
        held = self.stats[:, N_NONZERO]
        kept = int(held.max(initial=0, where=held <= EXACT_LIMIT))
        trimmed = Accumulator.of_values(self.values[:, :kept].copy(), self.stats.copy())
        owners, owned, counts, used = self._rows
        n, width = int(used[0]), int(self.stats[:, N_ROWS].max(initial=0))
        trimmed._rows = _Rows(owners[:n].copy(), owned[:, :width].copy(), counts[:n].copy(), used.copy())
        return trimmed

    def placed(self, places: _Integers, channels: int) -> Accumulator:
        """Return more channels, with these at the given places and nothing in the others."""
        spread = Accumulator(channels)
        spread.stats[places] = self.stats
        spread.values = np.empty((channels, self.values.shape[1]))
        spread.values[places] = self.values
        owners, owned, counts, used = self._rows
        owned_there = np.empty((channels, owned.shape[1]), np.int32)
        owned_there[places] = owned
        owners = places[owners // BINADES] * BINADES + owners % BINADES
        spread._rows = _Rows(owners, owned_there, counts, used)
        return spread

    def histogram(self) -> LeadingBitHistogram:
        """Return what it holds, in an order that tells nothing of how it came."""
        owners, _, counts, used = self._rows
        order = np.argsort(owners[: used[0]])
        held = self.stats[:, N_NONZERO]
        kept = np.where(held <= EXACT_LIMIT, held, 0)
        values = self.values[:, : kept.max(initial=0)]
        there = np.arange(values.shape[1]) < kept[:, np.newaxis]
        ascending = np.sort(np.where(there, values, np.inf), axis=1)[there]
        low, high = (_values_of_keys(self.stats[:, column]) for column in (LOW_KEY, HIGH_KEY))
        low[self.stats[:, N_LOW] == 0], high[self.stats[:, N_HIGH] == 0] = np.inf, -np.inf
        return LeadingBitHistogram(
            low=low,
            high=high,
            **{name: self.stats[:, column].copy() for name, column in COUNTS.items()},
            values=ascending,
            owners=owners[order],
            counts=counts[order],
        )

    @classmethod
    def of_histogram(cls, h: LeadingBitHistogram) -> Accumulator:
        """Return the state that holds a histogram."""
        self = cls(h.channels)
        finite = h.n_elements > 0
        for column, extreme in ((LOW_KEY, h.low), (HIGH_KEY, h.high)):
            self.stats[finite, column] = _keys_of_values(extreme[finite])
        for name, column in COUNTS.items():
            self.stats[:, column] = getattr(h, name)
        kept, rows = np.diff(h.value_start), np.diff(h.row_start)
        self.values = np.empty((h.channels, int(kept.max(initial=0))))
        self.values[np.arange(self.values.shape[1]) < kept[:, np.newaxis]] = h.values
        self.stats[:, N_ROWS] = rows
        owned = np.empty((h.channels, int(rows.max(initial=0))), np.int32)
        owned[np.arange(owned.shape[1]) < rows[:, np.newaxis]] = np.arange(h.owners.size)
        self._rows = _Rows(h.owners.copy(), owned, h.counts.copy(), np.array([h.owners.size]))
        return self


def _row_tables() -> npt.NDArray[np.int32]:
    """Return this thread's tables from binades to rows, all -1 between calls."""
    try:
        tables: npt.NDArray[np.int32] = _scratch.tables
    except AttributeError:
        tables = _scratch.tables = np.full((2, BINADES), -1, np.int32)
    return tables


def summed(parts: Iterable[Accumulator]) -> Accumulator:
    """Return what parts hold together; the first one is built on."""
    rest = iter(parts)
    total = next(rest)
    for part in rest:
        total.add(part)
    return total


def joined(parts: list[Accumulator]) -> Accumulator:
    """Return the channels of all parts, one part's after the other's."""
    if len(parts) == 1:
        return parts[0]
    stats = np.concatenate([part.stats for part in parts])
    values = np.empty((stats.shape[0], max(part.values.shape[1] for part in parts)))
    n = sum(int(part._rows.used[0]) for part in parts)
    rows = _empty_rows(stats.shape[0], n, max(part._rows.owned.shape[1] for part in parts))
    channel = row = 0
    for part in parts:
        last_channel, last_row = channel + part.channels, row + int(part._rows.used[0])
        values[channel:last_channel, : part.values.shape[1]] = part.values
        rows.owned[channel:last_channel, : part._rows.owned.shape[1]] = part._rows.owned + np.int32(row)
        rows.owners[row:last_row] = part._rows.owners[: last_row - row] + channel * BINADES
        rows.counts[row:last_row] = part._rows.counts[: last_row - row]
        channel, row = last_channel, last_row
    rows.used[0] = n
    whole = Accumulator.of_values(values, stats)
    whole._rows = rows
    return whole


def _empty_rows(channels: int, capacity: int, width: int) -> _Rows:
    return _Rows(
        np.zeros(capacity, np.int64),
        np.zeros((channels, width), np.int32),
        np.zeros((capacity, FRACTION), np.int64),
        np.zeros(1, np.int64),
    )


def _keys_of_values(values: npt.NDArray[np.float64]) -> _Integers:
    bits = values.view(np.int64)
    return bits ^ ((bits >> 63) & _INT64.max)


def _values_of_keys(keys: _Integers) -> npt.NDArray[np.float64]:
    return (keys ^ ((keys >> 63) & _INT64.max)).view(np.float64)


def key_of_value(value: float) -> int:
    """Return the order key of a float64, which compares like the value."""
    return int(_keys_of_values(np.array([value + 0.0]))[0])
