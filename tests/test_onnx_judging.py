"""Corrections are kept where they help, on samples that they were not computed from."""

import math

import numpy as np
import onnx_models
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import helper
from onnx_models import run

import qatcore.onnx
from qatcore.onnx import judging, quantization
from qatcore.onnx.judging import Judge, halves, helpful
from qatcore.onnx.model import description

pytestmark = pytest.mark.any_build


def additive(effects, log):
    """Return errors that parts add up to."""

    def errors(parts):
        log.append(list(parts))
        return [100.0 + sum(effects[part] for part in parts)]

    return errors


@given(st.lists(st.integers(-9, 9), min_size=1, max_size=40))
def test_what_is_kept_is_never_worse_than_all_or_nothing(effects):
    log = []
    kept = helpful(range(len(effects)), additive(effects, log))
    assert kept == sorted(set(kept))
    assert sum(effects[part] for part in kept) <= min(0, sum(effects))
    assert len(log) <= 16


@given(st.lists(st.integers(-9, 9).filter(bool), min_size=1, max_size=8), st.randoms(use_true_random=False))
def test_a_single_part_that_differs_is_found(effects, random):
    n = random.randrange(len(effects))
    for sign in (-1, 1):
        signed = [sign * abs(effect) * (1 if i != n else -1) for i, effect in enumerate(effects)]
        kept = helpful(range(len(signed)), additive(signed, []))
        assert sum(signed[part] for part in kept) <= min(0, sum(signed))
    alike = [-abs(effect) for effect in effects]
    assert helpful(range(len(alike)), additive(alike, [])) == list(range(len(alike)))
    assert helpful(range(len(alike)), additive([-effect for effect in alike], [])) == []


def test_one_bad_part_of_eight_is_left_out():
    for bad in range(8):
        effects = [-1] * 8
        effects[bad] = 5
        assert helpful(range(8), additive(effects, [])) == [part for part in range(8) if part != bad]


def test_what_cannot_be_compared_does_not_help():
    assert helpful([0], lambda parts: [math.nan]) == []
    assert helpful([0], lambda parts: [math.nan, 1.0 - len(parts)]) == [0]
    assert helpful([0], lambda parts: [math.inf, 1.0 - len(parts)]) == []
    assert helpful([0], lambda parts: [math.nan if parts else 1.0, 2.0 - len(parts)]) == [0]


def test_halves_take_turns():
    batches = [{"x": np.full(1, n)} for n in range(5)]
    first, second = ([int(batch["x"][0]) for batch in half] for half in halves(batches))
    assert (first, second) == ([0, 2, 4], [1, 3])
    assert halves(batches[:1]) == (batches[:1], batches[:1])


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


@pytest.mark.parametrize("options", [{"weights": "int4"}, {"method": "percentile", "percentile": 97}])
def test_corrections_do_not_make_models_worse(options, monkeypatch):
    judged, all_kept = [], []
    for seed in range(12):
        model, batches = layers(seed)
        without = qatcore.onnx.quantize_model(model, batches, bias_correction=False, **options)
        made = qatcore.onnx.quantize_model(model, batches, **options)
        about = description(made)
        assert about["corrected_biases"] + about["corrections_left_out"] <= 4
        judged.append(error(model, made, batches) / error(model, without, batches))
        with monkeypatch.context() as context:
            context.setattr(quantization, "helpful", lambda parts, errors: parts)
            kept = qatcore.onnx.quantize_model(model, batches, **options)
        all_kept.append(error(model, kept, batches) / error(model, without, batches))
    print(np.round(judged, 3), np.round(all_kept, 3))
    assert max(judged) < 1.02


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
    [found] = Judge(model, ["g"], batches).errors(made)
    assert 0 < found < 1e-3
    assert Judge(model, ["g"], batches).errors(model) == [0.0]


def test_a_judge_keeps_no_more_than_fits(monkeypatch):
    model, batches = layers(0)
    monkeypatch.setattr(judging, "SAMPLE_BYTES", 1)
    assert len(Judge(model, [], batches)._answers) == 1
    monkeypatch.setattr(judging, "SAMPLE_BYTES", 3 * 4 * 24 * 4)
    assert len(Judge(model, [], batches)._answers) == 3
