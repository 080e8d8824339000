"""The demonstration's numbers and table.  Needs scikit-learn, as the demonstration does."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import qatcore
from qatcore import CalibMethod, QatConfig, QatLayer, QuantBits

demo = pytest.importorskip("qatcore._cli.demo")

pytestmark = pytest.mark.any_build

METHODS = [method for method in CalibMethod if method is not CalibMethod.AUTO]  # which is one of the others
FORMATS = ("int8", "int4 per channel", "fp8")


@pytest.fixture(scope="module")
def trained():
    """Return a report, the classifier trained for it, and the halves of the images and digits."""
    seen = []

    class Classifier(demo.MLPClassifier):
        def fit(self, *args):
            seen.append(self)
            return super().fit(*args)

    def split(*args, **kwargs):
        seen.extend(train_test_split(*args, **kwargs))
        return seen[-4:]

    train_test_split = demo.train_test_split
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "MLPClassifier", Classifier)
        patch.setattr(demo, "train_test_split", split)
        report = demo.run_demo()
    train, test, train_digits, test_digits, classifier = seen
    return report, classifier, (train, train_digits), (test, test_digits)


@pytest.fixture(scope="module")
def report(trained):
    return trained[0]


def test_rows_are_complete(report):
    expected = [("float32", None), *itertools.product(FORMATS, METHODS)]
    assert [(row.format, row.method) for row in report.rows] == expected
    for row in report.rows:
        assert 0.0 <= row.accuracy <= 1.0
        assert 0.0 <= row.agreement <= 1.0
        assert row.milliseconds > 0.0


def test_float_row_is_scikit_learns_network(trained):
    report, classifier, (train, _), test = trained
    assert report.rows[0].accuracy == classifier.score(*test)
    assert report.rows[0].accuracy >= 0.97
    assert report.rows[0].agreement == 1.0
    assert report.widths == (64, *classifier.hidden_layer_sizes, 10)
    assert report.training_images == len(train) == 898
    assert report.held_out_images == len(test[0]) == 899


def test_int8_is_as_accurate_as_float(report):
    for row in report.rows:
        if row.format == "int8" and row.method is not CalibMethod.PERCENTILE:
            assert abs(row.accuracy - report.rows[0].accuracy) <= 0.005


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("int8", QatConfig()),
        ("int4 per channel", QatConfig(QuantBits.INT4, per_channel=True)),
        ("fp8", QatConfig(QuantBits.FP8)),
    ],
)
@pytest.mark.parametrize("method", METHODS)
def test_quantised_rows_are_the_layers_results(trained, name, config, method):
    report, classifier, (float_values, _), (values, digits) = trained
    (row,) = (row for row in report.rows if (row.format, row.method) == (name, method))
    images = values
    with demo._one_thread():  # float sums may depend on the threads
        for weights, bias in zip(classifier.coefs_, classifier.intercepts_, strict=True):
            layer = QatLayer.from_weights(weights.T, bias, config)
            layer.calibrate_from_data(np.maximum(float_values, 0), method)
            values = layer.forward_infer(np.maximum(values, 0))
            float_values = np.maximum(float_values, 0) @ weights + bias
    answers = values.argmax(axis=1)
    assert row.accuracy == np.mean(answers == digits)
    assert row.agreement == np.mean(answers == classifier.predict(images))


def test_weight_bytes(trained):
    report, classifier, *_ = trained
    assert all(weights.dtype == np.float32 for weights in classifier.coefs_)
    float_bytes = sum(weights.nbytes for weights in classifier.coefs_)
    share = {"float32": 1, "int8": 4, "int4 per channel": 8, "fp8": 4}
    assert [row.weight_bytes for row in report.rows] == [float_bytes / share[row.format] for row in report.rows]


@pytest.mark.usefixtures("_number_of_threads")
def test_threads_are_given_back(monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    qatcore.set_num_threads(3)
    monkeypatch.setattr(demo, "_train", fail)
    with pytest.raises(ZeroDivisionError):
        demo.run_demo()
    assert qatcore.get_num_threads() == 3


@pytest.mark.slow
def test_same_seed_same_accuracy(report):
    again = demo.run_demo(0)
    untimed = [dataclasses.replace(row, milliseconds=0.0) for row in report.rows]
    assert [dataclasses.replace(row, milliseconds=0.0) for row in again.rows] == untimed


def test_table(report):
    text = demo.format_report(report)
    lines = text.split("\n")
    assert text.isascii()
    assert max(map(len, lines)) <= 80
    assert lines[0] == "scikit-learn's digits, MLP 64-256-128-10 (ReLU): 898 images train, 899 test"
    table = lines[2 : 3 + len(report.rows)]
    assert len({len(line) for line in table}) == 1
    assert [line[:18].rstrip() for line in table[1:]] == [row.format for row in report.rows]
    assert lines[2 + len(table)] == ""
    assert "3 scales (int4: 394)" in lines[-1]


def test_importing_qatcore_does_not_import_scikit_learn():
    done = subprocess.run(
        [sys.executable, "-c", "import sys, qatcore, qatcore._cli.command; print('sklearn' in sys.modules)"],
        cwd=Path(qatcore.__file__).parents[1],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "False\n", "")
