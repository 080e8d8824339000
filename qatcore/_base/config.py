"""Plain values: methods, configurations and results."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from .errors import InvalidArgumentError
from .formats import QuantBits
from .types import FloatOrArray, ZeroPoint
from .validation import as_flag, as_member, as_spec_parameter


class CalibMethod(enum.Enum):
    """How a clipping range is chosen from observed values."""

    MIN_MAX = "min_max"
    PERCENTILE = "percentile"
    KL = "kl"
    MSE = "mse"
    AUTO = "auto"  # the method above whose codes have the least expected squared error


@dataclass(frozen=True)
class QatConfig:
    """How a layer is quantised.

    Parameters
    ----------
    bits : QuantBits or str
        Format of the weight and activation codes.
    per_channel : bool
        Whether each output channel has a weight scale of its own; otherwise all channels share one.
    symmetric : bool
        Whether weight codes are symmetric about 0, with zero point 0.
        Their limits are then ``[-127, 127]``, ``[-7, 7]`` or ``[-1, 1]``.
        Activations are affine either way.  FP8 codes are always symmetric.

    Raises
    ------
    InvalidArgumentError
        If `bits` names no format.
    TypeError
        If an argument has a wrong type.

    Examples
    --------
    >>> QatConfig(bits=QuantBits.INT4, per_channel=True)
    QatConfig(bits=<QuantBits.INT4: 'int4'>, per_channel=True, symmetric=True)
    """

    bits: QuantBits = QuantBits.INT8
    per_channel: bool = False
    symmetric: bool = True

    if TYPE_CHECKING:  # what users may pass; `__post_init__` converts it

        def __init__(self, bits: QuantBits | str = ..., per_channel: bool = ..., symmetric: bool = ...) -> None: ...

    def __post_init__(self) -> None:
        object.__setattr__(self, "bits", as_member(QuantBits, self.bits, "bits"))
        object.__setattr__(self, "per_channel", as_flag(self.per_channel, "per_channel"))
        object.__setattr__(self, "symmetric", as_flag(self.symmetric, "symmetric"))


@dataclass(frozen=True, eq=False)
class QuantizationSpec:
    """The scale and zero point chosen for one layer, and how they were chosen.

    Two specifications are equal if all their fields are equal; arrays are equal if all their elements are.

    Parameters
    ----------
    layer_name : str
    scale : float or ndarray of float64, shape (channels,)
        At least 0.  It is infinite if the range is too wide for float64.
    zero_point : int or ndarray of int32, shape (channels,)
    method : CalibMethod or str
        The method that chose the range.
    bits : QuantBits or str
        Format of the codes.
    symmetric : bool
        Whether the codes are symmetric about 0.
    axis : int, tuple of int or None
        The axis of the channels; None means one scale for the whole tensor.
        With several axes, `scale` and `zero_point` have one dimension for each of them.
    groups : int
        How many neighbours along `axis` share a scale; along its last one, if there are several.

    Raises
    ------
    InvalidArgumentError
        If `method` or `bits` is unknown, a number is outside its range, or shapes do not fit together.
        If an axis is named twice, or there are groups without an axis.
    TypeError
        If an argument has a wrong type.
    """

    layer_name: str
    scale: FloatOrArray
    zero_point: ZeroPoint
    method: CalibMethod
    bits: QuantBits = QuantBits.INT8
    symmetric: bool = False
    axis: int | tuple[int, ...] | None = None
    groups: int = 1

    if TYPE_CHECKING:

        def __init__(
            self,
            layer_name: str,
            scale: npt.ArrayLike,
            zero_point: npt.ArrayLike,
            method: CalibMethod | str,
            bits: QuantBits | str = ...,
            symmetric: bool = ...,
            axis: int | tuple[int, ...] | None = ...,
            groups: int = ...,
        ) -> None: ...

    def __post_init__(self) -> None:
        if not isinstance(self.layer_name, str):
            raise TypeError(f"layer_name: expected a str, got {type(self.layer_name).__name__}")
        axis = self.axis
        axes = axis if isinstance(axis, tuple) else () if axis is None else (axis,)
        if not all(type(a) is int for a in axes):
            raise TypeError(f"axis: expected an int, a tuple of ints or None, got {axis!r}")
        if len(set(axes)) < len(axes) or axis == ():
            raise InvalidArgumentError(f"axis: expected one axis, or several different ones, got {axis!r}")
        if type(self.groups) is not int:
            raise TypeError(f"groups: expected an int, got {type(self.groups).__name__}")
        if self.groups < 1 or (axis is None and self.groups > 1):
            raise InvalidArgumentError(f"groups: expected at least 1, and exactly 1 without an axis, got {self.groups}")
        dimensions = len(axes)
        scale = as_spec_parameter(self.scale, "scale", "iuf", np.dtype(np.float64), dimensions)
        zero_point = as_spec_parameter(self.zero_point, "zero_point", "iu", np.dtype(np.int32), dimensions)
        if not np.all(scale >= 0.0):
            raise InvalidArgumentError(f"scale: expected numbers that are not negative, got {self.scale}")
        if scale.shape != zero_point.shape:
            raise InvalidArgumentError(
                f"zero_point: expected the shape of scale, {scale.shape}, got {zero_point.shape}"
            )
        object.__setattr__(self, "scale", scale if dimensions else float(scale))
        object.__setattr__(self, "zero_point", zero_point if dimensions else int(zero_point))
        object.__setattr__(self, "method", as_member(CalibMethod, self.method, "method"))
        object.__setattr__(self, "bits", as_member(QuantBits, self.bits, "bits"))
        object.__setattr__(self, "symmetric", as_flag(self.symmetric, "symmetric"))

    def __reduce__(self) -> tuple[Any, ...]:
        # Unpickling calls the constructor, which makes the arrays read-only again.
        return type(self), tuple(getattr(self, field.name) for field in fields(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantizationSpec):
            return NotImplemented
        return (
            self._plain_fields() == other._plain_fields()
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )

    def __hash__(self) -> int:
        return hash(self._plain_fields())

    def _plain_fields(self) -> tuple[object, ...]:
        return (self.layer_name, self.method, self.bits, self.symmetric, self.axis, self.groups)


def as_config(config: object) -> QatConfig:
    """Return a configuration, the default one for None."""
    if config is None:
        return QatConfig()
    if not isinstance(config, QatConfig):
        raise TypeError(f"config: expected a QatConfig, got {type(config).__name__}")
    return config
