"""The ONNX nodes that modules become when a model is exported."""

from __future__ import annotations

from typing import Any

import torch

from .._base.formats import CodeFormat
from .functional import FLOAT_CODES, broadcast

_VERSION = 19  # operator set: the first with FP8, and ONNX Runtime's optimiser gets it right


def is_exporting() -> bool:
    """Return whether a model is being exported to ONNX now."""
    return torch.onnx.is_in_onnx_export()


def zero_point_in_storage(zero_point: torch.Tensor, code_format: CodeFormat) -> torch.Tensor:
    """Return zero points in the type that stores the codes: int8 for integers, also those of fewer bits."""
    if code_format.parameters is None:
        return zero_point.to(torch.int8)
    return zero_point.to(torch.float32).to(FLOAT_CODES[str(code_format.dtype)])


def quantize_dequantize(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, code_format: CodeFormat, axis: int | None
) -> torch.Tensor:
    """Return the output of a QuantizeLinear and a DequantizeLinear, as the exported model holds them."""
    used = scale
    if code_format.ends != (-128, 127):
        # A division comes first, because ONNX Runtime 1.32 changes what stands right before a QuantizeLinear.  Before
        # one to FP8 it removes a Relu.  Before one to integers it rounds the bias to the product's scale, which is
        # coarse if there are few codes.
        x, used = x / broadcast(scale, axis, x.ndim), torch.ones_like(scale)
        if code_format.parameters is None:  # int8 stores them: runtimes lack some types of fewer bits
            zeros = broadcast(zero_point.to(scale.dtype), axis, x.ndim)
            least, greatest = (end - zeros for end in code_format.ends)
            x = torch.minimum(torch.maximum(x, least), greatest)
    stored = zero_point_in_storage(zero_point, code_format)
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    codes = torch.onnx.ops.symbolic(
        "QuantizeLinear", (x, used, stored), attributes, dtype=stored.dtype, shape=x.shape, version=_VERSION
    )
    return dequantize(codes, scale, stored, axis, x.dtype)


def dequantize(
    codes: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, axis: int | None, dtype: torch.dtype
) -> torch.Tensor:
    """Return the output of a DequantizeLinear."""
    attributes: dict[str, Any] = {} if axis is None else {"axis": axis}
    result: torch.Tensor = torch.onnx.ops.symbolic(
        "DequantizeLinear",
        (codes, scale, zero_point),
        attributes,
        dtype=dtype,
        shape=codes.shape,
        version=_VERSION,
    )
    return result
