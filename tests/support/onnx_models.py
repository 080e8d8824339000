"""Small ONNX models, one for each feature of real models."""

import numpy as np
import onnx
import onnxruntime
from insides import Graph
from onnx import TensorProto, helper, numpy_helper

OPTIMIZED, AS_WRITTEN = (
    onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL,
    onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL,
)


def run(model, batch, level=OPTIMIZED):
    """Return the outputs of a model in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = level
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, batch)


def sqnr(exact, other):
    """Return the signal-to-noise ratio of a tensor, in dB: its power, by the power of another tensor's error."""
    noise = np.square(exact.astype(np.float64) - other).sum()
    return 10 * np.log10(np.square(exact.astype(np.float64)).sum() / noise) if noise else np.inf


def dequantized(model, node, position):
    """Return the values of a node's constant input; codes are dequantised by the definition of DequantizeLinear.

    Weights alone of convolutions are a Cast of codes times a scale that has their dimensions.
    """
    index = Graph(model)
    maker = index.makers[node.input[position]]
    if maker.op_type == "Mul":
        codes, scale = index.value_of(index.makers[maker.input[0]].input[0]), index.value_of(maker.input[1])
        assert index.makers[maker.input[0]].op_type == "Cast"
        return codes.astype(np.float32) * scale, codes, scale
    assert maker.op_type == "DequantizeLinear"
    codes, scale = (index.value_of(name) for name in maker.input[:2])
    axis = next((a.i for a in maker.attribute if a.name == "axis"), None)
    block = next((a.i for a in maker.attribute if a.name == "block_size"), None)
    if block:
        scale = np.repeat(scale, block, axis=axis)[tuple(map(slice, codes.shape))]
    elif scale.ndim:
        scale = scale.reshape([-1 if a == axis else 1 for a in range(codes.ndim)])
    return codes.astype(np.float32) * scale, codes, scale


def tensor(name, array):
    return numpy_helper.from_array(np.asarray(array), name)


def value(name, shape, dtype=TensorProto.FLOAT):
    return helper.make_tensor_value_info(name, dtype, shape)


def model(nodes, inputs, outputs, initializers=(), opset=17, ir_version=8, **options):
    graph = helper.make_graph(nodes, "tested", inputs, outputs, list(initializers))
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version, **options)
    made.metadata_props.append(onnx.StringStringEntryProto(key="author", value="a test"))
    onnx.checker.check_model(made, full_check=True)
    return made


def node_of(model, name):
    """Return the node with a name."""
    return next(node for node in model.graph.node if node.name == name)


def rng():
    return np.random.default_rng(7)


def normal(*shape):
    return rng().standard_normal(shape).astype(np.float32)


def convolutions(opset=17, *, batch=None, constants=False):
    """Return a classifier: Conv, batch norm, Relu, MaxPool, Conv, Clip, Flatten, Gemm; 3 x 8 x 8 to 5 classes."""
    weights = {
        "w1": normal(6, 3, 3, 3),
        "b1": normal(6),
        "gamma": np.abs(normal(6)) + 0.5,
        "beta": normal(6),
        "mean": normal(6),
        "variance": np.abs(normal(6)) + 0.1,
        "w2": normal(4, 6, 3, 3) * 0.2,
        "low": np.float32(0.0),
        "high": np.float32(6.0),
        "w3": normal(5, 64) * 0.1,
        "b3": normal(5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w1", "b1"], ["c1"], "first", pads=[1, 1, 1, 1]),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "variance"], ["n1"], epsilon=1e-3),
        helper.make_node("Relu", ["n1"], ["r1"]),
        helper.make_node("MaxPool", ["r1"], ["p1"], kernel_shape=[2, 2], strides=[2, 2]),
        helper.make_node("Conv", ["p1", "w2"], ["c2"], "second", pads=[1, 1, 1, 1]),
        helper.make_node("Clip", ["c2", "low", "high"], ["r2"]),
        helper.make_node("Flatten", ["r2"], ["f"]),
        helper.make_node("Gemm", ["f", "w3", "b3"], ["y"], "last", transB=1),
    ]
    tensors = [tensor(name, array) for name, array in weights.items()]
    if constants:
        nodes = [helper.make_node("Constant", [], [t.name], value=t) for t in tensors] + nodes
        tensors = []
    first = "N" if batch is None else batch
    return model(nodes, [value("x", [first, 3, 8, 8])], [value("y", [first, 5])], tensors, opset)


def product(ndim=2, opset=17, dtype=np.float32, *, weight_ndim=2, k=48, n=24):
    """Return a model of one MatMul, with activations of `ndim` dimensions."""
    weight = normal(*[2] * (weight_ndim - 2), k, n).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    lead = ["N", 3, 2][: ndim - 1]
    return model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        [value("x", [*lead, k], kind)],
        [value("y", [*lead[: ndim - 1], n] if weight_ndim == 2 else [2, *lead[-1:], n], kind)],
        [tensor("w", weight)],
        opset,
    )


def branches(opset=11):
    """Return a model with a product, an If within an If that reads the product, and another product."""
    squeeze = helper.make_node("Squeeze", ["u"], ["inner_then"], axes=[0])
    inner_then = helper.make_graph([squeeze], "inner_then", [], [value("inner_then", ["A", "B"])])
    total = helper.make_node("ReduceSum", ["u"], ["inner_else"], axes=[0], keepdims=0)
    inner_else = helper.make_graph([total], "inner_else", [], [value("inner_else", ["A", "B"])])
    then = helper.make_graph(
        [
            helper.make_node("Unsqueeze", ["y"], ["u"], axes=[0]),
            helper.make_node("If", ["condition"], ["then"], then_branch=inner_then, else_branch=inner_else),
        ],
        "then",
        [],
        [value("then", ["A", "B"])],
    )
    otherwise = helper.make_graph([helper.make_node("Neg", ["y"], ["else"])], "else", [], [value("else", ["A", "B"])])
    return model(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], "before"),
            helper.make_node("If", ["condition"], ["z"], then_branch=then, else_branch=otherwise),
            helper.make_node("MatMul", ["z", "v"], ["out"], "after"),
        ],
        [value("x", ["N", 16]), value("condition", [], TensorProto.BOOL)],
        [value("out", ["N", 4])],
        [tensor("w", normal(16, 16)), tensor("v", normal(16, 4))],
        opset,
    )


def recurrent(opset=13):
    """Return a model with an LSTM between two products."""
    return model(
        [
            helper.make_node("MatMul", ["x", "w"], ["e"], "before"),
            helper.make_node("LSTM", ["e", "wl", "rl"], ["s", "h"], "lstm", hidden_size=5),
            helper.make_node("Squeeze", ["h", "axis"], ["q"]),
            helper.make_node("Gemm", ["q", "v"], ["y"], "after"),
        ],
        [value("x", [6, "N", 8])],
        [value("y", ["N", 3])],
        [
            tensor("w", normal(8, 7)),
            tensor("wl", normal(1, 20, 7) * 0.3),
            tensor("rl", normal(1, 20, 5) * 0.3),
            tensor("axis", np.array([0])),
            tensor("v", normal(5, 3)),
        ],
        opset,
    )


def attention():
    """Return an attention: layer norm in pieces, products with weights, and a Softmax of a product of activations."""
    return model(
        [
            helper.make_node("ReduceMean", ["x"], ["m"], axes=[-1]),
            helper.make_node("Sub", ["x", "m"], ["d"]),
            helper.make_node("MatMul", ["d", "wq"], ["q"], "query"),
            helper.make_node("MatMul", ["d", "wk"], ["k"], "key"),
            helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
            helper.make_node("MatMul", ["q", "kt"], ["s"], "scores"),
            helper.make_node("Softmax", ["s"], ["p"], axis=-1),
            helper.make_node("MatMul", ["p", "d"], ["a"], "mixed"),
            helper.make_node("MatMul", ["a", "wo"], ["y"], "out"),
        ],
        [value("x", ["N", 6, 16])],
        [value("y", ["N", 6, 8])],
        [tensor("wq", normal(16, 12)), tensor("wk", normal(16, 12)), tensor("wo", normal(16, 8))],
    )


def images(n, batches=6):
    """Return batches for `convolutions`."""
    generator = rng()
    return [{"x": generator.standard_normal((n, 3, 8, 8)).astype(np.float32)} for _ in range(batches)]


def detector(made=None, least=0.0):
    """Return a model with two more outputs: the values of its first output above `least`, and their places."""
    made = product() if made is None else made
    name = made.graph.output[0].name
    made.graph.node.extend(
        [
            helper.make_node("Greater", [name, "least"], ["above"]),
            helper.make_node("Compress", [name, "above"], ["chosen"]),
            helper.make_node("NonZero", ["above"], ["places"]),
        ]
    )
    made.graph.initializer.append(tensor("least", np.float32(least)))
    made.graph.output.append(value("chosen", ["M"]))
    made.graph.output.append(value("places", [2, "M"], TensorProto.INT64))
    return made


def answer(made, batch, name):
    """Return one output of a model in ONNX Runtime."""
    names = [value.name for value in made.graph.output]
    return run(made, {"x": batch["x"]})[names.index(name)]


def number(exact):
    """Return a metric: how near the number of values that a detector chooses is to the float model's number."""

    def score(outputs, batch):
        n = len(answer(exact, batch, "chosen"))
        return [1.0 - abs(len(outputs["chosen"]) - n) / n]

    return score


def rows(k=48, n=64, batches=4, dtype=np.float32):
    """Return batches for `product`."""
    generator = rng()
    return [{"x": generator.standard_normal((n, k)).astype(dtype)} for _ in range(batches)]
