"""Damage calibration files in many ways.  Reading one gives sound collectors, or an error that names the file.

``python tests/support/fuzz_storage.py 100000`` damages 100,000 files.  The tests damage a few.
"""

import io
import json
import random
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np

import qatcore
from qatcore import CalibrationCollector, InvalidArgumentError
from qatcore._calibration.histogram import LeadingBitHistogram
from qatcore._calibration.storage import _digest


def collectors():
    """Return collectors of all kinds that a file may hold: values, counts, channels, groups, and empty ones."""
    rng = np.random.default_rng(0)
    odd = np.array([0.0, -0.0, np.nan, np.inf, -np.inf, 5e-324, -1e300, 65504.0])
    found = {"empty": CalibrationCollector(), "unseen": CalibrationCollector(axis=1)}
    batches = {
        "few": (None, None, rng.standard_normal(40)),
        "many": (None, None, rng.standard_normal(9000)),
        "channels": (1, None, np.stack([rng.standard_normal(9000), np.zeros(9000), np.full(9000, 2.5)], axis=1)),
        "groups": ((0, 1), 4, rng.standard_normal((2, 8))),
        "ödd / name": (0, None, np.stack([odd, odd[::-1]])),
    }
    for name, (axis, groups, batch) in batches.items():
        found[name] = CalibrationCollector(axis, groups=groups)
        found[name].observe(batch)
    return found


def damaged(data, rng):
    """Return the bytes of a file with some changed, lost, repeated or exchanged."""
    data = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 5, 30])):
        # The ends of a zip file describe its contents, so they are damaged more often.
        size = len(data)
        if size == 0:
            break
        start = rng.choice(
            [rng.randrange(size), size - 1 - rng.randrange(min(900, size)), rng.randrange(min(200, size))]
        )
        length = rng.choice([1, 1, 2, 4, 8, 40, 400])
        kind = rng.randrange(7)
        if kind == 0:
            data[start] ^= 1 << rng.randrange(8)
        elif kind == 1:
            data[start : start + length] = rng.randbytes(length)
        elif kind == 2:
            data[start : start + length] = bytes([rng.choice([0, 255])]) * length
        elif kind == 3:
            del data[start : start + length]
        elif kind == 4:
            data[start:start] = data[start : start + length]
        elif kind == 5:
            del data[start:]
        else:
            other = rng.randrange(size)
            data[start : start + length] = data[other : other + length]
    return bytes(data)


ODD_NUMBERS = [0, 1, -1, 2, 127, 2**31, 2**62, -(2**63), 2**63 - 1]
ODD_FLOATS = [0.0, -0.0, 1.0, -1.0, np.nan, np.inf, -np.inf, 5e-324, 1e308]
ODD_JSON = [None, True, -1, 0, 1, 3, 10**30, 1.5, float("nan"), "", "x", [], [0], [-1], [[1]], {}, {"a": 1}]


@np.errstate(all="ignore")
def forged(data, rng):
    """Return the bytes of a file with changed contents and the right digest."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        header = json.loads(archive.read("header.json"))
        arrays = {
            name[:-4]: np.load(io.BytesIO(archive.read(name))) for name in archive.namelist() if name[-4:] == ".npy"
        }
    for _ in range(rng.choice([1, 1, 2, 4])):
        if rng.random() < 0.25:
            entry = (
                rng.choice([header, *header["collectors"]]) if isinstance(header.get("collectors"), list) else header
            )
            if isinstance(entry, dict):
                key = rng.choice(list(entry) or ["a"])
                if rng.random() < 0.1:
                    entry.pop(key, None)
                else:
                    entry[key] = rng.choice(ODD_JSON)
            continue
        name = rng.choice(list(arrays))
        array = arrays[name]
        if array.size == 0 or array.ndim == 0 or rng.random() < 0.1:
            shapes = [array.shape[:-1], (*array.shape, 1), (array.size + 1, *array.shape[1:])]
            arrays[name] = np.zeros(rng.choice(shapes), rng.choice([array.dtype, np.dtype(np.float32)]))
            continue
        flat = array.reshape(-1)
        index = rng.randrange(flat.size)
        if rng.random() < 0.3:
            flat[index] = flat[rng.randrange(flat.size)]
        elif array.dtype.kind == "f":
            flat[index] = rng.choice([*ODD_FLOATS, -flat[index], flat[index] * 2, np.nextafter(flat[index], np.inf)])
        else:
            delta = rng.choice([1, -1, 4096])
            flat[index] = rng.choice([*ODD_NUMBERS, int(flat[index]) + delta if abs(int(flat[index])) < 2**62 else 0])
    if isinstance(header, dict) and "sha256" in header:
        header["sha256"] = _digest(header.get("collectors"), arrays, header.get("about"))
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        archive.writestr("header.json", json.dumps(header))
        for name, array in arrays.items():
            content = io.BytesIO()
            np.save(content, array)
            archive.writestr(f"{name}.npy", content.getvalue())
    return out.getvalue()


def use(collector):
    """Call every method of a collector, and check that the results are possible."""
    for ask in (
        collector.min_max_scale,
        lambda: collector.percentile_scale(99.0),
        collector.mse_scale,
        lambda: collector.kl_divergence_scale(symmetric=True),
    ):
        scale, _ = ask()
        assert np.all(np.asarray(scale) > 0.0)
    counts, _ = collector.histogram()
    assert counts.sum() == np.sum(collector.n_elements)
    collector.pooled().merge(collector.pooled())
    str(collector.summary()) if collector.n_observed < 1000 else repr(collector)


def fuzz(n, seed, folder):
    """Damage `n` files; return how many were refused and how many were read."""
    rng = random.Random(seed)
    original = collectors()
    path = Path(folder, "fuzzed.npz")
    qatcore.save_calibration(path, original)
    whole = path.read_bytes()
    singles = []
    for name, collector in original.items():
        qatcore.save_calibration(path, {name: collector})
        singles.append((path.read_bytes(), {name: collector}))
    refused = read = 0
    for _ in range(n):
        data, expected = rng.choice([(whole, original), *singles])
        forging = rng.random() < 0.5
        path.write_bytes(forged(data, rng) if forging else damaged(data, rng))
        try:
            found = qatcore.load_calibration(path)
        except InvalidArgumentError as error:
            assert str(path) in str(error)
            refused += 1
            continue
        read += 1
        if not forging:  # the damage is where it does not matter: in a date, or between the members
            assert found == expected
        elif found != expected:
            for collector in found.values():
                if collector not in original.values():
                    use(collector)
                    assert isinstance(collector._histogram, LeadingBitHistogram)
    return refused, read


def main():
    """Fuzz with the number of files, and the seed if given, from the command line."""
    warnings.simplefilter("error")
    n = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        refused, read = fuzz(n, int(sys.argv[2]) if len(sys.argv) > 2 else 0, folder)
    print(f"{n:,} damaged files: {refused:,} refused, {read:,} sound")


if __name__ == "__main__":
    main()
