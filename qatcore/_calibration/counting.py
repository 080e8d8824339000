"""Count the values of arrays by their leading bits."""

from __future__ import annotations

import itertools
import math
import struct
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.arrays import kernel_dtype
from .._base.threads import for_ranges, get_num_threads
from .accumulator import COLUMNS, N_NAN, N_NONZERO, N_ROWS, Accumulator, Arrays, key_of_value, summed
from .histogram import BINADES, EXACT_LIMIT, FRACTION

_BUFFER = 1 << 16  # elements converted at a time
_LARGEST_CALL = 1 << 30  # elements of a call, well below what an int32 count holds
_GRAIN = 1 << 19  # elements worth a thread, which has tables of its own to empty
_GATHERED = 1 << 19  # elements of many channels gathered at a time
_RUN = 1 << 15  # adjacent elements of a channel that are worth emptying the tables for
_COPIED = 1 << 22  # elements copied at a time, if a layout needs a copy
_TABLES = 4  # as in kernels/histogram.pxi
_KEPT_ROWS = 1 << 12  # rows of counts that a thread may keep for its next call
_PADDING = 8  # elements between rows: rows a power of two apart would compete for the same cache lines


def count(x: npt.NDArray[Any], seen: npt.NDArray[np.bool_] | None = None) -> Accumulator:
    """Return one channel with all values of an array of any real type and layout.

    It takes constant memory.  Elements where `seen` (of the same shape) is False are left out.
    """
    dtype = kernel_dtype(x.dtype, "x")
    if seen is None:
        return _count_all(x, dtype)
    return summed(_count_all(x[part][seen[part]], dtype) for part in _parts(x, seen, ()))


def count_along(
    x: npt.NDArray[Any], seen: npt.NDArray[np.bool_] | None, axes: tuple[int, ...], groups: int
) -> Accumulator:
    """Return a channel for each combination of indices along some axes.

    `groups` neighbours along the last of these axes share a channel.  Elements where `seen` is False are left out.
    """
    dtype = kernel_dtype(x.dtype, "x")
    if groups > 1:
        x = _split_axis(x, axes[-1], groups)
        seen = None if seen is None else _split_axis(seen, axes[-1], groups)
        axes = tuple(axis + (axis > axes[-1]) for axis in axes)
    return summed(
        _count_channels(_by_channel(x[part], axes), dtype, None if seen is None else _by_channel(seen[part], axes))
        for part in _parts(x, seen, axes)
    )


@np.errstate(all="ignore")
def _count_all(x: npt.NDArray[Any], dtype: np.dtype[Any]) -> Accumulator:
    """Return one channel with all values, which kernels read as `dtype`."""
    if x.dtype == dtype and x.flags.c_contiguous and x.flags.aligned and x.size <= _LARGEST_CALL:
        return _count_chunk(x.reshape(-1))
    total = Accumulator(1)
    if x.size == 0:
        return total
    x = np.atleast_1d(x)  # NumPy before 2.3 leaves the buffer of a 0-d operand unfilled
    # The order does not matter, so walk in memory order.  Converted, misaligned or strided data goes through a buffer.
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
                total.add(_count_chunk(chunk[start : start + _LARGEST_CALL]))
    return total


def _count_channels(
    x: npt.NDArray[Any], dtype: np.dtype[Any], mask: npt.NDArray[np.bool_] | None = None
) -> Accumulator:
    """Return the channels of an array (outer, channels, inner) of any layout, which kernels read as `dtype`.

    Elements where `mask` (of the same shape) is False are left out.
    """
    outer, channels, inner = x.shape
    n = outer * inner
    if x.size == 0:
        return Accumulator(channels)
    if n <= EXACT_LIMIT:
        return _gathered(x, mask, dtype, np.empty((channels, n + _PADDING)))
    # Take a few channels at a time, so that their counts stay in a cache and every thread gets some.
    run = _RUN if inner >= _RUN // 2 else EXACT_LIMIT
    width = max(min(_GATHERED // min(n, run), channels // get_num_threads()), 1)
    starts = range(0, channels, width)
    whole = Accumulator(channels)

    def count_some(first: int, stop: int) -> None:
        for index in range(first, stop):
            some = slice(starts[index], starts[index] + width)
            own = x[:, some], None if mask is None else mask[:, some]
            if not _tabulated(*own, dtype, run, whole, starts[index]):
                whole.add(_gathered_runs(*own, dtype), starts[index])

    for_ranges(len(starts), max(_GRAIN // (width * n), 1), count_some)
    return whole


_Run = tuple[npt.NDArray[Any], npt.NDArray[np.bool_] | None]  # elements, and which of them are seen


def _gathered_runs(x: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None, dtype: np.dtype[Any]) -> Accumulator:
    """Return some channels, by gathering their values first; they are then kept, or counted in rows."""
    runs = list(_runs(x, mask, EXACT_LIMIT))
    shape = runs[0][0].shape
    # The result keeps the first run's buffer; all later runs use the other one.
    buffers = np.empty((2, shape[1], shape[0] * shape[2] + _PADDING))
    return summed(_gathered(*run, dtype, buffers[min(turn, 1)]) for turn, run in enumerate(runs)).trimmed()


def _tabulated(
    x: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_] | None,
    dtype: np.dtype[Any],
    run: int,
    whole: Accumulator,
    first: int,
) -> bool:
    """Count some channels with tables, and add them to the channels of `whole` from `first` on.

    This is several times as fast as gathering values.  If a channel needs its values after all, nothing is added, and
    the answer is False.
    """
    single = dtype == np.float32
    integer = np.dtype(np.int32 if single else np.int64)
    binades = BINADES // 8 if single else BINADES
    channels = x.shape[1]
    kept = f"runs of {run} {integer.name}"
    buffer = _take(kept, channels, run + _PADDING, integer)
    tables = _take(integer.name, _TABLES, binades * FRACTION, np.int32)
    counts = _take("counts", channels * binades, FRACTION, np.int64)
    owners = np.empty(counts.shape[0], np.int64)
    counted = Accumulator.of_arrays(Arrays.empty(channels, 0, binades)._replace(owners=owners, counts=counts))
    incomplete = np.zeros(channels, np.uint8)
    for values, seen in _runs(x, mask, run):
        counted.tabulate(_readable(values, dtype, seen).view(integer), buffer, tables, incomplete)
        if seen is not None:
            counted.stats[:, N_NAN] -= _left_out(seen)
    _keep(integer.name, tables)
    _keep(kept, buffer)
    complete = not incomplete.any() and bool((counted.stats[:, N_NONZERO] > EXACT_LIMIT).all())
    if complete:
        if whole.changes == 0:  # expect the other channels to need as much
            share = 1.125 * whole.channels / channels
            whole.make_room(int(counted.n_rows * share), int(counted.stats[:, N_ROWS].max()), 0)
        whole.add(counted, first)
    if counted.n_rows <= _KEPT_ROWS:
        _keep("counts", counts)
    return complete


_scratch = threading.local()


def _take(name: str, rows: int, columns: int, dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return the array that this thread has kept under a name, if it has enough rows; else a new one of zeros.

    The array is not kept meanwhile.  So an interrupt before the next `_keep` loses it, and cannot spoil later counts.
    """
    kept: npt.NDArray[Any] | None = _scratch.__dict__.pop(name, None)
    return kept if kept is not None and kept.shape[0] >= rows else np.zeros((rows, columns), dtype)


def _keep(name: str, array: npt.NDArray[Any]) -> None:
    _scratch.__dict__[name] = array


def _split_axis(array: npt.NDArray[Any], axis: int, groups: int) -> npt.NDArray[Any]:
    """Return a view with one axis split in two: the groups, and the members of a group."""
    shape = array.shape
    return array.reshape(*shape[:axis], shape[axis] // groups, groups, *shape[axis + 1 :])


def _are_neighbours(axes: tuple[int, ...]) -> bool:
    return all(axis + 1 == following for axis, following in itertools.pairwise(axes))


def _by_channel(array: npt.NDArray[Any], axes: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return an array in the shape (outer, channels, inner); this may need a copy."""
    first = axes[0]
    if not _are_neighbours(axes):
        array, first = np.moveaxis(array, axes, range(len(axes))), 0
    last = first + len(axes)
    shape = array.shape
    return array.reshape(math.prod(shape[:first]), math.prod(shape[first:last]), math.prod(shape[last:]))


def _parts(
    array: npt.NDArray[Any], seen: npt.NDArray[np.bool_] | None, axes: tuple[int, ...]
) -> Iterator[tuple[Any, ...]]:
    """Yield slices that cut an array and its mask into parts that are small enough to copy.

    The axes of the channels are not cut.  If no copy is needed, the only part is the whole.
    """
    whole: tuple[Any, ...] = (*(slice(None),) * array.ndim, ...)  # the ellipsis keeps a 0-d array an array
    if array.flags.c_contiguous and seen is None and _are_neighbours(axes):
        yield whole
        return
    parts = [whole]
    size = array.size
    for axis in range(array.ndim):
        if size > _COPIED and axis not in axes:
            n = array.shape[axis]
            step = max(n * _COPIED // size, 1)
            size = -(-size // n) * step
            parts = [(*part[:axis], slice(i, i + step), *part[axis + 1 :]) for part in parts for i in range(0, n, step)]
    yield from parts


def _runs(x: npt.NDArray[Any], mask: npt.NDArray[np.bool_] | None, most: int) -> Iterator[_Run]:
    """Yield parts of an array (outer, channels, inner) and its mask, with at most `most` elements of a channel."""
    outer, _, inner = x.shape
    step, inner_step = max(most // inner, 1), min(most, inner)
    for o in range(0, outer, step):
        for i in range(0, inner, inner_step):
            part = slice(o, o + step), slice(None), slice(i, i + inner_step)
            yield x[part], None if mask is None else mask[part]


def _readable(x: npt.NDArray[Any], dtype: np.dtype[Any], mask: npt.NDArray[np.bool_] | None) -> npt.NDArray[Any]:
    """Return an array as kernels read it, with NaN for masked elements: NaN changes only its own count."""
    if mask is None and x.dtype == dtype and x.flags.aligned:
        return x
    with np.errstate(all="ignore"):
        if mask is not None:
            return np.where(mask, x, dtype.type(np.nan)).astype(dtype, copy=False)
        return np.require(x, dtype, ["C", "A"])


def _left_out(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    return np.asarray(np.count_nonzero(~mask, axis=(0, 2)))


def _gathered(
    x: npt.NDArray[Any],
    mask: npt.NDArray[np.bool_] | None,
    dtype: np.dtype[Any],
    values: npt.NDArray[np.float64],
) -> Accumulator:
    """Return the channels of an array, and gather their values in `values`.

    Each channel may have at most `EXACT_LIMIT` elements.
    """
    stats = np.empty((x.shape[1], COLUMNS), np.int64)

    def gather(start: int, stop: int) -> None:
        own = slice(start, stop)
        seen = None if mask is None else mask[:, own]
        dispatch.kernels.gather_values(_readable(x[:, own], dtype, seen), values[own], stats[own], start)

    for_ranges(x.shape[1], max(_GRAIN // (x.shape[0] * x.shape[2]), 1), gather)
    if mask is not None:
        stats[:, N_NAN] -= _left_out(mask)
    return Accumulator.of_values(values, stats)


def _count_chunk(chunk: npt.NDArray[Any]) -> Accumulator:
    parts: list[Accumulator] = []
    for_ranges(chunk.size, _GRAIN, lambda start, stop: parts.append(_count_range(chunk[start:stop])))
    return summed(parts)


def _count_range(x: npt.NDArray[Any]) -> Accumulator:
    """Count one contiguous float32 or float64 range on this thread."""
    if x.size <= EXACT_LIMIT:
        return _count_channels(x.reshape(1, 1, -1), x.dtype)
    single = x.dtype == np.float32
    bits = x.view(np.int32 if single else np.int64)
    exponents = 256 if single else BINADES // 2
    mantissa = 23 if single else 52
    scanned = np.empty(10, np.int64)
    tables = _take(bits.dtype.name, _TABLES, 2 * exponents * FRACTION, np.int32)
    dispatch.kernels.count_leading_bits(bits, tables, scanned)
    low_key, high_key, n_zero, n_nan, n_posinf, n_neginf, least, most, n_low, n_high = scanned.tolist()
    first, last = max(least >> mantissa, 1), most >> mantissa
    binades = np.empty(2 * max(last - first + 1, 0), np.int32)
    counts = np.zeros((binades.size + 1, FRACTION), np.int64)  # one row more, because the kernel reaches one row ahead
    touched, lowest = dispatch.kernels.drain_leading_bits(tables, exponents, first, last, binades, counts)
    _keep(bits.dtype.name, tables)
    n_nonzero = x.size - n_zero - n_nan - n_posinf - n_neginf
    if n_nonzero <= EXACT_LIMIT:  # so few values are kept as they are
        return _gathered_runs(x.reshape(1, 1, -1), None, x.dtype)
    binades, counts = binades[:touched].copy(), counts[:touched].copy()
    if single:  # to the numbers of float64's binades
        binades = (binades >> 8) * np.int32(BINADES // 2) + (binades & 255) + np.int32(1023 - 127)
    if lowest > n_zero:
        binades, counts = _with_subnormals(binades, counts, bits, single)
    low, high = _float_of_key(low_key, single), _float_of_key(high_key, single)
    stats = np.array([
        key_of_value(low),
        key_of_value(high),
        n_low if low else n_zero,  # keys set +0 and -0 apart, so n_low may miss zeros
        n_high if high else n_zero,
        n_zero,
        n_nan,
        n_posinf,
        n_neginf,
        n_nonzero,
    ])  # fmt: skip
    return Accumulator.of_binades(stats, binades, counts)


def _float_of_key(key: int, single: bool) -> float:
    """Return the value of an order key; -0 becomes +0."""
    integer, floating, largest = ("<i", "<f", 2**31 - 1) if single else ("<q", "<d", 2**63 - 1)
    bits = key if key >= 0 else key ^ largest
    value: float = struct.unpack(floating, struct.pack(integer, bits))[0]
    return value + 0.0


def _with_subnormals(
    binades: npt.NDArray[np.int32], counts: npt.NDArray[np.int64], bits: npt.NDArray[Any], single: bool
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Add the subnormals of an array, from its bits: the tables do not sort them into float64's bins."""
    infinity_bit = 23 if single else 52
    magnitude = bits & np.iinfo(bits.dtype).max
    chosen = (magnitude > 0) & (magnitude >> infinity_bit == 0)
    magnitude = magnitude[chosen].astype(np.int64)
    if single:  # they are normal in float64; an integer times a power of two is exact
        magnitude = (magnitude.astype(np.float64) * 2.0**-149).view(np.int64)
    bins = (magnitude >> 45) + (bits[chosen] < 0) * (BINADES // 2 * FRACTION)
    found, occurrences = np.unique(bins, return_counts=True)
    together = np.union1d(binades, found // FRACTION).astype(np.int32)
    table = np.zeros((together.size, FRACTION), np.int64)
    table[np.searchsorted(together, binades)] = counts
    table[np.searchsorted(together, found // FRACTION), found % FRACTION] += occurrences
    return together, table
