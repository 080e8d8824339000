"""The commands on ONNX models: what they print and write, every wrong thing one can do, and interrupts."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest

import qatcore.onnx
from qatcore._cli.command import main
from qatcore._onnx.display import print_table

pytestmark = pytest.mark.any_build

ROOT = Path(qatcore.__file__).parents[1]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A directory with a model, inputs of all kinds, and labels that are the model's own answers."""
    monkeypatch.chdir(tmp_path)
    model = onnx_models.convolutions(11)
    onnx.save(model, "model.onnx")
    copy = onnx.ModelProto.FromString(model.SerializeToString())
    onnx.save(copy, "external.onnx", save_as_external_data=True, location="external.data", size_threshold=0)
    session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
    x = np.concatenate([batch["x"] for batch in onnx_models.images(10)])
    np.savez("data.npz", x=x, label=session.run(None, {"x": x})[0].argmax(axis=-1))
    Path("batches").mkdir()
    for index, part in enumerate(np.split(x, 6)):
        np.save(f"batches/{index}.npy", part)
    return tmp_path


def run(capsys, *argv):
    """Run a command that succeeds and return what it prints."""
    assert main([str(a) for a in argv]) == 0
    out, err = capsys.readouterr()
    assert not err
    return out


def lines(out):
    return dict(line.split(maxsplit=1) for line in out.splitlines())


def test_quantize(folder, capsys):
    out = run(capsys, "quantize", "model.onnx", "--data", "data.npz", "-o", "int8.onnx")
    said = lines(out)
    assert said["quantised"] == "3 nodes: weights int8, activations uint8; 100.0 % of all multiply-adds by weights"
    assert said["calibrated"] == "3 tensors on 60 samples, by mse"
    assert said["agreement"].endswith(" % with the float model, on the data given")
    assert said["written"].startswith("int8.onnx, in ")
    assert max(map(len, out.splitlines())) <= 100
    made = onnx.load("int8.onnx")
    assert made == qatcore.onnx.quantize_model("model.onnx", "data.npz")
    assert sorted(os.listdir()) == ["batches", "data.npz", "external.data", "external.onnx", "int8.onnx", "model.onnx"]


def test_the_share_is_of_all_that_could_be_quantised(folder, capsys):
    command = ("quantize", "model.onnx", "--data", "data.npz", "-o", "part.onnx", "--exclude", "first")
    said = json.loads(run(capsys, *command, "--json"))
    shares = {each.node: each.share for each in qatcore.onnx.sensitivity("model.onnx", "data.npz", batches=1)}
    assert 0.0 < shares["first"] < 1.0
    assert said["share_of_multiply_adds"] == pytest.approx(1.0 - shares["first"])


def test_options_are_those_of_the_function(folder, capsys):
    options = ["--weights", "int4", "--activations", "int8", "--method", "minmax", "--per-tensor", "--exclude", "first"]
    run(
        capsys,
        "quantize",
        "model.onnx",
        "--data",
        "batches",
        *options,
        "--ops",
        "Conv,Gemm",
        "-o",
        "q.onnx",
        "--no-check",
    )
    assert onnx.load("q.onnx") == qatcore.onnx.quantize_model(
        "model.onnx",
        "batches",
        weights="int4",
        activations="int8",
        method="min_max",
        per_tensor=True,
        exclude=["first"],
        ops=["Conv", "Gemm"],
    )
    options = ["--weights", "int4", "--activations", "none", "--group-size", "16"]
    out = run(capsys, "quantize", "model.onnx", *options, "-o", "q.onnx")
    assert "calibrated" not in out
    expected = qatcore.onnx.quantize_model("model.onnx", weights="int4", activations="none", group_size=16)
    assert onnx.load("q.onnx") == expected
    run(
        capsys,
        "quantize",
        "model.onnx",
        "--data",
        "batches",
        "--method",
        "percentile",
        "--percentile",
        "95",
        "-o",
        "q.onnx",
    )
    assert onnx.load("q.onnx") == qatcore.onnx.quantize_model(
        "model.onnx", "batches", method="percentile", percentile=95
    )


def test_json_is_for_machines(folder, capsys):
    arguments = ["--data", "data.npz", "--labels", "label", "--json"]
    found = json.loads(run(capsys, "quantize", "model.onnx", *arguments, "-o", "q.onnx"))
    assert found["metric"] == "accuracy"
    assert found["score"]["float"] == 100.0
    assert (found["nodes"], found["kept_in_float"], found["tensors"], found["samples"]) == (3, [], 3, 60)
    assert found["bytes"]["quantized"] == os.path.getsize("q.onnx")
    compared = json.loads(run(capsys, "compare", "model.onnx", "q.onnx", *arguments))
    assert compared["score"] == [found["score"]["float"], found["score"]["quantized"]]
    assert compared["outputs"]["y"][0] > 15
    rows = json.loads(run(capsys, "inspect", "q.onnx", "--json"))
    assert [row["tensor"] for row in rows["activations"]] == ["x", "r1", "p1", "r2", "f"]
    assert [row["codes"] for row in rows["weights"]] == ["int8"] * 3
    assert rows["weights"][0]["sqnr"] > 30
    found = json.loads(run(capsys, "calibrate", "model.onnx", "--data", "batches", "-o", "c.npz", "--json"))
    assert (found["tensors"], found["samples"]) == (3, 60)
    rows = json.loads(run(capsys, "inspect", "c.npz", "--json"))["tensors"]
    x = np.load("data.npz")["x"]
    assert (rows[0]["least"], rows[0]["greatest"], rows[0]["values"]) == (float(x.min()), float(x.max()), x.size)
    assert rows[0]["mse"] > 35


def test_labels_and_max_drop(folder, capsys):
    arguments = ["--data", "data.npz", "--labels", "label", "--max-drop", "0", "--weights", "int4", "--per-tensor"]
    said = lines(run(capsys, "quantize", "model.onnx", *arguments, "-o", "q.onnx"))
    assert said["accuracy"].startswith("100.00 % float, 100.00 % quantised: drop 0.00")
    out = run(capsys, "compare", "model.onnx", "q.onnx", "--data", "data.npz", "--labels", "label", "-q")
    assert "accuracy     100.00 % float, 100.00 % quantised: drop 0.00, on 8 batches\n" in out


def test_compare_is_a_table(folder, capsys):
    run(capsys, "quantize", "model.onnx", "--data", "batches", "-o", "q.onnx", "--no-check")
    out = run(capsys, "compare", "model.onnx", "q.onnx", "--data", "batches")
    assert "\nlatency\nsamples  threads  float ms  quantised ms  times as fast   middle half\n" in out
    table = [line.split() for line in out.splitlines()]
    assert ["tensor", "SQNR", "dB"] in table
    assert [row[0] for row in table[table.index(["tensor", "SQNR", "dB"]) + 1 :]] == ["x", "r1", "p1", "r2", "f"]


def test_inspect_tells_a_float_models_nodes(folder, capsys):
    out = run(capsys, "inspect", "model.onnx")
    assert out.startswith("3 nodes that can be quantised, opset 11")
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["first", "second", "last"]


@pytest.mark.parametrize("width", [30, 60, 80, 100, 200, None])
def test_tables_lose_nothing(folder, capsys, monkeypatch, width):
    """On a terminal of a width, or where there is none."""
    names = [f"/model/encoder/layers.{i}/self_attn/q_proj/MatMul\x1b[31m_{'ab' * i * 9}" for i in range(3)]
    columns = [("node", "name"), ("operator", "left"), ("output", "name"), ("values", "right"), ("greatest", "right")]
    rows = [[name, "MatMul", f"{name}_output", f"{10**i * 12_582_912:,}", "-167.4"] for i, name in enumerate(names)]
    if width is not None:
        monkeypatch.setenv("COLUMNS", str(width))
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    print_table("a title", columns, rows)
    out = capsys.readouterr().out.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert "\x1b" not in out
    for row in rows:
        assert all(row[i] in out for i in (1, 3, 4))
    short = [name.replace("\x1b", r"\x1b").removeprefix("/model/encoder/layers.") for name in names]
    if width is None:
        assert out.splitlines()[0] == "a title"
        assert [line.split()[0] for line in out.splitlines()[2:]] == ["/model/encoder/layers." + name for name in short]
    else:
        assert out.splitlines()[0] == "a title; … is /model/encoder/layers."
        lines_of_names = [line for line in out.splitlines()[2:] if not line.startswith("  MatMul")]
        if width < 80:  # names have lines of their own
            assert lines_of_names[-6:] == [line for name in short for line in (f"…{name}", f"…{name}_output")]
        else:  # a name goes on below itself
            starts = "".join(line.split("  ")[0].strip() for line in lines_of_names)
            assert starts == "".join(f"…{name}" for name in short)
            assert max(map(len, out.splitlines())) <= width
    assert "operator" in out and "greatest" in out


def test_names_that_have_room_on_one_line_share_it(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    columns = [("node", "name"), ("output", "name"), ("values", "right")]
    print_table("a title", columns, [["a_node_of_a_model", "another_node_of_it", "12,582"], ["a", "b", "1"]])
    out = capsys.readouterr().out.replace("\x1b[1m", "").replace("\x1b[0m", "")
    assert out.splitlines()[1:] == [
        "node  output",
        "  values",
        "a_node_of_a_model  another_node_of_it",
        "  12,582",
        "a  b",
        "       1",
    ]


def test_shards_merge_to_what_one_machine_sees(folder, capsys):
    for name in ("a", "b"):
        Path(name).mkdir()
    for index in range(6):
        Path(f"batches/{index}.npy").rename(f"{'ab'[index % 2]}/{index}.npy")
    for name in ("a", "b"):
        run(capsys, "calibrate", "model.onnx", "--data", name, "-o", f"{name}.npz")
    out = run(capsys, "merge", "a.npz", "b.npz", "-o", "all.npz")
    assert lines(out)["observed"] == "3 tensors on 60 samples"
    np.savez("x.npz", x=np.load("data.npz")["x"])
    run(capsys, "calibrate", "model.onnx", "--data", "x.npz", "-o", "whole.npz")
    assert Path("all.npz").read_bytes() == Path("whole.npz").read_bytes()
    data = ["--data", "x.npz", "--no-check"]
    out = run(capsys, "quantize", "model.onnx", "--calibration", "all.npz", *data, "-o", "q.onnx")
    assert lines(out)["corrected"] == "3 nodes, on the data given"
    run(capsys, "quantize", "model.onnx", *data, "-o", "r.onnx")
    assert Path("q.onnx").read_bytes() == Path("r.onnx").read_bytes()
    out = run(capsys, "quantize", "model.onnx", "--calibration", "all.npz", "-o", "q.onnx")
    assert lines(out)["corrected"] == "no node; give --data as well as --calibration to correct nodes"
    run(capsys, "quantize", "model.onnx", *data, "--no-bias-correction", "-o", "r.onnx")
    assert Path("q.onnx").read_bytes() == Path("r.onnx").read_bytes()


# --- what can go wrong --------------------------------------------------------------------------------


def fails(capsys, *argv, says, code=2):
    """Run a command that has to fail with one line, leaving everything as it was."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    assert main([str(a) for a in argv]) == code
    out, err = capsys.readouterr()
    assert not out
    assert err.startswith("qatcore: ")
    assert err.count("\n") == 1
    assert says in err, err
    assert before == {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}


def faulty_models():
    """Write models without nodes, with weights that are cut off, missing or behind a link, and with odd names."""
    model = onnx.load("model.onnx")
    for name in ("cut", "linked", "alone"):
        copy = onnx.ModelProto.FromString(model.SerializeToString())
        onnx.save(copy, f"{name}.onnx", save_as_external_data=True, location=f"{name}.data", size_threshold=0)
    os.truncate("cut.data", os.path.getsize("cut.data") - 100)
    os.remove("alone.data")
    os.rename("linked.data", "elsewhere")
    os.symlink("elsewhere", "linked.data")
    node = model.graph.node[0]
    model.graph.input[0].name = node.input[0] = "x\x1b[31m\n"
    onnx.save(model, "odd.onnx")
    del model.graph.node[:]
    onnx.save(model, "empty.onnx")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("missing.onnx --data batches -o q.onnx", "missing.onnx: No such file or directory"),
        ("data.npz --data batches -o q.onnx", "data.npz: not an ONNX model"),
        ("batches --data batches -o q.onnx", "batches: Is a directory"),
        ("model.onnx -o q.onnx", "give --data to observe activations on, or --activations none"),
        ("model.onnx --data missing -o q.onnx", "missing is no file or directory that exists"),
        ("model.onnx --data no.module:f -o q.onnx", "there is no function no.module:f"),
        ("model.onnx --data batches -o model.onnx", "model.onnx belongs to the inputs; give another name"),
        ("model.onnx --data data.npz -o ./data.npz", "data.npz belongs to the inputs"),
        ("model.onnx --data batches -o batches", "batches: Is a directory"),
        ("model.onnx --data batches -o batches/1.npy", "batches/1.npy belongs to the inputs"),
        ("model.onnx --data batches -o batches/new.npz", "batches/new.npz belongs to the inputs"),
        ("external.onnx --data batches -o external.data", "external.data belongs to the inputs"),
        ("model.onnx --data batches -o missing/q.onnx", "missing/q.onnx: there is no folder missing"),
        ("model.onnx --data batches -o /proc/q.onnx", "/proc/q.onnx: "),
        ("model.onnx --data batches -o q.onnx --ops Relu", "expected some of Conv, ConvTranspose, Gemm, MatMul"),
        ("model.onnx --data batches -o q.onnx --exclude nobody", "there is no node 'nobody'; qatcore inspect"),
        ("model.onnx --data batches -o q.onnx --labels label", "expected labels named 'label', got only x"),
        ("model.onnx --data batches -o q.onnx --metric os:nothing", "there is no function os:nothing"),
        ("model.onnx --data batches -o q.onnx --max-drop 101", "expected percent from 0 to 100, got 101"),
        ("model.onnx --data batches -o q.onnx --method percentile --percentile 0", "percentile: expected more than 0"),
        ("model.onnx --data batches -o q.onnx --percentile 99", "--percentile needs --method percentile"),
        ("model.onnx --data batches -o q.onnx --group-size 32", "--group-size needs --weights int4"),
        ("model.onnx --activations none -o q.onnx --labels label", "give --data to measure --labels on"),
        ("model.onnx --activations none -o q.onnx --calibration c.npz", "--calibration is for activations"),
        ("model.onnx --data batches -o q.onnx --max-drop 1 --no-check", "leave out --no-check"),
        ("model.onnx --activations none -o q.onnx --max-drop 1", "give --data to measure --max-drop on"),
        ("model.onnx --data batches -o q.onnx --weights int4 --group-size 3", "group_size: expected a power of two"),
        ("model.onnx --data data.npz -o q.onnx --batch-size 0", "batch_size"),
        ("model.onnx --calibration model.onnx -o q.onnx", "model.onnx: not a calibration file"),
        (
            "model.onnx --data batches -o q.onnx --labels label --no-check",
            "--labels needs a comparison of both models; leave out --no-chec",
        ),
        (
            "model.onnx --data batches -o q.onnx --metric os:sep --no-check",
            "--metric needs a comparison of both models",
        ),
        ("model.onnx --activations none -o q.onnx --method kl", "--method is for activations"),
        (
            "model.onnx --data batches -o q.onnx --weights int4 --per-tensor --group-size 32",
            "--group-size gives each group a scale",
        ),
        ("model.onnx --data batches -o q.onnx --metric score", "metric: expected module:function, got 'score'"),
        ("model.onnx --data= -o q.onnx", "data: expected a directory, a file or module:function, got an empty name"),
        ("model.onnx --data batches --output=", "output: expected the name of a file, got none"),
        ("empty.onnx --data batches -o q.onnx", "empty.onnx: there is no node in the model"),
        ("cut.onnx --data batches -o q.onnx", "cut.onnx: its weights cannot be read: "),
        ("alone.onnx --data batches -o q.onnx", "alone.data: no such file; put it beside the model, under this name"),
        ("model.onnx --data mine:batches -o mine.py", "mine.py belongs to the inputs"),
        ("model.onnx --data data.npz --metric mine:score -o mine.py", "mine.py belongs to the inputs"),
        ("model.onnx --data mine:leaves -o q.onnx", "mine:leaves raised SystemExit: 3"),
        ("model.onnx --data data.npz --metric mine:leaves -o q.onnx", "metric: mine:leaves raised SystemExit: 3"),
        ("model.onnx --data leaves:batches -o q.onnx", "there is no function leaves:batches: 4"),
        ("model.onnx --data batches -o q.onnx --batch-size 2", "got a directory, which has batches already"),
        (
            "model.onnx --data mine:batches -o q.onnx --batch-size 2",
            "got a function or an iterable, which has batches already",
        ),
        ("model.onnx --activations none -o q.onnx --batch-size 2", "--batch-size needs --data, but there is none"),
        ("model.onnx --activations none -o q.onnx --no-check", "--no-check needs --data, but there is none"),
        (
            "model.onnx --activations none -o q.onnx --no-bias-correction",
            "--no-bias-correction needs --data, but there is none",
        ),
        ("linked.onnx --data batches -o elsewhere", "elsewhere belongs to the inputs"),
        ("linked.onnx --data batches -o linked.data", "linked.data belongs to the inputs"),
        ("model.onnx --data batches -o linked.data", "linked.data is a link, and nothing is written through links"),
        ("odd.onnx --data data.npz -o q.onnx", r"the model takes x\x1b[31m"),
    ],
)
def test_what_is_wrong_with_quantize_is_told_in_one_line(folder, capsys, monkeypatch, arguments, says):
    faulty_models()
    Path("mine.py").write_text("def leaves(*arguments): raise SystemExit(3)\nbatches = score = leaves\n")
    Path("leaves.py").write_text("raise SystemExit(4)\n")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    try:
        fails(capsys, "quantize", *arguments.split(), says=says)
    finally:
        sys.modules.pop("mine", None)


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"images": np.zeros((2, 3, 8, 8), np.float32)}, "has no input 'x' in it, only 'images'; the model takes x"),
        ({"x": np.zeros((2, 3, 8, 8))}, "expected x to be float32[?, 3, 8, 8], got float64[2, 3, 8, 8]"),
        ({"x": np.zeros((2, 8, 8, 3), np.float32)}, "got float32[2, 8, 8, 3]"),
        ({"x": np.zeros((0, 3, 8, 8), np.float32)}, "has 0 samples"),
        ({"x": np.full((2, 3, 8, 8), np.nan, np.float32)}, "384 of 384 values of x are NaN or infinite"),
    ],
)
@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_data_that_does_not_fit(folder, capsys, command, arrays, says):
    np.savez("bad.npz", **arrays)
    fails(capsys, command, "model.onnx", "--data", "bad.npz", "-o", "out", says=says)


@pytest.mark.parametrize("argv", ["quantize", "quantize model.onnx", "compare a.onnx b.onnx", "merge -o x", "inspect"])
def test_missing_arguments_are_one_line(capsys, argv):
    with pytest.raises(SystemExit) as raised:
        main(argv.split())
    assert raised.value.code == 2
    err = capsys.readouterr().err
    assert err.startswith("qatcore: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("command", ["quantize", "calibrate", "merge", "compare", "inspect"])
def test_help_has_an_example(capsys, command):
    with pytest.raises(SystemExit) as raised:
        main([command, "--help"])
    assert raised.value.code == 0
    out = capsys.readouterr().out
    assert f"\n  qatcore {command} " in out
    assert max(map(len, out.splitlines())) <= 100


@pytest.mark.parametrize("command", ["quantize", "calibrate"])
def test_no_space_left(folder, capsys, monkeypatch, command):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    fails(capsys, command, "model.onnx", "--data", "batches", "-o", "out", says="No space left on device")


def test_a_file_larger_than_is_allowed(folder):
    """The disk, for once, is really full: as far as this process may write."""
    program = (
        "import resource, sys; from qatcore._cli.command import main;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "sys.exit(main(['quantize', 'model.onnx', '--data', 'batches', '-o', 'q.onnx']))"
    )
    before = sorted(os.listdir())
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False, env=environment()
    )
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "qatcore: q.onnx: File too large\n")
    assert sorted(os.listdir()) == before


def environment():
    return {**os.environ, "PYTHONPATH": str(ROOT)}


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_that_is_read_only(folder, capsys):
    Path("locked").mkdir()
    Path("locked").chmod(0o500)
    fails(capsys, "quantize", "model.onnx", "--data", "batches", "-o", "locked/q.onnx", says="Permission denied")


def test_merging_what_does_not_belong_together(folder, capsys):
    run(capsys, "calibrate", "model.onnx", "--data", "batches", "-o", "a.npz")
    run(capsys, "calibrate", "model.onnx", "--data", "batches", "--ops", "Gemm", "-o", "b.npz")
    other = onnx_models.product()
    onnx.save(other, "other.onnx")
    np.savez("rows.npz", **onnx_models.rows()[0])
    run(capsys, "calibrate", "other.onnx", "--data", "rows.npz", "-o", "c.npz")
    fails(capsys, "merge", "a.npz", "b.npz", "-o", "m.npz", says="b.npz: expected the same tensors")
    fails(capsys, "merge", "a.npz", "c.npz", "-o", "m.npz", says="c.npz: expected a calibration of the same model")
    fails(capsys, "merge", "a.npz", "batches/0.npy", "-o", "m.npz", says="batches/0.npy: not a calibration file")
    fails(capsys, "merge", "a.npz", "a.npz", "-o", "a.npz", says="a.npz belongs to the inputs")
    fails(capsys, "merge", "a.npz", "./a.npz", "-o", "m.npz", says="./a.npz: given twice")
    fails(capsys, "quantize", "other.onnx", "--calibration", "a.npz", "-o", "q.onnx", says="of this model, got one of")
    fails(
        capsys,
        "compare",
        "model.onnx",
        "other.onnx",
        "--data",
        "batches",
        says="quantised model: ONNX Runtime cannot run it on this batch",
    )
    fails(capsys, "inspect", "batches/0.npy", says="batches/0.npy: not an ONNX model")
    fails(capsys, "inspect", "", says="expected the name of a file, got an empty one")
    fails(capsys, "merge", "a.npz", "", "-o", "m.npz", says="expected the name of a file, got an empty one")
    fails(capsys, "inspect", "data.npz", says="data.npz: not a calibration file: there is no header.json in it")
    fails(
        capsys,
        "calibrate",
        "model.onnx",
        "--data",
        "a.npz",
        "-o",
        "m.npz",
        says="expected only .npy files in it, got header",
    )


# --- interrupts ---------------------------------------------------------------------------------------

LOADER = """
import os, signal, numpy as np

def batches():
    rng = np.random.default_rng(3)
    for index in range(8):
        if index == 5 and os.path.exists("interrupt"):
            os.unlink("interrupt")
            signal.raise_signal(signal.SIGINT)
        yield {"x": rng.standard_normal((4, 3, 8, 8)).astype(np.float32)}
"""


def test_ctrl_c_saves_a_calibration_that_is_resumed(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("interrupted_loader.py").write_text(LOADER)
    arguments = ["calibrate", "model.onnx", "--data", "interrupted_loader:batches"]
    Path("interrupt").touch()
    assert main([*arguments, "-o", "c.npz"]) == 130
    out, err = capsys.readouterr()
    assert (out, err) == (
        "",
        "qatcore: interrupted; the calibration of 20 samples is saved in c.npz; go on with --resume\n",
    )
    fails(capsys, *arguments, "-o", "c.npz", says="c.npz holds an interrupted calibration; go on with --resume")
    run(capsys, "calibrate", "model.onnx", "--data", "batches", "-o", "other.npz")
    for files in (["c.npz"], ["c.npz", "other.npz"], ["other.npz", "c.npz"]):
        fails(capsys, "merge", *files, "-o", "m.npz", says="c.npz: expected a finished calibration")
    fails(capsys, "quantize", "model.onnx", "--calibration", "c.npz", "-o", "q.onnx", says="resume it")
    run(capsys, *arguments, "-o", "c.npz", "--resume")
    run(capsys, *arguments, "-o", "whole.npz", "--resume")
    assert "complete" not in lines(run(capsys, *arguments, "-o", "whole.npz"))
    assert "nothing was added" in lines(run(capsys, *arguments, "-o", "whole.npz", "--resume"))["complete"]
    assert Path("c.npz").read_bytes() == Path("whole.npz").read_bytes()


def test_ctrl_c_in_quantize_says_how_to_go_on(folder, capsys, monkeypatch):
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    Path("interrupted_loader.py").write_text(LOADER)
    Path("interrupt").touch()
    data = ["--data", "interrupted_loader:batches"]
    excluded = ["--exclude", "first"]
    assert main(["quantize", "model.onnx", *data, "-o", "q.onnx", *excluded]) == 130
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    saved = "q.onnx.calibration.npz"
    assert (
        f"is saved in {saved}; to go on, run qatcore calibrate model.onnx {' '.join(data)} -o {saved} --resume" in err
    )
    assert err.endswith(f"--exclude first, then give this command --calibration {saved} as well\n")
    assert not Path("q.onnx").exists()
    run(capsys, "calibrate", "model.onnx", *data, "-o", saved, "--resume", *excluded)
    run(capsys, "quantize", "model.onnx", *data, "--calibration", saved, "-o", "q.onnx", *excluded)
    run(capsys, "quantize", "model.onnx", *data, "-o", "once.onnx", *excluded)
    assert Path("q.onnx").read_bytes() == Path("once.onnx").read_bytes()


def test_what_cannot_be_printed(folder):
    """The file is written; a closed output is no fault, a full one is told by the exit code."""
    command = [sys.executable, "-m", "qatcore", "quantize", "model.onnx", "--data", "batches", "-o"]
    for shell, code in ((">&-", 0), (">/dev/full", 1)):
        done = subprocess.run(
            ["bash", "-c", f'"$@" {shell}', "bash", *command, f"{code}.onnx"],
            stderr=subprocess.PIPE, text=True, check=False, env=environment(),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (code, "")
        onnx.load(f"{code}.onnx")
    for command in ("inspect model.onnx", "compare model.onnx 0.onnx --data batches"):
        done = subprocess.run(
            ["bash", "-c", f"{sys.executable} -m qatcore {command} >/dev/full"],
            stderr=subprocess.PIPE, text=True, check=False, env=environment(),
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (1, "")


def test_values_that_are_not_finite_are_told(folder, capsys):
    model = onnx_models.model(
        [onnx.helper.make_node("Log", ["x"], ["l"]), onnx.helper.make_node("MatMul", ["l", "w"], ["y"], "product")],
        [onnx_models.value("x", ["N", 8])],
        [onnx_models.value("y", ["N", 4])],
        [onnx_models.tensor("w", onnx_models.normal(8, 4))],
    )
    onnx.save(model, "log.onnx")
    np.savez("logged.npz", x=np.array([[0.0, -1.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0]], np.float32))
    said = lines(run(capsys, "quantize", "log.onnx", "--data", "logged.npz", "-o", "q.onnx"))
    assert said["not"] == "finite   2 values of l; the ranges leave them out"
    run(capsys, "calibrate", "log.onnx", "--data", "logged.npz", "-o", "c.npz")
    [row] = json.loads(run(capsys, "inspect", "c.npz", "--json"))["tensors"]
    assert (row["values"], row["not_finite"]) == (6, 2)


@pytest.mark.slow
def test_a_signal_from_outside(folder):
    Path("endless_loader.py").write_text(
        "import numpy as np, pathlib\n"
        "def batches():\n"
        "    while True:\n"
        "        yield np.ones((4, 3, 8, 8), np.float32)\n"
        "        pathlib.Path('started').touch()\n"
    )
    command = [
        sys.executable,
        "-m",
        "qatcore",
        "calibrate",
        "model.onnx",
        "--data",
        "endless_loader:batches",
        "-o",
        "c.npz",
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=environment()) as process:
        while not Path("started").exists():
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        err = process.stderr.read()
    assert process.returncode == 130
    assert "samples is saved in c.npz" in err
    found = qatcore.onnx.Calibration.load("c.npz")
    assert found.samples > 0
    assert found.collectors["x"].n_elements == found.samples * 192
