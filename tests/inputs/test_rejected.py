"""What cannot be right is refused with a message that says what was expected and what came."""

import decimal
import math
import re

import ml_dtypes
import numpy as np
import pytest
from inputs import E4M3, FUNCTIONS, assert_same, each_function, each_module, make_layer, of_kind, sample

import qatcore
from qatcore import (
    CalibMethod,
    CalibrationCollector,
    InvalidArgumentError,
    QatConfig,
    QatLayer,
    QuantBits,
    QuantizationSpec,
    reference,
)

pytestmark = pytest.mark.any_build  # refused before it comes to the kernels

ONE = np.int8([[1]])


def test_error_is_a_value_error():
    assert issubclass(InvalidArgumentError, ValueError)
    assert not issubclass(InvalidArgumentError, TypeError)


# --- arrays of what is not a real number -----------------------------------------------------------------

NOT_REAL = {
    "complex": lambda shape: np.ones(shape, np.complex128),
    "complex64": lambda shape: np.ones(shape, np.complex64),
    "object": lambda shape: np.ones(shape, object),
    "decimal": lambda shape: np.full(shape, decimal.Decimal(1)),
    "none": lambda shape: np.full(shape, None),
    "str": lambda shape: np.full(shape, "1.0"),
    "bytes": lambda shape: np.full(shape, b"1.0"),
    "datetime": lambda shape: np.full(shape, np.datetime64("2024-01-01")),
    "timedelta": lambda shape: np.full(shape, np.timedelta64(1, "s")),
    "structured": lambda shape: np.ones(shape, [("a", np.float64)]),
    "void": lambda shape: np.zeros(shape, "V8"),
    "float8_e4m3": lambda shape: np.ones(shape, ml_dtypes.float8_e4m3),
    "list of complex": lambda shape: np.ones(shape, np.complex128).tolist(),
    "list of str": lambda shape: np.full(shape, "1.0").tolist(),
    "list of None": lambda shape: np.full(shape, None).tolist(),
}
if np.finfo(np.longdouble).nmant > np.finfo(np.float64).nmant:
    NOT_REAL["longdouble"] = lambda shape: np.ones(shape, np.longdouble)


@each_function
@pytest.mark.parametrize("bad", NOT_REAL)
def test_not_real_numbers(name, bad):
    function = FUNCTIONS[name]
    given = NOT_REAL[bad](sample(function.kind).shape)
    dtype = re.escape(str(np.asarray(given).dtype))
    where = "(\nx is batch 0 of (a|layer_outputs))?"  # a note that calibrations add
    with pytest.raises(TypeError, match=f"^({function.argument}): expected .*, got {dtype}{where}$"):
        function(given)


@each_function
@pytest.mark.parametrize("mask", [np.ma.nomask, True])
def test_masked_arrays(name, mask):
    """Their mask would be lost, so they are refused even if nothing is masked."""
    function = FUNCTIONS[name]
    given = np.ma.array(sample(function.kind), mask=mask)
    with pytest.raises(TypeError, match=f"^({function.argument}): .*masked"):
        function(given)


@each_function
def test_ragged_lists(name):
    function = FUNCTIONS[name]
    first, *_ = rows = list(sample(function.kind))
    given = [*rows[:-1], [first, first]] if np.ndim(first) == 0 else [*rows, list(first)[1:]]
    with pytest.raises(InvalidArgumentError, match=f"^({function.argument}): expected an array"):
        function(given)


@pytest.mark.parametrize("name", of_kind("matrix", "mask"))
@pytest.mark.parametrize(
    "bad", [None, "1.0", b"1", 1j, {}, {1.0}, object(), ValueError, np.void(b"1")], ids=lambda bad: type(bad).__name__
)
def test_no_arrays_at_all(name, bad):
    if FUNCTIONS[name].kind == "mask" and bad is None:
        pytest.skip("None is no mask")
    with pytest.raises(TypeError, match=f"^({FUNCTIONS[name].argument}): expected .*, got"):
        FUNCTIONS[name](bad)


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.int16, np.uint8, np.int64, np.bool_], ids=str)
@pytest.mark.parametrize("name", [*of_kind("codes"), "dequantize_weights[fp8]"])
def test_codes_of_another_type(name, dtype):
    function = FUNCTIONS[name]
    expected = f"^({function.argument}): expected an array of int8.*, got {np.dtype(dtype)}$"
    with pytest.raises(TypeError, match=expected):
        function(np.ones((3, 4), dtype))


def test_fp8_codes_are_not_int8():
    codes = np.ones((3, 4), E4M3)
    with pytest.raises(TypeError, match="a: expected an array of int8, got float8_e4m3fn"):
        qatcore.int8_matmul(codes, codes)
    with pytest.raises(TypeError, match="weights: expected an array of int8, got float8_e4m3fn"):
        reference.dequantize_weights(codes, 1.0)


@pytest.mark.parametrize("mask", [[1, 0], [1.0, 0.0], ["a", "b"], [True, None], np.uint8([1, 0])], ids=repr)
def test_masks_of_another_type(mask):
    with pytest.raises(TypeError, match="mask: expected an array of bool, got"):
        CalibrationCollector().observe([1.0, 2.0], mask=mask)


def test_integers_beyond_64_bits():
    with pytest.raises(TypeError, match=r"x: expected real numbers .*, got object"):
        qatcore.quantize_int8([2**70], 1.0)


# --- shapes ----------------------------------------------------------------------------------------------


def set_(name, value, module=qatcore, config=None):
    layer = make_layer(module, config)
    setattr(layer, name, value)
    return layer.forward_infer(np.ones(4))


PER_CHANNEL = QatConfig(per_channel=True)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: make_layer().forward_train(np.ones(3)), "x: expected 4 inputs, got 3"),
        (lambda: make_layer().forward_infer(np.ones(3)), "x: expected 4 inputs, got 3"),
        (lambda: make_layer().forward_infer([]), "x: expected 4 inputs, got 0"),
        (lambda: make_layer().forward_train(np.ones((4, 5))), "x: expected 4 inputs, got 5"),
        (lambda: make_layer().forward_infer(np.ones((4, 5))), "x: expected 4 inputs, got 5"),
        (lambda: make_layer().forward_infer(1.0), "x: expected shape (4,) or (n, 4), got ()"),
        (lambda: make_layer().forward_train(np.ones((1, 1, 4))), "x: expected shape (4,) or (n, 4), got (1, 1, 4)"),
        (lambda: make_layer(reference).forward_train(np.ones(3)), "Expected 4 inputs, got 3"),
        (lambda: make_layer(reference).forward_infer(np.ones((2, 3))), "Expected 4 inputs, got 3"),
        (lambda: make_layer(reference).forward_infer(1.0), "x: expected shape (4,) or (n, 4), got ()"),
        (lambda: set_("weights", np.ones((4, 5))), "weights: expected shape (5, 4), got (4, 5)"),
        (lambda: set_("weights", np.ones(20)), "weights: expected shape (5, 4), got (20,)"),
        (lambda: set_("weights", 1.0), "weights: expected shape (5, 4), got ()"),
        (lambda: set_("bias", np.ones(4)), "bias: expected shape (5,), got (4,)"),
        (lambda: set_("bias", 1.0), "bias: expected shape (5,), got ()"),
        (lambda: set_("weights", np.ones((4, 5)), reference), "weights: expected shape (5, 4), got (4, 5)"),
        (lambda: set_("bias", np.ones((5, 1)), reference), "bias: expected shape (5,), got (5, 1)"),
        (lambda: set_("weight_scale", np.ones(5)), "weight_scale: expected a scalar, got shape (5,)"),
        (lambda: set_("weight_scale", np.ones(4), config=PER_CHANNEL), "a scalar or shape (5,), got shape (4,)"),
        (lambda: set_("weight_scale", np.ones((5, 1)), config=PER_CHANNEL), "or shape (5,), got shape (5, 1)"),
        (lambda: set_("weight_zero_point", [0]), "weight_zero_point: expected a scalar, got shape (1,)"),
        (lambda: set_("weight_zero_point", [0] * 4, config=PER_CHANNEL), "or shape (5,), got shape (4,)"),
        (lambda: set_("activation_scale", [1.0]), "activation_scale: expected a scalar, got shape (1,)"),
        (lambda: set_("activation_zero_point", [0]), "activation_zero_point: expected a scalar, got shape (1,)"),
        (lambda: QatLayer.from_weights([1.0]), "weights: expected shape (out, in) with at least one of each, got (1,)"),
        (lambda: QatLayer.from_weights(np.ones((0, 3))), "with at least one of each, got (0, 3)"),
        (lambda: QatLayer.from_weights(np.ones((2, 3)), [1.0]), "bias: expected shape (2,), got (1,)"),
        (lambda: QatLayer(0, 3), "in_features: expected at least 1, got 0"),
        (lambda: QatLayer(3, -1), "out_features: expected at least 1, got -1"),
        (lambda: reference.QatLayer(-1, 3), "in_features: expected at least 0, got -1"),
        (
            lambda: qatcore.quantize_model_weights([1.0], PER_CHANNEL),
            "weights: expected shape (out, in) for per-channel codes, got (1,)",
        ),
        (
            lambda: qatcore.quantize_model_weights(np.ones((1, 2, 3)), PER_CHANNEL),
            "weights: expected shape (out, in) for per-channel codes, got (1, 2, 3)",
        ),
        (lambda: qatcore.dequantize_weights(ONE, [1.0, 2.0]), "scale: expected a scalar or shape (1,), got shape (2,)"),
        (lambda: qatcore.dequantize_weights(ONE, 1.0, [1, 2]), "zero_point: expected a scalar or shape (1,), got"),
        (lambda: qatcore.dequantize_weights(np.int8(1), [1.0]), "scale: expected a scalar, got shape (1,)"),
        (lambda: qatcore.dequantize_weights(ONE.astype(E4M3), 1.0, 3), "zero_point: expected 0 for FP8 codes, got 3"),
        (
            lambda: qatcore.int8_matmul(ONE, np.ones((2, 1), np.int8)),
            "expected 1 rows, as many as a has columns, got 2",
        ),
        (lambda: qatcore.int8_matmul(ONE[0], ONE), "a: expected a matrix, got shape (1,)"),
        (lambda: qatcore.int8_matmul(ONE, ONE[0, 0]), "b: expected a matrix, got shape ()"),
        (lambda: qatcore.int8_matmul(ONE[None], ONE), "a: expected a matrix, got shape (1, 1, 1)"),
        (lambda: reference.kl_divergence_symmetric(1.0, [1.0]), "p: expected one dimension, got shape ()"),
        (lambda: reference.kl_divergence_symmetric([1.0], [[1.0]]), "q: expected one dimension, got shape (1, 1)"),
        (lambda: CalibrationCollector().observe([1.0, 2.0], mask=[True] * 3), "that broadcasts to (2,), got (3,)"),
        (lambda: CalibrationCollector().observe([1.0], mask=[[True]]), "that broadcasts to (1,), got (1, 1)"),
        (lambda: CalibrationCollector().observe(1.0, mask=[True]), "mask: expected a shape that broadcasts to (), got"),
        (lambda: qatcore.calibrate_model([("a",)]), "expected pairs of name and batches, got 1 items"),
        (lambda: qatcore.calibrate_model([("a", [], [])]), "expected pairs of name and batches, got 3 items"),
        (lambda: reference.calibrate_model([("a",)]), "expected pairs of name and batches, got 1 items"),
        (lambda: reference.calibrate_model([("a", [], [])]), "expected pairs of name and batches, got 3 items"),
        (lambda: qatcore.set_num_threads(0), "n: expected at least 1, got 0"),
        (lambda: qatcore.set_num_threads(-3), "n: expected at least 1, got -3"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_wrong_shapes_and_counts(call, message):
    with pytest.raises(InvalidArgumentError, match=re.escape(message)):
        call()


# --- scales and zero points ------------------------------------------------------------------------------

SCALES = {
    "quantize_int8": lambda scale: qatcore.quantize_int8([1.0], scale),
    "quantize_int4": lambda scale: qatcore.quantize_int4([1.0], scale),
    "dequantize_weights": lambda scale: qatcore.dequantize_weights(ONE, scale),
    "dequantize_weights per channel": lambda scale: qatcore.dequantize_weights(ONE, [scale]),
    "weight_scale": lambda scale: set_("weight_scale", scale),
    "weight_scale per channel": lambda scale: set_("weight_scale", [1.0, 0.5, scale, 1.0, 1.0], config=PER_CHANNEL),
    "activation_scale": lambda scale: set_("activation_scale", scale),
    "int8_linear": lambda scale: qatcore.int8_linear(ONE, ONE, scale, dtype="float64"),
    "int8_linear per channel": lambda scale: qatcore.int8_linear(ONE, ONE, [scale], dtype="float64"),
}
REFERENCE_SCALES = {
    "reference.quantize_int8": lambda scale: reference.quantize_int8([1.0], scale),
    "reference.quantize_int4": lambda scale: reference.quantize_int4([1.0], scale),
    "reference.dequantize_weights": lambda scale: reference.dequantize_weights(ONE, scale),
    "reference.weight_scale": lambda scale: set_("weight_scale", scale, reference),
    "reference.activation_scale": lambda scale: set_("activation_scale", scale, reference),
}
ZERO_POINTS = {
    "quantize_int8": lambda z: qatcore.quantize_int8([1.0], 1.0, z),
    "quantize_int4": lambda z: qatcore.quantize_int4([1.0], 1.0, z),
    "dequantize_weights": lambda z: qatcore.dequantize_weights(ONE, 1.0, z),
    "dequantize_weights per channel": lambda z: qatcore.dequantize_weights(ONE, 1.0, [z]),
    "weight_zero_point": lambda z: set_("weight_zero_point", z),
    "weight_zero_point per channel": lambda z: set_("weight_zero_point", [0, 1, z, 2, 3], config=PER_CHANNEL),
    "activation_zero_point": lambda z: set_("activation_zero_point", z),
    "int8_linear a_zero_point": lambda z: qatcore.int8_linear(ONE, ONE, 1.0, a_zero_point=z),
    "int8_linear b_zero_point": lambda z: qatcore.int8_linear(ONE, ONE, 1.0, b_zero_point=z),
    "int8_linear b_zero_point per channel": lambda z: qatcore.int8_linear(ONE, ONE, 1.0, b_zero_point=[z]),
    "reference.quantize_int8": lambda z: reference.quantize_int8([1.0], 1.0, z),
    "reference.quantize_int4": lambda z: reference.quantize_int4([1.0], 1.0, z),
    "reference.dequantize_weights": lambda z: reference.dequantize_weights(ONE, 1.0, z),
    "reference.weight_zero_point": lambda z: set_("weight_zero_point", z, reference),
    "reference.activation_zero_point": lambda z: set_("activation_zero_point", z, reference),
}
ALL_SCALES = SCALES | REFERENCE_SCALES


@pytest.mark.parametrize("name", SCALES)
@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, -5e-324, np.float32(np.nan), -1], ids=repr)
def test_scales_that_are_none(name, scale):
    with pytest.raises(InvalidArgumentError, match=r"scale: expected .*finite.* not negative, got .*-?(nan|inf|\d)"):
        SCALES[name](scale)


@pytest.mark.parametrize("name", ALL_SCALES)
@pytest.mark.parametrize("scale", [0.0, 5e-324, 1e306, 1, True, np.float32(0.5), np.array(0.5)], ids=repr)
def test_scales_at_the_ends(name, scale):
    assert_same(ALL_SCALES[name](scale), ALL_SCALES[name](float(scale)))


@pytest.mark.parametrize("name", ALL_SCALES)
def test_scales_that_no_float_holds(name):
    with pytest.raises(InvalidArgumentError, match=r"scale: expected .*, got"):
        ALL_SCALES[name](10**400)


@pytest.mark.parametrize("scale", [math.nan, math.inf, -math.inf, -1.0, -5e-324], ids=repr)
def test_reference_takes_any_scale(scale):
    for name in ("reference.weight_scale", "reference.activation_scale"):
        assert REFERENCE_SCALES[name](scale).shape == (5,)
    assert_same(reference.dequantize_weights(ONE, scale), np.array([[scale]]))


@pytest.mark.parametrize("name", ALL_SCALES)
@pytest.mark.parametrize(
    "scale", [None, "0.5", b"1", 1j, np.complex64(1), [[0.5], [1]], {}, decimal.Decimal(1)], ids=repr
)
def test_scales_of_another_type(name, scale):
    takes_arrays = name in SCALES and not name.startswith("quantize")
    error = InvalidArgumentError if isinstance(scale, list) and takes_arrays else TypeError  # its shape is wrong
    with pytest.raises(error, match=r"scale: expected .*, got|scale: expected an array"):
        ALL_SCALES[name](scale)


@pytest.mark.parametrize("name", ZERO_POINTS)
@pytest.mark.parametrize("zero_point", [2**31, -(2**31) - 1, 2**63, 2**70, -(2**70), np.uint32(2**31)], ids=repr)
def test_zero_points_outside_int32(name, zero_point):
    expected = rf"zero_point: expected .*int32.*-2147483648 to 2147483647, got .*{int(zero_point)}"
    with pytest.raises(InvalidArgumentError, match=expected):
        ZERO_POINTS[name](zero_point)


@pytest.mark.parametrize("name", ZERO_POINTS)
@pytest.mark.parametrize("zero_point", [2**31 - 1, -(2**31), np.int64(-5), np.uint8(5), np.array(5)], ids=repr)
def test_zero_points_at_the_ends(name, zero_point):
    assert_same(ZERO_POINTS[name](zero_point), ZERO_POINTS[name](int(zero_point)))


@pytest.mark.parametrize("zero_point", [2**31 - 1, -(2**31), 5], ids=repr)
def test_codes_less_zero_points_wrap(zero_point):
    wrapped = float((1 - zero_point + 2**31) % 2**32 - 2**31)
    for function in (qatcore.dequantize_weights, reference.dequantize_weights):
        assert_same(function(ONE, 1.0, zero_point), np.array([[wrapped]]))
    assert_same(qatcore.dequantize_weights(ONE, [1.0], [zero_point]), np.array([[wrapped]]))
    wrapped = float((127 - zero_point + 2**31) % 2**32 - 2**31)  # the code of large values
    for function in (qatcore.quantize_int8, reference.quantize_int8):
        assert_same(function(1e30, 1.0, zero_point), wrapped)


@pytest.mark.parametrize("name", ZERO_POINTS)
@pytest.mark.parametrize("zero_point", [None, "0", 0.0, 1.5, 1j, np.float32(0), np.array(0.0), {}, b"0"], ids=repr)
def test_zero_points_of_another_type(name, zero_point):
    with pytest.raises(TypeError, match=r"zero_point: expected .*integer.*, got|zero_point: expected real .*, got"):
        ZERO_POINTS[name](zero_point)


# --- percentiles, methods, formats and other options -----------------------------------------------------


@pytest.mark.parametrize("n", [0, 3])
@pytest.mark.parametrize("p", [math.nan, np.float32(np.nan), np.array(np.nan)], ids=repr)
def test_percentile_nan(n, p):
    collector, original = CalibrationCollector(), reference.CalibrationCollector()
    collector.observe(np.arange(float(n)))
    original.observe(np.arange(float(n)))
    with pytest.raises(InvalidArgumentError, match="p: expected a percentage from 0 to 100, got nan"):
        collector.percentile_scale(p)
    assert original.percentile_scale(p) == (1.0, 0)


@each_module
@pytest.mark.parametrize("p", [None, "99", 1j, [99.0], np.array([99.0]), decimal.Decimal(99)], ids=repr)
def test_percentile_of_another_type(module, p):
    with pytest.raises(TypeError, match="p: expected a real number, got"):
        module.CalibrationCollector().percentile_scale(p)


@each_module
def test_percentile_that_no_float_holds(module):
    with pytest.raises(InvalidArgumentError, match=r"p: expected .*, got"):
        module.CalibrationCollector().percentile_scale(10**400)


def spec(**changes):
    return QuantizationSpec(**{"layer_name": "a", "scale": 1.0, "zero_point": 0, "method": CalibMethod.KL, **changes})


METHODS = {
    "calibrate_layer": lambda method: qatcore.calibrate_layer([], method),
    "calibrate_model": lambda method: qatcore.calibrate_model({}, method),
    "calibrate_from_data": lambda method: make_layer().calibrate_from_data([], method),
    "reference.calibrate_layer": lambda method: reference.calibrate_layer([], method),
    "QuantizationSpec": lambda method: spec(method=method),
}
SCALE_METHODS = {
    "min_max_scale": CalibrationCollector.min_max_scale,
    "kl_divergence_scale": CalibrationCollector.kl_divergence_scale,
    "mse_scale": CalibrationCollector.mse_scale,
    "percentile_scale": lambda collector, **options: collector.percentile_scale(99.0, **options),
}
OPTIONS = {
    name: lambda ask=ask, **options: ask(CalibrationCollector(), **options) for name, ask in SCALE_METHODS.items()
}
OPTIONS |= {
    "calibrate_layer": lambda **options: qatcore.calibrate_layer([], **options),
    "calibrate_model": lambda **options: qatcore.calibrate_model({}, **options),
    "QatConfig": QatConfig,
    "QuantizationSpec": spec,
}
FLAGS = [(name, "symmetric") for name in OPTIONS] + [(name, "include_zero") for name in SCALE_METHODS]
FLAGS += [("QatConfig", "per_channel")]


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    members = ", ".join(f"CalibMethod.{name}" for name in ("MIN_MAX", "PERCENTILE", "KL", "MSE", "AUTO"))
    expected = f"method: expected one of {members}, got"
    for unknown in ("entropy", "KL", ""):
        with pytest.raises(InvalidArgumentError, match=re.escape(f"{expected} {unknown!r}")):
            METHODS[name](unknown)
    for wrong, kind in ((None, "NoneType"), (1, "int"), (QuantBits.INT8, "QuantBits"), (["kl"], "list")):
        with pytest.raises(TypeError, match=re.escape(f"{expected} {kind}")):
            METHODS[name](wrong)


@pytest.mark.parametrize("name", OPTIONS)
def test_bits(name):
    expected = "bits: expected one of QuantBits.INT2, QuantBits.INT4, QuantBits.INT8, QuantBits.FP8, got"
    for unknown in ("int16", "INT8", ""):
        with pytest.raises(InvalidArgumentError, match=re.escape(f"{expected} {unknown!r}")):
            OPTIONS[name](bits=unknown)
    for wrong, kind in ((None, "NoneType"), (8, "int"), (CalibMethod.KL, "CalibMethod"), (np.int8, "type")):
        with pytest.raises(TypeError, match=re.escape(f"{expected} {kind}")):
            OPTIONS[name](bits=wrong)


@pytest.mark.parametrize(("name", "flag"), FLAGS)
@pytest.mark.parametrize("wrong", [None, 1, "yes", 0.0, [True], np.array(True)], ids=repr)
def test_flags(name, flag, wrong):
    with pytest.raises(TypeError, match=f"{flag}: expected a bool, got {type(wrong).__name__}"):
        OPTIONS[name](**{flag: wrong})


CONFIG_TAKERS = {
    "QatLayer": lambda config: QatLayer(2, 3, config),
    "QatLayer.from_weights": lambda config: QatLayer.from_weights([[1.0]], config=config),
    "QatLayer.config": lambda config: set_("config", config),
    "quantize_model_weights": lambda config: qatcore.quantize_model_weights([1.0], config),
    "reference.QatLayer": lambda config: reference.QatLayer(2, 3, config),
    "reference.quantize_model_weights": lambda config: reference.quantize_model_weights([1.0], config),
}


@pytest.mark.parametrize("name", CONFIG_TAKERS)
@pytest.mark.parametrize("wrong", ["int8", QuantBits.INT8, {"bits": QuantBits.INT8}, QatConfig], ids=repr)
def test_configs_of_another_type(name, wrong):
    with pytest.raises(TypeError, match=f"config: expected a QatConfig, got {type(wrong).__name__}"):
        CONFIG_TAKERS[name](wrong)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: CalibrationCollector().merge(None), "other: expected a CalibrationCollector, got NoneType"),
        (
            lambda: CalibrationCollector().merge(reference.CalibrationCollector()),
            "other: expected a CalibrationCollector, got CalibrationCollector",
        ),
        (lambda: QatLayer(2.0, 3), "in_features: expected an integer, got float"),
        (lambda: QatLayer(2, "3"), "out_features: expected an integer, got str"),
        (lambda: reference.QatLayer(None, 3), "in_features: expected an integer, got NoneType"),
        (lambda: qatcore.set_num_threads(2.0), "n: expected an integer, got float"),
        (lambda: qatcore.set_num_threads("2"), "n: expected an integer, got str"),
        (lambda: qatcore.set_num_threads(None), "n: expected an integer, got NoneType"),
        (lambda: spec(layer_name=1), "layer_name: expected a str, got int"),
        (lambda: spec(layer_name=None), "layer_name: expected a str, got NoneType"),
        (lambda: qatcore.calibrate_layer(5, "kl"), "expected an iterable of batches, got int"),
        (lambda: qatcore.calibrate_layer(None), "expected an iterable of batches, got NoneType"),
        (lambda: qatcore.calibrate_layer(np.array(1.0)), "expected an iterable of batches, got ndarray"),
        (lambda: qatcore.calibrate_model(5), "layer_activations: expected a mapping or pairs, got int"),
        (lambda: qatcore.calibrate_model("ab"), "layer_activations: expected a mapping or pairs, got str"),
        (lambda: qatcore.calibrate_model([1]), "expected pairs of name and batches, got int"),
        (lambda: qatcore.calibrate_model([(1, [])]), "expected a str as a layer's name, got int"),
        (lambda: qatcore.calibrate_model({None: []}), "expected a str as a layer's name, got NoneType"),
        (lambda: qatcore.calibrate_model({"fc1": 5}), "fc1: expected an iterable of batches, got int"),
        (lambda: reference.calibrate_layer(5, "kl"), "expected an iterable of batches, got int"),
        (lambda: reference.calibrate_layer(None, "kl"), "expected an iterable of batches, got NoneType"),
        (lambda: reference.calibrate_model(5), "layer_activations: expected a mapping or pairs, got int"),
        (lambda: reference.calibrate_model("ab"), "layer_activations: expected a mapping or pairs, got str"),
        (lambda: reference.calibrate_model([1]), "expected pairs of name and batches, got int"),
        (lambda: reference.calibrate_model([(1, [])]), "expected a str.*, got int"),
        (lambda: reference.calibrate_model({"fc1": 5}), "expected an iterable of batches, got int"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_arguments_of_another_type(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_collapsing_channels_that_differ():
    layer = make_layer(config=PER_CHANNEL)
    with pytest.raises(InvalidArgumentError, match=r"config: expected per_channel=True .*, got per_channel=False"):
        layer.config = QatConfig()
    assert layer.config is PER_CHANNEL


def test_read_only_attributes():
    layer = make_layer()
    for name in ("in_features", "out_features"):
        with pytest.raises(AttributeError):
            setattr(layer, name, 3)
    for instance, name in ((QatConfig(), "bits"), (spec(), "scale")):
        with pytest.raises(AttributeError):
            setattr(instance, name, None)
    assert (layer.in_features, layer.out_features) == (4, 5)
