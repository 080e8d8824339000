"""Look things up in a model's graph, and give it other constants and nodes."""

from __future__ import annotations

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir

Array = npt.NDArray[Any]
#: Where onnx_ir keeps the names of a tensor's scale and zero point, if the model names them.
_ANNOTATION = "quant_parameter_tensor_names"


def is_a(node: ir.Node | None, operators: Container[str]) -> bool:
    """Return whether a node is one of ONNX's own operators: those of other domains may have the same names."""
    return node is not None and node.domain == "" and node.op_type in operators


def opset_of(model: ir.Model) -> int:
    """Return the version of ONNX's own operators that a model uses; 1 if it names none."""
    imports = model.opset_imports
    return next((imports[domain] for domain in ("", "ai.onnx") if domain in imports), 1)


def all_nodes(model: ir.Model) -> Iterator[ir.Node]:
    """Yield every node of a model, also in graphs inside of nodes and in functions."""
    yield from model.graph.all_nodes()
    for function in model.functions.values():
        yield from function.all_nodes()


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """Yield the graphs inside of a node, in the order of the attributes' names."""
    for _, given in sorted(node.attributes.items()):
        if given.type == ir.AttributeType.GRAPH:
            yield given.as_graph()
        elif given.type == ir.AttributeType.GRAPHS:
            yield from given.as_graphs()


def inputs_of(model: ir.Model) -> list[ir.Value]:
    """Return the inputs of a model, without initializers."""
    return [value for value in model.graph.inputs if not value.is_initializer()]


def names_of(values: Iterable[ir.Value]) -> list[str]:
    """Return the names of values."""
    return [str(value.name) for value in values]


def input_of(node: ir.Node, position: int) -> ir.Value | None:
    """Return an input of a node, or None if the node does not have it."""
    return node.inputs[position] if position < len(node.inputs) else None


def attribute(node: ir.Node, name: str, default: Any) -> Any:
    """Return a number that is an attribute of a node, or the default if it has none of that name."""
    given = node.attributes.get(name)
    return default if given is None else given.value


def is_constant(value: ir.Value | None) -> bool:
    """Return whether a value is an initializer that no input of the model can replace."""
    return value is not None and value.is_initializer() and not value.is_graph_input()


def array_of(value: ir.Value | None) -> Array | None:
    """Return a constant as an array, or None if the value is not constant."""
    if value is None or value.const_value is None or not is_constant(value):
        return None
    return value.const_value.numpy()


def are_equal(value: ir.Value | None, other: ir.Value | None) -> bool:
    """Return whether two values are the same, or equal constants."""
    first, second = array_of(value), array_of(other)
    return value is other or (first is not None and second is not None and np.array_equal(first, second))


def shape_of(value: ir.Value) -> tuple[int, ...]:
    """Return the shape of an initializer."""
    assert value.const_value is not None
    return tuple(value.const_value.shape.numpy())


def dtype_of(value: ir.Value) -> np.dtype[Any]:
    """Return the NumPy type of an initializer."""
    assert value.const_value is not None
    return value.const_value.dtype.numpy()


def readers_of(value: ir.Value) -> list[ir.Node]:
    """Return the nodes of the value's own graph that read it, once for each input."""
    return [use.node for use in value.uses() if use.node.graph is value.graph]


def is_captured(value: ir.Value) -> bool:
    """Return whether a graph inside of a node reads a value."""
    return any(use.node.graph is not value.graph for use in value.uses())


def is_seen(value: ir.Value) -> bool:
    """Return whether a value is an output of the model or read by a graph inside of a node."""
    return value.is_graph_output() or is_captured(value)


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the node that reads a value, if nothing else reads or returns it."""
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 and not is_seen(value) else None


def values_by_name(graph: ir.Graph) -> dict[str, ir.Value]:
    """Return the inputs and initializers of a graph and what its nodes make, by their names."""
    return ir.convenience.create_value_mapping(graph, include_subgraphs=False)


def tensors_of(model: ir.Model) -> set[str]:
    """Return the names of a model's inputs and of what its nodes make."""
    return set(values_by_name(model.graph)) - set(model.graph.initializers) | set(names_of(inputs_of(model)))


def read_by(node: ir.Node) -> set[ir.Value]:
    """Return what a node reads, and what graphs inside of it read from around the node."""
    inner = (value for graph in subgraphs(node) for each in graph.all_nodes() for value in each.inputs)
    captured = {value for value in inner if value is not None and value.graph is node.graph}
    return captured | {value for value in node.inputs if value is not None}


def all_names(model: ir.Model) -> set[str]:
    """Return every name of a tensor or node in a model's graph, and in the graphs inside of its nodes."""
    names = set[str]()
    for graph in (model.graph, *model.graph.subgraphs()):
        names.update(names_of((*graph.inputs, *graph.outputs)), graph.initializers)
        for node in graph:
            names.add(str(node.name))
            names.update(names_of([value for value in (*node.inputs, *node.outputs) if value is not None]))
    return names


def unused_name(name: str, taken: set[str]) -> str:
    """Return this name, with a number behind it if it is taken, and add the result to the taken names."""
    result, suffix = name, 0
    while result in taken:
        suffix += 1
        result = f"{name}_{suffix}"
    taken.add(result)
    return result


def replace_reads(reader: ir.Node, value: ir.Value, other: ir.Value) -> None:
    """Let a node read another value wherever it reads this one."""
    for position, given in enumerate(reader.inputs):
        if given is value:
            reader.replace_input_with(position, other)


def set_input(node: ir.Node, position: int, value: ir.Value | None) -> None:
    """Give a node another input, also behind those that it has."""
    node.resize_inputs(max(position + 1, len(node.inputs)))
    node.replace_input_with(position, value)


def tensor_of(array: Array, name: str) -> ir.TensorProtocol:
    """Return an array as a tensor."""
    if array.dtype.kind in "OSU":
        return ir.serde.deserialize_tensor(onnx.numpy_helper.from_array(array, name))
    return ir.Tensor(array, dtype=ir.DataType.from_numpy(array.dtype), name=name)


def leads_to(node: ir.Node, operators: Container[str]) -> bool:
    """Return whether nodes of some operators come behind a node, in its own graph."""
    behind, to_do = {node}, [node]
    while to_do:
        for reader in (reader for value in to_do.pop().outputs for reader in readers_of(value)):
            if is_a(reader, operators):
                return True
            if reader not in behind:
                behind.add(reader)
                to_do.append(reader)
    return False


def add_initializer(graph: ir.Graph, name: str, array: Array) -> ir.Value:
    """Give a graph an initializer, and return it."""
    tensor = tensor_of(np.asarray(array), name)
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def set_constant(taken: set[str], node: ir.Node, position: int, array: Array) -> None:
    """Give a node another constant as an input, under the same name if no other node reads it."""
    assert node.graph is not None
    given, graph = input_of(node, position), node.graph
    if given is None or len(readers_of(given)) > 1 or is_seen(given):
        kind = "weight" if position == 1 else "bias"
        name = unused_name(f"{node.outputs[0].name}_{kind}", taken)
    else:
        name = str(given.name)
        del graph.initializers[name]
    set_input(node, position, add_initializer(graph, name, array))


def add_node(
    at: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value | None],
    output: str,
    taken: set[str],
    attributes: Mapping[str, Any] = MappingProxyType({}),
    *,
    before: bool = True,
    name: str | None = None,
) -> ir.Value:
    """Add a node before or behind another one, and return its output; the node's name comes from the output's."""
    node = ir.node(operator, inputs, dict(attributes), name=unused_name(name or f"{output}_{operator}", taken))
    node.outputs[0].name = output
    assert at.graph is not None
    (at.graph.insert_before if before else at.graph.insert_after)(at, node)
    return node.outputs[0]


def take_place(value: ir.Value, other: ir.Value) -> None:
    """Let a value stand where another one stood, under its name; the other keeps no reader."""
    name, other.name = other.name, None
    value.type, value.shape, value.doc_string = other.type, other.shape, other.doc_string
    value.metadata_props.clear()
    value.metadata_props.update(other.metadata_props)
    value.meta.pop(_ANNOTATION, None)
    value.meta.update(other.meta)
    other.replace_all_uses_with(value, replace_graph_outputs=True)
    value.name = name


def drop_unread(model: ir.Model) -> None:
    """Remove initializers that nothing reads, but for inputs and what other tensors' annotations name."""
    graph = model.graph
    named = set[str]()
    read = [value for value in graph.initializers.values() if value.uses()]
    for value in (*graph.inputs, *read, *(v for node in graph for v in node.outputs)):
        named.update(value.meta.get(_ANNOTATION, {}).values())
    for name, value in list(graph.initializers.items()):
        if not (value.uses() or value.is_graph_input() or value.is_graph_output() or name in named):
            del graph.initializers[name]


def copied(model: ir.Model) -> ir.Model:
    """Return a copy of a model that shares its tensors."""
    result = model.clone()
    result.meta.update(model.meta)
    return result
