"""The same bits from every CPU level, number of threads, C library and NumPy variant."""

import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from digest import adversarial, bell, random_bits, uniform, words
from numpy._core._multiarray_umath import __cpu_dispatch__, __cpu_features__

import qatcore
from qatcore import InvalidArgumentError, _dispatch, _threads
from qatcore.formats import E4M3_MAX, E4M3_VALUES

LEVELS = _dispatch.available_levels()
DIGEST = Path(__file__).with_name("digest.py")


def run(*arguments, **environment):
    """Run Python on the package under test with these variables and no other setting of its."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("QATCORE_")}
    inherited["PYTHONPATH"] = str(Path(qatcore.__file__).parents[1])
    # -P: not from the working directory, which may be the source tree.
    command = [sys.executable, "-P", *arguments]
    return subprocess.run(command, env=inherited | environment, capture_output=True, text=True, check=False)


# --- one digest ------------------------------------------------------------------------------------------


def test_one_digest():
    settings = [
        {"QATCORE_CPU": level, "QATCORE_NUM_THREADS": threads} for level in LEVELS for threads in ("1", "2", "3")
    ]
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


# --- every kernel, around the widths of vectors and blocks -----------------------------------------------

SIZES = [*range(71), 4095, 4096, 4097]


def values(n, dtype):
    """Every other value is odd: extremes and what is not finite first, then ties and their neighbours."""
    x = ((uniform(n, 1) - 0.5) * 300).astype(dtype)
    odd = adversarial(dtype)[::-1][: n // 2]
    x[1 : 2 * odd.size : 2] = odd
    return x


def distribution(n):
    """A multiple of 8 intervals and points, as the kernels sum."""
    n = n // 8 * 8
    low = np.sort(bell(n, 2))
    return low, low + uniform(n, 3), uniform(n, 4), np.sort(bell(n, 5)), np.floor(uniform(n, 6) * 9)


def fake_quantize_integer(kernels, n):
    for dtype in (np.float32, np.float64):
        for scale, zero_point in ((0.5, 0), (0.1, -7), (2.0**-1060, 2**31 - 1), (0.0, 1), (np.nan, 0)):
            x = values(n, dtype)
            out = np.empty_like(x)
            kernels.fake_quantize_integer(x, out, scale, zero_point, -128.0, 127.0)
            yield out


def encode_integer(kernels, n):
    for dtype in (np.float32, np.float64):
        for channels in (1, 3):
            x = values(n * channels, dtype)
            codes = np.empty(x.size, np.int8)
            scale, zero_point = np.array([0.5, 0.1, 2.0**-1060]), np.array([0, -3, 2**31 - 1], np.int32)
            kernels.encode_integer(x, codes, scale[:channels].copy(), zero_point[:channels].copy(), -8.0, 7.0)
            yield codes


def round_e4m3(kernels, n):
    for dtype in (np.float32, np.float64):
        x = values(n, dtype)
        out = np.empty_like(x)
        kernels.round_e4m3(x, out)
        yield out


def round_e4m3_reference(kernels, n):
    x = values(n, np.float64)
    out = np.empty_like(x)
    kernels.round_e4m3_reference(x, out)
    yield out


def encode_e4m3(kernels, n):
    for dtype in (np.float32, np.float64):
        for channels in (1, 3):
            x = values(n * channels, dtype)
            codes = np.empty(x.size, np.uint8)
            kernels.encode_e4m3(x, codes, np.array([1.0, 0.1, np.inf])[:channels].copy())
            yield codes


def glorot_weights(kernels, n):
    out = np.empty(n)
    kernels.glorot_weights(out, 0.3, 2.0**31 - 1)
    yield out


def leading_bits(kernels, n):
    for dtype, exponents, mantissa in ((np.int32, 256, 23), (np.int64, 2048, 52)):
        for seed in (0, 1):
            floats = f"f{np.dtype(dtype).itemsize}"
            x = random_bits(n, 7, floats) if seed else values(n, floats)
            tables, stats = np.zeros((4, 2 * exponents * 128), np.int32), np.empty(8, np.int64)
            kernels.count_leading_bits(x.view(dtype), tables, stats)
            yield np.flatnonzero(tables)
            yield tables[tables > 0]
            yield stats
            first, last = max(int(stats[6]) >> mantissa, 1), int(stats[7]) >> mantissa
            binades = np.zeros(2 * max(last - first + 1, 0), np.int32)
            counts = np.zeros((binades.size + 1, 128), np.int64)
            yield kernels.drain_leading_bits(tables, exponents, first, last, binades, counts)
            yield binades
            yield counts[:-1]
            assert not tables.any()


def scan_range(kernels, n):
    yield kernels.scan_range(values(n, np.float64).view(np.int64))


def rebuild_histogram(kernels, n):
    histogram = np.empty(256)
    for low, high in ((-3.0, 4.0), (-1.7e308, 1.7e308)):
        kernels.rebuild_histogram(bell(n, 8), low, high, histogram)
        yield histogram.copy()


def integer_squared_error(kernels, n):
    scale = uniform(3, 9) + 2.0**-6
    out = np.empty(3)
    kernels.integer_squared_error(
        *distribution(n), scale, np.array([-128.0, -8.0, 2.0]), np.array([127.0, 7.0, 3.0]), out
    )
    yield out


def e4m3_squared_error(kernels, n):
    out = np.empty(3)
    kernels.e4m3_squared_error(*distribution(n), np.array([1.0, 1e-3, 0.3]), out)
    yield out


def spread_counts(kernels, n):
    low = bell(n, 10)
    width = np.floor(uniform(n, 11) * 4) * 0.1
    bins = np.zeros(max(n, 1))
    kernels.spread_counts(low, low + width, uniform(n, 12), -6.0, 12.5 / bins.size, bins)
    yield bins


def kl_divergences(kernels, n):
    bins = np.floor(uniform(n, 13) * uniform(n, 14) * 20)
    sums = np.empty((4, n + 1))
    kernels.kl_prefix_sums(bins, uniform(n, 15) * 2, sums)
    yield sums
    if n:
        first, stop = (words(2 * 9, 16) % np.uint64(n)).astype(np.int64).reshape(2, 9)
        first, stop = np.minimum(first, stop), np.maximum(first, stop) + 1
        edges = np.concatenate([[0.0], (E4M3_VALUES[:126] + E4M3_VALUES[1:127]) / (2 * E4M3_MAX), [1.0]])
        for edge in (edges, np.arange(17) / 16.0):
            out = np.empty(9)
            kernels.kl_divergence_sweep(bins, sums, edge, first, stop, out)
            yield out


def kl_divergence_symmetric(kernels, n):
    yield kernels.kl_divergence_symmetric(uniform(n, 17), uniform(n + 3, 18) * 2)


def kl_reference_sweep(kernels, n):
    p = np.floor(uniform(min(n, 70), 19) * 5)
    for levels in (4, 256):
        yield kernels.kl_reference_sweep(p, levels, np.empty(p.size), np.empty(levels), np.empty(levels, np.int64))


def multiply_int16(kernels, n):
    for rows, columns in ((1, 1), (2, 3), (5, 2)) if n > 70 else ((1, 66), (3, 4), (4, 3)):
        codes = words((rows + columns) * n, 20).view(np.int8)[: (rows + columns) * n].astype(np.int16)
        a, b = codes[: rows * n].reshape(rows, n), codes[rows * n :].reshape(columns, n)
        out = np.empty((rows, columns), np.int64)
        kernels.multiply_int16(a, b, out)
        assert np.array_equal(out, a.astype(np.int64) @ b.T.astype(np.int64))
        yield out


CASES = [
    fake_quantize_integer,
    encode_integer,
    round_e4m3,
    round_e4m3_reference,
    encode_e4m3,
    glorot_weights,
    leading_bits,
    scan_range,
    rebuild_histogram,
    integer_squared_error,
    e4m3_squared_error,
    spread_counts,
    kl_divergences,
    kl_divergence_symmetric,
    kl_reference_sweep,
    multiply_int16,
]


@pytest.mark.parametrize("case", CASES)
def test_kernel_is_the_same_on_every_level(case):
    builds = [_dispatch.load_kernels(level) for level in LEVELS]
    for n in SIZES:
        first, *others = ([np.asarray(result) for result in case(kernels, n)] for kernels in builds)
        for level, other in zip(LEVELS[1:], others, strict=True):
            for expected, actual in zip(first, other, strict=True):
                assert actual.tobytes() == expected.tobytes(), (level, n)


class Recorder:
    """A build of the kernels that notes which of them are used."""

    def __init__(self):
        self.used = {"probe_cpu"}  # not a loop

    def __getattr__(self, name):
        self.used.add(name)
        return getattr(_dispatch.kernels, name)


def test_no_kernel_was_forgotten():
    recorder = Recorder()
    for case in CASES:
        list(case(recorder, 8))
    assert recorder.used == {name for name in vars(_dispatch.kernels) if name[0] != "_"}


# --- choosing a level and a number of threads ------------------------------------------------------------


def test_the_highest_level_is_the_default():
    assert _dispatch.choose_level(None, LEVELS) == LEVELS[-1]
    assert _dispatch.choose_level("", LEVELS) == LEVELS[-1]


@pytest.mark.parametrize("level", LEVELS)
def test_a_level_can_be_chosen(level):
    result = run("-c", "import qatcore; print(qatcore.cpu_level())", QATCORE_CPU=level)
    assert (result.stdout, result.stderr) == (f"{level}\n", "")


def test_a_level_that_this_machine_lacks_is_refused():
    message = r"^QATCORE_CPU: expected one of v2, v3 on this machine, got 'v4'$"
    with pytest.raises(InvalidArgumentError, match=message):
        _dispatch.choose_level("v4", ["v2", "v3"])


def test_an_unknown_level_fails_the_import():
    result = run("-c", "import qatcore", QATCORE_CPU="v9")
    assert result.returncode == 1
    expected = f"QATCORE_CPU: expected one of {', '.join(LEVELS)} on this machine, got 'v9'"
    assert result.stderr.splitlines()[-1] == f"qatcore.errors.InvalidArgumentError: {expected}"


def test_the_probe_agrees_with_the_operating_system():
    """On Linux the kernel lists the features that the CPU has and the system lets programs use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        pytest.skip("no /proc/cpuinfo")
    flags = next((set(line.split()) for line in lines if line.startswith("flags")), None)
    if flags is None or _dispatch._kernels.probe_cpu() == 0:
        pytest.skip("another architecture")
    v3 = {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"}
    v4 = v3 | {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"}
    assert _dispatch._kernels.probe_cpu() == (4 if v4 <= flags else 3 if v3 <= flags else 2)


def test_show_config(capsys):
    qatcore.show_config()
    rows = dict(line.split(":", 1) for line in capsys.readouterr().out.splitlines())
    rows = {name: value.strip() for name, value in rows.items()}
    assert rows["qatcore"] == qatcore.__version__
    assert rows["numpy"] == np.__version__
    assert rows["CPU level"] == f"{qatcore.cpu_level()} (this machine can run: {', '.join(LEVELS)})"
    assert rows["threads"] == str(qatcore.get_num_threads())


@pytest.mark.parametrize("setting", ["0", "-1", "two", "1.5", " "])
def test_an_impossible_number_of_threads_is_refused(monkeypatch, setting):
    monkeypatch.setenv("QATCORE_NUM_THREADS", setting)
    with pytest.raises(InvalidArgumentError, match=r"^QATCORE_NUM_THREADS: expected a positive integer, got "):
        _threads._initial_threads()


def test_the_number_of_threads_is_read_at_import():
    program = "import qatcore; print(qatcore.get_num_threads())"
    assert run("-c", program, QATCORE_NUM_THREADS="7").stdout == "7\n"
    assert run("-c", program).stdout == f"{len(os.sched_getaffinity(0))}\n"
    refused = run("-c", program, QATCORE_NUM_THREADS="none")
    assert refused.returncode == 1
    assert "InvalidArgumentError: QATCORE_NUM_THREADS" in refused.stderr
