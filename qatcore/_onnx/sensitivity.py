"""Which nodes quantisation hurts: each one quantised alone, and the fewest kept in float for a drop that is allowed."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from onnx import ModelProto, NodeProto

from .comparison import answers_of, tensor_outputs
from .data import Batch, Data
from .graph import Graph
from .metric import IncomparableError, Metric, OutputNoise
from .plan import multiply_adds
from .quantization import Quantizer
from .session import Tap, run, session_of

#: Batches that nodes are tried on, one by one.
BATCHES = 8


@dataclass(frozen=True)
class Sensitivity:
    """What quantising one node alone does to the outputs.

    Attributes
    ----------
    node, op : str
        Its name and operator.
    sqnr : float
        Signal-to-quantisation-noise ratio of the outputs in dB, of the powers relative to each output's own, added up.
    multiply_adds : int
        Multiplications of the node in the first batch.
    share : float
        The same as a part of those of all nodes that are quantised.
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
    """Return the sensitivity of each node of the plan, the most sensitive first; no bias is corrected for that.

    The outputs of the float model for the data are kept in memory.  Those that with some node are of another shape, as
    their size depends on values, count with none.

    Raises
    ------
    IncomparableError
        If none is left.
    """
    batches = list(data)
    noises = _noises(quantizer, batches, progress)
    places = set[int].intersection(*(noise.comparable for noise in noises.values()))
    if not places:
        reason = "no output of floats has a shape that does not depend on values, and values but 0"
        raise IncomparableError(f"model: sensitivities are of outputs, and {reason}", reason)
    for noise in noises.values():
        noise.choose(places)
    work = node_multiply_adds(quantizer.float_model, quantizer.plan.nodes, batches[0])
    total = max(sum(work.values()), 1)
    result = [
        Sensitivity(node.name, node.op_type, noises[node.name].sqnr, work[node.name], work[node.name] / total)
        for node in quantizer.plan.nodes
    ]
    return sorted(result, key=lambda each: each.sqnr)


def most_sensitive(
    quantizer: Quantizer, data: Iterable[Batch], metric: Metric, *, progress: Callable[[int], None] | None = None
) -> list[str]:
    """Return the nodes of the plan, the most sensitive first, as outputs of floats tell or a metric.

    The metric tells where outputs have sizes that depend on values, and where there is no noise in any of them.
    """
    batches = list(data)
    noises = _noises(quantizer, batches, progress)
    order = sorted(noises, key=lambda name: noises[name].sqnr)
    if not any(noise.unlike for noise in noises.values()) and noises[order[0]].sqnr < math.inf:
        return order
    drops = dict.fromkeys(order, 0.0)
    for name, alone in _each_alone(quantizer, progress):
        # These batches may lack what others have; whether anything can be compared is for the search to find.
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


def _each_alone(quantizer: Quantizer, progress: Callable[[int], None] | None) -> Iterator[tuple[str, ModelProto]]:
    """Yield each node's name and the model with that node quantised and no other."""
    names = [node.name for node in quantizer.plan.nodes]
    for index, name in enumerate(names, start=1):
        yield name, quantizer.model([other for other in names if other != name], corrected=False)
        if progress is not None:
            progress(index)


def node_multiply_adds(model: ModelProto, nodes: Sequence[NodeProto], batch: Batch) -> dict[str, int]:
    """Return how many multiplications nodes of a prepared model, whose weights are constant, do for a batch."""
    index = Graph(model)
    tap = Tap(model, [name for node in nodes for name in (node.input[0], node.output[0])])
    values = tap.values(batch)
    return {
        node.name: multiply_adds(
            node, tuple(index.constants[node.input[1]].dims), values[node.input[0]].shape, values[node.output[0]].shape
        )
        for node in nodes
    }


@dataclass(frozen=True)
class Search:
    """A quantised model within an allowed drop: the model, the nodes that stayed in float, and the score."""

    model: ModelProto
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
    """Return a quantised model that loses at most so many percent, with as few nodes in float as were found to do.

    The first nodes of `order` stay in float: none, 1, 2, 4 and so on, until the drop is allowed, and then by halves
    between.
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
    exact: ModelProto,
    other: ModelProto,
    data: Iterable[Batch],
    metric: Metric,
    *,
    progress: Callable[[int], None] | None = None,
) -> Metric:
    """Return a metric that has seen what two models answer to all of the data.

    Raises
    ------
    IncomparableError
        If what they answer cannot be compared.
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
