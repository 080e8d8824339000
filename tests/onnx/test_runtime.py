"""What ONNX Runtime's optimiser makes of quantised models: it must leave what their codes stand for.

It gives codes of its own to weights and biases of nodes between codes, also to those that it makes first: a Gemm of
MatMul and Add, or a constant of others.
"""

import numpy as np
import onnx
import onnx_models
import pytest
from insides import Graph
from onnx import helper, numpy_helper
from onnx_models import AS_WRITTEN, dequantized, node_of, run, sqnr

import qatcore.onnx

pytestmark = pytest.mark.any_build


def biased(operator, dtype, bias, **attributes):
    """Return one node with a bias of a size, brought to a Tanh's range behind it, and batches."""
    image = [8, 8] if operator != "Gemm" else []
    weights = onnx_models.normal(16, 8, *[3 for _ in image]) / 12
    if operator == "Conv":
        weights = weights.swapaxes(0, 1)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = onnx_models.model(
        [
            helper.make_node(operator, ["x", "w", "b"], ["h"], "biased", **attributes),
            helper.make_node("Mul", ["h", "factor"], ["m"]),
            helper.make_node("Tanh", ["m"], ["y"]),
        ],
        [onnx_models.value("x", ["N", 16, *image], kind)],
        [onnx_models.value("y", ["N", 8, *[None for _ in image]], kind)],
        [
            onnx_models.tensor("w", weights.astype(dtype)),
            onnx_models.tensor("b", (onnx_models.normal(8) * bias).astype(dtype)),
            onnx_models.tensor("factor", dtype(1 / bias)),
        ],
        opset=19,
        ir_version=9,
    )
    return model, [{"x": onnx_models.normal(32, 16, *image).astype(dtype)}]


@pytest.mark.parametrize("options", [{}, {"per_tensor": True}, {"activations": "fp8"}, {"activations": "int8"}])
@pytest.mark.parametrize(
    ("operator", "attributes"),
    [("Conv", {}), ("ConvTranspose", {}), ("Gemm", {}), ("Gemm", {"beta": 0.5, "alpha": 2.0})],
)
@pytest.mark.parametrize(("dtype", "bias"), [(np.float16, 1), (np.float16, 100), (np.float32, 1e5)])
@pytest.mark.parametrize("corrected", [False, True])
def test_biases_too_large_for_codes(operator, attributes, dtype, bias, options, corrected):
    """ONNX Runtime gives codes to biases that are float in the model; those of float16 overflow soon."""
    model, batches = biased(operator, dtype, bias, **attributes)
    made = qatcore.onnx.quantize_model(model, batches, ops=[operator], bias_correction=corrected, **options)
    onnx.checker.check_model(made, full_check=True)
    exact, found = (run(m, batches[0])[0].astype(np.float64) for m in (model, made))
    assert sqnr(exact, found) > (30 if options.get("activations") != "fp8" else 24)


@pytest.mark.parametrize("fraction", [0.4, 0.6, 0.9, 0.999, 0.9999, 0.99999, -0.4, -0.9999])
@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_codes_of_biases_leave_room_for_the_products(operator, fraction):
    """ONNX Runtime's QLinearConv adds both in 32 bits, which wrap around."""
    image, attributes = ([1, 1], {}) if operator == "Conv" else ([], {"transB": 1})
    weights = np.abs(onnx_models.normal(8, 512)).reshape(8, 512, *image) * np.float32(np.sign(fraction))
    batch = {"x": np.abs(onnx_models.normal(4, 512)).reshape(4, 512, *image)}

    def quantized(bias):
        model = onnx_models.model(
            [
                helper.make_node(operator, ["x", "w", "b"], ["h"], "biased", **attributes),
                helper.make_node(operator, ["h", "v"], ["y"], "behind", **attributes),
            ],
            [onnx_models.value("x", ["N", 512, *image])],
            [onnx_models.value("y", ["N", 8, *image])],
            [
                onnx_models.tensor("w", weights),
                onnx_models.tensor("b", np.full(8, bias, np.float32)),
                onnx_models.tensor("v", np.eye(8, dtype=np.float32).reshape(8, 8, *image)),
            ],
        )
        return model, qatcore.onnx.quantize_model(model, [batch], per_tensor=True, bias_correction=False)

    constants = Graph(quantized(0.0)[1]).constants
    steps = [numpy_helper.to_array(constants[name]) for name in ("x_scale", "w_scale")]
    model, made = quantized(fraction * 2.0**31 * float(steps[0] * steps[1]))
    exact, found = (run(m, batch)[0] for m in (model, made))
    np.testing.assert_allclose(found, exact, rtol=1e-3)


@pytest.mark.parametrize("bias", [1e6, 1e7, 1e9, 1e11])
@pytest.mark.parametrize("operator", ["Conv", "Gemm"])
def test_a_large_bias_does_not_spoil_others_with_the_same_weight(operator, bias):
    image = [1, 1] if operator == "Conv" else []
    model = onnx_models.model(
        [
            helper.make_node(operator, ["x", "w", "b"], ["y"], "biased"),
            helper.make_node(operator, ["x", "w"], ["z"], "other"),
        ],
        [onnx_models.value("x", ["N", 8, *image])],
        [onnx_models.value(name, ["N", 8, *image]) for name in ("y", "z")],
        [
            onnx_models.tensor("w", onnx_models.normal(8, 8).reshape(8, 8, *image)),
            onnx_models.tensor("b", np.full(8, bias, np.float32)),
        ],
    )
    batch = {"x": onnx_models.normal(64, 8).reshape(64, 8, *image)}
    made = qatcore.onnx.quantize_model(model, [batch], bias_correction=False)
    (exact_biased, exact), (biased, found) = (run(m, batch) for m in (model, made))
    np.testing.assert_allclose(biased, exact_biased, rtol=1e-4)
    assert sqnr(exact, found) > 35
    assert len([t for t in made.graph.initializer if t.dims[:2] == [8, 8]]) == 1


@pytest.mark.parametrize("options", [{"activations": "none"}, {"activations": "none", "weights": "int4"}, {}])
def test_channels_without_weights_have_a_scale_like_the_others(options):
    """ONNX Runtime multiplies with weights alone as if steps told how exact that has to be."""
    weights = onnx_models.normal(64, 32) * np.float32(1e-4)
    weights[:, ::2] = 0.0
    model = onnx_models.model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "pruned")],
        [onnx_models.value("x", ["N", 64])],
        [onnx_models.value("y", ["N", 32])],
        [onnx_models.tensor("w", weights)],
    )
    batches = onnx_models.rows(64)
    made = qatcore.onnx.quantize_model(model, batches, **options)
    _, codes, scale = dequantized(made, node_of(made, "pruned"), 1)
    assert scale.max() < 1e-3
    assert not codes[:, ::2].any()
    assert np.abs(run(made, batches[0])[0][:, ::2]).max() < 1e-5
    # Nor has a weight that is all zero steps so wide that a bias in them would be lost.
    model, batches = biased("Gemm", np.float32, 1e-3)
    next(t for t in model.graph.initializer if t.name == "w").CopyFrom(onnx_models.tensor("w", np.zeros((16, 8), "f4")))
    made = qatcore.onnx.quantize_model(model, batches, per_tensor=True, **options)
    assert sqnr(*(run(m, batches[0])[0] for m in (model, made))) > 60


def between(operator, nodes, constants, dtype=np.float32, samples="N"):
    """Return a model with nodes from "h" to "i" between two of an operator, each with 8 channels, and a batch."""
    image = [4, 4] if operator == "Conv" else []
    square = [8, 8, *[1 for _ in image]]
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    constants = {"first": onnx_models.normal(*square) / 3, "last": np.eye(8).reshape(square), **constants}
    model = onnx_models.model(
        [
            helper.make_node(operator, ["x", "first"], ["h"]),
            *nodes,
            helper.make_node(operator, ["i", "last"], ["y"]),
        ],
        [onnx_models.value("x", [samples, 8, *image], kind)],
        [onnx_models.value("y", [samples, 8, *image], kind)],
        [
            onnx_models.tensor(name, np.asarray(array, dtype if np.asarray(array).dtype.kind == "f" else None))
            for name, array in constants.items()
        ],
        opset=19,
        ir_version=9,
    )
    return model, {"x": onnx_models.normal(64, 8, *image).astype(dtype)}


def middle(operator, *more, name="middle"):
    return helper.make_node(operator, ["h", "w", *more], ["m"], name)


def taken(name, operator, *inputs, condition="taken"):
    """Return an If that makes a tensor with an operator, or else of a negative."""
    made = [onnx_models.value(each, None) for each in ("then", "else")]
    nodes = helper.make_node(operator, inputs, ["then"]), helper.make_node("Neg", inputs[:1], ["else"])
    branches = [helper.make_graph([node], value.name, [], [value]) for node, value in zip(nodes, made, strict=True)]
    return helper.make_node("If", [condition], [name], then_branch=branches[0], else_branch=branches[1])


WEIGHT, IMAGE_WEIGHT = onnx_models.normal(8, 8) / 3, onnx_models.normal(8, 8, 1, 1) / 3
UNEVEN = IMAGE_WEIGHT * np.where(np.arange(8) == 0, 1000.0, 1.0).reshape(8, 1, 1, 1)
LARGE = np.full(8, 1e7)
CHAINS = {
    "MatMul and Add, one scale": (
        ("MatMul", [middle("MatMul"), helper.make_node("Add", ["m", "b"], ["i"])], {"w": WEIGHT, "b": LARGE}),
        {"per_tensor": True},
    ),
    "MatMul, Add and Relu, one scale": (
        (
            "MatMul",
            [
                middle("MatMul"),
                helper.make_node("Add", ["b", "m"], ["r"]),
                helper.make_node("Relu", ["r"], ["i"]),
            ],
            {"w": WEIGHT, "b": LARGE},
        ),
        {"per_tensor": True},
    ),
    "MatMul and Add, float16": (
        (
            "MatMul",
            [middle("MatMul"), helper.make_node("Add", ["m", "b"], ["i"])],
            {"w": WEIGHT, "b": np.linspace(-40, 40, 8)},
            np.float16,
        ),
        {},
    ),
    "MatMul and Add, excluded": (
        ("MatMul", [middle("MatMul"), helper.make_node("Add", ["m", "b"], ["i"])], {"w": WEIGHT, "b": LARGE}),
        {"exclude": ["middle"]},
    ),
    "MatMul and Add of a weight that others have": (
        (
            "MatMul",
            [
                helper.make_node("MatMul", ["h", "w"], ["g"]),
                helper.make_node("MatMul", ["g", "w"], ["m"]),
                helper.make_node("Add", ["m", "b"], ["i"]),
            ],
            {"w": WEIGHT, "b": LARGE},
        ),
        {},
    ),
    "MatMul, Dropout and Add": (
        (
            "MatMul",
            [middle("MatMul"), helper.make_node("Dropout", ["m"], ["d"]), helper.make_node("Add", ["d", "b"], ["i"])],
            {"w": WEIGHT, "b": LARGE},
        ),
        {"per_tensor": True},
    ),
    "MatMul and Add of Neg": (
        (
            "MatMul",
            [
                middle("MatMul"),
                helper.make_node("Neg", ["a"], ["b"]),
                helper.make_node("Add", ["b", "m"], ["i"]),
            ],
            {"w": WEIGHT, "a": LARGE},
        ),
        {"per_tensor": True},
    ),
    **{
        f"{operator} and BatchNormalization in float": (
            (
                "Conv",
                [
                    middle(operator),
                    helper.make_node("BatchNormalization", ["m", "gamma", "zeros", "zeros", "ones"], ["n"]),
                    helper.make_node("Clip", ["n", "low", "high"], ["i"]),
                ],
                {
                    "w": IMAGE_WEIGHT,
                    "gamma": UNEVEN[:, 0, 0, 0] / IMAGE_WEIGHT[:, 0, 0, 0],
                    "zeros": np.zeros(8),
                    "ones": np.ones(8),
                    "low": -3.0,
                    "high": 3.0,
                },
            ),
            {"exclude": ["middle"]} if operator == "Conv" else {},
        )
        for operator in ("Conv", "ConvTranspose")
    },
    "Gemm and Sum": (
        ("Gemm", [middle("Gemm"), helper.make_node("Sum", ["m", "b"], ["i"])], {"w": WEIGHT, "b": LARGE}),
        {"bias_correction": False},
    ),
    **{
        f"a bias of {operator}": (
            (
                "Conv",
                [
                    helper.make_node(operator, inputs, ["b"]),
                    middle("Conv", "b"),
                    helper.make_node("Identity", ["m"], ["i"]),
                ],
                {"w": IMAGE_WEIGHT, "a": LARGE[: 1 if operator == "Expand" else 8], "shape": [8], "two": 2.0},
            ),
            {},
        )
        for operator, inputs in (("Neg", ["a"]), ("Mul", ["a", "two"]), ("Expand", ["a", "shape"]))
    },
    **{
        f"{operator} in float, {what}": (
            (
                "Conv",
                [
                    middle(operator, "b"),
                    helper.make_node("Clip", ["m", "low", "high"], ["i"]),
                ],
                {
                    "w": weight if operator == "Conv" else weight.swapaxes(0, 1),
                    "b": bias,
                    "low": -high,
                    "high": high,
                },
            ),
            {"exclude": ["middle"]} if operator == "Conv" else {},
        )
        for operator in ("Conv", "ConvTranspose")
        for what, weight, bias, high in (
            ("large biases", IMAGE_WEIGHT, LARGE, 1e8),
            ("uneven channels", UNEVEN, np.zeros(8), 3.0),
        )
    },
    **{
        f"nothing but zeros, {activations}": (
            (
                "Conv",
                [
                    middle("Conv", "b"),
                    helper.make_node("Relu", ["m"], ["i"]),
                ],
                {"w": IMAGE_WEIGHT, "b": -LARGE},
            ),
            {"exclude": ["middle"], "activations": activations},
        )
        for activations in ("uint8", "fp8")
    },
    **{
        f"{operator} in float, If and {what}": (
            (
                "Conv",
                [middle(operator), *nodes],
                {
                    "w": UNEVEN if operator == "Conv" else UNEVEN.swapaxes(0, 1),
                    "low": -3.0,
                    "high": 3.0,
                    "taken": np.True_,
                    "never": np.False_,
                },
            ),
            {"exclude": ["middle"]} if operator == "Conv" else {},
        )
        for operator in ("Conv", "ConvTranspose")
        for what, nodes in {
            "nothing": [taken("i", "Clip", "m", "low", "high")],
            "Clip": [taken("j", "Identity", "m"), helper.make_node("Clip", ["j", "low", "high"], ["i"])],
            "Relu and Clip": [
                taken("j", "Identity", "m"),
                helper.make_node("Relu", ["j"], ["k"]),
                helper.make_node("Clip", ["k", "low", "high"], ["i"]),
            ],
            "MaxPool": [
                helper.make_node("Not", ["never"], ["known"]),
                taken("j", "Clip", "m", "low", "high", condition="known"),
                helper.make_node("MaxPool", ["j"], ["i"], kernel_shape=[1, 1]),
            ],
        }.items()
    },
    "MatMul, If and Add": (
        (
            "MatMul",
            [middle("MatMul"), taken("j", "Identity", "m"), helper.make_node("Add", ["j", "b"], ["i"])],
            {"w": WEIGHT, "b": LARGE, "taken": np.True_},
        ),
        {},
    ),
    "MatMul and Add of an If": (
        (
            "MatMul",
            [middle("MatMul"), taken("j", "Identity", "b"), helper.make_node("Add", ["m", "j"], ["i"])],
            {"w": WEIGHT, "b": LARGE, "taken": np.True_},
        ),
        {"per_tensor": True},
    ),
    "weights of an If": (
        (
            "Conv",
            [
                taken("w", "Identity", "v"),
                middle("Conv"),
                helper.make_node("Clip", ["m", "low", "high"], ["i"]),
            ],
            {"v": UNEVEN, "low": -3.0, "high": 3.0, "taken": np.True_},
        ),
        {},
    ),
    "shapes that are fixed": (
        (
            "Conv",
            [
                middle("Conv"),
                helper.make_node("Shape", ["m"], ["s"]),
                helper.make_node("Expand", ["m", "s"], ["j"]),
                helper.make_node("Clip", ["j", "low", "high"], ["i"]),
            ],
            {"w": UNEVEN, "low": -3.0, "high": 3.0},
            np.float32,
            64,
        ),
        {"exclude": ["middle"]},
    ),
    "weights of Mul": (
        (
            "Conv",
            [
                helper.make_node("Mul", ["v", "two"], ["w"]),
                middle("Conv"),
                helper.make_node("Clip", ["m", "low", "high"], ["i"]),
            ],
            {"v": UNEVEN, "two": 2.0, "low": -3.0, "high": 3.0},
        ),
        {},
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_nodes_between_codes_are_what_they_are(chain):
    what, options = CHAINS[chain]
    model, batch = between(*what)
    made = qatcore.onnx.quantize_model(model, [batch], **options)
    onnx.checker.check_model(made, full_check=True)
    exact, found, written = run(model, batch)[0], run(made, batch)[0], run(made, batch, AS_WRITTEN)[0]
    for channel in range(8):
        quality = sqnr(exact[:, channel], found[:, channel])
        assert quality > 15 and quality >= sqnr(exact[:, channel], written[:, channel]) - 3


def block(operator, name, source, weight, *bias):
    """Return an operator on three times three pixels and its Relu."""
    pads = {"pads": [1, 1, 1, 1]}
    return [
        helper.make_node(operator, [source, weight, *bias], [f"{name}_made"], name, **pads),
        helper.make_node("Relu", [f"{name}_made"], [name]),
    ]


WHOLE = {
    "a chain": [*block("Conv", "a", "x", "u"), *block("Conv", "b", "a", "v"), *block("Conv", "y", "b", "w")],
    "a pool": [
        *block("Conv", "a", "x", "u"),
        helper.make_node("MaxPool", ["a"], ["p"], kernel_shape=[2, 2]),
        *block("Conv", "y", "p", "v"),
    ],
    "an addition": [
        *block("Conv", "a", "x", "u"),
        *block("Conv", "b", "a", "v"),
        helper.make_node("Add", ["a", "b"], ["s"]),
        *block("Conv", "y", "s", "w"),
    ],
    "a concatenation with what is in float": [
        *block("Conv", "a", "x", "u"),
        helper.make_node("ConvTranspose", ["a", "v"], ["t"], pads=[1, 1, 1, 1]),
        helper.make_node("Concat", ["a", "t"], ["c"], axis=1),
        *block("Conv", "y", "c", "wide"),
    ],
    "an addition to what is in float": [
        *block("Conv", "a", "x", "u"),
        helper.make_node("ConvTranspose", ["a", "v"], ["t"], pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["t", "a"], ["s"]),
        *block("Conv", "y", "s", "w"),
    ],
}


@pytest.mark.parametrize("nodes", WHOLE)
def test_nothing_is_divided_where_nothing_is_joined(nodes):
    weights = {name: onnx_models.normal(8, 8, 3, 3) / 9 for name in "uvw"}
    weights["wide"] = onnx_models.normal(8, 16, 3, 3) / 9
    read = {name for node in WHOLE[nodes] for name in node.input}
    model = onnx_models.model(
        WHOLE[nodes],
        [onnx_models.value("x", ["N", 8, 8, 8])],
        [onnx_models.value("y", [None] * 4)],
        [onnx_models.tensor(name, array) for name, array in weights.items() if name in read],
    )
    batch = {"x": onnx_models.normal(4, 8, 8, 8)}
    made = qatcore.onnx.quantize_model(model, [batch])
    assert "Div" not in {node.op_type for node in made.graph.node}
    assert sqnr(run(model, batch)[0], run(made, batch)[0]) > 25


@pytest.mark.parametrize("factor", [1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-20, 0.0])
@pytest.mark.parametrize("pooled", [False, True])
def test_channels_with_hardly_any_weights_stay_in_codes(factor, pooled):
    """As batch norms leave them; only where all that is made becomes codes."""
    weights = {name: onnx_models.normal(8, 8, 3, 3) / 9 for name in "uvw"}
    weights["v"][0] *= factor
    nodes = [*block("Conv", "a", "x", "u"), *block("Conv", "b", "a", "v", "bias")]
    nodes += [helper.make_node("MaxPool", ["b"], ["p"], kernel_shape=[2, 2])] if pooled else []
    model = onnx_models.model(
        [*nodes, *block("Conv", "y", "p" if pooled else "b", "w")],
        [onnx_models.value("x", ["N", 8, 8, 8])],
        [onnx_models.value("y", [None] * 4)],
        [
            onnx_models.tensor("bias", np.full(8, 0.1, np.float32)),
            *(onnx_models.tensor(*item) for item in weights.items()),
        ],
    )
    batch = {"x": onnx_models.normal(4, 8, 8, 8)}
    made = qatcore.onnx.quantize_model(model, [batch])
    assert "Div" not in {node.op_type for node in made.graph.node}
    assert dequantized(made, node_of(made, "b"), 2)[1].dtype == np.int32
    assert sqnr(run(model, batch)[0], run(made, batch)[0]) > 25


def test_a_bias_that_stays_in_float_costs_one_division():
    model = onnx_models.model(
        [*block("Conv", "a", "x", "u", "bias"), *WHOLE["a pool"][2:]],
        [onnx_models.value("x", ["N", 8, 8, 8])],
        [onnx_models.value("y", [None] * 4)],
        [
            onnx_models.tensor("bias", LARGE.astype(np.float32)),
            *(onnx_models.tensor(name, onnx_models.normal(8, 8, 3, 3) / 9) for name in "uv"),
        ],
    )
    batch = {"x": onnx_models.normal(4, 8, 8, 8)}
    made = qatcore.onnx.quantize_model(model, [batch], per_tensor=True)
    assert [node.op_type for node in made.graph.node].count("Div") == 1


@pytest.mark.parametrize("offset", [1e4, 1e6, 1e8])
def test_a_bias_that_all_channels_have_costs_no_precision(offset):
    model = onnx_models.model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "classes")],
        [onnx_models.value("x", ["N", 512])],
        [onnx_models.value("y", ["N", 10])],
        [
            onnx_models.tensor("w", onnx_models.normal(512, 10) / 23),
            onnx_models.tensor("b", np.full(10, offset, np.float32)),
        ],
    )
    batch = {"x": onnx_models.normal(256, 512)}
    made = qatcore.onnx.quantize_model(model, [batch], bias_correction=False)
    [exact], [found] = (run(m, batch) for m in (model, made))
    # To what float32 has room for beside the offset.
    assert np.sqrt(np.square(found - exact).mean()) < 0.02 + np.spacing(np.float32(offset))


def test_fp8_survives_onnx_runtime_behind_a_relu():
    """ONNX Runtime 1.32 drops a Relu before QuantizeLinear, whose FP8 codes are signed."""
    model, batches = onnx_models.convolutions(11), onnx_models.images(16)
    made = qatcore.onnx.quantize_model(model, batches, weights="fp8", activations="fp8")
    for batch in batches:
        np.testing.assert_allclose(run(made, batch)[0], run(made, batch, AS_WRITTEN)[0], rtol=1e-4, atol=1e-4)


BETWEEN = {
    "Identity": [("Identity", {})],
    "Dropout": [("Dropout", {})],
    "Transpose": [("Transpose", {"perm": [0, 1, 3, 2]})],
    "Slice": [("Slice", ([0], [6], [2]))],
    "MaxPool": [("MaxPool", {"kernel_shape": [2, 2]})],
    "AveragePool": [("AveragePool", {"kernel_shape": [2, 2]})],
    "Pad": [("Pad", ([0, 0, 1, 1, 0, 0, 1, 1],))],
    "Reshape": [("Reshape", ([0, 0, 4, -1],))],
    "Gather": [("Gather", ([0, 2, 1, 3],))],
    "Expand": [("Expand", ([2, 4, 8, 8],))],
    "Mul": [("Mul", (1.0,))],
    "Add": [("Add", (0.0,))],
    "Resize": [("Identity", {}), ("Resize", ([], [1, 1, 1, 1]))],
    "Cast": [("Cast", {"to": onnx.TensorProto.FLOAT})],
    "Concat": [("Concat", {"axis": 1})],
    "Tile": [("Tile", ([1, 1, 1, 1],))],
    "Squeeze": [("Unsqueeze", ([0],)), ("Squeeze", ([0],))],
    "DepthToSpace": [("SpaceToDepth", {"blocksize": 2}), ("DepthToSpace", {"blocksize": 2})],
}


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
@pytest.mark.parametrize("before", [False, True])
@pytest.mark.parametrize("between", BETWEEN)
def test_fp8_survives_onnx_runtime_behind_what_moves_a_relu(activation, before, between):
    """Runtimes exchange it with what is between, and drop it then."""
    constants = {"w": onnx_models.normal(3, 4, 3, 3), "low": np.float32(0), "high": np.float32(6)}
    nodes, name = [], "x"

    def add(operator, inputs, attributes=()):
        nonlocal name
        nodes.append(helper.make_node(operator, [name, *inputs], [f"t{len(nodes)}"], **dict(attributes)))
        name = nodes[-1].output[0]

    def add_all():
        for operator, how in BETWEEN[between]:
            if isinstance(how, dict):
                add(operator, [], how)
            else:
                names = [f"{operator}{len(nodes)}_{i}" for i in range(len(how))]
                kind = np.float32 if operator in {"Add", "Mul", "Resize"} else np.int64
                constants.update(zip(names, map(kind, how), strict=True))
                add(operator, names, {"axis": 1} if operator == "Gather" else {})

    if before:
        add_all()
    add(activation, ["low", "high"] if activation == "Clip" else [])
    add_all()
    add("Conv", ["w"])
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", [2, 4, 8, 8])],
        [onnx_models.value(name, [None] * 4)],
        [onnx_models.tensor(*item) for item in constants.items()],
        opset=19,
        ir_version=9,
    )
    batch = {"x": onnx_models.normal(2, 4, 8, 8)}
    made = qatcore.onnx.quantize_model(model, [batch], activations="fp8")
    exact, found, written = run(model, batch)[0], run(made, batch)[0], run(made, batch, AS_WRITTEN)[0]
    assert sqnr(exact, found) > 25
    np.testing.assert_allclose(found, written, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("operator", ["Reshape", "Transpose", "Squeeze"])
def test_what_moves_from_a_convolution_into_a_graph_inside(operator):
    """ONNX Runtime 1.32 ends the process on codes in front of such a move."""
    inputs, attributes = {"Reshape": (["c", "shape"], {}), "Transpose": (["c"], {}), "Squeeze": (["c"], {})}[operator]
    branches = [
        helper.make_graph([helper.make_node(op, ["r"], [op])], op, [], [onnx_models.value(op, None)])
        for op in ("Neg", "Abs")
    ]
    model = onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w"], ["c"], "captured"),
            helper.make_node(operator, inputs, ["r"], **attributes),
            helper.make_node("If", ["yes"], ["y"], then_branch=branches[0], else_branch=branches[1]),
            helper.make_node("Conv", ["x", "w"], ["d"], "other"),
            helper.make_node("Relu", ["d"], ["z"]),
        ],
        [onnx_models.value("x", [2, 3, 8, 8]), onnx_models.value("yes", [], onnx.TensorProto.BOOL)],
        [
            onnx_models.value("y", [None, None] if operator == "Reshape" else [None] * 4),
            onnx_models.value("z", [None] * 4),
        ],
        [
            onnx_models.tensor("w", onnx_models.normal(4, 3, 3, 3)),
            *([onnx_models.tensor("shape", np.array([0, -1]))] if operator == "Reshape" else []),
        ],
    )
    batch = {"x": onnx_models.normal(2, 3, 8, 8), "yes": np.array(True)}
    made = qatcore.onnx.quantize_model(model, [batch])
    for exact, found in zip(run(model, batch), run(made, batch), strict=True):
        assert sqnr(exact, found) > 25
