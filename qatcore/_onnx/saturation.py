"""Weights for CPUs without VNNI, whose sums of two products saturate in 16 bits.

Without VNNI, x86 multiplies unsigned codes of activations by signed codes of weights, and adds neighbouring products
two by two in 16 bits (the instruction VPMADDUBSW).  Codes of activations go up to 255.  So a₀w₀ + a₁w₁ saturates only
if w₀ and w₁ have one sign and |w₀| + |w₁| is above 32767 / 255, which is 128.5.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .._codes.affine import dequantize
from .graph import attribute, is_a, shape_of
from .metric import Noise
from .plan import WeightAxes
from .rewriting import as_stored
from .weights import Weight

#: The greatest code of an activation, as an unsigned one, and the limit of 16 bits.
GREATEST_CODE, LIMIT = 255, 2**15 - 1
#: The most that the magnitudes of two weights of one sign may sum up to.
MOST = LIMIT // GREATEST_CODE
#: Scales that are tried, as multiples of the one that was chosen.  With twice the scale hardly a pair is too large.
_FACTORS = np.linspace(1.0, 2.0, 17)
_GREATEST = 127

_Floats = npt.NDArray[np.float64]


def adds_pairs(node: ir.Node) -> bool:
    """Return whether ONNX Runtime adds the products of a node in pairs.

    It multiplies in more bits in depthwise convolutions, and in float in transposed ones.
    """
    weight = node.inputs[1]
    assert weight is not None
    is_depthwise = is_a(node, {"Conv"}) and attribute(node, "group", 1) > 1 and shape_of(weight)[1] == 1
    return not is_depthwise and not is_a(node, {"ConvTranspose"})


def largest_pair(codes: npt.NDArray[np.int8], node: ir.Node, axes: WeightAxes) -> int:
    """Return the largest sum of the magnitudes of two neighbouring weights of one sign."""
    flat = np.append(codes.reshape(-1), np.int8(0)).astype(np.int64)
    return max(int(_sums(flat[places]).max(initial=0)) for places in _pairs(codes.shape, node, axes))


def without_saturation(weight: npt.NDArray[np.floating], coded: Weight, node: ir.Node, axes: WeightAxes) -> Weight:
    """Return codes of a weight in which no pair of neighbours is too large.

    Channels without such a pair keep their codes.  The others get a larger scale, or smaller weights in these pairs:
    what has the least squared error.  Then other weights are rounded the other way, so that the channel's sum is kept.

    Parameters
    ----------
    weight : ndarray
    coded : Weight
        Its int8 codes, chosen without regard to pairs.
    node : onnx_ir.Node
        The product that reads it.
    axes : WeightAxes
    """
    codes, scale = coded.codes, coded.scale
    if largest_pair(codes, node, axes) <= MOST:
        return coded
    values = np.append(weight.reshape(-1).astype(np.float64), 0.0)
    result = np.append(codes.reshape(-1), np.int8(0)).astype(np.int64)
    steps = scale.scale.astype(np.float64).reshape(-1)
    layouts = _pairs(codes.shape, node, axes)
    if steps.size == 1:  # all channels share a scale
        layouts = [places.reshape(1, -1, 2) for places in layouts]
    chosen = steps.copy()
    for row in range(steps.size):
        places = [layout[row] for layout in layouts]
        if all((_sums(result[each]) <= MOST).all() for each in places):
            continue
        used = np.unique(places[0])  # the channel's own weights, and perhaps one that stands for none, which is 0
        row_values, pairs = values[used], [np.searchsorted(used, each) for each in places]
        best = np.inf
        for step in as_stored(steps[row] * _FACTORS, weight.dtype).astype(np.float64):
            tried = _limited(row_values / step, pairs)
            error = float(np.square(tried * step - row_values).cumsum()[-1])
            if error < best:
                best, chosen[row], row_codes = error, step, tried
        _keep_sum(row_values / chosen[row], row_codes, pairs)
        result[used] = row_codes
    scale = replace(scale, scale=chosen.reshape(scale.scale.shape).astype(weight.dtype))
    made = result[:-1].reshape(codes.shape).astype(np.int8)
    noise = Noise()
    noise.add(weight, dequantize(made, scale.scale, scale.zero_point, axis=scale.axis))
    return Weight(scale, made, coded.channels, noise.sqnr)


def _pairs(shape: tuple[int, ...], node: ir.Node, axes: WeightAxes) -> list[npt.NDArray[np.int64]]:
    """Return how ONNX Runtime may pair the weights of each channel: arrays of channels × pairs × 2 positions.

    A position is that in the flat weight; the size of the weight stands for none.  A convolution sums over the channels
    of one place of its kernel, and then over the next places.  That of an image may get a fourth channel.
    """
    size = int(np.prod(shape))
    places: npt.NDArray[np.int64] = np.arange(size).reshape(shape)
    if is_a(node, {"Conv"}):
        by_place = np.moveaxis(places, axes.summed, -1).reshape(shape[0], -1, shape[1])
        whole = by_place.reshape(shape[0], 1, -1)
        is_odd = shape[1] % 2 == 1 and shape[1] > 1
        return [_in_pairs(each, size) for each in ((whole, by_place) if is_odd else (whole,))]
    rows = np.moveaxis(places, (axes.channels, axes.summed), (0, -1))
    return [_in_pairs(rows.reshape(shape[axes.channels], -1, shape[axes.summed]), size)]


def _in_pairs(rows: npt.NDArray[np.int64], none: int) -> npt.NDArray[np.int64]:
    """Return each row of positions as pairs; the last one of an odd number has no neighbour."""
    filled = np.pad(rows, ((0, 0), (0, 0), (0, rows.shape[2] % 2)), constant_values=none)
    return filled.reshape(len(rows), -1, 2)


def _sums(pairs: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Return the sums of the magnitudes of pairs; 0 for pairs of two signs."""
    return np.where(pairs[..., 0] * pairs[..., 1] > 0, np.abs(pairs).sum(axis=-1), 0)


def _limited(ratio: _Floats, pairs: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    """Return ratios rounded to codes; pairs that are too large become the nearest ones that are not."""
    codes = np.clip(np.rint(ratio), -_GREATEST, _GREATEST).astype(np.int64)
    for each in pairs:
        first, second = each[_sums(codes[each]) > MOST].T
        sign = np.sign(codes[first])
        # The point of the line |w0| + |w1| = MOST that is nearest to both ratios; codes only become smaller.
        middle = np.rint((np.abs(ratio[first]) - np.abs(ratio[second]) + MOST) / 2.0).astype(np.int64)
        kept = np.clip(middle, MOST - np.abs(codes[second]), np.abs(codes[first]))
        codes[first], codes[second] = sign * kept, sign * (MOST - kept)
    return codes


def _keep_sum(ratio: _Floats, codes: npt.NDArray[np.int64], pairs: list[npt.NDArray[np.int64]]) -> None:
    """Round the codes nearest to a tie the other way until they have the sum of the ratios; pairs stay small."""
    rest = codes - ratio
    off = int(np.rint(rest.cumsum()[-1]))
    direction, left = -1 if off > 0 else 1, abs(off)
    partners = [dict(np.concatenate([each, each[:, ::-1]]).tolist()) for each in pairs]
    gain = -direction * rest  # by how much a code is on the wrong side
    order = np.argsort(-gain, kind="stable")
    for place in order[: np.count_nonzero(gain > 0.0)].tolist():
        if not left:
            break
        code = int(codes[place]) + direction
        others = [int(codes[partner[place]]) for partner in partners]
        if abs(code) <= _GREATEST and all(code * other <= 0 or abs(code) + abs(other) <= MOST for other in others):
            codes[place] = code
            left -= 1
