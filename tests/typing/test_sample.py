"""The sample runs, and every type that checkers are told is that of the value."""

import runpy
import types
import typing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hints import plain

SAMPLE = Path(__file__).with_name("sample.py")


def is_of(value: object, kind: Any) -> bool:
    """Return whether a value is of exactly this type."""
    kind = plain(kind)
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in {typing.Union, types.UnionType}:
        return any(is_of(value, each) for each in arguments)
    if origin is tuple:
        return isinstance(value, tuple) and len(value) == len(arguments) and all(map(is_of, value, arguments))
    if origin is dict:
        return isinstance(value, dict) and all(all(map(is_of, item, arguments)) for item in value.items())
    if origin is np.ndarray:
        (element,) = typing.get_args(arguments[1])
        return isinstance(value, np.ndarray) and value.dtype.type is element
    return type(value) is kind


def test_sample(monkeypatch):
    for needed in ("onnxruntime", "torch", "dask", "matplotlib"):
        pytest.importorskip(needed)
    checked = 0

    def assert_type(value: Any, kind: Any) -> Any:
        nonlocal checked
        checked += 1
        assert is_of(value, kind), f"{type(value)} is not {kind}"
        return value

    monkeypatch.setattr(typing, "assert_type", assert_type)
    runpy.run_path(str(SAMPLE), run_name="__main__")
    assert checked == SAMPLE.read_text().count("assert_type(")


def test_types_are_told_apart():
    assert is_of(1.0, float)
    assert is_of(1, float | npt.NDArray[np.float64] | int)
    assert not is_of(np.float64(1.0), float)
    assert is_of(np.zeros(1), npt.NDArray[np.float64])
    assert not is_of(np.zeros(1, np.float32), npt.NDArray[np.float64])
    assert not is_of((1.0, 1), tuple[float, float])
