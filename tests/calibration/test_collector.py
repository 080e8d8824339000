"""The collector holds a function of the multiset of values, and what it answers is right."""

import itertools
import pickle
import threading

import ml_dtypes
import numpy as np
import pytest
from golden import assert_same_bits
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import qatcore
from qatcore import CalibrationCollector, QuantBits
from qatcore._calibration.histogram import EXACT_LIMIT

finite_or_not = st.floats(allow_nan=True, allow_infinity=True, width=32)
arrays = hnp.arrays(np.float32, st.integers(0, 300), elements=finite_or_not)


def observed(*batches):
    collector = CalibrationCollector()
    for batch in batches:
        collector.observe(batch)
    return collector


def answers(collector):
    """Everything a collector can be asked."""
    keywords = ("bits", "symmetric", "include_zero")
    options = [
        dict(zip(keywords, values, strict=True))
        for values in itertools.product(QuantBits, (False, True), (False, True))
    ]
    scales = [
        ask(**option)
        for option in options
        for ask in (
            collector.min_max_scale,
            collector.kl_divergence_scale,
            collector.mse_scale,
            lambda **kw: collector.percentile_scale(99.0, **kw),
        )
    ]
    counts, edges = collector.histogram()
    return scales, counts.tolist(), edges.tolist(), repr(collector)


def large_sample(rng, n=30_000):
    """More values than are kept as they are, over many magnitudes, with everything that is not finite."""
    x = (rng.standard_normal(n) * 2.0 ** rng.integers(-20, 20, n)).astype(np.float32)
    x[rng.integers(0, n, 50)] = rng.choice(np.float32([0.0, -0.0, np.nan, np.inf, -np.inf, 1e-42, -1e-40]), 50)
    return x


# --- one multiset, one state -----------------------------------------------------------------------------


@given(arrays, st.lists(st.integers(0, 300), max_size=6), st.randoms(use_true_random=False))
def test_batches_and_order(x, cuts, random):
    expected = observed(x)
    shuffled = x.tolist()
    random.shuffle(shuffled)
    batches = np.split(np.array(shuffled, np.float32), sorted(cut % (x.size + 1) for cut in cuts))
    assert observed(*batches) == expected
    assert observed(x.astype(np.float64)) == expected
    assert answers(observed(*batches)) == answers(expected)


@given(st.lists(arrays, min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_merge_trees(batches, random):
    expected = observed(np.concatenate(batches))
    collectors = [observed(batch) for batch in batches]
    while len(collectors) > 1:
        left = collectors.pop(random.randrange(len(collectors)))
        other = collectors[random.randrange(len(collectors))]
        before = pickle.dumps(left)
        other.merge(left)
        assert pickle.dumps(left) == before
    assert collectors[0] == expected


@pytest.mark.slow
@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.lists(st.integers(1, 29_999), min_size=1, max_size=10))
def test_large_batches_merges_and_dtypes(seed, cuts):
    """The same across the limit up to which values are kept."""
    rng = np.random.default_rng(seed)
    x = large_sample(rng)
    expected = observed(x)
    batches = np.split(rng.permutation(x), sorted(cuts))
    assert observed(*batches) == expected
    merged = observed()
    for batch in batches:
        merged.merge(observed(batch.astype(np.float64)))
    assert merged == expected
    assert answers(merged) == answers(expected)


@pytest.mark.parametrize("n", [EXACT_LIMIT - 1, EXACT_LIMIT, EXACT_LIMIT + 1])
def test_around_the_limit(n):
    x = np.random.default_rng(n).standard_normal(n)
    collector = observed(x)
    assert (collector._histogram.values.size == n) == (n <= EXACT_LIMIT)
    assert collector == observed(*np.array_split(x[::-1], 7))


def test_threads():
    x = large_sample(np.random.default_rng(4), 400_000)
    collector = CalibrationCollector()
    batches = np.array_split(x, 64)
    threads = [
        threading.Thread(target=lambda part: [collector.observe(b) for b in part], args=(batches[i::8],))
        for i in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector == observed(x)


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.usefixtures("_number_of_threads")
def test_number_of_threads(threads):
    x = large_sample(np.random.default_rng(5), 3_000_000)
    qatcore.set_num_threads(threads)
    collector = observed(x)
    assert collector == observed(*np.array_split(x, 100))


def test_asking_changes_nothing():
    collector = observed(large_sample(np.random.default_rng(6)))
    before = pickle.dumps(collector)
    assert answers(collector) == answers(collector)
    assert pickle.dumps(collector) == before
    assert pickle.loads(before) == collector


def test_self_merge_counts_twice():
    collector = observed([1.0, 2.0])
    collector.merge(collector)
    assert collector == observed([1.0, 2.0, 1.0, 2.0])


# --- what it holds ---------------------------------------------------------------------------------------


def brute_bins(x):
    """Counts by sign, exponent and top 7 mantissa bits, from Python's own view of a float."""
    found = {}
    for value in np.asarray(x, np.float64).tolist():
        if value == 0.0 or not np.isfinite(value):
            continue
        bits = int(np.float64(abs(value)).view(np.uint64)) >> 45
        low, high = (np.array([bits, bits + 1], np.uint64) << np.uint64(45)).view(np.float64).tolist()
        high = min(high, float(np.finfo(np.float64).max))  # where a bin meets infinity
        edges = (low, high) if value > 0 else (-high, -low)
        found[edges] = found.get(edges, 0) + 1
    return sorted((*edges, count) for edges, count in found.items())


def bins_of(collector):
    bins = collector._histogram.bins()
    return list(zip(bins.low.tolist(), bins.high.tolist(), bins.counts.tolist(), strict=True))


@pytest.mark.slow
@given(hnp.arrays(st.sampled_from([np.float32, np.float64, np.float16]), st.integers(0, 200), elements=None))
def test_bins_by_brute_force(x):
    assert bins_of(observed(x)) == brute_bins(x)
    rest = np.ones(EXACT_LIMIT + 1)  # values are no longer kept
    assert bins_of(observed(x, rest)) == brute_bins(np.concatenate([x, rest]))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_subnormals(dtype):
    """float32's are normal in float64 and fall into its bins; float64's have bins in steps of 2**-1029."""
    info = np.finfo(dtype)
    x = np.array([1, 2, 3, 100, 255, 256, 12345], dtype) * info.smallest_subnormal
    x = np.concatenate([x, -x, [info.smallest_normal, np.nextafter(info.smallest_normal, dtype(0))]]).astype(dtype)
    for times in (1, 1000):
        many = np.repeat(x, times)
        collector = observed(many)
        assert bins_of(collector) == brute_bins(many)
        assert collector.max_val == float(info.smallest_normal)
        assert collector.n_elements == many.size


def test_counts_and_range():
    x = np.float32([np.nan, np.inf, np.inf, -np.inf, -0.0, 0.0, -3.5, 2.25, -np.nan])
    collector = observed(x, x)
    assert collector.n_elements == 8
    assert (collector.n_nan, collector.n_posinf, collector.n_neginf, collector.n_zero) == (4, 4, 2, 4)
    assert (collector.min_val, collector.max_val) == (-3.5, 2.25)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("value", [1.5, -7.0, 0.0, -0.0, 1e-42, np.nan, np.inf])
def test_one_value_again_and_again(value, dtype):
    """Whole blocks of one value are counted at once; spread out, the same values must leave the same."""
    run = np.full(3 * 4096 + 5, value, dtype)
    rest = np.array([2.0, np.nan, 0.0, -0.0, -np.inf, value], dtype)
    x = np.concatenate([run, np.repeat(rest, 2048)])
    shuffled = np.random.default_rng(0).permutation(x)
    assert observed(x) == observed(shuffled) == observed(x[::-1].copy())
    finite = x[np.isfinite(x)]
    h = observed(x)._histogram
    assert (h.n_elements, h.n_zero, h.n_nan) == (finite.size, np.sum(finite == 0), np.isnan(x).sum())
    assert (h.n_low, h.n_high) == (np.sum(finite == finite.min()), np.sum(finite == finite.max()))
    assert observed(run).n_elements == (run.size if np.isfinite(value) else 0)


def test_zero_has_no_sign():
    assert observed([-0.0]) == observed([0.0])
    assert_same_bits(observed([-0.0]).min_val, np.float64(0.0))
    assert_same_bits(observed([-0.0, -1.0]).max_val, np.float64(0.0))


def test_nothing_finite():
    collector = observed([np.nan, np.inf], [])
    assert (collector.min_val, collector.max_val) == (np.inf, -np.inf)
    scales, counts, edges, _ = answers(collector)
    assert set(scales) == {(1.0, 0)}
    assert counts == edges == []


@given(st.integers(0, 2**32 - 1))
def test_histogram_is_like_numpys(seed):
    """Counted by NumPy over the same edges; bins are half open, away from zero."""
    x = large_sample(np.random.default_rng(seed), 20_000)
    x = x[np.isfinite(x)]
    counts, edges = observed(x).histogram()
    assert counts.size == edges.size - 1
    assert (np.diff(edges) > 0).all()
    assert counts.sum() == x.size
    assert edges[0] <= x.min()
    assert x.max() <= edges[-1]
    assert counts[0] and counts[-1]
    magnitude_edges = edges[edges > 0]
    expected, _ = np.histogram(x[x > 0].astype(np.float64), np.append(magnitude_edges, np.inf))
    assert np.array_equal(counts[edges[:-1] > 0], expected[: (edges[:-1] > 0).sum()])


def test_constant_memory():
    collector = CalibrationCollector()
    rng = np.random.default_rng(7)
    sizes = []
    for _ in range(6):
        for _ in range(20):
            collector.observe(rng.standard_normal(4096).astype(np.float32))
        sizes.append(len(pickle.dumps(collector)))
    assert sizes[-1] - sizes[1] < 20 * 128 * 8  # a few more binades, not more values


# --- masks -----------------------------------------------------------------------------------------------


def test_mask():
    x = np.arange(24.0).reshape(2, 3, 4)
    seen = np.random.default_rng(8).random(x.shape) < 0.5
    collector = CalibrationCollector()
    collector.observe(x, mask=seen)
    assert collector == observed(x[seen])
    collector = CalibrationCollector()
    collector.observe(x, mask=seen[:, :, :1])
    assert collector == observed(x[np.broadcast_to(seen[:, :, :1], x.shape)])


# --- scales ----------------------------------------------------------------------------------------------


def test_percentiles_beside_an_outlier():
    x = np.random.default_rng(9).standard_normal(120_000)
    x[777] = 1e4
    collector = observed(x)
    for p in (50.0, 90.0, 99.0, 99.9):
        scale, zero_point = collector.percentile_scale(p)
        low, high = np.percentile(x, [(100 - p) / 2, (100 + p) / 2])
        assert scale * 255 == pytest.approx(high - low, rel=0.01)
        assert (-128 - zero_point) * scale == pytest.approx(low, rel=0.01, abs=scale)
    assert collector.percentile_scale(100.0) == collector.min_max_scale()
    assert collector.percentile_scale(1e9) == collector.min_max_scale()


@given(hnp.arrays(np.float64, st.integers(1, 400), elements=st.floats(-1e6, 1e6)), st.floats(0.0, 100.0))
def test_percentiles_of_few_values_are_the_references(x, p):
    """But for the departures: zeros, and ranges too narrow for the reference's floor or its zero points."""
    collector = qatcore.reference.CalibrationCollector()
    collector.observe(x)
    expected = collector.percentile_scale(p)
    assume(expected[0] > 1e-12 and expected[0] * 2.0**30 > np.abs(x).max())
    assert observed(x).percentile_scale(p) == (expected if x.any() else (2.0**-12, 0))


@given(st.integers(0, 2**32 - 1), st.integers(0, 29_000))
def test_ranks_are_within_their_bins(seed, rank):
    x = large_sample(np.random.default_rng(seed))
    x = np.sort(x[np.isfinite(x)]).astype(np.float64) + 0.0
    rank = min(rank, x.size - 1)
    value = observed(x)._histogram.values_at_ranks(np.array([rank]))[0]
    assert np.sign(value) == np.sign(x[rank])
    assert abs(value - x[rank]) <= abs(x[rank]) * 2.0**-7 + 2.0**-1029


@pytest.mark.parametrize("bits", list(QuantBits))
@pytest.mark.parametrize("method", ["min_max", "kl_divergence", "mse"])
def test_keywords(bits, method):
    x = np.random.default_rng(10).random(2000) * 3.0 + 2.0
    ask = getattr(observed(x), f"{method}_scale")
    levels = {QuantBits.INT8: 255, QuantBits.INT4: 15, QuantBits.INT2: 3}.get(bits)
    scale, zero_point = ask(bits=bits, symmetric=True)
    greatest = {QuantBits.INT8: 127, QuantBits.INT4: 7, QuantBits.INT2: 1, QuantBits.FP8: 448}[bits]
    assert zero_point == 0
    if bits is QuantBits.INT2 and method == "mse":  # all values have code 1, best with their mean
        assert abs(scale / x.mean() - 1.0) < 0.01
    else:
        assert 0.8 * x.max() <= scale * greatest <= x.max() * (1 + 1e-12)
    if levels:
        scale, zero_point = ask(bits=bits, include_zero=True)
        least = -(levels + 1) // 2
        assert zero_point == least  # zero is the least value of the range
        assert 0.8 * x.max() <= scale * levels <= x.max() * (1 + 1e-12)
        _, zero_point = ask(bits=bits)
        assert zero_point < least  # without: the range leaves zero out


@pytest.mark.parametrize(
    "x",
    [
        [5.0] * 300,
        [0.0] * 300,
        [-3.0],
        [1e300, -1e300, 5.0],
        [1.7e308, -1.7e308],
        [5e-324, 0.0, 1e-320],
        [1.0, np.nextafter(1.0, 2.0)],
        np.full(20_000, 7.5),
        np.linspace(1e-30, 2e-30, 20_000),
        np.float16([65504, -65504, np.inf]),
        np.concatenate([np.zeros(20_000), [1e-3]]),
    ],
    ids=str,
)
def test_degenerate_data(x):
    scales, _, edges, _ = answers(observed(x))
    for scale, zero_point in scales:
        assert scale >= 2.0**-126
        assert -(2**31) <= zero_point < 2**31
    assert np.isfinite(edges).all()


def test_every_dtype_is_its_values():
    values = np.array([-3, 0, 1, 2, 100])
    expected = observed(values.astype(np.float64))
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float32, ">f4", ">f8", np.int8, np.int16, np.int64):
        assert observed(values.astype(dtype)) == expected
