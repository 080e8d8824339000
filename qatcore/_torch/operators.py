"""Functions that read tensors' memory, as operators that compiled graphs can hold."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch


def operator(fake: Callable[..., Any], changes: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a function that a compiler cannot look into: in what is compiled it is an operator.

    Parameters
    ----------
    fake : callable
        Returns tensors like those that the function returns, from arguments without values.
    changes : tuple of str
        The names of the arguments that the function changes in place.
    """

    def decorate(function: Callable[..., Any]) -> Any:
        made = torch.library.custom_op(f"qatcore::{function.__name__}", function, mutates_args=changes)
        made.register_fake(fake)

        @functools.wraps(function)
        def called(*arguments: Any) -> Any:
            # Elsewhere without PyTorch's dispatcher, which takes as long as a small array.
            return (made if torch.compiler.is_compiling() else function)(*arguments)

        called.operator = made  # type: ignore[attr-defined]
        return called

    return decorate
