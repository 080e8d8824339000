"""Models that compute in 16 bits: give them float32 instead, as ONNX Runtime's integer kernels need it."""

from __future__ import annotations

import onnx_ir as ir

from .graph import all_names, unused_name

_HALVES, _SINGLE = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16}), ir.DataType.FLOAT
#: Attributes that name the type of what a node makes.
_TYPES = frozenset({"to", "dtype", "output_dtype", "stash_type", "precision"})


def computes_in_half(model: ir.Model) -> bool:
    """Return whether a prepared model has constants of float16 or bfloat16."""
    return any(value.dtype in _HALVES for value in model.graph.initializers.values())


def to_float32(model: ir.Model) -> None:
    """Let a model compute in float32 what it computes in float16 or bfloat16; inputs and outputs keep their types.

    ONNX Runtime has no float16 kernels on most CPUs, and converts between the types at almost every node.  It computes
    no product in integers that is float16 behind its codes.  All values of these types are values of float32 too, so
    only the rounding of results is left out.

    Models with operators of other domains stay as they are: such operators may have no kernel for float32.
    """
    if any(node.domain != "" for node in model.graph.all_nodes()):
        return
    taken, graph = all_names(model), model.graph
    halves = [value for value in (*graph.inputs, *graph.outputs) if value.dtype in _HALVES]
    kept = dict.fromkeys(value for value in halves if value.is_graph_input() or value.is_initializer())
    outputs = {value: value.dtype for value in graph.outputs if value.dtype in _HALVES and value not in kept}
    for each in (graph, *graph.subgraphs()):
        for value in (*each.inputs, *each.initializers.values(), *(v for node in each for v in node.outputs)):
            if value not in kept:
                _widen_value(value)
        for node in each:
            _widen_attributes(node)
    for value in kept:
        users = value.uses()
        cast = _cast(value, _SINGLE, unused_name(f"{value.name}_float32", taken), taken)
        graph.insert_before(graph[0], cast)
        for node, position in users:
            node.replace_input_with(position, cast.outputs[0])
    for value, dtype in outputs.items():
        name = str(value.name)
        value.name = unused_name(f"{name}_float32", taken)
        cast = _cast(value, dtype or _SINGLE, name, taken)
        cast.outputs[0].shape = value.shape
        graph.append(cast)
        graph.outputs[graph.outputs.index(value)] = cast.outputs[0]


def _cast(value: ir.Value, dtype: ir.DataType, name: str, taken: set[str]) -> ir.Node:
    """Return a node that makes a tensor of this name and type from a value."""
    node = ir.node("Cast", [value], {"to": int(dtype)}, name=unused_name(f"{name}_Cast", taken))
    node.outputs[0].name, node.outputs[0].dtype = name, dtype
    return node


def _widen_value(value: ir.Value) -> None:
    """Turn the type of a value, and the tensor that it holds, from 16 bits to float32."""
    kind = value.type
    while isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        kind = kind.elem_type
    if kind is not None and kind.dtype in _HALVES:
        value.type = _widened_type(value.type)
    if value.const_value is not None and value.const_value.dtype in _HALVES:
        value.const_value = _widened(value.const_value)


def _widened_type(kind: ir.TypeProtocol | None) -> ir.TypeProtocol:
    if isinstance(kind, (ir.SequenceType, ir.OptionalType)):
        return type(kind)(_widened_type(kind.elem_type))
    return ir.TensorType(_SINGLE)


def _widened(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return a tensor in float32, which is made anew wherever it is needed: that takes no memory."""
    return ir.LazyTensor(
        lambda: ir.Tensor(tensor.numpy().astype("float32")),
        dtype=_SINGLE,
        shape=ir.Shape(tensor.shape.numpy()),
        name=tensor.name,
    )


def _widen_attributes(node: ir.Node) -> None:
    """Turn types of 16 bits in the attributes of a node to float32."""
    for name, given in list(node.attributes.items()):
        if given.type == ir.AttributeType.INT and name in _TYPES and given.value in _HALVES:
            node.attributes[name] = ir.AttrInt64(name, int(_SINGLE))
        elif given.type == ir.AttributeType.TENSOR and given.as_tensor().dtype in _HALVES:
            node.attributes[name] = ir.AttrTensor(name, _widened(given.as_tensor()))
