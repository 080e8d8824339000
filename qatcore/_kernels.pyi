# The kernels take arrays of exactly these types.  They must be contiguous, except `x` of `gather_values` and
# `tabulate_channels`, and `b` of `pack_int8`.
#
# `_kernels_v3` and `_kernels_v4` are the same source for other CPU levels, and the GEMM modules have only `multiply`
# and `multiply_scaled`.  The package imports them by name, so they have no stubs of their own.

from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

def probe_cpu() -> int: ...
def probe_gemm() -> list[str]: ...
def request_amx() -> bool: ...

# --- elementwise

@overload
def fake_quantize_integer(
    x: NDArray[np.float32],
    out: NDArray[np.float32],
    scale: float,
    zero_point: int,
    low: float,
    high: float,
) -> None: ...
@overload
def fake_quantize_integer(
    x: NDArray[np.float64],
    out: NDArray[np.float64],
    scale: float,
    zero_point: int,
    low: float,
    high: float,
) -> None: ...
def encode_integer(
    x: NDArray[np.float32] | NDArray[np.float64],
    codes: NDArray[np.int8],
    scale: NDArray[np.float64],
    zero_point: NDArray[np.int32],
    low: float,
    high: float,
) -> None: ...
@overload
def round_e4m3(x: NDArray[np.float32], out: NDArray[np.float32]) -> None: ...
@overload
def round_e4m3(x: NDArray[np.float64], out: NDArray[np.float64]) -> None: ...
def round_e4m3_reference(x: NDArray[np.float64], out: NDArray[np.float64]) -> None: ...
def encode_e4m3(
    x: NDArray[np.float32] | NDArray[np.float64],
    codes: NDArray[np.uint8],
    scale: NDArray[np.float64],
) -> None: ...

# --- elementwise, by ONNX's rounding; codes of fewer than 8 bits take a byte each

def quantize_integer(
    x: NDArray[np.float32] | NDArray[np.float64],
    codes: NDArray[np.uint8] | NDArray[np.uint16],
    scale: NDArray[np.float32] | NDArray[np.float64],
    zero_point: NDArray[np.int32],
    inner: int,
    pattern: int,
    repeats: int,
    least: int,
    greatest: int,
    start: int,
    stop: int,
) -> None: ...
def quantize_dequantize_integer(
    x: NDArray[np.float32] | NDArray[np.float64],
    out: NDArray[np.float32] | NDArray[np.float64],
    scale: NDArray[np.float32] | NDArray[np.float64],
    zero_point: NDArray[np.int32],
    inner: int,
    pattern: int,
    repeats: int,
    least: int,
    greatest: int,
    start: int,
    stop: int,
) -> None: ...
def dequantize_integer(
    codes: NDArray[np.uint8] | NDArray[np.uint16],
    out: NDArray[np.float32] | NDArray[np.float64],
    scale: NDArray[np.float32] | NDArray[np.float64],
    zero_point: NDArray[np.int32],
    inner: int,
    pattern: int,
    repeats: int,
    least: int,
    greatest: int,
    start: int,
    stop: int,
) -> None: ...
def fake_quantize_masked(
    x: NDArray[np.float32] | NDArray[np.float64],
    out: NDArray[np.float32] | NDArray[np.float64],
    passes: NDArray[np.uint8],
    scale: NDArray[np.float32] | NDArray[np.float64],
    zero_point: NDArray[np.int32],
    inner: int,
    pattern: int,
    repeats: int,
    least: float,
    greatest: float,
    format: NDArray[np.int32],
    start: int,
    stop: int,
) -> None: ...
def fake_quantize_gradients(
    grad: NDArray[np.float32] | NDArray[np.float64],
    x: NDArray[np.float32] | NDArray[np.float64],
    grad_x: NDArray[np.float32] | NDArray[np.float64],
    scale: NDArray[np.float32] | NDArray[np.float64],
    zero_point: NDArray[np.int32],
    inner: int,
    pattern: int,
    repeats: int,
    least: float,
    greatest: float,
    format: NDArray[np.int32],
    half_away: bool,
    sums: NDArray[np.float64],
    start: int,
    stop: int,
) -> None: ...
def quantize_float(
    x: NDArray[np.float32] | NDArray[np.float64],
    codes: NDArray[np.uint8],
    scale: NDArray[np.float32] | NDArray[np.float64],
    inner: int,
    pattern: int,
    repeats: int,
    format: NDArray[np.int32],
    start: int,
    stop: int,
) -> None: ...
def quantize_dequantize_float(
    x: NDArray[np.float32] | NDArray[np.float64],
    out: NDArray[np.float32] | NDArray[np.float64],
    scale: NDArray[np.float32] | NDArray[np.float64],
    inner: int,
    pattern: int,
    repeats: int,
    format: NDArray[np.int32],
    start: int,
    stop: int,
) -> None: ...
def dequantize_float(
    codes: NDArray[np.uint8],
    out: NDArray[np.float32] | NDArray[np.float64],
    scale: NDArray[np.float32] | NDArray[np.float64],
    inner: int,
    pattern: int,
    repeats: int,
    format: NDArray[np.int32],
    start: int,
    stop: int,
) -> None: ...

# --- blocks

def greatest_magnitudes(
    x: NDArray[np.int32] | NDArray[np.int64],
    out: NDArray[np.int32] | NDArray[np.int64],
    size: int,
    inner: int,
    start: int,
    stop: int,
) -> None: ...
def pack_codes(codes: NDArray[np.uint8], packed: NDArray[np.uint8], width: int, start: int, stop: int) -> None: ...
def unpack_codes(packed: NDArray[np.uint8], codes: NDArray[np.uint8], width: int, start: int, stop: int) -> None: ...

# --- weights

def glorot_weights(out: NDArray[np.float64], limit: float, largest: float) -> None: ...

# --- histograms

def count_leading_bits(
    x: NDArray[np.int32] | NDArray[np.int64], tables: NDArray[np.int32], stats: NDArray[np.int64]
) -> None: ...
def drain_leading_bits(
    tables: NDArray[np.int32],
    exponents: int,
    first: int,
    last: int,
    binades: NDArray[np.int32],
    counts: NDArray[np.int64],
) -> tuple[int, int]: ...
def gather_values(
    x: NDArray[np.float32] | NDArray[np.float64], values: NDArray[np.float64], stats: NDArray[np.int64], first: int
) -> None: ...
def add_channels(
    target: Any,
    source: Any,
    first: int,
    limit: int,
    pending: int,
    largest: int,
    tables: NDArray[np.int32],
    found: NDArray[np.int32],
) -> tuple[int, int, int] | int | None: ...
def measure_channels(accumulator: Any, with_room: bool) -> tuple[int, int, int]: ...
def copy_channels(accumulator: Any, own_arrays: Any, arrays: Any, replace: bool) -> bool: ...
def tabulate_channels(
    x: NDArray[np.int32] | NDArray[np.int64],
    buffer: NDArray[np.int32] | NDArray[np.int64],
    tables: NDArray[np.int32],
    stats: NDArray[np.int64],
    owners: NDArray[np.int64],
    owned: NDArray[np.int32],
    counts: NDArray[np.int64],
    used: NDArray[np.int64],
    incomplete: NDArray[np.uint8],
    row_tables: NDArray[np.int32],
) -> None: ...
def scan_range(x: NDArray[np.float64]) -> tuple[float, float, int]: ...
def rebuild_histogram(
    samples: NDArray[np.float64], low: float, high: float, histogram: NDArray[np.float64]
) -> None: ...

# --- thresholds

def integer_squared_error(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    density: NDArray[np.float64],
    interval_start: NDArray[np.int64],
    points: NDArray[np.float64],
    counts: NDArray[np.float64],
    point_start: NDArray[np.int64],
    scale: NDArray[np.float64],
    first: NDArray[np.float64],
    last: NDArray[np.float64],
    out: NDArray[np.float64],
    begin: int,
    stop: int,
) -> None: ...
def e4m3_squared_error(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    density: NDArray[np.float64],
    interval_start: NDArray[np.int64],
    points: NDArray[np.float64],
    counts: NDArray[np.float64],
    point_start: NDArray[np.int64],
    scale: NDArray[np.float64],
    out: NDArray[np.float64],
    begin: int,
    stop: int,
) -> None: ...
def moments(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    mass: NDArray[np.float64],
    interval_start: NDArray[np.int64],
    points: NDArray[np.float64],
    counts: NDArray[np.float64],
    point_start: NDArray[np.int64],
    centre: NDArray[np.float64],
    out: NDArray[np.float64],
) -> None: ...
def natural_logs(x: NDArray[np.float64], out: NDArray[np.float64]) -> None: ...
def spread_counts(
    low: NDArray[np.float64],
    high: NDArray[np.float64],
    mass: NDArray[np.float64],
    origin: float,
    width: float,
    bins: NDArray[np.float64],
) -> None: ...
def kl_prefix_sums(bins: NDArray[np.float64], cells: NDArray[np.float64], sums: NDArray[np.float64]) -> None: ...
def kl_divergence_sweep(
    bins: NDArray[np.float64],
    sums: NDArray[np.float64],
    edges: NDArray[np.float64],
    first: NDArray[np.int64],
    stop: NDArray[np.int64],
    out: NDArray[np.float64],
) -> None: ...
def kl_divergence_symmetric(p: NDArray[np.float64], q: NDArray[np.float64]) -> float: ...
def kl_reference_sweep(
    p: NDArray[np.float64],
    levels: int,
    q: NDArray[np.float64],
    mass: NDArray[np.float64],
    bin_count: NDArray[np.int64],
) -> int: ...

# --- weights

def least_error_scales(
    rows: NDArray[np.float32],
    fractions: NDArray[np.float64],
    refinements: int,
    fits: int,
    greatest: float,
    is_float: bool,
    scale: NDArray[np.float64],
) -> None: ...
def round_keeping_sums(
    rows: NDArray[np.float32],
    scale: NDArray[np.float64],
    greatest: float,
    codes: NDArray[np.int8],
    powers: NDArray[np.float64],
    keys: NDArray[np.float64],
) -> None: ...

# --- matrix product

def pack_int8(b: NDArray[np.int8], packed: NDArray[np.uint8], first: int, stop: int) -> None: ...
def multiply(a: NDArray[np.int8], packed: NDArray[np.uint8], out: NDArray[np.int64], first: int, stop: int) -> None: ...
def multiply_scaled(
    a: NDArray[np.int8] | NDArray[np.float32] | NDArray[np.float64],
    packed: NDArray[np.uint8],
    columns: NDArray[np.float64],
    row_terms: bool,
    out: NDArray[np.float32] | NDArray[np.float64],
    scale: float,
    zero_point: float,
    low: float,
    high: float,
    first: int,
    stop: int,
) -> None: ...
