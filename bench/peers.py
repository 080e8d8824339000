"""The packages to compare with, and the same setup for all of them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Iterator
from typing import Any

#: The name of each package in pip, and its module.
PACKAGES = {
    "torch": "torch",
    "torchao": "torchao",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "fast-histogram": "fast_histogram",
    "boost-histogram": "boost_histogram",
}


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [package for package, module in PACKAGES.items() if importlib.util.find_spec(module) is None]


def versions() -> dict[str, str]:
    """Return the versions of the installed packages."""
    return {package: importlib.metadata.version(package) for package in PACKAGES if package not in missing()}


def prepare(threads: int) -> None:
    """Set PyTorch's number of threads, and switch gradients off; ONNX Runtime takes its number in each session."""
    import torch

    # Quantised tensors are deprecated, but PyTorch's int8 layers still use them.
    warnings.filterwarnings("ignore", module="torch")
    warnings.filterwarnings("ignore", message=".*quantize.*deprecated.*")
    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)


@contextlib.contextmanager
def engine(name: str) -> Iterator[None]:
    """Let PyTorch pack weights for one of its engines within a with block."""
    import torch

    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = name
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


class OneNode:
    """An ONNX Runtime session of one node that is bound to arrays, so that a call allocates nothing."""

    def __init__(self, operator: str, inputs: dict[str, Any], output: Any, threads: int, **attributes: Any) -> None:
        import onnx
        import onnxruntime
        from onnx import helper

        def described(name: str, array: Any) -> Any:
            return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

        node = helper.make_node(operator, list(inputs), ["y"], **attributes)
        graph = helper.make_graph(
            [node], "bench", [described(*item) for item in inputs.items()], [described("y", output)]
        )
        opset = helper.make_opsetid("", 21)
        model = helper.make_model(graph, opset_imports=[opset], ir_version=10)
        onnx.checker.check_model(model)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # they would slow the next contender
        self._session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        self._binding = self._session.io_binding()
        self._arrays = inputs, output  # the binding holds their addresses only
        for name, array in inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        self._binding.bind_output("y", "cpu", 0, output.dtype, output.shape, output.ctypes.data)

    def __call__(self) -> None:
        """Run the node."""
        self._session.run_with_iobinding(self._binding)
