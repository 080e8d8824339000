"""Run models in ONNX Runtime."""

from __future__ import annotations

import json
import os
import statistics
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
import onnxruntime
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from .._base.errors import InvalidArgumentError
from .description import description
from .encoding import Encoded
from .graph import Array, all_nodes, copied, inputs_of, names_of, values_by_name
from .notices import notice
from .skeleton import large_tensors, skeleton_of, weight_bytes, without_values
from .stored import PLACE

#: The first version of ONNX Runtime that loads nearly all models with FP8 and quantised activations.
FP8_RUNTIME = (1, 32)
#: The first version of ONNX Runtime in which a model in memory can have weights in a folder.
_READS_FROM_FOLDER = (1, 23)
#: What ends the names of a profile's events that time kernels.
_KERNEL = "_kernel_time"
#: Models with more bytes of weights are not copied to load them: the session reads the weights where they are.
_MOST_COPIED = 1 << 25


def session_of(
    model: ir.Model,
    *,
    as_written: bool = False,
    optimized_path: str = "",
    profile_path: str = "",
    threads: int | None = None,
) -> onnxruntime.InferenceSession:
    """Return a session on the CPU that runs a model, optimised, or node by node if `as_written`.

    If there is an `optimized_path`, ONNX Runtime writes the optimised model there.  If there is a `profile_path`, it
    writes a profile to a file whose name begins so.  By default it computes with a thread for each core.

    Raises
    ------
    InvalidArgumentError
        If ONNX Runtime cannot load the model.
    """
    about = description(model)
    elsewhere = "target" in about
    # Of forms for other runtimes, its optimisations take a Relu ahead of FP8 codes for one without effect.
    as_written = as_written or (elsewhere and about.get("activations") == "fp8")
    try:
        return _session(model, as_written, optimized_path, profile_path, threads)
    except InvalidArgumentError:
        # From opset 21 on, they also make invalid models of int8 codes.
        if as_written or not elsewhere:
            raise
    return _session(model, True, optimized_path, profile_path, threads)


def _session(
    model: ir.Model, as_written: bool, optimized_path: str, profile_path: str, threads: int | None
) -> onnxruntime.InferenceSession:
    tensors, options = large_tensors(model), _options(as_written=as_written)
    options.optimized_model_filepath = optimized_path
    options.enable_profiling, options.profile_file_prefix = bool(profile_path), profile_path
    options.intra_op_num_threads = threads or 0
    copies = sum(tensor.nbytes for tensor in tensors.values()) <= _MOST_COPIED
    if copies or (not as_written and all(tensor.dtype.bitwidth >= 8 for tensor in tensors.values())):
        return _loaded(model, tensors, options, copies=copies)
    # From a file a session maps weights, and only its optimisations copy them.  Small types can only be in a file.
    with tempfile.TemporaryDirectory(prefix="qatcore-") as folder:
        path, data = os.path.join(folder, "model.onnx"), os.path.join(folder, "model.data")
        encoded = Encoded(model, "model.data", outside=True)
        for name, write in ((path, encoded.write), (data, encoded.write_data)):
            with open(name, "wb") as file:
                write(file)
        return _opened(path, options)


def optimized(model: ir.Model) -> onnx.ModelProto:
    """Return the optimised model that ONNX Runtime runs."""
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "optimized.onnx")
        session_of(model, optimized_path=path)
        return onnx.load(path, load_external_data=False)  # some versions keep weights in memory


def profile(
    model: ir.Model, outputs: Sequence[str], batch: dict[str, Any], threads: int | None, runs: int
) -> list[tuple[str, str, float]]:
    """Return the name and the operator of each kernel of a model, and its median milliseconds of so many runs."""
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(model, profile_path=os.path.join(folder, "profile"), threads=threads)
        for _ in range(runs):
            run(session, outputs, batch)
        with open(session.end_profiling(), encoding="utf-8") as file:
            events = json.load(file)
    times = dict[tuple[str, str], list[float]]()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            key = event["name"].removesuffix(_KERNEL), event["args"]["op_name"]
            times.setdefault(key, []).append(event["dur"] / 1e3)
    return [(*key, statistics.median(taken)) for key, taken in times.items()]


def _options(*, as_written: bool) -> onnxruntime.SessionOptions:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal errors only: other errors are raised
    # By default a session's threads spin for a while after a run.  That would slow the session that runs next, and two
    # models timed in turn would disturb each other.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if as_written:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return options


def _opened(model: str | bytes, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """Return a session of the model at a path, or of a serialised one."""
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its exceptions share no narrower base class
        raise InvalidArgumentError(
            f"model: ONNX Runtime {onnxruntime.__version__} cannot load it: {_first_line(error)}"
        ) from error


def _loaded(
    model: ir.Model, tensors: dict[str, ir.TensorProtocol], options: onnxruntime.SessionOptions, *, copies: bool
) -> onnxruntime.InferenceSession:
    """Return a session of a model, whose large initializers are copied, or else read where they are."""
    proto, values = without_values(model), dict[str, onnxruntime.OrtValue]()
    places = {name: tensor.meta[PLACE] for name, tensor in tensors.items() if PLACE in tensor.meta}
    folder = next((folder for folder, *_ in places.values()), "") if _runtime() >= _READS_FROM_FOLDER else ""
    if folder and not copies:
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    for header in proto.graph.initializer:
        if (tensor := tensors.get(header.name)) is None:
            continue
        if copies:
            header.raw_data = tensor.tobytes()
            continue
        header.data_location = onnx.TensorProto.EXTERNAL
        place = places.get(header.name, ("", "memory", 0))
        for key, value in (("location", place[1]), ("offset", place[2]), ("length", tensor.nbytes)):
            header.external_data.add(key=key, value=str(value))
        if not folder or place[0] != folder:
            bits = _as_bits(np.ascontiguousarray(tensor.numpy()))
            values[header.name] = onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, int(tensor.dtype))
    if values:
        options.add_external_initializers(list(values), list(values.values()))
    session = _opened(proto.SerializeToString(), options)
    session.qatcore_weights = values  # the session reads them as long as it lives
    return session


def _as_bits(array: Array) -> Array:
    """Return an array in a type that ONNX Runtime reads: bits instead of the types that NumPy lacks."""
    return array if array.dtype.isbuiltin == 1 else array.view(f"u{array.dtype.itemsize}")


def _runtime() -> tuple[int, ...]:
    """Return the version of ONNX Runtime, without its last part."""
    return tuple(map(int, onnxruntime.__version__.split(".")[:2]))


def lacks_fp8() -> bool:
    """Return whether the installed ONNX Runtime is older than `FP8_RUNTIME`."""
    return _runtime() < FP8_RUNTIME


def check_loads(model: ir.Model) -> None:
    """Raise unless ONNX Runtime can load a quantised model; only warn if it lacks a domain of its operators.

    Raises
    ------
    InvalidArgumentError
        If ONNX Runtime cannot load the model, though it has operators of all of the model's domains.
    """
    try:
        if weight_bytes(model) > _MOST_COPIED:  # preparing large weights for kernels would take their memory once more
            _opened(skeleton_of(model).SerializeToString(), _options(as_written=True))
        else:
            session_of(model)
    except InvalidArgumentError as error:
        own = {schema.domain for schema in get_all_operator_schema()} | {"ai.onnx"}
        others = sorted({node.domain for node in all_nodes(model)} - own - {domain for domain, *_ in model.functions})
        if not others and any(value.dtype == ir.DataType.BFLOAT16 for value in model.graph.initializers.values()):
            notice("model: it computes in bfloat16, which ONNX Runtime lacks on the CPU, so it was not loaded there")
            return
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
    model : onnx_ir.Model
    names : iterable of str
    """

    def __init__(self, model: ir.Model, names: Iterable[str]) -> None:
        self._names = list(dict.fromkeys(names))
        inputs = set(names_of(inputs_of(model)))
        self._made = [name for name in self._names if name not in inputs]
        tapped = copied(model)
        values = values_by_name(tapped.graph)
        tapped.graph.outputs.clear()
        tapped.graph.outputs.extend(values[name] for name in self._made)
        self._session = session_of(tapped) if self._made else None

    def values(self, batch: dict[str, Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the tensors for a batch, by their names and in the order in which they were given."""
        made = {} if self._session is None else named_run(self._session, self._made, batch)
        return {name: made[name] if name in made else batch[name] for name in self._names}


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0]
