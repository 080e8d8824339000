"""Tensors as models store them: read them from files beside a model, and check that all values are there."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Container, Iterator

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx import ModelProto, TensorProto, numpy_helper

from .._base.errors import InvalidArgumentError
from .protos import all_nodes, graphs_within

#: Where it is kept from where a tensor is mapped: the folder, the name of the file, and the offset there.
PLACE = "qatcore.place"
#: The bits of types that pack several values into a byte.
_SMALL = {"float4e2m1": 4, "uint4": 4, "int4": 4, "uint2": 2, "int2": 2}


def tensors_within(model: ModelProto) -> Iterator[TensorProto]:
    """Yield all tensors that a model stores: initializers, attributes of nodes, and both parts of sparse tensors."""
    for graph in graphs_within(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in all_nodes(model):
        for attribute in node.attribute:
            yield from attribute.tensors
            if attribute.HasField("t"):
                yield attribute.t
            one = [attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []
            for sparse in (*attribute.sparse_tensors, *one):
                yield from (sparse.values, sparse.indices)


def places_of(model: ModelProto, path: str) -> set[str]:
    """Return the files, with links resolved, that hold tensors of the model at this path."""
    folder = os.path.dirname(path)
    locations = (_external(tensor).get("location", "") for tensor in tensors_within(model) if _is_elsewhere(tensor))
    return {os.path.realpath(os.path.join(folder, location)) for location in locations}


def mapped(model: ModelProto, path: str) -> dict[str, ir.TensorProtocol]:
    """Return the initializers that the model at this path stores in other files, by their names, mapped to memory.

    Other tensors in other files are read into the model.  Files are looked for in the folder of the path.  Links may
    lead to that folder.  If the path is a link itself, they may also lead to the folder of its target, because hubs
    store models in this way.  ONNX Runtime reads weights from the same places.

    Raises
    ------
    InvalidArgumentError
        If a file is missing, is too short, or lies in another folder.
    """
    allowed = {os.path.dirname(os.path.realpath(path)), os.path.realpath(os.path.dirname(path) or ".")}
    initializers = {id(tensor): tensor for tensor in model.graph.initializer}
    result = dict[str, ir.TensorProtocol]()
    for tensor in tensors_within(model):
        if not _is_elsewhere(tensor):
            continue
        said = _external(tensor)
        location, size = said.get("location", ""), _bytes_of(tensor)
        try:
            offset, length = (int(said.get(name) or 0) for name in ("offset", "length"))
        except ValueError:
            offset = length = -1
        if not location or os.path.isabs(location) or min(offset, length) < 0 or (length and length != size):
            wanted = f"{size:,} bytes in a file beside the model"
            raise InvalidArgumentError(f"tensor {tensor.name!r}: expected {wanted}, got {_shown(said)}")
        place = os.path.join(os.path.dirname(path), location)
        real = os.path.realpath(place)
        if not any(os.path.commonpath([real, folder]) == folder for folder in allowed):
            raise InvalidArgumentError(
                f"{place}: it is outside of the model's folder, and ONNX Runtime reads no weights there; "
                "put a copy of it beside the model"
            )
        values = _mapped(place, offset, size)
        if id(tensor) in initializers and _type_of(tensor) not in _SMALL:
            dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
            array = np.require(values.view(dtype).reshape(tuple(tensor.dims)), requirements="A")
            found = result[tensor.name] = ir.Tensor(array, dtype=ir.DataType(tensor.data_type), name=tensor.name)
            found.meta[PLACE] = *os.path.split(real), offset
        else:
            tensor.raw_data = values.tobytes()
            tensor.data_location = TensorProto.DEFAULT
            del tensor.external_data[:]
    return result


def check_stored(model: ModelProto, elsewhere: Container[str] = ()) -> None:
    """Raise unless a model holds all of its tensors, with as many values as their shapes need.

    Those that are `elsewhere`, by their names, were found already.

    Raises
    ------
    InvalidArgumentError
        If a tensor is in another file, or its values do not fit its shape.
    """
    for tensor in tensors_within(model):
        if _is_elsewhere(tensor):
            if tensor.name in elsewhere:
                continue
            raise InvalidArgumentError(
                f"model: tensor {tensor.name!r} is in another file, {_external(tensor).get('location')}, and was not "
                "read; give the path of the model, or load it with its external data"
            )
        try:
            if any(size < 0 for size in tensor.dims):
                raise ValueError("a dimension is less than 0")
            numpy_helper.to_array(tensor)
        except Exception as error:  # the exception depends on the fault
            lines = str(error).strip().splitlines() or [type(error).__name__]
            raise InvalidArgumentError(
                f"model: tensor {tensor.name!r}: its data are no {_type_of(tensor)} of shape {list(tensor.dims)}; "
                f"the file is damaged: {lines[0]}"
            ) from error


def _mapped(place: str, offset: int, size: int) -> npt.NDArray[np.uint8]:
    """Return a part of a file as bytes that are read when they are needed."""
    try:
        with open(place, "rb") as file:
            found = max(os.fstat(file.fileno()).st_size - offset, 0)
    except FileNotFoundError as error:
        raise InvalidArgumentError(f"{place}: no such file; put it beside the model, under this name") from error
    if found < size:
        raise InvalidArgumentError(
            f"{place}: it is too short: expected {size:,} bytes from {offset:,} on, got {min(found, size):,}"
        )
    return np.asarray(np.memmap(place, np.uint8, "r", offset, (size,))) if size else np.empty(0, np.uint8)


def _is_elsewhere(tensor: TensorProto) -> bool:
    return bool(tensor.data_location == TensorProto.EXTERNAL)


def _external(tensor: TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _shown(said: dict[str, str]) -> str:
    return ", ".join(f"{key} {value!r}" for key, value in said.items()) or "nothing"


def _type_of(tensor: TensorProto) -> str:
    known = TensorProto.DataType.values()
    return str(TensorProto.DataType.Name(tensor.data_type)).lower() if tensor.data_type in known else "known type"


def _bytes_of(tensor: TensorProto) -> int:
    """Return how many bytes a tensor's values take, small ones packed."""
    name = _type_of(tensor)
    bits: int = _SMALL.get(name, 0)
    if not bits:
        with contextlib.suppress(KeyError):
            bits = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    if name in {"string", "undefined", "known type"} or not bits or any(size < 0 for size in tensor.dims):
        raise InvalidArgumentError(
            f"tensor {tensor.name!r}: expected numbers in another file, got {name} of shape {list(tensor.dims)}"
        )
    n: int = math.prod(tensor.dims)
    return -(-n * bits // 8)
