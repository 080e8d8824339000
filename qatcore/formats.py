"""The number formats: their codes, limits and values."""

from __future__ import annotations

from dataclasses import dataclass

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .config import QuantBits


@dataclass(frozen=True)
class IntegerFormat:
    """A two's complement integer format."""

    low: int
    high: int

    @property
    def steps(self) -> int:
        """Steps between the least and the greatest code."""
        return self.high - self.low

    def code_range(self, symmetric: bool) -> tuple[int, int]:
        """Least and greatest code in use: symmetric codes leave out the least one."""
        return (-self.high if symmetric else self.low), self.high


INTEGERS = {QuantBits.INT8: IntegerFormat(-128, 127), QuantBits.INT4: IntegerFormat(-8, 7)}

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E4M3_MAX = 448.0

#: The value of each of the 256 E4M3 codes; two are NaN.
E4M3_VALUES: npt.NDArray[np.float64] = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float64)
E4M3_VALUES.setflags(write=False)

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
