"""Find the nodes that quantisation hurts most, and the few to keep in float for an allowed drop."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from .comparison import answers_of, tensor_outputs
from .data import Batch, Data
from .metric import IncomparableError, Metric, OutputNoise
from .quantization import Quantizer
from .session import run, session_of
from .work import node_multiply_adds

#: The number of batches that each node is tried on.
BATCHES = 8


@dataclass(frozen=True)
class Sensitivity:
    """How much quantising one node alone changes the outputs.

    Attributes
    ----------
    node, op : str
        The node's name and operator.
    sqnr : float
        The signal-to-quantisation-noise ratio (SQNR) of the outputs in dB.  The noise of each output is relative to the
        output's power, and summed over the outputs.
    multiply_adds : int
        The number of the node's multiplications for the first batch.
    share : float
        The node's part of the multiplications of all nodes that are quantised, 0 to 1.
    """

    node: str
    op: str
    sqnr: float
    multiply_adds: int
    share: float


def node_sensitivities(
    quantizer: Quantizer,
    data: Iterable[Batch],
    *,
    progress: Callable[[int], None] | None = None,
) -> list[Sensitivity]:
    """Return the sensitivity of each node of the plan, the most sensitive first.

    No bias is corrected.  The outputs of the float model for the data are kept in memory.  If some node changes the
    shape of an output, because its size depends on values, that output does not count.

    Raises
    ------
    IncomparableError
        If no output counts.
    """
    batches = list(data)
    noises = _noises(quantizer, batches, progress)
    places = set[int].intersection(*(noise.comparable for noise in noises.values()))
    if not places:
        reason = "no output has floats other than 0 and a shape that does not depend on values"
        raise IncomparableError(f"model: expected an output to measure sensitivities on, but {reason}", reason)
    for noise in noises.values():
        noise.choose(places)
    work = node_multiply_adds(quantizer.float_model, quantizer.plan.nodes, batches[0])
    total = max(sum(work.values()), 1)
    result = [
        Sensitivity(name, node.op_type, noises[name].sqnr, work[name], work[name] / total)
        for name, node in ((str(node.name), node) for node in quantizer.plan.nodes)
    ]
    return sorted(result, key=lambda each: each.sqnr)


def most_sensitive(
    quantizer: Quantizer, data: Iterable[Batch], metric: Metric, *, progress: Callable[[int], None] | None = None
) -> list[str]:
    """Return the names of the plan's nodes, the most sensitive first.

    The noise of the float outputs decides.  If the size of an output depends on values, or no output has any noise, the
    metric decides.
    """
    batches = list(data)
    noises = _noises(quantizer, batches, progress)
    order = sorted(noises, key=lambda name: noises[name].sqnr)
    if not any(noise.unlike for noise in noises.values()) and noises[order[0]].sqnr < math.inf:
        return order
    drops = dict.fromkeys(order, 0.0)
    for name, alone in _each_alone(quantizer, progress):
        # These batches may hold nothing to compare; the search finds out whether all of the data does.
        with contextlib.suppress(IncomparableError):
            drops[name] = scored(quantizer.float_model, alone, batches, metric.fresh()).drop
    return sorted(order, key=lambda name: -drops[name])


def _noises(
    quantizer: Quantizer, batches: list[Batch], progress: Callable[[int], None] | None
) -> dict[str, OutputNoise]:
    """Return the noise of the outputs with each node of the plan quantised alone."""
    session, outputs = session_of(quantizer.float_model), tensor_outputs(quantizer.float_model)
    exact = [run(session, outputs, batch) for batch in batches]
    result = {}
    for name, alone in _each_alone(quantizer, progress):
        session, noise = session_of(alone), OutputNoise()
        for batch, values in zip(batches, exact, strict=True):
            noise.add(values, run(session, outputs, batch))
        result[name] = noise
    return result


def _each_alone(quantizer: Quantizer, progress: Callable[[int], None] | None) -> Iterator[tuple[str, ir.Model]]:
    """Yield each node's name and the model with that node quantised and no other."""
    names = [str(node.name) for node in quantizer.plan.nodes]
    for index, name in enumerate(names, start=1):
        yield name, quantizer.model([other for other in names if other != name], corrected=False)
        if progress is not None:
            progress(index)


@dataclass(frozen=True)
class Search:
    """A quantised model within an allowed drop: the model, the nodes that stayed in float, and the score."""

    model: ir.Model
    float_nodes: list[str]
    metric: Metric


def within_drop(
    quantizer: Quantizer,
    data: Data,
    metric: Metric,
    most: float,
    order: list[str],
    *,
    progress: Callable[[int, float], None] | None = None,
) -> Search:
    """Return a quantised model that loses at most `most` percent, with as few nodes in float as were found to do.

    The first nodes of `order` stay in float.  The search tries 0, 1, 2, 4 and so on of them until the drop is allowed,
    and then halves the steps between.
    """

    def tried(n: int) -> Search:
        candidate = quantizer.model(order[:n])
        score = scored(quantizer.float_model, candidate, data, metric.fresh())
        if progress is not None:
            progress(n, score.drop)
        return Search(candidate, order[:n], score)

    too_few = -1
    for n in _doubling(len(order)):
        best = tried(n)
        if best.metric.drop <= most:
            break
        too_few = n
    while len(best.float_nodes) - too_few > 1:
        middle = tried((len(best.float_nodes) + too_few) // 2)
        if middle.metric.drop <= most:
            best = middle
        else:
            too_few = len(middle.float_nodes)
    return best


def scored(
    exact: ir.Model,
    other: ir.Model,
    data: Iterable[Batch],
    metric: Metric,
    *,
    progress: Callable[[int], None] | None = None,
) -> Metric:
    """Return a metric that has seen the outputs of two models for all of the data.

    Raises
    ------
    IncomparableError
        If the outputs cannot be compared.
    """
    for batch, a, b in answers_of(exact, other, data, progress):
        metric.add(a, b, batch)
    return metric


def _doubling(last: int) -> Iterator[int]:
    n = 0
    while n < last:
        yield n
        n = max(1, 2 * n)
    yield last
