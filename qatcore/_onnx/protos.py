"""The nodes and graphs inside of a model's protocol buffers."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto


def subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    """Yield the graphs inside of a node."""
    for attribute in node.attribute:
        yield from graphs_of(attribute)


def graphs_of(attribute: AttributeProto) -> Iterator[GraphProto]:
    """Yield the graphs that an attribute holds."""
    if attribute.type == AttributeProto.GRAPH:
        yield attribute.g
    elif attribute.type == AttributeProto.GRAPHS:
        yield from attribute.graphs


def nodes_within(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Yield nodes, and all nodes in graphs inside of them."""
    for node in nodes:
        yield node
        for inner in subgraphs(node):
            yield from nodes_within(inner.node)


def graphs_within(model: ModelProto) -> Iterator[GraphProto]:
    """Yield a model's graph, and all graphs inside of nodes, also in functions."""
    yield model.graph
    for node in all_nodes(model):
        yield from subgraphs(node)


def all_nodes(model: ModelProto) -> Iterator[NodeProto]:
    """Yield every node of a model, also in graphs inside of nodes and in functions."""
    yield from nodes_within(model.graph.node)
    for function in model.functions:
        yield from nodes_within(function.node)


def is_a(node: NodeProto, operators: Container[str]) -> bool:
    """Return whether a node is one of ONNX's own operators: those of other domains may have the same names."""
    return node.domain == "" and node.op_type in operators


def opset_of(model: ModelProto | FunctionProto) -> int:
    """Return the version of ONNX's own operators that a model or a function uses; 1 if it names none."""
    return next((entry.version for entry in model.opset_import if entry.domain in {"", "ai.onnx"}), 1)
