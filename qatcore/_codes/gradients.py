"""Gradients of fake quantisation: the straight-through estimator, and learned step sizes."""

from __future__ import annotations

import math
from typing import overload

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.arrays import as_array, as_floats, result_dtype
from .._base.errors import InvalidArgumentError
from .._base.formats import CodeDType, CodeFormat, as_code_format
from .._base.threads import GRAIN, for_ranges
from .._base.types import AnyArray, FloatLike, FloatOrArray, Floats, FloatT
from .._base.validation import as_grad_factor
from .affine import ScaledFormat, floats_for, scaled_format

_SUMMED = 8  # the least number of elements for each partial sum


@overload
def fake_quantize_backward(
    grad: npt.ArrayLike,
    x: npt.NDArray[FloatT],
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = ...,
    *,
    dtype: CodeDType = ...,
    axis: None = ...,
    grad_factor: FloatLike | None = ...,
) -> tuple[npt.NDArray[FloatT], float, float]: ...
@overload
def fake_quantize_backward(
    grad: npt.ArrayLike,
    x: npt.NDArray[FloatT],
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = ...,
    *,
    dtype: CodeDType = ...,
    axis: int,
    grad_factor: FloatLike | None = ...,
) -> tuple[npt.NDArray[FloatT], npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
@overload
def fake_quantize_backward(
    grad: npt.ArrayLike,
    x: npt.ArrayLike,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = ...,
    *,
    dtype: CodeDType = ...,
    axis: None = ...,
    grad_factor: FloatLike | None = ...,
) -> tuple[AnyArray, float, float]: ...
@overload
def fake_quantize_backward(
    grad: npt.ArrayLike,
    x: npt.ArrayLike,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = ...,
    *,
    dtype: CodeDType = ...,
    axis: int,
    grad_factor: FloatLike | None = ...,
) -> tuple[AnyArray, npt.NDArray[np.float64], npt.NDArray[np.float64]]: ...
def fake_quantize_backward(
    grad: npt.ArrayLike,
    x: npt.ArrayLike,
    scale: npt.ArrayLike,
    zero_point: npt.ArrayLike = 0,
    *,
    dtype: CodeDType = "int8",
    axis: int | None = None,
    grad_factor: FloatLike | None = None,
) -> tuple[AnyArray, FloatOrArray, FloatOrArray]:
    """Return the gradients of `fake_quantize` for its values, scales and zero points.

    Parameters
    ----------
    grad : array_like, shape of `x`
        Gradient of the loss with respect to the result of
        ``fake_quantize(x, scale, zero_point, dtype=dtype, axis=axis)``.
    x : array_like, any shape
        float32, float64, float16 or bfloat16; integers are taken as float64.
    scale : float or array_like, shape (1,), or (x.shape[axis],) with an axis
        Positive and finite, also when rounded to float32 if `x` is computed in float32.
    zero_point : int, or array_like with a shape that `scale` may have
        Within the range of the codes; 0 for floating-point formats.
    dtype : str, dtype or QuantBits
        Type of the codes in between, one that `quantize` takes.
    axis : int, optional
        Axis along which scales and zero points vary.  Without it, all elements share one of each.
    grad_factor : float, optional
        Factor that multiplies the gradients for scales and zero points.  If left out, it is LSQ's
        ``1 / sqrt(n * greatest)``.  There n is the number of values that share a scale, and `greatest` is the greatest
        code, or the greatest value of a floating-point format.

    Returns
    -------
    grad_x : ndarray, shape of `x`
        In x's floating type; float64 for integers.
    grad_scale : float, or ndarray of float64, shape (x.shape[axis],), with an axis
    grad_zero_point : float, or ndarray of float64, shape (x.shape[axis],), with an axis

    Raises
    ------
    InvalidArgumentError
        If `grad` has another shape than `x`.  If a scale or zero point is out of its range or has a wrong shape.  If
        `axis` is not an axis of `x`, `dtype` is unknown, or `grad_factor` is not finite.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    The straight-through estimator (Bengio et al. 2013) passes the gradient where a value was not clipped.  Learned
    step sizes (Esser et al. 2020, LSQ; Bhalgat et al. 2020, LSQ+) also treat rounding as the identity.  Let q be the
    code less the zero point.  Then ``d out / d scale`` is q where the value was clipped, else ``q - x / scale``.
    ``d out / d zero_point`` is ``-scale`` where the value was clipped, else 0.  All gradients of a NaN are 0.

    float64 is computed in float64, the other floating types in float32.  Sums are in float64, and their order depends
    only on x's shape and `axis`.

    Examples
    --------
    >>> x = np.array([0.3, -0.2, 9.0])
    >>> fake_quantize_backward(np.ones(3), x, 0.5, dtype="int4", grad_factor=1.0)
    (array([1., 1., 0.]), 7.8, -0.5)
    """
    code_format = as_code_format(dtype, "dtype")
    given = as_array(x, "x")
    floats = as_floats(given, "x")
    gradient = as_array(grad, "grad")
    if gradient.shape != floats.shape:
        raise InvalidArgumentError(f"grad: expected the shape of x, {floats.shape}, got {gradient.shape}")
    scaled = scaled_format(floats.shape, floats.dtype, scale, zero_point, axis, None, code_format)
    n = floats.size if axis is None else floats.size // max(floats.shape[axis], 1)
    factor = lsq_factor(n, code_format) if grad_factor is None else as_grad_factor(grad_factor)
    grad_x = np.empty(floats.shape, result_dtype(given.dtype))
    with np.errstate(all="ignore"), floats_for(grad_x, floats.dtype) as target:
        sums = add_gradients(scaled, np.require(gradient, floats.dtype, ["C", "A"]), floats, target)
        of_scale, of_zero_point = channel_sums(sums, floats.shape, axis) * factor
        of_zero_point *= -as_array(scale, "scale").astype(floats.dtype).astype(np.float64)
    if axis is None:
        return grad_x, float(of_scale[0]), float(of_zero_point[0])
    return grad_x, of_scale, of_zero_point


def lsq_factor(n: int, code_format: CodeFormat) -> float:
    """Return LSQ's factor for the gradient of a scale that n values share."""
    return 1.0 / math.sqrt(max(n, 1) * code_format.ends[1])


def add_gradients(
    scaled: ScaledFormat, grad: Floats, x: Floats, grad_x: Floats, *, half_away: bool = False
) -> npt.NDArray[np.float64]:
    """Write the gradient for x, and return the sums of the gradients for scales and zero points, shape (2, scales).

    The gradients for zero points are divided by -scale.  Integers are rounded as in ONNX; with `half_away` they are
    rounded half away from zero, after the zero point is added.
    """
    # The parts do not depend on the threads.  They are few, so that their sums are small beside the array.
    part = max(GRAIN, _SUMMED * scaled.scale.size)
    starts = range(0, x.size, part)
    sums = np.zeros((len(starts), 2, scaled.scale.size))
    flat, arguments = [array.reshape(-1) for array in (grad, x, grad_x)], scaled.arguments

    def task(first: int, stop: int) -> None:
        for index in range(first, stop):
            span = starts[index], min(starts[index] + part, x.size)
            dispatch.kernels.fake_quantize_gradients(*flat, *arguments, half_away, sums[index], *span)

    for_ranges(len(starts), 1, task)
    total = np.zeros(sums.shape[1:])
    for each in sums:  # in order
        total += each
    return total


def channel_sums(sums: npt.NDArray[np.float64], shape: tuple[int, ...], axis: int | None) -> npt.NDArray[np.float64]:
    """Return the sums of each channel; a pattern may hold a short channel several times, with a sum each time."""
    if axis is None or sums.shape[1] == shape[axis]:
        return sums
    position = axis % len(shape)
    repeated = sums.reshape(2, -1, shape[position], math.prod(shape[position + 1 :]))
    total = np.zeros((2, shape[position]))
    for i in range(repeated.shape[1]):  # in order
        for j in range(repeated.shape[3]):
            total += repeated[:, i, :, j]
    return total
