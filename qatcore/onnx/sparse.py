"""Sparse constants made dense: neither ONNX's conversion of operators nor codes know them."""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, numpy_helper

from ..errors import InvalidArgumentError
from .protos import all_nodes, graphs_within


def make_dense(model: ModelProto) -> None:
    """Give a model dense constants in place of sparse ones.

    Raises
    ------
    InvalidArgumentError
        If the places of a sparse constant's values are not within its shape.
    """
    for graph in graphs_within(model):
        graph.initializer.extend(map(_dense, graph.sparse_initializer))
        del graph.sparse_initializer[:]
    for node in all_nodes(model):
        if node.op_type != "Constant" or node.domain != "":
            continue
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                tensor = _dense(attribute.sparse_tensor)
                attribute.Clear()
                attribute.name, attribute.type = "value", attribute.TENSOR
                attribute.t.CopyFrom(tensor)


def _dense(sparse: SparseTensorProto) -> TensorProto:
    """Return a sparse tensor with its zeros; it has the name of its values."""
    values, places, shape = (
        numpy_helper.to_array(sparse.values),
        numpy_helper.to_array(sparse.indices).astype(np.int64),
        tuple(sparse.dims),
    )
    if places.ndim == 2 and places.shape == (values.size, len(shape)):  # coordinates, where otherwise are positions
        limits, coordinates = np.array(shape), places
        inside = bool(((coordinates >= 0) & (coordinates < limits)).all())
        places = np.ravel_multi_index(tuple(coordinates.T), shape) if inside and shape else places[:0, 0]
    else:
        inside = places.shape == values.shape and bool(((places >= 0) & (places < math.prod(shape))).all())
    if not inside:
        raise InvalidArgumentError(
            f"model: sparse constant {sparse.values.name!r}: expected the places of {values.size} values in the shape "
            f"{shape}, got others; the file is damaged"
        )
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[places] = values.reshape(-1)
    return numpy_helper.from_array(dense.reshape(shape), sparse.values.name)
