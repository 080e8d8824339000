"""Preparing models: the same outputs, the same names, and what can be quantised in plain sight."""

import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
from insides import Graph, opset_of, planned, prepared
from onnx import helper
from onnx.reference import ReferenceEvaluator

from qatcore import InvalidArgumentError
from qatcore._onnx.work import multiply_adds
from qatcore.onnx import quantize_model

pytestmark = pytest.mark.any_build

MODELS = {
    "convolutions": (onnx_models.convolutions(), onnx_models.images(3)[0]),
    "convolutions of opset 11": (onnx_models.convolutions(11), onnx_models.images(3)[0]),
    "constants": (onnx_models.convolutions(12, constants=True), onnx_models.images(3)[0]),
    "product": (onnx_models.product(), onnx_models.rows()[0]),
    "attention": (onnx_models.attention(), {"x": onnx_models.normal(2, 6, 16)}),
    "recurrent": (onnx_models.recurrent(), {"x": onnx_models.normal(6, 2, 8)}),
    "branches, then": (onnx_models.branches(), {"x": onnx_models.normal(3, 16), "condition": np.array(True)}),
    "branches, else": (onnx_models.branches(), {"x": onnx_models.normal(3, 16), "condition": np.array(False)}),
}


def run(model, batch):
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, batch)


@pytest.mark.parametrize("opset", [13, 19, 21])
@pytest.mark.parametrize("name", MODELS)
def test_a_prepared_model_computes_the_same(name, opset):
    model, batch = MODELS[name]
    before = model.SerializeToString()
    ready = prepared(model, opset)
    assert model.SerializeToString() == before
    onnx.checker.check_model(ready, full_check=True)
    assert opset_of(ready) == max(opset, opset_of(model))
    assert ready.graph.input == model.graph.input
    assert ready.graph.output == model.graph.output
    assert ready.metadata_props == model.metadata_props
    # Not ONNX's own evaluator, which computes the batch norm of opset 13 and before wrongly.
    for expected, found in zip(run(model, batch), run(ready, batch), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("constants", [False, True])
def test_batch_norms_are_folded_and_tensors_keep_their_names(constants):
    ready = prepared(onnx_models.convolutions(11, constants=constants))
    kinds = [node.op_type for node in ready.graph.node]
    assert kinds == ["Conv", "Relu", "MaxPool", "Conv", "Clip", "Flatten", "Gemm"]
    # The convolution makes what the batch norm has made.
    assert ready.graph.node[0].output[0] == "n1"
    assert {"gamma", "mean"}.isdisjoint(tensor.name for tensor in ready.graph.initializer)


def test_factors_and_terms_of_channels_are_folded():
    weight, factor, term = onnx_models.normal(4, 3, 1, 1), onnx_models.normal(4, 1, 1), onnx_models.normal(1, 4, 1, 1)
    model = onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("Mul", ["c", "f"], ["m"]),
            helper.make_node("Add", ["t", "m"], ["a"]),
            helper.make_node("Mul", ["a", "half"], ["y"]),
        ],
        [onnx_models.value("x", ["N", 3, 5, 5])],
        [onnx_models.value("y", ["N", 4, 5, 5])],
        [onnx_models.tensor(n, v) for n, v in (("w", weight), ("f", factor), ("t", term), ("half", np.float32(0.5)))],
    )
    ready = prepared(model)
    [node] = ready.graph.node
    index = Graph(ready)
    np.testing.assert_array_equal(
        index.value_of(node.input[1]),
        (((weight.astype(np.float64) * factor[..., None]).astype(np.float32)).astype(np.float64) * 0.5).astype("f"),
    )
    np.testing.assert_array_equal(index.value_of(node.input[2]), term.reshape(-1) * np.float32(0.5))


@pytest.mark.parametrize(
    ("shape", "other"), [([4, 3, 1, 1], [5, 5]), ([4, 3, 1, 1], [5]), ([5, 3, 1, 1], [1, 1, 5, 1])]
)
def test_what_is_not_of_channels_is_not_folded(shape, other):
    model = onnx_models.model(
        [helper.make_node("Conv", ["x", "w"], ["c"]), helper.make_node("Mul", ["c", "f"], ["y"])],
        [onnx_models.value("x", ["N", 3, 5, 5])],
        [onnx_models.value("y", ["N", shape[0], 5, 5])],
        [onnx_models.tensor("w", onnx_models.normal(*shape)), onnx_models.tensor("f", onnx_models.normal(*other))],
    )
    assert [node.op_type for node in prepared(model).graph.node] == ["Conv", "Mul"]


def test_what_others_read_is_not_folded_away():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("Mul", ["c", "f"], ["y"]),
        helper.make_node("Conv", ["x", "w"], ["d"]),
        helper.make_node("Mul", ["d", "f"], ["z"]),
        helper.make_node("Conv", ["x", "w"], ["v"]),
    ]
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", ["N", 3, 5, 5])],
        [onnx_models.value(name, ["N", 4, 5, 5]) for name in ("y", "c", "z", "v")],
        [onnx_models.tensor("w", onnx_models.normal(4, 3, 1, 1)), onnx_models.tensor("f", np.float32([[[2.0]]]))],
    )
    ready = prepared(model)
    # "c" is an output; the weight is shared, so what is folded has one of its own.
    assert [node.op_type for node in ready.graph.node] == ["Conv", "Mul", "Conv", "Conv"]
    x = {"x": onnx_models.normal(2, 3, 5, 5)}
    for a, b in zip(ReferenceEvaluator(model).run(None, x), ReferenceEvaluator(ready).run(None, x), strict=True):
        np.testing.assert_array_equal(a, b)


def test_weights_behind_a_change_of_form_are_computed():
    model = onnx_models.model(
        [
            helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
            helper.make_node("Identity", ["t"], ["i"]),
            helper.make_node("MatMul", ["x", "i"], ["y"], "product"),
        ],
        [onnx_models.value("x", ["N", 6])],
        [onnx_models.value("y", ["N", 4])],
        [onnx_models.tensor("w", onnx_models.normal(4, 6))],
    )
    ready = prepared(model)
    assert [node.op_type for node in ready.graph.node] == ["MatMul"]
    np.testing.assert_array_equal(Graph(ready).value_of("i"), onnx_models.normal(4, 6).T)
    assert len(ready.graph.initializer) == 1


def test_functions_are_inlined():
    function = helper.make_function(
        "own",
        "Twice",
        ["a", "b"],
        ["c"],
        [helper.make_node("MatMul", ["a", "b"], ["c"])],
        [helper.make_opsetid("", 17)],
    )
    graph = helper.make_graph(
        [helper.make_node("Twice", ["x", "w"], ["y"], domain="own")],
        "g",
        [onnx_models.value("x", ["N", 6])],
        [onnx_models.value("y", ["N", 4])],
        [onnx_models.tensor("w", onnx_models.normal(6, 4))],
    )
    model = helper.make_model(
        graph, functions=[function], opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    )
    ready = prepared(model)
    assert [node.op_type for node in ready.graph.node] == ["MatMul"]
    assert not ready.functions


def test_initializers_of_old_models_are_no_inputs():
    model = onnx_models.product(opset=8)
    model.ir_version = 3
    model.graph.input.append(onnx_models.value("w", [48, 24]))
    ready = prepared(model)
    assert [entry.name for entry in ready.graph.input] == ["x"]
    assert ready.ir_version >= 4
    assert planned(ready).nodes


def test_an_initializer_that_is_kept_as_an_input_is_no_constant():
    model = onnx_models.product()
    model.graph.input.append(onnx_models.value("w", [48, 24]))
    with pytest.raises(InvalidArgumentError, match=r"nothing to quantise: .*: its weights are an input, which keep"):
        planned(prepared(model, keep_inputs=True))
    assert len(planned(prepared(model)).nodes) == 1


def test_every_node_gets_a_name_of_its_own():
    model = onnx_models.convolutions()
    for node in model.graph.node:
        node.name = "" if node.op_type == "Relu" else "same"
    names = [node.name for node in prepared(model).graph.node]
    assert len(set(names)) == len(names)
    assert names[0] == "same"


def test_an_operator_that_cannot_be_upgraded_is_told():
    model = onnx_models.product(opset=9)
    model.graph.node[0].op_type = "Upsample"
    model.opset_import[0].version = 7
    with pytest.raises(InvalidArgumentError, match=r"cannot be brought to opset 13: .*export it with opset 13"):
        prepared(model)


# --- the plan -----------------------------------------------------------------------------------------


def test_codes_are_where_convolutions_read_and_write():
    chosen = planned(prepared(onnx_models.convolutions()))
    assert [node.name for node in chosen.nodes] == ["first", "second", "last"]
    # MaxPool and Flatten only move elements: they have the codes of what they read.
    assert chosen.inputs == {"x": "x", "r1": "r1", "p1": "r1", "r2": "r2", "f": "r2"}
    assert chosen.outputs == {"r1": "r1", "r2": "r2", "p1": "r1", "f": "r2"}
    assert chosen.tensors == ["x", "r1", "r2"]


def test_outputs_and_what_branches_read_stay_in_float():
    chosen = planned(prepared(onnx_models.branches()))
    assert [node.name for node in chosen.nodes] == ["before", "after"]
    assert chosen.inputs == {"x": "x", "z": "z"}
    assert not chosen.outputs


def test_products_of_activations_softmax_and_norms_stay_in_float():
    chosen = planned(prepared(onnx_models.attention()))
    assert [node.name for node in chosen.nodes] == ["query", "key", "out"]
    assert chosen.tensors == ["d", "a"]


@pytest.mark.parametrize("excluded", ["second", "c2"])
def test_nodes_are_excluded_by_their_name_or_what_they_make(excluded):
    chosen = planned(prepared(onnx_models.convolutions()), exclude=(excluded,))
    assert [node.name for node in chosen.nodes] == ["first", "last"]
    assert chosen.inputs == {"x": "x", "f": "r2"}


def test_operators_are_chosen():
    assert [node.name for node in planned(prepared(onnx_models.convolutions()), ops=("Gemm",)).nodes] == ["last"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ops": ("Relu",)}, "expected some of Conv, ConvTranspose, Gemm, MatMul, got Relu"),
        ({"exclude": ("missing",)}, "there is no node 'missing'"),
        ({"ops": ()}, "expected some of Conv, ConvTranspose, Gemm, MatMul, got none"),
        ({"ops": ("MatMul",)}, "nothing to quantise: no MatMul can be quantised; add Conv to ops$"),
        ({"exclude": ("first", "second", "last")}, "nothing to quantise: .* can be quantised; all were excluded$"),
    ],
)
def test_impossible_choices_are_refused(options, message):
    with pytest.raises(InvalidArgumentError, match=message):
        planned(prepared(onnx_models.convolutions()), **options)


def test_multiplications_are_counted():
    chosen = planned(prepared(onnx_models.convolutions()))
    weights = [(6, 3, 3, 3), (4, 6, 3, 3), (5, 64)]
    sources = [(2, 3, 8, 8), (2, 6, 4, 4), (2, 64)]
    outputs = [(2, 6, 8, 8), (2, 4, 4, 4), (2, 5)]
    counted = [multiply_adds(*shapes) for shapes in zip(chosen.nodes, weights, sources, outputs, strict=True)]
    assert counted == [2 * 6 * 64 * 27, 2 * 4 * 16 * 54, 2 * 5 * 64]


@pytest.mark.parametrize("groups", [1, 2])
def test_multiplications_of_a_transposed_convolution_are_counted(groups):
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], group=groups, strides=[2, 2])
    # Every element of the input meets every output channel of its group, at each of 3 x 3 places.
    assert multiply_adds(node, (4, 6 // groups, 3, 3), (2, 4, 5, 5), (2, 6, 11, 11)) == 2 * 4 * 25 * 9 * 6 // groups


@pytest.mark.parametrize("rank", [3, 5])
def test_convolutions_of_other_ranks_are_folded_too(rank):
    spatial = [5] * (rank - 2)
    ones = [1] * (rank - 2)
    model = onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"]),
            helper.make_node("BatchNormalization", ["c", "g", "b", "m", "v"], ["n"]),
            helper.make_node("Mul", ["n", "f"], ["y"]),
        ],
        [onnx_models.value("x", ["N", 3, *spatial])],
        [onnx_models.value("y", ["N", 4, *spatial])],
        [
            onnx_models.tensor("w", onnx_models.normal(4, 3, *ones)),
            *(onnx_models.tensor(name, np.abs(onnx_models.normal(4)) + 0.5) for name in "gbmv"),
            onnx_models.tensor("f", onnx_models.normal(4, *ones)),
        ],
    )
    ready = prepared(model)
    assert [node.op_type for node in ready.graph.node] == ["Conv"]
    x = {"x": onnx_models.normal(2, 3, *spatial)}
    np.testing.assert_allclose(run(ready, x)[0], run(model, x)[0], rtol=1e-4, atol=1e-5)


def test_batch_norms_without_a_finite_factor_are_not_folded():
    model = onnx_models.convolutions()
    for tensor in model.graph.initializer:
        if tensor.name == "variance":
            tensor.CopyFrom(onnx_models.tensor("variance", np.float32([-1e-3, 1, 1, 1, 1, 1])))
    assert "BatchNormalization" in [node.op_type for node in prepared(model).graph.node]


@pytest.mark.parametrize(
    ("weight", "operands", "why"),
    [
        (np.ones((4, 4)), ("x", "w"), "its weights are float64, not float32 or float16"),
        (np.full((4, 4), np.nan, np.float32), ("x", "w"), "its weights are not finite"),
        (np.ones((4, 4), np.float32), ("w", "x"), "its first operand is constant"),
        (np.ones((4, 4), np.float32), ("x", "x"), "its weights are not constant"),
    ],
)
def test_why_there_is_nothing_to_quantise(weight, operands, why):
    kind = helper.np_dtype_to_tensor_dtype(weight.dtype)
    model = onnx_models.model(
        [helper.make_node("MatMul", operands, ["y"], "product")],
        [onnx_models.value("x", [4, 4], kind)],
        [onnx_models.value("y", [4, 4], kind)],
        [onnx_models.tensor("w", weight)],
    )
    with pytest.raises(
        InvalidArgumentError, match=f"no Conv or Gemm or MatMul can be quantised; MatMul product: {why}"
    ):
        planned(prepared(model))


def test_what_lies_between_two_tensors_in_codes_is_in_codes():
    chosen = planned(prepared(onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "convolution"),
            helper.make_node("MaxPool", ["c"], ["p"], "pool", kernel_shape=[1, 1]),
            helper.make_node("Flatten", ["p"], ["f"], "flat"),
            helper.make_node("Gemm", ["f", "v"], ["y"], "last"),
            helper.make_node("Conv", ["p", "u"], ["q"], "second"),
            helper.make_node("Relu", ["p"], ["z"], "other"),
        ],
        [onnx_models.value("x", ["N", 3, 2, 2])],
        [
            onnx_models.value("y", ["N", 5]),
            onnx_models.value("z", ["N", 4, 2, 2]),
            onnx_models.value("q", ["N", 4, 2, 2]),
        ],
        [
            onnx_models.tensor("w", onnx_models.normal(4, 3, 1, 1)),
            onnx_models.tensor("u", onnx_models.normal(4, 4, 1, 1)),
            onnx_models.tensor("v", onnx_models.normal(16, 5)),
        ],
    )))  # fmt: skip
    assert chosen.inputs == {"x": "x", "c": "c", "f": "c", "p": "c"}
    assert chosen.readers == {"convolution", "pool", "flat", "second", "last"}


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("options", [{}, {"activations": "none"}, {"weights": "int4", "activations": "none"}])
def test_models_of_recurrent_layers_alone(op, options):
    gates = {"LSTM": 4, "GRU": 3}[op]
    model = onnx_models.model(
        [helper.make_node(op, ["x", "w", "r"], ["y"], hidden_size=5)],
        [onnx_models.value("x", [6, "N", 7])],
        [onnx_models.value("y", [6, 1, "N", 5])],
        [
            onnx_models.tensor("w", onnx_models.normal(1, gates * 5, 7)),
            onnx_models.tensor("r", onnx_models.normal(1, gates * 5, 5)),
        ],
    )
    with pytest.raises(
        InvalidArgumentError,
        match=f"nothing to quantise: .*; its weights are in 1 {op}, and stay in float: ONNX has no {op} on codes$",
    ):
        quantize_model(model, [{"x": onnx_models.normal(6, 2, 7)}], **options)


def test_where_weights_are_is_told():
    branches = [
        helper.make_graph(
            [helper.make_node("MatMul", ["e", "w"], [name])], name, [], [onnx_models.value(name, ["N", 3])]
        )
        for name in ("then", "else")
    ]
    model = onnx_models.model(
        [
            helper.make_node("Gather", ["table", "x"], ["e"]),
            helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]),
        ],
        [onnx_models.value("x", ["N"], onnx.TensorProto.INT64), onnx_models.value("yes", [], onnx.TensorProto.BOOL)],
        [onnx_models.value("y", ["N", 3])],
        [onnx_models.tensor("table", onnx_models.normal(9, 8)), onnx_models.tensor("w", onnx_models.normal(8, 3))],
    )
    message = "its weights are in 1 Gather, 2 MatMul inside of other nodes, and stay in float$"
    with pytest.raises(InvalidArgumentError, match=message):
        planned(prepared(model))


@pytest.mark.parametrize(("dtype", "alpha", "folded"), [("f4", 1e-6, True), ("f2", 0.5, True), ("f2", 1e-6, False)])
def test_factors_of_a_gemm_are_folded_where_no_bits_are_lost(dtype, alpha, folded):
    weight = (50 * onnx_models.normal(16, 8)).astype(dtype)
    bias = onnx_models.normal(8).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = onnx_models.model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "scaled", alpha=alpha, beta=0.5, transB=0)],
        [onnx_models.value("x", ["N", 16], kind)],
        [onnx_models.value("y", ["N", 8], kind)],
        [onnx_models.tensor("w", weight), onnx_models.tensor("b", bias)],
    )
    ready = prepared(model)
    [node] = ready.graph.node
    assert ("alpha" in {each.name for each in node.attribute}) != folded
    assert "beta" not in {each.name for each in node.attribute}
    index = Graph(ready)
    scaled = (weight.astype(np.float64) * np.float32(alpha)).astype(dtype) if folded else weight
    np.testing.assert_array_equal(index.value_of(node.input[1]), scaled)
    np.testing.assert_array_equal(index.value_of(node.input[2]), (bias.astype(np.float64) / 2).astype(dtype))
