"""Regions in codes: the nodes between products that runtimes compute on codes as well."""

from __future__ import annotations

import math
from collections.abc import Collection
from fractions import Fraction

import numpy as np
import onnx_ir as ir

from .graph import (
    array_of,
    attribute,
    input_of,
    is_a,
    is_captured,
    is_constant,
    is_seen,
    only_reader,
    readers_of,
)
from .targets import ACTIVATIONS, COMPUTED, ONNXRUNTIME, WRITTEN_ON_CODES, Target

#: Operators of one input whose product with that input is an activation as well: SiLU and hard swish.
_GATES = frozenset({"HardSigmoid", "Sigmoid"})
#: Operators that move elements of their first input to other positions, and leave their values as they are.
MOVES = frozenset({"DepthToSpace", "Expand", "Flatten", "Gather", "MaxPool", "ReduceMax", "Reshape", "Resize"})
MOVES |= {"Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
#: Operators all of whose inputs are data.
_OF_SEVERAL = frozenset({"Add", "Concat", "Div", "Mul"})
#: The greatest denominator of the beta of a HardSigmoid that is computed on codes.
_LARGEST_DENOMINATOR = 64
#: How far beta may be from such a fraction, because it is a float32.
_CLOSE = 1e-6
#: Operators that make so much less than they read that they belong on codes even if what they make does not.
_SHRINKING = frozenset({"GlobalAveragePool"})


def is_move(node: ir.Node) -> bool:
    """Return whether a node only moves elements of its first input.

    A MaxPool whose second output is read does more: it says where elements came from.  Codes are often equal, so this
    would differ on codes.  A Resize moves elements only if it takes the nearest ones.
    """
    if not is_a(node, MOVES):
        return False
    if node.op_type == "Resize":
        mode, coordinates = (node.attributes.get(name) for name in ("mode", "coordinate_transformation_mode"))
        crops = coordinates is not None and coordinates.as_string() == "tf_crop_and_resize"
        return not crops and (mode is None or mode.as_string() == "nearest")
    return node.op_type == "Split" or not any(value.uses() or is_seen(value) for value in node.outputs[1:])


def tail(node: ir.Node, fused: Collection[str] = ACTIVATIONS) -> ir.Value:
    """Return the output of a node, or of the activation behind it that runtimes compute together with it.

    `fused` are these activations.  If a gate is among them, so is its product with what it reads.
    """
    value = node.outputs[0]
    follower = only_reader(value)
    if follower is not None:
        return follower.outputs[0] if is_a(follower, fused) else value
    product = _gated(value, _GATES.intersection(fused))
    return value if product is None else product.outputs[0]


def _gated(value: ir.Value, kinds: Collection[str]) -> ir.Node | None:
    """Return the product of a value and its gate, of some kinds, if nothing else reads the value or the gate."""
    readers = readers_of(value)
    gates, products = ([node for node in readers if is_a(node, kind)] for kind in (kinds, {"Mul"}))
    if is_seen(value) or len(readers) != 2 or len(gates) != 1 or len(products) != 1:
        return None
    [gate], [product] = gates, products
    return product if only_reader(gate.outputs[0]) is product else None


def data_of(node: ir.Node) -> list[ir.Value]:
    """Return the inputs of a node in a region that get codes because they are observed, so not its constants."""
    inputs = node.inputs if node.op_type in _OF_SEVERAL else node.inputs[:1]
    return [value for value in inputs if value is not None and not (is_constant(value) and node.op_type in _OF_SEVERAL)]


def number_of(node: ir.Node) -> float | None:
    """Return the number that a node adds or multiplies by, if that is constant."""
    constants = [value for value in node.inputs if is_constant(value)]
    array = array_of(constants[0]) if len(constants) == 1 and node.op_type in {"Add", "Mul", "Div"} else None
    return float(array.reshape(-1)[0]) if array is not None and array.size == 1 and array.ndim < 2 else None


def is_written_on_codes(node: ir.Node) -> bool:
    """Return whether a node in a region is written on codes."""
    return node.op_type in WRITTEN_ON_CODES or rescales(node)


def unscaled(value: ir.Value) -> tuple[ir.Value, float]:
    """Return the tensor from which a tensor is made by nodes that only change scales, and the factor.

    Nothing else reads the tensors between.
    """
    factor = 1.0
    while (maker := value.producer()) is not None and rescales(maker) and only_reader(value) is not None:
        number = number_of(maker)
        assert number is not None
        factor *= 1.0 / number if maker.op_type == "Div" else number
        [value] = data_of(maker)
    return value, factor


def rescales(node: ir.Node) -> bool:
    """Return whether a node multiplies or divides by a positive number, which changes the scale of codes alone."""
    if not is_a(node, {"Div", "Mul"}) or (node.op_type == "Div" and not is_constant(node.inputs[1])):
        return False
    number = number_of(node)
    return number is not None and 0.0 < number < math.inf


def made_by(node: ir.Node, fused: Collection[str] = ACTIVATIONS) -> list[ir.Value]:
    """Return what a node in a region makes that has codes; `fused` as for `tail`."""
    if node.op_type in COMPUTED and not is_written_on_codes(node):
        return [tail(node, fused)]
    return list(node.outputs) if node.op_type == "Split" else [node.outputs[0]]


def keeps_range(node: ir.Node) -> bool:
    """Return whether what a node in a region makes has the scale of its input."""
    return node.op_type == "Pad" or is_move(node)


def between(
    graph: ir.Graph,
    read: Collection[ir.Value],
    made: Collection[ir.Value],
    coded: Collection[ir.Value],
    *,
    target: Target = ONNXRUNTIME,
    operators: Collection[str] = ONNXRUNTIME.operators["uint8"],
    any_pool: bool = False,
    within: Collection[str] | None = None,
) -> list[ir.Node]:
    """Return the nodes between products that can be computed on codes, in the order of the graph.

    All data that such a node reads has codes, because a product or another such node reads or makes it.  What it makes
    is read by one of them, too: otherwise the codes would only cost accuracy.  Nodes that only move what has codes
    anyway need no such reader: they lose nothing, and move codes faster than floats.

    Parameters
    ----------
    graph : onnx_ir.Graph
    read, made : collection of onnx_ir.Value
        What products read in codes, and what they make, or the activations behind them.
    coded : collection of onnx_ir.Value
        Those of the latter that have codes, whatever reads them.
    target : Target
    operators : collection of str
        The operators, beside those that move elements: those of the target for a format of activations.
    any_pool : bool
        Whether there is any MaxPool.  If not, there are only those ahead of convolutions: ONNX Runtime has a fast
        MaxPool on codes for the layout of convolutions alone.
    within : collection of str, optional
        Names of the nodes to choose from, by default all.
    """
    convolved = {value for value in read if any(is_a(node, {"Conv"}) for node in readers_of(value))}
    sources = {value for value in made if not is_seen(value) and not is_captured_behind(value)} | set(read)
    allowed = (node for node in graph if within is None or node.name in within)
    kept = [node for node in allowed if _is_possible(node, operators, target)]
    while True:
        available, settled, possible = set(sources), {*read, *coded}, list[ir.Node]()
        for node in kept:
            if available.issuperset(data_of(node)):
                possible.append(node)
                available.update(made_by(node, target.fused))
                if not is_move(node) or settled.issuperset(data_of(node)):
                    settled.update(made_by(node, target.fused))
        found = _wanted(possible, set(read), set(convolved), settled, target, any_pool=any_pool)
        names = {node.name for node in found}
        # One at a time: without it, others may fit.
        unfit = next((node for node in found if target.own_forms and not _fits(node, names, read)), None)
        found = [node for node in found if node is not unfit]
        if len(found) == len(kept):
            return found
        kept = found


def _wanted(
    nodes: list[ir.Node],
    wanted: set[ir.Value],
    convolved: set[ir.Value],
    settled: set[ir.Value],
    target: Target,
    *,
    any_pool: bool,
) -> list[ir.Node]:
    """Return the nodes that make what is wanted in codes, or move what has codes anyway.

    Parameters
    ----------
    nodes : list of onnx_ir.Node
        In the order of the graph.
    wanted, convolved : set of onnx_ir.Value
        What products read in codes, and what convolutions do.
    settled : set of onnx_ir.Value
        What has codes anyway.
    target, any_pool
        As in `between`.
    """
    found = list[ir.Node]()
    for node in reversed(nodes):
        made, data = made_by(node, target.fused), data_of(node)
        is_pool = node.op_type == "MaxPool" and not any_pool
        if node.op_type in _SHRINKING or not (convolved if is_pool else wanted).isdisjoint(made):
            wanted.update(data)
            if not convolved.isdisjoint(made):
                convolved.update(data)
        elif is_pool or not is_move(node) or not settled.issuperset(data):
            continue
        found.append(node)
    return found[::-1]


def is_captured_behind(value: ir.Value) -> bool:
    """Return whether a graph inside of a node reads a tensor behind nodes that move its elements.

    If such a tensor has codes, ONNX Runtime up to 1.32 crashes the process when it loads the model.
    """
    moves = [node for node in readers_of(value) if is_move(node)]
    made = [output for node in moves for output in node.outputs]
    return any(is_captured(output) or is_captured_behind(output) for output in made)


def hard_sigmoid(node: ir.Node) -> tuple[float, Fraction]:
    """Return the alpha and beta of a HardSigmoid."""
    alpha, beta = float(attribute(node, "alpha", 0.2)), float(attribute(node, "beta", 0.5))
    return alpha, Fraction(beta).limit_denominator(_LARGEST_DENOMINATOR)


def _is_possible(node: ir.Node, operators: Collection[str], target: Target) -> bool:
    """Return whether a node can be on codes if what it reads is."""
    if not target.own_forms and is_a(node, _OF_SEVERAL) and any(map(is_constant, node.inputs)):
        return False  # the constant needs no codes
    if not is_move(node) and (not is_a(node, operators) or (rescales(node) and "Div" not in operators)):
        return False
    if is_a(node, {"Div"}) and not rescales(node):
        return False
    data, number = data_of(node), number_of(node)
    if not data or any(map(is_constant, data)):
        return False
    possible = _can_be_coded(node, target)
    if len(data) < len(node.inputs) and node.op_type in _OF_SEVERAL:
        return len(data) == 1 and number is not None and number != 0.0 and math.isfinite(number) and possible
    return possible and _has_a_form_on_codes(node)


def _can_be_coded(node: ir.Node, target: Target) -> bool:
    """Return whether what a node makes can have codes."""
    return not any(is_seen(v) or is_captured_behind(v) or not v.uses() for v in made_by(node, target.fused))


def _has_a_form_on_codes(node: ir.Node) -> bool:
    """Return whether the attributes and constants of a node allow it to be on codes."""
    if node.op_type == "PRelu":
        slopes = array_of(node.inputs[1])
        return slopes is not None and bool(np.isfinite(slopes).all() and slopes.any())
    if node.op_type == "Pad":
        return pads_with_zeros(node)
    if node.op_type == "HardSigmoid":
        alpha, beta = hard_sigmoid(node)
        return alpha > 0.0 and 0 < beta <= 1 and abs(float(beta) - attribute(node, "beta", 0.5)) < _CLOSE
    return True


def pads_with_zeros(node: ir.Node) -> bool:
    """Return whether a node is a Pad that adds zeros."""
    if not is_a(node, {"Pad"}):
        return False
    mode, value = node.attributes.get("mode"), input_of(node, 2)
    with_zeros = value is None or (is_constant(value) and not np.any(array_of(value)))
    return with_zeros and (mode is None or mode.as_string() == "constant")


def _fits(node: ir.Node, names: Collection[str | None], read: Collection[ir.Value]) -> bool:
    """Return whether a node can be on codes beside the others with these names."""
    if not is_written_on_codes(node) or node.op_type == "Pad":
        return True
    # What it makes has a scale that no range was chosen for: only nodes that compute can read that.
    [result] = node.outputs
    readers = [reader for reader in readers_of(result) if reader.name in names]
    if result in read or any(keeps_range(reader) or is_written_on_codes(reader) for reader in readers):
        return False
    return node.op_type != "HardSigmoid" or _has_its_own_range(node, names, read)


def _has_its_own_range(node: ir.Node, names: Collection[str | None], read: Collection[ir.Value]) -> bool:
    """Return whether a HardSigmoid can choose the range of its input.

    Then nothing else reads the input, but for a product of it and the result, which is hard swish.
    """
    [source], [result] = data_of(node), node.outputs
    maker = source.producer()
    if is_seen(source) or source in read:
        return False
    if maker is not None and maker.name in names and (keeps_range(maker) or is_written_on_codes(maker)):
        return False
    others = [reader for reader in readers_of(source) if reader is not node]
    return all(r.name in names and is_a(r, {"Mul"}) and {*r.inputs} == {source, result} for r in others)
