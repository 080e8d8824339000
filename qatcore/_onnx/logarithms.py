"""Products ahead of a logarithm, which need relative accuracy."""

from __future__ import annotations

import onnx_ir as ir

from .graph import array_of, input_of, is_a, is_constant
from .plan import OPERATORS
from .regions import MOVES

#: Operators that keep small values small, and large ones large, on the way from a product to a logarithm.
_KEEPING = MOVES | {"Abs", "Add", "AveragePool", "Cast", "Clip", "Concat", "Div", "GlobalAveragePool", "Identity"}
_KEEPING |= {"Max", "Mul", "Pad", "Pow", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare", "Relu", "Sqrt"}
_KEEPING |= {"Sub", "Sum", *OPERATORS}


def ahead_of_logarithms(graph: ir.Graph) -> set[str]:
    """Return the names of products whose results reach a logarithm, or a power that compresses like one.

    A logarithm turns relative errors into absolute ones.  Codes have an absolute error, which is many times as large as
    small values are.  Spectrograms and filter banks are such products.

    Past the product nearest to the logarithm, an activation ends the search: what is ahead of it is another layer.
    Nothing is found past an Exp, a Softmax, a Sigmoid or the like: what these make ahead of a logarithm, as in a
    log-softmax or a softplus, depends on absolute differences.
    """
    found, seen = set[str](), set[tuple[ir.Value, bool]]()
    left = [(value, False) for node in graph if _compresses(node) and (value := node.inputs[0]) is not None]
    while left:
        value, is_past = left.pop()
        node = value.producer()
        if (value, is_past) in seen or node is None:
            continue
        seen.add((value, is_past))
        if not is_a(node, _KEEPING) or (is_past and _is_activation(node)):
            continue
        if is_a(node, OPERATORS):
            found.add(str(node.name))
            is_past = True
        data = node.inputs[:1] if is_a(node, MOVES | {"Clip", "Pad", "Pow"}) else node.inputs
        left += [(each, is_past) for each in data if each is not None and not is_constant(each)]
    return found


def _is_activation(node: ir.Node) -> bool:
    """Return whether a node is a layer's activation: what is ahead of it are features, and no spectrum."""
    return is_a(node, {"Relu"}) or (is_a(node, {"Clip"}) and input_of(node, 2) is not None)


def _compresses(node: ir.Node) -> bool:
    """Return whether a node is a logarithm, or a power with an exponent between 0 and 1/2.

    Square roots are left out: norms have them.
    """
    if is_a(node, {"Log"}):
        return True
    exponent = array_of(input_of(node, 1)) if is_a(node, {"Pow"}) else None
    return exponent is not None and exponent.size == 1 and bool(0.0 < exponent.reshape(-1)[0] < 0.5)
