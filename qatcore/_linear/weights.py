"""Convert weights to codes and back."""

from __future__ import annotations

from typing import overload

import numpy as np
import numpy.typing as npt

from .._base.arrays import as_floats, as_plain_array
from .._base.config import QatConfig, as_config
from .._base.errors import InvalidArgumentError
from .._base.formats import E4M3, QuantBits
from .._base.scale import Target, scale_and_zero_point
from .._base.types import AnyArray, FloatOrArray, Floats, ZeroPoint
from .._base.validation import as_scales, as_zero_points
from .._codes.reference_rounding import decode, encode


@overload
def quantize_model_weights(weights: npt.ArrayLike, config: None = ...) -> tuple[npt.NDArray[np.int8], float, int]: ...
@overload
def quantize_model_weights(weights: npt.ArrayLike, config: QatConfig) -> tuple[AnyArray, FloatOrArray, ZeroPoint]: ...
def quantize_model_weights(
    weights: npt.ArrayLike, config: QatConfig | None = None
) -> tuple[AnyArray, FloatOrArray, ZeroPoint]:
    """Quantise weights by their range.

    Parameters
    ----------
    weights : array_like, any shape; (out, in) if ``config.per_channel``
        NaN gets code 0 (NaN in FP8), and an infinity gets the code at the nearer end.  The range ignores both.
    config : QatConfig, optional

    Returns
    -------
    codes : ndarray of int8 (INT8, INT4) or float8_e4m3fn (FP8), shape of `weights`
    scale : float, or ndarray of float64, shape (out,), if per channel
    zero_point : int, or ndarray of int32, shape (out,), if per channel
        0 for symmetric codes and for FP8.

    Raises
    ------
    InvalidArgumentError
        If `weights` is not a matrix, but the configuration is per channel.
    TypeError
        If `weights` does not hold real numbers.

    Examples
    --------
    >>> codes, scale, zero_point = quantize_model_weights([[-1.0, 0.25], [0.125, 0.2]], QatConfig(per_channel=True))
    >>> codes.tolist(), zero_point.tolist()
    ([[-127, 32], [79, 127]], [0, 0])
    >>> dequantize_weights(codes, scale).round(2).tolist()
    [[-1.0, 0.25], [0.12, 0.2]]
    """
    config = as_config(config)
    floats = as_floats(weights, "weights")
    if config.per_channel and floats.ndim != 2:
        raise InvalidArgumentError(f"weights: expected shape (out, in) for per-channel codes, got {floats.shape}")
    scale, zero_point = weight_parameters(floats, config)
    codes = encode(floats, scale, zero_point, config.bits, symmetric=config.symmetric)
    if config.per_channel:
        return codes, scale, zero_point
    return codes, float(scale), int(zero_point)


def dequantize_weights(
    codes: npt.ArrayLike, scale: npt.ArrayLike, zero_point: npt.ArrayLike = 0
) -> npt.NDArray[np.float64]:
    """Return the weights that codes stand for, ``(code - zero_point) * scale``.

    Parameters
    ----------
    codes : ndarray of int8 or float8_e4m3fn, any shape
        Codes of type float8_e4m3fn are FP8 and have no zero point.
    scale : float, or array_like, shape (out,)
        Finite and not negative.  An array has a scale for each channel along the leading axis.
    zero_point : int, or array_like, shape (out,)
        Any int32.  The difference of code and zero point wraps in int32.

    Returns
    -------
    ndarray of float64, shape of `codes`

    Raises
    ------
    InvalidArgumentError
        If a scale or zero point is outside its range or does not fit the leading axis.  If FP8 codes have a zero point
        other than 0.
    TypeError
        If an argument has a wrong type.

    Examples
    --------
    >>> dequantize_weights(np.array([-128, 0, 127], np.int8), 0.5, -1)
    array([-63.5,   0.5,  64. ])
    """
    array = as_plain_array(codes, "codes")
    if array.dtype.type not in (np.int8, E4M3.type):
        if array.size == 0 and isinstance(codes, list):
            array = array.astype(np.int8)  # an empty list has no type of its own
        else:
            raise TypeError(f"codes: expected an array of int8 or float8_e4m3fn, got {array.dtype}")
    scales = as_scales(scale, array.shape[:1], "scale")
    zero_points = as_zero_points(zero_point, array.shape[:1], "zero_point")
    if array.dtype.type is E4M3.type and zero_points.any():
        raise InvalidArgumentError(f"zero_point: expected 0 for FP8 codes, got {zero_point!s}")
    return decode(array, *np.broadcast_arrays(scales, zero_points))


def weight_parameters(weights: Floats, config: QatConfig) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
    """Return scale and zero point for the range of weights, both of shape (), or (out,) if per channel."""
    axis = 1 if config.per_channel else None
    finite = np.isfinite(weights)
    low = weights.min(axis=axis, where=finite, initial=np.inf).astype(np.float64)
    high = weights.max(axis=axis, where=finite, initial=-np.inf).astype(np.float64)
    if config.per_channel or config.bits is not QuantBits.INT8:
        # Equal weights have an empty range.  The reference's int8 then takes scale 1 and zero point 0, and loses them.
        # So their range is widened to hold 0.
        constant = low == high
        low, high = np.where(constant, np.minimum(low, 0.0), low), np.where(constant, np.maximum(high, 0.0), high)
    return scale_and_zero_point(low, high, Target(config.bits, config.symmetric))


def default_scale(bits: QuantBits) -> float:
    """Return the scale of the range -1 to 1, which a layer has until it is calibrated."""
    scale, _ = scale_and_zero_point(-1.0, 1.0, Target(bits, symmetric=True))
    return float(scale)
