"""Real ONNX models, quantised by ONNX Runtime's `quantize_static` and by qatcore from the same inputs.

``python -m bench.onnx_models`` needs the packages that bench/onnx_data.py names.  Each row is made in a process of its
own: seconds and peak memory (beyond what the process had with model and inputs loaded) of calibrating and quantising,
then accuracy and agreement with the float model on test sets, signal to noise of the outputs, bytes, and the median
time of a run beside the float model's.  At the end calibrating the recogniser alone is timed, on the tensors that ONNX
Runtime's calibrators observe.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from .onnx_data import TASKS, Task, magika

METHODS = ("mse", "kl", "percentile", "min_max", "auto")
OURS = {
    **{f"qatcore, {method}": {"method": method} for method in METHODS},
    "qatcore, mse, activations int8": {"activations": "int8"},
    "qatcore, mse, per tensor": {"per_tensor": True},
    "qatcore, max_drop 1": {"max_drop": 1.0},
    "qatcore, int4 weights alone": {"weights": "int4", "activations": "none"},
    "qatcore, fp8": {"weights": "fp8", "activations": "fp8"},
}
#: The operators that both quantise; of ONNX Runtime one row is of all that it can.
OPERATORS = ["Conv", "Gemm", "MatMul"]
THEIRS = {
    "ONNX Runtime, min-max, per channel, all operators": ("MinMax", True, None),
    **{
        f"ONNX Runtime, {name}, {'per channel' if per_channel else 'per tensor'}": (method, per_channel, OPERATORS)
        for name, method in (("min-max", "MinMax"), ("entropy", "Entropy"), ("percentile", "Percentile"))
        for per_channel in (False, True)
    },
}
FLOAT = "float"
#: Seconds for which each model is timed.
TIMED_SECONDS = 0.5


class Reader:
    """Batches as ONNX Runtime's calibrators take them."""

    def __init__(self, batches: list[dict[str, np.ndarray]]) -> None:
        self._rest: Iterator[dict[str, np.ndarray]] = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next batch, None after the last."""
        batch = next(self._rest, None)
        return None if batch is None else {name: value for name, value in batch.items() if name != "label"}


def peak() -> float:
    """Return the most memory this process has had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def quantize_theirs(task: Task, variant: str, output: Path) -> None:
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, calibrate, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    method, per_channel, operators = THEIRS[variant]
    if method == "Entropy":  # whose default, 128 bins, tries a single threshold; quantize_static has no option for it
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
    quantize_static(
        str(prepared),
        str(output),
        Reader(task.calibration),
        per_channel=per_channel,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        calibrate_method=CalibrationMethod[method],
        op_types_to_quantize=operators,
    )


def quantize_ours(task: Task, variant: str, output: Path) -> None:
    import qatcore.onnx

    options = dict(OURS[variant])
    if "max_drop" in options:
        options["metric"] = task.correct
    qatcore.onnx.quantize_model(task.path, task.calibration, output=output, **options)


def row(name: str, variant: str, kept: Path) -> dict[str, Any]:
    """Return everything about one model by one variant; a directory keeps what the rows share."""
    from qatcore._onnx.latency import latency_of
    from qatcore._onnx.metric import Noise
    from qatcore._onnx.model import read_model
    from qatcore._onnx.session import named_run, session_of

    task = magika(kept=kept) if name == "magika" else TASKS[name]()
    exact = read_model(task.path)
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "quantized.onnx")
        before, start = peak(), time.perf_counter()
        if variant == FLOAT:
            output = task.path
        elif variant in OURS:
            quantize_ours(task, variant, output)
        else:
            quantize_theirs(task, variant, output)
        seconds, memory = time.perf_counter() - start, peak() - before
        model = read_model(output)
        size = output.stat().st_size
    result: dict[str, Any] = {"seconds": seconds, "memory": memory, "bytes": size, "tests": {}}
    names = [str(value.name) for value in exact.graph.outputs]
    session = None if variant == FLOAT else session_of(model)
    for number, (test, batches) in enumerate(task.tests.items()):
        right, same, noises = [], [], [Noise() for _ in names]
        expected = float_outputs(exact, names, batches, kept / f"{name}-{number}.npz")
        for batch, exactly in zip(batches, expected, strict=True):
            outputs = exactly if session is None else named_run(session, names, batch)
            right.append(task.correct(outputs, batch))
            same.append(task.answers(exactly) == task.answers(outputs))
            for noise, output in zip(noises, names, strict=True):
                noise.add(exactly[output], outputs[output])
        result["tests"][test] = {
            "accuracy": 100.0 * float(np.concatenate(right).mean()),
            "agreement": 100.0 * float(np.concatenate(same).mean()),
            "sqnr": min(noise.sqnr for noise in noises),
        }
        found = latency_of(exact, model, batches[0], names, TIMED_SECONDS)
        result["latency"] = found.float_ms, found.quantized_ms
    about = model.metadata_props.get("qatcore")
    if "max_drop" in OURS.get(variant, {}) and about:
        result["float_nodes"] = json.loads(about)["float"]
        result["share"] = share_of(task, model)
    return result


def float_outputs(
    model: Any, names: list[str], batches: list[dict[str, np.ndarray]], file: Path
) -> Iterator[dict[str, np.ndarray]]:
    """Yield a model's outputs of each batch, from a file if there is one."""
    from qatcore._onnx.session import named_run, session_of

    if not file.exists():
        session = session_of(model)
        outputs = [named_run(session, names, batch) for batch in batches]
        np.savez(file, **{f"{i} {name}": batch[name] for i, batch in enumerate(outputs) for name in names})
    with np.load(file) as stored:
        for i in range(len(batches)):
            yield {name: stored[f"{i} {name}"] for name in names}


def share_of(task: Task, model: Any) -> float:
    """Return the part of all multiplications by weights that a quantised model does on codes."""
    from qatcore._onnx.model import read_model
    from qatcore._onnx.quantization import Options, ready
    from qatcore._onnx.work import all_multiply_adds

    work = all_multiply_adds(ready(read_model(task.path), Options()), task.calibration[0])
    about = model.metadata_props["qatcore"]
    return 100.0 * sum(work[name] for name in json.loads(about)["nodes"]) / sum(work.values())


def calibrator(what: str, images: int) -> dict[str, Any]:
    """Run the recogniser's calibration by one of three, and return seconds and the process's peak memory."""
    task = TASKS["recogniser"]()
    batches = [task.calibration[i % len(task.calibration)] for i in range(images)]
    tensors = theirs_observe(task)
    start = time.perf_counter()
    if what == "ONNX Runtime, entropy":
        from onnxruntime.quantization.calibrate import EntropyCalibrater

        with tempfile.TemporaryDirectory() as folder:
            augmented = str(Path(folder, "augmented.onnx"))
            observer = EntropyCalibrater(task.path, OPERATORS, augmented, num_bins=2048, num_quantized_bins=128)
            observer.augment_graph()
            observer.create_inference_session()
            observer.collect_data(Reader(batches))
            n = len(observer.compute_data().keys())
    elif what == "qatcore, kl":
        import qatcore
        import qatcore.onnx

        calibration = qatcore.onnx.calibrate(task.path, batches, tensors=tensors)
        n = len(qatcore.choose_specs(calibration.collectors, "kl", include_zero=True))
    else:
        from qatcore._onnx.model import read_model
        from qatcore._onnx.session import run, session_of

        session, n = session_of(read_model(task.path)), 0
        for batch in batches:
            run(session, None, batch)
    return {"seconds": time.perf_counter() - start, "memory": peak(), "tensors": n, "images": images}


def theirs_observe(task: Task) -> list[str]:
    """Return the tensors that ONNX Runtime's calibrators observe."""
    from onnxruntime.quantization.calibrate import EntropyCalibrater

    observer = EntropyCalibrater(task.path, OPERATORS)
    tensors, _ = observer.select_tensors_to_calibrate(observer.model)
    return sorted(tensors)


def in_process(*arguments: str) -> dict[str, Any]:
    """Run this module with arguments and return what it prints."""
    command = [sys.executable, "-m", "bench.onnx_models", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        # What ONNX Runtime's tool prints may come after the exception.
        said = [line for line in done.stderr.splitlines() if "Error: " in line] or done.stderr.splitlines() or ["?"]
        return {"failed": said[-1][:160]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


def print_models(names: list[str], keep: Callable[[str], bool], kept: str) -> dict[str, Any]:
    """Print a table of each model, and return everything; a directory is for what its rows share."""
    everything: dict[str, Any] = {}
    for name in names:
        print(f"\n### {name}\n", flush=True)
        heading = None
        for variant in filter(keep, [FLOAT, *THEIRS, *OURS]):
            found = everything.setdefault(name, {})[variant] = in_process("--row", name, variant, kept)
            if heading is None and "tests" in found:
                tests = list(found["tests"])
                heading = [c for t in tests for c in (f"{t}: accuracy", "agreement", "SQNR, dB")]
                print("| | " + " | ".join([*heading, "seconds", "MB", "bytes", "latency"]) + " |")
                print("|---|" + "---:|" * (len(heading) + 4))
            print(f"| {variant} | {cells(found)} |", flush=True)
    return everything


def cells(found: dict[str, Any]) -> str:
    """Return the cells of a row."""
    if "failed" in found:
        return f"fails: {found['failed']}"
    tests = [
        f"{test['accuracy']:.2f} % | {test['agreement']:.2f} % | {_decibels(test['sqnr'])}"
        for test in found["tests"].values()
    ]
    before, after = found["latency"]
    costs = f"{found['seconds']:.1f} | {found['memory']:.0f} | {found['bytes']:,} | {after / before:.2f}"
    text = f"{' | '.join(tests)} | {costs}"
    if "share" in found:
        text += f" ({len(found['float_nodes'])} nodes in float, {found['share']:.1f} % in int8)"
    return text


def _decibels(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.1f}"


def print_calibrators(images: int) -> None:
    print(f"\n### Calibrating the recogniser on {images} images\n")
    print("| | tensors | seconds | peak memory | beyond inference |\n|---|---:|---:|---:|---:|")
    bare = None
    for what in ("inference", "qatcore, kl", "ONNX Runtime, entropy"):
        for n in (images, 4 * images) if what != "ONNX Runtime, entropy" else (images,):
            found = in_process("--calibrator", what, str(n))
            bare = bare or found
            beyond = "" if what == "inference" else f"{found['memory'] - bare['memory']:.0f} MB"
            costs = f"{found['tensors']} | {found['seconds']:.2f} | {found['memory']:.0f} MB | {beyond}"
            print(f"| {what}, {n} images | {costs} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.onnx_models", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", default=list(TASKS), metavar="MODEL", help=f"of {', '.join(TASKS)}")
    parser.add_argument("--ours", action="store_true", help="without ONNX Runtime's tool, which takes minutes")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--images", type=int, default=40, help="to time calibrators on; 0 for not at all")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--calibrator", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.row:
        sys.stdout.flush()
        report = os.dup(1)
        os.dup2(2, 1)  # ONNX Runtime's tool prints
        name, variant, kept = arguments.row
        result = row(name, variant, Path(kept))
        os.write(report, (json.dumps(result) + "\n").encode())
        return
    if arguments.calibrator:
        print(json.dumps(calibrator(arguments.calibrator[0], int(arguments.calibrator[1]))))
        return
    with tempfile.TemporaryDirectory() as kept:
        everything = print_models(arguments.models, lambda variant: not (arguments.ours and variant in THEIRS), kept)
    if arguments.images and "recogniser" in arguments.models:
        print_calibrators(arguments.images)
    if arguments.json:
        arguments.json.write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
