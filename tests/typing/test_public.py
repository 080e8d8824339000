"""Every public function says what it takes and returns, and nothing of it is `Any`."""

import importlib
import inspect
import typing
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hints import plain

from qatcore import CalibrationCollector

#: The public modules, and what each needs.
MODULES = {
    "qatcore": "numpy",
    "qatcore.reference": "numpy",
    "qatcore.onnx": "onnxruntime",
    "qatcore.torch": "torch",
    "qatcore.dask": "dask",
    "qatcore.plot": "matplotlib",
}


def public_names(module: str) -> Iterator[tuple[str, Any]]:
    pytest.importorskip(MODULES[module])
    here = importlib.import_module(module)
    for name in here.__all__:
        value = getattr(here, name)
        if callable(value):
            yield name, value
        else:
            assert name in {"__version__", "reference"}


def own_classes(cls: type) -> Iterator[type]:
    """Yield a class and its bases of this package: what others have is their affair, as is that of exceptions."""
    for base in cls.__mro__:
        if base.__module__.partition(".")[0] == "qatcore" and not issubclass(base, BaseException):
            yield base


def functions_of(name: str, value: Any) -> Iterator[tuple[str, Callable[..., Any]]]:
    """Yield a function, or a class's constructor, methods and the accessors of its properties."""
    if not isinstance(value, type):
        yield name, value
        return
    for cls in own_classes(value):
        for key, member in vars(cls).items():
            if key.startswith("_") and key != "__init__":
                continue
            if isinstance(member, property):
                accessors = {"": member.fget, " (setter)": member.fset}
                yield from ((f"{name}.{key}{kind}", each) for kind, each in accessors.items() if each is not None)
            elif inspect.isfunction(member) or isinstance(member, classmethod | staticmethod):
                yield f"{name}.{key}", inspect.unwrap(getattr(member, "__func__", member))


def with_overloads(name: str, function: Callable[..., Any]) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield name, function
    yield from ((f"{name} (overload {i})", each) for i, each in enumerate(typing.get_overloads(function)))


def says_nothing(hint: Any) -> bool:
    """Return whether a type is `Any`, or made of it; elements of arrays may be, what collectors answer, `ArrayLike`."""
    if hint is Any or hint is inspect.Parameter.empty:
        return True
    if hint in (npt.ArrayLike, npt.DTypeLike):
        return False
    hint = plain(hint)
    if isinstance(hint, list):  # the arguments of a callable
        return any(map(says_nothing, hint))
    origin = typing.get_origin(hint)
    if isinstance(origin, type) and issubclass(origin, np.ndarray | np.dtype | np.generic | CalibrationCollector):
        return False
    of_numpy = [part for alias in (npt.ArrayLike, npt.DTypeLike) for part in typing.get_args(plain(alias))]
    return any(says_nothing(part) for part in typing.get_args(hint) if part not in of_numpy)


@pytest.mark.parametrize("module", MODULES)
def test_functions(module):
    silent, n = [], 0
    for public_name, value in public_names(module):
        for entry in functions_of(public_name, value):
            for name, function in with_overloads(*entry):
                hints = typing.get_type_hints(function)
                for key in (*inspect.signature(function).parameters, "return"):
                    if key not in {"self", "cls"} and says_nothing(hints.get(key, inspect.Parameter.empty)):
                        silent.append(f"{name}: {key}")
                n += 1
    assert not silent
    assert n


@pytest.mark.parametrize("module", MODULES)
def test_attributes(module):
    for name, value in public_names(module):
        for cls in own_classes(value) if isinstance(value, type) else ():
            hints = typing.get_type_hints(cls)
            named = {key for key in vars(cls).get("__annotations__", {}) if not key.startswith("_")}
            assert not [f"{name}.{key}" for key in named if says_nothing(hints[key])]


def test_any_is_found():
    def returns_any(x: int) -> Any: ...
    def returns_pair(x: int) -> tuple[float, Any]: ...
    def returns_nothing_said(x: int): ...
    def returns_array(x: int) -> npt.NDArray[Any] | float: ...

    hints = [typing.get_type_hints(each).get("return", inspect.Parameter.empty) for each in (returns_any, returns_pair)]
    assert all(map(says_nothing, hints))
    assert says_nothing(typing.get_type_hints(returns_nothing_said).get("return", inspect.Parameter.empty))
    assert not says_nothing(typing.get_type_hints(returns_array)["return"])
