"""What a drop is measured in: agreement with the float model, accuracy on labels, or a function of the user's."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from .._base.errors import InvalidArgumentError
from .data import imported

Outputs = Mapping[str, npt.NDArray[Any]]
#: From outputs and a batch to a score from 0 to 1 for each sample; bools will do.
Score = Callable[[Outputs, Outputs], Any]

_SUM_TOLERANCE = 1e-2


class IncomparableError(InvalidArgumentError):
    """What two models give cannot be compared.

    Attributes
    ----------
    reason : str
        Why, and nothing else.
    """

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


class Metric:
    """Scores of the float and the quantised model, added up batch by batch; in which order does not matter.

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
        """What the data calls the classes of its samples, if it is asked for them."""
        return self._labels

    @property
    def name(self) -> str:
        """What the scores are."""
        if self._score is not None:
            return getattr(self._score, "__name__", "score")
        if self._labels is not None:
            return "accuracy"
        return "agreement" if any(counts.n for counts in self._counts.values()) else "closeness"

    def fresh(self) -> Metric:
        """Return one that has seen nothing."""
        return Metric(self._score, self._labels)

    def add(self, exact: Outputs, other: Outputs, batch: Outputs) -> None:
        """Add what the float model and the quantised one answer to a batch.

        Raises
        ------
        IncomparableError
            If no function compares them, and outputs that have to be compared have not the same shape and kind.
        InvalidArgumentError
            If the function or the labels are not as they should be.
        """
        if self._score is not None:
            self._own.add(*(self._checked(self._score(outputs, batch)) for outputs in (exact, other)))
            return
        several = [name for name, value in exact.items() if _has_classes(value) or value.dtype.kind in "biuOSU"]
        if self._labels is not None:
            if self._labels not in batch:
                raise InvalidArgumentError(f"data: there are no labels {self._labels!r} in it, only {', '.join(batch)}")
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
        """Count in how many known places of an output either model has the right class."""
        counts = self._counts.setdefault(name, _Counts())
        if classes[known].size:
            counts.probable &= _is_probable(exact[known])
            counts.add(*(_right(value, classes)[known] for value in (exact, other)))

    def _checked(self, scores: Any) -> npt.NDArray[np.float64]:
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
        """Return the outputs of several classes that labels have fitted in all batches, and raise if none has."""
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
        """Return the counts of the outputs that are probabilities, or of all if none are; with labels of the first."""
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
            raise InvalidArgumentError(f"data: there is no label in {self._labels!r}")
        return total

    @property
    def scores(self) -> tuple[float, float]:
        """What the float model and the quantised one score, in percent.

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
        if not relative:  # all is 0, and what is not is all wrong
            return 100.0, 0.0 if any(noise.noise for noise in noises) else 100.0
        return 100.0, 100.0 * (1.0 - min(1.0, max(relative)))

    @property
    def drop(self) -> float:
        """Percent that are lost, below 0 if the quantised model is the better one."""
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
                f"metric: expected as many scores of both models, got {exact.size}, {other.size}"
            )
        self.exact += float(exact.sum())
        self.other += float(other.sum())
        self.n += exact.size


class Noise:
    """Powers of a signal and of what it differs by from another, added up in float64, and the largest difference.

    Values that are not finite in the signal are left out; where only the other one has such, the noise is infinite.
    Integers have no powers, and text has no differences either.  All is NaN once arrays have not the same shape and
    kind.
    """

    def __init__(self) -> None:
        self.signal = self.noise = self.largest = 0.0
        self.n = 0

    def add(self, exact: Any, other: Any) -> None:
        """Compare what two models give for one tensor."""
        if not are_alike(exact, other) or exact.dtype.kind not in "fbiu":
            self.signal = self.noise = self.largest = math.nan
            return
        if exact.dtype.kind != "f":
            # The difference of the greater and the lesser one is exact modulo 2**64, and so in uint64.
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
        """Signal to quantisation noise in dB: +inf without noise, -inf if it is infinite, NaN without signal."""
        if not self.signal > 0.0:
            return math.nan
        return _decibels(self.noise / self.signal)


def is_of_floats(value: Any) -> bool:
    """Return whether what a model gives is an array of floats."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "f"


def are_alike(exact: Any, other: Any) -> bool:
    """Return whether what two models give for one tensor are arrays of one shape and kind."""
    if not (isinstance(exact, np.ndarray) and isinstance(other, np.ndarray)):
        return False
    return (exact.shape, exact.dtype.kind) == (other.shape, other.dtype.kind)


def check_alike(what: str, exact: Any, other: Any) -> None:
    """Raise `IncomparableError` unless what two models give for one tensor are arrays of one shape and kind."""
    if not are_alike(exact, other):
        first, second = (
            f"{each.dtype} {each.shape}" if isinstance(each, np.ndarray) else "no tensor" for each in (exact, other)
        )
        raise IncomparableError(
            f"quantised model: expected {what} like the float model's, {first}, got {second}: it is of another model, "
            "or its size depends on values, and only a function can compare it, as a metric",
            f"{what} is {first} in float and {second} quantised; give a --metric, a function that compares it",
        )


class OutputNoise:
    """The noise of a model's outputs of floats, each relative to its own power, added up."""

    def __init__(self) -> None:
        self._each: list[Noise] = []

    def add(self, exact: Sequence[Any], other: Sequence[Any]) -> None:
        """Compare the outputs for a batch."""
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
        """The places of outputs that have a power and are alike in both models."""
        return {place for place, noise in enumerate(self._each) if noise.signal > 0.0}

    def choose(self, places: Iterable[int]) -> None:
        """Forget all other outputs."""
        self._each = [self._each[place] for place in places]

    @property
    def sqnr(self) -> float:
        """Signal to quantisation noise in dB: +inf without noise, -inf if it is infinite."""
        return _decibels(sum(noise.noise / noise.signal for noise in self._each if noise.signal > 0.0))


def _decibels(relative: float) -> float:
    if relative == 0.0:
        return math.inf
    return -10.0 * math.log10(relative) if relative < math.inf else -math.inf


def _check_labels(key: str, labels: npt.NDArray[Any], name: str, value: npt.NDArray[Any]) -> None:
    """Raise `InvalidArgumentError` unless labels fit an output."""
    shape, n = (value.shape[:-1], value.shape[-1]) if value.dtype.kind == "f" else (value.shape, None)
    if labels.shape != shape:
        raise InvalidArgumentError(f"data: expected {key} of shape {shape}, as {name} has, got {labels.shape}")
    if n is not None and (labels.dtype.kind not in "iu" or not ((labels >= 0) & (labels < n)).all()):
        raise InvalidArgumentError(
            f"data: expected {key} to be classes from 0 to {n - 1}, as {name} has, in integers, "
            f"got {labels.dtype}: {labels!r:.60}"
        )


def _told(score: Score, name: str) -> Score:
    """Return a function named by the user, of which whatever it raises is said in one line."""

    def told(outputs: Outputs, batch: Outputs) -> Any:
        try:
            return score(outputs, batch)
        except (Exception, SystemExit) as error:
            raise InvalidArgumentError(f"metric: {name} raised {type(error).__name__}: {error}") from error

    told.__name__ = getattr(score, "__name__", "score")
    return told


def _has_classes(value: npt.NDArray[Any]) -> bool:
    """Return whether an output's last axis may be one of classes: of samples, or of positions in them."""
    return value.dtype.kind == "f" and value.ndim in {2, 3} and value.shape[-1] > 1


def _is_probable(value: npt.NDArray[Any]) -> bool:
    """Return whether an output is of probabilities, or of classes themselves."""
    if value.dtype.kind != "f":
        return True
    with np.errstate(all="ignore"):
        return bool((value >= 0.0).all() and (np.abs(value.sum(axis=-1) - 1.0) < _SUM_TOLERANCE).all())


def _classes(value: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return value.argmax(axis=-1) if value.dtype.kind == "f" else value


def _right(value: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return for each position whether the class is the expected one; where there is NaN it never is."""
    return np.asarray(np.equal(_classes(value), expected), np.bool_) & ~_has_nan(value)


def _has_nan(value: npt.NDArray[Any]) -> npt.NDArray[np.bool_]:
    """Return for each position whether there is NaN among its classes."""
    return np.isnan(value).any(axis=-1) if value.dtype.kind == "f" else np.zeros(value.shape, np.bool_)
