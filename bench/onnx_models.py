"""Real ONNX models, quantised by qatcore, by ONNX Runtime's tool and by NNCF from the same inputs, in two runtimes.

``python -m bench.onnx_models`` needs the packages that bench/onnx_data.py names, and those of bench/requirements.txt.
``--loaders DIRECTORY`` adds the models of bench/onnx_shared.py.

Each row is made in a process of its own: the score on each test set, the worst output's signal to noise, bytes, seconds
and peak memory (beyond what the process has with packages and inputs loaded) of calibrating and quantising.  Speed is
the float model's time in the same runtime, divided by the quantised model's; the two take turns.  At the end
calibrating the recogniser alone is timed, on the tensors that ONNX Runtime's calibrators observe.
"""

from __future__ import annotations

import argparse
import functools
import importlib
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from . import onnx_shared
from .onnx_data import TASKS, Task, magika
from .onnx_peers import (
    OPERATORS,
    PACKAGES_FOR_ONNX,
    PACKAGES_FOR_OPENVINO,
    Reader,
    nncf_for_onnx,
    nncf_for_openvino,
    quantize_static,
)
from .onnx_runtimes import Run, milliseconds, onnx_runtime, openvino

METHODS = ("kl", "percentile", "min_max", "auto")


def quantize_ours(task: Task, output: Path, **options: Any) -> None:
    import qatcore.onnx

    if "max_drop" in options:
        options["metric"] = task.score
    qatcore.onnx.quantize_model(task.path, task.calibration, output=output, **options)


@dataclass(frozen=True)
class Variant:
    """A row: what makes the model of a task, the packages it imports for this, and the runtime that runs the model.

    Only `--all` makes those that are `extra`.
    """

    make: Callable[[Task, Path], None] | None
    packages: tuple[str, ...] = ()
    run: Callable[[Path, int], Run] = onnx_runtime
    extra: bool = False


FLOAT, OURS, FASTEST, THEIRS = "float", "qatcore", "qatcore, fastest", "ONNX Runtime's tool, all operators"
NNCF, FLOAT_THERE, OURS_THERE, NNCF_THERE = "NNCF", *(f"{name}, in OpenVINO" for name in ("float", OURS, "NNCF"))


def ours(run: Callable[[Path, int], Run] = onnx_runtime, *, extra: bool = False, **options: Any) -> Variant:
    return Variant(functools.partial(quantize_ours, **options), ("qatcore.onnx",), run, extra)


def theirs(*, extra: bool = False, **options: Any) -> Variant:
    return Variant(functools.partial(quantize_static, **options), ("onnxruntime.quantization",), extra=extra)


VARIANTS = {
    FLOAT: Variant(None),
    OURS: ours(),
    FASTEST: ours(fastest=True),
    THEIRS: theirs(),
    "ONNX Runtime's tool, Conv, Gemm, MatMul": theirs(operators=OPERATORS),
    NNCF: Variant(nncf_for_onnx, PACKAGES_FOR_ONNX),
    FLOAT_THERE: Variant(None, run=openvino),
    OURS_THERE: ours(openvino, target="openvino"),
    NNCF_THERE: Variant(nncf_for_openvino, PACKAGES_FOR_OPENVINO, openvino),
    **{
        f"ONNX Runtime's tool, {name}, {'per channel' if per_channel else 'per tensor'}": theirs(
            method=method, per_channel=per_channel, operators=OPERATORS, extra=True
        )
        for name, method in (("entropy", "Entropy"), ("percentile", "Percentile"))
        for per_channel in (False, True)
    },
    **{f"qatcore, {method}": ours(method=method, extra=True) for method in METHODS},
    "qatcore, activations int8": ours(activations="int8", extra=True),
    "qatcore, per tensor": ours(per_tensor=True, extra=True),
    "qatcore, max_drop 1": ours(max_drop=1.0, extra=True),
    "qatcore, int4 weights alone": ours(weights="int4", activations="none", extra=True),
    "qatcore, fp8": ours(weights="fp8", activations="fp8", extra=True),
}


def peak() -> float:
    """Return the most memory this process has had, in MB; `resource.getrusage` would count its parent's, too."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def forget_peak() -> None:
    """Let the peak be the memory that this process has now, not what it has freed, such as a model that was parsed."""
    Path("/proc/self/clear_refs").write_text("5")


def task_of(name: str, kept: Path, loaders: Path | None) -> Task:
    """Return a model with its data; a directory keeps what the rows share."""
    if name == "magika":
        return magika(kept=kept)
    if name in TASKS:
        return TASKS[name]()
    assert loaders is not None
    return onnx_shared.shared(name, loaders)


def row(name: str, chosen: str, kept: Path, loaders: Path | None) -> dict[str, Any]:
    """Return everything about one model by one variant; a directory keeps what the rows share."""
    from qatcore._onnx.metric import Noise

    task, variant = task_of(name, kept, loaders), VARIANTS[chosen]
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "model.xml" if chosen == NNCF_THERE else "model.onnx")
        # Imports would count for some packages alone: NNCF's own is 200 MB where PyTorch is installed.
        for package in variant.packages:
            importlib.import_module(package)
        forget_peak()
        before, start = peak(), time.perf_counter()
        if variant.make is None:
            output = task.path
        else:
            variant.make(task, output)
        seconds, memory = time.perf_counter() - start, peak() - before
        files = [output, output.with_suffix(".bin")]
        result: dict[str, Any] = {
            "seconds": seconds,
            "memory": memory,
            "bytes": sum(file.stat().st_size for file in files if file.exists()),
            "tests": {},
        }
        run = variant.run(output, os.cpu_count() or 1)
        for number, (test, batches) in enumerate(task.tests.items()):
            scores, noises = [], dict[str, Noise]()
            for batch, exact in zip(batches, float_outputs(task, batches, kept / f"{name}-{number}.npz"), strict=True):
                found = run(batch)
                assert {each: value.shape for each, value in found.items()} == {
                    each: value.shape for each, value in exact.items()
                }, "outputs have other names or shapes than the float model's"
                scores.append(task.score(found, batch))
                for each, value in exact.items():
                    noises.setdefault(each, Noise()).add(value, found[each])
            sqnr = [noise.sqnr for noise in noises.values() if noise.signal != 0.0]  # integers have no powers
            assert sqnr and all(each > -math.inf for each in sqnr), "outputs are not finite where the float model's are"
            result["tests"][test] = {"score": 100.0 * float(np.concatenate(scores).mean()), "sqnr": min(sqnr)}
        first = next(iter(task.tests.values()))[0]
        result["milliseconds"] = milliseconds(variant.run, task.path, output, first)
    return result


def float_outputs(task: Task, batches: list[dict[str, np.ndarray]], file: Path) -> Iterable[dict[str, np.ndarray]]:
    """Yield the float model's outputs of each batch in ONNX Runtime, from a file if there is one."""
    if not file.exists():
        run = onnx_runtime(task.path, os.cpu_count() or 1)
        np.savez(file, **{f"{i} {name}": value for i, b in enumerate(batches) for name, value in run(b).items()})
    with np.load(file) as stored:
        names = [name.split(" ", 1)[1] for name in stored.files if name.startswith("0 ")]
        for i in range(len(batches)):
            yield {name: stored[f"{i} {name}"] for name in names}


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
        # What a tool prints may come after the exception.
        said = [line for line in done.stderr.splitlines() if "Error" in line] or done.stderr.splitlines() or ["?"]
        return {"failed": said[-1][:160]}
    result: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return result


# --- tables -------------------------------------------------------------------------------------------


def heading(found: dict[str, Any]) -> str:
    """Return the first two lines of a model's table, for which one row is enough."""
    tests = list(found["tests"])
    columns = [column for test in tests for column in (test, "SQNR, dB")]
    columns += ["bytes", "seconds", "MB", *(f"{size}, {n} thr." for size in ("batch", "sample") for n in (1, 2))]
    return f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}"


def cells(found: dict[str, Any]) -> str:
    """Return the cells of a row."""
    if "failed" in found:
        return f"fails: {found['failed']}"
    tests = [f"{test['score']:.2f} % | {_decibels(test['sqnr'])}" for test in found["tests"].values()]
    costs = f"{found['bytes']:,} | {found['seconds']:.1f} | {found['memory']:.0f}"
    return f"{' | '.join(tests)} | {costs} | {' | '.join(_times(found))}"


def _times(found: dict[str, Any]) -> list[str]:
    """Return milliseconds and how many times as fast as the float model they are."""
    texts = []
    for size in ("batch", "sample"):
        for threads in (1, 2):
            times = found["milliseconds"].get(f"{size}, {threads}")
            texts.append("" if times is None else f"{times[1]:.2f} ms, {times[0] / times[1]:.2f} x")
    return texts


def _decibels(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.1f}"


def print_summary(everything: dict[str, Any]) -> None:
    """Print how fast models are on one thread, beside float in the same runtime, and their signal to noise."""

    def of(model: dict[str, Any], variant: str, what: str) -> float:
        found = model.get(variant, {"failed": ""})
        if "failed" in found:
            return math.nan
        if what == "sqnr":
            return min(test["sqnr"] for test in found["tests"].values())
        before, after = found["milliseconds"].get(f"{what}, 1", (math.nan, math.nan))
        return float(before / after)

    columns = [
        ("qatcore", OURS, "batch"), ("fastest", FASTEST, "batch"), ("tool", THEIRS, "batch"),
        ("qatcore, sample", OURS, "sample"), ("fastest, sample", FASTEST, "sample"),
        ("qatcore, dB", OURS, "sqnr"), ("fastest, dB", FASTEST, "sqnr"), ("tool, dB", THEIRS, "sqnr"),
        ("OpenVINO", OURS_THERE, "batch"), ("NNCF", NNCF_THERE, "batch"),
        ("OpenVINO, dB", OURS_THERE, "sqnr"), ("NNCF, dB", NNCF_THERE, "sqnr"),
    ]  # fmt: skip
    print("\n### Summary, one thread\n\n| | " + " | ".join(name for name, *_ in columns) + " |")
    print("|---|" + "---:|" * len(columns))
    for name, model in everything.items():
        figures = [of(model, variant, what) for _, variant, what in columns]
        print(f"| {name} | " + " | ".join("" if math.isnan(each) else f"{each:.2f}" for each in figures) + " |")
    means = []
    for _, variant, what in columns:
        speeds = [of(model, variant, what) for model in everything.values()]
        speeds = [speed for speed in speeds if not math.isnan(speed)]
        means.append(f"{statistics.geometric_mean(speeds):.2f}" if what != "sqnr" and speeds else "")
    print("| geometric mean | " + " | ".join(means) + " |")


def print_row(number: int, variant: str, found: dict[str, Any]) -> None:
    """Print a row of a model, the first one below the heading."""
    if number == 0 and "tests" in found:
        print(heading(found))
    print(f"| {variant} | {cells(found)} |", flush=True)


def print_models(names: list[str], variants: list[str], *others: str) -> dict[str, Any]:
    """Measure, print a table of each model, and return everything; `others` are arguments of each row's process."""
    everything: dict[str, Any] = {}
    for name in names:
        print(f"\n### {name}\n", flush=True)
        for number, variant in enumerate(variants):
            found = everything.setdefault(name, {})[variant] = in_process("--row", name, variant, *others)
            print_row(number, variant, found)
    return everything


def print_again(everything: dict[str, Any]) -> None:
    """Print the tables of what was measured before."""
    for name, rows in everything.items():
        print(f"\n### {name}\n")
        for number, (variant, found) in enumerate(rows.items()):
            print_row(number, variant, found)


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


def printed(result: Callable[[], dict[str, Any]]) -> None:
    """Print a result as JSON, and nothing that a tool prints."""
    sys.stdout.flush()
    report = os.dup(1)
    os.dup2(2, 1)
    os.write(report, (json.dumps(result()) + "\n").encode())


def main() -> None:
    parser = argparse.ArgumentParser("python -m bench.onnx_models", description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", metavar="MODEL", help=f"of {', '.join(TASKS)}, and those of --loaders")
    parser.add_argument("--loaders", type=Path, metavar="DIRECTORY", help="a folder of loaders of more models")
    parser.add_argument("--ours", action="store_true", help="only float and qatcore in ONNX Runtime")
    parser.add_argument("--all", action="store_true", help="other methods and formats, too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything that was measured")
    parser.add_argument("--from", type=Path, dest="stored", metavar="FILE", help="print what --json has written")
    parser.add_argument("--images", type=int, default=0, help="to time the recogniser's calibrators on, such as 40")
    parser.add_argument("--row", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--calibrator", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    loaders: Path | None = arguments.loaders
    if arguments.row:
        name, variant, kept = arguments.row
        printed(lambda: row(name, variant, Path(kept), loaders))
        return
    if arguments.calibrator:
        printed(lambda: calibrator(arguments.calibrator[0], int(arguments.calibrator[1])))
        return
    if arguments.stored:
        everything = json.loads(arguments.stored.read_text())
        print_again(everything)
    else:
        more = onnx_shared.names(loaders) if loaders else []
        if loaders and not more:
            parser.error(f"--loaders: {loaders} holds no load_NAME.py whose model is there")
        known = [*TASKS, *more]
        if unknown := set(arguments.models) - set(known):
            parser.error(f"there is no model {min(unknown)}; models are {', '.join(known)}")
        variants = [FLOAT, OURS, FASTEST] if arguments.ours else list(VARIANTS)
        variants = [name for name in variants if arguments.all or not VARIANTS[name].extra]
        with tempfile.TemporaryDirectory() as kept:
            others = [kept, *(["--loaders", str(loaders)] if loaders else [])]
            everything = print_models(arguments.models or known, variants, *others)
        if arguments.json:
            arguments.json.write_text(json.dumps(everything, indent=1))
    print_summary(everything)
    if arguments.images:
        print_calibrators(arguments.images)


if __name__ == "__main__":
    main()
