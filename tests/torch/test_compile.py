"""`torch.compile` of prepared models: one graph, and eager's numbers."""

import copy
import shutil

import pytest

from qatcore import QatConfig, QuantBits

torch = pytest.importorskip("torch", reason="needs PyTorch: see CONTRIBUTING.md")
nn = torch.nn

from torch.utils.checkpoint import checkpoint  # noqa: E402

from qatcore.torch import FakeQuantize, RangeMode, convert, fake_quantize, prepare_qat  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore")  # PyTorch's own, and many

modes = pytest.mark.parametrize("mode", list(RangeMode))


def compiled(function, backend):
    """As one graph: nothing goes on outside of it."""
    torch._dynamo.reset()
    return torch.compile(function, backend=backend, fullgraph=True)


def network():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)
    )


def trained(model, function, steps, channels_last=False):
    """Train for some steps, and return what came out of each, with the gradients."""
    optimiser = torch.optim.SGD(model.parameters(), 0.02)
    generator = torch.Generator().manual_seed(1)
    results = []
    for _ in range(steps):
        x = torch.randn(8, 2, 6, 6, generator=generator)
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        optimiser.zero_grad()
        out = function(x)
        out.square().sum().backward()
        optimiser.step()
        results += [out.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]
    return results


def two(mode, bits=QuantBits.INT4, per_channel=True):
    torch.manual_seed(0)
    model = prepare_qat(network(), QatConfig(bits, per_channel=per_channel), mode=mode)
    return model, copy.deepcopy(model)


@pytest.mark.slow
@modes
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("bits", [QuantBits.INT4, QuantBits.FP8], ids=lambda b: b.value)
def test_training_has_eagers_bits(bits, channels_last, backend, mode):
    """From the first batch on, in which learned scales begin: values, gradients and all state."""
    model, other = two(mode, bits)
    expected = trained(model, model, 4, channels_last)
    got = trained(other, compiled(other, backend), 4, channels_last)
    assert len(got) == len(expected)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    for name, value in other.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@modes
def test_training_with_inductor(mode):
    """It computes batch norms and their sums in another order: the last bits differ, and int8 codes next to a tie."""
    model, other = two(mode, QuantBits.INT8, per_channel=False)
    expected = trained(model, model, 3)
    got = trained(other, compiled(other, "inductor"), 3)
    for a, b in zip(got, expected, strict=True):
        assert (a - b).norm() <= 0.02 * b.norm() + 1e-4  # a bias before a batch norm has no gradient but rounding
    torch.testing.assert_close(got[0], expected[0], rtol=1e-5, atol=1e-5)
    for name, value in other.state_dict().items():
        torch.testing.assert_close(value, model.state_dict()[name], rtol=1e-2, atol=1e-3, msg=name)


@modes
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_evaluation_has_eagers_bits(backend, mode):
    model, _ = two(mode)
    x = torch.randn(8, 2, 6, 6)
    model(x)
    model.eval()
    for evaluated in (model, convert(model)):
        assert torch.equal(compiled(evaluated, backend)(x), evaluated(x))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("learned", [False, True])
def test_the_function_has_eagers_bits(learned, axis, backend):
    x = torch.randn(4, 3, requires_grad=True)
    scale = torch.full(() if axis is None else (3,), 0.02, requires_grad=learned)
    inputs = [x, scale][: 1 + learned]

    def function(x, scale):
        return fake_quantize(x, scale, dtype="int8", axis=axis)

    results = []
    for call in (function, compiled(function, backend)):
        out = call(x, scale)
        results.append((out, *torch.autograd.grad(out.square().sum(), inputs)))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@modes
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_modules_may_be_called_twice(backend, mode):
    quantizer = FakeQuantize(QuantBits.INT4, mode=mode, averaging_constant=0.5)
    other = copy.deepcopy(quantizer)
    x = torch.randn(50, requires_grad=True)
    results = []
    for module, call in ((quantizer, lambda f: f), (other, lambda f: compiled(f, backend))):
        function = call(lambda x, module=module: module(x) + module(2.0 * x))
        for _ in range(2):
            out = function(x)
            results.append((out, torch.autograd.grad(out.square().sum(), x)[0]))
    for a, b in zip(results[:2], results[2:], strict=True):
        assert torch.equal(a[0], b[0])
        assert torch.equal(a[1], b[1])
    for name, value in other.state_dict().items():
        assert torch.equal(value, quantizer.state_dict()[name]), name


@pytest.mark.slow
@modes
def test_checkpoints_around_compiled_models(mode):
    model, other = two(mode)
    function = compiled(other, "aot_eager")
    for step in range(2):
        statistics = {name: value.clone() for name, value in model.named_buffers() if "_quantizer" not in name}
        other.load_state_dict(statistics, strict=False)  # PyTorch's batch norms move them twice
        x = torch.randn(8, 2, 6, 6) * (1 + step)
        for each in (model, other):
            each.zero_grad()
        model(x).square().sum().backward()
        checkpoint(function, x, use_reentrant=False).square().sum().backward()
        for a, b in zip(model.parameters(), other.parameters(), strict=True):
            assert (a.grad is None and b.grad is None) or torch.equal(a.grad, b.grad)


@modes
def test_operators_keep_pytorchs_rules(mode):
    """Schemas, fake tensors and gradients, as PyTorch's own checks of operators have them."""
    x = torch.randn(3, 4, requires_grad=True)
    scale, zero_point = torch.tensor(0.1, requires_grad=mode is RangeMode.LEARNED), torch.zeros((), dtype=torch.int32)
    operators = torch.ops.qatcore
    torch.library.opcheck(
        operators._fake_quantize_values.default,
        (x, scale, zero_point, "int4", False, None, None, mode is not RangeMode.LEARNED),
    )
    plain, low, high = scale.detach(), torch.tensor(torch.inf), torch.tensor(-torch.inf)
    torch.library.opcheck(
        operators._fake_quantize_gradients.default,
        (torch.randn(3, 4), x.detach(), plain, zero_point, "int4", False, None, 0.5),
    )
    calls = FakeQuantize()._calls
    for operator, more in ((operators.follow, (0.01,)), (operators.begin, ())):
        state = [each.clone() for each in (plain, zero_point, low, high, calls)]
        torch.library.opcheck(operator.default, (x.detach(), *state, *more, "int4", False, None))
