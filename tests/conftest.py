"""Settings shared by all tests."""

import gc
import importlib
import signal
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.errors import HypothesisWarning
from hypothesis.strategies import none

import qatcore
from qatcore._base import dispatch

# Shells let what runs in the background ignore Ctrl-C, and its children; tests of it would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("all", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("quick", settings.get_profile("all"), max_examples=20)
settings.load_profile("all")


def pytest_configure(config):
    """Try fewer examples of Hypothesis where slow tests are left out."""
    if "not slow" in config.option.markexpr:
        settings.load_profile("quick")


# Hypothesis makes a generator when the first test asks, and holds it where the garbage collector of Python 3.14 does
# not see it: then it warns that nothing does.  So it is made here, before warnings are errors.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", HypothesisWarning)
    given(none())(lambda _: None)()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Leave to the slow tests what only repeats a product: each value of each parameter stays."""
    by_function = {}
    for item in items:
        if hasattr(item, "callspec") and item.get_closest_marker("slow") is None:
            by_function.setdefault((item.path, item.originalname), []).append(item)
    for products in by_function.values():
        for item in set(products) - covering(products):
            item.add_marker("slow")


def covering(items):
    """Return some of the items of a parametrised test in which every value of every parameter occurs.

    Those first that bring several new values at a time, as a diagonal does.
    """
    chosen, seen = set(), set()
    for new in range(max(len(item.callspec.params) for item in items), 0, -1):
        for item in items:
            # The very objects: not all can be compared.
            values = {(name, id(value)) for name, value in item.callspec.params.items()}
            if len(values - seen) >= new:
                chosen.add(item)
                seen |= values
    return chosen


def pytest_collection_finish():
    """Take 20,000 tests out of what the garbage collector goes through, again and again in some of them."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    """Let the examples in docstrings use what their readers have imported."""
    doctest_namespace["np"] = np
    for name in qatcore.__all__:
        doctest_namespace.setdefault(name, getattr(qatcore, name))


@pytest.fixture
def _number_of_threads():
    """Put the number of threads back that a test changes."""
    before = qatcore.get_num_threads()
    yield
    qatcore.set_num_threads(before)


@pytest.fixture
def level(request, monkeypatch):
    """Put one CPU level's builds in use; for indirect parametrisation."""
    monkeypatch.setattr(dispatch, "kernels", dispatch.load_kernels(request.param))
    monkeypatch.setattr(dispatch, "gemms", dispatch.load_gemms(request.param))
    return request.param


# Tests call modules by name, past what asks the system for the matrix unit; without that it ends the process.
if "amx" in dispatch.available_levels():
    dispatch.load_gemms("amx")

#: Every module with an int8 product: the portable one of each level's kernels, and those of the machine.
PRODUCTS = [
    *dict.fromkeys(dispatch.load_kernels(level).__name__.split(".")[1] for level in dispatch.available_levels()),
    *(f"_gemm_{name}" for name in dispatch.available_gemms()),
]


@pytest.fixture(params=PRODUCTS)
def product(request, monkeypatch):
    """Put each of the modules with an int8 product in use."""
    module = importlib.import_module(f"qatcore.{request.param}")
    monkeypatch.setattr(dispatch, "gemms", (module, module))
    return module
