"""A float model and a quantised one side by side: outputs, tensors, time and size."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from onnx import ModelProto

from ..errors import InvalidArgumentError
from .data import Batch, Data
from .graph import Graph
from .metric import Metric, Noise, Outputs, UnlikeError, check_alike
from .model import file_bytes
from .rewriting import tensor_of_codes
from .session import Tap, named_run, run, session_of, tensor_outputs

#: Batches that single tensors are compared on.
_TENSOR_BATCHES = 8
_TIMED_SECONDS = 0.5
_MOST_RUNS = 200


@dataclass(frozen=True)
class Comparison:
    """What `compare` has measured.

    Attributes
    ----------
    metric : str
        "agreement" with the float model in the greatest of each output's classes, "accuracy" on labels, "closeness" (1
        less the relative error, of the output where it is largest) where there are no classes, or the name of a
        function.
    score : tuple of float
        In percent, of the float model and of the quantised one.
    batches : int
    outputs : dict of str to tuple of float
        Of every output the signal-to-quantisation-noise ratio in dB, and the greatest absolute difference; NaN where a
        function is the metric and the models' outputs differ in shape.
    tensors : dict of str to float
        Of every tensor with codes the ratio in dB on the first 8 batches, in the order of the graph.
    latency : tuple of float
        Median milliseconds of a run on the first batch, of either model.
    size : tuple of int
        Bytes of either model.
    """

    metric: str
    score: tuple[float, float]
    batches: int
    outputs: dict[str, tuple[float, float]]
    tensors: dict[str, float]
    latency: tuple[float, float]
    size: tuple[int, int]

    @property
    def drop(self) -> float:
        """Percent that the quantised model loses."""
        return self.score[0] - self.score[1]


def compare_models(
    exact: ModelProto,
    quantized: ModelProto,
    data: Data,
    metric: Metric,
    *,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Return how a quantised model differs from the float one on data, which it goes through once."""
    outputs = tensor_outputs(exact)
    noise = {name: Noise() for name in outputs}
    first: list[Batch] = []
    n = 0
    for n, (batch, a, b) in enumerate(answers_of(exact, quantized, data, progress), start=1):
        if n <= _TENSOR_BATCHES:
            first.append(batch)
        metric.add(a, b, batch)
        for name in outputs:
            if a[name].dtype.kind == "f":
                _add(noise[name], f"output {name}", a[name], b[name], metric)
    return Comparison(
        metric.name,
        metric.scores,
        n,
        {name: (noise[name].sqnr, noise[name].largest) for name in outputs},
        _tensor_noise(exact, quantized, first, metric),
        latency_of([exact, quantized], first[0]),
        (file_bytes(exact), file_bytes(quantized)),
    )


def answers_of(
    exact: ModelProto, other: ModelProto, data: Data, progress: Callable[[int], None] | None
) -> Iterator[tuple[Batch, Outputs, Outputs]]:
    """Yield every batch and what two models answer to it."""
    names = tensor_outputs(exact)
    with _said_of("float model"):
        first = session_of(exact)
    with _said_of("quantised model"):
        second = session_of(other)
    for n, batch in enumerate(data, start=1):
        with _said_of("float model"):
            a = named_run(first, names, batch)
        with _said_of("quantised model"):
            b = named_run(second, names, batch)
        yield batch, a, b
        if progress is not None:
            progress(n)


@contextlib.contextmanager
def _said_of(which: str) -> Iterator[None]:
    """Let errors of running a model say which of the two it is."""
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{which}: {str(error).removeprefix('model: ')}") from error


def _add(noise: Noise, what: str, exact: Any, other: Any, metric: Metric) -> None:
    """Compare a tensor; where it has another shape only a function has a use for the models' comparison."""
    try:
        check_alike(what, exact, other)
    except UnlikeError:
        if not metric.is_function:
            raise
        noise.give_up()
    else:
        noise.add(exact, other)


def _tensor_noise(exact: ModelProto, quantized: ModelProto, batches: list[Batch], metric: Metric) -> dict[str, float]:
    """Return the SQNR of every tensor with codes: apart from outputs, since what is looked at is not fused."""
    pairs = _tensors_with_codes(exact, quantized)
    noise = {name: Noise() for name in pairs}
    taps = Tap(exact, pairs), Tap(quantized, pairs.values())
    for batch in batches:
        values, others = (tap.values(batch) for tap in taps)
        for name, other in pairs.items():
            _add(noise[name], f"tensor {name}", values[name], others[other], metric)
    return {name: each.sqnr for name, each in noise.items()}


def latency_of(models: Iterable[ModelProto], batch: Batch) -> Any:
    """Return the median milliseconds of a run of each model, which take turns."""
    sessions = [session_of(model) for model in models]
    times: list[list[float]] = [[] for _ in sessions]
    for session in sessions:
        run(session, None, batch)  # which prepares it
    stop = time.perf_counter() + _TIMED_SECONDS * len(sessions)
    while len(times[0]) < 3 or (time.perf_counter() < stop and len(times[0]) < _MOST_RUNS):
        for session, taken in zip(sessions, times, strict=True):
            start = time.perf_counter()
            run(session, None, batch)
            taken.append(time.perf_counter() - start)
    return tuple(statistics.median(taken) * 1e3 for taken in times)


def _tensors_with_codes(exact: ModelProto, quantized: ModelProto) -> dict[str, str]:
    """Return the tensors of a float model that are codes in the quantised one, and what gives their values there."""
    index, graph = Graph(exact), Graph(quantized)
    pairs = {}
    for node in quantized.graph.node:
        if node.op_type == "QuantizeLinear":
            name, _, values = tensor_of_codes(node, graph)
            if values and (name in index.makers or name in index.inputs):
                pairs[name] = values
    return pairs
