"""Why a quantised model is slower than the float one in ONNX Runtime, and what to try."""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from .already_quantised import computes_on_codes, converts, told
from .description import description
from .display import counted
from .graph import input_of, is_a
from .kernels import CONVERSION, LARGEST, kernels_of
from .plan import OPERATORS
from .skeleton import weight_bytes

#: A ratio of two times that is less than this may be chance.
_BY_CHANCE = 1.05
_WIDE = frozenset({ir.DataType.INT16, ir.DataType.UINT16})
_FLOAT8 = frozenset({ir.DataType.FLOAT8E4M3FN, ir.DataType.FLOAT8E5M2})


def why_slower(quantized: ir.Model, before: float, after: float) -> str | None:
    """Return a line on how ONNX Runtime runs a quantised model that is slower, and what has helped such models.

    Return None if the model is not slower than the float model, except by chance, or is too large to examine.

    Parameters
    ----------
    quantized : onnx_ir.Model
    before, after : float
        The times of the float model and of the quantised one, in the same unit.
    """
    if after <= before * _BY_CHANCE or weight_bytes(quantized) >= LARGEST:
        return None
    kinds = {_kind_of_codes(node) for node in quantized.graph if is_a(node, {"QuantizeLinear"})}
    if (reason := _reason_of_formats(quantized, kinds)) is not None:
        return reason
    if not any(map(converts, quantized.graph)):
        found = [node for node in quantized.graph if computes_on_codes(node)]
        on_codes = f"{told(found)} on codes take longer than floats here; try qatcore quantize"
        return on_codes if found else "no node is quantised; allow a larger --max-drop"
    products = sum(node.op_type in OPERATORS for node in quantized.graph)
    kernels = kernels_of(quantized) or []
    in_float = sum(kernel.kernel.removeprefix("Fused") in OPERATORS for kernel in kernels)
    # Codes of int8 were slower than codes of uint8 in most models, and never much faster: docs/onnx-results.md.
    other = "--activations uint8, " if ir.DataType.INT8 in kinds else ""
    between = counted(sum(kernel.computes_on == CONVERSION for kernel in kernels), "conversion")
    said = f"{in_float} of {products} products run in float, {between} between"
    if not in_float:
        said = f"no product of {products} in float, but the rest is slower"
    return f"{said}; try {other}--exclude"


def _reason_of_formats(quantized: ir.Model, kinds: Collection[ir.DataType | None]) -> str | None:
    """Return why the formats of a model make it slow; `kinds` are the types of its activations' codes."""
    if _FLOAT8.intersection(kinds):
        return "ONNX Runtime has no FP8 products; try --weights int8 --activations uint8"
    if _WIDE.intersection(kinds):
        return "ONNX Runtime has no products on 16-bit codes for CPUs; try --activations uint8"
    is_alone = description(quantized).get("activations") == "none" or any(map(converts, quantized.graph))
    if is_alone and not kinds:
        return "quantised weights alone save memory, but seldom time; try --activations uint8"
    return None


def _kind_of_codes(node: ir.Node) -> ir.DataType | None:
    """Return the type of a QuantizeLinear's codes, which is that of its zero point."""
    zero = input_of(node, 2)
    return ir.DataType.UINT8 if zero is None else zero.dtype
