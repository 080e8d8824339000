"""Channels between convolutions are divided by powers of two: exact, and only where nothing else reads them."""

import math

import numpy as np
import onnx
import onnx_models
import pytest
from insides import Graph, as_proto, description, prepared, read_model
from onnx import helper
from onnx_models import AS_WRITTEN, normal, run, sqnr, tensor, value

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._onnx import equalising
from qatcore._onnx.prepare import prepared as prepared_ir

pytestmark = pytest.mark.any_build

X = onnx_models.rng().standard_normal((8, 4, 12, 12)).astype(np.float32)
#: What the channels are divided by in the unbalanced network; the same function is computed.
SPREAD = np.array([-6, 5, 0, 4, -3, 2, -1, -1])
PASSING = {
    "nothing": [],
    "relu": [helper.make_node("Relu", ["c1"], ["p1"], "act")],
    "leaky": [helper.make_node("LeakyRelu", ["c1"], ["p1"], "act", alpha=0.3)],
    "prelu": [helper.make_node("PRelu", ["c1", "slopes"], ["p1"], "act")],
    "max": [helper.make_node("MaxPool", ["c1"], ["p1"], "act", kernel_shape=[2, 2])],
    "average": [helper.make_node("AveragePool", ["c1"], ["p1"], "act", kernel_shape=[2, 2], strides=[2, 2])],
    "global": [helper.make_node("GlobalAveragePool", ["c1"], ["p1"], "act")],
    "pad": [helper.make_node("Pad", ["c1", "border"], ["p1"], "act")],
}


def network(passing="relu", spread=SPREAD, groups=1, **changed):
    """A convolution, what passes multiples on, a convolution that reads it, and another one."""
    nodes = PASSING[passing]
    factors = np.exp2(spread).astype(np.float32)
    first, second = normal(8, 4, 3, 3) / 6, normal(8, 8 // groups, 1, 1) / 3
    made = first * factors[:, None, None, None]
    read = (second.reshape(groups, 8 // groups, 8 // groups) / factors.reshape(groups, 1, -1)).reshape(second.shape)
    constants = {
        "w1": made.astype(np.float32),
        "b1": (normal(8) / 4 * factors).astype(np.float32),
        "w2": read.astype(np.float32),
        "w3": normal(6, 8, 1, 1),
        "slopes": np.linspace(0.1, 0.5, 8, dtype=np.float32).reshape(8, 1, 1),
        "border": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        **changed,
    }
    return onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1] * 4),
            *nodes,
            helper.make_node("Conv", ["p1" if nodes else "c1", "w2"], ["c2"], "second", group=groups),
            helper.make_node("Sigmoid", ["c2"], ["s"], "end"),
            helper.make_node("Conv", ["s", "w3"], ["y"], "third"),
        ],
        [value("x", ["N", 4, 12, 12])],
        [value("y", [None] * 4)],
        [tensor(name, array) for name, array in constants.items()],
    )


def powers_of(model):
    """Return the powers of two that a model's tensors are divided by."""
    return prepared_ir(read_model(model), equalised=True).meta[equalising.EQUALISED]


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("passing", PASSING)
def test_equalising_changes_no_bit_of_the_outputs(passing, groups):
    model = network(passing, groups=groups)
    plain, equalised = prepared(model), prepared(model, equalised=True)
    assert powers_of(model)
    expected, found = (run(each, {"x": X}, AS_WRITTEN)[0] for each in (plain, equalised))
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("passing", PASSING)
def test_channels_out_of_balance_cost_nothing(passing):
    """The same function, with and without balance between its channels, is quantised with the same error."""
    options = {"bias_correction": False}
    balanced, spread = network(passing, 0 * SPREAD), network(passing)
    errors = [
        sqnr(run(model, {"x": X})[0], run(qatcore.onnx.quantize_model(model, X, **options), {"x": X})[0])
        for model in (balanced, spread)
    ]
    assert errors[1] > errors[0] - 1.5
    assert errors[1] > 25


def test_powers_undo_what_was_spread():
    spread = powers_of(network())
    assert spread.keys() == {"c1", "p1"}
    # Beside the spread, weights differ by their own balance, which is within a factor of two here.
    assert np.abs(np.array(spread["c1"]) - SPREAD).max() <= 1
    assert not powers_of(network(spread=0 * SPREAD))


def test_a_depthwise_chain_is_equalised_on_both_sides():
    model = network(groups=8)
    model.graph.node[3].CopyFrom(helper.make_node("Relu", ["c2"], ["s"], "end"))
    for constant in model.graph.initializer:
        if constant.name == "w3":
            constant.CopyFrom(tensor("w3", normal(6, 8, 1, 1) * np.exp2(-SPREAD[::-1])[:, None, None].astype("f4")))
    assert powers_of(model).keys() == {"c1", "p1", "c2", "s"}
    expected, found = (run(prepared(model, equalised=on), {"x": X}, AS_WRITTEN)[0] for on in (False, True))
    np.testing.assert_array_equal(found, expected)


def changed(model, change):
    result = onnx.ModelProto()
    result.CopyFrom(model)
    change(result.graph)
    return result


def insert(operator, **attributes):
    """Put an operator behind the first activation."""

    def change(graph):
        graph.node.insert(2, helper.make_node(operator, ["p1"], ["q"], "between", **attributes))
        graph.node[3].input[0] = "q"

    return change


def pad_channels(graph):
    graph.node[1].CopyFrom(helper.make_node("Pad", ["c1", "border"], ["p1"], "act"))
    graph.initializer.extend([tensor("wide", normal(8, 9, 1, 1))])
    graph.node[2].input[1] = "wide"


BLOCKED = {
    "an output": lambda graph: graph.output.append(value("p1", [None] * 4)),
    "another reader": lambda graph: graph.node.append(helper.make_node("Softplus", ["c1"], ["t"], "other")),
    "hard swish": insert("HardSwish"),
    "clip": insert("Clip"),
    "sigmoid": insert("Sigmoid"),
    "a shared weight": lambda graph: graph.node.append(
        helper.make_node("Conv", ["x", "w1"], ["t"], "other", pads=[1] * 4)
    ),
    "a reader's shared weight": lambda graph: graph.node.append(helper.make_node("Conv", ["s", "w2"], ["t"], "other")),
}


@pytest.mark.parametrize("what", BLOCKED)
def test_what_else_reads_a_tensor_or_a_weight_keeps_it_as_it_is(what):
    model = changed(network(), BLOCKED[what])
    if "t" in {name for node in model.graph.node for name in node.output}:
        model.graph.output.append(value("t", [None] * 4))
    assert not powers_of(model)


def test_padded_channels_stay_as_they_are():
    model = network("pad", border=np.array([0, 0, 0, 0, 0, 1, 0, 0]), w2=normal(8, 9, 1, 1))
    assert not powers_of(model)


@pytest.mark.parametrize("number", [np.inf, np.nan])
def test_weights_that_are_not_finite_stay_as_they_are(number):
    weights = normal(8, 8, 1, 1)
    weights[1, 2] = number
    assert not powers_of(network(w2=weights))


def test_channels_of_zeros_stay_as_they_are():
    dead = network()
    weights = {each.name: onnx.numpy_helper.to_array(each).copy() for each in dead.graph.initializer}
    weights["w1"][0], weights["b1"][0], weights["w2"][:, 3] = 0, 0, 0
    model = network(**weights)
    powers = powers_of(model)["c1"]
    assert powers[0] == powers[3] == 0
    expected, found = (run(prepared(model, equalised=on), {"x": X}, AS_WRITTEN)[0] for on in (False, True))
    np.testing.assert_array_equal(found, expected)
    nothing = network(w1=0 * weights["w1"], b1=0 * weights["b1"])
    assert not powers_of(nothing)


def test_weights_that_would_lose_bits_stay_as_they_are():
    """A weight near the least normal number has no room for a division."""
    weights = normal(8, 4, 3, 3)
    weights[1] *= 2.0**-10
    weights[1, 0, 0, 0] = np.finfo(np.float32).smallest_normal
    tiny = network(w1=weights * np.exp2(SPREAD).astype("f4")[:, None, None, None])
    index = Graph(as_proto(prepared_ir(read_model(tiny), equalised=True)))
    expected, found = (run(prepared(tiny, equalised=on), {"x": X}, AS_WRITTEN)[0] for on in (False, True))
    np.testing.assert_array_equal(found, expected)
    assert index.inputs == ["x"]


def test_logarithms_are_the_same_on_every_machine():
    x = np.concatenate([np.exp2(np.arange(-40.0, 40.0)), np.random.default_rng(0).uniform(1e-6, 1e6, 1000)])
    found = equalising._log2(x)
    np.testing.assert_array_equal(found[:80], np.arange(-40.0, 40.0))
    assert max(abs(a - math.log2(b)) for a, b in zip(found, x, strict=True)) < 0.0861


def test_comparing_undoes_the_powers():
    model = network()
    made = qatcore.onnx.quantize_model(model, X)
    powers = description(made)["equalised"]
    assert powers.keys() == {"p1"}
    noise = qatcore.onnx.compare(model, made, X).tensors
    assert noise["p1"] > 20
    values = normal(2, 8, 3, 3)
    np.testing.assert_array_equal(
        equalising.restored(values / np.exp2(powers["p1"]).astype("f4").reshape(8, 1, 1), powers["p1"]), values
    )


def test_tensors_that_you_name_are_those_of_the_model(tmp_path):
    """Their calibration quantises the model as it is."""
    model, path = network(), tmp_path / "calibration.npz"
    ours = qatcore.onnx.calibrate(model, X)
    named = qatcore.onnx.calibrate(model, X, tensors=list(ours.collectors))
    assert (ours.equalised, named.equalised) == (True, False)
    assert named.collectors["p1"].max_val > 4 * ours.collectors["p1"].max_val
    for calibration, powers in ((ours, {"p1"}), (named, set())):
        calibration.save(path)
        loaded = qatcore.onnx.Calibration.load(path)
        assert loaded == calibration
        made = qatcore.onnx.quantize_model(model, X, calibration=loaded, bias_correction=False)
        assert description(made)["equalised"].keys() == powers
    with pytest.raises(InvalidArgumentError, match="only one of both runs names its tensors"):
        qatcore.onnx.calibrate(model, X, calibration=named)
    with pytest.raises(InvalidArgumentError, match="of tensors that you name"):
        ours.merge(named)


def test_weights_alone_are_those_of_the_model():
    made = qatcore.onnx.quantize_model(network(), activations="none")
    assert description(made)["equalised"] == {}
