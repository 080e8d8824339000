"""Damaged models end in one line that says what is wrong; none ends the process."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import onnx_models
import pytest

import qatcore.onnx
from qatcore import InvalidArgumentError

pytestmark = pytest.mark.any_build

SUPPORT = Path(__file__).parents[1] / "support"


@pytest.mark.slow
def test_damaged_models_are_refused_in_one_line_or_taken():
    # In a process of its own: ONNX's conversion of operators ends it where an attribute is not what its type says.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(SUPPORT / "fuzz_models.py"), "200"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    refused = int(done.stdout.split(": ")[1].split()[0])
    assert 50 < refused < 180


def without_outputs(model):
    del model.graph.node[0].output[:]


def of_no_type(model):
    model.graph.input[0].type.tensor_type.elem_type = 99


def attribute_of_another_type(model):
    [attribute] = [a for a in model.graph.node[-1].attribute if a.name == "transB"]
    attribute.type = onnx.AttributeProto.FLOATS


def test_names_that_are_no_text_are_told(tmp_path):
    path = tmp_path / "model.onnx"
    model = onnx_models.convolutions(11)
    model.graph.node[0].input[0] = "zz"
    path.write_bytes(model.SerializeToString().replace(b"\x02zz", b"\x02\xff\xff"))
    with pytest.raises(InvalidArgumentError, match=r"^[^\n]+$"):
        qatcore.onnx.quantize_model(path, onnx_models.images(4))


@pytest.mark.parametrize("damage", [without_outputs, of_no_type, attribute_of_another_type])
def test_what_neither_the_checker_nor_onnx_runtime_takes_is_refused(damage):
    model = onnx_models.convolutions(11)
    damage(model)
    for call in (qatcore.onnx.quantize_model, qatcore.onnx.calibrate):
        with pytest.raises(InvalidArgumentError, match=r"^model: (it is not valid: |the type of its input x)[^\n]+$"):
            call(model, onnx_models.images(4))


def test_what_onnx_runtime_takes_is_taken_whatever_the_checker_says():
    model = onnx_models.product()
    model.graph.output[0].type.tensor_type.ClearField("shape")
    with pytest.raises(onnx.checker.ValidationError):
        onnx.checker.check_model(model)
    assert qatcore.onnx.quantize_model(model, onnx_models.rows()).graph.output[0] == model.graph.output[0]
