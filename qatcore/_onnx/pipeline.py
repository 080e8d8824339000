"""The way from a float model to a quantised one: all steps, in their order."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import onnx_ir as ir
import onnxruntime

from .._base.errors import InvalidArgumentError
from .._base.types import FloatLike, PathLike
from .._base.validation import as_number
from .already_quantised import Quantised, told
from .calibration import Calibration, digest_of, observe
from .comparison import Comparison, compare_models, tensor_outputs
from .data import Batch, Data, InputSpec, Source
from .description import describe, description
from .display import Phases
from .fastest import MOST_TRIED, Placement, fastest_placement, is_slower
from .graph import inputs_of, names_of, tensors_of
from .kernels import InIntegers, in_integers, kernels_of
from .latency import Race
from .metric import Metric
from .model import Model, class_counts, read_model
from .notices import notice
from .plan import plan
from .prepare import initializers_among_inputs
from .quantization import Options, Quantizer, ready
from .sensitivity import (
    BATCHES,
    Search,
    most_sensitive,
    within_drop,
)
from .session import FP8_RUNTIME, check_loads, lacks_fp8
from .targets import ONNXRUNTIME, Target
from .work import all_multiply_adds, multiplies_by_weights

if TYPE_CHECKING:
    from .cluster import Cluster  # needs distributed

#: How many threads times are measured with by default.
THREADS = 1
_FP8_NEEDS = f"FP8 in a model with quantised activations needs ONNX Runtime {'.'.join(map(str, FP8_RUNTIME))} or newer"


@dataclass(frozen=True)
class Quantization:
    """A quantised model and what it was made from.

    Attributes
    ----------
    model : onnx_ir.Model
    quantizer : Quantizer
    calibration : Calibration or None
    search : Search or None
        The result of the search for `max_drop`; None without it.
    placement : Placement or None
        The fastest one, or that of a recipe; None if neither was asked for.
    data : Data or None
    """

    model: ir.Model
    quantizer: Quantizer
    calibration: Calibration | None
    search: Search | None
    placement: Placement | None
    data: Data | None

    def work(self) -> dict[str, int] | None:
        """Return how many multiplications by weights each node does for the first batch; None without data."""
        return None if self.data is None else all_multiply_adds(self.quantizer.float_model, next(iter(self.data)))

    def share(self, work: dict[str, int] | None) -> float | None:
        """Return which part of all multiplications by weights is quantised, 0 to 1; None if the work is not known."""
        if work is None:
            return None
        done = sum(work[name] for name in description(self.model)["nodes"])
        return done / max(sum(work.values()), 1)

    def in_integers(self, work: dict[str, int] | None) -> InIntegers | None:
        """Return how much ONNX Runtime computes on integers; None if nothing is to, or it cannot be examined."""
        kernels = None
        if self.quantizer.options.on_integers:
            with contextlib.suppress(InvalidArgumentError):  # there is no room for temporary files
                kernels = kernels_of(self.model)
        if kernels is None:
            return None
        products = [str(node.name) for node in self.quantizer.float_model.graph if multiplies_by_weights(node)]
        return in_integers(kernels, products, work)


@dataclass(frozen=True)
class Speed:
    """How to place nodes: `fastest`, `threads` and `recipe` of `quantize_model`."""

    fastest: bool = False
    threads: int = THREADS
    recipe: Model | None = None

    def check(self, data: Source | None, max_drop: FloatLike | None, target: Target) -> None:
        """Raise `InvalidArgumentError` if these do not fit each other or other arguments."""
        if self.fastest and target is not ONNXRUNTIME:
            raise InvalidArgumentError(
                f"fastest: it measures times in ONNX Runtime, but the target is {target.name}; leave out one of them"
            )
        if self.fastest and data is None:
            raise InvalidArgumentError("fastest: expected data to measure times on, got none; give data")
        if self.recipe is not None and (self.fastest or max_drop is not None):
            other = "fastest" if self.fastest else "max_drop"
            raise InvalidArgumentError(
                f"recipe: it says what stays in float, and so does {other}; leave out one of them"
            )


def quantize(
    exact: ir.Model,
    data: Source | None,
    options: Options,
    *,
    calibration: Calibration | PathLike | None,
    max_drop: FloatLike | None,
    speed: Speed,
    metric: Metric,
    batch_size: int | None,
    phases: Phases,
    observed: Calibration | None = None,
    cluster: Cluster | None = None,
) -> Quantization:
    """Do the work of `quantize_model`; if the model has to be calibrated, add to the calibration `observed`.

    With a cluster, it is calibrated there.
    """
    speed.check(data, max_drop, options.target)
    if max_drop is not None:
        max_drop = as_number(max_drop, "max_drop")
        if not 0.0 <= max_drop <= 100.0:
            raise InvalidArgumentError(f"max_drop: expected percent from 0 to 100, got {max_drop}")
        if data is None:
            raise InvalidArgumentError("max_drop: expected data to measure it on, got none; give data")
    placement = None if speed.recipe is None else Placement.of(read_model(speed.recipe))
    if placement is not None and placement.weights_alone:
        options = replace(options, activations="none")
    given = None if data is None else Data(data, InputSpec(exact), batch_size)
    if given is not None:
        given.check_labels(metric.labels, class_counts(exact))
    quantizer, used = quantizer_of(exact, given, options, calibration, phases, observed, cluster)
    _tell(exact, quantizer)
    if placement is not None:
        quantizer = quantizer.with_float(placement.float_nodes)

    def weights_alone() -> Quantizer:
        return quantizer_of(exact, given, replace(options, activations="none"), None, phases)[0]

    def made(quantizer: Quantizer) -> tuple[ir.Model, Search | None]:
        with _told_of_fp8(quantizer.options):
            if max_drop is None or given is None:
                tick = phases.begin("correcting", 2 * len(quantizer.plan.nodes)) if quantizer.corrects else None
                model = quantizer.model(progress=tick)
                check_loads(model)
                return model, None
            search = _search(quantizer, given, metric, max_drop, phases)
            return search.model, search

    race = None
    if speed.fastest and given is not None:
        race = Race(next(iter(given)), tensor_outputs(exact), speed.threads)
        tick = phases.begin("timing", MOST_TRIED)
        quantizer, placement = fastest_placement(exact, quantizer, weights_alone, race, tick)
        phases.end()
    model, search = made(quantizer)
    if race is not None and search is not None and search.float_nodes and is_slower(exact, model, race):
        # Too little is left in codes: those of weights cost no time.
        assert placement is not None
        quantizer, placement = weights_alone(), replace(placement, float_nodes=(), weights_alone=True)
        model, search = made(quantizer)
    _describe_images(model, given)
    return Quantization(model, quantizer, used, search, placement, given)


def _tell(exact: ir.Model, quantizer: Quantizer) -> None:
    """Give notice of what was decided for a model that the user may want to change."""
    options = quantizer.options
    if exact.ir_version >= 4 and not options.keep_inputs and (taken := initializers_among_inputs(exact)):
        names = ", ".join(taken[:3]) + (f" and {len(taken) - 3} more" if len(taken) > 3 else "")
        notice(
            f"model: inputs with initializers become constants and are no longer inputs: {names}; "
            "keep_inputs (--keep-inputs) keeps them"
        )
    if borders := Quantised.of(exact).borders:
        notice(f"model: {told(borders)} at its inputs and outputs stay as they are; nodes between them are quantised")
    if options.needs_fp8_runtime and lacks_fp8():
        notice(f"runtime: {_FP8_NEEDS}, but {onnxruntime.__version__} is installed")
    if quantizer.unreached:
        notice(f"calibration: no sample reached these nodes, which stay in float: {', '.join(quantizer.unreached)}")


def _search(quantizer: Quantizer, data: Data, metric: Metric, max_drop: float, phases: Phases) -> Search:
    """Return the quantised model within a drop."""
    tick = phases.begin("sensitivity", len(quantizer.plan.nodes))
    order = most_sensitive(quantizer, itertools.islice(data, BATCHES), metric, progress=tick)
    tick, tries = phases.begin("searching", None), itertools.count(1)

    def tried(n: int, drop: float) -> None:
        tick(next(tries), f"{n} in float: drop {drop:.2f} %")

    search = within_drop(quantizer, data, metric, max_drop, order, progress=tried)
    phases.end()
    return search


def _describe_images(model: ir.Model, data: Data | None) -> None:
    """Write into a model's metadata how images became its input."""
    if data is not None and data.images_line is not None:
        describe(model, {**description(model), "images": data.images_line})


@contextlib.contextmanager
def _told_of_fp8(options: Options) -> Iterator[None]:
    """Add to errors which ONNX Runtime FP8 needs, if an older one is installed."""
    try:
        yield
    except InvalidArgumentError as error:
        if options.needs_fp8_runtime and lacks_fp8():
            error.add_note(f"({_FP8_NEEDS})")
        raise


def run_comparison(
    exact: Model, quantized: Model, data: Source, metric: Metric, batch_size: int | None, phases: Phases
) -> Comparison:
    """Do the work of `compare`."""
    models = read_model(exact), read_model(quantized)
    if Quantised.of(models[0]).is_inside and not Quantised.of(models[1]).nodes:
        raise InvalidArgumentError(
            "expected the float model and then the quantised one, got a quantised model and then a float one; swap them"
        )
    for what, values in (("input", inputs_of), ("output", lambda model: model.graph.outputs)):
        names = [set(names_of(values(model))) for model in models]
        if names[0] != names[1]:
            raise InvalidArgumentError(
                f"quantised model: expected the float model's {what}s, {', '.join(sorted(names[0]))}, "
                f"got {', '.join(sorted(names[1]))}"
            )
    batches = Data(data, InputSpec(models[0]), batch_size)
    batches.check_labels(metric.labels, class_counts(models[0]))
    return compare_models(*models, batches, metric, progress=phases.begin("comparing", batches.total))


def quantizer_of(
    exact: ir.Model,
    data: Data | None,
    options: Options,
    calibration: Calibration | PathLike | None,
    phases: Phases,
    observed: Calibration | None = None,
    cluster: Cluster | None = None,
) -> tuple[Quantizer, Calibration | None]:
    """Return a quantizer, and the calibration that it chose ranges from; calibrate the model if none is given."""
    if not options.needs_data:
        return Quantizer(ready(exact, options), options, {}, _sample(data, options, phases), phases.begin), None
    if calibration is None:
        float_model = ready(exact, options)
        if data is None:
            raise InvalidArgumentError(
                "data: expected data to observe activations on, got none; give data, or activations='none' to quantise "
                "weights alone"
            )
        used = Calibration() if observed is None else observed
        tick = phases.begin("calibrating", data.total)
        run_calibration(
            exact,
            data,
            options,
            used,
            float_model=float_model,
            sampled=options.bias_correction,
            cluster=cluster,
            progress=tick,
        )
        phases.end()
    else:
        used = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        used.check_model(digest_of(exact))
        if not used.finished:
            raise InvalidArgumentError("calibration: expected a finished one, got one that was interrupted; resume it")
        float_model = ready(exact, options, equalised=used.equalised)
    return Quantizer(float_model, options, used.collectors, _sample(data, options, phases), phases.begin), used


def _sample(data: Data | None, options: Options, phases: Phases) -> list[Batch]:
    """Return the batches that biases are corrected with."""
    if data is None or not options.bias_correction:
        return []
    return data.sample(None if data.is_sampled else phases.begin("sampling", data.total))


def run_calibration(
    exact: ir.Model,
    data: Data,
    options: Options,
    calibration: Calibration,
    *,
    float_model: ir.Model | None = None,
    tensors: Iterable[str] | None = None,
    resume: bool = False,
    sampled: bool = False,
    cluster: Cluster | None = None,
    progress: Callable[[int], None] | None = None,
) -> None:
    """Observe tensors on data and add them to a calibration: those given, or by default those that get codes.

    `float_model` is the model as `ready` returns it, if that was done already.
    """
    if calibration.samples and calibration.equalised is not (tensors is None):
        raise InvalidArgumentError(
            "calibration: expected one of the same kind, but only one of both runs names its tensors; name them in both"
        )
    calibration.equalised = tensors is None
    if tensors is None:
        # The lowest opset will do, whatever the options: the tensors do not depend on it.  A runtime may compute
        # other operators a little differently, so all observe the same.
        lowest, target = Options(keep_inputs=options.keep_inputs), options.target
        planned = float_model or ready(exact, options)
        float_model = planned if options.opset == lowest.opset else ready(exact, lowest)
        planned = float_model if target is ONNXRUNTIME else planned
        # What is on codes between products depends on the format and the opset, and the calibration serves all.
        plans = (
            plan(planned, options.ops, options.exclude, target=target, operators=operators, any_pool=any_pool)
            for operators, any_pool in itertools.product(target.choices(), (False, True))
        )
        names = [name for each in plans for name in each.tensors]
        names = list(dict.fromkeys(names))
    else:
        float_model, names = exact, list(dict.fromkeys(tensors))
        known = tensors_of(exact)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise InvalidArgumentError(f"tensors: there is no tensor {unknown[0]!r} in the model")
    if cluster is not None:
        cluster.observe(exact, float_model, names, data, calibration, options, sampled=sampled, progress=progress)
        return
    observe(
        float_model,
        data,
        names,
        calibration,
        digest=digest_of(exact),
        resume=resume,
        sampled=sampled,
        progress=progress,
    )
