"""Which kernel ONNX Runtime gives every quantised node: each runtime must agree with docs/onnx-runtimes.md.

The suite runs this with the newest ONNX Runtime; CI also with older ones, each in an environment of its own.
"""

from pathlib import Path

import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
from onnx import helper
from onnx_models import AS_WRITTEN, OPTIMIZED, sqnr

import qatcore.onnx

pytestmark = [pytest.mark.any_build, pytest.mark.slow]

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "onnx-runtimes.md"
VERSION = tuple(map(int, onnxruntime.__version__.split(".")[:2]))
#: The versions that the table was made with, and CI runs.
OLDEST, FP8_ACTIVATIONS = (1, 20), (1, 32)
#: Operators that compute products; the others are what is around them.
KERNELS = {"QLinearConv", "QGemm", "QLinearMatMul", "MatMulIntegerToFloat", "MatMulNBits"}
FLOAT = {"Conv", "FusedConv", "ConvTranspose", "Gemm", "FusedGemm", "MatMul", "FusedMatMul"}
#: What the columns of the table are: weights and activations.
COLUMNS = {
    "int8, activations in codes": [("int8", "uint8"), ("int8", "int8")],
    "int8 alone": [("int8", "none")],
    "int4 alone": [("int4", "none")],
}
INTEGERS = [each for column in COLUMNS.values() for each in column]
FORMATS = [(weights, activations) for weights in ("int8", "int4", "fp8") for activations in ("uint8", "int8", "none")]
FORMATS += [("int8", "fp8"), ("fp8", "fp8")]
SIZE = 64

SHAPES = {
    "rank 2": (["N", SIZE], (32, SIZE)),
    "rank 2, static": ([32, SIZE], (32, SIZE)),
    "rank 3, static": ([2, 16, SIZE], (2, 16, SIZE)),
    "rank 3, dynamic": (["N", "S", SIZE], (2, 16, SIZE)),
    "rank 4, static": ([2, 4, 4, SIZE], (2, 4, 4, SIZE)),
    "rank 4, dynamic": (["N", 4, "S", SIZE], (2, 4, 4, SIZE)),
}


def node(operator, inputs, output, name=None, **attributes):
    return helper.make_node(operator, inputs, [output], name, **attributes)


def made(nodes, shape, constants):
    """Return a model from "x" to "y"."""
    read = {name for each in nodes for name in each.input}
    return onnx_models.model(
        nodes,
        [onnx_models.value("x", shape)],
        [onnx_models.value("y", [None for _ in shape])],
        [onnx_models.tensor(name, array) for name, array in constants.items() if name in read],
    )


def batch(shape):
    return {"x": np.random.default_rng(3).standard_normal(shape).astype(np.float32)}


MATRIX, OTHER = onnx_models.normal(SIZE, SIZE) / 8, onnx_models.normal(SIZE, SIZE)[::-1].copy() / 8
CONSTANTS = {
    "w": MATRIX,
    "v": OTHER,
    "stack": np.stack([MATRIX, OTHER]),
    "row": onnx_models.normal(SIZE),
    "low": np.float32(0.0),
    "high": np.float32(2.0),
    "below": np.float32(-0.5),
    "above": np.float32(0.5),
}
BIASES = {
    "(N,)": onnx_models.normal(SIZE),
    "(1, N)": onnx_models.normal(1, SIZE),
    "(1,)": onnx_models.normal(1),
    "()": np.float32(0.7),
    "(M, 1)": onnx_models.normal(32, 1),
    "(M, N)": onnx_models.normal(32, SIZE),
}
#: What comes behind a product "p": read in float, in codes by the next product, or in both, past an activation or not.
BEHIND = {
    "float": [node("Softmax", ["p"], "y")],
    "Relu, float": [node("Relu", ["p"], "r"), node("Softmax", ["r"], "y")],
    "Clip, float": [node("Clip", ["p", "low", "high"], "r"), node("Softmax", ["r"], "y")],
    "Relu, codes": [node("Relu", ["p"], "r"), node("MatMul", ["r", "v"], "y", "next")],
    "Clip, codes": [node("Clip", ["p", "below", "above"], "r"), node("MatMul", ["r", "v"], "y", "next")],
    "Relu, both": [
        node("Relu", ["p"], "r"),
        node("MatMul", ["r", "v"], "q", "next"),
        node("Softmax", ["r"], "s"),
        node("Add", ["q", "s"], "y"),
    ],
}


def forms():
    """Yield the row of the table that a form belongs to, its name, the model and a batch."""
    for where, (shape, size) in SHAPES.items():
        one = [node("MatMul", ["x", "w"], "p", "first")]
        yield "MatMul, read in float", where, made([*one, *BEHIND["float"]], shape, CONSTANTS), batch(size)
        two = [node("MatMul", ["x", "w"], "p", "first"), node("MatMul", ["p", "v"], "y", "next")]
        yield "MatMul, read by the next in codes", where, made(two, shape, CONSTANTS), batch(size)
        two = [node("MatMul", ["x", "w"], "p", "first"), node("MatMul", ["p", "w"], "y", "next")]
        name = f"{where}, with the same weight"
        yield "MatMul, read by the next in codes", name, made(two, shape, CONSTANTS), batch(size)
        row = "MatMul + Add, rank 2"
        if "rank 2" not in where:
            row = f"MatMul + Add, rank 3 or 4, {where.split(', ')[1]}"
        one = [node("MatMul", ["x", "w"], "m", "first")]
        for behind, nodes in BEHIND.items():
            added = [*one, node("Add", ["m", "row"], "p"), *nodes]
            yield row, f"{where}, {behind}", made(added, shape, CONSTANTS), batch(size)
        for what, bias in BIASES.items():
            if len(size) == 2 and "M" in what and "static" not in where:
                continue
            if "M" not in what or len(size) == 2:
                kind = row if what in {"(N,)", "()", "(1,)"} or "rank 2" in row else "MatMul + Add, anything else"
                added = [*one, node("Add", ["bias", "m"], "p"), *BEHIND["float"]]
                yield kind, f"{where}, {what}", made(added, shape, {**CONSTANTS, "bias": bias}), batch(size)
        added = [*one, node("Add", ["x", "m"], "p"), *BEHIND["Relu, float"]]
        yield "MatMul + Add, anything else", f"{where}, x", made(added, shape, CONSTANTS), batch(size)
        # A constant only to the runtime, which computes it.
        added = [node("Mul", ["row", "row"], "bias"), *one, node("Add", ["m", "bias"], "p"), *BEHIND["Relu, float"]]
        yield "MatMul + Add, anything else", f"{where}, computed", made(added, shape, CONSTANTS), batch(size)
    stacked = [node("MatMul", ["x", "stack"], "p", "first"), *BEHIND["float"]]
    yield "MatMul of a stack of matrices", "", made(stacked, ["N", 2, 16, SIZE], CONSTANTS), batch((3, 2, 16, SIZE))

    for transposed in ((0, 0), (0, 1), (1, 0), (1, 1)):
        shape, size = ([SIZE, "N"], (SIZE, 32)) if transposed[0] else SHAPES["rank 2"]
        attributes = dict(zip(("transA", "transB"), transposed, strict=True))
        for behind, nodes in BEHIND.items():
            gemm = [node("Gemm", ["x", "w", "row"], "p", "first", **attributes), *nodes]
            yield "Gemm", f"{attributes}, {behind}", made(gemm, shape, CONSTANTS), batch(size)
    shape, size = SHAPES["rank 2"]
    for factors in (
        {"alpha": 2.0},
        {"beta": 0.5},
        {"alpha": -0.5, "beta": 3.0, "transB": 1},
        {"beta": 0.0},
    ):
        gemm = [node("Gemm", ["x", "w", "row"], "p", "first", **factors), *BEHIND["float"]]
        yield "Gemm", str(factors), made(gemm, shape, CONSTANTS), batch(size)
        for source, behind in (("x", "Relu, float"), ("x", "Relu, codes"), ("row", "Clip, codes"), ("row", "float")):
            gemm = [node("Neg", [source], "c"), node("Gemm", ["x", "w", "c"], "p", "first", **factors)]
            name = f"{factors}, a bias made of {source}, {behind}"
            yield "Gemm", name, made([*gemm, *BEHIND[behind]], shape, CONSTANTS), batch(size)
    yield (
        "Gemm",
        "no bias",
        made([node("Gemm", ["x", "w"], "p", "first"), *BEHIND["Relu, float"]], shape, CONSTANTS),
        batch(size),
    )
    for what, bias in BIASES.items():
        gemm = [node("Gemm", ["x", "w", "bias"], "p", "first"), *BEHIND["float"]]
        yield "Gemm", what, made(gemm, SHAPES["rank 2, static"][0], {**CONSTANTS, "bias": bias}), batch(size)

    yield from convolutions()


def convolutions():
    """Yield the same of convolutions."""
    constants = {
        "w": onnx_models.normal(8, 8, 3, 3) / 9,
        "v": onnx_models.normal(8, 8, 3, 3)[::-1].copy() / 9,
        "one": onnx_models.normal(8, 1, 3, 3) / 3,
        "line": onnx_models.normal(8, 8, 3) / 5,
        "b": onnx_models.normal(8),
        "low": np.float32(0.0),
        "high": np.float32(2.0),
        "below": np.float32(-0.5),
        "above": np.float32(0.5),
    }
    last = [node("Conv", ["r", "v", "b"], "q", "next"), node("Tanh", ["q"], "y")]
    shape, size = ["N", 8, 12, 12], (4, 8, 12, 12)
    for what, inputs, attributes in (
        ("bias", ["x", "w", "b"], {}),
        ("no bias", ["x", "w"], {}),
        ("depthwise", ["x", "one", "b"], {"group": 8}),
        ("strides and pads", ["x", "w", "b"], {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
    ):
        for behind in (
            [],
            [node("Relu", ["c"], "r")],
            [node("Clip", ["c", "low", "high"], "r")],
            [node("Clip", ["c", "below", "above"], "r")],
        ):
            first = node("Conv", inputs, "c" if behind else "r", "first", **attributes)
            name = f"{what}, {[list(each.input[1:]) for each in behind]}"
            yield "Conv", name, made([first, *behind, *last], shape, constants), batch(size)
    line = [node("Conv", ["x", "line", "b"], "c", "first"), node("Tanh", ["c"], "y")]
    yield "Conv", "of one dimension", made(line, ["N", 8, 40], constants), batch((4, 8, 40))
    output = [node("Conv", ["x", "w", "b"], "y", "first")]
    yield "Conv whose result is an output", "", made(output, shape, constants), batch(size)
    back = [node("ConvTranspose", ["x", "w", "b"], "c", "first"), node("Tanh", ["c"], "y")]
    yield "ConvTranspose", "", made(back, shape, constants), batch(size)


FORMS = {f"{row}: {name}": (row, model, feed) for row, name, model, feed in forms()}


def expected():
    """Return the table of docs/onnx-runtimes.md: of each row and column what each version has."""
    lines = DOCUMENT.read_text().split("<!-- kernels -->\n\n")[1].split("\n\n")[0].splitlines()
    heading, _, *rows = ([cell.strip() for cell in line.strip("|").split("|")] for line in lines)
    assert heading[1:] == list(COLUMNS)
    table = {}
    for name, *cells in rows:
        for column, cell in zip(COLUMNS, cells, strict=True):
            kernels = [part.split(" from ") for part in cell.split(", ")]
            since = [(tuple(map(int, version[0].split("."))) if version else OLDEST) for _, *version in kernels]
            table[name, column] = [(start, kernel) for start, (kernel, *_) in zip(since, kernels, strict=True)]
    return table


def kernels_of(model, path):
    """Return a session, and the kernels that compute products in its optimised graph."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.optimized_model_filepath = str(path)
    # Products of weights alone as the other runtimes compute them: not with activations in 8 bits.
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(path, load_external_data=False).graph.node
    return session, [each.op_type for each in nodes if each.op_type in KERNELS | FLOAT]


def quantized(form, weights, activations):
    _, model, feed = FORMS[form]
    ops = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
    return qatcore.onnx.quantize_model(model, [feed], ops=ops, weights=weights, activations=activations)


@pytest.mark.parametrize(("weights", "activations"), INTEGERS)
@pytest.mark.parametrize("form", FORMS)
def test_every_product_has_the_kernel_that_the_documentation_says(form, weights, activations, tmp_path):
    row, model, feed = FORMS[form]
    column = next(name for name, formats in COLUMNS.items() if (weights, activations) in formats)
    [*_, kernel] = [name for since, name in expected()[row, column] if since <= VERSION]
    other = quantized(form, weights, activations)
    session, found = kernels_of(other, tmp_path / "optimized.onnx")
    n = sum(each.op_type in {"Conv", "ConvTranspose", "Gemm", "MatMul"} for each in model.graph.node)
    assert len(found) == n
    if kernel == "float":
        assert not KERNELS.intersection(found)
    elif "next" in {each.name for each in model.graph.node} and activations != "none":
        # The other product, whose form is another row's.
        assert kernel in found and KERNELS.issuperset(found)
    else:
        assert set(found) == {kernel}
    compared(session, model, other, feed)


@pytest.mark.parametrize("weights", ["int8", "fp8"])
@pytest.mark.parametrize("form", [name for name, (row, *_) in FORMS.items() if row.startswith("Conv")])
def test_convolutions_with_weights_alone_in_codes_run_as_the_float_model_does(form, weights, tmp_path):
    def operators(each):
        kernels_of(each, tmp_path / "optimized.onnx")
        return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]

    assert operators(quantized(form, weights, "none")) == operators(FORMS[form][1])


def in_float16(model):
    """Return a model with float16 in place of float32."""
    half = onnx.ModelProto()
    half.CopyFrom(model)
    for value in (*half.graph.input, *half.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    for tensor in half.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
    return half


@pytest.mark.parametrize("form", FORMS)
def test_products_of_float16_models_have_the_same_kernels(form, tmp_path):
    _, model, feed = FORMS[form]
    half = in_float16(model)
    feed = {name: array.astype(np.float16) for name, array in feed.items()}
    ops = ["Conv", "ConvTranspose", "Gemm", "MatMul"]
    other = qatcore.onnx.quantize_model(half, [feed], ops=ops)
    assert (other.graph.input, other.graph.output) == (half.graph.input, half.graph.output)
    session, found = kernels_of(other, tmp_path / "half.onnx")
    single = kernels_of(quantized(form, "int8", "uint8"), tmp_path / "single.onnx")[1]
    # Behind a Cast an output is no obstacle to integers.
    assert found == single or KERNELS.issuperset(found)
    exact = onnx_models.run(model, {name: array.astype(np.float32) for name, array in feed.items()})[0]
    assert sqnr(exact, session.run(None, feed)[0]) > 10


@pytest.mark.parametrize(("weights", "activations"), [each for each in FORMATS if each not in INTEGERS])
@pytest.mark.parametrize("form", FORMS)
def test_every_product_in_every_other_format_is_right(form, weights, activations, tmp_path):
    _, model, feed = FORMS[form]
    if "fp8" in {weights, activations} and activations != "none" and VERSION < FP8_ACTIVATIONS:
        pytest.skip("before 1.32 ONNX Runtime loads hardly any model with FP8 beside activations in codes")
    other = quantized(form, weights, activations)
    session, found = kernels_of(other, tmp_path / "optimized.onnx")
    assert KERNELS.isdisjoint(found)
    compared(session, model, other, feed)


def compared(session, model, other, feed):
    """Check that a runtime computes what codes stand for, to half a decibel: any two runtimes then agree to one."""
    exact = onnx_models.run(model, feed, OPTIMIZED)[0]
    found, written = session.run(None, feed)[0], onnx_models.run(other, feed, AS_WRITTEN)[0]
    assert sqnr(exact, found) > 10
    assert sqnr(exact, found) > sqnr(exact, written) - 0.5


@pytest.mark.skipif(VERSION >= FP8_ACTIVATIONS, reason="this ONNX Runtime loads FP8 beside activations in codes")
@pytest.mark.parametrize("form", ["Gemm: no bias", "MatMul, read in float: rank 2"])
def test_an_older_runtime_says_what_fp8_needs(form):
    """Some such models load there, others do not."""
    with pytest.warns(qatcore.onnx.ModelWarning, match=r"needs ONNX Runtime 1\.32 or newer, but 1\..* is installed"):
        try:
            quantized(form, "fp8", "fp8")
        except qatcore.InvalidArgumentError as error:
            assert "needs ONNX Runtime 1.32 or newer" in error.__notes__[0]
