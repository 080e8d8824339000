"""How many multiply-adds the nodes of a model do with weights."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import onnx_ir as ir

from .data import Batch
from .graph import attribute, is_a, is_constant, shape_of
from .plan import OPERATORS, RECURRENT, weight_axes
from .session import Tap


def multiply_adds(node: ir.Node, weight: tuple[int, ...], source: tuple[int, ...], output: tuple[int, ...]) -> int:
    """Return how many multiplications a product does, from the shapes of its weight, input and output."""
    if node.op_type == "ConvTranspose":  # each input element is multiplied by all weights of its channel
        return math.prod(source) * math.prod(weight[1:])
    axes = weight_axes(node, len(weight))
    if axes is None:
        return math.prod(output) * weight[0]
    return math.prod(output) * weight[axes.summed] * (math.prod(weight[2:]) if node.op_type == "Conv" else 1)


def node_multiply_adds(model: ir.Model, nodes: Sequence[ir.Node], batch: Batch) -> dict[str, int]:
    """Return how many multiplications by weights nodes of a prepared model do for a batch.

    Weights are the second input, or the first one if that is constant.
    """
    ends = {
        str(node.name): [
            str(value.name)
            for value in (*node.inputs[:1], node.outputs[0])
            if value is not None and value.name and not is_constant(value)
        ]
        for node in nodes
    }
    values = Tap(model, itertools.chain.from_iterable(ends.values())).values(batch)
    result = dict[str, int]()
    for node in nodes:
        shapes = [values[name].shape for name in ends[str(node.name)]]
        given = node.inputs[:1] if is_constant(node.inputs[0]) else node.inputs[1:3]
        weights = [shape_of(value) for value in given if value is not None and value.is_initializer()]
        if node.op_type in RECURRENT:  # each step is multiplied by the weights of both
            work = shapes[0][0] * shapes[0][1] * (math.prod(weights[0]) + math.prod(weights[1]))
        elif is_constant(node.inputs[0]):
            work = math.prod(shapes[0]) * weights[0][0 if attribute(node, "transA", 0) else -1]
        else:
            work = multiply_adds(node, weights[0], shapes[0], shapes[1])
        result[str(node.name)] = work
    return result


def all_multiply_adds(model: ir.Model, batch: Batch) -> dict[str, int]:
    """Return how many multiplications by weights each node of a prepared model does for a batch, on codes or not."""
    return node_multiply_adds(model, [node for node in model.graph if multiplies_by_weights(node)], batch)


def multiplies_by_weights(node: ir.Node) -> bool:
    """Return whether a node multiplies what is computed by weights, which may be inputs too."""
    if not is_a(node, {*OPERATORS, *RECURRENT}):
        return False
    first, *others = node.inputs[: 3 if node.op_type in RECURRENT else 2]
    if is_constant(first):
        return node.op_type in {"Gemm", "MatMul"} and not is_constant(node.inputs[1])
    return all(value is not None and value.is_initializer() for value in others)
