"""What the metadata of a quantised model say of how it was made."""

from __future__ import annotations

import json
from typing import Any

import onnx_ir as ir

#: The key under which they say it.
METADATA = "qatcore"


def describe(model: ir.Model, about: dict[str, Any]) -> None:
    """Write into a model's metadata how it was made."""
    model.metadata_props[METADATA] = json.dumps(about)


def description(model: ir.Model) -> dict[str, Any]:
    """Return what `describe` has written, or an empty dict."""
    try:
        about = json.loads(model.metadata_props.get(METADATA, "{}"))
    except ValueError:
        return {}
    return about if isinstance(about, dict) else {}
