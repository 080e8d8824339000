"""Whatever holds real numbers is read, and it gives what the plain array of its values gives."""

import math
from array import array

import ml_dtypes
import numpy as np
import pytest
from golden import assert_same_bits
from inputs import (
    BOOL,
    CONFIGS,
    E4M3,
    ELEMENTWISE,
    FLOATS,
    FUNCTIONS,
    INTEGERS,
    LAYOUTS,
    assert_same,
    big_endian,
    each_elementwise,
    each_function,
    each_module,
    hard_values,
    infer,
    int_formula,
    laid_out,
    make_layer,
    nearest_e4m3,
    of_kind,
    sample,
)

import qatcore
from qatcore import QatConfig, QuantBits, reference

pytestmark = pytest.mark.filterwarnings("ignore::qatcore.CalibrationWarning")

BITS = {"int8": QuantBits.INT8, "int4": QuantBits.INT4}


# --- layouts and types -----------------------------------------------------------------------------------


@each_function
@pytest.mark.parametrize("layout", LAYOUTS)
def test_layout(name, layout, tmp_path):
    function = FUNCTIONS[name]
    x = sample(function.kind)
    if layout == "buffer" and x.dtype == E4M3:
        pytest.skip("the array interface has no name for this type")
    given = laid_out(layout, x, tmp_path)
    assert_same(function(given), function(x))


@pytest.mark.parametrize("name", of_kind("matrix"))
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS, BOOL], ids=lambda dtype: dtype.name + dtype.char)
@pytest.mark.parametrize("convert", [np.asarray, big_endian], ids=["native", "big_endian"])
def test_dtype(name, dtype, convert):
    """The result is that for the values in float64, rounded to the argument's floating type."""
    function = FUNCTIONS[name]
    x = sample("matrix", dtype)
    given = convert(x)
    expected = function(x.astype(np.float64))
    if function.result == "like" and dtype in FLOATS:
        with np.errstate(over="ignore"):
            if name in ELEMENTWISE and dtype != np.float64:  # half types are computed as float32
                expected = expected.astype(np.float32)
            expected = expected.astype(dtype)
    assert_same(function(given), expected)
    if function.result is not None:
        kept = function.result == "like" and dtype in FLOATS
        assert function(given).dtype == (dtype if kept else np.float64)


@pytest.mark.parametrize("name", of_kind("vector"))
@pytest.mark.parametrize("dtype", [*FLOATS, *INTEGERS], ids=lambda dtype: dtype.name + dtype.char)
def test_vector_dtype(name, dtype):
    x = sample("vector", dtype)
    assert_same(FUNCTIONS[name](x), FUNCTIONS[name](x.astype(np.float64)))


@pytest.mark.parametrize("name", of_kind("integers"))
@pytest.mark.parametrize("dtype", INTEGERS, ids=lambda dtype: dtype.name + dtype.char)
def test_zero_points_of_every_integer_type(name, dtype):
    x = np.array([7, 0, 3, 100], dtype)
    assert_same(FUNCTIONS[name](x), FUNCTIONS[name](x.astype(np.int32)))


@pytest.mark.parametrize("name", of_kind("matrix", "codes", "any codes", "mask", "fp8 codes"))
def test_broadcast_array(name):
    """Strides of 0."""
    function = FUNCTIONS[name]
    x = np.broadcast_to(sample(function.kind)[0], (3, 4))
    assert_same(function(x), function(x.copy()))


@pytest.mark.parametrize("name", of_kind("matrix", "vector"))
def test_python_lists(name):
    function = FUNCTIONS[name]
    x = sample(function.kind)
    assert_same(function(x.tolist()), function(x))
    integers = np.arange(x.size).reshape(x.shape)
    assert_same(function(integers.tolist()), function(integers))


@each_elementwise
@pytest.mark.parametrize("x", [array("f", [0.3, 1.26]), memoryview(array("d", [0.3, 1.26])), range(-3, 4)])
def test_python_sequences(name, x):
    assert_same(FUNCTIONS[name](x), FUNCTIONS[name](np.array(x)))


@each_module
def test_values_are_read_in_their_order(module, tmp_path):
    """The reference keeps the first values as samples: those of the array as it is indexed."""
    x = np.arange(12.0).reshape(3, 4)
    for layout in LAYOUTS:
        collector = module.CalibrationCollector()
        collector.observe(laid_out(layout, x, tmp_path))
        assert collector.n_elements == 12
        if module is reference:
            assert collector.samples.tolist() == list(range(12))


# --- values ----------------------------------------------------------------------------------------------


@each_module
@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("dtype", [*FLOATS, np.dtype(np.int64)], ids=str)
@pytest.mark.parametrize(
    ("scale", "zero_point"),
    [(0.37, 3), (1.0, 0), (2.0**-40, -128), (1e-300, 7), (3e38, -1), (0.1, 2**31 - 1), (0.0, 5)],
)
def test_quantize_formula(module, name, dtype, scale, zero_point):
    """The formula in exact arithmetic, rounded once to float32 (and from there to a half type)."""
    with np.errstate(all="ignore"):
        x = hard_values(scale or 1.0, zero_point).astype(dtype)
        exact = np.array([int_formula(BITS[name], float(v), scale, zero_point) for v in x])
        if module is qatcore and dtype in FLOATS[1:]:
            exact = exact.astype(np.float32).astype(dtype)
    assert_same(getattr(module, f"quantize_{name}")(x, scale, zero_point), exact)


@pytest.mark.parametrize("name", BITS)
@pytest.mark.parametrize("scale", [-0.37, -0.0, math.nan, math.inf, -math.inf, 5e-324])
def test_reference_computes_any_scale(name, scale):
    x = hard_values(0.37, 3)
    exact = np.array([int_formula(BITS[name], v, scale, 3) for v in x.tolist()])
    assert_same(getattr(reference, f"quantize_{name}")(x, scale, 3), exact)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_quantize_fp8_formula(dtype):
    with np.errstate(all="ignore"):
        x = np.concatenate([hard_values(0.37, 3), hard_values(2.0**-9, 0)]).astype(dtype)
    exact = np.array([nearest_e4m3(float(v)) for v in x])
    assert_same(qatcore.quantize_fp8(x), exact.astype(dtype))


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("dtype", [*FLOATS[:3], np.dtype(np.int8)], ids=str)
def test_forward_infer_formula(config, dtype):
    layer = make_layer(config=config)
    x = np.random.default_rng(3).normal(size=(6, 4)).astype(dtype)
    expected = np.array([infer(layer, row) for row in x])
    assert_same_bits(layer.forward_infer(x), expected.astype(dtype if dtype in FLOATS else np.float64))


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("special", [math.nan, math.inf, -math.inf])
def test_forward_infer_of_what_is_not_finite(config, special):
    layer = make_layer(config=config)
    x = np.array([0.5, special, -1.0, 2.0])
    assert_same(layer.forward_infer(x), np.array(infer(layer, x)))
    assert layer.forward_train(x).shape == (5,)


@pytest.mark.parametrize("zero_point", [-(2**31), 2**31 - 1, 1000])
def test_forward_infer_with_far_zero_points(zero_point):
    """Products of zero points beyond int64 are exact."""
    layer = make_layer(config=QatConfig(symmetric=False))
    layer.weight_zero_point = layer.activation_zero_point = zero_point
    x = np.array([0.5, 0.25, -1.0, 2.0])
    assert_same(layer.forward_infer(x), np.array(infer(layer, x)))


@pytest.mark.parametrize("bits", QuantBits)
def test_forward_infer_with_scale_zero(bits):
    """No value has a code: the bias is left."""
    layer = make_layer(config=QatConfig(bits))
    layer.activation_scale = 0.0
    assert layer.forward_infer([0.5, 0.0, -1.0, 2.0]).tolist() == layer.bias.tolist()


@pytest.mark.parametrize("config", CONFIGS, ids=repr)
@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_a_row_does_not_depend_on_its_batch(config, dtype):
    layer = make_layer(config=config, shape=(33, 70))
    x = np.random.default_rng(2).normal(size=(9, 70)).astype(dtype)
    together = layer.forward_infer(x)
    assert together.shape == (9, 33)
    assert_same(np.array([layer.forward_infer(row) for row in x]), together)
    assert_same(layer.forward_infer(x[3:4])[0], together[3])
    assert_same(layer.forward_infer(x[::-2]), together[::-2].copy())
    train = layer.forward_train(x)
    apart = np.array([layer.forward_train(row) for row in x])
    assert train.dtype == apart.dtype == dtype
    tolerance = 4.0 * float(ml_dtypes.finfo(dtype).eps)
    np.testing.assert_allclose(apart.astype(np.float64), train.astype(np.float64), rtol=tolerance, atol=tolerance * 70)
