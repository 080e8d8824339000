"""Bring a model and its local functions to one version of ONNX's operators, and lose nothing else."""

from __future__ import annotations

import onnx
import onnx.inliner
from onnx import GraphProto, ModelProto, NodeProto

from .._base.errors import InvalidArgumentError
from .protos import all_nodes, graphs_of, opset_of


def inlined(model: ModelProto) -> ModelProto:
    """Return a model with its local functions inlined, in their opset if that is newer than the model's.

    Raises
    ------
    InvalidArgumentError
        If a function cannot be brought to the model's opset.
    """
    if not model.functions:
        return model
    opsets = {opset_of(function) for function in model.functions}
    model = upgraded(model, max(opsets))
    convert = opsets != {opset_of(model)}
    try:
        if convert:  # the conversion needs the types of the functions' inputs
            model = onnx.shape_inference.infer_shapes(model)
        result = onnx.inliner.inline_local_functions(model, convert)
    except Exception as error:  # the exception depends on the operator that cannot be converted
        raise InvalidArgumentError(
            f"model: its local functions, of opset {', '.join(map(str, sorted(opsets)))}, cannot be brought to opset "
            f"{opset_of(model)}: {str(error).splitlines()[0]}; export it with functions of its own opset"
        ) from error
    # Keep only the functions that something still calls.
    called = {(node.domain, node.op_type) for node in all_nodes(result)}
    kept = [function for function in result.functions if (function.domain, function.name) in called]
    del result.functions[:]
    result.functions.extend(kept)
    return result


def upgraded(model: ModelProto, opset: int) -> ModelProto:
    """Return a model in at least this opset, and in an IR version that allows it.

    ONNX's own conversion drops whatever it does not know: metadata of nodes, graphs and initializers, information on
    training and quantisation, and functions.  So only nodes, and the constants that they need, are taken from it.

    Raises
    ------
    InvalidArgumentError
        If an operator cannot be brought to the opset.
    """
    result = ModelProto()
    result.CopyFrom(model)
    if opset_of(model) < opset:
        try:
            converted = onnx.version_converter.convert_version(model, opset)
        except Exception as error:  # the exception depends on the operator that cannot be converted
            raise InvalidArgumentError(
                f"model: its operators, of opset {opset_of(model)}, cannot be brought to opset {opset}: "
                f"{str(error).splitlines()[0]}; export it with opset {opset}"
            ) from error
        _take_nodes(result.graph, converted.graph)
        del result.opset_import[:]
        result.opset_import.extend(converted.opset_import)
    least = onnx.helper.find_min_ir_version_for(list(result.opset_import), True)
    result.ir_version = max(result.ir_version, least)
    return result


def _take_nodes(graph: GraphProto, converted: GraphProto) -> None:
    """Give a graph the nodes of its converted copy, with the metadata of the old nodes."""
    before = {_made_by(node): node for node in graph.node}
    for node in converted.node:
        if (old := before.get(_made_by(node))) is None:
            continue
        del node.metadata_props[:]
        node.metadata_props.extend(old.metadata_props)
        node.device_configurations.extend(old.device_configurations)
        node.overload = old.overload
        if old.op_type == node.op_type:
            for new_graph, old_graph in zip(_graphs(node), _graphs(old), strict=True):
                kept = GraphProto()
                kept.CopyFrom(old_graph)
                _take_nodes(kept, new_graph)
                new_graph.CopyFrom(kept)
    del graph.node[:]
    graph.node.extend(converted.node)
    known = {tensor.name for tensor in graph.initializer}
    graph.initializer.extend(tensor for tensor in converted.initializer if tensor.name not in known)


def _made_by(node: NodeProto) -> str:
    """Return the first tensor that a node makes; it identifies the node, which may have no name."""
    return next((name for name in node.output if name), "")


def _graphs(node: NodeProto) -> list[GraphProto]:
    """Return the graphs inside of a node, in the order of the attributes' names."""
    ordered = sorted(node.attribute, key=lambda attribute: attribute.name)
    return [graph for attribute in ordered for graph in graphs_of(attribute)]
