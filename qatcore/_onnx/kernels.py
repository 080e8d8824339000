"""Which kernels ONNX Runtime runs for a model, which of them compute on codes, and why others do not."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import onnxruntime
from onnx import GraphProto, NodeProto

from .already_quantised import computes_on_codes, converts
from .description import description
from .graph import is_a
from .plan import OPERATORS, RECURRENT
from .regions import MOVES
from .session import optimized
from .skeleton import weight_bytes
from .targets import ONNXRUNTIME

#: What a kernel computes on: codes, floats, or from one to the other.
CODES, FLOATS, CONVERSION = "codes", "floats", "conversion"
#: What ONNX Runtime's optimisations put behind the name of a node.
_SUFFIX = re.compile(r"(_nchwc|_token_\d+|/\w+Fusion/?)+$")
#: Kernels with weights in codes that compute in float.
_IN_FLOAT = re.compile(r"NBits|Bnb4|FpQ4")
#: Kernels on codes that make floats.
_TO_FLOATS = re.compile(r"IntegerToFloat|Integer$|^DynamicQuantize")
#: The position of QGemm's scale of results; without it, results are floats.
_GEMM_SCALE = 7
#: Models with more bytes of weights are not written to be examined.
LARGEST = 1 << 30


@dataclass(frozen=True)
class Kernel:
    """A node of the model that ONNX Runtime makes of another one.

    Attributes
    ----------
    node : str
        The name of the node that it computes.  Others may be fused with that.
    kernel : str
        ONNX Runtime's operator.
    computes_on : str
        "codes", "floats" or "conversion".
    why : str
        Why it computes on floats, if it multiplies by weights or is beside a conversion.
    """

    node: str
    kernel: str
    computes_on: str
    why: str = ""


@dataclass(frozen=True)
class InIntegers:
    """How much of a quantised model ONNX Runtime computes on integers.

    Attributes
    ----------
    products, of : int
        How many nodes that multiply by weights compute on integers, and how many there are.
    conversions : int
        How many nodes only convert between codes and floats.
    share : float or None
        Which part of all multiplications by weights is on integers, 0 to 1; None if it is not known.
    runtime : str
        The version of ONNX Runtime.
    """

    products: int
    of: int
    conversions: int
    share: float | None
    runtime: str

    def __str__(self) -> str:
        share = "" if self.share is None else f", {100.0 * self.share:.1f} % of all multiply-adds"
        return f"{self.products:,} of {self.of:,} products{share}, in ONNX Runtime {self.runtime}"


def kernels_of(model: ir.Model) -> list[Kernel] | None:
    """Return the kernels that ONNX Runtime runs for a model, in their order; None if it is too large to examine."""
    if weight_bytes(model) >= LARGEST:
        return None
    graph = optimized(model).graph
    coded, made = _coded(graph), {name for node in graph.node if converts(node) for name in node.output}
    quantized = {node.input[0] for node in graph.node if converts(node)}
    about, nodes = description(model), nodes_by_name(model)
    result = list[Kernel]()
    for node in graph.node:
        name = node_of(node.name, node.op_type, nodes)
        kind = CONVERSION if converts(node) else CODES if _is_on_codes(node, coded) else FLOATS
        beside = not made.isdisjoint(node.input) or not quantized.isdisjoint(node.output)
        why = _why_float(node.op_type.removeprefix("Fused"), name, about, beside=beside) if kind == FLOATS else ""
        result.append(Kernel(name, node.op_type, kind, why))
    return result


def nodes_by_name(model: ir.Model) -> dict[str, ir.Node]:
    """Return the nodes of a model by the names that kernels have: those of the nodes, or of what they make."""
    made = {str(value.name): node for node in model.graph for value in node.outputs}
    return made | {str(node.name): node for node in model.graph}


def node_of(kernel: str, operator: str, nodes: Mapping[str, ir.Node]) -> str:
    """Return the name of the node that a kernel computes, from the kernel's name and operator.

    A product may have the name of what is fused with it: an activation, or a sum.
    """
    name = kernel if kernel in nodes else _SUFFIX.sub("", kernel)
    found = product = nodes.get(name)
    if operator.removeprefix("Fused") in OPERATORS:
        while product is not None and not is_a(product, OPERATORS):
            product = next((maker for value in product.inputs if value and (maker := value.producer())), None)
    node = product or found
    return name if node is None else str(node.name)


def in_integers(kernels: Iterable[Kernel], products: Collection[str], work: Mapping[str, int] | None) -> InIntegers:
    """Return how much of a model is computed on integers.

    Parameters
    ----------
    kernels : iterable of Kernel
    products : collection of str
        The names of the nodes that multiply by weights.
    work : mapping of str to int, optional
        Their multiplications.
    """
    kernels = list(kernels)
    done = {kernel.node for kernel in kernels if kernel.computes_on == CODES}.intersection(products)
    share = None if work is None else sum(work[name] for name in done) / max(sum(work.values()), 1)
    conversions = sum(kernel.computes_on == CONVERSION for kernel in kernels)
    return InIntegers(len(done), len(products), conversions, share, onnxruntime.__version__)


def _coded(graph: GraphProto) -> set[str]:
    """Return the tensors of an optimised model that hold codes, without its initializers."""
    coded = set[str]()
    for node in graph.node:
        makes_codes = node.op_type == "QuantizeLinear" or _is_on_codes(node, coded)
        to_floats = _TO_FLOATS.search(node.op_type) or (node.op_type == "QGemm" and not any(node.input[_GEMM_SCALE:]))
        if makes_codes and not to_floats:
            coded.update(node.output)
    return coded


def _is_on_codes(node: NodeProto, coded: Collection[str]) -> bool:
    """Return whether a node of an optimised model computes on codes, given the tensors that hold codes."""
    if converts(node):
        return False
    if computes_on_codes(node):
        return _IN_FLOAT.search(node.op_type) is None
    return any(name in coded for name in node.input[:2])


def _why_float(operator: str, name: str, about: Mapping[str, Any], *, beside: bool) -> str:
    """Return why a kernel computes on floats; an empty text if that needs no reason.

    Parameters
    ----------
    operator, name : str
    about : mapping
        What the metadata of the model say.
    beside : bool
        Whether it is beside a conversion.
    """
    reasons = {
        "it has one or two channels, and is faster in float": name in about.get("slow", ()),
        "a logarithm needs its relative accuracy": name in about.get("relative", ()),
        "it was chosen to stay in float": name in about.get("float", ()),
        "no sample reached it": name in about.get("unreached", ()),
        "it is not quantised": operator in OPERATORS and name not in about.get("nodes", ()),
        "ONNX Runtime computes it in float": operator in OPERATORS,
        "ONNX has no such operator on codes": operator in RECURRENT,
        "": not beside,
        "it is faster in float": operator == "AveragePool",
        "not all that it reads and makes is on codes": operator in MOVES | ONNXRUNTIME.operators["uint8"],
        "ONNX Runtime has no kernel on codes": True,
    }
    return next(text for text, applies in reasons.items() if applies)
