"""Picks the build of the kernels for this CPU.

Only the baseline build may be imported before the CPU is known: the module initialisation of the others
is itself compiled for their level and would die of an illegal instruction elsewhere.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from types import ModuleType
from typing import Any

import numpy as np

try:
    from . import _kernels
except ImportError as _missing:
    raise ImportError(
        f"the compiled kernels are not in {os.path.dirname(__file__)}: a source tree is not importable until it is "
        "built in place (see CONTRIBUTING.md); to use an installed qatcore, run from another directory"
    ) from _missing
from .errors import InvalidArgumentError

# Each CPU level, lowest first: what the probe returns for it, and its build.
_BUILDS = {"v2": (2, "_kernels"), "v3": (3, "_kernels_v3"), "v4": (4, "_kernels_v4")}
_BASELINE = "baseline"  # an architecture with one build only


def available_levels() -> list[str]:
    """Return the levels that this machine can run and that were built, lowest first."""
    machine = _kernels.probe_cpu()
    if machine == 0:
        return [_BASELINE]
    return [
        level
        for level, (needed, module) in _BUILDS.items()
        if needed <= machine and importlib.util.find_spec(f"{__package__}.{module}") is not None
    ]


def load_kernels(level: str) -> Any:
    """Import the build for one of the available levels."""
    module = _BUILDS[level][1] if level in _BUILDS else "_kernels"
    return importlib.import_module(f"{__package__}.{module}")


def choose_level(cap: str | None, levels: list[str]) -> str:
    """Return the highest level, or the one that ``QATCORE_CPU`` names."""
    if not cap:
        return levels[-1]
    if cap not in levels:
        raise InvalidArgumentError(f"QATCORE_CPU: expected one of {', '.join(levels)} on this machine, got {cap!r}")
    return cap


_level = choose_level(os.environ.get("QATCORE_CPU"), available_levels())

#: The build in use.  Read as ``_dispatch.kernels.function`` at each call, so that tests can put another
#: level's build here.
kernels: Any = load_kernels(_level)


def cpu_level() -> str:
    """Return the CPU level of the kernels in use.

    Returns
    -------
    str
        ``"v2"``, ``"v3"`` or ``"v4"``, the x86-64 micro-architecture levels, or ``"baseline"`` on other
        architectures.  The environment variable ``QATCORE_CPU`` chooses a lower one.

    Examples
    --------
    >>> import qatcore
    >>> qatcore.cpu_level() in ("v2", "v3", "v4", "baseline")
    True
    """
    return _level


def show_config() -> None:
    """Print the versions, the CPU level and the number of threads in use.

    Include its output in a bug report.
    """
    from . import __version__, _threads

    versions: dict[str, ModuleType] = {"numpy": np, "ml_dtypes": importlib.import_module("ml_dtypes")}
    rows = {
        "qatcore": __version__,
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        **{name: module.__version__ for name, module in versions.items()},
        "CPU level": f"{_level} (this machine can run: {', '.join(available_levels())})",
        "threads": str(_threads.get_num_threads()),
    }
    for name, value in rows.items():
        print(f"{name + ':':<12}{value}")
