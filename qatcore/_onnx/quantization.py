"""Make a quantised model from a float model and its calibration."""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from .. import __version__
from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.validation import as_flag, as_member, as_percentile
from .._calibration.collector import CalibrationCollector
from .already_quantised import Quantised, scale_given, told
from .channels import pad_channels
from .correction import Correction, corrections, with_biases
from .data import Batch, InputSpec
from .description import describe, description
from .equalising import EQUALISED
from .graph import (
    array_of,
    input_of,
    is_a,
    is_seen,
    leads_to,
    names_of,
    only_reader,
    opset_of,
    readers_of,
    values_by_name,
)
from .judging import Judge, halves, helpful
from .logarithms import ahead_of_logarithms
from .plan import DEFAULT_OPERATORS, OPERATORS, Plan, WeightAxes, bias_of, is_slow_on_codes, plan, weight_axes
from .precision import computes_in_half
from .prepare import prepared
from .ranges import (
    ACTIVATIONS,
    PERCENTILE,
    WIDE,
    Activation,
    activation_scales,
    hard_sigmoid_scale,
    inside_clip,
    shifted,
)
from .regions import (
    data_of,
    hard_sigmoid,
    is_written_on_codes,
    made_by,
    number_of,
    tail,
    unscaled,
)
from .rewriting import Rewriter, Scale, changes_no_code, with_room_for_bias
from .saturation import GREATEST_CODE, LIMIT, adds_pairs, largest_pair, without_saturation
from .session import session_of
from .skeleton import fault_of, known_shapes
from .targets import ONNXRUNTIME, TARGETS, Target
from .weights import WEIGHTS, Weight, coded_weight, scaled, weight_scale

#: From so many bytes of weights on, progress says how many are done.
_MUCH = 1e8
#: How many int4 weights share a scale by default.
GROUP_SIZE = 32


@dataclass(frozen=True)
class Options:
    """How to quantise a model: arguments of `quantize_model`, which describes them."""

    method: CalibMethod = CalibMethod.MSE
    percentile: float = PERCENTILE
    weights: str = "int8"
    activations: str = "uint8"
    per_tensor: bool = False
    group_size: int = GROUP_SIZE
    ops: tuple[str, ...] = DEFAULT_OPERATORS
    exclude: tuple[str, ...] = field(default=())
    bias_correction: bool = True
    keep_inputs: bool = False
    no_saturation: bool = False
    symmetric: bool = False
    target: Target = ONNXRUNTIME

    @classmethod
    def checked(
        cls,
        *,
        method: object = CalibMethod.MSE,
        percentile: object = PERCENTILE,
        weights: object = "int8",
        activations: object = None,
        per_tensor: object = False,
        group_size: object = GROUP_SIZE,
        ops: Iterable[str] = DEFAULT_OPERATORS,
        exclude: Iterable[str] = (),
        bias_correction: object = True,
        keep_inputs: object = False,
        no_saturation: object = False,
        symmetric: object = False,
        target: object = ONNXRUNTIME.name,
    ) -> Options:
        """Return options, or raise if one of them is not valid."""
        if target not in TARGETS:
            raise InvalidArgumentError(f"target: expected one of {', '.join(TARGETS)}, got {target!r}")
        rules = TARGETS[str(target)]
        activations = next(iter(rules.formats)) if activations is None else activations
        if weights not in WEIGHTS:
            raise InvalidArgumentError(f"weights: expected one of {', '.join(WEIGHTS)}, got {weights!r}")
        if activations not in (*ACTIVATIONS, "none"):
            expected = ", ".join((*ACTIVATIONS, "none"))
            raise InvalidArgumentError(f"activations: expected one of {expected}, got {activations!r}")
        rules.check(str(activations), str(weights))
        if type(group_size) is not int or not (group_size == 0 or (group_size >= 16 and group_size.bit_count() == 1)):
            raise InvalidArgumentError(
                f"group_size: expected a power of two from 16 on, as runtimes need, or 0 for none, got {group_size!r}"
            )
        if no_saturation and (weights != "int8" or activations not in {"uint8", "int8"}):
            raise InvalidArgumentError(
                "no_saturation: expected weights in int8 and activations in uint8 or int8, because only these are "
                f"multiplied as integers, got {weights} and {activations}"
            )
        if weights == "int4" and rules.group_sizes and group_size not in rules.group_sizes:
            expected = " or ".join(map(str, rules.group_sizes))
            raise InvalidArgumentError(f"group_size: expected {expected}, as {rules.runtime} needs, got {group_size}")
        return cls(
            as_member(CalibMethod, "min_max" if method == "minmax" else method, "method"),
            as_percentile(percentile),
            str(weights),
            str(activations),
            as_flag(per_tensor, "per_tensor"),
            group_size,
            _names(ops, "ops"),
            _names(exclude, "exclude"),
            as_flag(bias_correction, "bias_correction"),
            as_flag(keep_inputs, "keep_inputs"),
            as_flag(no_saturation, "no_saturation"),
            as_flag(symmetric, "symmetric"),
            rules,
        )

    @property
    def needs_data(self) -> bool:
        """Whether activations get codes, so that their ranges have to be observed."""
        return self.activations != "none"

    @property
    def needs_fp8_runtime(self) -> bool:
        """Whether there is FP8 and activations get codes: ONNX Runtime before `FP8_RUNTIME` loads few such models."""
        return self.needs_data and "fp8" in {self.weights, self.activations}

    @property
    def between(self) -> frozenset[str]:
        """The operators that are computed on codes between products, beside those that move elements."""
        return self.target.between(self.activations, symmetric=self.symmetric)

    @property
    def is_fine(self) -> bool:
        """Whether activations have codes of 16 bits, which are fine enough for small values beside large ones."""
        return self.activations in WIDE

    @property
    def on_integers(self) -> bool:
        """Whether ONNX Runtime computes the quantised model on integers."""
        return self.target.own_forms and self.activations in {"int8", "uint8"}

    @property
    def centred(self) -> bool:
        """Whether zero points are fixed: 0, or the middle of unsigned codes."""
        return self.symmetric or not self.target.zero_points

    @property
    def opset(self) -> int:
        """The lowest opset that has operators for these formats."""
        if self.weights == "int4" or self.activations in WIDE:
            return 21
        return 19 if "fp8" in {self.weights, self.activations} else self.target.opset


def ready(model: ir.Model, options: Options, *, equalised: bool = True) -> ir.Model:
    """Return a model prepared for these options; its channels are `equalised` if activations get codes.

    Raises
    ------
    InvalidArgumentError
        If the model, or a part of it, is quantised already, by any tool.
    """
    found = Quantised.of(model)
    if found.is_inside or description(model):
        nodes = f": {told(found.nodes)}" if found.nodes else ""
        raise InvalidArgumentError(f"model: it is quantised already{nodes}; give the float model that it was made from")
    how = {"keep_inputs": options.keep_inputs, "in_float32": options.needs_data}
    how.update(whole_swish=not options.target.own_forms, equalised=equalised and options.needs_data)
    result = prepared(model, options.opset, **how)
    if computes_in_half(result) and opset_of(result) < 19:  # the first opset that quantises these
        return prepared(model, 19, **how)
    return result


class Quantizer:
    """Quantises a model, several times if needed, with different nodes in float; scales are chosen once.

    Parameters
    ----------
    model : onnx_ir.Model
        A model that `ready` has returned.
    options : Options
    collectors : dict of str to CalibrationCollector
        Collectors of the tensors in the plan, and perhaps of others.  None are needed for weights alone.
    sample : sequence of dict
        Batches to correct biases with.  Without any, no bias is corrected.
    begin : callable, optional
        ``begin(name, total)`` begins to show the progress of choosing weights, and returns what to call with how many
        are done and with a note.

    Attributes
    ----------
    plan : Plan
    relative : tuple of str
        Names of nodes that stay in float, and are not in the plan, because a logarithm needs their relative accuracy.
    slow : tuple of str
        The same for nodes that runtimes compute faster in float.
    unreached : tuple of str
        Names of nodes that stay in float, and are not in the plan, because no sample reached them.
    in_float : tuple of str
        Names of nodes that stay in float, and are not in the plan, because `with_float` was asked for that.

    Raises
    ------
    InvalidArgumentError
        If a tensor was not observed, or no sample reached any node.
    """

    def __init__(
        self,
        model: ir.Model,
        options: Options,
        collectors: dict[str, CalibrationCollector],
        sample: Sequence[Batch] = (),
        begin: Callable[[str, int], Callable[..., None]] | None = None,
    ) -> None:
        self.float_model, self.options, self._sample = model, options, sample
        self._how: dict[str, Any] = {"target": options.target, "operators": options.between}
        self.plan: Plan = plan(model, options.ops, options.exclude, **self._how)
        self._left_out: tuple[str, ...] = ()
        self.relative: tuple[str, ...] = ()
        self.slow: tuple[str, ...] = ()
        if not options.is_fine:
            self.relative = self._but_some(ahead_of_logarithms(model.graph))
        if options.on_integers:
            self.slow = self._but_some({str(node.name) for node in self.plan.nodes if is_slow_on_codes(node)})
        self._values = values_by_name(model.graph)
        self._is_faulty = fault_of(model) is not None
        self._shapes = known_shapes(model)
        self._activations: dict[str, Activation] = {}
        self.unreached: tuple[str, ...] = ()
        self.in_float: tuple[str, ...] = ()
        self._shifts: set[str] = set()  # nodes that add a number, and only change a zero point
        if options.needs_data:
            missing = [name for name in self.plan.tensors if name not in collectors]
            if missing:
                raise InvalidArgumentError(
                    f"calibration: expected all tensors that get codes, but {len(missing)} were not observed, such as "
                    f"{missing[0]}; calibrate with the same ops, target and nodes"
                )
            self._leave_unreached(collectors)
            sources = {*self.plan.inputs.values(), *self.plan.outputs.values()}
            needed = {name: _pooled(collectors, self.plan.pooled.get(name, (name,))) for name in sources}
            types = {self._range_of(name): self._weight_of(node).dtype for name, node in self.plan.because.items()}
            self._activations = activation_scales(
                needed,
                options.method,
                options.percentile,
                options.activations,
                types,
                symmetric=options.centred,
                by_sign=options.target.by_sign,
            )
            fixed = set[str]()  # tensors whose scale has a reason beside their range
            for name, given in self._activations.items():
                scale = scale_given(self._values[name], given.scale.dtype) or self._scale_by_rule(name, given.scale)
                if scale is not None and (options.target.zero_points or not scale.zero_point.any()):
                    self._activations[name] = replace(given, scale=scale, sqnr=math.inf)
                    fixed.add(name)
            for name, activation in self._activations.items():
                maker = self._values[name].producer()
                if maker is not None and is_a(maker, {"Clip"}):
                    bounds = [array_of(input_of(maker, position)) for position in (1, 2)]
                    self._activations[name] = replace(activation, scale=inside_clip(activation.scale, *bounds))
            if options.target.own_forms:
                self._fit_hard_sigmoids(needed, fixed)
                self._fit_sums(fixed)
        self._weights: dict[str, Weight] = {}
        self._pairs: dict[str, int] = {}  # the largest pair of the weights of each node, if these must not saturate
        self._choose_weights(None if begin is None else begin("weights", len(self.plan.nodes)))

    def _scale_by_rule(self, name: str, chosen: Scale) -> Scale | None:
        """Return the scale that the target fixes for a tensor; None if it is free."""
        maker = self._values[name].producer()
        fixed = None if maker is None else self.options.target.scales.get((maker.op_type, chosen.dtype))
        if fixed is None:
            return None
        step, zero = fixed
        return replace(chosen, scale=np.asarray(step, chosen.scale.dtype), zero_point=np.asarray(zero, np.int32))

    def with_float(self, names: Iterable[str]) -> Quantizer:
        """Return a quantizer that leaves more nodes in float.

        Raises
        ------
        InvalidArgumentError
            If the model has no node of some name.
        """
        known = {str(node.name) for node in self.float_model.graph}
        result, added = copy.copy(self), tuple(names)
        if missing := [name for name in added if name not in known]:
            raise InvalidArgumentError(
                f"recipe: there is no node {missing[0]!r} in the model; give a quantised copy of this model"
            )
        result.in_float = (*self.in_float, *added)
        result._left_out = (*self._left_out, *added)
        result.plan = result._planned(result._left_out)
        return result

    def _but_some(self, names: Container[str]) -> tuple[str, ...]:
        """Leave these nodes of the plan in float, unless none would be left, and return their names."""
        found = tuple(str(node.name) for node in self.plan.nodes if node.name in names)
        if len(found) == len(self.plan.nodes):
            return ()
        self._left_out = (*self._left_out, *found)
        self.plan = self._planned(self._left_out)
        return found

    def _planned(self, float_nodes: Iterable[str]) -> Plan:
        """Return a plan with more nodes in float; without these, no other node enters a region."""
        options, within = self.options, {str(node.name) for node in self.plan.between}
        return plan(
            self.float_model,
            options.ops,
            options.exclude,
            float_nodes=tuple(float_nodes),
            within=within,
            **self._how,
        )

    def _fit_hard_sigmoids(self, collectors: dict[str, CalibrationCollector], fixed: set[str]) -> None:
        """Choose the scales ahead of hard sigmoids for their results, or leave these in float if that costs much."""
        scales, left = self._activations, list[str]()
        for node in self.plan.between:
            if not is_a(node, {"HardSigmoid"}):
                continue
            [source] = data_of(node)
            name, swish = str(source.name), len(readers_of(source)) > 1
            scale = hard_sigmoid_scale(collectors[name], scales[name], *hard_sigmoid(node), swish=swish)
            if scale is None or name in fixed:
                left.append(str(node.name))
                continue
            scales[name] = replace(scales[name], scale=scale, sqnr=math.nan)
            fixed.add(name)
        if left:
            self._left_out = (*self._left_out, *left)
            self.plan = self._planned(self._left_out)

    def _fit_sums(self, fixed: set[str]) -> None:
        """Choose scales so that sums with a number have the codes of what is added to, but for fixed scales."""
        scales = self._activations
        for node in self.plan.between:
            if not is_a(node, {"Add"}) or (number := number_of(node)) is None or self.options.symmetric:
                continue
            source, factor = unscaled(data_of(node)[0])
            before, after = names = str(source.name), str(node.outputs[0].name)
            # A product has a range of its own, because its bias depends on it.
            own = all(name in scales and self._range_of(name) == name and name not in fixed for name in names)
            if not own or only_reader(source) is None or is_a(source.producer(), OPERATORS):
                continue
            if (fitting := shifted(scales[after].scale, number)) is not None:
                first, second = fitting
                first = replace(first, scale=np.asarray(first.scale / factor, first.scale.dtype))
                scales[before] = replace(scales[before], scale=first, sqnr=math.nan)
                scales[after] = replace(scales[after], scale=second, sqnr=math.nan)
                self._shifts.add(str(node.name))
                fixed.update(names)

    def _leave_unreached(self, collectors: dict[str, CalibrationCollector]) -> None:
        """Remove nodes from the plan whose tensors had no elements in any batch, because these have no range."""
        empty = {name for name in self.plan.tensors if not collectors[name].n_observed}
        self.unreached = tuple(
            str(node.name)
            for node in self.plan.nodes
            if not empty.isdisjoint(
                {self._range_of(_source(node)), self.plan.outputs.get(str(self._tail(node).name), "")}
            )
        )
        if len(self.unreached) == len(self.plan.nodes):
            raise InvalidArgumentError(
                f"calibration: there is nothing to quantise: no sample reached {', '.join(self.unreached)}; "
                "calibrate with samples that do"
            )
        fused = self.options.target.fused
        ends = {str(node.name): names_of((*data_of(node), *made_by(node, fused))) for node in self.plan.between}
        between = (name for name, around in ends.items() if not empty.isdisjoint(around))
        if more := (*self.unreached, *between):
            self._left_out = (*self._left_out, *more)
            self.plan = self._planned(self._left_out)

    def _choose_weights(self, progress: Callable[..., None] | None) -> None:
        options, total = self.options, sum(self._weight_of(node).nbytes for node in self.plan.nodes)
        done = 0
        readers = Counter(node.inputs[1] for node in self.plan.nodes)
        chosen: dict[tuple[ir.Value | None, WeightAxes | None], Weight] = {}
        for n, node in enumerate(self.plan.nodes, start=1):
            weight = self._weight_of(node)
            outputs = weight_axes(node, weight.ndim)
            key = (node.inputs[1], outputs)
            pairs = outputs if options.no_saturation and adds_pairs(node) else None
            if key not in chosen:
                per_tensor = options.per_tensor or node.op_type in options.target.per_tensor
                scale = weight_scale(weight, None if per_tensor else outputs, options.weights, options.group_size)
                # The bias of one node must not widen the scale of a weight that another node shares.
                alone = options.needs_data and readers[node.inputs[1]] == 1
                if alone and (bias := bias_of(node)) is not None:
                    activation = self._activations[self._range_of(_source(node))].scale
                    in_codes = self._becomes_codes(bias.adder)
                    scale = with_room_for_bias(scale, weight, bias.values, activation, in_codes=in_codes)
                chosen[key] = coded_weight(weight, scale, None if outputs is None else outputs.channels)
                if pairs is not None:
                    chosen[key] = without_saturation(weight, chosen[key], node, pairs)
            self._weights[str(node.name)] = chosen[key]
            if pairs is not None:
                self._pairs[str(node.name)] = largest_pair(chosen[key].codes, node, pairs)
            done += weight.nbytes
            if progress is not None:
                progress(n, f"{done / 1e9:.2f} of {total / 1e9:.2f} GB" if total > _MUCH else "")

    @property
    def corrects(self) -> bool:
        """Whether there is data to correct biases with."""
        return bool(self._sample)

    def _tail(self, node: ir.Node) -> ir.Value:
        return tail(node, self.options.target.fused)

    def _becomes_codes(self, node: ir.Node) -> bool:
        """Return whether the output of a node is read only as codes."""
        output = self._tail(node)
        if output.name in self.plan.outputs:
            return True
        readers = {str(reader.name) for reader in readers_of(output)}
        return output.name in self.plan.inputs and not is_seen(output) and readers <= self.plan.readers

    def _weight_of(self, node: ir.Node) -> npt.NDArray[Any]:
        weight = array_of(node.inputs[1])
        assert weight is not None
        return weight

    def model(
        self,
        float_nodes: Iterable[str] = (),
        *,
        corrected: bool = True,
        progress: Callable[[int], None] | None = None,
    ) -> ir.Model:
        """Return the quantised model, with some nodes in float, and corrected if there is data."""
        kept = tuple(float_nodes)
        chosen = self._planned((*kept, *self._left_out))

        found, left_out = dict[str, Correction](), 0
        if corrected and self.corrects and chosen.nodes:
            found, left_out = self._helpful_corrections(chosen, kept, progress)
        result = self._written(chosen, kept, found, left_out)
        if self.options.weights == "int8" and self.options.on_integers:
            # A Pad on int8 codes would keep ONNX Runtime from turning them into uint8, as its convolutions need.
            padded = pad_channels(result, images=self.options.activations == "uint8")
            describe(result, {**description(result), **({"channels": padded} if padded else {})})
        # Many models that run have a fault from the start, such as an output without a shape.  Allow no new fault.
        if self._is_faulty:
            session_of(result)
        elif (fault := fault_of(result)) is not None:
            raise InvalidArgumentError(f"model: the quantised model would not be valid: {fault}; please report this")
        return result

    def _helpful_corrections(
        self, chosen: Plan, kept: tuple[str, ...], progress: Callable[[int], None] | None
    ) -> tuple[dict[str, Correction], int]:
        """Return the corrections that help, by the names of their nodes, and how many do not help.

        Corrections help if they bring the outputs nearer to the float model's.  That is judged on samples from which
        they were not computed.
        """
        bias = bias_of(last := chosen.nodes[-1])
        end = str(self._tail(last if bias is None else bias.adder).name)
        learned, judged = halves(self._sample, InputSpec(self.float_model).samples_of)
        gains = frozenset(str(node.name) for node in chosen.nodes if self._may_have_gains(node))

        def measured(exact: ir.Model) -> ir.Model:
            return self._written(chosen, kept, exact=exact, all_activations=True)

        found = corrections(self.float_model, measured, chosen.nodes, learned, with_gains=gains, progress=progress)
        judge = Judge(self.float_model, [end], judged)

        def errors(names: Sequence[str]) -> list[float]:
            return judge.errors(self._written(chosen, kept, {name: found[name] for name in names}))

        names = helpful(list(found), errors) if found else []
        return {name: found[name] for name in names}, len(found) - len(names)

    def _may_have_gains(self, node: ir.Node) -> bool:
        """Return whether no other node reads a weight, it has a scale for each channel, and other products follow.

        Least squares draw values towards their mean.  Products make up for that behind a node, but decisions do not:
        they compare outputs with each other and with thresholds.
        """
        weight, bias, given = self._weights[str(node.name)], bias_of(node), node.inputs[1]
        if bias is None or weight.channels is None or weight.scale.axis is None:
            return False
        if given is None or len(readers_of(given)) > 1:
            return False
        return bias.values.size == weight.codes.shape[weight.channels] and leads_to(node, OPERATORS)

    def _written(
        self,
        chosen: Plan,
        kept: tuple[str, ...],
        found: Mapping[str, Correction] = MappingProxyType({}),
        left_out: int = 0,
        *,
        exact: ir.Model | None = None,
        all_activations: bool = False,
    ) -> ir.Model:
        """Return a model with codes for the plan and with corrections, of which others are left out.

        `exact` is the float model, or a copy with other biases.
        """
        if exact is None:
            exact = with_biases(self.float_model, {name: each.bias for name, each in found.items()})
        options = self.options
        rewriter = Rewriter(exact, self._shapes, options.target)
        in_codes = {**chosen.outputs, **chosen.inputs}
        # In the order of the graph, because what follows a tensor depends on whether it has codes.
        tensors = {name: self._range_of(name) for name in self._values if name in in_codes}
        ranges = {**tensors, **chosen.written}
        for node in chosen.nodes:
            name = str(node.name)
            weight = self._weights[name]
            scale = scaled(weight, found[name].gain) if name in found else weight.scale
            rewriter.weight(name, scale, weight.codes, weight.channels, alone=not options.needs_data)
            if options.needs_data:
                rewriter.bias(name, self._activations[ranges[_source(node)]].scale, scale)
        if options.needs_data:
            for name, source in tensors.items():
                scale = self._activations[source].scale
                if options.target.everything and self._is_dropped(name, scale):
                    continue
                rewriter.activation(name, scale, None if name in chosen.outputs else chosen.readers)
            for node in chosen.between if options.target.own_forms else ():
                if is_written_on_codes(node):
                    rewriter.on_codes(str(node.name))
                elif is_a(node, {"PRelu"}):
                    [name] = names_of(made_by(node))
                    rewriter.prelu(str(node.name), self._activations[tensors[name]].scale)
                elif node.name in self._shifts:
                    rewriter.shift(str(node.name))
                elif number_of(node) is not None:
                    rewriter.number(str(node.name), symmetric=options.symmetric)
            if options.target.everything:
                rewriter.constants(ACTIVATIONS[options.activations], {*kept, *self._left_out, *options.exclude})
        result = rewriter.finished(all_activations=all_activations)
        about = self._about(chosen, tensors, kept)
        describe(result, {**about, "corrected": len(found), "corrections_left_out": left_out})
        return result

    def _is_dropped(self, name: str, scale: Scale) -> bool:
        """Return whether a tensor needs no codes, because the activation behind it changes none and is dropped."""
        activation = only_reader(self._values[name])
        return activation is not None and not is_seen(activation.outputs[0]) and changes_no_code(activation, scale)

    def _range_of(self, name: str) -> str:
        plan = self.plan
        return plan.inputs.get(name) or plan.outputs.get(name) or plan.written[name]

    def _about(self, chosen: Plan, tensors: dict[str, str], kept: tuple[str, ...]) -> dict[str, Any]:
        options, equalised = self.options, self.float_model.meta.get(EQUALISED, {})
        about: dict[str, Any] = {
            "version": __version__,
            "weights": options.weights,
            "activations": options.activations,
            **({} if options.target is ONNXRUNTIME else {"target": options.target.name}),
            **({"symmetric": True} if options.symmetric else {}),
            "nodes": {
                str(node.name): {"op": node.op_type, "sqnr": _decibels(self._weights[str(node.name)].sqnr)}
                for node in chosen.nodes
            },
            "float": [*self.in_float, *kept],
            "unreached": list(self.unreached),
            "relative": list(self.relative),
            "slow": list(self.slow),
            "fitted": [names_of(data_of(node))[0] for node in chosen.between if is_a(node, {"HardSigmoid"})],
            "equalised": {name: powers for name, powers in equalised.items() if name in tensors},
            "tensors": {},
        }
        if options.no_saturation:
            largest = max((self._pairs.get(str(node.name), 0) for node in chosen.nodes), default=0)
            about["saturation"] = {"limit": LIMIT, "largest": GREATEST_CODE * largest}
        if options.needs_data:
            about["tensors"] = {
                name: {
                    "method": self._activations[source].method.value,
                    "sqnr": _decibels(self._activations[source].sqnr),
                }
                for name, source in tensors.items()
            }
        return about


def _pooled(collectors: dict[str, CalibrationCollector], names: Sequence[str]) -> CalibrationCollector:
    """Return what was observed of some tensors together."""
    if len(names) == 1:
        return collectors[names[0]]
    result = CalibrationCollector()
    for name in names:
        result.merge(collectors[name])
    return result


def _source(node: ir.Node) -> str:
    """Return the name of the tensor that a node multiplies by its weights."""
    assert node.inputs[0] is not None
    return str(node.inputs[0].name)


def _decibels(value: float) -> float | None:
    """Return decibels as JSON can hold them: None for infinities and NaN."""
    return round(value, 2) if math.isfinite(value) else None


def _names(names: Iterable[str], what: str) -> tuple[str, ...]:
    given = names if isinstance(names, str) else tuple(names)
    if isinstance(given, str) or not all(isinstance(name, str) for name in given):
        raise TypeError(f"{what}: expected an iterable of names, got {given!r}")
    return given
