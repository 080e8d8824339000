"""Correct biases and the scales of weights for what quantisation does to the mean and the size of each channel."""

from __future__ import annotations

import math
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .._base.errors import InvalidArgumentError
from .data import Batch, InputSpec
from .graph import (
    add_initializer,
    all_names,
    array_of,
    copied,
    drop_unread,
    input_of,
    is_a,
    names_of,
    read_by,
    set_input,
    unused_name,
)
from .plan import Bias, bias_of
from .session import Tap, named_run, session_of

#: The most bytes of tensors that go from one part of the model to the next.  If there would be more, batches are left
#: out, as long as at least this many samples are left.
MOST_BYTES, LEAST_SAMPLES = 2**29, 8
#: Gains are computed from at most so many positions of a sample, spread evenly.
POSITIONS = 128
#: Limits of gains: greater changes mean that a channel is lost, and no gain brings it back.
LEAST_GAIN, MOST_GAIN = 0.9, 1.15
#: A channel whose variance is a smaller part of its power is constant, but for rounding.
_CONSTANT = 1e-9


@dataclass(frozen=True, eq=False)
class _Place:
    """A node that has a bias or can get one, and the axis of channels in its output."""

    node: ir.Node
    bias: Bias

    @property
    def axis(self) -> int:
        return 1 if self.node.op_type in {"Conv", "ConvTranspose"} else -1

    @property
    def output(self) -> str:
        return str(self.node.outputs[0].name)


@dataclass(frozen=True, eq=False)
class Correction:
    """What changes at a node: its bias, and the gain of each channel, which multiplies the scale of its weights."""

    bias: npt.NDArray[Any]
    gain: npt.NDArray[np.float64]


class _Channels:
    """What a node makes from a batch: the means of channels, and values at some positions, one row for each sample.

    There is a single row if samples cannot be told apart, and none if there are no values.
    """

    def __init__(self, values: npt.NDArray[Any], axis: int, samples: int) -> None:
        last = np.moveaxis(values, axis, -1)
        rows = (samples if last.ndim > 1 and len(last) % samples == 0 else 1) if last.size else 0
        size = math.prod(last.shape[:-1]) // rows if rows else 0
        last = last.reshape(rows, size, last.shape[-1])
        self.means: npt.NDArray[np.float64] = (
            last.mean(axis=1, dtype=np.float64) if rows else np.empty((0, last.shape[-1]))
        )
        n = min(size, POSITIONS)
        self.values: npt.NDArray[Any] = last[:, np.arange(n) * size // max(n, 1)]


#: What a node makes from a batch in the quantised model, and in the float model.
_Pair = tuple[_Channels, _Channels]


@dataclass
class _Run:
    """A batch on its way through the quantised model: the tensors still needed, and what the float model made."""

    samples: int
    tensors: dict[str, Any]
    expected: dict[str, _Channels]

    def pair(self, place: _Place) -> _Pair:
        """Return what a node makes in the quantised model, and in the float model."""
        return _Channels(self.tensors[place.output], place.axis, self.samples), self.expected[place.output]

    def change(self, place: _Place, gain: npt.NDArray[np.float64], more: npt.NDArray[Any]) -> None:
        """Do to what a node has made what a correction does to each channel: multiply, and add."""
        value = self.tensors[place.output]
        shape = [-1 if axis == place.axis % value.ndim else 1 for axis in range(value.ndim)]
        if (gain != 1.0).any():
            value *= gain.astype(value.dtype).reshape(shape)
        value += more.reshape(shape)

    @property
    def nbytes(self) -> int:
        return sum(getattr(value, "nbytes", 0) for value in self.tensors.values())


def corrections(
    exact: ir.Model,
    quantize: Callable[[ir.Model], ir.Model],
    nodes: Sequence[ir.Node],
    batches: Sequence[Batch],
    *,
    with_gains: Container[str] = (),
    progress: Callable[[int], None] | None = None,
) -> dict[str, Correction]:
    """Return what undoes the error that quantisation adds to the mean and the size of each channel, by nodes' names.

    Nodes are corrected one after the other.  What a node makes is measured before it gets codes, with all earlier nodes
    corrected.

    The error of a channel is its mean over samples and positions in the quantised model, less the same mean in the
    float model.  It is subtracted from the bias.  This is the empirical bias correction of Nagel et al., "Data-Free
    Quantization Through Weight Equalization and Bias Correction", 2019.  It also corrects an even background, where all
    positions have the same error.

    Before that, the channel gets the gain that brings it nearest to the float model's by least squares: the covariance
    of both, divided by the variance in the quantised model.  Noise that comes with larger values makes them too large
    on average, and the gain takes that back.

    If an error or a gain varies between samples, only the part that is not chance is corrected.  With the mean m and
    the variance v of that mean, this part is max(0, 1 - v / m**2) * m.

    Parameters
    ----------
    exact : onnx_ir.Model
        A prepared model.  It is not changed.
    quantize : callable
        Returns the quantised model of `exact`, or of a copy with other biases.
    nodes : sequence of onnx_ir.Node
        The nodes of `exact` that are quantised, in the order of the graph.
    batches : sequence of dict
        The batches to run both models on.  If they take too much memory, only some are used, spread evenly.
    with_gains : container of str
        The names of nodes whose channels may get gains.
    progress : callable, optional
        Called with the number of nodes that are done.
    """
    spec, places = InputSpec(exact), _places(nodes)
    result: dict[str, Correction] = {}
    if places:
        quantized = quantize(with_biases(exact, {str(place.node.name): place.bias.values for place in places}))
        stored = _StoredBiases(quantized)
        runs = _float_runs(exact, places, batches, spec)
        for done, (place, part) in enumerate(zip(places, _parts(quantized, places), strict=True), start=1):
            try:
                runs = _advanced(runs, part)
            except _CannotGoOnError:
                break
            pairs, old = [each.pair(place) for each in runs], place.bias.values
            gain = _certain_gain(pairs) if place.node.name in with_gains else np.ones(old.size)
            # The error was measured with the stored bias, so it includes the rounding of that bias.
            before = stored.rounded(place, old)
            if place.bias.adder is place.node:  # the gain has multiplied the bias
                before = (gain.reshape(before.shape) * before).astype(before.dtype)
            error = _certain_part(_errors(pairs, gain))
            stays = ((error == 0.0) & (gain == 1.0)).reshape(before.shape)
            new = np.where(stays, old, _less(before, error))
            # The node's output need not be computed again: all of a channel changes alike.
            more = _difference(stored.rounded(place, new, gain), before)
            for each in runs:
                each.change(place, gain, more)
            if not np.array_equal(new, old) or (gain != 1.0).any():
                result[str(place.node.name)] = Correction(new, gain)
            if progress is not None:
                progress(done)
    if progress is not None:
        progress(len(nodes))
    return result


def _float_runs(exact: ir.Model, places: list[_Place], batches: Sequence[Batch], spec: InputSpec) -> list[_Run]:
    """Return a run for each batch, with what the float model makes."""
    tap = Tap(exact, [place.output for place in places])
    runs = []
    for batch in batches:
        samples, values = spec.samples_of(batch), tap.values(batch)
        expected = {place.output: _Channels(values[place.output], place.axis, samples) for place in places}
        runs.append(_Run(samples, dict(batch), expected))
        del values
    return runs


def _advanced(runs: list[_Run], part: _Part) -> list[_Run]:
    """Run a part of the model and return the runs, or fewer of them if they take too much memory."""
    part.advance(runs[0].tensors)
    while len(runs) * runs[0].nbytes > MOST_BYTES and sum(each.samples for each in runs[::2]) >= LEAST_SAMPLES:
        runs = runs[::2]
    for each in runs[1:]:
        part.advance(each.tensors)
    return runs


class _CannotGoOnError(Exception):
    """A part of the model cannot run, for example because NumPy lacks the type of one of its inputs."""


class _Part:
    """The part of a model from one place to the next, and the tensors that later parts read.

    Parameters
    ----------
    model : onnx_ir.Model
    nodes : list of onnx_ir.Node
    kept : set of onnx_ir.Value
        What later parts read, or what ends this part.
    """

    def __init__(self, model: ir.Model, nodes: list[ir.Node], kept: set[ir.Value]) -> None:
        self._model, self._nodes, self._kept = model, nodes, {str(value.name) for value in kept}
        self._made = [value for node in nodes for value in node.outputs if value in kept]
        self._session: Any = None

    def advance(self, tensors: dict[str, Any]) -> None:
        """Add the tensors that this part makes, and drop those that no later part reads."""
        try:
            if self._session is None:
                self._session = self._opened(tensors)
            tensors.update(named_run(self._session, names_of(self._made), tensors))
        except (InvalidArgumentError, KeyError, TypeError, ValueError) as error:
            raise _CannotGoOnError from error
        for name in [name for name in tensors if name not in self._kept]:
            del tensors[name]

    def _opened(self, tensors: dict[str, Any]) -> Any:
        """Return a session whose inputs have the types of these tensors; they are not known before."""
        read = dict.fromkeys(value for node in self._nodes for value in read_by(node))
        given = [value for value in read if value.name in tensors]
        constants = [value for value in read if value.is_initializer() and value.name not in tensors]
        imports, nodes = self._model.opset_imports, self._nodes
        part = ir.GraphView(given, self._made, nodes=nodes, initializers=constants, opset_imports=imports, name="part")
        graph = part.clone()
        for value in graph.inputs:
            value.type, value.shape = _type_of(tensors[str(value.name)])
        for value in graph.outputs:
            value.type = value.shape = None
        # Correct the values that the codes stand for, not the results of a runtime's kernels for some CPU.
        return session_of(ir.Model(graph, ir_version=self._model.ir_version), as_written=True)


def _parts(model: ir.Model, places: list[_Place]) -> Iterator[_Part]:
    """Yield the parts of a model.  Each part ends at a place, and has only nodes that some place depends on."""
    cuts = {place.output for place in places}
    needed = {value for node in model.graph for value in node.outputs if value.name in cuts}
    nodes, constants = list[ir.Node](), dict[ir.Value, ir.Node]()
    for node in reversed(model.graph):
        if not needed.isdisjoint(node.outputs):
            needed |= read_by(node)
            if _is_constant(node):  # each part that needs it gets a copy
                constants[node.outputs[0]] = node
            else:
                nodes.append(node)
    nodes.reverse()
    last_read = {value: n for n, node in enumerate(nodes) for value in read_by(node) if value not in constants}
    start = 0
    for stop, node in enumerate(nodes, start=1):
        if any(value.name in cuts for value in node.outputs):
            chosen = nodes[start:stop]
            own = dict.fromkeys(constants[value] for each in chosen for value in read_by(each) if value in constants)
            kept = {value for value, n in last_read.items() if n >= stop} | {node.outputs[0]}
            yield _Part(model, [*own, *chosen], kept)
            start = stop


def _is_constant(node: ir.Node) -> bool:
    """Return whether a node only dequantises constant codes."""
    return is_a(node, {"DequantizeLinear"}) and all(value is None or value.is_initializer() for value in node.inputs)


def _type_of(value: Any) -> tuple[ir.TypeProtocol, ir.Shape | None]:
    """Return the type and the shape of a tensor, or of a sequence of tensors."""
    if isinstance(value, list) and value:
        return ir.SequenceType(_type_of(value[0])[0]), None
    if not isinstance(value, np.ndarray):
        raise _CannotGoOnError
    kind = ir.DataType.STRING if value.dtype.kind in "OSU" else ir.DataType.from_numpy(value.dtype)
    return ir.TensorType(kind), ir.Shape([None] * value.ndim)


class _StoredBiases:
    """The biases of a quantised model, which may be codes."""

    def __init__(self, model: ir.Model) -> None:
        self._nodes = {node.name: node for node in model.graph}

    def rounded(
        self, place: _Place, bias: npt.NDArray[Any], gain: npt.NDArray[np.float64] | None = None
    ) -> npt.NDArray[Any]:
        """Return the bias as the model stores it: rounded, if it has codes, whose scale a gain multiplies."""
        given = input_of(self._nodes[place.bias.adder.name], place.bias.position)
        maker = None if given is None else given.producer()  # no input: a node behind this one adds it in float
        if maker is None:
            return bias
        scale = array_of(maker.inputs[1])
        assert scale is not None
        scale = scale if gain is None else scale * gain.reshape(bias.shape)
        values: npt.NDArray[Any] = (np.rint(bias.astype(np.float64) / scale) * scale).astype(bias.dtype)
        return values


def with_biases(exact: ir.Model, biases: Mapping[str, npt.NDArray[Any]]) -> ir.Model:
    """Return a copy of a model with other biases, by the names of the nodes."""
    result = copied(exact)
    taken = all_names(result)
    for place in _places([node for node in result.graph if node.name in biases]):
        name = unused_name(f"{place.node.name}_bias", taken)
        value = add_initializer(result.graph, name, biases[str(place.node.name)])
        set_input(place.bias.adder, place.bias.position, value)
    drop_unread(result)
    return result


def _places(nodes: Iterable[ir.Node]) -> list[_Place]:
    """Return the nodes that have a bias or can get one."""
    return [_Place(node, bias) for node in nodes if (bias := bias_of(node)) is not None]


def _errors(pairs: Sequence[_Pair], gain: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the errors of the means after a gain: a row for each sample, or for samples that cannot be told apart."""
    result = [np.empty((0, gain.size))]
    for each in pairs:
        made, exact = (channels.means for channels in each)
        if not (len(made) and len(exact)):
            continue
        if len(made) != len(exact):  # the number of rows may depend on values, and so differ between the models
            made, exact = (means.mean(axis=0, keepdims=True) for means in (made, exact))
        with np.errstate(invalid="ignore"):
            result.append(gain * made - exact)
    return np.concatenate(result)


def _certain_gain(pairs: Sequence[_Pair]) -> npt.NDArray[np.float64]:
    """Return the gain of each channel by least squares, without the part that may be chance.

    The variance of a gain is that of a slope whose errors differ between samples, and are alike within one
    (Liang and Zeger, "Longitudinal Data Analysis Using Generalized Linear Models", 1986).
    """
    ones = np.ones(pairs[0][0].values.shape[-1])
    if any(made.values.shape != exact.values.shape or not made.values.size for made, exact in pairs):
        return ones
    moments = []
    for made, exact in pairs:
        x, y = made.values.astype(np.float64), exact.values.astype(np.float64)
        moments.append([each.mean(axis=1) for each in (x, y, x * x, x * y)])
    x, y, xx, xy = (np.concatenate(each) for each in zip(*moments, strict=True))
    if (n := len(x)) < 2:
        return ones
    with np.errstate(all="ignore"):
        mean, other, power = x.mean(axis=0), y.mean(axis=0), xx.mean(axis=0)
        variance = power - mean**2
        change = (xy.mean(axis=0) - mean * other) / variance - 1.0
        covariances = xy - mean * y - other * x + mean * other
        rest = covariances - (1.0 + change) * (xx - 2.0 * mean * x + mean**2)
        chance = (rest**2).sum(axis=0) / (n * (n - 1)) / variance**2
        gain = 1.0 + np.maximum(1.0 - chance / change**2, 0.0) * change
    return np.clip(np.where(np.isfinite(gain) & (variance > _CONSTANT * power), gain, 1.0), LEAST_GAIN, MOST_GAIN)


def _certain_part(errors: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the mean over samples of each channel, without the part that may be chance."""
    n, channels = errors.shape
    if n < 2:
        return np.zeros(channels)
    with np.errstate(all="ignore"):
        mean, variance = errors.mean(axis=0), errors.var(axis=0, ddof=1) / n
        part = np.maximum(1.0 - variance / mean**2, 0.0) * mean
    return np.where(np.isfinite(part), part, 0.0)


def _difference(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a - b of each channel, and 0 where both are the same infinity."""
    with np.errstate(invalid="ignore"):
        return np.where(a == b, 0, a - b).astype(a.dtype).reshape(-1)


def _less(bias: npt.NDArray[Any], error: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    """Return a bias less errors; an element stays as it is if its type cannot hold the result."""
    with np.errstate(over="ignore"):
        result = (bias - error.reshape(bias.shape)).astype(bias.dtype)
    return np.where(np.isfinite(result), result, bias)
