"""Find out what in a model is quantised already, by any tool."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx import NodeProto

from .graph import all_nodes, array_of, input_of, inputs_of, is_a, is_captured, is_constant, readers_of
from .regions import is_move
from .rewriting import Scale

#: Names of operators that make, read or compute on codes: QLinearConv, MatMulInteger, MatMulNBits, QGemm and so on.
_ON_CODES = re.compile(r"[Qq]uant(?!ile)|QLinear|Integer$|NBits|Bnb4|FpQ4|^Q(Attention|Gemm|MatMul|MoE|Ordered)")
_TO_CODES, _FROM_CODES = "QuantizeLinear", "DequantizeLinear"
#: The 8-bit codes with their least code; each range of codes is the other one, shifted.
_SMALLEST = {"uint8": 0, "int8": -128}


@dataclasses.dataclass(frozen=True)
class Quantised:
    """The nodes of a model that make codes, read them or compute on them.

    Attributes
    ----------
    nodes : list of onnx_ir.Node
        All of these nodes.
    borders : list of onnx_ir.Node
        QuantizeLinear and DequantizeLinear nodes that only convert an input or an output of the model.
    """

    nodes: list[ir.Node]
    borders: list[ir.Node]

    @property
    def is_inside(self) -> bool:
        """Whether there are nodes besides those at the borders; a float model has none."""
        return len(self.nodes) > len(self.borders)

    @classmethod
    def of(cls, model: ir.Model) -> Quantised:
        """Find these nodes in a model, also in functions and in graphs inside of nodes."""
        return cls([node for node in all_nodes(model) if _ON_CODES.search(node.op_type)], _borders(model))


def converts(node: ir.Node | NodeProto) -> bool:
    """Return whether a node only turns values into codes, or codes into values."""
    return node.op_type in {_TO_CODES, _FROM_CODES}


def computes_on_codes(node: ir.Node) -> bool:
    """Return whether a node computes on codes, and does more than convert."""
    return _ON_CODES.search(node.op_type) is not None and not converts(node)


def told(nodes: list[ir.Node]) -> str:
    """Return how many nodes there are of each operator, as text."""
    return ", ".join(f"{n} {op}" for op, n in Counter(node.op_type for node in nodes).items())


def scale_given(value: ir.Value, codes: str) -> Scale | None:
    """Return the scale with which the model already converts a tensor from or to codes, if there is a single one.

    With this scale, codes of the given type, uint8 or int8, have exactly the values of the model's codes.
    """
    if codes not in _SMALLEST:
        return None
    for node in _conversions(value):
        scale, zero = array_of(node.inputs[1]), _zero_point(node)
        if scale is not None and zero is not None and scale.size == 1 and zero.dtype.name in _SMALLEST:
            shifted = zero.reshape(()).astype(np.int32) + (_SMALLEST[codes] - _SMALLEST[zero.dtype.name])
            return Scale(codes, scale.reshape(()), np.asarray(shifted, np.int32))
    return None


def _conversions(value: ir.Value) -> Iterator[ir.Node]:
    """Yield the nodes that quantise a tensor, and the node that dequantises it, if there is one."""
    yield from (node for node in readers_of(value) if is_a(node, {_TO_CODES}))
    maker = value.producer()
    while maker is not None and is_move(maker) and maker.inputs[0] is not None:
        maker = maker.inputs[0].producer()
    if maker is not None and is_a(maker, {_FROM_CODES}):
        yield maker


def _zero_point(node: ir.Node) -> npt.NDArray[Any] | None:
    if (zero := input_of(node, 2)) is not None:
        return array_of(zero)
    return np.zeros((), np.uint8) if node.op_type == _TO_CODES else None


def _borders(model: ir.Model) -> list[ir.Node]:
    """Return the conversions that come first after an input of the model, or last before an output."""
    from_inputs: set[ir.Value | None] = set(inputs_of(model))
    conversions = [node for node in model.graph if converts(node) and node.inputs]
    first = list[ir.Node]()
    for node in conversions:
        if node.inputs[0] in from_inputs:
            first.append(node)
            from_inputs.update(node.outputs)
    last = list[ir.Node]()
    for node in reversed(conversions):
        made, source = node.outputs[0], node.inputs[0]
        readers = readers_of(made)
        read = bool(readers) or made.is_graph_output()
        ends = read and not is_captured(made) and all(reader in last for reader in readers)
        if ends and source not in from_inputs and not is_constant(source):
            last.append(node)
    return first + last[::-1]
