"""Models as onnx_ir holds them: given as such, with weights elsewhere, and with functions, texts and annotations."""

import threading

import numpy as np
import onnx
import onnx_ir as ir
import onnx_models
import pytest
from insides import prepared
from onnx import TensorProto, helper
from onnx_models import run, tensor, value

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._onnx import encoding, session, weights
from qatcore._onnx.model import read_model

pytestmark = pytest.mark.any_build

W = onnx_models.normal(16, 16)
X = {"x": onnx_models.normal(3, 16)}


def made(nodes, outputs, initializers=(), inputs=(), functions=()):
    graph = helper.make_graph(
        nodes,
        "tested",
        [value("x", ["N", 16]), *inputs],
        outputs,
        [tensor("w", W), *initializers],
    )
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("of.tests", 1)]
    return helper.make_model(graph, functions=list(functions), opset_imports=opsets, ir_version=8)


def function(name, inputs, outputs, nodes):
    return helper.make_function("of.tests", name, inputs, outputs, nodes, [helper.make_opsetid("", 17)])


def call(name, inputs, outputs):
    return helper.make_node(name, inputs, outputs, domain="of.tests")


def weights_alone(model):
    return qatcore.onnx.quantize_model(model, activations="none")


def weights_beside(path, **options):
    return qatcore.onnx.quantize_model(
        onnx_models.product(), output=path, activations="none", external_data=True, **options
    )


def by_hand(layers=1):
    x = X["x"]
    for _ in range(layers):
        x = x @ W
    return x


# --- onnx_ir.Model ------------------------------------------------------------------------------------


def test_a_model_of_onnx_ir_is_taken_and_left_alone(tmp_path):
    proto, batches = onnx_models.convolutions(), onnx_models.images(4)
    given = ir.from_proto(proto)
    before = ir.to_proto(given).SerializeToString(deterministic=True)
    made = qatcore.onnx.quantize_model(given, batches)
    assert made == qatcore.onnx.quantize_model(proto, batches)
    calibration = qatcore.onnx.calibrate(proto, batches)
    assert qatcore.onnx.calibrate(given, batches) == calibration
    assert qatcore.onnx.quantize_model(given, batches, calibration=calibration) == made
    assert qatcore.onnx.compare(given, ir.from_proto(made), batches).batches == len(batches)
    assert ir.to_proto(given).SerializeToString(deterministic=True) == before


def test_one_calibration_serves_every_representation(tmp_path):
    """Large initializers in front of small ones, in a file, in memory, and in onnx_ir."""
    model = made(
        [helper.make_node("MatMul", ["x", "v"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])],
        [value("y", ["N", 64])],
        [tensor("v", onnx_models.normal(16, 64)), tensor("b", onnx_models.normal(64)), tensor("unread", W)],
    )
    onnx.save(model, tmp_path / "m.onnx")
    found = [qatcore.onnx.calibrate(m, [X]) for m in (model, tmp_path / "m.onnx", ir.from_proto(model))]
    assert found[0] == found[1] == found[2]


def test_weights_of_such_a_model_may_be_in_files(tmp_path, monkeypatch):
    """Also small ones, and wherever the program runs: another folder has a file of the same name."""
    model = made(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"])], [value("y", ["N", 16])], [tensor("b", np.ones(16, "f"))]
    )
    for name, factor in (("right", 1), ("wrong", 2)):
        (tmp_path / name).mkdir()
        copy = onnx.ModelProto()
        copy.CopyFrom(model)
        copy.graph.initializer[1].CopyFrom(tensor("b", np.full(16, factor, np.float32)))
        onnx.save_model(
            copy, tmp_path / name / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0
        )
    monkeypatch.chdir(tmp_path / "wrong")
    assert weights_alone(ir.load(tmp_path / "right" / "m.onnx")) == weights_alone(model)
    monkeypatch.chdir(tmp_path)
    given = ir.load(tmp_path / "right" / "m.onnx")
    (tmp_path / "right" / "m.data").unlink()
    with pytest.raises(InvalidArgumentError, match=r"^model: tensor '\w' cannot be read: "):
        weights_alone(given)


def test_threads_share_a_model():
    given = ir.from_proto(onnx_models.product())
    expected = weights_alone(given)
    found = []
    threads = [threading.Thread(target=lambda: found.append(weights_alone(given))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [expected] * 4


# --- large models -------------------------------------------------------------------------------------

LARGE = {(session, "_MOST_COPIED"): 0, (encoding, "_MOST_INSIDE"): 1000, (weights, "_MANY"): 16}


@pytest.mark.parametrize("where", [*LARGE, "all"], ids=str)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize(
    "options",
    [{}, {"weights": "int4"}, {"activations": "none"}, {"weights": "int4", "activations": "none"}, {"weights": "fp8"}],
    ids=str,
)
def test_large_models_get_the_same_codes(where, dtype, options, tmp_path, monkeypatch):
    model, batches = onnx_models.product(dtype=dtype), onnx_models.rows(dtype=dtype)
    onnx.save_model(model, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    expected = qatcore.onnx.quantize_model(onnx.load(tmp_path / "m.onnx"), batches, **options)
    for module, name in LARGE if where == "all" else [where]:
        monkeypatch.setattr(module, name, LARGE[module, name])
    for source in (tmp_path / "m.onnx", onnx.load(tmp_path / "m.onnx")):
        assert qatcore.onnx.quantize_model(source, batches, output=tmp_path / "q.onnx", **options) == expected
        written = onnx.load(tmp_path / "q.onnx")
        np.testing.assert_array_equal(run(written, batches[0])[0], run(expected, batches[0])[0])
        session.session_of(read_model(tmp_path / "q.onnx"))


def test_weights_beside_the_model_on_demand(tmp_path):
    model = onnx_models.product()
    for _ in range(2):  # also in place of the old ones
        found = qatcore.onnx.quantize_model(model, output=tmp_path / "q.onnx", activations="none", external_data=True)
        [data] = [path for path in tmp_path.iterdir() if path.suffix == ".data"]
        assert onnx.load(tmp_path / "q.onnx").graph.node == found.graph.node
    entries = [
        e for t in onnx.load(tmp_path / "q.onnx", load_external_data=False).graph.initializer for e in t.external_data
    ]
    assert all(int(entry.value) % 64 == 0 for entry in entries if entry.key == "offset")
    assert {entry.value for entry in entries if entry.key == "location"} == {data.name}
    qatcore.onnx.quantize_model(model, output=tmp_path / "q.onnx", activations="none")
    assert [path.name for path in tmp_path.iterdir()] == ["q.onnx"]
    with pytest.raises(InvalidArgumentError, match="external_data: expected an output"):
        qatcore.onnx.quantize_model(model, activations="none", external_data=True)


def test_files_of_others_stay(tmp_path):
    model = onnx_models.product()
    onnx.save_model(model, tmp_path / "q.onnx", save_as_external_data=True, location="q.onnx.data", size_threshold=0)
    before = (tmp_path / "q.onnx.data").read_bytes()
    weights_beside(tmp_path / "q.onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["q.onnx", "q.onnx.1.data", "q.onnx.data"]
    assert (tmp_path / "q.onnx.data").read_bytes() == before


@pytest.mark.parametrize("fails", ["_before", "write_data"])
def test_a_disk_that_fills_up_leaves_the_old_files(fails, tmp_path, monkeypatch):
    weights_beside(tmp_path / "q.onnx")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encoding.Encoded, fails, full)
    with pytest.raises(OSError, match="No space left"):
        weights_beside(tmp_path / "q.onnx", per_tensor=True)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


# --- what models hold ---------------------------------------------------------------------------------


def test_functions_that_return_what_they_are_given():
    both = function("Both", ["a"], ["a", "n"], [helper.make_node("Neg", ["a"], ["n"])])
    nodes = [
        call("Both", ["x"], ["p", "n"]),
        helper.make_node("MatMul", ["p", "w"], ["m"]),
        helper.make_node("Add", ["m", "n"], ["y"]),
    ]
    model = made(nodes, [value("y", ["N", 16])], functions=[both])
    found = weights_alone(model)
    assert [each.name for each in found.graph.input] == ["x"]
    assert onnx_models.sqnr(by_hand() - X["x"], run(found, X)[0]) > 30
    same = function("Same", ["a"], ["a"], [])
    nodes = [helper.make_node("MatMul", ["x", "w"], ["h"]), call("Same", ["h"], ["y"])]
    found = weights_alone(made(nodes, [value("y", ["N", 16]), value("h", ["N", 16])], functions=[same]))
    assert [each.name for each in found.graph.output] == ["y", "h"]
    np.testing.assert_array_equal(*run(found, X))


@pytest.mark.parametrize("outputs", [["y", ""], ["", "y"], ["y"]])
def test_calls_may_leave_outputs_out(outputs):
    two = function(
        "Two", ["a"], ["r", "n"], [helper.make_node("Relu", ["a"], ["r"]), helper.make_node("Neg", ["a"], ["n"])]
    )
    model = made(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), call("Two", ["h"], outputs)],
        [value("y", ["N", 16])],
        functions=[two],
    )
    expected = -by_hand() if outputs[0] == "" else np.maximum(by_hand(), 0)
    assert onnx_models.sqnr(expected, run(weights_alone(model), X)[0]) > 30


def test_names_of_functions_and_branches_do_not_meet():
    inner = function(
        "Inner", ["a"], ["o"], [helper.make_node("Relu", ["a"], ["t"]), helper.make_node("Neg", ["t"], ["o"])]
    )
    branches = {
        f"{name}_branch": helper.make_graph([helper.make_node(op, ["h"], ["t"])], name, [], [value("t", ["A", 16])])
        for name, op in (("then", "Neg"), ("else", "Relu"))
    }
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["g"]),
        call("Inner", ["g"], ["h"]),
        helper.make_node("If", ["condition"], ["z"], **branches),
        helper.make_node("MatMul", ["z", "w"], ["y"]),
    ]
    condition = value("condition", [], TensorProto.BOOL)
    model = made(nodes, [value("y", ["N", 16])], inputs=[condition], functions=[inner])
    found = run(weights_alone(model), {**X, "condition": np.array(True)})[0]
    assert onnx_models.sqnr(np.maximum(by_hand(), 0) @ W, found) > 30


@pytest.mark.parametrize("behind", [[], ["Identity"], ["Identity", "Identity"]])
def test_texts_stay(behind):
    nodes, name = [helper.make_node("Constant", [], ["s"], value_string="text")], "s"
    for operator in behind:
        nodes.append(helper.make_node(operator, [name], [f"{name}s"]))
        name += "s"
    nodes += [helper.make_node("Identity", ["t"], ["u"]), helper.make_node("MatMul", ["x", "w"], ["y"])]
    outputs = [value("y", ["N", 16]), value(name, [], TensorProto.STRING), value("u", [2], TensorProto.STRING)]
    model = made(nodes, outputs, [tensor("t", np.array(["a", "b"], object))])
    for found in (weights_alone(model), qatcore.onnx.quantize_model(model, [X])):
        _, text, others = run(found, X)
        assert text == "text" and list(others) == ["a", "b"]


def test_a_constant_that_is_an_output_is_a_weight():
    node = helper.make_node("Constant", [], ["v"], value=tensor("v", W))
    model = made([node, helper.make_node("MatMul", ["x", "v"], ["y"])], [value("y", ["N", 16]), value("v", [16, 16])])
    found = weights_alone(model)
    assert any(each.op_type == "DequantizeLinear" for each in found.graph.node)
    np.testing.assert_array_equal(run(found, X)[1], W)


def test_what_is_said_of_large_tensors_is_written(tmp_path):
    table = tensor("table", onnx_models.normal(50, 16))
    table.doc_string = "a table"
    table.metadata_props.add(key="of", value="rows")
    nodes = [
        helper.make_node("Gather", ["table", "i"], ["g"]),
        helper.make_node("Add", ["x", "g"], ["s"]),
        helper.make_node("MatMul", ["s", "w"], ["y"]),
    ]
    model = made(nodes, [value("y", ["N", 16])], [table], [value("i", ["N"], TensorProto.INT64)])
    found = qatcore.onnx.quantize_model(model, activations="none", output=tmp_path / "q.onnx")
    assert onnx.load(tmp_path / "q.onnx") == found
    [stored] = [each for each in found.graph.initializer if each.name == "table"]
    assert (stored.doc_string, stored.metadata_props[0].value) == ("a table", "rows")


def test_annotations_stay_with_their_tensors():
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    model = made(nodes, [value("y", ["N", 16])], [tensor("hs", np.float32(1)), tensor("ws", np.float32(1))])
    for name in ("h", "w"):
        annotation = model.graph.quantization_annotation.add(tensor_name=name)
        annotation.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value=f"{name}s")
    found = qatcore.onnx.quantize_model(model, [X])
    tensors = {name for node in found.graph.node for name in node.output}
    assert {each.tensor_name for each in found.graph.quantization_annotation} <= tensors
    assert not {"hs", "ws"} & {each.name for each in found.graph.initializer}
    assert len(prepared(model).graph.quantization_annotation) == 2
