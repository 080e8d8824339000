"""Models side by side: what is told of them, and what cannot be compared, each told in a sentence."""

import json

import numpy as np
import onnx
import onnx_models
import pytest
from insides import session_of
from onnx import TensorProto, helper
from onnx_models import run, sqnr

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._cli.command import main

pytestmark = pytest.mark.any_build

IMAGES = onnx_models.images(16)


def test_models_whose_initializers_are_inputs_are_compared():
    model = onnx_models.product(opset=8)
    model.ir_version = 3
    model.graph.input.append(onnx_models.value("w", [48, 24]))
    made = qatcore.onnx.quantize_model(model, onnx_models.rows())
    assert qatcore.onnx.compare(model, made, onnx_models.rows()).outputs["y"][0] > 30


def test_compare_measures_outputs_tensors_labels_time_and_size():
    model, batches = onnx_models.convolutions(11), IMAGES
    labelled = [{**batch, "label": run(model, batch)[0].argmax(axis=-1)} for batch in batches]
    made = qatcore.onnx.quantize_model(model, batches)
    found = qatcore.onnx.compare(model, made, labelled, labels="label")
    answers = np.concatenate([run(made, batch)[0] for batch in batches])
    exact = np.concatenate([run(model, batch)[0] for batch in batches])
    same = 100.0 * np.mean(answers.argmax(axis=-1) == exact.argmax(axis=-1))
    assert found.metric == "accuracy"
    assert found.score == (100.0, pytest.approx(same, abs=2.0))
    assert found.batches == len(batches)
    # Tensors that are looked at are not fused away; a code may differ.
    assert found.outputs["y"][0] == pytest.approx(sqnr(exact, answers), abs=0.5)
    assert found.size == (model.ByteSize(), made.ByteSize())
    n = len(batches[0]["x"])
    assert [(each.samples, each.threads) for each in found.latency] == [(n, None), (n, 1), (1, None), (1, 1)]
    assert all(each.float_ms > 0.0 and each.quantized_ms > 0.0 for each in found.latency)
    assert all(each.spread[0] <= each.spread[1] for each in found.latency)
    assert list(found.tensors) == ["x", "r1", "p1", "r2", "f"]
    assert found.tensors["x"] > 35


def test_models_timed_in_turn_do_not_disturb_each_other():
    options = session_of(onnx_models.product()).get_session_options()
    assert options.get_session_config_entry("session.force_spinning_stop") == "1"


def test_swapped_models_are_refused():
    model, batches = onnx_models.product(), onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches)
    with pytest.raises(qatcore.InvalidArgumentError, match=r"expected the float model and then .*; swap them"):
        qatcore.onnx.compare(made, model, batches)
    qatcore.onnx.compare(made, made, batches)  # two ways to quantise a model may be compared


def test_compare_reads_the_models_of_onnx_runtimes_own_tool(tmp_path):
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self):
            self.rest = iter(IMAGES)

        def get_next(self):
            return next(self.rest, None)

    source, target = tmp_path / "float.onnx", tmp_path / "theirs.onnx"
    model = onnx_models.convolutions(13)
    onnx.save(model, source)
    quantize_static(source, target, Reader())
    found = qatcore.onnx.compare(source, target, IMAGES)
    assert found.outputs["y"][0] > 15
    assert len(found.tensors) >= 3


def test_without_classes_there_is_closeness():
    model = onnx_models.product(n=1)
    batches = onnx_models.rows()
    found = qatcore.onnx.compare(model, model, batches)
    assert (found.metric, found.score) == ("closeness", (100.0, 100.0))
    made = qatcore.onnx.quantize_model(model, batches)
    assert 95.0 < qatcore.onnx.compare(model, made, batches).score[1] < 100.0


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


def test_what_has_sizes_that_depend_on_values_is_left_to_a_function():
    model, batches = onnx_models.detector(), onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches)
    with pytest.raises(InvalidArgumentError, match=r"output chosen like .* if its size depends on values"):
        qatcore.onnx.compare(model, made, batches)
    found = qatcore.onnx.compare(model, made, batches, metric=onnx_models.number(model))
    assert found.score[0] == 100.0 > found.score[1] > 95.0
    assert np.isnan(found.outputs["chosen"]).all()
    assert np.isnan(found.outputs["places"]).all()
    assert found.outputs["y"][0] > 30.0


def test_labels_are_compared_whatever_other_outputs_are_like():
    model, batches = onnx_models.detector(), onnx_models.rows()
    labelled = [{**batch, "label": onnx_models.answer(model, batch, "y").argmax(1)} for batch in batches]
    made = qatcore.onnx.quantize_model(model, batches)
    found = qatcore.onnx.compare(model, made, labelled, labels="label")
    answers = [onnx_models.answer(made, batch, "y").argmax(1) == batch["label"] for batch in labelled]
    assert (found.metric, found.score) == ("accuracy", (100.0, pytest.approx(100.0 * np.mean(answers))))
    del model.graph.output[0], made.graph.output[0]
    for batch in labelled:
        batch["label"] = onnx_models.answer(model, batch, "places")
    with pytest.raises(InvalidArgumentError, match="expected output places like"):
        qatcore.onnx.compare(model, made, labelled, labels="label")


def test_a_tensor_inside_may_have_a_size_that_depends_on_values():
    """Rows whose first value is positive go through a second product, and their greatest value is the output."""
    model = onnx_models.product()
    model.graph.node[0].output[0] = "h"
    nodes = [
        helper.make_node("Slice", ["h", "start", "stop", "axis"], ["firsts"]),
        helper.make_node("Greater", ["firsts", "zero"], ["positive"]),
        helper.make_node("Reshape", ["positive", "flat"], ["condition"]),
        helper.make_node("Compress", ["h", "condition"], ["chosen"], axis=0),
        helper.make_node("MatMul", ["chosen", "v"], ["scores"], "second"),
        helper.make_node("ReduceMax", ["scores"], ["y"], keepdims=0),
    ]
    model.graph.node.extend(nodes)
    constants = {"start": [0], "stop": [1], "axis": [1], "flat": [-1]}
    model.graph.initializer.extend(onnx_models.tensor(name, np.array(n)) for name, n in constants.items())
    model.graph.initializer.append(onnx_models.tensor("zero", np.float32(0.0)))
    model.graph.initializer.append(onnx_models.tensor("v", onnx_models.normal(24, 4)))
    model.graph.output[0].CopyFrom(onnx_models.value("y", []))
    batches = onnx_models.rows(n=256)
    found = qatcore.onnx.compare(model, qatcore.onnx.quantize_model(model, batches, activations="int8"), batches)
    assert found.metric == "closeness"
    assert found.score[1] > 95.0
    assert found.tensors["x"] > 30.0
    assert np.isnan(found.tensors["chosen"])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with a detector and its inputs."""
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx_models.detector(), "model.onnx")
    np.savez("data.npz", x=np.concatenate([batch["x"] for batch in onnx_models.rows()]))
    return tmp_path


QUANTIZE = ["quantize", "model.onnx", "--data", "data.npz", "-o", "int8.onnx"]


def test_what_cannot_be_checked_is_written_all_the_same(folder, capsys):
    assert main(QUANTIZE) == 0
    said = capsys.readouterr().out
    assert "\nunchecked    output chosen is float32 (" in said
    assert "agreement" not in said
    assert onnx.load("int8.onnx") == qatcore.onnx.quantize_model("model.onnx", "data.npz")
    assert main([*QUANTIZE, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert said["unchecked"].endswith("give a --metric, a function that compares it")
    assert said["metric"] is said["score"] is None


def test_labels_that_are_asked_for_are_no_luxury(folder, capsys):
    assert main([*QUANTIZE, "--labels", "label"]) == 2
    assert "expected labels named 'label'" in capsys.readouterr().err
    model = onnx_models.detector()
    del model.graph.output[:2]
    onnx.save(model, "model.onnx")
    x = np.load("data.npz")["x"]
    label = onnx_models.answer(model, {"x": x}, "places").T
    np.savez("data.npz", x=x, label=label[: len(x)])
    assert main([*QUANTIZE, "--labels", "label", "--batch-size", "256"]) == 2
    assert "expected label of shape" in capsys.readouterr().err
    assert not (folder / "int8.onnx").exists()


def test_a_model_of_sequences_is_written(folder, capsys):
    model = ending("SequenceConstruct")
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    onnx.save(model, "model.onnx")
    assert main(QUANTIZE) == 0
    assert "unchecked    no output is a tensor" in capsys.readouterr().out
    assert main([*QUANTIZE, "--labels", "x"]) == 2
    assert "expected an output to compare" in capsys.readouterr().err
    (folder / "one_of_test.py").write_text("def score(outputs, batch):\n    return [1.0]\n")
    assert main([*QUANTIZE, "--metric", "one_of_test:score"]) == 2
    assert "expected an output to compare" in capsys.readouterr().err


@pytest.mark.parametrize("kind", [TensorProto.BFLOAT16, TensorProto.FLOAT8E4M3FN])
def test_types_that_numpy_lacks_are_not_compared(folder, capsys, kind):
    model = ending("Cast", kind, to=kind)
    model.opset_import[0].version = 19
    onnx.save(model, "model.onnx")
    assert main(QUANTIZE) == 0
    assert "unchecked    no output is a tensor of a type that NumPy has" in capsys.readouterr().out
    model.graph.output.append(onnx_models.value("product", ["N", 24]))
    onnx.save(model, "model.onnx")
    assert main(QUANTIZE) == 0
    assert "\nagreement " in capsys.readouterr().out
    found = qatcore.onnx.compare("model.onnx", "int8.onnx", "data.npz")
    assert list(found.outputs) == ["product"]
    assert qatcore.onnx.sensitivity("model.onnx", "data.npz")[0].sqnr > 30.0


def test_tables_have_a_dash_where_nothing_can_be_compared(folder, capsys):
    assert main(QUANTIZE) == 0
    (folder / "number_of_test.py").write_text("def score(outputs, batch):\n    return [len(outputs['chosen']) > 0]\n")
    capsys.readouterr()
    command = ["compare", "model.onnx", "int8.onnx", "--data", "data.npz", "--metric", "number_of_test:score"]
    assert main(command) == 0
    table = capsys.readouterr().out
    assert [line.split()[1:] for line in table.splitlines() if line.startswith(("chosen", "places"))] == [
        ["-", "-"]
    ] * 2
    assert main([*command, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["outputs"]["places"] == [None, None]


@pytest.mark.parametrize("shape", [(16, 16), (16, 8, 1), (128,)])
def test_a_tensor_of_another_shape_is_of_another_model(shape):
    def model(*inner):
        first, second = onnx_models.normal(48, 16 if inner == (16, 16) else 8), onnx_models.normal(inner[-1], 4)
        return onnx_models.model(
            [
                helper.make_node("MatMul", ["x", "v"], ["u"]),
                helper.make_node("Reshape", ["u", "inner"], ["h"]),
                helper.make_node("MatMul", ["h", "w"], ["p"]),
                helper.make_node("ReduceMax", ["p"], ["y"], keepdims=0),
            ],
            [onnx_models.value("x", ["N", 48])],
            [onnx_models.value("y", [])],
            [
                onnx_models.tensor("v", first),
                onnx_models.tensor("w", second),
                onnx_models.tensor("inner", np.array(inner)),
            ],
        )

    made = qatcore.onnx.quantize_model(model(*shape), onnx_models.rows(n=16))
    name = "u" if shape == (16, 16) else "h"
    with pytest.raises(
        InvalidArgumentError,
        match=rf"expected tensor {name} like .*\(16, 8\), got .*\); give the float model that it was made from",
    ):
        qatcore.onnx.compare(model(16, 8), made, onnx_models.rows(n=16))


def test_without_a_tensor_there_is_nothing_to_compare():
    model, batches = ending("SequenceConstruct"), onnx_models.rows(n=16)
    model.graph.output[0].CopyFrom(helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None))
    qatcore.onnx.quantize_model(model, batches)
    for compare in (
        lambda: qatcore.onnx.compare(model, model, batches),
        lambda: qatcore.onnx.sensitivity(model, batches),
        lambda: qatcore.onnx.quantize_model(model, batches, max_drop=1.0),
    ):
        with pytest.raises(InvalidArgumentError, match="expected an output to compare"):
            compare()
