"""Targets: the runtimes that models are written for, each a table of rules."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .._base.errors import InvalidArgumentError

#: Operators that all runtimes compute together with the product or the sum before them, on codes.
ACTIVATIONS = frozenset({"Relu", "Clip"})
#: Operators that ONNX Runtime computes on codes, each tensor with a scale of its own.  AveragePool is not among them:
#: on codes it takes several times as long (`python -m bench.placement between`).
COMPUTED = frozenset({"Add", "Concat", "GlobalAveragePool", "LeakyRelu", "Mul", "PRelu", "Sigmoid"})
#: Operators that are written on codes: ONNX Runtime does not look for them between a DequantizeLinear and a
#: QuantizeLinear.  Div and Mul are, too, if they only change the scale.
WRITTEN_ON_CODES = frozenset({"HardSigmoid", "Pad"})
#: Operators of ONNX Runtime whose codes need a zero point other than 0.
_NEED_ZERO_POINTS = frozenset({"HardSigmoid", "PRelu"})
#: Activations that other runtimes compute in the kernel of the product ahead, on its sums, before these are rounded.
_FUSED = ACTIVATIONS | {"Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "PRelu", "Sigmoid", "Softplus", "Tanh"}


@dataclass(frozen=True, eq=False)
class Target:
    """What a runtime computes on codes, and in which form it wants them.

    Attributes
    ----------
    name, runtime : str
        The name of the option, and that of the runtime.
    formats : dict of str to tuple of str
        For each format of activations, the formats of weights beside it; the first ones are the default.
    operators : dict of str to frozenset of str
        For formats of activations, the operators computed on codes between products, beside those that move elements.
    fused : frozenset of str
        The activations that are computed together with the product or the sum ahead of them.
    own_forms : bool
        Whether nodes take the forms from which ONNX Runtime makes its integer kernels.
    zero_points : bool
        Whether the codes of activations may have zero points other than 0.
    by_sign : bool
        Whether tensors without negative values get unsigned codes, whose zero point is 0, and others signed codes.
    shared : bool
        Whether nodes that move elements, and Concat, read and make codes of one scale.  They then stand between a
        DequantizeLinear and the next product, with no codes of their own behind them.
    fused_sums : bool
        Whether a product and the sum behind it are one kernel, so that only the other term gets codes.
    everything : bool
        Whether all tensors get codes, also inputs, outputs and constants.
    per_tensor : frozenset of str
        The operators whose weights have a single scale.
    int32_biases : bool
        Whether biases get codes of 32 bits.
    group_sizes : tuple of int
        How many int4 weights may share a scale; none for any number.
    scales : dict of (str, str) to (float, int)
        The scale and the zero point of what an operator makes, by its name and the type of the codes, if they are
        fixed.
    opset : int
        The lowest opset.
    """

    name: str
    runtime: str
    formats: Mapping[str, tuple[str, ...]]
    operators: Mapping[str, frozenset[str]] = field(default_factory=dict)
    fused: frozenset[str] = _FUSED
    own_forms: bool = False
    zero_points: bool = False
    by_sign: bool = False
    shared: bool = True
    fused_sums: bool = True
    everything: bool = False
    per_tensor: frozenset[str] = frozenset()
    int32_biases: bool = False
    group_sizes: tuple[int, ...] = ()
    scales: Mapping[tuple[str, str], tuple[float, int]] = field(default_factory=dict)
    opset: int = 14  # the first with HardSwish

    def check(self, activations: str, weights: str) -> None:
        """Raise `InvalidArgumentError` if the runtime does not compute with these formats."""
        if weights not in self.formats.get(activations, ()):
            can = "; ".join(f"{' or '.join(kinds)} weights beside {name}" for name, kinds in self.formats.items())
            raise InvalidArgumentError(
                f"target: {self.runtime} has no {weights} weights beside activations {activations}; it has {can}"
            )

    def choices(self) -> list[frozenset[str]]:
        """Return the sets of operators on codes, beside those that move elements, that formats of activations have."""
        kinds = (*self.operators, "none")
        return list(dict.fromkeys(self.between(kind, symmetric=each) for kind in kinds for each in (False, True)))

    def between(self, activations: str, *, symmetric: bool) -> frozenset[str]:
        """Return the operators on codes, beside those that move elements, for a format of activations."""
        operators = self.operators.get(activations, frozenset())
        return operators - _NEED_ZERO_POINTS if symmetric and self.zero_points else operators


_EVERY_WEIGHT = ("int8", "int4", "fp8")
#: Rules of ONNX Runtime come from measurements (`python -m bench.placement`).  On x86 it has convolutions on uint8
#: alone.  It turns int8 into uint8, but not where a node is written on codes.
ONNXRUNTIME = Target(
    "onnxruntime",
    "ONNX Runtime",
    formats=dict.fromkeys(("uint8", "int8", "uint16", "int16", "fp8", "none"), _EVERY_WEIGHT),
    operators={"uint8": COMPUTED | WRITTEN_ON_CODES | {"Div"}, "int8": COMPUTED - {"PRelu"}},
    fused=ACTIVATIONS,
    own_forms=True,
    zero_points=True,
    shared=False,
    fused_sums=False,
    int32_biases=True,
    opset=13,
)
_OPENVINO_BETWEEN = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool", "Mul", "Pad", "Sigmoid"})
#: docs.openvino.ai: "Low Precision Transformations", attributes "PrecisionPreserved" (what moves elements) and
#: "QuantizationAlignment" (Concat).  In OpenVINO 2026.4 a zero point other than 0 slows a convolution down, and so does
#: SiLU that is computed with it: with SiLU on codes a YOLO takes 0.8 of the time.
OPENVINO = Target(
    "openvino",
    "OpenVINO",
    formats={"uint8": ("int8",), "int8": ("int8",), "none": ("int8", "int4")},
    operators={"uint8": _OPENVINO_BETWEEN, "int8": _OPENVINO_BETWEEN},
    fused=_FUSED - {"Sigmoid"},
    by_sign=True,
)
_TENSORRT_BETWEEN = frozenset({"Add", "AveragePool", "Concat", "GlobalAveragePool"})
#: docs.nvidia.com/deeplearning/tensorrt: "Working with Quantized Types", "Explicit Quantization": symmetric codes,
#: codes at the inputs of products but not at their outputs, the residual input of a sum, biases in float.
TENSORRT = Target(
    "tensorrt",
    "TensorRT",
    formats={"int8": ("int8",), "fp8": ("fp8",), "none": ("int4",)},
    operators={"int8": _TENSORRT_BETWEEN, "fp8": _TENSORRT_BETWEEN},
    group_sizes=(64, 128),
)
#: onnxruntime.ai/docs/execution-providers/QNN-ExecutionProvider.html, and `get_qnn_qdq_config` of ONNX Runtime: every
#: node is a unit between DequantizeLinear and QuantizeLinear; scales for each channel in convolutions alone.
QNN = Target(
    "qnn",
    "QNN",
    formats={"uint8": ("int8",), "uint16": ("int8",), "int8": ("int8",), "int16": ("int8",)},
    fused=ACTIVATIONS,
    zero_points=True,
    shared=False,
    fused_sums=False,
    everything=True,
    per_tensor=frozenset({"Gemm", "MatMul"}),
    int32_biases=True,
    scales={
        ("Sigmoid", "uint16"): (2.0**-16, 0),
        ("Sigmoid", "int16"): (2.0**-15, 0),
        ("Tanh", "uint16"): (2.0**-15, 2**15),
        ("Tanh", "int16"): (2.0**-15, 0),
    },
)
TARGETS = {target.name: target for target in (ONNXRUNTIME, OPENVINO, TENSORRT, QNN)}
