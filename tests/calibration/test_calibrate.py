"""Calibrating layers and models."""

import contextlib
import io
import itertools
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qatcore
from qatcore import (
    CalibMethod,
    CalibrationCollector,
    CalibrationDataset,
    CalibrationWarning,
    InvalidArgumentError,
    QuantBits,
)

BATCHES = [np.random.default_rng(i).normal(size=(8, 50)) + i for i in range(4)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", list(QuantBits))
@pytest.mark.parametrize("method", [method for method in CalibMethod if method is not CalibMethod.AUTO])
def test_model_is_its_collectors(method, bits, symmetric):
    collector = CalibrationCollector()
    for batch in BATCHES:
        collector.observe(batch)
    options = {"bits": bits, "symmetric": symmetric}
    expected = {
        CalibMethod.MIN_MAX: collector.min_max_scale(**options),
        CalibMethod.PERCENTILE: collector.percentile_scale(99.0, **options),
        CalibMethod.KL: collector.kl_divergence_scale(**options),
        CalibMethod.MSE: collector.mse_scale(**options),
    }[method]
    assert qatcore.calibrate_layer(BATCHES, method, **options) == expected
    layers = {"a": BATCHES, "b": (batch for batch in BATCHES)}
    for given in (layers, list(layers.items())):
        layers["b"] = iter(BATCHES)
        specs = qatcore.calibrate_model(given, method, **options)
        assert [spec.layer_name for spec in specs] == ["a", "b"]
        assert (specs[0].scale, specs[0].zero_point) == expected
        assert (specs[0].method, specs[0].bits, specs[0].symmetric) == (method, bits, symmetric)
        layers = {"a": BATCHES, "b": BATCHES}


def test_batches_are_not_kept():
    """A generator of batches that reuses one buffer is calibrated as it was when it was read."""
    buffer = np.empty(300)

    def batches():
        for i in range(5):
            buffer[:] = np.linspace(0.0, i, 300)
            yield buffer

    assert qatcore.calibrate_layer(batches(), CalibMethod.MIN_MAX) == (4.0 / 255.0, -128)


def test_dataset():
    dataset = CalibrationDataset()
    row = np.arange(300.0)
    dataset.push(row)
    row[:] = -1.0
    dataset.push([[1, 2], [3, 400]])
    assert len(dataset) == len(dataset.data) == 2
    assert [batch.shape for batch in dataset] == [(300,), (2, 2)]
    assert qatcore.calibrate_layer(dataset, CalibMethod.MIN_MAX) == (400.0 / 255.0, -128)


def test_few_values_are_worth_a_warning():
    with pytest.warns(CalibrationWarning, match="fc1: calibrated from 3 finite values"):
        specs = qatcore.calibrate_model({"fc1": [[1.0, 2.0, 3.0, np.nan]]}, CalibMethod.MIN_MAX)
    assert specs[0].scale == 2.0 / 255.0
    with pytest.warns(CalibrationWarning, match="0 finite values"):
        assert qatcore.calibrate_layer([], CalibMethod.MSE) == (1.0, 0)


def test_an_array_is_one_batch():
    x = np.linspace(0.0, 2.0, 300)
    assert qatcore.calibrate_layer(x, CalibMethod.MIN_MAX) == qatcore.calibrate_layer([x], CalibMethod.MIN_MAX)


# --- the method that is best -----------------------------------------------------------------------------


def test_auto_says_what_it_chose():
    rng = np.random.default_rng(0)
    layers = {"uniform": [rng.uniform(-1, 1, 50_000)], "heavy": [rng.standard_t(3, 50_000)]}
    specs = qatcore.calibrate_model(layers, "auto", bits=QuantBits.INT4)
    assert specs[1].method is CalibMethod.MSE
    for spec, batches in zip(specs, layers.values(), strict=True):
        assert qatcore.calibrate_layer(batches, CalibMethod.AUTO, bits="int4") == (spec.scale, spec.zero_point)
        assert qatcore.calibrate_layer(batches, spec.method, bits="int4") == (spec.scale, spec.zero_point)
        assert spec.method is not CalibMethod.AUTO
    layer = qatcore.QatLayer(5, 3)
    layer.calibrate_from_data(rng.standard_t(3, 50_000), CalibMethod.AUTO)
    layer.calibrate_from_data(layers["heavy"][0], "auto")
    assert layer.activation_scale == qatcore.calibrate_layer(layers["heavy"], "auto")[0]


# --- channels --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", list(CalibMethod))
def test_channels(method):
    x = np.random.default_rng(1).standard_normal((4, 8, 300)) * np.arange(1, 9)[:, np.newaxis]
    collector = CalibrationCollector(axis=1, groups=2)
    for batch in x:
        collector.observe(batch[np.newaxis])
    batches = [batch[np.newaxis] for batch in x]
    (spec,) = qatcore.calibrate_model({"a": batches}, method, axis=1, groups=2)
    assert (spec.axis, spec.groups) == (1, 2)
    assert spec.scale.shape == spec.zero_point.shape == (4,)
    assert [spec] == qatcore.choose_specs({"a": collector}, method)
    scale, zero_point = qatcore.calibrate_layer(batches, method, axis=1, groups=2)
    assert np.array_equal(scale, spec.scale)
    assert np.array_equal(zero_point, spec.zero_point)


def test_few_values_of_a_channel():
    x = np.ones((300, 2))
    x[100:, 1] = np.nan
    with pytest.warns(CalibrationWarning, match="a: calibrated from 100 finite values of a channel"):
        qatcore.calibrate_model({"a": [x]}, axis=1)
    with pytest.warns(CalibrationWarning, match="a: calibrated from 0 finite values of a channel") as caught:
        qatcore.calibrate_model({"a": []}, axis=1)
    assert caught[0].filename == __file__


# --- interrupted, and gone on with -----------------------------------------------------------------------


class Interrupted:
    """Batches that are interrupted before the n-th, as by Ctrl-C."""

    def __init__(self, batches, n):
        self.batches, self.n = batches, n

    def __iter__(self):
        yield from self.batches[: self.n]
        raise KeyboardInterrupt


@pytest.mark.filterwarnings("ignore::qatcore.CalibrationWarning")
@pytest.mark.parametrize("n", [0, 1, 3])
@pytest.mark.parametrize("axis", [None, 1])
def test_interrupted_and_resumed(n, axis, tmp_path):
    layers = {"a": BATCHES, "b": [batch * 2 for batch in BATCHES], "c": [-batch for batch in BATCHES]}
    expected = qatcore.calibrate_model(layers, CalibMethod.MSE, axis=axis)
    collectors = {}
    with pytest.raises(KeyboardInterrupt):
        qatcore.calibrate_model(layers | {"b": Interrupted(layers["b"], n)}, axis=axis, collectors=collectors)
    assert list(collectors) == ["a", "b"]
    assert collectors["b"].n_observed == 400 * n
    qatcore.save_calibration(tmp_path / "part.npz", collectors)
    collectors = qatcore.load_calibration(tmp_path / "part.npz")
    specs = qatcore.calibrate_model(layers, CalibMethod.MSE, axis=axis, collectors=collectors, resume=True)
    assert specs == expected
    assert specs == qatcore.calibrate_model(layers, CalibMethod.MSE, axis=axis, collectors=collectors, resume=True)


def interrupted_at(step, call):
    """Call, with a `KeyboardInterrupt` before the given bytecode inside of the package; whether it came to that."""
    package = os.path.dirname(qatcore.__file__)
    steps = 0

    def trace(frame, event, _):
        nonlocal steps
        if not frame.f_code.co_filename.startswith(package):
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            steps += 1
            if steps == step:
                raise KeyboardInterrupt
        return trace

    # Python 3.12 heeds this of a frame at the next `settrace` only, then for all frames.
    sys._getframe().f_trace_opcodes = True
    sys.settrace(trace)
    try:
        call()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(None)
    return False


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("how", ["observe", "observe the first", "merge", "merge into nothing"])
def test_interrupted_at_any_step(how, axis):
    """Whatever is interrupted where, a collector has seen a batch or not, and works as ever."""
    rng = np.random.default_rng(0)
    first, second = (rng.standard_normal((n, 3)) for n in (9000, 400))

    def observed(*batches):
        collector = CalibrationCollector(axis)
        for batch in batches:
            collector.observe(batch)
        return collector

    other = observed(second)
    before = [] if "the first" in how or "nothing" in how else [first]
    outcomes = [observed(*before), observed(*before, second)]
    state = pickle.dumps(outcomes[0])
    seen = []
    for step in itertools.count(1):
        collector = pickle.loads(state)
        call = (lambda: collector.merge(other)) if "merge" in how else (lambda: collector.observe(second))  # noqa: B023
        if not interrupted_at(step, call):
            break
        seen.append(outcomes.index(collector))
        collector.observe(first)
        collector.merge(collector)
        assert other == observed(second)
    assert collector == outcomes[1]
    assert step > 100
    assert set(seen) == {0, 1}


def test_progress_does_not_take_anything_first():
    """Layers that come with their batches, and go with them."""
    pytest.importorskip("tqdm")

    def layers():
        rows = [("a", np.full(300, 1.0)), ("a", np.full(300, 0.5)), ("b", np.full(300, 3.0)), ("b", np.zeros(300))]
        return ((name, (x for _, x in group)) for name, group in itertools.groupby(rows, lambda row: row[0]))

    expected = qatcore.calibrate_model(layers(), CalibMethod.MIN_MAX)
    with contextlib.redirect_stderr(io.StringIO()):
        assert qatcore.calibrate_model(layers(), CalibMethod.MIN_MAX, progress=True) == expected
    assert [spec.scale for spec in expected] == [0.5 / 255.0, 3.0 / 255.0]


def test_resuming_over_empty_batches():
    batches = [np.zeros((0, 3)), np.ones((200, 3)), np.zeros((0, 3)), np.full((200, 3), 2.0), np.zeros((0, 3))]
    for n in range(len(batches) + 1):
        collectors = {}
        with contextlib.suppress(KeyboardInterrupt):
            qatcore.calibrate_model({"a": Interrupted(batches, n)}, axis=1, collectors=collectors)
        specs = qatcore.calibrate_model({"a": batches}, axis=1, collectors=collectors, resume=True)
        assert specs == qatcore.calibrate_model({"a": batches}, axis=1)


def test_collectors_are_added_to():
    collectors = {}
    qatcore.calibrate_model({"a": BATCHES}, collectors=collectors)
    qatcore.calibrate_model({"a": BATCHES}, collectors=collectors)
    assert collectors["a"].n_observed == 2 * 400 * 4


@pytest.mark.parametrize("method", list(CalibMethod))
@pytest.mark.parametrize("axis", [None, 1])
def test_include_zero(method, axis):
    """What is exported needs zero points that are codes."""
    layers = {"a": [np.random.default_rng(0).normal(100.0, 1.0, (5000, 3))]}
    (spec,) = qatcore.calibrate_model(layers, method, axis=axis, include_zero=True)
    assert np.all(spec.zero_point == -128)
    scale, zero_point = qatcore.calibrate_layer(layers["a"], method, axis=axis, include_zero=True)
    assert np.array_equal(scale, spec.scale)
    assert np.array_equal(zero_point, spec.zero_point)
    qatcore.quantize(layers["a"][0], spec.scale, spec.zero_point, axis=spec.axis)
    (spec,) = qatcore.calibrate_model(layers, method, axis=axis)
    assert np.all(spec.zero_point < -128)


def test_what_is_no_sequence_of_batches():
    x = np.ones((300, 4, 4))
    with pytest.raises(
        InvalidArgumentError, match=r"a: expected an iterable of batches, because there is an axis, got an arr"
    ):
        qatcore.calibrate_model({"a": x}, axis=1)
    with pytest.raises(InvalidArgumentError, match=r"pass \[array\] if it is one batch"):
        qatcore.calibrate_layer(x[0, 0], axis=0)
    with pytest.raises(
        InvalidArgumentError, match="layer_activations: expected one entry for each layer, got two for 'a'"
    ):
        qatcore.calibrate_model([("a", [x]), ("b", [x]), ("a", [x])])
    with pytest.raises(InvalidArgumentError, match="resume: expected collectors of the interrupted run, got None"):
        qatcore.calibrate_model({"a": [x]}, resume=True)
    with pytest.raises(InvalidArgumentError) as caught:
        qatcore.calibrate_model({"a": [x], "b": [x, x[0, 0]]}, axis=1)
    assert caught.value.__notes__ == ["x is batch 1 of b"]


def test_what_does_not_fit_to_go_on_with():
    def collectors(n, axis=None):
        collector = CalibrationCollector(axis)
        collector.observe(np.ones((n, 2)))
        return {"a": collector}

    for n, message in ((300, "600 values, and the last 200 end inside a batch of 400"),
                       (900, "1800 values, 200 more than the batches hold")):  # fmt: skip
        given = collectors(n)
        with pytest.raises(InvalidArgumentError, match=f"a: its collector has seen {message}"):
            qatcore.calibrate_model({"a": BATCHES}, collectors=given, resume=True)
        assert given == collectors(n)
    with pytest.raises(InvalidArgumentError, match="collectors: expected axis=None and groups=1, got axis=1 and"):
        qatcore.calibrate_model({"a": BATCHES}, collectors=collectors(3, 1))
    with pytest.raises(TypeError, match="collectors: expected a mapping"):
        qatcore.calibrate_model({"a": BATCHES}, collectors=[])
    with pytest.raises(TypeError, match="resume: expected a bool"):
        qatcore.calibrate_model({"a": BATCHES}, resume=1)


# --- progress --------------------------------------------------------------------------------------------


def test_progress():
    pytest.importorskip("tqdm")
    layers = {"conv1": BATCHES, "fc": (batch for batch in BATCHES)}
    expected = qatcore.calibrate_model({"conv1": BATCHES, "fc": BATCHES})
    for given in (
        layers,
        {"conv1": BATCHES, "fc": BATCHES},
        iter([("conv1", BATCHES), ("fc", BATCHES[0].reshape(-1))]),
    ):
        with contextlib.redirect_stderr(io.StringIO()) as shown:
            specs = qatcore.calibrate_model(given, progress=True)
        assert specs[0] == expected[0]
        last = shown.getvalue().replace("\r", "\n").strip().splitlines()[-1]
        assert ("fc 2/2: " if isinstance(given, dict) else "fc: ") in last
        assert "16.0kB read" in last or "25.6kB read" in last
        if given is not layers and isinstance(given, dict):
            assert "8/8" in last
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        qatcore.calibrate_layer(itertools.repeat(BATCHES[0], 3), progress=True)
    assert "layer_outputs: 3 batches" in shown.getvalue()
    with contextlib.redirect_stderr(io.StringIO()) as shown:
        qatcore.calibrate_model({"encoder.layer.0.attention.self.query_key_value.dense": BATCHES}, progress=True)
    assert "encoder.lay…_value.dense:" in shown.getvalue()
    with pytest.raises(TypeError, match="progress: expected a bool"):
        qatcore.calibrate_layer(BATCHES, progress="yes")


# --- memory ----------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.skipif("libasan" in os.environ.get("LD_PRELOAD", ""), reason="the sanitizer keeps memory that was freed")
def test_memory_stays_flat():
    """50 tensors, 2,000 batches of 64 K values: the peak is that after 20 batches, to 10 MB."""
    program = """
import resource
import numpy as np
import qatcore

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

rng = np.random.default_rng(0)
batches = [rng.standard_normal(1 << 16).astype(np.float32) for _ in range(8)]
factors = np.exp2(np.linspace(-6, 6, 50)).astype(np.float32)
collectors = [qatcore.CalibrationCollector() for _ in range(50)]
scaled = np.empty(1 << 16, np.float32)
for i in range(2000):
    for factor, collector in zip(factors, collectors):
        np.multiply(batches[i % 8], factor * np.float32(1 + i / 4000), out=scaled)
        collector.observe(scaled)
    if i == 20:
        early = peak()
print(early, peak())
assert collectors[7].n_elements == 2000 << 16
"""
    # Where the package is, which another directory could hide.
    root = Path(qatcore.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True, check=True)
    early, late = map(float, done.stdout.split())
    assert late <= early + 10.0
