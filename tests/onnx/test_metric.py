"""Scores and signal to noise, whatever outputs are like, and in whatever order they come."""

import math

import numpy as np
import onnx_models
import pytest
from onnx import TensorProto, helper

import qatcore.onnx
from qatcore import InvalidArgumentError
from qatcore._onnx.metric import Metric, Noise, OutputNoise

pytestmark = pytest.mark.any_build

NAN, INF = np.float32("nan"), np.float32("inf")


def noise(exact, other):
    found = Noise()
    found.add(np.array(exact, np.float32), np.array(other, np.float32))
    return found


@pytest.mark.parametrize(
    ("exact", "other", "sqnr", "largest"),
    [
        ([3.0, 4.0], [3.0, 4.5], 20.0, 0.5),
        ([3.0, 4.0], [3.0, 4.0], math.inf, 0.0),
        ([0.0, 0.0], [0.0, 1.0], math.nan, 1.0),
        ([3.0, 4.0], [3.0, NAN], -math.inf, math.inf),
        ([3.0, 4.0], [3.0, INF], -math.inf, math.inf),
        ([3.0, 4.0, -INF], [3.0, 4.5, -INF], 20.0, 0.5),  # a mask
        ([3.0, 4.0, NAN], [3.0, 4.5, 7.0], 20.0, 0.5),
        ([], [], math.nan, 0.0),
    ],
)
def test_signal_to_noise(exact, other, sqnr, largest):
    found = noise(exact, other)
    assert found.sqnr == pytest.approx(sqnr, nan_ok=True)
    assert found.largest == largest


@pytest.mark.parametrize(
    ("exact", "other", "largest"),
    [
        (np.array([3, -4]), np.array([5, -4]), 2.0),
        (np.array([2**62 + 1, 0]), np.array([2**62, 0]), 1.0),
        (np.array([2**63 - 1]), np.array([-(2**63)]), 2.0**64),
        (np.array([-128, 127], np.int8), np.array([127, 127], np.int8), 255.0),
        (np.array([7, 2**64 - 1], np.uint64), np.array([9, 2**64 - 1], np.uint64), 2.0),
        (np.array([True, False]), np.array([True, True]), 1.0),
        (np.array([], int), np.array([], int), 0.0),
        (np.array(["a"], object), np.array(["a"], object), math.nan),
        (np.array([1]), np.array([1.0]), math.nan),
        (np.array([1, 1]), np.array([1]), math.nan),
        (np.array([1.0]), [np.array([1.0])], math.nan),
    ],
)
def test_integers_differ_and_have_no_ratio(exact, other, largest):
    found = Noise()
    found.add(exact, other)
    found.add(np.zeros(1, np.asarray(exact).dtype), np.zeros(1, np.asarray(exact).dtype))
    assert found.largest == pytest.approx(largest, rel=0, nan_ok=True)
    assert math.isnan(found.sqnr)


def test_noise_of_outputs_is_relative_to_each():
    found = OutputNoise()
    found.add(
        [np.array([10.0, 0.0]), np.array([1.0]), np.array([3])], [np.array([10.0, 1.0]), np.array([0.9]), np.array([4])]
    )
    assert found.sqnr == pytest.approx(-10 * math.log10(0.01 + 0.01))
    found.add([np.ones(2), np.ones(1), np.ones(1)], [np.ones(2), np.array([NAN]), np.ones(1)])
    assert found.sqnr == -math.inf


def batches(kind):
    rng = np.random.default_rng(4)
    for n in (1, 5, 2, 9):
        exact = rng.normal(size=(n, 7)).astype(np.float32)
        if kind == "probabilities":
            exact = np.exp(exact) / np.exp(exact).sum(axis=1, keepdims=True)
        yield (
            {"y": exact, "box": exact[:, :3] * 2},
            {"y": exact + rng.normal(size=exact.shape) / 9, "box": exact[:, :3]},
        )


@pytest.mark.parametrize("kind", ["probabilities", "scores"])
def test_the_order_and_the_split_of_batches_leave_no_trace(kind):
    given = list(batches(kind))
    whole = [tuple({name: np.concatenate([b[i][name] for b in given]) for name in ("y", "box")} for i in (0, 1))]
    found = []
    for order in (given, given[::-1], whole):
        metric = Metric()
        for exact, other in order:
            metric.add(exact, other, {})
        found.append(metric.scores)
        assert metric.name == "agreement"
    assert found[0] == found[1] == found[2]
    exact, other = whole[0]
    same = {name: exact[name].argmax(1) == other[name].argmax(1) for name in exact}
    expected = same["y"] if kind == "probabilities" else np.concatenate([same["y"], same["box"]])
    assert found[0] == (100.0, pytest.approx(100.0 * expected.mean()))


def test_one_batch_that_is_not_of_probabilities_decides():
    probable = {"y": np.array([[0.5, 0.5]]), "z": np.array([[2.0, 1.0]])}
    other = {"y": np.array([[2.0, 0.5]]), "z": np.array([[2.0, 1.0]])}
    for order in ((probable, other), (other, probable)):
        metric = Metric()
        for exact in order:
            metric.add(exact, {"y": exact["y"][:, ::-1], "z": exact["z"]}, {})
        assert metric.scores[1] == pytest.approx(75.0)  # a tie is no swap


def test_closeness_is_of_all_the_data():
    rng = np.random.default_rng(5)
    exact = rng.normal(size=(33, 1))
    other = exact + rng.normal(size=(33, 1)) / 10
    expected = 100.0 * (1.0 - math.sqrt(np.square(exact - other).sum() / np.square(exact).sum()))
    for cuts in ([], [32], range(1, 33)):
        metric = Metric()
        for a, b in zip(np.split(exact, cuts), np.split(other, cuts), strict=True):
            metric.add({"y": a}, {"y": b}, {})
        assert metric.name == "closeness"
        assert metric.scores == (100.0, pytest.approx(expected))


@pytest.mark.parametrize(("other", "closeness"), [([[0.0], [0.0]], 100.0), ([[0.0], [1e-9]], 0.0)])
def test_what_is_not_0_is_far_from_it(other, closeness):
    metric = Metric()
    metric.add({"y": np.zeros((2, 1))}, {"y": np.array(other)}, {})
    assert metric.scores == (100.0, closeness)
    metric.add({"y": np.ones((2, 1))}, {"y": np.ones((2, 1))}, {})
    assert metric.scores[1] > 99.0


@pytest.mark.parametrize("value", [np.zeros((0, 1)), np.full((2, 1), NAN)])
def test_without_a_value_nothing_is_close(value):
    metric = Metric()
    metric.add({"y": value}, {"y": value}, {})
    with pytest.raises(InvalidArgumentError, match="expected values to compare"):
        metric.scores  # noqa: B018


def test_images_have_no_classes():
    metric = Metric()
    metric.add({"y": np.ones((2, 3, 4, 5))}, {"y": np.ones((2, 3, 4, 5)) * 0.9}, {})
    assert (metric.name, metric.scores[1]) == ("closeness", pytest.approx(90.0))


def test_nan_is_never_right():
    exact = {"y": np.array([[1.0, 2.0], [2.0, 1.0]])}
    other = {"y": np.array([[1.0, 2.0], [NAN, 1.0]])}
    for metric, batch in ((Metric(), {}), (Metric(labels="label"), {"label": np.array([1, 0])})):
        metric.add(exact, other, batch)
        assert metric.scores == (100.0, 50.0)


def test_nodes_that_make_infinities_are_the_most_sensitive():
    """A division by the product, which is 0, as it is of small weights in codes beside a large one."""
    weight = np.full((4, 4), 1e-3, np.float32) + np.eye(4, dtype=np.float32) * 1e-4
    weight[0, 0] = 100.0
    model = onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "v"], ["u"], "harmless"),
            helper.make_node("MatMul", ["u", "w"], ["t"], "fragile"),
            helper.make_node("Div", ["u", "t"], ["q"]),
            helper.make_node("Add", ["q", "u"], ["y"]),
        ],
        [onnx_models.value("x", ["N", 4])],
        [onnx_models.value("y", ["N", 4])],
        [onnx_models.tensor("v", np.eye(4, dtype=np.float32)), onnx_models.tensor("w", weight)],
    )
    data = [{"x": np.array([[0.0, 1.0, 2.0, 3.0]], np.float32)}]
    found = qatcore.onnx.sensitivity(model, data, activations="none", per_tensor=True)
    assert found[0].node == "fragile"
    assert found[0].sqnr < 0.0  # infinite as it is written; ONNX Runtime, optimising, makes something near 0 of 0


@pytest.mark.parametrize("scores", [1.0, [], [0.5, 2.0], [-0.1], [NAN], ["x"]])
def test_scores_of_users_are_checked(scores):
    with pytest.raises((InvalidArgumentError, ValueError)):
        Metric(lambda outputs, batch: scores).add({}, {}, {})


def test_a_function_that_raises_is_told_by_its_name(tmp_path, monkeypatch):
    (tmp_path / "metric_of_test.py").write_text("def score(outputs, batch):\n    return 1 / 0\n")
    (tmp_path / "broken_metric_of_test.py").write_text("raise RuntimeError('no')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    with pytest.raises(InvalidArgumentError, match="metric_of_test:score raised ZeroDivisionError"):
        Metric("metric_of_test:score").add({}, {}, {})
    with pytest.raises(InvalidArgumentError, match="there is no function broken_metric_of_test:score: no"):
        Metric("broken_metric_of_test:score")


def test_labels_are_of_the_output_they_fit():
    model = onnx_models.convolutions()
    data = onnx_models.images(3)
    with pytest.raises(InvalidArgumentError, match=r"expected label of shape \(3,\) to fit y, got \(2,\)"):
        qatcore.onnx.compare(model, model, [{**data[0], "label": np.zeros(2, int)}], labels="label")


def test_labels_are_of_outputs_that_they_fit_in_all_batches():
    """Places, as many as there are samples by chance, are no classes, however few of the batches show it."""
    rng = np.random.default_rng(6)
    logits, labels = rng.normal(size=(12, 5)), rng.integers(0, 5, 12)
    places = {0: 3, 3: 3, 6: 2, 9: 3}
    for order in (list(places), list(places)[::-1]):
        metric = Metric(labels="label")
        for start in order:
            some = slice(start, start + 3)
            exact = {"places": np.arange(places[start]), "box": rng.normal(size=(3, 2)), "y": logits[some]}
            other = {"places": np.arange(places[start] + (start == 3)), "box": exact["box"], "y": logits[some]}
            metric.add(exact, other, {"label": labels[some]})
        assert metric.scores == (pytest.approx(100.0 * np.mean(logits.argmax(1) == labels)),) * 2
    with pytest.raises(InvalidArgumentError, match=r"expected label of shape \(3,\) to fit y, got \(2,\)"):
        metric.add(exact, other, {"label": labels[:2]})


def test_labels_need_classes():
    for outputs in ({"y": np.zeros((2, 1))}, {"y": np.zeros(2)}):
        with pytest.raises(InvalidArgumentError, match="no output of several classes"):
            Metric(labels="label").add(outputs, outputs, {"label": np.zeros(2, int)})


def test_outputs_that_are_sequences_are_left_alone():
    model = onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["y"], "product"),
            helper.make_node("SequenceConstruct", ["y"], ["s"]),
        ],
        [onnx_models.value("x", ["N", 48])],
        [
            onnx_models.value("y", ["N", 24]),
            helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["N", 24]),
        ],
        [onnx_models.tensor("w", onnx_models.normal(48, 24))],
    )
    data = onnx_models.rows()
    made = qatcore.onnx.quantize_model(model, data, max_drop=50.0)
    assert list(qatcore.onnx.compare(model, made, data).outputs) == ["y"]


def test_classes_themselves_are_compared():
    metric, names = Metric(), np.array(["a", "b", "c"])
    metric.add({"y": np.array([1, 2, 3]), "s": names}, {"y": np.array([1, 2, 4]), "s": names}, {})
    assert (metric.name, metric.scores[1]) == ("agreement", pytest.approx(500 / 6))
    labelled = Metric(labels="label")
    labelled.add({"y": np.array([1, 2, 3])}, {"y": np.array([1, 2, 4])}, {"label": np.array([0, 2, 4])})
    assert labelled.scores == (pytest.approx(100 / 3), pytest.approx(200 / 3))


def test_positions_of_which_the_float_model_knows_no_class_do_not_count():
    exact, other = np.eye(4, dtype=np.float32), np.eye(4, dtype=np.float32)[[0, 1, 3, 3]]
    exact[3, 1] = other[0, 2] = NAN  # of the second the quantised model knows none
    metric = Metric()
    metric.add({"y": exact}, {"y": other}, {})
    assert (metric.name, metric.scores) == ("agreement", (100.0, pytest.approx(100 / 3)))
    column = Metric()
    for value, made in ((np.full((3, 2), NAN), np.ones((3, 2))), (np.float64([[3, NAN], [4, NAN]]), np.zeros((2, 2)))):
        column.add({"y": value}, {"y": made}, {})
    assert (column.name, column.scores) == ("closeness", (100.0, 0.0))
    labelled = Metric(labels="label")
    labelled.add({"y": exact}, {"y": other}, {"label": np.arange(4)})
    assert labelled.scores == (75.0, 50.0)


@pytest.mark.parametrize("scores", ["a", ["a", "b"], [1j], {}, None, [[1.0], [0.5, 0.5]], 0.5, [], [2.0], [NAN]])
def test_what_is_no_score_is_refused(scores):
    with pytest.raises(InvalidArgumentError, match="expected a score from 0 to 1 for each sample, got"):
        Metric(lambda outputs, batch: scores).add({}, {}, {})


@pytest.mark.parametrize("scores", [[True, False], np.array([1, 0]), np.float16([1.0, 0.0]), (0.25, 0.75)])
def test_scores(scores):
    metric = Metric(lambda outputs, batch: scores)
    metric.add({}, {}, {})
    assert metric.scores == (50.0, 50.0)


@pytest.mark.parametrize("labels", [np.array(["a", "b"]), np.array([0.5, 1.0]), np.array([-1, 0]), np.array([0, 5])])
def test_labels_that_are_no_classes_are_refused(labels):
    with pytest.raises(InvalidArgumentError, match="expected label to be integers from 0 to 4, the classes of y"):
        Metric(labels="label").add({"y": np.ones((2, 5))}, {"y": np.ones((2, 5))}, {"label": labels})
