"""Hold a histogram of leading bits for each channel, and add values in place."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.errors import InvalidArgumentError
from .histogram import BINADES, COUNT_FIELDS, EXACT_LIMIT, FRACTION, LARGEST_COUNT, LeadingBitHistogram

_Integers = npt.NDArray[np.int64]

# Columns of the statistics, in the order of kernels/accumulate.pxi.
LOW_KEY, HIGH_KEY, N_LOW, N_HIGH, N_ZERO, N_NAN, N_POSINF, N_NEGINF, N_NONZERO = range(9)
N_ROWS, N_HELD, _FIRST_VALUE, _ROOM = range(9, 13)
COLUMNS = 13

#: The columns that hold counts, by the names of a histogram's fields.
COUNTS = dict(zip(COUNT_FIELDS, range(N_LOW, N_ROWS), strict=True))

_INT64 = np.iinfo(np.int64)
_ROWS, _PLACES, _CHANGES = range(3)

PENDING = 4096  # so many waiting values justify fetching the channel's rows, which take several times their memory
_FEW_PLACES = 1 << 14  # room for so few values is not worth tidying up

_scratch = threading.local()


class Arrays(NamedTuple):
    """The arrays of an accumulator; kernels/accumulate.pxi says what each of them holds."""

    stats: _Integers
    values: npt.NDArray[np.float64]
    owners: _Integers
    owned: npt.NDArray[np.int32]
    counts: _Integers
    used: _Integers

    @classmethod
    def empty(cls, channels: int, rows: int = 0, width: int = 0, places: int = 0) -> Arrays:
        """Return empty arrays with room for `rows` rows in all, `width` rows of a channel, and `places` values."""
        stats = np.zeros((channels, COLUMNS), np.int64)
        stats[:, [LOW_KEY, HIGH_KEY]] = _INT64.max, _INT64.min
        return cls(stats, np.empty(places), *_rows(channels, rows, width), np.zeros(3, np.int64))


def _rows(channels: int, rows: int, width: int) -> tuple[_Integers, npt.NDArray[np.int32], _Integers]:
    """Return `owners`, `owned` and `counts` with room for `rows` rows in all and `width` rows of a channel."""
    return np.empty(rows, np.int64), np.zeros((channels, width), np.int32), np.empty((rows, FRACTION), np.int64)


class Accumulator:
    """The state of the histograms of some channels.

    Several threads may add to it and read it.  Each change or copy is one call of a kernel that keeps the GIL, so no
    other thread, signal or interrupt can come in between.  If a change needs more room, the room is made beforehand.
    """

    def __init__(self, channels: int) -> None:
        self.arrays = Arrays.empty(channels)

    @classmethod
    def of_arrays(cls, arrays: Arrays) -> Accumulator:
        """Return an accumulator that uses these arrays, without a copy."""
        self = cls.__new__(cls)
        self.arrays = arrays
        return self

    @classmethod
    def of_values(cls, values: npt.NDArray[np.float64], stats: _Integers) -> Accumulator:
        """Return an accumulator of the channels whose values the kernel has gathered."""
        used = np.array([0, values.size, 0])
        self = cls.of_arrays(Arrays(stats, values.reshape(-1), *_rows(stats.shape[0], 0, 0), used))
        self._tidy_up()
        return self

    @classmethod
    def of_binades(cls, stats: _Integers, binades: npt.NDArray[Any], counts: _Integers) -> Accumulator:
        """Return an accumulator of one channel, from its statistics, its binades and their counts."""
        n = binades.size
        arrays = Arrays.empty(1)._replace(
            owners=binades.astype(np.int64),
            owned=np.arange(n, dtype=np.int32)[np.newaxis],
            counts=counts,
            used=np.array([n, 0, 0]),
        )
        arrays.stats[0, :N_ROWS] = stats
        arrays.stats[0, N_ROWS] = n
        return cls.of_arrays(arrays)

    @property
    def stats(self) -> _Integers:
        """The statistics, shape (channels, 13)."""
        return self.arrays.stats

    @property
    def channels(self) -> int:
        """Number of channels."""
        return int(self.arrays.stats.shape[0])

    def extreme(self, which: int) -> npt.NDArray[np.float64]:
        """Return each channel's least (0) or greatest (1) finite value; +inf and -inf if there is none."""
        keys = self.stats[:, (LOW_KEY, HIGH_KEY)[which]].copy()  # read once, because another thread may be adding
        none = (_INT64.max, _INT64.min)[which]
        return np.where(keys == none, (np.inf, -np.inf)[which], _values_of_keys(keys))

    @property
    def n_rows(self) -> int:
        """Number of rows of counts."""
        return int(self.arrays.used[_ROWS])

    @property
    def changes(self) -> int:
        """How often something was added."""
        return int(self.arrays.used[_CHANGES])

    def add(self, other: Accumulator, first: int = 0, pending: int = PENDING) -> None:
        """Add the channels of another accumulator to channels of this one, from channel `first` on.

        If this fails, nothing has been added.  `other` must not be this accumulator itself.  In a channel of more than
        `EXACT_LIMIT` nonzero values, up to `pending` values may wait to be counted.

        Raises
        ------
        InvalidArgumentError
            If there would be more values than `LARGEST_COUNT`.
        """
        while True:
            needed = dispatch.kernels.add_channels(self, other, first, EXACT_LIMIT, pending, LARGEST_COUNT, *_tables())
            if needed is None:
                break
            if needed == -1:
                raise InvalidArgumentError(f"expected at most {LARGEST_COUNT} values in all, got more")
            self.make_room(*needed)
        with contextlib.suppress(MemoryError):  # the values have been added; tidying up is optional
            self._tidy_up()

    def _tidy_up(self) -> None:
        """Free room for values if there is much of it and most is unused."""
        arrays = self.arrays
        if arrays.values.size > _FEW_PLACES and arrays.values.size > 2 * (arrays.stats[:, _ROOM].sum() + 1):
            self._move(lambda old: old._replace(values=self._place()))

    def make_room(self, rows: int, width: int, places: int) -> None:
        """Make room for `rows` rows in all, `width` rows of a channel, and `places` values."""

        def larger(old: Arrays) -> Arrays:
            # Arrays that grow by about half of their size grow rarely.
            new = old
            if rows > old.owners.size:
                n = max(rows, old.owners.size + old.owners.size // 2)
                new = new._replace(owners=np.empty(n, np.int64), counts=np.empty((n, FRACTION), np.int64))
            if width > old.owned.shape[1]:
                n = max(width, old.owned.shape[1] + old.owned.shape[1] // 2)
                new = new._replace(owned=np.empty((self.channels, n), np.int32))
            if places > old.values.size:
                new = new._replace(values=self._place(max(places - int(old.used[_PLACES]), old.values.size // 2)))
            return new

        self._move(larger)

    def _place(self, more: int = 0) -> npt.NDArray[np.float64]:
        """Return a new array with room for all stretches of values, and for `more` values."""
        return np.empty(dispatch.kernels.measure_channels(self, True)[2] + more)

    def _move(self, changed: Callable[[Arrays], Arrays]) -> None:
        """Move the state to the arrays that `changed` returns for the present ones."""
        moved = False
        while not moved:  # another thread may have added something meanwhile
            old = self.arrays
            new = changed(old)._replace(stats=np.empty_like(old.stats), used=np.empty_like(old.used))
            moved = dispatch.kernels.copy_channels(self, old, new, True)

    def trimmed(self) -> Accumulator:
        """Return a copy of the state that takes no more memory than it needs."""
        while True:
            old = self.arrays
            copy = Arrays.empty(self.channels, *dispatch.kernels.measure_channels(self, False))
            if dispatch.kernels.copy_channels(self, old, copy, False):
                # Another thread may have counted values since they were measured.
                return Accumulator.of_arrays(copy._replace(values=copy.values[: copy.used[_PLACES]]))

    def placed(self, places: _Integers, channels: int) -> Accumulator:
        """Return `channels` channels: these ones at the given places, and empty ones elsewhere.

        The result shares arrays with this accumulator.
        """
        stats, _, owners, owned, counts, _ = self.arrays
        owners = owners[: self.n_rows]
        spread = Arrays.empty(channels, 0, owned.shape[1])
        spread.stats[places] = stats
        spread.owned[places] = owned
        return Accumulator.of_arrays(
            self.arrays._replace(
                stats=spread.stats,
                owners=places[owners // BINADES] * BINADES + owners % BINADES,
                owned=spread.owned,
                counts=counts[: self.n_rows],
            )
        )

    def tabulate(
        self,
        bits: npt.NDArray[Any],
        buffer: npt.NDArray[Any],
        tables: npt.NDArray[np.int32],
        incomplete: npt.NDArray[np.uint8],
    ) -> None:
        """Count the values of an array (outer, channels, inner), given by their bits, with tables.

        Only one thread may use the accumulator meanwhile, and there must be room.
        """
        stats, _, owners, owned, counts, used = self.arrays
        dispatch.kernels.tabulate_channels(
            bits, buffer, tables, stats, owners, owned, counts, used, incomplete, _tables()[0]
        )

    def histogram(self) -> tuple[int, LeadingBitHistogram]:
        """Return the number of changes so far, and the state as a histogram.

        The order of what it holds does not depend on the order in which the values came.
        """
        copy = self.trimmed()
        changes = copy.changes
        if (copy.stats[:, N_HELD] > 0)[copy.stats[:, N_NONZERO] > EXACT_LIMIT].any():
            copy.add(Accumulator(self.channels), pending=0)
            copy = copy.trimmed()
        stats, values, owners, _, counts, _ = copy.arrays
        order = np.argsort(owners, kind="stable")
        held = stats[:, N_HELD]
        # Values lie channel after channel.  If all channels hold equally many, one call sorts them.
        if values.size and held.max() == held.min():
            values = np.sort(values.reshape(held.size, -1), axis=1).reshape(-1)
        elif values.size:
            for start, stop in zip(np.cumsum(held) - held, np.cumsum(held), strict=True):
                values[start:stop].sort()
        return changes, LeadingBitHistogram(
            low=copy.extreme(0),
            high=copy.extreme(1),
            **{name: stats[:, column].copy() for name, column in COUNTS.items()},
            values=values,
            owners=owners[order],
            counts=counts[order],
        )

    @classmethod
    def of_histogram(cls, h: LeadingBitHistogram) -> Accumulator:
        """Return an accumulator with the state of a histogram."""
        rows = np.diff(h.row_start)
        arrays = Arrays.empty(h.channels, 0, int(rows.max(initial=0)))._replace(
            values=h.values.copy(),
            owners=h.owners.copy(),
            counts=h.counts.copy(),
            used=np.array([h.owners.size, h.values.size, 0]),
        )
        finite = h.n_elements > 0
        for column, extreme in ((LOW_KEY, h.low), (HIGH_KEY, h.high)):
            arrays.stats[finite, column] = _keys_of_values(extreme[finite])
        for name, column in COUNTS.items():
            arrays.stats[:, column] = getattr(h, name)
        arrays.stats[:, N_ROWS] = rows
        arrays.stats[:, _FIRST_VALUE] = h.value_start[:-1]
        arrays.stats[:, N_HELD] = arrays.stats[:, _ROOM] = np.diff(h.value_start)
        arrays.owned[np.arange(arrays.owned.shape[1]) < rows[:, np.newaxis]] = np.arange(h.owners.size)
        return cls.of_arrays(arrays)


def _tables() -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Return this thread's tables from binades to rows, and its counts of all bins.

    Between calls, the tables are all -1 and the counts all 0.
    """
    try:
        tables: tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]] = _scratch.tables
    except AttributeError:
        tables = _scratch.tables = np.full((2, BINADES), -1, np.int32), np.zeros(BINADES * FRACTION, np.int32)
    return tables


def summed(parts: Iterable[Accumulator]) -> Accumulator:
    """Return the sum of accumulators; it is added up in the first of them."""
    rest = iter(parts)
    total = next(rest)
    for part in rest:
        total.add(part)
    return total


def _keys_of_values(values: npt.NDArray[np.float64]) -> _Integers:
    bits = values.view(np.int64)
    return bits ^ ((bits >> 63) & _INT64.max)


def _values_of_keys(keys: _Integers) -> npt.NDArray[np.float64]:
    return (keys ^ ((keys >> 63) & _INT64.max)).view(np.float64)


def key_of_value(value: float) -> int:
    """Return the order key of a float64, which compares like the value."""
    return int(_keys_of_values(np.array([value + 0.0]))[0])
