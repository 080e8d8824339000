"""Find the nodes to leave in float so that a quantised model runs fastest, by timing it on the user's data."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from .._base.errors import InvalidArgumentError
from .description import description
from .graph import attribute, is_a, names_of, readers_of
from .kernels import node_of, nodes_by_name
from .latency import Race
from .plan import Plan, end_of
from .quantization import Quantizer
from .regions import data_of, made_by
from .rewriting import CONVOLUTIONS
from .session import profile
from .speed import why_slower

#: Seconds for which each of two models is timed, to choose between them, and for which the best are timed at last.
_SECONDS, _LAST_SECONDS = 0.4, 1.5
#: A change counts if it makes a model faster by more than this part; less may be chance.
_GAIN = 0.02
#: Changes are tried if the profile promises a gain, or at least no loss of more than this part.
_LOSS = 0.05
#: How many products at the beginning of a model are tried in float.
_BEGINNING = 4
#: How many placements are timed at most.
MOST_TRIED = 24
#: How many runs are profiled.
_PROFILED = 5


@dataclass(frozen=True)
class Placement:
    """Which nodes stay in float, besides those that rules leave there, and how that was found.

    Attributes
    ----------
    float_nodes : tuple of str
    weights_alone : bool
        Whether only weights have codes.
    tried : int
        How many placements were timed.
    why : str or None
        If the rules' placement is slower than the float model: how ONNX Runtime runs it.
    """

    float_nodes: tuple[str, ...]
    weights_alone: bool
    tried: int = 0
    why: str | None = None

    @classmethod
    def of(cls, quantized: ir.Model) -> Placement:
        """Return the placement that a quantised model was made with.

        Raises
        ------
        InvalidArgumentError
            If the metadata of the model do not say so.
        """
        about = description(quantized)
        if not {"float", "activations"} <= about.keys():
            raise InvalidArgumentError("recipe: expected a model that qatcore has quantised, got another one")
        return cls(tuple(about["float"]), about["activations"] == "none")


def fastest_placement(
    exact: ir.Model,
    quantizer: Quantizer,
    weights_alone: Callable[[], Quantizer],
    race: Race,
    progress: Callable[[int, str], None],
) -> tuple[Quantizer, Placement]:
    """Return a quantizer that makes the fastest model, and the placement.

    Parameters
    ----------
    exact : onnx_ir.Model
        The float model.  The result is not slower: if nothing in codes is faster, only weights get codes.
    quantizer : Quantizer
    weights_alone : callable
        Returns a quantizer for weights alone.
    race : Race
    progress : callable
        Called with how many placements were timed, and with a note.
    """
    kept, tried = _greedy(quantizer, race, progress)
    alone = weights_alone()
    # If two are equally fast, the first of these is chosen: it has more in codes.
    choices = [(quantizer, ()), (alone, ()), *([(quantizer, kept)] if kept else [])]
    models = [each.model(names, corrected=False) for each, names in choices]
    times, best = race.times([*models, exact], _LAST_SECONDS), 0
    for i in range(1, len(choices)):
        if _is_faster(times[i], times[best]):
            best = i
    if _is_faster(times[-1], times[best]):
        best = 1
    chosen, names = choices[best]
    if chosen is alone and _is_faster(times[-1], times[1]):  # weights of convolutions cost no time
        names = tuple(str(node.name) for node in alone.plan.nodes if not is_a(node, CONVOLUTIONS))
    medians = [statistics.median(each) for each in (times[-1], times[0])]
    why = why_slower(models[0], *medians)
    reason = None if why is None else why.partition("; try ")[0]
    return chosen.with_float(names), Placement(names, chosen is alone, tried, reason)


def is_slower(exact: ir.Model, quantized: ir.Model, race: Race) -> bool:
    """Return whether a quantised model is slower than the float model, by more than chance."""
    return _is_faster(*race.times([exact, quantized], _LAST_SECONDS))


def _greedy(quantizer: Quantizer, race: Race, progress: Callable[[int, str], None]) -> tuple[tuple[str, ...], int]:
    """Return the nodes to leave in float, in the order of the graph, and how many choices were timed.

    Changes that make the model faster are kept.  They are tried in the order of what ONNX Runtime's profile of both
    models promises for them.  If all nodes of a change are in float already, they are tried on codes again.
    """
    kept, best, tried = frozenset[str](), quantizer.model(corrected=False), 1
    for names in _changes(quantizer, best, race):
        choice = kept - names if names <= kept else kept | names
        changed = quantizer.model(choice, corrected=False)
        if _is_faster(*race.times([changed, best], _SECONDS)):
            kept, best = choice, changed
        tried += 1
        progress(tried, f"{len(kept)} nodes in float")
        if tried == MOST_TRIED:
            break
    return tuple(str(node.name) for node in quantizer.float_model.graph if node.name in kept), tried


def _is_faster(times: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether runs are faster than others, by more than chance; each one is compared with the one beside it."""
    low, middle, _ = statistics.quantiles([b / a for a, b in zip(times, others, strict=True)])
    return low > 1.0 and middle > 1.0 + _GAIN


def _changes(quantizer: Quantizer, quantized: ir.Model, race: Race) -> list[frozenset[str]]:
    """Return sets of nodes to leave in float, those first that promise the greatest gain."""
    float_model = quantizer.float_model
    on_codes, in_float = (_times(model, float_model, race) for model in (quantized, float_model))
    gain = {
        str(node.name): on_codes.get(str(node.name), 0.0) - in_float.get(str(node.name), 0.0)
        for node in (*quantizer.plan.nodes, *quantizer.plan.between)
    }
    sets = {frozenset(str(node.name) for node in nodes) for nodes in _groups(quantizer.plan, float_model.graph, gain)}
    promised = {names: math.fsum(gain[name] for name in names) for names in sets}
    total = math.fsum(on_codes.values())
    found = [
        names
        for names, gained in promised.items()
        if gained > -_LOSS * total and math.fsum(on_codes.get(name, 0.0) for name in names) > _GAIN * total
    ]
    return sorted(found, key=lambda names: (-promised[names], len(names), min(names)))


def _groups(plan: Plan, graph: ir.Graph, gain: Mapping[str, float]) -> Iterator[list[ir.Node]]:
    """Yield groups of nodes that may run faster in float.

    They are products that take longer on codes than in float, all products of a kind, all nodes between products that
    have the same operator, whole regions, and where the model begins: images are large, and have few channels.
    """
    slower = [node for node in plan.nodes if gain[str(node.name)] > 0.0]
    yield from ([node] for node in slower)
    yield slower
    kinds = defaultdict[object, list[ir.Node]](list)
    for node in plan.nodes:
        kinds[node.op_type, attribute(node, "group", 1) > 1].append(node)
    for node in plan.between:
        kinds[node.op_type].append(node)
    yield from kinds.values()
    yield plan.between
    yield from _regions(plan)
    products, chosen = set(plan.nodes), {*plan.nodes, *plan.between}
    ordered = [node for node in graph if node in chosen]
    begins = [place for place, node in enumerate(ordered) if node in products]
    yield from (ordered[:stop] for stop in begins[1 : _BEGINNING + 1])


def _regions(plan: Plan) -> list[list[ir.Node]]:
    """Return the groups of nodes that tensors in codes connect."""
    regions, products = list[tuple[list[ir.Node], set[str]]](), set(plan.nodes)
    for node in (*plan.nodes, *plan.between):
        ends = [*node.inputs[:1], end_of(node)] if node in products else [*data_of(node), *made_by(node)]
        nodes, names = [node], set(names_of(value for value in ends if value is not None))
        for region in [region for region in regions if not region[1].isdisjoint(names)]:
            regions.remove(region)
            nodes, names = [*region[0], *nodes], region[1] | names
        regions.append((nodes, names))
    return [nodes for nodes, _ in regions]


def _times(model: ir.Model, float_model: ir.Model, race: Race) -> Mapping[str, float]:
    """Return how long each node of the float model takes, by its name, from a profile of a model made from it.

    What was added for a node counts as that node's: what turns its input into codes, for example.
    """
    known = {str(node.name) for node in float_model.graph}
    makers = {str(value.name): str(node.name) for node in float_model.graph for value in node.outputs}
    owners = dict[str, str]()
    for node in reversed(model.graph):
        own = str(node.name) if node.name in known else makers.get(str(node.outputs[0].name))
        readers = readers_of(node.outputs[0])
        owners[str(node.name)] = own or (owners[str(readers[0].name)] if readers else "")
    nodes, times = nodes_by_name(model), defaultdict[str, float](float)
    for kernel, operator, taken in profile(model, race.outputs, race.batch, race.threads, _PROFILED):
        times[owners.get(node_of(kernel, operator, nodes), "")] += taken
    return times
