"""Models whose loaders lie in a folder: ``load_NAME.py`` has model_path(), batches(split), score(outputs, batch)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import numpy as np
import onnx

from .onnx_data import Task

#: Models that NNCF is to treat as transformers, as its documents say.
TRANSFORMERS = frozenset({"minilm_l6"})


def names(folder: Path) -> list[str]:
    """Return the names of a folder's models."""
    return sorted(path.stem.removeprefix("load_") for path in folder.glob("load_*.py") if _is_fetched(path))


def _is_fetched(path: Path) -> bool:
    """Return whether the model of a loader is there: some loaders only help others."""
    try:
        return Path(_module(path).model_path()).exists()
    except ImportError:  # the rows of the model say which package it lacks
        return True


def _module(path: Path):
    if str(path.parent) not in sys.path:
        sys.path.insert(0, str(path.parent))
    return importlib.import_module(path.stem)


def shared(name: str, folder: Path) -> Task:
    """Return a model, its data and its score."""
    module = _module(folder / f"load_{name}.py")
    path = Path(module.model_path())
    outputs = [value.name for value in onnx.load(path, load_external_data=False).graph.output]

    def score(found: dict[str, np.ndarray], batch: dict[str, np.ndarray]) -> np.ndarray:
        return np.atleast_1d(module.score([found[output] for output in outputs], batch))

    return Task(name, path, list(module.batches("calib")), {"test": list(module.batches("test"))}, score)
