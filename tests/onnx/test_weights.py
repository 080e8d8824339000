"""Scales of weights, and codes whose sums are kept: against trying out all of them."""

import itertools

import ml_dtypes
import numpy as np
import pytest

import qatcore
from qatcore._onnx.plan import WeightAxes
from qatcore._onnx.rewriting import Scale
from qatcore._onnx.weights import coded_weight, weight_scale


def weight_codes(weight, scale, channels):
    return coded_weight(weight, scale, channels).codes


def weight_values(codes, scale):
    """Return the values of codes, with zeros to fill up the last block."""
    missing = 0 if scale.block_size is None else -codes.shape[scale.axis] % scale.block_size
    filled = np.pad(codes, [(0, missing * (axis == scale.axis)) for axis in range(codes.ndim)])
    values = qatcore.dequantize(filled, scale.scale, axis=scale.axis, block_size=scale.block_size)
    return values[tuple(map(slice, codes.shape))]


def best_codes(exact, most):
    """Return, of all codes next to numbers, those with the right sum and the least squared error."""
    free = [sorted({int(np.floor(v)), int(np.ceil(v))}) for v in exact]
    total = np.rint(exact.sum())
    choices = [np.array(c) for c in itertools.product(*free)]
    return min(
        (c for c in choices if c.sum() == total and np.abs(c).max() <= most),
        key=lambda c: np.square(c - exact).sum(),
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(("dtype", "most"), [("int8", 127), ("int4", 7)])
def test_the_best_of_all_with_the_right_sum(seed, dtype, most):
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=(5, 9)).astype(np.float32)
    step = np.abs(weight).max(axis=1) / most * (1.0 if seed % 2 else 0.8)  # some are clipped
    scale = Scale(dtype, step.astype(np.float32), np.zeros(5, np.int32), 0)
    codes = weight_codes(weight, scale, 0)
    for row, own, found in zip(weight, scale.scale, codes.astype(np.int64), strict=True):
        exact = np.clip(row.astype(np.float64) / own, -most, most)
        best = best_codes(exact, most)
        assert np.square(found - exact).sum() == pytest.approx(np.square(best - exact).sum())
        assert found.sum() == best.sum()


@pytest.mark.parametrize("shape", [(6, 3, 3, 3), (4, 7), (1, 2, 5)])
@pytest.mark.parametrize("channels", [0, 1])
def test_any_axis_of_outputs(shape, channels):
    weight = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    step = np.abs(weight).max() / 127
    whole = Scale("int8", np.float32(step), np.zeros((), np.int32))
    codes = weight_codes(weight, whole, channels)
    others = tuple(axis for axis in range(len(shape)) if axis != channels)
    np.testing.assert_array_less(np.abs((codes - weight / np.float64(np.float32(step))).sum(axis=others)), 0.5 + 1e-6)
    flipped = np.moveaxis(weight_codes(np.moveaxis(weight, channels, 0), whole, 0), 0, channels)
    np.testing.assert_array_equal(codes, flipped)


@pytest.mark.parametrize("axis", [0, 1])
def test_every_block_keeps_its_sum(axis):
    weight = np.random.default_rng(2).normal(size=(40, 40)).astype(np.float32)

    scale = weight_scale(weight, WeightAxes(channels=1 - axis, summed=axis), "int4", 32)
    assert (scale.axis, scale.block_size) == (axis, 32)
    codes = weight_codes(weight, scale, 1 - axis)
    each = np.repeat(scale.scale, 32, axis=axis)[:40, :40].astype(np.float64)
    off = np.moveaxis(codes.astype(np.float64) - np.clip(weight / each, -7, 7), axis, 0)
    for block in (off[:32], off[32:]):
        assert np.abs(block.sum(axis=0)).max() <= 0.5 + 1e-6
    assert np.abs(off).max() < 1.0
    np.testing.assert_allclose(weight_values(codes, scale), codes.astype(np.float64) * each, rtol=1e-6)


def test_floats_and_weights_without_outputs_are_rounded_to_nearest():
    weight = np.random.default_rng(3).normal(size=(5, 9)).astype(np.float32)
    fp8 = Scale("float8_e4m3fn", np.float32(0.01), np.zeros((), np.int32))
    np.testing.assert_array_equal(
        weight_codes(weight, fp8, 0), (weight / np.float32(0.01)).astype(weight_codes(weight, fp8, 0).dtype)
    )
    int8 = Scale("int8", np.float32(0.03), np.zeros((), np.int32))
    np.testing.assert_array_equal(weight_codes(weight, int8, None), np.rint(weight / np.float32(0.03)))


GREATEST = {"int8": 127.0, "int4": 7.0, "fp8": 448.0}
SHAPES = {"few": (6, 5), "filters": (7, 3, 3, 3), "matrix": (40, 300), "long rows": (3, 5000)}


Axes = WeightAxes(channels=0, summed=1)


def weights_of(shape, seed):
    """Weights like trained ones: bell-shaped, with heavy tails, with an outlier, on a lattice, and zeros."""
    rng = np.random.default_rng(seed)
    weight = rng.normal(size=shape) * rng.lognormal(size=(shape[0], *[1] * (len(shape) - 1)))
    weight[1] = rng.standard_t(2.0, size=shape[1:])
    weight[2] = np.rint(weight[2] * 20.0)
    return weight.astype(np.float32)


def squared_errors(row, scales, kind):
    """The squared error of a row for each scale, in float64."""
    steps = row.astype(np.float64)[:, None] / scales
    if kind == "fp8":
        codes = np.clip(steps, -448.0, 448.0).astype(ml_dtypes.float8_e4m3fn).astype(np.float64)
    else:
        codes = np.clip(np.rint(steps), -GREATEST[kind], GREATEST[kind])
    return np.square(steps - codes).sum(axis=0) * scales**2


@pytest.mark.parametrize("kind", GREATEST)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_scales_have_the_least_squared_error(shape, kind):
    weight = weights_of(shape, 4)
    scales = weight_scale(weight, Axes, kind, 0).scale
    assert scales.shape == shape[:1]
    for row, scale in zip(weight.reshape(shape[0], -1), scales.astype(np.float64), strict=True):
        whole = np.abs(row).max() / GREATEST[kind]
        tried = whole * np.concatenate([np.linspace(0.02, 1.0, 1500), 2.0 ** -np.arange(14)])
        best = min(squared_errors(row, tried[i : i + 100], kind).min() for i in range(0, tried.size, 100))
        [found] = squared_errors(row, np.array([scale]), kind)
        assert found <= best * 1.01 + 1e-12 * whole**2
        # The stored scale is rounded to float32.
        assert found <= squared_errors(row, np.float32(whole).astype(np.float64)[None], kind)[0] * (1.0 + 1e-5)


@pytest.mark.parametrize("kind", GREATEST)
def test_a_scale_does_not_depend_on_other_channels_or_on_where_they_are(kind):
    weight = weights_of((70, 33, 3), 5)
    together = weight_scale(weight, Axes, kind, 16)
    for i in (0, 1, 2, 69):
        np.testing.assert_array_equal(weight_scale(weight[i : i + 1], Axes, kind, 16).scale[0], together.scale[i])

    turned = weight_scale(np.ascontiguousarray(weight.swapaxes(0, 1)), WeightAxes(channels=1, summed=0), kind, 16)
    expected = together.scale if together.block_size is None else together.scale.swapaxes(0, 1)
    np.testing.assert_array_equal(turned.scale, expected)
    codes = coded_weight(weight, together, 0)
    other = coded_weight(np.ascontiguousarray(weight.swapaxes(0, 1)), turned, 1)
    np.testing.assert_array_equal(codes.codes, other.codes.swapaxes(0, 1))


def test_one_scale_for_the_whole_weight():
    weight = weights_of((40, 300), 6)
    scale = weight_scale(weight, None, "int8", 32)
    assert scale.scale.shape == ()
    flat = weight_scale(weight.reshape(1, -1), Axes, "int8", 32)
    assert scale.scale == pytest.approx(flat.scale[0], rel=0.02)  # it is chosen from a histogram
    assert weight_scale(np.zeros((3, 4), np.float32), None, "int4", 0).scale == np.finfo(np.float32).eps


@pytest.mark.parametrize("kind", GREATEST)
def test_channels_of_zeros_get_the_finest_scale(kind):
    weight = weights_of((5, 64), 7)
    weight[[0, 3]] = 0.0
    scales = weight_scale(weight, Axes, kind, 0).scale
    assert scales[0] == scales[3] == scales[[1, 2, 4]].min()
    nothing = weight_scale(np.zeros((2, 64), np.float16), Axes, kind, 0).scale
    assert nothing.tolist() == [np.finfo(np.float16).eps] * 2


@pytest.mark.parametrize("size", [2.0**-149, 2.0**-120, 1e-30, 1e30, 3e38])
@pytest.mark.parametrize("kind", GREATEST)
def test_weights_of_any_size(size, kind):
    """From the least subnormal number to nearly the greatest; scales are normal numbers."""
    with np.errstate(all="ignore"):
        weight = (np.linspace(-1.0, 1.0, 40).reshape(2, 20) * size).astype(np.float32)
    scale = weight_scale(weight, Axes, kind, 0)
    assert (scale.scale >= np.finfo(np.float32).smallest_normal).all()
    made = coded_weight(weight, scale, 0)
    if size > 1e-31:
        assert made.sqnr > (15.0 if kind == "int4" else 25.0)


@pytest.mark.parametrize(("kind", "dtype"), [("int8", "int8"), ("int4", "int4")])
def test_ties_are_broken_by_position(kind, dtype):
    """Five weights at ties, of which rounding to even takes too many down: the first ones are moved."""
    weight = np.array([[0.5, 2.5, 0.5, 2.5, 0.5, 2.0, -2.0, 0.0]], np.float32)
    codes = coded_weight(weight, Scale(dtype, np.ones(1, np.float32), np.zeros(1, np.int32), 0), 0).codes
    assert codes.astype(int).tolist() == [[1, 3, 0, 2, 0, 2, -2, 0]]  # the sum is 6.5, to even


@pytest.mark.parametrize("n", [7, 32, 100])
@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_the_sqnr_is_that_of_the_codes(kind, n):
    weight = weights_of((9, n), 8)
    made = coded_weight(weight, weight_scale(weight, Axes, kind, 32), 0)
    values = weight_values(made.codes, made.scale).astype(np.float64)
    expected = 10.0 * np.log10(np.square(weight.astype(np.float64)).sum() / np.square(values - weight).sum())
    assert made.sqnr == pytest.approx(expected, abs=1e-4)


@pytest.mark.usefixtures("_number_of_threads")
def test_threads_make_no_difference():
    weight = weights_of((500, 700), 9)
    made = []
    for n in (1, 2, 3):
        qatcore.set_num_threads(n)
        scale = weight_scale(weight, Axes, "int4", 32)
        made.append((scale.scale.tobytes(), coded_weight(weight, scale, 0).codes.tobytes()))
    assert made[0] == made[1] == made[2]
