"""Products on x86 without VNNI saturate in 16 bits; with `no_saturation` they cannot, by an emulation of the pairs."""

import json

import numpy as np
import onnx
import onnx_models
import pytest
from insides import description
from onnx import helper
from onnx_models import dequantized, node_of, sqnr, tensor, value

import qatcore.onnx
from qatcore._cli.command import main

pytestmark = pytest.mark.any_build


def layer(kind, weight):
    """Return a model of one product with these weights, whose result is no output, and its input."""
    shape = {"Conv": ["N", weight.shape[1], 8, 8], "depthwise": ["N", len(weight), 8, 8]}.get(kind)
    options = {"group": len(weight)} if kind == "depthwise" else {"transB": 1} if kind == "Gemm" else {}
    operator = "Conv" if kind == "depthwise" else kind
    shape = shape or ["N", weight.shape[1 if kind == "Gemm" else 0]]
    made = onnx_models.model(
        [
            helper.make_node(operator, ["x", "w"], ["p"], "product", **options),
            helper.make_node("Softplus", ["p"], ["y"]),
        ],
        [value("x", shape)],
        [value("y", [None] * len(shape))],
        [tensor("w", weight)],
    )
    return made, np.abs(onnx_models.rng().standard_normal([16, *shape[1:]])).astype(np.float32)


def rows(kind, codes):
    """Return the codes of each channel in the orders in which ONNX Runtime may multiply them.

    It multiplies the channels of one place of a kernel, and then those of the next one.  An image may have four.
    """
    if kind == "MatMul":
        return [codes.T]
    if kind == "Gemm":  # stored as it is multiplied
        return [codes.T]
    last = np.moveaxis(codes, 1, -1)
    even = np.pad(last, [(0, 0)] * 3 + [(0, last.shape[-1] % 2)])
    return [each.reshape(len(codes), -1) for each in (last, even)]


def emulated(activations, weights):
    """Return a product as VPMADDUBSW and 32-bit sums compute it, and the exact one."""
    n = activations.size + activations.size % 2
    a, w = (np.resize(np.append(each, 0), n).astype(np.int64) for each in (activations, weights))
    products = a * w
    pairs = products[0::2] + products[1::2]
    return np.clip(pairs, -(2**15), 2**15 - 1).sum(), products.sum()


WEIGHTS = {
    "Conv": (24, 16, 3, 3),
    "Conv of an image": (24, 3, 3, 3),
    "Conv of odd channels": (16, 21, 1, 1),
    "Gemm": (24, 65),
    "MatMul": (64, 24),
}


@pytest.mark.parametrize("per_tensor", [False, True])
@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("name", WEIGHTS)
def test_no_pair_can_saturate(name, positive, per_tensor):
    kind = name.partition(" ")[0]
    weight = onnx_models.normal(*WEIGHTS[name])
    weight = np.abs(weight) if positive else weight
    model, x = layer(kind, weight)
    found = {}
    for option in (False, True):
        options = {"per_tensor": per_tensor, "no_saturation": option, "bias_correction": False}
        made = qatcore.onnx.quantize_model(model, x, **options)
        values, codes, _ = dequantized(made, node_of(made, "product"), 1)
        if kind == "Gemm":
            values = values.T
        elif kind == "Conv":  # an image gets a fourth channel
            values, codes = values[:, : weight.shape[1]], codes[:, : weight.shape[1]]
        largest = max(_largest(order) for order in rows(kind, codes))
        # The worst activations, and random ones: 255 where a weight has the pair's sign.
        saturated = []
        for row in (row for order in rows(kind, codes) for row in order):
            for activations in (255 * (row > 0), 255 * (row < 0), onnx_models.rng().integers(0, 256, row.size)):
                got, exact = emulated(activations, row)
                saturated.append(got != exact)
        found[option] = any(saturated), largest, sqnr(weight, values)
        about = description(made).get("saturation")
        assert about == ({"limit": 32767, "largest": 255 * largest} if option else None)
    assert (found[False][0], found[True][0]) == (True, False)
    assert found[True][1] <= 128 < found[False][1]
    # All weights with 7 bits would lose 6 dB.
    assert found[False][2] - found[True][2] < 4.5


def _largest(codes):
    filled = np.pad(codes.astype(np.int64), ((0, 0), (0, codes.shape[1] % 2))).reshape(len(codes), -1, 2)
    first, second = filled[..., 0], filled[..., 1]
    return int(np.where(first * second > 0, np.abs(first) + np.abs(second), 0).max())


def test_channels_that_cannot_saturate_and_depthwise_ones_stay_as_they_are():
    weight = onnx_models.normal(16, 8, 3, 3)
    weight[::2, 1::2] *= 1e-3  # in every second channel each pair has a large and a small weight
    for kind, given, same in (("Conv", weight, slice(0, None, 2)), ("depthwise", weight[:, :1], slice(None))):
        model, x = layer(kind, given)
        codes = []
        for option in (False, True):
            made = qatcore.onnx.quantize_model(model, x, no_saturation=option, bias_correction=False)
            codes.append(dequantized(made, node_of(made, "product"), 1)[1])
        np.testing.assert_array_equal(codes[0][same], codes[1][same])
    assert (codes[0] == codes[1]).all()


@pytest.mark.parametrize("positive", [False, True])
def test_sums_of_channels_are_kept(positive):
    weight = onnx_models.normal(32, 64, 3, 3)
    weight = np.abs(weight) if positive else weight
    model, x = layer("Conv", weight)
    made = qatcore.onnx.quantize_model(model, x, no_saturation=True, bias_correction=False)
    values, _, scale = dequantized(made, node_of(made, "product"), 1)
    off = (values.astype(np.float64) - weight).sum(axis=(1, 2, 3)) / scale.reshape(-1)
    # Codes that exceeded 127 were clipped before; such a channel is up to a step off.
    assert np.abs(off).max() < 1.5


def test_the_command_proves_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    model, x = layer("Conv", np.abs(onnx_models.normal(24, 16, 3, 3)))
    onnx.save(model, "model.onnx")
    np.save("x.npy", x)
    arguments = ["quantize", "model.onnx", "--data", "x.npy", "--no-saturation", "-o", "q.onnx"]
    assert main(arguments) == 0
    said = "\nsaturation   none: sums of two products reach 32,640 at most, and 16 bits hold 32,767\n"
    assert said in capsys.readouterr().out
    assert main([*arguments, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["saturation"] == {"limit": 32767, "largest": 32640}
    for options in (["--weights", "int4"], ["--activations", "none"], ["--activations", "fp8"]):
        assert main([*arguments, *options]) == 2
        assert "no_saturation: expected weights in int8 and activations in uint8 or int8" in capsys.readouterr().err
