"""Compare results before anything is timed: a wrong result must not be reported as fast."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt


class MismatchError(Exception):
    """Raised if qatcore disagrees with an oracle or a peer; the message names the row."""


def same(work: str, got: npt.ArrayLike, expected: npt.ArrayLike) -> None:
    """Require the same shape, type and bits, as exact numbers and numbers with the same roundings have."""
    got, expected = np.asarray(got), np.asarray(expected)
    if got.shape != expected.shape or got.dtype != expected.dtype:
        raise MismatchError(f"{work}: expected {expected.dtype} {expected.shape}, got {got.dtype} {got.shape}")
    bits = f"u{got.itemsize}"  # bits tell 0.0 from -0.0
    different = np.flatnonzero(got.view(bits) != expected.view(bits))
    if different.size:
        i = different[0]
        raise MismatchError(
            f"{work}: {different.size} of {got.size} values differ, the first at {i}: "
            f"expected {expected.flat[i]!r}, got {got.flat[i]!r}"
        )


def near(work: str, got: npt.ArrayLike, expected: npt.ArrayLike, tolerance: float, *, unless: float = 0.0) -> None:
    """Require differences within the tolerance, except for the fraction `unless` of the values; callers say why."""
    # For float32 values that are a step apart, float32 differences are exact enough and take half the memory.
    difference = np.abs(np.subtract(got, expected, dtype=np.result_type(got, expected, np.float32)))
    beyond = np.count_nonzero(~(difference <= tolerance))
    if beyond > unless * difference.size:
        raise MismatchError(
            f"{work}: {beyond} of {difference.size} values differ by more than {tolerance:.3g}, "
            f"at most by {difference.max():.3g}"
        )


def require(work: str, condition: bool, what: str) -> None:
    """Require any other condition."""
    if not condition:
        raise MismatchError(f"{work}: {what}")
