"""On Dask, whatever the scheduler and the chunks: the bits of the local run."""

import os
import signal
import threading

import numpy as np
import pytest
from elsewhere import batch
from hypothesis import given, settings
from hypothesis import strategies as st

import qatcore
from qatcore import CalibMethod, CalibrationCollector, InvalidArgumentError, QuantBits

pytest.importorskip("dask.array")
import dask
import dask.array

from qatcore.dask import calibrate_model, collect

pytestmark = pytest.mark.slow


def observed(x, **keywords):
    collector = CalibrationCollector(**keywords)
    collector.observe(x)
    return collector


@settings(max_examples=40)
@given(
    st.integers(0, 2**32 - 1), st.tuples(*[st.integers(1, 9)] * 3), st.sampled_from([None, 0, 1, -1, (0, 1), (2, 0)])
)
def test_any_chunks_and_axis(seed, chunks, axis):
    x = np.random.default_rng(seed).standard_normal((7, 12, 10))
    x[0, :3] = np.nan
    array = dask.array.from_array(x, chunks=chunks)
    with dask.config.set(scheduler="synchronous"):
        assert collect(array, axis).compute() == observed(x, axis=axis)


@pytest.mark.parametrize("groups", [1, 4, 12])
@pytest.mark.parametrize("axis", [1, (0, 1), (2, 1)])
def test_groups_that_chunks_cut(axis, groups):
    x = np.random.default_rng(0).standard_normal((5, 24, 6))
    array = dask.array.from_array(x, chunks=(2, 7, 4))
    assert collect(array, axis, groups=groups).compute() == observed(x, axis=axis, groups=groups)


@pytest.mark.parametrize("scheduler", ["synchronous", "threads"])
def test_batches(scheduler):
    rng = np.random.default_rng(1)
    parts = [rng.standard_normal((n, 3)).astype(np.float32) for n in (1, 9000, 50, 700, 0, 3, 20, 40, 60, 80)]
    expected = observed(np.concatenate(parts), axis=1)
    with dask.config.set(scheduler=scheduler):
        assert collect([dask.delayed(part) for part in parts], axis=1).compute() == expected
        assert collect(iter(parts), axis=1).compute() == expected
        assert collect(dask.delayed(np.ones)(5) for _ in range(2)).compute() == observed(np.ones(10))
        assert collect([]).compute() == CalibrationCollector()
        assert collect(np.arange(5.0)).compute() == observed(np.arange(5.0))
        assert collect(dask.array.ones((), chunks=())).compute() == observed(1.0)


def test_computing_twice_gives_the_same():
    delayed = collect(dask.array.arange(1000, chunks=10))
    first, second = dask.compute(delayed, delayed)
    assert first == second == delayed.compute() == observed(np.arange(1000))


@pytest.mark.parametrize("method", list(CalibMethod))
@pytest.mark.parametrize("axis", [None, 1])
def test_models_are_the_local_ones(method, axis):
    rng = np.random.default_rng(2)
    arrays = {name: rng.standard_normal((3000, 4)) ** power for name, power in (("a", 1), ("b", 2), ("c", 3))}
    expected = qatcore.calibrate_model(
        {name: np.split(x, 3) for name, x in arrays.items()}, method, bits=QuantBits.INT4, axis=axis
    )
    layers = {
        "a": dask.array.from_array(arrays["a"], chunks=(700, 3)),
        "b": [dask.delayed(part) for part in np.array_split(arrays["b"], 7)],
        "c": np.split(arrays["c"], 3),
    }
    with dask.config.set(scheduler="threads"):
        assert calibrate_model(layers, method, bits=QuantBits.INT4, axis=axis) == expected
        assert calibrate_model(list(layers.items()), method.value, bits="int4", axis=axis) == expected


def test_no_channels_or_values():
    assert collect(dask.array.ones((5, 0), chunks=2), 1, groups=4).compute().shape == (0,)
    assert collect(dask.array.ones((0, 5), chunks=2), 1).compute() == observed(np.ones((0, 5)), axis=1)


def test_batches_that_do_not_fit_together():
    with pytest.raises(InvalidArgumentError, match=r"x: expected channels of shape \(2,\) as before, got \(3,\)"):
        collect([np.ones((4, 2)), np.ones((4, 3))], 1).compute(scheduler="synchronous")


def test_wrong_arguments():
    x = dask.array.ones((4, 6), chunks=2)
    for given_array in (3, "x", {"a": 1}, dask.delayed(1)):
        with pytest.raises(TypeError, match="x: expected a dask array or an iterable of batches"):
            collect(given_array)
    with pytest.raises(InvalidArgumentError, match="x: expected an array with axis 2"):
        collect(x, 2)
    with pytest.raises(InvalidArgumentError, match="x: expected a multiple of 4 along axis 1"):
        collect(x, 1, groups=4)
    with pytest.raises(InvalidArgumentError, match="x: expected chunks of known size along axis 0"):
        collect(x[x[:, 0] > 0], 0)
    assert collect(x[x[:, 0] > 0], 1).compute() == observed(np.ones((4, 6)), axis=1)
    assert collect(x[x[:, 0] > 0]).compute().n_elements == 24
    with pytest.raises(InvalidArgumentError, match=r"x: expected a dask array or batches where there is an axis"):
        collect(np.ones((3, 3)), 0)
    with pytest.raises(TypeError, match=r"x: expected real numbers .*, got complex128"):
        collect(x + 1j)
    with pytest.raises(
        InvalidArgumentError, match="layer_activations: expected one entry for each layer, got two for 'a'"
    ):
        calibrate_model([("a", x), ("a", x)])
    with pytest.raises(InvalidArgumentError, match="method: expected one of"):
        calibrate_model({"a": x}, "best")
    with pytest.raises(TypeError, match="layer_activations"):
        calibrate_model(3)


# --- a cluster -------------------------------------------------------------------------------------------


def test_a_worker_that_is_killed(tmp_path):
    """Two worker processes, one of them killed in the middle of the job: the same bits as here."""
    distributed = pytest.importorskip("distributed")
    expected = {axis: observed(np.concatenate([batch(i) for i in range(60)]), axis=axis) for axis in (None, 1)}
    settings = {"distributed.worker.memory.spill": False, "distributed.comm.timeouts.connect": "10s"}
    with (
        dask.config.set({**settings, "temporary-directory": str(tmp_path)}),
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.wait_for_workers(2, timeout=60)
        before = client.run(os.getpid)
        victim = next(iter(before.values()))
        jobs = [collect([dask.delayed(batch)(i, 0.05) for i in range(60)], axis) for axis in expected]
        futures = client.compute(jobs)
        killer = threading.Timer(1.0, os.kill, (victim, signal.SIGKILL))
        killer.start()
        found = client.gather(futures)
        killer.join()
        assert victim not in client.run(os.getpid).values()
        assert found == list(expected.values())
        layers = {"a": [dask.delayed(batch)(i) for i in range(9)], "b": dask.array.ones((600, 4), chunks=100)}
        specs = calibrate_model(layers, CalibMethod.AUTO)
    local = {"a": [batch(i) for i in range(9)], "b": [np.ones((600, 4))]}
    assert specs == qatcore.calibrate_model(local, CalibMethod.AUTO)
