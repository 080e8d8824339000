"""Models as graphs: which nodes make and read a tensor, and how a model is prepared for quantisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, numpy_helper

from .opsets import inlined, upgraded
from .protos import subgraphs
from .sparse import make_dense

#: Operators that only change the form of a constant.  Constants that are read through them are computed beforehand.
_FORMS = frozenset({"Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast"})
#: Constants with more elements than this hold no shape that shape inference needs.
_LARGEST_SHAPE = 64
_CONSTANT_VALUES = ("value", "value_float", "value_floats", "value_int", "value_ints")


class Graph:
    """An index of a model's graph; make a new one when nodes come or go.

    Attributes
    ----------
    makers : dict of str to NodeProto
        The node that makes each tensor.
    readers : dict of str to list of NodeProto
        The nodes that read each tensor, once for each input.
    constants : dict of str to TensorProto
        The initializers that no input of the model can replace.
    initializers : dict of str to TensorProto
        All initializers.
    inputs, outputs : list of str
        The names of the model's inputs, without initializers, and of its outputs.
    captured : set of str
        All names in graphs inside of nodes.
    """

    def __init__(self, model: ModelProto) -> None:
        graph = model.graph
        self.makers: dict[str, NodeProto] = {}
        self.readers: dict[str, list[NodeProto]] = {}
        self.captured: set[str] = set()
        for node in graph.node:
            self.makers.update((name, node) for name in node.output if name)
            for name in node.input:
                if name:
                    self.readers.setdefault(name, []).append(node)
            for inner in subgraphs(node):
                self.captured |= names_within(inner)
        self.initializers = {tensor.name: tensor for tensor in graph.initializer}
        given = [value.name for value in graph.input]
        replaceable = set(given)
        self.constants = {name: tensor for name, tensor in self.initializers.items() if name not in replaceable}
        self.inputs = [name for name in given if name not in self.initializers]
        self.outputs = [value.name for value in graph.output]

    def value_of(self, name: str) -> npt.NDArray[Any] | None:
        """Return the value of a constant, or None if the tensor is not constant."""
        tensor = self.constants.get(name)
        return None if tensor is None else numpy_helper.to_array(tensor)

    def is_seen(self, name: str) -> bool:
        """Return whether a tensor is an output of the model or read by a graph inside of a node."""
        return name in self.captured or name in self.outputs

    def only_reader(self, name: str) -> NodeProto | None:
        """Return the node that reads a tensor, if nothing else reads or returns it."""
        readers = self.readers.get(name, [])
        return readers[0] if len(readers) == 1 and not self.is_seen(name) else None


def names_within(graph: GraphProto) -> set[str]:
    """Return every name that a graph, or a graph inside of it, reads or makes."""
    names = {value.name for value in graph.output}
    for node in graph.node:
        names.update(node.input)
        names.update(node.output)
        for inner in subgraphs(node):
            names |= names_within(inner)
    return names


def all_names(model: ModelProto) -> set[str]:
    """Return every name of a tensor or node in a model."""
    graph = model.graph
    names = names_within(graph) | {node.name for node in graph.node}
    return names | {value.name for value in (*graph.input, *graph.initializer, *graph.value_info)}


def replace_input(node: NodeProto, name: str, other: str) -> None:
    """Let a node read the tensor `other` wherever it reads the tensor `name`."""
    for position, given in enumerate(node.input):
        if given == name:
            node.input[position] = other


def attribute(node: NodeProto, name: str, default: Any) -> Any:
    """Return a number that is an attribute of a node, or the default if it has none of that name."""
    return next((a.f if a.type == a.FLOAT else a.i for a in node.attribute if a.name == name), default)


def drop_attribute(node: NodeProto, name: str) -> None:
    """Remove an attribute that a node has."""
    node.attribute.remove(next(each for each in node.attribute if each.name == name))


def known_shapes(model: ModelProto) -> dict[str, list[int]]:
    """Return the shapes of tensors as far as shape inference finds them, with 0 for an unknown size."""
    # Leave out the weights, as only their sizes count: a model may be too large for a protocol buffer.
    light = ModelProto(ir_version=model.ir_version, opset_import=model.opset_import, functions=model.functions)
    given, graph = {value.name for value in model.graph.input}, light.graph
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _LARGEST_SHAPE:
            graph.initializer.append(tensor)
        elif tensor.name not in given:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    graph = onnx.shape_inference.infer_shapes(light).graph
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.value_info, *graph.output)
        if value.type.tensor_type.HasField("shape")
    }


def prepared(model: ModelProto, opset: int = 13, *, keep_inputs: bool = False) -> ModelProto:
    """Return a model that computes the same, in a form that is easy to quantise.

    Local functions are inlined.  Constants become dense initializers, and constants read through a change of form are
    computed.  Batch norms, and constant factors and terms behind a convolution, are folded into it.  The factors of a
    Gemm are folded into its weights and bias.  Operators are brought to `opset` if theirs is older.

    Inputs, outputs and metadata stay as they are, and so do the names of all tensors that are left.  The exception is
    `initializers_among_inputs`: they are no longer inputs, unless `keep_inputs` is true and the IR version at least 4.

    Raises
    ------
    InvalidArgumentError
        If the model's operators cannot be brought to the opset.
    """
    result = ModelProto()
    result.CopyFrom(model)
    make_dense(result)
    result = inlined(result)
    taken = initializers_among_inputs(result)
    if taken and (result.ir_version < 4 or not keep_inputs):
        kept = [value for value in result.graph.input if value.name not in taken]
        del result.graph.input[:]
        result.graph.input.extend(kept)
    result.ir_version = max(result.ir_version, 4)
    result = upgraded(result, opset)
    _constants_to_initializers(result.graph)
    _compute_forms(result)
    _fold_into_convolutions(result)
    _fold_factors_of_gemms(result)
    drop_unread(result)
    _name_nodes(result.graph)
    return result


def initializers_among_inputs(model: ModelProto) -> list[str]:
    """Return the initializers that are inputs too, if there are weights among them; otherwise none.

    Before IR version 4 all initializers had to be inputs, so all count as weights.  Later on, scalars and rows may be
    real inputs with a default value.
    """
    given = {value.name for value in model.graph.input}
    among = [tensor for tensor in model.graph.initializer if tensor.name in given]
    are_weights = model.ir_version < 4 or any(len(tensor.dims) > 1 for tensor in among)
    return [tensor.name for tensor in among] if are_weights else []


def _name_nodes(graph: GraphProto) -> None:
    """Give every node a unique name; nodes that have one keep it."""
    taken: set[str] = {node.name for node in graph.node}
    seen = {""}
    for index, node in enumerate(graph.node):
        if node.name in seen:
            node.name = unused_name(node.name or f"{node.op_type}_{index}", taken)
        seen.add(node.name)


def drop_unread(model: ModelProto) -> None:
    """Remove initializers that nothing reads, and information on tensors that no longer exist."""
    graph = model.graph
    used = names_within(graph) | {value.name for value in graph.input}
    said = [each for each in graph.quantization_annotation if each.tensor_name in used]
    del graph.quantization_annotation[:]
    graph.quantization_annotation.extend(said)
    used |= {entry.value for each in said for entry in each.quant_parameter_tensor_names}
    for values in (graph.initializer, graph.value_info):
        kept = [value for value in values if value.name in used]
        if len(kept) < len(values):
            del values[:]
            values.extend(kept)


def _set_initializer(graph: GraphProto, name: str, array: npt.NDArray[Any]) -> TensorProto:
    """Give a graph an initializer, in place of one of the same name, and return it."""
    present = (tensor for tensor in graph.initializer if tensor.name == name)
    tensor: TensorProto = next(present, None) or graph.initializer.add()
    tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(array), name))
    return tensor


def _constants_to_initializers(graph: GraphProto) -> None:
    kept = []
    for node in graph.node:
        value = _constant_value(node) if node.op_type == "Constant" and node.domain == "" else None
        if value is None:
            kept.append(node)
            continue
        tensor = TensorProto()
        tensor.CopyFrom(value)
        tensor.name = node.output[0]
        graph.initializer.append(tensor)
    if len(kept) < len(graph.node):
        _set_nodes(graph, kept)


def _constant_value(node: NodeProto) -> TensorProto | None:
    [attribute] = node.attribute if len(node.attribute) == 1 else [None]
    if attribute is None or attribute.name not in _CONSTANT_VALUES:
        return None
    value = onnx.helper.get_attribute_value(attribute)
    if isinstance(value, TensorProto):
        return value
    return numpy_helper.from_array(np.array(value, np.float32 if "float" in attribute.name else np.int64))


def _compute_forms(model: ModelProto) -> None:
    """Compute the nodes that only change the form of constants: weights are often read through a Transpose.

    If an output or an inner graph needs the result too, the node stays, and other nodes read a constant beside it.
    """
    graph, done = model.graph, []
    index, taken = Graph(model), all_names(model)
    for node in graph.node:
        if (
            node.op_type not in _FORMS
            or node.domain != ""
            or any(name not in index.constants for name in node.input if name)
        ):
            continue
        output = own = str(node.output[0])
        if not index.is_seen(output):
            done.append(node)
        elif output not in index.readers:
            continue
        else:
            own = node.input[0] if node.op_type == "Identity" else unused_name(f"{output}_constant", taken)
            for reader in index.readers[output]:
                replace_input(reader, output, own)
        if own not in index.constants:
            values = {name: index.value_of(name) for name in node.input if name}
            [result] = _evaluate(node, values, model)
            index.constants[own] = _set_initializer(graph, own, result)
    _remove_nodes(graph, done)


def _evaluate(node: NodeProto, values: dict[str, Any], model: ModelProto) -> Any:
    from onnx.reference import ReferenceEvaluator

    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in values.items()
    ]
    output = onnx.ValueInfoProto(name=node.output[0])
    graph = onnx.helper.make_graph([node], "form", inputs, [output])
    return ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=model.opset_import)).run(None, values)


def _fold_into_convolutions(model: ModelProto) -> None:
    graph, folded = model.graph, []
    index, taken = Graph(model), all_names(model)
    for convolution in list(graph.node):
        if convolution.op_type != "Conv" or convolution.domain != "":
            continue
        while (follower := index.only_reader(convolution.output[0])) is not None:
            weight = index.value_of(convolution.input[1])
            if weight is None:
                break
            scale_and_shift = _per_channel(follower, convolution.output[0], index, weight.ndim)
            if scale_and_shift is None or not _fold(graph, index, taken, convolution, *scale_and_shift):
                break
            folded.append(follower)
            convolution.output[0] = follower.output[0]
            index.makers[convolution.output[0]] = convolution
    _remove_nodes(graph, folded)


def _per_channel(node: NodeProto, source: str, index: Graph, rank: int) -> tuple[Any, Any] | None:
    """Return a factor and a term for each channel, float64, if a node does no more to a tensor of this rank."""
    if node.domain == "" and node.op_type == "BatchNormalization" and node.input[0] == source:
        return _batch_norm(node, index)
    if node.domain == "" and node.op_type in {"Mul", "Add"}:
        [other] = [name for name in node.input if name != source] or [source]
        value = _one_for_each_channel(index.value_of(other), rank)
        if value is not None:
            return (value, np.zeros(1)) if node.op_type == "Mul" else (np.ones(1), value)
    return None


def _batch_norm(node: NodeProto, index: Graph) -> tuple[Any, Any] | None:
    parameters = [index.value_of(name) for name in node.input[1:]]
    if (
        attribute(node, "training_mode", 0)
        or len([name for name in node.output if name]) > 1
        or any(value is None for value in parameters)
    ):
        return None
    epsilon = attribute(node, "epsilon", 1e-5)
    scale, shift, mean, variance = (np.asarray(value, np.float64) for value in parameters)
    with np.errstate(all="ignore"):  # what is not finite will not be folded
        factor = scale / np.sqrt(variance + epsilon)
        return factor, shift - mean * factor


def _one_for_each_channel(value: npt.NDArray[Any] | None, rank: int) -> npt.NDArray[np.float64] | None:
    """Return a constant as a number for each channel, or one for all, if it broadcasts so to a tensor of this rank."""
    if value is None or value.dtype.kind != "f" or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    return value.reshape(-1).astype(np.float64) if value.size == shape[1] else None


def _fold(graph: GraphProto, index: Graph, taken: set[str], convolution: NodeProto, factor: Any, term: Any) -> bool:
    """Fold factors and terms of channels into a convolution, and return whether its weights and bias allow it."""
    names = [*convolution.input[1:], ""][:2]
    weight, bias = index.value_of(names[0]), index.value_of(names[1]) if names[1] else None
    if weight is None or (names[1] and bias is None) or weight.dtype.kind != "f":
        return False
    channels = weight.shape[0]
    if factor.size not in {1, channels} or term.size not in {1, channels}:
        return False
    before = np.zeros(channels) if bias is None else bias.astype(np.float64)
    with np.errstate(all="ignore"):
        scaled = (weight.astype(np.float64) * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(weight.dtype)
        shifted = np.broadcast_to(before * factor + term, channels).astype(weight.dtype)
    if not (np.isfinite(scaled).all() and np.isfinite(shifted).all()):
        return False
    for position, array in ((1, scaled), (2, shifted)):
        _set_constant(graph, index, taken, convolution, position, array)
    return True


def _fold_factors_of_gemms(model: ModelProto) -> None:
    """Fold alpha into weights and beta into biases.

    ONNX Runtime does not compute a Gemm with a beta in integers.  Before 1.30 it also multiplies the codes of biases by
    alpha.
    """
    index, taken = Graph(model), all_names(model)
    for node in model.graph.node:
        if node.op_type != "Gemm" or node.domain != "":
            continue
        for position, factor in ((1, "alpha"), (2, "beta")):
            name = node.input[position] if len(node.input) > position else ""
            by, value = attribute(node, factor, 1.0), index.value_of(name)
            if by == 1.0 or (name and (value is None or value.dtype.kind != "f")):
                continue
            if value is not None:
                with np.errstate(all="ignore"):
                    scaled = (value.astype(np.float64) * by).astype(value.dtype)
                is_no_bias = factor == "beta" and by == 0.0
                if not np.isfinite(scaled).all() or (_is_coarser(scaled, value) and not is_no_bias):
                    continue
                _set_constant(model.graph, index, taken, node, position, scaled)
            drop_attribute(node, factor)


def _is_coarser(array: npt.NDArray[Any], than: npt.NDArray[Any]) -> bool:
    """Return whether elements have become subnormal numbers of their type, and so have lost bits."""
    least = np.finfo(array.dtype).smallest_normal
    return bool(((np.abs(array) < least) & (np.abs(than) >= least)).any())


def _set_constant(
    graph: GraphProto, index: Graph, taken: set[str], node: NodeProto, position: int, array: npt.NDArray[Any]
) -> None:
    """Give a node another constant as an input, under the same name if no other node reads it."""
    node.input.extend([""] * (position + 1 - len(node.input)))
    name = node.input[position]
    if not name or len(index.readers.get(name, [])) > 1 or index.is_seen(name):
        name = unused_name(f"{node.output[0]}_{'weight' if position == 1 else 'bias'}", taken)
    node.input[position] = name
    index.constants[name] = _set_initializer(graph, name, array)
    index.readers.setdefault(name, [node])


def unused_name(name: str, taken: set[str]) -> str:
    """Return this name, with a number behind it if it is taken, and add the result to the taken names."""
    result, suffix = name, 0
    while result in taken:
        suffix += 1
        result = f"{name}_{suffix}"
    taken.add(result)
    return result


def _remove_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    if nodes:
        gone = {id(node) for node in nodes}
        _set_nodes(graph, [node for node in graph.node if id(node) not in gone])


def _set_nodes(graph: GraphProto, nodes: list[NodeProto]) -> None:
    copies = []
    for node in nodes:
        copy = NodeProto()
        copy.CopyFrom(node)
        copies.append(copy)
    del graph.node[:]
    graph.node.extend(copies)
