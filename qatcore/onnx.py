"""Calibrate, quantise and compare ONNX models; needs the extra ``onnx``."""

try:
    from ._onnx.api import calibrate, compare, quantize_model, sensitivity
    from ._onnx.calibration import Calibration
    from ._onnx.comparison import Comparison
    from ._onnx.images import ImageFolder
    from ._onnx.latency import Latency
    from ._onnx.notices import ModelWarning
    from ._onnx.sensitivity import Sensitivity
except ModuleNotFoundError as _error:
    _package = (_error.name or "").partition(".")[0]
    if _package not in {"google", "onnx", "onnx_ir", "onnxruntime", "rich"}:
        raise
    raise ModuleNotFoundError(f"qatcore.onnx needs {_package}: pip install 'qatcore[onnx]'", name=_package) from _error

__all__ = [
    "Calibration",
    "Comparison",
    "ImageFolder",
    "Latency",
    "ModelWarning",
    "Sensitivity",
    "calibrate",
    "compare",
    "quantize_model",
    "sensitivity",
]
