"""Nothing has happened when an exception comes."""

import math

import numpy as np
import pytest
from inputs import CONFIGS, assert_same, each_module, layer_state, make_layer, state

import qatcore
from qatcore import CalibrationDataset, InvalidArgumentError, QuantBits, reference


class Broken:
    """What fails while it is read."""

    def __array__(self, dtype=None, copy=None):
        raise ZeroDivisionError


BAD_BATCHES = {
    "complex": np.ones(3, np.complex64),
    "object": np.array([1.0, None]),
    "masked": np.ma.array([1.0, 99.0], mask=[0, 1]),
    "ragged": [[1.0], [2.0, 99.0]],
    "str": "99",
    "None": None,
    "broken": Broken(),
    "list of broken": [1.0, Broken()],
}
ERRORS = (TypeError, InvalidArgumentError, ZeroDivisionError)


@each_module
@pytest.mark.parametrize("n", [0, 5, 9000])
@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_collectors_are_as_they_were(module, n, bad):
    collector = module.CalibrationCollector()
    collector.observe(np.linspace(-1.0, 2.0, n))
    before = state(collector)
    with pytest.raises(ERRORS):
        collector.observe(BAD_BATCHES[bad])
    assert_same(state(collector), before)
    with pytest.raises(ERRORS):
        collector.percentile_scale(None)
    if module is qatcore:
        for mask in ([True, False], [1] * 5, None if n == 5 else [[True] * 7]):
            with pytest.raises(ERRORS):
                collector.observe(np.ones(5) if mask is not None else 1j, mask=mask)
        with pytest.raises(TypeError):
            collector.merge(BAD_BATCHES[bad])
        with pytest.raises(InvalidArgumentError):
            collector.min_max_scale(bits="int3")
    assert_same(state(collector), before)


def test_datasets_are_as_they_were():
    dataset = CalibrationDataset()
    dataset.push([1.0, 2.0])
    for bad in BAD_BATCHES.values():
        with pytest.raises(ERRORS):
            dataset.push(bad)
    assert [batch.tolist() for batch in dataset] == [[1.0, 2.0]]


BAD_VALUES = {
    "weights": [np.ones((4, 5)), np.ones((5, 4), complex), [[1.0], [1.0, 2.0]], None, "a"],
    "bias": [np.ones(4), np.ones(5, complex), [[1.0], [1.0, 2.0]], None],
    "weight_scale": [-1.0, math.nan, np.ones(4), [1.0, 1.0, -1.0, 1.0, 1.0], 1j, None],
    "weight_zero_point": [2**31, 0.5, [0] * 4, [0, 0, 2**31, 0, 0], None],
    "activation_scale": [-1.0, math.nan, [1.0], 1j, None],
    "activation_zero_point": [2**31, 0.5, [0], None],
    "config": [None, "int8", QuantBits.INT8],
}


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("name", BAD_VALUES)
def test_layers_are_as_they_were(config, name):
    layer = make_layer(config=config)
    x = np.linspace(-1.0, 2.0, 8).reshape(2, 4)
    before = [*layer_state(layer), layer.forward_infer(x), layer.forward_train(x)]
    for bad in BAD_VALUES[name]:
        with pytest.raises(ERRORS):
            setattr(layer, name, bad)
        assert_same([*layer_state(layer), layer.forward_infer(x), layer.forward_train(x)], before)


@each_module
@pytest.mark.parametrize("bad", BAD_BATCHES)
def test_layers_are_as_they_were_after_calls(module, bad):
    layer = make_layer(module)
    layer.weight_scale = 0.123  # calibration would change it
    x = np.ones(4)
    before = [*layer_state(layer), layer.forward_infer(x), layer.forward_train(x)]
    for call in (layer.calibrate_from_data, layer.forward_train, layer.forward_infer):
        with pytest.raises(ERRORS):
            call(BAD_BATCHES[bad])
        assert_same([*layer_state(layer), layer.forward_infer(x), layer.forward_train(x)], before)
    if module is qatcore:
        with pytest.raises(InvalidArgumentError):
            layer.calibrate_from_data(x, "entropy")
        assert_same([*layer_state(layer), layer.forward_infer(x), layer.forward_train(x)], before)


def test_reference_layer_refuses_weights_it_was_given():
    """Its attributes are free; what is wrong with them is said when they are used, and nothing changes."""
    layer = make_layer(reference)
    before = layer_state(layer)
    layer.weights = np.ones((5, 4), complex)
    with pytest.raises(TypeError, match=r"expected real numbers .*, got complex128"):
        layer.calibrate_from_data([5.0, 6.0])
    assert_same(layer_state(layer)[5:], before[5:])


def test_number_of_threads_is_as_it_was():
    before = qatcore.get_num_threads()
    for bad in (0, -1, 1.5, "2", None):
        with pytest.raises((TypeError, InvalidArgumentError)):
            qatcore.set_num_threads(bad)
    assert qatcore.get_num_threads() == before
