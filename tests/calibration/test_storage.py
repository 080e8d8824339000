"""Calibrations in files: the same to the bit, whole at any moment, and never read wrong."""

import contextlib
import io
import itertools
import json
import os
import pickle
import random
import signal
import stat
import time
import zipfile

import numpy as np
import pytest
from fuzz_storage import collectors, damaged, fuzz
from hypothesis import given, settings
from hypothesis import strategies as st

import qatcore
from qatcore import CalibMethod, CalibrationCollector, InvalidArgumentError, QuantBits, QuantizationSpec


def test_round_trip(tmp_path):
    path = tmp_path / "calibration.npz"
    original = collectors()
    qatcore.save_calibration(path, original)
    found = qatcore.load_calibration(path)
    assert list(found) == list(original)
    for name, collector in original.items():
        assert found[name] == collector
        assert (found[name].axis, found[name].groups, found[name].shape) == (
            collector.axis, collector.groups, collector.shape
        )  # fmt: skip
        single = tmp_path / "single"
        collector.save(str(single))
        assert CalibrationCollector.load(os.fsencode(single)) == collector
    assert sorted(os.listdir(tmp_path)) == ["calibration.npz", "single"]
    qatcore.save_calibration(path, {})
    assert qatcore.load_calibration(path) == {}


def test_a_file_is_numpys_and_compact(tmp_path):
    """NumPy reads it without pickle, and normal data of a million values takes some kilobytes."""
    path = tmp_path / "calibration.npz"
    collector = CalibrationCollector()
    collector.observe(np.random.default_rng(0).standard_normal(1_000_000))
    collector.save(path)
    assert path.stat().st_size < 20_000
    with np.load(path, allow_pickle=False) as archive:
        assert archive["counts"].sum() == 1_000_000
        assert json.loads(archive["header.json"])["version"] == 1
    first = path.read_bytes()
    again = CalibrationCollector()
    again.observe(np.random.default_rng(0).standard_normal(1_000_000)[::-1])
    again.save(path)
    assert path.read_bytes() == first  # the same state is the same file


@pytest.mark.slow
@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.lists(st.integers(0, 6000), min_size=1, max_size=5), st.data())
def test_anything_between_any_two_steps(tmp_path_factory, seed, channels, sizes, data):
    """Save, load, pickle and merge wherever one likes: the state and the scales are those of one array."""
    path = tmp_path_factory.mktemp("steps") / "collector.npz"
    rng = np.random.default_rng(seed)
    axis = data.draw(st.sampled_from([None, 0, 1, -1]))
    dtype = data.draw(st.sampled_from([np.float32, np.float64, np.float16]))
    x = (rng.standard_normal((sum(sizes), channels)) * 2.0 ** rng.integers(-8, 8, channels)).astype(dtype)
    if axis == 0:
        x = x.T
    x.reshape(-1)[: x.size // 50] = np.resize(np.array([0.0, np.nan, np.inf, -np.inf], dtype), x.size // 50)

    def fresh():
        return CalibrationCollector(axis)

    expected = fresh()
    expected.observe(x)
    collector = fresh()
    cut = 1 if axis == 0 else 0
    for part in np.split(x, np.cumsum(sizes)[:-1], axis=cut):
        step = data.draw(st.sampled_from(["observe", "merge", "merged"]))
        if step == "observe":
            collector.observe(part)
        else:
            other = fresh()
            other.observe(part.astype(np.float64))
            if step == "merged":
                collector, other = other, collector
            collector.merge(other)
        if data.draw(st.booleans()):
            collector.save(path)
            collector = CalibrationCollector.load(path)
        elif data.draw(st.booleans()):
            collector = pickle.loads(pickle.dumps(collector))
    assert collector == expected
    for bits, symmetric in itertools.product((QuantBits.INT8, QuantBits.INT4), (True, False)):
        for ask in ("min_max_scale", "mse_scale", "kl_divergence_scale"):
            ours = getattr(collector, ask)(bits=bits, symmetric=symmetric)
            theirs = getattr(expected, ask)(bits=bits, symmetric=symmetric)
            assert all(np.array_equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_a_loaded_collector_goes_on(tmp_path):
    x = np.random.default_rng(1).standard_normal((20_000, 3))
    collector = CalibrationCollector(axis=1)
    for part in np.array_split(x, 5):
        collector.observe(part)
        collector.save(tmp_path / "c.npz")
        collector = CalibrationCollector.load(tmp_path / "c.npz")
    expected = CalibrationCollector(axis=1)
    expected.observe(x)
    assert collector == expected


# --- at any moment ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_killed_while_saving(tmp_path):
    """Kill -9 at any moment, 200 times: there is always a whole file, the old one or the new one."""
    path = tmp_path / "collector.npz"
    rng = random.Random(0)
    versions = []
    for n in (9000, 20_000):
        collector = CalibrationCollector(axis=0)
        collector.observe(np.random.default_rng(n).standard_normal((10, n)))
        versions.append(collector)
    versions[0].save(path)
    start = time.perf_counter()
    versions[1].save(path)
    duration = time.perf_counter() - start
    seen = [0, 0]
    reader, writer = os.pipe()
    for turn in range(200):
        child = os.fork()
        if child == 0:
            try:
                for version in itertools.cycle(versions):
                    version.save(path)
                    os.write(writer, b".")
            finally:
                os._exit(1)
        for _ in range(turn % 3):  # some time after so many have been saved
            os.read(reader, 1)
        time.sleep(rng.random() * duration)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        seen[versions.index(CalibrationCollector.load(path))] += 1
        os.set_blocking(reader, False)
        with contextlib.suppress(BlockingIOError):
            os.read(reader, 1000)
        os.set_blocking(reader, True)
    os.close(reader)
    os.close(writer)
    assert min(seen) > 0
    left = [name for name in os.listdir(tmp_path) if name != path.name]
    assert left  # it was killed while writing
    assert all(name.endswith(".tmp") for name in left)


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "collector.npz"
    collector = CalibrationCollector()
    collector.save(path)
    before = path.read_bytes()
    collector.observe([1.0])

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        collector.save(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["collector.npz"]


def test_where_nothing_can_be_written(tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path in (fifo, tmp_path, tmp_path / "nowhere" / "c.npz"):
        for save in (CalibrationCollector().save, lambda path: qatcore.save_specs(path, [])):
            with pytest.raises(OSError) as caught:
                save(path)
            assert caught.value.filename == str(path)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert os.listdir(tmp_path) == ["fifo"]


def test_links_and_modes_are_kept(tmp_path):
    target, link = tmp_path / "target.npz", tmp_path / "link.npz"
    CalibrationCollector().save(target)
    target.chmod(0o600)
    link.symlink_to(target)
    collector = CalibrationCollector()
    collector.observe([1.0])
    collector.save(link)
    assert link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert CalibrationCollector.load(target) == collector


# --- what is no such file --------------------------------------------------------------------------------


@pytest.mark.slow
def test_fuzzed_files(tmp_path):
    refused, read = fuzz(2000, 1, tmp_path)
    assert refused > 1000
    assert read > 0


def test_truncated_anywhere(tmp_path):
    path = tmp_path / "c.npz"
    collector = CalibrationCollector()
    collector.observe(np.random.default_rng(0).standard_normal(9000))
    collector.save(path)
    data = path.read_bytes()
    for size in [*range(0, len(data), 37), len(data) - 1]:
        path.write_bytes(data[:size])
        with pytest.raises(InvalidArgumentError, match=r"c\.npz: not a calibration file, or a damaged one"):
            CalibrationCollector.load(path)


class Trap:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_foreign_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.savez("arrays.npz", a=np.arange(3))
    np.savez("trap.npz", header=np.array([Trap()], dtype=object))
    with open("trap.pkl", "wb") as file:
        pickle.dump(Trap(), file)
    original = io.BytesIO()
    qatcore.save_calibration("good.npz", collectors())
    with zipfile.ZipFile("good.npz") as source, zipfile.ZipFile("pickled.npz", "w") as target:
        for name in source.namelist():
            content = source.read(name)
            if name == "values.npy":
                original.seek(0)
                np.save(original, np.array([Trap()], dtype=object), allow_pickle=True)
                content = original.getvalue()
            target.writestr(name, content)
    (tmp_path / "text.npz").write_text("scale = 1")
    qatcore.save_specs("specs.json", [])
    for name in ("arrays.npz", "trap.npz", "trap.pkl", "pickled.npz", "text.npz", "specs.json"):
        with pytest.raises(InvalidArgumentError, match=name):
            qatcore.load_calibration(name)
        if name != "specs.json":
            with pytest.raises(InvalidArgumentError, match=name):
                qatcore.load_specs(name)
    assert not os.path.exists("executed")
    for load in (qatcore.load_calibration, CalibrationCollector.load, qatcore.load_specs):
        with pytest.raises(FileNotFoundError):
            load("nowhere.npz")


def with_header(path, **changes):
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    members["header.json"] = json.dumps(json.loads(members["header.json"]) | changes).encode()
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def test_messages(tmp_path):
    path = tmp_path / "c.npz"
    CalibrationCollector().save(path)
    with_header(path, version=2)
    with pytest.raises(
        InvalidArgumentError, match="made by a newer qatcore: expected format 1 or less, got 2; upgrade"
    ):
        CalibrationCollector.load(path)
    qatcore.save_calibration(path, collectors())
    with pytest.raises(
        InvalidArgumentError, match=r"c\.npz: expected one collector, got 7; read the file with load_calibration"
    ):
        CalibrationCollector.load(path)
    with_header(path, sha256="0" * 64)
    with pytest.raises(InvalidArgumentError, match="its contents do not match the digest in its header"):
        qatcore.load_calibration(path)


def test_a_small_file_cannot_ask_for_much_memory(tmp_path):
    path = tmp_path / "c.npz"
    CalibrationCollector(axis=0).save(path)
    with zipfile.ZipFile(path) as archive:
        entry = json.loads(archive.read("header.json"))["collectors"][0]
    with_header(path, collectors=[entry | {"shape": [2**40]}])
    with pytest.raises(InvalidArgumentError, match=r"low\.npy"):
        qatcore.load_calibration(path)


@pytest.mark.parametrize("given", [None, 3, [("a", CalibrationCollector())], {"a": 1}, {1: CalibrationCollector()}])
def test_what_cannot_be_saved(tmp_path, given):
    with pytest.raises(TypeError, match="collectors: expected"):
        qatcore.save_calibration(tmp_path / "c.npz", given)
    with pytest.raises(TypeError, match="specs: expected"):
        qatcore.save_specs(tmp_path / "s.json", [given])
    assert os.listdir(tmp_path) == []


# --- specifications --------------------------------------------------------------------------------------


SPECS = [
    QuantizationSpec("a", 0.1, -3, CalibMethod.MSE),
    QuantizationSpec("ü\ud800\n", np.nextafter(1.0, 2.0), 2147483521, CalibMethod.KL, QuantBits.INT4, True),
    QuantizationSpec("c", [5e-324, 1e308, 1 / 3], [1, -2, 3], CalibMethod.MIN_MAX, QuantBits.FP8, True, 1),
    QuantizationSpec("d", np.full((2, 3), 0.7), np.zeros((2, 3), int), CalibMethod.PERCENTILE, axis=(0, 1), groups=32),
    QuantizationSpec("e", np.inf, 0, CalibMethod.MIN_MAX),
    QuantizationSpec("f", [], [], CalibMethod.AUTO, axis=-1),
    QuantizationSpec("g", [np.inf], [0], CalibMethod.MIN_MAX, axis=0),
    QuantizationSpec("h", np.ones((0, 0)), np.zeros((0, 0), int), CalibMethod.KL, axis=(0, 1)),
]


def test_specs_round_trip(tmp_path):
    path = tmp_path / "specs.json"
    qatcore.save_specs(path, iter(SPECS))
    text = path.read_text()
    json.loads(text, parse_constant=pytest.fail)  # strict JSON
    found = qatcore.load_specs(path)
    assert found[:5] == SPECS[:5]
    for ours, theirs in zip(found, SPECS, strict=True):
        assert pickle.dumps(ours.scale) == pickle.dumps(theirs.scale) or ours == theirs
        assert np.asarray(ours.scale).tobytes() == np.asarray(theirs.scale).tobytes()
        assert ours.zero_point is not None
        assert type(ours.axis) is type(theirs.axis)
    qatcore.save_specs(path, found)
    assert path.read_text() == text


@given(st.floats(min_value=0.0, allow_nan=False), st.integers(-(2**31), 2**31 - 1))
def test_scales_survive_to_the_last_bit(tmp_path_factory, scale, zero_point):
    path = tmp_path_factory.getbasetemp() / "scale.json"
    qatcore.save_specs(path, [QuantizationSpec("x", scale, zero_point, CalibMethod.MSE)])
    (found,) = qatcore.load_specs(path)
    assert (found.scale.hex(), found.zero_point) == (float(scale).hex(), zero_point)


ENTRY = {
    "layer_name": "a",
    "scale": 0.5,
    "zero_point": 0,
    "method": "mse",
    "bits": "int8",
    "symmetric": False,
    "axis": None,
    "groups": 1,
}


@pytest.mark.parametrize(
    "change",
    [
        {"layer_name": 3}, {"scale": -1}, {"scale": "0.5"}, {"scale": True}, {"scale": [0.5]}, {"scale": None},
        {"zero_point": 0.5}, {"zero_point": 2**31}, {"zero_point": 10**30}, {"method": "best"}, {"method": 1},
        {"bits": "int9"}, {"symmetric": 0}, {"axis": 0}, {"axis": "0"}, {"axis": [0.5]}, {"axis": True}, {"groups": 0},
        {"axis": []}, {"axis": [0, 0]}, {"groups": 2}, {"extra": 1},
        {"scale": [[0.5], [0.5, 1]], "axis": [0, 1], "zero_point": [[0], [0]]},
        {"axis": 0, "scale": [0.5, 1.0], "zero_point": [0]}, {"scale": 10**400},
    ],
    ids=str,
)  # fmt: skip
def test_damaged_specs(tmp_path, change):
    path = tmp_path / "specs.json"
    content = {"format": "qatcore specifications", "version": 1, "specs": [ENTRY]}
    path.write_text(json.dumps(content))
    assert qatcore.load_specs(path) == [QuantizationSpec("a", 0.5, 0, CalibMethod.MSE)]
    path.write_text(json.dumps(content | {"specs": [ENTRY, ENTRY | change]}))
    with pytest.raises(InvalidArgumentError, match=r"specs\.json: specs\[1\]: "):
        qatcore.load_specs(path)


@pytest.mark.slow
def test_fuzzed_specs(tmp_path):
    path = tmp_path / "specs.json"
    qatcore.save_specs(path, SPECS)
    data = path.read_bytes()
    rng = random.Random(2)
    for _ in range(2000):
        path.write_bytes(damaged(data, rng))
        try:
            assert all(isinstance(spec, QuantizationSpec) for spec in qatcore.load_specs(path))
        except InvalidArgumentError as error:
            assert str(path) in str(error)


def test_what_is_said_beside_the_states_is_kept_and_checked(tmp_path):
    from qatcore._calibration.storage import read_described, write_states

    path = tmp_path / "c.npz"
    collector = CalibrationCollector()
    collector.observe([1.0, 2.0])
    write_states(path, {"a": collector._to_state()}, {"batches": 3})
    assert read_described(path)[1] == {"batches": 3}
    assert qatcore.load_calibration(path) == {"a": collector}
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    for wrong in ({"batches": 4}, None, 3):
        header = json.loads(members["header.json"])
        header["about"] = wrong
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in {**members, "header.json": json.dumps(header).encode()}.items():
                archive.writestr(name, content)
        with pytest.raises(InvalidArgumentError, match=r"digest|about"):
            qatcore.load_calibration(path)
