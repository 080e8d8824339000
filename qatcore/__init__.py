"""The quantisation core for Python: observe, choose scales, quantise, infer exactly."""

from . import _startup, reference  # noqa: F401 (_startup comes before all else)
from ._base.config import CalibMethod, QatConfig, QuantizationSpec
from ._base.dispatch import cpu_level, show_config
from ._base.errors import InvalidArgumentError
from ._base.formats import QuantBits
from ._base.threads import get_num_threads, set_num_threads
from ._calibration.calibrate import (
    CalibrationDataset,
    CalibrationWarning,
    calibrate_layer,
    calibrate_model,
    choose_specs,
    load_calibration,
    load_specs,
    save_calibration,
    save_specs,
)
from ._calibration.collector import CalibrationCollector
from ._calibration.summary import CalibrationSummary
from ._codes.affine import dequantize, fake_quantize, quantize
from ._codes.gradients import fake_quantize_backward
from ._codes.microscaling import dequantize_mx, dequantize_nvfp4, quantize_mx, quantize_nvfp4
from ._codes.packing import pack_int2, pack_int4, unpack_int2, unpack_int4
from ._codes.reference_rounding import quantize_fp8, quantize_int4, quantize_int8
from ._linear.gemm import PackedInt8Matrix, int8_linear, int8_matmul
from ._linear.layer import QatLayer
from ._linear.weights import dequantize_weights, quantize_model_weights
from .reference import kl_divergence_symmetric

__version__ = "0.1.0"

__all__ = [
    "CalibMethod",
    "CalibrationCollector",
    "CalibrationDataset",
    "CalibrationSummary",
    "CalibrationWarning",
    "InvalidArgumentError",
    "PackedInt8Matrix",
    "QatConfig",
    "QatLayer",
    "QuantBits",
    "QuantizationSpec",
    "__version__",
    "calibrate_layer",
    "calibrate_model",
    "choose_specs",
    "cpu_level",
    "dequantize",
    "dequantize_mx",
    "dequantize_nvfp4",
    "dequantize_weights",
    "fake_quantize",
    "fake_quantize_backward",
    "get_num_threads",
    "int8_linear",
    "int8_matmul",
    "kl_divergence_symmetric",
    "load_calibration",
    "load_specs",
    "pack_int2",
    "pack_int4",
    "quantize",
    "quantize_fp8",
    "quantize_int4",
    "quantize_int8",
    "quantize_model_weights",
    "quantize_mx",
    "quantize_nvfp4",
    "reference",
    "save_calibration",
    "save_specs",
    "set_num_threads",
    "show_config",
    "unpack_int2",
    "unpack_int4",
]
