"""What of a model is quantised: its nodes, the tensors that get codes, and how weights are divided into channels."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto

from ..errors import InvalidArgumentError
from .graph import Graph

#: What can be quantised, and of which input the weights are.
OPERATORS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
DEFAULT_OPERATORS = ("Conv", "Gemm", "MatMul")

#: What follows a convolution and is computed together with it.
_ACTIVATIONS = frozenset({"Relu", "Clip"})
#: What gives elements of its first input another place and leaves them what they are.
_MOVES = frozenset({"DepthToSpace", "Flatten", "MaxPool", "Reshape", "Slice", "SpaceToDepth", "Squeeze", "Transpose"})
_MOVES |= {"Unsqueeze"}


@dataclass
class Plan:
    """What is to be quantised.

    Attributes
    ----------
    nodes : list of NodeProto
    inputs : dict of str to str
        The tensors that get codes because such a node reads them, and the tensor whose range each has: itself, or the
        one whose elements it has, only in other places.
    outputs : dict of str to str
        The same for those that get codes where they are made, so that everyone reads what the codes stand for.
    """

    nodes: list[NodeProto] = field(default_factory=list)
    inputs: dict[str, str] = field(default_factory=dict)
    outputs: dict[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> list[str]:
        """The tensors that have to be observed, in the order of the graph."""
        return list(dict.fromkeys([*self.inputs.values(), *self.outputs.values()]))


@dataclass(frozen=True)
class WeightAxes:
    """How a node reads its weight: the axis of its output channels, and the one that it sums over."""

    channels: int
    summed: int


def plan(model: ModelProto, ops: tuple[str, ...] = DEFAULT_OPERATORS, exclude: tuple[str, ...] = ()) -> Plan:
    """Return what of a prepared model is quantised.

    Parameters
    ----------
    model : ModelProto
        As `prepared` returns it.
    ops : tuple of str
        Operators, of `OPERATORS`.
    exclude : tuple of str
        Names of nodes, or of tensors that they make, that stay as they are.

    Raises
    ------
    InvalidArgumentError
        If an operator is not known, there is no node of a name, or nothing to quantise is left.
    """
    unknown = [op for op in ops if op not in OPERATORS]
    if unknown:
        raise InvalidArgumentError(f"ops: expected some of {', '.join(OPERATORS)}, got {unknown[0]}")
    index, result = Graph(model), Plan()
    unused = set(exclude)
    for node in model.graph.node:
        named = {node.name, *node.output} & set(exclude)
        unused -= named
        if node.op_type in ops and node.domain == "" and not named and _is_quantisable(node, index):
            result.nodes.append(node)
    if unused:
        raise InvalidArgumentError(f"exclude: there is no node {min(unused)!r}; qatcore inspect MODEL lists them")
    if not result.nodes:
        raise InvalidArgumentError(f"model: there is nothing to quantise: no {', '.join(ops)} with constant weights")
    _find_tensors(index, result)
    return result


def weight_axes(node: NodeProto, ndim: int) -> WeightAxes | None:
    """Return how a node reads its weight; None if there are no channels."""
    if node.op_type in {"Conv", "ConvTranspose"}:
        return WeightAxes(0, 1) if node.op_type == "Conv" else WeightAxes(1, 0)
    if node.op_type == "Gemm" and attribute(node, "transB", 0):
        return WeightAxes(0, 1)
    return WeightAxes(ndim - 1, ndim - 2) if ndim >= 2 else None


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return the number that a node has as an attribute."""
    return next((a.f if a.type == a.FLOAT else a.i for a in node.attribute if a.name == name), default)


def multiply_adds(node: NodeProto, weight: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Return how many multiplications a node does, from the shapes of its weight (or second operand) and output."""
    axes = weight_axes(node, len(weight))
    if axes is None:
        return math.prod(output) * weight[0]
    if node.op_type == "ConvTranspose":  # each input element meets each weight of its channel; outputs are spread
        return math.prod(output) * weight[0] * math.prod(weight[2:]) // max(math.prod(_strides(node)), 1)
    terms = weight[axes.summed] * (math.prod(weight[2:]) if node.op_type == "Conv" else 1)
    return math.prod(output) * terms


def _strides(node: NodeProto) -> list[int]:
    return next((list(a.ints) for a in node.attribute if a.name == "strides"), [1])


def _is_quantisable(node: NodeProto, index: Graph) -> bool:
    if len(node.input) < 2 or node.input[0] in index.constants:
        return False
    weight = index.value_of(node.input[1])
    if weight is None:
        return False
    return bool(weight.size and weight.dtype.type in (np.float32, np.float16) and np.isfinite(weight).all())


def _find_tensors(index: Graph, result: Plan) -> None:
    for node in result.nodes:
        result.inputs[node.input[0]] = node.input[0]
        if node.op_type in {"Conv", "ConvTranspose"}:
            output = _tail(node, index)
            if not index.is_seen(output):
                result.outputs[output] = output
    coded = {**result.inputs, **result.outputs}
    for name in list(coded):
        source = name
        while (maker := index.makers.get(source)) is not None and maker.op_type in _MOVES and maker.domain == "":
            source = maker.input[0]
            if source in result.outputs:
                result.inputs[name] = source
                break
    for name in result.inputs:  # a chain of them
        while result.inputs.get(result.inputs[name], result.inputs[name]) != result.inputs[name]:
            result.inputs[name] = result.inputs[result.inputs[name]]


def _tail(node: NodeProto, index: Graph) -> str:
    """Return what a convolution makes, behind the activation that runtimes compute together with it."""
    follower = index.only_reader(node.output[0])
    if follower is not None and follower.op_type in _ACTIVATIONS and follower.domain == "":
        return str(follower.output[0])
    return str(node.output[0])
