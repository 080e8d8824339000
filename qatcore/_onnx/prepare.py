"""Prepare a model: the same computation in a form that is easy to quantise."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

from .._base.errors import InvalidArgumentError
from .equalising import equalise
from .gelus import respell_gelus
from .graph import (
    Array,
    add_initializer,
    all_names,
    array_of,
    attribute,
    copied,
    drop_unread,
    input_of,
    is_a,
    is_constant,
    is_seen,
    names_of,
    only_reader,
    readers_of,
    replace_reads,
    set_constant,
    take_place,
    unused_name,
)
from .hard_sigmoids import ALIASES, join_hard_swishes, name_hard_sigmoids
from .opsets import inlined, upgraded
from .precision import computes_in_half, to_float32

#: Operators whose result has the shape of their input.
_UNARY = frozenset({"Clip", "HardSigmoid", "HardSwish", "LeakyRelu", "Relu", "Sigmoid", "Tanh"})
#: Operators that only change the form of a constant.  Constants that are read through them are computed beforehand.
_FORMS = frozenset({"Constant", "Identity", "Transpose", "Reshape", "Squeeze", "Unsqueeze", "Cast"})


def prepared(
    model: ir.Model,
    opset: int = 13,
    *,
    keep_inputs: bool = False,
    in_float32: bool = False,
    whole_swish: bool = False,
    equalised: bool = False,
) -> ir.Model:
    """Return a model that computes the same, in a form that is easy to quantise.

    Local functions are inlined.  Constants become initializers, and constants read through a change of form are
    computed.  Nodes that change nothing are dropped.  Batch norms, and constant factors and terms, are folded into the
    convolution before them, or else into the one behind them.  The factors of a Gemm are folded into its weights and
    bias.  Hard sigmoid, hard swish and GELU get one spelling.  Operators are brought to `opset` if theirs is older.

    If `whole_swish`, hard swish is one node.  If `equalised`, channels between convolutions are divided by powers of
    two.  If `in_float32`, and there are constants of float16 or bfloat16, the
    model then computes in float32.

    Inputs, outputs and metadata stay as they are, and so do the names of all tensors that are left.  The exception is
    `initializers_among_inputs`: they are no longer inputs, unless `keep_inputs` is true and the IR version at least 4.

    Raises
    ------
    InvalidArgumentError
        If the model's operators cannot be brought to the opset.  If a constant is not valid.
    """
    result = inlined(copied(model))
    taken = initializers_among_inputs(result)
    if taken and (result.ir_version < 4 or not keep_inputs):
        kept = [value for value in result.graph.inputs if value.name not in taken]
        result.graph.inputs.clear()
        result.graph.inputs.extend(kept)
    result.ir_version = max(result.ir_version, 4)
    result = upgraded(result, opset)
    try:
        LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(result)
    except ValueError as error:
        raise InvalidArgumentError(f"model: it is not valid: {str(error).splitlines()[0]}") from error
    if in_float32 and computes_in_half(result):
        to_float32(result)
    _compute_forms(result)
    _drop_identities(result)
    _fold_into_convolutions(result)
    names = all_names(result)
    respell_gelus(result, names)
    name_hard_sigmoids(result, names)
    if whole_swish:
        join_hard_swishes(result)
    _fold_from_ahead(result)
    _fold_factors_of_gemms(result)
    if equalised:
        equalise(result)
    drop_unread(result)
    _name_nodes(result.graph)
    return result


def initializers_among_inputs(model: ir.Model) -> list[str]:
    """Return the initializers that are inputs too, if there are weights among them; otherwise none.

    Before IR version 4 all initializers had to be inputs, so all count as weights.  Later on, scalars and rows may be
    real inputs with a default value.
    """
    among = [value for value in model.graph.initializers.values() if value.is_graph_input()]
    are_weights = model.ir_version < 4 or any(len(value.const_value.shape) > 1 for value in among if value.const_value)
    return names_of(among) if are_weights else []


def _name_nodes(graph: ir.Graph) -> None:
    """Give every node a unique name; nodes that have one keep it."""
    taken: set[str] = {str(node.name) for node in graph}
    seen = {"", None}
    for index, node in enumerate(graph):
        if node.name in seen:
            node.name = unused_name(node.name or f"{node.op_type}_{index}", taken)
        seen.add(node.name)


def _compute_forms(model: ir.Model) -> None:
    """Compute the nodes that only change the form of constants: weights are often read through a Transpose.

    If an output or an inner graph needs the result too, the node stays, and other nodes read a constant beside it.
    """
    graph, taken = model.graph, all_names(model)
    for node in list(graph):
        given = [value for value in node.inputs if value is not None]
        if not is_a(node, _FORMS) or not all(is_constant(v) and v.dtype != ir.DataType.STRING for v in given):
            continue
        if node.op_type == "Constant" and "value" not in node.attributes:
            continue
        [output] = node.outputs
        name = str(output.name)
        stays = is_seen(output)
        if stays and not readers_of(output):
            continue
        if stays and node.op_type == "Identity":
            own = node.inputs[0]
            assert own is not None
        else:
            result = _evaluated(node, model)
            if not stays:  # the name is free for the constant
                output.name = None
            own = add_initializer(graph, unused_name(f"{name}_constant", taken) if stays else name, result)
        for reader in readers_of(output):
            replace_reads(reader, output, own)
        if not stays:
            graph.remove(node, safe=True)


def _evaluated(node: ir.Node, model: ir.Model) -> Any:
    """Return what a node makes of constants."""
    from onnx.reference import ReferenceEvaluator

    values = {str(value.name): array_of(value) for value in node.inputs if value is not None}
    inputs = [
        onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(value.dtype), value.shape)
        for name, value in values.items()
        if value is not None
    ]
    outputs = [onnx.ValueInfoProto(name=node.outputs[0].name)]
    graph = onnx.helper.make_graph([ir.to_proto(node)], "form", inputs, outputs)
    imports = [onnx.helper.make_opsetid(*each) for each in model.opset_imports.items()]
    [result] = ReferenceEvaluator(onnx.helper.make_model(graph, opset_imports=imports)).run(None, values)
    return result


def _drop_identities(model: ir.Model) -> None:
    """Drop nodes that give their input on as it is, but for those that give it a name that is seen."""
    graph, aliases = model.graph, model.meta.setdefault(ALIASES, {})
    for node in list(graph):
        if not is_a(node, {"Dropout", "Identity"}) or input_of(node, 2) is not None:
            continue
        given, [made, *others] = node.inputs[0], node.outputs
        if given is not None and not is_seen(made) and not any(value.uses() or is_seen(value) for value in others):
            aliases.update(dict.fromkeys((str(node.name), str(made.name)), ""))
            made.replace_all_uses_with(given)
            graph.remove(node, safe=True)


def _fold_into_convolutions(model: ir.Model) -> None:
    taken = all_names(model)
    for convolution in list(model.graph):
        if not is_a(convolution, {"Conv"}):
            continue
        while (follower := only_reader(convolution.outputs[0])) is not None:
            weight = array_of(convolution.inputs[1])
            if weight is None:
                break
            scale_and_shift = _per_channel(follower, convolution.outputs[0], weight.ndim)
            if scale_and_shift is None or not _fold(taken, convolution, *scale_and_shift):
                break
            take_place(convolution.outputs[0], follower.outputs[0])
            model.graph.remove(follower, safe=True)


def _fold_from_ahead(model: ir.Model) -> None:
    """Fold factors and terms of channels ahead of a convolution into it; terms only if nothing is padded."""
    taken = all_names(model)
    for convolution in list(model.graph):
        while is_a(convolution, {"Conv"}) and (source := convolution.inputs[0]) is not None:
            node, weight = source.producer(), array_of(convolution.inputs[1])
            if node is None or weight is None or only_reader(source) is not convolution:
                break
            given = [value for value in node.inputs if not is_constant(value)]
            if not is_a(node, {"Add", "Div", "Mul"}) or len(given) != 1 or given[0] is None:
                break
            found = _ahead(node, given[0], weight.ndim)
            if found is None or not _fold_ahead(taken, convolution, *found):
                break
            convolution.replace_input_with(0, given[0])
            model.graph.remove(node, safe=True)


def _ahead(node: ir.Node, source: ir.Value, rank: int) -> tuple[Any, Any] | None:
    """Return a factor and a term for each channel, float64, if a node does no more to a tensor of this rank."""
    [other] = [value for value in node.inputs if value is not source]
    given = array_of(other)
    value = _one_for_each_channel(given, rank)
    if value is None or given is None:
        return None
    channels = _channels_of(source, rank)
    if given.ndim > 1 and (channels is None or value.size not in {1, channels}):
        return None  # it may make several channels of one, or add dimensions
    if node.op_type != "Div":
        return _per_channel(node, source, rank)
    if other is not node.inputs[1] or not value.all():
        return None
    return 1.0 / value, np.zeros(1)


def _channels_of(value: ir.Value, rank: int) -> int | None:
    """Return the number of channels of a tensor of this rank; None if one of them is not known."""
    while (maker := value.producer()) is not None and is_a(maker, _UNARY) and maker.inputs[0] is not None:
        value = maker.inputs[0]
    if maker is not None and is_a(maker, {"Conv"}) and (weight := array_of(maker.inputs[1])) is not None:
        return len(weight) if weight.ndim == rank else None
    if value.shape is None or len(value.shape) != rank or not isinstance(value.shape[1], int):
        return None
    return value.shape[1]


def _fold_ahead(taken: set[str], convolution: ir.Node, factor: Any, term: Any) -> bool:
    """Fold what is done to each channel ahead of a convolution into it, and return whether that was possible."""
    weight, bias = _weight_and_bias(convolution)
    if weight is None or not weight.size:
        return False
    pads, automatic = convolution.attributes.get("pads"), convolution.attributes.get("auto_pad")
    is_padded = (pads is not None and any(pads.as_ints())) or (
        automatic is not None and automatic.as_string() not in {"NOTSET", "VALID"}
    )
    if term.any() and is_padded:
        return False
    groups = attribute(convolution, "group", 1)
    channels = groups * weight.shape[1]
    if not {factor.size, term.size} <= {1, channels}:
        return False
    wide = weight.astype(np.float64).reshape(groups, -1, *weight.shape[1:])
    shape = (groups, 1, weight.shape[1], *[1] * (weight.ndim - 2))
    factors, terms = (np.broadcast_to(value, channels).reshape(shape) for value in (factor, term))
    with np.errstate(all="ignore"):
        scaled = (wide * factors).reshape(weight.shape).astype(weight.dtype)
        # Added up one after the other: sums of NumPy depend on the machine.
        more = (wide * terms).reshape(len(weight), -1).cumsum(axis=1)[:, -1]
        shifted = (more + (0.0 if bias is None else bias)).astype(weight.dtype)
    if not (np.isfinite(scaled).all() and np.isfinite(shifted).all()) or _is_coarser(scaled, weight):
        return False
    set_constant(taken, convolution, 1, scaled)
    if term.any():
        set_constant(taken, convolution, 2, shifted)
    return True


def _per_channel(node: ir.Node, source: ir.Value, rank: int) -> tuple[Any, Any] | None:
    """Return a factor and a term for each channel, float64, if a node does no more to a tensor of this rank."""
    if is_a(node, {"BatchNormalization"}) and node.inputs[0] is source:
        return _batch_norm(node)
    if is_a(node, {"Mul", "Add"}):
        [other] = [value for value in node.inputs if value is not source] or [source]
        value = _one_for_each_channel(array_of(other), rank)
        if value is not None:
            return (value, np.zeros(1)) if node.op_type == "Mul" else (np.ones(1), value)
    return None


def _batch_norm(node: ir.Node) -> tuple[Any, Any] | None:
    parameters = [array_of(value) for value in node.inputs[1:]]
    if (
        attribute(node, "training_mode", 0)
        or len([value for value in node.outputs if value.name]) > 1
        or any(value is None for value in parameters)
    ):
        return None
    # In float32, as the model stores it.
    epsilon = float(np.float32(attribute(node, "epsilon", 1e-5)))
    scale, shift, mean, variance = (np.asarray(value, np.float64) for value in parameters)
    with np.errstate(all="ignore"):  # what is not finite will not be folded
        factor = scale / np.sqrt(variance + epsilon)
        return factor, shift - mean * factor


def _one_for_each_channel(value: Array | None, rank: int) -> npt.NDArray[np.float64] | None:
    """Return a constant as a number for each channel, or one for all, if it broadcasts so to a tensor of this rank."""
    if value is None or value.dtype.kind != "f" or value.ndim > rank:
        return None
    shape = (1,) * (rank - value.ndim) + value.shape
    return value.reshape(-1).astype(np.float64) if value.size == shape[1] else None


def _weight_and_bias(convolution: ir.Node) -> tuple[Array | None, Array | None]:
    """Return the floats of a convolution's weight and bias; no weight if one of them is something else."""
    given = input_of(convolution, 2)
    weight, bias = array_of(convolution.inputs[1]), array_of(given)
    if weight is None or (given is not None and bias is None) or weight.dtype.kind != "f":
        return None, None
    return weight, bias


def _fold(taken: set[str], convolution: ir.Node, factor: Any, term: Any) -> bool:
    """Fold factors and terms of channels into a convolution, and return whether its weights and bias allow it."""
    weight, bias = _weight_and_bias(convolution)
    if weight is None:
        return False
    channels = weight.shape[0]
    if factor.size not in {1, channels} or term.size not in {1, channels}:
        return False
    before = np.zeros(channels) if bias is None else bias.astype(np.float64)
    with np.errstate(all="ignore"):
        scaled = (weight.astype(np.float64) * factor.reshape(-1, *[1] * (weight.ndim - 1))).astype(weight.dtype)
        shifted = np.broadcast_to(before * factor + term, channels).astype(weight.dtype)
    if not (np.isfinite(scaled).all() and np.isfinite(shifted).all()):
        return False
    for position, array in ((1, scaled), (2, shifted)):
        set_constant(taken, convolution, position, array)
    return True


def _fold_factors_of_gemms(model: ir.Model) -> None:
    """Fold alpha into weights and beta into biases.

    ONNX Runtime does not compute a Gemm with a beta in integers.  Before 1.30 it also multiplies the codes of biases by
    alpha.
    """
    taken = all_names(model)
    for node in model.graph:
        if not is_a(node, {"Gemm"}):
            continue
        for position, factor in ((1, "alpha"), (2, "beta")):
            given, by = input_of(node, position), attribute(node, factor, 1.0)
            value = array_of(given)
            if by == 1.0 or (given is not None and (value is None or value.dtype.kind != "f")):
                continue
            if value is not None:
                with np.errstate(all="ignore"):
                    scaled = (value.astype(np.float64) * by).astype(value.dtype)
                is_no_bias = factor == "beta" and by == 0.0
                if not np.isfinite(scaled).all() or (_is_coarser(scaled, value) and not is_no_bias):
                    continue
                set_constant(taken, node, position, scaled)
            del node.attributes[factor]


def _is_coarser(array: Array, than: Array) -> bool:
    """Return whether elements have become subnormal numbers of their type, and so have lost bits."""
    least = np.finfo(array.dtype).smallest_normal
    return bool(((np.abs(array) < least) & (np.abs(than) >= least)).any())
