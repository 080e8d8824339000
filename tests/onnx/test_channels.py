"""Channels are padded with zeros where ONNX Runtime has a faster kernel for more of them, and nothing else changes."""

import numpy as np
import onnx_models
import pytest
from insides import description
from onnx import helper
from onnx_models import AS_WRITTEN, dequantized, normal, run, sqnr, tensor, value

import qatcore.onnx
from qatcore._onnx import quantization

pytestmark = pytest.mark.any_build


class Net:
    """A model that grows node by node, with random weights."""

    def __init__(self, channels=3):
        self.nodes, self.weights, self.channels = [], [], channels

    def add(self, operator, *inputs, **attributes):
        name = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], f"{operator}_{name}", **attributes))
        return name

    def constant(self, array):
        name = f"c{len(self.weights)}"
        self.weights.append(tensor(name, np.asarray(array)))
        return name

    def conv(self, source, inputs, outputs, kernel=1, groups=1, *, bias=True):
        weight = normal(outputs, inputs // groups, kernel, kernel) / np.float32((inputs // groups) ** 0.5 * kernel)
        given = [self.constant(weight), *([self.constant(normal(outputs) / 4)] if bias else [])]
        return self.add("Conv", source, *given, group=groups, pads=[kernel // 2] * 4)

    def model(self, *outputs):
        shapes = [value(name, [None] * 4) for name in outputs]
        return onnx_models.model(self.nodes, [value("x", ["N", self.channels, 12, 12])], shapes, self.weights)


def images(channels=3):
    return {"x": onnx_models.rng().standard_normal((4, channels, 12, 12)).astype(np.float32)}


def both(exact, monkeypatch, channels=3, **options):
    """Return a model that was quantised with padded channels and one without."""
    made = qatcore.onnx.quantize_model(exact, [images(channels)], **options)
    with monkeypatch.context() as patch:
        patch.setattr(quantization, "pad_channels", lambda model, **options: {})
        return made, qatcore.onnx.quantize_model(exact, [images(channels)], **options)


def widths(model):
    """Return the number of channels that each convolution of a quantised model makes."""
    nodes = [node for node in model.graph.node if node.op_type == "Conv"]
    return [len(dequantized(model, node, 1)[1]) for node in nodes]


def assert_same(made, other, exact, channels=3):
    pairs = zip(run(made, images(channels), AS_WRITTEN), run(other, images(channels), AS_WRITTEN), strict=True)
    assert all(np.array_equal(*pair) for pair in pairs)
    assert sqnr(run(exact, images(channels))[0], run(made, images(channels))[0]) > 20


def inverted_residuals(inner, behind="Relu", *, excitation=False):
    """Return a network of a convolution, a depthwise one, and one that joins the channels again, with a sum."""
    net = Net(16)
    wide = net.add(behind, net.conv("x", 16, inner))
    deep = net.add(behind, net.conv(wide, inner, inner, 3, inner))
    if excitation:
        pooled = net.add("GlobalAveragePool", deep)
        gate = net.add("HardSigmoid", net.conv(net.add("Relu", net.conv(pooled, inner, 8)), 8, inner))
        deep = net.add("Mul", deep, gate)
    return net.model(net.add("Tanh", net.add("Add", "x", net.conv(deep, inner, 16))))


@pytest.mark.parametrize("behind", ["Relu", "HardSwish", "Sigmoid", "LeakyRelu"])
@pytest.mark.parametrize("inner", [5, 8, 20, 24, 40])
def test_depthwise_convolutions_get_whole_vectors(inner, behind, monkeypatch):
    exact = inverted_residuals(inner, behind)
    made, other = both(exact, monkeypatch, 16)
    wide = -(-inner // 16) * 16
    assert (widths(made)[:2], widths(other)[:2]) == ([wide, wide], [inner, inner])
    assert_same(made, other, exact, 16)


@pytest.mark.parametrize("options", [{}, {"activations": "int8"}, {"per_tensor": True}, {"bias_correction": False}])
def test_excitation_has_these_channels_too(options, monkeypatch):
    exact = inverted_residuals(24, "HardSwish", excitation=True)
    made, other = both(exact, monkeypatch, 16, **options)
    if options.get("activations") != "int8":
        assert widths(made)[:4] == [32, 32, 8, 32]
    assert_same(made, other, exact, 16)


def test_slopes_have_these_channels_too(monkeypatch):
    net = Net(16)
    wide = net.add("PRelu", net.conv("x", 16, 20), net.constant(np.abs(normal(20, 1, 1)) / 4))
    exact = net.model(net.add("Tanh", net.conv(net.conv(wide, 20, 20, 3, 20), 20, 16)))
    made, other = both(exact, monkeypatch, 16)
    assert widths(made)[:2] == [32, 32]
    assert_same(made, other, exact, 16)


@pytest.mark.parametrize(("before", "behind"), [(24, 28), (28, 32), (20, 40), (32, 40), (24, 30)])
def test_channels_that_a_pad_adds_are_some_of_them(before, behind, monkeypatch):
    # As in BlazeFace: the sum has more channels than what is added, which is padded with zeros.
    net = Net(16)
    start = net.add("Relu", net.conv("x", 16, before))
    inner = net.conv(net.conv(start, before, before, 3, before), before, behind)
    padded = net.add("Pad", start, net.constant(np.array([0, 0, 0, 0, 0, behind - before, 0, 0])))
    total = net.add("Relu", net.add("Add", inner, padded))
    exact = net.model(net.add("Tanh", net.conv(net.conv(total, behind, behind, 3, behind), behind, 16)))
    made, other = both(exact, monkeypatch, 16)
    assert_same(made, other, exact, 16)
    assert max(width % 16 for width in widths(made)[:-1]) == 0
    if -(-before // 16) == -(-behind // 16):
        assert "Pad" not in {node.op_type for node in made.graph.node}


def test_a_pad_behind_what_makes_no_zeros_of_zeros_adds_what_it_did(monkeypatch):
    net = Net(16)
    start = net.add("Sigmoid", net.conv("x", 16, 24))
    inner = net.conv(net.conv(start, 24, 24, 3, 24), 24, 28)
    padded = net.add("Pad", start, net.constant(np.array([0, 0, 0, 0, 0, 4, 0, 0])))
    total = net.add("Add", inner, padded)
    exact = net.model(net.add("Tanh", net.conv(net.conv(total, 28, 28, 3, 28), 28, 16)))
    made, other = both(exact, monkeypatch, 16)
    assert widths(made)[:2] == [24, 24]
    assert_same(made, other, exact, 16)


@pytest.mark.parametrize("operator", ["Add", "HardSigmoid", "AveragePool and Add"])
def test_a_pad_behind_a_number_adds_what_it_did(operator, monkeypatch):
    net = Net(16)
    deep = net.add("Relu", net.conv(net.conv("x", 16, 24), 24, 24, 3, 24))
    if operator == "HardSigmoid":
        made = net.add("Mul", deep, net.add("HardSigmoid", deep))
        made = net.add("Add", made, net.constant(np.float32(0.5)))
    else:
        if "Pool" in operator:
            deep = net.add("AveragePool", deep, kernel_shape=[2, 2])
        made = net.add("Add", deep, net.constant(np.float32(1.5)))
    padded = net.add("Pad", made, net.constant(np.array([0, 0, 0, 0, 0, 16, 0, 0])))
    exact = net.model(net.add("Tanh", net.conv(padded, 40, 16)))
    assert_same(*both(exact, monkeypatch, 16), exact, 16)


def test_bytes_are_the_same_every_time():
    exact = inverted_residuals(24, "HardSwish", excitation=True)
    made = [qatcore.onnx.quantize_model(exact, [images(16)]).SerializeToString() for _ in range(3)]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("operator", ["Concat", "Reshape", "output", "Split", "If"])
def test_channels_that_others_see_stay(operator, monkeypatch):
    net = Net(16)
    deep = net.conv(net.conv("x", 16, 24), 24, 24, 3, 24)
    outputs = []
    if operator == "Concat":
        end = net.conv(net.add("Concat", deep, deep, axis=1), 48, 16)
    elif operator == "Reshape":
        flat = net.add("Reshape", deep, net.constant(np.array([0, 12, 24, 12])))
        end = net.conv(flat, 12, 16)
    elif operator == "Split":
        net.nodes.append(helper.make_node("Split", [deep], ["left", "right"], axis=1))
        end = net.conv(net.add("Add", "left", "right"), 12, 16)
    elif operator == "If":
        branch = helper.make_graph(
            [helper.make_node("Identity", [deep], ["inside"])], "branch", [], [value("inside", [None] * 4)]
        )
        chosen = net.add("If", net.constant(np.array(True)), then_branch=branch, else_branch=branch)
        end = net.add("Add", net.conv(deep, 24, 16), net.conv(chosen, 24, 16))
    else:
        end, outputs = net.conv(deep, 24, 16), [deep]
    exact = net.model(net.add("Tanh", end), *outputs)
    made, other = both(exact, monkeypatch, 16)
    assert widths(made) == widths(other)
    assert_same(made, other, exact, 16)


def test_channels_of_grouped_convolutions_stay(monkeypatch):
    net = Net(16)
    deep = net.conv(net.conv("x", 16, 24), 24, 24, 3, 24)
    exact = net.model(net.add("Tanh", net.conv(deep, 24, 16, 3, 2)))
    made, other = both(exact, monkeypatch, 16)
    assert widths(made) == widths(other)
    assert_same(made, other, exact, 16)


@pytest.mark.parametrize("activations", ["uint8", "int8"])
@pytest.mark.parametrize("kernel", [1, 3])
def test_images_get_a_fourth_channel(kernel, activations, monkeypatch):
    net = Net()
    exact = net.model(net.add("Tanh", net.add("Relu", net.conv("x", 3, 16, kernel))))
    made, other = both(exact, monkeypatch, activations=activations)
    pads = [node.op_type for node in made.graph.node].count("Pad")
    assert pads == (kernel > 1 and activations == "uint8")
    assert_same(made, other, exact)


def test_comparing_leaves_out_what_was_padded(monkeypatch):
    net = Net()
    deep = net.conv(net.add("Relu", net.conv("x", 3, 20, 3)), 20, 20, 3, 20)
    exact = net.model(net.add("Tanh", net.conv(net.add("Relu", deep), 20, 16)))
    made, other = both(exact, monkeypatch)
    assert description(made)["channels"]
    found, expected = (qatcore.onnx.compare(exact, each, [images()]).tensors for each in (made, other))
    assert found == expected


def test_weights_in_other_formats_stay():
    exact = inverted_residuals(24)
    for options in ({"weights": "int4"}, {"weights": "fp8", "activations": "fp8"}, {"activations": "none"}):
        made = qatcore.onnx.quantize_model(exact, [images(16)], **options)
        assert widths(made)[:2] == [24, 24]
        assert "channels" not in description(made)
