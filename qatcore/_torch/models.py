"""Models of which the layers train under quantisation, and what is exported of them."""

from __future__ import annotations

import collections
import copy
import itertools
import warnings
from collections.abc import Mapping
from typing import TypeVar

import numpy as np
import torch
from torch import nn

from .._base.config import CalibMethod, QatConfig
from .._base.errors import InvalidArgumentError
from .._base.types import FloatLike
from .._base.validation import as_flag, as_member, as_share
from .._codes.affine import quantize
from .._linear.weights import as_config
from . import onnx
from .calls import SAMPLES, in_backward, no_calls, recall, remember, sample
from .functional import FLOAT_CODES, as_numpy, broadcast, parameter
from .module import FakeQuantize, KeepsTypes, RangeMode, as_leaf
from .operators import operator

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _product(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a layer's output for other weights and another bias than its own."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    result: torch.Tensor = layer._conv_forward(x, weight, bias)
    return result


class _QatLayer:
    """A layer that computes with fake-quantised inputs and weights; a batch norm may be folded into the latter.

    The weights are quantised as they will be once the batch norm is gone, by its running statistics, and scaled back,
    so that the batch norm, which goes on computing in its place, sees what it would see, and learns (Jacob et al. 2018,
    as PyTorch has it).
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize
    _place: tuple[nn.Module, str] | None
    _calls: torch.Tensor

    @property
    def batch_norm(self) -> nn.Module | None:
        """The batch norm that is folded: whatever is in its place in the model now.

        It belongs to the model: a second place would be one more state.
        """
        if self._place is None:
            return None
        parent, name = self._place
        norm = there = parent._modules.get(name)
        while norm is not None and type(norm) not in _FOLDED and len(norm._modules) == 1:  # what wraps it
            (norm,) = norm._modules.values()
        if type(norm) not in _FOLDED or norm.running_var is None or norm.num_features != len(self.weight):
            raise InvalidArgumentError(
                "model: expected the batch norm that is folded into the layer before it, or a BatchNorm or "
                f"SyncBatchNorm with running statistics of {len(self.weight)} channels in its place, {name!r}, got "
                f"{type(there).__name__}; prepare_qat(..., fold_batch_norms=False) folds none"
            )
        return norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, torch.fx.Proxy):
            return as_leaf(self, x)
        norm = self.batch_norm
        if norm is not None and isinstance(self, nn.Linear) and x.ndim != 2:
            raise InvalidArgumentError(
                f"x: expected 2 dimensions for a Linear into which a batch norm is folded, got shape {tuple(x.shape)}; "
                "prepare_qat(..., fold_batch_norms=False) folds none"
            )
        given, x = x, self.input_quantizer(x)
        if norm is None:
            return _product(self, x, self.weight_quantizer(self.weight), self.bias)
        variance = norm.running_var
        if norm.training:  # it moves its statistics
            variance = _variance(given.detach(), variance, self._calls)
        factor = broadcast(_norm_factor(norm, variance), 0, self.weight.ndim)
        lost = factor == 0.0  # such a channel has no weights once it is folded, and cannot be scaled back
        quantised = self.weight_quantizer(self.weight * factor) / torch.where(lost, 1.0, factor)
        return _product(self, x, torch.where(lost, self.weight, quantised), self.bias)


@operator(lambda x, variance, calls: torch.empty_like(variance), changes=("calls",))
def _variance(x: torch.Tensor, variance: torch.Tensor, calls: torch.Tensor) -> torch.Tensor:
    """Return the variance to fold with: what it is, or, in a backward pass, what it was in the forward pass."""
    key = sample(x)
    if in_backward():
        used = recall(calls, key)
        return variance.clone() if used is None else torch.as_tensor(used).to(variance)
    remember(calls, key, variance.double().cpu().numpy())
    return variance.clone()


def _norm_factor(norm: nn.Module, variance: torch.Tensor) -> torch.Tensor:
    """Return what a batch norm with a variance multiplies each channel by."""
    factor = torch.rsqrt(variance + norm.eps)
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
        if isinstance(x, torch.fx.Proxy):
            return as_leaf(self, x)
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
_FOLDED = (nn.BatchNorm1d, nn.BatchNorm2d, nn.SyncBatchNorm)
_NORMS = {nn.Linear: nn.BatchNorm1d, nn.Conv1d: nn.BatchNorm1d, nn.Conv2d: nn.BatchNorm2d}


def prepare_qat(
    model: ModuleT,
    config: QatConfig | None = None,
    *,
    mode: RangeMode | str = RangeMode.MOVING_AVERAGE,
    averaging_constant: FloatLike = 0.01,
    overrides: Mapping[str, QatConfig | None] | None = None,
    fold_batch_norms: bool = True,
) -> ModuleT:
    """Return a copy of a model in which Linear, Conv1d and Conv2d compute with fake-quantised inputs and weights.

    Parameters
    ----------
    model : Module
    config : QatConfig, optional
        `bits` for inputs and weights; `per_channel` and `symmetric` describe the weights, inputs have one scale and a
        zero point.
    mode : RangeMode or str
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
    prepared = _copy(model)
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
            place = None
            if name in norms:
                parent, _, child = norms[name].rpartition(".")
                place = prepared.get_submodule(parent), child
            _prepare(layer, own, mode, averaging_constant, place)
    for module in prepared.modules():
        if isinstance(module, nn.TransformerEncoderLayer):
            module.activation_relu_or_gelu = 0  # what its fast path asks for
    return prepared


def _copy(model: ModuleT) -> ModuleT:
    """Return a copy of a model, or say what PyTorch cannot copy in it."""
    for name, module in model.named_modules():
        computed = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor) and not value.is_leaf]
        if type(module) in (*_QAT, *_QUANTIZED) and "weight" not in module._parameters:
            computed.append("weight")
        if computed:
            key = computed[0]
            raise InvalidArgumentError(
                f"model: expected parameters, got {key!r} of {name or 'the model'!r}, which is computed from others "
                "and cannot be copied; end its pruning or its norm first: torch.nn.utils.prune.remove, "
                "remove_spectral_norm or remove_weight_norm; delete what a forward pass has left"
            )
    return copy.deepcopy(model)


def _prepare(
    layer: nn.Module,
    config: QatConfig,
    mode: RangeMode,
    averaging_constant: float,
    place: tuple[nn.Module, str] | None,
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
    layer._place = place
    weight = layer.weight
    norm = layer.batch_norm
    if norm is not None:
        layer._calls = no_calls(SAMPLES + norm.num_features)
        weight = weight * broadcast(_norm_factor(norm, norm.running_var), 0, weight.ndim)
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
    if reason is not None and any(type(m) in _NORMS.values() and n not in found.values() for n, m in modules.items()):
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


def convert(model: ModuleT) -> ModuleT:
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
    converted = _copy(model).eval()
    unseen = []
    for name, module in list(converted.named_modules()):
        if isinstance(module, _QatLayer):
            if not module.input_quantizer.has_range():
                unseen.append(name)
            norm = module.batch_norm
            _convert(module, norm)
            if norm is not None:
                _remove(norm, converted, name)
        elif isinstance(module, FakeQuantize):
            module.freeze()
    if unseen:
        warnings.warn(
            f"no range was observed for the inputs of {', '.join(unseen)}: their scales are what they were set to, or "
            "those of a unit range",
            stacklevel=2,
        )
    return converted


def set_mode(model: nn.Module, mode: RangeMode | str) -> None:
    """Let all scales of a model be followed, frozen or learned from now on.

    Parameters
    ----------
    model : Module
    mode : RangeMode or str

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


def _remove(norm: nn.Module, model: nn.Module, layer: str) -> None:
    """Put an Identity in each place of a batch norm that a layer computes now."""
    names = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        # Two places of one batch norm become two that share their statistics by convert_sync_batchnorm.
        if type(module) in _FOLDED and module.running_var is norm.running_var
    ]
    if not names:
        raise InvalidArgumentError(
            f"model: expected the batch norm that is folded into {layer!r}, got one without it: give the model that "
            "holds both, and replace batch norms in it, not in one made of its parts"
        )
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())


@torch.no_grad()
def _convert(layer: nn.Module, norm: nn.Module | None) -> None:
    """Turn a trained layer, and the batch norm that is folded into it, into one that has codes."""
    weight, bias, quantizer = layer.weight, layer.bias, layer.weight_quantizer
    if norm is not None:
        factor = _norm_factor(norm, norm.running_var)
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
    del layer.weight, layer.bias, layer.weight_quantizer, layer._place
    layer.__dict__.pop("_calls", None)
    layer.__class__ = _QUANTIZED[type(layer)]
    layer.register_buffer("weight_codes", stored.to(device))
    layer.register_buffer("weight_scale", quantizer.positive_scale().clone())
    layer.register_buffer("weight_zero_point", onnx.zero_point_in_storage(quantizer.zero_point, code_format))
    layer.register_buffer("bias", None if bias is None else bias.detach().clone())
