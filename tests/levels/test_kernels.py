"""Every kernel, around the widths of vectors and blocks: the same bits from every build of it."""

import functools
import importlib
import itertools

import numpy as np
import pytest
import values

from qatcore._base import dispatch
from qatcore._base.formats import CODE_FORMATS, E4M3_MAX, E4M3_VALUES
from qatcore._calibration.accumulator import Accumulator, Arrays

LEVELS = dispatch.available_levels()
SIZES = [*range(71), 4095, 4096, 4097]


def made_once(make):
    """Keep what a function of the digest makes: every build is given the same data, which no kernel may change."""

    @functools.cache
    def kept(*arguments):
        made = make(*arguments)
        made.flags.writeable = False
        return made

    return kept


adversarial, bell, random_bits, uniform, words = map(
    made_once, (values.adversarial, values.bell, values.random_bits, values.uniform, values.words)
)


@made_once
def values(n, dtype):
    """Every other value is odd: extremes and what is not finite first, then ties and their neighbours."""
    x = ((uniform(n, 1) - 0.5) * 300).astype(dtype)
    odd = adversarial(dtype)[::-1][: n // 2]
    x[1 : 2 * odd.size : 2] = odd
    return x


def distributions(n):
    """Two of them, each a multiple of 8 intervals and points, as the kernels sum; the first has a third of all."""
    n = n // 8 * 8
    low = np.sort(bell(n, 2))
    start = np.array([0, n // 24 * 8, n])
    return low, low + uniform(n, 3), uniform(n, 4), start, np.sort(bell(n, 5)), np.floor(uniform(n, 6) * 9), start


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
        tables = np.zeros((4, 2 * exponents * 128), np.int32)
        for seed in (0, 1):
            floats = f"f{np.dtype(dtype).itemsize}"
            x = random_bits(n, 7, floats) if seed else values(n, floats)
            stats = np.empty(10, np.int64)
            kernels.count_leading_bits(x.view(dtype), tables, stats)
            filled = np.flatnonzero(tables)
            yield filled
            yield tables.ravel()[filled]
            yield stats
            first, last = max(int(stats[6]) >> mantissa, 1), int(stats[7]) >> mantissa
            binades = np.zeros(2 * max(last - first + 1, 0), np.int32)
            counts = np.zeros((binades.size + 1, 128), np.int64)
            yield kernels.drain_leading_bits(tables, exponents, first, last, binades, counts)
            yield binades
            yield counts[:-1]
            assert not tables.any()


def scan_range(kernels, n):
    yield kernels.scan_range(values(n, np.float64))
    yield kernels.scan_range(bell(n, 26))


def rebuild_histogram(kernels, n):
    histogram = np.empty(256)
    for low, high in ((-3.0, 4.0), (-1.7e308, 1.7e308)):
        kernels.rebuild_histogram(bell(n, 8), low, high, histogram)
        yield histogram.copy()


def integer_squared_error(kernels, n):
    scale = uniform(6, 9).reshape(2, 3) + 2.0**-6
    first, last = np.tile([-128.0, -8.0, 2.0], (2, 1)), np.tile([127.0, 7.0, 3.0], (2, 1))
    for begin, stop in ((0, 6), (2, 4)):
        out = np.zeros((2, 3))
        kernels.integer_squared_error(*distributions(n), scale, first, last, out, begin, stop)
        assert (np.delete(out, slice(begin, stop)) == 0.0).all()
        yield out


def e4m3_squared_error(kernels, n):
    for begin, stop in ((0, 6), (2, 4)):
        out = np.zeros((2, 3))
        kernels.e4m3_squared_error(*distributions(n), np.tile([1.0, 1e-3, 0.3], (2, 1)), out, begin, stop)
        assert (np.delete(out, slice(begin, stop)) == 0.0).all()
        yield out


def moments(kernels, n):
    out = np.zeros((2, 2))
    kernels.moments(*distributions(n), np.array([0.0, 0.7]), out)
    yield out


def tabulated(kernels, n):
    """Two runs of channels, side by side and each in one piece."""
    for (integer, binades), (outer, inner) in itertools.product(
        ((np.int32, 512), (np.int64, 4096)), ((n, 1), (1, n)) if n else ()
    ):
        floats = f"f{np.dtype(integer).itemsize}"
        runs = [values(n, floats), random_bits(n, 7, floats)]
        buffer = np.zeros((3, n + 5), integer)
        tables = np.zeros((4, binades * 128), np.int32)
        stats = np.zeros((3, 10), np.int64)
        stats[:, :2] = np.iinfo(np.int64).max, np.iinfo(np.int64).min
        owners, owned = np.zeros(3 * binades, np.int64), np.full((3, binades), -1, np.int32)
        counts, used = np.zeros((3 * binades, 128), np.int64), np.zeros(1, np.int64)
        incomplete, row_tables = np.zeros(3, np.uint8), np.full((2, 4096), -1, np.int32)
        for run in runs:
            x = np.stack([run, run[::-1], np.full_like(run, 2.5)]).reshape(3, outer, inner).swapaxes(0, 1)
            kernels.tabulate_channels(
                x.view(integer), buffer, tables, stats, owners, owned, counts, used, incomplete, row_tables
            )
            assert not tables.any()
            assert (row_tables[0] == -1).all()
            yield from (stats.copy(), owners.copy(), owned.copy(), counts[: used[0]].copy(), incomplete.copy())
        if not incomplete.any():
            assert counts.sum() == stats[:, 8].sum()


def natural_logs(kernels, n):
    out = np.zeros(n)
    kernels.natural_logs(uniform(n, 50) * 2.0 ** (words(n, 51) % np.uint64(100)) + 2.0**-1022, out)
    yield out


def used_of(arrays):
    """What there is in the arrays of an accumulator: room is left as it happened to be."""
    rows, places, _ = arrays.used
    yield from (arrays.stats.copy(), arrays.values[:places].copy(), arrays.owners[:rows].copy())
    yield from (arrays.owned.copy(), arrays.counts[:rows].copy(), arrays.used.copy())


def accumulators(kernels, n):
    """Channels gathered, and added to others that keep the values, or count them once there are more than n."""
    tables, found = np.full((2, 4096), -1, np.int32), np.zeros(1 << 19, np.int32)
    for dtype, (outer, inner) in itertools.product((np.float32, np.float64), ((n, 1), (1, n), (2, n // 2))):
        batch = np.stack([values(outer * inner, dtype)] * 20).reshape(20, outer, inner).swapaxes(0, 1)
        kept, stats = np.zeros((20, outer * inner + 3)), np.zeros((20, 13), np.int64)
        kernels.gather_values(batch, kept, stats, 0)
        yield from (kept, stats)
        for limit, pending in ((n, 0), (n, 2 * n), (10 * n, 0)):
            gathered, total = Accumulator.of_values(kept, stats), Accumulator(20)
            for turn in range(4):
                # At last what it holds itself: rows to rows, or values to values.
                other = gathered if turn < 3 else Accumulator.of_arrays(Arrays(*(a.copy() for a in total.arrays)))
                before = [a.copy() for a in total.arrays]
                while needed := kernels.add_channels(total, other, 0, limit, pending, 2**52, tables, found):
                    assert all(np.array_equal(*pair) for pair in zip(before, total.arrays, strict=True))
                    assert (tables[0] == -1).all()
                    moved = Arrays.empty(20, *needed)
                    assert kernels.copy_channels(total, total.arrays, moved, True)
                    assert total.arrays is moved
                    before = [a.copy() for a in moved]
                    moved.values[moved.used[1] :] = 0.0
                assert needed is None
                assert (tables[0] == -1).all()
                assert not found.any()
                counted = total.arrays.counts[: total.n_rows].sum()
                assert counted + total.stats[:, 10].sum() == total.stats[:, 8].sum()
                assert (total.stats[:, 10] <= np.where(total.stats[:, 8] <= limit, limit, pending)).all()
                assert (total.stats[total.stats[:, 8] <= limit, 9] == 0).all()
                yield from used_of(total.arrays)
                for with_room in (False, True):
                    size = kernels.measure_channels(total, with_room)
                    yield size
                    copy = Arrays.empty(20, *size)
                    copy.values[:] = 0.0
                    assert kernels.copy_channels(total, total.arrays, copy, with_room)
                    yield from used_of(copy)
                    total.arrays = copy
                    too_small = [max(s - 1, 0) for s in size]
                    for small in (
                        (too_small[0], *size[1:]),
                        (size[0], too_small[1], size[2]),
                        (*size[:2], too_small[2]),
                    ):
                        if small != size:
                            assert not kernels.copy_channels(total, copy, Arrays.empty(20, *small), True)
                            assert total.arrays is copy
            too_many = int(total.stats[:, 2:9].max(initial=0))
            expected = -1 if stats[:, 2:9].any() else None
            assert kernels.add_channels(total, gathered, 0, limit, pending, too_many, tables, found) == expected
            pieced = Accumulator(20)
            for first, stop in ((7, 20), (0, 7)):
                piece = Accumulator.of_values(kept, stats[first:stop])
                while needed := kernels.add_channels(pieced, piece, first, limit, pending, 2**52, tables, found):
                    pieced.make_room(*needed)
                assert needed is None
            assert np.array_equal(pieced.stats[:, :9], stats[:, :9])
            yield from (pieced.stats, pieced.arrays.counts[: pieced.n_rows].copy())


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


def pack_int8(kernels, n):
    for k in (1, 5, 64, 67):
        codes = words(n * k, 20).view(np.int8)[: n * k]
        for b in (codes.reshape(k, n), codes.reshape(n, k).T)[: 2 if n else 0]:
            packed = np.empty((-(-n // 16), -(-k // 64), 1024), np.uint8)
            kernels.pack_int8(b, packed, 0, packed.shape[0])
            # panel, segment, quad, column, row of the quad
            rows = (packed.reshape(-1, packed.shape[1], 16, 16, 4) ^ 128).view(np.int8)
            rows = rows.transpose(1, 2, 4, 0, 3).reshape(packed.shape[1] * 64, -1)
            assert np.array_equal(rows[:k, :n], b)
            assert not rows[k:].any()
            assert not rows[:, n:].any()
            yield packed


def operands(n):
    """Sizes around the register tiles: n is the number of rows, of columns, or the inner dimension."""
    for m, k, columns in ((n, 5, 19), (7, n, 33), (3, 66, n)):
        if m * k * columns:
            a = words(m * k, 21).view(np.int8)[: m * k].reshape(m, k)
            b = words(k * columns, 22).view(np.int8)[: k * columns].reshape(k, columns)
            packed = np.empty((-(-columns // 16), -(-k // 64), 1024), np.uint8)
            dispatch._kernels.pack_int8(b, packed, 0, packed.shape[0])
            yield a, b, packed


def multiply(kernels, n):
    for a, b, packed in operands(n):
        out = np.full((a.shape[0], b.shape[1]), 2**62)
        kernels.multiply(a, packed, out, 0, out.shape[1])
        assert np.array_equal(out, a.astype(np.int64) @ b.astype(np.int64))
        yield out


def multiply_scaled(kernels, n):
    for a, b, packed in operands(n):
        offsets = [np.floor(uniform(b.shape[1], seed) * 1000) for seed in (23, 24)]
        columns = np.stack([*offsets, *[bell(b.shape[1], 25)] * 2])
        for rows in (a, *(values(a.size, dtype).reshape(a.shape) for dtype in (np.float32, np.float64))):
            for dtype in (np.float32, np.float64):
                for row_terms in (False, True):
                    out = np.full((a.shape[0], b.shape[1]), np.nan, dtype)
                    kernels.multiply_scaled(
                        rows, packed, columns, row_terms, out, 0.3, -7.0, -128.0, 127.0, 0, out.shape[1]
                    )
                    yield out


def affine(n, dtype):
    """Scales, int8 zero points, how they lie, and where to start and stop."""
    info = np.finfo(dtype)
    scale = np.array([0.5, 0.1, info.smallest_subnormal * 3, info.max / 2, 7.3, 1e-3], info.dtype)
    zero_point = np.array([0, -3, 5, -128, 127, 1], np.int32)
    patterns = [(np.tile(scale, repeats), np.tile(zero_point, repeats), 1, 6 * repeats, 1) for repeats in (1, 11)]
    blocks = [(scale, zero_point, 1, pattern, repeats) for pattern, repeats in ((2, 3), (3, 1), (3, 70))]
    runs = [(scale, zero_point, inner, 1, 1) for inner in (3, 32, 1500)]
    whole = [(scale[1:2].copy(), zero_point[1:2].copy(), max(n, 2), 1, 1)]
    for parameters in (*patterns, *blocks, *runs, *whole):
        for start, stop in ((0, n), (n // 3, n - n // 5)):
            yield *parameters, start, stop


INTEGERS = [code_format for code_format in CODE_FORMATS if code_format.parameters is None]
MINIFLOATS = [code_format for code_format in CODE_FORMATS if code_format.parameters is not None]
CODES_OF = {8: INTEGERS[4:6], 16: INTEGERS[6:], 4: INTEGERS[2:4]}


def untouched(out, start, stop):
    assert (np.delete(out, slice(start, stop)) == 77).all()
    return out


def quantize_integer(kernels, n):
    for dtype, width in ((np.float32, 8), (np.float64, 8), (np.float32, 16), (np.float64, 4)):
        x = values(n, dtype)
        for scale, zero_point, *layout, start, stop in affine(n, dtype):
            for code_format in CODES_OF[width]:
                least, greatest = code_format.least, code_format.greatest
                codes = np.full(n, 77, code_format.storage)
                z = np.clip(zero_point, least, greatest)
                kernels.quantize_integer(x, codes, scale, z, *layout, least, greatest, start, stop)
                yield untouched(codes, start, stop)


def quantize_dequantize_integer(kernels, n):
    for dtype in (np.float32, np.float64):
        x = values(n, dtype)
        for scale, zero_point, *layout, start, stop in affine(n, dtype):
            for code_format in CODES_OF[8]:
                least, greatest = code_format.least, code_format.greatest
                out = np.full(n, 77, dtype)
                z = zero_point + (least + 128)
                kernels.quantize_dequantize_integer(x, out, scale, z, *layout, least, greatest, start, stop)
                yield untouched(out, start, stop)


def dequantize_integer(kernels, n):
    for dtype, width in ((np.float32, 8), (np.float64, 8), (np.float32, 16), (np.float64, 4)):
        for scale, zero_point, *layout, start, stop in affine(n, dtype):
            for code_format in CODES_OF[width]:
                codes = words(n, 27).view(code_format.storage)[:n]
                out = np.full(n, 77, dtype)
                least, greatest = code_format.least, code_format.greatest
                kernels.dequantize_integer(codes, out, scale, zero_point, *layout, least, greatest, start, stop)
                yield untouched(out, start, stop)


def quantize_float(kernels, n):
    for dtype, code_format in itertools.product((np.float32, np.float64), MINIFLOATS):
        x = values(n, dtype)
        for scale, _, *layout, start, stop in affine(n, dtype):
            codes = np.full(n, 77, np.uint8)
            kernels.quantize_float(x, codes, scale, *layout, code_format.parameters, start, stop)
            yield untouched(codes, start, stop)


def quantize_dequantize_float(kernels, n):
    for dtype, code_format in itertools.product((np.float32, np.float64), MINIFLOATS):
        x = values(n, dtype)
        for scale, _, *layout, start, stop in affine(n, dtype):
            out = np.full(n, 77, dtype)
            kernels.quantize_dequantize_float(x, out, scale, *layout, code_format.parameters, start, stop)
            yield untouched(out, start, stop)


def gradients(kernels, n):
    """Masks, which go with the values of the kernels without, and gradients."""
    for dtype, code_format in itertools.product((np.float32, np.float64), [*CODES_OF[8], MINIFLOATS[0]]):
        x, grad = values(n, dtype), bell(n, 29).astype(dtype)
        integer = code_format.parameters is None
        parameters = np.empty(0, np.int32) if integer else code_format.parameters
        for scale, zero_point, *layout, start, stop in affine(n, dtype):
            z = zero_point + (code_format.least + 128) if integer else np.zeros_like(zero_point)
            format_, ends = (*code_format.ends, parameters), (start, stop)
            out, expected = np.full((2, n), 77, dtype)
            mask = np.full(n, 77, np.uint8)
            kernels.fake_quantize_masked(x, out, mask, scale, z, *layout, *format_, *ends)
            if integer:
                limits = code_format.least, code_format.greatest
                kernels.quantize_dequantize_integer(x, expected, scale, z, *layout, *limits, *ends)
            else:
                kernels.quantize_dequantize_float(x, expected, scale, *layout, parameters, *ends)
            assert out.tobytes() == expected.tobytes()
            yield untouched(mask, start, stop)
            for half_away in (False, True):
                grad_x, sums = np.full(n, 77, dtype), np.zeros((2, scale.size))
                kernels.fake_quantize_gradients(grad, x, grad_x, scale, z, *layout, *format_, half_away, sums, *ends)
                if not half_away:
                    assert np.array_equal(grad_x[start:stop], grad[start:stop] * mask[start:stop])
                yield from (untouched(grad_x, start, stop), sums)


def dequantize_float(kernels, n):
    codes = words(n, 28).view(np.uint8)[:n]
    for dtype, code_format in itertools.product((np.float32, np.float64), MINIFLOATS):
        for scale, _, *layout, start, stop in affine(n, dtype):
            out = np.full(n, 77, dtype)
            kernels.dequantize_float(codes, out, scale, *layout, code_format.parameters, start, stop)
            yield untouched(out, start, stop)


def greatest_magnitudes(kernels, n):
    for dtype in (np.int32, np.int64):
        x = words(n, 29).view(dtype)[:n]
        for size, inner in ((32, 1), (5, 1), (4, 3), (2, 70), (1, 1)):
            rows = n // (size * inner)
            out = np.full(rows * inner + 1, 77, dtype)
            for start, stop in ((0, rows // 2), (rows // 2, rows)):
                if start < stop:
                    kernels.greatest_magnitudes(x, out, size, inner, start, stop)
            assert out[-1] == 77
            magnitudes = x[: rows * size * inner].reshape(rows, size, inner) & np.iinfo(dtype).max
            assert np.array_equal(out[:-1].reshape(rows, inner), magnitudes.max(axis=1, initial=0))
            yield out


def pack_codes(kernels, n):
    for width in (4, 2):
        size = n // (8 // width)
        codes, packed = words(n, 30).view(np.uint8)[: size * (8 // width)], np.full(size + 1, 77, np.uint8)
        if size:
            kernels.pack_codes(codes, packed, width, 0, size)
        assert packed[-1] == 77
        yield packed


def unpack_codes(kernels, n):
    packed = words(n, 31).view(np.uint8)[:n]
    for width in (4, 2):
        codes = np.full(n * (8 // width) + 1, 77, np.uint8)
        if n:
            kernels.unpack_codes(packed, codes, width, 0, n)
        assert codes[-1] == 77
        yield codes


def weight_rows(n):
    """Rows of n weights, padded with zeros, among them zeros, outliers and ties."""
    padded = np.zeros((4, -(-n // 16) * 16), np.float32)
    padded[:, :n] = np.stack([bell(n, 52), uniform(n, 53) ** 9, np.rint(bell(n, 54) * 9) / 2, np.zeros(n)])
    return padded


def least_error_scales(kernels, n):
    fractions = np.arange(1.0, 17.0) / 16.0
    for greatest, is_float in ((127.0, False), (7.0, False), (448.0, True)) if n else ():
        scale = np.full(4, 77.0)
        kernels.least_error_scales(weight_rows(n), fractions, 2, 2, greatest, is_float, scale)
        yield scale


def round_keeping_sums(kernels, n):
    for greatest in (127.0, 7.0) if n else ():
        rows, scale = weight_rows(n), np.array([0.02, 0.3, 1.0, 0.1])
        codes, powers = np.full(rows.shape, 77, np.int8), np.full((4, 2), 77.0)
        kernels.round_keeping_sums(rows, scale, greatest, codes, powers, np.empty(rows.shape[1]))
        yield codes
        yield powers


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
    accumulators,
    tabulated,
    integer_squared_error,
    e4m3_squared_error,
    moments,
    natural_logs,
    spread_counts,
    kl_divergences,
    kl_divergence_symmetric,
    kl_reference_sweep,
    least_error_scales,
    round_keeping_sums,
    pack_int8,
    multiply,
    multiply_scaled,
    quantize_integer,
    quantize_dequantize_integer,
    dequantize_integer,
    quantize_float,
    quantize_dequantize_float,
    dequantize_float,
    gradients,
    greatest_magnitudes,
    pack_codes,
    unpack_codes,
]
PRODUCTS = [multiply, multiply_scaled]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_kernel_is_the_same_in_every_build(case):
    builds = {level: dispatch.load_kernels(level) for level in LEVELS}
    if case in PRODUCTS:
        builds |= {name: importlib.import_module(f"qatcore._gemm_{name}") for name in dispatch.available_gemms()}
    for n in SIZES:
        # One result of all builds at a time: together they are gigabytes.
        for results in zip(*(case(kernels, n) for kernels in builds.values()), strict=True):
            expected, *others = (np.asarray(result).tobytes() for result in results)
            for name, actual in zip(list(builds)[1:], others, strict=True):
                assert actual == expected, (name, n)


class Recorder:
    """A build of the kernels that notes which of them are used."""

    def __init__(self):
        self.used = {"probe_cpu", "probe_gemm", "request_amx"}  # not loops

    def __getattr__(self, name):
        self.used.add(name)
        return getattr(dispatch.kernels, name)


def test_no_kernel_was_forgotten():
    recorder = Recorder()
    for case in CASES:
        list(case(recorder, 8))
    assert recorder.used == {name for name in vars(dispatch.kernels) if name[0] != "_"}
    for name in dispatch.available_gemms():
        module = importlib.import_module(f"qatcore._gemm_{name}")
        assert {name for name in vars(module) if name[0] != "_"} == {case.__name__ for case in PRODUCTS}
