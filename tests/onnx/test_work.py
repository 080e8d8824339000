"""How many multiply-adds by weights a model does: all of them, also those that cannot be on codes."""

import numpy as np
import onnx
import onnx_models
import pytest
from onnx import helper
from onnx_models import normal, tensor, value

from qatcore._cli.command import main
from qatcore._onnx.model import read_model
from qatcore._onnx.quantization import Options, ready
from qatcore._onnx.work import all_multiply_adds

pytestmark = pytest.mark.any_build

STEPS, BATCH, INPUTS, HIDDEN = 6, 3, 7, 5


def work(exact, batch, **options):
    return sum(all_multiply_adds(ready(read_model(exact), Options(**options)), batch).values())


def recurrent(op, gates, outputs):
    """A recurrent layer, and a product that reads its last state."""
    return onnx_models.model(
        [
            helper.make_node(op, ["x", "w", "r"], outputs, "layer", hidden_size=HIDDEN),
            helper.make_node("MatMul", ["h", "m"], ["z"], "product"),
        ],
        [value("x", [STEPS, "N", INPUTS])],
        [value("z", [1, "N", 4])],
        [
            tensor("w", normal(1, gates * HIDDEN, INPUTS)),
            tensor("r", normal(1, gates * HIDDEN, HIDDEN)),
            tensor("m", normal(HIDDEN, 4)),
        ],
    )


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("first", ["", "y"])
def test_recurrent_layers_count(op, gates, first):
    batch = {"x": np.zeros((STEPS, BATCH, INPUTS), np.float32)}
    layer = STEPS * BATCH * gates * HIDDEN * (INPUTS + HIDDEN)
    assert work(recurrent(op, gates, [first, "h"]), batch) == layer + BATCH * HIDDEN * 4


def test_the_report_counts_them(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(recurrent("LSTM", 4, ["", "h"]), "model.onnx")
    np.savez("batch.npz", x=onnx_models.rng().standard_normal((STEPS, BATCH, INPUTS)).astype(np.float32))
    assert main(["quantize", "model.onnx", "--data", "batch.npz", "-o", "q.onnx", "--quiet", "--batch-size", "6"]) == 0
    share = 100 * BATCH * HIDDEN * 4 / (STEPS * BATCH * 4 * HIDDEN * (INPUTS + HIDDEN) + BATCH * HIDDEN * 4)
    assert f"{share:.1f} % of all multiply-adds by weights" in capsys.readouterr().out


@pytest.mark.parametrize(("op", "attributes"), [("MatMul", {}), ("Gemm", {}), ("Gemm", {"transA": 1})])
def test_products_whose_first_operand_is_constant_count(op, attributes):
    first = normal(8, 4).T.copy() if not attributes else normal(8, 4)
    exact = onnx_models.model(
        [
            helper.make_node(op, ["a", "x"], ["t"], "first", **attributes),
            helper.make_node("MatMul", ["t", "b"], ["y"], "second"),
        ],
        [value("x", [8, 6])],
        [value("y", [4, 5])],
        [tensor("a", first), tensor("b", normal(6, 5))],
    )
    assert work(exact, {"x": np.zeros((8, 6), np.float32)}) == 4 * 8 * 6 + 4 * 6 * 5


def test_weights_among_the_inputs_count():
    exact = onnx_models.model(
        [helper.make_node("MatMul", ["x", "w"], ["t"]), helper.make_node("MatMul", ["t", "v"], ["y"])],
        [value("x", ["N", 8]), value("w", [8, 6])],
        [value("y", ["N", 5])],
        [tensor("w", normal(8, 6)), tensor("v", normal(6, 5))],
    )
    assert work(exact, {"x": np.zeros((3, 8), np.float32)}, keep_inputs=True) == 3 * (8 * 6 + 6 * 5)


def test_samples_that_do_not_fill_a_batch_are_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    exact = onnx_models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        [value("x", [4, 8])],
        [value("y", [4, 6])],
        [tensor("w", normal(8, 6))],
    )
    onnx.save(exact, "model.onnx")
    np.save("data.npy", onnx_models.rng().standard_normal((10, 8)).astype(np.float32))
    for command in (
        ["calibrate", "model.onnx", "--data", "data.npy", "-o", "c.npz"],
        ["quantize", "model.onnx", "--data", "data.npy", "-o", "q.onnx"],
        ["compare", "model.onnx", "q.onnx", "--data", "data.npy"],
    ):
        assert main([*command, "--quiet"]) == 0
        assert "left out     2 samples at the end, too few for a batch" in capsys.readouterr().out
