"""Quantisation-aware training in PyTorch; needs the extra ``torch``.

The kernels work on the memory of CPU tensors.  They round as ONNX does, so that an exported model computes what was
trained.
"""

try:
    import torch as _torch
except ModuleNotFoundError as _missing:
    raise ModuleNotFoundError(
        "qatcore.torch needs PyTorch: pip install 'qatcore[torch]'", name=_missing.name
    ) from _missing

from ._torch.functional import fake_quantize
from ._torch.models import convert, prepare_qat, set_mode
from ._torch.module import FakeQuantize, RangeMode

__all__ = ["FakeQuantize", "RangeMode", "convert", "fake_quantize", "prepare_qat", "set_mode"]

del _torch
