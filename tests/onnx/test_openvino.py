"""Models for OpenVINO, run in OpenVINO."""

import numpy as np
import onnx_models
import pytest
from onnx import helper
from onnx_models import AS_WRITTEN, normal, run, sqnr, tensor, value

import qatcore.onnx

openvino = pytest.importorskip("openvino")

pytestmark = pytest.mark.any_build

X = onnx_models.rng().standard_normal((8, 16, 16, 16)).astype(np.float32)


def network(activation):
    """Convolutions with an activation, a residual sum and a Concat between them."""
    return onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w0"], ["c0"], "first", pads=[1] * 4),
            *activation("c0", "h"),
            helper.make_node("Conv", ["h", "w1"], ["c1"], "second", pads=[1] * 4),
            helper.make_node("Add", ["c1", "h"], ["a"], "sum"),
            helper.make_node("Relu", ["a"], ["r"], "relu"),
            helper.make_node("Conv", ["r", "w2"], ["c2"], "third", pads=[1] * 4),
            helper.make_node("Concat", ["c2", "r"], ["k"], "join", axis=1),
            helper.make_node("Conv", ["k", "w3"], ["y"], "last"),
        ],
        [value("x", ["N", 16, 16, 16])],
        [value("y", [None] * 4)],
        [
            *(tensor(f"w{i}", normal(32, 16 if i == 0 else 32, 3, 3) / 16) for i in range(3)),
            tensor("w3", normal(32, 64, 1, 1) / 8),
        ],
        14,
    )


ACTIVATIONS = {
    "relu": lambda x, y: [helper.make_node("Relu", [x], [y], "activation")],
    "hard swish": lambda x, y: [helper.make_node("HardSwish", [x], [y], "activation")],
    "silu": lambda x, y: [
        helper.make_node("Sigmoid", [x], ["gate"], "gate"),
        helper.make_node("Mul", [x, "gate"], [y], "activation"),
    ],
    "leaky relu": lambda x, y: [helper.make_node("LeakyRelu", [x], [y], "activation", alpha=0.1)],
}


def compiled(model):
    core = openvino.Core()
    exactly = {"INFERENCE_PRECISION_HINT": "f32"}
    return core.compile_model(core.read_model(model.SerializeToString()), "CPU", exactly)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_openvino_computes_on_codes(name):
    exact = network(ACTIVATIONS[name])
    made = qatcore.onnx.quantize_model(exact, X, target="openvino")
    runs = compiled(made)
    kernels = [node.get_rt_info() for node in runs.get_runtime_model().get_ordered_ops()]
    kinds = [(kernel["layerType"].astype(str), kernel["runtimePrecision"].astype(str)) for kernel in kernels]
    types = [kind for operator, kind in kinds if operator == "Convolution"]
    assert len(types) == 4
    assert set(types) <= {"i8", "u8"}
    [found] = runs({"x": X}).values()
    expected, written = run(exact, {"x": X})[0], run(made, {"x": X}, AS_WRITTEN)[0]
    assert sqnr(expected, found) > 25
    # It rounds at the same places as the model says: what differs are values beside a tie.
    assert sqnr(written, found) > sqnr(expected, found) + 6
