"""Every golden case, bit for bit, on `qatcore.reference` and where no departure is named on top level."""

import numpy as np
import pytest
from golden import assert_same_bits, batches, cases

import qatcore
from qatcore import CalibMethod, QatConfig, QuantBits, reference
from qatcore._base import dispatch

METHODS = {"minmax": CalibMethod.MIN_MAX, "perc": CalibMethod.PERCENTILE, "kl": CalibMethod.KL}

every_level = pytest.mark.parametrize("level", dispatch.available_levels(), indirect=True)


def each(group, wanted=lambda case: True):
    found = {number: case for number, case in cases(group).items() if wanted(case)}
    assert found
    return pytest.mark.parametrize("case", list(found.values()), ids=list(found))


def method_of(case):
    name = str(case["method"])
    return next(method for prefix, method in METHODS.items() if name.startswith(prefix))


def assert_pair(actual, expected):
    scale, zero_point = actual
    assert type(scale) is float
    assert type(zero_point) is int
    assert_same_bits(scale, np.float64(expected[0]))
    assert zero_point == int(expected[1])


@every_level
@each("quantize_int")
def test_quantize_int(case, level):
    scale, zero_point = float(case["scale"]), int(case["zero_point"])
    modules = [reference, qatcore] if scale >= 0.0 else [reference]  # top level refuses negative scales
    for module in modules:
        assert_same_bits(module.quantize_int8(case["x"], scale, zero_point), case["int8"])
        assert_same_bits(module.quantize_int4(case["x"], scale, zero_point), case["int4"])


@every_level
@each("quantize_fp8")
def test_quantize_fp8(case, level):
    assert_same_bits(reference.quantize_fp8(case["x"]), case["expected"])


def test_quantize_scalars():
    case = cases("quantize_int")["007"]
    for i in range(0, case["x"].size, 97):
        result = reference.quantize_int8(float(case["x"][i]), float(case["scale"]), int(case["zero_point"]))
        assert type(result) is float
        assert_same_bits(result, case["int8"][i])


@every_level
@each("kl_divergence_symmetric")
def test_kl_divergence_symmetric(case, level):
    assert_same_bits(reference.kl_divergence_symmetric(case["p"], case["q"]), case["expected"])


@every_level
@each("collector")
def test_collector(case, level):
    collector = reference.CalibrationCollector()
    for batch in batches(case):
        collector.observe(batch)
    assert_same_bits(collector.min_val, case["min_val"])
    assert_same_bits(collector.max_val, case["max_val"])
    assert collector.n_elements == int(case["n_elements"])
    assert collector.samples.size == int(case["n_samples"])
    assert_same_bits(collector.histogram, case["histogram"])
    assert_pair(collector.min_max_scale(), case["min_max"])
    assert_pair(collector.kl_divergence_scale(), case["kl"])
    for p, expected in zip(case["percentiles"], case["percentile"], strict=True):
        assert_pair(collector.percentile_scale(p), expected)


@each("collector", lambda case: case["min_max"][0] > 1e-12)  # that floor departs
def test_top_level_collector(case):
    """Range and counts are sound in the reference; percentiles too while all values are samples of it."""
    collector = qatcore.CalibrationCollector()
    for batch in batches(case):
        collector.observe(batch)
    assert collector.min_val == float(case["min_val"])
    assert collector.max_val == float(case["max_val"])
    assert collector.n_elements == int(case["n_elements"])
    assert_pair(collector.min_max_scale(), case["min_max"])
    if collector.n_elements <= 8192:
        for p, expected in zip(case["percentiles"], case["percentile"], strict=True):
            assert_pair(collector.percentile_scale(p), expected)


@each("layer_init")
def test_layer_init(case):
    shape = int(case["out_features"]), int(case["in_features"])
    weights = reference.QatLayer(shape[1], shape[0]).weights
    assert_same_bits(weights, case["weights"].reshape(shape))


@each("layer_init", lambda case: case["in_features"] > 0)  # at top level a layer has features
def test_top_level_layer_init(case):
    """The same generator: the reference's variates are these, halved, and so all negative."""
    shape = int(case["out_features"]), int(case["in_features"])
    limit = np.sqrt(6.0 / sum(shape))
    uniform = (case["weights"].reshape(shape) / limit + 1.0) / 2.0 * (2**32 - 1) / (2**31 - 1)
    weights = qatcore.QatLayer(shape[1], shape[0]).weights
    np.testing.assert_allclose(weights, (uniform * 2.0 - 1.0) * limit, rtol=0, atol=1e-14 * limit)
    assert np.abs(weights).max() <= limit


def prepared(layer, case):
    layer.weights = case["weights"].reshape(layer.out_features, layer.in_features)
    layer.bias = case["bias"]
    for name in ("weight_scale", "activation_scale"):
        setattr(layer, name, float(case[name]))
    for name in ("weight_zero_point", "activation_zero_point"):
        setattr(layer, name, int(case[name]))
    return layer


@every_level
@each("layer")
def test_layer(case, level):
    bits = QuantBits(str(case["bits"]))
    config = QatConfig(bits=bits, symmetric=False)
    shape = int(case["in_features"]), int(case["out_features"])
    # INT4 and FP8 depart at top level: its inference follows the format.
    modules = [reference, qatcore] if bits is QuantBits.INT8 else [reference]
    for module in modules:
        layer = prepared(module.QatLayer(*shape, config), case)
        assert_same_bits(layer.forward_infer(case["x"]), case["forward_infer"])
        np.testing.assert_allclose(layer.forward_train(case["x"]), case["forward_train"], rtol=1e-12, atol=0)
    if bits is QuantBits.INT4:
        layer = prepared(qatcore.QatLayer(*shape, config), case)
        np.testing.assert_allclose(layer.forward_train(case["x"]), case["forward_train"], rtol=1e-12, atol=0)


@each("calibrate_from_data")
def test_calibrate_from_data(case):
    shape = int(case["in_features"]), int(case["out_features"])
    layers = [reference.QatLayer(*shape), qatcore.QatLayer(*shape, QatConfig(symmetric=False))]
    layers[1].weights = layers[0].weights  # the initial ones depart
    for layer in layers:
        layer.calibrate_from_data(case["activations"])
        assert_pair((layer.weight_scale, layer.weight_zero_point), (case["weight_scale"], case["weight_zero_point"]))
        activation = (case["activation_scale"], case["activation_zero_point"])
        assert_pair((layer.activation_scale, layer.activation_zero_point), activation)


@each("quantize_model_weights")
def test_quantize_model_weights(case):
    bits = QuantBits(str(case["bits"]))
    config = QatConfig(bits=bits, symmetric=False)
    sound = bits is QuantBits.INT8 and case["weights"].any()  # zeros have another scale at top level
    modules = [reference, qatcore] if sound else [reference]
    for module in modules:
        codes, scale, zero_point = module.quantize_model_weights(case["weights"], config)
        assert_same_bits(codes, case["quantized"])
        assert_pair((scale, zero_point), (case["scale"], case["zero_point"]))
        assert_same_bits(module.dequantize_weights(codes, scale, zero_point), case["dequantized"])


@each("calibrate_layer")
def test_calibrate_layer(case):
    method = method_of(case)
    given = batches(case)
    assert_pair(reference.calibrate_layer(given, method), (case["scale"], case["zero_point"]))
    specs = reference.calibrate_model([("first", given), ("second", given)])
    assert [spec.layer_name for spec in specs] == ["first", "second"]
    for spec in specs:
        assert spec.method is CalibMethod.KL
        assert_pair((spec.scale, spec.zero_point), (case["model_scale"], case["model_zero_point"]))


@pytest.mark.filterwarnings("ignore::qatcore.CalibrationWarning")
@each("calibrate_layer", lambda case: method_of(case) is not CalibMethod.KL)  # that search is unsound
def test_top_level_calibrate_layer(case):
    given = batches(case)
    assert sum(batch.size for batch in given) <= 8192
    assert_pair(qatcore.calibrate_layer(given, method_of(case)), (case["scale"], case["zero_point"]))


def test_the_reference_has_no_int2():
    config = qatcore.QatConfig("int2")
    for call in (lambda: reference.QatLayer(2, 3, config), lambda: reference.quantize_model_weights([1.0], config)):
        with pytest.raises(qatcore.InvalidArgumentError, match="config: expected a format that the reference has"):
            call()
    layer = reference.QatLayer(2, 3)
    layer.config = config
    with pytest.raises(qatcore.InvalidArgumentError, match="config: expected a format that the reference has"):
        layer.forward_train([1.0, 2.0])
