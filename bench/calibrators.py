"""Measure time and memory of a whole calibration, with qatcore and with ONNX Runtime's entropy calibrator.

``python -m bench.calibrators`` makes a model with 50 tensors and runs 100 batches through it three times.  Each run has
a process of its own.  The first run is inference alone.  The second feeds qatcore's collectors and chooses KL scales.
The third is ONNX Runtime's calibrator, which runs the model itself.  Memory is the peak of the process, less its peak
when the model had been loaded.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator

import numpy as np

BINS, LEVELS = 2048, 128


def make_model(path: pathlib.Path, tensors: int, values: int) -> None:
    """Write a model whose tensors are multiples of its input, some of them rectified."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    nodes, factors = [], []
    for i in range(tensors):
        factors.append(numpy_helper.from_array(np.float32([2.0 ** (i % 7 - 3) * (1 + i / 50)]), f"factor{i}"))
        nodes.append(helper.make_node("Mul", ["x", f"factor{i}"], [f"t{i}"]))
    outputs = [helper.make_tensor_value_info(f"t{i}", TensorProto.FLOAT, ["n", values]) for i in range(tensors)]
    graph = helper.make_graph(
        nodes, "calibrated", [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", values])], outputs, factors
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def inputs(batches: int, values: int) -> Iterator[dict[str, np.ndarray]]:
    """Yield the batches."""
    rng = np.random.default_rng(0)
    for _ in range(batches):
        yield {"x": rng.standard_normal((1, values)).astype(np.float32)}


def peak() -> float:
    """Return the peak memory of this process, in MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def calibrate(what: str, path: pathlib.Path, batches: int, values: int) -> dict[str, object]:
    """Do one of the three runs; return its seconds, its memory in MiB and the clips that it chose, if any."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    if what == "ORT":
        from onnxruntime.quantization.calibrate import CalibrationDataReader, EntropyCalibrater

        class Reader(CalibrationDataReader):
            def __init__(self) -> None:
                self.batches = inputs(batches, values)

            def get_next(self) -> dict[str, np.ndarray] | None:
                return next(self.batches, None)

        calibrator = EntropyCalibrater(
            str(path), ["Mul"], str(path) + ".augmented", symmetric=True, num_bins=BINS, num_quantized_bins=LEVELS
        )
        calibrator.augment_graph()
        calibrator.create_inference_session()
        before, start = peak(), time.perf_counter()
        calibrator.collect_data(Reader())
        data = calibrator.compute_data()
        clips = {f"t{i}": float(data[f"t{i}"].range_value[1]) for i in range(len(data.keys()) - 1)}
    else:
        import qatcore

        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        qatcore.set_num_threads(1)
        collectors = {name: qatcore.CalibrationCollector() for name in ["x", *names]}
        before, start = peak(), time.perf_counter()
        for batch in inputs(batches, values):
            outputs = session.run(names, batch)
            if what == "qatcore":
                for name, value in zip(["x", *names], [batch["x"], *outputs], strict=True):
                    collectors[name].observe(value)
        clips = {}
        if what == "qatcore":
            specs = qatcore.choose_specs(collectors, "kl", symmetric=True)
            clips = {spec.layer_name: spec.scale * 127 for spec in specs[1:]}
    return {"seconds": time.perf_counter() - start, "memory": peak() - before, "clips": clips}


def main() -> int:
    """Do all three runs and print a table in Markdown."""
    parser = argparse.ArgumentParser("python -m bench.calibrators", description=__doc__.splitlines()[0])
    parser.add_argument("--short", action="store_true", help="run few batches, only to see that everything runs")
    parser.add_argument("--run", nargs=2, metavar=("WHAT", "MODEL"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    tensors, batches, values = (5, 4, 4096) if arguments.short else (50, 100, 1 << 16)
    if arguments.run:
        what, path = arguments.run
        print(json.dumps(calibrate(what, pathlib.Path(path), batches, values)))
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "model.onnx")
        make_model(path, tensors, values)
        found = {}
        for what in ("inference", "qatcore", "ORT"):
            command = [sys.executable, "-m", "bench.calibrators", "--run", what, str(path)]
            command += ["--short"] if arguments.short else []
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            found[what] = json.loads(done.stdout.splitlines()[-1])
    # Both clip normal data near its ends.  bench.ranges measures how good the clips are.
    for name, clip in found["qatcore"]["clips"].items():
        if not 0.3 < clip / found["ORT"]["clips"][name] < 3:
            print(f"{name}: expected similar clips, got {clip} and {found['ORT']['clips'][name]}", file=sys.stderr)
            return 1
    bare, ours, theirs = (found[what] for what in ("inference", "qatcore", "ORT"))
    print(f"{tensors} tensors, {batches} batches of {values:,} float32, one thread\n")
    print("| | seconds | peak memory | beyond inference alone |\n|---|---:|---:|---:|")
    for name, run in (("inference alone", bare), ("with qatcore, KL", ours), ("ONNX Runtime, entropy", theirs)):
        beyond = "" if run is bare else f"{run['memory'] - bare['memory']:.1f} MiB"
        print(f"| {name} | {run['seconds']:.2f} | {run['memory']:.1f} MiB | {beyond} |")
    saved = (theirs["memory"] - bare["memory"]) / max(ours["memory"] - bare["memory"], 0.1)
    print(f"\nqatcore takes 1/{theirs['seconds'] / ours['seconds']:.1f} of the time and 1/{saved:.0f} of the memory.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
