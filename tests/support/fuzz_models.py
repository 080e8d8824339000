"""Damage ONNX models in many ways.  Quantising and showing one gives a result, or a one-line error.

``python tests/support/fuzz_models.py 10000`` damages 10,000 models, and ``10000 7`` does so with the seed 7.  The tests
damage a few.
"""

import random
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_models
from google.protobuf.message import Message

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._onnx.inspection import model_rows
from qatcore._onnx.model import read_model

OPTIONS = [{}, {"weights": "int4", "activations": "none"}, {"weights": "fp8", "activations": "fp8"}]
NUMBERS = [-5, -1, 0, 1, 2, 3, 7, 10, 16, 22, 99, 2**31 - 1]
TEXTS = ["", "x", "y", "w", "w1", "c1", "Conv", "MatMul", "Gemm", "Constant", "Identity", "Transpose", "Reshape", "If"]


def models():
    """Return the models to damage, with batches for them."""
    choice = {"x": onnx_models.normal(3, 16), "condition": np.array(True)}
    return [
        (onnx_models.convolutions(11), onnx_models.images(4, batches=2)),
        (onnx_models.convolutions(12, constants=True), onnx_models.images(4, batches=2)),
        (onnx_models.product(), onnx_models.rows(batches=2)),
        (onnx_models.attention(), [{"x": onnx_models.normal(2, 6, 16)}]),
        (onnx_models.recurrent(), [{"x": onnx_models.normal(6, 2, 8)}]),
        (onnx_models.branches(), [choice]),
    ]


def damaged_bytes(data, rng):
    """Return the bytes of a file with some changed, removed or added, or with the end cut off."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        kind, place = rng.random(), rng.randrange(8, len(changed))
        if kind < 0.5:
            changed[place] = rng.randrange(256)
        elif kind < 0.7:
            del changed[place : place + rng.randrange(1, 9)]
        elif kind < 0.85:
            changed[place:place] = rng.randbytes(4)
        else:
            changed = changed[: place + 1] + bytes(8)
    return bytes(changed)


def damaged_fields(model, rng):
    """Return the bytes of a model with some of its fields, at any depth, changed, removed or repeated."""
    for _ in range(rng.choice([1, 1, 2, 3])):
        message, field = rng.choice(list(fields(model)))
        value = getattr(message, field.name)
        repeated, inner, kind = hasattr(value, "append"), field.message_type is not None, rng.random()
        try:
            if kind < 0.3 or (inner and not repeated):
                message.ClearField(field.name)
            elif repeated and kind < 0.6:
                del value[rng.randrange(len(value))]
            elif repeated and inner:
                value.add().CopyFrom(rng.choice(value))
            elif repeated:
                value[rng.randrange(len(value))] = other(value[0], rng)
            else:
                setattr(message, field.name, other(value, rng))
        except (ValueError, TypeError):  # the enumeration has no such value
            continue
    return model.SerializeToString()


def fields(message):
    """Yield every field that is set in a message or in messages inside it, with the message that holds it."""
    for field, value in message.ListFields():
        yield message, field
        if field.message_type is not None:
            for inner in [value] if isinstance(value, Message) else value:
                yield from fields(inner)


def other(value, rng):
    """Return another value of the same type."""
    if isinstance(value, int):
        return rng.choice([*NUMBERS, value + 1, value - 1, 2 * value])
    if isinstance(value, float):
        return rng.choice([0.0, -1.0, float("nan"), float("inf")])
    if isinstance(value, bytes):
        return rng.choice([b"", value[:-1], value[:-4], value + bytes(4), b"\xff" * len(value)])
    return rng.choice(TEXTS)


def fuzz(n, seed, folder):
    """Damage `n` models, and return how many were refused and how many were not."""
    rng, given, path = random.Random(seed), models(), Path(folder) / "model.onnx"
    refused = 0
    for _ in range(n):
        model, batches = rng.choice(given)
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        in_bytes = rng.random() < 0.3
        path.write_bytes(damaged_bytes(copy.SerializeToString(), rng) if in_bytes else damaged_fields(copy, rng))
        try:
            qatcore.onnx.quantize_model(path, batches, **rng.choice(OPTIONS))
        except (InvalidArgumentError, TypeError) as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
        try:
            for table in model_rows(read_model(path)):
                assert list(table.cells()) or not table.rows
        except InvalidArgumentError as error:
            assert len(str(error).splitlines()) == 1
    return refused, n - refused


def main():
    """Fuzz with the number of models, and the seed if given, from the command line."""
    warnings.simplefilter("ignore")
    n = int(sys.argv[1])
    with tempfile.TemporaryDirectory() as folder:
        refused, taken = fuzz(n, int(sys.argv[2]) if len(sys.argv) > 2 else 0, folder)
    print(f"{n:,} damaged models: {refused:,} refused, {taken:,} taken")


if __name__ == "__main__":
    main()
