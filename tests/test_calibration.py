"""Calibrating layers and models."""

import numpy as np
import pytest

import qatcore
from qatcore import CalibMethod, CalibrationCollector, CalibrationDataset, CalibrationWarning, QuantBits

BATCHES = [np.random.default_rng(i).normal(size=(8, 50)) + i for i in range(4)]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", list(QuantBits))
@pytest.mark.parametrize("method", list(CalibMethod))
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
