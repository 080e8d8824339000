"""Corrections judged on samples that they were not computed from: only what helps is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from onnx import ModelProto

from .comparison import tensor_outputs
from .data import SAMPLE_BYTES, Batch, InputSpec
from .metric import IncomparableError, Noise, is_of_floats
from .session import Tap

_Part = TypeVar("_Part")
#: How often the parts of a correction are halved, at most.
_HALVINGS = 3
#: So many samples tell whether a correction helps, and from so many on something can be learnt.
_SAMPLES, _LEAST_SAMPLES = 16, 2


def halves(batches: Sequence[Batch], samples_of: Callable[[Batch], int]) -> tuple[list[Batch], list[Batch]]:
    """Return batches to correct with, and others to judge that by, each with about half of the samples.

    Both are all of the batches where one half would have less than two samples: there is nothing else to judge by.
    """
    first, second, more = list[Batch](), list[Batch](), 0
    for batch in batches:
        (first if more <= 0 else second).append(batch)
        more += samples_of(batch) if more <= 0 else -samples_of(batch)
    if more < 0:
        first, second = second, first
    if sum(map(samples_of, second)) < _LEAST_SAMPLES:
        return list(batches), list(batches)
    return first, second


class Judge:
    """Measures how far models are from the float model on batches, whose answers it keeps.

    Parameters
    ----------
    exact : ModelProto
        The float model.
    inside : sequence of str
        Tensors to judge by where no output is a tensor of floats.
    batches : sequence of dict
        Some of them, spread evenly, are enough once they have 16 samples.  There are fewer where the answers would take
        more than 256 MiB, but one at least.
    """

    def __init__(self, exact: ModelProto, inside: Sequence[str], batches: Sequence[Batch]) -> None:
        try:
            outputs = tensor_outputs(exact)
        except IncomparableError:
            outputs = []
        self._names, self._answers = self._answered(exact, outputs, batches)
        if not self._names:
            self._names, self._answers = self._answered(exact, inside, batches)

    @staticmethod
    def _answered(
        exact: ModelProto, names: Sequence[str], batches: Sequence[Batch]
    ) -> tuple[list[str], list[tuple[Batch, Batch]]]:
        """Return which tensors are of floats, and what they are for each batch."""
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

    def errors(self, model: ModelProto) -> list[float]:
        """Return the error of each tensor relative to its power, NaN where shapes differ, or there is no power."""
        tap, noises = Tap(model, self._names), {name: Noise() for name in self._names}
        for batch, exact in self._answers:
            values = tap.values(batch)
            for name, noise in noises.items():
                noise.add(exact[name], values[name])
        return [noise.noise / noise.signal if noise.signal > 0.0 else math.nan for noise in noises.values()]


def helpful(parts: Sequence[_Part], errors: Callable[[Sequence[_Part]], Iterable[float]]) -> list[_Part]:
    """Return the parts of a correction that bring a model nearer to the float model.

    First all of them are tried, then halves of them, then halves of these, as long as some change helps: each time
    those that were left out are taken in, and the others out.

    Parameters
    ----------
    parts : sequence
        In the order of the graph.
    errors : callable
        Returns the errors of the model that some of the parts correct.
    """
    kept = [False] * len(parts)

    def tried(choice: list[bool]) -> list[float]:
        return list(errors([part for part, is_kept in zip(parts, choice, strict=True) if is_kept]))

    least, stretches = tried(kept), [(0, len(parts))]
    for halving in range(_HALVINGS + 1):
        changed = False
        for start, stop in stretches:
            choice = [is_kept != (start <= i < stop) for i, is_kept in enumerate(kept)]
            found = tried(choice)
            if _is_less(found, least):
                kept, least, changed = choice, found, True
        if halving and not changed:
            break
        middles = [(start, (start + stop) // 2, stop) for start, stop in stretches]
        stretches = [each for a, b, c in middles for each in ((a, b), (b, c)) if b - a and c - b]
    return [part for part, is_kept in zip(parts, kept, strict=True) if is_kept]


def _is_less(errors: Sequence[float], others: Sequence[float]) -> bool:
    """Return whether errors are less than others in sum, where both can be compared."""
    pairs = [pair for pair in zip(errors, others, strict=True) if not any(map(math.isnan, pair))]
    return sum(a for a, _ in pairs) < sum(b for _, b in pairs)
