"""Results of the compiled reference, read from ``data/reference.npz``."""

from pathlib import Path

import numpy as np

_FILE = np.load(Path(__file__).with_name("data") / "reference.npz")
_ARRAYS = {name: _FILE[name] for name in _FILE.files}


def cases(group):
    """Return the cases of a group by number; each case is a dict of arrays by field."""
    found = {}
    for name, array in _ARRAYS.items():
        head, *rest = name.split("/")
        if head == group:
            found.setdefault(rest[0], {})[rest[1]] = array
    return found


def batches(case):
    """Return the batches that the reference observed, in order."""
    if "ramp" in case:
        n, seed, low, high = (int(v) for v in case["ramp"])
        steps = (np.arange(n, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(seed)) % np.uint64(2**32)
        x = steps.astype(np.float64) / 2.0**32 * (high - low) + low
        for index, value in case.get("patch", []):
            x[int(index)] = value
    else:
        x = case["x"]
    return np.split(x, np.cumsum(case["lengths"])[:-1])


def assert_same_bits(actual, expected):
    """Require equal bits, also the sign of zero; any NaN equals any NaN."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.dtype == expected.dtype
    assert actual.shape == expected.shape
    if actual.dtype.kind == "f":
        assert np.array_equal(np.isnan(actual), np.isnan(expected))
        integer = np.dtype(f"i{actual.dtype.itemsize}")
        given = ~np.isnan(expected)
        assert np.array_equal(actual[given].view(integer), expected[given].view(integer))
    else:
        assert np.array_equal(actual, expected)
