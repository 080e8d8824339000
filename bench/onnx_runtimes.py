"""Runtimes that run ONNX models: ONNX Runtime and OpenVINO."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

import numpy as np

#: What runs a model on a batch, and returns its outputs by name.
Run = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
#: Seconds for which each model is timed, with each number of threads.
TIMED_SECONDS = 1.0
THREADS = (1, 2)


def onnx_runtime(path: Path, threads: int) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 4
    options.add_session_config_entry("session.force_spinning_stop", "1")  # models take turns
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    inputs, outputs = ([value.name for value in values] for values in (session.get_inputs(), session.get_outputs()))
    return lambda batch: dict(zip(outputs, session.run(outputs, {name: batch[name] for name in inputs}), strict=True))


def openvino(path: Path, threads: int) -> Run:
    from openvino import Core

    core = Core()
    # By default it computes in bfloat16 where the CPU can, and so in fewer bits than the other runtime.
    exactly = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    model = core.compile_model(core.read_model(path), "CPU", {**exactly, "ENABLE_CPU_PINNING": False})
    inputs = [value.any_name for value in model.inputs]
    ports = {value.any_name: value for value in model.outputs}

    def run(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        found = model({name: batch[name] for name in inputs})
        return {name: np.array(found[port]) for name, port in ports.items()}

    return run


def milliseconds(
    open_model: Callable[[Path, int], Run], exact: Path, path: Path, batch: dict[str, np.ndarray]
) -> dict[str, list[float]]:
    """Return the median time of a float model and of another one, in turn, by samples and threads.

    The sample is the batch's first; it is left out if the model takes whole batches only.
    """
    from qatcore._onnx.latency import first_sample, in_turn
    from qatcore._onnx.model import read_model

    batches = {"batch": batch, "sample": first_sample(read_model(exact), batch)}
    found = {}
    for threads in THREADS:
        runs = [open_model(model, threads) for model in (exact, path)]
        for name, given in batches.items():
            if given is not None:
                times = in_turn([lambda run=run, given=given: run(given) for run in runs], TIMED_SECONDS)
                found[f"{name}, {threads}"] = [statistics.median(each) for each in times]
    return found
