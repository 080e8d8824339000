"""Models for other runtimes: where codes are, in which form, and what a runtime cannot do."""

import json

import numpy as np
import onnx
import onnx_models
import pytest
from insides import Graph, description, scales_of
from onnx import TensorProto, helper
from onnx_models import AS_WRITTEN, normal, run, sqnr, tensor, value

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._cli.command import main

pytestmark = pytest.mark.any_build

X = onnx_models.rng().standard_normal((16, 3, 12, 12)).astype(np.float32)
CODES = {"QuantizeLinear", "DequantizeLinear"}


def network(opset=14):
    """Convolutions with hard swish, SiLU, a residual sum, a Concat, a PRelu and a pooled head."""
    return onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1] * 4),
            helper.make_node("HardSwish", ["c1"], ["h"], "swish"),
            helper.make_node("Conv", ["h", "w2"], ["c2"], "second", pads=[1] * 4),
            helper.make_node("Sigmoid", ["c2"], ["g"], "gate"),
            helper.make_node("Mul", ["c2", "g"], ["s"], "silu"),
            helper.make_node("Conv", ["s", "w2"], ["c3"], "third", pads=[1] * 4),
            helper.make_node("Add", ["c3", "s"], ["a"], "sum"),
            helper.make_node("Relu", ["a"], ["r"], "relu"),
            helper.make_node("Concat", ["r", "h"], ["k"], "join", axis=1),
            helper.make_node("MaxPool", ["k"], ["m"], "pool", kernel_shape=[2, 2]),
            helper.make_node("Conv", ["m", "w4"], ["c4"], "fourth"),
            helper.make_node("PRelu", ["c4", "slopes"], ["p"], "prelu"),
            helper.make_node("GlobalAveragePool", ["p"], ["q"], "average"),
            helper.make_node("Flatten", ["q"], ["f"], "flat"),
            helper.make_node("Gemm", ["f", "w5", "b5"], ["y"], "head"),
        ],
        [value("x", ["N", 3, 12, 12])],
        [value("y", ["N", 10])],
        [
            tensor("w1", normal(8, 3, 3, 3) / 3),
            tensor("b1", normal(8) / 4),
            tensor("w2", normal(8, 8, 3, 3) / 8),
            tensor("w4", normal(16, 16, 1, 1) / 4),
            tensor("slopes", np.linspace(0.1, 0.4, 16, dtype=np.float32).reshape(16, 1, 1)),
            tensor("w5", normal(16, 10)),
            tensor("b5", normal(10)),
        ],
        opset,
    )


def values_of(model, names):
    """Return tensors of a model on all of the data, by their names."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    del whole.graph.output[:]
    whole.graph.output.extend(value(name, [None] * 4) for name in names)
    return dict(zip(names, run(whole, {"x": X}), strict=True))


def weights_of(made):
    """Return the number of scales of the weight of each product, and what makes its bias, by its name."""
    index, found = Graph(made), {}
    for node in made.graph.node:
        if node.op_type in {"Conv", "Gemm"}:
            weight, bias = (index.makers.get(name) for name in (*node.input, "", "")[1:3])
            found[node.name] = index.value_of(weight.input[1]).size, bias and bias.op_type
    return found


def read_by(made, name):
    """Return what a node reads: the tensors whose codes it reads, or "float" where it reads no codes."""
    index = Graph(made)
    [node] = [node for node in made.graph.node if node.name == name]
    makers = [index.makers.get(source) for source in node.input if source not in index.constants]
    return [
        index.makers[maker.input[0]].input[0] if maker is not None and maker.op_type == "DequantizeLinear" else "float"
        for maker in makers
    ]


@pytest.mark.parametrize(
    ("target", "coded"),
    [("openvino", {"x", "h", "c2", "g", "s", "r", "p", "q"}), ("tensorrt", {"x", "h", "s", "r", "p", "q"})],
)
def test_codes_stand_ahead_of_what_computes_on_them(target, coded):
    made = qatcore.onnx.quantize_model(network(), X, target=target)
    found = scales_of(made)
    assert set(found) == coded
    assert description(made)["target"] == target
    assert {node.op_type for node in made.graph.node} >= {"HardSwish", "Relu", "PRelu", "Gemm"}
    # The third convolution and the sum behind it are one kernel, which reads the other term in codes.
    assert read_by(made, "sum") == ["float", "s"]
    # All around the Concat has one scale, so that nothing needs codes between it and the convolution.
    assert found["r"] == found["h"]
    assert read_by(made, "join") == ["r", "h"]
    assert read_by(made, "pool") == ["float"]
    assert all(zero == 0 for _, zero in found.values())
    assert weights_of(made) == {"first": (8, None), "second": (8, None), "third": (8, None), "fourth": (16, None)} | {
        "head": (10, None)
    }
    exact, quantized = (run(model, {"x": X}, AS_WRITTEN)[0] for model in (network(), made))
    assert sqnr(exact, quantized) > 25


def test_openvino_gets_unsigned_codes_where_nothing_is_negative():
    made = qatcore.onnx.quantize_model(network(), X, target="openvino")
    lowest = {name: found.min() for name, found in values_of(network(), list(scales_of(made))).items()}
    lowest["r"] = lowest["h"]  # one scale around the Concat
    types = {name: zero.dtype for name, (_, zero) in scales_of(made).items()}
    assert types == {name: np.dtype("int8" if low < 0 else "uint8") for name, low in lowest.items()}
    assert set(types.values()) == {np.dtype("int8"), np.dtype("uint8")}
    signed = qatcore.onnx.quantize_model(network(), X, target="openvino", activations="int8")
    assert {zero.dtype for _, zero in scales_of(signed).values()} == {np.dtype("int8")}


def test_tensorrt_gets_fp8_or_groups_of_int4():
    made = qatcore.onnx.quantize_model(network(), X, target="tensorrt", weights="fp8", activations="fp8")
    assert made.opset_import[0].version == 19
    kinds = {constant.data_type for constant in made.graph.initializer if constant.name.endswith("_zero_point")}
    assert kinds == {TensorProto.FLOAT8E4M3FN}
    model = onnx_models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        [value("x", ["N", 128])],
        [value("y", ["N", 8])],
        [tensor("w", normal(128, 8))],
        17,
    )
    options = {"target": "tensorrt", "weights": "int4", "activations": "none"}
    made = qatcore.onnx.quantize_model(model, **options, group_size=64)
    [node] = [node for node in made.graph.node if node.op_type == "DequantizeLinear"]
    assert {attribute.name: attribute.i for attribute in node.attribute} == {"axis": 0, "block_size": 64}
    with pytest.raises(InvalidArgumentError, match="group_size: expected 64 or 128, as TensorRT needs, got 32"):
        qatcore.onnx.quantize_model(model, **options)


@pytest.mark.parametrize("activations", ["uint8", "int8", "uint16", "int16"])
def test_qnn_gets_codes_everywhere(activations):
    made = qatcore.onnx.quantize_model(network(), X, target="qnn", activations=activations, bias_correction=False)
    index, found = Graph(made), scales_of(made)
    floats = {"x", "c1", "h", "c2", "g", "s", "c3", "r", "k", "m", "c4", "p", "q", "f"}
    # The Relu is gone, because codes cut off what it does.
    assert set(found) == floats | {"y_float"}
    assert {zero.dtype for _, zero in found.values()} == {np.dtype(activations)}
    for node in made.graph.node:
        if node.op_type in CODES:
            continue
        for name in filter(None, node.input):
            assert index.makers[name].op_type == "DequantizeLinear", (node.name, name)
        for name in node.output:
            assert [reader.op_type for reader in index.readers[name]] == ["QuantizeLinear"], (node.name, name)
    assert index.makers["y"].op_type == "DequantizeLinear"
    # What only moves has the codes of what it reads.
    assert found["m"] == found["k"]
    assert found["f"] == found["q"]
    if activations == "uint16":
        assert found["g"] == (2.0**-16, 0)
    convolutions = {"first": (8, "DequantizeLinear"), "second": (8, None), "third": (8, None), "fourth": (16, None)}
    assert weights_of(made) == convolutions | {"head": (1, "DequantizeLinear")}
    for name in ("first", "head"):
        [node] = [node for node in made.graph.node if node.name == name]
        source, weight, bias = (index.value_of(index.makers[given].input[1]) for given in node.input)
        np.testing.assert_array_equal(bias, source * weight)
        assert index.value_of(index.makers[node.input[2]].input[0]).dtype == np.int32
    exact, quantized = (run(model, {"x": X}, AS_WRITTEN)[0] for model in (network(), made))
    assert sqnr(exact, quantized) > 20


def test_qnn_keeps_a_relu_that_symmetric_codes_do_not_cut_off():
    found = scales_of(qatcore.onnx.quantize_model(network(), X, target="qnn", symmetric=True))
    assert found["a"] == found["r"]
    assert {int(zero) for _, zero in found.values()} == {128}


def test_qnn_leaves_alone_what_only_excluded_nodes_touch():
    made = qatcore.onnx.quantize_model(network(), X, target="qnn", exclude=["fourth", "prelu", "average"])
    assert {"c4", "p"}.isdisjoint(scales_of(made))
    assert read_by(made, "average") == ["float"]
    assert {"m", "q"} <= set(scales_of(made))


def test_a_calibration_serves_a_target():
    for target, kinds in (("openvino", ("uint8", "int8")), ("tensorrt", ("int8",)), ("qnn", ("uint8", "int16"))):
        calibration = qatcore.onnx.calibrate(network(), X, target=target)
        for kind in kinds:
            options = {"target": target, "activations": kind, "bias_correction": False}
            made = qatcore.onnx.quantize_model(network(), calibration=calibration, **options)
            assert made == qatcore.onnx.quantize_model(network(), X, **options)
    ours = qatcore.onnx.calibrate(network(), X)
    with pytest.raises(InvalidArgumentError, match="calibrate with the same ops, target and nodes"):
        qatcore.onnx.quantize_model(network(), calibration=ours, target="qnn")


def test_scales_around_two_joined_concats_hold_the_values_of_both():
    """A tensor in two Concats has the scale of all that both read."""
    model = onnx_models.model(
        [
            *(helper.make_node("Conv", ["x", f"w{i}"], [f"c{i}"], f"conv{i}") for i in range(3)),
            helper.make_node("Concat", ["c0", "c1"], ["k0"], "join0", axis=1),
            helper.make_node("Concat", ["c1", "c2"], ["k1"], "join1", axis=1),
            helper.make_node("Conv", ["k0", "v"], ["y0"], "end0"),
            helper.make_node("Conv", ["k1", "v"], ["y1"], "end1"),
        ],
        [value("x", ["N", 3, 12, 12])],
        [value("y0", [None] * 4), value("y1", [None] * 4)],
        [*(tensor(f"w{i}", normal(4, 3, 1, 1) * 4.0**i) for i in range(3)), tensor("v", normal(4, 8, 1, 1))],
    )
    options = {"target": "openvino", "method": "min_max", "bias_correction": False}
    made = qatcore.onnx.quantize_model(model, X, **options)
    found = scales_of(made)
    assert set(found) == {"x", "c0", "c1", "c2"}
    largest = max(np.abs(each).max() for each in values_of(model, ["c0", "c1", "c2"]).values())
    assert found["c0"] == found["c1"] == found["c2"]
    assert found["c0"][0] == pytest.approx(largest / 127, rel=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"target": "openvino", "activations": "int16"},
            "target: OpenVINO has no int8 weights beside activations int16; it has int8 weights beside uint8; int8 "
            "weights beside int8; int8 or int4 weights beside none",
        ),
        ({"target": "openvino", "weights": "fp8"}, "OpenVINO has no fp8 weights beside activations uint8"),
        ({"target": "tensorrt", "activations": "uint8"}, "TensorRT has no int8 weights beside activations uint8"),
        ({"target": "qnn", "activations": "none"}, "QNN has no int8 weights beside activations none"),
        ({"target": "tflite"}, "target: expected one of onnxruntime, openvino, tensorrt, qnn, got 'tflite'"),
        ({"target": "qnn", "fastest": True}, "fastest: it measures times in ONNX Runtime, but the target is qnn"),
    ],
)
def test_what_a_target_cannot_do_is_told_in_one_line(options, message):
    with pytest.raises(InvalidArgumentError) as caught:
        qatcore.onnx.quantize_model(network(), X, **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command_writes_for_a_target(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "model.onnx")
    np.save("x.npy", X)
    arguments = ["quantize", "model.onnx", "--data", "x.npy", "-o", "q.onnx", "--target", "openvino"]
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert "weights int8, activations uint8, for OpenVINO; 100.0 % of all multiply-adds" in said
    # Another runtime's speed is not measured in ONNX Runtime.
    assert "latency" not in said
    assert "in integers" not in said
    assert main([*arguments, "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (report["target"], report["latency"], report["in_integers"]) == ("openvino", None, None)
    assert main(["calibrate", "model.onnx", "--data", "x.npy", "-o", "c.npz", "--target", "qnn"]) == 0
    capsys.readouterr()
    assert main([*arguments[:2], "--calibration", "c.npz", "-o", "q.onnx", "--target", "qnn"]) == 0
    assert "activations uint8, for QNN" in capsys.readouterr().out


def test_int8_codes_of_a_new_opset_run_though_onnx_runtime_cannot_optimise_them():
    made = qatcore.onnx.quantize_model(network(21), X, target="tensorrt")
    assert description(made)["target"] == "tensorrt"
    exact, quantized = (run(model, {"x": X}, AS_WRITTEN)[0] for model in (network(21), made))
    assert sqnr(exact, quantized) > 25
