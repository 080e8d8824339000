"""Corrected biases: against the definition in float64, on what they are for, and where there is none to correct."""

import math

import numpy as np
import onnx
import onnx_models
import pytest
from insides import Graph, description, spec_of
from onnx import TensorProto, helper, numpy_helper
from onnx_models import AS_WRITTEN, node_of

import qatcore.onnx
from qatcore._onnx import correction, data, quantization
from qatcore._onnx.data import LEAST_BATCHES, SAMPLES, Data, Sample

pytestmark = pytest.mark.any_build


@pytest.fixture(autouse=True)
def _everything_helps(monkeypatch):
    """Keep every correction: which of them help is the subject of test_onnx_judging.py."""
    monkeypatch.setattr(quantization, "helpful", lambda parts, errors: parts)


def run(model, batch):
    """Run a model as it is written, of which all that is optimised has to be close."""
    optimized, written = onnx_models.run(model, batch), onnx_models.run(model, batch, AS_WRITTEN)
    for a, b in zip(optimized, written, strict=True):
        if b.dtype.kind == "f":
            assert np.square(a - b).sum() < 1e-3 * np.square(b).sum()
    return written


def tensor(name, array):
    return onnx_models.tensor(name, array.astype(np.float32))


def stored(model, name, position=2):
    """Return the codes and the scale of a constant that a node reads."""
    index = Graph(model)
    maker = index.makers[node_of(model, name).input[position]]
    return tuple(index.value_of(given) for given in maker.input[:2])


def learned(batches):
    """Return the batches that corrections are computed from; the others judge them."""
    return batches[::2]


def two_layers():
    """Gemm, Relu, Gemm without a bias."""
    generator = np.random.default_rng(8)
    return onnx_models.model(
        [
            helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], "one"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w2"], ["y"], "two"),
        ],
        [onnx_models.value("x", ["N", 16])],
        [onnx_models.value("y", ["N", 6])],
        [
            tensor("w1", generator.standard_normal((16, 12))),
            tensor("b1", generator.standard_normal(12)),
            tensor("w2", generator.standard_normal((12, 6))),
        ],
    )


def positive_rows(n=8, batches=8):
    generator = np.random.default_rng(9)
    return [{"x": generator.gamma(0.5, 1.0, (n, 16)).astype(np.float32)} for _ in range(batches)]


def certain(mean, variance):
    """Return the part of a mean that is not by chance; the variance is that of the mean."""
    return mean * max(0.0, 1.0 - variance / mean**2) if mean else 0.0


def certain_means(errors):
    """Return the part of the means that is not by chance, in float64 and value by value."""
    result = []
    for column in errors.T:
        mean = math.fsum(column) / len(column)
        result.append(certain(mean, math.fsum((c - mean) ** 2 for c in column) / (len(column) - 1) / len(column)))
    return np.array(result)


def certain_gains(made, exact):
    """Return the slopes of regressions of exact values on quantised ones, as certain as their errors say."""
    result = []
    n = len(made)
    for a, b in zip(made.T, exact.T, strict=True):
        x, y = a - math.fsum(a) / n, b - math.fsum(b) / n
        slope = math.fsum(x * y) / math.fsum(x * x)
        variance = math.fsum((x * (y - slope * x)) ** 2) / math.fsum(x * x) ** 2 * n / (n - 1)
        result.append(min(max(1.0 + certain(slope - 1.0, variance), 0.9), 1.15))
    return np.array(result)


def test_corrections_are_those_of_the_definition():
    model, batches = two_layers(), positive_rows()
    made = qatcore.onnx.quantize_model(model, batches, weights="int4", group_size=0)
    index, exact = Graph(made), Graph(model)
    plain = qatcore.onnx.quantize_model(model, batches, weights="int4", group_size=0, bias_correction=False)

    def through_codes(values, name):
        [quantizer] = [n for n in made.graph.node if n.op_type == "QuantizeLinear" and n.input[0] == name]
        scale, zero_point = (index.value_of(given).astype(np.float64) for given in quantizer.input[1:])
        return (np.clip(np.rint(values / scale) + zero_point, 0, 255) - zero_point) * scale

    x = np.concatenate([batch["x"] for batch in learned(batches)])
    exact_values, values = x.astype(np.float64), x.astype(np.float64)
    for name, read, first in (("one", "x", True), ("two", "r", False)):
        given = node_of(model, name).input
        weight = exact.value_of(given[1]).astype(np.float64)
        before = exact.value_of(given[2]).astype(np.float64) if len(given) > 2 else np.zeros(6)
        codes, scale = stored(made, name, 1)
        _, step = stored(plain, name, 1)
        exact_values = exact_values @ weight + before
        bias_codes, bias_scale = (each.astype(np.float64) for each in stored(made, name))
        bias_step = bias_scale / scale * step  # before any gain
        rounded = np.rint(before / bias_step) * bias_step
        product = through_codes(values, read) @ (codes * step.astype(np.float64)) + rounded
        gain = certain_gains(product, exact_values) if first else np.ones(6)
        np.testing.assert_allclose(scale, step * gain, rtol=1e-5)  # ONNX Runtime adds up in float32
        error = gain * product - exact_values
        expected = np.rint((gain * rounded - certain_means(error)) / bias_scale)
        assert np.abs(expected - np.rint(before / bias_scale)).max() > 10  # there is something to correct
        assert first == (np.abs(gain - 1.0).max() > 0.01)
        np.testing.assert_allclose(bias_codes, expected, rtol=0, atol=1)
        values = gain * (product - rounded) + bias_codes * bias_scale
        if first:
            exact_values, values = np.maximum(exact_values, 0), np.maximum(values, 0)


def off(model, made, batches):
    """Return the differences of the first outputs, of every sample."""
    return np.concatenate([run(made, batch)[0].astype(np.float64) - run(model, batch)[0] for batch in batches])


FORMATS = [
    (weights, activations)
    for weights in ("int8", "int4", "fp8")
    for activations in ("uint8", "int8", "fp8", "none")
    if (weights, activations) != ("int4", "fp8")  # ONNX Runtime has no float8 of opset 21
]


@pytest.mark.parametrize(("weights", "activations"), FORMATS)
def test_means_are_off_by_no_more_than_chance(weights, activations):
    model, batches = (
        onnx_models.convolutions(),
        [{"x": np.abs(batch["x"])} for batch in onnx_models.images(8, batches=8)],
    )
    options = {"weights": weights, "activations": activations}
    made, without = (qatcore.onnx.quantize_model(model, batches, bias_correction=c, **options) for c in (True, False))
    onnx.checker.check_model(made, full_check=True)
    assert [description(m)["corrected"] for m in (made, without)] == [3, 0]
    errors = off(model, made, learned(batches))
    chance = np.sqrt(errors.var(axis=0, ddof=1) / len(errors))
    # With weights alone it is a float that a Sum adds.
    index, [name] = Graph(made), node_of(made, "last").input[2:] or [""]
    step = index.value_of(index.makers[name].input[1]) if name in index.makers else 0.0
    assert (np.abs(errors.mean(axis=0)) <= chance + step / 2 + 1e-6).all()
    assert np.abs(errors.mean(axis=0)).mean() < 0.7 * np.abs(off(model, without, batches).mean(axis=0)).mean()


def test_what_is_off_by_the_same_everywhere_is_put_right():
    """Samples that are all alike, as an even background is: what is left is the rounding of the bias."""
    model, batches = onnx_models.convolutions(), [{"x": np.full((3, 3, 8, 8), 0.37, np.float32)}] * 3
    made, without = (qatcore.onnx.quantize_model(model, batches, bias_correction=c) for c in (True, False))
    _, step = stored(made, "last")
    assert (np.abs(off(model, made, batches)) <= step / 2 + 1e-6).all()
    assert np.abs(off(model, without, batches)).max() > 10 * step.max()


@pytest.mark.parametrize("size", [0.0, 1.0])
def test_a_mean_that_is_certain_is_off_by_half_a_step_of_the_bias(size):
    # Of few bits, with steps that are seen: the bias's own rounding may not be taken off twice.
    generator = np.random.default_rng(21)
    rows = np.repeat(size * generator.standard_normal((1, 16)), 8, axis=0).astype(np.float32)
    tensors = [tensor("w", generator.standard_normal((16, 200))), tensor("b", generator.standard_normal(200))]
    model = onnx_models.model(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "one")],
        [onnx_models.value("x", ["N", 16])],
        [onnx_models.value("y", ["N", 200])],
        tensors,
    )
    made = qatcore.onnx.quantize_model(model, [{"x": rows}] * 2)
    exact = rows[0].astype(np.float64) @ Graph(model).value_of("w") + Graph(model).value_of("b")
    _, scale = stored(made, "one")
    off_by = np.abs(run(made, {"x": rows})[0][0] - exact) / scale
    assert off_by.max() < 0.51
    assert off_by.max() > 0.4  # as far as there are steps


def test_nothing_is_known_from_one_sample():
    batches = [{"x": onnx_models.images(1)[0]["x"]}]
    model = onnx_models.convolutions()
    made, without = (qatcore.onnx.quantize_model(model, batches, bias_correction=c) for c in (True, False))
    for name in ("first", "last"):
        np.testing.assert_array_equal(stored(made, name)[0], stored(without, name)[0])
    assert len(node_of(made, "second").input) == 2 or not node_of(made, "second").input[2]


def test_the_bias_of_a_product_is_what_is_added_to_it():
    generator = np.random.default_rng(11)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["p"], "added"),
        helper.make_node("Add", ["b", "p"], ["a"], "sum"),
        helper.make_node("MatMul", ["a", "w"], ["q"], "read twice"),
        helper.make_node("Add", ["q", "b"], ["c"], "apart"),
        helper.make_node("MatMul", ["q", "w"], ["d"], "by a matrix"),
        helper.make_node("Add", ["d", "m"], ["e"], "shifted"),
        helper.make_node("Gemm", ["e", "w", "b"], ["g"], "halved", beta=0.5),
        helper.make_node("Sum", ["c", "g"], ["y"]),
    ]
    tensors = {"w": generator.standard_normal((16, 16)) / 4, "b": generator.standard_normal(16)}
    tensors["m"] = generator.standard_normal((1, 1))
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", ["N", 16])],
        [onnx_models.value("y", ["N", 16])],
        [tensor(name, array) for name, array in tensors.items()],
    )
    made = qatcore.onnx.quantize_model(model, positive_rows())
    without = qatcore.onnx.quantize_model(model, positive_rows(), bias_correction=False)
    assert description(made)["corrected"] == 2
    changed = [(stored(m, "sum", 0)[0], stored(m, "shifted", 1)[0], stored(m, "halved")[0]) for m in (made, without)]
    assert [codes.shape for codes in changed[0]] == [(16,), (1, 16), (16,)]
    assert [bool((a != b).any()) for a, b in zip(*changed, strict=True)] == [True, False, True]
    # Everyone sees the product itself.
    seen = Graph(made).value_of(node_of(made, "apart").input[1])
    np.testing.assert_array_equal(seen, tensors["b"].astype(np.float32))


def test_transposed_and_grouped_convolutions():
    generator = np.random.default_rng(12)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["h"], "grouped", group=2),
        helper.make_node("ConvTranspose", ["h", "w2"], ["y"], "back", group=2),
    ]
    shapes = {"w1": (4, 3, 3, 3), "w2": (4, 5, 3, 3)}
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", ["N", 6, 8, 8])],
        [onnx_models.value("y", ["N", 10, 8, 8])],
        [tensor(name, generator.standard_normal(shape)) for name, shape in shapes.items()],
    )
    batches = [{"x": generator.gamma(0.5, 1.0, (8, 6, 8, 8)).astype(np.float32)} for _ in range(4)]
    ops = ["Conv", "ConvTranspose"]
    made, without = (qatcore.onnx.quantize_model(model, batches, ops=ops, bias_correction=c) for c in (True, False))
    assert stored(made, "grouped")[0].shape == (4,)
    assert stored(made, "back")[0].shape == (10,)
    means = [np.abs(off(model, m, batches).mean(axis=(0, 2, 3))).mean() for m in (made, without)]
    assert means[0] < 0.2 * means[1]


def test_parts_hand_on_sequences_strings_and_shared_weights():
    """What is not a tensor of floats goes from one part of the model to the next as well."""
    generator = np.random.default_rng(13)
    nodes = [
        helper.make_node("SequenceConstruct", ["x", "x"], ["s"]),
        helper.make_node("Shape", ["x"], ["n"]),
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
        helper.make_node("Gemm", ["h", "w", "b"], ["k"], "two"),
        helper.make_node("Identity", ["word"], ["said"]),
        helper.make_node("SequenceAt", ["s", "last"], ["z"]),
        helper.make_node("Reshape", ["z", "n"], ["r"]),
        helper.make_node("Add", ["k", "r"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "b"], ["y"], "three"),
        helper.make_node("Unique", ["said"], ["sorted"]),
    ]
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", ["N", 16]), onnx_models.value("word", ["M"], TensorProto.STRING)],
        [onnx_models.value("y", ["N", 16]), onnx_models.value("said", ["M"], TensorProto.STRING)],
        [
            tensor("w", generator.standard_normal((16, 16)) / 4),
            tensor("b", generator.standard_normal(16)),
            numpy_helper.from_array(np.array(1), "last"),
        ],
    )
    batches = [{**batch, "word": np.array(["a", "bc"], object)} for batch in positive_rows()]
    made, without = (qatcore.onnx.quantize_model(model, batches, bias_correction=c) for c in (True, False))
    means = [np.abs(off(model, m, batches).mean(axis=0)).mean() for m in (made, without)]
    assert means[0] < 0.7 * means[1]
    assert len([t for t in made.graph.initializer if t.dims == [16, 16]]) == 1


def chain(nodes, tensors, inputs=(), shape=("N", 16), integers=()):
    """A model from x to y, of tensors of floats, and perhaps of more inputs and integers."""
    return onnx_models.model(
        nodes,
        [onnx_models.value("x", list(shape)), *inputs],
        [onnx_models.value("y", ["N", 16])],
        [*(tensor(name, array) for name, array in tensors.items()), *integers],
    )


def square(seed=14):
    generator = np.random.default_rng(seed)
    return {"w": generator.standard_normal((16, 16)) / 4, "b": generator.standard_normal(16) + 1}


def test_channels_without_weights_keep_the_bias_of_a_product():
    """ONNX Runtime makes a Gemm of MatMul and Add, and codes of its bias."""
    nodes = [
        helper.make_node("MatMul", ["x", "v"], ["p"], "one"),
        helper.make_node("Add", ["p", "b"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"], "two"),
    ]
    tensors = square()
    tensors["v"] = tensors["w"] * np.where(np.arange(16) == 0, 0.0, np.where(np.arange(16) == 1, 1e-12, 1.0))
    model, batches = chain(nodes, tensors), positive_rows()
    for options in ({}, {"activations": "int8"}, {"per_tensor": True}, {"bias_correction": False}):
        made = qatcore.onnx.quantize_model(model, batches, **options)
        assert np.abs(off(model, made, batches)).mean() < 0.05


def test_a_shared_weight_is_right_for_all_biases_and_is_stored_once():
    tensors = square()
    tensors["w"][:, 3] = 0.0
    tensors["c"] = 1000.0 * tensors["b"]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
        helper.make_node("Gemm", ["h", "w", "c"], ["y"], "two"),
    ]
    model, batches = chain(nodes, tensors), positive_rows()
    made = qatcore.onnx.quantize_model(model, batches)
    assert len([t for t in made.graph.initializer if t.dims == [16, 16]]) == 1
    assert np.abs(off(model, made, batches))[:, 3].max() < 1e-3


def test_a_factor_of_no_bias_is_none_of_the_one_that_comes():
    tensors, batches = square(), positive_rows()
    model = chain([helper.make_node("Gemm", ["x", "w"], ["y"], "factor", beta=-1.0)], {"w": tensors["w"]})
    made = qatcore.onnx.quantize_model(model, batches)
    assert description(made)["corrected"] == 1
    assert np.abs(off(model, made, batches).mean(axis=0)).max() < 0.01


def test_positions_are_no_samples():
    """A batch of one, of which a Reshape makes many rows."""
    nodes = [
        helper.make_node("Reshape", ["x", "rows"], ["r"]),
        helper.make_node("Gemm", ["r", "w", "b"], ["y"], "gemm"),
    ]
    rows = numpy_helper.from_array(np.array([-1, 16]), "rows")
    model = chain(nodes, square(), shape=("N", 100, 16), integers=[rows])
    [batch] = positive_rows(100, batches=1)
    alone = [{"x": batch["x"][np.newaxis]}]
    assert description(qatcore.onnx.quantize_model(model, alone))["corrected"] == 0
    two = [{"x": np.stack([batch["x"], batch["x"]])}]
    assert description(qatcore.onnx.quantize_model(model, two))["corrected"] == 1


def test_how_many_rows_there_are_may_depend_on_values():
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
        helper.make_node("ReduceMean", ["h"], ["m"], axes=[1], keepdims=0),
        helper.make_node("Greater", ["m", "limit"], ["chosen"]),
        helper.make_node("Compress", ["h", "chosen"], ["c"], axis=0),
        helper.make_node("Gemm", ["c", "w", "b"], ["y"], "two"),
    ]
    for limit in (1.0, 1.1, 1e9):
        model = chain(nodes, {**square(), "limit": np.array(limit)})
        batches = positive_rows(64, batches=8)
        if limit > 1e8:
            with pytest.warns(qatcore.onnx.ModelWarning, match="no sample reached these nodes, .*: two$"):
                qatcore.onnx.quantize_model(model, batches)
        else:
            assert description(qatcore.onnx.quantize_model(model, batches))["corrected"] >= 1


def test_outputs_and_inputs_that_are_left_out():
    generator = np.random.default_rng(15)
    nodes = [
        helper.make_node("LSTM", ["x", "wl", "rl"], ["", "h"], "lstm", hidden_size=5),
        helper.make_node("Squeeze", ["h", "axis"], ["q"]),
        helper.make_node("Gemm", ["q", "v", "b"], ["g"], "one"),
        helper.make_node("Clip", ["g", "", "most"], ["c"]),
        helper.make_node("Gemm", ["c", "u", "b"], ["y"], "two"),
    ]
    shapes = {"wl": (1, 20, 7), "rl": (1, 20, 5), "v": (5, 3), "u": (3, 3), "b": 3}
    model = onnx_models.model(
        nodes,
        [onnx_models.value("x", [6, "N", 7])],
        [onnx_models.value("y", ["N", 3])],
        [
            *(tensor(name, generator.standard_normal(shape)) for name, shape in shapes.items()),
            numpy_helper.from_array(np.array([0]), "axis"),
            tensor("most", np.array(2.0)),
        ],
    )
    batches = [{"x": generator.standard_normal((6, 12, 7)).astype(np.float32)} for _ in range(4)]
    assert description(qatcore.onnx.quantize_model(model, batches))["corrected"] == 2


@pytest.mark.parametrize("used", [True, False])
def test_types_that_numpy_does_not_have_end_the_correction(used):
    nodes = [
        helper.make_node("Cast", ["x"], ["half"], to=TensorProto.BFLOAT16),
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
        helper.make_node("Cast", ["half"], ["back"], to=TensorProto.FLOAT),
        helper.make_node("Add", ["h", "back" if used else "x"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "b"], ["g"], "two"),
        helper.make_node("Add", ["g", "back"], ["y"]),
    ]
    made = qatcore.onnx.quantize_model(chain(nodes, square()), positive_rows())
    assert description(made)["corrected"] == (0 if used else 2)


def test_graphs_inside_of_nodes_read_what_other_parts_make():
    choices = [
        helper.make_graph([helper.make_node(op, ["h"], [op])], op, [], [onnx_models.value(op, ["N", 16])])
        for op in ("Neg", "Abs")
    ]
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
        helper.make_node("Gemm", ["x", "w", "b"], ["k"], "two"),
        helper.make_node("If", ["yes"], ["i"], then_branch=choices[0], else_branch=choices[1]),
        helper.make_node("Add", ["i", "k"], ["a"]),
        helper.make_node("Gemm", ["a", "w", "b"], ["y"], "three"),
    ]
    model = chain(nodes, square(), [onnx_models.value("yes", [], TensorProto.BOOL)])
    batches = [{**batch, "yes": np.array(n % 4 < 2)} for n, batch in enumerate(positive_rows())]
    made = qatcore.onnx.quantize_model(model, batches)
    assert description(made)["corrected"] == 3


def test_biases_that_are_not_finite_stay(recwarn):
    tensors = square()
    tensors["b"][2] = -np.inf
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
        helper.make_node("Softmax", ["h"], ["s"]),
        helper.make_node("Gemm", ["s", "w"], ["y"], "two"),
    ]
    model, batches = chain(nodes, tensors), positive_rows()
    for options in ({}, {"per_tensor": True}):
        made = qatcore.onnx.quantize_model(model, batches, **options)
        assert Graph(made).value_of(node_of(made, "one").input[2])[2] == -np.inf
        assert np.abs(off(model, made, batches)).mean() < 0.02
    assert not [warning for warning in recwarn if "qatcore" in str(warning.filename)]


@pytest.mark.parametrize("activations", ["uint8", "int8", "none"])
def test_float16(activations):
    """With a bias that is large for the products' steps, and a channel without weights."""
    generator = np.random.default_rng(16)
    tensors = {"w": 0.02 * generator.standard_normal((16, 16)), "b": generator.standard_normal(16) + 1}
    tensors["w"][:, 5] = 0.0
    half = TensorProto.FLOAT16
    model = onnx_models.model(
        [
            helper.make_node("Gemm", ["x", "w", "b"], ["h"], "one"),
            helper.make_node("Relu", ["h"], ["r"]),
            helper.make_node("Gemm", ["r", "w", "b"], ["y"], "two"),
        ],
        [onnx_models.value("x", ["N", 16], half)],
        [onnx_models.value("y", ["N", 16], half)],
        [onnx_models.tensor(name, array.astype(np.float16)) for name, array in tensors.items()],
    )
    batches = [{"x": batch["x"].astype(np.float16)} for batch in positive_rows()]
    for corrected in (True, False):
        made = qatcore.onnx.quantize_model(model, batches, activations=activations, bias_correction=corrected)
        assert np.abs(off(model, made, batches)).mean() < 0.01


def test_sensitivities_have_none():
    with pytest.raises(TypeError, match="expected no bias_correction, got one"):
        qatcore.onnx.sensitivity(two_layers(), positive_rows(), bias_correction=True)


def test_fewer_batches_where_all_would_not_fit(monkeypatch):
    model = onnx_models.convolutions()
    batches = onnx_models.images(4, batches=8)
    monkeypatch.setattr(correction, "MOST_BYTES", 1)
    few = qatcore.onnx.quantize_model(model, batches)
    monkeypatch.undo()
    calibration = qatcore.onnx.calibrate(model, batches)
    assert few == qatcore.onnx.quantize_model(model, [batches[i] for i in (0, 1, 4, 3)], calibration=calibration)
    assert few != qatcore.onnx.quantize_model(model, batches)


def test_data_that_can_be_gone_through_once_will_do():
    model, batches = onnx_models.convolutions(), onnx_models.images(4)
    assert qatcore.onnx.quantize_model(model, iter(batches)) == qatcore.onnx.quantize_model(model, batches)
    reused = np.empty_like(batches[0]["x"])

    def into_one_array():
        for batch in batches:
            reused[...] = batch["x"]
            yield {"x": reused}

    assert qatcore.onnx.quantize_model(model, into_one_array) == qatcore.onnx.quantize_model(model, batches)


def test_nodes_in_float_are_left_alone():
    model, batches = onnx_models.convolutions(), onnx_models.images(8)
    made = qatcore.onnx.quantize_model(model, batches, exclude=["first", "last"])
    without = qatcore.onnx.quantize_model(model, batches, exclude=["first", "last"], bias_correction=False)
    for name in ("first", "last"):
        values = [Graph(m).value_of(node_of(m, name).input[2]) for m in (made, without)]
        np.testing.assert_array_equal(*values)
    assert len(node_of(made, "second").input) == 3


@pytest.mark.parametrize("size", [1, 3, 8, 64, 100])
@pytest.mark.parametrize("n", [1, 2, 3, 7, 9, 64, 65, 1000])
def test_a_sample_is_spread_evenly(n, size):
    sample = Sample(spec_of(two_layers()))
    for number in range(n):
        sample.add({"x": np.full((size, 16), number, np.float32), "label": np.zeros(size)})
    numbers = [int(batch["x"][0, 0]) for batch in sample.batches]
    [step] = set(np.diff(numbers)) or {n}
    assert numbers == list(range(0, n, step))
    assert len(numbers) * size <= SAMPLES or len(numbers) < 2 * LEAST_BATCHES
    assert step == 1 or len(numbers) * size > SAMPLES / 4
    assert len(numbers) >= min(n, LEAST_BATCHES)
    assert all(list(batch) == ["x"] and len(batch["x"]) == size for batch in sample.batches)


def test_a_sample_is_no_larger_than_it_may_be(monkeypatch):
    monkeypatch.setattr(data, "SAMPLE_BYTES", 10 * 16 * 4)
    sample = Sample(spec_of(two_layers()))
    for number in range(100):
        sample.add({"x": np.full((4, 16), number, np.float32)})
    assert [int(batch["x"][0, 0]) for batch in sample.batches] == [0, 64]


def test_codes_are_corrected_and_not_a_runtimes_kernels():
    """ONNX Runtime multiplies weights alone in codes with activations in 8 bits of its own."""
    generator = np.random.default_rng(17)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"], "one"), helper.make_node("Add", ["p", "b"], ["y"])]
    tensors = {"w": np.abs(generator.standard_normal((1024, 16))), "b": generator.standard_normal(16)}
    model = chain(nodes, tensors, shape=("N", 1024))
    batches = [{"x": (0.5 + 0.25 * generator.integers(0, 2, (8, 1024))).astype(np.float32)} for _ in range(4)]
    noise = []
    for corrected in (True, False):
        made = qatcore.onnx.quantize_model(model, batches, activations="none", bias_correction=corrected)
        noise.append(np.square(off(model, made, batches)).sum())
    assert noise[0] <= noise[1] * 1.01


def test_a_sample_is_of_the_whole_data():
    batches = positive_rows(4, batches=5)
    given = Data(batches, spec_of(two_layers()))
    next(iter(given))
    assert [b["x"].tobytes() for b in given.sample()] == [b["x"].tobytes() for b in batches]
