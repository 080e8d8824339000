"""Time observing into a collector, beside the histograms of other packages."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

import qatcore

from .checks import require, same
from .settings import Settings, counted
from .timing import Row, faster, within

BINS = 2048
BATCH = 8192
CHANNELS = 1024


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    n = settings.size(2**24)
    x = np.random.default_rng(0).normal(size=n).astype(np.float32)
    yield one_array(
        f"observe normal float32, {counted(n)}", x, settings, chart=f"observe (histogram, min, max), {counted(n)}"
    )
    yield one_array(f"observe constant float32, {counted(n)}", np.full(n, 1.5, np.float32), settings)
    yield from many_channels(x, settings)
    del x
    yield from many_batches(settings)


def observed(*batches: np.ndarray, axis: int | None = None) -> qatcore.CalibrationCollector:
    """Return a new collector that has observed the arrays."""
    collector = qatcore.CalibrationCollector(axis)
    for batch in batches:
        collector.observe(batch)
    return collector


def one_array(work: str, x: np.ndarray, settings: Settings, chart: str = "") -> Row:
    """Row: one large array into a new collector."""
    row = Row(work, chart)
    check_counts(work, observed(x), x)
    copy = x.copy()
    low, high = float(x.min()), float(x.max())
    # Peers that need a range get one that is not empty.  Finding it does not count in their time.
    limits = (low, high) if low < high else (low - 0.5, high + 0.5)
    judged = low < high
    row.ours(lambda: observed(x))
    row.peer("numpy: histogram", lambda: np.histogram(x, bins=BINS), faster(8) if judged else None)
    if settings.peers:
        import boost_histogram
        import fast_histogram
        import torch
        from torch.ao.quantization import HistogramObserver

        tensor = torch.from_numpy(x)

        def observer() -> HistogramObserver:
            fresh = HistogramObserver(bins=BINS)
            fresh(tensor)
            return fresh

        seen = observer()
        require(work, (seen.min_val.item(), seen.max_val.item()) == (low, high), "the range differs from torch's")
        row.peer("torch: HistogramObserver", observer, faster(5) if judged else None)

        def fast() -> np.ndarray:
            return fast_histogram.histogram1d(x, bins=BINS, range=limits)

        # Its range is half open, so it may leave out the greatest value.
        require(work, 0 <= x.size - fast().sum() <= np.count_nonzero(x == high), "fast-histogram counted other values")
        row.peer("fast-histogram: histogram1d", fast, faster(2) if judged else None)

        axis = boost_histogram.axis.Regular(BINS, *limits)

        def boost() -> boost_histogram.Histogram:
            return boost_histogram.Histogram(axis, storage=boost_histogram.storage.Int64()).fill(x)

        require(work, boost().sum(flow=True) == x.size, "boost-histogram counted other values")
        row.peer("boost-histogram: fill", boost)
    row.limit("numpy.copyto", lambda: np.copyto(copy, x))
    return row


def many_channels(x: np.ndarray, settings: Settings) -> Iterator[Row]:
    """Rows: the same array as 1,024 channels, and as one channel."""
    rows = x.size // CHANNELS
    pooled = observed(x)
    for axis, kind in ((0, "each in one piece"), (1, "one beside the other")):
        array = x.reshape((CHANNELS, rows) if axis == 0 else (rows, CHANNELS))
        work = f"observe {counted(x.size)} float32 as {CHANNELS:,} channels, {kind}"
        expected = observed(array, axis=axis)
        require(work, expected.pooled() == pooled, "the pooled channels differ from one collector of all values")
        require(work, expected.channel(7) == observed(array.take(7, axis)), "a channel differs from its own collector")
        for batches, suffix in ((1, ""), (64, ", in 64 batches")):
            parts = np.split(array, batches, axis=1 - axis)
            require(work, observed(*parts, axis=axis) == expected, "the result depends on the batches")
            row = Row(work + suffix)
            row.ours(partial(observed, *parts, axis=axis))
            row.other("qatcore: as one channel, likewise", partial(observed, *np.split(x, batches)))
            yield row


def check_counts(work: str, collector: qatcore.CalibrationCollector, x: np.ndarray) -> None:
    """Compare with the oracle: the bin of a float32 is its upper 16 bits."""
    require(work, collector.n_elements == x.size, "not every value was counted")
    require(work, (collector.min_val, collector.max_val) == (x.min(), x.max()), "the range differs from NumPy's")
    _, expected = np.unique(x[x != 0.0].view(np.uint32) >> 16, return_counts=True)
    counts, _ = collector.histogram()
    # Compare sorted counts, since the bits of negative numbers descend.  Zeros have a bin of their own.
    counts = np.sort(counts[counts > 0])
    zeros = np.count_nonzero(x == 0.0)
    same(work, counts, np.sort(np.append(expected, zeros) if zeros else expected).astype(counts.dtype))


def many_batches(settings: Settings) -> Iterator[Row]:
    """Rows: many small batches into one collector."""
    batches = np.random.default_rng(1).normal(size=(settings.size(1008) if settings.short else 1000, BATCH))
    copy = batches.copy()

    def fill(collector: object) -> object:
        for batch in batches:
            collector.observe(batch)  # type: ignore[attr-defined]
        return collector

    def copy_batches() -> None:
        for target, batch in zip(copy, batches, strict=True):
            np.copyto(target, batch)

    for kind, name, bar in (
        (qatcore.reference.CalibrationCollector, "reference.CalibrationCollector", within(1.2)),
        (qatcore.CalibrationCollector, "CalibrationCollector", None),
    ):
        row = Row(f"{name}.observe, {len(batches):,} times {BATCH:,} float64")
        collector = fill(kind())
        require(row.work, collector.n_elements == batches.size, "not every value was counted")
        limits = (collector.min_val, collector.max_val)
        require(row.work, limits == (batches.min(), batches.max()), "the range differs from NumPy's")
        if kind is qatcore.reference.CalibrationCollector:
            same(row.work, collector.samples, batches.ravel()[:100_000])
        else:
            require(row.work, collector == observed(batches), "the result depends on the batches")
        row.ours(lambda kind=kind: fill(kind()))
        row.limit("numpy.copyto, batch by batch", copy_batches, bar)
        yield row
