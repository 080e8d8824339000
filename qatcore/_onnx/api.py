"""The public functions: calibrate, quantize_model, compare, sensitivity."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypedDict, Unpack

import onnx_ir as ir
import onnxruntime
from onnx import ModelProto

from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.types import FloatLike, PathLike
from .._base.validation import as_count, as_flag, as_number
from .already_quantised import Quantised, told
from .calibration import Calibration, digest_of, observe
from .comparison import Comparison, compare_models
from .data import Batch, Data, InputSpec, Source
from .display import Phases
from .graph import inputs_of, names_of, tensors_of
from .metric import Metric, Score
from .model import Model, class_counts, describe, description, read_model, refuse_output, write_model
from .notices import notice
from .placement import InIntegers, in_integers, kernels_of
from .plan import DEFAULT_OPERATORS, plan
from .prepare import initializers_among_inputs
from .quantization import GROUP_SIZE, Options, Quantizer, ready
from .ranges import ACTIVATIONS, PERCENTILE
from .sensitivity import (
    BATCHES,
    Search,
    Sensitivity,
    most_sensitive,
    node_sensitivities,
    within_drop,
)
from .session import FP8_RUNTIME, check_loads, lacks_fp8
from .skeleton import proto_of
from .work import all_multiply_adds, multiplies_by_weights

if TYPE_CHECKING:
    from .cluster import Cluster  # needs distributed

_FP8_NEEDS = f"FP8 in a model with quantised activations needs ONNX Runtime {'.'.join(map(str, FP8_RUNTIME))} or newer"


def calibrate(
    model: Model,
    data: Source,
    *,
    ops: Iterable[str] = DEFAULT_OPERATORS,
    exclude: Iterable[str] = (),
    tensors: Iterable[str] | None = None,
    calibration: Calibration | None = None,
    resume: bool = False,
    batch_size: int | None = None,
    progress: bool = False,
) -> Calibration:
    """Run a model in ONNX Runtime and observe the tensors that will have codes, batch by batch.

    Each batch is released once it is observed.  The result serves every format of weights and activations and every
    method.  It can be saved, merged with a calibration on other data, and continued.

    Parameters
    ----------
    model : str, PathLike, ModelProto or onnx_ir.Model
    data : str, PathLike, ImageFolder, array, dict, callable or iterable
        One of these:

        - A folder of images, or an `ImageFolder`, which has options for it.
        - A directory of ``.npz`` or ``.npy`` files.  Each file is a batch, in the order of their names.
        - One ``.npz`` or ``.npy`` file whose arrays have a leading axis of samples.
        - A dict from the names of inputs to such arrays, or one such array if the model has one input.
        - An iterable of batches, such as a ``DataLoader``.
        - A function without arguments, or its name ``module:function``.  It returns arrays or an iterable as above.

        A batch is one of these:

        - A dict from the names of inputs to arrays.  It may also hold other arrays, such as labels.
        - A tuple or list of the inputs, in the model's order.  In their place there may be one dict or tuple of them.
          Items behind the inputs have the names "labels", "labels_1" and so on.
        - An array, if the model has one input.
    ops, exclude : iterable of str
        As in `quantize_model`.
    tensors : iterable of str, optional
        Names of the tensors to observe, instead of those that `quantize_model` needs.
    calibration : Calibration, optional
        Add to this calibration, and return it.  If an exception ends the run, even `KeyboardInterrupt`, it holds whole
        batches only.
    resume : bool
        Skip the batches that an interrupted run has observed, by their number of samples.  A finished calibration stays
        as it is, and an empty one starts with the first batch.
    batch_size : int, optional
        Samples in a batch, if the data is images, one file or arrays.  By default 8, or what the model fixes.  Samples
        that do not fill a batch of a fixed size are left out.  Other data has batches already, and takes no size.
    progress : bool
        Show progress on standard error, if that is a terminal.

    Returns
    -------
    Calibration
        The histograms of the observed tensors.

    Warns
    -----
    ModelWarning
        If images cannot be read; they are left out.

    Raises
    ------
    InvalidArgumentError
        If the model is not valid, or a name or an operator is not known.  If there is no batch, or a batch does not fit
        the model or holds NaN or infinities.  If the calibration is of another model or of other tensors.
    OSError
        If a file cannot be read.
    TypeError
        If an argument is of another type.
    """
    if calibration is not None and not isinstance(calibration, Calibration):
        raise TypeError(f"calibration: expected a Calibration to add to, got {type(calibration).__name__}")
    exact = read_model(model)
    batches = Data(data, InputSpec(exact), batch_size)
    result = Calibration() if calibration is None else calibration
    options = Options.checked(ops=ops, exclude=exclude)
    with Phases(shown=as_flag(progress, "progress")) as phases:
        tick = phases.begin("calibrating", batches.total)
        run_calibration(exact, batches, options, result, tensors=tensors, resume=resume, progress=tick)
    return result


def quantize_model(
    model: Model,
    data: Source | None = None,
    *,
    output: PathLike | None = None,
    external_data: bool = False,
    calibration: Calibration | PathLike | None = None,
    method: CalibMethod | str = CalibMethod.MSE,
    percentile: FloatLike = PERCENTILE,
    weights: str = "int8",
    activations: str = "uint8",
    per_tensor: bool = False,
    group_size: int = GROUP_SIZE,
    ops: Iterable[str] = DEFAULT_OPERATORS,
    exclude: Iterable[str] = (),
    bias_correction: bool = True,
    keep_inputs: bool = False,
    max_drop: FloatLike | None = None,
    metric: Score | str | None = None,
    labels: str | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> ModelProto:
    """Return a quantised copy of a model.

    Codes are written as QuantizeLinear and DequantizeLinear nodes (QDQ), which every runtime for quantised models
    reads.

    Parameters
    ----------
    model : str, PathLike, ModelProto or onnx_ir.Model
        The float model.  It is not changed.
    data : optional
        As in `calibrate`.  Not needed if only weights are quantised, or if there is a `calibration`.  `max_drop` always
        needs it.  Without data no bias is corrected.
    output : str or PathLike, optional
        A file to write the model to as well.  If writing fails, the file stays as it was.
    external_data : bool
        Write the weights into a file beside `output`, with ``.data`` behind its name.  Weights of more than 1.5 GiB
        always go there.
    calibration : Calibration, str or PathLike, optional
        The result of `calibrate`, or a file that `Calibration.save` wrote.
    method : CalibMethod or str
        How to choose the ranges of activations: "min_max", "percentile", "kl", "mse" or "auto".  "auto" takes, for each
        tensor, the method with the least expected squared error.  Weights always get the range with the least squared
        error.
    percentile : float
        Percent of the values that the percentile method keeps, above 0 and at most 100.  The default is 99.99.
    weights : str
        "int8", "int4" (in groups) or "fp8" (E4M3).
    activations : str
        "uint8", "int8", "fp8" or "none".
    per_tensor : bool
        Give each weight one scale, instead of one for each output channel.
    group_size : int
        How many int4 weights along the axis that is summed over share a scale: a power of two from 16 on, 32 by
        default.  0 means one scale for each output channel.
    ops : iterable of str
        Operators to quantise where their weights are constant: some of Conv, ConvTranspose, Gemm and MatMul.  By
        default all but ConvTranspose.
    exclude : iterable of str
        Names of nodes, or of their outputs, that stay in float.
    bias_correction : bool
        If there is data, correct biases so that each channel has the mean of the float model (Nagel et al., 2019).  The
        batches for this are spread over the data, up to 128 samples or 4 batches.
    keep_inputs : bool
        Keep initializers that are inputs too, and leave nodes in float that use them as weights.  By default, if there
        are weights among them, they become constants and are no longer inputs, and a warning says so.  In models before
        IR version 4, where all initializers had to be inputs, they always become constants.
    max_drop : float, optional
        Percent of `metric` that may be lost on the data, 0 to 100.  The most sensitive nodes stay in float until no
        more is lost.
    metric : callable or str, optional
        ``function(outputs, batch)``, or its name ``module:function``.  It returns a score from 0 to 1 for each sample.
        By default accuracy if there are labels, else agreement with the float model.
    labels : str, optional
        The name under which the data holds the classes of its samples.
    batch_size : int, optional
        As in `calibrate`.
    progress : bool
        As in `calibrate`.

    Returns
    -------
    ModelProto
        The quantised model, with the inputs, outputs and metadata of the float model.  Its metadata also say, under the
        key "qatcore", how it was made.

    Warns
    -----
    ModelWarning
        If the function decides something that you may want to change.

    Raises
    ------
    InvalidArgumentError
        If the model is not valid, or is quantised already.  If an argument has a value other than those above, or does
        not fit the model.  If data is needed and there is none.
    OSError
        If a file cannot be read or written.
    TypeError
        If an argument is of another type.
    """
    options = Options.checked(
        method=method,
        percentile=percentile,
        weights=weights,
        activations=activations,
        per_tensor=per_tensor,
        group_size=group_size,
        ops=ops,
        exclude=exclude,
        bias_correction=bias_correction,
        keep_inputs=keep_inputs,
    )
    outside = as_flag(external_data, "external_data")
    if outside and output is None:
        raise InvalidArgumentError("external_data: expected an output to write weights beside, got none; give output")
    if output is not None:
        refuse_output(output, model)
    with Phases(shown=as_flag(progress, "progress")) as phases:
        result = quantize(
            read_model(model),
            data,
            options,
            calibration=calibration,
            max_drop=max_drop,
            metric=Metric(metric, labels),
            batch_size=batch_size,
            phases=phases,
        )
    if output is not None:
        write_model(result.model, output, outside=outside)
    return proto_of(result.model)


def compare(
    exact: Model,
    quantized: Model,
    data: Source,
    *,
    metric: Score | str | None = None,
    labels: str | None = None,
    batch_size: int | None = None,
    progress: bool = False,
) -> Comparison:
    """Compare a quantised model with its float model; any tool may have made it.

    Parameters
    ----------
    exact, quantized : str, PathLike, ModelProto or onnx_ir.Model
        The float model and the quantised one.
    data, batch_size, progress
        As in `calibrate`.
    metric, labels
        As in `quantize_model`.

    Returns
    -------
    Comparison
        The score, the noise of outputs and of tensors with codes, the time and the size.

    Warns
    -----
    ModelWarning
        As in `calibrate`.

    Raises
    ------
    InvalidArgumentError
        If a model is not valid, or the models' inputs or outputs differ.  If only the first model is quantised.  If a
        batch does not fit the models.  If the outputs cannot be compared.
    OSError
        If a file cannot be read.
    """
    with Phases(shown=as_flag(progress, "progress")) as phases:
        return run_comparison(exact, quantized, data, Metric(metric, labels), batch_size, phases)


class SensitivityOptions(TypedDict, total=False):
    """How `sensitivity` quantises each node."""

    method: CalibMethod | str
    percentile: FloatLike
    weights: str
    activations: str
    per_tensor: bool
    group_size: int
    ops: Iterable[str]
    exclude: Iterable[str]
    keep_inputs: bool


def sensitivity(
    model: Model,
    data: Source,
    *,
    calibration: Calibration | PathLike | None = None,
    batches: int = BATCHES,
    batch_size: int | None = None,
    progress: bool = False,
    **options: Unpack[SensitivityOptions],
) -> list[Sensitivity]:
    """Measure how much quantising each node alone changes the outputs.

    An output counts if it has floats, and the same shape whichever node is quantised.  No bias is corrected here.

    Parameters
    ----------
    model : str, PathLike, ModelProto or onnx_ir.Model
    data, batch_size, progress
        As in `calibrate`.
    calibration : Calibration, str or PathLike, optional
        As in `quantize_model`.
    batches : int
        How many batches to measure with, from the first one on; 8 by default.  The float model's outputs for
        them are kept in memory.
    **options
        `method`, `percentile`, `weights`, `activations`, `per_tensor`, `group_size`, `ops`, `exclude` and `keep_inputs`
        as in `quantize_model`.

    Returns
    -------
    list of Sensitivity
        One entry for each node, the most sensitive node first.

    Raises
    ------
    InvalidArgumentError
        As in `quantize_model`.  Also if no output counts, or all outputs are 0.
    OSError
        If a file cannot be read.
    TypeError
        If an argument is of another type, or there is a `bias_correction`.
    """
    if "bias_correction" in options:
        raise TypeError("sensitivity() expected no bias_correction, got one: it corrects no biases; leave it out")
    chosen, n = Options.checked(**options, bias_correction=False), as_count(batches, "batches")
    exact = read_model(model)
    given = Data(data, InputSpec(exact), batch_size)
    with Phases(shown=as_flag(progress, "progress")) as phases:
        quantizer, _ = _quantizer(exact, given, chosen, calibration, phases)
        tick = phases.begin("sensitivity", len(quantizer.plan.nodes))
        return node_sensitivities(quantizer, itertools.islice(given, n), progress=tick)


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
    data : Data or None
    """

    model: ir.Model
    quantizer: Quantizer
    calibration: Calibration | None
    search: Search | None
    data: Data | None

    def work(self) -> dict[str, int] | None:
        """Return how many multiplications by weights each node does for the first batch; None without data."""
        return None if self.data is None else all_multiply_adds(self.quantizer.float_model, next(iter(self.data)))

    def share(self, work: dict[str, int] | None) -> float | None:
        """Return which part of all multiplications by weights is quantised, 0 to 1; None if the work is not known."""
        if work is None:
            return None
        kept = set(self.search.float_nodes if self.search else [])
        done = sum(work[str(node.name)] for node in self.quantizer.plan.nodes if node.name not in kept)
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


def quantize(
    exact: ir.Model,
    data: Source | None,
    options: Options,
    *,
    calibration: Calibration | PathLike | None,
    max_drop: FloatLike | None,
    metric: Metric,
    batch_size: int | None,
    phases: Phases,
    observed: Calibration | None = None,
    cluster: Cluster | None = None,
) -> Quantization:
    """Do the work of `quantize_model`; if the model has to be calibrated, add to the calibration `observed`.

    With a cluster, it is calibrated there.
    """
    if max_drop is not None:
        max_drop = as_number(max_drop, "max_drop")
        if not 0.0 <= max_drop <= 100.0:
            raise InvalidArgumentError(f"max_drop: expected percent from 0 to 100, got {max_drop}")
        if data is None:
            raise InvalidArgumentError("max_drop: expected data to measure it on, got none; give data")
    given = None if data is None else Data(data, InputSpec(exact), batch_size)
    if given is not None:
        given.check_labels(metric.labels, class_counts(exact))
    quantizer, used = _quantizer(exact, given, options, calibration, phases, observed, cluster)
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
    if max_drop is None or given is None:
        tick = phases.begin("correcting", 2 * len(quantizer.plan.nodes)) if quantizer.corrects else None
        with _told_of_fp8(options):
            made = quantizer.model(progress=tick)
            check_loads(made)
        _describe_images(made, given)
        return Quantization(made, quantizer, used, None, given)
    tick = phases.begin("sensitivity", len(quantizer.plan.nodes))
    with _told_of_fp8(options):
        order = most_sensitive(quantizer, itertools.islice(given, BATCHES), metric, progress=tick)
        tick, tries = phases.begin("searching", None), itertools.count(1)

        def tried(n: int, drop: float) -> None:
            tick(next(tries), f"{n} in float: drop {drop:.2f} %")

        search = within_drop(quantizer, given, metric, max_drop, order, progress=tried)
    phases.end()
    _describe_images(search.model, given)
    return Quantization(search.model, quantizer, used, search, given)


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


def _quantizer(
    exact: ir.Model,
    data: Data | None,
    options: Options,
    calibration: Calibration | PathLike | None,
    phases: Phases,
    observed: Calibration | None = None,
    cluster: Cluster | None = None,
) -> tuple[Quantizer, Calibration | None]:
    float_model = ready(exact, options)
    if not options.needs_data:
        return Quantizer(float_model, options, {}, _sample(data, options, phases), phases.begin), None
    if calibration is None:
        if data is None:
            raise InvalidArgumentError(
                "data: expected data to observe activations on, got none; give data, or activations='none' to quantise "
                "weights alone"
            )
        used = Calibration() if observed is None else observed
        tick = phases.begin("calibrating", data.total)
        # A runtime may compute other operators a little differently, so observe what `calibrate` observes.
        same = float_model if options.opset == Options().opset else None
        sampled = options.bias_correction
        run_calibration(exact, data, options, used, float_model=same, sampled=sampled, cluster=cluster, progress=tick)
        phases.end()
    else:
        used = calibration if isinstance(calibration, Calibration) else Calibration.load(calibration)
        used.check_model(digest_of(exact))
        if not used.finished:
            raise InvalidArgumentError("calibration: expected a finished one, got one that was interrupted; resume it")
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
    if tensors is None:
        # The lowest opset will do, whatever the options: the tensors do not depend on it.
        float_model = float_model or ready(exact, Options(keep_inputs=options.keep_inputs))
        # What is on codes between products depends on the format and the opset, and the calibration serves all.
        names = [
            name
            for kind, any_pool in itertools.product(ACTIVATIONS, (False, True))
            for name in plan(float_model, options.ops, options.exclude, activations=kind, any_pool=any_pool).tensors
        ]
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
