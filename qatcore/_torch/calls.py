"""What calls in the forward pass computed with, for activation checkpointing, which computes them again."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

#: How many calls are remembered: a module has fewer, as a rule, between its forward and its backward pass.
CALLS = 64

#: How many of its values a tensor is known by.
SAMPLES = 32


def in_backward() -> bool:
    """Return whether a backward pass is running: what is called within one has been called before."""
    return bool(torch._C._current_graph_task_id() != -1)


def no_calls(width: int) -> torch.Tensor:
    """Return a memory that holds no calls, with room for so many numbers for each.

    It is no buffer, and always on the CPU: no state has it, and no process sends it to another one.
    """
    return torch.full((CALLS, width), torch.nan, dtype=torch.float64, device="cpu")


def sample(x: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return some of a tensor's values to know it by."""
    if not x.numel():
        return np.zeros(SAMPLES)
    values: npt.NDArray[np.float64] = x[_places(x.shape)].double().cpu().numpy()
    return values


@functools.lru_cache
def _places(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    places = np.linspace(0, math.prod(shape) - 1, SAMPLES).astype(np.int64)
    return tuple(torch.from_numpy(along) for along in np.unravel_index(places, shape))


def remember(calls: torch.Tensor, key: npt.NDArray[Any], used: npt.NDArray[Any]) -> None:
    """Write down, as the latest call, what the call of a key computed with."""
    rows = calls.numpy()
    rows[1:] = rows[:-1]
    rows[0, : key.size], rows[0, key.size :] = key, used


def is_full(calls: torch.Tensor) -> bool:
    """Return whether there have been as many calls as are remembered."""
    return not math.isnan(calls[-1, 0].item())


def recall(calls: torch.Tensor, key: npt.NDArray[Any]) -> npt.NDArray[np.float64] | None:
    """Return what the latest call of a key computed with, or None if there is none."""
    rows: npt.NDArray[np.float64] = calls.numpy()
    found = np.flatnonzero((rows[:, : key.size] == key).all(axis=1))
    return rows[found[0], key.size :] if found.size else None
