"""Time the choice of scales from a collector, beside ONNX Runtime's entropy search."""

from __future__ import annotations

import copy
import importlib.util
import pathlib
from collections.abc import Callable, Iterator
from types import ModuleType

import numpy as np

import qatcore

from .checks import require
from .settings import Settings
from .timing import Row, faster, within

BINS, LEVELS = 2048, 128

#: The package promises that `mse_scale` finds the least error on the raw data up to this factor.
MSE_TOLERANCE = 1.02
#: The KL search minimises a divergence and not the error; on light tails the difference is small.
KL_TOLERANCE = 1.3


def rows(settings: Settings) -> Iterator[Row]:
    """Yield the rows."""
    rng = np.random.default_rng(0)
    n = settings.size(120_000)
    for name, x in (("normal", rng.normal(size=n)), ("Laplace", rng.laplace(size=n))):
        for symmetric in (True, False):
            yield from searches(name, x.astype(np.float32), symmetric, settings)


def searches(name: str, x: np.ndarray, symmetric: bool, settings: Settings) -> Iterator[Row]:
    """Rows: both searches, for symmetric or affine codes."""
    observed = qatcore.CalibrationCollector()
    observed.observe(x)
    brute_force = load_brute_force()
    best = (brute_force.best_symmetric if symmetric else brute_force.best_affine)(x.astype(np.float64), 8)
    kind = f"{'symmetric' if symmetric else 'affine'}, {x.size:,} {name}"

    for method, tolerance in (("kl_divergence_scale", KL_TOLERANCE), ("mse_scale", MSE_TOLERANCE)):
        row = Row(f"{method} {kind}", chart=chart(method, symmetric) if name == "normal" else "")
        scale, zero_point = getattr(observed, method)(symmetric=symmetric)
        codes = brute_force.code_range(8, symmetric)
        error = brute_force.squared_error(x.astype(np.float64), scale, zero_point, codes)
        require(row.work, error <= tolerance * best, f"{error / best:.3f} times the least mean squared error")

        ours, prepare = on_a_copy(observed, method, symmetric)
        row.ours(ours, prepare=prepare)
        if method == "mse_scale":
            other, prepare = on_a_copy(observed, "kl_divergence_scale", symmetric)
            row.other("qatcore: kl_divergence_scale", other, within(3), prepare=prepare)
        elif settings.peers:
            row.peer("ONNX Runtime: get_entropy_threshold", entropy_search(x), faster(150 if symmetric else 30))
        yield row


def chart(method: str, symmetric: bool) -> str:
    """Return the name in the chart, which shows the KL searches only."""
    if method != "kl_divergence_scale":
        return ""
    return f"KL search, {'symmetric' if symmetric else 'affine'}"


def on_a_copy(
    observed: qatcore.CalibrationCollector, method: str, symmetric: bool
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Return a search, and a function, not timed, that first gives it a collector without cached results."""
    fresh = copy.deepcopy(observed)

    def prepare() -> None:
        nonlocal fresh
        fresh = copy.deepcopy(observed)

    return lambda: getattr(fresh, method)(symmetric=symmetric), prepare


def entropy_search(x: np.ndarray) -> Callable[[], object]:
    """Return ONNX Runtime's search on its own histogram, which is made beforehand.

    The histogram has 2,048 bins.  With the default of 128 bins for 128 levels, the search tries only one threshold.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    collector = HistogramCollector(
        method="entropy",
        symmetric=True,
        num_bins=BINS,
        num_quantized_bins=LEVELS,
        percentile=None,
        scenario="same",
    )
    collector.collect_value({"x": x})
    histogram = collector.get_histogram_dict()["x"]
    return lambda: collector.get_entropy_threshold(histogram, LEVELS)


def load_brute_force() -> ModuleType:
    """Import the oracle of the tests from its file, since it is not in a package."""
    path = pathlib.Path(__file__).parents[1] / "tests" / "support" / "brute_force.py"
    spec = importlib.util.spec_from_file_location("brute_force", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
