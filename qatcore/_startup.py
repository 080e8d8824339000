"""The command until it runs: Ctrl-C and wrong settings end it in one line, also while modules are imported.

They take half a second, and an interrupt in a compiled module's own import may come out as anything.  So the package
imports this module first.  In a process that is not the command it does nothing.
"""

from __future__ import annotations

import os
import signal
import sys
from types import TracebackType
from typing import Any, NoReturn

from ._base.errors import InvalidArgumentError

INTERRUPTED = "interrupted, nothing was written"


def hand_over() -> None:
    """Leave Ctrl-C and errors to the command, which has imported what it needs."""
    if signal.getsignal(signal.SIGINT) is _on_interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.excepthook is _on_error:
        sys.excepthook = sys.__excepthook__


def _is_command() -> bool:
    """Return whether this process is the script ``qatcore`` or ``python -m qatcore``."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program == "-m":  # what Python has there until it has found the module
        return "qatcore" in sys.orig_argv or "-mqatcore" in sys.orig_argv
    return os.path.basename(program) == "qatcore"


def _on_interrupt(*_: Any) -> NoReturn:
    _end(INTERRUPTED, 130)


def _on_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, InvalidArgumentError):
        _end(str(error), 2)
    sys.__excepthook__(kind, error, traceback)


def _end(message: str, code: int) -> NoReturn:
    """End the process at once: there is nothing to put in order, and an exception might get lost in an import."""
    if sys.stderr is not None:
        print(f"qatcore: {message}", file=sys.stderr, flush=True)
    os._exit(code)


if _is_command():
    sys.excepthook = _on_error
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored, as by nohup
        signal.signal(signal.SIGINT, _on_interrupt)
