"""A tensor that is zero in all of calibration does not spoil the bias behind it."""

import numpy as np
import pytest

onnx = pytest.importorskip("onnx", reason="needs the extra onnx")
pytest.importorskip("onnxruntime", reason="needs the extra onnx")

import onnx_models  # noqa: E402
from insides import Graph  # noqa: E402
from onnx import helper  # noqa: E402

import qatcore.onnx  # noqa: E402


@pytest.mark.parametrize("size", [1e-3, 1.0, 1e3])
def test_a_bias_behind_zeros(size):
    """Whatever its size beside the weights: with a scale of 1 the bias had steps of a weight's scale."""
    weight, bias = onnx_models.normal(8, 16), onnx_models.normal(16) * size
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["hidden"], "one"),
        helper.make_node("Relu", ["hidden"], ["zeros"]),
        helper.make_node("Gemm", ["zeros", "w2", "b2"], ["y"], "two"),
    ]
    tensors = {"w1": onnx_models.normal(4, 8), "b1": np.full(8, -1e3, np.float32), "w2": weight, "b2": bias}
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", ["N", 4])],
        [onnx_models.value("y", ["N", 16])],
        [onnx_models.tensor(name, np.asarray(value, np.float32)) for name, value in tensors.items()],
    )
    batches = [{"x": onnx_models.normal(8, 4)} for _ in range(4)]
    for activations in ("uint8", "int8"):
        made = qatcore.onnx.quantize_model(model, batches, activations=activations, bias_correction=False)
        index = Graph(made)
        [node] = [node for node in made.graph.node if node.name == "two"]
        assert index.makers[node.input[2]].op_type == "DequantizeLinear"  # the bias has codes
        step = 2.0**-12 * np.abs(weight).max() / 127 * (1.0 + 1e-6)
        outputs = onnx_models.run(made, batches[0])[0]
        np.testing.assert_allclose(outputs, np.broadcast_to(bias, outputs.shape), rtol=1e-6, atol=step / 2)
