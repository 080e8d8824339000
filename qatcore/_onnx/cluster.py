"""Calibrate a model on a Dask cluster, to the same bits as on one machine.

The model is sent to every worker once, which keeps a session of it.  Batches are observed where they are read, and
only collectors come back, merged in a tree.  A task whose worker is killed runs again on another one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import onnx
import onnx_ir as ir
import onnxruntime
from distributed import Client, Future, KilledWorker, LocalCluster, default_client, get_worker, wait

from .. import __version__
from .._base.errors import InvalidArgumentError
from .._calibration.collector import CalibrationCollector
from .calibration import Calibration, digest_of, observed
from .data import Data, InputSpec, Shard
from .model import read_model
from .quantization import Options, ready
from .session import Tap
from .skeleton import proto_of, weight_bytes

#: How many results one task merges, and how many tasks wait for each thread of the workers.
_FAN_IN, _WAITING = 8, 3
#: How long to wait for a scheduler.
_PATIENCE = "10s"
#: Workers read larger models themselves.
_MOST_SENT = 1 << 28

Collectors = dict[str, CalibrationCollector]


@dataclasses.dataclass(frozen=True)
class Job:
    """What all tasks of a calibration share.

    Attributes
    ----------
    model : str or bytes
        The path of the model, or the prepared model itself.
    digest : str
        The digest of the model before it was prepared.
    keep_inputs : bool
        How to prepare a model that is read from its path.
    tensors : tuple of str
    versions : tuple of str
        Of qatcore and ONNX Runtime.
    """

    model: str | bytes
    digest: str
    keep_inputs: bool
    equalised: bool
    tensors: tuple[str, ...]
    versions: tuple[str, str]


class _Sessions:
    """The one session that a worker keeps."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._job: Job | None = None
        self._opened: tuple[Tap, InputSpec] | None = None

    def of(self, job: Job) -> tuple[Tap, InputSpec]:
        """Return the session of a job, and what the model takes."""
        with self._lock:
            if self._opened is None or self._job != job:
                self._opened, self._job = None, job  # let go of the old one first
                self._opened = _opened(job)
            return self._opened


_SESSIONS = _Sessions()


def _versions() -> tuple[str, str]:
    return __version__, onnxruntime.__version__


def _opened(job: Job) -> tuple[Tap, InputSpec]:
    if job.versions != (found := _versions()):
        names = [f"qatcore {ours} and ONNX Runtime {theirs}" for ours, theirs in (found, job.versions)]
        raise InvalidArgumentError(f"it has {names[0]}, but the calibration needs {names[1]}; install the same there")
    if isinstance(job.model, bytes):
        model = read_model(onnx.load_from_string(job.model))
    else:
        exact = read_model(job.model)
        if digest_of(exact) != job.digest:
            raise InvalidArgumentError(f"{job.model} is another model there")
        model = ready(exact, Options(keep_inputs=job.keep_inputs), equalised=job.equalised)
    return Tap(model, job.tensors), InputSpec(model)


def _observe(job: Job, shard: Shard) -> tuple[Collectors, int]:
    """Return the collectors of a batch, and how many samples it has; runs on a worker."""
    try:
        tap, spec = _SESSIONS.of(job)
        batch = spec.check(shard.read(), shard.where)
        return observed(tap.values(batch)), spec.samples_of(batch)
    except (InvalidArgumentError, TypeError, OSError) as error:
        raise InvalidArgumentError(f"cluster: worker {get_worker().address}: {error}") from error


def _same(job: Job) -> Job:
    """Return a job, so that it is sent to the workers, from one to the other."""
    return job


def _merge(parts: list[tuple[Collectors, int]]) -> tuple[Collectors, int]:
    """Return the sum of some results; runs on a worker."""
    total: Collectors = {name: CalibrationCollector() for name in parts[0][0]}
    for collectors, _ in parts:
        for name, collector in collectors.items():
            total[name].merge(collector)
    return total, sum(samples for _, samples in parts)


def active_client() -> Client:
    """Return the active client.

    Raises
    ------
    InvalidArgumentError
        If there is none.
    """
    try:
        return default_client()
    except ValueError as error:
        raise InvalidArgumentError(
            "client: expected an active distributed.Client, got none; make one before, such as Client()"
        ) from error


@contextlib.contextmanager
def connected(cluster: str) -> Iterator[Client]:
    """Yield a client of the scheduler at an address, or of a cluster on this machine if it is "local".

    Raises
    ------
    InvalidArgumentError
        If there is no scheduler at the address.
    """
    if cluster == "local":
        with LocalCluster(dashboard_address=":0", silence_logs=50) as local, Client(local) as client:
            yield client
        return
    try:
        client = Client(cluster, timeout=_PATIENCE)
    except (OSError, ValueError) as error:
        raise InvalidArgumentError(f"cluster: there is no scheduler at {cluster!r}: {error}") from error
    with client:
        yield client


class _Tree:
    """Merges results that come one after the other: eight of a level become one of the next."""

    def __init__(self, client: Client) -> None:
        self._client, self._levels = client, list[list[Future]]()

    def add(self, future: Future, level: int = 0) -> None:
        """Add a result."""
        if level == len(self._levels):
            self._levels.append([])
        waiting = self._levels[level]
        waiting.append(future)
        if len(waiting) == _FAN_IN:
            self._levels[level] = []
            self.add(self._client.submit(_merge, waiting, pure=False), level + 1)

    def result(self) -> tuple[Collectors, int]:
        """Return the sum of all results."""
        rest = [future for level in self._levels for future in level]
        result: tuple[Collectors, int] = _result_of(self._client.submit(_merge, rest, pure=False))
        return result


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Where to calibrate: the client of a cluster, and the path of the model, if it has one that workers may read."""

    client: Client
    path: str | None

    def observe(
        self,
        exact: ir.Model,
        float_model: ir.Model,
        tensors: Sequence[str],
        data: Data,
        calibration: Calibration,
        options: Options,
        *,
        sampled: bool = False,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        """Add the values of tensors of a prepared model on all of the data to a calibration.

        Parameters
        ----------
        exact, float_model : onnx_ir.Model
            The model before it was prepared, and the prepared one.
        tensors : sequence of str
        data : Data
        calibration : Calibration
            It changes only once all batches are done.
        options : Options
        sampled : bool
            Let the data keep some batches, which `Data.sample` returns; then they are read here, too.
        progress : callable, optional
            Called with the number of batches that are done.

        Raises
        ------
        InvalidArgumentError
            If a worker cannot read a batch or has other versions, or workers were killed several times.
        """
        names, digest = tuple(tensors), digest_of(exact)
        calibration.check_model(digest, names)
        sent: str | bytes | None = self.path
        if sent is None or weight_bytes(exact) <= _MOST_SENT:
            sent = proto_of(float_model).SerializeToString()
        job = Job(sent, digest, options.keep_inputs, calibration.equalised, names, _versions())
        collectors, samples = _observed_on(self.client, job, data, progress)
        if sampled:
            data.sample()
        calibration.model = digest
        for name in names:
            calibration.collectors.setdefault(name, CalibrationCollector()).merge(collectors[name])
        calibration.samples += samples


def _observed_on(
    client: Client, job: Job, data: Data, progress: Callable[[int], None] | None
) -> tuple[Collectors, int]:
    """Return the collectors of all of the data, and how many samples it has."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sending large graph")  # once, and a task can be run again where data is lost
        sent = client.submit(_same, job, pure=False)
    tree, waiting, done = _Tree(client), set[Future](), 0

    def finish(most: int) -> None:
        nonlocal waiting, done
        while len(waiting) > most:
            finished, waiting = wait(waiting, return_when="FIRST_COMPLETED")
            for future in finished:
                _result_of(future)  # raises what the worker raised
            done += len(finished)
            if progress is not None:
                progress(done)

    most = _WAITING * max(sum(client.nthreads().values()), 1)
    for shard in data.shards():
        future = client.submit(_observe, sent, shard, pure=False)
        waiting.add(future)
        tree.add(future)
        finish(most)
    finish(0)
    return tree.result()


def _result_of(future: Future) -> Any:
    """Return the result of a task.

    Raises
    ------
    InvalidArgumentError
        If the task failed.
    """
    try:
        return future.result()
    except InvalidArgumentError:
        raise
    except KilledWorker as error:
        raise InvalidArgumentError(f"cluster: workers were killed again and again: {error}") from error
    except Exception as error:  # such as a worker that lacks a package
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InvalidArgumentError(
            f"cluster: a worker failed: {said}; workers need qatcore[dask,onnx] in version {__version__}"
        ) from error
