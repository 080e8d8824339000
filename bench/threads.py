"""Time functions on two threads, beside one thread."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator

import numpy as np

import qatcore

from .checks import require, same
from .settings import Settings, counted
from .timing import Bar, Row, faster


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows, if there are two CPUs to run on."""
    if len(os.sched_getaffinity(0)) < 2:
        print("bench: threads: skipped, because this process may use one CPU only", file=sys.stderr)
        return
    rng = np.random.default_rng(0)
    side = settings.side(2048)
    a, b = rng.integers(-128, 128, (2, side, side), np.int8)
    packed, out = qatcore.PackedInt8Matrix(b), np.empty((side, side), np.float32)
    work = f"int8_linear {side} x {side} x {side} packed, to float32"
    yield pair(work, lambda: qatcore.int8_linear(a, packed, 0.01, out=out), settings, faster(1.7), 2 * side**3)

    x = rng.normal(size=settings.size(2**24)).astype(np.float32)

    def observe() -> qatcore.CalibrationCollector:
        collector = qatcore.CalibrationCollector()
        collector.observe(x)
        return collector

    yield pair(f"observe normal float32, {counted(x.size)}", observe, settings, faster(1.4))
    steps = np.empty_like(x)
    work = f"fake_quantize float32, {counted(x.size)}"
    yield pair(work, lambda: qatcore.fake_quantize(x, 0.05, out=steps), settings)


def pair(work: str, call: Callable[[], object], settings: Settings, bar: Bar | None = None, operations: int = 0) -> Row:
    """Row: the same call on two threads and on one."""
    row = Row(work, operations=operations)
    results = []
    for n in (1, 2):
        qatcore.set_num_threads(n)
        outcome = call()
        results.append(outcome.copy() if isinstance(outcome, np.ndarray) else outcome)
    if isinstance(results[0], np.ndarray):
        same(row.work, results[1], results[0])
    else:
        require(row.work, results[1] == results[0], "the result depends on the number of threads")
    row.ours(call, name="qatcore: 2 threads", prepare=lambda: qatcore.set_num_threads(2))
    row.peer("qatcore: 1 thread", call, bar, prepare=lambda: qatcore.set_num_threads(1))
    return row
