"""`--fastest` finds the placement whose times are the least, and `--recipe` repeats it to the byte."""

import json

import numpy as np
import onnx
import onnx_models
import onnxruntime
import pytest
from insides import description
from onnx import helper
from onnx_models import normal, run, sqnr, tensor, value

import qatcore.onnx
from qatcore._cli.command import main
from qatcore._onnx import fastest
from qatcore._onnx.data import Data, InputSpec
from qatcore._onnx.display import Phases
from qatcore._onnx.fastest import fastest_placement, is_slower
from qatcore._onnx.latency import Race
from qatcore._onnx.model import read_model
from qatcore._onnx.pipeline import quantizer_of
from qatcore._onnx.quantization import Options

pytestmark = pytest.mark.any_build

NAMES = ["first", "deep", "sum", "last"]


def network():
    """A residual block: convolutions, one of them depthwise, and a sum of two that are on codes."""
    return onnx_models.model(
        [
            helper.make_node("Conv", ["x", "w1"], ["c1"], "first", pads=[1] * 4),
            helper.make_node("Relu", ["c1"], ["r1"], "relu"),
            helper.make_node("Conv", ["r1", "w2"], ["c2"], "deep", pads=[1] * 4, group=16),
            helper.make_node("Add", ["c2", "r1"], ["s"], "sum"),
            helper.make_node("Conv", ["s", "w3"], ["c3"], "last"),
            helper.make_node("Softplus", ["c3"], ["y"], "end"),
        ],
        [value("x", ["N", 8, 16, 16])],
        [value("y", ["N", 8, 16, 16])],
        [
            tensor("w1", normal(16, 8, 3, 3) / 8),
            tensor("w2", normal(16, 1, 3, 3) / 3),
            tensor("w3", normal(8, 16, 1, 1) / 4),
        ],
    )


def images(n=8):
    return onnx_models.rng().standard_normal((n, 8, 16, 16)).astype(np.float32)


class Timed(Race):
    """A race whose times are a function of the models, so that it is known which is the fastest.

    The profile agrees: a node on codes takes longer by what the model gains if it alone is in float.
    """

    def __init__(self, seconds_of):
        super().__init__({"x": images()}, ["y"], 1)
        self._seconds_of = seconds_of

    def profile(self, model, *_):
        activations, kept = self._about(model)
        more = dict.fromkeys(NAMES, 0.0)
        if activations is not None:
            for name in {*NAMES} - kept:
                more[name] = self._seconds_of((activations, kept)) - self._seconds_of((activations, kept | {name}))
        return [(node.name, node.op_type, 50.0 + more[node.name]) for node in model.graph if node.name in NAMES]

    def times(self, models, seconds):
        return [[self._seconds_of(self._about(model))] * 5 for model in models]

    @staticmethod
    def _about(model):
        about = json.loads(model.metadata_props.get("qatcore", "{}"))
        return about.get("activations"), set(about.get("float", []))


def placed(seconds_of):
    exact = read_model(network())
    options, phases = Options(bias_correction=False), Phases(shown=False)
    data = Data(images(), InputSpec(exact), None)
    quantizer, _ = quantizer_of(exact, data, options, None, phases)

    def weights_alone():
        alone = Options(bias_correction=False, activations="none")
        return quantizer_of(exact, data, alone, None, phases)[0]

    race = Timed(seconds_of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fastest, "profile", race.profile)
        return fastest_placement(exact, quantizer, weights_alone, race, lambda n, note: None)


def times(activations, *, rules, float_model=100.0, alone=100.0):
    """Return the time of a model with these activations; `rules` is that of the placement by rules."""
    return {None: float_model, "none": alone}.get(activations, rules)


@pytest.mark.parametrize("slow", [{"deep"}, {"sum"}, {"first", "deep"}, {"first", "deep", "sum"}])
def test_the_nodes_that_are_slower_on_codes_stay_in_float(slow):
    def seconds(about):
        # Half as long as the float model, but for each of the slow nodes a tenth more if it is on codes, and a little
        # more for each of the others that is not.
        return times(about[0], rules=50.0 + 10.0 * len(slow - about[1]) + 5.0 * len(about[1] - slow))

    quantizer, placement = placed(seconds)
    assert (set(placement.float_nodes), placement.weights_alone) == (slow, False)
    assert list(placement.float_nodes) == [name for name in NAMES if name in slow]
    assert {str(node.name) for node in quantizer.plan.nodes}.isdisjoint(slow)
    assert description_of(quantizer)["float"] == list(placement.float_nodes)


def description_of(quantizer):
    return json.loads(quantizer.model(corrected=False).metadata_props["qatcore"])


def test_the_placement_of_the_rules_stays_unless_another_is_faster():
    _, placement = placed(lambda about: times(about[0], rules=50.0))
    assert (placement.float_nodes, placement.weights_alone, placement.why) == ((), False, None)
    # A difference of 1 % may be chance.
    _, placement = placed(lambda about: times(about[0], rules=50.0 + 0.5 * ("deep" not in about[1])))
    assert placement.float_nodes == ()


def test_only_weights_get_codes_if_nothing_else_is_faster_than_the_float_model():
    quantizer, placement = placed(lambda about: times(about[0], rules=150.0))
    assert (placement.float_nodes, placement.weights_alone) == ((), True)
    assert placement.why == "no product of 3 in float, but the rest is slower"
    assert quantizer.options.activations == "none"
    assert placement.tried > 3


def test_codes_that_are_a_little_slower_than_the_float_model_do_not_stay():
    _, placement = placed(lambda about: times(about[0], rules=103.0, alone=101.5))
    assert placement.weights_alone


def test_models_are_slower_only_beyond_chance():
    exact, other = read_model(network()), read_model(qatcore.onnx.quantize_model(network(), images()))
    for seconds, expected in ((99.0, False), (101.0, False), (110.0, True)):
        assert is_slower(exact, other, Timed(lambda about, t=seconds: times(about[0], rules=t))) is expected


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    onnx.save(network(), "model.onnx")
    np.save("x.npy", images())
    return tmp_path


@pytest.mark.parametrize("options", [["--threads", "2"], ["--max-drop", "1"]])
def test_a_recipe_repeats_the_fastest_model_to_the_byte(folder, options, capsys):
    given = ["quantize", "model.onnx", "--data", "x.npy"]
    assert main([*given, *options, "--fastest", "-o", "fast.onnx"]) == 0
    [line] = [line for line in capsys.readouterr().out.splitlines() if line.startswith("fastest ")]
    assert f" timed on {'2 threads' if '2' in options else '1 thread'}: " in line
    assert main([*given, "--recipe", "fast.onnx", "-o", "again.onnx", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert (folder / "again.onnx").read_bytes() == (folder / "fast.onnx").read_bytes()
    made = onnx.load("fast.onnx")
    assert (description(made)["float"], report["fastest"]) == (report["kept_in_float"], None)
    assert sqnr(run(network(), {"x": images()})[0], run(made, {"x": images()})[0]) > 10


def with_float(made, nodes):
    """Return a quantised model whose metadata say that these nodes are in float."""
    [entry] = [entry for entry in made.metadata_props if entry.key == "qatcore"]
    entry.value = json.dumps({**json.loads(entry.value), "float": nodes})
    return made


@pytest.mark.parametrize(("activations", "nodes"), [("uint8", ["deep", "sum"]), ("none", []), ("uint8", NAMES)])
def test_a_recipe_is_followed(folder, activations, nodes, capsys):
    data = None if activations == "none" else images()
    made = qatcore.onnx.quantize_model("model.onnx", data, activations=activations)
    onnx.save(with_float(made, nodes), "recipe.onnx")
    assert main(["quantize", "model.onnx", "--data", "x.npy", "--recipe", "recipe.onnx", "-o", "q.onnx"]) == 0
    assert capsys.readouterr().out.startswith(f"quantised    {len({'first', 'deep', 'last'} - set(nodes))} node")
    about = description(onnx.load("q.onnx"))
    assert (about["activations"], about["float"]) == (activations, nodes)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--data x.npy --recipe model.onnx", "recipe: expected a model that qatcore has quantised, got another one"),
        ("--data x.npy --recipe other.onnx", "recipe: there is no node 'a node' in the model; give a quantised copy"),
        ("--data x.npy --recipe no.onnx", "no.onnx: No such file or directory"),
        (
            "--data x.npy --recipe q.onnx --fastest",
            "recipe: it says what stays in float, and so does fastest; leave out",
        ),
        ("--data x.npy --recipe q.onnx --max-drop 1", "recipe: it says what stays in float, and so does max_drop"),
        ("--calibration c.npz --fastest", "--fastest needs --data, but there is none"),
        ("--data x.npy --threads 1", "--threads needs --fastest; add it, or leave out --threads"),
        ("--data x.npy --fastest --threads 0", "--threads: expected"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(folder, options, says, capsys):
    made = qatcore.onnx.quantize_model("model.onnx", images())
    onnx.save(made, "q.onnx")
    onnx.save(with_float(made, ["a node"]), "other.onnx")
    assert main(["calibrate", "model.onnx", "--data", "x.npy", "-o", "c.npz"]) == 0
    capsys.readouterr()
    assert main(["quantize", "model.onnx", *options.split(), "-o", "new.onnx"]) == 2
    assert says in capsys.readouterr().err
    assert not (folder / "new.onnx").exists()


@pytest.mark.slow
def test_fp8_which_is_slow_becomes_weights_alone():
    """Conversions to FP8 take so much longer than the products that no machine is in doubt."""
    if tuple(map(int, onnxruntime.__version__.split(".")[:2])) < (1, 32):
        pytest.skip("ONNX Runtime before 1.32 loads few models with FP8 activations")
    made = qatcore.onnx.quantize_model(network(), images(64), weights="fp8", activations="fp8", fastest=True)
    about = description(made)
    assert about["activations"] == "none" or set(about["nodes"]) < {"first", "deep", "last"}
