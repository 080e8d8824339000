"""What is ahead of a logarithm stays in float: codes have no relative accuracy."""

import json

import numpy as np
import onnx
import onnx_models
import pytest
from insides import description, kernels_of, prepared, read_model
from onnx import helper
from onnx_models import normal, run, sqnr, tensor, value

import qatcore.onnx
from qatcore._cli.command import main
from qatcore._onnx.logarithms import ahead_of_logarithms

pytestmark = pytest.mark.any_build

N = 256
#: Sounds: a few sines of very different loudness.
TIME = np.arange(N) / N
RNG = np.random.default_rng(5)
SOUNDS = np.stack(
    [
        sum(10.0 ** RNG.uniform(-3, 0) * np.sin(2 * np.pi * RNG.uniform(3, 110) * TIME + i) for i in range(4))
        for _ in range(64)
    ]
).astype(np.float32)


def spectrogram(end="Log"):
    """The logarithm of a filter bank's output on a power spectrum, and two layers behind it."""
    angles = 2 * np.pi * np.outer(np.arange(N), np.arange(64)) / N
    window = np.hanning(N)[:, None]
    bank = np.maximum(0, 1 - np.abs(np.arange(64)[:, None] - np.linspace(2, 60, 20)[None]) / 4)
    return onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "cosines"], ["re"], "cosine"),
            helper.make_node("MatMul", ["x", "sines"], ["im"], "sine"),
            helper.make_node("Mul", ["re", "re"], ["re2"], "square1"),
            helper.make_node("Pow", ["im", "two"], ["im2"], "square2"),
            helper.make_node("Add", ["re2", "im2"], ["power"], "sum"),
            helper.make_node("MatMul", ["power", "bank"], ["energy"], "filters"),
            helper.make_node("Clip", ["energy", "floor"], ["floored"], "clip"),
            helper.make_node(*([end, ["floored"]] if end == "Log" else [end, ["floored", "third"]]), ["l"], "log"),
            helper.make_node("MatMul", ["l", "w1"], ["m1"], "first"),
            helper.make_node("Relu", ["m1"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "w2"], ["y"], "second"),
        ],
        [value("x", ["B", N])],
        [value("y", ["B", 5])],
        [
            tensor("cosines", (window * np.cos(angles)).astype(np.float32)),
            tensor("sines", (window * np.sin(angles)).astype(np.float32)),
            tensor("bank", bank.astype(np.float32)),
            tensor("two", np.float32(2)),
            tensor("third", np.float32(1 / 3)),
            tensor("floor", np.float32(1e-8)),
            tensor("w1", normal(20, 16) / 4),
            tensor("w2", normal(16, 5) / 4),
        ],
        17,
    )


SPECTRUM = {"cosine", "sine", "filters"}


@pytest.mark.parametrize("end", ["Log", "Pow"])
def test_a_spectrum_stays_in_float(end):
    model = spectrogram(end)
    made = qatcore.onnx.quantize_model(model, SOUNDS)
    about = description(made)
    assert set(about["relative"]) == SPECTRUM
    assert set(about["nodes"]) == {"first", "second"}
    expected = run(model, {"x": SOUNDS})[0]
    assert sqnr(expected, run(made, {"x": SOUNDS})[0]) > 30
    # Codes of 16 bits are fine enough.
    assert description(qatcore.onnx.quantize_model(model, SOUNDS, activations="uint16"))["relative"] == []


def test_a_spectrum_in_codes_would_be_lost(monkeypatch):
    monkeypatch.setattr("qatcore._onnx.quantization.ahead_of_logarithms", lambda graph: set())
    made = qatcore.onnx.quantize_model(spectrogram(), SOUNDS)
    assert len(description(made)["nodes"]) == 5
    assert sqnr(run(spectrogram(), {"x": SOUNDS})[0], run(made, {"x": SOUNDS})[0]) < 20


def graph_of(*nodes, outputs=("y",)):
    """A model of nodes; its products have the weight w."""
    return onnx_models.model(
        [helper.make_node(operator, inputs, made, name, **more) for operator, inputs, made, name, more in nodes],
        [value("x", ["N", 8])],
        [value(name, [None, None]) for name in outputs],
        [
            tensor("w", normal(8, 8)),
            tensor("half", np.float32(0.5)),
            tensor("low", np.float32(0)),
            tensor("six", np.float32(6)),
        ],
        17,
    )


def found(*nodes):
    return ahead_of_logarithms(read_model(prepared(graph_of(*nodes))).graph)


MATMUL = ("MatMul", ["x", "w"], ["m"], "product", {})


@pytest.mark.parametrize(
    "between",
    [
        [("Softmax", ["m"], ["s"], "softmax", {})],
        [("Exp", ["m"], ["s"], "exp", {})],
        [("Sigmoid", ["m"], ["s"], "sigmoid", {})],
        [("Exp", ["m"], ["e"], "exp", {}), ("ReduceSum", ["e"], ["s"], "sum", {})],
    ],
)
def test_a_log_softmax_and_its_like_do_not_count(between):
    assert found(MATMUL, *between, ("Log", ["s"], ["y"], "log", {})) == set()


def test_layers_ahead_of_an_activation_do_not_count():
    layers = [("Relu", ["m"], ["r"], "relu", {}), ("MatMul", ["r", "w"], ["n"], "last", {})]
    assert found(MATMUL, *layers, ("Log", ["n"], ["y"], "log", {})) == {"last"}
    layers[0] = ("Clip", ["m", "low", "six"], ["r"], "relu6", {})
    assert found(MATMUL, *layers, ("Log", ["n"], ["y"], "log", {})) == {"last"}
    # A floor alone is none.
    layers[0] = ("Clip", ["m", "low"], ["r"], "floor", {})
    assert found(MATMUL, *layers, ("Log", ["n"], ["y"], "log", {})) == {"product", "last"}


def test_square_roots_do_not_count():
    assert found(MATMUL, ("Pow", ["m", "half"], ["y"], "root", {})) == set()
    assert found(MATMUL, ("Sqrt", ["m"], ["y"], "root", {})) == set()


def test_a_model_of_such_products_alone_is_quantised():
    model = graph_of(MATMUL, ("Abs", ["m"], ["a"], "abs", {}), ("Log", ["a"], ["y"], "log", {}))
    made = qatcore.onnx.quantize_model(model, np.ones((8, 8), np.float32))
    assert description(made)["relative"] == []
    assert set(description(made)["nodes"]) == {"product"}


def test_the_report_says_what_stays_in_float(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(spectrogram(), "model.onnx")
    np.save("x.npy", SOUNDS)
    arguments = ["quantize", "model.onnx", "--data", "x.npy", "-o", "q.onnx"]
    assert main(arguments) == 0
    assert "in float     3 nodes ahead of a logarithm, which needs relative accuracy" in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert set(json.loads(capsys.readouterr().out)["ahead_of_logarithm"]) == SPECTRUM
    whys = {kernel.node: kernel.why for kernel in kernels_of(onnx.load("q.onnx"))}
    assert whys["filters"] == "a logarithm needs its relative accuracy"
