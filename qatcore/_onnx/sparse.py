"""Make sparse constants dense: nothing that models are prepared with supports them."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import ModelProto, SparseTensorProto, TensorProto, numpy_helper

from .._base.errors import InvalidArgumentError
from .protos import all_nodes, graphs_within


def made_dense(model: ModelProto) -> ModelProto:
    """Return a model with dense constants in place of sparse ones: the model itself if it has none."""
    in_nodes = any(each.HasField("sparse_tensor") for node in all_nodes(model) for each in node.attribute)
    if not in_nodes and not any(graph.sparse_initializer for graph in graphs_within(model)):
        return model
    result = ModelProto()
    result.CopyFrom(model)
    for graph in graphs_within(result):
        graph.initializer.extend(map(_dense, graph.sparse_initializer))
        del graph.sparse_initializer[:]
    for node in all_nodes(result):
        if node.op_type != "Constant" or node.domain != "":
            continue
        for attribute in node.attribute:
            if attribute.HasField("sparse_tensor"):
                tensor = _dense(attribute.sparse_tensor)
                attribute.Clear()
                attribute.name, attribute.type = "value", attribute.TENSOR
                attribute.t.CopyFrom(tensor)
    return result


def _dense(sparse: SparseTensorProto) -> TensorProto:
    """Return a sparse tensor as a dense one, under the name of its values."""
    try:
        onnx.checker.check_sparse_tensor(sparse)
    except onnx.checker.ValidationError as error:
        raise InvalidArgumentError(f"model: it is not valid: {str(error).strip().splitlines()[0]}") from error
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
