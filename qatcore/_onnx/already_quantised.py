"""Find out what in a model is quantised already, by any tool."""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from onnx import GraphProto, ModelProto, NodeProto

from .graph import Graph
from .plan import is_move
from .protos import all_nodes
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
    nodes : list of NodeProto
        All of these nodes.
    borders : list of NodeProto
        QuantizeLinear and DequantizeLinear nodes that only convert an input or an output of the model.
    """

    nodes: list[NodeProto]
    borders: list[NodeProto]

    @property
    def is_inside(self) -> bool:
        """Whether there are nodes besides those at the borders; a float model has none."""
        return len(self.nodes) > len(self.borders)

    @classmethod
    def of(cls, model: ModelProto) -> Quantised:
        """Find these nodes in a model, also in functions and in graphs inside of nodes."""
        graph = model.graph
        return cls([n for n in all_nodes(model) if _ON_CODES.search(n.op_type)], _borders(graph, Graph(model)))


def converts(node: NodeProto) -> bool:
    """Return whether a node only turns values into codes, or codes into values."""
    return node.op_type in {_TO_CODES, _FROM_CODES}


def computes_on_codes(node: NodeProto) -> bool:
    """Return whether a node computes on codes, and does more than convert."""
    return _ON_CODES.search(node.op_type) is not None and not converts(node)


def told(nodes: list[NodeProto]) -> str:
    """Return how many nodes there are of each operator, as text."""
    return ", ".join(f"{n} {op}" for op, n in Counter(node.op_type for node in nodes).items())


def scale_given(name: str, index: Graph, codes: str) -> Scale | None:
    """Return the scale with which the model already converts a tensor from or to codes, if there is a single one.

    With this scale, codes of the given type, uint8 or int8, have exactly the values of the model's codes.
    """
    if codes not in _SMALLEST:
        return None
    for node in _conversions(name, index):
        scale, zero = index.value_of(node.input[1]), _zero_point(node, index)
        if scale is not None and zero is not None and scale.size == 1 and zero.dtype.name in _SMALLEST:
            shifted = zero.reshape(()).astype(np.int32) + (_SMALLEST[codes] - _SMALLEST[zero.dtype.name])
            return Scale(codes, scale.reshape(()), np.asarray(shifted, np.int32))
    return None


def _conversions(name: str, index: Graph) -> Iterator[NodeProto]:
    """Yield the nodes that quantise a tensor, and the node that dequantises it, if there is one."""
    yield from (node for node in index.readers.get(name, []) if node.op_type == _TO_CODES)
    maker = index.makers.get(name)
    while maker is not None and is_move(maker, index):
        name = maker.input[0]
        maker = index.makers.get(name)
    if maker is not None and maker.op_type == _FROM_CODES:
        yield maker


def _zero_point(node: NodeProto, index: Graph) -> npt.NDArray[Any] | None:
    if len(node.input) > 2 and node.input[2]:
        return index.value_of(node.input[2])
    return np.zeros((), np.uint8) if node.op_type == _TO_CODES else None


def _borders(graph: GraphProto, index: Graph) -> list[NodeProto]:
    """Return the conversions that come first after an input of the model, or last before an output."""
    from_inputs = set(index.inputs)
    conversions = [node for node in graph.node if converts(node)]
    first = list[NodeProto]()
    for node in conversions:
        if node.input[0] in from_inputs:
            first.append(node)
            from_inputs.update(node.output)
    last = list[NodeProto]()
    for node in reversed(conversions):
        made, readers = node.output[0], index.readers.get(node.output[0], [])
        read = bool(readers) or made in index.outputs
        ends = read and made not in index.captured and all(reader in last for reader in readers)
        if ends and node.input[0] not in from_inputs | set(index.constants):
            last.append(node)
    return first + last[::-1]
