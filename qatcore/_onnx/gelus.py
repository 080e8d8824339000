"""Write GELU as ONNX Runtime looks for it, so that it computes the nodes as one."""

from __future__ import annotations

import onnx_ir as ir

from .graph import is_a, is_constant, only_reader, unused_name
from .regions import number_of


def respell_gelus(model: ir.Model, taken: set[str]) -> None:
    """Write ``x * (0.5 * (1 + erf(x / sqrt(2))))`` as ``(x * (1 + erf(x / sqrt(2)))) * 0.5``.

    PyTorch exports the first form, which ONNX Runtime computes node by node.  A product with 0.5 is exact, so both give
    the same numbers, unless one is below the least normal float.
    """
    for node in list(model.graph):
        if not is_a(node, {"Erf"}) or node.inputs[0] is None:
            continue
        scaled, adder = node.inputs[0].producer(), only_reader(node.outputs[0])
        if scaled is None or not is_a(scaled, {"Div"}) or adder is None or not is_a(adder, {"Add"}):
            continue
        half = only_reader(adder.outputs[0])
        product = only_reader(half.outputs[0]) if half is not None and _halves(half) else None
        if half is None or product is None or not is_a(product, {"Mul"}):
            continue
        [constant] = [place for place, value in enumerate(half.inputs) if is_constant(value)]
        places = [place for place, value in enumerate(product.inputs) if value in scaled.inputs]
        if len(places) != 1 or is_constant(product.inputs[places[0]]):
            continue
        x, number = product.inputs[places[0]], half.inputs[constant]
        half.replace_input_with(constant, x)
        product.replace_input_with(places[0], number)
        half.outputs[0].name = unused_name(f"{product.outputs[0].name}_doubled", taken)  # it holds something else now


def _halves(node: ir.Node) -> bool:
    """Return whether a node multiplies by 0.5."""
    return is_a(node, {"Mul"}) and number_of(node) == 0.5
