"""Remember which parameters the calls of a forward pass used.

Activation checkpointing computes these calls again in the backward pass, and has to use the same parameters.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

#: How many calls are remembered.  A module usually has fewer between its forward and its backward pass.
CALLS = 64

#: How many values of a tensor identify it.
SAMPLES = 32


def in_backward() -> bool:
    """Return whether a backward pass is running; a call within one repeats a call of the forward pass."""
    return bool(torch._C._current_graph_task_id() != -1)


def no_calls(width: int) -> torch.Tensor:
    """Return an empty memory of calls, a tensor of shape (CALLS, width) with a row for each call.

    It is a plain tensor on the CPU and no buffer, so no state_dict holds it and no process sends it to another one.
    """
    return torch.full((CALLS, width), torch.nan, dtype=torch.float64, device="cpu")


def sample(x: torch.Tensor) -> npt.NDArray[np.float64]:
    """Return some values of a tensor, as float64 of shape (SAMPLES,), that identify it."""
    if not x.numel():
        return np.zeros(SAMPLES)
    values: npt.NDArray[np.float64] = x[_places(x.shape)].double().cpu().numpy()
    return values


@functools.lru_cache
def _places(shape: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    places = np.linspace(0, math.prod(shape) - 1, SAMPLES).astype(np.int64)
    return tuple(torch.from_numpy(along) for along in np.unravel_index(places, shape))


def remember(calls: torch.Tensor, key: npt.NDArray[Any], used: npt.NDArray[Any]) -> None:
    """Store a call as the latest one: its key, and the numbers that it used."""
    rows = calls.numpy()
    rows[1:] = rows[:-1]
    rows[0, : key.size], rows[0, key.size :] = key, used


def is_full(calls: torch.Tensor) -> bool:
    """Return whether the memory is full: there have been at least CALLS calls."""
    return not math.isnan(calls[-1, 0].item())


def recall(calls: torch.Tensor, key: npt.NDArray[Any]) -> npt.NDArray[np.float64] | None:
    """Return the numbers that the latest call with this key used, or None if there is no such call."""
    rows: npt.NDArray[np.float64] = calls.numpy()
    found = np.flatnonzero((rows[:, : key.size] == key).all(axis=1))
    return rows[found[0], key.size :] if found.size else None
