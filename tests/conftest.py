"""Settings shared by all tests."""

import numpy as np
import pytest
from hypothesis import settings

import qatcore

settings.register_profile("qatcore", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("qatcore")


@pytest.fixture(autouse=True)
def _namespace(doctest_namespace):
    """Let the examples in docstrings use what their readers have imported."""
    doctest_namespace["np"] = np
    for name in qatcore.__all__:
        doctest_namespace.setdefault(name, getattr(qatcore, name))


@pytest.fixture
def level(request, monkeypatch):
    """Put one CPU level's build of the kernels in use; for indirect parametrisation."""
    from qatcore import _dispatch

    monkeypatch.setattr(_dispatch, "kernels", _dispatch.load_kernels(request.param))
    return request.param
