"""Time fake quantisation with its mask, and its gradients, beside PyTorch's operators."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

import qatcore

from .checks import near, same
from .settings import Settings, counted
from .timing import Row, faster

CHANNELS = 256
LOW, HIGH = -128, 127

#: PyTorch multiplies by the reciprocal, so a value next to a tie may rarely get the neighbouring code.
TIES = 1e-4


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    n = settings.size(2**24)
    x, grad = np.random.default_rng(0).normal(size=(2, CHANNELS, n // CHANNELS)).astype(np.float32)
    scales = np.random.default_rng(1).uniform(0.015, 0.02, CHANNELS).astype(np.float32)
    for axis, scale in ((None, scales[0]), (0, scales)):
        zero_point = np.full(scale.shape, 3, np.int32)
        what = f"float32, {counted(x.size)}, {'per tensor' if axis is None else f'{CHANNELS} channels'}"
        yield with_mask(x, scale, zero_point, axis, what, settings)
        yield backward(grad, x, scale, zero_point, axis, what, settings)


def column(parameter: np.ndarray) -> np.ndarray:
    """Return a parameter in a shape that broadcasts against the rows of a matrix."""
    return parameter[..., np.newaxis]


def with_mask(
    x: np.ndarray, scale: np.ndarray, zero_point: np.ndarray, axis: int | None, what: str, settings: Settings
) -> Row:
    """Row: the values, and the mask of values that were not clipped, in one pass."""
    row = Row(f"fake_quantize with mask, {what}")
    code = np.rint(x / column(scale)) + column(zero_point)
    values = (np.clip(code, LOW, HIGH).astype(np.float32) - column(zero_point).astype(np.float32)) * column(scale)
    ours = partial(qatcore.fake_quantize, x, scale, zero_point, axis=axis, return_mask=True)
    got, mask = ours()
    same(row.work, got, values)
    same(row.work, mask, (code >= LOW) & (code <= HIGH))
    row.ours(ours)
    if settings.peers:
        import torch

        tensors = [torch.from_numpy(np.asarray(array)) for array in (x, scale, zero_point)]
        if axis is None:
            per_tensor = torch.ops.aten.fake_quantize_per_tensor_affine_cachemask
            theirs = partial(per_tensor, tensors[0], float(scale), int(zero_point), LOW, HIGH)
        else:
            theirs = partial(torch.ops.aten.fake_quantize_per_channel_affine_cachemask, *tensors, axis, LOW, HIGH)
        near(f"{row.work}, torch", theirs()[0].numpy(), values, 1e-6, unless=TIES)
        row.peer("torch: fake_quantize_…_cachemask", theirs, faster(5))
    row.limit("x.copy()", x.copy)
    return row


def backward(
    grad: np.ndarray,
    x: np.ndarray,
    scale: np.ndarray,
    zero_point: np.ndarray,
    axis: int | None,
    what: str,
    settings: Settings,
) -> Row:
    """Row: the gradients of values, scales and zero points, in one pass."""
    row = Row(f"fake_quantize_backward, {what}")
    v = x / column(scale)
    code = np.rint(v)
    low, high = LOW - column(zero_point), HIGH - column(zero_point)
    passes = (code >= low) & (code <= high)
    slope = np.where(passes, code.astype(np.float64) - v, np.clip(code, low, high))
    ours = partial(qatcore.fake_quantize_backward, grad, x, scale, zero_point, axis=axis, grad_factor=1.0)
    of_x, of_scale, of_zero_point = ours()
    same(row.work, of_x, np.where(passes, grad, np.float32(0.0)))
    products = grad * slope  # in float64, but NumPy adds them in another order
    near(row.work, of_scale, products.sum(axis=None if axis is None else 1), 1e-12 * float(np.abs(products).sum()))
    clipped = (np.where(passes, 0.0, grad) * -column(scale).astype(np.float64)).sum(axis=None if axis is None else 1)
    near(row.work, of_zero_point, clipped, 1e-12 * float(np.abs(grad).sum(dtype=np.float64)))
    row.ours(ours)
    if settings.peers:
        import torch

        tensors = [torch.from_numpy(np.atleast_1d(array)) for array in (grad, x, scale, zero_point.astype(np.float32))]
        if axis is None:
            operator = torch.ops.aten._fake_quantize_learnable_per_tensor_affine_backward
            theirs = partial(operator, *tensors, LOW, HIGH, 1.0)
        else:
            operator = torch.ops.aten._fake_quantize_learnable_per_channel_affine_backward
            theirs = partial(operator, *tensors, axis, LOW, HIGH, 1.0)
        near(f"{row.work}, torch", theirs()[0].numpy(), of_x, 0.0, unless=TIES)
        row.peer("torch: _fake_quantize_learnable_…_backward", theirs, faster(5))
    row.limit("x.copy()", x.copy)
    return row
