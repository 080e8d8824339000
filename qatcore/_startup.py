"""End the command with one line after Ctrl-C or a wrong setting, also while its modules are being imported.

The imports take half a second, and Ctrl-C inside the import of a compiled module can raise any exception.
So the package imports this module first.  In a process that is not the command, this module does nothing.
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
    """Restore Python's handling of Ctrl-C and errors, once the command has imported what it needs."""
    if signal.getsignal(signal.SIGINT) is _on_interrupt:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if sys.excepthook is _on_error:
        sys.excepthook = sys.__excepthook__


def _is_command() -> bool:
    """Return whether this process is the script ``qatcore`` or ``python -m qatcore``."""
    program = sys.argv[0] if getattr(sys, "argv", None) else ""
    if program == "-m":  # Python's placeholder until it has found the module
        return "qatcore" in sys.orig_argv or "-mqatcore" in sys.orig_argv
    return os.path.basename(program) == "qatcore"


def _on_interrupt(*_: Any) -> NoReturn:
    _end(INTERRUPTED, 130)


def _on_error(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    if isinstance(error, InvalidArgumentError):
        _end(str(error), 2)
    sys.__excepthook__(kind, error, traceback)


def _end(message: str, code: int) -> NoReturn:
    """Print the message and end the process at once: an import might swallow an exception.

    There is nothing to clean up.
    """
    if sys.stderr is not None:
        print(f"qatcore: {message}", file=sys.stderr, flush=True)
    os._exit(code)


if _is_command():
    sys.excepthook = _on_error
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # background jobs ignore Ctrl-C
        signal.signal(signal.SIGINT, _on_interrupt)
