"""The reference's API with the reference's numbers, bit for bit.

The package implements a reference module, and others depend on that module's numbers.  Some of them are unsound.
Its KL search always keeps half of the range, 16 evenly spaced int4 weights become two codes, and its FP8 does not
carry.  docs/numerics.md lists all faults, with evidence.  This module keeps them; the top-level functions of `qatcore`
are right.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from ._base import dispatch
from ._base.arrays import as_array, as_float64, as_plain_array, elementwise
from ._base.config import CalibMethod, QatConfig, QuantizationSpec, as_config
from ._base.errors import InvalidArgumentError
from ._base.formats import INTEGERS, QuantBits
from ._base.scale import round_half_away
from ._base.types import FloatLike, IntLike
from ._base.validation import INT32, as_count, as_member, as_number, as_zero_point
from ._calibration.calibrate import CalibrationDataset, LayerBatches, iterate_batches, named_layers
from ._codes import reference_rounding as codes
from ._linear.gemm import int8_matmul

__all__ = [
    "CalibMethod",
    "CalibrationCollector",
    "CalibrationDataset",
    "QatConfig",
    "QatLayer",
    "QuantBits",
    "QuantizationSpec",
    "calibrate_layer",
    "calibrate_model",
    "dequantize_weights",
    "kl_divergence_symmetric",
    "quantize_fp8",
    "quantize_int4",
    "quantize_int8",
    "quantize_model_weights",
]

HISTOGRAM_BINS = 256
MAX_SAMPLES = 100_000
_LEVELS = 256
_LEAST_SCALE = 1e-12


@overload
def quantize_int8(x: np.generic, scale: FloatLike, zero_point: IntLike = ...) -> np.float64: ...
@overload
def quantize_int8(x: float, scale: FloatLike, zero_point: IntLike = ...) -> float: ...
@overload
def quantize_int8(x: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = ...) -> npt.NDArray[np.float64]: ...
def quantize_int8(
    x: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = 0
) -> float | np.float64 | npt.NDArray[np.float64]:
    """Quantise to int8 and dequantise again, in float64.

    The formula is the same as in `qatcore.quantize_int8`.  Any scale is allowed: negative, NaN and infinite scales
    enter the formula as they are.

    Parameters
    ----------
    x : scalar or array_like, any shape
    scale : float
        If it is 0, the result is `x`.
    zero_point : int
        Any int32.

    Returns
    -------
    float or ndarray of float64, shape of `x`
        The values that the codes stand for.

    Raises
    ------
    InvalidArgumentError
        If `zero_point` is outside int32.
    TypeError
        If `x` does not hold real numbers, or `scale` or `zero_point` has a wrong type.

    Examples
    --------
    >>> quantize_int8([0.3, -0.3], -0.5).tolist()
    [0.5, -0.5]
    """
    return codes.fake_quantize(x, as_number(scale, "scale"), as_zero_point(zero_point), QuantBits.INT8, float64=True)


@overload
def quantize_int4(x: np.generic, scale: FloatLike, zero_point: IntLike = ...) -> np.float64: ...
@overload
def quantize_int4(x: float, scale: FloatLike, zero_point: IntLike = ...) -> float: ...
@overload
def quantize_int4(x: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = ...) -> npt.NDArray[np.float64]: ...
def quantize_int4(
    x: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = 0
) -> float | np.float64 | npt.NDArray[np.float64]:
    """Quantise to int4 and dequantise again, in float64.

    The same as `quantize_int8`, but codes saturate to [-8, 7].

    Parameters
    ----------
    x : scalar or array_like, any shape
    scale : float
        If it is 0, the result is `x`.
    zero_point : int
        Any int32.

    Returns
    -------
    float or ndarray of float64, shape of `x`
        The values that the codes stand for.

    Raises
    ------
    InvalidArgumentError
        If `zero_point` is outside int32.
    TypeError
        If `x` does not hold real numbers, or `scale` or `zero_point` has a wrong type.
    """
    return codes.fake_quantize(x, as_number(scale, "scale"), as_zero_point(zero_point), QuantBits.INT4, float64=True)


@overload
def quantize_fp8(x: np.generic) -> np.float64: ...
@overload
def quantize_fp8(x: float) -> float: ...
@overload
def quantize_fp8(x: npt.ArrayLike) -> npt.NDArray[np.float64]: ...
def quantize_fp8(x: npt.ArrayLike) -> float | np.float64 | npt.NDArray[np.float64]:
    """Round to FP8 E4M3 as the reference does: half away from zero, and NaN to 0.

    The mantissa is clamped and does not carry: 1.97 becomes 1.875, and not 2.  Magnitudes beyond 448 become 448.

    Parameters
    ----------
    x : scalar or array_like, any shape

    Returns
    -------
    float or ndarray of float64, shape of `x`
        Values of E4M3, from -448 to 448.

    Raises
    ------
    TypeError
        If `x` does not hold real numbers.

    Examples
    --------
    >>> quantize_fp8([1.97, 255.9, float("nan")]).tolist()
    [1.875, 240.0, 0.0]
    """
    return elementwise(x, "x", dispatch.kernels.round_e4m3_reference, float64=True)


def kl_divergence_symmetric(p: npt.ArrayLike, q: npt.ArrayLike) -> float:
    """Return half of KL(p, q) + KL(q, p), the symmetric Kullback-Leibler divergence.

    1e-12 is added to each value first.  If one argument is longer, its last values are left out.

    Parameters
    ----------
    p, q : array_like, shape (n,)

    Returns
    -------
    float
        In nats.

    Raises
    ------
    InvalidArgumentError
        If an argument is not one-dimensional.
    TypeError
        If an argument does not hold real numbers.
    """
    vectors = [as_float64(p, "p"), as_float64(q, "q")]
    for name, vector in zip("pq", vectors, strict=True):
        if vector.ndim != 1:
            raise InvalidArgumentError(f"{name}: expected one dimension, got shape {vector.shape}")
    return float(dispatch.kernels.kl_divergence_symmetric(*vectors))


class CalibrationCollector:
    """Collect as the reference does: the range of all finite values, and the first 100,000 of them as samples.

    The histogram is built each time it is read, from the samples and the range.

    Examples
    --------
    >>> collector = CalibrationCollector()
    >>> collector.observe([0.0, 1.0, float("nan"), 2.0])
    >>> collector.n_elements, collector.min_max_scale()
    (3, (0.00784313725490196, -128))
    """

    def __init__(self) -> None:
        self._min_val = math.inf
        self._max_val = -math.inf
        self._n_elements = 0
        self._n_samples = 0
        self._batches: list[npt.NDArray[np.float64]] = []

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_batches": [self.samples]}  # a copy must not share the list

    def observe(self, tensor: npt.ArrayLike) -> None:
        """Add the finite values of an array.

        Parameters
        ----------
        tensor : array_like, any shape

        Raises
        ------
        TypeError
            If `tensor` does not hold real numbers.
        """
        x = as_float64(tensor, "tensor").reshape(-1)
        low, high, finite = dispatch.kernels.scan_range(x)
        if finite == 0:
            return
        if finite < x.size:
            x = x[np.isfinite(x)]
        # Only a value strictly beyond an end moves it.  So if zeros of both signs come, the first one's sign stays.
        if low < self._min_val:
            self._min_val = low if low else float(x[np.argmax(x == 0.0)])
        if high > self._max_val:
            self._max_val = high if high else float(x[np.argmax(x == 0.0)])
        if self._n_samples < MAX_SAMPLES:
            kept = x[: MAX_SAMPLES - self._n_samples].copy()
            self._batches.append(kept)
            self._n_samples += kept.size
        self._n_elements += finite

    @property
    def min_val(self) -> float:
        """Least finite value; +inf if there is none."""
        return self._min_val

    @property
    def max_val(self) -> float:
        """Greatest finite value; -inf if there is none."""
        return self._max_val

    @property
    def n_elements(self) -> int:
        """Number of finite values."""
        return self._n_elements

    @property
    def samples(self) -> npt.NDArray[np.float64]:
        """The first 100,000 finite values, in order."""
        return np.concatenate([np.empty(0), *self._batches])

    @property
    def histogram(self) -> npt.NDArray[np.float64]:
        """The counts of the samples in 256 equal bins over the range; all 0 if there is no range."""
        histogram = np.zeros(HISTOGRAM_BINS)
        if self._min_val < self._max_val:
            dispatch.kernels.rebuild_histogram(self.samples, self._min_val, self._max_val, histogram)
        return histogram

    def min_max_scale(self) -> tuple[float, int]:
        """Return scale and zero point for the range of all finite values.

        Returns
        -------
        scale : float
            At least 1e-12.  1.0 if there is no range: no value, or only equal ones.
        zero_point : int
            0 if there is no range.
        """
        return _affine(self._min_val, self._max_val)

    def percentile_scale(self, p: FloatLike) -> tuple[float, int]:
        """Return scale and zero point for the range that keeps p percent of the samples.

        Parameters
        ----------
        p : float
            Clamped to [0, 100]; NaN gives (1.0, 0).

        Returns
        -------
        scale : float
        zero_point : int
            As from `min_max_scale`.

        Raises
        ------
        TypeError
            If `p` is not a number.
        """
        percent = as_number(p, "p")
        if not self._n_samples or math.isnan(percent):
            return 1.0, 0
        ordered = np.sort(self.samples)
        n = ordered.size
        lower = (100.0 - min(max(percent, 0.0), 100.0)) / 200.0
        low = ordered[min(math.floor(n * lower), n - 1)]
        high = ordered[min(math.ceil(n * (1.0 - lower)), n - 1)]
        return _affine(low, high)

    def kl_divergence_scale(self) -> tuple[float, int]:
        """Return scale and zero point by the reference's KL search, which keeps half of the range.

        Returns
        -------
        scale : float
        zero_point : int
            As from `min_max_scale`.
        """
        histogram = self.histogram
        total = float(np.cumsum(histogram)[-1])
        if not self._min_val < self._max_val or total <= 0.0:
            return 1.0, 0
        kept = dispatch.kernels.kl_reference_sweep(
            histogram / total, _LEVELS, np.empty(HISTOGRAM_BINS), np.empty(_LEVELS), np.empty(_LEVELS, np.int64)
        )
        with np.errstate(over="ignore"):
            span = np.float64(self._max_val) - np.float64(self._min_val)
            return _affine(self._min_val, self._min_val + span * kept / HISTOGRAM_BINS)


def _affine(low: float, high: float) -> tuple[float, int]:
    """Return scale and zero point for a range.

    The zero point is computed first; after that, a smaller scale becomes 1e-12.
    """
    if not low < high:
        return 1.0, 0
    with np.errstate(all="ignore"):
        scale = np.asarray((np.float64(high) - low) / INTEGERS[QuantBits.INT8].steps)
        offset = np.nan_to_num(round_half_away(low / scale), nan=0.0, posinf=INT32.max, neginf=INT32.min)
    saturated = np.int64(np.clip(offset, INT32.min, INT32.max))
    return max(float(scale), _LEAST_SCALE), int((INTEGERS[QuantBits.INT8].low - saturated).astype(np.int32))  # wraps


class QatLayer:
    """The reference's linear layer.

    You can read and assign all attributes: `weights` (out, in) and `bias` (out,) of float64, `config`,
    `weight_scale`, `weight_zero_point`, `activation_scale` and `activation_zero_point`.
    Each call quantises the weights anew, so you may change them in place.

    Parameters
    ----------
    in_features, out_features : int
        How many inputs and outputs; at least 0.
    config : QatConfig, optional
        Only `forward_train` depends on it, and only on its ``bits``.

    Raises
    ------
    InvalidArgumentError
        If a number of features is negative, or the config's format is INT2, which the reference does not have.
    TypeError
        If an argument has a wrong type.
    """

    def __init__(self, in_features: int, out_features: int, config: QatConfig | None = None) -> None:
        self.in_features = as_count(in_features, "in_features", 0)
        self.out_features = as_count(out_features, "out_features", 0)
        self.config = as_config(config)
        _bits(self.config)
        self.weights: npt.NDArray[np.float64] = np.empty((self.out_features, self.in_features))
        if self.weights.size:
            limit = math.sqrt(6.0 / (self.in_features + self.out_features))
            dispatch.kernels.glorot_weights(self.weights.reshape(-1), limit, float(2**32 - 1))
        self.bias: npt.NDArray[np.float64] = np.zeros(self.out_features)
        self.weight_scale: float = 1.0 / 127.0
        self.weight_zero_point: int = 0
        self.activation_scale: float = 1.0 / 127.0
        self.activation_zero_point: int = 0

    def calibrate_from_data(self, activations: npt.ArrayLike) -> None:
        """Set the scales and zero points of weights and activations from the ranges of their values.

        Parameters
        ----------
        activations : array_like, any shape
            If it is empty, only the weights are calibrated.

        Raises
        ------
        TypeError
            If `activations` does not hold real numbers.
        """
        array = as_array(activations, "activations")
        self.weight_scale, self.weight_zero_point = _min_max(self.weights)
        if array.size:
            self.activation_scale, self.activation_zero_point = _min_max(array)

    def forward_train(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the output with fake-quantised weights and activations.

        Parameters
        ----------
        x : array_like, shape (in,) or (n, in)

        Returns
        -------
        ndarray of float64, shape (out,) or (n, out)
            The products are not summed in the reference's order, so float64 rounding may differ.

        Raises
        ------
        InvalidArgumentError
            If `x`, `weights` or `bias` has a wrong shape, or the config's format is INT2.
        TypeError
            If `x` does not hold real numbers.
        """
        activations, weights, bias = self._operands(x)
        bits = _bits(self.config)
        if bits is QuantBits.FP8:
            activations, weights = quantize_fp8(activations), quantize_fp8(weights)
        else:
            quantize = quantize_int4 if bits is QuantBits.INT4 else quantize_int8
            activations = quantize(activations, self.activation_scale, self.activation_zero_point)
            weights = quantize(weights, self.weight_scale, self.weight_zero_point)
        with np.errstate(all="ignore"):
            return np.asarray(activations @ weights.T + bias)

    def forward_infer(self, x: npt.ArrayLike) -> npt.NDArray[np.float64]:
        """Return the output, computed on int8 codes whatever ``config.bits`` says.

        Parameters
        ----------
        x : array_like, shape (in,) or (n, in)

        Returns
        -------
        ndarray of float64, shape (out,) or (n, out)

        Raises
        ------
        InvalidArgumentError
            If `x`, `weights` or `bias` has a wrong shape.
        TypeError
            If `x` does not hold real numbers.
        """
        activations, weights, bias = self._operands(x)
        x_codes = _int8_codes(np.atleast_2d(activations), self.activation_scale, self.activation_zero_point)
        w_codes = _int8_codes(weights, self.weight_scale, self.weight_zero_point)
        # int64 arithmetic wraps, as in the reference.
        x_zero, w_zero = np.int64(self.activation_zero_point), np.int64(self.weight_zero_point)
        with np.errstate(all="ignore"):
            correction = (
                w_zero * x_codes.sum(axis=1, dtype=np.int64)[:, np.newaxis]
                + x_zero * w_codes.sum(axis=1, dtype=np.int64)
                - w_zero * x_zero * np.int64(self.in_features)
            )
            total = (int8_matmul(x_codes, w_codes.T) - correction).astype(np.float64)
            out = total * (np.float64(self.activation_scale) * np.float64(self.weight_scale)) + bias
        return np.asarray(out).reshape(*activations.shape[:-1], self.out_features)

    def _operands(self, x: Any) -> tuple[Any, Any, Any]:
        activations = as_float64(x, "x")
        if activations.ndim not in (1, 2):
            raise InvalidArgumentError(
                f"x: expected shape ({self.in_features},) or (n, {self.in_features}), got {activations.shape}"
            )
        if activations.shape[-1] != self.in_features:
            raise InvalidArgumentError(f"Expected {self.in_features} inputs, got {activations.shape[-1]}")
        weights, bias = as_float64(self.weights, "weights"), as_float64(self.bias, "bias")
        for name, array, shape in (
            ("weights", weights, (self.out_features, self.in_features)),
            ("bias", bias, (self.out_features,)),
        ):
            if array.shape != shape:
                raise InvalidArgumentError(f"{name}: expected shape {shape}, got {array.shape}")
        return activations, weights, bias


def _int8_codes(x: npt.NDArray[np.float64], scale: Any, zero_point: Any) -> npt.NDArray[np.int8]:
    scale = np.array(as_number(scale, "scale"))
    return codes.encode(x, scale, np.array(as_zero_point(zero_point), np.int32), QuantBits.INT8)


def _bits(config: QatConfig) -> QuantBits:
    if config.bits is QuantBits.INT2:
        raise InvalidArgumentError("config: expected a format that the reference has, INT4, INT8 or FP8, got INT2")
    return config.bits


def _min_max(x: Any) -> tuple[float, int]:
    collector = CalibrationCollector()
    collector.observe(x)
    return collector.min_max_scale()


def quantize_model_weights(
    weights: npt.ArrayLike, config: QatConfig | None = None
) -> tuple[npt.NDArray[np.int8], float, int]:
    """Quantise weights as the reference does: with 255 steps over their range, for every format.

    Codes are clamped to [-8, 7] for ``INT4``, and to [-128, 127] otherwise.

    Parameters
    ----------
    weights : array_like, any shape
    config : QatConfig, optional
        Only ``bits`` is read.

    Returns
    -------
    codes : ndarray of int8, shape of `weights`
    scale : float
    zero_point : int

    Raises
    ------
    InvalidArgumentError
        If the config's format is INT2, which the reference does not have.
    TypeError
        If `weights` does not hold real numbers.
    """
    config = as_config(config)
    array = as_float64(weights, "weights")
    scale, zero_point = _min_max(array)
    bits = QuantBits.INT4 if _bits(config) is QuantBits.INT4 else QuantBits.INT8
    return codes.encode(array, np.array(scale), np.array(zero_point, np.int32), bits), scale, zero_point


def dequantize_weights(weights: npt.ArrayLike, scale: FloatLike, zero_point: IntLike = 0) -> npt.NDArray[np.float64]:
    """Return ``(code - zero_point) * scale``; the difference wraps in int32.

    Parameters
    ----------
    weights : array_like of int8, any shape
    scale : float
    zero_point : int

    Returns
    -------
    ndarray of float64, shape of `weights`

    Raises
    ------
    InvalidArgumentError
        If `zero_point` is outside int32.
    TypeError
        If `weights` is not int8, or `scale` or `zero_point` has a wrong type.
    """
    array = as_plain_array(weights, "weights")
    if array.dtype != np.int8 and array.size:
        raise TypeError(f"weights: expected an array of int8, got {array.dtype}")
    given = np.array(as_number(scale, "scale")), np.array(as_zero_point(zero_point), np.int32)
    return codes.decode(array.astype(np.int8), *given)


def calibrate_layer(layer_outputs: Iterable[npt.ArrayLike], method: CalibMethod | str) -> tuple[float, int]:
    """Return scale and zero point for the batches of one layer.

    Parameters
    ----------
    layer_outputs : iterable of array_like
        Batches of any shape; a one-dimensional array is one batch.
    method : CalibMethod or str
        ``PERCENTILE`` keeps 99 %, ``KL`` is the reference's search, and all others are min-max.

    Returns
    -------
    scale : float
    zero_point : int

    Raises
    ------
    InvalidArgumentError
        If `method` is unknown.
    TypeError
        If a batch does not hold real numbers.
    """
    method = as_member(CalibMethod, method, "method")
    collector = CalibrationCollector()
    for batch in iterate_batches("layer_outputs", layer_outputs):
        collector.observe(batch)
    if method is CalibMethod.PERCENTILE:
        return collector.percentile_scale(99.0)
    return collector.kl_divergence_scale() if method is CalibMethod.KL else collector.min_max_scale()


def calibrate_model(
    layer_activations: LayerBatches,
) -> list[QuantizationSpec]:
    """Return a specification for each layer, by the reference's KL search.

    Parameters
    ----------
    layer_activations : mapping or sequence of pairs
        The layers' names, each with its batches.

    Returns
    -------
    list of QuantizationSpec
        In the order of the layers.

    Raises
    ------
    InvalidArgumentError
        If an entry is not a pair.
    TypeError
        If a name is not a str, or a batch does not hold real numbers.
    """
    return [
        QuantizationSpec(name, *calibrate_layer(iterate_batches(name, batches), CalibMethod.KL), CalibMethod.KL)
        for name, batches in named_layers(layer_activations)
    ]
