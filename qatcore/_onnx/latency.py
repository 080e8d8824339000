"""How long models take in ONNX Runtime; models that are compared take turns."""

from __future__ import annotations

import contextlib
import functools
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir
from onnxruntime import InferenceSession

from .._base.errors import InvalidArgumentError
from .data import Batch, InputSpec
from .session import run, session_of

#: Limits of the runs of a model.  A run of less than the least seconds is repeated, and its mean is one time.
_FEWEST, _MOST, _LEAST_SECONDS = 5, 200, 2e-3


@dataclass(frozen=True)
class Latency:
    """How long a run of a float model and of a quantised one takes.

    Attributes
    ----------
    samples : int
        The samples in a batch.
    threads : int or None
        How many threads ONNX Runtime computes with; None if it chooses, which is one for each core.
    float_ms, quantized_ms : float
        Median milliseconds of a run.
    spread : tuple of float
        The first and the third quartile of the ratio of both models' times, from runs next to each other.
    """

    samples: int
    threads: int | None
    float_ms: float
    quantized_ms: float
    spread: tuple[float, float]

    @property
    def ratio(self) -> float:
        """How many times as fast as the float model the quantised one is."""
        return self.float_ms / self.quantized_ms


class Race:
    """Times models on a batch; they take turns, so that other work on the machine slows all of them alike.

    Parameters
    ----------
    batch : dict
    outputs : sequence of str
        What the models compute.
    threads : int, optional
        By default ONNX Runtime chooses.
    """

    def __init__(self, batch: Batch, outputs: Sequence[str], threads: int | None = None) -> None:
        self.batch, self.outputs, self.threads = batch, outputs, threads

    def times(self, models: Sequence[ir.Model], seconds: float) -> list[list[float]]:
        """Return the milliseconds of each run of each model, for about so many seconds a model.

        Raises
        ------
        InvalidArgumentError
            If ONNX Runtime cannot run a model.
        """
        return _times(_sessions(models, self.threads), self.batch, self.outputs, seconds)


def latency_of(exact: ir.Model, quantized: ir.Model, batch: Batch, outputs: Sequence[str], seconds: float) -> Latency:
    """Return how long both models take for a batch, with all threads."""
    samples = InputSpec(exact).samples_of(batch)
    return _latency(_sessions([exact, quantized], None), None, batch, samples, outputs, seconds)


def latencies_of(
    exact: ir.Model, quantized: ir.Model, batch: Batch, outputs: Sequence[str], seconds: float
) -> list[Latency]:
    """Return how long both models take for a batch and for its first sample, with all threads and with one.

    The sample is left out if the models take batches of another size only.
    """
    samples, single = InputSpec(exact).samples_of(batch), first_sample(exact, batch)
    whole, alone = list[Latency](), list[Latency]()
    for threads in (None, 1):
        sessions = _sessions([exact, quantized], threads)
        whole.append(_latency(sessions, threads, batch, samples, outputs, seconds))
        if single is not None:
            with contextlib.suppress(InvalidArgumentError):  # a size inside of the model is that of the batch
                alone.append(_latency(sessions, threads, single, 1, outputs, seconds))
    return whole + alone


def _sessions(models: Sequence[ir.Model], threads: int | None) -> list[InferenceSession]:
    return [session_of(model, threads=threads) for model in models]


def _latency(
    sessions: Sequence[InferenceSession],
    threads: int | None,
    batch: Batch,
    samples: int,
    outputs: Sequence[str],
    seconds: float,
) -> Latency:
    """Return how long sessions of a float model and of a quantised one take for a batch."""
    first, second = _times(sessions, batch, outputs, seconds)
    low, _, high = statistics.quantiles([a / b for a, b in zip(first, second, strict=True)])
    return Latency(samples, threads, statistics.median(first), statistics.median(second), (low, high))


def _times(
    sessions: Sequence[InferenceSession], batch: Batch, outputs: Sequence[str], seconds: float
) -> list[list[float]]:
    """Return the milliseconds of each run of each session, in turn, for about so many seconds a session."""
    return in_turn([functools.partial(run, session, outputs, batch) for session in sessions], seconds)


def in_turn(runs: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Return the milliseconds that each function takes each time, in turn, for about so many seconds a function."""

    def timed(which: int, repeats: int) -> float:
        start = time.perf_counter()
        for _ in range(repeats):
            runs[which]()
        return (time.perf_counter() - start) / repeats

    turns = range(len(runs))
    for which in turns:
        timed(which, 1)  # the first run prepares the session
    repeats = max(int(_LEAST_SECONDS / max(timed(0, 1), 1e-9)), 1)
    times: list[list[float]] = [[] for _ in turns]
    stop = time.perf_counter() + seconds * len(runs)
    while len(times[0]) < _FEWEST or (time.perf_counter() < stop and len(times[0]) < _MOST):
        for which in turns if len(times[0]) % 2 else reversed(turns):
            times[which].append(timed(which, repeats) * 1e3)
    return times


def first_sample(model: ir.Model, batch: Batch) -> Batch | None:
    """Return the first sample of a batch of several; None if the inputs have no common axis of samples of any size."""
    spec = InputSpec(model)
    samples = spec.samples_of(batch)
    shapes = [spec.shapes[name] for name in spec.names]
    if samples < 2 or not all(shape and shape[0] is None for shape in shapes):
        return None
    if any(batch[name].shape[0] != samples for name in spec.names):
        return None
    return {name: batch[name][:1] for name in spec.names}
