"""Where ONNX Runtime is faster on codes, and where in float: the rules of placement come from these tables.

``python -m bench.placement`` times single nodes on one thread: convolutions of many shapes, and what lies between them.
The times are those of ONNX Runtime's profiler, so conversions at the ends of the models are not counted.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

RUNS = 15


@dataclass(frozen=True)
class Shape:
    """A convolution: what it reads and makes, the sizes of image and kernel, groups and stride."""

    inputs: int
    outputs: int
    size: tuple[int, int]
    kernel: tuple[int, int]
    groups: int = 1
    stride: int = 1

    def __str__(self) -> str:
        kind = "depthwise" if self.groups > 1 else f"{self.inputs} to {self.outputs}"
        kind = f"{kind}, {self.inputs} channels" if self.groups > 1 else f"{kind} channels"
        return f"{kind}, kernel {self.kernel[0]} x {self.kernel[1]}, stride {self.stride}"


SHAPES = {
    "few channels": [Shape(n, 16, (96, 96), (3, 3)) for n in (1, 2, 3, 4, 8, 16)]
    + [Shape(n, 64, (96, 96), (7, 7), stride=2) for n in (1, 2, 3, 4, 8)]
    + [Shape(n, 32, (1, 20_000), (1, 16)) for n in (1, 2, 3, 4, 8)],
    "depthwise": [Shape(n, n, (56, 56), (k, k), n) for k in (3, 5) for n in (8, 16, 24, 28, 32, 72, 80, 200, 208)],
    "others": [Shape(n, n, (28, 28), (k, k)) for k in (1, 3) for n in (16, 32, 64, 128, 256)],
}
#: Nodes between convolutions: attributes, and how many tensors they read.
BETWEEN: dict[str, tuple[int, dict[str, Any]]] = {
    "Add": (2, {}),
    "Mul": (2, {}),
    "Sigmoid": (1, {}),
    "LeakyRelu": (1, {"alpha": 0.1}),
    "Concat": (2, {"axis": 1}),
    "GlobalAveragePool": (1, {}),
    "AveragePool": (1, {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "Transpose": (1, {"perm": [0, 2, 3, 1]}),
}


def model(node: onnx.NodeProto, weight: np.ndarray | None, size: tuple[int, ...], *, codes: bool) -> bytes:
    """Return a model of one node, whose inputs and outputs are floats; it has codes around the node if asked for."""
    nodes, constants = list[onnx.NodeProto](), dict[str, np.ndarray]()
    constants |= {"scale": np.float32(0.02), "zero": np.uint8(120)} if codes else {}
    given = [name for name in node.input if name != "w"]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, size) for name in given]
    if codes:
        for name in given:
            nodes.append(helper.make_node("QuantizeLinear", [name, "scale", "zero"], [f"{name}_codes"]))
            nodes.append(helper.make_node("DequantizeLinear", [f"{name}_codes", "scale", "zero"], [f"{name}_values"]))
    if weight is not None:
        constants["w"] = weight if codes else weight.astype(np.float32)
        if codes:
            constants |= {"steps": np.full(len(weight), 0.01, np.float32), "zeros": np.zeros(len(weight), np.int8)}
            nodes.append(helper.make_node("DequantizeLinear", ["w", "steps", "zeros"], ["w_values"], axis=0))
    read = [f"{name}_values" if codes else name for name in node.input]
    made = onnx.NodeProto.FromString(node.SerializeToString())
    del made.input[:], made.output[:]
    made.input.extend(read)
    made.output.append("made" if codes else "y")
    nodes.append(made)
    if codes:
        nodes.append(helper.make_node("QuantizeLinear", ["made", "scale", "zero"], ["y_codes"]))
        nodes.append(helper.make_node("DequantizeLinear", ["y_codes", "scale", "zero"], ["y"]))
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)]
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(nodes, "placement", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


def microseconds(content: bytes, batch: dict[str, np.ndarray], operator: str) -> float:
    """Return the median time of a run of the nodes of an operator, on codes or not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level, options.enable_profiling = 1, 4, True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder, "profile"))
        session = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])
        for _ in range(RUNS):
            session.run(None, batch)
        events = json.loads(Path(session.end_profiling()).read_text())
    times = [
        event["dur"]
        for event in events
        if event.get("cat") == "Node"
        and event["name"].endswith("_kernel_time")
        and operator in event["args"]["op_name"]
    ]
    return statistics.median(times)


def rows(part: str) -> Iterator[tuple[str, float, float]]:
    """Yield what each row is about, and the microseconds in float and on codes."""
    rng = np.random.default_rng(0)
    if part == "between":
        size = (1, 64, 56, 56)
        for operator, (n, attributes) in BETWEEN.items():
            names = [f"x{i}" for i in range(n)]
            batch = {name: rng.standard_normal(size).astype(np.float32) for name in names}
            node = helper.make_node(operator, names, ["y"], **attributes)
            times = [microseconds(model(node, None, size, codes=codes), batch, operator) for codes in (False, True)]
            yield operator, times[0], times[1]
        return
    for shape in SHAPES[part]:
        weight = rng.integers(-100, 100, (shape.outputs, shape.inputs // shape.groups, *shape.kernel)).astype(np.int8)
        size = (1, shape.inputs, *shape.size)
        batch = {"x": rng.standard_normal(size).astype(np.float32)}
        pads = [k // 2 for k in shape.kernel] * 2
        node = helper.make_node(
            "Conv", ["x", "w"], ["y"], group=shape.groups, pads=pads, strides=[min(shape.stride, n) for n in shape.size]
        )
        times = [microseconds(model(node, weight, size, codes=codes), batch, "Conv") for codes in (False, True)]
        yield str(shape), times[0], times[1]


def main() -> None:
    parts = [*SHAPES, "between"]
    parser = argparse.ArgumentParser("python -m bench.placement", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", default=parts, metavar="PART", help=f"of {', '.join(parts)}")
    for part in parser.parse_args().parts:
        print(f"\n### {part}\n\n| | float, µs | codes, µs | codes are so many times as fast |\n|---|---:|---:|---:|")
        for what, before, after in rows(part):
            print(f"| {what} | {before:.0f} | {after:.0f} | {before / after:.2f} |", flush=True)


if __name__ == "__main__":
    main()
