"""The command: ``python -m bench``."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import json
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

# The functions below import NumPy, and modules that load it, only after they have set the environment.

PARTS = ["elementwise", "formats", "training", "observe", "search", "weights", "gemm", "layer", "threads", "package"]

#: For each CPU level, the limit on oneDNN when PyTorch calls it.
ONEDNN_ISA = {"v2": "SSE41", "v3": "AVX2_VNNI", "v4": "AVX512_CORE_VNNI", "amx": "AVX512_CORE_AMX"}

#: Variables that limit or slow only one contender.
UNWANTED = [
    "ATEN_CPU_CAPABILITY",
    "DNNL_MAX_CPU_ISA",
    "NPY_DISABLE_CPU_FEATURES",
    "ONEDNN_MAX_CPU_ISA",
    "OPENBLAS_CORETYPE",
    "OPENBLAS_L2_SIZE",
    "QATCORE_CPU",
]

#: Seconds for each row, and the least and greatest number of repetitions of a contender.
FULL, SHORT = (3.0, 5, 101), (0.1, 2, 5)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark and return the exit code: 1 for a wrong result, 2 for something missing or misspelt."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    if arguments.source and (arguments.parts or arguments.peers or arguments.level or arguments.short):
        parser.error("--from runs nothing: use it with --markdown, --json and --plot only")
    if arguments.plot and importlib.util.find_spec("matplotlib") is None:
        print("bench: matplotlib is not installed: pip install -r bench/requirements.txt", file=sys.stderr)
        return 2
    if arguments.source:
        try:
            stored = json.loads(pathlib.Path(arguments.source).read_text())
            show(stored, markdown=arguments.markdown)
        except (ValueError, KeyError, TypeError):
            print(f"bench: {arguments.source} holds no results; make some with --json FILE", file=sys.stderr)
            return 2
    else:
        set_environment(arguments.threads, arguments.level)
        command = shlex.join(["python", "-m", "bench", *(sys.argv[1:] if argv is None else argv)])
        try:
            stored = run(arguments, command)
        except Unavailable as error:
            print(f"bench: {error}", file=sys.stderr)
            return 2
        except importlib.import_module(".checks", __package__).MismatchError as error:
            print(f"bench: wrong result: {error}", file=sys.stderr)
            return 1
    if arguments.json:
        pathlib.Path(arguments.json).write_text(json.dumps(stored, indent=1) + "\n")
    if arguments.plot:
        from . import plot

        plot.draw(stored, arguments.plot)
    return 0


class Unavailable(Exception):
    """Raised if the machine or the environment lacks something that the command line asks for."""


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of the arguments."""
    parser = argparse.ArgumentParser("python -m bench", description="Benchmarks of qatcore; see bench/README.md.")
    add = parser.add_argument
    add("parts", nargs="*", type=_part, metavar="PART", help=f"parts to run (default: all): {', '.join(PARTS)}")
    add("--peers", action="store_true", help="compare with the packages of bench/requirements.txt")
    add("--threads", type=_positive, default=1, metavar="N", help="number of threads of every contender (default: 1)")
    add("--level", choices=list(ONEDNN_ISA), help="CPU level of qatcore, and of oneDNN when PyTorch calls it")
    add("--short", action="store_true", help="run small sizes a few times, only to see that everything runs")
    add("--wheel", type=_file, metavar="FILE", help="judge the size of this wheel")
    add("--markdown", action="store_true", help="print the results as Markdown")
    add("--json", type=_new_file, metavar="FILE", help="write the results to a file")
    add("--from", type=_file, dest="source", metavar="FILE.json", help="read results of --json, and run nothing")
    add("--plot", type=_new_file, metavar="FILE.svg", help="draw the results as a chart")
    return parser


def _part(text: str) -> str:
    if text not in PARTS:
        raise argparse.ArgumentTypeError(f"there is no part {text!r}; choose from: {', '.join(PARTS)}")
    return text


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a positive integer, got {text!r}")
    return int(text)


def _file(text: str) -> str:
    if not pathlib.Path(text).is_file():
        raise argparse.ArgumentTypeError(f"there is no file {text!r}")
    return text


def _new_file(text: str) -> str:
    if not os.access(pathlib.Path(text).parent, os.W_OK):
        raise argparse.ArgumentTypeError(f"cannot write {text!r}: its folder does not exist or is not writable")
    return text


def set_environment(threads: int, level: str | None) -> None:
    """Set the environment variables that libraries read when they are loaded."""
    assert "numpy" not in sys.modules, "NumPy has read its environment already"
    for name in UNWANTED:
        os.environ.pop(name, None)
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(threads)
    if level is not None:
        os.environ["QATCORE_CPU"] = level
        os.environ["ONEDNN_MAX_CPU_ISA"] = ONEDNN_ISA[level]


def run(arguments: argparse.Namespace, command: str) -> dict[str, Any]:
    """Run the parts, print each row when it is done, and return all results as plain data."""
    qatcore = _import_qatcore()
    from . import machine, peers, report
    from .settings import Settings

    qatcore.set_num_threads(arguments.threads)
    if arguments.peers:
        if missing := peers.missing():
            verb = "is" if len(missing) == 1 else "are"
            raise Unavailable(f"{', '.join(missing)} {verb} not installed: pip install -r bench/requirements.txt")
        peers.prepare(arguments.threads)
    stored: dict[str, Any] = {"command": command, "machine": machine.describe(with_peers=arguments.peers), "rows": []}
    printed = report.Printer(stored, markdown=arguments.markdown)
    settings = Settings(arguments.peers, arguments.short, arguments.threads, arguments.level, arguments.wheel)
    for row in results(arguments.parts or PARTS, settings):
        stored["rows"].append(row)
        printed.row(row)
    return stored


def results(parts: list[str], settings: Any) -> Iterator[dict[str, Any]]:
    """Time the rows of the parts, and yield each result."""
    import qatcore

    from .timing import alternate, result

    budget, least, most = SHORT if settings.short else FULL
    for part in parts:
        for row in importlib.import_module(f".{part}", __package__).rows(settings):
            alternate(row.contenders, budget, least if settings.short else max(least, row.least), most)
            # The bars hold for the full sizes only.
            yield result(part, row, judge=not settings.short)
        qatcore.set_num_threads(settings.threads)


def _import_qatcore() -> Any:
    try:
        import qatcore
    except (ImportError, ValueError) as error:  # the kernels are not built, or the machine lacks the CPU level
        raise Unavailable(str(error)) from error
    return qatcore


def show(stored: dict[str, Any], *, markdown: bool) -> None:
    """Print stored results."""
    from . import report

    printed = report.Printer(stored, markdown=markdown)
    for row in stored["rows"]:
        printed.row(row)


if __name__ == "__main__":
    sys.exit(main())
