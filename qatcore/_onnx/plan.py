"""The plan of a quantised model: the nodes to quantise, the tensors that get codes, and the channels of weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .._base.errors import InvalidArgumentError
from .graph import (
    array_of,
    attribute,
    dtype_of,
    input_of,
    is_a,
    is_constant,
    is_seen,
    names_of,
    only_reader,
    opset_of,
    readers_of,
    shape_of,
    subgraphs,
)
from .hard_sigmoids import ALIASES
from .regions import (
    between,
    data_of,
    is_captured_behind,
    is_move,
    is_written_on_codes,
    keeps_range,
    made_by,
    pads_with_zeros,
    tail,
)
from .skeleton import float_tensors
from .targets import ACTIVATIONS, ONNXRUNTIME, Target

#: The operators that can be quantised.  Their second input is the weight.
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DEFAULT_OPERATORS = ("Conv", "Gemm", "MatMul")

#: The types of weights that can be quantised.
WEIGHT_TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
#: Where it is kept whether all values of a weight are finite.
_IS_FINITE = "qatcore.is_finite"
#: The channels of images.  A convolution over them gets a fourth one, and is then fast enough on codes.
IMAGE_CHANNELS = 3
#: Convolutions over so few channels are slower on codes.
_FEW_CHANNELS = 2
#: From this opset on, ONNX Runtime up to 1.32 makes an invalid model if it puts int8 codes anywhere itself.
NAMES_TYPES = 21
#: Layers that multiply each step of a sequence by their second and their third input.
RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


@dataclass
class Plan:
    """The nodes to quantise, and the tensors that get codes.

    Attributes
    ----------
    nodes : list of onnx_ir.Node
    inputs : dict of str to str
        The tensors that get codes because such a node reads them.  The value is the tensor that gives the range: the
        tensor itself, or the one whose elements it holds at other positions.
    outputs : dict of str to str
        The same for tensors that get codes where they are made, so that every reader gets the dequantised values.
    because : dict of str to onnx_ir.Node
        The node because of which each of these tensors gets codes.
    readers : set of str
        The names of nodes that read the dequantised values of `inputs`: those that are quantised, and those between.
    between : list of onnx_ir.Node
        The nodes between products that are computed on codes.
    written : dict of str to str
        The tensors that quantised nodes read and that get codes because the node that makes them is written on codes.
        The value is the tensor that gives the range.
    ranges : dict of str to str
        The tensors whose range is that of another tensor, and this one: the one that their elements come from, or one
        for all that a Concat reads and makes.
    pooled : dict of str to tuple of str
        Of the latter, the tensors whose values the range is to hold.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    because: dict[str, ir.Node] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)
    between: list[ir.Node] = field(default_factory=list)
    written: dict[str, str] = field(default_factory=dict)
    ranges: dict[str, str] = field(default_factory=dict)
    pooled: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def tensors(self) -> list[str]:
        """The tensors to observe: those that give the ranges of `inputs`, then of `outputs`."""
        sources = [*self.inputs.values(), *self.outputs.values()]
        return list(dict.fromkeys(name for source in sources for name in self.pooled.get(source, (source,))))


@dataclass(frozen=True)
class WeightAxes:
    """How a node reads its weight: the axis of its output channels, and the one that it sums over."""

    channels: int
    summed: int


@dataclass(frozen=True, eq=False)
class Bias:
    """A bias of channels: the node that adds it, the position of that input, and the values, zeros if it is new."""

    adder: ir.Node
    position: int
    values: npt.NDArray[Any]


def plan(
    model: ir.Model,
    ops: tuple[str, ...] = DEFAULT_OPERATORS,
    exclude: tuple[str, ...] = (),
    *,
    float_nodes: Collection[str] = (),
    target: Target = ONNXRUNTIME,
    operators: Collection[str] = ONNXRUNTIME.operators["uint8"],
    any_pool: bool | None = None,
    within: Collection[str] | None = None,
) -> Plan:
    """Return the plan for a prepared model.

    Parameters
    ----------
    model : onnx_ir.Model
        As `prepared` returns it.
    ops : tuple of str
        The operators to quantise, some of `OPERATORS`.
    exclude : tuple of str
        Names of nodes, or of tensors that they make, that stay in float.
    float_nodes : collection of str
        Names of more nodes that stay in float.  These may be all that are left.
    target : Target
        The runtime that is to run the model.
    operators : collection of str
        The operators that are computed on codes between products, beside those that move elements.
    any_pool : bool, optional
        As in `between`.  By default it depends on the opset.
    within : collection of str, optional
        The nodes that may be computed between products, by default all.

    Raises
    ------
    InvalidArgumentError
        If an operator is not known, or no node has one of the names.  If `ops` and `exclude` leave nothing to quantise.
    """
    unknown = [op for op in ops if op not in OPERATORS]
    if unknown or not ops:
        raise InvalidArgumentError(f"ops: expected some of {', '.join(OPERATORS)}, got {[*unknown, 'none'][0]}")
    aliases = model.meta.get(ALIASES, {})
    exclude = tuple(name for name in (aliases.get(name, name) for name in exclude) if name)
    everything, result = Plan(), Plan()
    unused, obstacles, left_out = set(exclude), list[str](), set(float_nodes)
    for node in model.graph:
        named = {node.name, *(value.name for value in node.outputs)} & set(exclude)
        unused -= named
        if named:
            left_out.add(str(node.name))
        if not is_a(node, OPERATORS):
            continue
        obstacle = _obstacle(node)
        if obstacle is None:
            everything.nodes.append(node)
        if node.op_type in ops and not named:
            if obstacle is None:
                result.nodes.append(node)
            else:
                obstacles.append(f"{node.op_type} {node.name}: {obstacle}")
    if unused:
        raise InvalidArgumentError(f"exclude: there is no node {min(unused)!r}; qatcore inspect MODEL lists them")
    if not result.nodes:
        why = _why_nothing(model, ops, everything.nodes, obstacles)
        raise InvalidArgumentError(f"model: there is nothing to quantise: no {' or '.join(ops)} can be quantised{why}")
    result.nodes = [node for node in result.nodes if node.name not in float_nodes]
    # Where int8 codes end ahead of a MaxPool, ONNX Runtime puts codes behind it.
    default = not target.own_forms or opset_of(model) >= NAMES_TYPES
    how = {"target": target, "operators": operators, "any_pool": default if any_pool is None else any_pool}
    # The range of a tensor does not depend on the chosen nodes, so that one calibration serves all choices.
    _find_tensors(everything, everything, model.graph, how)
    possible = {str(node.name) for node in everything.between}
    chosen = (possible if within is None else possible.intersection(within)) - left_out
    _find_tensors(result, everything, model.graph, {**how, "within": chosen})
    if target.everything:
        _code_everything(result, model, left_out)
    return result


def weight_axes(node: ir.Node, ndim: int) -> WeightAxes | None:
    """Return how a node reads its weight; None if there are no channels."""
    if node.op_type in {"Conv", "ConvTranspose"}:
        return WeightAxes(0, 1) if node.op_type == "Conv" else WeightAxes(1, 0)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return WeightAxes(0, 1)
    return WeightAxes(ndim - 1, ndim - 2) if ndim >= 2 else None


def bias_of(node: ir.Node) -> Bias | None:
    """Return the bias of a node with constant weights, if it has or can get a value for each channel.

    The bias of a MatMul is added by the node that follows it.
    """
    weight = node.inputs[1]
    assert weight is not None
    shape = shape_of(weight)
    axes = weight_axes(node, len(shape))
    if axes is None:
        return None
    channels = shape[axes.channels]
    if node.op_type == "ConvTranspose":
        channels *= attribute(node, "group", 1)
    adder, position = node, 2
    if node.op_type == "MatMul":
        follower = only_reader(node.outputs[0])
        if follower is None or not is_a(follower, {"Add"}):
            return None
        adder, position = follower, 1 if follower.inputs[0] is node.outputs[0] else 0
    elif attribute(node, "beta", 1.0) != 1.0:
        return None
    elif input_of(node, 2) is None:
        return Bias(adder, position, np.zeros(channels, dtype_of(weight)))
    values = array_of(adder.inputs[position])
    if values is None or values.size != channels or values.shape[-1:] != (channels,):
        return None
    return Bias(adder, position, values)


def is_slow_on_codes(node: ir.Node) -> bool:
    """Return whether ONNX Runtime computes a node with constant weights more slowly on codes than in float.

    A convolution over one or two channels takes up to nine times as long: it first copies what lies below its kernel,
    one or two bytes at a time.  `python -m bench.placement` measures it.
    """
    if not is_a(node, {"Conv"}) or attribute(node, "group", 1) != 1 or node.inputs[1] is None:
        return False
    return shape_of(node.inputs[1])[1] <= _FEW_CHANNELS


def _obstacle(node: ir.Node) -> str | None:
    """Return why a node cannot be quantised, or None if it can."""
    source, given = node.inputs[:2]
    if is_constant(source):
        return "its first operand is constant"
    if given is None or not is_constant(given):
        is_input = given is not None and given.is_initializer()
        return "its weights are an input, which keep_inputs keeps" if is_input else "its weights are not constant"
    if dtype_of(given) not in WEIGHT_TYPES:
        return f"its weights are {dtype_of(given)}, not {' or '.join(map(str, WEIGHT_TYPES))}"
    if not math.prod(shape_of(given)):
        return "it has no weights"
    if _IS_FINITE not in given.meta:  # found out once, also for copies of the model
        given.meta[_IS_FINITE] = bool(np.isfinite(np.asarray(array_of(given))).all())
    return None if given.meta[_IS_FINITE] else "its weights are not finite"


def _why_nothing(model: ir.Model, ops: tuple[str, ...], possible: list[ir.Node], obstacles: list[str]) -> str:
    """Return as text why nothing is quantised; `possible` are the nodes that can be, whatever the operators."""
    others = [node for node in possible if node.op_type not in ops]
    if len(possible) > len(others):
        return "; all were excluded"
    if obstacles:
        return f"; {obstacles[0]}"
    return f"; add {others[0].op_type} to ops" if others else _where_weights_are(model)


def _where_weights_are(model: ir.Model) -> str:
    """Return as text which operators hold the weights that are not quantised, and why they are not."""
    weights = {v for v in model.graph.initializers.values() if v.dtype in _FLOATS and len(shape_of(v)) > 1}
    holders = [node for node in model.graph if not weights.isdisjoint(node.inputs)]
    inside = [n for node in model.graph for graph in subgraphs(node) for n in graph.all_nodes()]
    inside = [node for node in inside if node.op_type in OPERATORS]
    found = [f"{n} {op}" for op, n in Counter(node.op_type for node in holders).items()]
    found += [f"{n} {op} inside of other nodes" for op, n in Counter(node.op_type for node in inside).items()]
    if not found:
        return ""
    recurrent = sorted(RECURRENT & {node.op_type for node in holders})
    why = f": ONNX has no {' or '.join(recurrent)} on codes" if recurrent else ""
    return f"; its weights are in {', '.join(found)}, and stay in float{why}"


def _find_tensors(result: Plan, everything: Plan, graph: ir.Graph, how: dict[str, Any]) -> None:
    """Fill in the regions and tensors of a plan; ranges are shared as if all nodes were quantised."""
    target: Target = how["target"]
    causes, inputs, coded = dict[str, ir.Node](), dict[str, None](), list[ir.Value]()
    ends = {node: end_of(node, target.fused) for node in result.nodes}
    for node, end in ends.items():
        source = node.inputs[0]
        assert source is not None
        causes.setdefault(str(source.name), node)
        causes[str(end.name)] = node
        convolves = target.own_forms and node.op_type in {"Conv", "ConvTranspose"}
        if convolves and not is_seen(end) and not is_captured_behind(end):
            coded.append(end)
    outputs = dict.fromkeys(names_of(coded))
    read = {value: None for node in result.nodes if (value := node.inputs[0]) is not None}
    result.between = between(graph, read, list(ends.values()), coded, **how)
    result.readers = {str(node.name) for node in (*result.nodes, *result.between)}
    written = set[str]()
    for node in result.between:
        data, made = names_of(data_of(node)), names_of(made_by(node, target.fused))
        inputs.update(dict.fromkeys(names_of(_coded_by(node, ends, target))))
        for name in made:
            causes.setdefault(name, causes[data[0]])
        shares = target.shared and _shares_range(node)
        if shares or (target.own_forms and is_written_on_codes(node)):
            written.update(made)
        elif not target.shared:
            outputs.update(dict.fromkeys(made))
        if keeps_range(node):
            result.ranges.update(dict.fromkeys(made, result.ranges.get(data[0], data[0])))
        elif shares:
            _share_range([*data, *made], result)
    inputs = {**dict.fromkeys(names_of(read)), **inputs}
    ranges, result.pooled = everything.ranges, everything.pooled
    result.inputs = {name: ranges.get(name, name) for name in inputs if name not in written}
    result.outputs = {name: ranges.get(name, name) for name in outputs}
    result.written = {name: ranges.get(name, name) for name in names_of(read) if name in written}
    result.because = {name: causes[name] for name in (*result.inputs, *result.outputs)}


def _code_everything(result: Plan, model: ir.Model, left_out: Collection[str]) -> None:
    """Give all floating-point tensors of a plan's model codes, but for those that only nodes left in float touch."""
    floats, coded, ranges = float_tensors(model), list[str](), dict[str, str]()
    values = [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
    for value in values:
        name, maker, readers = str(value.name), value.producer(), readers_of(value)
        around = {str(node.name) for node in (maker, *readers) if node is not None}
        if name not in floats or around <= set(left_out) or not (readers or value.is_graph_output()):
            continue
        coded.append(name)
        source = None if maker is None else maker.inputs[0]
        if maker is not None and source is not None and (is_move(maker) or pads_with_zeros(maker)):
            ranges[name] = ranges.get(str(source.name), str(source.name))
        elif (follower := only_reader(value)) is not None and is_a(follower, ACTIVATIONS):
            ranges[name] = str(follower.outputs[0].name)  # what lies beyond is cut off there
    result.inputs, result.ranges = {}, ranges
    result.outputs = {name: ranges.get(name, name) for name in coded}
    result.because = dict.fromkeys(coded, result.nodes[0]) if result.nodes else {}


def _coded_by(node: ir.Node, ends: dict[ir.Node, ir.Value], target: Target) -> list[ir.Value]:
    """Return the data of a node in a region, without the term of a sum that its product is computed together with."""
    data = data_of(node)
    if not target.fused_sums or not is_a(node, {"Add"}):
        return data
    joined = [end for end in ends.values() if end in data and only_reader(end) is node]
    return [value for value in data if value not in joined[-1:]]


def _shares_range(node: ir.Node) -> bool:
    """Return whether a node can read and make codes of one scale."""
    return keeps_range(node) or is_a(node, {"Concat"})


def _share_range(names: list[str], result: Plan) -> None:
    """Give what a Concat reads, and all that shares a range with that, the range of what it makes: the last name.

    It holds all values of what it reads.
    """
    last, ranges, pooled = names[-1], result.ranges, result.pooled
    joined = {ranges.get(name, name) for name in names}
    members = {name for name, source in ranges.items() if source in joined} | joined
    ranges.update(dict.fromkeys(sorted(members - {last}), last))
    pooled[last] = (last, *(name for source in sorted(joined) for name in pooled.pop(source, ())))


def end_of(node: ir.Node, fused: Collection[str] = ACTIVATIONS) -> ir.Value:
    """Return what a product makes together with its bias and with the activation behind it, one of `fused`."""
    bias = bias_of(node)
    return tail(node if bias is None else bias.adder, fused)
