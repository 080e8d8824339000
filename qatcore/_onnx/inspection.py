"""Tables of what a calibration or a model holds."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime

from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.formats import as_code_format
from .._base.scale import Target
from .._base.threads import for_each
from .._base.types import PathLike
from .._calibration.calibrate import choose_scale, load_calibration
from .already_quantised import Quantised, computes_on_codes, told
from .description import description
from .display import counted, figure
from .graph import array_of, dtype_of, input_of, is_a, is_constant, names_of, opset_of, readers_of, shape_of
from .kernels import CODES, CONVERSION, FLOATS, kernels_of
from .plan import OPERATORS, plan
from .prepare import prepared
from .ranges import PERCENTILE
from .rewriting import tensor_of_codes

#: The types of constants that are no weights in codes: those of biases, and of what is no code.
_NO_WEIGHTS = frozenset({ir.DataType.INT32, ir.DataType.INT64, ir.DataType.BOOL})


@dataclass(frozen=True)
class Rows:
    """A table: its key in JSON, its title, the keys and the headings of its columns, and its rows."""

    name: str
    title: str
    keys: tuple[str, ...]
    headings: tuple[str, ...]
    rows: list[tuple[Any, ...]]

    @property
    def columns(self) -> list[tuple[str, str]]:
        """The heading and the kind of each column: "name", "left" for text, or "right" for numbers."""

        def kind(i: int) -> str:
            if self.keys[i] in {"tensor", "node", "input", "output"}:
                return "name"
            return "left" if any(isinstance(row[i], str) for row in self.rows) else "right"

        return [(heading, kind(i)) for i, heading in enumerate(self.headings)]

    def cells(self) -> Iterator[list[str]]:
        """Yield the rows as text."""
        for row in self.rows:
            yield [_written(value) for value in row]


def calibration_rows(path: PathLike) -> list[Rows]:
    """Return the tensors of a calibration, their ranges, and the SQNR that each method promises at int8."""
    collectors = load_calibration(path)
    methods = (CalibMethod.MIN_MAX, CalibMethod.PERCENTILE, CalibMethod.KL, CalibMethod.MSE)
    sqnr: dict[str, dict[str, float]] = {}

    def promise(name: str) -> None:
        collector, promised = collectors[name], {}
        for method in methods:
            scale, zero_point, _ = choose_scale(collector, method, Target(include_zero=True))
            promised[method.value] = float(np.mean(collector.sqnr(scale, zero_point)))
        sqnr[name] = promised

    for_each(list(collectors), promise)
    rows = []
    for name, collector in collectors.items():
        n = int(np.sum(collector.n_elements))
        low = float(np.min(collector.min_val, initial=math.inf))
        high = float(np.max(collector.max_val, initial=-math.inf))
        best = max(sqnr[name], key=sqnr[name].__getitem__)
        rows.append((name, n, int(collector.n_observed) - n, low, high, *sqnr[name].values(), best))
    names = tuple(method.value for method in methods)
    return [
        Rows(
            "tensors",
            f"{counted(len(rows), 'tensor')}; SQNR in dB at uint8 or int8, percentile {PERCENTILE:g}",
            ("tensor", "values", "not_finite", "least", "greatest", *names, "best"),
            ("tensor", "values", "not finite", "least", "greatest", *names, "best"),
            rows,
        )
    ]


def model_rows(model: ir.Model) -> list[Rows]:
    """Return the tensors and nodes with codes of a quantised model, or the nodes of a float model to quantise.

    Raises
    ------
    InvalidArgumentError
        If the model is not quantised, and has nothing that can be.
    """
    about, found = description(model), Quantised.of(model)
    computing = [node for node in found.nodes if computes_on_codes(node)]
    activations: list[tuple[Any, ...]] = []
    weights: list[tuple[Any, ...]] = []
    for node in model.graph:
        if is_a(node, {"QuantizeLinear"}) and is_constant(node.inputs[1]):
            activations.append(_activation(node, about.get("tensors", {})))
        weights += _weights(node, about.get("nodes", {}))
    tables = [
        Rows(
            "activations",
            f"{counted(len(activations), 'tensor')} with codes",
            ("tensor", "codes", "least", "greatest", "scale", "zero_point", "method", "sqnr"),
            ("tensor", "codes", "least", "greatest", "scale", "zero point", "method", "SQNR dB"),
            activations,
        ),
        Rows(
            "weights",
            f"{counted(len(weights), 'weight')} with codes",
            ("node", "op", "codes", "shape", "scales", "sqnr"),
            ("node", "operator", "codes", "shape", "scales", "SQNR dB"),
            weights,
        ),
        Rows(
            "operators",
            f"{counted(len(computing), 'node')} that compute on codes: {told(computing)}",
            ("node", "op", "codes", "shape"),
            ("node", "operator", "codes", "shape"),
            [_operator(node) for node in computing],
        ),
    ]
    tables = [table for table in tables if table.rows]
    return tables if found.is_inside or about else [*tables, _quantisable_rows(model)]


def runtime_rows(model: ir.Model) -> list[Rows]:
    """Return the kernels that ONNX Runtime runs for a model, as a table.

    Raises
    ------
    InvalidArgumentError
        If the model is too large to examine.
    """
    kernels = kernels_of(model)
    if kernels is None:
        raise InvalidArgumentError("model: it has more than 1 GiB of weights; --runtime is for smaller ones")
    nodes = {str(node.name) for node in model.graph}  # others only change the layout of tensors
    found = Counter(kernel.computes_on for kernel in kernels if kernel.node in nodes)
    computing = found[CODES] + found[FLOATS]
    title = f"ONNX Runtime {onnxruntime.__version__}: {found[CODES]:,} of {counted(computing, 'node')} on codes"
    rows = [(kernel.node, kernel.kernel, kernel.computes_on, kernel.why) for kernel in kernels]
    keys = ("node", "kernel", "computes_on", "why")
    headings = ("node", "kernel", "on", "why in float")
    return [Rows("kernels", f"{title}, {counted(found[CONVERSION], 'conversion')}", keys, headings, [*rows])]


def _quantisable_rows(model: ir.Model) -> Rows:
    ready = prepared(model)
    rows = list[tuple[Any, ...]]()
    for node in plan(ready, OPERATORS).nodes:
        source, weight = names_of(value for value in node.inputs[:2] if value is not None)
        shape = _shape(shape_of(ready.graph.initializers[weight]))
        rows.append((node.name, node.op_type, shape, source, node.outputs[0].name))
    return Rows(
        "nodes",
        f"{counted(len(rows), 'node')} that can be quantised, opset {opset_of(model)}",
        ("node", "op", "shape", "input", "output"),
        ("node", "operator", "weight", "input", "output"),
        rows,
    )


def _activation(node: ir.Node, about: dict[str, Any]) -> tuple[Any, ...]:
    tensor, scale_value, _ = tensor_of_codes(node)
    name, scale, zero = str(tensor.name), array_of(scale_value), input_of(node, 2)
    zero_point = np.zeros((), np.uint8) if zero is None else array_of(zero)
    if scale is None or zero_point is None:
        raise InvalidArgumentError(f"model: expected a constant scale and zero point of {name}, got others")
    said = about.get(name, {})
    if scale.size != 1:
        return name, str(zero_point.dtype), *(math.nan,) * 3, 0, said.get("method", "-"), _number(said.get("sqnr"))
    one, shift = float(scale.reshape(-1)[0]), float(zero_point.reshape(-1)[0].astype(np.float64))
    least, greatest = as_code_format(zero_point.dtype, "codes").ends
    ends = (least - shift) * one, (greatest - shift) * one
    return name, str(zero_point.dtype), *ends, one, int(shift), said.get("method", "-"), _number(said.get("sqnr"))


def _weights(node: ir.Node, about: dict[str, Any]) -> Iterator[tuple[Any, ...]]:
    """Yield rows of the weights that a node makes from constant codes."""
    codes = input_of(node, 0)
    maker = None if codes is None else codes.producer()
    if is_a(node, {"Mul"}) and maker is not None and is_a(maker, {"Cast"}):
        codes = input_of(maker, 0)
    elif not is_a(node, {"DequantizeLinear"}):
        return
    scale = array_of(node.inputs[1])
    if codes is None or not is_constant(codes) or codes.dtype in _NO_WEIGHTS or scale is None:
        return
    for reader in readers_of(node.outputs[0]):
        said = about.get(str(reader.name), {})
        kind = str(dtype_of(codes))
        yield reader.name, reader.op_type, kind, _shape(shape_of(codes)), int(scale.size), _number(said.get("sqnr"))


def _operator(node: ir.Node) -> tuple[Any, ...]:
    """Return a node that computes on codes, and its weights, if it has any."""
    constants = [value for value in node.inputs if value is not None and is_constant(value)]
    codes = [value for value in constants if shape_of(value) and dtype_of(value).kind != "f"]
    if not codes:
        return node.name, node.op_type, "-", "-"
    largest = max(codes, key=lambda value: math.prod(shape_of(value)))
    return node.name, node.op_type, str(dtype_of(largest)), _shape(shape_of(largest))


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float)) else math.nan


def _shape(dims: Any) -> str:
    return " x ".join(map(str, dims))


def _written(value: Any) -> str:
    if isinstance(value, float):
        return figure(value, ".4g")
    return f"{value:,}" if isinstance(value, int) else str(value)
