"""Equalise channels: let the channels between two convolutions have ranges that one scale suits."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .graph import (
    all_names,
    array_of,
    attribute,
    input_of,
    is_a,
    is_constant,
    is_seen,
    only_reader,
    readers_of,
    set_constant,
)
from .regions import pads_with_zeros

#: Where a prepared model keeps, for each tensor that was equalised, the power of two that each channel was divided by.
EQUALISED = "qatcore.equalised"
#: Operators that do the same to a multiple of their input as to the input itself, in each channel.
_PASSED = frozenset({"AveragePool", "GlobalAveragePool", "LeakyRelu", "MaxPool", "PRelu", "Pad", "Relu"})
#: The greatest power of two.
_MOST = 13

_Floats = npt.NDArray[np.float64]


def equalise(model: ir.Model) -> None:
    """Divide channels between convolutions by powers of two, and multiply the weights that read them.

    A convolution's output that is read by convolutions alone, past activations and pools, gets channels of similar
    magnitude.  A channel c is divided by sqrt(a[c] / w[c]): a is its expected magnitude, the norm of the weights that
    make it plus the magnitude of their bias, and w the greatest weight that reads it.  So the ranges of both suit one
    scale better (Nagel et al., 2019, which this departs from in a).

    Powers of two change no digit of any product or sum, so the model's outputs stay the same to the bit.
    """
    taken, done = all_names(model), dict[str, list[int]]()
    for node in model.graph:
        if (found := _chain(node)) is None:
            continue
        chain, readers = found
        powers = _powers(node, readers)
        if powers is None or not powers.any() or not _divide(node, readers, powers, taken):
            continue
        done.update((str(value.name), powers.tolist()) for value in chain)
    model.meta[EQUALISED] = done


def restored(values: npt.NDArray[Any], powers: Iterable[int]) -> npt.NDArray[Any]:
    """Return the values of a tensor before its channels were divided by powers of two."""
    exponents = np.array(list(powers)).reshape(-1, *[1] * (values.ndim - 2))
    return np.asarray(np.ldexp(values, exponents))


def _chain(node: ir.Node) -> tuple[list[ir.Value], list[ir.Node]] | None:
    """Return the tensors from a convolution to the convolutions that read it, and these; None if others read it."""
    if not _has_own_constants(node):
        return None
    value = node.outputs[0]
    chain = [value]
    while (follower := only_reader(value)) is not None and _passes(follower, value):
        value = follower.outputs[0]
        chain.append(value)
    readers = readers_of(value)
    if is_seen(value) or not readers:
        return None
    if any(reader.inputs[0] is not value or not _has_own_constants(reader) for reader in readers):
        return None
    return chain, readers


def _has_own_constants(node: ir.Node) -> bool:
    """Return whether a node is a convolution with finite constants, which nothing else reads."""
    if not is_a(node, {"Conv"}):
        return False
    for value in (node.inputs[1], input_of(node, 2)):
        if value is None:
            continue
        array = array_of(value)
        if not is_constant(value) or len(value.uses()) != 1 or array is None or array.dtype != np.float32:
            return False
        if not array.size or not np.isfinite(array).all():
            return False
    return True


def _weight_of(node: ir.Node) -> npt.NDArray[np.float32]:
    weight = array_of(node.inputs[1])
    assert weight is not None
    return weight


def _passes(node: ir.Node, value: ir.Value) -> bool:
    """Return whether a node does the same to a multiple of a value, in each channel."""
    if not is_a(node, _PASSED) or node.inputs[0] is not value:
        return False
    if node.op_type == "PRelu":
        return is_constant(node.inputs[1])
    if node.op_type == "Pad":
        pads = array_of(input_of(node, 1))
        return pads_with_zeros(node) and pads is not None and not pads[1] and not pads[pads.size // 2 + 1]
    return not any(output.uses() or is_seen(output) for output in node.outputs[1:])


def _powers(node: ir.Node, readers: list[ir.Node]) -> npt.NDArray[np.int64] | None:
    """Return the powers of two to divide the channels by; None if all are zero."""
    weight = _weight_of(node)
    rows = weight.astype(np.float64).reshape(len(weight), -1)
    made = np.sqrt(np.cumsum(rows**2, axis=1)[:, -1])  # added up one after the other, as on every machine
    if (bias := array_of(input_of(node, 2))) is not None:
        made = made + np.abs(bias)
    read = np.max([_greatest_by_input(reader) for reader in readers], axis=0)
    used = (made > 0.0) & (read > 0.0)
    if made.shape != read.shape or not used.any():
        return None
    logs = np.zeros(len(made))
    logs[used] = (_log2(made[used]) - _log2(read[used])) / 2.0
    logs[used] -= np.cumsum(logs[used])[-1] / used.sum()
    return np.clip(np.rint(logs), -_MOST, _MOST).astype(np.int64)


def _log2(x: _Floats) -> _Floats:
    """Return the logarithm to base 2 to 0.09, by lines between powers of two: the same on every machine."""
    fractions, exponents = np.frexp(x)
    return exponents + 2.0 * fractions - 2.0


def _greatest_by_input(reader: ir.Node) -> _Floats:
    """Return the greatest weight by which a convolution multiplies each channel."""
    greatest = np.abs(_by_input(_weight_of(reader), attribute(reader, "group", 1))).max(axis=(1, 3))
    return np.asarray(greatest.reshape(-1), np.float64)


def _by_input(weight: npt.NDArray[Any], groups: int) -> npt.NDArray[Any]:
    """Return a weight by groups, outputs of a group, channels that a group reads, and elements of the kernel."""
    return weight.reshape(groups, weight.shape[0] // groups, weight.shape[1], -1)


def _divide(node: ir.Node, readers: list[ir.Node], powers: npt.NDArray[np.int64], taken: set[str]) -> bool:
    """Divide what a convolution makes by powers of two, and multiply what reads it; return whether no bit is lost."""
    changed = list[tuple[ir.Node, int, npt.NDArray[np.float32]]]()
    for position in (1, 2):
        if (array := array_of(input_of(node, position))) is not None:
            changed.append((node, position, np.ldexp(array, -powers.reshape(-1, *[1] * (array.ndim - 1)))))
    for reader in readers:
        weight, groups = _weight_of(reader), attribute(reader, "group", 1)
        scaled = np.ldexp(_by_input(weight, groups), powers.reshape(groups, 1, -1, 1))
        changed.append((reader, 1, scaled.reshape(weight.shape)))
    least = np.finfo(np.float32).smallest_normal
    for other, position, array in changed:
        before = array_of(other.inputs[position])
        if not np.isfinite(array).all() or (np.abs(array[before != 0]) < least).any():
            return False
    for other, position, array in changed:
        set_constant(taken, other, position, array)
    return True
