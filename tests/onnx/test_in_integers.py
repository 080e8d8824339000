"""What ONNX Runtime computes on integers is counted and told, and why the rest is in float."""

import json

import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
from insides import kernels_of
from onnx import helper
from onnx_models import normal, tensor, value

import qatcore.onnx
from qatcore._cli.command import main

pytestmark = pytest.mark.any_build

VERSION = onnxruntime.__version__


def network():
    """Four convolutions: of one channel, of sixteen, one to exclude, and one behind a Softplus."""
    return onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w1"], ["c1"], "narrow", pads=[1] * 4),
            helper.make_node("Relu", ["c1"], ["r1"], "relu"),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], "wide", pads=[1] * 4),
            helper.make_node("Conv", ["c2", "w2"], ["c3"], "excluded", pads=[1] * 4),
            helper.make_node("Softplus", ["c3"], ["s"], "softplus"),
            helper.make_node("Conv", ["s", "w2"], ["c4"], "behind", pads=[1] * 4),
            helper.make_node("Softplus", ["c4"], ["y"], "end"),
        ],
        [value("x", ["N", 1, 16, 16])],
        [value("y", ["N", 16, 16, 16])],
        [tensor("w1", normal(16, 1, 3, 3) / 3), tensor("w2", normal(16, 16, 3, 3) / 12)],
    )


def images(n=8):
    return onnx_models.rng().standard_normal((n, 1, 16, 16)).astype(np.float32)


def test_each_kernel_is_told_and_why_some_are_in_float():
    made = qatcore.onnx.quantize_model(network(), images(), exclude=["excluded"])
    found = {kernel.node: kernel for kernel in kernels_of(made)}
    assert {name: (found[name].computes_on, found[name].why) for name in ("narrow", "wide", "excluded", "behind")} == {
        "narrow": ("floats", "it has one or two channels, and is faster in float"),
        "wide": ("codes", ""),
        "excluded": ("floats", "it is not quantised"),
        "behind": ("codes", ""),
    }
    assert (found["softplus"].computes_on, found["softplus"].why) == ("floats", "ONNX Runtime has no kernel on codes")
    assert found["r1_quantized_QuantizeLinear"].computes_on == "conversion"
    assert {found[name].kernel for name in ("wide", "behind")} == {"QLinearConv"}


def test_kernels_have_the_names_of_their_nodes_whatever_is_fused_with_them():
    model = onnx_models.convolutions()
    made = qatcore.onnx.quantize_model(model, onnx_models.images(16))
    for each, kind in ((model, "floats"), (made, "codes")):
        found = {kernel.node for kernel in kernels_of(each) if kernel.computes_on == kind}
        assert found >= {"first", "second", "last"}


def test_weights_alone_are_computed_in_float():
    made = qatcore.onnx.quantize_model(onnx_models.product(), weights="int4", activations="none")
    [kernel] = [kernel for kernel in kernels_of(made) if kernel.kernel == "MatMulNBits"]
    assert kernel.computes_on == "floats"


def test_a_pool_behind_what_is_in_float_is_in_float():
    """On codes, ONNX Runtime takes many times as long for it, unless convolutions surround it."""
    pooled = network()
    pooled.graph.node[1].CopyFrom(helper.make_node("MaxPool", ["t"], ["r1"], "pool", kernel_shape=[2, 2]))
    pooled.graph.node.insert(1, helper.make_node("Tanh", ["c1"], ["t"], "tanh"))
    pooled.graph.output[0].CopyFrom(value("y", [None] * 4))
    made = qatcore.onnx.quantize_model(pooled, images())
    found = {kernel.node: kernel.computes_on for kernel in kernels_of(made)}
    assert (found["narrow"], found["pool"], found["wide"]) == ("floats", "floats", "codes")


def test_the_commands_tell_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "model.onnx")
    np.save("x.npy", images())
    arguments = ["quantize", "model.onnx", "--data", "x.npy", "--exclude", "excluded", "-o", "q.onnx"]
    assert main(arguments) == 0
    # One channel is a sixteenth of the work of sixteen.
    share = 100.0 * 2 * 16 / (1 + 3 * 16)
    said = f"\nin integers  2 of 4 products, {share:.1f} % of all multiply-adds, in ONNX Runtime {VERSION}\n"
    assert said in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["in_integers"]
    assert report.pop("share") == pytest.approx(share / 100.0)
    assert report == {"products": 2, "of": 4, "conversions": 4, "runtime": VERSION}
    assert main([*arguments, "--no-check"]) == 0
    assert "in integers" not in capsys.readouterr().out
    assert main(["inspect", "--runtime", "q.onnx"]) == 0
    title, _, *rows = capsys.readouterr().out.splitlines()
    # One more than the model has: a division keeps the runtime from quantising what was excluded.
    assert title == f"ONNX Runtime {VERSION}: 2 of 7 nodes on codes, 4 conversions"
    assert [row.split()[:3] for row in rows if row.startswith("wide")] == [["wide", "QLinearConv", "codes"]]
    assert main(["inspect", "--runtime", "q.onnx", "--json"]) == 0
    kernels = json.loads(capsys.readouterr().out)["kernels"]
    assert {kernel["computes_on"] for kernel in kernels} == {"codes", "floats", "conversion"}
    assert main(["inspect", "--runtime", "model.onnx"]) == 0
    assert " 0 of " in capsys.readouterr().out
    assert main(["calibrate", "model.onnx", "--data", "x.npy", "-o", "c.npz"]) == 0
    capsys.readouterr()
    assert main(["inspect", "--runtime", "c.npz"]) == 2
    assert "c.npz: --runtime needs an ONNX model, but this is a calibration" in capsys.readouterr().err
