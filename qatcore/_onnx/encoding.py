"""The bytes of model files, made one weight after the other: all of a large model would not fit into memory."""

from __future__ import annotations

import sys
from typing import BinaryIO

import numpy as np
import onnx
import onnx_ir as ir

from .skeleton import large_tensors, without_values

#: The most bytes of weights in a model's own file: a protocol buffer is limited to 2 GiB.
_MOST_INSIDE = 3 << 29
#: In a file of their own, weights of so many bytes begin at a page, so that runtimes can map them; others at a line.
_MAPPED, _PAGE, _LINE = 1 << 20, 4096, 64


class Encoded:
    """A model as the bytes of its file, and of a second one for its weights if they are large or that is asked for.

    Parameters
    ----------
    model : onnx_ir.Model
    data : str
        The name of the file for weights.
    outside : bool
        Write the weights outside of the model's file even if they are not large.

    Attributes
    ----------
    data_size : int
        The bytes of the second file; 0 if there is none.
    """

    def __init__(self, model: ir.Model, data: str = "", *, outside: bool = False) -> None:
        self._tensors = large_tensors(model)
        outside = outside or sum(tensor.nbytes for tensor in self._tensors.values()) > _MOST_INSIDE
        self.data_size, self._offsets = 0, list[int]()
        self._fields = list[tuple[bytes, ir.TensorProtocol | None]]()
        proto = without_values(model)
        for head in proto.graph.initializer:
            tensor = self._tensors.get(head.name)
            if tensor is not None and outside:
                step = _PAGE if tensor.nbytes >= _MAPPED else _LINE
                self._offsets.append(-(-self.data_size // step) * step)
                self.data_size = self._offsets[-1] + tensor.nbytes
                head.data_location = onnx.TensorProto.EXTERNAL
                for key, value in (("location", data), ("offset", self._offsets[-1]), ("length", tensor.nbytes)):
                    head.external_data.add(key=key, value=str(value))
                tensor = None
            before, more = head.SerializeToString(deterministic=True), 0
            if tensor is not None:  # field 9 of a TensorProto holds its values, as bytes
                before, more = before + _field(9, tensor.nbytes), tensor.nbytes
            self._fields.append((_field(5, len(before) + more) + before, tensor))  # field 5 of a GraphProto
        del proto.graph.initializer[:]
        self._graph = proto.graph.SerializeToString(deterministic=True)
        proto.ClearField("graph")
        self._rest = proto.SerializeToString(deterministic=True)

    @property
    def size(self) -> int:
        """The bytes of both files."""
        return len(self._before()) + self._graph_size() + self.data_size

    def _graph_size(self) -> int:
        sizes = (len(before) + (0 if tensor is None else tensor.nbytes) for before, tensor in self._fields)
        return len(self._graph) + sum(sizes)

    def _before(self) -> bytes:
        """Return what is before the graph, which is field 7 of a ModelProto."""
        before: bytes = self._rest + _field(7, self._graph_size())
        return before

    def write(self, file: BinaryIO) -> None:
        """Write the model's file, one weight after the other."""
        file.write(self._before() + self._graph)
        for before, tensor in self._fields:
            file.write(before)
            if tensor is not None:
                _write_values(tensor, file)

    def write_data(self, file: BinaryIO) -> None:
        """Write the file of weights."""
        for offset, tensor in zip(self._offsets, self._tensors.values(), strict=True):
            file.write(bytes(offset - file.tell()))
            _write_values(tensor, file)


def _field(number: int, length: int) -> bytes:
    """Return what is before the bytes of a protocol buffer's field."""
    result, rest = bytearray([number << 3 | 2]), length
    while rest > 127:
        result.append(rest & 127 | 128)
        rest >>= 7
    return bytes([*result, rest])


def _write_values(tensor: ir.TensorProtocol, file: BinaryIO) -> None:
    """Write the values of a tensor as files hold them, without a copy if they are so in memory."""
    array = tensor.numpy()
    if tensor.dtype.bitwidth >= 8 and array.flags.c_contiguous and sys.byteorder == "little":
        file.write(array.reshape(-1).view(np.uint8).data)
    else:
        file.write(tensor.tobytes())
