"""Models that cannot be compared, each told in a sentence."""

import json

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import TensorProto, helper

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore.cli import main

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


def detector():
    """Return a product and, as a second output, those of its values that are positive, however many."""
    model = onnx_models.product()
    model.graph.node.extend(
        [
            helper.make_node("Greater", ["y", "zero"], ["positive"]),
            helper.make_node("Compress", ["y", "positive"], ["chosen"]),
        ]
    )
    model.graph.initializer.append(onnx_models.tensor("zero", np.float32(0.0)))
    model.graph.output.append(onnx_models.value("chosen", ["M"]))
    return model


def test_what_has_sizes_that_depend_on_values_is_left_to_a_function():
    model, batches = detector(), onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches)
    with pytest.raises(InvalidArgumentError, match=r"output chosen .* by a metric of your own only"):
        qatcore.onnx.compare(model, made, batches)
    found = qatcore.onnx.compare(model, made, batches, metric=lambda outputs, batch: [(outputs["chosen"] > 0.0).all()])
    assert found.score == (100.0, 100.0)
    assert np.isnan(found.outputs["chosen"]).all()
    assert found.outputs["y"][0] > 30.0


def test_what_cannot_be_checked_is_written_all_the_same(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(detector(), "model.onnx")
    np.savez("data.npz", x=np.concatenate([batch["x"] for batch in onnx_models.rows()]))
    command = ["quantize", "model.onnx", "--data", "data.npz", "-o", "int8.onnx"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert "\nnot checked  expected output chosen like the float model's" in said
    assert "agreement" not in said
    assert onnx.load("int8.onnx") == qatcore.onnx.quantize_model("model.onnx", "data.npz")
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert "output chosen" in said["not_checked"]
    assert said["metric"] is said["score"] is None


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
