"""The command line: ``qatcore``, or ``python -m qatcore``."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from .. import __version__, _startup

_SEED_MAX = 2**32 - 1  # NumPy's and scikit-learn's limit

_EXIT_CODES = """\
exit codes:
  0    done
  1    done, but the output could not be printed
  2    an argument, a file or the data is wrong; nothing is written, except what
       a long calibration has saved each minute
  130  interrupted; a message says what was saved and how to go on
"""
_DATA_HELP = (
    "a folder of images; a folder of .npz or .npy files, each of them a batch; one .npz or .npy file whose arrays have "
    "a leading axis of samples; or module:function, which yields batches: dicts of arrays, or tuples of inputs and "
    "labels"
)
_IMAGES_HELP = """\
The model's input gives the size, layout, channels and type.  Without options,
an integer input gets bytes, a float input with 3 channels is prepared as for
ImageNet, and other float inputs get numbers from 0 to 1.  The command prints
what it did.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with a one-line message; argparse would print the usage too."""
        self.exit(2, f"qatcore: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse unknown options before argparse looks for missing ones: a missing option may be a misspelt one."""
        given = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        for argument in given:
            # The command's own parser checks what comes after the command.
            if argument == "--" or (self._subparsers is not None and not argument.startswith("-")):
                break
            name = argument.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in known:
                self.error(f"unrecognized arguments: {name}{_suggestion(name, known)}")
            if name.startswith("-") and f"-{name}" in known:  # argparse would read -output as -o utput
                self.error(f"unrecognized arguments: {name}; did you mean -{name}?")
        return super().parse_known_args(given, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is not among the choices, and suggest the nearest one."""
        if action.choices is not None and value not in action.choices:
            message = f"invalid choice: {value!r} (choose from {', '.join(map(str, action.choices))})"
            raise argparse.ArgumentError(action, message + _suggestion(value, action.choices))


def _suggestion(given: str, known: Iterable[str]) -> str:
    """Return the text "; did you mean ...?" if a known name is near, else an empty text."""
    near = difflib.get_close_matches(given.lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments; by default those of the process.

    Returns
    -------
    int
        0, 1, 2 or 130, as ``qatcore --help`` explains.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version``.  If an argument is wrong, with code 2.
    """
    try:
        parser = _parser()
        arguments = parser.parse_args(argv)
        if arguments.command is None:
            parser.print_help(sys.stderr)
            return 2
        code: int = arguments.run(arguments)
    except BrokenPipeError:
        return _without_a_reader()
    except KeyboardInterrupt:
        print(f"qatcore: {_startup.INTERRUPTED}", file=sys.stderr)
        return 130
    try:
        if sys.stdout is not None:  # None if it was closed from the start
            sys.stdout.flush()
    except OSError:
        return _without_a_reader()
    return code


def _without_a_reader() -> int:
    """Return the exit code for output that cannot be written.

    Standard output goes to the null device, so that the interpreter does not fail again when it flushes at exit.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="qatcore",
        description="The quantisation core for Python.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qatcore {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    for add in (_add_quantize, _add_calibrate, _add_merge, _add_compare, _add_inspect, _add_demo):
        add(commands)
    return parser


def _add_quantize(commands: Any) -> None:
    command = _command(
        commands,
        "quantize",
        "quantise an ONNX model",
        "Quantise the convolutions and matrix products of an ONNX model.  Choose the\n"
        "ranges of its activations from the data, and report how well the quantised\n"
        "model agrees with the float model.",
        "qatcore quantize model.onnx --data photos/ -o int8.onnx\n"
        "  qatcore quantize model.onnx --data photos/ --mean 0.5 --std 0.5 -o int8.onnx\n"
        "  qatcore quantize model.onnx --data x.npz --labels y --max-drop 1 -o int8.onnx\n"
        "  qatcore quantize model.onnx --weights int4 --activations none -o int4.onnx",
        _onnx("quantize"),
    )
    command.add_argument("model", metavar="MODEL.onnx", help="the float model")
    _add_data(command, required=False)
    command.add_argument("-o", "--output", required=True, metavar="OUT.onnx", help="the file for the quantised model")
    command.add_argument(
        "--calibration",
        metavar="FILE",
        help="use this file of qatcore calibrate instead of observing --data; --data, if given too, corrects biases",
    )
    command.add_argument(
        "--method",
        type=lambda name: "minmax" if name == "min_max" else name,
        choices=("mse", "kl", "percentile", "minmax", "auto"),
        help="how to choose the ranges of activations (default: mse)",
    )
    command.add_argument(
        "--percentile",
        type=float,
        metavar="P",
        help="percent of values that --method percentile keeps (default: 99.99)",
    )
    command.add_argument(
        "--weights", choices=("int8", "int4", "fp8"), default="int8", help="format of weights (default: int8)"
    )
    command.add_argument(
        "--activations",
        choices=("uint8", "int8", "uint16", "int16", "fp8", "none"),
        help="format of activations (default: uint8, or int8 for tensorrt); none leaves them in float and needs no "
        "data; fp8 activations, and fp8 weights beside quantised activations, need ONNX Runtime 1.32 or newer",
    )
    command.add_argument(
        "--symmetric",
        action="store_true",
        help="give activations ranges that are symmetric about 0, for runtimes that need zero points of 0",
    )
    command.add_argument(
        "--per-tensor", action="store_true", help="give each weight one scale, not one for each channel"
    )
    command.add_argument(
        "--group-size",
        type=int,
        metavar="N",
        help="how many int4 weights share a scale; 0 means one scale for each channel (default: 32)",
    )
    _add_selection(command)
    command.add_argument(
        "--max-drop",
        type=float,
        metavar="PERCENT",
        help="keep the most sensitive nodes in float until at most this many percent are lost on the data",
    )
    command.add_argument(
        "--fastest",
        action="store_true",
        help="time float and quantised nodes on the data, and leave in float what is faster so; never slower than the "
        "float model",
    )
    command.add_argument(
        "--threads", type=int, metavar="N", help="how many threads --fastest measures with (default: 1)"
    )
    command.add_argument(
        "--recipe",
        metavar="QUANT.onnx",
        help="leave the same nodes in float as in this quantised copy of the model, and measure nothing",
    )
    _add_metric(command)
    command.add_argument(
        "--no-bias-correction",
        action="store_true",
        help="leave biases and scales as they are; by default, --data corrects them so that channels keep their means",
    )
    command.add_argument(
        "--keep-inputs",
        action="store_true",
        help="keep initializers that are inputs too; by default, if there are weights among them, all become constants",
    )
    command.add_argument(
        "--no-saturation",
        action="store_true",
        help="choose weights whose products cannot saturate on x86 without VNNI, which adds two of them in 16 bits",
    )
    command.add_argument(
        "--external-data",
        action="store_true",
        help="write the weights into a file beside OUT, OUT.data; weights of more than 1.5 GiB always go there",
    )
    command.add_argument("--no-check", action="store_true", help="do not compare with the float model on the data")
    _add_cluster(command)
    _add_output_options(command)


def _add_calibrate(commands: Any) -> None:
    command = _command(
        commands,
        "calibrate",
        "observe a model's activations and save the calibration",
        "Run an ONNX model on data, observe the tensors that qatcore quantize will give\n"
        "codes, and save their histograms.  These serve every format and method.  Ctrl-C\n"
        "saves what was observed so far.",
        "qatcore calibrate model.onnx --data shard1/ -o shard1.npz\n"
        "  qatcore calibrate model.onnx --data shard1/ -o shard1.npz --resume",
        _onnx("calibrate"),
    )
    command.add_argument("model", metavar="MODEL.onnx", help="the float model")
    _add_data(command, required=True)
    command.add_argument("-o", "--output", required=True, metavar="FILE.npz", help="the file for the calibration")
    command.add_argument("--resume", action="store_true", help="skip the batches that FILE.npz has seen, and go on")
    _add_selection(command)
    _add_cluster(command)
    _add_output_options(command)


def _add_cluster(command: Any) -> None:
    command.add_argument(
        "--cluster",
        metavar="ADDRESS",
        help="calibrate on a Dask cluster: the address of its scheduler, such as tcp://host:8786, or 'local' for "
        "processes on this machine; workers read the files of a directory under the same path",
    )


def _add_merge(commands: Any) -> None:
    command = _command(
        commands,
        "merge",
        "join calibrations from several machines",
        "Join calibrations of one model on different data.  The result is the same, to\n"
        "the last bit, as one calibration on all of the data.",
        "qatcore merge shard1.npz shard2.npz -o all.npz",
        _onnx("merge"),
    )
    command.add_argument("files", metavar="FILE.npz", nargs="+", help="files that qatcore calibrate wrote")
    command.add_argument("-o", "--output", required=True, metavar="FILE.npz", help="the file for the calibration")
    _add_output_options(command, progress=False)


def _add_compare(commands: Any) -> None:
    command = _command(
        commands,
        "compare",
        "compare a quantised ONNX model with the float one",
        "Run both models on data.  Report their agreement or accuracy, time and size,\n"
        "and the signal-to-quantisation-noise ratio (SQNR) of every output and of every\n"
        "tensor with codes.",
        "qatcore compare model.onnx model-int8.onnx --data test.npz --labels label",
        _onnx("compare"),
    )
    command.add_argument("model", metavar="FLOAT.onnx", help="the float model")
    command.add_argument("quantized", metavar="QUANT.onnx", help="the quantised model")
    _add_data(command, required=True)
    _add_metric(command)
    _add_output_options(command)


def _add_inspect(commands: Any) -> None:
    command = _command(
        commands,
        "inspect",
        "show a calibration or a model as a table",
        "Show what a file holds.  Of a calibration: the ranges, and the\n"
        "signal-to-quantisation-noise ratio (SQNR) that each method promises at int8.\n"
        "Of a float model: the nodes that can be quantised.  Of a quantised model: the\n"
        "tensors and nodes with codes.",
        "qatcore inspect calibration.npz\n  qatcore inspect model-int8.onnx\n"
        "  qatcore inspect --runtime model-int8.onnx",
        _onnx("inspect"),
    )
    command.add_argument("file", metavar="FILE", help="an ONNX model, or a file that qatcore calibrate wrote")
    command.add_argument(
        "--runtime",
        action="store_true",
        help="list the kernels that ONNX Runtime runs for a model, what they compute on, and why some stay in float",
    )
    _add_output_options(command, progress=False)


def _add_demo(commands: Any) -> None:
    command = _command(
        commands,
        "demo",
        "quantise a small network and compare accuracy, size and time",
        "Train a small network on scikit-learn's handwritten digits, quantise it in every\n"
        "format with every calibration method, and print the accuracy, size and time of\n"
        "each.  Takes a few seconds.",
        "qatcore demo --seed 1",
        _demo,
    )
    command.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="random seed for the split of the images and for the training (default: 0)",
    )


def _command(
    commands: Any, name: str, summary: str, description: str, example: str, run: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example{'s' if chr(10) in example else ''}:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    command.set_defaults(run=run)
    return command


def _add_data(command: argparse.ArgumentParser, *, required: bool) -> None:
    command.add_argument("--data", required=required, metavar="INPUTS", help=_DATA_HELP)
    command.add_argument(
        "--batch-size",
        type=int,
        metavar="N",
        help="samples in a batch, if the data is images or one file (default: 8, or what the model fixes)",
    )
    images = command.add_argument_group("options for a folder of images", _IMAGES_HELP)
    images.add_argument(
        "--preset",
        choices=("imagenet", "unit", "raw"),
        help="imagenet: --resize shorter --crop 0.875, and ImageNet's mean and std; unit: --resize exact, numbers from "
        "0 to 1; raw: --resize exact, numbers from 0 to 255",
    )
    images.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="height and width in pixels, or one number for both; needed if the model leaves them open",
    )
    images.add_argument(
        "--resize",
        choices=("shorter", "exact"),
        help="shorter: keep the ratio of the sides and cut off what is too long; exact: stretch to the size",
    )
    images.add_argument(
        "--crop",
        type=_crop,
        nargs="?",
        const=1.0,
        metavar="PART",
        help="keep this part of each side, around the centre: 0.875 keeps 224 pixels of 256; without PART, keep all "
        "that fits",
    )
    images.add_argument(
        "--mean",
        type=_numbers,
        metavar="R,G,B",
        help="subtract this: one number for each of the model's channels, or one for all",
    )
    images.add_argument("--std", type=_numbers, metavar="R,G,B", help="divide by this after subtracting the mean")
    images.add_argument(
        "--scale",
        type=_number,
        metavar="X",
        help="multiply pixels by this first (default: 1/255, or 1 for raw and for integer inputs)",
    )
    images.add_argument("--bgr", action="store_true", help="the model's channels have the order blue, green, red")


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--target",
        choices=("onnxruntime", "openvino", "tensorrt", "qnn"),
        help="the runtime that is to run the model (default: onnxruntime)",
    )
    command.add_argument(
        "--ops",
        type=_listed,
        metavar="OP,…",
        help="operators to quantise: Conv, ConvTranspose, Gemm, MatMul (default: all but ConvTranspose)",
    )
    command.add_argument(
        "--exclude", nargs="+", action="extend", metavar="NODE", help="names of nodes that stay in float"
    )


def _add_metric(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--labels",
        metavar="NAME",
        help="measure accuracy on the classes that the data holds under this name; for images and tuples it is labels",
    )
    command.add_argument(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="your function of outputs and a batch, which returns a score from 0 to 1 for each sample (default: "
        "accuracy with --labels, else agreement with the float model)",
    )


def _add_output_options(command: argparse.ArgumentParser, *, progress: bool = True) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for other programs")
    if progress:
        command.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _number(text: str) -> float:
    """Return a number; the text may be a fraction, such as 1/255."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number such as 0.5 or 1/255, got {text!r}") from None


def _numbers(text: str) -> tuple[float, ...]:
    """Return the numbers of a text that separates them by commas."""
    return tuple(_number(part) for part in text.split(","))


def _crop(text: str) -> float:
    try:
        return _number(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a part such as 0.875, or another option after --crop, got {text!r}"
        ) from None


def _size(text: str) -> tuple[int, int]:
    """Return a height and a width."""
    height, _, width = text.lower().partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise argparse.ArgumentTypeError(f"expected pixels such as 224 or 480x640, got {text!r}") from None


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed <= _SEED_MAX:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to {_SEED_MAX}, got {text!r}")
    return seed


def _demo(arguments: argparse.Namespace) -> int:
    try:
        # Imported only now: scikit-learn is optional, and slow to import.
        from .demo import format_report, run_demo
    except ModuleNotFoundError as error:
        return _missing(error, "sklearn", "the demo needs scikit-learn", "demo")
    _startup.hand_over()
    print(format_report(run_demo(arguments.seed)), flush=True)
    return 0


def _onnx(name: str) -> Callable[[argparse.Namespace], int]:
    """Return a function that runs a command on ONNX models."""

    def run(arguments: argparse.Namespace) -> int:
        try:
            from .._onnx import commands
        except ModuleNotFoundError as error:
            missing = (error.name or "").partition(".")[0]
            return _missing(error, missing, f"{name} needs {missing}", "onnx")
        _startup.hand_over()
        return commands.run(name, arguments)

    return run


def _missing(error: ModuleNotFoundError, package: str, what: str, extra: str) -> int:
    if (error.name or "").partition(".")[0] != package or package == "qatcore":
        raise error
    print(f"qatcore: {what}: pip install 'qatcore[{extra}]'", file=sys.stderr)
    return 2
