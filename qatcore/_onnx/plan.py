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
    is_captured,
    is_constant,
    is_seen,
    only_reader,
    readers_of,
    shape_of,
    subgraphs,
)

#: The operators that can be quantised.  Their second input is the weight.
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DEFAULT_OPERATORS = ("Conv", "Gemm", "MatMul")

#: Operators that runtimes compute together with the convolution before them.
ACTIVATIONS = frozenset({"Relu", "Clip"})
#: Operators that move elements of their first input to other positions, and leave their values as they are.
MOVES = frozenset({"DepthToSpace", "Flatten", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose"})
MOVES |= {"Unsqueeze"}
#: The types of weights that can be quantised.
WEIGHT_TYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16))
_FLOATS = frozenset({ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE})
#: Where it is kept whether all values of a weight are finite.
_IS_FINITE = "qatcore.is_finite"
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


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
        The names of nodes that read the dequantised values of `inputs`: those that are quantised, and those that only
        move elements from one tensor with codes to another.
    """

    nodes: list[ir.Node] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    because: dict[str, ir.Node] = field(default_factory=dict)
    readers: set[str] = field(default_factory=set)

    @property
    def tensors(self) -> list[str]:
        """The tensors to observe: those that give the ranges of `inputs`, then of `outputs`."""
        return list(dict.fromkeys([*self.inputs.values(), *self.outputs.values()]))


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

    Raises
    ------
    InvalidArgumentError
        If an operator is not known, or no node has one of the names.  If `ops` and `exclude` leave nothing to quantise.
    """
    unknown = [op for op in ops if op not in OPERATORS]
    if unknown or not ops:
        raise InvalidArgumentError(f"ops: expected some of {', '.join(OPERATORS)}, got {[*unknown, 'none'][0]}")
    everything, result = Plan(), Plan()
    unused, obstacles = set(exclude), list[str]()
    for node in model.graph:
        named = {node.name, *(value.name for value in node.outputs)} & set(exclude)
        unused -= named
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
    # The range of a tensor does not depend on the chosen nodes, so that one calibration serves all choices.
    _find_tensors(everything, everything)
    _find_tensors(result, everything)
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


def multiply_adds(node: ir.Node, weight: tuple[int, ...], source: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Return how many multiplications a node does, from the shapes of its weight, input and output."""
    if node.op_type == "ConvTranspose":  # each input element is multiplied by all weights of its channel
        return math.prod(source) * math.prod(weight[1:])
    axes = weight_axes(node, len(weight))
    if axes is None:
        return math.prod(output) * weight[0]
    return math.prod(output) * weight[axes.summed] * (math.prod(weight[2:]) if node.op_type == "Conv" else 1)


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
    recurrent = sorted(_RECURRENT & {node.op_type for node in holders})
    why = f": ONNX has no {' or '.join(recurrent)} on codes" if recurrent else ""
    return f"; its weights are in {', '.join(found)}, and stay in float{why}"


def _find_tensors(result: Plan, everything: Plan) -> None:
    """Fill in the tensors of a plan; ranges are shared as if all nodes were quantised."""
    read = dict[str, ir.Value]()
    for node in result.nodes:
        source = node.inputs[0]
        assert source is not None and source.name
        read[source.name] = source
        result.inputs[source.name] = source.name
        result.because.setdefault(source.name, node)
        if node.op_type in {"Conv", "ConvTranspose"}:
            output = tail(node)
            if not is_seen(output) and not _is_captured(output):
                result.outputs[str(output.name)] = str(output.name)
                result.because[str(output.name)] = node
    result.readers = {str(node.name) for node in result.nodes}
    for name, value in read.items():
        source, moves = value, list[ir.Node]()
        while (maker := source.producer()) is not None and is_move(maker) and maker.inputs[0] is not None:
            source = maker.inputs[0]
            moves.append(maker)
            if source.name in everything.outputs:
                result.inputs[name] = source.name
                break
        if source.name in result.outputs:
            # Give codes to all tensors on the way: runtimes fill in gaps, and ONNX Runtime 1.32 does so wrongly.
            for move in moves:
                result.readers.add(str(move.name))
                before = move.inputs[0]
                if before is not source and before is not None and before.name:
                    result.inputs[before.name] = source.name
                    result.because[before.name] = result.because[source.name]


def _is_captured(value: ir.Value) -> bool:
    """Return whether a graph inside of a node reads a tensor behind nodes that move its elements.

    If such a tensor has codes, ONNX Runtime up to 1.32 crashes the process when it loads the model.
    """
    moves = [node for node in readers_of(value) if is_move(node)]
    return any(is_captured(node.outputs[0]) or _is_captured(node.outputs[0]) for node in moves)


def is_move(node: ir.Node) -> bool:
    """Return whether a node only moves elements of its first input, and nothing but its first output is read.

    The second output of a MaxPool says where elements came from.  Codes are often equal, so it would differ on codes.
    """
    return is_a(node, MOVES) and not any(value.uses() or is_seen(value) for value in node.outputs[1:])


def tail(node: ir.Node) -> ir.Value:
    """Return the output of a node, or of the activation behind it that runtimes compute together with it."""
    follower = only_reader(node.outputs[0])
    return follower.outputs[0] if follower is not None and is_a(follower, ACTIVATIONS) else node.outputs[0]
