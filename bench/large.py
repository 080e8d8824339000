"""Large ONNX models: seconds and memory of quantising them.

``python -m bench.large`` makes the models, quantises each in a process of its own, and prints a table with the bars.
It needs ``pip install 'qatcore[onnx]'``, 3.3 GB of disk for the models and as much for the results; ``--half`` adds a
model of 12 GiB.  ``python -m bench.large int4 static`` does only these rows.

Memory is RssAnon, in MiB: what a process has allocated, without the pages of files, which the system can take back.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: The large model: blocks of two products, with a residual connection around them.
WIDE, NARROW, BLOCKS = 8192, 2048, 24
#: The mid-sized one, of 151 MB.
SMALLER = (3072, 768, 8)
SAMPLES = 64
#: The stages of the network for images: how much a block widens, its channels, how many blocks, stride and kernel.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
SIDE, CLASSES, IMAGES = 224, 400, 40
MIB = 2**20
_ALIGNED = 4096


@dataclass(frozen=True)
class Work:
    """A row: what is done to which model, and the bars in seconds and MiB, if they are fixed."""

    model: str
    what: str
    options: tuple[str, ...]
    seconds: float | None = None
    memory: float | None = None


WORK = {
    "int4": Work("large", "int4, groups of 32, weights alone", ("--weights", "int4", "--activations", "none"), 40, 700),
    "int8": Work("large", "int8 per channel, weights alone", ("--activations", "none"), 40, 700),
    "static": Work("large", f"static int8 on {SAMPLES} samples", ("--no-bias-correction",)),
    "middle": Work("middle", f"static int8 on {SAMPLES} samples", ()),
    "network": Work("network", f"static int8 on {IMAGES} images, everything on", (), 6),
    "half": Work(
        "half", "int4, groups of 32, weights alone", ("--weights", "int4", "--activations", "none"), None, 700
    ),
    "nodes": Work("nodes", "int8, 200 nodes with small weights, after imports", ("--activations", "none"), 0.5),
}


def make(folder: Path, name: str) -> Path:
    """Write a model and its weights into a folder, if they are not there, and return its path."""
    path = folder / name / "model.onnx"
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    if name == "nodes":
        write(path, 16, 16, 100, np.dtype(np.float32))
    elif name == "network":
        write_network(path)
    elif name == "middle":
        wide, narrow, blocks = SMALLER
        write(path, wide, narrow, blocks, np.dtype(np.float32))
    else:
        half = name == "half"
        write(path, WIDE, NARROW, BLOCKS * (8 if half else 1), np.dtype(np.float16 if half else np.float32))
    return path


def write(path: Path, wide: int, narrow: int, blocks: int, dtype: np.dtype[Any]) -> None:
    """Write a model of blocks: a product that widens, a Relu, a product that narrows, and the sum with the input."""
    import onnx
    from onnx import TensorProto, helper

    kind = helper.np_dtype_to_tensor_dtype(dtype)
    nodes, weights, before = [], [], "x"
    rng = np.random.default_rng(0)
    noise = (rng.standard_normal(1 << 22) * 0.02).astype(dtype)
    with open(path.with_name("model.data"), "wb") as data:
        for block in range(blocks):
            for side, shape in (("up", (narrow, wide)), ("down", (wide, narrow))):
                name, size = f"{side}_{block}", wide * narrow
                tensor = TensorProto(name=name, data_type=kind, dims=shape, data_location=TensorProto.EXTERNAL)
                data.seek(-(-data.tell() // _ALIGNED) * _ALIGNED)
                places = {"location": "model.data", "offset": data.tell(), "length": size * dtype.itemsize}
                for key, value in places.items():
                    tensor.external_data.add(key=key, value=str(value))
                weights.append(tensor)
                # Every weight begins somewhere else in the noise, so that no two are equal.
                rest, start = size, int(rng.integers(noise.size))
                while rest:
                    part = noise[start : start + rest]
                    data.write(part.tobytes())
                    rest, start = rest - part.size, 0
            nodes += [
                helper.make_node("MatMul", [before, f"up_{block}"], [f"u{block}"], f"product_up_{block}"),
                helper.make_node("Relu", [f"u{block}"], [f"r{block}"], f"relu_{block}"),
                helper.make_node("MatMul", [f"r{block}", f"down_{block}"], [f"d{block}"], f"product_down_{block}"),
                helper.make_node("Add", [before, f"d{block}"], [f"s{block}"], f"sum_{block}"),
            ]
            before = f"s{block}"
    inputs = [helper.make_tensor_value_info("x", kind, ["N", narrow])]
    outputs = [helper.make_tensor_value_info(before, kind, ["N", narrow])]
    graph = helper.make_graph(nodes, "large", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", 19 if dtype == np.float16 else 17)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)


def write_network(path: Path) -> None:
    """Write a network for images like EfficientNet-B0: inverted residuals with squeeze-and-excitation and swish."""
    import onnx
    from onnx import helper, numpy_helper

    rng = np.random.default_rng(0)
    nodes, weights = list[onnx.NodeProto](), list[onnx.TensorProto]()

    def node(operator: str, inputs: list[str], **attributes: Any) -> str:
        name = f"{operator}_{len(nodes)}"
        nodes.append(helper.make_node(operator, inputs, [f"{name}_out"], name, **attributes))
        return f"{name}_out"

    def constant(array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array.astype(np.float32), f"weight_{len(weights)}"))
        return str(weights[-1].name)

    def convolved(x: str, channels: tuple[int, int], kernel: int = 1, stride: int = 1, group: int = 1) -> str:
        before, after = channels
        spread = (2.0 / (before // group * kernel**2)) ** 0.5
        weight = constant(rng.standard_normal((after, before // group, kernel, kernel)) * spread)
        bias = constant(rng.standard_normal(after) * 0.1)
        pads = [kernel // 2] * 4
        return node("Conv", [x, weight, bias], pads=pads, strides=[stride] * 2, group=group)

    def swish(x: str) -> str:
        return node("Mul", [x, node("Sigmoid", [x])])

    x, n = swish(convolved("x", (3, 32), 3, 2)), 32
    for expand, channels, repeats, stride, kernel in STAGES:
        for i in range(repeats):
            wide, source = n * expand, x
            x = swish(convolved(x, (n, wide))) if expand > 1 else x
            x = swish(convolved(x, (wide, wide), kernel, stride if i == 0 else 1, wide))
            squeezed = swish(convolved(node("GlobalAveragePool", [x]), (wide, max(n // 4, 1))))
            x = node("Mul", [x, node("Sigmoid", [convolved(squeezed, (max(n // 4, 1), wide))])])
            x = convolved(x, (wide, channels))
            x = node("Add", [source, x]) if i else x
            n = channels
    x = node("Flatten", [node("GlobalAveragePool", [swish(convolved(x, (n, 1280)))])])
    matrix, row = constant(rng.standard_normal((1280, CLASSES)) / 36), constant(np.zeros(CLASSES))
    nodes.append(helper.make_node("Gemm", [x, matrix, row], ["y"], "classes"))
    inputs = [helper.make_tensor_value_info("x", 1, ["N", 3, SIDE, SIDE])]
    outputs = [helper.make_tensor_value_info("y", 1, ["N", CLASSES])]
    graph = helper.make_graph(nodes, "network", inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def samples(model: str) -> np.ndarray:
    """Return the inputs to calibrate with."""
    if model == "network":
        return np.random.default_rng(1).standard_normal((IMAGES, 3, SIDE, SIDE)).astype(np.float32)
    width = {"large": NARROW, "middle": SMALLER[1]}[model]
    return np.random.default_rng(1).standard_normal((SAMPLES, width)).astype(np.float32)


def quantise(work: Work, path: Path, output: Path) -> None:
    """Do a row's work, as the command does it."""
    import qatcore.onnx  # noqa: F401 (so that importing it is not timed)
    from qatcore._cli.command import main as command

    arguments = ["quantize", str(path), "-o", str(output), "--quiet", *work.options]
    if "none" not in work.options:
        np.save(output.with_name("data.npy"), samples(work.model))
        arguments += ["--data", str(output.with_name("data.npy"))]
        arguments += [] if work.model == "network" else ["--no-check"]
    start = time.perf_counter()
    if code := command(arguments):
        sys.exit(code)
    print(time.perf_counter() - start)


def run_in_float(work: Work, path: Path, _: Path) -> None:
    """Run the samples in ONNX Runtime, as calibrating has to: in batches of 8."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = samples(work.model)
    for batch in np.split(inputs, len(inputs) // 8):
        session.run(None, {"x": batch})


def round_to_nearest(_: Work, path: Path, output: Path) -> None:
    """Let ONNX Runtime's tool quantise the weights to int4: it rounds to nearest."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tool = MatMulNBitsQuantizer(onnx.load(path), block_size=32, is_symmetric=True)
    tool.process()
    tool.model.save_model_to_file(str(output), use_external_data_format=True)


DOES: dict[str, Callable[[Work, Path, Path], None]] = {
    "qatcore": quantise,
    "ONNX Runtime: float": run_in_float,
    "ONNX Runtime: MatMulNBitsQuantizer": round_to_nearest,
}


def measured(row: str, who: str, path: Path) -> dict[str, Any]:
    """Return the seconds and the peak of RssAnon of a process that does some work, or how it failed."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        command = [sys.executable, "-m", "bench.large", "--does", row, who, str(path), folder]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        start, peak = time.perf_counter(), 0
        while process.poll() is None:
            peak = max(peak, anonymous(process.pid))
            time.sleep(0.01)
        seconds = time.perf_counter() - start
        assert process.stderr is not None and process.stdout is not None
        if row == "nodes":  # starting Python takes longer than the work
            seconds = float(process.stdout.read().split()[-1])
        said = process.stderr.read().strip().splitlines()
        if process.returncode:
            return {"failed": said[-1] if said else f"exit code {process.returncode}"}
        written = sum(file.stat().st_size for file in Path(folder).iterdir())
    return {"seconds": seconds, "memory": peak / 1024, "bytes": written}


def anonymous(pid: int) -> int:
    """Return the RssAnon of a process in KiB; 0 once it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("RssAnon")), 0)


def rows(names: Sequence[str], folder: Path) -> Iterator[tuple[Work, str, dict[str, Any]]]:
    """Yield each row, whose work it is, and what was measured."""
    for name in names:
        work = WORK[name]
        path = make(folder, work.model)
        who = ["qatcore"]
        if "none" not in work.options:
            who.append("ONNX Runtime: float")
        elif name == "int4":
            who.append("ONNX Runtime: MatMulNBitsQuantizer")
        for each in who:
            yield work, each, measured(name, each, path)


def cells(found: dict[str, Any], work: Work) -> list[str]:
    """Return the cells of a row, with the bars behind what was measured."""
    if "failed" in found:
        return [f"fails: {found['failed']}", "", ""]
    bars = [f" (bar {bar:g})" if bar else "" for bar in (work.seconds, work.memory)]
    return [f"{found['seconds']:.1f}{bars[0]}", f"{found['memory']:,.0f}{bars[1]}", f"{found['bytes'] / MIB:,.0f}"]


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m bench.large", description="Time and memory of large ONNX models.")
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"some of {', '.join(WORK)}; by default all but half")
    parser.add_argument("--folder", type=Path, help="where the models are kept; a temporary folder by default")
    parser.add_argument("--half", action="store_true", help="add the row half, whose model takes 12 GiB of disk")
    parser.add_argument("--json", type=Path, help="also write what was measured to a file")
    parser.add_argument("--does", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args(argv)
    if arguments.does:
        row, who, path, folder = arguments.does
        DOES[who](WORK[row], Path(path), Path(folder, "quantised.onnx"))
        return
    unknown = [row for row in arguments.rows if row not in WORK]
    if unknown:
        parser.error(f"no row {unknown[0]}; rows are {', '.join(WORK)}")
    names = arguments.rows or [name for name in WORK if name != "half" or arguments.half]
    stored = []
    with tempfile.TemporaryDirectory() as temporary:
        print("| model | work | whose | seconds | RssAnon, MiB | written, MiB |\n|---|---|---|---:|---:|---:|")
        for work, who, found in rows(names, arguments.folder or Path(temporary)):
            print(f"| {work.model} | {work.what} | {who} | {' | '.join(cells(found, work))} |", flush=True)
            stored.append({"model": work.model, "work": work.what, "whose": who, **found})
    if arguments.json:
        arguments.json.write_text(json.dumps(stored, indent=1) + "\n")


if __name__ == "__main__":
    main()
