"""Compare the ranges that qatcore, ONNX Runtime and PyTorch choose.

``python -m bench.ranges`` prints the table of docs/calibration.md.  It holds the mean squared error that each scale
causes on the data.  An error is a multiple of the least error that a brute-force search or any method finds.  The last
lines name the promises that are not kept.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import itertools
import sys
import warnings

import numpy as np

import qatcore
from qatcore import QuantBits

from .search import load_brute_force

BITS = {QuantBits.INT8: 8, QuantBits.INT4: 4}
LIGHT_TAILS = ("normal", "laplace", "gamma", "uniform", "rectified")
OURS = ("mse", "mse, with 0", "kl", "percentile 99.9", "min-max")
THEIRS = ("ORT min-max", "ORT entropy", "ORT percentile", "torch")

Scale = tuple[float, int]


def ours(x: np.ndarray, bits: QuantBits, symmetric: bool) -> dict[str, Scale]:
    """Return qatcore's scales."""
    collector = qatcore.CalibrationCollector()
    collector.observe(x)
    options = {"bits": bits, "symmetric": symmetric}
    return {
        "mse": collector.mse_scale(**options),
        "mse, with 0": collector.mse_scale(**options, include_zero=True),
        "kl": collector.kl_divergence_scale(**options),
        "percentile 99.9": collector.percentile_scale(99.9, **options),
        "min-max": collector.min_max_scale(**options),
    }


def onnxruntimes(x: np.ndarray, bits: int, symmetric: bool) -> dict[str, Scale]:
    """Return the scales of ONNX Runtime's calibrators.

    The entropy search gets 2,048 bins.  With its default of 128 it would try only one threshold.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector
    from onnxruntime.quantization.quant_utils import compute_scale_zp

    least, greatest = -(2 ** (bits - 1)) + symmetric, 2 ** (bits - 1) - 1
    ranges = {"ORT min-max": (x.min(), x.max())}
    for method, bins, levels in (("entropy", 2048, 128), ("percentile", 2048, 2048)):
        with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does
            collector = HistogramCollector(method, symmetric, bins, levels, 99.999, "same")
            collector.collect({"x": [x]})
            result = collector.compute_collection_result()["x"]
        ranges[f"ORT {method}"] = result[:2]
    scales = {}
    for name, (low, high) in ranges.items():
        zero_point, scale = compute_scale_zp(
            np.float32(low), np.float32(high), np.int32(least), np.int32(greatest), symmetric
        )
        scales[name] = float(scale), int(zero_point)
    return scales


def torchs(x: np.ndarray, bits: int, symmetric: bool) -> dict[str, Scale]:
    """Return the scale of PyTorch's HistogramObserver."""
    import torch
    from torch.ao.quantization import HistogramObserver

    observer = HistogramObserver(
        dtype=torch.qint8,
        qscheme=torch.per_tensor_symmetric if symmetric else torch.per_tensor_affine,
        quant_min=-(2 ** (bits - 1)) + symmetric,
        quant_max=2 ** (bits - 1) - 1,
    )
    observer(torch.from_numpy(x))
    scale, zero_point = observer.calculate_qparams()
    return {"torch": (float(scale), int(zero_point))}


def errors(x: np.ndarray, bits: QuantBits, symmetric: bool) -> dict[str, float]:
    """Return the error of each method on x, as a multiple of the least one."""
    brute_force = load_brute_force()
    codes = brute_force.code_range(BITS[bits], symmetric)
    data = x.astype(np.float64)
    scales = ours(x, bits, symmetric) | onnxruntimes(x, BITS[bits], symmetric) | torchs(x, BITS[bits], symmetric)
    found = {name: brute_force.squared_error(data, *scale, codes) for name, scale in scales.items()}
    search = brute_force.best_symmetric if symmetric else brute_force.best_affine
    best = min(search(data, BITS[bits]), *found.values())
    return {name: error / best for name, error in found.items()}


def missed(row: str, name: str, found: dict[str, float]) -> list[str]:
    """Return the promises that a row breaks."""
    missed = []
    if found["mse"] > 1.02:
        missed.append(f"{row}: mse is {found['mse']:.3f} times the best")
    if found["mse, with 0"] > 1.02 * min(found[other] for other in THEIRS):
        missed.append(f"{row}: mse with 0 is more than 2 % worse than another package")
    if name in LIGHT_TAILS and found["kl"] > 1.02 * found["min-max"]:
        missed.append(f"{row}: kl is {found['kl'] / found['min-max']:.3f} times min-max")
    return missed


def main() -> int:
    """Print the table, and return 1 if a promise is not kept."""
    parser = argparse.ArgumentParser("python -m bench.ranges", description=__doc__.splitlines()[0])
    parser.add_argument("--values", type=int, default=120_000, metavar="N", help="number of values (default: 120,000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")  # PyTorch warns of deprecated functions
    data = load_brute_force().distributions(arguments.values, arguments.seed)
    columns = (*OURS, *THEIRS)
    print("| data | codes | " + " | ".join(columns) + " |")
    print("|---|---|" + "---:|" * len(columns))
    broken = []
    for (name, x), bits, symmetric in itertools.product(data.items(), BITS, (True, False)):
        found = errors(x.astype(np.float32), bits, symmetric)
        kind = f"{bits.value} {'symmetric' if symmetric else 'affine'}"
        cells = (f"{found[column]:,.3f}" if found[column] < 100 else f"{found[column]:,.0f}" for column in columns)
        print(f"| {name} | {kind} | " + " | ".join(cells) + " |", flush=True)
        broken += missed(f"{name} {kind}", name, found)
    print("\n".join(broken), file=sys.stderr, end="\n" if broken else "")
    return bool(broken)


if __name__ == "__main__":
    sys.exit(main())
