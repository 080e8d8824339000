"""Biases corrected for what codes do to the mean of each channel."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto

from .data import Batch
from .graph import Graph, all_names, attribute, drop_unread, names_within, subgraphs, unused_name
from .session import Tap, named_run, session_of

#: Bytes that the tensors of all batches may take at one point of the model.
MOST_BYTES = 2**29


@dataclass(frozen=True, eq=False)
class _Place:
    """Where the bias of a node is added, by itself or by what follows it, and to which axis of its output."""

    node: str
    adder: str
    position: int
    output: str
    axis: int
    bias: npt.NDArray[Any]


def with_corrected_biases(
    exact: ModelProto,
    quantize: Callable[[ModelProto], ModelProto],
    nodes: Sequence[NodeProto],
    batches: Sequence[Batch],
    *,
    progress: Callable[[int], None] | None = None,
) -> ModelProto:
    """Return a float model whose biases make up for what quantising does to the mean of each channel.

    One node after the other: the mean, over samples and positions, of what the quantised node makes, before it has
    codes itself and with all biases before it corrected, less that of the float model, is taken from the bias
    (the empirical bias correction of Nagel et al., "Data-Free Quantization Through Weight Equalization and Bias
    Correction", 2019).  An even background, on which all positions are off by the same, is put right by this.

    Of a difference that varies from sample to sample only that part is taken that is not by chance: with the variance
    v of its mean m, 1 - v / m**2 of m, or nothing (Stein's estimator, for each channel).

    Parameters
    ----------
    exact : ModelProto
        A prepared model; it is left as it is.
    quantize : callable
        Makes the quantised model of it, or of one with other biases.
    nodes : sequence of NodeProto
        The nodes of `exact` that are quantised, in the order of the graph.
    batches : sequence of dict
        What to run both models on; only some of them, spread evenly, where more would take too much memory.
    progress : callable, optional
        Told how many nodes are done.
    """
    index = Graph(exact)
    places = [place for node in nodes if (place := _place(node, index)) is not None]
    if not places:
        return exact
    quantized = quantize(_with_biases(exact, {place: place.bias for place in places}))
    stored = _StoredBiases(quantized)
    tap = Tap(exact, [place.output for place in places])
    expected = [{p.output: _means(values[p.output], p.axis) for p in places} for values in map(tap.values, batches)]
    samples = list(zip([dict(batch) for batch in batches], expected, strict=True))
    biases = {}
    for place, part in zip(places, _parts(quantized, places), strict=True):
        part.advance(samples[0][0])
        while len(samples) > 1 and len(samples) * _bytes(samples[0][0]) > MOST_BYTES:
            samples = samples[::2]
        for state, _ in samples[1:]:
            part.advance(state)
        errors = [_means(state[place.output], place.axis) - means[place.output] for state, means in samples]
        biases[place] = _less(place.bias, _certain_part(np.concatenate(errors)))
        # What the node makes with this bias need not be computed again.
        more = stored.rounded(place, biases[place]) - stored.rounded(place, place.bias)
        for state, _ in samples:
            value = state[place.output]
            value += more.reshape([-1 if axis == place.axis % value.ndim else 1 for axis in range(value.ndim)])
        if progress is not None:
            progress(len(biases))
    if progress is not None:
        progress(len(nodes))
    return _with_biases(exact, {place: bias for place, bias in biases.items() if bias.any() or place.bias.any()})


def _bytes(state: dict[str, Any]) -> int:
    return sum(getattr(value, "nbytes", 0) for value in state.values())


def _place(node: NodeProto, index: Graph) -> _Place | None:
    """Return where a node's bias is, or can be put; None if nowhere."""
    weight = index.constants[node.input[1]]
    output, of_channels = node.output[0], 1
    if node.op_type == "MatMul":
        adder, of_channels = index.only_reader(output), -1
        if adder is None or adder.op_type != "Add" or adder.domain != "" or len(weight.dims) < 2:
            return None
        position = 1 if adder.input[0] == output else 0
        bias = index.value_of(adder.input[position])
        if bias is None or bias.size != weight.dims[-1] or bias.shape[-1:] != (bias.size,):
            return None
        return _Place(node.name, adder.name, position, output, of_channels, bias)
    if node.op_type == "ConvTranspose":
        channels = weight.dims[1] * attribute(node, "group", 1)
    elif node.op_type == "Gemm":
        channels = weight.dims[0 if attribute(node, "transB", 0) else 1]
    else:
        channels = weight.dims[0]
    if len(node.input) < 3 or not node.input[2]:
        kind = onnx.helper.tensor_dtype_to_np_dtype(weight.data_type)
        return _Place(node.name, node.name, 2, output, of_channels, np.zeros(channels, kind))
    bias = index.value_of(node.input[2])
    if bias is None or bias.shape != (channels,) or attribute(node, "beta", 1.0) != 1.0:
        return None
    return _Place(node.name, node.name, 2, output, of_channels, bias)


class _Part:
    """The part of a model from one place to the next: nodes, and the tensors that are read further on."""

    def __init__(self, model: ModelProto, nodes: list[NodeProto], kept: set[str]) -> None:
        self._model, self._nodes, self._kept = model, nodes, kept
        self._made = [name for node in nodes for name in node.output if name in kept]
        self._session: Any = None

    def advance(self, state: dict[str, Any]) -> None:
        """Replace tensors by those that are made of them; others that are not read any more are dropped."""
        if self._session is None:
            self._session = self._opened(state)
        state.update(named_run(self._session, self._made, state))
        for name in [name for name in state if name not in self._kept]:
            del state[name]

    def _opened(self, state: dict[str, Any]) -> Any:
        """Return a session; of which type its inputs are is known only now."""
        part = ModelProto(ir_version=self._model.ir_version, opset_import=self._model.opset_import)
        part.graph.name = "part"
        part.graph.node.extend(self._nodes)
        read = names_within(part.graph)
        part.graph.initializer.extend(tensor for tensor in self._model.graph.initializer if tensor.name in read)
        part.graph.input.extend(
            onnx.helper.make_value_info(name, _type_of(value)) for name, value in state.items() if name in read
        )
        part.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._made)
        return session_of(part)


def _parts(model: ModelProto, places: list[_Place]) -> Iterator[_Part]:
    """Yield the parts of a model that end at each place."""
    index = Graph(model)
    nodes = [node for node in model.graph.node if not _is_constant(node, index)]
    constants = {name: node for node in model.graph.node if _is_constant(node, index) for name in node.output}
    cuts = {place.output for place in places}
    last_read = {name: n for n, node in enumerate(nodes) for name in _read_by(node) if name not in constants}
    start = 0
    for stop, node in enumerate(nodes, start=1):
        if not cuts & set(node.output):
            continue
        chosen = nodes[start:stop]
        needed = dict.fromkeys(name for each in chosen for name in _read_by(each) if name in constants)
        kept = {name for name, n in last_read.items() if n >= stop} | set(node.output)
        yield _Part(model, [*(constants[name] for name in needed), *chosen], kept)
        start = stop


def _is_constant(node: NodeProto, index: Graph) -> bool:
    """Return whether a node only says what codes of weights stand for: it is repeated where it is needed."""
    return node.op_type == "DequantizeLinear" and all(name in index.constants for name in node.input if name)


def _read_by(node: NodeProto) -> set[str]:
    """Return what a node reads, and perhaps more names if there are graphs inside of it."""
    names = set(node.input)
    for inner in subgraphs(node):
        names |= names_within(inner)
    return names


def _type_of(value: Any) -> onnx.TypeProto:
    """Return the type of a tensor, or of a sequence of tensors."""
    if isinstance(value, list):
        element = _type_of(value[0] if value else np.empty(0, np.float32))
        return onnx.helper.make_sequence_type_proto(element)
    kind = onnx.TensorProto.STRING if value.dtype.kind in "OSU" else onnx.helper.np_dtype_to_tensor_dtype(value.dtype)
    return onnx.helper.make_tensor_type_proto(kind, None)


class _StoredBiases:
    """The biases of a quantised model, which may be codes."""

    def __init__(self, model: ModelProto) -> None:
        self._index, self._nodes = Graph(model), {node.name: node for node in model.graph.node}

    def rounded(self, place: _Place, bias: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return what is stored of a bias."""
        maker = self._index.makers.get(self._nodes[place.adder].input[place.position])
        if maker is None:
            return bias
        scale = self._index.value_of(maker.input[1])
        assert scale is not None
        values: npt.NDArray[Any] = (np.rint(bias.astype(np.float64) / scale) * scale).astype(bias.dtype)
        return values


def _with_biases(model: ModelProto, biases: dict[_Place, npt.NDArray[Any]]) -> ModelProto:
    """Return a model with other biases."""
    result = ModelProto()
    result.CopyFrom(model)
    taken = all_names(result)
    nodes = {node.name: node for node in result.graph.node}
    for place, bias in biases.items():
        adder, name = nodes[place.adder], unused_name(f"{place.node}_bias", taken)
        adder.input.extend([""] * (place.position + 1 - len(adder.input)))
        adder.input[place.position] = name
        result.graph.initializer.append(onnx.numpy_helper.from_array(bias, name))
    drop_unread(result)
    return result


def _means(values: npt.NDArray[Any], axis: int) -> npt.NDArray[np.float64]:
    """Return the means over positions, of each sample and channel."""
    last = np.moveaxis(values, axis, -1)
    rows = last.reshape(last.shape[0] if last.ndim > 1 else 1, -1, last.shape[-1])
    means: npt.NDArray[np.float64] = rows.mean(axis=1, dtype=np.float64)
    return means


def _certain_part(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return for each channel the mean over samples, less what it may be by chance."""
    n, channels = errors.shape
    if n < 2:
        return np.zeros(channels)
    mean, variance = errors.mean(axis=0), errors.var(axis=0, ddof=1) / n
    with np.errstate(all="ignore"):
        part = np.maximum(1.0 - variance / mean**2, 0.0) * mean
    return np.where(np.isfinite(part), part, 0.0)


def _less(bias: npt.NDArray[Any], error: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Return a bias from which errors are taken, where its type can hold that."""
    with np.errstate(over="ignore"):
        result = (bias - error.reshape(bias.shape)).astype(bias.dtype)
    return np.where(np.isfinite(result), result, bias)
