"""Quantised models: their codes against the definition, what runtimes make of them, and what is refused."""

import math

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import pytest
from insides import Graph, description, opset_of, planned, prepared
from onnx import helper, numpy_helper
from onnx_models import AS_WRITTEN, dequantized, node_of, run, sqnr

import qatcore.onnx
from qatcore import InvalidArgumentError

pytestmark = pytest.mark.any_build

CONVOLUTIONS = onnx_models.convolutions(11), onnx_models.images(16)
CASES = {
    "convolutions": CONVOLUTIONS,
    "convolutions of opset 21": (onnx_models.convolutions(21), onnx_models.images(16)),
    "constants": (onnx_models.convolutions(12, constants=True), onnx_models.images(16)),
    "product": (onnx_models.product(), onnx_models.rows()),
    "product of 3 dimensions": (
        onnx_models.product(3),
        [{"x": onnx_models.normal(4, 3, 48)}],
    ),
    "weights of 3 dimensions": (onnx_models.product(3, weight_ndim=3), [{"x": onnx_models.normal(2, 3, 48)}]),
    "branches": (
        onnx_models.branches(),
        [{"x": onnx_models.normal(5, 16), "condition": np.array(b)} for b in (True, False)],
    ),
    "recurrent": (onnx_models.recurrent(), [{"x": onnx_models.normal(6, 2, 8)}]),
    "attention": (onnx_models.attention(), [{"x": onnx_models.normal(4, 6, 16)}]),
}
FORMATS = {
    "int8": ({}, 13, 20.0),
    "int8 activations": ({"activations": "int8"}, 13, 20.0),
    "per tensor": ({"per_tensor": True}, 13, 20.0),
    "weights alone": ({"activations": "none"}, 13, 25.0),
    "int4": ({"weights": "int4", "activations": "none"}, 21, 11.0),
    "int4 per channel": ({"weights": "int4", "activations": "none", "group_size": 0}, 21, 10.0),
    "int4 and uint8": ({"weights": "int4"}, 21, 11.0),
    "int4 and int8": ({"weights": "int4", "activations": "int8"}, 21, 11.0),
    "fp8": ({"weights": "fp8", "activations": "fp8"}, 19, 15.0),
    "fp8 weights": ({"weights": "fp8", "activations": "none"}, 19, 20.0),
}


@pytest.mark.parametrize("formats", FORMATS)
@pytest.mark.parametrize("case", CASES)
def test_every_model_in_every_format(case, formats):
    model, batches = CASES[case]
    options, opset, least = FORMATS[formats]
    before = model.SerializeToString()
    made = qatcore.onnx.quantize_model(model, None if options.get("activations") == "none" else batches, **options)
    assert model.SerializeToString() == before
    onnx.checker.check_model(made, full_check=True)
    assert opset_of(made) == max(opset_of(model), opset)
    assert made.graph.input == model.graph.input
    assert made.graph.output == model.graph.output
    assert made.graph.name == model.graph.name
    assert {entry.key: entry.value for entry in made.metadata_props}["author"] == "a test"
    kept = [node.op_type for node in model.graph.node if node.op_type in {"Conv", "Gemm", "MatMul", "If", "LSTM"}]
    if options.get("activations") == "none" and options.get("weights") != "fp8":  # all that runtimes read in codes
        kept = ["MatMul" if operator == "Gemm" else operator for operator in kept]
    assert [node.op_type for node in made.graph.node if node.op_type in kept] == kept
    for batch in batches:
        for exact, found in zip(run(model, batch), run(made, batch), strict=True):
            assert found.dtype == exact.dtype
            assert sqnr(exact, found) > least
        # What ONNX Runtime fuses computes the same but for ties of roundings, which are steps of 8 bits.
        for written, found in zip(run(made, batch, AS_WRITTEN), run(made, batch), strict=True):
            assert sqnr(written, found) > 30.0


@pytest.mark.parametrize(
    ("options", "dtype", "most"),
    [
        ({}, np.int8, 127),
        ({"per_tensor": True}, np.int8, 127),
        ({"weights": "int4"}, ml_dtypes.int4, 7),
        ({"weights": "int4", "group_size": 0}, ml_dtypes.int4, 7),
        ({"weights": "fp8"}, ml_dtypes.float8_e4m3fn, 448),
    ],
)
def test_codes_of_weights_are_next_to_them(options, dtype, most):
    model = onnx_models.convolutions()
    made = qatcore.onnx.quantize_model(model, activations="none", **options)
    ready = prepared(model)
    for name in ("first", "second", "last"):
        values, codes, scale = dequantized(made, node_of(made, name), 1)
        assert codes.dtype == dtype
        exact = Graph(ready).value_of(node_of(ready, name).input[1])
        if name == "last":  # stored as it is multiplied, not transposed
            values, codes, scale = values.T, codes.T, scale.T
        assert codes.shape == exact.shape
        ratio = exact.astype(np.float64) / scale
        if dtype == ml_dtypes.float8_e4m3fn:
            np.testing.assert_array_equal(codes, np.clip(ratio, -448, 448).astype(np.float32).astype(dtype))
        else:
            inside = np.clip(ratio, -most, most)
            assert np.all((codes == np.floor(inside)) | (codes == np.ceil(inside)))
            if "group_size" in options or "weights" not in options:
                # The sum of an output's weights is kept, but for half a step and what is clipped.
                off = (codes.astype(np.float64) - inside).reshape(len(codes), -1).sum(axis=1)
                assert np.abs(off).max() <= 0.5 + 1e-6
        # The range is that of least squared error: a little clipping at most, and no scale for nothing.
        assert np.abs(ratio).max() < most * (1.5 if dtype == ml_dtypes.int4 else 1.1)
        assert sqnr(exact, values) > (15 if dtype == ml_dtypes.int4 else 25)


def test_blocks_of_int4_lie_along_the_axis_that_is_summed_over():
    made = qatcore.onnx.quantize_model(onnx_models.convolutions(), activations="none", weights="int4", group_size=16)
    index = Graph(made)
    shapes = {}
    for name in ("first", "second", "last"):
        maker = index.makers[node_of(made, name).input[1]]
        attributes = {a.name: a.i for a in maker.attribute}
        shapes[name] = (attributes["axis"], attributes["block_size"], index.value_of(maker.input[1]).shape)
    # 3 and 6 channels are less than 16; 64 are four blocks.
    assert shapes == {"first": (1, 3, (6, 1, 3, 3)), "second": (1, 6, (4, 1, 3, 3)), "last": (0, 16, (4, 5))}


def test_a_last_block_may_be_shorter():
    model = onnx_models.product(k=40)
    made = qatcore.onnx.quantize_model(model, activations="none", weights="int4")
    values, codes, _ = dequantized(made, node_of(made, "product"), 1)
    assert codes.shape == (40, 24)
    weight = Graph(model).value_of("w")
    # Every block by itself: the 8 rows of the second one have scales of their own, as if there were no other.
    tail = onnx_models.product(k=8)
    tail.graph.initializer[0].CopyFrom(numpy_helper.from_array(weight[32:], "w"))
    own = qatcore.onnx.quantize_model(tail, activations="none", weights="int4")
    np.testing.assert_array_equal(dequantized(own, node_of(own, "product"), 1)[1], codes[32:])
    assert sqnr(weight, values) > 15
    [x] = [b["x"] for b in onnx_models.rows(40, batches=1)]
    # Optimised, ONNX Runtime multiplies by int4 with activations in 8 bits of its own.
    np.testing.assert_allclose(run(made, {"x": x}, AS_WRITTEN)[0], x @ values, rtol=1e-4, atol=1e-4)


def test_activations_have_the_codes_of_their_collectors():
    model, batches = CONVOLUTIONS
    ready = prepared(model)
    exact = prepared(model)
    for name in ("r1", "r2"):
        exact.graph.output.append(onnx_models.value(name, None))
    seen = [run(exact, batch) for batch in batches]
    arrays = {
        "x": [batch["x"] for batch in batches],
        "r1": [outputs[1] for outputs in seen],
        "r2": [outputs[2] for outputs in seen],
    }
    made = qatcore.onnx.quantize_model(model, batches)
    index = Graph(made)
    for name, source in {"x": "x", "r1": "r1", "p1": "r1", "r2": "r2", "f": "r2"}.items():
        collector = qatcore.CalibrationCollector()
        for array in arrays[source]:
            collector.observe(array)
        scale, zero_point = collector.mse_scale(include_zero=True)
        [quantizer] = [n for n in index.readers[name] if n.op_type == "QuantizeLinear"]
        assert index.value_of(quantizer.input[1]) == np.float32(scale)
        assert index.value_of(quantizer.input[2]) == np.uint8(zero_point + 128)
    # Whoever reads a convolution's output reads what its codes stand for.
    assert [node.op_type for node in index.readers["r1"]] == ["QuantizeLinear"]
    assert len(planned(ready).tensors) == 3


def test_a_bias_is_in_steps_of_the_products():
    model, batches = CONVOLUTIONS
    made = qatcore.onnx.quantize_model(model, batches, bias_correction=False)
    index, ready = Graph(made), prepared(model)
    for name in ("first", "last"):
        node = node_of(made, name)
        values, codes, scale = dequantized(made, node, 2)
        assert codes.dtype == np.int32
        exact = Graph(ready).value_of(node_of(ready, name).input[2])
        np.testing.assert_array_equal(codes, np.rint(exact.astype(np.float64) / scale))
        reader = index.makers[node.input[0]]
        weight = index.makers[node.input[1]]
        np.testing.assert_array_equal(scale, index.value_of(reader.input[1]) * index.value_of(weight.input[1]))
        np.testing.assert_allclose(values, exact, atol=scale.max())


def test_a_large_bias_and_channels_without_weights_are_kept():
    """ONNX Runtime gives a bias between codes the scale of the products, which then must not be too fine for it."""
    model, batches = onnx_models.convolutions(), onnx_models.images(4)
    for tensor in model.graph.initializer:
        if tensor.name == "b3":
            tensor.CopyFrom(numpy_helper.from_array(np.float32([1e9, -0.75, 1e-3, 0, 0.5]), "b3"))
        if tensor.name == "w3":
            weight = numpy_helper.to_array(tensor).copy()
            weight[1:3], weight[3], weight[4] = 0.0, 1e-30, 1e-12
            tensor.CopyFrom(numpy_helper.from_array(weight, "w3"))
    for options in ({}, {"activations": "int8"}):
        made = qatcore.onnx.quantize_model(model, batches, bias_correction=False, **options)
        values, codes, _ = dequantized(made, node_of(made, "last"), 2)
        assert codes.dtype == np.int32 and (np.abs(codes.astype(np.int64)) < 2**30 * (1 + 1e-6)).all()
        np.testing.assert_allclose(values, [1e9, -0.75, 1e-3, 0, 0.5], rtol=1e-6)
        for batch in batches:
            exact, got = (run(m, batch)[0] for m in (model, made))
            np.testing.assert_allclose(got[:, 1:], exact[:, 1:], rtol=1e-5, atol=1e-9)
    # One scale for all of a weight is not made larger for one bias, which stays in float.
    made = qatcore.onnx.quantize_model(model, batches, bias_correction=False, per_tensor=True)
    assert Graph(made).value_of(node_of(made, "last").input[2])[0] == np.float32(1e9)
    assert dequantized(made, node_of(made, "first"), 2)[1].dtype == np.int32
    for batch in batches:
        np.testing.assert_allclose(run(made, batch)[0], run(made, batch, AS_WRITTEN)[0], rtol=1e-5, atol=1e-5)


def test_integer_arithmetic_gives_what_onnx_runtime_gives():
    """The product in integers, exact, against ONNX Runtime on the quantised model."""
    model, batches = onnx_models.product(), onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches)
    index = Graph(made)
    _, codes, weight_scale = dequantized(made, node_of(made, "product"), 1)
    [quantizer] = [node for node in made.graph.node if node.op_type == "QuantizeLinear"]
    scale, zero_point = (index.value_of(name) for name in quantizer.input[1:])
    x = batches[0]["x"]
    x_codes = qatcore.quantize(x, float(scale), int(zero_point), dtype="uint8")
    sums = (x_codes.astype(np.int64) - int(zero_point)) @ codes.astype(np.int64)
    np.testing.assert_allclose(run(made, {"x": x})[0], sums * (np.float64(scale) * weight_scale), rtol=2e-6, atol=1e-6)


def test_weights_shared_by_nodes_are_stored_once():
    model = onnx_models.model(
        [helper.make_node("MatMul", ["x", "w"], ["a"], "one"), helper.make_node("MatMul", ["a", "w"], ["y"], "two")],
        [onnx_models.value("x", ["N", 16])],
        [onnx_models.value("y", ["N", 16])],
        [onnx_models.tensor("w", onnx_models.normal(16, 16))],
    )
    made = qatcore.onnx.quantize_model(model, onnx_models.rows(16))
    assert node_of(made, "one").input[1] == node_of(made, "two").input[1]
    assert [list(t.dims) for t in made.graph.initializer if t.data_type == onnx.TensorProto.INT8] == [[16, 16], [16]]
    # Excluded, one of them still reads the float weights.
    half = qatcore.onnx.quantize_model(model, onnx_models.rows(16), exclude=["two"])
    assert node_of(half, "two").input[1] == "w"
    assert sqnr(run(model, onnx_models.rows(16)[0])[0], run(half, onnx_models.rows(16)[0])[0]) > 25


@pytest.mark.parametrize("activations", ["uint8", "int8", "none"])
def test_float16(activations):
    model, batches = onnx_models.product(dtype=np.float16, opset=13), onnx_models.rows(dtype=np.float16)
    made = qatcore.onnx.quantize_model(model, batches, activations=activations)
    # Codes of float16 need opset 19; with activations in codes, the model computes in float32.
    assert opset_of(made) == (19 if activations == "none" else 13)
    onnx.checker.check_model(made, full_check=True)
    exact, found = run(model, batches[0])[0], run(made, batches[0])[0]
    assert found.dtype == np.float16
    assert sqnr(exact.astype(np.float32), found.astype(np.float32)) > 30


@pytest.mark.parametrize("kind", ["int8", "int4", "fp8"])
def test_bfloat16_weights(kind):
    """They are quantised without a runtime for them: codes and scales are near those of the same values in float32."""
    exact = onnx_models.normal(64, 48).astype(ml_dtypes.bfloat16)
    node = helper.make_node("MatMul", ["x", "w"], ["y"], "product")
    inputs, outputs = (
        onnx_models.value(name, ["N", n], onnx.TensorProto.BFLOAT16) for name, n in (("x", 64), ("y", 48))
    )
    model = onnx_models.model([node], [inputs], [outputs], [onnx_models.tensor("w", exact)])
    with pytest.warns(qatcore.onnx.ModelWarning, match="it computes in bfloat16, which ONNX Runtime lacks"):
        made = qatcore.onnx.quantize_model(model, weights=kind, activations="none")
    onnx.checker.check_model(made, full_check=True)
    values, _, scale = onnx_models.dequantized(made, made.graph.node[-1], 1)
    assert scale.dtype == ml_dtypes.bfloat16
    assert sqnr(exact.astype(np.float32), values.astype(np.float32)) > {"int8": 38, "int4": 17, "fp8": 28}[kind]


def test_float16_behind_a_relu_and_in_constants():
    """What a convolution writes has its type, also where only its Relu's output has codes."""
    weight = onnx_models.tensor("w", onnx_models.normal(4, 3, 3, 3).astype(np.float16))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("Conv", ["x", "w"], ["c"], "convolution"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["y"]),
    ]
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", ["N", 3, 6, 6], onnx.TensorProto.FLOAT16)],
        [onnx_models.value("y", ["N", 4, 1, 1], onnx.TensorProto.FLOAT16)],
        opset=13,
    )
    batches = [{"x": onnx_models.normal(2, 3, 6, 6).astype(np.float16)}]
    made = qatcore.onnx.quantize_model(model, batches)
    exact, found = (run(m, batches[0])[0].astype(np.float32) for m in (model, made))
    assert sqnr(exact, found) > 25


def test_the_sqnr_that_is_promised_is_that_of_the_scale_that_is_stored():
    """Also of small float16 values, in float32."""
    model = onnx_models.product(dtype=np.float16)
    batches = [{"x": (batch["x"] * 1e-3).astype(np.float16)} for batch in onnx_models.rows()]
    made = qatcore.onnx.quantize_model(model, batches)
    about = description(made)
    found = qatcore.onnx.compare(model, made, batches).tensors["x"]
    assert about["tensors"]["x_float32"]["sqnr"] == pytest.approx(found, abs=0.5)


def test_a_transposed_convolution():
    model = onnx_models.model(
        [helper.make_node("ConvTranspose", ["x", "w"], ["y"], "up", strides=[2, 2])],
        [onnx_models.value("x", ["N", 4, 5, 5])],
        [onnx_models.value("y", ["N", 3, 11, 11])],
        [onnx_models.tensor("w", onnx_models.normal(4, 3, 3, 3))],
    )
    batches = [{"x": onnx_models.normal(2, 4, 5, 5)}]
    with pytest.raises(InvalidArgumentError, match="nothing to quantise"):
        qatcore.onnx.quantize_model(model, batches)
    made = qatcore.onnx.quantize_model(model, batches, ops=["ConvTranspose"])
    _, _, scale = dequantized(made, node_of(made, "up"), 1)
    assert scale.size == 3
    assert sqnr(run(model, batches[0])[0], run(made, batches[0])[0]) > 30


METHODS = ("mse", "kl", "percentile", "min_max", "auto")


@pytest.mark.parametrize("method", METHODS)
def test_methods(method):
    model, batches = CONVOLUTIONS
    made = qatcore.onnx.quantize_model(model, batches, method=method)
    about = description(made)
    assert {entry["method"] for entry in about["tensors"].values()} <= ({method} if method != "auto" else set(METHODS))
    assert list(about["nodes"]) == ["first", "second", "last"]
    # What is promised for each tensor is what it has.
    compared = qatcore.onnx.compare(model, made, batches)
    assert abs(compared.tensors["x"] - about["tensors"]["x"]["sqnr"]) < 0.5


def test_percentiles_are_chosen():
    model, batches = CONVOLUTIONS
    ranges = []
    for percentile in (90.0, 99.99, 100.0):
        made = qatcore.onnx.quantize_model(model, batches, method="percentile", percentile=percentile)
        index = Graph(made)
        [quantizer] = [node for node in index.readers["x"] if node.op_type == "QuantizeLinear"]
        ranges.append(float(index.value_of(quantizer.input[1])))
    assert ranges == sorted(ranges)
    x = np.concatenate([batch["x"].reshape(-1) for batch in batches])
    assert ranges[2] == np.float32((float(x.max()) - float(x.min())) / 255)


@pytest.mark.usefixtures("_number_of_threads")
def test_the_same_inputs_give_the_same_model_whatever_the_threads():
    model, batches = CONVOLUTIONS
    made = set()
    for n in (1, 2, 5):
        qatcore.set_num_threads(n)
        made.add(qatcore.onnx.quantize_model(model, batches, weights="int4").SerializeToString(deterministic=True))
    assert len(made) == 1


def test_a_constant_and_a_zero_tensor_get_codes():
    model, batches = onnx_models.product(), [{"x": np.zeros((64, 48), np.float32)}]
    made = qatcore.onnx.quantize_model(model, batches)
    np.testing.assert_array_equal(run(made, batches[0])[0], 0.0)
    five = [{"x": np.full((64, 48), 5.0, np.float32)}]
    made = qatcore.onnx.quantize_model(model, five)
    assert sqnr(run(model, five[0])[0], run(made, five[0])[0]) > 30


def test_infinities_in_between_do_not_enter_ranges():
    model = onnx_models.model(
        [helper.make_node("Log", ["x"], ["l"]), helper.make_node("MatMul", ["l", "w"], ["y"], "product")],
        [onnx_models.value("x", ["N", 8])],
        [onnx_models.value("y", ["N", 4])],
        [onnx_models.tensor("w", onnx_models.normal(8, 4))],
    )
    x = np.abs(onnx_models.normal(64, 8)) + 0.1
    x[0, 0] = 0.0
    made = qatcore.onnx.quantize_model(model, [{"x": x}])
    assert sqnr(run(model, {"x": x[1:]})[0], run(made, {"x": x[1:]})[0]) > 25
    with pytest.raises(InvalidArgumentError, match="no finite value of l was seen"):
        qatcore.onnx.quantize_model(model, [{"x": np.zeros((4, 8), np.float32)}])


def test_a_weight_shared_in_two_orientations_keeps_the_sums_of_both():
    model = onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["a"], "columns"),
            helper.make_node("Gemm", ["a", "w"], ["y"], "rows", transB=1),
        ],
        [onnx_models.value("x", ["N", 16])],
        [onnx_models.value("y", ["N", 16])],
        [onnx_models.tensor("w", onnx_models.normal(16, 16))],
    )
    made = qatcore.onnx.quantize_model(model, activations="none", per_tensor=True)
    weight = Graph(model).value_of("w").astype(np.float64)
    for name, exact in (("columns", weight), ("rows", weight.T)):
        _, codes, scale = dequantized(made, node_of(made, name), 1)
        assert np.abs((codes - np.clip(exact / scale, -127, 127)).sum(axis=0)).max() <= 0.5 + 1e-6


def test_a_node_has_the_name_of_a_tensor():
    model = onnx_models.model(
        [helper.make_node("MatMul", ["x", "w"], ["b"], "a"), helper.make_node("MatMul", ["b", "w"], ["y"], "b")],
        [onnx_models.value("x", ["N", 16])],
        [onnx_models.value("y", ["N", 16])],
        [onnx_models.tensor("w", onnx_models.normal(16, 16))],
    )
    found = qatcore.onnx.sensitivity(model, onnx_models.rows(16), activations="none")
    assert {each.node for each in found} == {"a", "b"}
    assert all(math.isfinite(each.sqnr) for each in found)


# --- files and refusals -------------------------------------------------------------------------------


def test_files_are_read_and_written(tmp_path):
    model, batches = CONVOLUTIONS
    source, target = tmp_path / "float.onnx", tmp_path / "quantized.onnx"
    onnx.save(model, source)
    made = qatcore.onnx.quantize_model(source, batches, output=target)
    assert onnx.load(target) == made
    assert sorted(p.name for p in tmp_path.iterdir()) == ["float.onnx", "quantized.onnx"]


def test_weights_in_another_file(tmp_path):
    model, batches = onnx_models.product(), onnx_models.rows()
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    onnx.save(copy, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    made = qatcore.onnx.quantize_model(tmp_path / "m.onnx", batches)
    assert made == qatcore.onnx.quantize_model(model, batches)
    (tmp_path / "m.data").unlink()
    with pytest.raises((InvalidArgumentError, OSError), match=r"m\.(onnx|data)"):
        qatcore.onnx.quantize_model(tmp_path / "m.onnx", batches)


def test_models_larger_than_a_message_have_their_weights_beside_them(tmp_path, monkeypatch):
    from qatcore._onnx import encoding

    monkeypatch.setattr(encoding, "_MOST_INSIDE", 1000)
    model, batches = onnx_models.product(), onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, batches, output=tmp_path / "q.onnx")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["q.onnx", "q.onnx.data"]
    read = onnx.load(tmp_path / "q.onnx")
    np.testing.assert_array_equal(run(read, batches[0])[0], run(made, batches[0])[0])
    onnx.checker.check_model(str(tmp_path / "q.onnx"), full_check=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"weights": "int3"}, InvalidArgumentError, "weights: expected one of int8, int4, fp8, got 'int3'"),
        (
            {"activations": "int4"},
            InvalidArgumentError,
            "activations: expected one of uint8, int8, fp8, uint16, int16, none",
        ),
        ({"method": "best"}, InvalidArgumentError, "method: expected one of"),
        ({"percentile": 0.0}, InvalidArgumentError, "percentile: expected more than 0"),
        ({"percentile": float("nan")}, InvalidArgumentError, "percentile"),
        ({"group_size": 24}, InvalidArgumentError, "group_size: expected a power of two from 16 on"),
        ({"group_size": 8}, InvalidArgumentError, "group_size"),
        ({"per_tensor": 1}, TypeError, "per_tensor: expected a bool"),
        ({"ops": "Conv"}, TypeError, "ops: expected an iterable of names"),
        ({"exclude": [3]}, TypeError, "exclude: expected an iterable of names"),
        ({"max_drop": -1.0}, InvalidArgumentError, "max_drop: expected percent from 0 to 100"),
        ({"metric": 3}, TypeError, "metric: expected a function"),
        ({"metric": "no_module_of_test:f"}, InvalidArgumentError, "metric: there is no function"),
        ({"metric": len, "labels": "label"}, InvalidArgumentError, "labels: expected none beside a metric"),
        ({"labels": "label", "max_drop": 1.0}, InvalidArgumentError, "expected labels named 'label', got only x"),
        ({"output": "/nonexistent/x.onnx"}, OSError, "/nonexistent/x.onnx"),
    ],
)
def test_wrong_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        qatcore.onnx.quantize_model(*CONVOLUTIONS, **options)


def test_data_is_asked_for_where_it_is_needed():
    model = onnx_models.product()
    with pytest.raises(InvalidArgumentError, match="data: expected data to observe activations on, got none"):
        qatcore.onnx.quantize_model(model)
    with pytest.raises(InvalidArgumentError, match="max_drop: expected data"):
        qatcore.onnx.quantize_model(model, max_drop=1.0, activations="none")


def test_a_quantised_model_is_not_quantised_again():
    made = qatcore.onnx.quantize_model(onnx_models.product(), activations="none")
    with pytest.raises(InvalidArgumentError, match="quantised already"):
        qatcore.onnx.quantize_model(made, activations="none")


def test_what_is_no_model_is_refused(tmp_path):
    for name, content in (("empty", b""), ("text", b"hello"), ("zeros", bytes(100))):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InvalidArgumentError, match=f"{name}: not an ONNX model"):
            qatcore.onnx.quantize_model(path, activations="none")
    with pytest.raises(FileNotFoundError):
        qatcore.onnx.quantize_model(tmp_path / "missing", activations="none")
    with pytest.raises(TypeError, match=r"model: expected a path, a ModelProto or an onnx_ir\.Model, got int"):
        qatcore.onnx.quantize_model(3, activations="none")
