"""Put QuantizeLinear and DequantizeLinear into a model (QDQ, which every runtime for quantised models reads)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, NodeProto

from .._base.formats import CODE_FORMATS, as_code_format
from .graph import Graph, all_names, attribute, drop_attribute, drop_unread, names_within, replace_input, unused_name
from .plan import ACTIVATIONS, MOVES, OPERATORS, is_move
from .protos import is_a, subgraphs

_TYPES = {str(entry.dtype): entry.dtype for entry in CODE_FORMATS} | {"int32": np.dtype(np.int32)}
#: The greatest code of a bias.  The rest of the 32 bits is for the products that are added to it.  Runtimes compute the
#: codes of float16 biases in float16.
_GREATEST = {"float32": 2.0**30, "float16": 2.0**15}
#: The greatest code where a scale is chosen to fit a bias.  It leaves room for a later correction of the bias.
_ROOMY = 2.0**29
#: Products below this part of a bias are negligible, and may lose their precision to it.
_NEGLIGIBLE = 2.0**-16
#: Operators that runtimes move codes past, or remove where they have no effect.
_PASSED = MOVES | ACTIVATIONS | {"Add", "BatchNormalization", "Cast", "Concat", "Div", "Dropout", "Expand", "Gather"}
_PASSED |= {"Identity", "Mul", "Pad", "Pow", "Resize", "Split", "Sub", "Sum", "Tile"}
#: The least scale of a weight.  Its product with the scale of an activation is still far from vanishing.
_LEAST_SCALE = 2.0**-80


@dataclass(frozen=True, eq=False)
class Scale:
    """The parameters of QuantizeLinear for a tensor.

    Attributes
    ----------
    dtype : str
        The type of the codes.
    scale : ndarray, float32 or float16
    zero_point : ndarray of int32
        Has the shape of `scale`.
    axis, block_size : int or None
    """

    dtype: str
    scale: npt.NDArray[Any]
    zero_point: npt.NDArray[np.int32]
    axis: int | None = None
    block_size: int | None = None


class Rewriter:
    """Puts codes into a copy of a model.

    Call `weight`, `bias` and `activation` in this order, and `finished` at the end.

    Parameters
    ----------
    model : ModelProto
        The float model.  It is not changed.
    shapes : mapping of str to list of int
        The shapes of its tensors, as far as they are known (`known_shapes`).
    """

    def __init__(self, model: ModelProto, shapes: Mapping[str, list[int]]) -> None:
        self.model = ModelProto()
        self.model.CopyFrom(model)
        self._shapes = shapes
        self._index = Graph(self.model)
        self._taken = all_names(self.model)
        self._after: dict[str, list[NodeProto]] = {}  # by the tensor that they read; "" if only constants
        self._weights: dict[tuple[str, int | None, int | None, str], str] = {}
        self._nodes = {node.name: node for node in self.model.graph.node}
        # Tensors that runtimes may compute beforehand, and those behind an If whose branch is then known.
        self._fixed, self._chosen = set(self._index.constants), set[str]()
        tensors = {value.name for value in (*model.graph.input, *model.graph.initializer)} | set(self._index.makers)
        for node in self.model.graph.node:
            read = {name for name in node.input if name}
            captured = {name for graph in subgraphs(node) for name in names_within(graph)} & tensors
            if is_a(node, {"Shape", "Size"}) or self._fixed >= read | captured:
                self._fixed.update(node.output)
            elif not is_a(node, OPERATORS) and self._chosen >= read - self._fixed:
                self._chosen.update(node.output)
        # Gemm and MatMul with weights in codes: the type of the scales, or None if runtimes do not use integers.
        self._products: dict[str, np.dtype[Any] | None] = {}
        self._biased: set[str] = set()  # nodes whose bias has codes
        self._codes: dict[str, Scale] = {}  # of tensors that are read only in codes
        # For nodes with weights in codes: whether the bias has codes, or could have them.
        self._in_codes: dict[str, bool] = {}

    def activation(self, name: str, scale: Scale, readers: Collection[str] | None) -> None:
        """Let the named readers of a tensor read its dequantised codes; all of its readers if `readers` is None."""
        source, parameters = name, self._parameters(name, scale)
        ahead = [*parameters]
        if self._must_not_be_joined(name, scale):
            # Runtimes remove divisions by 1, or nearly 1; then divide by twice the scale, and quantise with 0.5.
            rest = np.where(np.abs(scale.scale - 1) < 0.01, 0.5, 1.0).astype(scale.scale.dtype)
            source, ahead[0] = self._name(f"{name}_scaled"), self._constant(f"{name}_rest", rest)
            divisor = self._constant(f"{name}_divisor", np.asarray(scale.scale / rest))
            self._add(name, "Div", [name, divisor], source, {})
        codes, values = self._name(f"{name}_quantized"), self._name(f"{name}_dequantized")
        self._add(name, "QuantizeLinear", [source, *ahead], codes, {})
        self._add(name, "DequantizeLinear", [codes, *parameters], values, {})
        for reader in self._index.readers.get(name, []):
            if readers is None or reader.name in readers:
                replace_input(reader, name, values)
        unread = not any(name in reader.input for reader in self._index.readers.get(name, []))
        if source == name and unread and not self._index.is_seen(name):
            self._codes[name] = scale

    def weight(self, node: str, scale: Scale, codes: npt.NDArray[Any], channels: int | None, *, alone: bool) -> None:
        """Let a node read the dequantised codes of its weight; nodes that use the same channels share them.

        If activations have codes, ONNX Runtime computes a Gemm in integers only if the weights have zero points, in the
        shape of the scales.  If only weights have codes, ONNX Runtime before 1.27 uses them in a MatMul only, so a Gemm
        becomes a MatMul.  From 1.27 on it uses codes that one MatMul reads, so products do not share such weights.
        """
        reader = self._nodes[node]
        name = reader.input[1]
        transposed = reader.op_type == "Gemm" and attribute(reader, "transB", 0)
        integers = scale.dtype.startswith("int") and (alone or scale.block_size is None)
        key = name, scale.axis, channels, ""
        if reader.op_type in {"Gemm", "MatMul"}:
            key = name, scale.axis, channels, node if alone and integers else ""
            self._products[node] = scale.scale.dtype if integers else None
        if key not in self._weights:
            if transposed:  # store it as it is multiplied
                codes, scale = np.ascontiguousarray(codes.T), _transposed(scale)
            stored = self._store(f"{name}_quantized", codes, scale.dtype)
            values = self._name(f"{name}_dequantized")
            attributes = {"axis": scale.axis, "block_size": scale.block_size}
            # For matrices only: products of stacks of matrices take no zero point for each column.
            zero = integers and not alone and (codes.ndim == 2 or reader.op_type != "MatMul")
            inputs = [stored, *self._parameters(name, scale, zero=zero)]
            self._add("", "DequantizeLinear", inputs, values, {k: v for k, v in attributes.items() if v is not None})
            self._weights[key] = values
        if transposed:
            drop_attribute(reader, "transB")
        reader.input[1] = self._weights[key]
        self._in_codes[node] = True
        if alone and integers and reader.op_type == "Gemm" and attribute(reader, "alpha", 1.0) == 1.0:
            self._become_matmul(reader, scale.scale.dtype)

    def bias(self, node: str, activation: Scale, weight: Scale) -> None:
        """Store the bias of a quantised node as int32 codes in the scale of its products, if they can hold it.

        ONNX Runtime gives such codes also to a bias that is float in the model, and clips what they cannot hold.
        If it knows the shape, it turns what is added to a product into the bias of a Gemm.  It computes that Gemm in
        integers only if the bias has codes already.
        """
        reader = self._nodes[node]
        own = reader.input[2] if len(reader.input) > 2 else ""
        adder, name = (reader, own) if own else self._added_to(reader)
        if weight.block_size is not None:
            return
        integers = "float" not in weight.dtype + activation.dtype
        bias = self._index.value_of(name)
        if bias is None and own and reader.op_type == "Gemm" and integers:
            self._add_apart(reader, "Add", activation.scale.dtype)
            return
        if name in self._fixed:
            self._in_codes[node] = False
        if bias is None:
            return
        # Multiply as runtimes do, in the type of both scales.
        scale = np.asarray(activation.scale * weight.scale)
        if reader.op_type == "ConvTranspose" and scale.size > 1:
            scale = np.tile(scale, attribute(reader, "group", 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            codes = np.rint(bias.astype(np.float64) / scale)  # one for each channel, even if all share the bias
        if not (np.abs(codes) <= _GREATEST[bias.dtype.name]).all():
            return
        self._in_codes[node] = True
        if bias.dtype != np.float32 or not integers or (not own and bias.ndim > 2):
            return
        # Name the codes after the node: other nodes may share the bias, with other scales.
        stored = self._store(f"{node}_bias_quantized", codes.astype(np.int32), "int32")
        values = self._name(f"{node}_bias_dequantized")
        one = scale.reshape(-1)[0] if scale.size == 1 else scale
        inputs = [stored, self._constant(f"{node}_bias_scale", np.asarray(one))]
        self._add("", "DequantizeLinear", inputs, values, {} if scale.size == 1 else {"axis": codes.ndim - 1})
        replace_input(adder, name, values)
        self._biased.add(node)

    def finished(self, *, all_activations: bool = False) -> ModelProto:
        """Return the model with codes, without a Relu or Clip that changes no code unless `all_activations`."""
        graph = self.model.graph
        dropped = set() if all_activations else {id(node) for node in self._drop_activations()}
        for node in self._products:
            self._keep_apart(node)
        nodes, before = list[NodeProto](), {node.output[0]: node for node in self._after.pop("", [])}

        def append(node: NodeProto) -> None:
            nodes.append(node)
            for name in node.output:
                for following in self._after.pop(name, []):
                    append(following)

        for value in [*graph.input, *graph.initializer]:
            for following in self._after.pop(value.name, []):
                append(following)
        for node in graph.node:
            if id(node) not in dropped:
                nodes += [before.pop(name) for name in node.input if name in before]
                append(node)
        assert not self._after and not before
        copies = [NodeProto.FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies)
        drop_unread(self.model)
        return self.model

    def _keep_apart(self, node: str) -> None:
        """Rewrite what follows a product so that ONNX Runtime computes the product in integers.

        ONNX Runtime joins a MatMul and an Add to a Gemm if both are matrices, or if it knows all sizes and a row is
        added.  If what is added has no codes, it computes that Gemm in float.  With int4 weights beside int8
        activations it even makes a model that it cannot load.  It does not join a Sum.

        It also computes a product in float if a Relu or Clip follows, unless that node changes no code.
        """
        product, dtype = self._nodes[node], self._products[node]
        follower = self._follower(product)
        if product.op_type == "MatMul" and follower is not None and is_a(follower, {"Add"}):
            shape = self._shapes.get(follower.output[0], [])
            joined = len(shape) < 3 or (0 not in shape and self._adds_a_row(follower))
            if joined and node not in self._biased:
                follower.op_type = "Sum"
                return
            follower = self._follower(follower)
        if dtype is None or follower is None or not is_a(follower, ACTIVATIONS) or self._is_redundant(follower):
            return
        source, [output] = follower.input[0], follower.output
        low, high = [*follower.input[1:], "", ""][:2]
        if follower.op_type == "Relu":
            low = self._constant(f"{output}_low", np.zeros((), dtype))
        if low or high:
            del follower.input[:]
            follower.op_type = "Max" if low else "Min"
            follower.input.extend([source, low or high])
            if low and high:
                follower.output[0] = self._name(f"{output}_max")
                self._add(follower.output[0], "Min", [follower.output[0], high], output, {})

    def _drop_activations(self) -> list[NodeProto]:
        """Bypass each redundant Relu or Clip, so that the node before makes its output, and return them.

        ONNX Runtime 1.23 and 1.27 make invalid models when they do this themselves, and 1.20 does not do it.
        """
        dropped = []
        for node in reversed(self.model.graph.node):
            if self._is_redundant(node) and self._index.only_reader(node.input[0]) is not None:
                maker = self._index.makers.get(node.input[0])
                if maker is not None:
                    maker.output[list(maker.output).index(node.input[0])] = node.output[0]
                    self._index.makers[node.output[0]] = maker
                    dropped.append(node)
        return dropped

    def _is_redundant(self, node: NodeProto) -> bool:
        """Return whether a node is a Relu or Clip that changes no code, and its output is read only as codes."""
        codes = self._codes.get(node.output[0])
        if codes is None or not is_a(node, ACTIVATIONS):
            return False
        low, high = [*node.input[1:], "", ""][:2]
        if node.op_type == "Relu":
            return passes(codes, np.zeros(()), None)
        known = self._index.constants.keys() >= {low, high} - {""}
        return known and passes(codes, self._index.value_of(low), self._index.value_of(high))

    def _adds_a_row(self, node: NodeProto) -> bool:
        """Return whether an Add adds a constant of one dimension, or one of unknown shape that runtimes compute."""
        constants = [name for name in node.input if name in self._fixed]
        known = [self._index.constants[name] for name in constants if name in self._index.constants]
        return len(constants) > len(known) or any(len(tensor.dims) == 1 for tensor in known)

    def _follower(self, node: NodeProto) -> NodeProto | None:
        """Return the only node that reads the output of a node, past nodes without effect."""
        follower = self._index.only_reader(node.output[0])
        while follower is not None and is_a(follower, {"Identity", "Dropout"}):
            follower = self._index.only_reader(follower.output[0])
        return follower

    def _must_not_be_joined(self, name: str, scale: Scale) -> bool:
        """Return whether a separate division must keep ONNX Runtime from changing what precedes a QuantizeLinear.

        ONNX Runtime removes Relu and Clip before FP8, as if the codes were unsigned.  Between tensors with codes, it
        also quantises the weights, with one scale for all, and the biases of float nodes, even past an If whose branch
        it knows.  It moves codes past a MaxPool, even if the indices are read, which would then be indices of codes.
        """
        while (maker := self._index.makers.get(name)) is not None:
            if is_a(maker, OPERATORS):
                in_codes = self._in_codes.get(maker.name)
                return not in_codes if in_codes is not None else maker.input[1] in self._fixed | self._chosen
            if not self._chosen.isdisjoint((*maker.input, *maker.output)):
                return True
            if is_a(maker, ACTIVATIONS) and scale.dtype.startswith("float8"):
                return True
            if is_a(maker, MOVES) and not is_move(maker, self._index):
                return True
            sources = {name for name in maker.input if name} - self._fixed
            if not is_a(maker, _PASSED) or len(sources) != 1:
                return False
            [name] = sources
        return False

    def _add_apart(self, node: NodeProto, operator: str, dtype: np.dtype[Any]) -> None:
        """Let an Add or Sum add the bias of a Gemm, which would keep runtimes from computing it in integers."""
        [output], term, beta = node.output, node.input[2], attribute(node, "beta", 1.0)
        product = node.output[0] = self._name(f"{output}_product")
        del node.input[2:]
        if beta != 1.0:
            factors = [term, self._constant(f"{output}_beta", np.asarray(beta, dtype))]
            term = self._name(f"{output}_term")
            self._add(product, "Mul", factors, term, {})
        self._add(product, operator, [product, term], output, {})

    def _become_matmul(self, node: NodeProto, dtype: np.dtype[Any]) -> None:
        """Turn a Gemm into a MatMul and a Sum that adds the bias; its weights must not be transposed."""
        if len(node.input) > 2 and node.input[2]:
            self._add_apart(node, "Sum", dtype)
        if attribute(node, "transA", 0):
            source, node.input[0] = node.input[0], self._name(f"{node.name}_transposed")
            self._add(source, "Transpose", [source], node.input[0], {"perm": [1, 0]})
        del node.input[2:], node.attribute[:]
        node.op_type = "MatMul"

    def _added_to(self, node: NodeProto) -> tuple[NodeProto, str]:
        """Return the next node behind a product and the constant that it adds, from which runtimes make a bias."""
        if node.op_type not in {"Gemm", "MatMul"}:
            return node, ""
        follower = self._follower(node)
        if follower is None or not is_a(follower, {"Add", "Sum"}):
            return node, ""
        others = [name for name in follower.input if name in self._fixed]
        return follower, others[0] if len(others) == 1 and len(follower.input) == 2 else ""

    def _name(self, name: str) -> str:
        return unused_name(name, self._taken)

    def _add(self, after: str, operator: str, inputs: list[str], output: str, attributes: dict[str, Any]) -> None:
        node = onnx.helper.make_node(operator, inputs, [output], self._name(f"{output}_{operator}"), **attributes)
        self._index.makers[output] = node
        self._after.setdefault(after, []).append(node)

    def _parameters(self, name: str, scale: Scale, *, zero: bool = True) -> list[str]:
        result = [self._constant(f"{name}_scale", scale.scale)]
        if zero or scale.zero_point.any():
            result.append(self._store(f"{name}_zero_point", scale.zero_point, scale.dtype))
        return result

    def _constant(self, name: str, array: npt.NDArray[Any]) -> str:
        name = self._name(name)
        tensor = self.model.graph.initializer.add()
        tensor.CopyFrom(onnx.numpy_helper.from_array(array, name))
        self._index.constants[name] = tensor
        return name

    def _store(self, name: str, codes: npt.NDArray[Any], dtype: str) -> str:
        """Add codes, or zero points, as an initializer of their type."""
        return self._constant(name, np.asarray(codes).astype(_TYPES[dtype]))


def with_room_for_bias(
    scale: Scale, weight: npt.NDArray[Any], bias: npt.NDArray[Any], activation: Scale, *, in_codes: bool
) -> Scale:
    """Return the scales of a weight; if its weights are negligible beside its bias, a channel's scale fits the bias.

    Many trained models have channels in which all weights are 0, or nearly so.

    Parameters
    ----------
    scale : Scale
        The scales chosen for the weight alone.
    weight, bias : ndarray
        The bias has a value for each channel.
    activation : Scale
        The scale of the tensor that is multiplied by the weight.
    in_codes : bool
        Whether the output is read only as codes.  These have few bits, so beside a bias of more than 29 bits they have
        no room for products.
    """
    largest = np.abs(bias.astype(np.float64)).reshape(-1)
    if scale.axis is None or scale.block_size is not None or largest.size != scale.scale.size:
        return scale
    if "float" in activation.dtype or weight.dtype != np.float32:  # their biases get no codes
        return scale
    largest[~np.isfinite(largest)] = 0.0
    step = float(activation.scale)
    others = tuple(axis for axis in range(weight.ndim) if axis != scale.axis)
    products = np.abs(weight).max(axis=others).astype(np.float64) * (255 * step * (weight.size // largest.size))
    least = np.maximum(largest / _ROOMY / step, _LEAST_SCALE)
    enough = np.maximum(scale.scale, least) if in_codes else scale.scale
    chosen = np.where(products < largest * _NEGLIGIBLE, least, enough)
    return dataclasses.replace(scale, scale=as_stored(chosen, weight.dtype))


def passes(codes: Scale, low: npt.NDArray[Any] | None, high: npt.NDArray[Any] | None) -> bool:
    """Return whether a Clip to these bounds changes no integer code: the codes saturate at its bounds, or inside."""
    ends = as_code_format(codes.dtype, "codes").ends
    return not codes.dtype.startswith("float") and all(
        bound is None or sign * (np.rint(bound / codes.scale) + codes.zero_point) >= sign * end
        for bound, end, sign in ((low, ends[0], -1), (high, ends[1], 1))
    )


def as_stored(scale: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return scales in the type of what they scale, limited to its normal numbers."""
    least = np.finfo(dtype).smallest_normal
    return np.ascontiguousarray(np.clip(scale, least, np.finfo(dtype).max)).reshape(scale.shape).astype(dtype)


def tensor_of_codes(quantize: NodeProto, index: Graph) -> tuple[str, str, str]:
    """Return the names of the tensor that a QuantizeLinear quantises, of its scale, and of the dequantised tensor.

    Tensor and scale are those that `Rewriter.activation` was given, even if a separate node divides.  The last name is
    empty if nothing dequantises the codes.
    """
    tensor, scale = quantize.input[:2]
    readers = [node for node in index.readers.get(quantize.output[0], []) if node.op_type == "DequantizeLinear"]
    if not readers:
        return tensor, scale, ""
    maker, whole = index.makers.get(tensor), readers[0].input[1]
    if maker is not None and maker.op_type == "Div":
        divisor, rest, product = (index.value_of(name) for name in (maker.input[1], scale, whole))
        if divisor is not None and rest is not None and product is not None and np.array_equal(divisor * rest, product):
            tensor, scale = maker.input[0], whole
    return tensor, scale, readers[0].output[0]


def _transposed(scale: Scale) -> Scale:
    """Return the scale of a transposed matrix."""
    if scale.axis is None:
        return scale
    return dataclasses.replace(scale, scale=scale.scale.T, zero_point=scale.zero_point.T, axis=1 - scale.axis)
