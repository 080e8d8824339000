"""Why a quantised model is slower than the float one in ONNX Runtime, and what to try."""

from __future__ import annotations

import os
import tempfile

import onnx
from onnx import ModelProto, NodeProto, TensorProto

from .already_quantised import converts
from .display import counted
from .graph import Graph
from .plan import OPERATORS
from .session import LARGEST_MESSAGE, session_of, weight_bytes

#: A ratio of two times that is less than this may be chance.
_BY_CHANCE = 1.05
_FLOAT8 = frozenset({TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT8E5M2})


def why_slower(quantized: ModelProto, latency: tuple[float, float]) -> str | None:
    """Return a line on how ONNX Runtime runs a quantised model that is slower, and what has helped such models.

    Return None if the model is not slower than the float model, except by chance, or is too large to examine.

    Parameters
    ----------
    quantized : ModelProto
    latency : tuple of float
        The times of the float model and of the quantised one, in the same unit.
    """
    before, after = latency
    if after <= before * _BY_CHANCE or weight_bytes(quantized) >= LARGEST_MESSAGE:
        return None
    index = Graph(quantized)
    kinds = {_kind_of_codes(node, index) for node in quantized.graph.node if node.op_type == "QuantizeLinear"}
    if kinds & _FLOAT8:
        return "ONNX Runtime has no FP8 products; try --weights int8 --activations uint8"
    if not any(map(converts, quantized.graph.node)):
        return "no node is quantised; allow a larger --max-drop"
    if not kinds:
        return "quantised weights alone save memory, but seldom time; try --activations uint8"
    products = sum(node.op_type in OPERATORS for node in quantized.graph.node)
    nodes = list(_optimized(quantized).graph.node)
    in_float = sum(node.op_type.removeprefix("Fused") in OPERATORS for node in nodes)
    # Codes of int8 were slower than codes of uint8 in most models, and never much faster: docs/onnx-results.md.
    other = "--activations uint8, " if TensorProto.INT8 in kinds else ""
    between = counted(sum(map(converts, nodes)), "conversion")
    return f"{in_float} of {products} products run in float, {between} between; try {other}--exclude"


def _kind_of_codes(node: NodeProto, index: Graph) -> int:
    """Return the type of a QuantizeLinear's codes, which is that of its zero point."""
    zero = index.constants.get(node.input[2]) if len(node.input) > 2 else None
    return int(TensorProto.UINT8 if zero is None else zero.data_type)


def _optimized(model: ModelProto) -> ModelProto:
    """Return the optimised model that ONNX Runtime runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "optimized.onnx")
        session_of(model, optimized_path=path)
        return onnx.load(path, load_external_data=False)  # some versions keep weights in memory
