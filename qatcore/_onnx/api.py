"""The public functions: calibrate, quantize_model, compare, sensitivity."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TypedDict, Unpack

from onnx import ModelProto

from .._base.config import CalibMethod
from .._base.errors import InvalidArgumentError
from .._base.types import FloatLike, PathLike
from .._base.validation import as_count, as_flag
from .calibration import Calibration
from .comparison import Comparison
from .data import Data, InputSpec, Source
from .display import Phases
from .metric import Metric, Score
from .model import Model, read_model, refuse_output, write_model
from .pipeline import THREADS, Speed, quantize, quantizer_of, run_calibration, run_comparison
from .plan import DEFAULT_OPERATORS
from .quantization import GROUP_SIZE, Options
from .ranges import PERCENTILE
from .sensitivity import (
    BATCHES,
    Sensitivity,
    node_sensitivities,
)
from .skeleton import proto_of
from .targets import ONNXRUNTIME


def calibrate(
    model: Model,
    data: Source,
    *,
    ops: Iterable[str] = DEFAULT_OPERATORS,
    exclude: Iterable[str] = (),
    tensors: Iterable[str] | None = None,
    target: str = ONNXRUNTIME.name,
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
    target : str
        As in `quantize_model`.
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
    options = Options.checked(ops=ops, exclude=exclude, target=target)
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
    activations: str | None = None,
    target: str = ONNXRUNTIME.name,
    symmetric: bool = False,
    per_tensor: bool = False,
    group_size: int = GROUP_SIZE,
    ops: Iterable[str] = DEFAULT_OPERATORS,
    exclude: Iterable[str] = (),
    bias_correction: bool = True,
    keep_inputs: bool = False,
    no_saturation: bool = False,
    max_drop: FloatLike | None = None,
    fastest: bool = False,
    threads: int = THREADS,
    recipe: Model | None = None,
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
        needs it.  Without data nothing is corrected.
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
        "uint8", "int8", "uint16", "int16", "fp8" or "none".  The default is "uint8", or "int8" for TensorRT.  ONNX
        Runtime computes 16-bit codes in float on CPUs.  Their ranges hold all values, whatever the method.
    target : str
        The runtime that is to run the model: "onnxruntime", "openvino", "tensorrt" or "qnn".  It decides which tensors
        get codes and in which form.
    symmetric : bool
        Give activations ranges that are symmetric about 0, so that zero points are 0, or the middle of unsigned codes.
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
        If there is data, correct biases so that each channel has the mean of the float model (Nagel et al., 2019), and
        inside of the model the scales of weights so that its size is right, too (least squares).  The batches for this
        are spread over the data, up to 128 samples or 4 batches.
    keep_inputs : bool
        Keep initializers that are inputs too, and leave nodes in float that use them as weights.  By default, if there
        are weights among them, they become constants and are no longer inputs, and a warning says so.  In models before
        IR version 4, where all initializers had to be inputs, they always become constants.
    no_saturation : bool
        Choose int8 weights whose products cannot saturate on x86 without VNNI, which adds two of them in 16 bits.
    max_drop : float, optional
        Percent of `metric` that may be lost on the data, 0 to 100.  The most sensitive nodes stay in float until no
        more is lost.
    fastest : bool
        Measure which nodes run faster in float, on the first batch, and leave them there.  The result is not slower
        than the float model: if nothing in codes is faster, only weights get codes.
    threads : int
        How many threads to measure with; 1 by default.
    recipe : str, PathLike, ModelProto or onnx_ir.Model, optional
        A quantised copy of the model.  The same nodes stay in float as there, and nothing is measured.
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
        target=target,
        symmetric=symmetric,
        per_tensor=per_tensor,
        group_size=group_size,
        ops=ops,
        exclude=exclude,
        bias_correction=bias_correction,
        keep_inputs=keep_inputs,
        no_saturation=no_saturation,
    )
    speed = Speed(as_flag(fastest, "fastest"), as_count(threads, "threads"), recipe)
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
            speed=speed,
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
    activations: str | None
    target: str
    symmetric: bool
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

    An output counts if it has floats, and the same shape whichever node is quantised.  Nothing is corrected here.

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
        `method`, `percentile`, `weights`, `activations`, `target`, `symmetric`, `per_tensor`, `group_size`, `ops`,
        `exclude` and `keep_inputs` as in `quantize_model`.

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
        raise TypeError("sensitivity() expected no bias_correction, got one: it corrects nothing; leave it out")
    chosen, n = Options.checked(**options, bias_correction=False), as_count(batches, "batches")
    exact = read_model(model)
    given = Data(data, InputSpec(exact), batch_size)
    with Phases(shown=as_flag(progress, "progress")) as phases:
        quantizer, _ = quantizer_of(exact, given, chosen, calibration, phases)
        tick = phases.begin("sensitivity", len(quantizer.plan.nodes))
        return node_sensitivities(quantizer, itertools.islice(given, n), progress=tick)
