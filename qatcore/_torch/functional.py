"""Fake quantisation of tensors, and its gradients."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
import torch
from torch.autograd.function import once_differentiable

from .._base.errors import InvalidArgumentError
from .._base.formats import CodeDType, CodeFormat, as_code_format
from .._base.types import FloatLike, IntLike
from .._base.validation import as_axis, as_grad_factor, as_number, as_zero_point
from .._codes.affine import fake_quantize as fake_quantize_array
from .._codes.affine import scaled_format
from .._codes.gradients import fake_quantize_backward, lsq_factor
from .operators import operator

_FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)

#: PyTorch's types of codes that are floating-point numbers.
FLOAT_CODES = {"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2}


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor | FloatLike,
    zero_point: torch.Tensor | IntLike = 0,
    *,
    dtype: CodeDType | torch.dtype = "int8",
    axis: int | None = None,
    grad_factor: FloatLike | None = None,
) -> torch.Tensor:
    """Quantise and dequantise a tensor, with a straight-through gradient for it and LSQ's gradient for the scale.

    Parameters
    ----------
    x : Tensor of float32, float64, float16 or bfloat16, any shape
    scale : float or floating Tensor, shape () or (x.shape[axis],)
        Positive and finite.
    zero_point : int or Tensor of integers, of the shape of `scale`
    dtype : str, dtype or QuantBits
        Type of the codes: one that `qatcore.quantize` returns, by name, or as a dtype of NumPy, ml_dtypes or PyTorch.
    axis : int, optional
        The axis along which scales and zero points lie.  Without it, one scale serves the whole tensor.
    grad_factor : float, optional
        Factor on the gradient of the scale.  The default is LSQ's factor, see `qatcore.fake_quantize_backward`.

    Returns
    -------
    Tensor, like `x`
        The values of the codes.

    Raises
    ------
    InvalidArgumentError
        If a scale or zero point is out of its range or has another shape, or `x` has no such `axis`.
        If `dtype` is unknown, or `x` is on another device and PyTorch lacks the type.
    TypeError
        If `x` is not a floating-point tensor, or another argument has a wrong type.

    Notes
    -----
    On the CPU, `qatcore.fake_quantize` and `qatcore.fake_quantize_backward` compute on the tensors' memory.
    On other devices PyTorch's operators compute the same formulas, and a warning says so once for each device.

    Examples
    --------
    >>> x = torch.tensor([0.25, 0.75, -1e9], requires_grad=True)
    >>> fake_quantize(x, 0.5).sum().backward()
    >>> x.grad
    tensor([1., 1., 0.])
    """
    if torch.overrides.has_torch_function_unary(x):  # such as the proxies of torch.fx
        result: torch.Tensor = torch.overrides.handle_torch_function(
            fake_quantize, (x,), x, scale, zero_point, dtype=dtype, axis=axis, grad_factor=grad_factor
        )
        return result
    check_floating(x)
    if axis is not None:
        axis = as_axis(axis, x.ndim)
    if grad_factor is not None:
        grad_factor = as_grad_factor(grad_factor)
    if not isinstance(scale, torch.Tensor):
        scale = torch.tensor(as_number(scale, "scale"), dtype=torch.float64)
    if not isinstance(zero_point, torch.Tensor):
        zero_point = torch.tensor(as_zero_point(zero_point))
    return fake_quantize_checked(x, scale, zero_point, _name_of(dtype), False, axis, grad_factor)


@torch.compiler.assume_constant_result
def _name_of(dtype: Any) -> str:
    """Return the name of a format that is given as a name, a dtype of NumPy or PyTorch, or a QuantBits."""
    if isinstance(dtype, torch.dtype):
        dtype = str(dtype).removeprefix("torch.")
    return str(as_code_format(dtype, "dtype").dtype)


def check_floating(x: torch.Tensor) -> None:
    """Raise TypeError if `x` is no tensor, has a type that the kernels do not take, or has no memory to read."""
    if not isinstance(x, torch.Tensor):
        raise TypeError(f"x: expected a Tensor, got {type(x).__name__}")
    if x.dtype not in _FLOATS:
        raise TypeError(f"x: expected float32, float64, float16 or bfloat16, got {x.dtype}")
    if not torch.compiler.is_compiling() and torch._C._functorch.is_batchedtensor(x):
        raise TypeError("x: expected a Tensor, got one within torch.vmap, which is not supported: pass all samples")


def fake_quantize_checked(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    dtype: str,
    symmetric: bool,
    axis: int | None,
    grad_factor: float | None = None,
) -> torch.Tensor:
    """Fake-quantise as `fake_quantize` does, for checked arguments; symmetric codes leave out the least code."""
    if torch.compiler.is_exporting():  # The graph needs operators that it can hold.  An exported model is not trained.
        return _by_operators(x, scale, zero_point, _format(dtype, symmetric), axis, False)[0]
    with_mask = x.requires_grad and not scale.requires_grad and torch.is_grad_enabled()
    arguments = x, scale, zero_point, dtype, symmetric, axis, grad_factor, with_mask
    apply = _fake_quantize_values if torch.compiler.is_compiling() else _FakeQuantize.apply
    out: torch.Tensor = apply(*arguments)[0]
    return out


@functools.cache
def _format(dtype: str, symmetric: bool) -> CodeFormat:
    code_format = as_code_format(dtype, "dtype")
    return code_format.symmetric() if symmetric else code_format


def _like_values(x: torch.Tensor, *arguments: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool) if arguments[-1] else _no_mask(x)


def _no_mask(x: torch.Tensor) -> torch.Tensor:
    return torch.empty(0, dtype=torch.bool, device=x.device)


@operator(_like_values)
def _fake_quantize_values(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    dtype: str,
    symmetric: bool,
    axis: int | None,
    grad_factor: float | None,
    with_mask: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the values, and a mask that is true where nothing was clipped; it is empty unless `with_mask`."""
    code_format = _format(dtype, symmetric)
    if x.device.type == "cpu":
        compute = _by_kernels
    else:
        _say_that_kernels_are_for_cpu(x.device.type)
        _check_parameters(x, scale, zero_point, code_format, axis)
        compute = _by_operators
    out, mask = compute(x, scale, zero_point, code_format, axis, with_mask)
    return out, _no_mask(x) if mask is None else mask


def _like_gradients(grad: torch.Tensor, x: torch.Tensor, scale: torch.Tensor, *_: Any) -> tuple[torch.Tensor, ...]:
    return torch.empty_like(x), torch.empty_like(scale)


@operator(_like_gradients)
def _fake_quantize_gradients(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    dtype: str,
    symmetric: bool,
    axis: int | None,
    grad_factor: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the gradients for x and the scale."""
    compute = _gradients_by_kernels if x.device.type == "cpu" else _gradients_by_operators
    of_x, of_scale = compute(grad, x, scale, zero_point, _format(dtype, symmetric), axis, grad_factor)
    return of_x, of_scale.to(scale.dtype).reshape(scale.shape)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Keep the inputs of the gradients: the values if the scale needs a gradient, else only the mask of bytes."""
    x, scale, zero_point, *ctx.how, _ = inputs
    ctx.set_materialize_grads(False)
    ctx.for_scale = ctx.needs_input_grad[1]
    ctx.save_for_backward(*((x, scale, zero_point) if ctx.for_scale else output[1:]))


def _backward(
    ctx: Any, grad: torch.Tensor | None, _: None, gradients: Callable[..., Any] = _fake_quantize_gradients
) -> tuple[Any, ...]:
    of_x = of_scale = None
    if grad is None:  # nothing depends on the values
        pass
    elif ctx.for_scale:
        of_x, of_scale = gradients(grad, *ctx.saved_tensors, *ctx.how)
    else:
        (mask,) = ctx.saved_tensors
        of_x = torch.where(mask, grad, torch.zeros((), dtype=grad.dtype, device=grad.device))
    return of_x, of_scale, None, *(None for _ in ctx.how), None


_fake_quantize_values.operator.register_autograd(
    functools.partial(_backward, gradients=_fake_quantize_gradients.operator), setup_context=_keep
)


class _FakeQuantize(torch.autograd.Function):
    """The same operator without PyTorch's dispatcher, which costs time on small tensors."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[torch.Tensor, torch.Tensor]:  # a setup_context would take longer
        output: tuple[torch.Tensor, torch.Tensor] = _fake_quantize_values(*inputs)
        _keep(ctx, inputs, output)
        return output

    backward = staticmethod(once_differentiable(_backward))


def as_numpy(x: torch.Tensor) -> np.ndarray[Any, Any]:
    """Return an array that shares the memory of a CPU tensor."""
    x = x.detach().resolve_conj().resolve_neg()
    if x.dtype is torch.bfloat16:
        return x.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return x.numpy()


def _memory_order(x: torch.Tensor) -> tuple[int, ...]:
    """Return a tensor's axes in the order of its memory, where channels may be last."""
    return tuple(sorted(range(x.ndim), key=lambda axis: (-x.stride(axis), axis)))


def parameter(value: torch.Tensor, axis: int | None) -> Any:
    """Return a scale or zero point as an array for the kernels; a single one has shape ()."""
    array = as_numpy(value.cpu())
    return array.reshape(()) if axis is None and array.size == 1 else array


def _by_kernels(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    code_format: CodeFormat,
    axis: int | None,
    with_mask: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return the values, and with `with_mask` a mask that is true where nothing was clipped."""
    out = torch.empty_like(x)
    order = _memory_order(out)
    result = fake_quantize_array(
        as_numpy(x.permute(order)),
        parameter(scale, axis),
        parameter(zero_point, axis),
        dtype=code_format,
        axis=None if axis is None else order.index(axis),
        out=as_numpy(out.permute(order)),
        return_mask=with_mask,
    )
    return out, _permuted_back(torch.from_numpy(result[1]), order) if isinstance(result, tuple) else None


def _permuted_back(x: torch.Tensor, order: tuple[int, ...]) -> torch.Tensor:
    return x.permute([order.index(axis) for axis in range(x.ndim)])


def _gradients_by_kernels(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    code_format: CodeFormat,
    axis: int | None,
    grad_factor: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    order = _memory_order(x)
    of_x, of_scale, _ = fake_quantize_backward(
        as_numpy(grad.permute(order)),
        as_numpy(x.permute(order)),
        parameter(scale, axis),
        parameter(zero_point, axis),
        dtype=code_format,
        axis=None if axis is None else order.index(axis),
        grad_factor=grad_factor,
    )
    if of_x.dtype == ml_dtypes.bfloat16:
        grad_x = torch.from_numpy(of_x.view(np.int16)).view(torch.bfloat16)
    else:
        grad_x = torch.from_numpy(of_x)
    return _permuted_back(grad_x, order), torch.as_tensor(of_scale)


def _say_that_kernels_are_for_cpu(device: str) -> None:
    if device not in _told:
        _told.add(device)
        warnings.warn(
            f"qatcore's kernels are for CPU tensors; on {device} PyTorch's operators compute the same formula",
            stacklevel=5,
        )


_told: set[str] = set()


def _check_parameters(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, code_format: CodeFormat, axis: int | None
) -> None:
    """Raise the errors that the kernels would raise."""
    if code_format.parameters is not None and str(code_format.dtype) not in FLOAT_CODES:
        raise InvalidArgumentError(f"dtype: expected a format that PyTorch has, on {x.device}, got {code_format.dtype}")
    if not x.is_meta:
        computed = np.dtype(np.float64 if x.dtype is torch.float64 else np.float32)
        parameters = parameter(scale, axis), parameter(zero_point, axis)
        scaled_format(tuple(x.shape), computed, *parameters, axis, None, code_format)


def broadcast(parameter: torch.Tensor, axis: int | None, ndim: int) -> torch.Tensor:
    """Return a scale or zero point in a shape that broadcasts against a tensor of `ndim` dimensions."""
    if axis is None:
        return parameter
    shape = [1] * ndim
    shape[axis] = -1
    return parameter.reshape(shape)


def _in_steps(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, code_format: CodeFormat, axis: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the broadcast scale, x / scale, that quotient rounded and clipped, and a mask of what is not clipped."""
    kind = torch.float64 if x.dtype is torch.float64 else torch.float32
    steps, zeros = (broadcast(p.to(x.device, kind), axis, x.ndim) for p in (scale, zero_point))
    v = x.to(kind) / steps
    least, greatest = code_format.ends
    if code_format.parameters is None:
        rounded = torch.round(v)
        low, high = least - zeros, greatest - zeros
        passes = (rounded >= low) & (rounded <= high)
        clipped = torch.minimum(torch.maximum(torch.nan_to_num(rounded, 0.0, math.inf, -math.inf), low), high) + 0.0
    else:
        passes = v.abs() <= greatest
        clipped = v.clamp(least, greatest).to(FLOAT_CODES[str(code_format.dtype)]).to(kind)
    return steps, v, clipped, passes


def _by_operators(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    code_format: CodeFormat,
    axis: int | None,
    with_mask: bool,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    steps, _, clipped, passes = _in_steps(x, scale, zero_point, code_format, axis)
    return (clipped * steps).to(x.dtype), passes if with_mask else None


def _gradients_by_operators(
    grad: torch.Tensor,
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    code_format: CodeFormat,
    axis: int | None,
    grad_factor: float | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    _, v, clipped, passes = _in_steps(x, scale, zero_point, code_format, axis)
    slope = torch.where(passes, clipped - v, clipped)
    slope = torch.where(torch.isnan(v), 0.0, slope)
    products = grad.to(slope.dtype) * slope
    others = [i for i in range(x.ndim) if i != axis]
    factor = lsq_factor(x.numel() // max(scale.numel(), 1), code_format) if grad_factor is None else grad_factor
    total = products.sum(others) if others else products
    return torch.where(passes, grad, 0.0), total * factor
