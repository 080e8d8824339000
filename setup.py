"""Build the compiled extensions.

Everything else about the package is in pyproject.toml.  Three environment variables change the build:

``QATCORE_DEBUG=1``
    Check bounds in every kernel, and optimise little.

``QATCORE_SANITIZE=1``
    Add AddressSanitizer and UndefinedBehaviorSanitizer.  CONTRIBUTING.md says how to run the result.

``QATCORE_EMULATE=1``
    For tests: build the AMX module in plain C, and the AVX-VNNI module with AVX-512's form of its instruction.  The
    CPU probe then finds both on any CPU with AVX-512 VNNI.

The same kernel source is compiled once for each CPU level; see docs/internals.md.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

DEBUG = os.environ.get("QATCORE_DEBUG", "0") == "1"
SANITIZE = os.environ.get("QATCORE_SANITIZE", "0") == "1"
EMULATE = os.environ.get("QATCORE_EMULATE", "0") == "1"
VARIANT = ("sanitize" if SANITIZE else "debug" if DEBUG else "release") + ("-emulate" if EMULATE else "")

# Contraction into FMA and value-changing maths are off because they change bits, and every level must give the same
# numbers.  Support for errno and trapping maths is off because it only keeps the compiler from vectorising.
#
# Python's own flags ask for debug information.  A release drops it, and the reports of other builds need only line
# numbers.  With the sanitizers, full debug information takes half of the compile time.
COMMON = ["-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
if SANITIZE:
    COMMON = [
        "-O1",
        "-g1",
        "-ffp-contract=off",
        "-fno-omit-frame-pointer",
        "-fno-wrapv",
        "-fsanitize=address,undefined,float-cast-overflow",
        "-fno-sanitize-recover=undefined,float-cast-overflow",
    ]
elif DEBUG:
    COMMON = ["-O1", "-g1", "-ffp-contract=off"]
if EMULATE:
    COMMON += ["-DQATCORE_EMULATE", "-Itests/support"]
LINK = ["-fsanitize=address,undefined"] if SANITIZE else [] if DEBUG else ["-Wl,-s"]

KERNELS = "qatcore/_kernels.pyx"
# Source and compiler flags of each module.  The first is the baseline, which every machine imports.
if platform.machine().lower() in ("x86_64", "amd64"):
    V3 = ["-march=x86-64-v3"]
    V4 = ["-march=x86-64-v4", "-mprefer-vector-width=512"]
    VNNI = [*V4, "-mavx512vnni"]
    MODULES = {
        "_kernels": (KERNELS, ["-march=x86-64-v2"]),
        "_kernels_v3": (KERNELS, V3),
        "_kernels_v4": (KERNELS, V4),
        "_gemm_avxvnni": ("qatcore/kernels/gemm_avxvnni.pyx", VNNI if EMULATE else [*V3, "-mavxvnni"]),
        "_gemm_vnni": ("qatcore/kernels/gemm_vnni.pyx", VNNI),
        "_gemm_amx": ("qatcore/kernels/gemm_amx.pyx", [*V4, *([] if EMULATE else ["-mamx-tile", "-mamx-int8"])]),
    }
else:
    MODULES = {"_kernels": (KERNELS, [])}

# Bounds checks stay off under the sanitizers; otherwise these would never see an overrun.
DIRECTIVES = {
    "language_level": 3,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "autotestdict": False,  # the kernels have no doctests, and _kernels.pyi would have to list `__test__`
    "embedsignature": True,
    "embedsignature.format": "python",
}


def compiler_accepts(compiler: list[str], flags: list[str]) -> bool:
    """Return whether a tiny program compiles with these flags.

    ``Extension(optional=True)`` would need no probe, but it would hide real errors as well.
    """
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "probe.c")
        source.write_text("int probe(int x) { return x + 1; }\n")
        command = [*compiler, *flags, "-c", str(source), "-o", str(Path(folder, "probe.o"))]
        try:
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


class BuildLevels(build_ext):
    """Build what this compiler can build."""

    def build_extensions(self) -> None:
        """Drop the flags that the compiler does not know, and the modules that need such instructions."""
        # Only Unix-like compilers have this attribute; others build the baseline with their defaults.
        compiler = getattr(self.compiler, "compiler_so", None)
        kept = []
        for extension in self.extensions:
            wanted = extension.extra_compile_args
            known = [flag for flag in wanted if compiler and compiler_accepts(compiler, [flag])]
            extension.extra_compile_args = known
            if not compiler:
                extension.extra_link_args = []
            missing = [flag for flag in wanted if flag.startswith("-ma") and flag not in known]  # -march, -mavx, -mamx
            if extension.name == "qatcore._kernels" or not missing:
                kept.append(extension)
            else:
                print(f"qatcore: skipping {extension.name}, this compiler lacks {' '.join(missing)}", file=sys.stderr)
        # Start the longest ones first, so that shorter ones run beside the last of them.
        self.extensions = sorted(
            kept, key=lambda extension: ("_kernels" in extension.name, extension.name), reverse=True
        )
        super().build_extensions()


def extensions() -> list[Extension]:
    """Return one extension for each module.

    Modules of one source share its translation to C; a macro gives the initialising function the module's name.  Each
    module has a copy of its own, so that the object files of several levels do not overwrite each other.
    """
    built = []
    translated: dict[str, tuple[str, Path]] = {}
    for name, (source, flags) in MODULES.items():
        folder = Path("build", f"cython-{VARIANT}", name)
        extension = Extension(f"qatcore.{name}", [source])
        if source in translated:
            first, code = translated[source]
            own = folder / code.name
            if not own.exists() or own.stat().st_mtime < code.stat().st_mtime:
                folder.mkdir(parents=True, exist_ok=True)
                shutil.copy2(code, own)
            extension.sources = [str(own)]
            extension.define_macros = [(f"PyInit_{first}", f"PyInit_{name}")]
        else:
            (extension,) = cythonize([extension], build_dir=str(folder), compiler_directives=DIRECTIVES)
            translated[source] = name, Path(extension.sources[0])
        # Flags that are given before cythonize would leak into the next module.
        extension.extra_compile_args = [*COMMON, *flags]
        extension.extra_link_args = LINK
        built.append(extension)
    return built


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildLevels},
    options={
        "build": {"build_base": f"build/{VARIANT}"},
        "build_ext": {"parallel": True},
        "egg_info": {"egg_base": "build"},  # cythonize makes it; the source tree stays clean
    },
)
