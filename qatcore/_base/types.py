"""Names for the types in annotations: what public functions take and return, beside `numpy.typing.ArrayLike`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, SupportsFloat, SupportsIndex, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

PathLike: TypeAlias = str | os.PathLike[str]

# What counts as one number: numbers of Python and NumPy, and arrays and tensors without dimensions.
FloatLike: TypeAlias = SupportsFloat
IntLike: TypeAlias = SupportsIndex

ScalarT = TypeVar("ScalarT", bound=np.generic)
FloatT = TypeVar("FloatT", bound=np.floating[Any])
ArrayT = TypeVar("ArrayT", bound=npt.NDArray[Any])

#: An element type, as a class or a dtype that type checkers can follow.
DTypeOf: TypeAlias = type[ScalarT] | np.dtype[ScalarT]

#: An array whose element type depends on the values of arguments.
AnyArray: TypeAlias = npt.NDArray[Any]
Floats: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float64]
Mask: TypeAlias = npt.NDArray[np.bool_]

# One number for a whole tensor, or an array with one number for each channel.
FloatOrArray: TypeAlias = float | npt.NDArray[np.float64]
ZeroPoint: TypeAlias = int | npt.NDArray[np.int32]
Count: TypeAlias = int | npt.NDArray[np.int64]

# The same for generic classes.  Type variables may have defaults in Python from 3.13 on, in type checkers before that.
if TYPE_CHECKING:
    import typing_extensions as te

    FloatsT_co = te.TypeVar("FloatsT_co", bound=FloatOrArray, covariant=True, default=FloatOrArray)
    ZeroPointT_co = te.TypeVar("ZeroPointT_co", bound=ZeroPoint, covariant=True, default=ZeroPoint)
    CountT_co = te.TypeVar("CountT_co", bound=Count, covariant=True, default=Count)
else:
    FloatsT_co = TypeVar("FloatsT_co", covariant=True)
    ZeroPointT_co = TypeVar("ZeroPointT_co", covariant=True)
    CountT_co = TypeVar("CountT_co", covariant=True)
