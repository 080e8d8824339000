"""Calibrating models: what is observed, resumed, merged and kept in files."""

import copy
import signal
import threading

import numpy as np
import onnx_models
import pytest
from insides import description, prepared
from onnx import helper

import qatcore.onnx
from qatcore import CalibrationCollector, InvalidArgumentError
from qatcore._base import threads
from qatcore.onnx import Calibration

pytestmark = pytest.mark.any_build

MODEL, BATCHES = onnx_models.convolutions(11), onnx_models.images(4, batches=9)


def test_every_value_of_the_tensors_is_observed_and_nothing_else():
    import onnxruntime

    found = qatcore.onnx.calibrate(MODEL, BATCHES)
    assert list(found.collectors) == ["x", "r1", "r2"]
    assert (found.samples, found.finished) == (36, True)
    ready = prepared(MODEL)
    for name in ("r1", "r2"):
        ready.graph.output.append(onnx_models.value(name, None))
    session = onnxruntime.InferenceSession(ready.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = {name: CalibrationCollector() for name in found.collectors}
    for batch in BATCHES:
        for name, array in {**batch, **dict(zip(("r1", "r2"), session.run(["r1", "r2"], batch), strict=True))}.items():
            expected[name].observe(array)
    assert found.collectors == expected


def test_batches_of_any_shape():
    whole = np.concatenate([batch["x"] for batch in BATCHES])
    cuts = [{"x": part} for part in np.split(whole, [1, 3, 4, 20])]
    assert qatcore.onnx.calibrate(MODEL, cuts).collectors["x"] == qatcore.onnx.calibrate(MODEL, BATCHES).collectors["x"]


def test_other_tensors_can_be_asked_for():
    found = qatcore.onnx.calibrate(MODEL, BATCHES, tensors=["y", "c1", "x"])
    assert list(found.collectors) == ["y", "c1", "x"]
    assert found.collectors["c1"].n_elements == 9 * 4 * 6 * 64
    with pytest.raises(InvalidArgumentError, match="tensors: there is no tensor 'q' in the model"):
        qatcore.onnx.calibrate(MODEL, BATCHES, tensors=["q"])


def test_fewer_nodes_need_fewer_tensors():
    # In the range of what they are the elements of, whatever is quantised: so one calibration serves every choice.
    assert list(qatcore.onnx.calibrate(MODEL, BATCHES, ops=["Gemm"]).collectors) == ["r2"]
    assert list(qatcore.onnx.calibrate(MODEL, BATCHES, exclude=["first"]).collectors) == ["r1", "r2"]


def test_shards_merge_to_the_same_bits(tmp_path):
    whole = qatcore.onnx.calibrate(MODEL, BATCHES)
    whole.save(tmp_path / "whole.npz")
    for order in ([0, 1, 2], [2, 0, 1]):
        shards = [qatcore.onnx.calibrate(MODEL, BATCHES[i::3]) for i in order]
        for index, shard in enumerate(shards):
            shard.save(tmp_path / f"{index}.npz")
        merged = Calibration.load(tmp_path / "0.npz")
        for index in (1, 2):
            merged.merge(Calibration.load(tmp_path / f"{index}.npz"))
        assert merged == whole
        merged.save(tmp_path / "merged.npz")
        assert (tmp_path / "merged.npz").read_bytes() == (tmp_path / "whole.npz").read_bytes()


def test_what_was_interrupted_is_resumed(tmp_path):
    def interrupted():
        yield from BATCHES[:4]
        raise KeyboardInterrupt

    partial = Calibration()
    with pytest.raises(KeyboardInterrupt):
        qatcore.onnx.calibrate(MODEL, interrupted, calibration=partial)
    assert (partial.samples, partial.finished) == (16, False)
    assert repr(partial) == "Calibration(3 tensors, 16 samples, not finished)"
    partial.save(tmp_path / "partial.npz")
    again = Calibration.load(tmp_path / "partial.npz")
    assert again == partial
    with pytest.raises(InvalidArgumentError, match="expected a finished one"):
        qatcore.onnx.quantize_model(MODEL, calibration=again)
    with pytest.raises(InvalidArgumentError, match="expected finished calibrations"):
        qatcore.onnx.calibrate(MODEL, BATCHES).merge(again)
    qatcore.onnx.calibrate(MODEL, BATCHES, calibration=again, resume=True)
    assert again == qatcore.onnx.calibrate(MODEL, BATCHES)
    # Finished there is nothing to do, and nothing is counted twice.
    qatcore.onnx.calibrate(MODEL, BATCHES, calibration=again, resume=True)
    assert again.samples == 36


def test_without_resuming_batches_are_added():
    both = qatcore.onnx.calibrate(MODEL, BATCHES[:5])
    qatcore.onnx.calibrate(MODEL, BATCHES[5:], calibration=both)
    assert both == qatcore.onnx.calibrate(MODEL, BATCHES)


def test_fewer_batches_than_were_seen_are_told():
    partial = qatcore.onnx.calibrate(MODEL, BATCHES[:5])
    partial.unfinished = 20
    with pytest.raises(InvalidArgumentError, match="it has seen 20 samples, 8 more than the data has"):
        qatcore.onnx.calibrate(MODEL, BATCHES[:3], calibration=partial, resume=True)
    whole = {"x": np.concatenate([batch["x"] for batch in BATCHES])}
    with pytest.raises(InvalidArgumentError, match="20 samples, which end inside of a batch"):
        qatcore.onnx.calibrate(MODEL, [whole], calibration=partial, resume=True)
    assert partial.samples == partial.unfinished == 20


def test_resuming_skips_what_the_interrupted_run_has_seen_and_no_more():
    """A calibration that was added to: the first run's batches are not taken for the second one's."""

    def interrupted():
        yield from BATCHES[4:6]
        raise KeyboardInterrupt

    both = qatcore.onnx.calibrate(MODEL, BATCHES[:4])
    with pytest.raises(KeyboardInterrupt):
        qatcore.onnx.calibrate(MODEL, interrupted, calibration=both)
    qatcore.onnx.calibrate(MODEL, BATCHES[4:], calibration=both, resume=True)
    assert both == qatcore.onnx.calibrate(MODEL, BATCHES)


def test_an_error_before_the_first_batch_changes_nothing():
    for calibration in (Calibration(), qatcore.onnx.calibrate(MODEL, BATCHES)):
        before = copy.deepcopy(calibration)
        for wrong in ([{"x": np.zeros((1, 3, 8, 9), np.float32)}], []):
            with pytest.raises(InvalidArgumentError):
                qatcore.onnx.calibrate(MODEL, wrong, calibration=calibration)
        with pytest.raises(TypeError, match="resume"):
            qatcore.onnx.calibrate(MODEL, BATCHES, calibration=calibration, resume=1)
        assert calibration == before


@pytest.mark.usefixtures("_number_of_threads")
def test_ctrl_c_waits_for_the_end_of_a_batch(monkeypatch):
    """The signal comes while the first tensor of the third batch is observed."""
    observed = []
    observe = CalibrationCollector.observe

    def slow(self, x, mask=None):
        observe(self, x, mask)
        observed.append(x.shape)
        if len(observed) == 7:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(CalibrationCollector, "observe", slow)
    qatcore.set_num_threads(1)
    partial = Calibration()
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        qatcore.onnx.calibrate(MODEL, BATCHES, calibration=partial)
    assert signal.getsignal(signal.SIGINT) is handler
    assert partial.samples == 12
    assert {collector.n_elements for collector in partial.collectors.values()} == {3 * 4 * n for n in (192, 384, 64)}


def test_in_other_threads_too():
    found = []
    thread = threading.Thread(target=lambda: found.append(qatcore.onnx.calibrate(MODEL, BATCHES)))
    thread.start()
    thread.join()
    assert found == [qatcore.onnx.calibrate(MODEL, BATCHES)]


def test_what_is_added_to_has_to_be_a_calibration():
    with pytest.raises(TypeError, match="calibration: expected a Calibration to add to, got str"):
        qatcore.onnx.calibrate(MODEL, BATCHES, calibration="file.npz")


def test_a_batch_that_does_not_fit_leaves_whole_batches():
    partial = Calibration()
    with pytest.raises(InvalidArgumentError, match="batch 2: expected x to be"):
        qatcore.onnx.calibrate(MODEL, [*BATCHES[:2], {"x": np.zeros((1, 3, 8, 9), np.float32)}], calibration=partial)
    assert partial.samples == 8
    assert partial.collectors["x"].n_elements == 2 * 4 * 192


def test_calibrations_of_other_models_are_refused():
    found = qatcore.onnx.calibrate(MODEL, BATCHES)
    other = onnx_models.convolutions(11)
    other.graph.initializer[0].raw_data = other.graph.initializer[0].raw_data[::-1]
    for wrong in (
        lambda: qatcore.onnx.quantize_model(other, calibration=found),
        lambda: qatcore.onnx.calibrate(other, BATCHES, calibration=copy.deepcopy(found)),
        lambda: copy.deepcopy(found).merge(qatcore.onnx.calibrate(other, BATCHES)),
    ):
        with pytest.raises(InvalidArgumentError, match="of another"):
            wrong()
    with pytest.raises(
        InvalidArgumentError, match="of the same tensors, got other ones; choose the same ops and nodes"
    ):
        qatcore.onnx.calibrate(MODEL, BATCHES, calibration=found, ops=["Gemm"])
    with pytest.raises(InvalidArgumentError, match="expected the same tensors in both, but x differs"):
        found.merge(qatcore.onnx.calibrate(MODEL, BATCHES, tensors=["r1", "r2"]))
    with pytest.raises(TypeError, match="expected a Calibration, got dict"):
        found.merge({})


def test_models_that_differ_in_a_function_differ():
    def made(inner):
        function = helper.make_function(
            "own", "Act", ["a"], ["b"], [helper.make_node(inner, ["a"], ["b"])], [helper.make_opsetid("", 17)]
        )
        graph = helper.make_graph(
            [helper.make_node("Act", ["x"], ["t"], domain="own"), helper.make_node("MatMul", ["t", "w"], ["y"])],
            "g",
            [onnx_models.value("x", ["N", 6])],
            [onnx_models.value("y", ["N", 4])],
            [onnx_models.tensor("w", onnx_models.normal(6, 4))],
        )
        opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
        return helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8)

    found = qatcore.onnx.calibrate(made("Relu"), [{"x": onnx_models.normal(9, 6)}])
    with pytest.raises(InvalidArgumentError, match="got one of another"):
        qatcore.onnx.quantize_model(made("Exp"), calibration=found)


@pytest.mark.slow
def test_a_calibration_serves_fewer_nodes_and_every_format():
    found, helped = qatcore.onnx.calibrate(MODEL, BATCHES), []
    for options in (
        {},
        {"weights": "int4"},
        {"activations": "fp8"},
        {"method": "kl"},
        {"exclude": ["first"]},
        {"exclude": ["second"]},
        {"exclude": ["last"]},
        {"ops": ["Gemm"]},
    ):
        once = qatcore.onnx.quantize_model(MODEL, BATCHES, **options)
        assert qatcore.onnx.quantize_model(MODEL, BATCHES, calibration=found, **options) == once
        without = qatcore.onnx.quantize_model(MODEL, BATCHES, bias_correction=False, **options)
        assert qatcore.onnx.quantize_model(MODEL, calibration=found, **options) == without
        about = description(once)
        assert (without != once) == (about["corrected"] + about["corrections_left_out"] > 0)
        helped.append(about["corrected"] > 0)
    assert sum(helped) > 3
    fewer = qatcore.onnx.calibrate(MODEL, BATCHES, exclude=["first"])
    with pytest.raises(InvalidArgumentError, match="tensors that get codes, but 1 were not observed, such as x"):
        qatcore.onnx.quantize_model(MODEL, calibration=fewer)


def test_files_of_collectors_are_read_by_both(tmp_path):
    found = qatcore.onnx.calibrate(MODEL, BATCHES)
    found.save(tmp_path / "c.npz")
    assert qatcore.load_calibration(tmp_path / "c.npz") == found.collectors
    qatcore.save_calibration(tmp_path / "plain.npz", found.collectors)
    with pytest.raises(InvalidArgumentError, match="expected a file of qatcore calibrate, got only collectors"):
        Calibration.load(tmp_path / "plain.npz")


@pytest.mark.parametrize(
    "about",
    [
        [],
        {"model": 3, "samples": 1, "unfinished": None},
        {"model": "", "samples": -1, "unfinished": None},
        {"model": "", "samples": 1, "unfinished": 2},
    ],
)
def test_damaged_descriptions_are_refused(tmp_path, about):
    from qatcore._calibration.storage import write_states

    write_states(tmp_path / "c.npz", {}, about)
    with pytest.raises(InvalidArgumentError, match=r"c\.npz"):
        Calibration.load(tmp_path / "c.npz")


def count_on_every_thread():
    """Let each thread of the pool make the tables that it keeps for whatever it counts, 3 MB and more."""
    n = max(threads._pool._started + 1, 2)
    qatcore.set_num_threads(n)
    # Each takes one item, since none goes on before all are there; then nobody helps another.
    together = threading.Barrier(n, action=lambda: qatcore.set_num_threads(1))

    def task(_):
        together.wait(60)
        qatcore.onnx.calibrate(MODEL, onnx_models.images(64, 1))

    threads.for_each(range(n), task)


@pytest.mark.usefixtures("_number_of_threads")
def test_memory_does_not_grow_with_batches():
    import tracemalloc

    threads = qatcore.get_num_threads()
    count_on_every_thread()
    qatcore.set_num_threads(threads)

    def peak(n):
        tracemalloc.start()
        qatcore.onnx.calibrate(MODEL, lambda: (onnx_models.images(64, 1)[0] for _ in range(n)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(1)
    assert peak(160) < peak(40) + (4 << 20)  # 120 batches more are 20 MB
