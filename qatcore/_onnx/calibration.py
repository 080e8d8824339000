"""Calibrating a model: its tensors observed batch by batch, in constant memory."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

from onnx import ModelProto

from .._base.errors import InvalidArgumentError
from .._base.threads import for_each
from .._base.types import PathLike
from .._base.validation import as_flag
from .._calibration.calibrate import named_collectors
from .._calibration.collector import CalibrationCollector
from .._calibration.storage import read_described, write_states
from .data import Batch, Data
from .session import Tap


class Calibration:
    """What was observed of a model's tensors; an empty one to begin with.

    Attributes
    ----------
    collectors : dict of str to CalibrationCollector
        By the names of tensors.
    samples : int
        How many were observed, along the first axis of the model's first input.
    unfinished : int or None
        How many of them by a run that was interrupted; None if none was.
    model : str
        A digest of the model.  Empty before the first batch.
    """

    def __init__(self) -> None:
        self.collectors: dict[str, CalibrationCollector] = {}
        self.samples = 0
        self.unfinished: int | None = None
        self.model = ""

    @property
    def finished(self) -> bool:
        """Whether something was observed, and no run was interrupted."""
        return self.unfinished is None and self.samples > 0

    def merge(self, other: Calibration) -> None:
        """Add what another calibration of the same model has observed.

        Raises
        ------
        InvalidArgumentError
            If it is of another model or other tensors, or one of both is not finished.
        TypeError
            If `other` is none.
        """
        if not isinstance(other, Calibration):
            raise TypeError(f"other: expected a Calibration, got {type(other).__name__}")
        if self.model != other.model:
            raise InvalidArgumentError("other: expected a calibration of the same model, got one of another")
        if list(self.collectors) != list(other.collectors):
            different = sorted(set(self.collectors) ^ set(other.collectors)) or ["the order"]
            raise InvalidArgumentError(f"other: expected the same tensors, {different[0]} is not in both")
        if not (self.finished and other.finished):
            raise InvalidArgumentError("other: expected finished calibrations, got one that was interrupted; resume it")
        for name, collector in self.collectors.items():
            collector.merge(other.collectors[name])
        self.samples += other.samples

    def check_model(self, digest: str) -> None:
        """Raise `InvalidArgumentError` if it is of another model."""
        if self.model not in {"", digest}:
            raise InvalidArgumentError("calibration: expected one of this model, got one of another")

    def save(self, path: PathLike) -> None:
        """Write it to a file; a crash leaves the old file or the new one, and equal ones give equal files.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        about = {"model": self.model, "samples": self.samples, "unfinished": self.unfinished}
        states = {name: collector._to_state() for name, collector in named_collectors(self.collectors).items()}
        write_states(path, states, about)

    @classmethod
    def load(cls, path: PathLike) -> Calibration:
        """Read what `save` has written.

        Raises
        ------
        InvalidArgumentError
            If the file is damaged, or something else; the message names it and what is wrong.
        OSError
            If it cannot be read.
        """
        states, about = read_described(path)
        result = cls()
        if not about:
            raise InvalidArgumentError(f"{path}: expected the calibration of a model, got collectors only")
        model, samples, unfinished = (about.get(key) for key in ("model", "samples", "unfinished"))
        if not (
            isinstance(model, str)
            and type(samples) is int
            and samples >= 0
            and (unfinished is None or (type(unfinished) is int and 0 <= unfinished <= samples))
        ):
            raise InvalidArgumentError(f"{path}: what it says of its model is damaged")
        result.model, result.samples, result.unfinished = model, samples, unfinished
        result.collectors = {name: CalibrationCollector._of_state(state) for name, state in states.items()}
        return result

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        state = "" if self.unfinished is None else ", not finished"
        return f"Calibration({len(self.collectors)} tensors, {self.samples} samples{state})"


def observe(
    model: ModelProto,
    data: Data,
    tensors: list[str],
    calibration: Calibration,
    *,
    digest: str,
    resume: bool = False,
    sampled: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Run a prepared model over data and add what its tensors are to a calibration, whole batches only.

    Parameters
    ----------
    model : ModelProto
    data : Data
    tensors : list of str
    calibration : Calibration
    digest : str
        Of the model before it was prepared.
    resume : bool
        Skip the batches that the interrupted run has seen.
    sampled : bool
        Let the data keep some batches, which `Data.sample` returns.
    progress : callable, optional
        Told how many batches there were up to now.

    Raises
    ------
    InvalidArgumentError
        If the calibration is of another model or of other tensors, or what it has seen does not end where a batch does.
    """
    calibration.check_model(digest)
    if calibration.model and list(calibration.collectors) != tensors:
        raise InvalidArgumentError("calibration: expected one of the same tensors; were other ops or nodes chosen?")
    resume = as_flag(resume, "resume")
    if resume and calibration.finished:
        return
    tap = Tap(model, tensors)
    left = seen = (calibration.unfinished or 0) if resume else 0
    for index, batch in enumerate(data.sampled() if sampled else data, start=1):
        samples = data.spec.samples_of(batch)
        if left:
            if samples > left:
                raise InvalidArgumentError(
                    f"calibration: it has seen {seen} samples, which do not end where a batch does: there are {left} "
                    f"before a batch of {samples}; resume with the same batches"
                )
            left -= samples
        else:
            values = tap.values(batch)
            with _interrupts_later():
                calibration.model = digest
                for name in tensors:
                    calibration.collectors.setdefault(name, CalibrationCollector())
                _observe_all(values, calibration.collectors)
                calibration.samples += samples
                calibration.unfinished = (calibration.unfinished or 0) * (resume or index > 1) + samples
            del values
        if progress is not None:
            progress(index)
    if left:
        raise InvalidArgumentError(f"calibration: it has seen {seen} samples, {left} more than there are")
    calibration.unfinished = None


def _observe_all(values: Batch, collectors: dict[str, CalibrationCollector]) -> None:
    # The largest first: what one thread is left with at the end is small.
    for_each(sorted(values, key=lambda name: -values[name].size), lambda name: collectors[name].observe(values[name]))


def digest_of(model: ModelProto) -> str:
    """Return a digest of a model's nodes and weights."""
    digest = hashlib.sha256()
    for part in (*model.opset_import, *model.functions, *model.graph.input, *model.graph.node):
        digest.update(part.SerializeToString(deterministic=True))
    for tensor in model.graph.initializer:
        digest.update(f"{tensor.name} {tensor.data_type} {list(tensor.dims)}".encode())
        digest.update(tensor.raw_data or tensor.SerializeToString(deterministic=True))
    return digest.hexdigest()


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block: a batch is observed by all collectors or by none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pending: list[tuple[int, FrameType | None]] = []
    handler = signal.getsignal(signal.SIGINT)
    if not callable(handler):
        yield
        return
    signal.signal(signal.SIGINT, lambda number, frame: pending.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if pending:
            handler(*pending[0])
