"""Which nodes are sensitive, and the fewest of them in float for a drop that is allowed."""

import numpy as np
import onnx_models
import pytest
from insides import description
from onnx import TensorProto, helper
from onnx_models import run, sqnr

import qatcore.onnx
from qatcore import InvalidArgumentError

pytestmark = pytest.mark.any_build


def sensitive():
    """A model whose second product is of weights that int4 in one scale spoils."""
    spoiled = onnx_models.normal(16, 16) * 0.5
    spoiled[0, 0] = 100.0
    return onnx_models.model(
        [
            helper.make_node("MatMul", ["x", "a"], ["p"], "first"),
            helper.make_node("Tanh", ["p"], ["t"]),
            helper.make_node("MatMul", ["t", "b"], ["q"], "spoiled"),
            helper.make_node("Tanh", ["q"], ["u"]),
            helper.make_node("MatMul", ["u", "c"], ["y"], "last"),
        ],
        [onnx_models.value("x", ["N", 16])],
        [onnx_models.value("y", ["N", 4])],
        [
            onnx_models.tensor(n, v)
            for n, v in (("a", onnx_models.normal(16, 16)), ("b", spoiled), ("c", onnx_models.normal(16, 4)))
        ],
    )


SPOILING = {"weights": "int4", "activations": "none", "per_tensor": True}


@pytest.mark.parametrize("options", [SPOILING, {**SPOILING, "activations": "int8"}])
def test_sensitivities_are_of_each_node_alone(options):
    model, batches = sensitive(), onnx_models.rows(16)
    found = qatcore.onnx.sensitivity(model, batches, batches=2, **options)
    assert found[0].node == "spoiled"
    assert [each.sqnr for each in found] == sorted(each.sqnr for each in found)
    assert {each.node: each.multiply_adds for each in found} == {"first": 16384, "spoiled": 16384, "last": 4096}
    assert sum(each.share for each in found) == pytest.approx(1.0)
    for each in found:
        others = [other.node for other in found if other is not each]
        alone = qatcore.onnx.quantize_model(model, batches, exclude=others, bias_correction=False, **options)
        exact, other = (np.concatenate([run(which, batch)[0] for batch in batches[:2]]) for which in (model, alone))
        assert each.sqnr == pytest.approx(sqnr(exact, other), abs=1e-6)


@pytest.mark.parametrize("most", [0.0, 2.0, 30.0, 100.0])
def test_the_drop_is_not_more_than_allowed(most):
    model, batches = sensitive(), onnx_models.rows(16, n=256)
    made = qatcore.onnx.quantize_model(model, batches, max_drop=most, **SPOILING)
    found = qatcore.onnx.compare(model, made, batches)
    assert found.metric == "agreement"
    assert found.drop <= most
    kept = description(made).get("float", "all")
    if most == 100.0:
        assert kept == []
    elif kept != "all":
        assert "spoiled" in kept
        # With one node less in float more would be lost.
        fewer = qatcore.onnx.quantize_model(model, exclude=kept[:-1], **SPOILING)
        assert qatcore.onnx.compare(model, fewer, batches).drop > most


def test_with_every_node_in_float_it_is_the_float_model():
    model, batches = sensitive(), onnx_models.rows(16)
    made = qatcore.onnx.quantize_model(
        model,
        batches,
        max_drop=0.0,
        metric=lambda outputs, batch: exact_only(model, outputs, batch),
        **SPOILING,
    )
    about = description(made)
    assert (about["nodes"], sorted(about["float"])) == ({}, ["first", "last", "spoiled"])
    assert not [node for node in made.graph.node if node.op_type == "DequantizeLinear"]


def exact_only(model, outputs, batch):
    return [float(np.array_equal(outputs["y"], run(model, batch)[0]))]


def test_a_metric_of_the_users_is_obeyed():
    model, batches = sensitive(), onnx_models.rows(16)
    asked = []

    def score(outputs, batch):
        asked.append((sorted(outputs), sorted(batch)))
        return np.ones(len(batch["x"]))

    made = qatcore.onnx.quantize_model(model, batches, max_drop=0.0, metric=score, **SPOILING)
    assert asked
    assert set(map(str, asked)) == {"(['y'], ['x'])"}
    assert description(made)["float"] == []


@pytest.mark.slow
@pytest.mark.parametrize("static", [True, False])
def test_sensitivities_and_drops_of_detectors(static):
    model, batches = onnx_models.detector(sensitive()), onnx_models.rows(16, n=256)
    expected = qatcore.onnx.sensitivity(sensitive(), batches, **SPOILING)
    if static:
        assert qatcore.onnx.sensitivity(model, batches, **SPOILING) == expected
    else:
        del model.graph.output[0]
        with pytest.raises(
            InvalidArgumentError, match="no output has floats other than 0 and a shape that does not depend on"
        ):
            qatcore.onnx.sensitivity(model, batches, **SPOILING)
    # Alone they cost 2.5, 1.5 and 1.47 %; of the product's noise the last one makes least.
    for most, expected in ((30.0, []), (2.0, ["spoiled"]), (0.0, ["spoiled", "last", "first"])):
        made = qatcore.onnx.quantize_model(model, batches, max_drop=most, metric=onnx_models.number(model), **SPOILING)
        assert qatcore.onnx.compare(model, made, batches, metric=onnx_models.number(model)).drop <= most
        kept = description(made)["float"]
        assert kept == expected
    with pytest.raises(InvalidArgumentError, match=r"output chosen like .* give a metric that compares it"):
        qatcore.onnx.quantize_model(model, batches, max_drop=1.0, **SPOILING)


def test_outputs_count_with_every_node_or_with_none():
    """Of few values as many are chosen with nodes that make little noise, but not with the other."""
    model, batches = onnx_models.detector(sensitive(), 2.5), onnx_models.rows(16, n=64, batches=1)
    expected = qatcore.onnx.sensitivity(sensitive(), batches, activations="none", per_tensor=True)
    sizes = {}
    for each in expected:
        others = [other.node for other in expected if other is not each]
        alone = qatcore.onnx.quantize_model(
            model, exclude=others, activations="none", per_tensor=True, bias_correction=False
        )
        sizes[each.node] = onnx_models.answer(alone, batches[0], "chosen").size
    assert sizes["first"] == sizes["last"] == onnx_models.answer(model, batches[0], "chosen").size != sizes["spoiled"]
    assert qatcore.onnx.sensitivity(model, batches, activations="none", per_tensor=True) == expected


def test_an_output_that_no_node_touches_is_no_measure():
    """With the input as an output the order is that of the metric all the same."""
    model, batches = onnx_models.detector(sensitive()), onnx_models.rows(16, n=256)
    model.graph.output[0].CopyFrom(onnx_models.value("echo", ["N", 16]))
    model.graph.node.append(helper.make_node("Identity", ["x"], ["echo"]))
    made = qatcore.onnx.quantize_model(model, batches, max_drop=2.0, metric=onnx_models.number(model), **SPOILING)
    assert description(made)["float"] == ["spoiled"]


def test_the_first_batches_may_have_no_output():
    """Without a row in the first 8 batches there is no sensitivity, but a drop on all."""
    model = sensitive()
    model.graph.node[-1].output[0] = "all"
    model.graph.node.append(helper.make_node("Compress", ["all", "seen"], ["y"], axis=0))
    model.graph.input.append(onnx_models.value("seen", ["N"], TensorProto.BOOL))
    batches = [
        {**batch, "seen": np.full(len(batch["x"]), index >= 8)}
        for index, batch in enumerate(onnx_models.rows(16, batches=10))
    ]
    made = qatcore.onnx.quantize_model(model, batches, max_drop=50.0, **SPOILING)
    assert 0.0 < qatcore.onnx.compare(model, made, batches).drop <= 50.0


def test_nodes_of_a_model_that_answers_in_integers_have_an_order():
    model, batches = sensitive(), onnx_models.rows(16, n=256)
    model.graph.node.append(helper.make_node("ArgMax", ["y"], ["class"], axis=1))
    model.graph.output[0].CopyFrom(onnx_models.value("class", ["N", 1], TensorProto.INT64))
    made = qatcore.onnx.quantize_model(model, batches, max_drop=20.0, **SPOILING)
    kept = description(made)["float"]
    assert kept == ["spoiled"]
    assert qatcore.onnx.compare(model, made, batches).drop <= 20.0


@pytest.mark.parametrize("batches", [0, -1, 2.5])
def test_sensitivity_is_of_some_batches(batches):
    with pytest.raises((InvalidArgumentError, TypeError), match="batches"):
        qatcore.onnx.sensitivity(onnx_models.convolutions(11), onnx_models.images(16), batches=batches)
