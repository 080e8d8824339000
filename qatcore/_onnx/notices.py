"""Notices for users beside the result: warnings in Python, lines in a command's output."""

from __future__ import annotations

import contextlib
import sys
import warnings
from collections.abc import Iterator


class ModelWarning(UserWarning):
    """A decision on a model or its data that the user may want to change."""

    __module__ = "qatcore.onnx"


def notice(text: str) -> None:
    """Warn, and name the line outside of this package from which the call came."""
    level, frame = 3, sys._getframe(1)
    while (outer := frame.f_back) is not None and outer.f_globals.get("__name__", "").startswith("qatcore."):
        level, frame = level + 1, outer
    warnings.warn(text, ModelWarning, stacklevel=level)


@contextlib.contextmanager
def notices() -> Iterator[list[str]]:
    """Yield a list; after the block it holds the notices that the block gave, each text once."""
    texts: list[str] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", ModelWarning)
        yield texts
    for each in caught:
        if issubclass(each.category, ModelWarning):
            texts.append(str(each.message))
        else:
            warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)
    texts[:] = dict.fromkeys(texts)
