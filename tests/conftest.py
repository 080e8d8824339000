"""Settings shared by all tests."""

import gc
import importlib
import os
import signal
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis.errors import HypothesisWarning
from hypothesis.strategies import none

import qatcore
from qatcore._base import dispatch

# Shells make background jobs and their children ignore Ctrl-C.  Tests of Ctrl-C would then wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

settings.register_profile("all", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("quick", settings.get_profile("all"), max_examples=20)
settings.load_profile("all")


def pytest_configure(config):
    """Let Hypothesis try fewer examples if slow tests are left out, and PyTorch use one thread in each process."""
    if config.option.markexpr.startswith("not slow"):
        settings.load_profile("quick")
    if hasattr(config, "workerinput"):  # one of several processes, whose threads would wait for each other
        os.environ.setdefault("OMP_NUM_THREADS", "1")


# Hypothesis makes a random generator for the first test.  The garbage collector of Python 3.14 does not see what holds
# the generator, so Hypothesis warns.  It is made here, before warnings are errors.
with warnings.catch_warnings():
    warnings.simplefilter("ignore", HypothesisWarning)
    given(none())(lambda _: None)()


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark combinations of parameters as slow, except a few in which each value of each parameter occurs."""
    by_function = {}
    for item in items:
        if hasattr(item, "callspec") and item.get_closest_marker("slow") is None:
            by_function.setdefault((item.path, item.originalname), []).append(item)
    for products in by_function.values():
        for item in set(products) - covering(products):
            item.add_marker("slow")


def covering(items):
    """Return a few items of a parametrised test in which every value of every parameter occurs.

    Items that bring several new values at once come first, as on the diagonal of a table.
    """
    chosen, seen = set(), set()
    for new in range(max(len(item.callspec.params) for item in items), 0, -1):
        for item in items:
            # Compare identities, since not all values can be compared.
            values = {(name, id(value)) for name, value in item.callspec.params.items()}
            if len(values - seen) >= new:
                chosen.add(item)
                seen |= values
    return chosen


def pytest_collection_finish():
    """Hide the 20,000 tests from the garbage collector, which some tests run again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    """Let the examples in docstrings use NumPy as np, and the public names of qatcore."""
    doctest_namespace["np"] = np
    for name in qatcore.__all__:
        doctest_namespace.setdefault(name, getattr(qatcore, name))


@pytest.fixture
def _number_of_threads():
    """Restore the number of threads after a test that changes it."""
    before = qatcore.get_num_threads()
    yield
    qatcore.set_num_threads(before)


@pytest.fixture
def level(request, monkeypatch):
    """Use the kernels of one CPU level; for indirect parametrisation."""
    monkeypatch.setattr(dispatch, "kernels", dispatch.load_kernels(request.param))
    monkeypatch.setattr(dispatch, "gemms", dispatch.load_gemms(request.param))
    return request.param


# Tests call the AMX module directly.  The system ends the process unless load_gemms has asked for the matrix unit.
if "amx" in dispatch.available_levels():
    dispatch.load_gemms("amx")

#: Every module with an int8 product: the portable product of each level's kernels, and the products of this CPU.
PRODUCTS = [
    *dict.fromkeys(dispatch.load_kernels(level).__name__.split(".")[1] for level in dispatch.available_levels()),
    *(f"_gemm_{name}" for name in dispatch.available_gemms()),
]


@pytest.fixture(params=PRODUCTS)
def product(request, monkeypatch):
    """Use each module with an int8 product in turn."""
    module = importlib.import_module(f"qatcore.{request.param}")
    monkeypatch.setattr(dispatch, "gemms", (module, module))
    return module
