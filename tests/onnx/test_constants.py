"""Weights that something keeps from being plain constants: inputs with a default, and outputs."""

import json

import numpy as np
import onnx
import onnx_models
import pytest
from insides import Graph, description, initializers_among_inputs, prepared
from onnx import helper
from onnx_models import run, sqnr, tensor, value

import qatcore.onnx
from qatcore._cli.command import main
from qatcore.onnx import ModelWarning

pytestmark = pytest.mark.any_build


def products(ir_version=8, listed=("w", "v", "half")):
    """Two products and a factor; initializers are inputs too."""
    return onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], "first"),
            helper.make_node("Mul", ["p", "half"], ["h"]),
            helper.make_node("MatMul", ["h", "v"], ["y"], "second"),
        ],
        [value("x", ["N", 48]), *(value(n, s) for n, s in SHAPES.items() if n in listed)],
        [value("y", ["N", 5])],
        [
            tensor("w", onnx_models.normal(48, 24)),
            tensor("v", onnx_models.normal(24, 5)),
            tensor("half", np.float32(0.5)),
        ],
        ir_version=ir_version,
    )


SHAPES = {"w": [48, 24], "v": [24, 5], "half": []}


@pytest.mark.parametrize("ir_version", [4, 8, 10])
def test_inputs_that_have_initializers_are_taken_for_constants(ir_version):
    model, batches = products(ir_version), onnx_models.rows()
    with pytest.warns(ModelWarning, match=r"no longer inputs: w, v, half; keep_inputs \(--keep-inputs\) keeps"):
        made = qatcore.onnx.quantize_model(model, batches)
    assert [each.name for each in made.graph.input] == ["x"]
    assert list(description(made)["nodes"]) == ["first", "second"]
    assert sqnr(run(model, batches[0])[0], run(made, batches[0])[0]) > 30
    assert qatcore.onnx.compare(model, made, batches).outputs["y"][0] > 30


def test_they_may_stay_inputs():
    model, batches = products(listed=("w", "half")), onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches, keep_inputs=True)
    assert [each.name for each in made.graph.input] == ["x", "w", "half"]
    assert list(description(made)["nodes"]) == ["second"]
    other = {**batches[0], "w": -onnx_models.normal(48, 24), "half": np.array(0.4, np.float32)}
    assert sqnr(run(model, other)[0], run(made, other)[0]) > 10


def test_a_lone_number_may_well_be_an_input_with_a_default():
    model, batches = products(listed=("half",)), onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches)
    assert [each.name for each in made.graph.input] == ["x", "half"]
    assert initializers_among_inputs(model) == []
    # Where there was no choice it says nothing.
    assert initializers_among_inputs(products(3, listed=SHAPES)) == ["w", "v", "half"]


def test_the_command(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(products(), "model.onnx")
    np.save("x.npy", onnx_models.rows()[0]["x"])
    command = ["quantize", "model.onnx", "--data", "x.npy", "-o", "q.onnx", "--no-check", "--json"]
    assert main(command) == 0
    assert "w, v, half" in json.loads(capsys.readouterr().out)["notices"][0]
    assert main([*command, "--keep-inputs"]) == 2
    assert "its weights are an input, which keep_inputs keeps" in capsys.readouterr().err
    assert main(["inspect", "model.onnx", "--json"]) == 0
    assert [row["node"] for row in json.loads(capsys.readouterr().out)["nodes"]] == ["first", "second"]


def seen(form, how):
    """A product whose weight is what comes of a constant, which is an output too, or read inside of a branch."""
    shape = [24, 48] if form == "Transpose" else [48, 24]
    nodes = [helper.make_node(form, ["w"], ["v"])] if form else []
    name = "v" if form else "w"
    nodes.append(helper.make_node("MatMul", ["x", name], ["y"], "product"))
    outputs = [value("y", ["N", 24])]
    if how == "output":
        outputs.append(value(name, [48, 24]))
    else:
        then, otherwise = (
            helper.make_graph([helper.make_node(op, [name], [op])], op, [], [value(op, [48, 24])])
            for op in ("Neg", "Abs")
        )
        nodes.append(helper.make_node("If", ["yes"], ["z"], then_branch=then, else_branch=otherwise))
        outputs.append(value("z", [48, 24]))
    return onnx_models.model(
        nodes,
        [value("x", ["N", 48])],
        outputs,
        [tensor("w", onnx_models.normal(*shape)), *([tensor("yes", np.bool_(True))] if how == "branch" else [])],
    )


@pytest.mark.parametrize("how", ["output", "branch"])
@pytest.mark.parametrize("form", ["", "Identity", "Transpose"])
def test_a_weight_that_others_see_too_is_a_constant(form, how):
    model, batches = seen(form, how), onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches)
    onnx.checker.check_model(made, full_check=True)
    assert list(description(made)["nodes"]) == ["product"]
    (exact, weight), (found, same) = run(model, batches[0]), run(made, batches[0])
    np.testing.assert_array_equal(same, weight)
    assert 30 < sqnr(exact, found) < 60
    # No float copy of it is left that nothing reads.
    kinds = [t.name for t in made.graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) > 1]
    assert kinds == ["w"]
    ready = prepared(model)
    assert Graph(ready).value_of(onnx_models.node_of(ready, "product").input[1]).shape == (48, 24)
