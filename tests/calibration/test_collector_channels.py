"""Each channel of a collector is, to the bit, a collector of its own."""

import gc
import itertools
import pickle
import signal
import threading

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qatcore
from qatcore import CalibrationCollector, InvalidArgumentError, QuantBits
from qatcore._base import dispatch
from qatcore._calibration.accumulator import N_HELD, N_NONZERO, PENDING, Accumulator
from qatcore._calibration.counting import count_along
from qatcore._calibration.histogram import EXACT_LIMIT

OPTIONS = [
    dict(zip(("bits", "symmetric", "include_zero"), values, strict=True))
    for values in itertools.product(QuantBits, (False, True), (False, True))
]


def observed(*batches, **keywords):
    collector = CalibrationCollector(**keywords)
    for batch in batches:
        collector.observe(batch)
    return collector


def scales(collector, options=OPTIONS):
    for option in options:
        yield collector.min_max_scale(**option)
        yield collector.percentile_scale(99.0, **option)
        yield collector.kl_divergence_scale(**option)
        yield collector.mse_scale(**option)


def assert_is_made_of(collector, expected, options=OPTIONS):
    """Every answer of a collector is that of the expected collectors, one for each channel in order."""
    indices = list(np.ndindex(collector.shape))
    assert len(indices) == len(expected)
    for index, one in zip(indices, expected, strict=True):
        assert collector.channel(index if len(index) > 1 else index[0]) == one
    for name in ("min_val", "max_val", "n_elements", "n_zero", "n_nan", "n_posinf", "n_neginf"):
        answer = getattr(collector, name)
        assert answer.shape == collector.shape
        assert answer.reshape(-1).tolist() == [getattr(one, name) for one in expected]
    answers = zip(scales(collector, options), *(scales(one, options) for one in expected), strict=True)
    for (scale, zero_point), *singles in answers:
        assert (scale.shape, scale.dtype) == (collector.shape, np.float64)
        assert (zero_point.shape, zero_point.dtype) == (collector.shape, np.int32)
        assert list(zip(scale.reshape(-1).tolist(), zero_point.reshape(-1).tolist(), strict=True)) == singles
    counts, edges = collector.histogram()
    assert counts.shape == (*collector.shape, max(edges.size - 1, 0))
    for row, one in zip(counts.reshape(len(expected), -1), expected, strict=True):
        own_counts, own_edges = one.histogram()
        assert row.sum() == own_counts.sum()
        # The bins at zero reach as far as the nearest values of any channel; what is in them is what is left.
        filled = (own_counts > 0) & ((own_edges[:-1] > 0.0) | (own_edges[1:] < 0.0))
        low, high = own_edges[:-1][filled], own_edges[1:][filled]
        found = np.searchsorted(edges, low + (high - low) / 2, side="right") - 1  # the bins that hold theirs
        assert row[found].tolist() == own_counts[filled].tolist()


def uneven(rng, n, channels):
    """Channels of unlike magnitude, some of them with what calibration meets at its edges."""
    x = rng.standard_normal((n, channels)) * 2.0 ** rng.integers(-30, 30, channels)
    x[:, 0] = 0.0
    if channels > 1:
        x[:, 1] = 3.25
    if channels > 2:
        x[::2, 2] = 0.0
    if channels > 3:
        x[rng.random(n) < 0.01, 3] = np.nan
        x[rng.random(n) < 0.01, 3] = np.inf
        x[rng.random(n) < 0.01, 3] = -np.inf
    if channels > 4:
        x[:, 4] = np.nan
    if channels > 5:
        x[:, 5] = rng.integers(0, 5, n) * -1e-310
    if channels > 6:
        x[:, 6] = rng.standard_normal(n) * 1e300
    return x


@pytest.mark.parametrize("n", [1, 40, EXACT_LIMIT, EXACT_LIMIT + 1, 20_000])
def test_channels_are_collectors(n):
    x = uneven(np.random.default_rng(n), n, 9)
    expected = [observed(column) for column in x.T]
    some = OPTIONS if n == 40 else OPTIONS[::5]
    assert_is_made_of(observed(x, axis=1), expected, some)
    assert_is_made_of(observed(x.T, axis=0), expected, some[:1])
    assert_is_made_of(observed(*np.array_split(x, 7), axis=-1), expected, some[:1])
    assert observed(*np.array_split(x[::-1], 3), axis=1) == observed(x, axis=1)


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8, np.int64, ">f4"])
@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, (0, 2), (2, 0), (1, 3), (0, 1, 2, 3)])
def test_every_axis_layout_and_dtype(axis, dtype):
    x = (np.random.default_rng(0).standard_normal((2, 7, 3, 20)) * 50).astype(dtype)
    axes = [a % 4 for a in (axis if isinstance(axis, tuple) else (axis,))]
    by_channel = np.moveaxis(x, axes, range(len(axes))).reshape(int(np.prod([x.shape[a] for a in axes])), -1)
    collector = observed(x, axis=axis)
    assert collector.shape == tuple(x.shape[a] for a in axes)
    assert_is_made_of(collector, [observed(row) for row in by_channel], OPTIONS[:1])
    reversed_twice = x[::-1, :, ::-1].copy()[::-1, :, ::-1]
    for other in (np.asfortranarray(x), reversed_twice, np.repeat(x, 2, axis=1)[:, ::2]):
        assert observed(other, axis=axis) == collector
    read_only = x.copy()
    read_only.setflags(write=False)
    assert observed(read_only, axis=axis) == collector


@pytest.mark.usefixtures("_number_of_threads")
def test_a_large_batch_in_pieces_and_threads():
    """Larger than what is gathered at a time, in an order that has to be copied, by one thread and by several."""
    x = np.random.default_rng(1).standard_normal((3, 40, 60_000)).astype(np.float32)
    qatcore.set_num_threads(1)
    expected = observed(*x.transpose(2, 0, 1).reshape(30, -1, 3, 40), axis=2)
    for threads in (1, 3):
        qatcore.set_num_threads(threads)
        assert observed(x, axis=1).pooled() == expected.pooled()
        assert observed(x.transpose(0, 2, 1), axis=2) == expected
        assert observed(x.astype(np.float64).transpose(2, 0, 1), axis=2) == expected
    assert expected.channel(7) == observed(x[:, 7])


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_binade_in_every_channel(dtype):
    """More rows of counts than are kept for the next run, and the next one."""
    x = np.random.default_rng(2).integers(0, 256, (6, 40_000 * np.dtype(dtype).itemsize), np.uint8).view(dtype)
    x[np.abs(x) < np.finfo(dtype).tiny] = 1.0
    for _ in range(2):
        assert_is_made_of(observed(x, axis=0), [observed(row) for row in x], ())


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2, 32, 64])
def test_groups_of_channels_and_of_elements(groups):
    weights = uneven(np.random.default_rng(2), 64, 12).T
    of_channels = observed(weights, axis=1, groups=groups)
    assert of_channels.shape == (64 // groups,)
    columns = np.split(weights, 64 // groups, axis=1)
    assert_is_made_of(of_channels, [observed(part) for part in columns], OPTIONS[:2])
    of_elements = observed(weights, axis=(0, 1), groups=groups)
    assert of_elements.shape == (12, 64 // groups)
    assert_is_made_of(
        of_elements, [observed(part) for row in weights for part in np.split(row, 64 // groups)], OPTIONS[2:4]
    )
    assert observed(weights.T, axis=(1, 0), groups=groups).groups == groups
    assert np.array_equal(observed(weights.T, axis=(1, 0), groups=groups).mse_scale()[0], of_elements.mse_scale()[0])


def test_mask_per_channel():
    rng = np.random.default_rng(3)
    for n in (7, 5000):
        x = uneven(rng, 3 * n, 8).reshape(3, n, 8)
        for dtype in (np.float64, np.float32, np.int16):
            values = np.nan_to_num(x, posinf=7.0, neginf=-7.0).clip(-99, 99).astype(dtype) if dtype == np.int16 else x
            seen = rng.random(x.shape) < 0.7
            with np.errstate(over="ignore"):
                values = values.astype(dtype)
            collector = CalibrationCollector(axis=2)
            collector.observe(values, mask=seen)
            assert_is_made_of(collector, [observed(values[..., c][seen[..., c]]) for c in range(8)], OPTIONS[:1])
            collector = CalibrationCollector(axis=-1)
            collector.observe(values, mask=seen[..., :1])
            assert collector == observed(values[seen[..., 0]], axis=-1)


batches = st.lists(st.integers(0, 40), min_size=1, max_size=6)


@pytest.mark.slow
@settings(max_examples=60)
@given(st.integers(0, 2**32 - 1), batches, st.integers(1, 9), st.randoms(use_true_random=False), st.booleans())
def test_splits_orders_and_merge_trees(seed, sizes, channels, random, many):
    rng = np.random.default_rng(seed)
    n = sum(sizes) * (500 if many else 1)
    x = uneven(rng, n, channels)
    expected = observed(x, axis=1)
    edges = np.cumsum(sizes)[:-1] * (500 if many else 1)
    parts = np.split(rng.permuted(x, axis=0), edges)
    collectors = [observed(part.T[np.newaxis], axis=1) for part in parts]
    while len(collectors) > 1:
        one = collectors.pop(random.randrange(len(collectors)))
        other = collectors[random.randrange(len(collectors))]
        if random.random() < 0.3:
            other = collectors[collectors.index(other)] = pickle.loads(pickle.dumps(other))
        before = pickle.dumps(one)
        other.merge(one)
        assert pickle.dumps(one) == before
    assert collectors[0] == expected
    assert collectors[0].pooled() == observed(x)
    assert_same_answers(collectors[0], expected)


def assert_same_answers(one, other):
    for ours, theirs in zip(scales(one, OPTIONS[::7]), scales(other, OPTIONS[::7]), strict=True):
        assert np.array_equal(ours[0], theirs[0])
        assert np.array_equal(ours[1], theirs[1])


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.integers(0, 3 * EXACT_LIMIT))
def test_pooled_is_a_collector_of_everything(seed, channels, n):
    x = uneven(np.random.default_rng(seed), n // channels, channels)
    assert observed(x, axis=1).pooled() == observed(x)


def test_values_that_wait_to_be_counted_leave_no_trace(tmp_path):
    """Of channels with more values than are kept small batches are counted some thousands at a time."""
    x = uneven(np.random.default_rng(6), 3 * EXACT_LIMIT, 5)
    collector = CalibrationCollector(axis=1)
    waited = set()
    for part in np.array_split(x, 70):
        before = pickle.dumps(collector)
        collector.merge(CalibrationCollector(axis=1))
        assert pickle.dumps(collector) == before
        collector.observe(part)
        stats = collector._state[1].stats
        waited.update(stats[stats[:, N_NONZERO] > EXACT_LIMIT, N_HELD].tolist())
    assert len(waited) > 10
    assert max(waited) <= PENDING
    for part in np.array_split(x[::-1], 9):  # waiting values to waiting values, and to counts
        collector.merge(observed(part, axis=1))
        collector.merge(observed(part[:100], axis=1))
    expected = observed(x, x, *(part[:100] for part in np.array_split(x[::-1], 9)), axis=1)
    collector.save(tmp_path / "saved.npz")
    for other in (collector, pickle.loads(pickle.dumps(collector)), CalibrationCollector.load(tmp_path / "saved.npz")):
        assert other == expected
        assert pickle.dumps(other) == pickle.dumps(expected)
    assert_same_answers(collector, expected)


class Between:
    """Kernels that do something else before the n-th call of one of them, as another thread might."""

    def __init__(self, name, turn, action):
        self._name, self._turn, self._action = name, turn, action

    def __getattr__(self, name):
        if name == self._name:
            self._turn -= 1
            if self._turn == 0:
                self._action()
        return getattr(KERNELS, name)


KERNELS = dispatch.kernels


@pytest.mark.parametrize("turn", [1, 2, 3])
@pytest.mark.parametrize("n", [100, 3000, 5000, 20_000])
@pytest.mark.parametrize("kernel", ["copy_channels", "measure_channels", "add_channels"])
@pytest.mark.parametrize("factor", [1.0, 2.0**200], ids=["old binades", "new binades"])
def test_a_batch_in_the_middle_of_another_call(monkeypatch, factor, kernel, n, turn):
    """Counts that are made, values that are appended, arrays that move while they are being measured or copied."""
    x = np.random.default_rng(7).standard_normal(20_000)
    more = x[::-1][:n] * factor
    for call in (lambda c: c._histogram, lambda c: c.observe(x[:4000]), lambda c: c.merge(observed(x))):
        collector = observed(x, x[:4000])
        interruption = Between(kernel, turn, lambda: collector.observe(more))  # noqa: B023
        monkeypatch.setattr(dispatch, "kernels", interruption)
        call(collector)
        monkeypatch.setattr(dispatch, "kernels", KERNELS)
        expected = observed(x, x[:4000])
        call(expected)
        if interruption._turn <= 0:
            expected.observe(more)
        assert collector == expected
        assert pickle.dumps(collector) == pickle.dumps(expected)


def test_no_memory_to_tidy_up(monkeypatch):
    """The batch has been counted by then."""
    x = np.random.default_rng(9).standard_normal((9, 5000))
    collector = observed(x, axis=0)
    failed = []

    place = Accumulator._place

    def fail(self, more=0):
        if more:
            return place(self, more)
        failed.append(True)
        raise MemoryError

    monkeypatch.setattr(Accumulator, "_place", fail)
    batches = 0
    while not failed:
        collector.observe(x[:, :10])
        batches += 1
    monkeypatch.undo()
    assert collector == observed(x, *[x[:, :10]] * batches, axis=0)


def test_more_room_than_rows():
    """What lies beyond the rows that are used is nobody's."""
    x = np.random.default_rng(10).standard_normal((2, 9000))
    accumulator = count_along(x, None, (0,), 1)
    accumulator.make_room(accumulator.n_rows + 50, 200, 100)
    accumulator.arrays.owners[accumulator.n_rows :] = -(2**60)
    placed = accumulator.placed(np.array([3, 1]), 5).histogram()[1]
    assert placed == Accumulator.of_histogram(placed).histogram()[1]
    for place, row in ((3, x[0]), (1, x[1])):
        assert placed.take(np.array([place])) == observed(row)._histogram
    assert placed.n_elements.tolist() == [0, 9000, 0, 9000, 0]


def test_extremes_while_batches_arrive():
    """Each is one that there was: with as many channels NumPy lets other threads run."""
    x = np.full((50_000, 1), 3.0)
    keys = [observed(factor * x, axis=0)._state[1].stats[:, 0].copy() for factor in (1.0, -1.0)]
    collector = observed(x, axis=0)
    stats = collector._state[1].stats
    done = threading.Event()

    def change():
        while not done.is_set():
            for key in keys:
                stats[:, 0] = key

    thread = threading.Thread(target=change)
    thread.start()
    seen = [collector.min_val for _ in range(200)]
    done.set()
    thread.join()
    assert set(np.unique(seen).tolist()) == {3.0, -3.0}


def test_collecting_garbage_while_adding(monkeypatch):
    """Of Python 3.11 it may begin inside the kernel, and run anything: here one more batch."""
    x = np.random.default_rng(11).standard_normal(20_000)
    more = x * np.exp2(np.arange(20_000) % 601 - 300)
    expected = observed(x, x[:100], x[:100], more)

    class Observing:
        def __init__(self, collector):
            self.collector, self.itself = collector, self

        def __del__(self):
            self.collector.observe(more)

    thresholds = gc.get_threshold()
    for threshold in range(1, 40):
        collector, part = observed(x, x[:100]), observed(x[:100])  # for which there is room
        gc.collect()
        gc.disable()
        Observing(collector)

        def begin(threshold=threshold):
            gc.set_threshold(gc.get_count()[0] + threshold)
            gc.enable()

        monkeypatch.setattr(dispatch, "kernels", Between("add_channels", 1, begin))
        try:
            collector.merge(part)
        finally:
            gc.set_threshold(*thresholds)
            gc.enable()
        monkeypatch.undo()
        gc.collect()
        assert collector == expected


def test_threads():
    x = uneven(np.random.default_rng(5), 40_000, 8)
    collector = CalibrationCollector(axis=1)
    parts = np.array_split(x, 64)

    def work(own):
        for part in own:
            collector.observe(part)
            collector.merge(observed(part, axis=1))
            collector.min_max_scale()
            histogram = collector._histogram
            assert histogram.values.size == histogram.value_start[-1]

    threads = [threading.Thread(target=work, args=(parts[i::8],)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert collector == observed(x, x, axis=1)


# --- before the first batch, and what does not fit -------------------------------------------------------


def test_before_the_first_batch():
    collector = CalibrationCollector(axis=(0, 1))
    assert collector.shape == (0, 0)
    assert [part.shape for part in collector.mse_scale()] == [(0, 0), (0, 0)]
    assert collector.histogram()[0].shape == (0, 0, 0)
    assert repr(collector) == "CalibrationCollector(axis=(0, 1), shape=(0, 0), n_elements=0, min_val=inf, max_val=-inf)"
    other = observed(np.ones((2, 3)), axis=(0, 1))
    collector.merge(CalibrationCollector(axis=(0, 1)))
    assert collector.shape == (0, 0)
    collector.merge(other)
    assert collector == other
    collector.observe(np.zeros((2, 3)))
    assert collector != other  # which was not shared
    empty = observed(np.ones((0, 4)), axis=1)
    assert empty.shape == (4,)
    assert empty.mse_scale()[0].tolist() == [1.0] * 4


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"axis": 1.5}, TypeError, "axis: expected an integer or a tuple of them, got 1.5"),
        ({"axis": True}, TypeError, "axis: expected an integer or a tuple of them, got True"),
        ({"axis": 65}, InvalidArgumentError, "axis: expected one axis, .*from -64 to 64, got 65"),
        ({"axis": 0, "groups": 2**60}, InvalidArgumentError, "groups: expected at most 4503599627370496, got"),
        ({"axis": "0"}, TypeError, "axis: expected an integer or a tuple of them, got '0'"),
        ({"axis": ()}, InvalidArgumentError, r"axis: expected one axis, or several different ones, .*, got \(\)"),
        (
            {"axis": (1, 1)},
            InvalidArgumentError,
            r"axis: expected one axis, or several different ones, .*, got \(1, 1\)",
        ),
        ({"groups": 4}, InvalidArgumentError, "groups: expected an axis to group along, got none"),
        ({"axis": 0, "groups": 0}, InvalidArgumentError, "groups: expected at least 1, got 0"),
        ({"axis": 0, "groups": "a"}, TypeError, "groups: expected an integer, got str"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        CalibrationCollector(**arguments)


@pytest.mark.parametrize(
    ("keywords", "batch", "message"),
    [
        ({"axis": 1}, np.ones(3), "x: expected an array with axis 1, got one of 1 dimensions"),
        ({"axis": -3}, np.ones((3, 3)), "x: expected an array with axis -3, got one of 2 dimensions"),
        ({"axis": 0}, 1.0, "x: expected an array with axis 0, got one of 0 dimensions"),
        (
            {"axis": (0, -1)},
            np.ones(3),
            r"x: expected an array in which axes \(0, -1\) are different, got one of 1 dimensions",
        ),
        ({"axis": 1, "groups": 4}, np.ones((2, 6)), "x: expected a multiple of 4 along axis 1 for groups=4, got 6"),
    ],
)
def test_wrong_batches(keywords, batch, message):
    collector = CalibrationCollector(**keywords)
    with pytest.raises(InvalidArgumentError, match=message):
        collector.observe(batch)
    assert collector == CalibrationCollector(**keywords)


def test_what_does_not_fit_changes_nothing():
    collector = observed(np.ones((2, 3)), axis=1)
    before = pickle.dumps(collector)
    with pytest.raises(InvalidArgumentError, match=r"x: expected channels of shape \(3,\) as before, got \(4,\)"):
        collector.observe(np.ones((2, 4)))
    for other, kind in (
        (CalibrationCollector(), "axis=None"),
        (CalibrationCollector(axis=0), "axis=0"),
        (CalibrationCollector(axis=1, groups=2), "axis=1, groups=2"),
        (observed(np.ones((2, 5)), axis=1), r"channels of shape \(3,\)"),
    ):
        with pytest.raises(InvalidArgumentError, match=f"other: .*{kind}"):
            collector.merge(other)
    for index in (3, -4, (0, 0), ()):
        with pytest.raises(
            InvalidArgumentError, match=r"index: expected the index of a channel, for channels of shape \(3,\)"
        ):
            collector.channel(index)
    with pytest.raises(TypeError, match="index: expected an integer"):
        collector.channel("a")
    assert pickle.dumps(collector) == before


def test_more_values_than_can_be_counted():
    """Refused before a count could wrap, which would lead out of bounds."""
    collector = observed(np.ones((3, EXACT_LIMIT)), axis=0)
    doublings = 0
    with pytest.raises(InvalidArgumentError, match="other: expected at most 4503599627370496 values in all, got more"):
        while True:
            collector.merge(collector)
            doublings += 1
    assert doublings == 37
    assert collector.n_observed == 3 * EXACT_LIMIT * 2**37
    collector.observe(np.ones((3, 1)))
    assert collector.n_elements.tolist() == [EXACT_LIMIT * 2**37 + 1] * 3
    assert collector.percentile_scale(50.0, symmetric=True)[0].tolist() == [1.0 / 127.0] * 3


def test_uneven_channels_take_what_they_hold():
    """One channel with many values beside many with none: not as much memory as if all had as many."""
    x = np.zeros((200, 20_000))
    x[:, 7] = 1.5
    collector = CalibrationCollector(axis=1)
    for _ in range(30):
        collector.observe(x)
    assert len(pickle.dumps(collector)) < 4_000_000
    assert collector._state[1].arrays.values.size < 100_000
    assert collector.n_elements[7] == 6000
    assert collector.channel(7) == observed(np.full(6000, 1.5))


def test_reading_while_the_first_batch_arrives():
    for _ in range(200):
        collector = CalibrationCollector(axis=0)
        thread = threading.Thread(target=collector.observe, args=(np.ones((3, 50)),))
        thread.start()
        assert collector.min_max_scale()[0].shape in ((0,), (3,))
        assert collector.histogram()[0].shape[0] in (0, 3)
        assert collector.n_nan.shape in ((0,), (3,))
        repr(collector)
        thread.join()
        assert collector.shape == (3,)


def test_first_batches_from_many_threads():
    """None of them is lost, though each finds that there is no state yet."""
    for _ in range(100):
        collector = CalibrationCollector(axis=0)
        threads = [threading.Thread(target=collector.observe, args=(np.ones((3, 50)),)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert collector.n_observed == 600


def test_a_signal_handler_may_ask():
    """Also while the very collector is being added to: there is no lock that it could wait for."""
    collector = CalibrationCollector(axis=1)
    answers = []

    def ask(*_):
        answers.append(
            (collector.n_observed, float(np.sum(collector.max_val)), repr(collector), pickle.dumps(collector))
        )

    before = signal.signal(signal.SIGALRM, ask)
    try:
        batch = np.random.default_rng(0).standard_normal((100, 30))
        for turn in range(60):
            signal.setitimer(signal.ITIMER_REAL, 1e-4 + turn * 1e-5)
            while len(answers) <= turn:
                collector.observe(batch)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)
    assert all(n % 3000 == 0 for n, *_ in answers)


@pytest.mark.parametrize("tiny", [5e-324, 1e-310, 1e-308, 1e-300])
def test_a_tiny_value_changes_no_range(tiny):
    """Its bin is so narrow that the density in it would be infinite."""
    x = np.random.default_rng(0).laplace(size=20_000)
    with_tiny = observed(np.append(x, [tiny, -tiny]))
    for bits, symmetric in itertools.product(QuantBits, (True, False)):
        for ask in ("mse_scale", "best_scale"):
            ours = getattr(with_tiny, ask)(bits=bits, symmetric=symmetric)
            theirs = getattr(observed(x), ask)(bits=bits, symmetric=symmetric)
            assert ours[0] == pytest.approx(theirs[0], rel=1e-3)
            assert ours[2:] == theirs[2:]
    assert np.isfinite(list(with_tiny.summary().sqnr[QuantBits.INT4].values())).all()


def test_best_scale_of_channels_of_all_magnitudes():
    rng = np.random.default_rng(1)
    x = rng.laplace(size=(20_000, 3)) * [1e200, 1.0, 1e-300]
    x[0, 1] = 1e-310
    *_, method = observed(x, axis=1).best_scale(bits=QuantBits.INT4)
    assert method is observed(x[:, 0]).best_scale(bits=QuantBits.INT4)[2]


def test_answers_are_the_callers_own():
    collector = observed(np.arange(6.0).reshape(2, 3), axis=1)
    collector.min_val[:] = 99.0
    collector.n_elements[:] = 99
    collector.min_max_scale()[0][:] = 99.0
    assert collector == observed(np.arange(6.0).reshape(2, 3), axis=1)
    assert collector.min_val.tolist() == [0.0, 1.0, 2.0]
