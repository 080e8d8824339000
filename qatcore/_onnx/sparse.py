"""Make sparse constants dense: neither ONNX's conversion of opsets nor quantisation supports them."""

from __future__ import annotations

import math

import numpy as np
from onnx import ModelProto, SparseTensorProto, TensorProto, numpy_helper

from .protos import all_nodes, graphs_within


def make_dense(model: ModelProto) -> None:
    """Give a model dense constants in place of sparse ones."""
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
    """Return a sparse tensor as a dense one, under the name of its values."""
    values, places, shape = (
        numpy_helper.to_array(sparse.values),
        numpy_helper.to_array(sparse.indices).astype(np.int64),
        tuple(sparse.dims),
    )
    if places.ndim == 2:  # coordinates; otherwise positions in the flat tensor
        places = np.ravel_multi_index(tuple(places.T), shape)
    dense = np.zeros(math.prod(shape), values.dtype)
    dense[places] = values.reshape(-1)
    return numpy_helper.from_array(dense.reshape(shape), sparse.values.name)
