"""From a clipping range to a scale and a zero point."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ._arrays import INT32
from .config import QuantBits
from .formats import E4M3_MAX, INTEGERS

#: No scale is smaller.  The zero point is computed before this floor applies, as in the reference.
MIN_SCALE = 1e-12

_FloatsOrOne = float | npt.NDArray[np.float64]

_HALF_BELOW = 0.49999999999999994  # the largest double below one half


def round_half_away(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round to the nearest integer, ties away from zero; exact for every double."""
    return np.trunc(v + np.copysign(_HALF_BELOW, v))


def scale_and_zero_point(
    low: _FloatsOrOne, high: _FloatsOrOne, bits: QuantBits, *, symmetric: bool, include_zero: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Return the scales and zero points for clipping ranges.

    With L the steps between the extreme codes and q the least code,

    * affine: ``scale = (high - low) / L``, ``zero_point = q - round_half_away(low / scale)``,
      the difference wrapping in int32;
    * symmetric: ``scale = max(|low|, |high|) / greatest code``, ``zero_point = 0``;
    * FP8: ``scale = max(|low|, |high|) / 448``, ``zero_point = 0``.

    A range without extent (none observed, or one value only where affine) gives (1, 0).

    Parameters
    ----------
    low, high : float or ndarray of float64
        Of one shape; ``low > high`` means that nothing was observed.
    bits : QuantBits
    symmetric : bool
    include_zero : bool
        Widen the range to hold 0, so that 0 has a code and the zero point is one.
    """
    start, stop = np.asarray(low, np.float64), np.asarray(high, np.float64)
    empty = ~(start <= stop)
    with np.errstate(all="ignore"):
        if symmetric or bits is QuantBits.FP8:
            greatest = E4M3_MAX if bits is QuantBits.FP8 else float(INTEGERS[bits].high)
            clip = np.maximum(np.abs(start), np.abs(stop))
            scale = np.where(empty | (clip == 0.0), 1.0, np.maximum(clip / greatest, MIN_SCALE))
            return scale, np.zeros(scale.shape, np.int32)
        if include_zero:
            start, stop = np.minimum(start, 0.0), np.maximum(stop, 0.0)
        scale = (stop - start) / INTEGERS[bits].steps
        offset = np.nan_to_num(round_half_away(start / scale), nan=0.0, posinf=INT32.max, neginf=INT32.min)
        offset = np.clip(offset, INT32.min, INT32.max).astype(np.int64)
    degenerate = empty | ~(start < stop)
    zero_point = np.where(degenerate, 0, (INTEGERS[bits].low - offset).astype(np.int32))
    return np.where(degenerate, 1.0, np.maximum(scale, MIN_SCALE)), zero_point.astype(np.int32)
