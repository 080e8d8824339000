"""Nothing changes what it was given, what is kept is a copy, and what is kept can be copied and pickled."""

import copy
import itertools
import math
import pickle

import numpy as np
import pytest
from inputs import (
    CONFIGS,
    FUNCTIONS,
    REFERENCE_CONFIGS,
    assert_same,
    each_function,
    each_module,
    infer,
    layer_state,
    make_layer,
    of_kind,
    sample,
    state,
)

import qatcore
from qatcore import (
    CalibMethod,
    CalibrationCollector,
    CalibrationDataset,
    InvalidArgumentError,
    QatConfig,
    QatLayer,
    QuantBits,
    QuantizationSpec,
    reference,
)

each_config = pytest.mark.parametrize("config", CONFIGS, ids=repr)

ROUND_TRIPS = {
    **{
        f"pickle{protocol}": lambda value, protocol=protocol: pickle.loads(pickle.dumps(value, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
}
pytestmark = pytest.mark.filterwarnings("ignore::qatcore.CalibrationWarning")
each_round_trip = pytest.mark.parametrize("trip", ROUND_TRIPS.values(), ids=list(ROUND_TRIPS))


# --- arguments -------------------------------------------------------------------------------------------


@each_function
def test_arguments_are_not_changed(name):
    function = FUNCTIONS[name]
    x = sample(function.kind)
    before = x.copy()
    first = function(x)
    assert_same(x, before)
    assert_same(function(x), first)
    x.setflags(write=False)
    assert_same(function(x), first)
    assert_same(x, before)


@pytest.mark.parametrize("name", of_kind("matrix"))
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_results_share_no_memory_with_arguments(name, dtype):
    x = sample("matrix", dtype)
    result = FUNCTIONS[name](x)
    arrays = [r for r in (result if isinstance(result, (list, tuple)) else [result]) if isinstance(r, np.ndarray)]
    assert not any(np.shares_memory(x, array) for array in arrays)


@each_module
def test_scale_zero_returns_a_copy(module):
    x = np.array([1.5, -0.0, math.nan])
    result = module.quantize_int8(x, 0.0)
    assert_same(result, x)
    result[:] = 7.0
    assert_same(x, np.array([1.5, -0.0, math.nan]))


@each_module
def test_observed_arrays_may_be_reused(module):
    collector, fresh = module.CalibrationCollector(), module.CalibrationCollector()
    buffer = np.empty(5)
    for i in range(3):
        buffer[:] = np.arange(5.0) + i
        collector.observe(buffer)
        fresh.observe(np.arange(5.0) + i)
    buffer[:] = 1e9
    assert_same(state(collector), state(fresh))
    assert collector.max_val == 6.0


@each_module
def test_what_collectors_return_is_the_callers(module):
    collector = module.CalibrationCollector()
    collector.observe([1.0, 2.0, 4.0])
    before = state(collector)
    arrays = [collector.samples, collector.histogram] if module is reference else collector.histogram()
    for array in arrays:
        array[:] = 99.0
    assert_same(state(collector), before)


def test_datasets_keep_copies():
    dataset = CalibrationDataset()
    x = np.array([1.0, 2.0])
    dataset.push(x)
    x[:] = 9.0
    dataset.data.append("not in the dataset")
    assert [batch.tolist() for batch in dataset] == [[1.0, 2.0]]


# --- layers ----------------------------------------------------------------------------------------------

X = np.array([[0.5, -1.0, 2.0, 0.1], [3.0, 0.0, -0.25, 1.0]])


def outputs(layer):
    return [layer.forward_infer(X), layer.forward_train(X)]


def rebuilt(layer):
    """A layer that never had other parameters."""
    other = QatLayer(layer.in_features, layer.out_features, layer.config)
    for name in ("weights", "bias", "weight_scale", "weight_zero_point", "activation_scale", "activation_zero_point"):
        setattr(other, name, getattr(layer, name))
    return other


@each_config
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_layers_keep_copies(config, dtype):
    weights, bias = np.arange(12.0).reshape(3, 4).astype(dtype) - 5.0, np.ones(3)
    scale, zero_point = np.array([0.1, 0.2, 0.3]), np.array([0, 1, 2], np.int32)
    layer = QatLayer.from_weights(weights, bias, config)
    assigned = QatLayer(4, 3, config)
    assigned.weights, assigned.bias = weights, bias
    if config.per_channel:
        layer.weight_scale = assigned.weight_scale = scale
        layer.weight_zero_point = assigned.weight_zero_point = zero_point
    before = [outputs(layer), outputs(assigned), layer_state(layer), layer_state(assigned)]
    for array in (weights, bias, scale, zero_point):
        array[...] = 77
    assert_same([outputs(layer), outputs(assigned), layer_state(layer), layer_state(assigned)], before)
    if config.per_channel:  # what is read is a copy too
        layer.weight_scale[:] = 88.0
        layer.weight_zero_point[:] = 88
        assert_same(layer_state(layer), before[2])


@each_config
def test_weights_are_a_read_only_view(config):
    weights = np.arange(12.0).reshape(3, 4)
    assigned = QatLayer(4, 3, config)
    assigned.weights = weights
    for layer in (QatLayer(4, 3, config), QatLayer.from_weights(weights, config=config), assigned):
        view = layer.weights
        assert not view.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            view[0, 0] = 1.0
        with pytest.raises(ValueError, match="WRITEABLE"):
            view.setflags(write=True)
        with pytest.raises(ValueError, match="read-only"):
            layer.weights += 1.0
        assert_same(layer.weights, view)
    assert weights.flags.writeable


@each_config
def test_assignment_is_seen_by_the_next_forward(config):
    """Whatever was computed before."""
    layer = make_layer(config=config, shape=(3, 4))
    one_scale = 0.05 if not config.per_channel else np.array([0.05, 0.1, 0.2])
    one_zero_point = 5 if not config.per_channel else np.array([5, -3, 0], np.int32)
    other = {bits: QatConfig(bits, config.per_channel, not config.symmetric) for bits in QuantBits}
    values = [
        ("weights", np.linspace(-2.0, 2.0, 12).reshape(3, 4)),
        ("weights", np.linspace(-2.0, 1.0, 12, dtype=np.float32).reshape(3, 4)),
        ("weight_scale", one_scale),
        ("weight_scale", 0.07),
        ("weight_zero_point", one_zero_point),
        ("weight_zero_point", -2),
        ("activation_scale", 0.11),
        ("activation_zero_point", 4),
        ("bias", [5.0, 6.0, 7.0]),
        *(("config", changed) for changed in other.values()),
        ("config", config),
    ]
    for name, value in values:
        outputs(layer)
        setattr(layer, name, value)
        assert_same(outputs(layer), outputs(rebuilt(layer)))
        assert_same(layer.forward_infer(X), np.array([infer(layer, row) for row in X]))
    layer.calibrate_from_data(X)
    assert_same(layer.forward_infer(X), np.array([infer(layer, row) for row in X]))


@each_config
def test_shapes_of_parameters(config):
    layer = make_layer(config=config)
    shape = (5,) if config.per_channel else ()
    for trained in (layer, QatLayer(4, 5, config), QatLayer.from_weights(np.ones((5, 4)), config=config)):
        assert np.shape(trained.weight_scale) == np.shape(trained.weight_zero_point) == shape
        if config.per_channel:
            assert trained.weight_scale.dtype == np.float64
            assert trained.weight_zero_point.dtype == np.int32
        else:
            assert type(trained.weight_scale) is float
            assert type(trained.weight_zero_point) is int
        assert type(trained.activation_scale) is float
        assert type(trained.activation_zero_point) is int
        assert trained.weights.shape == (trained.out_features, trained.in_features) == (5, 4)
        assert trained.bias.shape == (5,)
        assert trained.bias.dtype == np.float64
    if config.per_channel:
        layer.weight_scale, layer.weight_zero_point = 0.5, 3  # one for all
        assert layer.weight_scale.tolist() == [0.5] * 5
        assert layer.weight_zero_point.tolist() == [3] * 5


@pytest.mark.parametrize("config", [config for config in CONFIGS if config.per_channel], ids=repr)
def test_channels_are_calibrated_apart(config):
    """A channel has the scale that it has alone."""
    layer = make_layer(config=config)
    for channel, row in enumerate(layer.weights):
        alone = qatcore.quantize_model_weights(row, QatConfig(config.bits, False, config.symmetric))
        assert layer.weight_scale[channel] == alone[1]
        assert layer.weight_zero_point[channel] == alone[2]


@pytest.mark.parametrize("bits", QuantBits)
def test_changing_per_channel(bits):
    """Equal channels collapse to one, and one spreads to all."""
    one, channels = QatConfig(bits), QatConfig(bits, per_channel=True)
    layer = make_layer(config=one)
    before = outputs(layer)
    scale = layer.weight_scale
    layer.config = channels
    assert layer.weight_scale.tolist() == [scale] * 5
    assert_same(outputs(layer), before)
    layer.config = one
    assert layer.weight_scale == scale
    assert_same(outputs(layer), before)


def test_reference_weights_may_be_changed_in_place():
    layer = make_layer(reference)
    before = layer.forward_infer(X)
    layer.weights *= 0.5
    other = make_layer(reference)
    for name in ("weight_scale", "weight_zero_point", "activation_scale", "activation_zero_point"):
        setattr(other, name, getattr(layer, name))
    other.weights = layer.weights.copy()
    assert_same(layer.forward_infer(X), other.forward_infer(X))
    assert not np.array_equal(layer.forward_infer(X), before)


# --- copies and pickles ----------------------------------------------------------------------------------


def collectors(module):
    """From nothing, to few values, to more than are kept as they are."""
    batches = [[], [1.5], [math.nan, math.inf], [-1.0, 0.0, math.nan, -math.inf, 2.5], np.linspace(-1.0, 3.0, 20_000)]
    for batch in batches:
        collector = module.CalibrationCollector()
        collector.observe(batch)
        yield collector


@each_module
@each_round_trip
def test_collectors(module, trip):
    for collector in collectors(module):
        before = state(collector)
        other = trip(collector)
        assert type(other) is type(collector)
        assert_same(state(other), before)
        if module is qatcore:
            assert other == collector
            assert repr(other) == repr(collector)
        # Each goes its own way.
        other.observe([7.0, math.nan])
        assert_same(state(collector), before)
        collector.observe([7.0, math.nan])
        assert_same(state(other), state(collector))
        if module is qatcore:
            assert other == collector


def test_pickles_do_not_depend_on_how_values_came():
    x = np.linspace(-1.0, 3.0, 30_000)
    whole, parts = CalibrationCollector(), CalibrationCollector()
    whole.observe(x)
    for part in np.array_split(x[::-1], 7):
        parts.observe(part)
    assert pickle.loads(pickle.dumps(whole)) == pickle.loads(pickle.dumps(parts)) == whole
    assert len(pickle.dumps(whole)) < 40_000


@each_round_trip
def test_configs_and_enumerations(trip):
    for config in CONFIGS:
        other = trip(config)
        assert other == config
        assert hash(other) == hash(config)
        assert other.bits is config.bits
    for member in (*QuantBits, *CalibMethod):
        assert trip(member) is member
    assert len(set(CONFIGS)) == len(CONFIGS) == 16


def specs():
    scale, zero_point = np.array([0.1, 0.2]), np.array([0, 3], np.int32)
    base = {"layer_name": "fc1", "scale": 0.5, "zero_point": 3, "method": CalibMethod.MSE}
    yield base
    yield {**base, "scale": 0.25}
    yield {**base, "zero_point": 4}
    yield {**base, "layer_name": "fc2"}
    yield {**base, "method": CalibMethod.KL}
    yield {**base, "bits": QuantBits.INT4}
    yield {**base, "symmetric": True}
    yield {**base, "scale": scale, "zero_point": zero_point, "axis": 0}
    yield {**base, "scale": scale * 2, "zero_point": zero_point, "axis": 0}
    yield {**base, "scale": scale, "zero_point": zero_point + 1, "axis": 0}
    yield {**base, "scale": scale[:1], "zero_point": zero_point[:1], "axis": 0}


@each_round_trip
def test_specifications(trip):
    for fields in specs():
        spec = QuantizationSpec(**fields)
        other = trip(spec)
        assert other == spec
        assert hash(other) == hash(spec)
        assert repr(other) == repr(spec)
        assert_same(vars(other)["scale"], spec.scale)


def test_equality_of_specifications():
    """All fields, and arrays by value."""
    for (i, a), (j, b) in itertools.product(enumerate(specs()), repeat=2):
        left, right = QuantizationSpec(**a), QuantizationSpec(**copy.deepcopy(b))
        assert (left == right) is (i == j)
        assert (left != right) is (i != j)
        if left == right:
            assert hash(left) == hash(right)
    distinct = [QuantizationSpec(**fields) for fields in specs()]
    assert len({*distinct, *(copy.deepcopy(spec) for spec in distinct)}) == len(distinct)
    assert distinct[0] != "fc1"
    assert distinct[0] != QatConfig()
    assert QuantizationSpec("a", 1.0, 0, "kl", "int4") == QuantizationSpec("a", 1.0, 0, CalibMethod.KL, QuantBits.INT4)


@each_module
@each_round_trip
@each_config
def test_layers(module, config, trip):
    if module is reference and config not in REFERENCE_CONFIGS:
        pytest.skip("the reference has no int2")
    layer = make_layer(module, config)
    for used in (False, True):
        if used:
            outputs(layer)
        other = trip(layer)
        assert_same(layer_state(other), layer_state(layer))
        assert_same(outputs(other), outputs(layer))
        before = [*layer_state(layer), outputs(layer)]
        other.weights = np.ones((5, 4))
        other.bias = np.ones(5)
        other.weight_scale = other.activation_scale = 0.5
        other.calibrate_from_data([1.0, 2.0])
        assert_same([*layer_state(layer), outputs(layer)], before)


@each_round_trip
def test_weights_of_copies_are_a_read_only_view(trip):
    layer = make_layer()
    outputs(layer)
    other = trip(layer)
    assert not other.weights.flags.writeable
    with pytest.raises(ValueError, match="read-only"):
        other.weights[0, 0] = 99.0


@each_round_trip
def test_datasets(trip):
    dataset = CalibrationDataset()
    dataset.push([1.0, 2.0])
    dataset.push(np.int8([[3]]))
    other = trip(dataset)
    assert_same(list(other), list(dataset))
    assert len(other) == 2


@each_round_trip
def test_errors(trip):
    error = InvalidArgumentError("x: expected 4 inputs, got 3")
    assert type(trip(error)) is InvalidArgumentError
    assert str(trip(error)) == str(error)


def test_collectors_compare_by_what_they_hold():
    a, b = CalibrationCollector(), CalibrationCollector()
    assert a == b
    a.observe([1.0, -0.0])
    b.observe(np.float32([0.0, 1.0]))
    assert a == b
    b.observe(math.nan)
    assert a != b
    assert a != 5
    with pytest.raises(TypeError, match="unhashable"):
        hash(a)
