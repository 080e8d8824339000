"""Observing, against the histograms of others."""

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
    """Return a fresh collector that has seen some arrays."""
    collector = qatcore.CalibrationCollector(axis)
    for batch in batches:
        collector.observe(batch)
    return collector


def one_array(work: str, x: np.ndarray, settings: Settings, chart: str = "") -> Row:
    """Row: one large array into a fresh collector."""
    row = Row(work, chart)
    check_counts(work, observed(x), x)
    copy = x.copy()
    low, high = float(x.min()), float(x.max())
    # The peers that want a range are given it, and one that is not empty; finding it is not in their time.
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
        require(work, (seen.min_val.item(), seen.max_val.item()) == (low, high), "another range than torch's")
        row.peer("torch: HistogramObserver", observer, faster(5) if judged else None)

        def fast() -> np.ndarray:
            return fast_histogram.histogram1d(x, bins=BINS, range=limits)

        # Its range is half open, so the greatest value may be left out.
        require(work, 0 <= x.size - fast().sum() <= np.count_nonzero(x == high), "fast-histogram counted others")
        row.peer("fast-histogram: histogram1d", fast, faster(2) if judged else None)

        axis = boost_histogram.axis.Regular(BINS, *limits)

        def boost() -> boost_histogram.Histogram:
            return boost_histogram.Histogram(axis, storage=boost_histogram.storage.Int64()).fill(x)

        require(work, boost().sum(flow=True) == x.size, "boost-histogram counted others")
        row.peer("boost-histogram: fill", boost)
    row.limit("numpy.copyto", lambda: np.copyto(copy, x))
    return row


def many_channels(x: np.ndarray, settings: Settings) -> Iterator[Row]:
    """Rows: the same array as 1,024 channels, and as one."""
    rows = x.size // CHANNELS
    pooled = observed(x)
    for axis, kind in ((0, "each in one piece"), (1, "one beside the other")):
        array = x.reshape((CHANNELS, rows) if axis == 0 else (rows, CHANNELS))
        work = f"observe {counted(x.size)} float32 as {CHANNELS:,} channels, {kind}"
        expected = observed(array, axis=axis)
        require(work, expected.pooled() == pooled, "the channels together are not the whole")
        require(work, expected.channel(7) == observed(array.take(7, axis)), "a channel is not a collector of its own")
        for batches, suffix in ((1, ""), (64, ", in 64 batches")):
            parts = np.split(array, batches, axis=1 - axis)
            require(work, observed(*parts, axis=axis) == expected, "batches left a trace")
            row = Row(work + suffix)
            row.ours(partial(observed, *parts, axis=axis))
            row.other("qatcore: as one channel, likewise", partial(observed, *np.split(x, batches)))
            yield row


def check_counts(work: str, collector: qatcore.CalibrationCollector, x: np.ndarray) -> None:
    """Compare with the oracle: a float32's bin is its first 16 bits."""
    require(work, collector.n_elements == x.size, "not every value was counted")
    require(work, (collector.min_val, collector.max_val) == (x.min(), x.max()), "another range than NumPy's")
    _, expected = np.unique(x[x != 0.0].view(np.uint32) >> 16, return_counts=True)
    counts, _ = collector.histogram()
    # By size, since the codes of negative numbers descend.  A zero's bin would be one more.
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
        require(row.work, limits == (batches.min(), batches.max()), "another range than NumPy's")
        if kind is qatcore.reference.CalibrationCollector:
            same(row.work, collector.samples, batches.ravel()[:100_000])
        else:
            require(row.work, collector == observed(batches), "batches left a trace")
        row.ours(lambda kind=kind: fill(kind()))
        row.limit("numpy.copyto, batch by batch", copy_batches, bar)
        yield row
