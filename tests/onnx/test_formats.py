"""Activations with symmetric ranges, and with codes of 16 bits."""

import numpy as np
import onnx
import onnx_models
import pytest
from insides import Graph, description, scales_of
from onnx import helper
from onnx_models import normal, run, sqnr, tensor, value

import qatcore.onnx
from qatcore._cli.command import main

pytestmark = pytest.mark.any_build


def network():
    """Convolutions with a sum, a negative number, a hard swish and a PRelu between them."""
    return onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w1"], ["c1"], "first", pads=[1] * 4),
            helper.make_node("HardSigmoid", ["c1"], ["h"], "gate", alpha=1 / 6),
            helper.make_node("Mul", ["c1", "h"], ["s"], "swish"),
            helper.make_node("Conv", ["s", "w2"], ["c2"], "second", pads=[1] * 4),
            helper.make_node("PRelu", ["c2", "slopes"], ["p"], "prelu"),
            helper.make_node("Add", ["p", "s"], ["a"], "sum"),
            helper.make_node("Mul", ["a", "minus"], ["m"], "scaled"),
            helper.make_node("Conv", ["m", "w2"], ["c3"], "last"),
            helper.make_node("Softplus", ["c3"], ["y"], "end"),
        ],
        [value("x", ["N", 8, 12, 12])],
        [value("y", [None] * 4)],
        [
            tensor("w1", normal(16, 8, 3, 3) / 8),
            tensor("w2", normal(16, 16, 3, 3) / 12),
            tensor("slopes", np.full((16, 1, 1), 0.2, np.float32)),
            tensor("minus", np.float32(-0.5)),
        ],
    )


def images(n=16):
    return onnx_models.rng().standard_normal((n, 8, 12, 12)).astype(np.float32) + 0.5


@pytest.mark.parametrize(("activations", "zero"), [("int8", 0), ("uint8", 128), ("int16", 0), ("uint16", 2**15)])
def test_symmetric_ranges_have_one_zero_point(activations, zero):
    made = qatcore.onnx.quantize_model(network(), images(), activations=activations, symmetric=True)
    index = Graph(made)
    for node in made.graph.node:
        if node.op_type in {"QuantizeLinear", "DequantizeLinear"} and len(node.input) > 2:
            stored = index.value_of(node.input[2])
            # Weights are symmetric in int8.
            assert np.all(stored == (0 if stored.dtype == np.int8 else zero))
    assert description(made)["symmetric"] is True
    assert sqnr(run(network(), {"x": images()})[0], run(made, {"x": images()})[0]) > 25
    # Without the option, ranges are not symmetric.
    other = qatcore.onnx.quantize_model(network(), images(), activations=activations)
    assert {int(shift) for _, shift in scales_of(other).values()} != {zero}


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("kind", ["int16", "uint16"])
def test_codes_of_16_bits_cover_all_values(kind, symmetric):
    x = images()
    made = qatcore.onnx.quantize_model(
        network(), x, activations=kind, symmetric=symmetric, method="kl", bias_correction=False
    )
    scale, zero = scales_of(made)["x"]
    assert (zero.dtype, made.opset_import[0].version) == (np.dtype(kind), 21)
    low, high = (0.0, max(abs(x.min()), x.max())) if symmetric else (x.min(), x.max())
    steps = 2**15 - 1 if symmetric else 2**16 - 1
    assert scale == pytest.approx((high - low) / steps, rel=1e-6)
    least = np.iinfo(kind).min
    assert int(zero) == ((0 if least else 2**15) if symmetric else round(least - low / scale))
    # What is lost is what the weights lose.
    alone = qatcore.onnx.quantize_model(network(), activations="none")
    exact, expected, found = (run(model, {"x": x})[0] for model in (network(), alone, made))
    assert sqnr(expected, found) > 60
    assert abs(sqnr(exact, expected) - sqnr(exact, found)) < 0.5


def test_a_tensor_of_zeros_has_a_scale(tmp_path):
    x = np.zeros((4, 8, 12, 12), np.float32)
    for kind in ("int16", "uint16"):
        made = qatcore.onnx.quantize_model(network(), x, activations=kind, symmetric=True, bias_correction=False)
        assert np.isfinite(run(made, {"x": x})[0]).all()


def test_16_bits_beside_integers_are_told_to_be_slow(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "model.onnx")
    np.save("x.npy", images())
    arguments = ["quantize", "model.onnx", "--data", "x.npy", "-o", "q.onnx"]
    assert main([*arguments, "--activations", "uint16"]) == 0
    assert "in integers" not in capsys.readouterr().out
    assert main(["inspect", "q.onnx"]) == 0
    assert "uint16" in capsys.readouterr().out
    assert main([*arguments, "--activations", "none", "--symmetric"]) == 2
    assert "--symmetric is for activations" in capsys.readouterr().err


def test_one_calibration_serves_all_formats():
    calibration = qatcore.onnx.calibrate(network(), images())
    for kind in ("uint8", "int8", "uint16", "int16", "fp8"):
        for symmetric in (False, True):
            options = {"activations": kind, "symmetric": symmetric, "bias_correction": False}
            if kind != "fp8":
                made = qatcore.onnx.quantize_model(network(), calibration=calibration, **options)
                assert made == qatcore.onnx.quantize_model(network(), images(), **options)
