"""Models as protocol buffers, whole or without their large weights: these may be too large for one, and take memory."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import onnx
import onnx_ir as ir
from onnx import ModelProto, TensorProto

from .._base.errors import InvalidArgumentError

#: Constants of more bytes hold no shape that ONNX's functions need.
_LARGEST_BYTES = 1024
#: Where a model keeps what its representation has no place for.
_TRAINING = "training_info"
#: Where it is kept which tensors are float32.
_FLOATS = "qatcore.floats"
# It logs faults that the checks of models report.  Without a handler, Python would print them.
logging.getLogger("onnx_ir").addHandler(logging.NullHandler())


def model_of(proto: ModelProto) -> ir.Model:
    """Return the model that a protocol buffer holds; it shares its tensors.

    Raises
    ------
    InvalidArgumentError
        If the protocol buffer holds no valid model.
    """
    try:
        result = ir.from_proto(proto)
    except Exception as error:  # the exception depends on the fault
        raise _not_valid(error) from error
    if proto.training_info:
        result.meta[_TRAINING] = list(proto.training_info)
    return result


def _not_valid(error: BaseException) -> InvalidArgumentError:
    """Return an error with what was the first cause of another one."""
    while error.__cause__ is not None:
        error = error.__cause__
    said = str(error).splitlines()[0]
    return InvalidArgumentError(
        f"model: it is not valid: {'there are names in it that are not UTF-8' if 'utf-8' in said else said}"
    )


def proto_of(model: ir.Model) -> ModelProto:
    """Return a model as a protocol buffer.

    Raises
    ------
    InvalidArgumentError
        If there are names in it that are no text.
    """
    try:
        proto = ir.serde.serialize_model(model)
    except ir.serde.SerdeError as error:
        raise _not_valid(error) from error
    proto.training_info.extend(model.meta.get(_TRAINING, []))
    known = [value for value in proto.graph.value_info if value.name not in model.graph.initializers]
    del proto.graph.value_info[:]
    proto.graph.value_info.extend(known)
    return proto


def is_large(tensor: ir.TensorProtocol | None) -> bool:
    """Return whether a tensor is left out of skeletons."""
    return tensor is not None and tensor.dtype != ir.DataType.STRING and tensor.nbytes > _LARGEST_BYTES


def large_tensors(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Return the large initializers of a model, by their names."""
    return {name: tensor for name, tensor in model.graph.initializers.tensor_items() if is_large(tensor)}


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of a model's large initializers."""
    return sum(tensor.nbytes for tensor in large_tensors(model).values())


def without_values(model: ir.Model) -> ModelProto:
    """Return a model as a protocol buffer in which large initializers have a type and a shape, but no values."""
    large, values = large_tensors(model), model.graph.initializers
    try:
        for name, tensor in large.items():
            head = TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
            if tensor.doc_string:
                head.doc_string = tensor.doc_string
            empty = values[name].const_value = ir.serde.TensorProtoTensor(head)
            empty.metadata_props.update(tensor.metadata_props)
        return proto_of(model)
    finally:
        for name, tensor in large.items():
            values[name].const_value = tensor


def skeleton_of(model: ir.Model) -> ModelProto:
    """Return a model as a protocol buffer whose large initializers are inputs."""
    proto, large = without_values(model), large_tensors(model)
    kept = [tensor for tensor in proto.graph.initializer if tensor.name not in large]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    given = {value.name for value in proto.graph.input}
    proto.graph.input.extend(
        onnx.helper.make_tensor_value_info(name, int(tensor.dtype), tensor.shape.numpy())
        for name, tensor in large.items()
        if name not in given
    )
    return proto


def filled(skeleton: ModelProto, model: ir.Model) -> ir.Model:
    """Return the model of a skeleton, with the large initializers of the model from which it was made."""
    result, large = model_of(skeleton), large_tensors(model)
    given = {value.name for value in model.graph.inputs}
    inputs = list(result.graph.inputs)
    result.graph.inputs.clear()
    result.graph.inputs.extend(value for value in inputs if value.name in given or value.name not in large)
    values = {**result.graph.initializers, **{str(v.name): v for v in inputs if v.name in large}}
    result.graph.initializers.clear()
    # In the order of the model, which its digest depends on.
    for name in dict.fromkeys((*model.graph.initializers, *values)):
        if (value := values.get(name)) is not None:
            value.const_value = large.get(name, value.const_value)
            result.graph.initializers.add(value)
    result.meta.update(model.meta)
    return result


def known_shapes(model: ir.Model) -> Mapping[str, list[int]]:
    """Return the shapes of tensors as far as shape inference finds them, with 0 for an unknown size."""
    return {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in _inferred(model)
        if value.type.tensor_type.HasField("shape")
    }


def _inferred(model: ir.Model) -> list[onnx.ValueInfoProto]:
    """Return the tensors of a model with types and shapes as far as shape inference finds them."""
    graph = onnx.shape_inference.infer_shapes(skeleton_of(model)).graph
    return [*graph.input, *graph.value_info, *graph.output]


def float_tensors(model: ir.Model) -> frozenset[str]:
    """Return the names of a model's float32 tensors, as far as shape inference finds their types."""
    if _FLOATS not in model.meta:  # found out once, also for copies of the model
        kinds = ((value.name, value.type.tensor_type.elem_type) for value in _inferred(model))
        model.meta[_FLOATS] = frozenset(name for name, kind in kinds if kind == TensorProto.FLOAT)
    found: frozenset[str] = model.meta[_FLOATS]
    return found


def fault_of(model: ir.Model, *, full: bool = True) -> str | None:
    """Return the fault that ONNX's checker finds in a model, or None.

    If `full`, it also checks the shapes and types of all tensors, and whether functions have the model's opset.
    """
    try:
        onnx.checker.check_model(skeleton_of(model), full_check=full, skip_opset_compatibility_check=not full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        return str(error).strip().splitlines()[0]
    except UnicodeDecodeError:  # the checker's message quotes a name of the model
        return "there are names in it that are not UTF-8"
    return None
