"""Bring a model and its local functions to one version of ONNX's operators, and lose nothing else."""

from __future__ import annotations

import onnx
import onnx.inliner
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass, RemoveUnusedFunctionsPass

from .._base.errors import InvalidArgumentError
from .graph import opset_of, subgraphs, values_by_name
from .skeleton import filled, skeleton_of


def inlined(model: ir.Model) -> ir.Model:
    """Return a model with its local functions inlined, in their opset if that is newer than the model's.

    Raises
    ------
    InvalidArgumentError
        If a function cannot be brought to the model's opset.
    """
    if not model.functions:
        return model
    opsets = {function.opset_imports.get("", 1) for function in model.functions.values()}
    model = upgraded(model, max(opsets))
    try:
        if opsets == {opset_of(model)}:
            InlinePass()(model)
        else:  # the conversion needs the types of the functions' inputs
            typed = onnx.shape_inference.infer_shapes(skeleton_of(model))
            model = filled(onnx.inliner.inline_local_functions(typed, True), model)
        RemoveUnusedFunctionsPass()(model)  # type: ignore[no-untyped-call]
    except Exception as error:  # the exception depends on the operator that cannot be converted
        raise InvalidArgumentError(
            f"model: its local functions, of opset {', '.join(map(str, sorted(opsets)))}, cannot be brought to opset "
            f"{opset_of(model)}: {str(error).splitlines()[0]}; export it with functions of its own opset"
        ) from error
    return model


def upgraded(model: ir.Model, opset: int) -> ir.Model:
    """Return a model in at least this opset, and in an IR version that allows it.

    ONNX's own conversion drops whatever it does not know: metadata of nodes, graphs and initializers, information on
    training and quantisation, and functions.  So these are put back.

    Raises
    ------
    InvalidArgumentError
        If an operator cannot be brought to the opset.
    """
    if opset_of(model) < opset:
        try:
            converted = onnx.version_converter.convert_version(skeleton_of(model), opset)
        except Exception as error:  # the exception depends on the operator that cannot be converted
            raise InvalidArgumentError(
                f"model: its operators, of opset {opset_of(model)}, cannot be brought to opset {opset}: "
                f"{str(error).splitlines()[0]}; export it with opset {opset}"
            ) from error
        model = _with_all_else(filled(converted, model), model)
    imports = [onnx.helper.make_opsetid(*each) for each in model.opset_imports.items()]
    model.ir_version = max(model.ir_version, onnx.helper.find_min_ir_version_for(imports, True))
    return model


def _with_all_else(converted: ir.Model, model: ir.Model) -> ir.Model:
    """Return the converted model with all that the conversion has dropped."""
    _put_back(converted.graph, model.graph)
    result = ir.Model(
        converted.graph,
        ir_version=model.ir_version,
        producer_name=model.producer_name,
        producer_version=model.producer_version,
        domain=model.domain,
        model_version=model.model_version,
        doc_string=model.doc_string,
        functions=list(model.functions.values()),
        metadata_props=dict(model.metadata_props),
        device_configurations=model.device_configurations,
    )
    result.meta.update(model.meta)
    return result


def _put_back(graph: ir.Graph, old: ir.Graph) -> None:
    """Give a converted graph, its nodes and its tensors what the old ones had beside their computation."""
    graph.name, graph.doc_string = old.name, old.doc_string
    graph.metadata_props.update(old.metadata_props)
    old_values = values_by_name(old)
    for name, value in values_by_name(graph).items():
        if (before := old_values.get(name)) is None:
            value.type = value.shape = None
            continue
        value.type, value.shape, value.doc_string = before.type, before.shape, before.doc_string
        value.metadata_props.update(before.metadata_props)
        value.meta.update(before.meta)
        if value.const_value is not None and before.const_value is not None:
            value.const_value = before.const_value
    makers = {_made_by(node): node for node in old}
    for node in graph:
        if (maker := makers.get(_made_by(node))) is None:
            continue
        node.metadata_props.update(maker.metadata_props)
        node.device_configurations, node.overload = maker.device_configurations, maker.overload
        if maker.op_type == node.op_type:
            for new_graph, old_graph in zip(subgraphs(node), subgraphs(maker), strict=True):
                _put_back(new_graph, old_graph)


def _made_by(node: ir.Node) -> str:
    """Return the first tensor that a node makes; it identifies the node, which may have no name."""
    return next((value.name for value in node.outputs if value.name), "")
