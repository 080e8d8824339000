"""Weights in other files and behind links, outputs behind links, and tensors whose data are not what they say."""

import os
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
from insides import Graph, read
from onnx import TensorProto, helper, numpy_helper
from onnx_models import tensor, value

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._cli.command import main

pytestmark = pytest.mark.any_build

WEIGHT = onnx_models.normal(48, 24)
SIZE = WEIGHT.nbytes


def elsewhere(**said):
    """A product whose weight is in another file."""
    model = onnx_models.product()
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, text in said.items():
        weight.external_data.add(key=key, value=str(text))
    return model


def hub(folder):
    """Write a model and its weights as a hub's cache has them, and return the model's path."""
    (folder / "blobs").mkdir()
    snapshot = folder / "snapshots" / "main"
    snapshot.mkdir(parents=True)
    (folder / "blobs" / "aaaa").write_bytes(elsewhere(location="model.onnx.data").SerializeToString())
    (folder / "blobs" / "bbbb").write_bytes(WEIGHT.tobytes())
    for name, blob in (("model.onnx", "aaaa"), ("model.onnx.data", "bbbb")):
        (snapshot / name).symlink_to(f"../../blobs/{blob}")
    return snapshot / "model.onnx"


def files(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def by_onnx_runtime(path, batch):
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, batch)[0]


def test_a_hubs_cache_is_read_and_not_written(tmp_path, monkeypatch, capsys):
    path = hub(tmp_path)
    batch = onnx_models.rows()[0]
    np.testing.assert_array_equal(Graph(read(path)).value_of("w"), WEIGHT)
    np.testing.assert_array_equal(by_onnx_runtime(path, batch), onnx_models.run(read(path), batch)[0])
    before = files(tmp_path)
    for output in ("model.onnx", "model.onnx.data", "../../blobs/aaaa", "../../blobs/bbbb"):
        with pytest.raises(InvalidArgumentError, match=f"output: .*{output} belongs to the inputs"):
            qatcore.onnx.quantize_model(path, activations="none", output=path.parent / output)
    monkeypatch.chdir(path.parent)
    for output in ("model.onnx", "model.onnx.data", "../../blobs/bbbb"):
        assert main(["quantize", "model.onnx", "--activations", "none", "-o", output]) == 2
        assert "belongs to the inputs" in capsys.readouterr().err
    assert files(tmp_path) == before
    qatcore.onnx.quantize_model(path, activations="none", output=tmp_path / "q.onnx")
    assert qatcore.onnx.compare(path, tmp_path / "q.onnx", [batch]).outputs["y"][0] > 30


def test_nothing_is_written_through_a_link(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    onnx.save(onnx_models.product(), "model.onnx")
    Path("blob").write_bytes(b"of somebody else")
    for name, target in (("link.onnx", "blob"), ("dangling.onnx", "nowhere")):
        os.symlink(target, name)
        with pytest.raises(
            InvalidArgumentError, match=f"{name} is a link, and nothing is written .* itself, .*{target},"
        ):
            qatcore.onnx.quantize_model("model.onnx", activations="none", output=name)
    os.mkdir("batches")
    os.mkdir("of others")
    np.save("of others/x.npy", onnx_models.rows()[0]["x"])
    os.symlink("../of others/x.npy", "batches/0.npy")
    assert main(["calibrate", "model.onnx", "--data", "batches", "-o", "of others/x.npy"]) == 2
    assert "belongs to the inputs" in capsys.readouterr().err
    assert Path("blob").read_bytes() == b"of somebody else"
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("said", "content"),
    [
        ({}, WEIGHT.tobytes()),
        ({"length": SIZE}, WEIGHT.tobytes()),
        ({"offset": 4096}, bytes(4096) + WEIGHT.tobytes()),
        ({"offset": 4096, "length": 0}, bytes(4096) + WEIGHT.tobytes() + b"more"),
        ({"offset": 4096, "length": SIZE}, bytes(4096) + WEIGHT.tobytes() + b"more"),
    ],
)
def test_what_onnx_runtime_reads_is_read(tmp_path, said, content):
    for location in ("w.data", "weights/w.data"):
        (tmp_path / location).parent.mkdir(exist_ok=True)
        (tmp_path / location).write_bytes(content)
        path = tmp_path / "model.onnx"
        path.write_bytes(elsewhere(location=location, **said).SerializeToString())
        np.testing.assert_array_equal(Graph(read(path)).value_of("w"), WEIGHT)
        batch = onnx_models.rows()[0]
        np.testing.assert_array_equal(by_onnx_runtime(path, batch), onnx_models.run(read(path), batch)[0])


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"location": "missing"}, "missing: no such file; put it beside the model"),
        ({"location": "w.data", "offset": 4}, "w.data: it is too short: expected 4,608 bytes from 4 on, got 4,604"),
        ({"location": "w.data", "length": SIZE - 1}, "tensor 'w': expected 4,608 bytes .*, got .*length '4607'"),
        ({"location": "w.data", "offset": -4}, "tensor 'w': expected 4,608 bytes in a file beside the model, got"),
        ({"location": "w.data", "offset": "x"}, "tensor 'w': expected 4,608 bytes in a file beside the model, got"),
        ({"location": "../outside"}, "outside: it is outside of the model's folder"),
        ({"location": "link"}, "link: it is outside of the model's folder"),
        (
            {"location": "/etc/passwd"},
            "tensor 'w': expected 4,608 bytes .* beside the model, got location '/etc",
        ),
        ({"location": ""}, "tensor 'w': expected 4,608 bytes in a file beside the model, got location ''"),
        ({}, "tensor 'w': expected 4,608 bytes in a file beside the model, got nothing"),
    ],
)
def test_what_onnx_runtime_does_not_read_is_told(tmp_path, said, message):
    folder = tmp_path / "models"
    folder.mkdir()
    (folder / "w.data").write_bytes(WEIGHT.tobytes())
    (tmp_path / "outside").write_bytes(WEIGHT.tobytes())
    (folder / "link").symlink_to("../outside")
    path = folder / "model.onnx"
    path.write_bytes(elsewhere(**said).SerializeToString())
    with pytest.raises(InvalidArgumentError, match=f"model.onnx: its weights cannot be read: .*{message}"):
        read(path)


def test_small_types_and_tensors_of_nodes_may_be_elsewhere_too(tmp_path):
    codes = np.arange(-8, 7).astype(ml_dtypes.int4)
    given = [numpy_helper.from_array(each, name) for each, name in ((codes, "codes"), (WEIGHT, ""))]
    graph = helper.make_graph(
        [
            helper.make_node("Constant", [], ["w"], value=given[1]),
            helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
            helper.make_node("Identity", ["codes"], ["z"]),
        ],
        "tested",
        [value("x", ["N", 48])],
        [value("y", ["N", 24]), value("z", [15], TensorProto.INT4)],
        given[:1],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    path = tmp_path / "model.onnx"
    onnx.save(model, path, save_as_external_data=True, location="w.data", size_threshold=0, convert_attribute=True)
    assert (tmp_path / "w.data").stat().st_size >= SIZE + 8
    found = read(path)
    np.testing.assert_array_equal(Graph(found).value_of("codes"), codes)
    np.testing.assert_array_equal(numpy_helper.to_array(found.graph.node[0].attribute[0].t), WEIGHT)


def test_a_model_without_its_weights_is_told():
    with pytest.raises(InvalidArgumentError, match=r"tensor 'w' is in another file, w\.data, and was not read; give"):
        qatcore.onnx.quantize_model(elsewhere(location="w.data"), activations="none")


def damaged(how):
    model = onnx_models.product()
    weight = model.graph.initializer[0]
    if how == "cut":
        weight.raw_data = weight.raw_data[:-4]
    elif how == "odd":
        weight.raw_data = weight.raw_data[:-3]
    elif how == "longer":
        weight.raw_data += bytes(4)
    elif how == "empty":
        weight.ClearField("raw_data")
    elif how == "negative":
        weight.dims[0] = -1
    elif how == "numbers":
        weight.ClearField("raw_data")
        weight.float_data.extend([0.5] * 7)
    elif how == "type":
        weight.data_type = 99
    else:
        model.graph.node.insert(0, helper.make_node("Constant", [], ["c"], value=tensor("", np.float32([1, 2]))))
        model.graph.node[0].attribute[0].t.raw_data = bytes(5)
    return model


@pytest.mark.parametrize("how", ["cut", "odd", "longer", "empty", "negative", "numbers", "type", "of a node"])
def test_tensors_whose_data_are_not_what_they_say(tmp_path, how):
    model, path = damaged(how), tmp_path / "model.onnx"
    message = r"tensor '\w*': its data are no .* of shape \[.*\]; the file is damaged: "
    for call in (qatcore.onnx.quantize_model, qatcore.onnx.calibrate, qatcore.onnx.sensitivity):
        with pytest.raises(InvalidArgumentError, match=f"^model: {message}"):
            call(model, onnx_models.rows())
    path.write_bytes(model.SerializeToString())
    with pytest.raises(InvalidArgumentError, match=f"model.onnx: its weights cannot be read: {message}"):
        qatcore.onnx.quantize_model(path, onnx_models.rows())
