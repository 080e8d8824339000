"""Where a quantised model is slower than the float one, a line says so, and what has helped such models."""

import json
import re

import numpy as np
import onnx
import onnx_models
import pytest
from insides import why_slower
from onnx import helper
from onnx_models import tensor, value

import qatcore.onnx
from qatcore._cli.command import main

pytestmark = pytest.mark.any_build


def convolutions():
    """Two convolutions with what keeps codes from going on between them."""
    return onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "first", pads=[1] * 4),
            helper.make_node("Sigmoid", ["c"], ["s"]),
            helper.make_node("Conv", ["s", "w"], ["d"], "second", pads=[1] * 4),
            helper.make_node("Sigmoid", ["d"], ["y"]),
        ],
        [value("x", ["N", 16, 32, 32])],
        [value("y", ["N", 16, 32, 32])],
        [tensor("w", onnx_models.normal(16, 16, 3, 3) / 12)],
    )


def images():
    return onnx_models.rng().standard_normal((16, 16, 32, 32)).astype(np.float32)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "no product of 2 in float, but the rest is slower; try --exclude$"),
        (
            {"activations": "int8"},
            "no product of 2 in float, but the rest is slower; try --activations uint8, --exclude$",
        ),
        ({"exclude": ["second"]}, r"1 of 2 products run in float, \d+ conversions between; try --exclude$"),
        (
            {"activations": "none"},
            "quantised weights alone save memory, but seldom time; try --activations uint8",
        ),
        ({"weights": "fp8", "activations": "fp8"}, "ONNX Runtime has no FP8 products; try --weights int8 --activ"),
    ],
)
def test_what_is_said_is_what_onnx_runtime_makes_of_the_model(options, said):
    data = None if options.get("activations") == "none" else images()
    made = qatcore.onnx.quantize_model(convolutions(), data, bias_correction=False, **options)
    found = why_slower(made, 1.0, 1.5)
    assert re.match(said, found), found
    assert len(found) <= 87  # beside its name, on a line of 100
    assert why_slower(made, 1.5, 1.0) is None
    assert why_slower(made, 1.0, 1.04) is None


@pytest.mark.slow
def test_the_commands_say_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(convolutions(), "model.onnx")
    np.save("x.npy", images())
    # Products of FP8 are computed in float, and conversions cost many times as much.
    options = ["--weights", "fp8", "--activations", "fp8", "-o", "q.onnx"]
    assert main(["quantize", "model.onnx", "--data", "x.npy", *options]) == 0
    said = "\nslower       ONNX Runtime has no FP8 products; try --weights int8 --activations uint8\n"
    out = capsys.readouterr().out
    assert said in out
    assert "\nlatency      " in out
    assert main(["quantize", "model.onnx", "--data", "x.npy", *options, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["latency"]["quantized_ms"] > report["latency"]["float_ms"] > 0.0
    assert report["slower"] in said
    assert main(["quantize", "model.onnx", "--data", "x.npy", *options, "--json", "--no-check"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["latency"], report["slower"]) == (None, None)
    assert main(["compare", "model.onnx", "q.onnx", "--data", "x.npy"]) == 0
    assert said in capsys.readouterr().out
    assert qatcore.onnx.compare("model.onnx", "q.onnx", images()).slower in said


def test_models_of_sequences_are_not_timed(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model = onnx_models.product()
    model.graph.node.append(helper.make_node("SequenceConstruct", ["y"], ["s"]))
    del model.graph.output[:]
    model.graph.output.append(helper.make_tensor_sequence_value_info("s", onnx.TensorProto.FLOAT, ["N", 24]))
    onnx.save(model, "model.onnx")
    np.save("x.npy", onnx_models.rows()[0]["x"])
    assert main(["quantize", "model.onnx", "--data", "x.npy", "-o", "q.onnx", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["latency"] is None
