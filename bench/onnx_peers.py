"""What other packages make of a model: ONNX Runtime's `quantize_static`, and NNCF."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from .onnx_data import Task
from .onnx_shared import TRANSFORMERS

#: The operators that all tools quantise.
OPERATORS = ["Conv", "Gemm", "MatMul"]
#: What NNCF imports only when it quantises.
PACKAGES_FOR_ONNX = ("onnxruntime", "onnx.reference", "nncf.onnx.quantization.quantize_model")
PACKAGES_FOR_OPENVINO = ("openvino", "nncf.openvino.quantization.quantize_model")


def inputs_of(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return a batch without its labels."""
    return {name: value for name, value in batch.items() if name != "label"}


class Reader:
    """Batches as ONNX Runtime's calibrators take them."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._rest: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, None after the last."""
        batch = next(self._rest, None)
        return None if batch is None else inputs_of(batch)


def quantize_static(
    task: Task, output: Path, *, method: str = "MinMax", per_channel: bool = True, operators: list[str] | None = None
) -> None:
    """Write the model that ONNX Runtime's tool makes, with all of its operators or with some."""
    import onnxruntime.quantization as tool
    from onnxruntime.quantization import calibrate
    from onnxruntime.quantization.shape_inference import quant_pre_process

    if method == "Entropy":  # whose default, 128 bins, tries a single threshold; the tool has no option for it
        make = calibrate.create_calibrator

        def with_bins(*arguments: Any, **options: Any) -> Any:
            extra = {**options.pop("extra_options", {}), "num_bins": 2048, "num_quantized_bins": 128}
            return make(*arguments, extra_options=extra, **options)

        # The module, whose name in its package is that of a function.
        sys.modules["onnxruntime.quantization.quantize"].create_calibrator = with_bins  # type: ignore[attr-defined]
    upgraded, prepared = output.with_suffix(".upgraded.onnx"), output.with_suffix(".prepared.onnx")
    # Whoever leaves the opset at 11 or 12 gets invalid models per channel.
    model = onnx.load(task.path)
    if max(entry.version for entry in model.opset_import if entry.domain == "") < 13:
        model = onnx.version_converter.convert_version(model, 17)
        model.ir_version = max(model.ir_version, 8)
    onnx.save(model, upgraded)
    quant_pre_process(str(upgraded), str(prepared), skip_symbolic_shape=True)
    tool.quantize_static(
        str(prepared),
        str(output),
        Reader(task.calibration),
        per_channel=per_channel,
        activation_type=tool.QuantType.QUInt8,
        weight_type=tool.QuantType.QInt8,
        calibrate_method=tool.CalibrationMethod[method],
        op_types_to_quantize=operators,
    )


def nncf_for_onnx(task: Task, output: Path) -> None:
    """Write the ONNX model that NNCF makes."""
    onnx.save(_by_nncf(task, onnx.load(task.path)), output)


def nncf_for_openvino(task: Task, output: Path) -> None:
    """Write the OpenVINO model that NNCF makes; its weights lie beside it."""
    import openvino

    openvino.save_model(_by_nncf(task, openvino.Core().read_model(task.path)), output, compress_to_fp16=False)


def _by_nncf(task: Task, model: Any) -> Any:
    import nncf

    data = nncf.Dataset([inputs_of(batch) for batch in task.calibration])
    kind = nncf.ModelType.TRANSFORMER if task.name in TRANSFORMERS else None
    return nncf.quantize(model, data, subset_size=len(task.calibration), model_type=kind)
