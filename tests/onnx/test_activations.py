"""A Relu or Clip that only codes read, and that changes none of them, is dropped: by arithmetic, and in a model."""

from fractions import Fraction

import numpy as np
import onnx_models
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx_models import AS_WRITTEN, run

import qatcore
import qatcore.onnx
from qatcore._onnx.ranges import inside_clip
from qatcore._onnx.rewriting import Scale, passes

pytestmark = pytest.mark.any_build

ENDS = {"uint8": (0, 255), "int8": (-128, 127)}


def scale_of(dtype, scale, zero_point):
    return Scale(dtype, np.asarray(scale, np.float32), np.asarray(zero_point, np.int32))


@given(
    st.sampled_from(sorted(ENDS)),
    st.floats(2**-10, 1.0, width=32),
    st.integers(0, 255),
    st.none() | st.floats(-200, 10, width=32),
    st.none() | st.floats(-10, 200, width=32),
)
def test_codes_that_a_clip_lets_pass_are_the_same_without_it(dtype, scale, above, low, high):
    zero_point = ENDS[dtype][0] + above
    bounds = [None if bound is None else np.float32(bound) for bound in (low, high)]
    edges = [bound for bound in bounds if bound is not None]
    x = np.array([*np.linspace(-300, 300, 997), *edges, *(np.nextafter(e, np.float32(0)) for e in edges)], np.float32)
    given = scale_of(dtype, scale, zero_point)
    clipped = np.clip(x, -np.inf if low is None else bounds[0], np.inf if high is None else bounds[1])
    codes, others = (qatcore.quantize(each, float(given.scale), zero_point, dtype=dtype) for each in (x, clipped))
    if passes(given, *bounds):
        np.testing.assert_array_equal(codes, others)
    elif low is None or high is None or low < high:
        # Something in between is another code: what is beyond the bound, which does not end the range.
        beyond = np.array([-1e30, 1e30], np.float32)
        clipped = np.clip(beyond, -np.inf if low is None else bounds[0], np.inf if high is None else bounds[1])
        codes, others = (qatcore.quantize(e, float(given.scale), zero_point, dtype=dtype) for e in (beyond, clipped))
        assert (codes != others).any()


@given(st.floats(-100, 0, width=32), st.floats(2**-10, 100, width=32), st.sampled_from(sorted(ENDS)))
def test_a_range_that_ends_where_its_clip_does_is_put_inside(low, high, dtype):
    """Of the scale that holds just what the Clip lets pass, a few of the least steps are taken, or none."""
    collector = qatcore.CalibrationCollector()
    collector.observe(np.array([low, high], np.float32))
    scale, zero_point = collector.min_max_scale(include_zero=True)
    given = scale_of(dtype, scale, zero_point + (128 if dtype == "uint8" else 0))
    found = inside_clip(given, np.float32(low), np.float32(high))
    assert passes(found, np.float32(low), np.float32(high))
    steps = int(given.scale.view(np.int32)) - int(found.scale.view(np.int32))
    assert 0 <= steps <= 3
    assert found.zero_point == given.zero_point
    # What is lost at the ends is no more than the rounding of three such steps.
    assert abs(Fraction(float(found.scale)) - Fraction(float(given.scale))) <= Fraction(float(given.scale)) / 2**21


def test_bounds_that_leave_out_zero_are_no_range():
    given = scale_of("uint8", 5 / 255, 0)
    assert inside_clip(given, np.float32(1.0), np.float32(5.0)) is given


@pytest.mark.parametrize("activations", ["uint8", "int8"])
def test_what_is_dropped_changes_nothing(activations):
    """A chain of activations, with a float reader at one of them."""
    constants = {
        "w": onnx_models.normal(8, 8, 3, 3) / 9,
        "low": np.float32(-1.0),
        "high": np.float32(0.75),
        "most": np.float32(0.5),
        "zero": np.float32(0.0),
    }
    pads = {"pads": [1, 1, 1, 1]}
    model = onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w"], ["a"], "one", **pads),
            helper.make_node("Clip", ["a", "low", "high"], ["b"]),
            helper.make_node("Conv", ["b", "w"], ["c"], "two", **pads),
            helper.make_node("Relu", ["c"], ["d"]),
            helper.make_node("Clip", ["d", "zero", "most"], ["e"]),
            helper.make_node("Conv", ["e", "w"], ["f"], "three", **pads),
            helper.make_node("Relu", ["f"], ["g"]),
            helper.make_node("Conv", ["g", "w"], ["h"], "four", **pads),
            helper.make_node("Sigmoid", ["g"], ["i"]),
            helper.make_node("Add", ["h", "i"], ["y"]),
        ],
        [onnx_models.value("x", ["N", 8, 6, 6])],
        [onnx_models.value("y", ["N", 8, 6, 6]), onnx_models.value("d", ["N", 8, 6, 6])],
        [onnx_models.tensor(name, array) for name, array in constants.items()],
    )
    batch = {"x": onnx_models.normal(4, 8, 6, 6)}
    made = qatcore.onnx.quantize_model(model, [batch], activations=activations, bias_correction=False)
    # "d" is an output of the model, and so its Relu stays, and the Clip that reads it.
    kept = [node.output[0] for node in made.graph.node if node.op_type in {"Clip", "Relu"}]
    assert kept == ["d", "e"]
    assert set(qatcore.onnx.compare(model, made, [batch]).tensors) >= {"x", "b", "e", "g"}
    for found, written in zip(run(made, batch), run(made, batch, AS_WRITTEN), strict=True):
        assert onnx_models.sqnr(written, found) > 40
    for exact, found in zip(run(model, batch), run(made, batch), strict=True):
        assert onnx_models.sqnr(exact, found) > 25


CHAINS = {
    "Gemm, a bias that is no constant, Relu": (
        [("Neg", ["x"], "c"), ("Gemm", ["x", "w", "c"], "p"), ("Relu", ["p"], "r")],
        [],
    ),
    "Gemm, Clip, Relu": ([("Gemm", ["x", "w"], "p"), ("Clip", ["p", "low", "high"], "c"), ("Relu", ["c"], "r")], []),
    "Gemm, Relu, Clip": ([("Gemm", ["x", "w"], "p"), ("Relu", ["p"], "c"), ("Clip", ["c", "zero", "most"], "r")], []),
    "MatMul, Add, Clip, Clip": (
        [
            ("MatMul", ["x", "w"], "m"),
            ("Add", ["m", "b"], "p"),
            ("Clip", ["p", "low", "high"], "c"),
            ("Clip", ["c", "zero", "most"], "r"),
        ],
        [],
    ),
    "Gemm, Clip that is an output, Relu": (
        [("Gemm", ["x", "w"], "p"), ("Clip", ["p", "low", "high"], "c"), ("Relu", ["c"], "r")],
        ["c"],
    ),
}


@pytest.mark.parametrize("activations", ["uint8", "int8", "fp8", "none"])
@pytest.mark.parametrize("chain", CHAINS)
def test_chains_behind_products(chain, activations):
    """One that is in codes behind the last activation."""
    steps, outputs = CHAINS[chain]
    constants = {
        "w": onnx_models.normal(16, 16) / 4,
        "v": onnx_models.normal(16, 16)[::-1] / 4,
        "b": onnx_models.normal(16),
        "low": np.float32(-1.0),
        "high": np.float32(1.0),
        "zero": np.float32(0.0),
        "most": np.float32(0.5),
    }
    nodes = [helper.make_node(operator, inputs, [output]) for operator, inputs, output in steps]
    nodes.append(helper.make_node("MatMul", ["r", "v"], ["y"]))
    read = {name for node in nodes for name in node.input}
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", ["N", 16])],
        [onnx_models.value(name, ["N", 16]) for name in ["y", *outputs]],
        [onnx_models.tensor(name, array) for name, array in constants.items() if name in read],
    )
    batch = {"x": onnx_models.normal(64, 16)}
    made = qatcore.onnx.quantize_model(model, [batch], activations=activations)
    for exact, found, written in zip(run(model, batch), run(made, batch), run(made, batch, AS_WRITTEN), strict=True):
        assert onnx_models.sqnr(exact, found) > 20
        assert onnx_models.sqnr(exact, found) > onnx_models.sqnr(exact, written) - (4 if activations == "none" else 0.5)
    if activations in {"uint8", "int8"} and not outputs:
        assert not {"Relu", "Clip", "Max"} & {node.op_type for node in made.graph.node}
