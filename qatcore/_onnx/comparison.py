"""A float model and a quantised one side by side: outputs, tensors, time and size."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from .._base.errors import InvalidArgumentError
from .data import Batch, Data
from .description import description
from .equalising import restored
from .graph import is_a, names_of, readers_of, tensors_of
from .latency import Latency, latencies_of
from .metric import IncomparableError, Metric, Noise, Outputs, are_alike
from .model import file_bytes
from .rewriting import tensor_of_codes
from .session import Tap, named_run, session_of
from .skeleton import known_shapes
from .speed import why_slower

#: The number of batches that single tensors are compared on.
_TENSOR_BATCHES = 8
#: Seconds for which each model is timed, with a number of threads and samples.
_TIMED_SECONDS = 0.5


@dataclass(frozen=True)
class Comparison:
    """The result of `compare`.

    Attributes
    ----------
    metric : str
        What the score measures.  "agreement": how often the greatest class of an output is the float model's.
        "accuracy": how often it is the label.  "closeness", if there are no classes: 1 less the relative error, of the
        output where that is largest.  Otherwise the name of the metric function.
    score : tuple of float
        The scores of the float model and of the quantised one, in percent.
    batches : int
        How many batches were compared.
    outputs : dict of str to tuple of float
        For every output, its signal-to-quantisation-noise ratio (SQNR) in dB and its greatest absolute difference.  The
        SQNR of integers is NaN.  Both are NaN for text, and where shapes differ, which only a function may compare.
    tensors : dict of str to float
        For every tensor with codes, its SQNR in dB on the first 8 batches, in the order of the graph.  It is NaN where
        the tensor's size depends on values and differs.
    latency : list of Latency
        How long a run takes: of the first batch with all threads and with one, and of its first sample.  The sample is
        left out if it is the whole batch, or the models take batches of another size only.
    size : tuple of int
        Bytes of the float model and of the quantised one.
    slower : str or None
        If the quantised model is slower: how ONNX Runtime runs it, and what to try.
    images : str or None
        If the data is a folder of images: how many there were, and how they became the model's input.
    samples_left_out : int
        How many samples at the end are too few for a batch of the size that the model takes.
    """

    metric: str
    score: tuple[float, float]
    batches: int
    outputs: dict[str, tuple[float, float]]
    tensors: dict[str, float]
    latency: list[Latency]
    size: tuple[int, int]
    slower: str | None
    images: str | None = None
    samples_left_out: int = 0

    @property
    def drop(self) -> float:
        """Percent that the quantised model loses, negative if it is better than the float model."""
        return self.score[0] - self.score[1]


def compare_models(
    exact: ir.Model,
    quantized: ir.Model,
    data: Data,
    metric: Metric,
    *,
    progress: Callable[[int], None] | None = None,
) -> Comparison:
    """Return how a quantised model differs from the float one, in one pass over the data."""
    outputs = tensor_outputs(exact)
    noise = {name: Noise() for name in outputs}
    first: list[Batch] = []
    n = 0
    for n, (batch, a, b) in enumerate(answers_of(exact, quantized, data, progress), start=1):
        if n <= _TENSOR_BATCHES:
            first.append(batch)
        metric.add(a, b, batch)
        for name in outputs:
            noise[name].add(a[name], b[name])
    latency = latencies_of(exact, quantized, first[0], outputs, _TIMED_SECONDS)
    return Comparison(
        metric.name,
        metric.scores,
        n,
        {name: (noise[name].sqnr, noise[name].largest) for name in outputs},
        _tensor_noise(exact, quantized, first),
        latency,
        (file_bytes(exact), file_bytes(quantized)),
        why_slower(quantized, latency[0].float_ms, latency[0].quantized_ms),
        data.images_line,
        data.left_out,
    )


def answers_of(
    exact: ir.Model, other: ir.Model, data: Iterable[Batch], progress: Callable[[int], None] | None
) -> Iterator[tuple[Batch, Outputs, Outputs]]:
    """Yield every batch and the outputs of both models for it."""
    names = tensor_outputs(exact)
    with _said_of("float model"):
        first = session_of(exact)
    with _said_of("quantised model"):
        second = session_of(other)
    for n, batch in enumerate(data, start=1):
        with _said_of("float model"):
            a = named_run(first, names, batch)
        with _said_of("quantised model"):
            b = named_run(second, names, batch)
        yield batch, a, b
        if progress is not None:
            progress(n)


@contextlib.contextmanager
def _said_of(which: str) -> Iterator[None]:
    """Add to the errors of a model which of the two models it is."""
    try:
        yield
    except InvalidArgumentError as error:
        raise InvalidArgumentError(f"{which}: {str(error).removeprefix('model: ')}") from error


def tensor_outputs(model: ir.Model) -> list[str]:
    """Return the outputs of a model that are tensors of NumPy's types: no sequences, maps, bfloat16, float8 or int4.

    Raises
    ------
    IncomparableError
        If there is no such output.
    """
    names = names_of(value for value in model.graph.outputs if _is_array(value.type))
    if not names:
        reason = "no output is a tensor of a type that NumPy has"
        raise IncomparableError(f"model: expected an output to compare, but {reason}", reason)
    return names


def _is_array(kind: ir.TypeProtocol | None) -> bool:
    """Return whether a value is a tensor of a type that NumPy has, as far as it is known."""
    if kind is None or not isinstance(kind, ir.TensorType):
        return kind is None
    return kind.dtype == ir.DataType.UNDEFINED or kind.dtype.numpy().isbuiltin == 1


def _tensor_noise(exact: ir.Model, quantized: ir.Model, batches: list[Batch]) -> dict[str, float]:
    """Return the SQNR of every tensor with codes.

    The models run once more for this: runtimes do not fuse the nodes around a tensor that they return, so the outputs
    may then differ.
    """
    about = description(quantized)
    channels, equalised = about.get("channels", {}), about.get("equalised", {})
    pairs = _tensors_with_codes(exact, quantized, channels)
    noise = {name: Noise() for name in pairs}
    taps = Tap(exact, pairs), Tap(quantized, pairs.values())
    shapes: Mapping[str, list[int]] = {}
    for batch in batches:
        values, others = (tap.values(batch) for tap in taps)
        for name, other in pairs.items():
            if other in channels:  # padded, for fast kernels
                others[other] = others[other][:, : channels[other]]
            if name in equalised:
                others[other] = restored(others[other], equalised[name])
            if not are_alike(values[name], others[other]):
                shapes = shapes or known_shapes(exact)
                _check_size_depends_on_values(name, shapes.get(name), values[name], others[other])
            noise[name].add(values[name], others[other])
    return {name: each.sqnr for name, each in noise.items()}


def _check_size_depends_on_values(name: str, known: list[int] | None, exact: Any, other: Any) -> None:
    """Raise `InvalidArgumentError` if shapes of a tensor differ in a size that cannot depend on values."""
    sizes = [0] * exact.ndim if known is None else known
    if len(sizes) != other.ndim or any(size not in {0, n} for size, n in zip(sizes, other.shape, strict=True)):
        raise InvalidArgumentError(
            f"quantised model: expected tensor {name} like the float model's, {exact.dtype} {exact.shape}, "
            f"got {other.dtype} {other.shape}; give the float model that it was made from"
        )


def _tensors_with_codes(exact: ir.Model, quantized: ir.Model, channels: Container[str]) -> dict[str, str]:
    """Return the float model's tensors that have codes in the quantised one, and their dequantised tensors there.

    `channels` are the tensors that have more channels than in the float model.
    """
    known, pairs = tensors_of(exact), {}
    # Their ranges fit what follows, and cut off what has no effect there.
    fitted = description(quantized).get("fitted", [])
    for node in quantized.graph:
        if is_a(node, {"QuantizeLinear"}):
            tensor, _, values = tensor_of_codes(node)
            maker = tensor.producer()
            if maker is not None and tensor.name not in known and is_a(maker, {"Cast"}):  # from float16
                tensor = maker.inputs[0] or tensor
            if values is None:
                padded = [n for n in readers_of(node.outputs[0]) if is_a(n, {"Pad"})]
                made = (reader.outputs[0] for pad in padded for reader in readers_of(pad.outputs[0]))
                values = next((value for value in made if value.name in channels), None)
            if values is not None and tensor.name in known and tensor.name not in fitted:
                pairs[str(tensor.name)] = str(values.name)
    return pairs
