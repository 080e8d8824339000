"""Pad channels with zeros where ONNX Runtime has a faster kernel for more of them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .graph import (
    add_initializer,
    add_node,
    all_names,
    are_equal,
    array_of,
    attribute,
    drop_unread,
    input_of,
    is_a,
    is_constant,
    is_seen,
    readers_of,
    unused_name,
)
from .plan import IMAGE_CHANNELS
from .targets import ACTIVATIONS

#: Depthwise convolutions on codes are two to six times as fast if the number of channels is a multiple of this.
_WIDTH = 16
#: So few channels are not padded: they would cost more than they save.
_TOO_FEW = 4
#: Operators that compute each channel from the same channel of what they read.
_CHANNELWISE = ACTIVATIONS | {"Add", "AveragePool", "DequantizeLinear", "GlobalAveragePool", "HardSigmoid", "LeakyRelu"}
_CHANNELWISE |= {"MaxPool", "Mul", "QuantizeLinear", "Sigmoid"}
#: Those of them that do not make zeros of zeros.
_BREAK_ZEROS = frozenset({"Clip", "HardSigmoid", "Sigmoid"})


@dataclass(eq=False)
class _Space:
    """Tensors that have the same channels, and the nodes around them."""

    channels: int
    values: dict[ir.Value, None] = field(default_factory=dict)
    #: Convolutions that make these channels, that read them, and that do both, which are depthwise.
    makers: list[ir.Node] = field(default_factory=list)
    readers: list[ir.Node] = field(default_factory=list)
    depthwise: list[ir.Node] = field(default_factory=list)
    #: Pads that add channels to these.
    pads: list[ir.Node] = field(default_factory=list)
    #: Nodes that read a constant with a value for each channel.
    constants: list[ir.Node] = field(default_factory=list)
    keeps_zeros: bool = True

    @property
    def width(self) -> int:
        """The number of channels that it is to have."""
        return -(-self.channels // _WIDTH) * _WIDTH


def pad_channels(model: ir.Model, *, images: bool = True) -> dict[str, int]:
    """Pad channels of a quantised model, and return the dequantised tensors that get more, and how many they had.

    What is added is zeros in weights, so the outputs of the model stay the same.  Channels are padded between
    convolutions that mix channels, where there is a depthwise convolution that gains by it.  Images of three channels
    get a fourth one, unless `images` is false.
    """
    graph, taken, chosen = model.graph, all_names(model), dict[ir.Value, _Space]()
    for node in graph:
        if _is_slow(node) and node.outputs[0] not in chosen:
            space = _space_around(node)
            if space is not None:
                chosen.update(dict.fromkeys(space.values, space))
    while refused := {space for space in chosen.values() if not all(_fits(pad, space, chosen) for pad in space.pads)}:
        chosen = {value: space for value, space in chosen.items() if space not in refused}
    for pad in list(graph):
        if is_a(pad, {"Pad"}):
            _pad_by_less(pad, chosen, taken)
    for space in dict.fromkeys(chosen.values()):
        _widen(space, taken)
    changed = {
        str(value.name): space.channels
        for value, space in chosen.items()
        if is_a(value.producer(), {"DequantizeLinear"})
    }
    for node in list(graph) if images else ():
        if (padded := _add_fourth_channel(node, taken)) is not None:
            changed[padded] = IMAGE_CHANNELS
    drop_unread(model)
    for value in chosen:
        value.shape = None
    return changed


def _is_depthwise(node: ir.Node) -> bool:
    """Return whether a convolution has codes and makes one channel of each."""
    weight = _codes(node.inputs[1])
    return weight is not None and attribute(node, "group", 1) == len(weight) > 1 and weight.shape[1] == 1


def _is_slow(node: ir.Node) -> bool:
    """Return whether a node is a depthwise convolution on codes that is faster with more channels."""
    if not is_a(node, {"Conv"}) or not _is_depthwise(node):
        return False
    weight = _codes(node.inputs[1])
    return weight is not None and len(weight) > _TOO_FEW and len(weight) % _WIDTH != 0


def _codes(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the int8 codes of a weight, or None if it has others."""
    maker = None if value is None else value.producer()
    codes = array_of(maker.inputs[0]) if is_a(maker, {"DequantizeLinear"}) and maker is not None else None
    return codes if codes is not None and codes.dtype == np.int8 else None


def _space_around(start: ir.Node) -> _Space | None:
    """Return the tensors that have the same channels as a depthwise convolution; None if they cannot be padded."""
    weight = _codes(start.inputs[1])
    assert weight is not None
    space, seen, left = _Space(len(weight)), set[tuple[ir.Node, bool]](), [start.outputs[0]]
    while left:
        value = left.pop()
        if value in space.values:
            continue
        maker = value.producer()
        if maker is None or is_seen(value):
            return None
        space.values[value] = None
        for node in (maker, *readers_of(value)):
            # A convolution may both read and make these channels.
            role = node, node is maker and is_a(node, {"Conv", "Pad"})
            if role not in seen:
                seen.add(role)
                found = _connected(node, value, space, weight.ndim)
                if found is None:
                    return None
                left += found
    return space


def _connected(node: ir.Node, value: ir.Value, space: _Space, rank: int) -> list[ir.Value] | None:
    """Add a node to a space that it touches, and return the tensors behind it; None if they cannot be padded."""
    if is_a(node, {"Conv"}):
        return _through_convolution(node, value, space)
    if node.outputs[0] is not value or not is_a(node, {"Pad"}):
        space.keeps_zeros &= _makes_zeros_of_zeros(node)
    if is_a(node, {"Pad"}):
        more = _channels_added(node, rank)
        if more and node.outputs[0] is not value:
            space.pads.append(node)
        inner = [node.outputs[0], *_data(node)]
        return None if more is None else [] if more else inner
    if not is_a(node, _CHANNELWISE):
        return None
    found = [node.outputs[0]]
    for given in node.inputs:
        maker = None if given is None else given.producer()
        stored = given if maker is None or not is_a(maker, {"DequantizeLinear"}) else maker.inputs[0]
        array = array_of(stored)
        if array is None and given is not None:
            found.append(given)
        elif array is not None and array.size != 1:
            if maker is None or array.shape[-rank:] not in _shapes_of_channels(space.channels, rank):
                return None
            space.constants.append(node)
    return found


def _makes_zeros_of_zeros(node: ir.Node) -> bool:
    """Return whether a node makes zeros where all that it reads is zeros.

    The bound of a Clip of codes may not be 0, as in a hard sigmoid.  A DequantizeLinear adds a number if its zero point
    is not the one that the codes were made with.
    """
    if is_a(node, {"DequantizeLinear", "Pad"}):
        maker, zero = node, input_of(node, 2)
        while is_a(maker, {"DequantizeLinear", "Pad"}) and (given := maker.inputs[0]) is not None:
            above = given.producer()
            if above is None:
                break
            maker = above
        if is_a(maker, {"QuantizeLinear"}):
            return are_equal(zero, input_of(maker, 2))
        return is_a(node, {"Pad"}) and (zero is None or (is_constant(zero) and not np.any(array_of(zero))))
    if is_a(node, {"Add"}):
        return all(_is_coded(value) for value in node.inputs)
    return node.op_type not in _BREAK_ZEROS


def _is_coded(value: ir.Value | None) -> bool:
    """Return whether a value is computed, and neither a constant nor the values of constant codes."""
    maker = None if value is None else value.producer()
    return maker is not None and not (is_a(maker, {"DequantizeLinear"}) and is_constant(maker.inputs[0]))


def _through_convolution(node: ir.Node, value: ir.Value, space: _Space) -> list[ir.Value] | None:
    """Do the work of `_connected` for a convolution."""
    is_made, weight = node.outputs[0] is value, _codes(node.inputs[1])
    if weight is None:
        return None
    if _is_depthwise(node):
        if is_made:
            space.depthwise.append(node)
        return [node.outputs[0], *_data(node)] if len(weight) == space.channels else None
    if attribute(node, "group", 1) != 1 or weight.shape[0 if is_made else 1] != space.channels:
        return None
    (space.makers if is_made else space.readers).append(node)
    return []


def _shapes_of_channels(channels: int, rank: int) -> tuple[tuple[int, ...], ...]:
    row = (channels, *[1] * (rank - 2))
    return row, (1, *row)


def _data(node: ir.Node) -> Iterator[ir.Value]:
    """Yield the first input of a node, if it has one."""
    if node.inputs[0] is not None:
        yield node.inputs[0]


def _channels_added(pad: ir.Node, rank: int) -> int | None:
    """Return how many channels a Pad adds behind the others; None if that is not known, or it adds them before."""
    pads = array_of(input_of(pad, 1))
    if pads is None or pads.size != 2 * rank or input_of(pad, 3) is not None or pads[1] or pads[rank + 1] < 0:
        return None
    return int(pads[rank + 1])


def _fits(pad: ir.Node, space: _Space, chosen: dict[ir.Value, _Space]) -> bool:
    """Return whether a space can be padded ahead of a Pad, which then adds less: what it padded holds zeros."""
    behind = chosen.get(pad.outputs[0])
    pads = array_of(pad.inputs[1])
    assert pads is not None
    most = behind.width if behind is not None else space.channels + int(pads[len(pads) // 2 + 1])
    return space.keeps_zeros and space.width <= most


def _pad_by_less(pad: ir.Node, chosen: dict[ir.Value, _Space], taken: set[str]) -> None:
    """Let a Pad add as many channels as its result is to have more than its input."""
    [source], [result], pads = _data(pad), pad.outputs, array_of(input_of(pad, 1))
    before, behind = chosen.get(source), chosen.get(result)
    if pads is None or before is behind or pad.graph is None:
        return
    place = len(pads) // 2 + 1
    more = (
        pads[place]
        + (behind.width - behind.channels if behind else 0)
        - (before.width - before.channels if before else 0)
    )
    changed = pads.copy()
    changed[place] = more
    if changed.any():
        name = unused_name(f"{result.name}_pads", taken)
        pad.replace_input_with(1, add_initializer(pad.graph, name, changed))
    else:
        result.replace_all_uses_with(source)
        pad.graph.remove(pad, safe=True)


def _widen(space: _Space, taken: set[str]) -> None:
    """Pad the weights, biases and constants around a space with zeros."""
    more = space.width - space.channels
    for node in (*space.makers, *space.depthwise):
        _pad_constant(node, 1, 0, more, taken)
        if input_of(node, 2) is not None:
            _pad_constant(node, 2, 0, more, taken)
            _scale_bias(node, taken)
        if node in space.depthwise:
            node.attributes["group"] = ir.AttrInt64("group", space.width)
    for node in space.readers:
        _pad_constant(node, 1, 1, more, taken)
    for node in space.constants:
        for position, given in enumerate(node.inputs):
            maker = None if given is None else given.producer()
            codes = array_of(maker.inputs[0]) if maker is not None and is_a(maker, {"DequantizeLinear"}) else None
            if codes is not None and codes.size != 1:
                _pad_constant(node, position, codes.shape.index(space.channels), more, taken)


def _pad_constant(node: ir.Node, position: int, axis: int, more: int, taken: set[str]) -> None:
    """Give a node a constant with zeros behind it along an axis, which scales of codes may have, too."""
    value, graph = node.inputs[position], node.graph
    assert value is not None and graph is not None
    maker = value.producer()
    if maker is None:
        node.replace_input_with(position, _padded(graph, value, axis, more, 0, taken))
        return
    codes, scale, zero = maker.inputs[0], maker.inputs[1], input_of(maker, 2)
    array, zeros = array_of(codes), None if zero is None else array_of(zero)
    assert array is not None
    fill = int(zeros.reshape(-1)[0]) if zeros is not None else 0
    inputs = [_padded(graph, codes, axis, more, fill, taken), scale, *([zero] if zero is not None else [])]
    steps = array_of(scale)
    if steps is not None and steps.size > 1 and attribute(maker, "axis", 1) % array.ndim == axis:
        inputs[1:] = [
            _padded(graph, each, 0, more, fill, taken) for each, fill in zip(inputs[1:], (1, 0), strict=False)
        ]
    name = unused_name(f"{value.name}_padded", taken)
    node.replace_input_with(position, add_node(node, "DequantizeLinear", inputs, name, taken, maker.attributes))
    if not value.uses():
        graph.remove(maker, safe=True)


def _scale_bias(node: ir.Node, taken: set[str]) -> None:
    """Give the codes of a bias the scales of the products, which runtimes expect, also in channels that are added."""
    source, weight, bias = (None if value is None else value.producer() for value in node.inputs)
    if source is None or weight is None or bias is None or node.graph is None:
        return
    [step, steps] = (array_of(maker.inputs[1]) for maker in (source, weight))
    assert step is not None and steps is not None
    name = unused_name(f"{bias.outputs[0].name}_scale", taken)
    bias.replace_input_with(1, add_initializer(node.graph, name, np.asarray(step * steps)))


def _padded(graph: ir.Graph, value: ir.Value | None, axis: int, more: int, fill: int, taken: set[str]) -> ir.Value:
    """Return a constant with a number behind it along an axis."""
    array = array_of(value)
    assert array is not None and value is not None
    widths = [(0, more if each == axis else 0) for each in range(array.ndim)]
    padded = np.pad(array, widths, constant_values=fill)
    return add_initializer(graph, unused_name(f"{value.name}_padded", taken), padded)


def _add_fourth_channel(node: ir.Node, taken: set[str]) -> str | None:
    """Give a convolution over three channels a fourth one, which holds zeros, and return the tensor that it reads."""
    weight = _codes(node.inputs[1]) if is_a(node, {"Conv"}) else None
    values = node.inputs[0].producer() if weight is not None and node.inputs[0] is not None else None
    if weight is None or values is None or not is_a(values, {"DequantizeLinear"}) or node.graph is None:
        return None
    codes, graph = values.inputs[0], node.graph
    if (
        weight.shape[1] != IMAGE_CHANNELS
        or attribute(node, "group", 1) != 1
        or max(weight.shape[2:]) == 1
        or is_constant(codes)
    ):
        return None
    pads = np.zeros(2 * weight.ndim, np.int64)
    pads[weight.ndim + 1] = 1
    widths = add_initializer(graph, unused_name(f"{node.name}_fourth_channel", taken), pads)
    zero = values.inputs[2]
    output = unused_name(f"{node.name}_padded_codes", taken)
    padded = add_node(node, "Pad", [codes, widths, zero], output, taken, name=f"{node.name}_Pad")
    inputs, output = [padded, *values.inputs[1:]], unused_name(f"{node.name}_padded", taken)
    again = add_node(node, "DequantizeLinear", inputs, output, taken, name=f"{node.name}_values")
    node.replace_input_with(0, again)
    if not values.outputs[0].uses() and not is_seen(values.outputs[0]):
        graph.remove(values, safe=True)
    _pad_constant(node, 1, 1, 1, taken)
    return str(again.name)
