"""Split large arrays over a few threads.

The pool is minimal: it hands over two tasks in about 10 microseconds, and ``concurrent.futures`` takes several times
that.  OpenMP is no alternative, because its runtime hangs in a forked child.  Kernels release the GIL.  Every thread
computes a range of an array in the same way, so results never depend on the number of threads.
"""

from __future__ import annotations

import itertools
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from queue import SimpleQueue
from typing import TypeVar

from .errors import InvalidArgumentError
from .validation import as_count

_Item = TypeVar("_Item")

#: The least number of elements worth a thread.  At the speed of memory, a kernel takes about 0.15 ms for them.
GRAIN = 1 << 18
_MOST_DIGITS = 9  # no machine has so many threads that the number is longer


def _available_cpus() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _initial_threads() -> int:
    setting = os.environ.get("QATCORE_NUM_THREADS")
    if not setting:
        return _available_cpus()
    if not setting.isdecimal() or len(setting) > _MOST_DIGITS or int(setting) < 1:
        got = repr(setting) if len(setting) <= _MOST_DIGITS else f"{len(setting)} characters"
        raise InvalidArgumentError(f"QATCORE_NUM_THREADS: expected a positive integer, got {got}")
    return int(setting)


_num_threads = _initial_threads()


def set_num_threads(n: int) -> None:
    """Set how many threads a call may use.

    Results do not depend on it.  The default is the environment variable ``QATCORE_NUM_THREADS``.  Without that, it is
    the number of CPUs that this process may run on.

    Parameters
    ----------
    n : int
        At least 1.

    Raises
    ------
    InvalidArgumentError
        If `n` is less than 1.
    TypeError
        If `n` is not an integer.
    """
    global _num_threads  # noqa: PLW0603 (a setting of the whole process)
    _num_threads = as_count(n, "n")


def get_num_threads() -> int:
    """Return how many threads a call may use."""
    return _num_threads


class _Job:
    """Ranges to work through; each goes to the next free thread."""

    def __init__(self, task: Callable[[int, int], None], ranges: list[tuple[int, int]]) -> None:
        # Only the ranges refer to the task and its arrays.  A finished job may wait in the pool for a thread that gets
        # no processor, and it must not keep the arrays alive.
        self._ranges = deque(partial(task, start, stop) for start, stop in ranges)
        self.finished: SimpleQueue[BaseException | None] = SimpleQueue()

    def work(self) -> None:
        while True:
            try:
                work_through = self._ranges.popleft()
            except IndexError:
                return
            try:
                work_through()
            except BaseException as error:
                self.finished.put(error)
            else:
                self.finished.put(None)


class _Pool:
    """Daemon threads that wait for jobs; started when first needed."""

    def __init__(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        self._started = 0
        self._lock = threading.Lock()

    def offer(self, job: _Job, helpers: int) -> None:
        if self._started < helpers:
            with self._lock:
                while self._started < helpers:
                    try:
                        threading.Thread(target=self._serve, name="qatcore", daemon=True).start()
                    except RuntimeError:  # too many threads, or the interpreter is shutting down
                        break  # the caller works through the ranges alone
                    self._started += 1
        for _ in range(min(helpers, self._started)):
            self._jobs.put(job)

    def _serve(self) -> None:
        while True:
            self._jobs.get().work()


_pool = _Pool()


def _reset_after_fork() -> None:
    global _pool  # noqa: PLW0603
    _pool = _Pool()  # the threads of the parent do not exist in the child


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)


def for_ranges(n: int, grain: int, task: Callable[[int, int], None]) -> None:
    """Call ``task(start, stop)`` for ranges that together make up ``range(n)``, on several threads.

    Parameters
    ----------
    n : int
    grain : int
        The least length of a range, unless `n` itself is less.
    task : callable
        Must write only what belongs to its range.
    """
    parts = min(_num_threads, n // grain)
    if parts <= 1:
        task(0, n)
        return
    bounds = [n * part // parts for part in range(parts + 1)]
    _work(task, list(itertools.pairwise(bounds)))


def for_each(items: Sequence[_Item], task: Callable[[_Item], None]) -> None:
    """Call ``task(item)`` for each item, on several threads.

    The next free thread takes the next item, so items may take different times.

    Parameters
    ----------
    items : sequence
    task : callable
        Must write only what belongs to its item.
    """
    if _num_threads == 1 or len(items) <= 1:
        for item in items:
            task(item)
        return
    _work(lambda start, _: task(items[start]), [(i, i + 1) for i in range(len(items))])


def _work(task: Callable[[int, int], None], ranges: list[tuple[int, int]]) -> None:
    job = _Job(task, ranges)
    _pool.offer(job, min(_num_threads, len(ranges)) - 1)
    job.work()
    errors = [error for error in (job.finished.get() for _ in ranges) if error is not None]
    try:
        if errors:
            raise errors[0]
    finally:
        del errors  # or else they and this frame refer to each other, and keep the arrays alive
