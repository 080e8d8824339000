"""Describe the machine, the builds and the versions that a result depends on."""

from __future__ import annotations

import importlib.metadata
import os
import pathlib
import platform
import re
import shutil
import subprocess

import numpy as np

import qatcore

from . import peak, peers

#: CPU features that matter to int8, by Linux's names, and their usual names.
FEATURES = {
    "avx2": "AVX2",
    "avx_vnni": "AVX-VNNI",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX512-VNNI",
    "amx_int8": "AMX-INT8",
}


def describe(*, with_peers: bool) -> dict[str, str]:
    """Return the lines to print above the results, in order, by their headings."""
    model, features = _cpu()
    level = qatcore.cpu_level()
    threads = f"{qatcore.get_num_threads()} thread{'s' * (qatcore.get_num_threads() > 1)}"
    lines = {
        "machine": f"{model}, {len(os.sched_getaffinity(0))} CPUs: {', '.join(features) or 'no vector features known'}",
        "int8 peak": str(peak.of_level(level)),
        "qatcore": f"{qatcore.__version__}, level {level}, {threads}, built by {_compiler()}",
        "python": f"{platform.python_version()}, numpy {np.__version__}, "
        f"ml_dtypes {importlib.metadata.version('ml_dtypes')}",
    }
    if with_peers:
        lines["peers"] = ", ".join(f"{package} {version}" for package, version in peers.versions().items())
        if isa := os.environ.get("ONEDNN_MAX_CPU_ISA"):
            lines["peers"] += f"; oneDNN limited to {isa}"
    return lines


def _cpu() -> tuple[str, list[str]]:
    try:
        text = pathlib.Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    fields = dict(re.findall(r"^(\S[^\t:]*)\s*: (.*)$", text.split("\n\n")[0], re.M))
    flags = set(fields.get("flags", "").split())
    model = fields.get("model name", platform.machine())
    family = f" (family {fields['cpu family']}, model {fields['model']})" if "cpu family" in fields else ""
    return model + family, [name for flag, name in FEATURES.items() if flag in flags]


def _compiler() -> str:
    """Return the compiler that the kernels' comment section names, or else the compiler of this machine."""
    for library in sorted(pathlib.Path(qatcore.__file__).parent.glob("_kernels*.so")):
        if found := re.search(rb"GCC: \([^)]*\) ([\d.]+)|(clang version [\d.]+)", library.read_bytes()):
            return f"gcc {found[1].decode()}" if found[1] else found[2].decode()
    if gcc := shutil.which("gcc"):
        version = subprocess.run([gcc, "--version"], check=False, capture_output=True, text=True).stdout
        return f"an unknown compiler ({version.splitlines()[0]} is installed)"
    return "an unknown compiler"
