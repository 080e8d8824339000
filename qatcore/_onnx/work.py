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
    """Return how many multiplications nodes of a prepared model do for a batch; their weights are the second input."""
    ends = {
        str(node.name): [
            str(value.name) for value in (node.inputs[0], node.outputs[0]) if value is not None and value.name
        ]
        for node in nodes
    }
    values = Tap(model, itertools.chain.from_iterable(ends.values())).values(batch)
    result = dict[str, int]()
    for node in nodes:
        shapes = [values[name].shape for name in ends[str(node.name)]]
        by, *others = (shape_of(value) for value in node.inputs[1:3] if value is not None and value.is_initializer())
        if node.op_type in RECURRENT:  # each step is multiplied by the weights of both
            work = shapes[0][0] * shapes[0][1] * (math.prod(by) + math.prod(others[0]))
        else:
            work = multiply_adds(node, by, shapes[0], shapes[1])
        result[str(node.name)] = work
    return result


def all_multiply_adds(model: ir.Model, batch: Batch) -> int:
    """Return how many multiplications by weights a prepared model does for a batch, on codes or not."""
    by_weights, by_first = list[ir.Node](), list[ir.Node]()
    for node in model.graph:
        if is_a(node, {*OPERATORS, *RECURRENT}):
            first, *others = node.inputs[: 3 if node.op_type in RECURRENT else 2]
            if all(value is not None and value.is_initializer() for value in others) and not is_constant(first):
                by_weights.append(node)
            elif is_a(node, {"Gemm", "MatMul"}) and is_constant(first) and not is_constant(node.inputs[1]):
                by_first.append(node)
    result = sum(node_multiply_adds(model, by_weights, batch).values())
    made = Tap(model, [str(node.outputs[0].name) for node in by_first]).values(batch)
    for node in by_first:
        assert node.inputs[0] is not None
        shape = shape_of(node.inputs[0])
        summed = shape[0] if attribute(node, "transA", 0) else shape[-1]
        result += math.prod(made[str(node.outputs[0].name)].shape) * summed
    return result
