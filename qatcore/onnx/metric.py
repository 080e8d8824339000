"""What a drop is measured in: agreement with the float model, accuracy on labels, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgumentError
from .data import imported

Outputs = Mapping[str, npt.NDArray[Any]]
#: From outputs and a batch to a score from 0 to 1 for each sample; bools will do.
Score = Callable[[Outputs, Outputs], Any]

_SUM_TOLERANCE = 1e-2


class Metric:
    """Scores of the float and the quantised model, added up batch by batch.

    Parameters
    ----------
    score : callable, str or None
        ``function(outputs, batch)`` or its name as ``module:function``.  None for agreement with the float model, or
        for accuracy if there are labels.
    labels : str, optional
        What the data calls the classes of its samples.
    """

    def __init__(self, score: Score | str | None = None, labels: str | None = None) -> None:
        if score is not None and labels is not None:
            raise InvalidArgumentError("labels: expected none where there is a metric, which sees all of a batch")
        if isinstance(score, str):
            score = imported(score, "metric")
        if score is not None and not callable(score):
            raise TypeError(f"metric: expected a function or module:function, got {type(score).__name__}")
        self._score = score
        self._labels = labels
        self._classes: list[str] | None = None
        self.totals = [0.0, 0.0]
        self.n = 0

    @property
    def name(self) -> str:
        """What the scores are."""
        if self._score is not None:
            return getattr(self._score, "__name__", "score")
        if self._labels is not None:
            return "accuracy"
        return "agreement" if self._classes != [] else "closeness"

    def fresh(self) -> Metric:
        """Return one that has seen nothing."""
        return Metric(self._score, self._labels)

    def add(self, exact: Outputs, other: Outputs, batch: Outputs) -> None:
        """Add what the float model and the quantised one answer to a batch."""
        if self._classes is None:
            self._classes = _outputs_of_classes(exact)
        scores = [self._scores(outputs, exact, batch) for outputs in (exact, other)]
        if scores[0].size != scores[1].size or not scores[0].size:
            raise InvalidArgumentError(f"metric: expected a score for each sample, got {scores[0].size}")
        for which, values in enumerate(scores):
            if not np.isfinite(values).all():
                raise InvalidArgumentError("metric: expected finite scores")
            self.totals[which] += float(values.sum())
        self.n += scores[0].size

    def _scores(self, outputs: Outputs, exact: Outputs, batch: Outputs) -> npt.NDArray[np.float64]:
        if self._score is not None:
            result = self._score(outputs, batch)
        elif self._labels is not None:
            result = self._accuracy(outputs, batch)
        else:
            result = self._agreement(outputs, exact)
        return np.asarray(result, np.float64).reshape(-1)

    def _accuracy(self, outputs: Outputs, batch: Outputs) -> Any:
        if self._labels is None or self._labels not in batch:
            raise InvalidArgumentError(f"data: there are no labels {self._labels!r} in it, only {', '.join(batch)}")
        if not self._classes:
            raise InvalidArgumentError("labels: the model has no output of several classes")
        value, expected = outputs[self._classes[0]], np.asarray(batch[self._labels])
        if expected.shape != value.shape[:-1]:
            raise InvalidArgumentError(
                f"data: expected {self._labels} of shape {value.shape[:-1]}, as {self._classes[0]} has, "
                f"got {expected.shape}"
            )
        return value.argmax(axis=-1) == expected

    def _agreement(self, outputs: Outputs, exact: Outputs) -> Any:
        if self._classes:
            return np.concatenate(
                [(outputs[name].argmax(-1) == exact[name].argmax(-1)).reshape(-1) for name in self._classes]
            )
        errors = Noise()
        for name, value in exact.items():
            if value.dtype.kind == "f":
                errors.add(value, outputs[name])
        return [1.0 - min(1.0, math.sqrt(errors.noise / errors.signal))] if errors.signal > 0.0 else [1.0]

    @property
    def exact(self) -> float:
        """Percent that the float model scores."""
        return 100.0 * self.totals[0] / max(self.n, 1)

    @property
    def quantized(self) -> float:
        """Percent that the quantised model scores."""
        return 100.0 * self.totals[1] / max(self.n, 1)

    @property
    def drop(self) -> float:
        """Percent that are lost, below 0 if it is the better one."""
        return 100.0 * (self.totals[0] - self.totals[1]) / max(self.n, 1)


class Noise:
    """Powers of a signal and of what it differs by from another, added up in float64."""

    def __init__(self) -> None:
        self.signal = self.noise = self.largest = 0.0

    def add(self, exact: npt.NDArray[Any], other: npt.NDArray[Any]) -> None:
        """Compare two arrays of one shape."""
        a, b = (np.asarray(array, np.float64).reshape(-1) for array in (exact, other))
        difference = a - b
        self.signal += float(a @ a)
        self.noise += float(difference @ difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise in dB: +inf without noise, NaN without signal."""
        if not self.signal > 0.0:
            return math.nan
        return 10.0 * math.log10(self.signal / self.noise) if self.noise > 0.0 else math.inf


class OutputNoise:
    """The noise of a model's outputs, each relative to its own power, added up."""

    def __init__(self) -> None:
        self._each: list[Noise] = []

    def add(self, exact: Sequence[npt.NDArray[Any]], other: Sequence[npt.NDArray[Any]]) -> None:
        """Compare the outputs for a batch."""
        self._each = self._each or [Noise() for _ in exact]
        for noise, a, b in zip(self._each, exact, other, strict=True):
            if a.dtype.kind == "f":
                noise.add(a, b)

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise in dB; +inf without noise."""
        relative = sum(noise.noise / noise.signal for noise in self._each if noise.signal > 0.0)
        return -10.0 * math.log10(relative) if relative > 0.0 else math.inf


def _outputs_of_classes(outputs: Outputs) -> list[str]:
    """Return the outputs whose last axis is one of classes: those of probabilities, or if there are none all."""
    several = {n: v for n, v in outputs.items() if v.dtype.kind == "f" and v.ndim > 1 and v.shape[-1] > 1}
    with np.errstate(all="ignore"):
        probable = [
            name
            for name, value in several.items()
            if (value >= 0.0).all() and (np.abs(value.sum(axis=-1) - 1.0) < _SUM_TOLERANCE).all()
        ]
    return probable or list(several)
