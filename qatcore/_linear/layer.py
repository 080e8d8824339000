"""`QatLayer`: a linear layer that trains on fake-quantised values and infers on codes."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt

from .._base import dispatch
from .._base.arrays import as_array, as_float64, as_floats, result_dtype
from .._base.config import CalibMethod, QatConfig, as_config
from .._base.errors import InvalidArgumentError
from .._base.formats import E4M3_VALUES, CodeFormat, QuantBits, as_code_format
from .._base.scale import Target, scale_and_zero_point
from .._base.types import AnyArray, FloatLike, FloatOrArray, Floats, ZeroPoint
from .._base.validation import as_count, as_flag, as_member, as_scales, as_share, as_zero_points
from .._calibration.calibrate import choose_scale
from .._calibration.collector import CalibrationCollector
from .._codes.affine import channelwise, constant
from .._codes.gradients import add_gradients, channel_sums, lsq_factor
from .._codes.reference_rounding import decode, encode, fake_quantize
from .gemm import Encoding, PackedInt8Matrix, Scaling, empty_result
from .weights import default_scale, weight_parameters

#: float64 adds this many products of E4M3 values exactly: each is a multiple of 2**-18 and at most 448**2.
#: So the order of additions does not matter, and every BLAS gives the same bits.
_EXACT_FP8_DEPTH = 1 << 17
#: The ends of an observed range are clipped to this magnitude, so that its width is finite.
_GREATEST = 8e307


class _Forward(NamedTuple):
    """What `backward` needs from a call of `forward_train`: the parameters at that time, and the results."""

    config: QatConfig
    learn_scales: bool
    shape: tuple[int, ...]  # of the output
    dtype: np.dtype[Any]  # of the output and of the gradient for x
    rows: npt.NDArray[np.float64]
    activation_scale: npt.NDArray[np.float64]
    activation_zero_point: npt.NDArray[np.int32]
    activations: npt.NDArray[np.float64]  # fake-quantised
    weights: Floats
    weight_scale: npt.NDArray[np.float64]
    weight_zero_point: npt.NDArray[np.int32]
    quantised_weights: npt.NDArray[np.float64]


class QatLayer:
    """A linear layer, ``y = x @ weights.T + bias``, with quantisation.

    `forward_train` computes in floating point with fake-quantised weights and activations.  `forward_infer` computes
    in exact arithmetic with their codes.  Both use the format ``config.bits``.

    `backward` computes the gradients of `forward_train`, which pass straight through the rounding.  It stores them in
    the ``grad_…`` attributes, as float64; these are None before the first `backward`.  Assign new weights, bias and
    scales after each step.  You can calibrate ranges beforehand (`calibrate_from_data`), follow them while training
    (`observe`, `freeze`), or learn the scales (`learn_scales`).  Train in one thread only.

    The layer computes the weights' codes once, and keeps them until you assign `weights`, a weight scale or zero point,
    or `config`.  `weights` is a read-only view, so the codes never go stale; assign a new array to change it.

    Parameters
    ----------
    in_features, out_features : int
    config : QatConfig, optional
        Until calibration, weights and activations have the scale of the range -1 to 1, and zero point 0.
    learn_scales : bool
        Whether `backward` computes the gradients of the scales too (learned step sizes).

    Attributes
    ----------
    grad_weights : ndarray of float64, shape (out, in)
    grad_bias : ndarray of float64, shape (out,)
    grad_weight_scale : float, or ndarray of float64, shape (out,), if per channel
    grad_activation_scale : float
        Both gradients of scales are None unless scales are learned.

    Raises
    ------
    InvalidArgumentError
        If a number of features is less than 1.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    Initial weights are uniform on the Glorot interval (Glorot and Bengio 2010).  Their generator always starts with
    the same state, so two layers of the same shape start equal.

    Examples
    --------
    >>> layer = QatLayer.from_weights([[0.5, -1.0], [0.25, 0.75]], bias=[0.0, 1.0])
    >>> layer.calibrate_from_data([[0.0, 1.0], [2.0, -1.0]])
    >>> layer.forward_infer(np.array([1.0, 0.5])).round(3)
    array([0.01 , 1.622])

    One step of training:

    >>> x, target = np.array([[1.0, 0.5]]), np.array([[0.5, 2.0]])
    >>> error = layer.forward_train(x) - target
    >>> layer.backward(error).round(3)
    array([[-0.342,  0.207]])
    >>> layer.weights = layer.weights - 0.1 * layer.grad_weights
    """

    def __init__(
        self, in_features: int, out_features: int, config: QatConfig | None = None, *, learn_scales: bool = False
    ) -> None:
        self._in_features = as_count(in_features, "in_features")
        self._out_features = as_count(out_features, "out_features")
        self._config = as_config(config)
        self._learn_scales = as_flag(learn_scales, "learn_scales")
        weights = np.empty((self._out_features, self._in_features))
        limit = math.sqrt(6.0 / (self._in_features + self._out_features))
        # The generator's numbers have 31 bits; divided by the greatest of them, they span the interval.
        dispatch.kernels.glorot_weights(weights.reshape(-1), limit, float(2**31 - 1))
        self._weights: Floats = weights
        self._weights.setflags(write=False)
        self._bias = np.zeros(self._out_features)
        self._bias.setflags(write=False)
        self._reset_parameters()

    @classmethod
    def from_weights(
        cls,
        weights: npt.ArrayLike,
        bias: npt.ArrayLike | None = None,
        config: QatConfig | None = None,
        *,
        learn_scales: bool = False,
    ) -> Self:
        """Return a layer with these weights, and with the weight scale that fits their range.

        Parameters
        ----------
        weights : array_like, shape (out, in)
        bias : array_like, shape (out,), optional
            Zeros if left out.
        config : QatConfig, optional
        learn_scales : bool
            Whether `backward` computes the gradients of the scales too.

        Raises
        ------
        InvalidArgumentError
            If a shape is wrong.
        TypeError
            If an argument has a wrong type.
        """
        floats = as_floats(weights, "weights")
        if floats.ndim != 2 or not floats.size:
            raise InvalidArgumentError(
                f"weights: expected shape (out, in) with at least one of each, got {floats.shape}"
            )
        layer = cls.__new__(cls)
        layer._out_features, layer._in_features = floats.shape
        layer._config = as_config(config)
        layer._learn_scales = as_flag(learn_scales, "learn_scales")
        layer._drop_codes()
        layer.weights = floats
        layer.bias = np.zeros(floats.shape[0]) if bias is None else bias
        layer._reset_parameters()
        layer._calibrate_weights()
        return layer

    def _reset_parameters(self) -> None:
        self._drop_codes()
        self._weight_scale, self._weight_zero_point = self._per_channel(default_scale(self._config.bits), 0)
        self._activation_scale = default_scale(self._config.bits)
        self._activation_zero_point = 0
        self._averaging_constant: float | None = None
        self._activation_range: tuple[float, float] | None = None
        self._made_for_backward: _Forward | None = None
        self.grad_weights: npt.NDArray[np.float64] | None = None
        self.grad_bias: npt.NDArray[np.float64] | None = None
        self.grad_weight_scale: FloatOrArray | None = None
        self.grad_activation_scale: float | None = None

    def _per_channel(self, scale: Any, zero_point: Any) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        shape = (self._out_features,) if self._config.per_channel else ()
        return np.full(shape, scale), np.full(shape, zero_point, np.int32)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if not name.startswith("_made")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        for array in (self._weights, self._bias):
            array.setflags(write=False)  # pickles do not keep this flag
        self._made_for_backward = None
        self._drop_codes()

    # --- parameters ---------------------------------------------------------------------------------

    @property
    def in_features(self) -> int:
        """Number of inputs."""
        return self._in_features

    @property
    def out_features(self) -> int:
        """Number of outputs."""
        return self._out_features

    @property
    def config(self) -> QatConfig:
        """The configuration.  Assigning one changes no scale; calibrate again if the scales no longer fit."""
        return self._config

    @config.setter
    def config(self, config: QatConfig) -> None:
        if not isinstance(config, QatConfig):
            raise TypeError(f"config: expected a QatConfig, got {type(config).__name__}")
        if config.per_channel != self._config.per_channel:
            if not config.per_channel and (np.ptp(self._weight_scale) or np.ptp(self._weight_zero_point)):
                raise InvalidArgumentError(
                    "config: expected per_channel=True while the channels' scales differ, got per_channel=False; "
                    "assign a scalar weight_scale and weight_zero_point first"
                )
            scale, zero_point = self._weight_scale.flat[:1], self._weight_zero_point.flat[:1]
            self._config = config
            self._weight_scale, self._weight_zero_point = self._per_channel(scale, zero_point)
        self._config = config
        self._drop_codes()

    @property
    def weights(self) -> Floats:
        """The weights, float32 or float64 of shape (out, in): a read-only view.  Assign an array to change them."""
        return self._weights.view()

    @weights.setter
    def weights(self, weights: npt.ArrayLike) -> None:
        floats = as_floats(weights, "weights")
        expected = (self._out_features, self._in_features)
        if floats.shape != expected:
            raise InvalidArgumentError(f"weights: expected shape {expected}, got {floats.shape}")
        self._weights = floats.copy()
        self._weights.setflags(write=False)
        self._drop_codes()

    @property
    def bias(self) -> npt.NDArray[np.float64]:
        """The bias, float64 of shape (out,): a read-only view.  Assign an array to change it."""
        return self._bias.view()

    @bias.setter
    def bias(self, bias: npt.ArrayLike) -> None:
        array = as_float64(bias, "bias")
        if array.shape != (self._out_features,):
            raise InvalidArgumentError(f"bias: expected shape ({self._out_features},), got {array.shape}")
        self._bias = array.copy()
        self._bias.setflags(write=False)
        self._drop_inference()

    @property
    def weight_scale(self) -> FloatOrArray:
        """The weights' scale: a float, or float64 of shape (out,) if per channel."""
        return self._weight_scale.copy() if self._config.per_channel else self._weight_scale.item()

    @weight_scale.setter
    def weight_scale(self, scale: npt.ArrayLike) -> None:
        self._weight_scale, _ = self._per_channel(as_scales(scale, self._channels, "weight_scale"), 0)
        self._drop_codes()

    @property
    def weight_zero_point(self) -> ZeroPoint:
        """The weights' zero point: an int, or int32 of shape (out,) if per channel."""
        return self._weight_zero_point.copy() if self._config.per_channel else self._weight_zero_point.item()

    @weight_zero_point.setter
    def weight_zero_point(self, zero_point: npt.ArrayLike) -> None:
        zero_points = as_zero_points(zero_point, self._channels, "weight_zero_point")
        _, self._weight_zero_point = self._per_channel(0.0, zero_points)
        self._drop_codes()

    @property
    def _channels(self) -> tuple[int, ...]:
        return (self._out_features,) if self._config.per_channel else ()

    @property
    def activation_scale(self) -> float:
        """The activations' scale."""
        return self._activation_scale

    @activation_scale.setter
    def activation_scale(self, scale: npt.ArrayLike) -> None:
        self._activation_scale = as_scales(scale, (), "activation_scale").item()
        self._drop_inference()

    @property
    def activation_zero_point(self) -> int:
        """The activations' zero point."""
        return self._activation_zero_point

    @activation_zero_point.setter
    def activation_zero_point(self, zero_point: npt.ArrayLike) -> None:
        self._activation_zero_point = as_zero_points(zero_point, (), "activation_zero_point").item()
        self._drop_inference()

    # --- calibration --------------------------------------------------------------------------------

    def calibrate_from_data(self, activations: npt.ArrayLike, method: CalibMethod | str = CalibMethod.MIN_MAX) -> None:
        """Set all scales and zero points: the weights' from their range, the activations' from data.

        Parameters
        ----------
        activations : array_like, any shape
            Sample values of the layer's input.  If empty, only the weights are calibrated.
        method : CalibMethod or str
            Method for the activations' range; their codes are affine.  ``PERCENTILE`` keeps 99 % of the values.
            ``AUTO`` takes the method with the least expected squared error.

        Raises
        ------
        InvalidArgumentError
            If `method` is unknown.
        TypeError
            If `activations` does not hold real numbers.
        """
        method = as_member(CalibMethod, method, "method")
        collector = CalibrationCollector()
        collector.observe(activations)
        scale, zero_point, _ = choose_scale(collector, method, Target(self._config.bits))
        self._calibrate_weights()
        if as_array(activations, "activations").size:
            self._activation_scale, self._activation_zero_point = scale, zero_point
            self._drop_inference()

    def _calibrate_weights(self) -> None:
        self._weight_scale, self._weight_zero_point = self._per_channel(*weight_parameters(self._weights, self._config))
        self._drop_codes()

    # --- ranges while training ----------------------------------------------------------------------

    @property
    def learn_scales(self) -> bool:
        """Whether `backward` computes the gradients of the scales too."""
        return self._learn_scales

    @property
    def observing(self) -> bool:
        """Whether `forward_train` follows the ranges of activations and weights."""
        return self._averaging_constant is not None

    @property
    def activation_range(self) -> tuple[float, float] | None:
        """The moving averages of the least and the greatest activation; None if none was observed."""
        return self._activation_range

    def observe(self, averaging_constant: FloatLike = 0.01) -> None:
        """Let `forward_train` set the scales and zero points from now on, until `freeze` is called.

        `forward_train` sets them before it computes.  The activations' range is given by moving averages of each
        batch's least and greatest finite value: ``(1 - averaging_constant) * average + averaging_constant * value``.
        The averages start with the values of the first batch ever observed.  The range is then widened to hold 0.  The
        weights' range is the range of the current weights.

        Parameters
        ----------
        averaging_constant : float
            Above 0, at most 1.

        Raises
        ------
        InvalidArgumentError
            If `averaging_constant` is out of its range.
        TypeError
            If `averaging_constant` is not a number.

        Notes
        -----
        This follows PyTorch's ``MovingAverageMinMaxObserver`` and ``FusedMovingAvgObsFakeQuantize``, in float64.
        """
        self._averaging_constant = as_share(averaging_constant, "averaging_constant")

    def freeze(self) -> None:
        """Keep the scales and zero points as they are."""
        self._averaging_constant = None

    def _follow_ranges(self, rows: npt.NDArray[np.float64], averaging_constant: float) -> None:
        low, high, finite = dispatch.kernels.scan_range(rows.reshape(-1))
        low, high = max(low, -_GREATEST), min(high, _GREATEST)
        if finite:
            if self._activation_range is not None:
                average_low, average_high = self._activation_range
                low = (1.0 - averaging_constant) * average_low + averaging_constant * low
                high = (1.0 - averaging_constant) * average_high + averaging_constant * high
            self._activation_range = low, high
            scale, zero_point = scale_and_zero_point(low, high, Target(self._config.bits, include_zero=True))
            self._activation_scale, self._activation_zero_point = float(scale), int(zero_point)
            self._drop_inference()
        self._calibrate_weights()

    # --- forward ------------------------------------------------------------------------------------

    def forward_train(self, x: npt.ArrayLike) -> AnyArray:
        """Return the layer's output with fake-quantised weights and activations, and keep what `backward` needs.

        Parameters
        ----------
        x : array_like, shape (in,) or (n, in)

        Returns
        -------
        ndarray, shape (out,) or (n, out)
            In x's floating type; float64 for integers.  Sums are in float64, in an order that depends on the machine.

        Raises
        ------
        InvalidArgumentError
            If `x` has another shape.
        TypeError
            If `x` does not hold real numbers.
        """
        rows, shape, dtype = self._rows(x)
        with np.errstate(all="ignore"):  # converting a signalling NaN is no error
            values = np.array(rows, np.float64)  # a copy: `backward` needs them as they are
        averaging_constant = self._averaging_constant
        if averaging_constant is not None:
            self._follow_ranges(values, averaging_constant)
        if self._config.bits is QuantBits.FP8:
            activations = decode(*self._encoded(values)) if self._activation_scale else values
        else:
            activations = np.asarray(
                fake_quantize(
                    values, self._activation_scale, self._activation_zero_point, self._config.bits, float64=True
                )
            )
        weights = decode(self._weight_codes(), self._weight_scale, self._weight_zero_point)
        # Scale 0 leaves values as they are, here as in `quantize_int8`.
        weights = np.where(self._column(self._weight_scale) == 0.0, self._weights, weights)
        self._made_for_backward = _Forward(
            config=self._config,
            learn_scales=self._learn_scales,
            shape=shape,
            dtype=dtype,
            rows=values,
            activation_scale=np.array([self._activation_scale]),
            activation_zero_point=np.array([self._activation_zero_point], np.int32),
            activations=activations,
            weights=self._weights,
            weight_scale=self._weight_scale,
            weight_zero_point=self._weight_zero_point,
            quantised_weights=weights,
        )
        with np.errstate(all="ignore"):
            return (activations @ weights.T + self._bias).reshape(shape).astype(dtype, copy=False)

    def backward(self, grad_output: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the gradient for the input of the last `forward_train`, and set the ``grad_…`` attributes.

        Parameters
        ----------
        grad_output : array_like, shape of that call's result
            Gradient of the loss with respect to that result.

        Returns
        -------
        ndarray, shape of that call's `x`
            In x's floating type; float64 for integers.

        Raises
        ------
        InvalidArgumentError
            If `forward_train` was not called since the last `backward`, or `grad_output` has another shape.
        TypeError
            If `grad_output` does not hold real numbers.

        Notes
        -----
        The formulas are those of `fake_quantize_backward`, in float64.  Gradients pass straight through the rounding
        where a value was not clipped.  Learned scales have LSQ's gradients (Esser et al. 2020), with the factor
        ``1 / sqrt(n * greatest)``.  Here n is the number of weights that share a scale, or `in_features`.
        `greatest` is the greatest code, or 448 in FP8.  At scale 0 values are not quantised, so their gradients pass.
        A BLAS computes the products, so the last bits depend on the machine.
        """
        forward = self._made_for_backward
        if forward is None:
            raise InvalidArgumentError(
                "backward: expected a call of forward_train since the last backward, got none; call forward_train first"
            )
        gradient = as_float64(grad_output, "grad_output")
        if gradient.shape != forward.shape:
            raise InvalidArgumentError(f"grad_output: expected shape {forward.shape}, got {gradient.shape}")
        gradient = gradient.reshape(forward.rows.shape[0], self._out_features)
        code_format = as_code_format(forward.config.bits, "bits")
        with np.errstate(all="ignore"):
            grad_input, of_activation_scale = _through(
                code_format,
                np.ascontiguousarray(gradient @ forward.quantised_weights),
                forward.rows,
                forward.activation_scale,
                forward.activation_zero_point,
                self._in_features,
            )
            if forward.config.symmetric:
                code_format = code_format.symmetric()
            grad_weights, of_weight_scale = _through(
                code_format,
                np.ascontiguousarray(gradient.T @ forward.activations),
                forward.weights.astype(np.float64),
                forward.weight_scale,
                forward.weight_zero_point,
                forward.weights.size // forward.weight_scale.size,
            )
            grad_input = grad_input.reshape(*forward.shape[:-1], self._in_features).astype(forward.dtype, copy=False)
            grad_bias = gradient.sum(axis=0)
        self.grad_weights, self.grad_bias = grad_weights, grad_bias
        self.grad_weight_scale = self.grad_activation_scale = None
        if forward.learn_scales:
            self.grad_weight_scale = of_weight_scale if forward.weight_scale.ndim else float(of_weight_scale[0])
            self.grad_activation_scale = float(of_activation_scale[0])
        self._made_for_backward = None
        return grad_input

    def forward_infer(self, x: npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the layer's output computed on codes.

        The sum of products of codes is exact; in FP8, it is exact for up to 2**17 inputs.  Then it is scaled and the
        bias is added in float64, and the result is rounded to x's type.  So the output for a row does not depend on the
        other rows or the machine.

        Parameters
        ----------
        x : array_like, shape (in,) or (n, in)

        Returns
        -------
        ndarray, shape (out,) or (n, out)
            In x's floating type; float64 for integers.

        Raises
        ------
        InvalidArgumentError
            If `x` has another shape.
        TypeError
            If `x` does not hold real numbers.

        Notes
        -----
        With codes q and zero points z, this is ``sum (qw - zw)(qx - zx) * (scale_x * scale_w) + bias``.  The products
        with zero points are taken out of the sum; see docs/numerics.md.
        """
        rows, shape, dtype = self._rows(x)
        if self._config.bits is QuantBits.FP8:
            codes, scale, _ = self._encoded(rows)
            with np.errstate(all="ignore"):
                out = _fp8_products(codes, self._weight_codes()) * (scale * self._weight_scale) + self._bias
        else:
            # Types narrower than float32 are rounded once, from float64.
            out = empty_result((rows.shape[0], self._out_features), np.float32 if dtype == np.float32 else np.float64)
            encoding, scaling = self._inference()
            scaling.apply(rows, out, encoding)
        if out.dtype == dtype:
            return out.reshape(shape)
        with np.errstate(all="ignore"):
            return out.reshape(shape).astype(dtype)

    def _rows(self, x: Any) -> tuple[Floats, tuple[int, ...], np.dtype[Any]]:
        """Return x as a matrix, the shape of the output and its type."""
        array = as_array(x, "x")
        if array.ndim not in (1, 2):
            raise InvalidArgumentError(
                f"x: expected shape ({self._in_features},) or (n, {self._in_features}), got {array.shape}"
            )
        if array.shape[-1] != self._in_features:
            raise InvalidArgumentError(f"x: expected {self._in_features} inputs, got {array.shape[-1]}")
        rows = as_floats(array, "x").reshape(-1, self._in_features)
        return rows, (*array.shape[:-1], self._out_features), result_dtype(array.dtype)

    def _encoded(self, rows: Floats) -> tuple[npt.NDArray[Any], npt.NDArray[np.float64], npt.NDArray[np.int32]]:
        scale = np.array(self._activation_scale)
        zero_point = np.array(self._activation_zero_point, np.int32)
        return encode(rows, scale, zero_point, self._config.bits), scale, zero_point

    # Dictionaries keep what is computed from parameters, such as codes.  New parameters replace a dictionary by a new
    # one, and never empty it.  A function that computes something takes the dictionary first.  So if another thread is
    # still computing from old parameters, its result goes to the old dictionary, which nobody reads any more.

    def _drop_codes(self) -> None:
        self._made: dict[str, Any] = {}
        self._drop_inference()

    def _drop_inference(self) -> None:
        self._made_for_inference: dict[str, Any] = {}

    def _weight_codes(self) -> npt.NDArray[Any]:
        made = self._made
        if "codes" not in made:
            made["codes"] = encode(
                self._weights,
                self._weight_scale,
                self._weight_zero_point,
                self._config.bits,
                symmetric=self._config.symmetric,
            )
        codes: npt.NDArray[Any] = made["codes"]
        return codes

    def _inference(self) -> tuple[Encoding, Scaling]:
        """Return how rows become codes, and the packed weights with the scaling of their products."""
        kept = self._made_for_inference
        if "inference" not in kept:
            made = self._made
            if "packed" not in made:
                made["packed"] = PackedInt8Matrix(self._weight_codes().T)
            scale, zero_point = self._activation_scale, self._activation_zero_point
            with np.errstate(all="ignore"):
                scaling = Scaling(
                    made["packed"], scale * self._weight_scale, self._bias, zero_point, self._weight_zero_point
                )
            kept["inference"] = Encoding(scale, zero_point, self._config.bits), scaling
        inference: tuple[Encoding, Scaling] = kept["inference"]
        return inference

    def _column(self, parameter: npt.NDArray[Any]) -> npt.NDArray[Any]:
        return parameter[:, np.newaxis] if parameter.ndim else parameter


def _through(
    code_format: CodeFormat,
    grad: npt.NDArray[np.float64],
    x: npt.NDArray[np.float64],
    scale: npt.NDArray[np.float64],
    zero_point: npt.NDArray[np.int32],
    n: int,
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the gradients for values and scales, with LSQ's factor for n values; channels are rows."""
    column = scale.reshape(-1)
    identity = column == 0.0
    used = np.where(identity, 1.0, column)
    is_float = code_format.parameters is not None  # such a format has no zero point, whatever was assigned
    zero_points = np.zeros(used.shape, np.int32) if is_float else zero_point.reshape(-1)
    if column.size > 1:
        scaled = channelwise(code_format, used, zero_points, x.shape[1])
    else:
        scaled = constant(code_format, used, zero_points, x.size)
    grad_x = np.empty_like(x)
    sums = add_gradients(scaled, grad, x, grad_x, half_away=True)
    of_scale = channel_sums(sums, (column.size, x.size // column.size), 0)[0] * lsq_factor(n, code_format)
    if identity.any():
        of_scale[identity] = 0.0
        grad_x = np.where(identity[:, np.newaxis], grad, grad_x)
    return grad_x, of_scale


def _fp8_products(codes: npt.NDArray[Any], weight_codes: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the sums of products of E4M3 values, exact for up to 2**17 inputs."""
    left, right = (E4M3_VALUES[c.view(np.uint8)] for c in (codes, weight_codes))
    total = np.zeros((left.shape[0], right.shape[0]))
    for start in range(0, left.shape[1], _EXACT_FP8_DEPTH):
        span = slice(start, start + _EXACT_FP8_DEPTH)
        total += left[:, span] @ right[:, span].T
    return total
