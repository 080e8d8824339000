"""Measure what the package costs: the time to import it, and the size of its wheel."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator

import qatcore

from .settings import Settings
from .timing import Row, at_most

IMPORT = """
import time
import numpy, ml_dtypes
start = time.perf_counter()
import qatcore
print((time.perf_counter() - start) * 1e3)
"""

WITHOUT = """
import time
start = time.perf_counter()
import numpy, ml_dtypes
print((time.perf_counter() - start) * 1e3)
"""


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    row = Row("import qatcore, in a fresh process", least=21)  # the operating system disturbs these times more
    row.ours(lambda: milliseconds(IMPORT), name="qatcore: beyond its requirements", bar=at_most(15, "ms"), measure=True)
    row.peer("numpy and ml_dtypes: its requirements", lambda: milliseconds(WITHOUT), measure=True)
    yield row
    if settings.wheel is not None:
        size = pathlib.Path(settings.wheel).stat().st_size / 1e6
        row = Row(f"size of {pathlib.Path(settings.wheel).name}", unit="MB")
        row.ours(lambda: size, bar=at_most(4, "MB"), measure=True)
        yield row


def milliseconds(program: str) -> float:
    """Run a program in a fresh interpreter that finds the same qatcore, and return what it prints."""
    environment = dict(os.environ)
    # The first run, which is not timed, writes the bytecode that an installed package would have.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    directory = pathlib.Path(qatcore.__file__).parents[1]
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=directory, env=environment)
    return float(done.stdout)
