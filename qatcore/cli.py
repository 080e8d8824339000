"""The command line: ``qatcore``, or ``python -m qatcore``."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

from . import __version__

_SEED_MAX = 2**32 - 1  # NumPy's and scikit-learn's limit


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Exit with one line, where argparse would print the usage too."""
        self.exit(2, f"qatcore: {message}\n")


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
    parser = _parser()
    arguments = parser.parse_args(argv)
    if arguments.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        return _demo(arguments.seed)
    except BrokenPipeError:
        # The reader of the output has left.  The interpreter must not fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="qatcore",
        description="The quantisation core for Python.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"qatcore {__version__}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    demo = commands.add_parser(
        "demo",
        help="quantise a small network and compare accuracy, size and time",
        description=(
            "Train a small network on scikit-learn's handwritten digits, quantise it in every\n"
            "format with every calibration method, and print the accuracy, size and time of\n"
            "each.  Takes a few seconds."
        ),
        epilog="example:\n  qatcore demo --seed 1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    demo.add_argument(
        "--seed",
        type=_seed,
        default=0,
        metavar="N",
        help="of the split of the images and of the training (default: 0)",
    )
    return parser


def _seed(text: str) -> int:
    try:
        seed = int(text)
    except ValueError:
        seed = -1
    if not 0 <= seed <= _SEED_MAX:
        raise argparse.ArgumentTypeError(f"expected an integer from 0 to {_SEED_MAX}, got {text!r}")
    return seed


def _demo(seed: int) -> int:
    try:
        # Imported only now: scikit-learn is optional, and slow to import.
        from .demo import format_report, run_demo
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sklearn":
            raise
        print("qatcore: the demo needs scikit-learn: pip install 'qatcore[demo]'", file=sys.stderr)
        return 2
    print(format_report(run_demo(seed)), flush=True)
    return 0
