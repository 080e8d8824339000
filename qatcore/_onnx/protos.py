"""The nodes and graphs inside of a model's protocol buffers."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from onnx import AttributeProto, GraphProto, ModelProto, NodeProto


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
