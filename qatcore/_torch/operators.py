"""Wrap functions that read the memory of tensors as operators that compiled graphs can hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def operator(fake: Callable[..., Any], changes: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Return a decorator that makes a function an operator of compiled graphs, which compilers do not look into.

    Parameters
    ----------
    fake : callable
        Takes tensors without values, and returns empty tensors with the shapes and types of the function's results.
    changes : tuple of str
        The names of the arguments that the function changes in place.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"qatcore::{function.__name__}", function, mutates_args=changes)
        made.register_fake(fake)

        @functools.wraps(function)
        def called(*arguments: Any) -> Any:
            # Outside of compiled graphs, skip PyTorch's dispatcher: it takes as long as a small array.
            return (made if torch.compiler.is_compiling() else function)(*arguments)

        called.operator = made  # type: ignore[attr-defined]
        return called

    return decorate
