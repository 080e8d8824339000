"""Write hard sigmoid and hard swish in one way, however a model spells them."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .graph import array_of, attribute, input_of, is_a, is_constant, only_reader, take_place, unused_name

#: Where a prepared model keeps the nodes that took the place of others, by their names.
ALIASES = "qatcore.aliases"
#: How far a float32 may be from 1.
_CLOSE = 1e-6


def name_hard_sigmoids(model: ir.Model, taken: set[str]) -> None:
    """Let HardSigmoid nodes compute what models spell with other nodes, and products with them be hard swish.

    ``Clip(x + c, 0, d) / d`` becomes a HardSigmoid with alpha 1 / d and beta c / d.  ``x * Clip(x + c, 0, d) / d`` and
    a HardSwish become the product of x and a HardSigmoid.

    Names of nodes and tensors that vanish are kept as aliases of the node that takes their place.
    """
    aliases = model.meta.setdefault(ALIASES, {})
    for node in list(model.graph):
        if is_a(node, {"HardSwish"}):
            [source], [result] = node.inputs, node.outputs
            if source is None or source.dtype not in {None, ir.DataType.FLOAT}:
                continue
            aliases[str(node.name)] = _multiply(node, source, result, 1.0 / 6.0, 0.5, taken)
            model.graph.remove(node, safe=True)
        elif is_a(node, {"Clip"}):
            _rewrite(node, taken, aliases)


def join_hard_swishes(model: ir.Model) -> None:
    """Let a HardSwish compute each product of a value and its hard sigmoid of ONNX's hard swish.

    `name_hard_sigmoids` has given all of them one spelling.
    """
    for product in list(model.graph):
        if not is_a(product, {"Mul"}):
            continue
        gates = [value.producer() for value in product.inputs if value is not None and only_reader(value) is product]
        [gate] = [node for node in gates if is_a(node, {"HardSigmoid"})] or [None]
        if gate is None or not _is_swish(gate) or {*product.inputs} != {gate.inputs[0], gate.outputs[0]}:
            continue
        product.op_type = "HardSwish"
        product.replace_input_with(0, gate.inputs[0])
        product.resize_inputs(1)
        model.graph.remove(gate, safe=True)


def _is_swish(gate: ir.Node) -> bool:
    """Return whether a HardSigmoid is the gate of ONNX's hard swish."""
    [alpha, beta] = (attribute(gate, name, default) for name, default in (("alpha", 0.2), ("beta", 0.5)))
    return bool(abs(alpha * 6.0 - 1.0) < _CLOSE and beta == 0.5)


def _rewrite(clip: ir.Node, taken: set[str], aliases: dict[str, str]) -> None:
    """Replace a Clip and what is around it by a HardSigmoid, if they compute one."""
    graph, before = clip.graph, clip.inputs[0]
    low, top = (_number(input_of(clip, position)) for position in (1, 2))
    if before is None or low != 0.0 or top is None or not top > 0.0 or only_reader(before) is not clip:
        return
    adder, after = before.producer(), only_reader(clip.outputs[0])
    if adder is None or not is_a(adder, {"Add"}) or after is None:
        return
    source, term = _split(adder)
    if source is None or term is None or not 0.0 < term <= top:
        return
    nodes, product = [adder, clip], None
    if is_a(after, {"Mul"}) and {*after.inputs} == {source, clip.outputs[0]} and source is not clip.outputs[0]:
        product, nodes = after, [*nodes, after]
        after = only_reader(after.outputs[0])
    if after is None or not _divides(after, nodes[-1].outputs[0], top):
        return
    [result] = after.outputs
    if product is not None:
        name = _multiply(after, source, result, 1.0 / top, term / top, taken)
    else:
        gate = _add(after, "HardSigmoid", [source], {"alpha": 1.0 / top, "beta": term / top}, taken)
        name = _name_of_maker(gate)
        take_place(gate, result)
    assert graph is not None
    for gone in (*nodes, after):
        aliases.update(dict.fromkeys((str(gone.name), str(gone.outputs[0].name)), name))
    graph.remove([*nodes, after], safe=True)


def _multiply(node: ir.Node, source: ir.Value, result: ir.Value, alpha: float, beta: float, taken: set[str]) -> str:
    """Let the product of a value and its hard sigmoid stand where the result of a node stood, and return its name."""
    gate = _add(node, "HardSigmoid", [source], {"alpha": alpha, "beta": beta}, taken)
    gate.name = unused_name(f"{result.name}_gate", taken)
    product = _add(node, "Mul", [source, gate], {}, taken)
    name = _name_of_maker(product)
    take_place(product, result)
    return name


def _name_of_maker(value: ir.Value) -> str:
    """Return the name of the node that makes a value."""
    maker = value.producer()
    assert maker is not None
    return str(maker.name)


def _add(
    node: ir.Node, operator: str, inputs: list[ir.Value], attributes: dict[str, float], taken: set[str]
) -> ir.Value:
    """Add a node ahead of another one, and return its output."""
    added = ir.node(operator, inputs, attributes, name=unused_name(f"{node.outputs[0].name}_{operator}", taken))
    assert node.graph is not None
    node.graph.insert_before(node, added)
    added.outputs[0].type = inputs[0].type
    return added.outputs[0]


def _split(adder: ir.Node) -> tuple[ir.Value | None, float | None]:
    """Return the value and the number that an Add adds."""
    [first, second] = adder.inputs
    return (second, _number(first)) if is_constant(first) else (first, _number(second))


def _divides(node: ir.Node, value: ir.Value, by: float) -> bool:
    """Return whether a node divides a value by a number, or multiplies it by the inverse."""
    if is_a(node, {"Div"}) and node.inputs[0] is value:
        return _number(node.inputs[1]) == by
    if not is_a(node, {"Mul"}):
        return False
    [first, second] = node.inputs
    factor = _number(second if first is value else first)
    return factor is not None and abs(factor * by - 1.0) < _CLOSE


def _number(value: ir.Value | None) -> float | None:
    """Return a constant of a single element as a number."""
    array = array_of(value)
    if array is None or array.size != 1 or array.ndim > 1 or array.dtype != np.float32:
        return None  # more dimensions may add some to the result, and runtimes have the operator in float32 alone
    return float(array.reshape(-1)[0])
