"""Models that are quantised already, by other tools: refused and shown; and codes at the borders of float models."""

import json
import logging

import numpy as np
import onnx
import onnx_models
import pytest
from insides import model_rows
from onnx import TensorProto, helper
from onnx_models import AS_WRITTEN, run, tensor, value
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_dynamic, quantize_static

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._cli.command import main
from qatcore._onnx.notices import ModelWarning

pytestmark = pytest.mark.any_build


class Reader(CalibrationDataReader):
    def __init__(self):
        self._left = iter(onnx_models.images(4))

    def get_next(self):
        return next(self._left, None)


@pytest.fixture(scope="module")
def by_onnx_runtime(tmp_path_factory):
    """The same model as ONNX Runtime's own tool quantises it, in each of its ways."""
    folder = tmp_path_factory.mktemp("quantised")
    onnx.save(onnx_models.convolutions(), folder / "float.onnx")
    logging.disable(logging.CRITICAL)
    try:
        for form in (QuantFormat.QDQ, QuantFormat.QOperator):
            quantize_static(folder / "float.onnx", folder / f"{form}.onnx", Reader(), quant_format=form)
        quantize_dynamic(folder / "float.onnx", folder / "dynamic.onnx")
    finally:
        logging.disable(logging.NOTSET)
    return folder


@pytest.mark.parametrize("options", [{}, {"weights": "int4", "activations": "none"}])
@pytest.mark.parametrize(
    ("name", "found"),
    [("QDQ", "DequantizeLinear"), ("QOperator", "2 QLinearConv"), ("dynamic", "2 ConvInteger")],
)
def test_models_of_onnx_runtimes_own_tool(by_onnx_runtime, capsys, name, found, options):
    path = by_onnx_runtime / f"{name}.onnx"
    with pytest.raises(InvalidArgumentError, match=f"quantised already: .*{found}.*; give the float model"):
        qatcore.onnx.quantize_model(path, onnx_models.images(4), **options)
    assert main(["inspect", str(path), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert "nodes" not in shown
    kinds = {row["op"] for rows in shown.values() for row in rows if "op" in row}
    assert {"QDQ": {"Conv", "Gemm"}, "QOperator": {"QLinearConv"}, "dynamic": {"ConvInteger"}}[name] <= kinds


def matmul_nbits():
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "s"], ["y"], "product", domain="com.microsoft", K=32, N=8, bits=4, block_size=32
    )
    graph = helper.make_graph(
        [node],
        "tested",
        [value("x", ["N", 32])],
        [value("y", ["N", 8])],
        [tensor("w", np.zeros((8, 1, 16), np.uint8)), tensor("s", np.ones(8, np.float32))],
    )
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17), helper.make_opsetid("com.microsoft", 1)], ir_version=8
    )


def weights_in_codes(trained):
    """Weights alone: stored as codes, or as floats that go through codes, as tools that train write them."""
    nodes = [helper.make_node("QuantizeLinear", ["w", "s", "z"], ["q"])] if trained else []
    stored = onnx_models.normal(48, 24) if trained else np.ones((48, 24), np.int8)
    return onnx_models.model(
        [
            *nodes,
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["v"]),
            helper.make_node("MatMul", ["x", "v"], ["y"]),
            helper.make_node("MatMul", ["y", "other"], ["z1"]),
        ],
        [value("x", ["N", 48])],
        [value("z1", ["N", 5])],
        [
            tensor("w" if trained else "q", stored),
            tensor("s", np.float32(0.1)),
            tensor("z", np.int8(0)),
            tensor("other", onnx_models.normal(24, 5)),
        ],
    )


def inside_of_a_branch():
    made = onnx_models.branches()
    then = made.graph.node[1].attribute[0].g
    zero = [helper.make_node("Constant", [], ["scale"], value=tensor("", np.float32(0.1)))]
    then.node.extend([*zero, helper.make_node("QuantizeLinear", ["y", "scale"], ["codes"])])
    return made


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (matmul_nbits(), "1 MatMulNBits"),
        (weights_in_codes(False), "1 DequantizeLinear"),
        (weights_in_codes(True), "1 QuantizeLinear, 1 DequantizeLinear"),
        (inside_of_a_branch(), "1 QuantizeLinear"),
    ],
)
def test_what_is_quantised_in_a_part_is_not_quantised_in_another(model, found):
    with pytest.raises(InvalidArgumentError, match=f"model: it is quantised already: {found}; give"):
        qatcore.onnx.quantize_model(model, activations="none")


def test_codes_between_two_nodes_are_refused():
    model = onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"]),
            helper.make_node("QuantizeLinear", ["p", "s", "z"], ["c"]),
            helper.make_node("DequantizeLinear", ["c", "s", "z"], ["d"]),
            helper.make_node("MatMul", ["d", "v"], ["y"]),
        ],
        [value("x", ["N", 48])],
        [value("y", ["N", 5])],
        [
            tensor("w", onnx_models.normal(48, 24)),
            tensor("v", onnx_models.normal(24, 5)),
            tensor("s", np.float32(0.1)),
            tensor("z", np.int8(0)),
        ],
    )
    with pytest.raises(InvalidArgumentError, match="quantised already: 1 QuantizeLinear, 1 DequantizeLinear"):
        qatcore.onnx.quantize_model(model, onnx_models.rows())


def with_borders(dtype, codes_in):
    """A product whose input comes out of codes, and whose output goes into codes."""
    scale, zero = tensor("s", np.float32(0.05)), tensor("z", dtype(100 if dtype is np.uint8 else -28))
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    first = [] if codes_in else [helper.make_node("QuantizeLinear", ["x", "s", "z"], ["c"])]
    return onnx_models.model(
        [
            *first,
            helper.make_node("DequantizeLinear", ["x" if codes_in else "c", "s", "z"], ["d"], "given"),
            helper.make_node("Reshape", ["d", "shape"], ["r"], "reshape"),
            helper.make_node("MatMul", ["r", "w"], ["p"], "product"),
            helper.make_node("QuantizeLinear", ["p", "s", "z"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
        ],
        [value("x", ["N", 48], kind if codes_in else TensorProto.FLOAT)],
        [value("y", ["N", 24])],
        [scale, zero, tensor("w", onnx_models.normal(48, 24)), tensor("shape", np.array([-1, 48]))],
    )


@pytest.mark.parametrize("activations", ["uint8", "int8", "fp8"])
@pytest.mark.parametrize("codes_in", [False, True])
@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_codes_at_the_borders_are_taken_over(dtype, codes_in, activations):
    model = with_borders(dtype, codes_in)
    x = np.random.default_rng(0).integers(-28, 100, (64, 48)).astype(dtype) if codes_in else onnx_models.normal(64, 48)
    batches = [{"x": x}]
    with pytest.warns(
        ModelWarning, match=r"[12] DequantizeLinear.* at its inputs and outputs stay as they are"
    ) as told:
        made = qatcore.onnx.quantize_model(model, batches, activations=activations, bias_correction=False)
    assert [each.filename for each in told] == [__file__]
    product = onnx_models.node_of(made, "product")
    made.graph.output.extend([value("r", ["N", 48]), value(product.input[0], ["N", 48])])
    _, before, after = run(made, batches[0], AS_WRITTEN)
    # Nothing is rounded twice: what has been codes is the same codes again, of 8 bits.
    assert np.array_equal(before, after) == (activations != "fp8")


def test_a_float_model_with_borders_is_shown_with_what_can_be_quantised():
    tables = {table.name: table for table in model_rows(with_borders(np.uint8, False))}
    assert [row[0] for row in tables["nodes"].rows] == ["product"]
    assert [row[0] for row in tables["activations"].rows] == ["x", "p"]
