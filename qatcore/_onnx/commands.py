"""The commands on ONNX models: what they print, their errors and exit codes."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
import os
import shlex
import sys
import time
import zipfile
from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

from .._base.errors import InvalidArgumentError
from .._base.validation import as_count
from .calibration import Calibration
from .comparison import Comparison, tensor_outputs
from .data import Data, InputSpec
from .description import description
from .display import Phases, counted, figure, print_table, printable
from .images import ImageFolder
from .inspection import calibration_rows, model_rows, runtime_rows
from .kernels import InIntegers
from .latency import Latency, latency_of
from .metric import IncomparableError, Metric
from .model import file_bytes, read_model, refuse_output, write_model
from .notices import notices
from .pipeline import THREADS, Quantization, Speed, quantize, run_calibration, run_comparison
from .quantization import Options
from .sensitivity import scored
from .session import FP8_RUNTIME
from .speed import why_slower
from .targets import ONNXRUNTIME, TARGETS

#: Seconds between two saves of a calibration that is running.
_SAVE_EVERY = 60.0
#: Seconds for which `quantize` times each of both models.
_TIMED_SECONDS = 0.2
#: How many nodes a line names; JSON and the model's metadata name all.
_MOST_NAMES = 12
_SATURATION = "none: sums of two products reach {largest:,} at most, and 16 bits hold {limit:,}"
_INTERRUPTED = 130  # the exit code that shells give to Ctrl-C
#: The options for a folder of images.
_IMAGE_OPTIONS = tuple(field.name for field in dataclasses.fields(ImageFolder) if field.name != "path")


class _InterruptedError(Exception):
    """Ctrl-C, after the observed values are saved."""


def run(name: str, arguments: argparse.Namespace) -> int:
    """Run a command and return the exit code: 0 if done, 2 if an argument or a file is wrong, 130 if interrupted."""
    try:
        _COMMANDS[name](arguments)
    except BrokenPipeError:
        raise
    except _InterruptedError as error:
        return _fail(str(error), _INTERRUPTED)
    except OSError as error:
        if error.filename == "":
            return _fail("expected the name of a file, got an empty one", 2)
        return _fail(_explained(error) if error.filename else str(error), 2)
    except (InvalidArgumentError, TypeError, ModuleNotFoundError) as error:
        if isinstance(error, ModuleNotFoundError) and error.name not in {"PIL", "distributed"}:
            raise
        return _fail(" ".join([str(error), *getattr(error, "__notes__", [])]), 2)
    except MemoryError:
        return _fail("there is not enough memory; try a smaller --batch-size", 2)
    return 0


@contextlib.contextmanager
def _cluster(arguments: argparse.Namespace) -> Iterator[Any]:
    """Yield the cluster that a command is to calibrate on, or None."""
    if arguments.cluster is None:
        yield None
        return
    from .cluster import Cluster, connected  # needs distributed

    with connected(arguments.cluster) as client:
        yield Cluster(client, arguments.model)


def _data(arguments: argparse.Namespace) -> Any:
    """Return the data of a command, with the options for images, if there are any."""
    chosen = _image_options(arguments)
    return ImageFolder(arguments.data, **chosen) if chosen else arguments.data


def _image_options(arguments: argparse.Namespace) -> dict[str, Any]:
    given = {name: getattr(arguments, name) for name in _IMAGE_OPTIONS}
    return {name: value for name, value in given.items() if value is not None and value is not False}


def _explained(error: OSError) -> str:
    """Return a file and what is wrong with it; the folder, if that is what is missing."""
    folder = os.path.dirname(str(error.filename))
    if isinstance(error, FileNotFoundError) and folder and not os.path.exists(folder):
        return f"{error.filename}: there is no folder {folder}"
    return f"{error.filename}: {error.strerror}"


def _fail(message: str, code: int) -> int:
    print(f"qatcore: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code


# --- quantize -----------------------------------------------------------------------------------------


def _quantize(arguments: argparse.Namespace) -> None:
    _refuse_what_has_no_effect(arguments)
    chosen = {name: getattr(arguments, name) for name in ("method", "percentile", "group_size", "ops", "target")}
    options = Options.checked(
        weights=arguments.weights,
        activations=arguments.activations,
        symmetric=arguments.symmetric,
        per_tensor=arguments.per_tensor,
        exclude=arguments.exclude or (),
        bias_correction=not arguments.no_bias_correction,
        keep_inputs=arguments.keep_inputs,
        no_saturation=arguments.no_saturation,
        **{name: value for name, value in chosen.items() if value is not None},
    )
    if options.needs_data and arguments.data is None and arguments.calibration is None:
        raise InvalidArgumentError(
            "give --data to observe activations on, or --activations none to quantise weights alone"
        )
    read = (arguments.model, arguments.data, arguments.calibration, arguments.metric, arguments.recipe)
    refuse_output(arguments.output, *read)
    threads = THREADS if arguments.threads is None else arguments.threads
    if arguments.cluster is not None and (arguments.calibration is not None or not options.needs_data):
        raise InvalidArgumentError("--cluster is for calibrating, but there is nothing to calibrate; leave it out")
    exact = read_model(arguments.model)
    data, observed, asked = _data(arguments), Calibration(), Metric(arguments.metric, arguments.labels)
    start = time.perf_counter()
    try:
        with notices() as told, _cluster(arguments) as cluster, Phases(shown=not arguments.quiet) as phases:
            result = quantize(
                exact,
                data,
                options,
                calibration=arguments.calibration,
                max_drop=arguments.max_drop,
                speed=Speed(arguments.fastest, as_count(threads, "--threads"), arguments.recipe),
                metric=asked,
                batch_size=arguments.batch_size,
                phases=phases,
                observed=observed,
                cluster=cluster,
            )
            metric, unchecked = result.search.metric if result.search else None, None
            if metric is None and not arguments.no_check:
                metric, unchecked = _checked(exact, result, asked, arguments, phases)
            latency = None if arguments.no_check else _latency(exact, result)
            work = result.work()
            integers = None if arguments.no_check else result.in_integers(work)
    except KeyboardInterrupt:
        raise _saved(observed, arguments) from None
    write_model(result.model, arguments.output, outside=arguments.external_data)
    options, about = result.quantizer.options, description(result.model)
    report: dict[str, Any] = {
        "model": arguments.model,
        "output": arguments.output,
        "seconds": time.perf_counter() - start,
        "bytes": {"float": file_bytes(exact), "quantized": file_bytes(result.model)},
        "weights": options.weights,
        "activations": options.activations,
        "target": options.target.name,
        "method": options.method.value if options.needs_data else None,
        **{name: about[name] for name in ("corrected", "corrections_left_out")},
        "nodes": len(about["nodes"]),
        "fastest": _fastest(result, threads) if arguments.fastest else None,
        "kept_in_float": about["float"],
        "unreached": list(result.quantizer.unreached),
        "ahead_of_logarithm": list(result.quantizer.relative),
        "slow_on_codes": list(result.quantizer.slow),
        "saturation": about.get("saturation"),
        "share_of_multiply_adds": result.share(work),
        "in_integers": None if integers is None else vars(integers),
        "tensors": len(result.calibration.collectors) if result.calibration else 0,
        "samples": result.calibration.samples if result.calibration else 0,
        "images": None if result.data is None else result.data.images_line,
        "not_finite": _not_finite(result.calibration),
        "samples_left_out": result.data.left_out if result.data else 0,
        "metric": None if metric is None else metric.name,
        "unchecked": unchecked,
        "score": None if metric is None else dict(zip(("float", "quantized"), metric.scores, strict=True)),
        "latency": None if latency is None else vars(latency),
        "slower": None if latency is None else why_slower(result.model, latency.float_ms, latency.quantized_ms),
        "notices": told,
    }
    if arguments.json:
        _print_json(report)
        return
    _print_lines(_quantization_lines(report, result, latency, integers))


def _quantization_lines(
    report: dict[str, Any], result: Quantization, latency: Latency | None, integers: InIntegers | None
) -> list[tuple[str, str]]:
    """Return the report on a quantised model as lines of text."""
    runtime = f"needs ONNX Runtime {'.'.join(map(str, FP8_RUNTIME))} or newer, for FP8"
    return [
        *_lines_of("images", report["images"]),
        ("quantised", _nodes_line(report)),
        *_lines_of("runtime", runtime if result.quantizer.options.needs_fp8_runtime else None),
        *_calibration_lines(report, result),
        *_lines_of_left_out(report["samples_left_out"]),
        *_float_lines(report),
        *_score_lines(report),
        *_lines_of("unchecked", report["unchecked"]),
        *_lines_of("in integers", integers),
        *_lines_of("saturation", report["saturation"] and _SATURATION.format(**report["saturation"])),
        *_lines_of("latency", latency and _latency_line(latency)),
        *_lines_of("slower", report["slower"]),
        *_note_lines(report["notices"]),
        ("size", _size_line(*report["bytes"].values())),
        ("written", f"{report['output']}, in {report['seconds']:.1f} s"),
    ]


def _calibration_lines(report: dict[str, Any], result: Quantization) -> list[tuple[str, str]]:
    """Return lines on what was observed, and on what was corrected with it."""
    options, lines = result.quantizer.options, list[tuple[str, str]]()
    if result.calibration is not None:
        samples = counted(report["samples"], "sample")
        by = f", by {report['method']}" if options.needs_data else ""
        lines.append(("calibrated", f"{counted(report['tensors'], 'tensor')} on {samples}{by}"))
    if result.quantizer.corrects:
        lines.append(("corrected", _corrected_line(report)))
    elif options.bias_correction and options.needs_data:
        lines.append(("corrected", "no node; give --data as well as --calibration to correct nodes"))
    if report["not_finite"]:
        (name, n), *others = report["not_finite"].items()
        more = f", and some of {counted(len(others), 'other tensor')}" if others else ""
        lines.append(("not finite", f"{n:,} values of {name}{more}; the ranges leave them out"))
    return lines


def _float_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    """Return lines on what stays in float."""
    lines = list[tuple[str, str]]()
    if report["fastest"] is not None:
        lines.append(("fastest", _fastest_line(report["fastest"])))
    if report["kept_in_float"]:
        lines.append(("in float", _shortened(report["kept_in_float"])))
    if report["ahead_of_logarithm"]:
        what = counted(len(report["ahead_of_logarithm"]), "node")
        lines.append(("in float", f"{what} ahead of a logarithm, which needs relative accuracy"))
    if report["slow_on_codes"]:
        what = counted(len(report["slow_on_codes"]), "convolution")
        lines.append(("in float", f"{what} over one or two channels, faster so"))
    return lines


def _score_lines(report: dict[str, Any]) -> list[tuple[str, str]]:
    metric, score = report["metric"], report["score"]
    return [] if score is None else [(metric, f"{_score_line(metric, tuple(score.values()))}, on the data given")]


def _lines_of(name: str, text: object) -> list[tuple[str, str]]:
    return [] if text is None else [(name, str(text))]


def _lines_of_left_out(samples: int) -> list[tuple[str, str]]:
    return [("left out", f"{counted(samples, 'sample')} at the end, too few for a batch")] if samples else []


def _note_lines(notices: list[str]) -> list[tuple[str, str]]:
    return [("note", text.partition(": ")[2]) for text in notices]


def _checked(
    exact: ir.Model, result: Quantization, asked: Metric, arguments: argparse.Namespace, phases: Phases
) -> tuple[Metric | None, str | None]:
    """Return the metric on the data, or the reason why there is none; the model is written in both cases."""
    if result.data is None:
        return None, None
    tick = phases.begin("checking", result.data.total)
    try:
        metric = scored(exact, result.model, result.data, asked, progress=tick)
        _ = metric.scores
    except IncomparableError as error:
        if arguments.labels is not None or arguments.metric is not None:  # it was asked for
            raise
        return None, error.reason
    return metric, None


def _latency(exact: ir.Model, result: Quantization) -> Latency | None:
    """Return how long a run of each model on the first batch takes; None without data or outputs to read.

    A model for another runtime is not timed in ONNX Runtime.
    """
    if result.data is None or result.quantizer.options.target is not ONNXRUNTIME:
        return None
    with contextlib.suppress(IncomparableError):
        return latency_of(exact, result.model, next(iter(result.data)), tensor_outputs(exact), _TIMED_SECONDS)
    return None


def _refuse_what_has_no_effect(arguments: argparse.Namespace) -> None:
    measured = next((name for name in ("labels", "metric", "max_drop") if getattr(arguments, name) is not None), None)
    if arguments.percentile is not None and arguments.method != "percentile":
        raise InvalidArgumentError("--percentile needs --method percentile; add it, or leave out --percentile")
    if arguments.group_size is not None and arguments.weights != "int4":
        raise InvalidArgumentError("--group-size needs --weights int4; add it, or leave out --group-size")
    if arguments.calibration is not None and arguments.activations == "none":
        raise InvalidArgumentError(
            "--calibration is for activations, but --activations none leaves them in float; leave out one of the two"
        )
    if arguments.group_size is not None and arguments.per_tensor:
        raise InvalidArgumentError(
            "--group-size gives each group a scale, but --per-tensor gives all weights one; leave out one of the two"
        )
    if arguments.method is not None and arguments.activations == "none":
        raise InvalidArgumentError(
            "--method is for activations, but --activations none leaves them in float; leave out one of the two"
        )
    if arguments.threads is not None and not arguments.fastest:
        raise InvalidArgumentError("--threads needs --fastest; add it, or leave out --threads")
    if arguments.symmetric and arguments.activations == "none":
        raise InvalidArgumentError(
            "--symmetric is for activations, but --activations none leaves them in float; leave out one of the two"
        )
    if arguments.no_check and measured is not None:
        raise InvalidArgumentError(
            f"--{measured.replace('_', '-')} needs a comparison of both models; leave out --no-check"
        )
    if arguments.data is None:
        for name in ("batch_size", "no_check", "no_bias_correction", "fastest", *_image_options(arguments)):
            if getattr(arguments, name):
                raise InvalidArgumentError(
                    f"--{name.replace('_', '-')} needs --data, but there is none; give --data, or leave out this option"
                )
        if measured is not None:
            raise InvalidArgumentError(f"give --data to measure --{measured.replace('_', '-')} on")


def _saved(observed: Calibration, arguments: argparse.Namespace) -> Exception:
    """Save what was observed before Ctrl-C, and return an error that says how to go on."""
    if not observed.samples:
        return _InterruptedError("interrupted, nothing was written")
    path = next(
        path for n in itertools.count() if not os.path.exists(path := f"{arguments.output}.calibration{n or ''}.npz")
    )
    observed.save(path)
    seen = f"interrupted; the calibration of {counted(observed.samples, 'sample')} is saved in {path}"
    if observed.finished:
        return _InterruptedError(f"{seen}; to go on, give this command --calibration {shlex.quote(path)} as well")
    go_on = ["qatcore", "calibrate", arguments.model, "--data", arguments.data, "-o", path, "--resume"]
    for name, value in _image_options(arguments).items():
        text = ("x" if name == "size" else ",").join(map(str, value)) if isinstance(value, tuple) else str(value)
        go_on += [f"--{name}"] if value is True else [f"--{name}={text}"]
    if arguments.batch_size is not None:
        go_on += ["--batch-size", str(arguments.batch_size)]
    if arguments.ops is not None:
        go_on += ["--ops", ",".join(arguments.ops)]
    if arguments.exclude:
        go_on += ["--exclude", *arguments.exclude]
    then = f"then give this command --calibration {shlex.quote(path)} as well"
    return _InterruptedError(f"{seen}; to go on, run {shlex.join(go_on)}, {then}")


def _not_finite(calibration: Calibration | None) -> dict[str, int]:
    """Return the tensors that had NaN or infinite values, and how many."""
    collectors = {} if calibration is None else calibration.collectors
    found = {name: collector.n_observed - int(collector.n_elements) for name, collector in collectors.items()}
    return {name: n for name, n in found.items() if n}


def _fastest(result: Quantization, threads: int) -> dict[str, Any]:
    """Return what was found to be fastest."""
    assert result.placement is not None
    return {"threads": threads, **vars(result.placement)}


def _fastest_line(found: dict[str, Any]) -> str:
    timed = f"{counted(found['tried'], 'placement')} timed on {counted(found['threads'], 'thread')}"
    if found["weights_alone"]:
        why = "" if found["why"] is None else f" ({found['why']})"
        return f"{timed}: weights alone in codes are the fastest{why}"
    n = len(found["float_nodes"])
    return f"{timed}: {counted(n, 'node')} in float" if n else f"{timed}: that of the rules is the fastest"


def _shortened(names: list[str]) -> str:
    """Return names as text; only the first ones if there are many."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names) if more <= 1 else f"{', '.join(names[:_MOST_NAMES])} and {more} more"


def _corrected_line(report: dict[str, Any]) -> str:
    n, left_out = report["corrected"], report["corrections_left_out"]
    if not left_out:
        return f"{counted(n, 'node')}, on the data given"
    if n:
        return f"{n:,} of {n + left_out:,} nodes, on the data given: correcting the others did not help"
    if left_out == 1:
        return "no node: correcting the only one did not help"
    return f"none of {left_out:,} nodes: correcting them did not help"


def _nodes_line(report: dict[str, Any]) -> str:
    text = f"{counted(report['nodes'], 'node')}: weights {report['weights']}"
    text += f", activations {report['activations']}" if report["activations"] != "none" else ""
    text += f", for {TARGETS[report['target']].runtime}" if report["target"] != ONNXRUNTIME.name else ""
    share = report["share_of_multiply_adds"]
    return text if share is None else f"{text}; {100.0 * share:.1f} % of all multiply-adds by weights"


# --- calibrate, merge ---------------------------------------------------------------------------------


def _calibrate(arguments: argparse.Namespace) -> None:
    path = arguments.output
    refuse_output(path, arguments.model, arguments.data)
    if arguments.cluster is not None and arguments.resume:
        raise InvalidArgumentError("--resume goes on on one machine; leave out --cluster, or --resume")
    chosen = {name: value for name in ("ops", "target") if (value := getattr(arguments, name)) is not None}
    options = Options.checked(exclude=arguments.exclude or (), **chosen)
    exact = read_model(arguments.model)
    calibration, complete = Calibration(), False
    if os.path.exists(path):
        before = Calibration.load(path)
        if arguments.resume:
            calibration, complete = before, before.finished
        elif before.unfinished is not None:
            raise InvalidArgumentError(
                f"{path} holds an interrupted calibration; go on with --resume, or remove the file"
            )
    data = Data(_data(arguments), InputSpec(exact), arguments.batch_size)
    start = time.perf_counter()
    try:
        with notices() as told, _cluster(arguments) as cluster, Phases(shown=not arguments.quiet) as phases:
            tick = phases.begin("calibrating", data.total)
            saved = time.monotonic()

            def after(n: int) -> None:
                nonlocal saved
                tick(n)
                if cluster is None and time.monotonic() - saved > _SAVE_EVERY:
                    calibration.save(path)
                    saved = time.monotonic()

            run_calibration(exact, data, options, calibration, resume=arguments.resume, cluster=cluster, progress=after)
    except KeyboardInterrupt:
        if not calibration.samples:
            raise _InterruptedError("interrupted, nothing was written") from None
        calibration.save(path)
        raise _InterruptedError(
            f"interrupted; the calibration of {counted(calibration.samples, 'sample')} is saved in {path}; "
            "go on with --resume"
        ) from None
    calibration.save(path)
    seconds = time.perf_counter() - start
    images, left_out = data.images_line, data.left_out
    _print_calibration(arguments, calibration, seconds, complete=complete, images=images, left_out=left_out, told=told)


def _merge(arguments: argparse.Namespace) -> None:
    refuse_output(arguments.output, *arguments.files)
    start = time.perf_counter()
    merged: Calibration | None = None
    for i, file in enumerate(arguments.files):
        calibration = Calibration.load(file)
        if any(os.path.samefile(file, other) for other in arguments.files[:i]):
            raise InvalidArgumentError(f"{file}: given twice, and its samples would count twice; name each file once")
        if not calibration.finished:
            raise InvalidArgumentError(f"{file}: expected a finished calibration, got an interrupted one; resume it")
        if merged is None:
            merged = calibration
            continue
        try:
            merged.merge(calibration)
        except InvalidArgumentError as error:
            raise InvalidArgumentError(f"{file}: {str(error).removeprefix('other: ')}") from None
    assert merged is not None
    merged.save(arguments.output)
    _print_calibration(arguments, merged, time.perf_counter() - start)


def _print_calibration(
    arguments: argparse.Namespace,
    calibration: Calibration,
    seconds: float,
    *,
    complete: bool = False,
    images: str | None = None,
    left_out: int = 0,
    told: list[str] | None = None,
) -> None:
    if arguments.json:
        _print_json(
            {
                "output": arguments.output,
                "tensors": len(calibration.collectors),
                "samples": calibration.samples,
                "images": images,
                "samples_left_out": left_out,
                "notices": told or [],
                "seconds": seconds,
            }
        )
        return
    observed = f"{counted(len(calibration.collectors), 'tensor')} on {counted(calibration.samples, 'sample')}"
    lines = [*_lines_of("images", images), ("observed", observed)]
    if complete:
        lines.append(("complete", "no run was interrupted, nothing was added; leave out --resume to start anew"))
    lines += [*_lines_of_left_out(left_out), *_note_lines(told or [])]
    _print_lines([*lines, ("written", f"{arguments.output}, in {seconds:.1f} s")])


# --- compare, inspect ---------------------------------------------------------------------------------


def _compare(arguments: argparse.Namespace) -> None:
    with notices() as told, Phases(shown=not arguments.quiet) as phases:
        metric = Metric(arguments.metric, arguments.labels)
        result = run_comparison(
            arguments.model, arguments.quantized, _data(arguments), metric, arguments.batch_size, phases
        )
    if arguments.json:
        _print_json({**dataclasses.asdict(result), "notices": told})
        return
    with _printing():
        _print_comparison(result, told)


def _print_comparison(result: Comparison, told: list[str]) -> None:
    lines = [
        *_lines_of("images", result.images),
        (result.metric, f"{_score_line(result.metric, result.score)}, on {counted(result.batches, 'batch')}"),
    ]
    lines += _lines_of_left_out(result.samples_left_out)
    if result.slower is not None:
        lines.append(("slower", result.slower))
    _print_lines([*lines, *_note_lines(told), ("size", _size_line(*result.size))])
    print()
    _print_latencies(result.latency)
    print()
    rows = [(name, figure(sqnr, ".1f"), figure(largest, ".3g")) for name, (sqnr, largest) in result.outputs.items()]
    print_table("outputs", [("output", "name"), ("SQNR dB", "right"), ("greatest difference", "right")], rows)
    if result.tensors:
        print()
        pairs = [(name, figure(sqnr, ".1f")) for name, sqnr in result.tensors.items()]
        print_table("tensors with codes", [("tensor", "name"), ("SQNR dB", "right")], pairs)


def _print_latencies(latencies: list[Latency]) -> None:
    headings = ("samples", "threads", "float ms", "quantised ms", "times as fast", "middle half")
    rows = [
        (
            f"{each.samples:,}",
            "all" if each.threads is None else str(each.threads),
            f"{each.float_ms:.2f}",
            f"{each.quantized_ms:.2f}",
            f"{each.ratio:.2f}",
            f"{each.spread[0]:.2f} to {each.spread[1]:.2f}",
        )
        for each in latencies
    ]
    print_table("latency", [(heading, "right") for heading in headings], rows)


def _inspect(arguments: argparse.Namespace) -> None:
    path = arguments.file
    with open(path, "rb"):  # raises an error that names the file
        pass
    images = None
    if zipfile.is_zipfile(path):
        if arguments.runtime:
            raise InvalidArgumentError(f"{path}: --runtime needs an ONNX model, but this is a calibration")
        tables = calibration_rows(path)
    elif arguments.runtime:
        tables = runtime_rows(read_model(path))
    else:
        model = read_model(path)
        tables, images = model_rows(model), description(model).get("images")
    if arguments.json:
        found = {table.name: [dict(zip(table.keys, row, strict=True)) for row in table.rows] for table in tables}
        _print_json(found if images is None else {"images": images, **found})
        return
    with _printing():
        if images is not None:  # whoever wrote the file chose this text
            _print_lines([("images", printable(str(images)))])
            print()
        for index, table in enumerate(tables):
            if index:
                print()
            print_table(table.title, table.columns, table.cells())


# --- words --------------------------------------------------------------------------------------------


def _print_lines(lines: list[tuple[str, str]]) -> None:
    with _printing():
        for name, text in lines:
            print(f"{name:<12} {text}")


def _print_json(content: dict[str, Any]) -> None:
    with _printing():
        print(json.dumps(_plain(content), indent=1, allow_nan=False))


@contextlib.contextmanager
def _printing() -> Iterator[None]:
    """Turn errors of printing into `BrokenPipeError`, to tell them from errors of the command."""
    try:
        yield
        if sys.stdout is not None:  # None if it was closed from the start
            sys.stdout.flush()
    except OSError as error:
        raise BrokenPipeError from error


def _plain(value: Any) -> Any:
    """Return a value as JSON can hold it, with None for infinities and NaN."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _score_line(metric: str, score: tuple[float, float]) -> str:
    exact, other = score
    if metric in {"agreement", "closeness"}:
        return f"{other:.2f} % with the float model"
    return f"{exact:.2f} % float, {other:.2f} % quantised: drop {exact - other:.2f}"


def _latency_line(latency: Latency) -> str:
    return (
        f"{latency.float_ms:.2f} ms float, {latency.quantized_ms:.2f} ms quantised: {latency.ratio:.2f} x as fast"
        f" ({latency.spread[0]:.2f} to {latency.spread[1]:.2f})"
    )


def _size_line(before: int, after: int) -> str:
    unit, name = (2**20, "MiB") if before >= 2**18 else (2**10, "KiB")
    return f"{before / unit:.2f} {name} float, {after / unit:.2f} {name} quantised: {100.0 * after / before:.0f} %"


_COMMANDS = {
    "quantize": _quantize,
    "calibrate": _calibrate,
    "merge": _merge,
    "compare": _compare,
    "inspect": _inspect,
}
