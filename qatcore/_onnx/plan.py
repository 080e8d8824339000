"""The plan of a quantised model: the nodes to quantise, the tensors that get codes, and the channels of weights."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto, TensorProto

from .._base.errors import InvalidArgumentError
from .graph import Graph, attribute
from .protos import nodes_within, subgraphs

#: The operators that can be quantised.  Their second input is the weight.
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DEFAULT_OPERATORS = ("Conv", "Gemm", "MatMul")

#: Operators that runtimes compute together with the convolution before them.
ACTIVATIONS = frozenset({"Relu", "Clip"})
#: Operators that move elements of their first input to other positions, and leave their values as they are.
MOVES = frozenset({"DepthToSpace", "Flatten", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose"})
MOVES |= {"Unsqueeze"}
_RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


@dataclass
class Plan:
    """The nodes to quantise, and the tensors that get codes.

    Attributes
    ----------
    nodes : list of NodeProto
    inputs : dict of str to str
        The tensors that get codes because such a node reads them.  The value is the tensor that gives the range: the
        tensor itself, or the one whose elements it holds at other positions.
    outputs : dict of str to str
        The same for tensors that get codes where they are made, so that every reader gets the dequantised values.
    because : dict of str to NodeProto
        The node because of which each of these tensors gets codes.
    readers : set of str
        The names of nodes that read the dequantised values of `inputs`: those that are quantised, and those that only
        move elements from one tensor with codes to another.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)
    because: dict[str, NodeProto] = field(default_factory=dict)
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

    adder: NodeProto
    position: int
    values: npt.NDArray[Any]


def plan(
    model: ModelProto,
    ops: tuple[str, ...] = DEFAULT_OPERATORS,
    exclude: tuple[str, ...] = (),
    *,
    float_nodes: Collection[str] = (),
) -> Plan:
    """Return the plan for a prepared model.

    Parameters
    ----------
    model : ModelProto
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
    index, everything, result = Graph(model), Plan(), Plan()
    unused, obstacles = set(exclude), list[str]()
    for node in model.graph.node:
        named = {node.name, *node.output} & set(exclude)
        unused -= named
        if node.op_type not in OPERATORS or node.domain != "":
            continue
        obstacle = _obstacle(node, index)
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
    _find_tensors(index, everything, everything)
    _find_tensors(index, result, everything)
    return result


def weight_axes(node: NodeProto, ndim: int) -> WeightAxes | None:
    """Return how a node reads its weight; None if there are no channels."""
    if node.op_type in {"Conv", "ConvTranspose"}:
        return WeightAxes(0, 1) if node.op_type == "Conv" else WeightAxes(1, 0)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return WeightAxes(0, 1)
    return WeightAxes(ndim - 1, ndim - 2) if ndim >= 2 else None


def bias_of(node: NodeProto, index: Graph) -> Bias | None:
    """Return the bias of a node with constant weights, if it has or can get a value for each channel.

    The bias of a MatMul is added by the node that follows it.
    """
    weight = index.constants[node.input[1]]
    axes = weight_axes(node, len(weight.dims))
    if axes is None:
        return None
    channels = weight.dims[axes.channels]
    if node.op_type == "ConvTranspose":
        channels *= attribute(node, "group", 1)
    adder, position = node, 2
    if node.op_type == "MatMul":
        follower = index.only_reader(node.output[0])
        if follower is None or follower.op_type != "Add" or follower.domain != "":
            return None
        adder, position = follower, 1 if follower.input[0] == node.output[0] else 0
    elif attribute(node, "beta", 1.0) != 1.0:
        return None
    elif len(node.input) < 3 or not node.input[2]:
        kind = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
        return Bias(adder, position, np.zeros(channels, kind))
    values = index.value_of(adder.input[position])
    if values is None or values.size != channels or values.shape[-1:] != (channels,):
        return None
    return Bias(adder, position, values)


def multiply_adds(node: NodeProto, weight: tuple[int, ...], source: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Return how many multiplications a node does, from the shapes of its weight, input and output."""
    if node.op_type == "ConvTranspose":  # each input element is multiplied by all weights of its channel
        return math.prod(source) * math.prod(weight[1:])
    axes = weight_axes(node, len(weight))
    if axes is None:
        return math.prod(output) * weight[0]
    return math.prod(output) * weight[axes.summed] * (math.prod(weight[2:]) if node.op_type == "Conv" else 1)


def _obstacle(node: NodeProto, index: Graph) -> str | None:
    """Return why a node cannot be quantised, or None if it can."""
    if node.input[0] in index.constants:
        return "its first operand is constant"
    weight = index.value_of(node.input[1])
    if weight is None:
        given = node.input[1] in index.initializers
        return "its weights are an input, which keep_inputs keeps" if given else "its weights are not constant"
    if weight.dtype.type not in (np.float32, np.float16):
        return f"its weights are {weight.dtype}, not float32 or float16"
    if not weight.size:
        return "it has no weights"
    return None if np.isfinite(weight).all() else "its weights are not finite"


def _why_nothing(model: ModelProto, ops: tuple[str, ...], possible: list[NodeProto], obstacles: list[str]) -> str:
    """Return as text why nothing is quantised; `possible` are the nodes that can be, whatever the operators."""
    others = [node for node in possible if node.op_type not in ops]
    if len(possible) > len(others):
        return "; all were excluded"
    if obstacles:
        return f"; {obstacles[0]}"
    return f"; add {others[0].op_type} to ops" if others else _where_weights_are(model)


def _where_weights_are(model: ModelProto) -> str:
    """Return as text which operators hold the weights that are not quantised, and why they are not."""
    index = Graph(model)
    weights = {name for name, tensor in index.initializers.items() if len(tensor.dims) > 1 and _is_float(tensor)}
    holders = [node for node in model.graph.node if not weights.isdisjoint(node.input)]
    inside = [n for node in model.graph.node for g in subgraphs(node) for n in nodes_within(g.node)]
    inside = [node for node in inside if node.op_type in OPERATORS]
    found = [f"{n} {op}" for op, n in Counter(node.op_type for node in holders).items()]
    found += [f"{n} {op} inside of other nodes" for op, n in Counter(node.op_type for node in inside).items()]
    if not found:
        return ""
    recurrent = sorted(_RECURRENT & {node.op_type for node in holders})
    why = f": ONNX has no {' or '.join(recurrent)} on codes" if recurrent else ""
    return f"; its weights are in {', '.join(found)}, and stay in float{why}"


def _is_float(tensor: TensorProto) -> bool:
    return tensor.data_type in {TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE}


def _find_tensors(index: Graph, result: Plan, everything: Plan) -> None:
    """Fill in the tensors of a plan; ranges are shared as if all nodes were quantised."""
    for node in result.nodes:
        result.inputs[node.input[0]] = node.input[0]
        result.because.setdefault(node.input[0], node)
        if node.op_type in {"Conv", "ConvTranspose"}:
            output = tail(node, index)
            if not index.is_seen(output) and not _is_captured(output, index):
                result.outputs[output] = output
                result.because[output] = node
    result.readers = {node.name for node in result.nodes}
    for name in list(result.inputs):
        source, moves = name, []
        while (maker := index.makers.get(source)) is not None and is_move(maker, index):
            source = maker.input[0]
            moves.append(maker)
            if source in everything.outputs:
                result.inputs[name] = source
                break
        if source in result.outputs:
            # Give codes to all tensors on the way: runtimes fill in gaps, and ONNX Runtime 1.32 does so wrongly.
            for move in moves:
                result.readers.add(move.name)
                if move.input[0] != source:
                    result.inputs[move.input[0]] = source
                    result.because[move.input[0]] = result.because[source]


def _is_captured(name: str, index: Graph) -> bool:
    """Return whether a graph inside of a node reads a tensor behind nodes that move its elements.

    If such a tensor has codes, ONNX Runtime up to 1.32 crashes the process when it loads the model.
    """
    moves = [node for node in index.readers.get(name, []) if is_move(node, index)]
    return any(node.output[0] in index.captured or _is_captured(node.output[0], index) for node in moves)


def is_move(node: NodeProto, index: Graph) -> bool:
    """Return whether a node only moves elements of its first input, and nothing but its first output is read.

    The second output of a MaxPool says where elements came from.  Codes are often equal, so it would differ on codes.
    """
    others = (name for name in node.output[1:] if name)
    is_first = not any(name in index.readers or index.is_seen(name) for name in others)
    return node.op_type in MOVES and node.domain == "" and is_first


def tail(node: NodeProto, index: Graph) -> str:
    """Return the output of a node, or of the activation behind it that runtimes compute together with it."""
    follower = index.only_reader(node.output[0])
    if follower is not None and follower.op_type in ACTIVATIONS and follower.domain == "":
        return str(follower.output[0])
    return str(node.output[0])
