"""The number formats: their codes, limits and values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .config import QuantBits
from .errors import InvalidArgumentError


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


@dataclass(frozen=True)
class CodeFormat:
    """A format that whole arrays are quantised to: the type of its codes and, of integers, their limits."""

    dtype: np.dtype[Any]
    least: int = 0
    greatest: int = 0

    @property
    def is_integer(self) -> bool:
        """Whether codes are integers, which have a zero point."""
        return self.greatest > self.least


CODE_FORMATS = [CodeFormat(np.dtype(np.int8), -128, 127), CodeFormat(np.dtype(np.uint8), 0, 255), CodeFormat(E4M3)]
# By the name, the type and the scalar type of their codes.
_FORMAT_OF: dict[Any, CodeFormat] = {}
for _format in CODE_FORMATS:
    _FORMAT_OF |= dict.fromkeys((str(_format.dtype), _format.dtype, _format.dtype.type), _format)


def as_code_format(dtype: Any, name: str) -> CodeFormat:
    """Return the format of codes of a type, given as such or by its name."""
    try:
        return _FORMAT_OF[dtype]
    except (KeyError, TypeError):  # perhaps another way to say it
        pass
    try:
        return _FORMAT_OF[np.dtype(dtype).type]  # a byte order that bytes do not have sets types apart
    except (KeyError, TypeError):
        names = ", ".join(str(code_format.dtype) for code_format in CODE_FORMATS)
        given = dtype if isinstance(dtype, np.dtype) else repr(dtype)
        raise InvalidArgumentError(f"{name}: expected one of {names}, got {given}") from None


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
