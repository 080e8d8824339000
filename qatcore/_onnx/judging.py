"""Judge corrections on samples that they were not computed from, and keep only those that help."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import onnx_ir as ir

from .comparison import tensor_outputs
from .data import SAMPLE_BYTES, Batch, InputSpec
from .graph import is_a, values_by_name
from .metric import IncomparableError, Noise, is_of_floats
from .regions import is_move
from .session import Tap

_Part = TypeVar("_Part")
#: How often the parts of a correction are halved, at most.
_HALVINGS = 3
#: Decibels that count as chance.  Corrections usually help, so a smaller difference does not speak against one.
_MARGIN = 1.0
#: Relative errors outside of these limits count as the limits.
_LEAST, _MOST = 1e-12, 1e12
#: Operators that hide most errors of their input: behind them, the few hard samples would outweigh all others.
_SATURATING = frozenset({"HardSigmoid", "Sigmoid", "Softmax", "Tanh"})
#: How many samples are enough to judge corrections, and how many are needed at least.
_SAMPLES, _LEAST_SAMPLES = 32, 2


def halves(batches: Sequence[Batch], samples_of: Callable[[Batch], int]) -> tuple[list[Batch], list[Batch]]:
    """Return batches to compute corrections from, and others to judge them by, each with about half of the samples.

    If the second half would have fewer than two samples, both are all of the batches.
    """
    first, second, more = list[Batch](), list[Batch](), 0
    for batch in batches:
        (first if more <= 0 else second).append(batch)
        more += samples_of(batch) if more <= 0 else -samples_of(batch)
    if more < 0:
        first, second = second, first
    if sum(map(samples_of, second)) < _LEAST_SAMPLES:
        first = second = list(batches)
    return first, second


class Judge:
    """Measures the errors of models on batches, relative to the float model, whose results it keeps.

    It compares the outputs.  If an output ends with a softmax, a sigmoid or the like, it compares the tensor before.

    Parameters
    ----------
    exact : onnx_ir.Model
        The float model.
    inside : sequence of str
        Tensors to compare if no output is a tensor of floats.
    batches : sequence of dict
        Batches to measure on.  Only some of them are used, spread evenly, until they have 32 samples.  If the results
        would take more than 256 MiB, there are fewer, but at least one.
    """

    def __init__(self, exact: ir.Model, inside: Sequence[str], batches: Sequence[Batch]) -> None:
        try:
            values = values_by_name(exact.graph)
            outputs = list(dict.fromkeys(_before_saturation(values[name]) for name in tensor_outputs(exact)))
        except IncomparableError:
            outputs = []
        self._names, self._answers = self._answered(exact, outputs, batches)
        if not self._names:
            self._names, self._answers = self._answered(exact, inside, batches)

    @staticmethod
    def _answered(
        exact: ir.Model, names: Sequence[str], batches: Sequence[Batch]
    ) -> tuple[list[str], list[tuple[Batch, Batch]]]:
        """Return the names of the float tensors, and each batch with their values."""
        tap, answers, left, spec = Tap(exact, names), list[tuple[Batch, Batch]](), SAMPLE_BYTES, InputSpec(exact)
        step = max(sum(map(spec.samples_of, batches)) // _SAMPLES, 1)
        spread = [batch for start in range(step) for batch in batches[start::step]]
        samples = 0
        for batch in spread:
            values = {name: value for name, value in tap.values(batch).items() if is_of_floats(value)}
            left -= sum(value.nbytes for value in values.values())
            if not values or (left < 0 and answers):
                break
            answers.append((batch, values))
            samples += spec.samples_of(batch)
            if samples >= _SAMPLES:
                break
        return (list(answers[0][1]) if answers else []), answers

    def errors(self, model: ir.Model) -> list[float]:
        """Return the error of each tensor in each batch, relative to its power and in dB.

        Batches are not summed, because a single hard sample would then outweigh all others.  The error is NaN if shapes
        differ, or the tensor has no power.
        """
        tap, result = Tap(model, self._names), list[float]()
        for batch, exact in self._answers:
            values = tap.values(batch)
            for name in self._names:
                noise = Noise()
                noise.add(exact[name], values[name])
                result.append(_decibels(noise.noise / noise.signal) if noise.signal > 0.0 else math.nan)
        return result


def _before_saturation(value: ir.Value) -> str:
    """Return the name of the tensor before the saturating operators that make an output, or of the output itself."""
    found = value
    while (maker := value.producer()) is not None:
        saturates = is_a(maker, _SATURATING)
        if not (saturates or is_a(maker, {"Identity"}) or is_move(maker)) or maker.inputs[0] is None:
            break
        value = maker.inputs[0]
        if saturates:
            found = value
    return str(found.name)


def _decibels(error: float) -> float:
    """Return a relative error in dB, within limits."""
    return 10.0 * math.log10(min(max(error, _LEAST), _MOST))


def helpful(parts: Sequence[_Part], errors: Callable[[Sequence[_Part]], Iterable[float]]) -> list[_Part]:
    """Return the parts of a correction that bring a model nearer to the float model.

    First all parts are kept, unless the model is better without them by more than chance.  Then halves, quarters and
    eighths are tried, as long as a change helps: kept parts are left out, and left out parts are taken in.

    Parameters
    ----------
    parts : sequence
        In the order of the graph.
    errors : callable
        Returns the errors, in dB, of the model that these parts correct.
    """

    def tried(choice: list[bool]) -> list[float]:
        return list(errors([part for part, is_kept in zip(parts, choice, strict=True) if is_kept]))

    kept = [True] * len(parts)
    least, stretches = tried(kept), [(0, len(parts))]
    for halving in range(_HALVINGS + 1):
        changed = False
        for start, stop in stretches:
            choice = [is_kept != (start <= i < stop) for i, is_kept in enumerate(kept)]
            found = tried(choice)
            if _gain(found, least) > _MARGIN:
                kept, least, changed = choice, found, True
        if halving and not changed:
            break
        middles = [(start, (start + stop) // 2, stop) for start, stop in stretches]
        stretches = [each for a, b, c in middles for each in ((a, b), (b, c)) if b - a and c - b]
    return [part for part, is_kept in zip(parts, kept, strict=True) if is_kept]


def _gain(errors: Sequence[float], others: Sequence[float]) -> float:
    """Return how much smaller errors are than others, on average over those that can be compared."""
    gains = [b - a for a, b in zip(errors, others, strict=True) if not (math.isnan(a) or math.isnan(b))]
    return sum(gains) / len(gains) if gains else 0.0
