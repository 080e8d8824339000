"""Run models in ONNX Runtime."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime
from onnx import ModelProto
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from .._base.errors import InvalidArgumentError
from .graph import Graph
from .notices import notice
from .protos import all_nodes

#: The first version of ONNX Runtime that loads nearly all models with FP8 and quantised activations.
FP8_RUNTIME = (1, 32)
#: The most bytes of weights in a protocol buffer, which is limited to 2 GiB: the rest of a model is small beside them.
LARGEST_MESSAGE = 2**31 - 2**26


def weight_bytes(model: ModelProto) -> int:
    """Return the bytes of a model's initializers."""
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer)


def session_of(
    model: ModelProto, *, as_written: bool = False, optimized_path: str = ""
) -> onnxruntime.InferenceSession:
    """Return a session on the CPU that runs a model, optimised, or node by node if `as_written`.

    If there is an `optimized_path`, ONNX Runtime writes the optimised model there.

    Raises
    ------
    InvalidArgumentError
        If ONNX Runtime cannot load the model.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors only: other errors are raised
    options.optimized_model_filepath = optimized_path
    # By default a session's threads spin for a while after a run.  That would slow the session that runs next, and two
    # models timed in turn would disturb each other.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    try:
        if weight_bytes(model) < LARGEST_MESSAGE:
            return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "model.onnx")
            save_with_data(model, path, "model.data")
            return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no narrower base class
        raise InvalidArgumentError(
            f"model: ONNX Runtime {onnxruntime.__version__} cannot load it: {_first_line(error)}"
        ) from error


def lacks_fp8() -> bool:
    """Return whether the installed ONNX Runtime is older than `FP8_RUNTIME`."""
    return tuple(map(int, onnxruntime.__version__.split(".")[:2])) < FP8_RUNTIME


def check_loads(model: ModelProto) -> None:
    """Raise unless ONNX Runtime can load a quantised model; only warn if it lacks a domain of its operators.

    Raises
    ------
    InvalidArgumentError
        If ONNX Runtime cannot load the model, though it has operators of all of the model's domains.
    """
    try:
        session_of(model)
    except InvalidArgumentError as error:
        own = {schema.domain for schema in get_all_operator_schema()} | {"ai.onnx"}
        others = sorted({node.domain for node in all_nodes(model)} - own - {each.domain for each in model.functions})
        if not others:
            raise InvalidArgumentError(f"quantised {error}") from error
        notice(
            f"model: it has operators of {', '.join(others)}, which ONNX Runtime lacks, so it was not loaded there; "
            "try it where it will run"
        )


def run(session: onnxruntime.InferenceSession, names: Sequence[str] | None, batch: dict[str, Any]) -> list[Any]:
    """Return outputs of a model for a batch, which may hold more than the inputs.

    Raises
    ------
    InvalidArgumentError
        If ONNX Runtime cannot compute them.
    """
    feed = {value.name: batch[value.name] for value in session.get_inputs()}
    try:
        result: list[npt.NDArray[Any]] = session.run(names, feed)
    except Exception as error:
        raise InvalidArgumentError(f"model: ONNX Runtime cannot run it on this batch: {_first_line(error)}") from error
    return result


def named_run(
    session: onnxruntime.InferenceSession, names: Sequence[str], batch: dict[str, Any]
) -> dict[str, npt.NDArray[Any]]:
    """Return the result of `run` as a dict, by the names of the outputs."""
    return dict(zip(names, run(session, names, batch), strict=True))


class Tap:
    """Computes some tensors of a model, also inputs, and nothing that only other tensors need.

    Parameters
    ----------
    model : ModelProto
    names : iterable of str
    """

    def __init__(self, model: ModelProto, names: Iterable[str]) -> None:
        self._names = list(dict.fromkeys(names))
        inputs = set(Graph(model).inputs)
        self._made = [name for name in self._names if name not in inputs]
        tapped = ModelProto()
        tapped.CopyFrom(model)
        del tapped.graph.output[:]
        tapped.graph.output.extend(onnx.ValueInfoProto(name=name) for name in self._made)
        self._session = session_of(tapped) if self._made else None

    def values(self, batch: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors for a batch, by their names and in the order in which they were given."""
        made = {} if self._session is None else named_run(self._session, self._made, batch)
        return {name: made[name] if name in made else batch[name] for name in self._names}


def save_with_data(model: ModelProto, path: str, data: str) -> None:
    """Write a model, with its weights in a file beside it."""
    copy = ModelProto()
    copy.CopyFrom(model)
    onnx.save_model(copy, path, save_as_external_data=True, location=data)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
