"""The same bits from every CPU level, number of threads, C library and NumPy variant."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

import qatcore
from qatcore import InvalidArgumentError
from qatcore._base import dispatch, threads

LEVELS = dispatch.available_levels()
DIGEST = Path(__file__).parents[1] / "digest.py"


def run(*arguments, **environment):
    """Run Python on the package under test with these variables and no other setting of its."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QATCORE_")}
    inherited["PYTHONPATH"] = str(Path(qatcore.__file__).parents[1])
    # -P: not from the working directory, which may be the source tree.
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)


# --- one digest ------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_one_digest():
    # All levels on one thread, then more threads: how an array is divided does not depend on the level.
    settings = [{"QATCORE_CPU": level, "QATCORE_NUM_THREADS": "1"} for level in LEVELS]
    settings += [{"QATCORE_CPU": LEVELS[-1], "QATCORE_NUM_THREADS": threads} for threads in ("2", "3")]
    # glibc chooses its exp and log by CPU, NumPy its loops.  An ImportWarning tells of a feature not disabled.
    dispatched = " ".join(feature for feature in __cpu_dispatch__ if __cpu_features__[feature])
    other_libraries = {
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX2,-FMA",
        "NPY_DISABLE_CPU_FEATURES": dispatched,
        "QATCORE_NUM_THREADS": "2",
    }
    settings += [other_libraries | {"QATCORE_CPU": level} for level in (LEVELS[0], LEVELS[-1])]
    with ThreadPoolExecutor(2) as pool:
        command = ("-W", "error::ImportWarning", str(DIGEST), "--sections")
        runs = list(pool.map(lambda setting: run(*command, **setting), settings))
    for setting, result in zip(settings, runs, strict=True):
        assert result.returncode == 0, result.stderr
        assert result.stdout == runs[0].stdout, setting


# --- choosing a level and a number of threads ------------------------------------------------------------


def test_the_highest_level_is_the_default():
    assert dispatch.choose_level(None, LEVELS) == LEVELS[-1]
    assert dispatch.choose_level("", LEVELS) == LEVELS[-1]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_can_be_chosen(level):
    result = run("-c", "import qatcore; print(qatcore.cpu_level())", QATCORE_CPU=level)
    assert (result.stdout, result.stderr) == (f"{level}\n", "")


def test_a_level_that_this_machine_lacks_is_refused():
    message = r"^QATCORE_CPU: expected one of v2, v3 on this machine, got 'v4'$"
    with pytest.raises(InvalidArgumentError, match=message):
        dispatch.choose_level("v4", ["v2", "v3"])


def test_an_unknown_level_fails_the_import():
    result = run("-c", "import qatcore", QATCORE_CPU="v9")
    assert result.returncode == 1
    expected = f"QATCORE_CPU: expected one of {', '.join(LEVELS)} on this machine, got 'v9'"
    assert result.stderr.splitlines()[-1] == f"qatcore.InvalidArgumentError: {expected}"


def test_the_probe_agrees_with_the_operating_system():
    """On Linux the kernel lists the features that the CPU has and the system lets programs use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), None)
    if flags is None or dispatch._kernels.probe_cpu() == 0:
        pytest.skip("another architecture")
    v3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
    v4 = v3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    assert dispatch._kernels.probe_cpu() == (4 if v4 <= flags else 3 if v3 <= flags else 2)
    products = {"avxvnni": v3 | {"avx_vnni"}, "vnni": v4 | {"avx512_vnni"}, "amx": v4 | {"amx_tile", "amx_int8"}}
    expected = {name for name, needed in products.items() if needed <= flags}
    if os.environ.get("QATCORE_EMULATE") == "1" and "vnni" in expected:  # the build that this variable made
        expected = set(products)
    assert set(dispatch._kernels.probe_gemm()) == expected


# --- the int8 product ------------------------------------------------------------------------------------


class Machine:
    """A baseline build that finds other hardware."""

    def __init__(self, level, gemms, grants_amx=True):
        self.probe_cpu = lambda: level
        self.probe_gemm = lambda: gemms
        self.request_amx = lambda: grants_amx


@pytest.fixture
def machine(monkeypatch):
    """Pretend to be another machine, one that has all modules and imports none of them."""

    def pretend(*what, built=lambda module: True):
        monkeypatch.setattr(dispatch, "_kernels", Machine(*what))
        monkeypatch.setattr(dispatch, "_is_built", built)
        monkeypatch.setattr(dispatch, "_import", lambda module: module)

    return pretend


def test_products_of_each_level(machine):
    machine(4, ["avxvnni", "vnni", "amx"])
    assert dispatch.available_levels() == ["v2", "v3", "v4", "amx"]
    assert dispatch.load_gemms("amx") == ("_gemm_vnni", "_gemm_amx")
    assert dispatch.load_gemms("v4") == ("_gemm_vnni", "_gemm_vnni")
    assert dispatch.load_gemms("v3") == ("_gemm_avxvnni", "_gemm_avxvnni")
    assert dispatch.load_gemms("v2") == ("_kernels", "_kernels")
    assert dispatch.load_kernels("amx") == "_kernels_v4"


def test_products_of_a_machine_without_instructions_for_them(machine):
    machine(4, [])
    assert dispatch.available_levels() == ["v2", "v3", "v4"]
    assert dispatch.load_gemms("v4") == ("_kernels_v4", "_kernels_v4")
    assert dispatch.load_gemms("v3") == ("_kernels_v3", "_kernels_v3")
    with pytest.raises(InvalidArgumentError, match=r"expected one of v2, v3, v4 on this machine, got 'amx'$"):
        dispatch.choose_level("amx", dispatch.available_levels())


def test_a_refusal_of_the_tiles_is_no_error(machine):
    machine(4, ["vnni", "amx"], False)
    assert dispatch.load_gemms("amx") == ("_gemm_vnni", "_gemm_vnni")


def test_modules_that_the_compiler_could_not_build_are_left_out(machine):
    machine(4, ["avxvnni", "vnni", "amx"], built=lambda module: module not in ("_gemm_amx", "_gemm_avxvnni"))
    assert dispatch.available_levels() == ["v2", "v3", "v4"]
    assert dispatch.load_gemms("v3") == ("_kernels_v3", "_kernels_v3")
    assert dispatch.missing_modules() == ["_gemm_avxvnni", "_gemm_amx"]


def test_nothing_is_missing():
    assert dispatch.missing_modules() == []


def test_show_config_tells_what_was_left_out(monkeypatch, capsys):
    monkeypatch.setattr(dispatch, "missing_modules", lambda: ["_kernels_v4", "_gemm_amx"])
    qatcore.show_config()
    assert capsys.readouterr().out.splitlines()[-1] == (
        "not built:    _kernels_v4, _gemm_amx (the compiler does not know their flags)"
    )


def test_few_rows_and_many(monkeypatch):
    monkeypatch.setattr(dispatch, "gemms", ("few", "many"))
    assert [dispatch.gemm(rows) for rows in (1, 4, 5, 1000)] == ["few", "few", "many", "many"]


def test_show_config(capsys):
    qatcore.show_config()
    rows = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["qatcore"] == qatcore.__version__
    assert rows["numpy"] == np.__version__
    assert rows["CPU level"] == f"{qatcore.cpu_level()} (this machine can run: {', '.join(LEVELS)})"
    assert rows["int8 product"] in ("portable", *dispatch.available_gemms())
    assert "not built" not in rows
    assert rows["threads"] == str(qatcore.get_num_threads())


@pytest.mark.parametrize("setting", ["0", "-1", "two", "1.5", " "])
def test_an_impossible_number_of_threads_is_refused(monkeypatch, setting):
    monkeypatch.setenv("QATCORE_NUM_THREADS", setting)
    with pytest.raises(InvalidArgumentError, match=r"^QATCORE_NUM_THREADS: expected a positive integer, got "):
        threads._initial_threads()


def test_the_number_of_threads_is_read_at_import():
    program = "import qatcore; print(qatcore.get_num_threads())"
    assert run("-c", program, QATCORE_NUM_THREADS="7").stdout == "7\n"
    assert run("-c", program).stdout == f"{len(os.sched_getaffinity(0))}\n"
    refused = run("-c", program, QATCORE_NUM_THREADS="none")
    assert refused.returncode == 1
    assert "InvalidArgumentError: QATCORE_NUM_THREADS" in refused.stderr
