"""One SHA-256 of everything whose bits must not depend on the machine.

``python tests/digest.py`` prints it, preceded with ``--sections`` by one for each part.  test_levels.py wants one
value from every CPU level, number of threads, C library and NumPy variant; two machines can be compared by hand.

So the data must be the same everywhere as well: support/values.py has it.  Float matrix products in training are left
out, they are the documented exception.
"""

import argparse
import hashlib
import itertools
import sys
from pathlib import Path

import ml_dtypes
import numpy as np

import qatcore
from qatcore import CalibMethod, QatConfig, QuantBits, reference
from qatcore._base import dispatch

sys.path.insert(0, str(Path(__file__).with_name("support")))
from values import adversarial, bell, heavy, random_bits, uniform, words

INTEGER_SCALES = [(0.5, 0), (0.1, 3), (1e-3, -128), (7.3, 2**31 - 1), (2.0**-1060, 5), (0.0, 1)]
CONFIGS = [QatConfig(*options) for options in itertools.product(QuantBits, (False, True), (False, True))]


SHORT = "--short" in sys.argv  # an emulated CPU would take minutes for everything


def arrays():
    """Input for elementwise functions, one long enough to be split over three threads."""
    yield "adversarial64", adversarial(np.float64)
    yield "adversarial32", adversarial(np.float32)
    yield "bits64", random_bits(20_000, 1, np.float64)
    yield "bits32", random_bits(20_000, 2, np.float32)
    yield "bits16", random_bits(8_000, 3, np.float16)
    yield "bfloat16", random_bits(8_000, 4, np.uint16).view(ml_dtypes.bfloat16)
    yield "integers", random_bits(5_000, 5, np.int16)
    if not SHORT:
        yield "long", ((uniform(820_000, 6) - 0.5) * 300).astype(np.float32)


def distributions():
    """Yield input for collectors: name and batches.

    The short digest has no long one, and of several that run the same code one.
    """
    for name, batches in all_distributions():
        if not (SHORT and name in {"one", "bell", "heavy", "offset", "negative", "bits32", "long"}):
            yield name, batches


def all_distributions():
    """Yield name and batches.  Above 8,192 values only their bins are kept."""
    yield "empty", []
    yield "one", [[3.0]]
    yield "few", [heavy(40, 10), [0.0, -0.0]]
    yield "exact", [bell(3_000, 11).astype(np.float32), bell(500, 12)]
    yield "bell", [bell(20_000, 13)]
    yield "heavy", [heavy(15_000, 14), np.zeros(100)]
    yield "rectified", [np.maximum(bell(12_000, 15), 0.0).astype(np.float32)]
    yield "offset", [uniform(10_000, 16).astype(np.float32) * 4 + 3]
    yield "skewed", [uniform(9_000, 17) * uniform(9_000, 18) * uniform(9_000, 19) * uniform(9_000, 20)]
    yield "negative", [-heavy(9_000, 21) * heavy(9_000, 22) - 1e4]
    yield "bits32", [random_bits(9_000, 23, np.float32)]
    yield "bits64", [random_bits(9_000, 24, np.float64)]
    yield "subnormal", [random_bits(9_000, 25, np.uint32).astype(np.uint64).view(np.float64)]
    yield "long", [(uniform(1_600_000, 26) - 0.25).astype(np.float32)]


def elementwise():
    for name, x in arrays():
        yield name, [f(x) for f in (qatcore.quantize_fp8, reference.quantize_fp8)]
        for (scale, zero_point), module in itertools.product(INTEGER_SCALES, (qatcore, reference)):
            yield name, [f(x, scale, zero_point) for f in (module.quantize_int8, module.quantize_int4)]
    x = adversarial(np.float64)
    for scale in (-0.5, np.nan, np.inf):
        yield "unsound scale", [reference.quantize_int8(x, scale, 2), reference.quantize_int4(x, scale)]


def collectors():
    for name, batches in distributions():
        collector = qatcore.CalibrationCollector()
        for batch in batches:
            collector.observe(batch)
        yield name, [collector.min_val, collector.max_val, *collector.histogram()]
        for bits, symmetric in itertools.product(QuantBits, (False, True)):
            for include_zero in (False, True):
                options = {"bits": bits, "symmetric": symmetric, "include_zero": include_zero}
                yield name, [collector.min_max_scale(**options), collector.percentile_scale(99.0, **options)]
                yield name, [collector.kl_divergence_scale(**options)]
                if name != "long" or include_zero:  # to save time: the cost is that of a full histogram
                    yield name, [collector.mse_scale(**options)]


def reference_collectors():
    for name, batches in distributions():
        collector = reference.CalibrationCollector()
        for batch in batches:
            collector.observe(batch)
        yield name, [collector.min_val, collector.max_val, collector.n_elements, collector.histogram]
        yield name, [collector.min_max_scale(), collector.percentile_scale(99.0), collector.kl_divergence_scale()]


def divergences():
    p, q = uniform(5_000, 30), uniform(5_000, 31) * uniform(5_000, 32)
    for first, second in ((p, q), (q, p), (p / 5_000, q * 0.0), (heavy(3_000, 33), q), (p[:1], q[:1]), (p, [])):
        yield "divergence", [reference.kl_divergence_symmetric(first, second)]
    # Long sums hide a logarithm's last bit, single ones show it.  The C library's own variants differ in one of 5,000.
    pairs = zip(uniform(40_000, 34)[:, np.newaxis], uniform(40_000, 35)[:, np.newaxis], strict=True)
    yield "single", [np.array([reference.kl_divergence_symmetric(*pair) for pair in pairs])]


FORMATS = (
    *(("int8", -5), ("uint8", 131), ("float8_e4m3fn", 0), ("float8_e5m2", 0), ("float4_e2m1fn", 0)),
    *(("int2", -1), ("uint2", 2), ("int4", 3), ("uint4", 15), ("int16", 300), ("uint16", 40_000)),
)


def affine():
    for (name, x), (dtype, zero_point) in itertools.product(arrays(), FORMATS):
        for scale in (0.1, 2.0**-140, 3e38)[: 1 if name == "long" else 3]:
            codes = qatcore.quantize(x, scale, zero_point, dtype=dtype)
            yield name, [codes, qatcore.fake_quantize(x, scale, zero_point, dtype=dtype)]
            yield name, [qatcore.dequantize(codes, scale, zero_point, dtype=t) for t in (np.float32, np.float64)]
        rows = x[: x.size // 35 * 35].reshape(5, 7, -1)
        for axis in range(3):
            options = {"zero_point": zero_point, "axis": axis, "dtype": dtype}
            scales = uniform(rows.shape[axis], 36) + 2.0**-6
            yield name, [f(rows, scales, **options) for f in (qatcore.quantize, qatcore.fake_quantize)]
        blocks = x[: x.size // 96 * 96].reshape(6, -1, 16)
        for axis, size in ((0, 3), (2, 8)):
            scales = uniform(blocks.size // size, 37).reshape(
                [n // (size if i == axis else 1) for i, n in enumerate(blocks.shape)]
            )
            options = {"zero_point": zero_point, "axis": axis, "dtype": dtype, "block_size": size}
            yield name, [f(blocks, scales + 2.0**-6, **options) for f in (qatcore.quantize, qatcore.fake_quantize)]


def microscaling():
    for name, values in arrays():
        x = values[: values.size // 32 * 32]
        for dtype in ("float4_e2m1fn", "float8_e4m3fn", "float8_e5m2", "int8"):
            codes, scale = qatcore.quantize_mx(x, dtype)
            yield name, [codes, scale, qatcore.dequantize_mx(codes, scale)]
        codes, scale, tensor_scale = qatcore.quantize_nvfp4(x)
        yield name, [qatcore.pack_int4(codes), scale, tensor_scale]
        yield name, [qatcore.dequantize_nvfp4(codes, scale, tensor_scale)]


def products():
    codes = words(50_000, 40).view(np.int8)
    for m, k, n in ((1, 1, 1), (3, 5, 7), (17, 2_100, 65), (300, 310, 290), (2, 1_000, 130)):
        a, b = codes[: m * k].reshape(m, k), codes[-k * n :].reshape(k, n)
        yield f"{m} {k} {n}", [qatcore.int8_matmul(a, b), qatcore.int8_matmul(a[::-1], np.asfortranarray(b))]
        scale, bias = uniform(n, 41), bell(n, 42)
        for zero_points in ({}, {"a_zero_point": -128, "b_zero_point": codes[:n]}, {"b_zero_point": 2**31 - 1}):
            for dtype in ("float32", "float64"):
                yield f"{m} {k} {n}", [qatcore.int8_linear(a, b, scale, bias, **zero_points, dtype=dtype)]
    least = np.full((2, 140_000), -128, np.int8)
    yield "extremes", [qatcore.int8_matmul(least, least.T)]


def layers():
    weights, bias = bell(37 * 70, 50).reshape(37, 70), bell(37, 51)
    data = heavy(64 * 70, 52).reshape(64, 70)
    yield "initial", [qatcore.QatLayer(70, 37).weights, reference.QatLayer(70, 37).weights]
    for config, method in zip(CONFIGS, itertools.cycle(CalibMethod)):
        layer = qatcore.QatLayer.from_weights(weights, bias, config)
        layer.calibrate_from_data(data, method)
        yield f"{config}", [layer.weight_scale, layer.weight_zero_point, layer.activation_scale]
        yield f"{config}", [layer.forward_infer(data.astype(t)) for t in (np.float64, np.float32, np.float16)]
        codes, scale, zero_point = qatcore.quantize_model_weights(weights, config)
        yield f"{config}", [codes, scale, zero_point, qatcore.dequantize_weights(codes, scale, zero_point)]
        if config.bits is not QuantBits.INT2:
            yield f"{config}", reference.quantize_model_weights(weights, config)
    layer = reference.QatLayer(70, 37)
    layer.weights, layer.bias = weights, bias
    layer.calibrate_from_data(data)
    yield "reference", [layer.forward_infer(data)]


def weights():
    """Yield the results of two kernels of `qatcore.onnx`, without its functions, which need more packages."""
    rows = np.concatenate([bell(40 * 96, 38), heavy(40 * 96, 39)]).astype(np.float32).reshape(80, 96)
    fractions = np.arange(8.0, 65.0) / 64.0
    for greatest, is_float in ((127.0, False), (7.0, False), (448.0, True)):
        for refinements, fits in ((2, 0), (1, 4)):
            scale = np.zeros(80)
            dispatch.kernels.least_error_scales(rows, fractions, refinements, fits, greatest, is_float, scale)
            yield f"{greatest}", [scale]
        if not is_float:
            codes, powers = np.zeros(rows.shape, np.int8), np.zeros((80, 2))
            dispatch.kernels.round_keeping_sums(rows, scale, greatest, codes, powers, np.zeros(96))
            yield f"{greatest}", [codes, powers]


# fmt: off
SECTIONS = (
    elementwise, affine, microscaling, collectors, reference_collectors, divergences, weights, products, layers,
)
# fmt: on


def add(digest, name, values):
    """Hash arrays with their types and shapes; all NaNs are one."""
    for value in values:
        array = np.ascontiguousarray(value)
        nan = array != array  # noqa: PLR0124 (for types that `isnan` does not know)
        if nan.any():
            array = np.where(nan, np.array(np.nan, array.dtype), array)
        digest.update(f"{name} {array.dtype} {np.shape(value)} ".encode())
        digest.update(array.tobytes())


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sections", action="store_true", help="print one digest for each part as well")
    parser.add_argument("--short", action="store_true", help="leave out the longest arrays and some distributions")
    show_sections = parser.parse_args().sections
    total = hashlib.sha256()
    for section in SECTIONS:
        digest = hashlib.sha256()
        for name, values in section():
            add(digest, name, values)
        total.update(digest.digest())
        if show_sections:
            print(section.__name__, digest.hexdigest())
    print(total.hexdigest())


if __name__ == "__main__":
    main()
