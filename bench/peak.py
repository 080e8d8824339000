"""Measure the peak rate of int8 multiply-adds on registers alone: the limit of every matrix product."""

from __future__ import annotations

import ctypes
import functools
import pathlib
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable

SOURCE = pathlib.Path(__file__).with_name("peak.c.txt")

#: Instructions, and their numbers in the source.
UNITS = {
    "pmaddwd, 128 bits": 0,
    "vpmaddwd, 256 bits": 1,
    "vpdpbusd, 256 bits": 2,
    "vpmaddwd, 512 bits": 3,
    "vpdpbusd, 512 bits": 4,
    "tdpbssd, tiles": 5,
}

#: The instructions that can compute exact int8 products at each CPU level, fastest first.
OF_LEVEL = {
    "amx": ["tdpbssd, tiles"],
    "v4": ["vpdpbusd, 512 bits", "vpmaddwd, 512 bits"],
    "v3": ["vpdpbusd, 256 bits", "vpmaddwd, 256 bits"],
    "v2": ["pmaddwd, 128 bits"],
}


class Peak:
    """The fastest instruction of a CPU level; `name` is None if there is none, and `reason` says why."""

    def __init__(self, level: str) -> None:
        self.name: str | None = None
        self.reason = f"level {level} has no known instruction"
        try:
            self._library = _compiled()
        except (OSError, subprocess.CalledProcessError) as error:
            self.reason = str(error)
        else:
            candidates = OF_LEVEL.get(level, [])
            self.name = next((name for name in candidates if self._library.supported(UNITS[name])), None)

    def work(self, operations: int) -> Callable[[], int]:
        """Return a function that does at least this many multiplications and additions, on one core."""
        assert self.name is not None
        return functools.partial(self._library.run, UNITS[self.name], operations)

    def __str__(self) -> str:
        if self.name is None:
            return f"not measured ({self.reason})"
        return f"{self._rate() * 1e-9:,.0f} Gop/s on one core ({self.name})"

    def _rate(self) -> float:
        """Return operations per second: the best of five runs of about 20 ms."""
        operations, rates = 1 << 24, []
        while len(rates) < 5:
            start = time.perf_counter()
            done = self.work(operations)()
            seconds = time.perf_counter() - start
            if seconds < 0.02:
                operations *= 2
            else:
                rates.append(done / seconds)
        return max(rates)


@functools.cache
def of_level(level: str) -> Peak:
    """Return the peak of a CPU level, made once in a run."""
    return Peak(level)


def _compiled() -> ctypes.CDLL:
    """Compile the source and load it; the loaded library outlives its file."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        raise FileNotFoundError("neither gcc nor clang is installed")
    with tempfile.TemporaryDirectory() as directory:
        library = pathlib.Path(directory, "peak.so")
        command = [compiler, "-x", "c", "-O2", "-shared", "-fPIC", "-o", library, SOURCE]
        subprocess.run(command, check=True, capture_output=True)
        loaded = ctypes.CDLL(str(library))
    loaded.run.argtypes = [ctypes.c_int, ctypes.c_int64]
    loaded.run.restype = ctypes.c_int64
    return loaded
