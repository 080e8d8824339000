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
  0  it is done
  1  it is done, but what was to be printed could not be
  2  an argument, a file or the data is wrong, and nothing was written
  130  interrupted; a calibration is saved, and what was saved is said
"""
_DATA_HELP = (
    "a folder of images; a directory of .npz or .npy files, each a batch; one such file whose arrays have a leading "
    "axis of samples; or module:function that yields dicts of arrays, or tuples of inputs and labels"
)
_IMAGES_HELP = """\
The model says the size, layout, channels and type.  By default 3 channels are prepared as for
ImageNet, others become numbers from 0 to 1, and integers stay bytes.  What was done is printed.
"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line, where argparse would print the usage too."""
        self.exit(2, f"qatcore: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Refuse an unknown option first: that another one is missing may be because its name is misspelt."""
        given = sys.argv[1:] if args is None else list(args)
        known = self._option_string_actions
        for argument in given:
            # What comes after a command is its own parser's.
            if argument == "--" or (self._subparsers is not None and not argument.startswith("-")):
                break
            name = argument.partition("=")[0]
            if name.startswith("--") and " " not in name and name not in known:
                self.error(f"unrecognized arguments: {name}{_suggestion(name, known)}")
            if name.startswith("-") and f"-{name}" in known:  # which would be read as -o with a value
                self.error(f"unrecognized arguments: {name}; did you mean -{name}?")
        return super().parse_known_args(given, namespace)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """Refuse a value that is no choice, and suggest the one that was meant."""
        if action.choices is not None and value not in action.choices:
            message = f"invalid choice: {value!r} (choose from {', '.join(map(str, action.choices))})"
            raise argparse.ArgumentError(action, message + _suggestion(value, action.choices))


def _suggestion(given: str, known: Iterable[str]) -> str:
    """Return a question after what was meant, if anything is near."""
    near = difflib.get_close_matches(given.lower(), known, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return the exit code.

    Parameters
    ----------
    argv : sequence of str, optional
        The arguments, those of the process if left out.

    Raises
    ------
    SystemExit
        After ``--help`` and ``--version``, and with code 2 if an argument is wrong.
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
        if sys.stdout is not None:  # closed from the start
            sys.stdout.flush()
    except OSError:
        return _without_a_reader()
    return code


def _without_a_reader() -> int:
    """Return the exit code where the output can be written no more.

    The interpreter must not fail again when it flushes at exit.
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
        "Quantise the convolutions and matrix products of an ONNX model, by the ranges that its\n"
        "activations have on the data, and say how well it agrees with the float model.",
        "qatcore quantize model.onnx --data photos/ -o model-int8.onnx\n"
        "  qatcore quantize model.onnx --data photos/ --resize exact --mean 0.5 --std 0.5 -o model-int8.onnx\n"
        "  qatcore quantize model.onnx --data x.npz --labels label --max-drop 1 -o model-int8.onnx\n"
        "  qatcore quantize model.onnx --weights int4 --activations none -o model-int4.onnx",
        _onnx("quantize"),
    )
    command.add_argument("model", metavar="MODEL.onnx")
    _add_data(command, required=False)
    command.add_argument("-o", "--output", required=True, metavar="OUT.onnx")
    command.add_argument(
        "--calibration",
        metavar="FILE",
        help="of qatcore calibrate, instead of observing --data, which corrects biases if it is given too",
    )
    command.add_argument(
        "--method",
        choices=("mse", "kl", "percentile", "minmax", "auto"),
        help="how ranges of activations are chosen (default: mse)",
    )
    command.add_argument(
        "--percentile", type=float, metavar="P", help="of values that that method keeps (default: 99.99)"
    )
    command.add_argument("--weights", choices=("int8", "int4", "fp8"), default="int8", help="default: int8")
    command.add_argument(
        "--activations",
        choices=("uint8", "int8", "fp8", "none"),
        default="uint8",
        help="default: uint8; none needs no data; models with fp8 here or beside codes need ONNX Runtime 1.32",
    )
    command.add_argument("--per-tensor", action="store_true", help="one scale for a weight, not one for each channel")
    command.add_argument(
        "--group-size", type=int, metavar="N", help="of int4 weights with one scale; 0 for channels (default: 32)"
    )
    _add_selection(command)
    command.add_argument(
        "--max-drop",
        type=float,
        metavar="PERCENT",
        help="keep the most sensitive nodes in float until no more is lost on the data",
    )
    _add_metric(command)
    command.add_argument(
        "--no-bias-correction",
        action="store_true",
        help="leave biases as they are; otherwise, where there is --data, they keep the mean of each channel",
    )
    command.add_argument(
        "--keep-inputs",
        action="store_true",
        help="leave initializers that are inputs too; otherwise, if there are weights among them, they are constants",
    )
    command.add_argument("--no-check", action="store_true", help="do not compare with the float model on the data")
    _add_output_options(command)


def _add_calibrate(commands: Any) -> None:
    command = _command(
        commands,
        "calibrate",
        "observe a model's activations and save what was seen",
        "Run an ONNX model on data, observe the tensors that quantize will give codes, and save\n"
        "what was seen: histograms that serve every format and method.  Ctrl-C saves what was\n"
        "seen so far.",
        "qatcore calibrate model.onnx --data shard1/ -o shard1.npz\n"
        "  qatcore calibrate model.onnx --data shard1/ -o shard1.npz --resume",
        _onnx("calibrate"),
    )
    command.add_argument("model", metavar="MODEL.onnx")
    _add_data(command, required=True)
    command.add_argument("-o", "--output", required=True, metavar="FILE.npz")
    command.add_argument("--resume", action="store_true", help="go on after the batches that the file has seen")
    _add_selection(command)
    _add_output_options(command)


def _add_merge(commands: Any) -> None:
    command = _command(
        commands,
        "merge",
        "join calibrations of several machines",
        "Join calibrations of one model on different data, to the bits that one calibration on\n"
        "all of the data would have.",
        "qatcore merge shard1.npz shard2.npz -o all.npz",
        _onnx("merge"),
    )
    command.add_argument("files", metavar="FILE.npz", nargs="+")
    command.add_argument("-o", "--output", required=True, metavar="FILE.npz")
    _add_output_options(command, progress=False)


def _add_compare(commands: Any) -> None:
    command = _command(
        commands,
        "compare",
        "compare a quantised ONNX model with the float one",
        "Run both models on data: agreement or accuracy, the signal-to-quantisation-noise ratio\n"
        "of outputs and of every tensor with codes, time and size.",
        "qatcore compare model.onnx model-int8.onnx --data test.npz --labels label",
        _onnx("compare"),
    )
    command.add_argument("model", metavar="FLOAT.onnx")
    command.add_argument("quantized", metavar="QUANT.onnx")
    _add_data(command, required=True)
    _add_metric(command)
    _add_output_options(command)


def _add_inspect(commands: Any) -> None:
    command = _command(
        commands,
        "inspect",
        "show a calibration or a model as a table",
        "Show the ranges of a calibration, and of each method the signal-to-quantisation-noise\n"
        "ratio that it promises at int8; or the nodes of a model, and the codes of a quantised one.",
        "qatcore inspect calibration.npz\n  qatcore inspect model-int8.onnx",
        _onnx("inspect"),
    )
    command.add_argument("file", metavar="FILE")
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
        help="of the split of the images and of the training (default: 0)",
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
        help="samples to a batch where the data is images or one file (default: 8)",
    )
    images = command.add_argument_group("options of a folder of images", _IMAGES_HELP)
    images.add_argument(
        "--preset",
        choices=("imagenet", "unit", "raw"),
        help="imagenet: --resize shorter --crop 0.875, and ImageNet's mean and std; unit: exact size, from 0 to 1; "
        "raw: exact size, from 0 to 255",
    )
    images.add_argument(
        "--size",
        type=_size,
        metavar="HxW",
        help="height and width, or one number for both; needed if the model leaves them open",
    )
    images.add_argument(
        "--resize",
        choices=("shorter", "exact"),
        help="shorter: keep the sides' ratio and cut off what is too long; exact: stretch to the size",
    )
    images.add_argument(
        "--crop",
        type=_crop,
        nargs="?",
        const=1.0,
        metavar="PART",
        help="keep this part around the centre, all that fits by default: 0.875 takes 224 pixels of 256",
    )
    images.add_argument(
        "--mean",
        type=_numbers,
        metavar="R,G,B",
        help="is subtracted: one number for each of the model's channels, or one",
    )
    images.add_argument("--std", type=_numbers, metavar="R,G,B", help="divides what is left")
    images.add_argument(
        "--scale", type=_number, metavar="X", help="multiplies pixels before that: 1/255 (default), or 1 to leave them"
    )
    images.add_argument("--bgr", action="store_true", help="the model's channels are blue, green and red")


def _add_selection(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--ops",
        type=_listed,
        metavar="OP,…",
        help="operators to quantise, of Conv, ConvTranspose, Gemm and MatMul (default: all but ConvTranspose)",
    )
    command.add_argument(
        "--exclude", nargs="+", action="extend", metavar="NODE", help="names of nodes that stay in float"
    )


def _add_metric(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--labels",
        metavar="NAME",
        help="of the classes of samples in the data: measure accuracy; NAME is labels for images and tuples",
    )
    command.add_argument(
        "--metric",
        metavar="MODULE:FUNCTION",
        help="of outputs and a batch: a score for each sample (default: agreement with the float model)",
    )


def _add_output_options(command: argparse.ArgumentParser, *, progress: bool = True) -> None:
    command.add_argument("--json", action="store_true", help="print JSON, for machines")
    if progress:
        command.add_argument("-q", "--quiet", action="store_true", help="show no progress")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(item.strip() for item in text.split(",") if item.strip())


def _number(text: str) -> float:
    """Return a number that may be a fraction."""
    above, slash, below = text.partition("/")
    try:
        return float(above) / float(below) if slash else float(text)
    except (ValueError, ZeroDivisionError):
        raise argparse.ArgumentTypeError(f"expected a number such as 0.5 or 1/255, got {text!r}") from None


def _numbers(text: str) -> tuple[float, ...]:
    """Return numbers with commas between them."""
    return tuple(_number(part) for part in text.split(","))


def _crop(text: str) -> float:
    try:
        return _number(text)
    except argparse.ArgumentTypeError:
        raise argparse.ArgumentTypeError(
            f"expected a part such as 0.875, or an option behind it, got {text!r}"
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
    """Return what runs a command on ONNX models."""

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
