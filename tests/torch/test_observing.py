"""When ranges are observed: once a batch, whatever computes it again, and not by batches that have none."""

import copy
import math

import numpy as np
import pytest

from qatcore import QatConfig, QuantBits

torch = pytest.importorskip("torch", reason="needs PyTorch: see CONTRIBUTING.md")
nn = torch.nn

from torch.utils.checkpoint import checkpoint  # noqa: E402

from qatcore._torch.calls import CALLS  # noqa: E402
from qatcore.torch import FakeQuantize, RangeMode, prepare_qat  # noqa: E402

OBSERVING = [RangeMode.MOVING_AVERAGE, RangeMode.LEARNED]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


# --- activation checkpointing ----------------------------------------------------------------------------


def model_with_norms():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(),
        nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5),
    )  # fmt: skip


def once(model, x, again):
    return again(model, x)


def nested(model, x, again):
    return again(lambda y: again(model[3:], again(model[:3], y)), x)


def twice(model, x, again):
    return again(model, x) + again(model, 2.0 * x)


def twice_in_one(model, x, again):
    return again(lambda y: model(y) + model(2.0 * y.flip(0)), x)


def in_part(model, x, again):
    return model[3:](again(model[:3], x)) + again(model, 0.5 * x)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")  # where the outer pass has no gradients
@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("mode", list(RangeMode))
@pytest.mark.parametrize("passes", [once, nested, twice, twice_in_one, in_part])
def test_checkpoints_have_the_gradients_of_the_forward_pass(passes, mode, per_channel, use_reentrant):
    config = QatConfig(QuantBits.INT4, per_channel=per_channel)
    plain = prepare_qat(model_with_norms(), config, mode=mode, averaging_constant=0.3)
    for step in range(3):
        again = copy.deepcopy(plain)  # PyTorch's batch norms move their statistics twice
        x = (torch.randn(8, 2, 6, 6) * (1 + step % 3)).requires_grad_()
        plain.zero_grad()
        again.zero_grad()
        passes(plain, x, lambda model, y: model(y)).square().sum().backward()
        passes(again, x, lambda model, y: checkpoint(model, y, use_reentrant=use_reentrant)).square().sum().backward()
        for (name, expected), got in zip(plain.named_parameters(), again.parameters(), strict=True):
            assert (expected.grad is None) == (got.grad is None)
            if expected.grad is None:
                continue
            if use_reentrant:  # which adds the gradients of several passes in another order
                torch.testing.assert_close(got.grad, expected.grad, rtol=1e-5, atol=1e-5, msg=name)
            else:
                assert torch.equal(got.grad, expected.grad), name
        for name, value in again.state_dict().items():
            if "_quantizer." in name:
                assert torch.equal(value, plain.state_dict()[name]), name


def test_backward_passes_may_come_late_and_again():
    """As pipelines and gradient accumulation have them: the first batch's after many others."""
    quantizer = FakeQuantize(averaging_constant=0.5)
    kept = []
    batches = [torch.randn(20) * (1 + i) for i in range(CALLS)]
    for x in batches:
        x.requires_grad_()
        out = checkpoint(lambda y: quantizer(y).square(), x, use_reentrant=False)
        kept.append((out, torch.autograd.grad(out.sum(), x, retain_graph=True)[0]))
    state = copy.deepcopy(quantizer.state_dict())
    for x, (out, expected) in zip(batches, kept, strict=True):
        for _ in range(2):
            assert torch.equal(torch.autograd.grad(out.sum(), x, retain_graph=True)[0], expected)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, state[name])


def test_other_calls_in_a_backward_pass_are_not_observed():
    quantizer = FakeQuantize(averaging_constant=0.5)
    quantizer(torch.tensor([-1.0, 1.0]))
    x = torch.zeros(1, requires_grad=True)
    y = x * 2.0
    outs = []
    y.register_hook(lambda _: outs.append(quantizer(torch.tensor([-3.0, 3.0]))))
    state = copy.deepcopy(quantizer.state_dict())
    y.sum().backward()
    # As if it had been: halfway between the ranges.
    np.testing.assert_allclose(outs[0], [-2.0, 2.0], rtol=0, atol=0.02)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, state[name])


def test_what_is_remembered_is_no_state():
    prepared = prepare_qat(model_with_norms())
    names = set(prepared.state_dict())
    prepared(torch.randn(8, 2, 6, 6))
    assert set(prepared.state_dict()) == names
    assert not any("calls" in name for name, _ in prepared.named_buffers())


# --- first batches ---------------------------------------------------------------------------------------


def sqnr(expected, got):
    """In dB."""
    return 10.0 * math.log10(expected.square().sum().item() / (got - expected).square().sum().item())


FIRST = {
    "zeros": torch.zeros(4, 8),
    "negative zeros": -torch.zeros(4, 8),
    "ones": torch.ones(4, 8),
    "a negative constant": torch.full((4, 8), -0.125),
    "a great constant": torch.full((4, 8), 1e6),
    "nothing": torch.empty(0, 8),
    "nan": torch.full((4, 8), torch.nan),
    "infinities": torch.full((4, 8), torch.inf) * torch.tensor([1.0, -1.0] * 4),
    "zeros and nan": torch.tensor([[0.0, torch.nan] * 4] * 4),
    "one and infinity": torch.tensor([[1.0, torch.inf] * 4] * 4),
}


@pytest.mark.parametrize("mode", OBSERVING)
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("first", FIRST, ids=str)
def test_first_batches_without_a_range_leave_none(first, axis, mode):
    """A normal batch in eight bits, clipped nowhere, has about 41 dB."""
    channels = None if axis is None else 8
    quantizer, fresh = (FakeQuantize(axis=axis, channels=channels, mode=mode) for _ in range(2))
    quantizer(FIRST[first])
    for _ in range(10):
        x = torch.randn(1024, 8)
        quantizer(x)
        fresh(x)
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name
    assert sqnr(x, quantizer.eval()(x)) > 30.0


@pytest.mark.parametrize("mode", OBSERVING)
def test_models_may_begin_with_a_dummy_batch(mode):
    """What a batch norm makes of it is what rounding has left, a little beside zero."""
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))
    prepared = prepare_qat(model, mode=mode, fold_batch_norms=False)
    for x in (torch.zeros(2, 2, 6, 6), *(torch.randn(64, 2, 6, 6) for _ in range(10))):
        prepared(x)
        model(x)
    assert sqnr(model.eval()(x), prepared.eval()(x)) > 30.0


def test_a_great_value_later_is_averaged():
    quantizer = FakeQuantize()
    for _ in range(CALLS):
        quantizer(torch.tensor([-1.0, 1.0]))
    quantizer(torch.tensor([-1e6, 1.0]))
    assert quantizer.low.item() == pytest.approx(-1e4, rel=1e-3)
    learned = FakeQuantize(mode=RangeMode.LEARNED)
    for _ in range(CALLS):
        learned(torch.tensor([-1.0, 1.0]))
    scale = learned.scale.item()
    learned(torch.tensor([-1e6, 1.0]))
    assert learned.scale.item() == scale


def test_constants_are_averaged_as_other_ranges():
    """Where there is but one value in each batch, and where a range is known already."""
    quantizer = FakeQuantize(averaging_constant=0.5)
    for value in (4.0, 8.0):
        quantizer(torch.tensor([value]))
    assert (quantizer.low.item(), quantizer.high.item()) == (6.0, 6.0)
    quantizer(torch.tensor([-1.0, 2.0]))
    assert (quantizer.low.item(), quantizer.high.item()) == (-1.0, 2.0)
    quantizer(torch.zeros(3))
    assert (quantizer.low.item(), quantizer.high.item()) == (-0.5, 1.0)


def test_channels_begin_each_for_itself():
    quantizer = FakeQuantize(axis=1, channels=3, averaging_constant=0.5)
    quantizer(torch.tensor([[0.0, -1.0, 5.0], [0.0, 1.0, 5.0]]))
    quantizer(torch.tensor([[2.0, -3.0, 7.0], [4.0, 3.0, 7.0]]))
    assert quantizer.low.tolist() == [2.0, -2.0, 6.0]
    assert quantizer.high.tolist() == [4.0, 2.0, 6.0]


def test_learned_scales_begin_once():
    quantizer = FakeQuantize(mode=RangeMode.LEARNED)
    quantizer(torch.ones(3))
    quantizer(torch.randn(100))
    scale = quantizer.scale.item()
    for x in (10.0 * torch.randn(100), torch.zeros(3), torch.ones(3)):
        quantizer(x)
    assert quantizer.scale.item() == scale


# --- transformations -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", list(RangeMode))
def test_vmap_is_refused(mode):
    quantizer = FakeQuantize(mode=mode)
    quantizer(torch.randn(5))
    state = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(
        TypeError, match=r"^x: expected a Tensor, got one within torch.vmap, which is not supported: .*$"
    ):
        torch.vmap(quantizer)(torch.randn(5, 3))
    for name, value in quantizer.state_dict().items():
        assert torch.equal(value, state[name])


@pytest.mark.parametrize("mode", list(RangeMode))
def test_second_derivatives_are_refused(mode):
    quantizer = FakeQuantize(mode=mode)
    x = torch.randn(5, requires_grad=True)
    (grad,) = torch.autograd.grad(quantizer(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match=r"^trying to differentiate twice a function that was marked with [^\n]*$"):
        grad.square().sum().backward()
