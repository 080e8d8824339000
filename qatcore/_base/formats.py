"""The number formats: their codes, limits and values."""

from __future__ import annotations

import enum
import reprlib
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import ml_dtypes
import numpy as np
import numpy.typing as npt

from .errors import InvalidArgumentError


class QuantBits(enum.Enum):
    """The number format of codes."""

    INT2 = "int2"
    INT4 = "int4"
    INT8 = "int8"
    FP8 = "fp8"  # OCP E4M3FN


@dataclass(frozen=True)
class IntegerFormat:
    """A two's complement integer format."""

    low: int
    high: int

    @property
    def steps(self) -> int:
        """Number of steps between the least and the greatest code."""
        return self.high - self.low

    def code_range(self, symmetric: bool) -> tuple[int, int]:
        """Return the least and the greatest code in use; symmetric codes leave out the format's least one."""
        return (-self.high if symmetric else self.low), self.high


INTEGERS = {
    QuantBits.INT8: IntegerFormat(-128, 127),
    QuantBits.INT4: IntegerFormat(-8, 7),
    QuantBits.INT2: IntegerFormat(-2, 1),
}

E4M3 = np.dtype(ml_dtypes.float8_e4m3fn)
E4M3_MAX = 448.0

#: The value of each of the 256 E4M3 codes; two are NaN.
E4M3_VALUES: npt.NDArray[np.float64] = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float64)
E4M3_VALUES.setflags(write=False)


@dataclass(frozen=True, eq=False)
class CodeFormat:
    """A number format for arrays of codes: the dtype of the codes, and what kernels need to know.

    A code has `width` bits.  Integer formats have the limits `least` and `greatest`.  Floating-point formats have
    `parameters` instead, in the order of minifloat.pxi.
    """

    dtype: np.dtype[Any]
    width: int
    least: int = 0
    greatest: int = 0
    parameters: npt.NDArray[np.int32] | None = None

    @property
    def storage(self) -> type[np.unsignedinteger[Any]]:
        """The unsigned type as which kernels see the codes; a code of less than 8 bits takes a whole byte."""
        return np.uint16 if self.width == 16 else np.uint8

    def symmetric(self) -> CodeFormat:
        """Return the format without the least integer code; floating-point formats are symmetric already."""
        return replace(self, least=-self.greatest)

    @property
    def ends(self) -> tuple[float, float]:
        """The least and the greatest code; for a floating-point format, the least and the greatest finite value."""
        if self.parameters is None:
            return self.least, self.greatest
        greatest = float(np.array(self.parameters[3], np.uint8).view(self.dtype))
        return -greatest, greatest


def _integer(dtype: Any, width: int, signed: bool) -> CodeFormat:
    least = -(1 << (width - 1)) if signed else 0
    return CodeFormat(np.dtype(dtype), width, least, least + (1 << width) - 1)


_NONE = 0x100  # no code of the format: it is greater than all of them


def _minifloat(
    dtype: Any, width: int, mantissa: int, exponent: int, greatest: int, infinity: int, least_nan: int, nan: int
) -> CodeFormat:
    parameters = np.array([width, mantissa, exponent, greatest, infinity, least_nan, nan], np.int32)
    parameters.setflags(write=False)
    return CodeFormat(np.dtype(dtype), width, parameters=parameters)


CODE_FORMATS = [
    _integer(ml_dtypes.int2, 2, signed=True),
    _integer(ml_dtypes.uint2, 2, signed=False),
    _integer(ml_dtypes.int4, 4, signed=True),
    _integer(ml_dtypes.uint4, 4, signed=False),
    _integer(np.int8, 8, signed=True),
    _integer(np.uint8, 8, signed=False),
    _integer(np.int16, 16, signed=True),
    _integer(np.uint16, 16, signed=False),
    _minifloat(E4M3, 8, 3, -6, 0x7E, _NONE, 0x7F, 0x7F),
    _minifloat(ml_dtypes.float8_e5m2, 8, 2, -14, 0x7B, 0x7C, 0x7D, 0x7E),
    _minifloat(ml_dtypes.float4_e2m1fn, 4, 1, 0, 0x7, _NONE, _NONE, 0x8),  # NaN becomes -0, as in ml_dtypes
]
# The formats by the name, the dtype and the scalar type of their codes, and by `QuantBits`.
_FORMAT_OF: dict[Any, CodeFormat] = {}
for _format in CODE_FORMATS:
    _FORMAT_OF |= dict.fromkeys((str(_format.dtype), _format.dtype, _format.dtype.type), _format)
for _bits in QuantBits:
    _FORMAT_OF[_bits] = _FORMAT_OF["float8_e4m3fn" if _bits is QuantBits.FP8 else _bits.value]


#: What users may pass to name a format: a dtype, its name as a str, or `QuantBits`.
CodeDType: TypeAlias = npt.DTypeLike | QuantBits


def as_code_format(dtype: Any, name: str, allowed: Collection[str] | None = None) -> CodeFormat:
    """Return the allowed format that a dtype, its name or a member of `QuantBits` names.

    A `CodeFormat` is returned as it is: inside the package, some of them use fewer codes than their dtype has.
    """
    if isinstance(dtype, CodeFormat):
        return dtype
    code_format = _format_of(dtype)
    # Making a dtype's name takes longer than quantising a small array, so it is made only if needed.
    if code_format is not None and (allowed is None or str(code_format.dtype) in allowed):
        return code_format
    names = (str(each.dtype) for each in CODE_FORMATS) if allowed is None else allowed
    if code_format is not None:
        dtype = code_format.dtype
    given = dtype if isinstance(dtype, np.dtype) else reprlib.repr(dtype)
    raise InvalidArgumentError(f"{name}: expected one of {', '.join(names)}, got {given}")


def _format_of(dtype: Any) -> CodeFormat | None:
    try:
        return _FORMAT_OF[dtype]
    except (KeyError, TypeError):  # not a key itself, but NumPy may know it as a dtype
        pass
    try:
        return _FORMAT_OF[np.dtype(dtype).type]  # a dtype may differ in byte order, which means nothing here
    except (KeyError, TypeError, ValueError):
        return None


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
MINIFLOATS = tuple(each.dtype.type for each in CODE_FORMATS if each.parameters is not None)
SUB_BYTE_INTEGERS = (ml_dtypes.int2, ml_dtypes.uint2, ml_dtypes.int4, ml_dtypes.uint4)
