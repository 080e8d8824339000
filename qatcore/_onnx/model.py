"""Models in files: reading, checking and writing."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import tempfile
from typing import Any

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError
from onnx import ModelProto

from .._base.errors import InvalidArgumentError
from .._base.types import PathLike
from .._calibration.storage import replace_file
from .description import METADATA
from .encoding import Encoded
from .graph import all_nodes, copied
from .images import image_files, is_image
from .session import session_of
from .skeleton import fault_of, filled, model_of, skeleton_of
from .sparse import made_dense
from .stored import check_stored, mapped, places_of

Model = PathLike | ModelProto | ir.Model


def read_model(model: Model) -> ir.Model:
    """Return a model from a file or a protocol buffer, or a copy of a model; all share weights with what was given.

    Weights in other files are mapped, not read.

    Raises
    ------
    InvalidArgumentError
        If the file is not an ONNX model, or the model is not valid.  If values of its tensors are missing.
    OSError
        If the file cannot be read.
    """
    if isinstance(model, ir.Model):
        return _checked(_own(model))
    if isinstance(model, ModelProto):
        proto = ModelProto()
        proto.CopyFrom(model)
        return _checked(_of_proto(proto, {}))
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model: expected a path, a ModelProto or an onnx_ir.Model, got {type(model).__name__}")
    path = os.fspath(model)
    with open(path, "rb"):  # raises an error that names the file
        pass
    try:
        proto = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InvalidArgumentError(f"{path}: not an ONNX model: {str(error).strip().splitlines()[0]}") from error
    if not proto.graph.node or not proto.opset_import:
        what = "there is no node in the model" if proto.opset_import else "not an ONNX model: there is no node in it"
        raise InvalidArgumentError(f"{path}: {what}")
    try:
        result = _of_proto(proto, mapped(proto, path))
    except InvalidArgumentError as error:
        said = str(error).removeprefix("model: ")
        raise InvalidArgumentError(f"{path}: its weights cannot be read: {said}") from error
    return _checked(result)


def _own(model: ir.Model) -> ir.Model:
    """Return a copy of a user's model, whose tensors are in memory or mapped, as a file would hold it."""
    try:
        result = copied(model)
    except Exception as error:  # it is no valid graph
        raise InvalidArgumentError(
            f"model: it is not valid: {str(error.__cause__ or error).splitlines()[0]}"
        ) from error
    for graph in (result.graph, *result.graph.subgraphs()):
        for value in graph.initializers.values():
            if isinstance(value.const_value, ir.ExternalTensor):
                value.const_value = _in_memory(value.const_value)
    for node in all_nodes(result):
        for name, given in list(node.attributes.items()):
            if given.type == ir.AttributeType.TENSOR and isinstance(given.value, ir.ExternalTensor):
                node.attributes[name] = ir.AttrTensor(name, _in_memory(given.value))
    return filled(skeleton_of(result), result)


def _in_memory(tensor: ir.ExternalTensor) -> ir.TensorProtocol:
    """Return a tensor that is mapped from its file.

    Raises
    ------
    InvalidArgumentError
        If that is not possible.
    """
    try:
        return ir.Tensor(
            tensor.numpy(),
            dtype=tensor.dtype,
            name=tensor.name,
            doc_string=tensor.doc_string,
            metadata_props=dict(tensor.metadata_props),
        )
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"model: tensor {tensor.name!r} cannot be read: {error}") from error


def _of_proto(proto: ModelProto, elsewhere: dict[str, ir.TensorProtocol]) -> ir.Model:
    """Return the model of a protocol buffer, whose tensors are there, or `elsewhere` by their names."""
    check_stored(proto, elsewhere)
    result = model_of(made_dense(proto))
    for name, value in result.graph.initializers.items():
        given = value.const_value
        if given is not None and given.dtype != ir.DataType.STRING:  # decode it once
            tensor = elsewhere.get(name) or ir.Tensor(given.numpy(), dtype=given.dtype, name=name)
            tensor.doc_string = given.doc_string
            tensor.metadata_props.update(given.metadata_props)
            value.const_value = tensor
    return result


def _checked(model: ir.Model) -> ir.Model:
    """Return a model, or raise `InvalidArgumentError` unless ONNX's checker or ONNX Runtime accepts it.

    A model that neither accepts may crash the process later.  The checker alone is too strict: many models that run
    break a rule of the format, such as models with an output without a shape, or with nodes that are not in order.
    """
    if (fault := fault_of(model, full=False)) is not None:
        try:
            session_of(model)
            model.graph.sort()
        except (InvalidArgumentError, ValueError) as error:
            raise InvalidArgumentError(f"model: it is not valid: {fault}") from error
    return model


def write_model(model: ir.Model, path: PathLike, *, outside: bool = False) -> None:
    """Write a model, and a file ``NAME.data`` beside it for its weights if they are large or `outside` is true.

    A crash leaves the old files or the new ones.  So the file of weights gets a name that is not in use, and the one
    that an older model of the same name needed is removed in the end.
    """
    target = os.path.realpath(os.fspath(path))
    folder, name = os.path.split(target)
    names = (f"{name}.{n}.data" if n else f"{name}.data" for n in itertools.count())
    data = next(each for each in names if not os.path.lexists(os.path.join(folder, each)))
    before = _data_of(target)
    encoded = Encoded(model, data, outside=outside)
    if not encoded.data_size:
        replace_file(path, encoded.write)
    else:
        data = os.path.join(folder, data)
        replace_file(data, encoded.write_data)
        try:
            replace_file(path, encoded.write)
        except BaseException:
            os.unlink(data)
            raise
    for place in before:
        with contextlib.suppress(OSError):
            os.unlink(place)


def _data_of(path: str) -> set[str]:
    """Return the files of weights that `write_model` wrote for the model at this path, if there is one."""
    if not os.path.isfile(path):
        return set()
    with contextlib.suppress(DecodeError, OSError):
        model = onnx.load(path, load_external_data=False)
        if not any(entry.key == METADATA for entry in model.metadata_props):  # another program's, who knows for what
            return set()
        return {place for place in places_of(model, path) if re.fullmatch(re.escape(path) + r"(\.\d+)?\.data", place)}
    return set()


def refuse_output(path: PathLike, *inputs: Any) -> None:
    """Raise, before any work is done, if an output cannot be written or is one of the inputs.

    Raises
    ------
    InvalidArgumentError
        If the output is a link: nothing is written through links.  If it is an input, or a file in an input directory.
        If it holds the weights of an input model, or an input function.  Links are resolved to find out.
    OSError
        If the output's directory is missing or cannot be written to.
    """
    if not os.fspath(path):
        raise InvalidArgumentError("output: expected the name of a file, got none")
    target = os.path.realpath(os.fspath(path))
    if os.path.isdir(target):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), os.fspath(path))
    for source in inputs:
        named = os.fspath(source) if isinstance(source, (str, os.PathLike)) else ""
        if named and target in _files_of(named, target):
            raise InvalidArgumentError(f"output: {os.fspath(path)} belongs to the inputs; give another name")
    if os.path.islink(path):
        raise InvalidArgumentError(
            f"output: {os.fspath(path)} is a link, and nothing is written through links; give the name of the file "
            f"itself, {target}, or another one"
        )
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(target)):
            pass
    except OSError as error:
        error.filename = os.fspath(path)
        raise


def _files_of(named: str, target: str) -> set[str]:
    """Return the files that an input reads, with links resolved; an input may also be ``module:function``.

    For a directory, these are the files with the name of an array, also the output if it is to be one of them.  If the
    output has the name of an image, they are the images in the directory instead.
    """
    source = os.path.realpath(named)
    if os.path.isdir(source):
        if is_image(os.path.basename(target)):
            inside = {target} if target.startswith(os.path.join(source, "")) else set()
            return inside | {os.path.realpath(os.path.join(source, file)) for file in image_files(source)}
        files = {entry.path for entry in os.scandir(source)} | {target}
        return {
            os.path.realpath(file)
            for file in files
            if file.endswith((".npz", ".npy")) and os.path.dirname(file) == source
        }
    if named.endswith(".onnx") and os.path.isfile(source):
        with contextlib.suppress(DecodeError):
            return {source} | places_of(onnx.load(named, load_external_data=False), named)
    module, colon, _ = os.path.basename(source).rpartition(":")
    script = os.path.join(os.path.dirname(source), f"{module.replace('.', os.sep)}.py")
    return {source, os.path.realpath(script) if colon else source}


def class_counts(model: ir.Model) -> set[int]:
    """Return the numbers of classes of the outputs with two dimensions, as far as the model says them."""
    shapes = [value.shape for value in model.graph.outputs if value.shape is not None and len(value.shape) == 2]
    return {int(shape[-1]) for shape in shapes if isinstance(shape[-1], int)} - {0}


def file_bytes(model: ir.Model) -> int:
    """Return the size of a model in files, in bytes."""
    return Encoded(model).size
