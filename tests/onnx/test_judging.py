"""Corrections are kept where they help, on samples that they were not computed from."""

import math

import numpy as np
import onnx_models
import pytest
from hypothesis import given
from hypothesis import strategies as st
from insides import Judge, description, with_biases
from onnx import ModelProto, ValueInfoProto, helper
from onnx_models import run

import qatcore.onnx
from qatcore._onnx import judging
from qatcore._onnx.judging import halves, helpful

pytestmark = pytest.mark.any_build


def additive(effects, log):
    """Return errors that parts add up to, in steps that are no chance."""

    def errors(parts):
        log.append(list(parts))
        return [100.0 + 1.5 * sum(effects[part] for part in parts)]

    return errors


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=40))
def test_what_is_kept_is_never_worse_than_all_or_nothing(effects):
    log = []
    kept = helpful(range(len(effects)), additive(effects, log))
    assert kept == sorted(set(kept))
    assert sum(effects[part] for part in kept) <= min(0, sum(effects))
    assert len(log) <= 16


@given(st.lists(st.integers(1, 9), min_size=1, max_size=40))
def test_all_is_kept_where_all_helps_and_nothing_where_nothing_does(effects):
    log = []
    assert helpful(range(len(effects)), additive([-effect for effect in effects], log)) == list(range(len(effects)))
    assert helpful(range(len(effects)), additive(effects, log)) == []
    assert len(log) <= 8


def test_one_bad_part_of_eight_is_left_out():
    for bad in range(8):
        effects = [-1] * 8
        effects[bad] = 5
        assert helpful(range(8), additive(effects, [])) == [part for part in range(8) if part != bad]


def test_what_cannot_be_compared_or_is_chance_speaks_against_nothing():
    assert helpful([0], lambda parts: [math.nan]) == [0]
    assert helpful([0], lambda parts: [math.nan, 1.5 * len(parts)]) == []
    assert helpful([0], lambda parts: [math.nan, -1.5 * len(parts)]) == [0]
    assert helpful([0], lambda parts: [math.nan if parts else 1.0, 1.5 * len(parts)]) == []
    assert helpful([0], lambda parts: [2.0 + 0.9 * len(parts)]) == [0]
    # An outlier among many batches does not decide.
    assert helpful([0], lambda parts: [15.0 * len(parts), *[-0.5 * len(parts)] * 10]) == [0]


@pytest.mark.parametrize(
    ("sizes", "first", "second"),
    [
        ([1, 1, 1, 1, 1], [0, 2, 4], [1, 3]),
        ([8, 8, 8, 8], [0, 2], [1, 3]),
        ([2, 100, 50], [1], [0, 2]),
        ([100, 2, 2, 2], [0], [1, 2, 3]),
        # Where a half would have no two samples, each has all.
        ([64], [0], [0]),
        ([1, 1], [0, 1], [0, 1]),
        ([1, 1000], [0, 1], [0, 1]),
        ([1000, 1], [0, 1], [0, 1]),
    ],
)
def test_halves_have_about_as_many_samples(sizes, first, second):
    batches = [{"x": np.full(size, n)} for n, size in enumerate(sizes)]
    found = halves(batches, lambda batch: len(batch["x"]))
    assert [[int(batch["x"][0]) for batch in half] for half in found] == [first, second]


def layers(seed, depth=4, n=24):
    """Return products with Relus, and batches whose mean wanders, so that a correction from some may spoil others."""
    generator = np.random.default_rng(seed)
    nodes, tensors, name = [], [], "x"
    for i in range(depth):
        weight = generator.standard_normal((n, n)) / np.sqrt(n) * 1.4
        tensors += [onnx_models.tensor(f"w{i}", weight.astype(np.float32))]
        tensors += [onnx_models.tensor(f"b{i}", generator.standard_normal(n).astype(np.float32) / 4)]
        nodes += [helper.make_node("Gemm", [name, f"w{i}", f"b{i}"], [f"g{i}"], f"layer{i}")]
        nodes += [helper.make_node("Relu", [f"g{i}"], [f"r{i}"])]
        name = f"r{i}"
    model = onnx_models.model(nodes, [onnx_models.value("x", ["N", n])], [onnx_models.value(name, ["N", n])], tensors)
    batches = [
        {"x": (generator.standard_normal((4, n)) + generator.standard_normal((1, n))).astype(np.float32)}
        for _ in range(8)
    ]
    return model, batches


def error(model, made, batches):
    pairs = [(run(model, batch)[0].astype(np.float64), run(made, batch)[0]) for batch in batches]
    return sum(np.square(a - b).sum() for a, b in pairs) / sum(np.square(a).sum() for a, _ in pairs)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"weights": "int4"}, {"method": "percentile", "percentile": 97}])
def test_corrections_do_not_make_models_worse(options):
    for seed in range(12):
        model, batches = layers(seed)
        without = qatcore.onnx.quantize_model(model, batches, bias_correction=False, **options)
        made = qatcore.onnx.quantize_model(model, batches, **options)
        about = description(made)
        assert about["corrected"] + about["corrections_left_out"] <= 4
        assert error(model, made, batches) < 1.06 * error(model, without, batches)


def test_a_correction_that_harms_the_output_is_left_out():
    """The errors of two nodes cancel: the float model takes one product from the other, and adds what is uneven."""
    generator = np.random.default_rng(5)
    weight, last = generator.standard_normal((24, 24)), generator.standard_normal((24, 8))
    model = onnx_models.model(
        [
            helper.make_node("Gemm", ["x", "w"], ["g"], "first"),
            helper.make_node("Gemm", ["x", "w"], ["h"], "second"),
            helper.make_node("Sub", ["g", "h"], ["d"]),
            helper.make_node("Gemm", ["x", "v"], ["e"], "third"),
            helper.make_node("Add", ["d", "e"], ["y"]),
        ],
        [onnx_models.value("x", ["N", 24])],
        [onnx_models.value("y", ["N", None])],
        [onnx_models.tensor("w", weight.astype(np.float32)), onnx_models.tensor("v", last[:, :1].astype(np.float32))],
    )
    batches = [{"x": np.abs(generator.standard_normal((16, 24))).astype(np.float32)} for _ in range(8)]
    # Correcting one of both alone would be wrong by the mean that it is given.
    biases = {"first": np.full(24, 1.0, np.float32), "second": np.full(24, 1.0, np.float32)}

    def errors(names):
        changed = with_biases(model, {name: biases[name] for name in names})
        return Judge(model, [], batches).errors(changed)

    assert helpful(["first"], errors) == []
    assert helpful(["first", "second"], errors) == ["first", "second"]
    assert errors([]) == [-120.0, -120.0] == errors(["first", "second"])


def test_a_judge_takes_what_is_inside_where_no_output_is_of_floats():
    model = onnx_models.model(
        [
            helper.make_node("Gemm", ["x", "w"], ["g"], "product"),
            helper.make_node("ArgMax", ["g"], ["y"], axis=1),
        ],
        [onnx_models.value("x", ["N", 8])],
        [onnx_models.value("y", ["N", 1], onnx_models.TensorProto.INT64)],
        [onnx_models.tensor("w", onnx_models.normal(8, 5))],
    )
    batches = onnx_models.rows(8)
    made = qatcore.onnx.quantize_model(model, batches, bias_correction=False)
    found = Judge(model, ["g"], batches).errors(made)
    assert -60 < min(found) <= max(found) < -30
    assert Judge(model, ["g"], batches).errors(model) == [-120.0] * len(found)


def test_a_judge_keeps_no_more_than_fits(monkeypatch):
    model, batches = layers(0)
    monkeypatch.setattr(judging, "SAMPLE_BYTES", 1)
    assert len(Judge(model, [], batches)._answers) == 1
    monkeypatch.setattr(judging, "SAMPLE_BYTES", 3 * 4 * 24 * 4)
    assert len(Judge(model, [], batches)._answers) == 3


def test_the_last_bias_is_judged_where_no_output_is_of_floats():
    """That of a MatMul is added behind it."""
    model = onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
            helper.make_node("Add", ["p", "b"], ["a"]),
            helper.make_node("ArgMax", ["a"], ["y"], axis=1),
        ],
        [onnx_models.value("x", ["N", 48])],
        [onnx_models.value("y", ["N", 1], onnx_models.TensorProto.INT64)],
        [onnx_models.tensor("w", onnx_models.normal(48, 5)), onnx_models.tensor("b", onnx_models.normal(5))],
    )
    batches = [{"x": np.abs(batch["x"])} for batch in onnx_models.rows(batches=8)]
    made = qatcore.onnx.quantize_model(model, batches, weights="int4")
    assert (description(made)["corrected"], description(made)["corrections_left_out"]) == (1, 0)


@pytest.mark.parametrize("last", ["Softmax", "Sigmoid", "HardSigmoid", "Tanh"])
def test_outputs_are_judged_before_they_are_saturated(last):
    """Else a batch in which little is certain would outweigh the others."""
    model = onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
            helper.make_node("Reshape", ["p", "shape"], ["r"]),
            helper.make_node(last, ["r"], ["s"]),
            helper.make_node("Identity", ["s"], ["y"]),
        ],
        [onnx_models.value("x", ["N", 48])],
        [onnx_models.value("y", ["N", 5])],
        [onnx_models.tensor("w", onnx_models.normal(48, 5)), onnx_models.tensor("shape", np.array([-1, 5]))],
    )
    batches = [{"x": 100.0 * batch["x"]} for batch in onnx_models.rows(n=8, batches=4)]
    made = qatcore.onnx.quantize_model(model, batches, bias_correction=False)
    logits = [with_output(each, "r") for each in (model, made)]
    expected = [10.0 * math.log10(error(*logits, [batch])) for batch in batches]
    assert Judge(model, [], batches).errors(made) == pytest.approx(expected)


def with_output(model, name):
    """Return a model that gives a tensor inside of it."""
    result = ModelProto()
    result.CopyFrom(model)
    del result.graph.output[:]
    result.graph.output.append(ValueInfoProto(name=name))
    return result
