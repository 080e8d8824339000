"""Put QuantizeLinear and DequantizeLinear into a model (QDQ, which every runtime for quantised models reads)."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .._base.formats import CODE_FORMATS, as_code_format
from .graph import (
    add_initializer,
    add_node,
    all_names,
    are_equal,
    array_of,
    attribute,
    copied,
    drop_unread,
    input_of,
    is_a,
    is_constant,
    is_seen,
    only_reader,
    opset_of,
    read_by,
    readers_of,
    replace_reads,
    shape_of,
    take_place,
    unused_name,
    values_by_name,
)
from .plan import NAMES_TYPES, OPERATORS
from .regions import MOVES, data_of, hard_sigmoid, is_move, number_of
from .targets import ACTIVATIONS, ONNXRUNTIME, Target

_TYPES = {str(entry.dtype): entry.dtype for entry in CODE_FORMATS} | {"int32": np.dtype(np.int32)}
CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
#: Codes that all versions of ONNX Runtime cast to floats.
_CAST = frozenset({"int8", "float8_e4m3fn"})
#: The greatest code of a bias.  The rest of the 32 bits is for the products that are added to it.  Runtimes compute the
#: codes of float16 biases in float16.
_GREATEST = {"float32": 2.0**30, "float16": 2.0**15}
#: The greatest code where a scale is chosen to fit a bias.  It leaves room for a later correction of the bias.
_ROOMY = 2.0**29
#: Products below this part of a bias are negligible, and may lose their precision to it.
_NEGLIGIBLE = 2.0**-16
#: Operators that runtimes move codes past, or remove where they have no effect.
_PASSED = MOVES | ACTIVATIONS | {"Add", "BatchNormalization", "Cast", "Concat", "Div", "Dropout", "Identity", "Mul"}
_PASSED |= {"Pad", "Pow", "Sub", "Sum"}
#: Nodes past which ONNX Runtime moves a DequantizeLinear: it puts codes behind them.
_CARRIED = frozenset({"MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"})
#: Operators whose constants are data, not parameters such as the bounds of a Clip.
_COMPUTES_WITH_CONSTANTS = frozenset(
    {"Add", "Concat", "Div", "Gather", "InstanceNormalization", "LayerNormalization", "MatMul", "Max", "Min", "Mul"}
    | {"PRelu", "Pow", "Sub", "Where"}
)
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

    Call `weight`, `bias` and `activation` in this order, and `finished` at the end.  Before that, call `on_codes`,
    `number`, `shift` or `prelu` for nodes between products, in the order of the graph.

    Parameters
    ----------
    model : onnx_ir.Model
        The float model.  It is not changed.
    shapes : mapping of str to list of int
        The shapes of its tensors, as far as they are known (`known_shapes`).
    target : Target
        The runtime that is to run the model.
    """

    def __init__(self, model: ir.Model, shapes: Mapping[str, list[int]], target: Target = ONNXRUNTIME) -> None:
        self.model, self._target = copied(model), target
        self._graph = self.model.graph
        self._shapes = shapes
        self._taken = all_names(self.model)
        self._values = values_by_name(self._graph)
        self._nodes = {str(node.name): node for node in self._graph}
        self._weights: dict[tuple[str, int | None, int | None, str], ir.Value] = {}
        # Tensors that runtimes may compute beforehand, and those behind an If whose branch is then known.
        self._fixed = {value for value in self._graph.initializers.values() if is_constant(value)}
        self._chosen = set[ir.Value]()
        for node in self._graph:
            read = {value for value in node.inputs if value is not None}
            if is_a(node, {"Shape", "Size"}) or self._fixed >= read_by(node):
                self._fixed.update(node.outputs)
            elif not is_a(node, OPERATORS) and self._chosen >= read - self._fixed:
                self._chosen.update(node.outputs)
        # Gemm and MatMul with weights in codes: the type of the scales, or None if runtimes do not use integers.
        self._products: dict[str, np.dtype[Any] | None] = {}
        self._biased: set[str] = set()  # nodes whose bias has codes
        self._codes: dict[ir.Value, Scale] = {}  # of tensors that are read only in codes
        # For nodes with weights in codes: whether the bias has codes, or could have them.
        self._in_codes: dict[str, bool] = {}

    def activation(self, name: str, scale: Scale, readers: Collection[str] | None) -> None:
        """Let the named readers of a tensor read its dequantised codes; all of its readers if `readers` is None."""
        value = source = self._values[name]
        before = readers_of(value)
        parameters = self._parameters(name, scale)
        ahead, place = [*parameters], value.producer()
        if self._target.own_forms and self._must_not_be_joined(value, scale):
            # Runtimes remove divisions by 1, or nearly 1; then divide by twice the scale, and quantise with 0.5.
            rest = np.where(np.abs(scale.scale - 1) < 0.01, 0.5, 1.0).astype(scale.scale.dtype)
            ahead[0] = self._constant(f"{name}_rest", rest)
            divisor = self._constant(f"{name}_divisor", np.asarray(scale.scale / rest))
            source = self._add(place, "Div", [value, divisor], self._name(f"{name}_scaled"))
            place = source.producer()
        codes_name, values_name = self._name(f"{name}_quantized"), self._name(f"{name}_dequantized")
        codes = self._add(place, "QuantizeLinear", [source, *ahead], codes_name)
        values = self._add(codes.producer(), "DequantizeLinear", [codes, *parameters], values_name)
        for reader in before:
            if readers is None or reader.name in readers:
                replace_reads(reader, value, values)
        if self._target.everything and value.is_graph_output():
            self._return_codes(value, codes, values)
        unread = not any(value in reader.inputs for reader in before)
        if source is value and unread and not is_seen(value):
            self._codes[value] = scale

    def _return_codes(self, value: ir.Value, codes: ir.Value, values: ir.Value) -> None:
        """Let a model return dequantised codes instead of the tensor that they are made from."""
        quantize, name = codes.producer(), str(value.name)
        assert quantize is not None
        take_place(values, value)
        value.name = self._name(f"{name}_float")
        quantize.replace_input_with(0, value)

    def on_codes(self, name: str) -> None:
        """Write a node on codes, whose input has codes.

        A Pad pads with the code of 0.  A HardSigmoid becomes a Clip, if its input has a scale of `hard_sigmoid_scale`.
        A product with a number only changes the scale.
        """
        node = self._nodes[name]
        [source], [result] = data_of(node), node.outputs
        (made, step, shift), output = _codes_of(source), f"{result.name}_quantized"
        values = source.producer()
        assert values is not None
        scale, zero = values.inputs[1:]
        if node.op_type == "Pad":
            inputs = [made, node.inputs[1], zero, *node.inputs[3:]]
            made = self._add(node, "Pad", inputs, self._name(output), node.attributes, before=True)
        elif node.op_type == "HardSigmoid":
            alpha, beta = hard_sigmoid(node)
            least, most = as_code_format(str(shift.dtype), "codes").ends
            top = int((int(shift) - least) / beta) + least
            if top < most:
                greatest = self._constant(f"{name}_greatest", np.asarray(top, shift.dtype))
                made = self._add(node, "Clip", [made, None, greatest], self._name(output), before=True)
            scale = self._constant(f"{name}_scale", np.asarray(step * alpha, step.dtype))
            zero = self._constant(f"{name}_zero_point", np.asarray(least, shift.dtype))
        else:
            number = number_of(node)
            assert number is not None
            changed = step / number if node.op_type == "Div" else step * number
            scale = self._constant(f"{name}_scale", np.asarray(changed, step.dtype))
        output = self._name(f"{result.name}_dequantized")
        replaced = self._add(node, "DequantizeLinear", [made, scale, zero], output, before=True)
        take_place(replaced, result)
        self._graph.remove(node, safe=True)

    def number(self, name: str, *, symmetric: bool = False) -> None:
        """Give the constant number that a node adds or multiplies by a code: 1 more or less than its zero point.

        If `symmetric`, its zero point is that of its input.
        """
        node, [source] = self._nodes[name], data_of(self._nodes[name])
        _, step, zero = _codes_of(source)
        number = number_of(node)
        assert number is not None
        low = as_code_format(str(zero.dtype), "codes").ends[0]
        shift = int(zero) if symmetric else low if number > 0.0 else low + 1
        code = shift + (1 if number > 0.0 else -1)
        scale = Scale(str(zero.dtype), np.asarray(abs(number), step.dtype), np.asarray(shift, np.int32))
        [constant] = [value for value in node.inputs if value is not None and is_constant(value)]
        replace_reads(node, constant, self._dequantized(node, name, np.asarray(code), scale))

    def shift(self, name: str) -> None:
        """Drop an Add of a number, because its result has the codes of its input, with another zero point."""
        node = self._nodes[name]
        codes, *_ = _codes_of(data_of(node)[0])
        quantize = only_reader(node.outputs[0])
        if quantize is None or not is_a(quantize, {"QuantizeLinear"}):  # a division keeps runtimes from joining them
            self.number(name)
            return
        quantize.outputs[0].replace_all_uses_with(codes)
        self._graph.remove([quantize, node], safe=True)

    def prelu(self, name: str, scale: Scale) -> None:
        """Write a PRelu, whose input has codes, as the sum of what is positive and of a product with the slopes.

        Both parts are Clips of the codes.  The range of the product is what it can be, inside of that of the result.
        """
        node, [result] = self._nodes[name], self._nodes[name].outputs
        codes, step, zero = _codes_of(node.inputs[0])
        assert node.inputs[0] is not None
        values, slopes = node.inputs[0].producer(), array_of(node.inputs[1])
        assert values is not None and slopes is not None
        bound, parts = self._constant(f"{name}_zero_code", zero), list[ir.Value]()
        for part, bounds in (("positive", [bound]), ("negative", [None, bound])):
            clipped = self._add(node, "Clip", [codes, *bounds], self._name(f"{name}_{part}_codes"), before=True)
            inputs = [clipped, *values.inputs[1:]]
            parts.append(self._add(node, "DequantizeLinear", inputs, self._name(f"{name}_{part}"), before=True))
        low, high = as_code_format(scale.dtype, "codes").ends
        least, greatest = (float(scale.scale) * (end - int(scale.zero_point)) for end in (low, high))
        down, up = min(float(slopes.min()), 0.0), max(float(slopes.max()), 0.0)
        most = float(step) * (int(zero) - low)  # of what is below 0
        scale = _of_range(max(-up * most, least), min(-down * most, greatest), scale)
        steps = _of_range(down, up, scale)
        slope_codes = np.clip(np.rint(slopes / steps.scale) + steps.zero_point, low, high)
        factor = self._dequantized(node, f"{name}_slopes", slope_codes, steps)
        product = self._add(node, "Mul", [parts[1], factor], self._name(f"{name}_product"), before=True)
        parameters = self._parameters(f"{name}_product", scale)
        for operator in ("QuantizeLinear", "DequantizeLinear"):
            output = self._name(f"{name}_product_{'de' * operator.startswith('D')}quantized")
            product = self._add(node, operator, [product, *parameters], output, before=True)
        take_place(self._add(node, "Add", [parts[0], product], self._name(f"{name}_sum"), before=True), result)
        self._graph.remove(node, safe=True)

    def _dequantized(self, node: ir.Node, name: str, codes: npt.NDArray[Any], scale: Scale) -> ir.Value:
        """Return constant codes as values, ahead of a node that reads them."""
        inputs = [self._store(f"{name}_quantized", codes, scale.dtype), *self._parameters(name, scale)]
        return self._add(node, "DequantizeLinear", inputs, self._name(f"{name}_dequantized"), before=True)

    def weight(self, node: str, scale: Scale, codes: npt.NDArray[Any], channels: int | None, *, alone: bool) -> None:
        """Let a node read the dequantised codes of its weight; nodes that use the same channels share them.

        If activations have codes, ONNX Runtime computes a Gemm in integers only if the weights have zero points, in the
        shape of the scales.  If only weights have codes, ONNX Runtime before 1.27 uses them in a MatMul only, so a Gemm
        becomes a MatMul.  From 1.27 on it uses codes that one MatMul reads, so products do not share such weights.

        ONNX Runtime does a DequantizeLinear of such weights anew in each run, which takes longer than the convolution.
        It does a Cast and a Mul once, when it loads the model.
        """
        reader, forms = self._nodes[node], self._target.own_forms
        assert reader.inputs[1] is not None
        name = str(reader.inputs[1].name)
        transposed = forms and reader.op_type == "Gemm" and attribute(reader, "transB", 0)
        integers = forms and scale.dtype.startswith("int") and (alone or scale.block_size is None)
        key = name, scale.axis, channels, ""
        if reader.op_type in {"Gemm", "MatMul"}:
            key = name, scale.axis, channels, node if alone and integers else ""
            self._products[node] = scale.scale.dtype if integers else None
        if key not in self._weights:
            if transposed:  # store it as it is multiplied
                codes, scale = codes.T, _transposed(scale)
            stored = self._store(f"{name}_quantized", codes, scale.dtype)
            output = self._name(f"{name}_dequantized")
            attributes = {"axis": scale.axis, "block_size": scale.block_size}
            once = alone and forms and reader.op_type in CONVOLUTIONS
            once = once and scale.dtype in _CAST and scale.scale.dtype == np.float32
            # For matrices only: products of stacks of matrices take no zero point for each column.
            zero = integers and not alone and (codes.ndim == 2 or reader.op_type != "MatMul")
            # Nodes are in order, so that the first node that reads the weight comes first.
            if once:
                to = {"to": int(ir.DataType.FLOAT)}
                values = self._add(reader, "Cast", [stored], self._name(f"{name}_cast"), to, before=True)
                axes = [axis for axis in range(codes.ndim) if axis != scale.axis]
                step = scale.scale if scale.axis is None else np.expand_dims(scale.scale, axes)
                inputs = [values, self._constant(f"{name}_scale", step)]
                self._weights[key] = self._add(reader, "Mul", inputs, output, before=True)
            else:
                inputs = [stored, *self._parameters(name, scale, zero=zero)]
                attributes = {k: v for k, v in attributes.items() if v is not None}
                self._weights[key] = self._add(reader, "DequantizeLinear", inputs, output, attributes, before=True)
        if transposed:
            del reader.attributes["transB"]
        reader.replace_input_with(1, self._weights[key])
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
        own = input_of(reader, 2)
        if not self._target.int32_biases or (own is None and not self._target.own_forms):
            return
        adder, value = (reader, own) if own is not None else self._added_to(reader)
        if weight.block_size is not None:
            return
        integers = "float" not in weight.dtype + activation.dtype
        bias = array_of(value)
        if self._target.own_forms and bias is None and own is not None and reader.op_type == "Gemm" and integers:
            self._add_apart(reader, "Add", activation.scale.dtype)
            return
        if value in self._fixed:
            self._in_codes[node] = False
        if bias is None or value is None:
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
        if bias.dtype != np.float32 or not integers or (own is None and bias.ndim > 2):
            return
        # Name the codes after the node: other nodes may share the bias, with other scales.
        stored = self._store(f"{node}_bias_quantized", codes.astype(np.int32), "int32")
        output = self._name(f"{node}_bias_dequantized")
        one = scale.reshape(-1)[0] if scale.size == 1 else scale
        inputs = [stored, self._constant(f"{node}_bias_scale", np.asarray(one))]
        attributes = {} if scale.size == 1 else {"axis": codes.ndim - 1}
        values = self._add(adder, "DequantizeLinear", inputs, output, attributes, before=True)
        replace_reads(adder, value, values)
        self._biased.add(node)

    def constants(self, dtype: str, left_out: Collection[str]) -> None:
        """Give codes to float32 constants that nodes compute with, but not for `left_out` nodes."""
        coded = dict[ir.Value, ir.Value]()
        for node in list(self._graph):
            if not is_a(node, _COMPUTES_WITH_CONSTANTS) or node.name in left_out:
                continue
            for position, value in enumerate(node.inputs):
                array = array_of(value)
                if value is None or array is None or array.dtype != np.float32 or not array.size:
                    continue
                if value not in coded:
                    scale = _of_range(min(float(array.min()), 0.0), max(float(array.max()), 0.0), _of_type(dtype))
                    low, high = as_code_format(dtype, "codes").ends
                    codes = np.clip(np.rint(array / scale.scale) + scale.zero_point, low, high)
                    coded[value] = self._dequantized(node, str(value.name), codes, scale)
                node.replace_input_with(position, coded[value])

    def finished(self, *, all_activations: bool = False) -> ir.Model:
        """Return the model with codes, without a Relu or Clip that changes no code unless `all_activations`."""
        forms = self._target.own_forms
        if not all_activations and (forms or self._target.everything):
            self._drop_activations()
        for product in self._products if forms else ():
            self._keep_apart(product)
        if forms and opset_of(self.model) >= NAMES_TYPES:
            self._carry_codes()
        for node in list(reversed(self._graph)):
            if is_a(node, {"DequantizeLinear"}) and not node.outputs[0].uses() and not is_seen(node.outputs[0]):
                self._graph.remove(node, safe=True)
        drop_unread(self.model)
        return self.model

    def _keep_apart(self, node: str) -> None:
        """Rewrite what follows a product so that ONNX Runtime computes the product in integers.

        ONNX Runtime joins a MatMul and an Add to a Gemm if both are matrices, or if it knows all sizes and a row is
        added.  If what is added has no codes, it computes that Gemm in float.  With int4 weights beside int8
        activations it even makes a model that it cannot load.  It also does if it puts a Reshape ahead of the Gemm, and
        int8 codes behind that.  It does not join a Sum.

        It also computes a product in float if a Relu or Clip follows, unless that node changes no code.
        """
        product, dtype = self._nodes[node], self._products[node]
        follower = self._follower(product)
        if product.op_type == "MatMul" and follower is not None and is_a(follower, {"Add"}):
            shape = self._shapes.get(str(follower.outputs[0].name), [])
            joined = len(shape) < 3 or (0 not in shape and self._adds_a_row(follower))
            invalid = len(shape) > 2 and opset_of(self.model) >= NAMES_TYPES and _has_int8_codes(product.inputs[0])
            if invalid or (joined and node not in self._biased):
                follower.op_type = "Sum"
                return
            follower = self._follower(follower)
        if dtype is None or follower is None or not is_a(follower, ACTIVATIONS) or self._is_redundant(follower):
            return
        source, [output] = follower.inputs[0], follower.outputs
        low, high = input_of(follower, 1), input_of(follower, 2)
        if follower.op_type == "Relu":
            low = self._constant(f"{output.name}_low", np.zeros((), dtype))
        if low is not None or high is not None:
            follower.op_type = "Min" if low is None else "Max"
            follower.resize_inputs(2)
            follower.replace_input_with(0, source)
            follower.replace_input_with(1, high if low is None else low)
            if low is not None and high is not None:
                self._add_behind(follower, "Min", high, f"{output.name}_max")

    def _carry_codes(self) -> None:
        """Put int8 codes behind nodes past which ONNX Runtime would move a DequantizeLinear.

        The values are the same, because these nodes only move what has been rounded.
        """
        ends = [node.outputs[0] for node in self._graph if is_a(node, {"DequantizeLinear"})]
        while ends:
            value = ends.pop()
            node, maker = only_reader(value), value.producer()
            if node is None or maker is None or not is_a(node, _CARRIED) or not _has_int8_codes(value):
                continue
            result = node.outputs[0]
            coded = [reader for reader in readers_of(result) if is_a(reader, {"QuantizeLinear"})]
            if len(coded) == len(readers_of(result)) and not is_seen(result):
                continue
            name, parameters = str(result.name), maker.inputs[1:]
            quantized = self._add(node, "QuantizeLinear", [None, *parameters], self._name(f"{name}_quantized"))
            quantize = quantized.producer()
            assert quantize is not None
            dequantized = self._add(quantize, "DequantizeLinear", [quantized, *parameters], self._name(name))
            take_place(dequantized, result)
            result.name = self._name(f"{name}_moved")
            for reader in (quantize, *coded):
                reader.replace_input_with(0, result)
            ends.append(dequantized)

    def _drop_activations(self) -> None:
        """Drop each redundant Relu or Clip, so that the node before makes its output.

        ONNX Runtime 1.23 and 1.27 make invalid models when they do this themselves, and 1.20 does not do it.
        """
        for node in list(reversed(self._graph)):
            source = input_of(node, 0)
            if source is None or source.producer() is None or only_reader(source) is None:
                continue
            if self._is_redundant(node):
                self._codes[source] = self._codes[node.outputs[0]]
                take_place(source, node.outputs[0])
                self._graph.remove(node, safe=True)

    def _is_redundant(self, node: ir.Node) -> bool:
        """Return whether a node is a Relu or Clip that changes no code, and its output is read only as codes."""
        codes = self._codes.get(node.outputs[0]) if node.outputs else None
        return codes is not None and changes_no_code(node, codes)

    def _adds_a_row(self, node: ir.Node) -> bool:
        """Return whether an Add adds a constant of one dimension, or one of unknown shape that runtimes compute."""
        fixed = [value for value in node.inputs if value is not None and value in self._fixed]
        known = [value for value in fixed if is_constant(value)]
        return len(fixed) > len(known) or any(len(shape_of(value)) == 1 for value in known)

    def _follower(self, node: ir.Node) -> ir.Node | None:
        """Return the only node that reads the output of a node, past nodes without effect."""
        follower = only_reader(node.outputs[0])
        while follower is not None and is_a(follower, {"Identity", "Dropout"}):
            follower = only_reader(follower.outputs[0])
        return follower

    def _must_not_be_joined(self, value: ir.Value, scale: Scale) -> bool:
        """Return whether a separate division must keep ONNX Runtime from changing what precedes a QuantizeLinear.

        ONNX Runtime removes Relu and Clip before FP8, as if the codes were unsigned.  Between tensors with codes, it
        also quantises the weights, with one scale for all, and the biases of float nodes, even past an If whose branch
        it knows.  It moves codes past a MaxPool, even if the indices are read, which would then be indices of codes.
        It computes an AveragePool on codes, which takes several times as long as in float.
        """
        while (maker := value.producer()) is not None:
            if is_a(maker, OPERATORS):
                in_codes = self._in_codes.get(str(maker.name))
                return not in_codes if in_codes is not None else maker.inputs[1] in self._fixed | self._chosen
            if not self._chosen.isdisjoint((*maker.inputs, *maker.outputs)):
                return True
            if is_a(maker, ACTIVATIONS) and scale.dtype.startswith("float8"):
                return True
            if is_a(maker, {"AveragePool", "MaxPool"}) and not (is_move(maker) and _is_dequantized(maker.inputs[0])):
                return True
            sources = {given for given in maker.inputs if given is not None} - self._fixed
            if not is_a(maker, _PASSED) or len(sources) != 1:
                return False
            [value] = sources
        return False

    def _add_apart(self, node: ir.Node, operator: str, dtype: np.dtype[Any]) -> None:
        """Let an Add or Sum add the bias of a Gemm, which would keep runtimes from computing it in integers."""
        [output], term, beta = node.outputs, node.inputs[2], attribute(node, "beta", 1.0)
        assert term is not None
        node.resize_inputs(2)
        if beta != 1.0:
            factors = [term, self._constant(f"{output.name}_beta", np.asarray(beta, dtype))]
            term = self._add(node, "Mul", factors, self._name(f"{output.name}_term"), before=True)
        self._add_behind(node, operator, term, f"{output.name}_product")

    def _become_matmul(self, node: ir.Node, dtype: np.dtype[Any]) -> None:
        """Turn a Gemm into a MatMul and a Sum that adds the bias; its weights must not be transposed."""
        if input_of(node, 2) is not None:
            self._add_apart(node, "Sum", dtype)
        if attribute(node, "transA", 0):
            source, name = node.inputs[0], self._name(f"{node.name}_transposed")
            node.replace_input_with(0, self._add(node, "Transpose", [source], name, {"perm": [1, 0]}, before=True))
        node.resize_inputs(2)
        node.attributes.clear()
        node.op_type = "MatMul"

    def _added_to(self, node: ir.Node) -> tuple[ir.Node, ir.Value | None]:
        """Return the next node behind a product and the constant that it adds, from which runtimes make a bias."""
        if node.op_type not in {"Gemm", "MatMul"}:
            return node, None
        follower = self._follower(node)
        if follower is None or not is_a(follower, {"Add", "Sum"}):
            return node, None
        others = [value for value in follower.inputs if value in self._fixed]
        return follower, others[0] if len(others) == 1 and len(follower.inputs) == 2 else None

    def _name(self, name: str) -> str:
        return unused_name(name, self._taken)

    def _add(
        self,
        at: ir.Node | None,
        operator: str,
        inputs: Sequence[ir.Value | None],
        output: str,
        attributes: Mapping[str, Any] = MappingProxyType({}),
        *,
        before: bool = False,
    ) -> ir.Value:
        """Add a node behind or before another one, or as the first one, and return its output."""
        if at is None:
            at, before = self._graph[0], True
        return add_node(at, operator, inputs, output, self._taken, attributes, before=before)

    def _add_behind(self, node: ir.Node, operator: str, other: ir.Value, name: str) -> None:
        """Let an operator make the output of a node, from what this makes now, under a new name, and another value."""
        [made] = node.outputs
        output = str(made.name)
        added = ir.node(operator, [None, other], name=self._name(f"{output}_{operator}"))
        [result] = added.outputs
        take_place(result, made)
        made.name, self._values[output] = self._name(name), result
        added.replace_input_with(0, made)
        self._graph.insert_after(node, added)
        for values in (self._fixed, self._chosen):
            if made in values:
                values.add(result)

    def _parameters(self, name: str, scale: Scale, *, zero: bool = True) -> list[ir.Value]:
        result = [self._constant(f"{name}_scale", scale.scale)]
        if zero or scale.zero_point.any():
            result.append(self._store(f"{name}_zero_point", scale.zero_point, scale.dtype))
        return result

    def _constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        return add_initializer(self._graph, self._name(name), array)

    def _store(self, name: str, codes: npt.NDArray[Any], dtype: str) -> ir.Value:
        """Add codes, or zero points, as an initializer of their type."""
        return self._constant(name, np.asarray(codes).astype(_TYPES[dtype], copy=False))


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


def changes_no_code(node: ir.Node, codes: Scale) -> bool:
    """Return whether a node is a Relu or Clip that changes no code of what it makes."""
    if not is_a(node, ACTIVATIONS):
        return False
    if node.op_type == "Relu":
        return passes(codes, np.zeros(()), None)
    bounds = input_of(node, 1), input_of(node, 2)
    known = all(bound is None or is_constant(bound) for bound in bounds)
    return known and passes(codes, *map(array_of, bounds))


def passes(codes: Scale, low: npt.NDArray[Any] | None, high: npt.NDArray[Any] | None) -> bool:
    """Return whether a Clip to these bounds changes no integer code: the codes saturate at its bounds, or inside."""
    ends = as_code_format(codes.dtype, "codes").ends
    return not codes.dtype.startswith("float") and all(
        bound is None or sign * (np.rint(bound / codes.scale) + codes.zero_point) >= sign * end
        for bound, end, sign in ((low, ends[0], -1), (high, ends[1], 1))
    )


def as_stored(scale: npt.NDArray[np.float64], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Return scales in the type of what they scale, limited to its normal numbers."""
    limits = ml_dtypes.finfo(dtype)
    least, greatest = float(limits.smallest_normal), float(limits.max)
    return np.ascontiguousarray(np.clip(scale, least, greatest)).reshape(scale.shape).astype(dtype)


def tensor_of_codes(quantize: ir.Node) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Return the tensor that a QuantizeLinear quantises, its scale, and the dequantised tensor, if there is one.

    Tensor and scale are those that `Rewriter.activation` was given, even if a separate node divides.
    """
    tensor, scale = quantize.inputs[:2]
    assert tensor is not None and scale is not None
    maker, zero = tensor.producer(), input_of(quantize, 2)
    divides = is_a(maker, {"Div"})
    # Others read the codes as those of another tensor, whose scale or zero point differs.
    readers = [
        node
        for node in readers_of(quantize.outputs[0])
        if is_a(node, {"DequantizeLinear"})
        and are_equal(input_of(node, 2), zero)
        and (divides or are_equal(node.inputs[1], scale))
    ]
    if not readers:
        return tensor, scale, None
    whole = readers[0].inputs[1]
    if maker is not None and divides and maker.inputs[0] is not None and whole is not None:
        divisor, rest, product = map(array_of, (maker.inputs[1], scale, whole))
        if divisor is not None and rest is not None and product is not None and np.array_equal(divisor * rest, product):
            tensor, scale = maker.inputs[0], whole
    return tensor, scale, readers[0].outputs[0]


def _of_range(low: float, high: float, like: Scale) -> Scale:
    """Return the scale of a range that includes 0, in the types of another one."""
    least, most = as_code_format(like.dtype, "codes").ends
    step = as_stored(np.asarray((high - low) / (most - least), np.float64), like.scale.dtype)
    return dataclasses.replace(like, scale=step, zero_point=np.rint(least - low / step).astype(np.int32))


def _of_type(dtype: str) -> Scale:
    """Return a scale of a type."""
    return Scale(dtype, np.ones((), np.float32), np.zeros((), np.int32))


def _is_dequantized(value: ir.Value | None) -> bool:
    """Return whether a value is made from codes."""
    maker = None if value is None else value.producer()
    return maker is not None and is_a(maker, {"DequantizeLinear"})


def _has_int8_codes(value: ir.Value | None) -> bool:
    """Return whether a value is made from int8 codes of values that are observed, with a single scale."""
    if not _is_dequantized(value):
        return False
    codes, _, zero = _codes_of(value)
    return is_a(codes.producer(), {"QuantizeLinear"}) and zero.dtype == np.int8 and zero.size == 1


def _codes_of(value: ir.Value | None) -> tuple[ir.Value, npt.NDArray[Any], npt.NDArray[Any]]:
    """Return the codes of a dequantised value, their scale and their zero point."""
    maker = None if value is None else value.producer()
    assert maker is not None and maker.inputs[0] is not None
    scale, zero = map(array_of, maker.inputs[1:3])
    assert scale is not None and zero is not None
    return maker.inputs[0], scale, zero


def _transposed(scale: Scale) -> Scale:
    """Return the scale of a transposed matrix."""
    if scale.axis is None:
        return scale
    return dataclasses.replace(scale, scale=scale.scale.T, zero_point=scale.zero_point.T, axis=1 - scale.axis)
