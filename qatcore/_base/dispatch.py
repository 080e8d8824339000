"""Choose the build of the kernels for this CPU.

Only the baseline build may be imported before the CPU is known.  Even the initialisation of any other build
is compiled for that build's CPU level: on a lesser CPU, an illegal instruction would end the process.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

try:
    from .. import _kernels
except ImportError as _missing:
    raise ImportError(
        f"the compiled kernels are not in {Path(__file__).parents[1]}. If this is a source tree, build it in place "
        "(see CONTRIBUTING.md). To use an installed qatcore, run from another directory"
    ) from _missing
from .errors import InvalidArgumentError

#: The package that holds the compiled modules.
_PACKAGE = _kernels.__name__.rpartition(".")[0]

# The CPU levels, lowest first: the least answer of the probe that allows it, and its build.  amx uses v4's kernels.
_BUILDS = {"v2": (2, "_kernels"), "v3": (3, "_kernels_v3"), "v4": (4, "_kernels_v4"), "amx": (4, "_kernels_v4")}
_BASELINE = "baseline"  # an architecture with one build only

# The modules with int8 products for each level, the fastest first.  A level without any uses its kernels' portable one.
_GEMMS = {"v3": ["avxvnni"], "v4": ["vnni"], "amx": ["amx", "vnni"]}

#: A product of at most this many rows waits for the bytes of the right operand.  The matrix unit cannot speed that up,
#: and its set-up would take extra time.
_FEW_ROWS = 4


def _is_built(module: str) -> bool:
    return importlib.util.find_spec(f"{_PACKAGE}.{module}") is not None


def _import(module: str) -> Any:
    return importlib.import_module(f"{_PACKAGE}.{module}")


def missing_modules() -> list[str]:
    """Return the compiled modules of this architecture that were left out of this build."""
    if _kernels.probe_cpu() == 0:
        return []
    modules = [module for _, module in _BUILDS.values()] + [
        f"_gemm_{name}" for names in _GEMMS.values() for name in names
    ]
    return [module for module in dict.fromkeys(modules) if not _is_built(module)]


def available_gemms() -> list[str]:
    """Return the int8 products, other than the portable one, that were built and that this machine can run."""
    return [name for name in _kernels.probe_gemm() if _is_built(f"_gemm_{name}")]


def available_levels() -> list[str]:
    """Return the levels that were built and that this machine can run, lowest first."""
    machine = _kernels.probe_cpu()
    if machine == 0:
        return [_BASELINE]
    return [
        level
        for level, (needed, module) in _BUILDS.items()
        if needed <= machine and _is_built(module) and (level != "amx" or "amx" in available_gemms())
    ]


def load_kernels(level: str) -> Any:
    """Import and return the build for an available level."""
    return _import(_BUILDS[level][1] if level in _BUILDS else "_kernels")


def load_gemms(level: str) -> tuple[Any, Any]:
    """Import and return the modules for int8 products of few rows, and of many, at an available level."""
    names = [name for name in _GEMMS.get(level, ()) if name in available_gemms()]
    if "amx" in names and not _kernels.request_amx():
        names.remove("amx")
    modules = [_import(f"_gemm_{name}") for name in names] or [load_kernels(level)]
    return modules[-1], modules[0]


def choose_level(cap: str | None, levels: list[str]) -> str:
    """Return the highest level, or `cap`: the level that ``QATCORE_CPU`` names."""
    if not cap:
        return levels[-1]
    if cap not in levels:
        raise InvalidArgumentError(f"QATCORE_CPU: expected one of {', '.join(levels)} on this machine, got {cap!r}")
    return cap


_level = choose_level(os.environ.get("QATCORE_CPU"), available_levels())

#: The build in use.  Callers look up ``dispatch.kernels.function`` at each call, so that tests can put the build of
#: another level here.
kernels: Any = load_kernels(_level)

#: The modules for int8 products of few rows, and of many; None until the first product.
gemms: tuple[Any, Any] | None = None


def gemm(rows: int) -> Any:
    """Return the module whose int8 product suits this many rows."""
    global gemms  # noqa: PLW0603 (the first product imports them and requests the matrix unit)
    if gemms is None:
        gemms = load_gemms(_level)
    return gemms[rows > _FEW_ROWS]


def cpu_level() -> str:
    """Return the CPU level of the kernels in use.

    Returns
    -------
    str
        ``"v2"``, ``"v3"`` or ``"v4"`` is a micro-architecture level of x86-64.  ``"amx"`` is v4 with the matrix unit.
        ``"baseline"`` is the only level of other architectures.
        The environment variable ``QATCORE_CPU``, read at import, chooses a lower level.

    Examples
    --------
    >>> import qatcore
    >>> qatcore.cpu_level() in ("v2", "v3", "v4", "amx", "baseline")
    True
    """
    return _level


def show_config() -> None:
    """Print the versions, the CPU level, the int8 product and the number of threads in use.

    The output also names the modules that the compiler could not build.  Include it in a bug report.
    """
    from .. import __version__
    from . import threads

    product = gemm(rows=_FEW_ROWS + 1).__name__.rpartition(".")[2]
    versions: dict[str, ModuleType] = {"numpy": np, "ml_dtypes": importlib.import_module("ml_dtypes")}
    rows = {
        "qatcore": __version__,
        "python": f"{platform.python_version()} ({platform.system()} {platform.machine()})",
        **{name: module.__version__ for name, module in versions.items()},
        "CPU level": f"{_level} (this machine can run: {', '.join(available_levels())})",
        "int8 product": product.removeprefix("_gemm_") if product.startswith("_gemm_") else "portable",
        "threads": str(threads.get_num_threads()),
    }
    if missing := missing_modules():
        rows["not built"] = f"{', '.join(missing)} (the compiler does not know their flags)"
    for name, value in rows.items():
        print(f"{name + ':':<14}{value}")
