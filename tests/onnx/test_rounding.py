"""Codes of weights whose sums are kept: against trying out all of them."""

import itertools

import numpy as np
import pytest

from qatcore._onnx.ranges import weight_scale
from qatcore._onnx.rewriting import Scale
from qatcore._onnx.rounding import weight_codes, weight_values

pytestmark = pytest.mark.any_build


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

    class Axes:
        channels, summed = 1 - axis, axis

    scale = weight_scale(weight, Axes, "int4", 32)
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
