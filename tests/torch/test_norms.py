"""Batch norms that are folded: the one that is in the model is meant, whatever has been done to the model."""

import copy
import pickle

import pytest

from qatcore import InvalidArgumentError, QatConfig, QuantBits

torch = pytest.importorskip("torch", reason="needs PyTorch: see CONTRIBUTING.md")
nn = torch.nn

from torch.nn.utils import prune  # noqa: E402

from qatcore.torch import FakeQuantize, RangeMode, convert, prepare_qat  # noqa: E402


def batch(seed=0):
    return torch.randn(8, 2, 6, 6, generator=torch.Generator().manual_seed(seed)) * 3.0 + 1.0


def prepared_model(mode=RangeMode.LEARNED):
    """A model of which the statistics are far from what they were."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    prepared = prepare_qat(model, QatConfig(QuantBits.INT4, per_channel=True), mode=mode)
    for seed in range(20):
        prepared(batch(seed))
    return prepared.eval()


def expected_of(layer, norm, x):
    """What a layer and a norm compute, by PyTorch's own functions and the quantisers alone."""
    factor = (norm.weight / torch.sqrt(norm.running_var + norm.eps))[:, None, None, None]
    weight = layer.weight_quantizer(layer.weight * factor) / factor
    product = nn.functional.conv2d(layer.input_quantizer(x), weight, layer.bias)
    return nn.functional.batch_norm(
        product, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps
    )


class Wrapper(nn.Module):
    """As those that distribute or compile a module have it within."""

    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


def other_norm():
    norm = nn.BatchNorm2d(4).eval()
    norm.running_var.copy_(torch.tensor([0.5, 2.0, 9.0, 30.0]))
    norm.running_mean.copy_(torch.tensor([0.5, -2.0, 0.0, 3.0]))
    return norm


def replaced_by_setattr(model):
    model[1] = other_norm()
    return model


def wrapped_norm(model):
    model[1] = Wrapper(model[1])
    return model


def wrapped_layer(model):
    model[0] = Wrapper(model[0])
    return model


def wrapped_again(model):
    model[1] = nn.Sequential(Wrapper(nn.SyncBatchNorm.convert_sync_batchnorm(model[1])))
    return Wrapper(model)


def loaded(model):
    fresh = prepare_qat(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5)),
        QatConfig(QuantBits.INT4, per_channel=True),
        mode=RangeMode.LEARNED,
    )
    fresh.load_state_dict(model.state_dict())
    return fresh.eval()


def assigned(model):
    state = {key: value.clone() for key, value in model.state_dict().items()}
    state["1.running_var"] = torch.tensor([0.5, 2.0, 9.0, 30.0])
    model.load_state_dict(state, assign=True)
    return model


CHANGES = [
    nn.SyncBatchNorm.convert_sync_batchnorm,
    replaced_by_setattr,
    wrapped_norm,
    wrapped_layer,
    wrapped_again,
    loaded,
    assigned,
    copy.deepcopy,
    lambda model: pickle.loads(pickle.dumps(model)),
    lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model)),
    lambda model: copy.deepcopy(nn.SyncBatchNorm.convert_sync_batchnorm(model)),
    lambda model: nn.SyncBatchNorm.convert_sync_batchnorm(nn.Sequential(*model)),
    lambda model: torch.fx.symbolic_trace(nn.SyncBatchNorm.convert_sync_batchnorm(model)),
]


@pytest.mark.parametrize("change", CHANGES)
def test_the_norm_that_is_there_is_applied_once(change):
    model = change(prepared_model())
    x = batch()
    layer, norm, linear = (
        next(module for module in model.modules() if isinstance(module, kind))
        for kind in (nn.Conv2d, nn.modules.batchnorm._BatchNorm, nn.Linear)
    )
    expected = expected_of(layer, norm, x)
    seen = []
    handle = linear.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    out = model(x)
    handle.remove()
    torch.testing.assert_close(seen[0], expected.relu().flatten(1), rtol=1e-5, atol=1e-5)
    converted = convert(model)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in converted.modules())
    apart = (converted(x) - out).abs() > 1e-4 * out.abs().max()
    assert apart.double().mean() <= 0.05  # where folding rounds a value, which was next to a tie, to the other side


def test_copies_have_norms_of_their_own():
    model = prepared_model()
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert other[0].batch_norm is other[1]
        assert other[1] is not model[1]
        other[1].running_var.mul_(100.0)
    assert model[0].batch_norm is model[1]


@pytest.mark.parametrize("mode", list(RangeMode))
def test_a_layer_alone_does_not_normalise(mode):
    """So that whatever takes the layer's place is followed by the norm."""
    model = prepared_model(mode)
    x = batch()
    torch.testing.assert_close(model[1](model[0](x)), expected_of(model[0], model[1], x), rtol=1e-5, atol=1e-5)
    plain = nn.Conv2d(2, 4, 3)
    model[0] = plain
    torch.testing.assert_close(model[:2](x), model[1](plain(x)), rtol=0, atol=0)


class Activated(nn.BatchNorm2d):
    def forward(self, x):
        return super().forward(x).relu()


@pytest.mark.parametrize(
    ("replacement", "name"),
    [
        (nn.Identity(), "Identity"),
        (nn.GroupNorm(2, 4), "GroupNorm"),
        (nn.BatchNorm2d(5), "BatchNorm2d"),
        (nn.BatchNorm2d(4, track_running_stats=False), "BatchNorm2d"),
        (nn.Sequential(nn.ReLU(), nn.BatchNorm2d(4)), "Sequential"),
        (Activated(4), "Activated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_such_norm_is_refused(replacement, name):
    model = prepared_model()
    model[1] = replacement
    message = rf"^model: expected at '1' the batch norm that is folded .* of 4 channels, got {name}.  Put one there"
    with pytest.raises(InvalidArgumentError, match=message):
        model(batch())
    with pytest.raises(InvalidArgumentError, match=message):
        convert(model)


def test_a_norm_that_is_gone_is_refused():
    model = prepared_model()
    del model[1:]
    with pytest.raises(InvalidArgumentError, match=r"expected at '1' the batch norm .*, got NoneType.  Put one there"):
        model(batch())


def test_models_without_the_norm_are_not_converted():
    message = r"^model: expected one with the batch norm that is folded into '(0)?', got one without it.  Give the"
    with pytest.raises(InvalidArgumentError, match=message):
        convert(prepared_model()[0])
    parts = nn.Sequential(*prepared_model())
    parts[1] = other_norm()  # which the layer cannot know of
    with pytest.raises(InvalidArgumentError, match=message):
        convert(parts)


class TwoNames(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.both = nn.Sequential(self.conv, self.norm)

    def forward(self, x):
        return self.both(x)


def test_norms_of_two_names_are_one_norm():
    model = prepare_qat(TwoNames())
    model(batch())
    model = nn.SyncBatchNorm.convert_sync_batchnorm(model.eval())
    assert model.norm is not model.both[1]
    converted = convert(model)
    assert isinstance(converted.norm, nn.Identity)
    assert isinstance(converted.both[1], nn.Identity)
    torch.testing.assert_close(converted(batch()), model(batch()), rtol=1e-3, atol=1e-3)


def pruned(layer):
    prune.random_unstructured(layer, "weight", 0.5)


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("change", [pruned, nn.utils.spectral_norm, nn.utils.weight_norm])
@pytest.mark.parametrize("grad", [True, False])
def test_computed_weights_are_named(change, grad):
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    prepared = prepare_qat(model)
    prepared(torch.randn(5, 4))
    with torch.set_grad_enabled(grad):  # PyTorch can copy them if no gradient was meant
        change(model[1])
        change(prepared[1])
        model(torch.randn(5, 4))
    message = (
        r"^model: expected parameters, got 'weight' of '1', which is computed .*prune.remove, remove_spectral_norm"
    )
    for function, given in ((prepare_qat, model), (convert, prepared)):
        with pytest.raises(InvalidArgumentError, match=message):
            function(given)
    if change is pruned:
        for given in (model, prepared):
            prune.remove(given[1], "weight")
        assert (prepare_qat(model)[1].weight == 0).sum() == 3
        assert (convert(prepared)[1].weight == 0).sum() >= 3


def test_what_a_forward_pass_has_left_is_named():
    model = nn.Sequential(nn.Linear(4, 3))
    model.last = model(torch.randn(5, 4))
    with pytest.raises(InvalidArgumentError, match=r"^model: expected parameters, got 'last' of 'the model'"):
        prepare_qat(model)
    del model.last
    prepare_qat(model)


class Sequence(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.line = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Linear(64, 5)
        self.more = FakeQuantize()

    def forward(self, x):
        return self.line(self.more(self.norm(self.conv(x)).relu()).flatten(1))


def test_models_are_traced():
    prepared = prepare_qat(Sequence(), QatConfig(QuantBits.INT4, per_channel=True))
    traced = torch.fx.symbolic_trace(prepared)
    calls = [node.target for node in traced.graph.nodes if node.op == "call_module"]
    assert calls == ["conv", "norm", "more", "line"]
    assert {name for name, _ in traced.named_parameters()} == {name for name, _ in prepared.named_parameters()}
    state = copy.deepcopy(prepared.state_dict())
    out = prepared(batch())
    after = copy.deepcopy(prepared.state_dict())
    prepared.load_state_dict(state)
    assert torch.equal(traced(batch()), out)
    assert all(torch.equal(value, after[name]) for name, value in traced.state_dict().items())
    converted, expected = convert(traced.eval()), convert(prepared.eval())
    assert torch.equal(converted(batch()), expected(batch()))
    assert torch.equal(torch.fx.symbolic_trace(expected)(batch()), expected(batch()))
    for alone in (prepared.conv, prepared.more, expected.line):
        with pytest.raises(TypeError, match=rf"^model: expected one that holds the {type(alone).__name__}, got"):
            torch.fx.symbolic_trace(alone)
