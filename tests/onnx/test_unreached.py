"""Nodes that no sample reaches stay in float, and this is said."""

import json

import numpy as np
import onnx
import onnx_models
import pytest
from insides import description
from onnx import helper
from onnx_models import node_of, run, sqnr, tensor, value

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._cli.command import main
from qatcore.onnx import ModelWarning

pytestmark = pytest.mark.any_build


def finder(least, *, first=True):
    """A convolution, the images in which something is greater than a number, and two nodes for those alone."""
    nodes = [
        helper.make_node("ReduceMax", ["f"], ["most"], axes=[1, 2, 3], keepdims=0),
        helper.make_node("Greater", ["most", "least"], ["hit"]),
        helper.make_node("Compress", ["f", "hit"], ["found"], axis=0),
        helper.make_node("Conv", ["found", "w2"], ["c"], "crop"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("MaxPool", ["r"], ["m"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Flatten", ["m"], ["v"]),
        helper.make_node("MatMul", ["v", "w3"], ["boxes"], "box"),
    ]
    name = "Conv" if first else "Identity"
    before = helper.make_node(name, ["x", "w1"] if first else ["x"], ["f"], "backbone")
    return onnx_models.model(
        [before, *nodes],
        [value("x", ["N", 3, 6, 6])],
        [value("f", ["N", 3, 6, 6]), value("boxes", ["K", 4])],
        [
            tensor("w1", onnx_models.normal(3, 3, 1, 1)),
            tensor("w2", onnx_models.normal(5, 3, 3, 3) * 0.2),
            tensor("w3", onnx_models.normal(20, 4)),
            tensor("least", np.float32(least)),
        ][0 if first else 1 :],
    )


def images(n=8, batches=4):
    generator = onnx_models.rng()
    return [{"x": generator.standard_normal((n, 3, 6, 6)).astype(np.float32)} for _ in range(batches)]


@pytest.mark.parametrize(
    "options",
    [{}, {"activations": "int8", "weights": "int4"}, {"activations": "fp8", "weights": "fp8"}, {"max_drop": 50.0}],
)
def test_they_are_named_and_stay_in_float(options):
    with pytest.warns(ModelWarning, match="no sample reached these nodes, which stay in float: crop, box$"):
        made = qatcore.onnx.quantize_model(finder(1e9), images(), **options)
    assert description(made)["unreached"] == ["crop", "box"]
    assert list(description(made)["nodes"]) == ["backbone"]
    assert [node_of(made, name).input[1] for name in ("crop", "box")] == ["w2", "w3"]
    exact, found = run(finder(1e9), images()[0]), run(made, images()[0])
    assert sqnr(exact[0], found[0]) > 10
    assert found[1].shape == exact[1].shape == (0, 4)


def test_what_some_samples_reach_is_quantised():
    batches = images()
    least = float(np.quantile([run(finder(0.0), b)[0].max(axis=(1, 2, 3)) for b in batches], 0.9))
    hits = [len(run(finder(least), b)[1]) for b in batches]
    assert 0 in hits and sum(hits)
    made = qatcore.onnx.quantize_model(finder(least), batches)
    assert description(made)["unreached"] == []
    assert list(description(made)["nodes"]) == ["backbone", "crop", "box"]


def test_where_no_sample_reaches_any_node_there_is_nothing_to_quantise():
    with pytest.raises(InvalidArgumentError, match="there is nothing to quantise: no sample reached crop, box"):
        qatcore.onnx.quantize_model(finder(1e9, first=False), images())


def test_the_command_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(finder(1e9), "model.onnx")
    np.savez("data.npz", x=np.concatenate([batch["x"] for batch in images()]))
    command = ["quantize", "model.onnx", "--data", "data.npz", "-o", "q.onnx"]
    assert main(command) == 0
    assert "\nnote         no sample reached these nodes, which stay in float: crop, box\n" in capsys.readouterr().out
    assert main([*command, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["nodes"], said["unreached"]) == (1, ["crop", "box"])
    assert said["notices"] == ["calibration: no sample reached these nodes, which stay in float: crop, box"]


def test_a_calibration_of_several_machines_reaches_what_one_of_them_does():
    model, batches = finder(1e9), images()
    near = finder(0.0)
    shards = [qatcore.onnx.calibrate(near, [batch]) for batch in batches[:2]]
    shards[0].merge(shards[1])
    assert description(qatcore.onnx.quantize_model(near, calibration=shards[0]))["unreached"] == []
    calibration = qatcore.onnx.calibrate(model, batches)
    with pytest.warns(ModelWarning, match="crop, box"):
        qatcore.onnx.quantize_model(model, calibration=calibration)
