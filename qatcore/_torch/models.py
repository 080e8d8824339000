"""Prepare models for quantisation-aware training, and convert trained models to codes."""

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

from .._base.config import CalibMethod, QatConfig, as_config
from .._base.errors import InvalidArgumentError
from .._base.types import FloatLike
from .._base.validation import as_flag, as_member, as_share
from .._codes.affine import quantize
from . import onnx
from .calls import SAMPLES, in_backward, no_calls, recall, remember, sample
from .functional import FLOAT_CODES, as_numpy, broadcast, parameter
from .module import FakeQuantize, KeepsTypes, RangeMode, as_leaf
from .operators import operator

ModuleT = TypeVar("ModuleT", bound=nn.Module)


def _product(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return the output that a layer has with the given weights and bias in place of its own."""
    if isinstance(layer, nn.Linear):
        return nn.functional.linear(x, weight, bias)
    result: torch.Tensor = layer._conv_forward(x, weight, bias)
    return result


class _QatLayer:
    """A layer that computes with fake-quantised inputs and weights; a batch norm may be folded into its weights.

    With a batch norm, the weights are multiplied by its factor, from its running statistics, and quantised as `convert`
    will quantise them.  Then they are divided by the factor again.  The batch norm stays in its place in the model: it
    gets outputs of the usual size, and goes on learning (Jacob et al. 2018, in PyTorch's variant).
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    input_quantizer: FakeQuantize
    weight_quantizer: FakeQuantize
    _place: tuple[nn.Module, str] | None
    _calls: torch.Tensor

    @property
    def batch_norm(self) -> nn.Module | None:
        """The batch norm that is folded: the module that is in its place in the model now.

        The layer holds only the place, because a second reference would appear twice in a state_dict.
        """
        if self._place is None:
            return None
        parent, name = self._place
        norm = there = parent._modules.get(name)
        while norm is not None and type(norm) not in _FOLDED and len(norm._modules) == 1:  # a wrapper of it
            (norm,) = norm._modules.values()
        if type(norm) not in _FOLDED or norm.running_var is None or norm.num_features != len(self.weight):
            raise InvalidArgumentError(
                f"model: expected at {name!r} the batch norm that is folded into a layer, or another BatchNorm or "
                f"SyncBatchNorm with running statistics of {len(self.weight)} channels, got {type(there).__name__}.  "
                "Put one there, or fold none: prepare_qat(..., fold_batch_norms=False)."
            )
        return norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if isinstance(x, torch.fx.Proxy):
            return as_leaf(self, x)
        norm = self.batch_norm
        if norm is not None and isinstance(self, nn.Linear) and x.ndim != 2:
            raise InvalidArgumentError(
                f"x: expected 2 dimensions for a Linear into which a batch norm is folded, got shape {tuple(x.shape)}; "
                "reshape x, or fold none: prepare_qat(..., fold_batch_norms=False)"
            )
        given, x = x, self.input_quantizer(x)
        if norm is None:
            return _product(self, x, self.weight_quantizer(self.weight), self.bias)
        variance = norm.running_var
        if norm.training:  # its forward pass changes its running statistics
            variance = _variance(given.detach(), variance, self._calls)
        factor = broadcast(_norm_factor(norm, variance), 0, self.weight.ndim)
        lost = factor == 0.0  # the folded weights of such a channel are 0, and cannot be scaled back
        quantised = self.weight_quantizer(self.weight * factor) / torch.where(lost, 1.0, factor)
        return _product(self, x, torch.where(lost, self.weight, quantised), self.bias)


@operator(lambda x, variance, calls: torch.empty_like(variance), changes=("calls",))
def _variance(x: torch.Tensor, variance: torch.Tensor, calls: torch.Tensor) -> torch.Tensor:
    """Return the variance to fold with: its value now, or in a backward pass its value in the forward pass."""
    key = sample(x)
    if in_backward():
        used = recall(calls, key)
        return variance.clone() if used is None else torch.as_tensor(used).to(variance)
    remember(calls, key, variance.double().cpu().numpy())
    return variance.clone()


def _norm_factor(norm: nn.Module, variance: torch.Tensor) -> torch.Tensor:
    """Return the factor by which a batch norm with this variance multiplies each channel."""
    factor = torch.rsqrt(variance + norm.eps)
    return factor if norm.weight is None else factor * norm.weight


class _QuantizedLayer(KeepsTypes):
    """A layer that holds the codes of its weights, and a frozen scale for its input."""

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
    """A Linear after `prepare_qat`."""


class QatConv1d(_QatLayer, nn.Conv1d):
    """A Conv1d after `prepare_qat`."""


class QatConv2d(_QatLayer, nn.Conv2d):
    """A Conv2d after `prepare_qat`."""


class QuantizedLinear(_QuantizedLayer, nn.Linear):
    """A Linear after `convert`."""


class QuantizedConv1d(_QuantizedLayer, nn.Conv1d):
    """A Conv1d after `convert`."""


class QuantizedConv2d(_QuantizedLayer, nn.Conv2d):
    """A Conv2d after `convert`."""


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
        It stays as it is.
    config : QatConfig, optional
        `bits` holds for inputs and weights.  `per_channel` and `symmetric` hold for weights; inputs have one scale and
        one zero point.
    mode : RangeMode or str
        Where all scales come from.  In the mode `MOVING_AVERAGE` each step sets the weights' scales from their current
        range, without averaging.
    averaging_constant : float
        The weight of a new batch in the moving averages of the inputs, above 0 and at most 1.
    overrides : mapping of str to QatConfig or None, optional
        Other configurations for single layers, by name; None leaves a layer in floating point.
    fold_batch_norms : bool
        Whether to fold a batch norm into the layer before it, if nothing else reads the layer's output.

    Returns
    -------
    Module
        The prepared copy.  Its state_dict has the model's parameters under the same names, and the scales as well.  It
        is in training or evaluation mode, as the given model is.

    Warns
    -----
    UserWarning
        If `torch.fx` cannot trace the model and some batch norms are therefore not folded.

    Raises
    ------
    InvalidArgumentError
        If `mode` is unknown, `averaging_constant` is out of its range, or `overrides` names no layer.
        If the model is prepared or converted already, or has nothing to quantise.
        If PyTorch cannot copy the model, because one of its weights is computed from others.
    TypeError
        If an argument has a wrong type.

    Notes
    -----
    Layers of exactly these classes are prepared, not layers of derived classes.  Tracing the model with `torch.fx`
    finds which batch norm follows which layer.  If tracing fails, the order in Sequentials says so.

    PyTorch's TransformerEncoderLayer has a fast path for evaluation that computes with the float weights.
    `prepare_qat` switches this path off.

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
        raise InvalidArgumentError("model: expected one not prepared or converted already; give the float model")
    prepared = _copy(model)
    layers = {name: layer for name, layer in prepared.named_modules() if type(layer) in _QAT}
    configs: dict[str, QatConfig | None] = dict.fromkeys(layers, config)
    if overrides is not None and not isinstance(overrides, Mapping):
        raise TypeError(f"overrides: expected a mapping, got {type(overrides).__name__}")
    for name, override in (overrides or {}).items():
        if not isinstance(override, QatConfig | None):
            raise TypeError(f"overrides[{name!r}]: expected a QatConfig or None, got {type(override).__name__}")
        if name not in layers:
            raise InvalidArgumentError(f"overrides: expected names of layers ({', '.join(layers)}), got {name!r}")
        configs[name] = override
    if not any(configs.values()):
        raise InvalidArgumentError(
            "model: expected a Linear, Conv1d or Conv2d to quantise, got none; layers of derived classes do not count"
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
            module.activation_relu_or_gelu = 0  # the fast path requires another value
    return prepared


def _copy(model: ModuleT) -> ModuleT:
    """Return a copy of a model; raise InvalidArgumentError if PyTorch cannot copy a tensor in it."""
    for name, module in model.named_modules():
        computed = [key for key, value in vars(module).items() if isinstance(value, torch.Tensor) and not value.is_leaf]
        if type(module) in (*_QAT, *_QUANTIZED) and "weight" not in module._parameters:
            computed.append("weight")
        if computed:
            key = computed[0]
            raise InvalidArgumentError(
                f"model: expected parameters, got {key!r} of {name or 'the model'!r}, which is computed from others "
                "and cannot be copied.  End pruning or normalised weights first: torch.nn.utils.prune.remove, "
                "remove_spectral_norm or remove_weight_norm.  Delete tensors that a forward pass has left."
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
    # A scale for evaluation before any training; the first batch in training replaces it.
    weights.calibrate(weight.detach(), CalibMethod.MSE if mode is RangeMode.LEARNED else CalibMethod.MIN_MAX)
    weights.forget_range()
    for quantizer in (weights, inputs):
        quantizer.train(layer.training)


def _followers(model: nn.Module) -> dict[str, str]:
    """Return the names of batch norms that alone read a layer's output, by the name of the layer."""
    modules = dict(model.named_modules())
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    reason = None
    try:
        # A branch that runs in one mode only may also read the layer's output.
        pairs = set.intersection(*(_called_in_a_row(model, training) for training in (True, False)))
    except Exception as error:  # the model's code may raise anything when it gets proxies in place of tensors
        reason = error
        pairs = {
            (f"{prefix}{first}", f"{prefix}{second}")
            for prefix, module in (("" if not name else f"{name}.", module) for name, module in modules.items())
            if type(module).forward is nn.Sequential.forward
            for first, second in itertools.pairwise(module._modules)
        }
        # A module with a second name may be used elsewhere as well.
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
    """Return the pairs of modules, each called once, where only the second one reads the result of the first."""
    with torch.random.fork_rng():
        # Tracing may leave its objects in the model, so it gets a copy.
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
        A model that `prepare_qat` returned, trained or calibrated; it stays as it is.

    Returns
    -------
    Module
        The copy, in evaluation mode.  It computes what the trained model computes in that mode.

        ``torch.onnx.export`` exports it with QuantizeLinear and DequantizeLinear, for opset 19 or later.  The exported
        model stores weights as int8 codes, also those of fewer bits, or as float8_e4m3fn.

    Warns
    -----
    UserWarning
        If the range of a layer's input was never observed, learned or calibrated.

    Raises
    ------
    InvalidArgumentError
        If the model has no layer that `prepare_qat` made, or is converted already.
        If a folded batch norm is no longer in the model, or PyTorch cannot copy the model.
    TypeError
        If `model` is not a Module.

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
        raise InvalidArgumentError("model: expected one not converted already; give the trained one")
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
            f"no range was observed for the inputs of {', '.join(unseen)}: they keep the scale that was set, or the "
            "scale of a unit range; train or calibrate the model first",
            stacklevel=2,
        )
    return converted


def set_mode(model: nn.Module, mode: RangeMode | str) -> None:
    """Set whether all scales of a model follow the data, stay frozen or are learned.

    Parameters
    ----------
    model : Module
        It is changed in place.
    mode : RangeMode or str
        The mode of every `FakeQuantize` in the model.

    Raises
    ------
    InvalidArgumentError
        If `mode` is unknown.
    TypeError
        If `model` is not a Module.

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
    """Put an Identity in each place of a batch norm that is now part of a layer."""
    names = [
        name
        for name, module in model.named_modules(remove_duplicate=False)
        # convert_sync_batchnorm turns one batch norm in two places into two that share their statistics.
        if type(module) in _FOLDED and module.running_var is norm.running_var
    ]
    if not names:
        raise InvalidArgumentError(
            f"model: expected one with the batch norm that is folded into {layer!r}, got one without it.  Give the "
            "model that holds both; if you replace batch norms, replace them in that model."
        )
    for name in names:
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, nn.Identity())


@torch.no_grad()
def _convert(layer: nn.Module, norm: nn.Module | None) -> None:
    """Turn a trained layer, and the batch norm that is folded into it, into a layer that holds codes."""
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
