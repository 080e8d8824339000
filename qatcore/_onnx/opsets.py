"""Bring a model and its local functions to one version of ONNX's operators, and lose nothing else."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import InlinePass

from .._base.errors import InvalidArgumentError
from .graph import all_names, opset_of, subgraphs, take_place, unused_name, values_by_name
from .skeleton import filled, model_of, skeleton_of


def inlined(model: ir.Model) -> ir.Model:
    """Return a model with its local functions inlined, in their opset if that is newer than the model's.

    Raises
    ------
    InvalidArgumentError
        If a function cannot be brought to the model's opset.
    """
    if not model.functions:
        return model
    opsets = {_opset_of(function) for function in model.functions.values()}
    model = upgraded(model, max(opsets))
    try:
        InlinePass().requires(model)  # no function calls itself
        while calls := [node for node in model.graph.all_nodes() if node.op_identifier() in model.functions]:
            types = {} if opsets == {opset_of(model)} else _types_of(model)  # a conversion needs them
            taken = all_names(model)
            for node in calls:
                _inline(node, model, types, taken)
    except Exception as error:  # the exception depends on the operator that cannot be converted
        said = str(error.__cause__ or error).strip().splitlines()[0]
        raise InvalidArgumentError(
            f"model: its local functions, of opset {', '.join(map(str, sorted(opsets)))}, cannot be brought to opset "
            f"{opset_of(model)}: {said}; export it with functions of its own opset"
        ) from error
    model.functions.clear()
    return model


def _opset_of(function: ir.Function) -> int:
    return function.opset_imports.get("", 1)


def _types_of(model: ir.Model) -> dict[str, ir.Value]:
    """Return the tensors of a model, by name, with types and shapes as far as shape inference finds them."""
    typed = model_of(onnx.shape_inference.infer_shapes(skeleton_of(model)))
    return ir.convenience.create_value_mapping(typed.graph)


def _inline(call: ir.Node, model: ir.Model, types: Mapping[str, ir.Value], taken: set[str]) -> None:
    """Put the nodes of a function, in the opset of the model, in the place of a node that calls it."""
    assert call.graph is not None
    function, graph = model.functions[call.op_identifier()], call.graph
    given = [value for value in dict.fromkeys(call.inputs) if value is not None]
    inputs = {value: ir.Value(name=f"in_{i}") for i, value in enumerate(given)}
    for value, own in inputs.items():
        if (known := types.get(str(value.name))) is not None:
            own.type, own.shape = known.type, known.shape
    alone = ir.Node(
        call.domain,
        call.op_type,
        [None if value is None else inputs[value] for value in call.inputs],
        call.attributes,
        overload=call.overload,
        outputs=[ir.Value(name=f"out_{i}") for i in range(len(function.outputs))],
        metadata_props=dict(call.metadata_props),
    )
    imports = {**model.opset_imports, **function.opset_imports}
    body = ir.Graph(list(inputs.values()), alone.outputs, nodes=[alone], opset_imports=imports, name="call")
    part = ir.Model(body, ir_version=model.ir_version, functions=[function.clone()])
    InlinePass()(part)
    part = upgraded(part, opset_of(model))
    for domain, version in part.opset_imports.items():
        model.opset_imports.setdefault(domain, version)
    body = part.graph
    made, nodes, before = list(body.outputs), list(body), dict(zip(body.inputs, given, strict=True))
    for value in list(body.initializers.values()):
        del body.initializers[str(value.name)]
        value.name = unused_name(str(value.name), taken)
        graph.register_initializer(value)
    for node in body.all_nodes():
        node.name = unused_name(node.name, taken) if node.name else node.name
        for value in node.outputs:
            value.name = unused_name(value.name, taken) if value.name else value.name
    body.outputs.clear()
    body.remove(nodes)
    for i, value in enumerate(made):
        if value in before:  # the function returns what it is given
            nodes.append(ir.node("Identity", [value], name=unused_name("Identity", taken)))
            nodes[-1].outputs[0].name = unused_name(f"{value.name}_same", taken)
            made[i] = nodes[-1].outputs[0]
    for own, value in before.items():
        own.replace_all_uses_with(value)
    graph.insert_before(call, nodes)
    for value, old in zip(made, call.outputs, strict=False):  # a call may leave outputs out
        if old.name:
            take_place(value, old)
    graph.remove(call, safe=True)


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
