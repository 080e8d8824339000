"""Single values, no values, values that are not finite and values that are left out."""

import math

import ml_dtypes
import numpy as np
import pytest
from inputs import (
    BFLOAT16,
    BOOL,
    CODES,
    CONFIGS,
    E4M3,
    FLOATS,
    FUNCTIONS,
    INTEGERS,
    LAYOUTS,
    REFERENCE_CONFIGS,
    assert_same,
    each_elementwise,
    each_module,
    infer,
    laid_out,
    make_layer,
    of_kind,
    sample,
    state,
)

import qatcore
from qatcore import QatConfig, QuantBits, reference

pytestmark = pytest.mark.filterwarnings("ignore::qatcore.CalibrationWarning")


# --- scalars and 0-d arrays ------------------------------------------------------------------------------


@each_elementwise
@pytest.mark.parametrize("x", [2, -7, 0, True, False, 2**63, 1.26, -0.0, 1e300, math.nan, math.inf], ids=repr)
def test_python_scalars(name, x):
    result = FUNCTIONS[name](x)
    assert type(result) is float
    assert_same(np.array([result]), FUNCTIONS[name](np.array([float(x)])))


@each_elementwise
@pytest.mark.parametrize("kind", [*(d.type for d in FLOATS), *(d.type for d in INTEGERS), np.bool_])
@pytest.mark.parametrize("value", [0, 1, 3, 100])
def test_numpy_scalars(name, kind, value):
    x = kind(value)
    result = FUNCTIONS[name](x)
    assert isinstance(result, np.generic)
    assert_same(np.array([result]), FUNCTIONS[name](np.array([x])))


@each_elementwise
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, BOOL], ids=lambda dtype: dtype.name + dtype.char)
def test_0d_arrays(name, dtype):
    x = np.array(1, dtype)
    result = FUNCTIONS[name](x)
    assert type(result) is np.ndarray
    assert_same(result, FUNCTIONS[name](x.reshape(1)).reshape(()))


@each_module
@pytest.mark.parametrize("x", [3, 1.5, np.float32(1.5), np.int8(3), BFLOAT16.type(1.5), np.array(1.5)], ids=repr)
def test_scalars_elsewhere(module, x):
    """A single value is an array of one."""
    one = np.array([float(x)])
    collectors = [module.CalibrationCollector() for _ in range(2)]
    for collector, value in zip(collectors, (x, one), strict=True):
        collector.observe(value)
    assert_same(state(collectors[0]), state(collectors[1]))
    assert collectors[0].n_elements == 1
    codes, scale, zero_point = module.quantize_model_weights(x)
    expected = module.quantize_model_weights(one)
    assert_same((codes.reshape(1), scale, zero_point), expected)
    assert codes.shape == ()
    layers = [make_layer(module) for _ in range(2)]
    for layer, value in zip(layers, (x, one), strict=True):
        layer.calibrate_from_data(value)
    assert layers[0].activation_scale == layers[1].activation_scale


@each_module
def test_dequantize_scalars(module):
    result = module.dequantize_weights(np.array(5, np.int8), 0.5, 3)
    assert type(result) is np.ndarray
    assert_same(result, np.array(1.0))
    assert module.dequantize_weights(np.int8(5), 0.5, 3) == 1.0


@each_module
@pytest.mark.parametrize("scale", [0.5, np.float32(0.5), np.array(0.5), BFLOAT16.type(0.5), np.float16(0.5)], ids=repr)
@pytest.mark.parametrize("zero_point", [3, np.int8(3), np.uint64(3), np.array(3), np.array(3, ">i2")], ids=repr)
def test_scalar_parameters(module, scale, zero_point):
    x = [0.3, 1.26, 1e9]
    assert_same(module.quantize_int8(x, scale, zero_point), np.array([0.5, 1.5, 62.0]))
    assert_same(module.quantize_int4(x, scale, zero_point), np.array([0.5, 1.5, 2.0]))
    codes = np.array([-1, 0, 5], np.int8)
    assert_same(module.dequantize_weights(codes, scale, zero_point), np.array([-2.0, -1.5, 1.0]))
    layer, plain = make_layer(module), make_layer(module)
    plain.activation_scale, plain.activation_zero_point = 0.5, 3
    layer.activation_scale, layer.activation_zero_point = scale, zero_point
    plain.weight_scale, plain.weight_zero_point = 0.5, 3
    layer.weight_scale, layer.weight_zero_point = scale, zero_point
    row = np.array([0.3, 1.26, -2.0, 5.0])
    assert_same(layer.forward_infer(row), plain.forward_infer(row))
    assert_same(layer.forward_train(row), plain.forward_train(row))


@each_module
@pytest.mark.parametrize("p", [90, 90.0, np.float32(90), np.int8(90), np.array(90.0), BFLOAT16.type(90)], ids=repr)
def test_percent_types(module, p):
    collector = module.CalibrationCollector()
    collector.observe(np.arange(1001.0))
    # 50 values are left out at the lower end, 49 at the upper.
    assert collector.percentile_scale(p) == ((951 - 50) / 255, -128 - round(50 / ((951 - 50) / 255)))


@each_module
@pytest.mark.parametrize(("p", "clamped"), [(-5, 0), (-math.inf, 0), (101, 100), (math.inf, 100)])
def test_percentiles_are_clamped(module, p, clamped):
    collector = module.CalibrationCollector()
    collector.observe(np.arange(1001.0))
    assert collector.percentile_scale(p) == collector.percentile_scale(clamped)
    assert collector.percentile_scale(100) == collector.min_max_scale() == (1000 / 255, -128)


# --- nothing, and nothing finite -------------------------------------------------------------------------


@each_elementwise
@pytest.mark.parametrize("shape", [(0,), (0, 3), (3, 0), (2, 0, 4)])
@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(np.int8), BOOL], ids=str)
def test_empty_elementwise(name, shape, dtype):
    like = FUNCTIONS[name].result == "like" and dtype in FLOATS
    assert_same(FUNCTIONS[name](np.empty(shape, dtype)), np.empty(shape, dtype if like else np.float64))


@each_module
@pytest.mark.parametrize("x", [[], [[]], (), np.empty((3, 0), np.float16), np.empty((0, 3), np.int8)], ids=repr)
def test_empty_elsewhere(module, x):
    collector = module.CalibrationCollector()
    before = state(collector)
    collector.observe(x)
    assert_same(state(collector), before)
    assert collector.n_elements == 0
    assert (collector.min_val, collector.max_val) == (math.inf, -math.inf)
    assert module.calibrate_layer([x, x], qatcore.CalibMethod.KL) == (1.0, 0)
    shape = np.shape(x)
    assert_same(module.quantize_model_weights(x), (np.empty(shape, np.int8), 1.0, 0))
    assert_same(module.dequantize_weights(np.empty(shape, np.int8), 0.5), np.empty(shape))
    layer, untouched = make_layer(module), make_layer(module)
    layer.calibrate_from_data(x)
    assert layer.activation_scale == untouched.activation_scale
    assert layer.activation_zero_point == untouched.activation_zero_point


@each_module
def test_no_batches(module):
    assert module.calibrate_layer([], qatcore.CalibMethod.MIN_MAX) == (1.0, 0)
    assert module.calibrate_model({}) == []
    assert [spec.scale for spec in module.calibrate_model([("a", [])])] == [1.0]


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_empty_weights(config, shape):
    codes, scale, zero_point = qatcore.quantize_model_weights(np.empty(shape), config)
    assert codes.shape == shape
    assert codes.dtype == (E4M3 if config.bits is QuantBits.FP8 else np.int8)
    assert np.shape(scale) == np.shape(zero_point) == (shape[:1] if config.per_channel else ())
    assert np.all(scale == 1.0)
    assert not np.any(zero_point)
    assert_same(qatcore.dequantize_weights(codes, scale, zero_point), np.empty(shape))


@each_module
@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_no_rows(module, config):
    if module is reference and config not in REFERENCE_CONFIGS:
        pytest.skip("the reference has no int2")
    layer = make_layer(module, config)
    for forward in (layer.forward_train, layer.forward_infer):
        assert_same(forward(np.empty((0, 4))), np.empty((0, 5)))


@pytest.mark.parametrize("method", ["forward_train", "forward_infer"])
def test_reference_layers_without_features(method):
    """Without inputs the bias is left; without outputs nothing."""
    layer = reference.QatLayer(0, 3)
    layer.bias = np.array([1.0, -2.0, 0.5])
    assert_same(getattr(layer, method)([]), layer.bias)
    assert_same(getattr(layer, method)(np.empty((2, 0))), np.array([layer.bias] * 2))
    assert_same(getattr(reference.QatLayer(3, 0), method)([1.0, 2.0, 3.0]), np.empty(0))


def test_empty_products():
    for m, k, n in ((0, 3, 2), (2, 3, 0), (2, 0, 3), (0, 0, 0)):
        product = qatcore.int8_matmul(np.zeros((m, k), np.int8), np.zeros((k, n), np.int8))
        assert_same(product, np.zeros((m, n), np.int64))
    assert reference.kl_divergence_symmetric([], [0.5]) == 0.0


@each_module
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_what_is_not_finite_never_enters_a_range(module, dtype):
    finite = np.array([0.5, -1.25, 3.0, 0.0], dtype)
    special = np.array([np.nan, np.inf, -np.inf, np.nan, np.inf, np.nan], dtype)
    with_special, without, only = (module.CalibrationCollector() for _ in range(3))
    with_special.observe(np.concatenate([special[:3], finite, special[3:]]))
    with_special.observe(special[:1])
    without.observe(finite)
    only.observe(special)
    assert with_special.n_elements == without.n_elements == 4
    assert (with_special.min_val, with_special.max_val) == (-1.25, 3.0)
    assert with_special.min_max_scale() == without.min_max_scale() == (4.25 / 255, -128 + round(1.25 / (4.25 / 255)))
    assert with_special.percentile_scale(50.0) == without.percentile_scale(50.0)
    assert with_special.kl_divergence_scale() == without.kl_divergence_scale()
    assert (only.n_elements, only.min_val, only.max_val) == (0, math.inf, -math.inf)
    assert only.min_max_scale() == only.kl_divergence_scale() == only.percentile_scale(99.0) == (1.0, 0)
    if module is qatcore:
        assert with_special.mse_scale() == without.mse_scale()
        assert only.mse_scale() == (1.0, 0)
        assert (with_special.n_nan, with_special.n_posinf, with_special.n_neginf) == (4, 2, 1)
        assert (only.n_nan, only.n_posinf, only.n_neginf) == (3, 2, 1)


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
def test_weights_that_are_not_finite(config):
    """Channels: all finite, some finite, nothing finite."""
    weights = np.array([[0.5, -1.0, 0.25], [math.nan, math.inf, 2.0], [math.nan, -math.inf, math.inf]])
    codes, scale, zero_point = qatcore.quantize_model_weights(weights, config)
    finite = np.where(np.isfinite(weights), weights, 0.0)
    finite[1, :2] = 2.0  # of the same range
    expected = qatcore.quantize_model_weights(finite, config)
    if config.per_channel:  # of nothing finite nothing is known; zeros have a scale of their own
        expected[1][2] = 1.0
    assert_same((scale, zero_point), expected[1:])
    given = np.isfinite(weights)
    assert np.array_equal(codes[given].view(np.int8), expected[0][given].view(np.int8))
    if config.bits is QuantBits.FP8:
        assert np.array_equal(np.isnan(codes.astype(np.float64)), np.isnan(weights))
        assert codes.astype(np.float64)[2, 1:].tolist() == [-448.0, 448.0]
    else:
        low, high = CODES[config.bits]
        assert codes[np.isnan(weights)].tolist() == [0, 0]
        assert codes[2, 1:].tolist() == [-high if config.symmetric else low, high]


# --- warnings, which are errors here ---------------------------------------------------------------------


@pytest.mark.parametrize("name", of_kind("matrix"))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_extreme_values(name, dtype):
    limits = ml_dtypes.finfo(dtype)
    x = np.array([limits.max, limits.min, limits.smallest_subnormal, limits.tiny] * 3, dtype).reshape(3, 4)
    expected = FUNCTIONS[name](x.astype(np.float64))
    result = FUNCTIONS[name](x)
    if FUNCTIONS[name].result is None:
        assert_same(result, expected)
    else:
        assert result.shape == expected.shape


@pytest.mark.parametrize("name", of_kind("matrix"))
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_signalling_nans(name, dtype):
    """As quiet ones, though every conversion of one raises a flag."""
    plain = sample("matrix", dtype)
    plain[1] = np.nan
    signalling = plain.copy()
    bits = signalling.view(f"u{dtype.itemsize}")
    quiet = 1 << (ml_dtypes.finfo(dtype).nmant - 1)
    bits[1, ::2] = (bits[1, ::2] & ~bits.dtype.type(quiet)) | bits.dtype.type(1)
    assert_same(FUNCTIONS[name](signalling), FUNCTIONS[name](plain))


@pytest.mark.parametrize("bits", QuantBits)
def test_extreme_parameters(bits):
    layer = make_layer(config=QatConfig(bits, per_channel=True), shape=(4, 4))
    layer.weight_scale = np.array([1.7e308, 5e-324, 0.0, 1e300])
    layer.bias = np.array([1.7e308, -1.7e308, math.inf, math.nan])
    layer.activation_scale = 1e300
    x = np.array([1e308, -1e308, 5e-324, 0.0])
    assert_same(layer.forward_infer(x), np.array(infer(layer, x)))
    assert layer.forward_train(x).shape == (4,)
    assert isinstance(reference.kl_divergence_symmetric([1e308, 0.0, math.nan, math.inf], x), float)


@each_module
def test_products_that_overflow(module):
    codes = np.array([100, -100, 0], np.int8)
    assert module.dequantize_weights(codes, 1.7e308).tolist() == [math.inf, -math.inf, 0.0]


def test_fp8_products_that_overflow():
    codes = np.array([448.0, -448.0, math.nan, 0.0]).astype(E4M3)
    assert_same(qatcore.dequantize_weights(codes, 1e308), np.array([math.inf, -math.inf, math.nan, 0.0]))


# --- masks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(3, 4), (4,), (1, 4), (3, 1), (1, 1), (1,), ()])
def test_masks_broadcast(shape):
    x = np.arange(12.0).reshape(3, 4)
    mask = np.arange(math.prod(shape)).reshape(shape) % 2 == 0
    masked, plain = qatcore.CalibrationCollector(), qatcore.CalibrationCollector()
    masked.observe(x, mask=mask)
    plain.observe([v for v, seen in zip(x.flat, np.broadcast_to(mask, x.shape).flat, strict=True) if seen])
    assert masked == plain
    assert masked.n_elements == np.broadcast_to(mask, x.shape).sum()


def test_masked_values_leave_no_trace():
    collector = qatcore.CalibrationCollector()
    collector.observe([1.0, math.nan, -1e30, math.inf], mask=[True, False, False, False])
    collector.observe(2.0, mask=True)
    collector.observe(3.0, mask=np.False_)
    collector.observe(np.empty((2, 0)), mask=np.empty((2, 0), np.bool_))
    assert repr(collector) == "CalibrationCollector(n_elements=2, min_val=1.0, max_val=2.0)"


# --- datasets --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=lambda dtype: dtype.name + dtype.char)
def test_dataset_keeps_what_was_pushed(dtype, tmp_path):
    dataset = qatcore.CalibrationDataset()
    x = np.arange(12).reshape(3, 4).astype(dtype)
    layouts = [layout for layout in LAYOUTS if not (dtype == BFLOAT16 and layout == "buffer")]
    for layout in layouts:
        dataset.push(laid_out(layout, x, tmp_path))
    assert len(dataset) == len(layouts)
    for batch, listed in zip(dataset, dataset.data, strict=True):
        assert type(batch) is np.ndarray
        assert batch.dtype == dtype or batch.dtype.newbyteorder("=") == dtype
        assert np.array_equal(batch, x)
        assert batch is listed


@each_module
def test_batches_of_every_kind(module):
    """An array of two dimensions, a generator and a dataset are batches."""
    x = np.linspace(-1.0, 3.0, 300).reshape(3, 100)
    dataset = qatcore.CalibrationDataset()
    for row in x:
        dataset.push(row)
    kinds = [x, (row for row in x), dataset, list(x), tuple(x.tolist()), x.T.copy().T]
    answers = [module.calibrate_layer(batches, qatcore.CalibMethod.MIN_MAX) for batches in kinds]
    assert answers == [(4.0 / 255, -128 + round(1.0 / (4.0 / 255)))] * len(kinds)
