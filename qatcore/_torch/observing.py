"""Set scales from batches: follow a range, or start a scale that is then learned."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.formats import QuantBits
from .._base.scale import MIN_SCALE, Target, scale_and_zero_point
from .._calibration.calibrate import choose_scale
from .._calibration.collector import CalibrationCollector
from .calls import in_backward, is_full, recall, remember
from .functional import as_numpy
from .operators import operator

_GREATEST = 1e38  # the greatest end of a range, so that float32 holds its width as well
_NOISE = 1e-3  # in the first calls, a range below this share of the next one is taken for noise

_Floats = npt.NDArray[np.float32]


def _like_parameters(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, *_: Any) -> tuple[Any, ...]:
    return torch.empty_like(scale), torch.empty_like(zero_point)


@operator(_like_parameters, changes=("scale", "zero_point", "low", "high", "calls"))
def follow(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    calls: torch.Tensor,
    averaging_constant: float,
    bits: str,
    symmetric: bool,
    axis: int | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the averages of the range towards the range of a batch; return the scale and zero point to use for it.

    A call in a backward pass moves nothing.  It uses the range of the call that it repeats.
    """
    new = np.stack(_finite_range(x, axis))
    old = _range(low, high)
    averages = np.where(_begins(old, new, calls), new, _moved(old, new, averaging_constant))
    averages = np.where(new[0] <= new[1], averages, old)
    again = in_backward()
    if again and (used := recall(calls, new.ravel())) is not None:
        averages = used.reshape(averages.shape)
    start, stop = averages.astype(np.float64)
    chosen: tuple[Any, ...] = scale_and_zero_point(start, stop, Target(QuantBits(bits), symmetric, include_zero=True))
    used_scale, used_zero_point = (
        torch.as_tensor(np.where(start <= stop, value, as_numpy(before.cpu()))).to(before)
        for value, before in zip(chosen, (scale, zero_point), strict=True)
    )
    if not again:
        remember(calls, new.ravel(), averages.ravel())
        values = used_scale, used_zero_point, *(torch.as_tensor(end) for end in averages)
        for state, value in zip((scale, zero_point, low, high), values, strict=True):
            state.copy_(value)
    return used_scale, used_zero_point


def _nothing(*_: Any) -> None:
    return None


@operator(_nothing, changes=("scale", "zero_point", "low", "high", "calls"))
def begin(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    calls: torch.Tensor,
    bits: str,
    symmetric: bool,
    axis: int | None,
) -> None:
    """Start a learned scale from a batch, if no batch before had a range, and keep the scale positive."""
    if in_backward():
        return
    if not is_full(calls) or not (low < high).any():
        old, new = _range(low, high), np.stack(_finite_range(x, axis))
        begins = _begins(old, new, calls).all()
        remember(calls, new.ravel(), old.ravel())
        if begins and (new[0] <= new[1]).any():
            calibrate(x, scale, zero_point, low, high, CalibMethod.MSE, QuantBits(bits), symmetric, axis)
    scale.clamp_(min=MIN_SCALE)  # below this there is no gradient


def calibrate(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    low: torch.Tensor,
    high: torch.Tensor,
    method: CalibMethod,
    bits: QuantBits,
    symmetric: bool,
    axis: int | None,
) -> None:
    """Choose a scale for the values of a tensor."""
    collector = CalibrationCollector(axis)
    collector.observe(as_numpy(x.cpu()))
    if not np.any(np.isfinite(collector.min_val)):
        raise InvalidArgumentError("x: expected some finite values, got none")
    chosen, zeros, _ = choose_scale(collector, method, Target(bits, symmetric, include_zero=True))
    for state, value in ((scale, chosen), (zero_point, zeros), (low, collector.min_val), (high, collector.max_val)):
        state.copy_(torch.as_tensor(value))


def _range(low: torch.Tensor, high: torch.Tensor) -> _Floats:
    return np.stack([as_numpy(low.cpu()), as_numpy(high.cpu())])


def _begins(old: _Floats, new: _Floats, calls: torch.Tensor) -> npt.NDArray[np.bool_]:
    """Return where a new range replaces the old one, because the old one says nothing about the data.

    The first batches may be dummies of zeros.  Layers turn them into a single value, or into rounding errors after a
    batch norm has subtracted that value.
    """
    none = ~(old[0] <= old[1])
    several = (old[0] == old[1]) & (new[0] < new[1])
    greatest, new_greatest = np.abs(old).max(axis=0), np.abs(new).max(axis=0)
    least = np.float32(0.0 if is_full(calls) else _NOISE)  # later, a great value may be a rare one
    begins: npt.NDArray[np.bool_] = none | several | ((greatest <= least * new_greatest) & (greatest < new_greatest))
    return begins


def _moved(old: _Floats, new: _Floats, averaging_constant: float) -> _Floats:
    with np.errstate(invalid="ignore"):  # 0 * inf, where there is no range yet
        moved: _Floats = (1.0 - averaging_constant) * old + averaging_constant * new
    return moved


def _finite_range(x: torch.Tensor, axis: int | None) -> tuple[_Floats, _Floats]:
    """Return the least and greatest finite values; inf and -inf where there are none."""
    x = x.detach()
    if axis is not None:
        x = x.transpose(0, axis).flatten(1)
    low, high = _as_floats(torch.aminmax(x) if axis is None else torch.aminmax(x, dim=1))
    if not (np.isfinite(low) & np.isfinite(high)).all():
        finite = x.isfinite()
        dim = () if axis is None else 1
        least, greatest = torch.where(finite, x, math.inf).amin(dim), torch.where(finite, x, -math.inf).amax(dim)
        low, high = _as_floats((least, greatest))
    return low, high


def _as_floats(ends: tuple[torch.Tensor, torch.Tensor]) -> tuple[_Floats, _Floats]:
    low, high = (end.double().cpu().numpy() for end in ends)
    low, high = (np.where(np.isinf(end), end, np.clip(end, -_GREATEST, _GREATEST)) for end in (low, high))
    return low.astype(np.float32), high.astype(np.float32)
