"""Models that cannot be compared, each told in a sentence."""

import numpy as np
import onnx_models
import pytest
from onnx import TensorProto, helper

import qatcore.onnx
from qatcore import InvalidArgumentError

pytestmark = pytest.mark.any_build


def test_models_that_differ_are_not_compared():
    with pytest.raises(InvalidArgumentError, match="expected the float model's inputs, x, got condition, x"):
        qatcore.onnx.compare(onnx_models.product(), onnx_models.branches(), onnx_models.rows())
    with pytest.raises(
        InvalidArgumentError, match=r"expected output y like .*, float32 \(16, 24\), got float32 \(16, 8\)"
    ):
        qatcore.onnx.compare(onnx_models.product(), onnx_models.product(n=8), onnx_models.rows(n=16))


def ending(operator, kind=TensorProto.FLOAT, **attributes):
    """Return a product and what an operator makes of it, as an output of any shape."""
    model = onnx_models.product()
    model.graph.node[0].output[0] = "product"
    model.graph.node.append(helper.make_node(operator, ["product"], ["y"], **attributes))
    model.graph.output[0].CopyFrom(onnx_models.value("y", None, kind))
    return model


@pytest.mark.parametrize(
    ("other", "got"),
    [
        (ending("ReduceMax", axes=[1], keepdims=0), r"float32 \(16,\)"),
        (ending("ReduceMax", keepdims=0), r"float32 \(\)"),
        (ending("ArgMax", TensorProto.INT64, axis=1), r"int64 \(16, 1\)"),
        (ending("Cast", TensorProto.INT64, to=TensorProto.INT64), r"int64 \(16, 24\)"),
        (ending("Cast", TensorProto.STRING, to=TensorProto.STRING), r"object \(16, 24\)"),
    ],
)
def test_outputs_that_differ_are_not_compared(other, got):
    with pytest.raises(InvalidArgumentError, match=f"expected output y like .*, float32 .*, got {got}"):
        qatcore.onnx.compare(onnx_models.product(), other, onnx_models.rows(n=16))


def test_a_function_may_compare_integers_of_any_shape():
    other = ending("ArgMax", TensorProto.INT64, axis=1)
    exact = ending("ArgMax", TensorProto.INT64, axis=1, keepdims=0)
    found = qatcore.onnx.compare(
        exact, other, onnx_models.rows(n=16), metric=lambda outputs, batch: np.reshape(outputs["y"], -1) < 12
    )
    assert found.score[0] == found.score[1] > 0


def test_a_tensor_of_another_shape_is_of_another_model():
    def model(hidden):
        first, second = onnx_models.normal(48, hidden), onnx_models.normal(hidden, 4)
        return onnx_models.model(
            [
                helper.make_node("MatMul", ["x", "v"], ["h"]),
                helper.make_node("MatMul", ["h", "w"], ["y"]),
            ],
            [onnx_models.value("x", ["N", 48])],
            [onnx_models.value("y", ["N", 4])],
            [onnx_models.tensor("v", first), onnx_models.tensor("w", second)],
        )

    made = qatcore.onnx.quantize_model(model(16), onnx_models.rows(n=16))
    with pytest.raises(InvalidArgumentError, match=r"expected tensor h like .*\(16, 8\), got float32 \(16, 16\)"):
        qatcore.onnx.compare(model(8), made, onnx_models.rows(n=16))


def test_without_a_tensor_there_is_nothing_to_compare():
    model, batches = ending("SequenceConstruct"), onnx_models.rows(n=16)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    qatcore.onnx.quantize_model(model, batches)
    for compare in (
        lambda: qatcore.onnx.compare(model, model, batches),
        lambda: qatcore.onnx.sensitivity(model, batches),
        lambda: qatcore.onnx.quantize_model(model, batches, max_drop=1.0),
    ):
        with pytest.raises(InvalidArgumentError, match="expected an output that is a tensor"):
            compare()
