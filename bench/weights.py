"""Time the scales and codes of an ONNX model's weights, beside ONNX Runtime's rounding to nearest."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .checks import require
from .settings import Settings, counted
from .timing import Row

GROUP = 32
#: The error of many rows with the best of evenly spaced scales may be less than that of the search, by so much.
TOLERANCE = 1.01


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    from qatcore._onnx.plan import WeightAxes
    from qatcore._onnx.weights import coded_weight, weight_scale

    shape = (settings.side(2048), settings.side(2048))
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    axes = WeightAxes(channels=1, summed=0)
    size = counted(weight.size)
    for kind, group, greatest, what in (("int8", 0, 127, "each channel"), ("int4", GROUP, 7, f"groups of {GROUP}")):
        row = Row(f"scales and codes of {size} weights, {kind}, {what}")
        scale = weight_scale(weight, axes, kind, group)
        few = weight[:, :4].T.reshape(-1, group or shape[0]).astype(np.float64)
        found = np.stack([scale.scale[:4]] if not group else scale.scale[:, :4].T).reshape(-1).astype(np.float64)
        whole = np.abs(few).max(axis=1) / greatest
        least = np.min([errors(few, whole * part, greatest) for part in np.linspace(0.3, 1.0, 300)], axis=0)
        ratio = float(errors(few, found, greatest).sum() / least.sum())
        require(row.work, ratio <= TOLERANCE, f"{ratio:.3f} times the least squared error")

        row.ours(lambda kind=kind, group=group: coded_weight(weight, weight_scale(weight, axes, kind, group), 1))
        if settings.peers and group:
            row.peer("ONNX Runtime: quantize_matmul_4bits", rounded_to_nearest(weight))
        row.limit("x.copy()", weight.copy)
        yield row


def errors(rows: np.ndarray, scales: np.ndarray, greatest: int) -> np.ndarray:
    """Return the squared error of each row with its scale."""
    quotients = rows / scales[:, np.newaxis]
    codes = np.clip(np.rint(quotients), -greatest, greatest)
    squares: np.ndarray = np.square(quotients - codes).sum(axis=1) * scales**2
    return squares


def rounded_to_nearest(weight: np.ndarray) -> object:
    """Return a function that gives ONNX Runtime's int4 codes; its scales clip nothing, and it does not search."""
    from onnxruntime.capi._pybind_state import quantize_matmul_4bits

    k, n = weight.shape
    blocks = k // GROUP
    codes, scales = np.zeros((n, blocks, GROUP // 2), np.uint8), np.zeros(n * blocks, np.float32)
    zero_points = np.zeros(n * ((blocks + 1) // 2), np.uint8)
    return lambda: quantize_matmul_4bits(codes, weight, scales, zero_points, GROUP, n, k, True)
