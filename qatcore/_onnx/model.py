"""Models in files: reading, checking and writing."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import onnx
from google.protobuf.message import DecodeError
from onnx import ModelProto

from .._base.errors import InvalidArgumentError
from .._base.types import PathLike
from .._calibration.storage import replace_file
from .images import image_files, is_image
from .session import LARGEST_MESSAGE, save_with_data, session_of, weight_bytes
from .stored import check_stored, places_of, read_elsewhere

#: Where a quantised model says how it was made.
METADATA = "qatcore"


def read_model(model: PathLike | ModelProto) -> ModelProto:
    """Return a model from a file, with its weights; a `ModelProto` is returned as it is.

    Raises
    ------
    InvalidArgumentError
        If the file is not an ONNX model, or the model is not valid.  If values of its tensors are missing.
    OSError
        If the file cannot be read.
    """
    if isinstance(model, ModelProto):
        check_stored(model)
        _check_valid(model)
        return model
    if not isinstance(model, (str, os.PathLike)):
        raise TypeError(f"model: expected a path or a ModelProto, got {type(model).__name__}")
    path = os.fspath(model)
    with open(path, "rb"):  # raises an error that names the file
        pass
    try:
        result = onnx.load(path, load_external_data=False)
    except (DecodeError, ValueError) as error:
        raise InvalidArgumentError(f"{path}: not an ONNX model: {str(error).strip().splitlines()[0]}") from error
    if not result.graph.node or not result.opset_import:
        what = "there is no node in the model" if result.opset_import else "not an ONNX model: there is no node in it"
        raise InvalidArgumentError(f"{path}: {what}")
    try:
        read_elsewhere(result, path)
        check_stored(result)
    except InvalidArgumentError as error:
        said = str(error).removeprefix("model: ")
        raise InvalidArgumentError(f"{path}: its weights cannot be read: {said}") from error
    _check_valid(result)
    return result


def _check_valid(model: ModelProto) -> None:
    """Raise `InvalidArgumentError` unless ONNX's checker or ONNX Runtime accepts a model.

    A model that neither accepts may crash the process later.  The checker alone is too strict: many models that run
    break a rule of the format, such as models with an output without a shape.
    """
    if weight_bytes(model) >= LARGEST_MESSAGE or (fault := fault_of(model, full=False)) is None:
        return
    try:
        session_of(model)
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"model: it is not valid: {fault}") from error


def fault_of(model: ModelProto, *, full: bool = True) -> str | None:
    """Return the fault that ONNX's checker finds in a model, or None.

    If `full`, it also checks the shapes and types of all tensors, and whether functions have the model's opset.
    """
    try:
        if weight_bytes(model) < LARGEST_MESSAGE:
            onnx.checker.check_model(model, full_check=full, skip_opset_compatibility_check=not full)
        else:
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "model.onnx")
                save_with_data(model, path, "model.data")
                onnx.checker.check_model(path, full_check=full, skip_opset_compatibility_check=not full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, RuntimeError) as error:
        return str(error).strip().splitlines()[0]
    except UnicodeDecodeError:  # the checker's message quotes a name of the model
        return "there are names in it that are not UTF-8"
    return None


def write_model(model: ModelProto, path: PathLike) -> None:
    """Write a model; a crash leaves the old file or the new one.

    If the model is too large for a protocol buffer, its weights go into a file beside it, ``PATH.data``.  A crash
    between the renaming of these two files leaves the new weights without the new model.
    """
    if weight_bytes(model) < LARGEST_MESSAGE:
        replace_file(path, model.SerializeToString())
        return
    target = Path(os.fspath(path))
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".") as folder:
        data = f"{target.name}.data"
        save_with_data(model, os.path.join(folder, target.name), data)
        os.replace(os.path.join(folder, data), target.with_name(data))
        os.replace(os.path.join(folder, target.name), target)


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


def describe(model: ModelProto, about: dict[str, Any]) -> None:
    """Write into a model's metadata how it was made."""
    text = json.dumps(about)
    for entry in model.metadata_props:
        if entry.key == METADATA:
            entry.value = text
            return
    model.metadata_props.append(onnx.StringStringEntryProto(key=METADATA, value=text))


def description(model: ModelProto) -> dict[str, Any]:
    """Return what `describe` has written, or an empty dict."""
    for entry in model.metadata_props:
        if entry.key == METADATA:
            try:
                about = json.loads(entry.value)
            except ValueError:
                return {}
            return about if isinstance(about, dict) else {}
    return {}


def class_counts(model: ModelProto) -> set[int]:
    """Return the numbers of classes of the outputs with two dimensions, as far as the model says them."""
    types = [value.type.tensor_type for value in model.graph.output if value.type.HasField("tensor_type")]
    counts = {each.shape.dim[-1].dim_value for each in types if len(each.shape.dim) == 2}
    return counts - {0}


def file_bytes(model: ModelProto) -> int:
    """Return the size of a model in a file, in bytes."""
    return weight_bytes(model) if weight_bytes(model) >= LARGEST_MESSAGE else model.ByteSize()
