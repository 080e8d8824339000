"""`FakeQuantize`: fake quantisation whose scale is followed, frozen or learned."""

from __future__ import annotations

import enum
import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.formats import CodeFormat, QuantBits, as_code_format
from .._base.scale import MIN_SCALE
from .._base.types import FloatLike
from .._base.validation import as_count, as_flag, as_member, as_share
from .._linear.weights import default_scale
from . import onnx
from .calls import no_calls
from .functional import check_floating, fake_quantize_checked
from .observing import begin, calibrate, follow


class RangeMode(enum.Enum):
    """Where the scale of a `FakeQuantize` comes from."""

    MOVING_AVERAGE = "moving_average"  # moving averages of the least and the greatest value, updated in training
    FROZEN = "frozen"  # the scale stays as it is
    LEARNED = "learned"  # the scale is a trained parameter (LSQ)


class KeepsTypes:
    """A module that keeps the types of some tensors when it is cast.

    Codes keep their type, and so do scales, because float16 may not hold them.
    """

    kept: tuple[str, ...] = ()

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before = {name: getattr(self, name).data for name in self.kept}
        result = super()._apply(fn, recurse)  # type: ignore[misc]
        for name, value in before.items():
            tensor = getattr(self, name)
            if not value.is_meta:
                tensor.data = value.to(tensor.device)
        return result


class FakeQuantize(KeepsTypes, nn.Module):
    """Fake-quantise tensors with a scale that follows the data, stays frozen or is learned.

    Parameters
    ----------
    bits : QuantBits or str
        Format of the codes.
    axis : int, optional
        The axis along which scales lie.  Without it, one scale serves the whole tensor.
    channels : int, optional
        How many scales there are; needed with `axis`.
    symmetric : bool
        Whether the zero point is 0; otherwise it is chosen with the scale.  FP8 is always symmetric.
    mode : RangeMode or str
        Where the scale comes from.  A learned scale starts with the least mean squared error on the first batch, unless
        `calibrate` was called before.
    averaging_constant : float
        The weight of a new batch in the moving averages, above 0 and at most 1.

    Attributes
    ----------
    scale : Parameter of float32, shape () or (channels,)
        It has a gradient only in the mode `LEARNED`.
    zero_point : Tensor of int32, of the shape of `scale`
    low, high : Tensor of float32, of the shape of `scale`
        The range: its moving average, or the range that set a learned or calibrated scale.  Without a range they are
        inf and -inf.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of its range, or only one of `axis` and `channels` is given.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    Only batches in training mode update ranges and start learned scales, so validation changes nothing.  A first batch
    sets no lasting range if it holds only zeros, a single value or no finite values.  Activation checkpointing computes
    a forward pass again within the backward pass.  That repetition uses the range of the first computation, and
    observes nothing.  While a model is exported to ONNX, the module becomes a QuantizeLinear and a DequantizeLinear.
    Scale and range stay float32 when a model is cast.  A state_dict does not hold the mode.  Loading a state_dict fails
    if it is for another range of codes.

    Examples
    --------
    >>> quantizer = FakeQuantize(QuantBits.INT4)
    >>> quantizer(torch.tensor([-1.0, 0.3, 2.0]))
    tensor([-1.0000,  0.4000,  2.0000])
    >>> quantizer.freeze()
    >>> quantizer(torch.tensor([-1.0, 0.3, 20.0]))
    tensor([-1.0000,  0.4000,  2.0000])
    """

    kept = ("scale", "low", "high", "code_range")

    scale: nn.Parameter
    zero_point: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor
    code_range: torch.Tensor

    if TYPE_CHECKING:  # because Module does not declare it

        def __call__(self, x: torch.Tensor) -> torch.Tensor: ...

    def __init__(
        self,
        bits: QuantBits | str = QuantBits.INT8,
        *,
        axis: int | None = None,
        channels: int | None = None,
        symmetric: bool = False,
        mode: RangeMode | str = RangeMode.MOVING_AVERAGE,
        averaging_constant: FloatLike = 0.01,
    ) -> None:
        super().__init__()
        self.bits = as_member(QuantBits, bits, "bits")
        self.symmetric = as_flag(symmetric, "symmetric")
        if (axis is None) != (channels is None):
            raise InvalidArgumentError(f"channels: expected with an axis, and only then, got {channels}, axis={axis}")
        if axis is not None and type(axis) is not int:
            raise TypeError(f"axis: expected an int or None, got {type(axis).__name__}")
        self.axis = axis
        shape = () if channels is None else (as_count(channels, "channels"),)
        self.scale = nn.Parameter(torch.full(shape, default_scale(self.bits)))
        self.register_buffer("zero_point", torch.zeros(shape, dtype=torch.int32))
        self.register_buffer("low", torch.full(shape, math.inf))
        self.register_buffer("high", torch.full(shape, -math.inf))
        self.register_buffer("code_range", torch.tensor(self.code_format.ends, dtype=torch.float32))
        self.averaging_constant = as_share(averaging_constant, "averaging_constant")
        self._dtype = str(self.code_format.dtype)
        self._calls = no_calls(4 * self.scale.numel())
        self.set_mode(mode)

    @property
    def code_format(self) -> CodeFormat:
        """The format of the codes; symmetric integers leave out the least code."""
        code_format = as_code_format(self.bits, "bits")
        return code_format.symmetric() if self.symmetric else code_format

    @property
    def mode(self) -> RangeMode:
        """Where the scale comes from."""
        return self._mode

    def set_mode(self, mode: RangeMode | str) -> None:
        """Set whether the scale follows the data, stays frozen or is learned."""
        self._mode = as_member(RangeMode, mode, "mode")
        self.scale.requires_grad_(self._mode is RangeMode.LEARNED)

    def observe(self, averaging_constant: FloatLike | None = None) -> None:
        """Let the scale follow the ranges of the batches from now on."""
        if averaging_constant is not None:
            self.averaging_constant = as_share(averaging_constant, "averaging_constant")
        self.set_mode(RangeMode.MOVING_AVERAGE)

    def freeze(self) -> None:
        """Keep the scale as it is."""
        self.set_mode(RangeMode.FROZEN)

    def learn(self) -> None:
        """Learn the scale, starting from its value now; add it to the optimiser."""
        self.set_mode(RangeMode.LEARNED)

    def extra_repr(self) -> str:
        """Return the arguments that `repr` shows."""
        where = "" if self.axis is None else f", axis={self.axis}, channels={self.scale.numel()}"
        return f"{self.bits.value}{where}, symmetric={self.symmetric}, mode={self._mode.value}"

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        theirs = state_dict.get(f"{prefix}code_range")
        if theirs is not None and theirs.tolist() != self.code_range.tolist():
            errors = arguments[-1]
            errors.append(
                f"{prefix[:-1]}: expected a state for codes from {self.code_range.tolist()[0]:g} to "
                f"{self.code_range.tolist()[1]:g}, got one for {theirs.tolist()[0]:g} to {theirs.tolist()[1]:g}"
            )
            return
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def has_range(self) -> bool:
        """Return whether a range was observed, or chosen by `calibrate`; zeros alone are no range."""
        return bool(((self.low <= self.high) & ((self.low != 0.0) | (self.high != 0.0))).any())

    def forget_range(self) -> None:
        """Forget the range, so that the next batch sets it; the scale stays as it is until then."""
        self.low.fill_(math.inf)
        self.high.fill_(-math.inf)

    def calibrate(self, x: torch.Tensor, method: CalibMethod | str = CalibMethod.MSE) -> None:
        """Choose the scale for the values of a tensor.

        Parameters
        ----------
        x : floating Tensor, with any shape that has the axis
        method : CalibMethod or str
            How to choose the scale, see `CalibMethod`.

        Raises
        ------
        InvalidArgumentError
            If `method` is unknown, or `x` has another number of channels or no finite value.
        TypeError
            If `x` is not a floating-point tensor.
        """
        method = as_member(CalibMethod, method, "method")
        self._check(x)
        calibrate(x, *self._state(), method=method, bits=self.bits, symmetric=self.symmetric, axis=self.axis)

    def _state(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the tensors that batches change.

        Graphs of earlier calls may hold them; `data` hides the change from those graphs.
        """
        return self.scale.data, self.zero_point.data, self.low, self.high

    def _check(self, x: torch.Tensor) -> None:
        check_floating(x)
        axis, channels = self.axis, self.scale.numel()
        if axis is not None and not (-x.ndim <= axis < x.ndim and x.shape[axis] == channels):
            raise InvalidArgumentError(f"x: expected {channels} channels along axis {axis}, got shape {tuple(x.shape)}")

    def positive_scale(self) -> torch.Tensor:
        """Return the scale that is used; an optimiser does not keep `scale` positive."""
        return self.scale.clamp(min=MIN_SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Quantise and dequantise a tensor, and in training mode update the range first."""
        if isinstance(x, torch.fx.Proxy):
            return as_leaf(self, x)
        self._check(x)
        if onnx.is_exporting():
            return onnx.quantize_dequantize(x, self.positive_scale(), self.zero_point, self.code_format, self.axis)
        scale, zero_point = self.scale, self.zero_point
        if self._mode is not RangeMode.LEARNED:  # the model's requires_grad_ may have given it a gradient
            scale = scale.detach()
        if self.training and x.numel():
            how = self.bits.value, self.symmetric, self.axis
            if self._mode is RangeMode.MOVING_AVERAGE:
                scale, zero_point = follow(x.detach(), *self._state(), self._calls, self.averaging_constant, *how)
            elif self._mode is RangeMode.LEARNED:
                begin(x.detach(), *self._state(), self._calls, *how)
        scale = scale.clamp(min=MIN_SCALE)
        return fake_quantize_checked(x, scale, zero_point, self._dtype, self.symmetric, self.axis)


def as_leaf(module: nn.Module, x: torch.fx.Proxy) -> torch.Tensor:
    """Return the proxy of a module's result while torch.fx traces a model, so that the module stays one node."""
    path = x.tracer.path_of_module(module)
    if not path:
        raise TypeError(f"model: expected one that holds the {type(module).__name__}, got that alone; trace the model")
    result: torch.Tensor = x.tracer.create_proxy("call_module", path, (x,), {})
    return result
