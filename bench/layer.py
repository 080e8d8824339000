"""Time the inference of a calibrated int8 layer, beside PyTorch's dynamic layer and float32."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

import qatcore

from . import peers
from .checks import near, same
from .settings import Settings
from .timing import Row, faster


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    side = settings.side(1024)
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(side, side)) / np.sqrt(side)).astype(np.float32)
    bias = rng.normal(size=side).astype(np.float32)
    layer = qatcore.QatLayer.from_weights(weights, bias)
    layer.calibrate_from_data(rng.normal(size=(side, side)).astype(np.float32))
    for batch in (1, 64, 1024):
        x = rng.normal(size=(batch if batch == 1 else settings.side(batch), side)).astype(np.float32)
        yield inference(layer, x, weights, bias, settings)


def codes(x: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """Return codes by the layer's rounding, half away from zero, in NumPy."""
    v = x.astype(np.float64) / scale + zero_point
    return np.clip(np.where(v < 0.0, np.ceil(v - 0.5), np.floor(v + 0.5)), -128, 127)


def exact_output(layer: qatcore.QatLayer, x: np.ndarray) -> np.ndarray:
    """Return the oracle: the sums of products, exact in float64, then three operations and one rounding."""
    activations = codes(x, layer.activation_scale, layer.activation_zero_point) - layer.activation_zero_point
    weights = codes(layer.weights, layer.weight_scale, layer.weight_zero_point) - layer.weight_zero_point
    total = activations @ weights.T
    return (total * (layer.activation_scale * layer.weight_scale) + layer.bias).astype(np.float32)


def inference(layer: qatcore.QatLayer, x: np.ndarray, weights: np.ndarray, bias: np.ndarray, settings: Settings) -> Row:
    """Row: one batch."""
    batch, side = x.shape
    row = Row(
        f"QatLayer({side}, {side}).forward_infer, batch {batch}",
        chart=f"int8 layer {side} x {side}, batch {batch}",
        operations=2 * batch * side * side,
    )
    expected = exact_output(layer, x)
    same(row.work, layer.forward_infer(x), expected)
    row.ours(lambda: layer.forward_infer(x))
    floats = x @ weights.T + bias
    # Both quantise to 8 bits, each with its own ranges.
    tolerance = 0.05 * np.abs(floats).max()
    near(row.work, expected, floats, tolerance)
    if settings.peers:
        import torch

        module = torch.nn.Sequential(torch.nn.Linear(side, side))
        module[0].weight.copy_(torch.from_numpy(weights))
        module[0].bias.copy_(torch.from_numpy(bias))
        tensor = torch.from_numpy(x)
        for engine, name in settings.engines.items():
            with peers.engine(engine):
                dynamic = torch.ao.quantization.quantize_dynamic(module, {torch.nn.Linear}, dtype=torch.qint8)
            near(f"{row.work}, {name}", dynamic(tensor).numpy(), floats, tolerance)
            row.peer(f"{name}: dynamic Linear", lambda dynamic=dynamic: dynamic(tensor), faster(1.0))
        row.peer("torch float32: Linear", lambda: module(tensor))
    row.peer("numpy float32: x @ w.T + b", lambda: x @ weights.T + bias, faster(1.0))
    return row
