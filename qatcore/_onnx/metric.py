"""Metrics that a drop is measured by: agreement with the float model, accuracy on labels, or a user's function."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.errors import InvalidArgumentError
from .data import imported

Outputs = Mapping[str, npt.NDArray[Any]]
#: A function of outputs and a batch that returns a score from 0 to 1 for each sample; bools will do.
Score = Callable[[Outputs, Outputs], npt.ArrayLike]

_SUM_TOLERANCE = 1e-2


class IncomparableError(InvalidArgumentError):
    """The outputs of two models cannot be compared.

    Attributes
    ----------
    reason : str
        The reason alone, without what was expected.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Metric:
    """Scores of the float and the quantised model, summed batch by batch, in any order.

    Parameters
    ----------
    score : callable, str or None
        ``function(outputs, batch)`` or its name ``module:function``.  None for accuracy if there are labels, else for
        agreement with the float model.
    labels : str, optional
        The name under which the data holds the classes of its samples.
    """

    def __init__(self, score: Score | str | None = None, labels: str | None = None) -> None:
        if labels is not None and not isinstance(labels, str):
            raise TypeError(f"labels: expected the name of labels in the data, got {type(labels).__name__}")
        if score is not None and labels is not None:
            raise InvalidArgumentError(
                "labels: expected none beside a metric, which gets the whole batch; leave out one"
            )
        if isinstance(score, str):
            score = _told(imported(score, "metric"), score)
        if score is not None and not callable(score):
            raise TypeError(f"metric: expected a function or module:function, got {type(score).__name__}")
        self._score = score
        self._labels = labels
        self._counts: dict[str, _Counts] = {}
        self._unlabelled = set[str]()
        self._own = _Counts()
        self._noise: dict[str, Noise] = {}

    @property
    def labels(self) -> str | None:
        """The name under which the data holds the classes of its samples; None if they are not used."""
        return self._labels

    @property
    def name(self) -> str:
        """What the scores measure."""
        if self._score is not None:
            return getattr(self._score, "__name__", "score")
        if self._labels is not None:
            return "accuracy"
        return "agreement" if any(counts.n for counts in self._counts.values()) else "closeness"

    def fresh(self) -> Metric:
        """Return a metric of the same kind that has seen nothing."""
        return Metric(self._score, self._labels)

    def add(self, exact: Outputs, other: Outputs, batch: Outputs) -> None:
        """Add the outputs of the float model and of the quantised one for a batch.

        Raises
        ------
        IncomparableError
            If there is no function to compare outputs, and they differ in shape or kind.
        InvalidArgumentError
            If the function does not return scores from 0 to 1, or the labels do not fit.
        """
        if self._score is not None:
            self._own.add(*(self._checked(self._score(outputs, batch)) for outputs in (exact, other)))
            return
        several = [name for name, value in exact.items() if _has_classes(value) or value.dtype.kind in "biuOSU"]
        if self._labels is not None:
            if self._labels not in batch:
                raise InvalidArgumentError(f"data: expected labels named {self._labels!r}, got only {', '.join(batch)}")
            labels = np.asarray(batch[self._labels])
            for name in self._labelled(self._labels, labels, exact, other, several):
                self._count(name, exact[name], other[name], labels, ...)
            return
        for name, value in exact.items():
            check_alike(f"output {name}", value, other[name])
        for name in several:
            self._count(name, exact[name], other[name], _classes(exact[name]), ~_has_nan(exact[name]))
        for name, value in exact.items():
            if value.dtype.kind == "f":
                self._noise.setdefault(name, Noise()).add(value, other[name])

    def _count(
        self, name: str, exact: npt.NDArray[Any], other: npt.NDArray[Any], classes: npt.NDArray[Any], known: Any
    ) -> None:
        """Count at how many known positions of an output each model has the right class."""
        counts = self._counts.setdefault(name, _Counts())
        if classes[known].size:
            counts.probable &= _is_probable(exact[known])
            counts.add(*(_right(value, classes)[known] for value in (exact, other)))

    def _checked(self, scores: npt.ArrayLike) -> npt.NDArray[np.float64]:
        try:
            array = np.asarray(scores).astype(np.float64, casting="same_kind")
        except (TypeError, ValueError):  # text, complex numbers, rows of several lengths
            array = np.empty(0)
        if array.ndim < 1 or not array.size or not ((array >= 0.0) & (array <= 1.0)).all():
            raise InvalidArgumentError(f"metric: expected a score from 0 to 1 for each sample, got {scores!r:.60}")
        return array.reshape(-1)

    def _labelled(
        self, key: str, labels: npt.NDArray[Any], exact: Outputs, other: Outputs, several: list[str]
    ) -> list[str]:
        """Return the outputs of several classes that the labels have fitted in all batches; raise if there is none."""
        reasons = list[InvalidArgumentError]()
        for name in (*several, *(name for name in exact if name not in several)):
            if name in self._unlabelled:
                continue
            try:
                if name not in several:
                    raise InvalidArgumentError("labels: the model has no output of several classes")
                _check_labels(key, labels, name, exact[name])
                check_alike(f"output {name}", exact[name], other[name])
            except InvalidArgumentError as error:
                self._unlabelled.add(name)
                self._counts.pop(name, None)
                reasons.append(error)
        fitting = [name for name in several if name not in self._unlabelled]
        if not fitting:
            raise reasons[0]
        return fitting

    def _chosen(self) -> _Counts:
        """Return the counts of outputs that are probabilities, or of all if none are; with labels, of the first one."""
        if self._score is not None:
            return self._own
        counted = [counts for counts in self._counts.values() if counts.n]
        chosen = [counts for counts in counted if counts.probable] or counted
        total = _Counts()
        for counts in chosen[:1] if self._labels is not None else chosen:
            total.n += counts.n
            total.exact += counts.exact
            total.other += counts.other
        if not total.n and self._labels is not None:
            raise InvalidArgumentError(f"data: expected labels in {self._labels!r}, got none")
        return total

    @property
    def scores(self) -> tuple[float, float]:
        """The scores of the float model and of the quantised one, in percent.

        Raises
        ------
        IncomparableError
            If no output has a value that can be compared.
        InvalidArgumentError
            If there are no labels in the data.
        """
        total = self._chosen()
        if total.n:
            return 100.0 * total.exact / total.n, 100.0 * total.other / total.n
        noises = [noise for noise in self._noise.values() if noise.n]
        if not noises:
            reason = "the outputs have no finite value on the data"
            raise IncomparableError(f"data: expected values to compare, but {reason}", reason)
        relative = [math.sqrt(noise.noise / noise.signal) for noise in noises if noise.signal > 0.0]
        if not relative:  # all values are 0: any difference is a total loss
            return 100.0, 0.0 if any(noise.noise for noise in noises) else 100.0
        return 100.0, 100.0 * (1.0 - min(1.0, max(relative)))

    @property
    def drop(self) -> float:
        """Percent that the quantised model loses, negative if it is better than the float model."""
        exact, other = self.scores
        return exact - other


class _Counts:
    def __init__(self) -> None:
        self.exact = self.other = 0.0
        self.n = 0
        self.probable = True

    def add(self, exact: npt.NDArray[Any], other: npt.NDArray[Any]) -> None:
        if exact.size != other.size:
            raise InvalidArgumentError(
                f"metric: expected equally many scores of both models, got {exact.size} and {other.size}"
            )
        self.exact += float(exact.sum())
        self.other += float(other.sum())
        self.n += exact.size


class Noise:
    """The powers of a signal and of the noise in another one, summed in float64, and the largest difference.

    Positions where the signal is not finite are left out.  If only the other one is not finite, the noise is infinite.
    Integers only have a largest difference, and no powers.  All three are NaN for text, and once arrays differ in shape
    or kind.
    """

    def __init__(self) -> None:
        self.signal = self.noise = self.largest = 0.0
        self.n = 0

    def add(self, exact: Any, other: Any) -> None:
        """Add the values of one tensor in both models."""
        if not are_alike(exact, other) or exact.dtype.kind not in "fbiu":
            self.signal = self.noise = self.largest = math.nan
            return
        if exact.dtype.kind != "f":
            # The greater value less the lesser one is exact modulo 2**64, and so in uint64.
            greater, lesser = (part(exact, other).astype(np.uint64) for part in (np.maximum, np.minimum))
            self.largest = max(self.largest, float((greater - lesser).max(initial=0)))
            return
        a, b = (np.asarray(array, np.float64).reshape(-1) for array in (exact, other))
        finite = np.isfinite(a)
        if not finite.all():
            a, b = a[finite], b[finite]
        difference = a - b
        if not np.isfinite(difference).all():
            difference = np.full(1, np.inf)
        self.n += a.size
        self.signal += float(a @ a)
        self.noise += float(difference @ difference)
        self.largest = max(self.largest, float(np.abs(difference).max(initial=0.0)))

    @property
    def sqnr(self) -> float:
        """SQNR in dB: +inf without noise, -inf if the noise is infinite, NaN without signal."""
        if not self.signal > 0.0:
            return math.nan
        return _decibels(self.noise / self.signal)


def is_of_floats(value: Any) -> bool:
    """Return whether a value is an array of floats."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def are_alike(exact: Any, other: Any) -> bool:
    """Return whether the values of a tensor in two models are arrays of the same shape and kind."""
    if not (isinstance(exact, np.ndarray) and isinstance(other, np.ndarray)):
        return False
    return (exact.shape, exact.dtype.kind) == (other.shape, other.dtype.kind)


def check_alike(what: str, exact: Any, other: Any) -> None:
    """Raise `IncomparableError` unless the values of a tensor in two models have the same shape and kind."""
    if not are_alike(exact, other):
        first, second = (
            f"{each.dtype} {each.shape}" if isinstance(each, np.ndarray) else "no tensor" for each in (exact, other)
        )
        raise IncomparableError(
            f"quantised model: expected {what} like the float model's, {first}, got {second}; if its size depends "
            "on values, give a metric that compares it, else the right float model",
            f"{what} is {first} in float and {second} quantised; give a --metric, a function that compares it",
        )


class OutputNoise:
    """The noise of a model's float outputs, each relative to the output's power, summed."""

    def __init__(self) -> None:
        self._each: list[Noise] = []

    def add(self, exact: Sequence[Any], other: Sequence[Any]) -> None:
        """Add the outputs of both models for a batch."""
        self._each = self._each or [Noise() for _ in exact]
        for noise, a, b in zip(self._each, exact, other, strict=True):
            if a.dtype.kind == "f":
                noise.add(a, b)

    @property
    def unlike(self) -> bool:
        """Whether there is an output that cannot be compared."""
        return any(math.isnan(noise.signal) for noise in self._each)

    @property
    def comparable(self) -> set[int]:
        """The positions of outputs that have a power and are alike in both models."""
        return {place for place, noise in enumerate(self._each) if noise.signal > 0.0}

    def choose(self, places: Iterable[int]) -> None:
        """Keep only the outputs at these positions."""
        self._each = [self._each[place] for place in places]

    @property
    def sqnr(self) -> float:
        """The signal-to-quantisation-noise ratio in dB: +inf without noise, -inf if the noise is infinite."""
        return _decibels(sum(noise.noise / noise.signal for noise in self._each if noise.signal > 0.0))


def _decibels(relative: float) -> float:
    if relative == 0.0:
        return math.inf
    return -10.0 * math.log10(relative) if relative < math.inf else -math.inf


def _check_labels(key: str, labels: npt.NDArray[Any], name: str, value: npt.NDArray[Any]) -> None:
    """Raise `InvalidArgumentError` unless labels fit an output."""
    shape, n = (value.shape[:-1], value.shape[-1]) if value.dtype.kind == "f" else (value.shape, None)
    if labels.shape != shape:
        raise InvalidArgumentError(f"data: expected {key} of shape {shape} to fit {name}, got {labels.shape}")
    if n is not None and (labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels < n)).all()):
        raise InvalidArgumentError(
            f"data: expected {key} to be integers from 0 to {n - 1}, the classes of {name}, "
            f"got {labels.dtype}: {labels!r:.60}"
        )


def _told(score: Score, name: str) -> Score:
    """Return a function that calls the user's function and reports its exceptions in one line."""

    def told(outputs: Outputs, batch: Outputs) -> npt.ArrayLike:
        try:
            return score(outputs, batch)
        except (Exception, SystemExit) as error:
            raise InvalidArgumentError(f"metric: {name} raised {type(error).__name__}: {error}") from error

    told.__name__ = getattr(score, "__name__", "score")
    return told


def _has_classes(value: npt.NDArray[Any]) -> bool:
    """Return whether an output's last axis may be classes, of samples or of positions in samples."""
    return value.dtype.kind == "f" and value.ndim in {2, 3} and value.shape[-1] > 1


def _is_probable(value: npt.NDArray[Any]) -> bool:
    """Return whether an output holds probabilities, or the classes themselves."""
    if value.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        return bool((value >= 0.0).all() and (np.abs(value.sum(axis=-1) - 1.0) < _SUM_TOLERANCE).all())


def _classes(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return value.argmax(axis=-1) if value.dtype.kind == "f" else value


def _right(value: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return for each position whether the class is the expected one; it never is where there is a NaN."""
    return np.asarray(np.equal(_classes(value), expected), np.bool_) & ~_has_nan(value)


def _has_nan(value: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return for each position whether there is a NaN among its classes."""
    return np.isnan(value).any(axis=-1) if value.dtype.kind == "f" else np.zeros(value.shape, np.bool_)
