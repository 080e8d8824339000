"""The same bits from many threads, with any number of threads, after a fork and in other processes."""

import contextlib
import hashlib
import multiprocessing
import os
import pickle
import select
import signal
import sys
import threading
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import elsewhere
import ml_dtypes
import numpy as np
import pytest
from inputs import CONFIGS, assert_same, infer, make_layer, state

import qatcore
from qatcore import CalibMethod, CalibrationCollector, QatConfig, QatLayer, QuantBits, reference
from qatcore._base import threads
from qatcore._linear import layer as layer_module

LARGE = 2**21 + 3  # elements: worth several threads, and no multiple of any vector
THREADS = 8
TIMEOUT = 60.0  # seconds until something counts as hanging

# Python 3.12 warns of forks in a process with threads: that they work is what is tested.
forks = [
    pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork"),
    pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning"),
]


pytestmark = pytest.mark.usefixtures("_number_of_threads")


@pytest.fixture
def _switching():
    """Let threads interrupt each other as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def numbers(n=LARGE, dtype=np.float32, seed=0):
    """Values over many magnitudes, some of them not finite."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal(n, np.float32) * np.exp2(rng.integers(-10, 10, n))).astype(dtype)
    x[:: max(n // 50, 1)] = rng.choice(np.array([np.nan, np.inf, -np.inf, -0.0, 1e-40]), len(x[:: max(n // 50, 1)]))
    return x


def together(*calls):
    """The results of calls made at the same moment, each on a thread of its own."""
    barrier = threading.Barrier(len(calls))

    def at_once(call):
        barrier.wait(TIMEOUT)
        return call()

    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result(TIMEOUT) for future in [pool.submit(at_once, call) for call in calls]]


# --- any number of threads -------------------------------------------------------------------------------

X32, X64 = numbers(), numbers(LARGE, np.float64, seed=1)


def collected(module, *arrays):
    collector = module.CalibrationCollector()
    for array in arrays:
        collector.observe(array)
    return state(collector)


def product(m, k, n):
    rng = np.random.default_rng(4)
    return [rng.integers(-128, 128, shape).astype(np.int8) for shape in ((m, k), (k, n))]


def large_layer(config, module=qatcore):
    """Power-of-two scales, so that even the float sums of training are exact in any order."""
    rng = np.random.default_rng(6)
    layer = module.QatLayer(512, 384, config)
    layer.weights = rng.standard_normal((384, 512))
    layer.bias = np.round(rng.standard_normal(384) * 64) / 64
    layer.weight_scale, layer.activation_scale = 2.0**-5, 2.0**-4
    if config.bits is not QuantBits.FP8:
        layer.activation_zero_point = 3
    return layer


ROWS = np.random.default_rng(8).standard_normal((300, 512)).astype(np.float32)
LARGE_CALLS = {
    **{
        f"{prefix}{name}[{x.dtype}]": lambda module=module, name=name, x=x: getattr(module, name)(x, 0.037, 3)
        for prefix, module in (("", qatcore), ("reference.", reference))
        for name in ("quantize_int8", "quantize_int4")
        for x in (X32, X64)
    },
    **{f"quantize_fp8[{x.dtype}]": lambda x=x: qatcore.quantize_fp8(x) for x in (X32, X64)},
    "reference.quantize_fp8": lambda: reference.quantize_fp8(X64),
    "quantize_int8[float16]": lambda: qatcore.quantize_int8(X32.astype(np.float16), 0.037, 3),
    "quantize_int8[strided]": lambda: qatcore.quantize_int8(X64[::-2], 0.037, 3),
    "observe[float32]": lambda: collected(qatcore, X32),
    "observe[float64]": lambda: collected(qatcore, X64),
    "observe[both]": lambda: collected(qatcore, X64, X32, X64[:1000]),
    "observe[float16]": lambda: collected(qatcore, X32.astype(np.float16)),
    "observe[strided]": lambda: collected(qatcore, X32[::-2]),
    "observe[masked]": lambda: collected(qatcore, X32[X32 > 0.0]),
    "reference.observe": lambda: collected(reference, X64, X32),
    **{
        f"quantize_model_weights[{config.bits.value},{config.per_channel:d},{config.symmetric:d}]": (
            lambda config=config: qatcore.quantize_model_weights(X32[3:].reshape(128, -1), config)
        )
        for config in CONFIGS
    },
    "reference.quantize_model_weights": lambda: reference.quantize_model_weights(X64),
    "dequantize_weights": lambda: qatcore.dequantize_weights(np.arange(LARGE).astype(np.int8), 0.037, 3),
    "int8_matmul[tall]": lambda: qatcore.int8_matmul(*product(700, 300, 130)),
    "int8_matmul[wide]": lambda: qatcore.int8_matmul(*product(130, 300, 700)),
    **{
        f"QatLayer.{method}[{bits.value}]": (
            lambda method=method, bits=bits: getattr(large_layer(QatConfig(bits)), method)(ROWS)
        )
        for method in ("forward_infer", "forward_train")
        for bits in QuantBits
    },
    "reference.QatLayer.forward_infer": lambda: large_layer(QatConfig(), reference).forward_infer(ROWS),
    "calibrate_layer": lambda: qatcore.calibrate_layer([X32, X64], CalibMethod.MSE),
}


@pytest.mark.parametrize("call", LARGE_CALLS.values(), ids=list(LARGE_CALLS))
def test_number_of_threads(call):
    qatcore.set_num_threads(1)
    alone = call()
    for n in (2, 3):
        qatcore.set_num_threads(n)
        assert qatcore.get_num_threads() == n
        assert_same(call(), alone)


@pytest.mark.slow
@pytest.mark.parametrize("n", [1, 2, 3])
def test_large_results_are_right(n):
    """By NumPy's own arithmetic, which is exact here."""
    qatcore.set_num_threads(n)
    with np.errstate(all="ignore"):
        v = X64 / 0.037 + 3.0
        v = np.where(np.isnan(v), 0.0, np.clip(np.sign(v) * np.floor(np.abs(v) + 0.5), -128.0, 127.0))
    # floor(|v| + 0.5) is half away but for the double below a half.
    assert not np.any(np.abs(X64 / 0.037 + 3.0) == 0.49999999999999994)
    assert_same(qatcore.quantize_int8(X64, 0.037, 3), np.where(np.isnan(X64), 0.0 - 3.0, v - 3.0) * 0.037)
    finite = np.where(np.isnan(X32) | (np.abs(X32) > 448.0), np.float32(1.0), X32)
    assert_same(qatcore.quantize_fp8(finite), finite.astype(ml_dtypes.float8_e4m3fn).astype(np.float32))
    for shape in ((700, 300, 130), (130, 300, 700), (65, 1025, 129)):
        a, b = product(*shape)
        assert_same(qatcore.int8_matmul(a, b), (a.astype(np.float64) @ b.astype(np.float64)).astype(np.int64))
    collector = CalibrationCollector()
    collector.observe(X32)
    finite = X32[np.isfinite(X32)]
    assert (collector.n_elements, collector.n_nan) == (finite.size, int(np.isnan(X32).sum()))
    assert (collector.min_val, collector.max_val) == (float(finite.min()), float(finite.max()))
    counts, edges = collector.histogram()
    nonzero = np.sort(finite[finite != 0.0].astype(np.float64))
    below = np.searchsorted(nonzero, edges[edges > 0.0])  # bins of positive values hold their lower edge
    assert np.array_equal(np.diff(below), counts[-len(below) + 1 :])
    layer = large_layer(QatConfig())
    assert_same(layer.forward_infer(ROWS)[7], np.array(infer(layer, ROWS[7]), np.float32))


# --- many threads at once --------------------------------------------------------------------------------


@pytest.mark.usefixtures("_switching")
@pytest.mark.parametrize("n", [7, 300, 2**20 + 1])
def test_one_collector_from_many_threads(n):
    qatcore.set_num_threads(2)
    repeats = 3 if n > 1000 else 40
    batches = [numbers(n, np.float32 if i % 2 else np.float64, seed=i) for i in range(THREADS)]
    shared, serial = CalibrationCollector(), CalibrationCollector()
    for batch in batches:
        for _ in range(repeats):
            serial.observe(batch)

    def observe(batch):
        for _ in range(repeats):
            shared.observe(batch)
            assert shared.min_max_scale()[0] > 0.0  # whatever has been seen so far

    together(*(lambda batch=batch: observe(batch) for batch in batches))
    assert shared == serial
    assert_same(state(shared), state(serial))
    assert shared.n_elements + shared.n_nan + shared.n_posinf + shared.n_neginf == n * repeats * THREADS


@pytest.mark.usefixtures("_switching")
def test_merging_from_many_threads():
    parts = [CalibrationCollector() for _ in range(THREADS)]
    total, serial = CalibrationCollector(), CalibrationCollector()
    for i, part in enumerate(parts):
        part.observe(numbers(1000, seed=i))
        for _ in range(20):
            serial.merge(part)
    together(*(lambda part=part: [total.merge(part) for _ in range(20)] for part in parts))
    assert total == serial


@pytest.mark.usefixtures("_switching")
@pytest.mark.parametrize("config", [QatConfig(bits, per_channel=True) for bits in QuantBits], ids=repr)
def test_one_layer_in_many_threads(config):
    """From its first use, when it has no codes yet."""
    rows = [np.random.default_rng(i).standard_normal((5, 4)) for i in range(THREADS)]
    serial = make_layer(config=config)
    expected = [[serial.forward_infer(x), serial.forward_train(x)] for x in rows]
    for _ in range(10):
        layer = make_layer(config=config)
        calls = [lambda x=x, layer=layer: [layer.forward_infer(x), layer.forward_train(x)] for x in rows]
        assert_same(together(*calls), expected)


@pytest.mark.usefixtures("_switching")
def test_everything_at_once():
    """Calls that use the pool of threads, all at the same time."""
    qatcore.set_num_threads(3)
    names = ["quantize_int8[float32]", "quantize_fp8[float64]", "observe[float32]", "int8_matmul[wide]"]
    names += ["QatLayer.forward_infer[int8]", "quantize_model_weights[int4,1,1]", "observe[float64]", "observe[both]"]
    calls = [LARGE_CALLS[name] for name in names]
    expected = [call() for call in calls]
    assert_same(together(*calls), expected)
    assert_same(together(*reversed(calls)), expected[::-1])


@pytest.mark.usefixtures("_switching")
def test_number_of_threads_may_change_meanwhile():
    alone = LARGE_CALLS["quantize_int8[float32]"]()

    def change():
        for i in range(200):
            qatcore.set_num_threads(1 + i % 4)

    *results, _ = together(*[LARGE_CALLS["quantize_int8[float32]"]] * 3, change)
    for result in results:
        assert_same(result, alone)


def test_assignments_while_others_infer():
    """Nothing raises, and nothing made of old parameters is left behind."""
    rng = np.random.default_rng(0)
    weights, x = rng.normal(size=(2, 5, 7)), rng.normal(size=(3, 7))
    layer = QatLayer.from_weights(weights[0])
    layer.calibrate_from_data(x)
    errors, done = [], threading.Event()

    def use():
        try:
            while not done.is_set():
                layer.forward_infer(x)
        except Exception as error:
            errors.append(error)

    def assign(values, name):
        try:
            for value in values:
                setattr(layer, name, value)
        except Exception as error:
            errors.append(error)

    users = [threading.Thread(target=use) for _ in range(2)]
    biases, scales = rng.normal(size=(2000, 5)), rng.uniform(0.01, 0.1, 2000)
    work = [(biases, "bias"), (scales, "activation_scale"), ([weights[i % 2] for i in range(2000)], "weights")]
    setters = [threading.Thread(target=assign, args=arguments) for arguments in work]
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for thread in users + setters:
            thread.start()
        for thread in setters:
            thread.join()
    finally:
        sys.setswitchinterval(before)
        done.set()
        for thread in users:
            thread.join()
    assert errors == []
    assert_same(layer.forward_infer(x), pickle.loads(pickle.dumps(layer)).forward_infer(x))


def test_threads_that_cannot_be_started(monkeypatch):
    """The caller does all of it, and nothing keeps its arrays."""

    def refuse(self):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "_pool", threads._Pool())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    monkeypatch.setattr(threads, "_num_threads", 4)
    x = np.linspace(-9.0, 9.0, 1 << 21)
    assert_same(qatcore.quantize(x, 0.5), np.rint(x / 0.5).astype(np.int8))
    assert threads._pool._jobs.empty()


def test_assignment_during_a_forward(monkeypatch):
    """Codes of weights that are no longer the layer's must not be kept."""
    x = np.array([0.5, -1.0, 2.0, 0.1])
    new = np.linspace(-2.0, 2.0, 20).reshape(5, 4)
    layer, expected = make_layer(), make_layer()
    expected.weights = new
    layer.weights = make_layer().weights.copy()  # without codes again
    encode = layer_module.encode
    waiting = [layer.weights.shape]

    def interrupted(values, *rest, **options):
        codes = encode(values, *rest, **options)
        if waiting and values.shape == waiting[0]:
            waiting.clear()
            together(lambda: setattr(layer, "weights", new))  # another thread, while this one has its codes
        return codes

    monkeypatch.setattr(layer_module, "encode", interrupted)
    layer.forward_infer(x)
    assert not waiting
    assert_same(layer.forward_infer(x), expected.forward_infer(x))


def test_exceptions_from_other_threads(monkeypatch):
    """A part that fails makes the call fail, and the pool goes on."""
    qatcore.set_num_threads(3)
    kernels = qatcore._base.dispatch.kernels

    class Failing:
        def round_e4m3(self, x, out):
            if x.size and np.shares_memory(x, X32[-1:]):
                raise MemoryError("the last part")
            kernels.round_e4m3(x, out)

    with monkeypatch.context() as patched:
        patched.setattr(qatcore._base.dispatch, "kernels", Failing())
        for _ in range(5):
            with pytest.raises(MemoryError, match="the last part"):
                qatcore.quantize_fp8(X32)
    assert qatcore.quantize_fp8(X32).size == LARGE


# --- after a fork ----------------------------------------------------------------------------------------


def digest(*names):
    """One hash of what large calls return."""
    total = hashlib.sha256()
    for name in names:
        total.update(pickle.dumps(LARGE_CALLS[name]()))
    return total.digest()


WORK = ["quantize_int8[float32]", "quantize_fp8[float64]", "observe[float32]", "observe[float64]", "int8_matmul[tall]"]
WORK += ["QatLayer.forward_infer[int8]"]


def in_child(work, timeout=TIMEOUT):
    """Return the bytes that ``work()`` returns in a forked child, or fail if it does not end in time."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(int(timeout))  # ends a child whose parent is gone
            os.close(reader)
            os.write(writer, work())
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    ready = []
    try:
        ready, _, _ = select.select([reader], [], [], timeout)
        result = os.read(reader, 1 << 16) if ready else b""
    finally:
        os.close(reader)
        with contextlib.suppress(ProcessLookupError):
            if not ready:
                os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    assert ready, "the child hangs"
    assert status == 0, f"the child failed: {status}"
    return result


def forking(test):
    for mark in forks:
        test = mark(test)
    return test


@forking
@pytest.mark.parametrize("before", [1, 3])
@pytest.mark.parametrize("after", [None, 1, 2])
def test_fork(before, after):
    qatcore.set_num_threads(before)
    expected = digest(*WORK)  # the parent's threads run now
    assert before == 1 or "qatcore" in {thread.name for thread in threading.enumerate()}

    def work():
        if after is not None:
            qatcore.set_num_threads(after)
        return digest(*WORK)

    assert in_child(work) == expected
    assert digest(*WORK) == expected


@forking
def test_fork_of_a_fork():
    qatcore.set_num_threads(2)
    expected = digest("observe[float32]")
    assert (
        in_child(lambda: in_child(lambda: digest("observe[float32]"), 30.0) + digest("observe[float32]"))
        == expected * 2
    )


@forking
def test_fork_while_other_threads_work():
    """Locks that they hold are free in the child."""
    qatcore.set_num_threads(3)
    names = ["quantize_int8[float32]", "observe[float32]"]
    expected = digest(*names)
    shared = CalibrationCollector()
    stop = threading.Event()

    def busy():
        while not stop.is_set():
            shared.observe(X32[:1000])
            qatcore.quantize_fp8(X32)

    def work():
        shared.observe(X32)
        return digest(*names)

    threads = [threading.Thread(target=busy) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.02)
        for _ in range(5):
            assert in_child(work) == expected
    finally:
        stop.set()
        for thread in threads:
            thread.join(TIMEOUT)
    assert not any(thread.is_alive() for thread in threads)


# --- in other processes ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def workers():
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


def test_collectors_in_other_processes(workers):
    """Parts observed elsewhere and merged here are the whole."""
    x = numbers(60_000, np.float64)
    seen = CalibrationCollector()
    seen.observe([3.0, np.nan])
    whole = CalibrationCollector()
    whole.observe(x)
    for _ in range(3):
        whole.observe([3.0, np.nan])
    futures = [workers.submit(elsewhere.observe, seen, part) for part in np.array_split(x, 3)]
    total = CalibrationCollector()
    for future in futures:
        total.merge(future.result(TIMEOUT))
    assert total == whole
    assert_same(state(total), state(whole))


def test_reference_collectors_in_other_processes(workers):
    x = numbers(1000, np.float64)
    collector = reference.CalibrationCollector()
    collector.observe(x)
    other = workers.submit(elsewhere.observe, collector, [1e9]).result(TIMEOUT)
    collector.observe([1e9])
    assert_same(state(other), state(collector))


@pytest.mark.parametrize("config", [QatConfig(bits, per_channel=True) for bits in QuantBits], ids=repr)
def test_layers_in_other_processes(workers, config):
    layer = QatLayer.from_weights(np.random.default_rng(3).normal(size=(5, 4)), np.ones(5), config)
    x = np.random.default_rng(5).normal(size=(6, 4)).astype(np.float32)
    assert_same(workers.submit(elsewhere.infer, layer, x).result(TIMEOUT), layer.forward_infer(x))
