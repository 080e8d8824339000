"""Models of which the layers train under quantisation, and what is exported of them."""

from __future__ import annotations

import collections
import copy
import itertools
import warnings
from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from .._arrays import as_share
from ..affine import quantize
from ..config import CalibMethod, QatConfig, as_flag, as_member
from ..errors import InvalidArgumentError
from ..weights import as_config
from . import onnx
from .functional import FLOAT_CODES, as_numpy, broadcast, parameter
from .module import FakeQuantize, KeepsTypes, RangeMode


def _product(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a layer's output for other weights and another bias than its own."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    result: torch.Tensor = layer._conv_forward(x, weight, bias)
    return result


class _QatLayer:
    """A layer that computes with fake-quantised inputs and weights, with a batch norm folded into the latter.

    The weights are quantised as they will be once the batch norm is gone, by its running statistics, and scaled back,
    so that the batch norm sees what it would see, and learns (Jacob et al. 2018, as PyTorch has it).
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize

    @property
    def batch_norm(self) -> nn.Module | None:
        """The folded batch norm.  It belongs to the model, where it was: a second place would be one more state."""
        norm: nn.Module | None = self.__dict__["_batch_norm"]
        return norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        norm = self.batch_norm
        x = self.input_quantizer(x)
        if norm is None:
            return _product(self, x, self.weight_quantizer(self.weight), self.bias)
        if isinstance(self, nn.Linear) and x.ndim != 2:
            raise InvalidArgumentError(
                f"x: expected 2 dimensions for a Linear into which a batch norm is folded, got shape {tuple(x.shape)}; "
                "prepare_qat(..., fold_batch_norms=False) folds none"
            )
        factor = broadcast(_norm_factor(norm), 0, self.weight.ndim)
        lost = factor == 0.0  # such a channel has no weights once it is folded, and cannot be scaled back
        quantised = self.weight_quantizer(self.weight * factor) / torch.where(lost, 1.0, factor)
        return norm.normalize(_product(self, x, torch.where(lost, self.weight, quantised), self.bias))


class _Folded:
    """A batch norm that the layer before it computes."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = super().forward(x)  # type: ignore[misc]
        return result


class FoldedBatchNorm1d(_Folded, nn.BatchNorm1d):
    """What `prepare_qat` makes of a BatchNorm1d that it folds."""


class FoldedBatchNorm2d(_Folded, nn.BatchNorm2d):
    """What `prepare_qat` makes of a BatchNorm2d that it folds."""


def _norm_factor(norm: nn.Module) -> torch.Tensor:
    """Return what a batch norm with its running statistics multiplies each channel by."""
    factor = torch.rsqrt(norm.running_var + norm.eps)
    return factor if norm.weight is None else factor * norm.weight


class _QuantizedLayer(KeepsTypes):
    """A layer that has the codes of its weights, and a frozen scale for its input."""

    kept = ("weight_codes", "weight_scale", "weight_zero_point")

    bias: torch.Tensor | None
    input_quantizer: FakeQuantize
    weight_codes: torch.Tensor
    weight_scale: torch.Tensor
    weight_zero_point: torch.Tensor

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.input_quantizer(x)
        if onnx.is_exporting():
            axis = 0 if self.weight_scale.ndim else None
            weight = onnx.dequantize(self.weight_codes, self.weight_scale, self.weight_zero_point, axis, torch.float32)
        else:
            weight = self.weight
        return _product(self, x, weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype))

    @property
    def weight(self) -> torch.Tensor:
        """The values of the codes."""
        axis, ndim = 0 if self.weight_scale.ndim else None, self.weight_codes.ndim
        scale, zero_point = (broadcast(p.float(), axis, ndim) for p in (self.weight_scale, self.weight_zero_point))
        return (self.weight_codes.float() - zero_point) * scale


class QatLinear(_QatLayer, nn.Linear):
    """What `prepare_qat` makes of a Linear."""


class QatConv1d(_QatLayer, nn.Conv1d):
    """What `prepare_qat` makes of a Conv1d."""


class QatConv2d(_QatLayer, nn.Conv2d):
    """What `prepare_qat` makes of a Conv2d."""


class QuantizedLinear(_QuantizedLayer, nn.Linear):
    """What `convert` makes of a Linear."""


class QuantizedConv1d(_QuantizedLayer, nn.Conv1d):
    """What `convert` makes of a Conv1d."""


class QuantizedConv2d(_QuantizedLayer, nn.Conv2d):
    """What `convert` makes of a Conv2d."""


_QAT = {nn.Linear: QatLinear, nn.Conv1d: QatConv1d, nn.Conv2d: QatConv2d}
_QUANTIZED = {QatLinear: QuantizedLinear, QatConv1d: QuantizedConv1d, QatConv2d: QuantizedConv2d}
_FOLDED = {nn.BatchNorm1d: FoldedBatchNorm1d, nn.BatchNorm2d: FoldedBatchNorm2d}
_NORMS = {nn.Linear: nn.BatchNorm1d, nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}


def prepare_qat(
    model: nn.Module,
    config: QatConfig | None = None,
    *,
    mode: RangeMode = RangeMode.MOVING_AVERAGE,
    averaging_constant: float = 0.01,
    overrides: Mapping[str, QatConfig | None] | None = None,
    fold_batch_norms: bool = True,
) -> nn.Module:
    """Return a copy of a model in which Linear, Conv1d and Conv2d compute with fake-quantised inputs and weights.

    Parameters
    ----------
    model : Module
    config : QatConfig, optional
        `bits` for inputs and weights; `per_channel` and `symmetric` describe the weights, inputs have one scale and a
        zero point.
    mode : RangeMode
        Of all scales.  Where they are followed those of the weights are set from their range at each step.
    averaging_constant : float
        For the inputs' moving averages.
    overrides : mapping of str to QatConfig or None, optional
        Other configurations for layers by their names; None leaves a layer in floating point.
    fold_batch_norms : bool
        Whether a batch norm that alone follows a layer is folded into it: the layer computes it then.

    Returns
    -------
    Module
        With the same parameters, in the same places of its state_dict, and scales beside them, in the mode, training or
        evaluation, of the given one.

    Warns
    -----
    UserWarning
        If the model cannot be traced and some batch norms are not folded for it.

    Raises
    ------
    InvalidArgumentError
        If `mode` is unknown, `averaging_constant` out of its range, there is nothing to quantise, the model is prepared
        or converted already, or a name is none of a layer.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    Layers of these very classes are prepared, not of classes derived from them.  Which batch norm follows which layer
    is found by tracing the model with `torch.fx`, or, where that fails, in its Sequentials.  In evaluation PyTorch's
    TransformerEncoderLayer would compute with the float weights, by a fast path, which is switched off.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> prepared = prepare_qat(model, QatConfig("int4", per_channel=True))
    >>> prepared(torch.ones(3, 4)).sum().backward()
    >>> prepared[0].weight_quantizer
    FakeQuantize(int4, axis=0, channels=8, symmetric=True, mode=moving_average)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a Module, got {type(model).__name__}")
    config = as_config(config)
    mode = as_member(RangeMode, mode, "mode")
    averaging_constant = as_share(averaging_constant, "averaging_constant")
    fold = as_flag(fold_batch_norms, "fold_batch_norms")
    if any(isinstance(module, (_QatLayer, _QuantizedLayer)) for module in model.modules()):
        raise InvalidArgumentError("model: expected one that is not prepared or converted already")
    prepared = copy.deepcopy(model)
    layers = {name: layer for name, layer in prepared.named_modules() if type(layer) in _QAT}
    configs: dict[str, QatConfig | None] = dict.fromkeys(layers, config)
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TypeError(f"overrides: expected a mapping, got {type(overrides).__name__}")
    for name, override in (overrides or {}).items():
        if not isinstance(override, QatConfig | None):
            raise TypeError(f"overrides[{name!r}]: expected a QatConfig or None, got {type(override).__name__}")
        if name not in layers:
            raise InvalidArgumentError(f"overrides: expected names of layers, {', '.join(layers)}, got {name!r}")
        configs[name] = override
    if not any(configs.values()):
        raise InvalidArgumentError(
            "model: expected a Linear, Conv1d or Conv2d to quantise, got none, or none but in classes derived from them"
        )
    norms = _followers(prepared) if fold else {}
    for name, layer in layers.items():
        own = configs[name]
        if own is not None:
            norm = norms.get(name)
            _prepare(layer, own, mode, averaging_constant, None if norm is None else prepared.get_submodule(norm))
    for module in prepared.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # what its fast path asks for
    return prepared


def _prepare(
    layer: nn.Module, config: QatConfig, mode: RangeMode, averaging_constant: float, norm: nn.Module | None
) -> None:
    """Turn a layer into one that computes with fake-quantised inputs and weights."""
    channels = layer.weight.shape[0] if config.per_channel else None
    weights = FakeQuantize(
        config.bits,
        axis=0 if config.per_channel else None,
        channels=channels,
        symmetric=config.symmetric,
        mode=mode,
        averaging_constant=1.0,
    )
    inputs = FakeQuantize(config.bits, mode=mode, averaging_constant=averaging_constant)
    layer.__class__ = _QAT[type(layer)]
    device = layer.weight.device
    layer.weight_quantizer, layer.input_quantizer = weights.to(device), inputs.to(device)
    layer.__dict__["_batch_norm"] = norm
    weight = layer.weight
    if norm is not None:
        weight = weight * broadcast(_norm_factor(norm), 0, weight.ndim)
        norm.__class__ = _FOLDED[type(norm)]
    # For those who evaluate at once; what is followed or learned begins anew with the first batch.
    weights.calibrate(weight.detach(), CalibMethod.MSE if mode is RangeMode.LEARNED else CalibMethod.MIN_MAX)
    weights.forget_range()
    for quantizer in (weights, inputs):
        quantizer.train(layer.training)


def _followers(model: nn.Module) -> dict[str, str]:
    """Return the batch norms that follow a layer, and nothing else does, by the names of the layers."""
    modules = dict(model.named_modules())
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    reason = None
    try:
        # A branch may be for one mode only, and may read what a batch norm would have had alone.
        pairs = set.intersection(*(_called_in_a_row(model, training) for training in (True, False)))
    except Exception as error:  # whatever a model's own code raises when it is given no tensors
        reason = error
        pairs = {
            (f"{prefix}{first}", f"{prefix}{second}")
            for prefix, module in (("" if not name else f"{name}.", module) for name, module in modules.items())
            if type(module).forward is nn.Sequential.forward
            for first, second in itertools.pairwise(module._modules)
        }
        # What has another name as well may be used elsewhere.
        once = {name for name in modules if sum(model.get_submodule(n) is modules[name] for n in names) == 1}
        pairs = {pair for pair in pairs if once.issuperset(pair)}
    found = {
        first: second
        for first, second in pairs
        if _NORMS.get(type(modules[first])) is type(modules[second])
        and modules[second].track_running_stats
        and modules[second].num_features == modules[first].weight.shape[0]
    }
    if reason is not None and any(type(m) in _FOLDED and n not in found.values() for n, m in modules.items()):
        warnings.warn(
            f"the model cannot be traced ({reason}): batch norms are folded in its Sequentials only", stacklevel=3
        )
    return found


def _called_in_a_row(model: nn.Module, training: bool) -> set[tuple[str, str]]:
    """Return the pairs of modules of which the first one is called once, and only the second one reads its result."""
    with torch.random.fork_rng():
        # A copy, in which tracing may leave what it likes.
        nodes = torch.fx.symbolic_trace(copy.deepcopy(model).train(training)).graph.nodes
    calls = collections.Counter(node.target for node in nodes if node.op == "call_module")
    read = collections.Counter(node.target for node in nodes if node.op == "get_attr")
    pairs = set()
    for node in nodes:
        if node.op == "call_module" and len(node.users) == 1:
            user = next(iter(node.users))
            if user.op == "call_module" and calls[node.target] == calls[user.target] == 1:
                pairs.add((node.target, user.target))
    return {pair for pair in pairs if not any(name.rpartition(".")[0] in pair for name in read)}


def convert(model: nn.Module) -> nn.Module:
    """Return a copy of a prepared model whose weights are codes and whose ranges are fixed.

    Parameters
    ----------
    model : Module
        As `prepare_qat` returned it, trained or calibrated.

    Returns
    -------
    Module
        In evaluation mode.  It computes what the trained one does in that mode, and ``torch.onnx.export`` makes of it
        a model with QuantizeLinear and DequantizeLinear, of opset 19 or later: weights are stored as int8 codes, those
        of fewer bits too, or as float8_e4m3fn.

    Warns
    -----
    UserWarning
        If the range of a layer's input was never observed, learned or calibrated.

    Raises
    ------
    InvalidArgumentError
        If the model has no layer that `prepare_qat` has made, or is converted already.
    TypeError
        If `model` is no Module.

    Examples
    --------
    >>> prepared = prepare_qat(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))
    >>> x = torch.linspace(-1, 1, 12).reshape(3, 4)
    >>> _ = prepared(x)
    >>> converted = convert(prepared)
    >>> bool((converted(x) == prepared.eval()(x)).all()), converted[0].weight_codes.dtype
    (True, torch.int8)
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a Module, got {type(model).__name__}")
    if any(isinstance(module, _QuantizedLayer) for module in model.modules()):
        raise InvalidArgumentError("model: expected one that is not converted already")
    if not any(isinstance(module, _QatLayer) for module in model.modules()):
        raise InvalidArgumentError("model: expected one that prepare_qat returned, got one without its layers")
    converted = copy.deepcopy(model).eval()
    unseen = []
    for name, module in list(converted.named_modules()):
        if isinstance(module, _QatLayer):
            if not module.input_quantizer.has_range():
                unseen.append(name)
            _convert(module)
        elif isinstance(module, FakeQuantize):
            module.freeze()
    for name, module in list(converted.named_modules(remove_duplicate=False)):
        if isinstance(module, _Folded):
            parent, _, child = name.rpartition(".")
            setattr(converted.get_submodule(parent), child, nn.Identity())
    if unseen:
        warnings.warn(
            f"no range was observed for the inputs of {', '.join(unseen)}: their scales are what they were set to, or "
            "those of a unit range",
            stacklevel=2,
        )
    return converted


def set_mode(model: nn.Module, mode: RangeMode) -> None:
    """Let all scales of a model be followed, frozen or learned from now on.

    Parameters
    ----------
    model : Module
    mode : RangeMode

    Raises
    ------
    InvalidArgumentError
        If `mode` is unknown.
    TypeError
        If `model` is no Module.

    Examples
    --------
    >>> model = prepare_qat(nn.Linear(4, 2))
    >>> set_mode(model, "frozen")
    >>> model.input_quantizer
    FakeQuantize(int8, symmetric=False, mode=frozen)
    """
    mode = as_member(RangeMode, mode, "mode")
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a Module, got {type(model).__name__}")
    for module in model.modules():
        if isinstance(module, FakeQuantize):
            module.set_mode(mode)


@torch.no_grad()
def _convert(layer: nn.Module) -> None:
    """Turn a trained layer into one that has codes."""
    weight, bias, norm, quantizer = layer.weight, layer.bias, layer.batch_norm, layer.weight_quantizer
    if norm is not None:
        factor = _norm_factor(norm)
        weight = weight * broadcast(factor, 0, weight.ndim)
        shift = -norm.running_mean if bias is None else bias - norm.running_mean
        bias = shift * factor if norm.bias is None else shift * factor + norm.bias
    code_format = quantizer.code_format
    codes = quantize(
        as_numpy(weight.cpu()),
        parameter(quantizer.positive_scale(), quantizer.axis),
        parameter(quantizer.zero_point, quantizer.axis),
        dtype=code_format,
        axis=quantizer.axis,
    )
    if code_format.parameters is None:
        stored = torch.from_numpy(codes.astype(np.int8))
    else:
        stored = torch.from_numpy(codes.view(np.uint8)).view(FLOAT_CODES[str(code_format.dtype)])
    device = layer.weight.device
    del layer.weight, layer.bias, layer.weight_quantizer, layer.__dict__["_batch_norm"]
    layer.__class__ = _QUANTIZED[type(layer)]
    layer.register_buffer("weight_codes", stored.to(device))
    layer.register_buffer("weight_scale", quantizer.positive_scale().clone())
    layer.register_buffer("weight_zero_point", onnx.zero_point_in_storage(quantizer.zero_point, code_format))
    layer.register_buffer("bias", None if bias is None else bias.detach().clone())
