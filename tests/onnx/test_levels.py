"""Random models give the same results at every level of ONNX Runtime's optimisations, and stay near the float model."""

import math

import numpy as np
import onnx_models
import onnxruntime
import pytest
from onnx import helper
from onnx_models import AS_WRITTEN, OPTIMIZED, run, sqnr, tensor, value

import qatcore.onnx

pytestmark = pytest.mark.any_build

BASIC, EXTENDED = (
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC,
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED,
)
OPSETS = {11: 6, 13: 7, 17: 8, 21: 10}  # with the version of the file format that came with each
WIDTHS = (3, 8, 20, 24)
#: The least SQNR of outputs, in dB.  Few have less than 25: a ReduceMax takes the greatest value, which ranges cut off.
LEAST = 15
#: By how many dB levels agree better with each other than with the float model, and how much agreement is enough.
MARGIN, ENOUGH = 3, 50


class Net:
    """A model that grows at random, from a number.

    A tensor is a name and a shape without the batch.  With dynamic sizes the shape is that of one batch.
    """

    def __init__(self, number):
        self.rng = np.random.default_rng(number)
        self.opset = self.pick(*OPSETS)
        self.is_dynamic = self.rng.random() < 0.3
        self.batch = "N" if self.is_dynamic or self.chance(0.5) else 4
        self.nodes, self.constants, self.outputs, self.made = [], [], [], []
        self.size = (self.pick(2, 3, 3, 8, 16), self.pick(8, 10, 12), self.pick(8, 10, 12))

    def pick(self, *options):
        return options[self.rng.integers(len(options))]

    def chance(self, share):
        return self.rng.random() < share

    # Parts of graphs.

    def constant(self, array):
        self.constants.append(tensor(f"c{len(self.constants)}", np.asarray(array)))
        return self.constants[-1].name

    def numbers(self, array):
        return self.constant(np.asarray(array, np.float32))

    def integers(self, *numbers):
        return self.constant(np.array(numbers, np.int64))

    def add(self, operator, *inputs, n=1, **attributes):
        names = [f"t{len(self.nodes)}{'abc'[i] if n > 1 else ''}" for i in range(n)]
        self.nodes.append(helper.make_node(operator, list(inputs), names, f"{operator}_{names[0]}", **attributes))
        return names[0] if n == 1 else names

    def along(self, operator, source, axes, since=13, **attributes):
        """Add a node whose axes are an input from some opset on."""
        if self.opset >= since:
            return self.add(operator, source, self.integers(*axes), **attributes)
        return self.add(operator, source, axes=axes, **attributes)

    def single(self, number):
        """Return a constant of one number, which has no dimensions or one."""
        return self.numbers(number if self.chance(0.6) else [number])

    def either(self, operator, first, second):
        """Add a node whose inputs may change places."""
        return self.add(operator, *((first, second) if self.chance(0.6) else (second, first)))

    def conv(self, source, outputs=None, kernel=None, stride=1, groups=1, *, bias=None):
        name, (channels, *sizes) = source
        outputs = outputs or self.pick(*WIDTHS, channels)
        kernel = min(kernel or self.pick(1, 3, 3, 5), *(size | 1 for size in sizes))
        weight = self.rng.standard_normal((outputs, channels // groups, kernel, kernel))
        weight *= np.exp(self.rng.standard_normal((outputs, 1, 1, 1)) / 3) / math.sqrt(channels // groups) / kernel
        given = [self.numbers(weight)]
        if self.chance(0.7) if bias is None else bias:
            given.append(self.numbers(self.rng.standard_normal(outputs) / 4))
        attributes = {"pads": [kernel // 2] * 4, "strides": [stride] * 2, "group": groups}
        return self.add("Conv", name, *given, **attributes), (outputs, *(-(-size // stride) for size in sizes))

    def product(self, source, outputs=None):
        """Add a Gemm or a MatMul along the last axis."""
        name, shape = source
        outputs = outputs or self.pick(3, 8, 20)
        weight = self.rng.standard_normal((shape[-1], outputs)) / math.sqrt(shape[-1])
        bias = self.numbers(self.rng.standard_normal(outputs) / 4)
        how = self.pick("MatMul", "MatMul and Add", *(["Gemm", "transposed"] if len(shape) == 1 else []))
        if how == "Gemm":
            made = self.add("Gemm", name, self.numbers(weight), *([bias] if self.chance(0.7) else []))
        elif how == "transposed":
            made = self.add("Gemm", name, self.numbers(weight.T), bias, transB=1)
        else:
            made = self.add("MatMul", name, self.numbers(weight))
            made = self.either("Add", made, bias) if how == "MatMul and Add" else made
        return made, (*shape[:-1], outputs)

    def hard_sigmoid(self, name):
        how = self.pick("HardSigmoid", "HardSigmoid", "Clip and Div", "Clip and Mul")
        if how == "HardSigmoid":
            alpha, beta = self.pick((1 / 6, 0.5), (0.2, 0.5), (0.25, 0.25), (1.0, 1.0))
            return self.add("HardSigmoid", name, alpha=alpha, beta=beta)
        clipped = self.add("Clip", self.either("Add", name, self.single(3)), self.numbers(0), self.numbers(6))
        if how == "Clip and Div":
            return self.add("Div", clipped, self.single(6))
        return self.either("Mul", clipped, self.single(1 / 6))

    def hard_swish(self, name):
        if self.opset >= 14 and self.chance(0.3):
            return self.add("HardSwish", name)
        if self.chance(0.5):
            return self.either("Mul", name, self.hard_sigmoid(name))
        clipped = self.add("Clip", self.either("Add", name, self.single(3)), self.numbers(0), self.numbers(6))
        multiplied = self.either("Mul", name, clipped)
        return self.add("Div", multiplied, self.single(6))

    def activated(self, source, share=1.0):
        """Perhaps add an activation."""
        name, shape = source
        if not self.chance(share):
            return source
        match self.pick("Relu", "Relu", "Relu6", "Clip", "LeakyRelu", "PRelu", "Sigmoid", "hard", "swish", "SiLU"):
            case "Relu6":
                made = self.add("Clip", name, self.numbers(0), self.numbers(6))
            case "Clip":
                made = self.add("Clip", name, self.numbers(self.pick(-1, -3, 0.0)), self.numbers(self.pick(1, 2.5)))
            case "LeakyRelu":
                made = self.add("LeakyRelu", name, alpha=self.pick(0.01, 0.1, 0.3))
            case "PRelu":
                slopes = self.rng.uniform(self.pick(0.05, -0.3), 0.4, (shape[0], *[1] * (len(shape) - 1)))
                made = self.add("PRelu", name, self.numbers(slopes if self.chance(0.7) else slopes.reshape(-1)[:1]))
            case "hard":
                made = self.hard_sigmoid(name)
            case "swish":
                made = self.hard_swish(name)
            case "SiLU":
                made = self.either("Mul", name, self.add("Sigmoid", name))
            case operator:
                made = self.add(operator, name)
        return made, shape

    def like(self, source):
        """Return a tensor of the same shape: one that is there, or a new one."""
        found = [other for other in self.made if other[1] == source[1] and other[0] != source[0]]
        return self.pick(*found) if found and self.chance(0.6) else self.conv(source, source[1][0])

    # Steps: each makes an image from an image.

    def convolution(self, source):
        return self.activated(self.conv(source, stride=self.pick(1, 1, 2) if min(source[1][1:]) > 4 else 1), 0.7)

    def depthwise(self, source):
        stride = self.pick(1, 1, 2) if min(source[1][1:]) > 4 else 1
        return self.activated(self.conv(source, source[1][0], self.pick(3, 5), stride, source[1][0]), 0.6)

    def residual(self, source):
        inner = self.activated(self.conv(source), 0.8)
        if self.chance(0.5):
            inner = self.activated(self.conv(inner, inner[1][0], 3, groups=inner[1][0]), 0.8)
        inner = self.conv(inner, source[1][0])
        return self.activated((self.either("Add", source[0], inner[0]), source[1]), 0.5)

    def excitation(self, source):
        name, (channels, *_) = source
        pooled = self.add("GlobalAveragePool", name)
        if self.chance(0.3):
            pooled = self.along("ReduceMean", name, [2, 3], 18, keepdims=1)
        inner = self.activated(self.conv((pooled, (channels, 1, 1)), self.pick(3, 8), 1), 0.8)
        inner = self.conv(inner, channels, 1)
        gate = self.add("Sigmoid", inner[0]) if self.chance(0.5) else self.hard_sigmoid(inner[0])
        return self.either("Mul", name, gate), source[1]

    def activation(self, source):
        return self.activated(source)

    def swish(self, source):
        return self.hard_swish(source[0]), source[1]

    def pair(self, source):
        operator = self.pick("Add", "Add", "Mul")
        return self.activated((self.either(operator, source[0], self.like(source)[0]), source[1]), 0.5)

    def channelwise(self, source):
        """Add or multiply by a tensor of one number for each channel."""
        other = self.add("GlobalAveragePool", self.like(source)[0])
        return self.either(self.pick("Add", "Mul"), source[0], other), source[1]

    def number(self, source):
        number = self.pick(3.0, 0.5, -1.0, -2.5, 0.1, 1 / 6, 2.0, 0.003)
        if (operator := self.pick("Add", "Mul", "Div")) == "Div":
            return self.add("Div", source[0], self.single(number if abs(number) > 0.1 else 4.0)), source[1]
        if operator == "Mul" and abs(number) < 0.1:
            number = 1.5
        return self.either(operator, source[0], self.single(number)), source[1]

    def concat(self, source):
        name, (channels, *sizes) = source
        others = [other for other in self.made if other[1][1:] == tuple(sizes) and other[0] != name]
        other = self.pick(*others) if others and self.chance(0.6) else self.activated(self.conv(source), 0.5)
        pair = [source, other] if self.chance(0.5) else [other, source]
        return self.add("Concat", *(name for name, _ in pair), axis=1), (channels + other[1][0], *sizes)

    def softmax(self, source):
        if self.opset < 13:  # where Softmax is over all axes from one on
            return self.activated(source)
        return self.add("Softmax", source[0], axis=self.pick(1, -1)), source[1]

    def pool(self, source):
        name, (channels, *sizes) = source
        if min(sizes) < 4:
            return self.activated(source)
        kernel, stride = self.pick((2, 2), (3, 2), (3, 1))
        pad = kernel // 2 if kernel == 3 else 0
        attributes = {"kernel_shape": [kernel] * 2, "strides": [stride] * 2, "pads": [pad] * 4}
        operator = self.pick("MaxPool", "AveragePool")
        if operator == "AveragePool":
            attributes["count_include_pad"] = self.pick(0, 1)
        return self.add(operator, name, **attributes), (
            channels,
            *((s + 2 * pad - kernel) // stride + 1 for s in sizes),
        )

    def pad(self, source):
        name, (channels, *sizes) = source
        more = self.pick(0, 0, 4)
        pads = [0, 0, *self.rng.integers(0, 2, 2), 0, more, *self.rng.integers(0, 3, 2)]
        given = [self.numbers(self.pick(0, 0, 1))] if self.chance(0.5) else []
        attributes = {"mode": self.pick("edge", "reflect")} if not more and self.chance(0.2) else {}
        made = self.add("Pad", name, self.integers(*pads), *given, **attributes)
        return made, (channels + more, *(size + pads[2 + i] + pads[6 + i] for i, size in enumerate(sizes)))

    def resize(self, source):
        name, (channels, *sizes) = source
        if max(sizes) > 10:
            return self.activated(source)
        attributes = self.pick(
            {"coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"},
            {"coordinate_transformation_mode": "half_pixel"},
        )
        region = "" if self.opset >= 13 else self.numbers(np.zeros(0))
        made = self.add("Resize", name, region, self.numbers([1, 1, 2, 2]), mode="nearest", **attributes)
        return made, (channels, *(2 * size for size in sizes))

    def shuffle(self, source):
        """Let channels change places, as in ShuffleNet."""
        name, shape = source
        if self.is_dynamic or shape[0] % 4:
            return self.add("Transpose", name, perm=[0, 1, 3, 2]), (shape[0], shape[2], shape[1])
        split = self.add("Reshape", name, self.integers(0, 4, shape[0] // 4, *shape[1:]))
        moved = self.add("Transpose", split, perm=[0, 2, 1, 3, 4])
        return self.add("Reshape", moved, self.integers(0, *shape)), shape

    def slices(self, source):
        """Turn pixels into channels, as in YOLO, or drop channels."""
        name, (channels, *sizes) = source
        if self.chance(0.5) or channels > 8 or min(sizes) < 4 or any(size % 2 for size in sizes):
            least, most = (0, channels - 1) if self.chance(0.5) else (1, channels)
            inputs = [self.integers(least), self.integers(most), self.integers(1)]
            return self.add("Slice", name, *inputs), (channels - 1, *sizes)
        ends, axes, steps = self.integers(*[2**31 - 1] * 2), self.integers(2, 3), self.integers(2, 2)
        parts = [
            self.add("Slice", name, self.integers(row, column), ends, axes, steps)
            for row in (0, 1)
            for column in (0, 1)
        ]
        return self.add("Concat", *parts, axis=1), (4 * channels, *(size // 2 for size in sizes))

    def split(self, source):
        name, (channels, *sizes) = source
        if channels % 2:
            return self.convolution(source)
        half = channels // 2
        sections = {"split": [half] * 2} if self.opset < 13 else {}
        given = [self.integers(half, half)] if self.opset >= 13 else []
        left, right = self.add("Split", name, *given, n=2, axis=1, **sections)
        inner = self.activated(self.conv((right, (half, *sizes)), half), 0.5)
        if self.chance(0.5):
            return self.add("Concat", inner[0], left, axis=1), source[1]
        return self.either("Add", inner[0], left), inner[1]

    def squeeze(self, source):
        axis = self.pick(1, 2, 4)
        return self.along("Squeeze", self.along("Unsqueeze", source[0], [axis]), [axis]), source[1]

    def gather(self, source):
        name, (channels, *sizes) = source
        chosen = self.rng.integers(0, channels, self.pick(*WIDTHS))
        return self.add("Gather", name, self.integers(*chosen), axis=1), (len(chosen), *sizes)

    def branch(self, source):
        """Add an If, whose branches read a tensor of the graph."""
        name, shape = source
        condition = self.add("Greater", self.add("ReduceMax", name, keepdims=0), self.numbers(self.pick(0, 1e3)))
        branches = {}
        for which, operator in (("then_branch", "Relu"), ("else_branch", self.pick("Neg", "Identity", "Tanh"))):
            inner = helper.make_node(operator, [name], [f"{which}{len(self.nodes)}"])
            ends = [value(inner.output[0], [None] * 4)]
            branches[which] = helper.make_graph([inner], which, [], ends)
        return self.add("If", condition, **branches), shape

    def rankless(self, source):
        """Multiply by a tensor without dimensions, or add it."""
        number = self.add("ReduceMax", self.like(source)[0], keepdims=0)
        if self.chance(0.5):
            number = self.add(self.pick("Sigmoid", "HardSigmoid", "LeakyRelu"), number)
        return self.either(self.pick("Add", "Mul"), source[0], number), source[1]

    def floats(self, source):
        """Add an operator that has no form on codes."""
        return self.add(self.pick("Tanh", "Abs", "Neg"), source[0]), source[1]

    STEPS = (*[convolution] * 3, *[depthwise] * 3, *[residual] * 3, *[excitation] * 2, *[activation] * 2)
    STEPS += (*[swish] * 2, *[pair] * 2, *[number] * 2, *[concat] * 2, channelwise, softmax, pool, pool, pad, resize)
    STEPS += (shuffle, slices, split, squeeze, gather, branch, rankless, floats)

    # Ends.

    def end(self, source):
        """Return what a network makes at last."""
        name, shape = source
        match self.pick("classes", "classes", "flat", "rows", "image"):
            case "classes":
                pooled = self.add("GlobalAveragePool", name)
                flat = self.pick("Flatten", "Squeeze", "Reshape")
                if flat == "Flatten":
                    made = self.add("Flatten", pooled)
                elif flat == "Squeeze":
                    made = self.along("Squeeze", pooled, [2, 3])
                else:
                    made = self.add("Reshape", pooled, self.integers(0, shape[0]))
                made = made, shape[:1]
            case "flat" if not self.is_dynamic:
                made = self.add("Flatten", name), (math.prod(shape),)
            case "rows":
                rows = self.add("Reshape", name, self.integers(0, shape[0], -1))
                made = self.add("Transpose", rows, perm=[0, 2, 1]), (shape[1] * shape[2], shape[0])
            case _:
                return self.activated(self.conv(source), 0.3)
        if self.chance(0.5):
            made = self.product(made)
            operator = self.pick("Relu", "Sigmoid", "LeakyRelu", "HardSigmoid")
            made = self.add(operator, made[0]), made[1]
        made = self.product(made)
        return (self.add("Softmax", made[0], axis=len(made[1])), made[1]) if self.chance(0.3) else made

    def grown(self):
        """Return a model and two batches; the second one is larger, where sizes are dynamic."""
        current = self.activated(self.conv(("x", self.size)), 0.7)
        for _ in range(self.rng.integers(3, 8)):
            self.made.append(current)
            if self.chance(0.08):
                self.outputs.append(current)
            if self.chance(0.15):  # another way that begins at an earlier tensor
                current = self.pick(*self.made)
            current = self.pick(*self.STEPS)(self, current)
        self.outputs.append(self.end(current))
        if self.chance(0.2):
            self.outputs.append(self.end(self.pick(*self.made)))
        outputs = dict(self.outputs)
        read = {name for node in self.nodes for name in node.input}
        ends = [value(name, [self.batch, *[None] * len(shape)]) for name, shape in outputs.items()]
        sizes = ["H", "W"] if self.is_dynamic else self.size[1:]
        made = onnx_models.model(
            self.nodes,
            [value("x", [self.batch, self.size[0], *sizes])],
            ends,
            [constant for constant in self.constants if constant.name in read],
            self.opset,
            OPSETS[self.opset],
        )
        shape = np.array([4, *self.size])
        other = shape * [2 if self.batch == "N" else 1, 1, *([2, 2] if self.is_dynamic else [1, 1])]
        return made, *({"x": self.rng.standard_normal(each).astype(np.float32)} for each in (shape, other))


def case(number):
    """Return a random model and two batches; the second one is larger, where sizes are dynamic."""
    return Net(number).grown()


def options(number, exact):
    """Return how to quantise the random model: some have int8 activations, and in some a convolution stays in float."""
    chosen = {"activations": "int8"} if number % 5 == 4 else {}
    if number % 3 == 2:
        nodes = [node.name for node in exact.graph.node if node.op_type == "Conv"]
        chosen["exclude"] = [nodes[number % len(nodes)]]
    return chosen


@pytest.mark.parametrize("number", range(50))
def test_every_level_gives_the_same_results(number):
    """Levels differ by less than what rounding to codes costs, and the float model's results are near.

    As written, a model dequantises codes, computes in float, and rounds to codes.  Kernels on codes compute the same in
    integers.  So a code differs by a step where a value is at a tie, to the precision of float32.  That is rare, but
    some products have ties by their nature, such as hard swish.  What follows passes the step on.

    ONNX Runtime itself is less precise in three places.  Its Softmax between codes misses by a step.  It rounds an
    output to codes if a Transpose that gets codes reads it, too.  It joins the codes before and behind a Relu, which
    changes their scale a little.

    So levels differ by half of the noise of quantising at most, or by noise 50 dB below the values.  Rounding a tensor
    to 8 bits makes more, about 40 dB.  Most levels agree to 100 dB.  A wrong scale makes more noise, and so do weights
    with one scale in place of many.  One in several hundred further models is beyond that, where a Softmax between
    codes or ties of a hard swish reach a whole output.
    """
    exact, *batches = case(number)
    made = qatcore.onnx.quantize_model(exact, batches, **options(number, exact))
    expected, written = run(exact, batches[-1], AS_WRITTEN), run(made, batches[-1], AS_WRITTEN)
    for level in (AS_WRITTEN, BASIC, EXTENDED, OPTIMIZED):
        for wanted, coded, found in zip(expected, written, run(made, batches[-1], level), strict=True):
            assert (found.shape, found.dtype) == (wanted.shape, wanted.dtype)
            assert sqnr(wanted, found) > LEAST
            assert sqnr(coded, found) > min(sqnr(wanted, coded) + MARGIN, ENOUGH)
