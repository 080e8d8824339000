"""Calibrating on a cluster gives the same bits as on one machine, also when workers are killed."""

import os
import signal
import subprocess
import sys
import threading

import numpy as np
import onnx
import onnx_models
import pytest

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._cli.command import main

distributed = pytest.importorskip("distributed", reason="needs the extra dask")

from qatcore._onnx import cluster, session  # noqa: E402
from qatcore.dask import calibrate_onnx  # noqa: E402

pytestmark = [
    pytest.mark.any_build,
    pytest.mark.slow,
    pytest.mark.filterwarnings("default::DeprecationWarning"),
    pytest.mark.filterwarnings("default::ResourceWarning"),
]

MODEL = onnx_models.convolutions()
BATCHES = onnx_models.images(3, batches=21)


@pytest.fixture(scope="module")
def client():
    """Workers in this process."""
    with (
        distributed.LocalCluster(
            n_workers=2, threads_per_worker=1, processes=False, dashboard_address=":0", silence_logs=50
        ) as local,
        distributed.Client(local) as client,
    ):
        yield client


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a model and a directory of batches."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    for i, batch in enumerate(BATCHES):
        np.savez(f"data/{i:03}.npz", **batch)
    onnx.save(MODEL, "model.onnx")
    return tmp_path


@pytest.mark.parametrize("kind", ["directory", "file", "arrays", "batches", "function"])
def test_the_same_bits_as_on_one_machine(kind, client, folder):
    whole = np.concatenate([batch["x"] for batch in BATCHES])
    np.save("whole.npy", whole)
    data = {"directory": "data", "file": "whole.npy", "arrays": whole, "batches": BATCHES, "function": lambda: BATCHES}
    for model in ("model.onnx", MODEL):
        found = calibrate_onnx(model, data[kind], client=client)
        assert found == qatcore.onnx.calibrate(model, data[kind])
        assert found.finished and found.samples == len(whole)


def test_options_are_those_of_calibrate(client, folder):
    for options in ({"ops": ("Gemm",)}, {"exclude": ("first",)}):
        assert calibrate_onnx(MODEL, "data", **options) == qatcore.onnx.calibrate(MODEL, "data", **options)
    whole = np.concatenate([batch["x"] for batch in BATCHES])
    assert calibrate_onnx(MODEL, whole, batch_size=5) == qatcore.onnx.calibrate(MODEL, whole, batch_size=5)


def test_workers_read_large_models_themselves(client, folder, monkeypatch):
    monkeypatch.setattr(cluster, "_MOST_SENT", 0)
    read = []
    monkeypatch.setattr(cluster, "read_model", lambda path: read.append(path) or qatcore._onnx.model.read_model(path))
    assert calibrate_onnx("model.onnx", "data", client=client) == qatcore.onnx.calibrate("model.onnx", "data")
    assert read == ["model.onnx"]
    onnx.save(onnx_models.convolutions(11), "other.onnx")
    monkeypatch.setattr(cluster, "_SESSIONS", cluster._Sessions())
    monkeypatch.setattr(cluster, "read_model", lambda path: qatcore._onnx.model.read_model("other.onnx"))
    with pytest.raises(InvalidArgumentError, match=r"^cluster: worker .*: model\.onnx is another model there$"):
        calibrate_onnx("model.onnx", "data", client=client)


def test_a_worker_opens_one_session(client, folder, monkeypatch):
    opened = []
    monkeypatch.setattr(cluster, "Tap", lambda *arguments: opened.append(1) or session.Tap(*arguments))
    calibrate_onnx(MODEL, "data", client=client)
    assert len(opened) == 1  # both workers are in this process


def test_what_a_worker_cannot_read_is_told(client, folder):
    os.truncate("data/004.npz", 100)
    with pytest.raises(InvalidArgumentError, match=r"^cluster: worker [^\n]*data/004\.npz[^\n]*damaged"):
        calibrate_onnx(MODEL, "data", client=client)
    os.remove("data/004.npz")
    np.savez("data/005.npz", x=np.zeros((2, 7), np.float32))
    with pytest.raises(InvalidArgumentError, match=r"^cluster: worker [^\n]*data/005\.npz[^\n]*expected x"):
        calibrate_onnx(MODEL, "data", client=client)


def test_data_without_batches(client):
    with pytest.raises(InvalidArgumentError, match="data: expected at least one batch, got none"):
        calibrate_onnx(MODEL, [], client=client)


def test_a_worker_that_lacks_a_package_is_told(client, folder, monkeypatch):
    def missing(_):
        raise ModuleNotFoundError("No module named 'onnxruntime'")

    monkeypatch.setattr(cluster._SESSIONS, "of", missing)
    with pytest.raises(InvalidArgumentError, match=r"^cluster: a worker failed: ModuleNotFoundError: No module named"):
        calibrate_onnx(MODEL, "data", client=client)


def test_other_versions_are_told(client, folder, monkeypatch):
    versions = iter([("9.9", "1.0")])
    given = cluster._versions()
    monkeypatch.setattr(cluster, "_versions", lambda: next(versions, given))
    with pytest.raises(InvalidArgumentError, match=r"worker .*: it has qatcore .* needs qatcore 9\.9 and "):
        calibrate_onnx(MODEL, "data", client=client)


def test_without_a_client(folder):
    program = "import qatcore.dask; qatcore.dask.calibrate_onnx('model.onnx', 'data')"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False)
    assert "client: expected an active distributed.Client, got none; make one" in done.stderr.splitlines()[-1]


def slowly():
    """Yield batches until a worker is killed, and some more."""
    for i, batch in enumerate(BATCHES):
        if i == 9:
            [pid, *_] = CLIENT[0].run(os.getpid).values()
            os.kill(pid, signal.SIGKILL)
        yield batch


CLIENT = []


def test_batches_of_a_killed_worker_are_observed_again(folder):
    with (
        distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=":0", silence_logs=50) as local,
        distributed.Client(local) as client,
    ):
        CLIENT[:] = [client]
        found = calibrate_onnx(MODEL, slowly, client=client)
    assert found == qatcore.onnx.calibrate(MODEL, BATCHES)


def test_commands(folder, capsys):
    assert main(["calibrate", "model.onnx", "--data", "data", "-o", "here.npz"]) == 0
    assert main(["calibrate", "model.onnx", "--data", "data", "-o", "there.npz", "--cluster", "local"]) == 0
    assert (folder / "here.npz").read_bytes() == (folder / "there.npz").read_bytes()
    quantize = ["quantize", "model.onnx", "--data", "data", "--no-check"]
    assert main([*quantize, "-o", "here.onnx"]) == 0
    assert main([*quantize, "-o", "there.onnx", "--cluster", "local"]) == 0
    assert (folder / "here.onnx").read_bytes() == (folder / "there.onnx").read_bytes()
    assert threading.active_count() < 30
    capsys.readouterr()
    os.truncate("data/004.npz", 100)
    assert main(["calibrate", "model.onnx", "--data", "data", "-o", "no.npz", "--cluster", "local"]) == 2
    said = capsys.readouterr().err
    assert said.startswith("qatcore: cluster: worker tcp://") and said.count("\n") == 1
    assert not (folder / "no.npz").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["calibrate", "--resume"], "--resume goes on on one machine; leave out --cluster, or --resume"),
        (["quantize", "--activations", "none"], "--cluster is for calibrating, but there is nothing to calibrate"),
    ],
)
def test_what_a_cluster_is_not_for(arguments, message, folder, capsys):
    command, *options = arguments
    given = [command, "model.onnx", "--data", "data", "-o", "out", "--cluster", "local", *options]
    assert main(given) == 2
    assert message in capsys.readouterr().err


def test_a_scheduler_that_is_not_there(folder, capsys, monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", "1s")
    assert main(["calibrate", "model.onnx", "--data", "data", "-o", "o.npz", "--cluster", "tcp://127.0.0.1:9"]) == 2
    assert "cluster: there is no scheduler at 'tcp://127.0.0.1:9'" in capsys.readouterr().err
