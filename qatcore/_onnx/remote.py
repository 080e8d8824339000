"""The public function that calibrates a model on a cluster."""

from __future__ import annotations

import os
from collections.abc import Iterable

from distributed import Client

from .._base.validation import as_flag
from .calibration import Calibration
from .cluster import Cluster, active_client
from .data import Data, InputSpec, Source
from .display import Phases
from .model import Model, read_model
from .pipeline import run_calibration
from .plan import DEFAULT_OPERATORS
from .quantization import Options


def calibrate_onnx(
    model: Model,
    data: Source,
    *,
    client: Client | None = None,
    ops: Iterable[str] = DEFAULT_OPERATORS,
    exclude: Iterable[str] = (),
    batch_size: int | None = None,
    progress: bool = False,
) -> Calibration:
    """Calibrate an ONNX model on a cluster, to the same bits as `qatcore.onnx.calibrate`; needs the extra ``onnx``.

    Each worker gets the model once and keeps it.  Workers read the files of a directory themselves, under the same
    path; other data is read here and sent to them.  Batches of a killed worker are observed again on others.

    Parameters
    ----------
    model : str, PathLike, ModelProto or onnx_ir.Model
        If it is a path, and the weights take more than 256 MiB, workers read the model there.
    data, ops, exclude, batch_size, progress
        As `qatcore.onnx.calibrate` takes them.
    client : distributed.Client, optional
        By default the active one.

    Returns
    -------
    qatcore.onnx.Calibration
        For `quantize_model`.

    Raises
    ------
    InvalidArgumentError
        As `qatcore.onnx.calibrate` raises it.  If there is no client.  If a worker cannot read a batch, or has another
        version of qatcore or ONNX Runtime.
    OSError
        If a file cannot be read.
    TypeError
        If an argument is of another type.
    """
    exact = read_model(model)
    batches, result = Data(data, InputSpec(exact), batch_size), Calibration()
    path = os.fspath(model) if isinstance(model, (str, os.PathLike)) else None
    cluster = Cluster(active_client() if client is None else client, path)
    with Phases(shown=as_flag(progress, "progress")) as phases:
        tick = phases.begin("calibrating", batches.total)
        options = Options.checked(ops=ops, exclude=exclude)
        run_calibration(exact, batches, options, result, cluster=cluster, progress=tick)
    return result
