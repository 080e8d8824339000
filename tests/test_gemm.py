"""int8 products are exact, at every size and level."""

import numpy as np
import pytest

import qatcore
from qatcore import _dispatch

every_level = pytest.mark.parametrize("level", _dispatch.available_levels(), indirect=True)


@every_level
def test_small_sizes(level):
    """Around the edges of the blocks of rows and columns."""
    rng = np.random.default_rng(0)
    for m in (1, 2, 3, 4, 5):
        for n in (1, 2, 3, 63, 64, 65, 66):
            for k in (1, 2, 15, 16, 17, 1023, 1024, 1025):
                a = rng.integers(-128, 128, (m, k), np.int8)
                b = rng.integers(-128, 128, (k, n), np.int8)
                expected = a.astype(np.int64) @ b.astype(np.int64)
                result = qatcore.int8_matmul(a, b)
                assert result.dtype == np.int64
                assert np.array_equal(result, expected)


@every_level
@pytest.mark.parametrize("k", [65_536, 131_072, 131_073])
def test_extremes_do_not_overflow(k, level):
    """At k = 131,072 a sum of (-128)**2 in int32 is off by one bit."""
    a = np.full((2, k), -128, np.int8)
    assert qatcore.int8_matmul(a, a.T).tolist() == [[k * 16384] * 2] * 2
    b = np.full((k, 3), 127, np.int8)
    assert qatcore.int8_matmul(a, b).tolist() == [[k * -128 * 127] * 3] * 2


@pytest.mark.parametrize("shape", [(0, 4, 3), (2, 0, 3), (2, 4, 0)])
def test_empty(shape):
    m, k, n = shape
    result = qatcore.int8_matmul(np.zeros((m, k), np.int8), np.zeros((k, n), np.int8))
    assert result.shape == (m, n)
    assert result.dtype == np.int64
    assert not result.any()


@pytest.mark.parametrize("threads", [1, 2, 5])
@pytest.mark.parametrize("shape", [(700, 300, 200), (3, 4000, 3000)])
def test_threads(threads, shape, monkeypatch):
    monkeypatch.setattr(qatcore._threads, "_num_threads", threads)
    rng = np.random.default_rng(1)
    a = rng.integers(-128, 128, shape[:2], np.int8)
    b = rng.integers(-128, 128, shape[1:], np.int8)
    # float64 holds every partial sum exactly, so its BLAS is an oracle
    assert np.array_equal(qatcore.int8_matmul(a, b), a.astype(np.float64) @ b.astype(np.float64))
