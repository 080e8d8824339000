"""Turn clipping ranges into scales and zero points, for the codes that a target describes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .formats import E4M3_MAX, INTEGERS, QuantBits
from .validation import as_flag, as_member

#: The smallest scale: float32's least normal number, because scales are stored, and computed with, as float32.
MIN_SCALE = 2.0**-126
#: The scale of a range that holds only 0.  Every scale is exact for it, so what matters is the bias of the layer.
#: Runtimes give a bias int32 codes, in steps of this scale times the weight scale.  The steps should be small beside
#: the bias, and its code must fit int32.  A bias as large as the greatest int8 weight has the code 127 * 2**12.
#: In octaves, that is midway between 2**8 and 2**31, so the bias may be 2,000 times smaller or 4,000 times larger.
ZEROS_SCALE = 2.0**-12
#: The greatest distance of a zero point from the least code: within it, a zero point fits int32.
_FARTHEST = 2.0**31 - 2.0**8

_FloatsOrOne = float | npt.NDArray[np.float64]

_HALF_BELOW = 0.49999999999999994  # the largest double below one half


@dataclass(frozen=True)
class Target:
    """The codes that a range is chosen for.

    Attributes
    ----------
    bits : QuantBits
        Format of the codes.
    symmetric : bool
        Whether the codes are symmetric about 0, with zero point 0.
    include_zero : bool
        Whether the range is widened to hold 0.  Then 0 has a code, and the zero point is that code.
    """

    bits: QuantBits = QuantBits.INT8
    symmetric: bool = False
    include_zero: bool = False

    @classmethod
    def checked(cls, bits: object, symmetric: object, include_zero: object = False) -> Target:
        """Return the target that a user asks for; raise an error if an argument is wrong."""
        return cls(
            as_member(QuantBits, bits, "bits"),
            as_flag(symmetric, "symmetric"),
            as_flag(include_zero, "include_zero"),
        )

    @property
    def is_even(self) -> bool:
        """Whether its ranges are symmetric about 0.  FP8 has no zero point, so ranges for FP8 always are."""
        return self.symmetric or self.bits is QuantBits.FP8

    @property
    def code_range(self) -> tuple[int, int]:
        """The least and the greatest code in use, for an integer format."""
        return INTEGERS[self.bits].code_range(self.symmetric)


def round_half_away(v: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Round to the nearest integer, ties away from zero; exact for every double."""
    return np.trunc(v + np.copysign(_HALF_BELOW, v))


def scale_and_zero_point(
    low: _FloatsOrOne, high: _FloatsOrOne, target: Target
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Return the scales and zero points for clipping ranges.

    Let L be the number of steps between the extreme codes, and q the least code.

    * affine: ``scale = (high - low) / L``, ``zero_point = q - round_half_away(low / scale)``;
    * symmetric: ``scale = max(|low|, |high|) / greatest code``, ``zero_point = 0``;
    * FP8: ``scale = max(|low|, |high|) / 448``, ``zero_point = 0``.

    A scale is at least `MIN_SCALE`, and large enough for the zero point to fit int32.  A range that holds only 0 gives
    (`ZEROS_SCALE`, 0).  If nothing was observed, the answer is (1, 0).  An affine range that holds a single other value
    also gives (1, 0), unless `include_zero` widens it.

    Parameters
    ----------
    low, high : float or ndarray of float64
        The ends of the ranges, of equal shapes; ``low > high`` means that nothing was observed.
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
