"""GELU in PyTorch's spelling becomes one node in ONNX Runtime."""

import math

import numpy as np
import onnx_models
import pytest
from insides import kernels_of, prepared
from onnx import helper
from onnx_models import AS_WRITTEN, normal, run, tensor, value

import qatcore.onnx

pytestmark = pytest.mark.any_build

X = onnx_models.rows()[0]["x"]


def network(half=0.5, swapped=False, reader=False):
    """Two products with a GELU between them; in the order in which `torch.onnx.export` writes it."""
    product = ["a", "d"] if swapped else ["d", "a"]
    return onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["m"], "first"),
            helper.make_node("Add", ["m", "b"], ["d"], "bias"),
            helper.make_node("Div", ["d", "root"], ["r"], "scaled"),
            helper.make_node("Erf", ["r"], ["e"], "erf"),
            helper.make_node("Add", ["e", "one"], ["s"], "plus"),
            helper.make_node("Mul", ["half", "s"], ["a"], "halved"),
            helper.make_node("Mul", product, ["g"], "gelu"),
            helper.make_node("MatMul", ["g", "v"], ["y"], "last"),
            *([helper.make_node("Neg", ["a"], ["z"], "other")] if reader else []),
        ],
        [value("x", ["N", 48])],
        [value("y", ["N", 8]), *([value("z", ["N", 24])] if reader else [])],
        [
            tensor("w", normal(48, 24)),
            tensor("b", normal(24)),
            tensor("root", np.float32(math.sqrt(2))),
            tensor("one", np.float32(1)),
            tensor("half", np.float32(half)),
            tensor("v", normal(24, 8)),
        ],
    )


@pytest.mark.parametrize("swapped", [False, True])
def test_the_values_stay_and_the_nodes_become_one(swapped):
    model = network(swapped=swapped)
    np.testing.assert_array_equal(run(prepared(model), {"x": X}, AS_WRITTEN)[0], run(model, {"x": X}, AS_WRITTEN)[0])
    made = qatcore.onnx.quantize_model(model, {"x": X})
    kernels = [kernel.kernel for kernel in kernels_of(made)]
    assert any("Gelu" in kernel for kernel in kernels)
    assert {"Erf", "Div"}.isdisjoint(kernels)


@pytest.mark.parametrize("change", [{"half": 0.25}, {"reader": True}])
def test_other_products_stay_as_they_are(change):
    model = network(**change)
    names = [list(node.input) for node in prepared(model).graph.node]
    assert names == [list(node.input) for node in model.graph.node]
