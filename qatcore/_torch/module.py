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

    MOVING_AVERAGE = "moving_average"  # of the least and the greatest value, followed while training
    FROZEN = "frozen"  # it stays as it is
    LEARNED = "learned"  # it is a parameter (LSQ)


class KeepsTypes:
    """A module of which some tensors keep their types when it is cast: codes, and scales that float16 may not hold."""

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
    """Fake quantisation with a scale that is followed, frozen or learned.

    Parameters
    ----------
    bits : QuantBits or str
        Format of the codes in between.
    axis : int, optional
        Along which scales lie; without it there is one for all.
    channels : int, optional
        How many scales there are; needed with `axis`.
    symmetric : bool
        Whether the zero point is 0; otherwise it is chosen with the scale.  FP8 is symmetric either way.
    mode : RangeMode or str
        Where the scale comes from.  A learned one begins as what has the least mean squared error for the first batch,
        unless `calibrate` was called.
    averaging_constant : float
        Above 0, at most 1: the share of a new batch in the moving averages.

    Attributes
    ----------
    scale : Parameter of float32, shape () or (channels,)
        Has a gradient only if it is learned.
    zero_point : Tensor of int32, of the shape of `scale`
    low, high : Tensor of float32, of the shape of `scale`
        The range that was observed last, or its moving average; inf and -inf if none was.

    Raises
    ------
    InvalidArgumentError
        If an argument is out of its range, or there is only one of `axis` and `channels`.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    Ranges are followed, and learned scales begin, in training mode only: validation leaves no trace.  Zeros, one value
    or no finite ones are no range to begin with.  What a backward pass computes again, as activation checkpointing
    does, has the range that it had in the forward pass, and is not observed again.  While a model is
    exported to ONNX the module becomes a QuantizeLinear and a DequantizeLinear.  Scale and range stay float32 when a
    model is cast.  The mode is no part of a state_dict; states of other codes are refused.

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

    if TYPE_CHECKING:  # of which Module says nothing

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
        """What values are rounded to; symmetric integers leave out the least code."""
        code_format = as_code_format(self.bits, "bits")
        return code_format.symmetric() if self.symmetric else code_format

    @property
    def mode(self) -> RangeMode:
        """Where the scale comes from."""
        return self._mode

    def set_mode(self, mode: RangeMode | str) -> None:
        """Let the scale be followed, frozen or learned from now on."""
        self._mode = as_member(RangeMode, mode, "mode")
        self.scale.requires_grad_(self._mode is RangeMode.LEARNED)

    def observe(self, averaging_constant: FloatLike | None = None) -> None:
        """Follow the ranges of the batches from now on."""
        if averaging_constant is not None:
            self.averaging_constant = as_share(averaging_constant, "averaging_constant")
        self.set_mode(RangeMode.MOVING_AVERAGE)

    def freeze(self) -> None:
        """Keep the scale as it is."""
        self.set_mode(RangeMode.FROZEN)

    def learn(self) -> None:
        """Let the scale be learned, from what it is now; give it to the optimiser."""
        self.set_mode(RangeMode.LEARNED)

    def extra_repr(self) -> str:
        """Say what it is."""
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
        """Return whether a range was observed, or chosen by `calibrate`; zeros alone are none."""
        return bool(((self.low <= self.high) & ((self.low != 0.0) | (self.high != 0.0))).any())

    def forget_range(self) -> None:
        """Begin anew with the next batch: the scale stays as it is until then."""
        self.low.fill_(math.inf)
        self.high.fill_(-math.inf)

    def calibrate(self, x: torch.Tensor, method: CalibMethod | str = CalibMethod.MSE) -> None:
        """Choose the scale for the values of a tensor.

        Parameters
        ----------
        x : Tensor, any shape with the axis
        method : CalibMethod or str

        Raises
        ------
        InvalidArgumentError
            If `method` is unknown, `x` has another number of channels, or no finite value.
        TypeError
            If `x` is no floating tensor.
        """
        method = as_member(CalibMethod, method, "method")
        self._check(x)
        calibrate(x, *self._state(), method=method, bits=self.bits, symmetric=self.symmetric, axis=self.axis)

    def _state(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return what batches change; as data what graphs of earlier calls may hold, which need not know of it."""
        return self.scale.data, self.zero_point.data, self.low, self.high

    def _check(self, x: torch.Tensor) -> None:
        check_floating(x)
        axis, channels = self.axis, self.scale.numel()
        if axis is not None and not (-x.ndim <= axis < x.ndim and x.shape[axis] == channels):
            raise InvalidArgumentError(f"x: expected {channels} channels along axis {axis}, got shape {tuple(x.shape)}")

    def positive_scale(self) -> torch.Tensor:
        """Return the scale that is used: an optimiser does not know that it is positive."""
        return self.scale.clamp(min=MIN_SCALE)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the values of the codes."""
        if isinstance(x, torch.fx.Proxy):
            return as_leaf(self, x)
        self._check(x)
        if onnx.is_exporting():
            return onnx.quantize_dequantize(x, self.positive_scale(), self.zero_point, self.code_format, self.axis)
        scale, zero_point = self.scale, self.zero_point
        if self._mode is not RangeMode.LEARNED:  # whatever a model's requires_grad_ has done to it
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
    """Return what stands for a module's result while torch.fx traces a model: the module stays one."""
    path = x.tracer.path_of_module(module)
    if not path:
        raise TypeError(f"model: expected one with its {type(module).__name__} within, to be traced, got that alone")
    result: torch.Tensor = x.tracer.create_proxy("call_module", path, (x,), {})
    return result
