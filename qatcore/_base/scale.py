"""From a clipping range to a scale and a zero point, for a target: the codes that it is chosen for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .formats import E4M3_MAX, INTEGERS, QuantBits
from .validation import as_flag, as_member

#: No scale is smaller: float32's least normal number, for scales are stored as float32 and computed with as such.
MIN_SCALE = 2.0**-126
#: Of a range that holds nothing but 0, for which every scale is exact.  What matters is a bias behind it: runtimes give
#: that codes of 32 bits in steps of this scale times the weights', which should be fine beside the bias and hold it.
#: Of a bias as large as the greatest of int8 weights the code is 127 * 2**12, in octaves midway between 8 and 31 bits:
#: the bias may be 2,000 times smaller or 4,000 times larger.
ZEROS_SCALE = 2.0**-12
#: How far a zero point may be from the least code, so as to fit int32.
_FARTHEST = 2.0**31 - 2.0**8

_FloatsOrOne = float | npt.NDArray[np.float64]

_HALF_BELOW = 0.49999999999999994  # the largest double below one half


@dataclass(frozen=True)
class Target:
    """The codes that a range is chosen for.

    Attributes
    ----------
    bits : QuantBits
        Their format.
    symmetric : bool
        Whether they lie evenly about 0, whose code is 0.
    include_zero : bool
        Whether the range is widened to hold 0, so that 0 has a code and the zero point is one.
    """

    bits: QuantBits = QuantBits.INT8
    symmetric: bool = False
    include_zero: bool = False

    @classmethod
    def checked(cls, bits: object, symmetric: object, include_zero: object = False) -> Target:
        """Return what a user has asked for, if all of it is known."""
        return cls(
            as_member(QuantBits, bits, "bits"),
            as_flag(symmetric, "symmetric"),
            as_flag(include_zero, "include_zero"),
        )

    @property
    def is_even(self) -> bool:
        """Whether a range for it is one about 0: FP8 has no zero point."""
        return self.symmetric or self.bits is QuantBits.FP8

    @property
    def code_range(self) -> tuple[int, int]:
        """The least and the greatest code of an integer format."""
        return INTEGERS[self.bits].code_range(self.symmetric)


def round_half_away(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round to the nearest integer, ties away from zero; exact for every double."""
    return np.trunc(v + np.copysign(_HALF_BELOW, v))


def scale_and_zero_point(
    low: _FloatsOrOne, high: _FloatsOrOne, target: Target
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Return the scales and zero points for clipping ranges.

    With L the steps between the extreme codes and q the least code,

    * affine: ``scale = (high - low) / L``, ``zero_point = q - round_half_away(low / scale)``;
    * symmetric: ``scale = max(|low|, |high|) / greatest code``, ``zero_point = 0``;
    * FP8: ``scale = max(|low|, |high|) / 448``, ``zero_point = 0``.

    A scale is at least `MIN_SCALE`, and large enough for the zero point to be an int32.  A range of 0 alone gives
    (`ZEROS_SCALE`, 0).  No range, since nothing was observed, or one of another value only where affine, gives (1, 0).

    Parameters
    ----------
    low, high : float or ndarray of float64
        Of one shape; ``low > high`` means that nothing was observed.
    target : Target
    """
    bits = target.bits
    start, stop = np.asarray(low, np.float64), np.asarray(high, np.float64)
    zeros, unknown = (start == 0.0) & (stop == 0.0), ~(start <= stop)
    with np.errstate(all="ignore"):
        clip = np.maximum(np.abs(start), np.abs(stop))
        if target.is_even:
            greatest = E4M3_MAX if bits is QuantBits.FP8 else float(INTEGERS[bits].high)
            scale, zero_point = np.maximum(clip / greatest, MIN_SCALE), np.zeros(clip.shape)
        else:
            if target.include_zero:
                start, stop = np.minimum(start, 0.0), np.maximum(stop, 0.0)
            unknown |= ~(start < stop)
            scale = np.maximum((stop - start) / INTEGERS[bits].steps, np.maximum(clip / _FARTHEST, MIN_SCALE))
            zero_point = INTEGERS[bits].low - round_half_away(np.nan_to_num(start / scale))
    scale = np.where(zeros, ZEROS_SCALE, np.where(unknown, 1.0, scale))
    return scale, np.where(zeros | unknown, 0.0, zero_point).astype(np.int32)
