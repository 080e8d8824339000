"""Calibrate a model: observe its tensors batch by batch, in constant memory."""

from __future__ import annotations

import contextlib
import hashlib
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from types import FrameType

import numpy as np
import onnx
import onnx_ir as ir

from .._base.errors import InvalidArgumentError
from .._base.threads import for_each
from .._base.types import PathLike
from .._base.validation import as_flag
from .._calibration.calibrate import named_collectors
from .._calibration.collector import CalibrationCollector
from .._calibration.storage import read_described, write_states
from .data import Batch, Data
from .session import Tap
from .skeleton import is_large


class Calibration:
    """The observed values of a model's tensors, as histograms; a new one is empty.

    Attributes
    ----------
    collectors : dict of str to CalibrationCollector
        A collector for each tensor, by the tensor's name.
    samples : int
        How many samples were observed, along the first axis of the model's first input.
    unfinished : int or None
        How many of these samples an interrupted run has observed; None if no run was interrupted.
    model : str
        A digest of the model's nodes and weights.  Empty before the first batch.
    equalised : bool
        Whether channels between convolutions were divided by powers of two, as `quantize_model` does; not if you named
        the tensors to observe.
    """

    def __init__(self) -> None:
        self.collectors: dict[str, CalibrationCollector] = {}
        self.samples = 0
        self.unfinished: int | None = None
        self.model = ""
        self.equalised = True

    @property
    def finished(self) -> bool:
        """Whether something was observed, and no run was interrupted."""
        return self.unfinished is None and self.samples > 0

    def merge(self, other: Calibration) -> None:
        """Add the values that another calibration of the same model has observed.

        Parameters
        ----------
        other : Calibration

        Raises
        ------
        InvalidArgumentError
            If `other` is of another model or has other tensors.  If one of the two is not finished.
        TypeError
            If `other` is not a calibration.
        """
        if not isinstance(other, Calibration):
            raise TypeError(f"other: expected a Calibration, got {type(other).__name__}")
        if self.model != other.model:
            raise InvalidArgumentError("other: expected a calibration of the same model, got one of another")
        if list(self.collectors) != list(other.collectors):
            different = sorted(set(self.collectors) ^ set(other.collectors)) or ["the order"]
            raise InvalidArgumentError(f"other: expected the same tensors in both, but {different[0]} differs")
        if self.equalised != other.equalised:
            raise InvalidArgumentError(
                "other: expected a calibration of the same kind, but only one of both was of tensors that you name"
            )
        if not (self.finished and other.finished):
            raise InvalidArgumentError("other: expected finished calibrations, got one that was interrupted; resume it")
        for name, collector in self.collectors.items():
            collector.merge(other.collectors[name])
        self.samples += other.samples

    def check_model(self, digest: str, tensors: Sequence[str] | None = None) -> None:
        """Raise `InvalidArgumentError` if the calibration is of another model, or does not have these tensors."""
        if self.model not in {"", digest}:
            raise InvalidArgumentError(
                "calibration: expected one of this model, got one of another; calibrate this model"
            )
        if tensors is not None and self.model and list(self.collectors) != list(tensors):
            raise InvalidArgumentError(
                "calibration: expected one of the same tensors, got other ones; choose the same ops and nodes"
            )

    def save(self, path: PathLike) -> None:
        """Write the calibration to a file.

        A crash leaves the old file or the new one.  Equal calibrations give equal files.

        Raises
        ------
        OSError
            If the file cannot be written.
        """
        about = {"model": self.model, "samples": self.samples, "unfinished": self.unfinished}
        about["equalised"] = self.equalised
        states = {name: collector._to_state() for name, collector in named_collectors(self.collectors).items()}
        write_states(path, states, about)

    @classmethod
    def load(cls, path: PathLike) -> Calibration:
        """Return a calibration from a file that `save` wrote.

        Raises
        ------
        InvalidArgumentError
            If the file is damaged, or is not such a file.  The message names the file and the fault.
        OSError
            If the file cannot be read.
        """
        states, about = read_described(path)
        result = cls()
        if not about:
            raise InvalidArgumentError(f"{path}: expected a file of qatcore calibrate, got only collectors")
        model, samples, unfinished = (about.get(key) for key in ("model", "samples", "unfinished"))
        equalised = about.get("equalised", False)
        if not (
            isinstance(model, str)
            and type(equalised) is bool
            and type(samples) is int
            and samples >= 0
            and (unfinished is None or (type(unfinished) is int and 0 <= unfinished <= samples))
        ):
            raise InvalidArgumentError(f"{path}: its data on the model is damaged; calibrate again")
        result.model, result.samples, result.unfinished, result.equalised = model, samples, unfinished, equalised
        result.collectors = {name: CalibrationCollector._of_state(state) for name, state in states.items()}
        return result

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        state = "" if self.unfinished is None else ", not finished"
        return f"Calibration({len(self.collectors)} tensors, {self.samples} samples{state})"


def observe(
    model: ir.Model,
    data: Data,
    tensors: list[str],
    calibration: Calibration,
    *,
    digest: str,
    resume: bool = False,
    sampled: bool = False,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Run a prepared model on data and add the values of its tensors to a calibration, in whole batches.

    Parameters
    ----------
    model : onnx_ir.Model
    data : Data
    tensors : list of str
    calibration : Calibration
    digest : str
        The digest of the model before it was prepared.
    resume : bool
        Skip the batches that the interrupted run has observed.
    sampled : bool
        Let the data keep some batches, which `Data.sample` returns.
    progress : callable, optional
        Called with the number of batches so far.

    Raises
    ------
    InvalidArgumentError
        If the calibration is of another model or of other tensors.  If the interrupted run ended inside of a batch.
    """
    calibration.check_model(digest, tensors)
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
                    f"calibration: it has seen {seen} samples, which end inside of a batch: {left} are left before a "
                    f"batch of {samples}; resume with the same batches"
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
        raise InvalidArgumentError(f"calibration: it has seen {seen} samples, {left} more than the data has")
    calibration.unfinished = None


def observed(values: Batch) -> dict[str, CalibrationCollector]:
    """Return a collector of each tensor's values."""
    collectors: dict[str, CalibrationCollector] = {name: CalibrationCollector() for name in values}
    _observe_all(values, collectors)
    return collectors


def _observe_all(values: Batch, collectors: dict[str, CalibrationCollector]) -> None:
    # The largest first, so that the last thread to finish has only a small tensor left.
    for_each(sorted(values, key=lambda name: -values[name].size), lambda name: collectors[name].observe(values[name]))


def digest_of(model: ir.Model) -> str:
    """Return a digest of a model's nodes and weights."""
    digest = hashlib.sha256()
    imports = [onnx.helper.make_opsetid(*each) for each in model.opset_imports.items()]
    for part in (*model.functions.values(), *model.graph.inputs, *model.graph):
        imports.append(ir.to_proto(part))
    for proto in imports:
        digest.update(proto.SerializeToString(deterministic=True))
    for name, tensor in model.graph.initializers.tensor_items():
        digest.update(f"{name} {int(tensor.dtype)} {list(tensor.shape.numpy())}".encode())
        if tensor.dtype == ir.DataType.STRING:
            digest.update(ir.serde.serialize_tensor(tensor).SerializeToString(deterministic=True))
        elif is_large(tensor) and tensor.dtype.bitwidth >= 8:  # hash it where it is
            digest.update(np.ascontiguousarray(tensor.numpy()).reshape(-1).view(np.uint8).data)
        else:
            digest.update(tensor.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def _interrupts_later() -> Iterator[None]:
    """Let Ctrl-C wait until the end of the block, so that all collectors observe a batch, or none does."""
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
