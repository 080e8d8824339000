"""The plot: drawn of everything that can be drawn, and refused with a reason where not."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qatcore
from qatcore import CalibrationCollector, InvalidArgumentError, QuantBits

plot = pytest.importorskip("qatcore.plot")


def observed(x, **keywords):
    collector = CalibrationCollector(**keywords)
    collector.observe(x)
    return collector


ROOT = Path(qatcore.__file__).parents[1]  # where the package is, which another directory could hide
RNG = np.random.default_rng(0)
DATA = {
    "normal": RNG.standard_normal(20_000),
    "few": RNG.standard_normal(30),
    "two": np.array([1.0, 2.0]),
    "rectified": np.maximum(RNG.standard_normal(20_000), 0.0),
    "negative": -RNG.lognormal(size=20_000),
    "huge": RNG.standard_normal(20_000) * 1e300,
    "tiny": RNG.standard_normal(20_000) * 1e-200,
    "far": np.logspace(-300, 300, 9000),
    "speck": np.append(RNG.standard_normal(20_000), 1e-310),
    "outlier": np.append(RNG.standard_normal(20_000), 1e6),
    "lossless": np.arange(-128.0, 128.0),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", DATA)
@pytest.mark.parametrize("bits", list(QuantBits))
def test_everything_can_be_drawn(name, bits, tmp_path):
    collector = observed(DATA[name])
    # Symmetric codes and others take turns, so that every format and all data meet both.
    symmetric = (list(DATA).index(name) + list(QuantBits).index(bits)) % 2 == 0
    figure = plot.histogram(collector, bits=bits, symmetric=symmetric)
    figure.savefig(tmp_path / "plot.png", dpi=40)
    above, below = figure.axes
    # What the bars hold is what there is, but for values that were not spread exactly.
    (stairs,) = above.patches
    counts, edges, _ = stairs.get_data()
    assert counts.sum() == pytest.approx(collector.n_elements, rel=1e-9)
    assert edges[0] == collector.min_val
    # Each method's line is where its scale clips.
    labels = [text.get_text() for text in above.get_legend().get_texts()]
    assert [label.partition(":")[0] for label in labels] == ["min_max", "percentile", "kl", "mse"]
    places = [line.get_xdata()[0] for line in above.lines]
    steps = {QuantBits.INT8: 127, QuantBits.INT4: 7, QuantBits.INT2: 1, QuantBits.FP8: 448}[bits]
    if name != "tiny" and (symmetric or bits is QuantBits.FP8):
        scale, _ = collector.mse_scale(bits=bits, symmetric=symmetric)
        assert abs(places[-1]) == pytest.approx(scale * steps, rel=1e-9)
    assert below.get_legend() is not None
    assert np.isfinite(below.get_ylim()).all()


def test_the_curve_is_least_where_the_search_ends():
    collector = observed(RNG.standard_normal(50_000))
    figure = plot.histogram(collector, bits=QuantBits.INT4, symmetric=True)
    curve = figure.axes[1].lines[0]
    x, y = curve.get_xdata(), curve.get_ydata()
    scale, _ = collector.mse_scale(bits=QuantBits.INT4, symmetric=True)
    assert abs(x[np.argmin(y)]) == pytest.approx(scale * 7, rel=0.02)


def test_given_figure():
    from matplotlib.figure import Figure

    figure = Figure()
    assert plot.histogram(observed([1.0, 2.0]), figure=figure) is figure
    with pytest.raises(InvalidArgumentError, match="figure: expected an empty figure, got one with 2 axes"):
        plot.histogram(observed([1.0, 2.0]), figure=figure)
    with pytest.raises(TypeError, match="figure: expected a matplotlib Figure, got int"):
        plot.histogram(observed([1.0, 2.0]), figure=3)


@pytest.mark.parametrize(
    ("collector", "message"),
    [
        (CalibrationCollector(), "expected different values, the greatest magnitude between 1e-305 and 1e\\+305"),
        (observed([3.0, 3.0, np.nan]), "expected different values, the greatest magnitude between 1e-305 and 1e\\+305"),
        (observed(np.arange(1, 10_000) * 5e-324), "expected different values, the greatest magnitude between"),
        (observed([0.0, 1.7e308]), "expected different values, the greatest magnitude between"),
        (
            observed([-1.7e308, 1.7e308]),
            "expected different values, the greatest magnitude between 1e-305 and 1e\\+305",
        ),
        (
            observed(np.ones((2, 2)), axis=0),
            r"expected a collector without an axis, got .*; pass its channel\(i\) or pooled\(\)",
        ),
    ],
)
def test_what_cannot_be_drawn(collector, message):
    with pytest.raises(InvalidArgumentError, match=message):
        plot.histogram(collector)
    with pytest.raises(TypeError, match="collector: expected a CalibrationCollector, got int"):
        plot.histogram(1)


@pytest.mark.parametrize(("module", "missing", "extra"), [("plot", "matplotlib", "plot"), ("dask", "dask", "dask"),
                                                          ("_calibration.progress", "tqdm", "progress")])  # fmt: skip
def test_what_to_install(module, missing, extra):
    program = f"""
import sys
sys.modules[{missing!r}] = None
try:
    import qatcore.{module}
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"pip install 'qatcore[{extra}]'" in done.stdout


def test_importing_the_package_imports_none_of_them():
    program = "import sys, qatcore; print({'matplotlib', 'dask', 'tqdm', 'distributed'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
    assert qatcore.CalibrationCollector is CalibrationCollector
