"""`qatcore.torch`: fake quantisation of tensors, its module, and models that train and are exported."""

import copy
import multiprocessing
import pickle
import warnings

import elsewhere
import numpy as np
import pytest
from affine_oracles import LIMITS

import qatcore
from qatcore import CalibMethod, InvalidArgumentError, QatConfig, QuantBits

torch = pytest.importorskip("torch", reason="needs PyTorch: see CONTRIBUTING.md")
nn = torch.nn

from qatcore._torch import functional  # noqa: E402
from qatcore.torch import FakeQuantize, RangeMode, convert, fake_quantize, prepare_qat  # noqa: E402

BITS = list(QuantBits)
KINDS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
every_kind = pytest.mark.parametrize("kind", KINDS, ids=str)
every_bits = pytest.mark.parametrize("bits", BITS, ids=lambda b: b.value)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def as_array(x):
    return functional.as_numpy(x)


# --- the function ----------------------------------------------------------------------------------------


def layouts(x):
    """The same values in other layouts."""
    yield x.contiguous()
    yield x.contiguous(memory_format=torch.channels_last)
    yield torch.stack([x, x], -1)[..., 0]
    yield x.permute(3, 1, 0, 2).contiguous().permute(2, 1, 3, 0)
    yield x[:1].expand(x.shape)


@every_kind
@pytest.mark.parametrize(("dtype", "zero_point"), [("int8", 3), ("uint4", 7), ("int2", 0), ("float8_e4m3fn", 0)])
@pytest.mark.parametrize("axis", [None, 0, 1, -1])
def test_values_and_gradients_are_those_of_arrays(kind, dtype, zero_point, axis):
    base = (torch.randn(4, 6, 5, 3) * 3).to(kind)
    base[0, 0, 0, 0] = torch.nan
    grad = torch.randn(4, 6, 5, 3).to(kind)
    scale = 0.1 if axis is None else np.linspace(0.05, 0.5, base.shape[axis])
    for x in layouts(base):
        arguments = {"dtype": dtype, "axis": axis}
        expected = qatcore.fake_quantize(
            as_array(x), np.float32(scale), np.full(np.shape(scale), zero_point), **arguments
        )
        of_x, of_scale, _ = qatcore.fake_quantize_backward(
            as_array(grad), as_array(x), np.float32(scale), np.full(np.shape(scale), zero_point), **arguments
        )
        for learned in (True, False):
            leaf = x.detach().requires_grad_()
            scales = torch.tensor(scale, dtype=torch.float32, requires_grad=learned)
            zero_points = torch.full(np.shape(scale), zero_point)
            out = fake_quantize(leaf, scales, zero_points, **arguments)
            assert out.dtype is kind
            assert as_array(out).tobytes() == expected.tobytes()
            out.backward(grad)
            assert as_array(leaf.grad).tobytes() == of_x.tobytes()
            if learned:
                np.testing.assert_allclose(scales.grad, of_scale, rtol=1e-6)
                assert scales.grad.dtype is torch.float32


def test_channels_stay_last():
    x = torch.randn(2, 3, 4, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = fake_quantize(x, torch.tensor([0.1, 0.2, 0.3]), axis=1)
    assert out.is_contiguous(memory_format=torch.channels_last)
    out.sum().backward()
    assert x.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("kind", KINDS[:2], ids=str)
@pytest.mark.parametrize("dtype", [d for d in LIMITS if d not in ("float4_e2m1fn", "int16", "uint16")])
@pytest.mark.parametrize("axis", [None, 1])
def test_operators_give_what_kernels_give(kind, dtype, axis):
    x = (torch.randn(40, 7) * 30).to(kind)
    x[0, :4] = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0])
    if dtype[0] == "f":
        x = x.float().to(kind)  # PyTorch rounds float64 twice
    scale = (torch.rand(7) + 0.5 if axis else torch.tensor(0.5)).to(kind)
    low, high = LIMITS[dtype]
    zero_point = torch.full(scale.shape, (low + high) // 2)
    code_format = functional.as_code_format(dtype, "dtype")
    if dtype[0] == "f":
        scale = torch.full_like(scale, 0.5)
    arguments = scale, zero_point, code_format, axis
    values, mask = functional._by_kernels(x, *arguments, True)
    other_values, other_mask = functional._by_operators(x, *arguments, True)
    np.testing.assert_array_equal(other_values, values)
    np.testing.assert_array_equal(torch.signbit(other_values), torch.signbit(values))
    assert torch.equal(other_mask, mask)
    grad = torch.randn(40, 7).to(kind)
    for factor in (None, 0.5):
        of_x, of_scale = functional._gradients_by_kernels(grad, x, *arguments, factor)
        other_x, other_scale = functional._gradients_by_operators(grad, x, *arguments, factor)
        assert torch.equal(other_x, of_x)
        torch.testing.assert_close(
            other_scale.double(), of_scale.double().reshape(other_scale.shape), rtol=1e-4, atol=1e-3
        )


def test_other_devices_are_told_once():
    functional._told.clear()
    x = torch.empty(3, 4, device="meta", requires_grad=True)
    with pytest.warns(UserWarning, match=r"^qatcore's kernels are for CPU tensors; on meta PyTorch's operators"):
        out = fake_quantize(x, torch.ones(4, device="meta", requires_grad=True), axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fake_quantize(x, 0.5)
    out.sum().backward()
    assert x.grad.shape == (3, 4)


@pytest.mark.parametrize("dtype", ["int4", "uint8", "float8_e4m3fn"])
@pytest.mark.parametrize("axis", [None, 1])
def test_gradcheck_on_the_smooth_paths(dtype, axis):
    """Where everything is clipped the values are smooth in the scale, and do not depend on x."""
    x = (torch.rand(5, 3, dtype=torch.float64) + 1.0) * torch.where(torch.rand(5, 3) < 0.5, -1e5, 1e5)
    scale = torch.rand(3 if axis else (), dtype=torch.float64) + 0.5
    zero_point = torch.full(scale.shape, 5 if dtype[0] == "u" else 0)
    assert torch.autograd.gradcheck(
        lambda a, s: fake_quantize(a, s, zero_point, dtype=dtype, axis=axis, grad_factor=1.0),
        (x.requires_grad_(), scale.requires_grad_()),
    )


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"x": np.ones(3)}, TypeError, "^x: expected a Tensor, got ndarray$"),
        ({"x": torch.ones(3, dtype=torch.int32)}, TypeError, "^x: expected float32, .*, got torch.int32$"),
        ({"scale": torch.ones(2), "axis": 0}, InvalidArgumentError, "^scale: expected"),
        ({"scale": -1.0}, InvalidArgumentError, "^scale: expected"),
        ({"scale": torch.tensor(float("nan"))}, InvalidArgumentError, "^scale: expected"),
        ({"zero_point": 200}, InvalidArgumentError, "^zero_point: expected -128 to 127 for int8, got 200$"),
        ({"dtype": "int3"}, InvalidArgumentError, "^dtype: expected one of"),
        ({"axis": 1, "scale": torch.ones(3)}, InvalidArgumentError, "^axis: expected"),
        ({"zero_point": None}, TypeError, "^zero_point: expected an integer"),
        ({"zero_point": 2**70}, InvalidArgumentError, "^zero_point: expected an int32"),
        ({"grad_factor": float("inf")}, InvalidArgumentError, "^grad_factor: expected a finite number"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    given = {"x": torch.ones(3), "scale": 0.5} | arguments
    with pytest.raises(error, match=message):
        fake_quantize(**given)


# --- the module ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("bits", [QuantBits.INT8, QuantBits.INT4, QuantBits.INT2], ids=lambda b: b.value)
def test_ranges_are_followed_as_pytorch_follows_them(bits, symmetric, axis):
    quantization = pytest.importorskip("torch.ao.quantization")
    low, high = LIMITS[bits.value]
    observer = quantization.MovingAverageMinMaxObserver if axis is None else (
        quantization.MovingAveragePerChannelMinMaxObserver
    )  # fmt: skip
    scheme = f"per_{'tensor' if axis is None else 'channel'}_{'symmetric' if symmetric else 'affine'}"
    more = {} if axis is None else {"ch_axis": axis}
    theirs = observer(
        averaging_constant=0.2, dtype=torch.qint8, quant_min=low, quant_max=high, qscheme=getattr(torch, scheme), **more
    )
    ours = FakeQuantize(
        bits, axis=axis, channels=None if axis is None else 6, symmetric=symmetric, averaging_constant=0.2
    )
    for step in range(5):
        x = torch.randn(10, 6, 3) + step
        theirs(x)
        ours(x)
        torch.testing.assert_close(ours.low, theirs.min_val, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(ours.high, theirs.max_val, rtol=1e-6, atol=1e-6)
        scale, zero_point = theirs.calculate_qparams()
        if symmetric:  # by 7.5 and not by 7 there: its codes are not symmetric
            scale = scale * (high - low) / 2 / high
        torch.testing.assert_close(ours.scale.detach(), scale.reshape(ours.scale.shape), rtol=1e-5, atol=1e-7)
        if not symmetric:
            assert torch.equal(ours.zero_point.reshape(-1), zero_point.reshape(-1).int())


def test_what_is_not_finite_is_not_followed():
    quantizer = FakeQuantize(axis=1, channels=3)
    quantizer(torch.full((2, 3), torch.nan))
    assert torch.isinf(quantizer.low).all()
    quantizer(torch.tensor([[torch.inf, 1.0, torch.nan], [-2.0, 4.0, torch.nan]]))
    assert quantizer.low.tolist() == [-2.0, 1.0, torch.inf]
    assert quantizer.high.tolist() == [-2.0, 4.0, -torch.inf]
    quantizer(torch.empty(0, 3))
    assert quantizer.high.tolist() == [-2.0, 4.0, -torch.inf]


def test_ranges_are_followed_in_training_only():
    quantizer = FakeQuantize().eval()
    quantizer(torch.randn(100))
    assert torch.isinf(quantizer.low)
    quantizer.train()(torch.randn(100))
    followed = quantizer.scale.item()
    quantizer.freeze()
    quantizer(100 * torch.randn(100))
    assert quantizer.scale.item() == followed
    assert quantizer.mode is RangeMode.FROZEN
    quantizer.observe(1.0)
    quantizer(torch.tensor([-1.0, 254.0]))
    assert quantizer.scale.item() == 1.0
    assert quantizer.zero_point.item() == -127


@every_bits
@pytest.mark.parametrize("axis", [None, 0])
def test_calibration_is_the_collectors(bits, axis):
    x = torch.randn(4, 2000) * torch.tensor([1.0, 2.0, 5.0, 0.1])[:, None]
    for symmetric in (False, True):
        quantizer = FakeQuantize(bits, axis=axis, channels=None if axis is None else 4, symmetric=symmetric)
        quantizer.calibrate(x)
        collector = qatcore.CalibrationCollector(axis)
        collector.observe(x.numpy())
        scale, zero_point = collector.mse_scale(bits=bits, symmetric=symmetric, include_zero=True)
        np.testing.assert_array_equal(quantizer.scale.detach(), np.float32(scale))
        np.testing.assert_array_equal(quantizer.zero_point, zero_point)
        quantizer.calibrate(x, CalibMethod.MIN_MAX)
        np.testing.assert_array_equal(quantizer.high, np.float32(collector.max_val))


@pytest.mark.parametrize("bits", BITS[:3], ids=lambda b: b.value)
@pytest.mark.parametrize("channels", [None, 5])
def test_scales_are_learned(bits, channels):
    quantizer = FakeQuantize(
        bits, axis=None if channels is None else 1, channels=channels, symmetric=True, mode=RangeMode.LEARNED
    )
    x = torch.randn(400, 5)
    optimiser = torch.optim.Adam(quantizer.parameters(), 1e-2)
    quantizer(x)
    with torch.no_grad():
        quantizer.scale *= 3.0
    errors = []
    for _ in range(300):
        optimiser.zero_grad()
        error = ((quantizer(x) - x) ** 2).mean()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < 0.7 * errors[0]
    with torch.no_grad():
        quantizer.scale.fill_(-1.0)
    quantizer(x)
    assert (quantizer.scale > 0).all()


def test_a_module_may_be_used_twice():
    quantizer = FakeQuantize(mode=RangeMode.LEARNED)
    x = torch.randn(100)
    (quantizer(x) + quantizer(2 * x)).sum().backward()
    both = quantizer.scale.grad.clone()
    quantizer.scale.grad = None
    for values in (x, 2 * x):
        quantizer(values).sum().backward()
    torch.testing.assert_close(quantizer.scale.grad, both)


def test_only_learned_scales_have_gradients():
    for mode in RangeMode:
        quantizer = FakeQuantize(mode=mode)
        quantizer(torch.randn(10, requires_grad=True)).sum().backward()
        assert (quantizer.scale.grad is not None) == (mode is RangeMode.LEARNED)
    quantizer.freeze()
    assert not quantizer.scale.requires_grad
    quantizer.learn()
    assert quantizer.scale.requires_grad


def small_model():
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5), nn.BatchNorm1d(5)
    )


@pytest.mark.slow
def test_modules_survive_copies_files_and_other_processes(tmp_path):
    x = torch.randn(8, 2, 6, 6)
    model = prepare_qat(small_model(), QatConfig(QuantBits.INT4, per_channel=True), mode=RangeMode.LEARNED)
    model(x).sum().backward()
    model[0].input_quantizer.freeze()
    model.eval()
    expected = model(x)
    assert torch.equal(copy.deepcopy(model)(x), expected)
    assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    fresh = prepare_qat(small_model(), QatConfig(QuantBits.INT4, per_channel=True))
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh.eval()(x), expected)
    other = prepare_qat(small_model(), QatConfig(QuantBits.INT8, per_channel=True))
    with pytest.raises(RuntimeError, match=r"expected a state for codes from -128 to 127, got one for -8 to 7"):
        other.load_state_dict(model.state_dict())
    for made in (model, convert(model)):
        ours, theirs = multiprocessing.Pipe()
        worker = multiprocessing.get_context("spawn").Process(target=elsewhere.run_model, args=(theirs, made, x))
        worker.start()
        assert ours.poll(120), "the worker has no answer"
        np.testing.assert_allclose(ours.recv(), expected.detach().numpy(), rtol=1e-5, atol=1e-5)
        worker.join()


@every_bits
def test_autocast_to_bfloat16(bits):
    model = prepare_qat(small_model(), QatConfig(bits, per_channel=True), mode=RangeMode.LEARNED)
    x = torch.randn(8, 2, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(x)
    assert out.dtype is torch.bfloat16
    out.float().sum().backward()
    for parameter in model.parameters():
        assert parameter.grad.dtype is torch.float32
        assert torch.isfinite(parameter.grad).all()
    if bits is not QuantBits.INT2:  # whose steps are large, and values next to a tie fall to either side
        assert (out.float() - model(x)).abs().mean() < 0.25


def test_compiled_models_compute_the_same():
    model = prepare_qat(small_model()).eval()
    x = torch.randn(8, 2, 6, 6)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        compiled = torch.compile(model, backend="eager")(x)
    torch.testing.assert_close(compiled, model(x))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"bits": "int3"}, InvalidArgumentError, "^bits: expected"),
        ({"axis": 1}, InvalidArgumentError, "^channels: expected with an axis, and only then, got None, axis=1$"),
        ({"channels": 3}, InvalidArgumentError, "^channels: expected with an axis"),
        ({"axis": 0, "channels": 0}, InvalidArgumentError, "^channels: expected at least 1, got 0$"),
        ({"axis": 0.5, "channels": 3}, TypeError, "^axis: expected an int or None, got float$"),
        ({"symmetric": 1}, TypeError, "^symmetric: expected a bool"),
        ({"mode": "often"}, InvalidArgumentError, "^mode: expected"),
        ({"averaging_constant": 0}, InvalidArgumentError, "^averaging_constant: expected a number above 0"),
    ],
)
def test_wrong_arguments_of_the_module(arguments, error, message):
    with pytest.raises(error, match=message):
        FakeQuantize(**arguments)


def test_wrong_values_of_the_module():
    quantizer = FakeQuantize(axis=1, channels=3)
    before = copy.deepcopy(quantizer.state_dict())
    with pytest.raises(InvalidArgumentError, match=r"^x: expected 3 channels along axis 1, got shape \(2, 4\)$"):
        quantizer(torch.ones(2, 4))
    with pytest.raises(InvalidArgumentError, match=r"^x: expected 3 channels along axis 1, got shape \(2, 4\)$"):
        quantizer.calibrate(torch.ones(2, 4))
    with pytest.raises(InvalidArgumentError, match=r"^x: expected 3 channels along axis 1, got shape \(3,\)$"):
        quantizer(torch.ones(3))
    with pytest.raises(TypeError, match=r"^x: expected a Tensor, got list$"):
        quantizer([1.0])
    for name, value in quantizer.state_dict().items():
        assert value == before[name] if isinstance(value, dict) else torch.equal(value, before[name])


# --- models ----------------------------------------------------------------------------------------------


def without_quantisation(model):
    for module in list(model.modules()):
        for name in ("weight_quantizer", "input_quantizer"):
            if hasattr(module, name):
                setattr(module, name, nn.Identity())
    return model


def test_batch_norm_is_folded_without_a_trace():
    """Without rounding the prepared model is the given one: outputs, gradients, statistics."""
    model = small_model()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_()
                module.weight[1] = 0.0  # as residual branches begin
    prepared = without_quantisation(prepare_qat(model))
    assert prepared[0].batch_norm is prepared[1]
    assert prepared[4].batch_norm is prepared[5]
    for _ in range(3):
        x = torch.randn(8, 2, 6, 6)
        for one in (model, prepared):
            one.zero_grad()
        expected, out = model(x), prepared(x)
        torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)
        expected.square().sum().backward()
        out.square().sum().backward()
        torch.testing.assert_close(prepared[0].weight.grad, model[0].weight.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(prepared[0].batch_norm.weight.grad, model[1].weight.grad, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(prepared[1].running_var, model[1].running_var)
    torch.testing.assert_close(prepared.eval()(x), model.eval()(x), rtol=1e-4, atol=1e-4)


class Branches(nn.Module):
    """A batch norm that follows a layer which something else reads too, one that is used twice, and no Sequential."""

    def __init__(self, control_flow=False):
        super().__init__()
        self.control_flow = control_flow
        self.first, self.first_norm = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.second, self.shared_norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
        self.third = nn.Conv1d(4, 4, 1)
        self.fourth, self.fourth_norm = nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4)
        self.tail = nn.Sequential(nn.Conv1d(4, 4, 1), nn.BatchNorm1d(4))

    def forward(self, x):
        if self.control_flow and x.sum() > 1e9:
            return x
        x = self.first_norm(self.first(x)).relu()
        x = self.shared_norm(self.third(self.shared_norm(self.second(x))))
        y = self.fourth(x)
        return self.tail(self.fourth_norm(y) + y)


@pytest.mark.parametrize("control_flow", [False, True])
def test_batch_norms_are_found(control_flow):
    model = Branches(control_flow)
    if control_flow:
        with pytest.warns(UserWarning, match=r"^the model cannot be traced \(.*\): batch norms are folded in its Seq"):
            prepared = prepare_qat(model)
    else:
        prepared = prepare_qat(model)
    folded = {name for name, module in prepared.named_modules() if getattr(module, "batch_norm", None) is not None}
    assert folded == ({"tail.0"} if control_flow else {"first", "tail.0"})
    assert type(prepared.fourth_norm) is nn.BatchNorm1d
    assert prepared(torch.randn(2, 3, 7)).shape == (2, 4, 7)


def test_checkpoints_of_the_float_model_load():
    model = small_model()
    model(torch.randn(50, 2, 6, 6))
    prepared = prepare_qat(small_model())
    result = prepared.load_state_dict(model.state_dict(), strict=False)
    assert not result.unexpected_keys
    assert all("_quantizer." in key for key in result.missing_keys)
    for key, value in model.state_dict().items():
        assert torch.equal(prepared.state_dict()[key], value)
    assert not small_model().load_state_dict(prepared.state_dict(), strict=False).missing_keys


def test_batch_norms_beside_sequences_are_refused_or_left():
    model = nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5))
    x = torch.randn(4, 5, 6)
    with pytest.raises(InvalidArgumentError, match=r"^x: expected 2 dimensions for a Linear into which .* \(4, 5, 6\)"):
        prepare_qat(model)(x)
    prepared = prepare_qat(model, fold_batch_norms=False)
    assert type(prepared[1]) is nn.BatchNorm1d
    assert prepared(x).shape == (4, 5, 5)
    assert type(prepare_qat(nn.Sequential(nn.Linear(6, 3), nn.BatchNorm1d(5)))[1]) is nn.BatchNorm1d


def test_transformers_do_not_bypass_quantisation():
    model = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, dropout=0.0)
    prepared = prepare_qat(model, QatConfig(QuantBits.INT2))
    x = torch.randn(3, 5, 16)
    prepared(x)
    expected = prepared.eval()(x)
    with torch.no_grad():
        torch.testing.assert_close(prepared(x), expected)
        torch.testing.assert_close(convert(prepared)(x), expected)
        assert (expected - model.eval()(x)).abs().max() > 0.1


@every_bits
@pytest.mark.parametrize("kind", KINDS[1:], ids=str)
def test_models_may_be_cast(bits, kind):
    prepared = prepare_qat(small_model(), QatConfig(bits)).to(kind)
    x = torch.randn(8, 2, 6, 6).to(kind)
    prepared(x)
    expected = prepared.eval()(x)
    converted = convert(prepared)
    assert expected.dtype is converted(x).dtype is kind
    assert prepared[0].input_quantizer.scale.dtype is torch.float32
    codes = converted[0].weight_codes
    assert convert(prepared).float().half()[0].weight_codes.dtype is codes.dtype
    if kind is torch.float64 and bits is not QuantBits.INT2:
        torch.testing.assert_close(converted(x), expected, rtol=1e-2, atol=1e-2)


def test_half_scales_do_not_vanish():
    quantizer = FakeQuantize().half()
    x = torch.tensor([1e-6, -2e-6, 1e-7]).half()
    assert quantizer(x).tolist() == pytest.approx(x.tolist(), abs=6e-8)


def test_what_no_batch_was_seen_for():
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 2))
    with torch.no_grad():
        model[0].weight.mul_(20.0)
    for mode in RangeMode:
        prepared = prepare_qat(model, mode=mode)
        assert prepared[0].weight_quantizer.scale.item() > 0.05  # from the weights
        with pytest.warns(UserWarning, match=r"^no range was observed for the inputs of 0, 2: "):
            convert(prepared)
        for layer in (prepared[0], prepared[2]):
            layer.input_quantizer.calibrate(torch.randn(100))
        convert(prepared)


def test_modes_of_a_whole_model():
    prepared = prepare_qat(small_model())
    for mode in RangeMode:
        qatcore.torch.set_mode(prepared, mode)
        assert {m.mode for m in prepared.modules() if isinstance(m, FakeQuantize)} == {mode}
    with pytest.raises(InvalidArgumentError, match=r"^mode: expected"):
        qatcore.torch.set_mode(prepared, "often")
    with pytest.raises(TypeError, match=r"^model: expected a Module"):
        qatcore.torch.set_mode(3, "learned")


def test_plain_export_computes_the_same():
    prepared = prepare_qat(small_model(), QatConfig(QuantBits.INT4))
    x = torch.randn(8, 2, 6, 6)
    prepared(x)
    converted = convert(prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        program = torch.export.export(converted, (x,))
    torch.testing.assert_close(program.module()(x), converted(x))


@pytest.mark.parametrize("axis", [np.int64(1), 1, -3])
def test_an_axis_may_be_any_integer(axis):
    x = torch.randn(2, 4, 4, 3).contiguous(memory_format=torch.channels_last)
    scale = torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert torch.equal(fake_quantize(x, scale, axis=axis), fake_quantize(x.contiguous(), scale, axis=1))


@pytest.mark.parametrize("bits", BITS[:3], ids=lambda b: b.value)
def test_symmetric_codes_leave_out_the_least(bits):
    greatest = {QuantBits.INT8: 127, QuantBits.INT4: 7, QuantBits.INT2: 1}[bits]
    quantizer = FakeQuantize(bits, symmetric=True)
    quantizer(torch.tensor([-1.0, 1.0]))
    quantizer.freeze()
    x = torch.tensor([-5.0, 5.0], requires_grad=True)
    out = quantizer(x)
    assert out.tolist() == [-1.0, 1.0]
    out.sum().backward()
    assert x.grad.tolist() == [0.0, 0.0]
    prepared = prepare_qat(nn.Linear(30, 20), QatConfig(bits), mode=RangeMode.LEARNED)
    prepared(torch.randn(8, 30))
    with torch.no_grad():
        prepared.weight.mul_(10.0)
    codes = convert(prepared).weight_codes
    assert (codes.min(), codes.max()) == (-greatest, greatest)


def test_unfreezing_a_model_leaves_its_scales():
    prepared = prepare_qat(small_model()).requires_grad_(True)
    x = torch.randn(8, 2, 6, 6)
    (prepared(x) + prepared(x)).sum().backward()
    assert all((p.grad is None) == name.endswith("_quantizer.scale") for name, p in prepared.named_parameters())


def test_huge_values_leave_a_usable_range():
    for huge in (torch.full((4,), 3e38), torch.full((4,), 1e300, dtype=torch.float64)):
        quantizer = FakeQuantize()
        for x in (-huge, huge, -huge):
            quantizer(x)
        assert torch.isfinite(quantizer.scale)
        assert torch.isfinite(quantizer(torch.ones(3))).all()


def test_wrong_types_leave_the_module():
    quantizer = FakeQuantize()
    for x in (torch.arange(5), torch.ones(3, dtype=torch.complex64)):
        with pytest.raises(TypeError, match=r"^x: expected float32, float64, float16 or bfloat16, got"):
            quantizer(x)
    for x in (torch.empty(0), torch.full((3,), torch.nan)):
        with pytest.raises(InvalidArgumentError, match=r"^x: expected some finite values, got none$"):
            quantizer.calibrate(x)
    assert not quantizer.has_range()


class Traced(nn.Module):
    """What tracing leaves in a model, and two names of one batch norm."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 3), nn.BatchNorm1d(3)
        self.both = nn.Sequential(self.linear, self.norm)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        self.last = x
        if self.training:
            return self.both(x)
        return self.both(x) * 2.0


def test_tracing_leaves_no_trace():
    model = Traced()
    state = torch.get_rng_state()
    prepared = prepare_qat(model)
    assert torch.equal(torch.get_rng_state(), state)
    assert prepared.calls == 0
    assert not hasattr(prepared, "last")
    x = torch.randn(50, 4)
    reference = copy.deepcopy(model)
    plain = without_quantisation(prepared)
    for mode in (True, False):
        torch.testing.assert_close(plain.train(mode)(x), reference.train(mode)(x), rtol=1e-4, atol=1e-4)


def test_other_devices_check_as_kernels_do():
    x = torch.ones(3)
    code_format = functional.as_code_format("int8", "dtype")
    with pytest.raises(InvalidArgumentError, match=r"^zero_point: expected -128 to 127"):
        functional._check_parameters(x, torch.tensor(0.5), torch.tensor(500), code_format, None)
    with pytest.raises(InvalidArgumentError, match=r"^scale: expected"):
        functional._check_parameters(x, torch.tensor(-0.5), torch.tensor(0), code_format, None)
    four = functional.as_code_format("float4_e2m1fn", "dtype")
    with pytest.raises(InvalidArgumentError, match=r"^dtype: expected a format that PyTorch has"):
        functional._check_parameters(x, torch.tensor(0.5), torch.tensor(0), four, None)


def test_quantizers_are_as_their_layers():
    model = small_model().eval()
    prepared = prepare_qat(model, averaging_constant=0.25)
    layer = prepared[0]
    assert not layer.training
    assert not layer.weight_quantizer.training
    assert not layer.input_quantizer.training
    assert layer.input_quantizer.averaging_constant == 0.25
    plain = prepare_qat(nn.Linear(4, 3))
    for factor in (1.0, 0.1):  # weights are not averaged
        with torch.no_grad():
            plain.weight.mul_(factor)
        plain(torch.randn(8, 4))
        assert plain.weight_quantizer.scale.item() == pytest.approx(plain.weight.abs().max().item() / 127)


def test_converted_models_do_not_follow_ranges():
    prepared = prepare_qat(nn.Sequential(nn.Linear(4, 3), FakeQuantize()))
    prepared(torch.randn(8, 4))
    converted = convert(prepared)
    x = torch.randn(8, 4)
    before = converted(x)
    converted.train()(100.0 * x)
    assert torch.equal(converted(x), before)


def test_norms_without_statistics_are_left():
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    prepared = prepare_qat(model)
    assert type(prepared[1]) is nn.BatchNorm1d
    assert prepared(torch.randn(8, 4)).shape == (8, 3)


def test_no_batch_norm_is_left_under_another_name():
    prepared = prepare_qat(Traced())
    prepared(torch.randn(50, 4))
    converted = convert(prepared)
    assert isinstance(converted.norm, nn.Identity)
    assert isinstance(converted.both[1], nn.Identity)


def test_what_is_prepared_already():
    prepared = prepare_qat(small_model())
    prepared(torch.randn(8, 2, 6, 6))
    converted = convert(prepared)
    for model in (prepared, converted):
        with pytest.raises(
            InvalidArgumentError, match=r"^model: expected one not prepared or converted already; give the float model$"
        ):
            prepare_qat(model)
    with pytest.raises(InvalidArgumentError, match=r"^model: expected one not converted already; give the trained"):
        convert(converted)


def test_types_of_codes_may_be_pytorchs():
    x = torch.randn(50)
    for dtype, name in ((torch.uint8, "uint8"), (torch.float8_e5m2, "float8_e5m2")):
        assert torch.equal(fake_quantize(x, 0.1, dtype=dtype), fake_quantize(x, 0.1, dtype=name))


@pytest.mark.slow
@every_bits
@pytest.mark.parametrize("dynamic", [False, True])
def test_sequences_are_exported(bits, dynamic, tmp_path):
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime")
    prepared = prepare_qat(nn.Sequential(nn.Linear(16, 8), nn.GELU(), nn.Linear(8, 4)), QatConfig(bits))
    x = torch.randn(3, 5, 16)
    prepared(x)
    converted = convert(prepared)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        shapes = {"dynamic_shapes": ({0: torch.export.Dim("batch")},)} if dynamic else {}
        torch.onnx.export(converted, (x,), tmp_path / "model.onnx", **shapes)
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    (out,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        size = converted(x).abs().max().item()
        np.testing.assert_allclose(out, converted(x), rtol=0, atol=0.02 * size)


def test_overrides_and_what_is_left_alone():
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 4), nn.Linear(4, 2), nn.Embedding(3, 3))
    before = copy.deepcopy(model.state_dict())
    prepared = prepare_qat(
        model, QatConfig(QuantBits.INT4), overrides={"0": None, "3": QatConfig(QuantBits.INT8, per_channel=True)}
    )
    assert type(prepared[0]) is nn.Linear
    assert prepared[2].weight_quantizer.bits is QuantBits.INT4
    assert prepared[3].weight_quantizer.bits is QuantBits.INT8
    assert prepared[3].weight_quantizer.scale.shape == (2,)
    assert isinstance(prepared[3], nn.Linear)
    assert type(model[2]) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert set(before) <= set(prepared.state_dict())
    for arguments, message in (
        ({"overrides": {"1": None}}, r"^overrides: expected names of layers \(0, 2, 3\), got '1'$"),
        ({"overrides": dict.fromkeys("023")}, r"^model: expected a Linear, Conv1d or Conv2d to quantise"),
        ({"mode": "often"}, r"^mode: expected"),
        ({"averaging_constant": 2.0}, r"^averaging_constant: expected"),
    ):
        with pytest.raises(InvalidArgumentError, match=message):
            prepare_qat(model, **arguments)
    with pytest.raises(TypeError, match=r"^model: expected a Module, got str$"):
        prepare_qat("model")
    with pytest.raises(TypeError, match=r"^overrides: expected a mapping, got list$"):
        prepare_qat(model, overrides=["0"])
    with pytest.raises(TypeError, match=r"^overrides\['0'\]: expected a QatConfig or None, got str$"):
        prepare_qat(model, overrides={"0": "int4"})
    with pytest.raises(TypeError, match=r"^model: expected a Module, got str$"):
        convert("model")
    with pytest.raises(InvalidArgumentError, match=r"^model: expected one that prepare_qat returned"):
        convert(model)


class Convolutional(nn.Module):
    """A small network of all the layers."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Sequential(nn.Conv2d(1, 6, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.grouped = nn.Conv2d(6, 6, 3, padding=1, groups=3, padding_mode="circular")
        self.flat = nn.Conv1d(6, 8, 4, stride=4)
        self.norm = nn.BatchNorm1d(8)
        self.classify = nn.Linear(32, 10)

    def forward(self, x):
        x = self.grouped(self.conv(x)).relu()
        x = self.norm(self.flat(x.flatten(2))).relu()
        return self.classify(x.flatten(1))


def trained(bits, mode=RangeMode.LEARNED):
    """A network that has learned a little, and data."""
    labels = torch.arange(300) % 10
    x = torch.randn(10, 1, 8, 8)[labels] + 0.5 * torch.randn(300, 1, 8, 8)
    model = prepare_qat(Convolutional(), QatConfig(bits, per_channel=True), mode=mode, averaging_constant=0.1)
    scales = [parameter for name, parameter in model.named_parameters() if name.endswith("_quantizer.scale")]
    others = [parameter for name, parameter in model.named_parameters() if not name.endswith("_quantizer.scale")]
    optimiser = torch.optim.Adam([{"params": others}, {"params": scales, "lr": 1e-4}], 3e-3)
    losses = []
    for _ in range(40):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(model(x), labels)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    return model, x


@pytest.mark.slow
@every_bits
@pytest.mark.parametrize("mode", [RangeMode.LEARNED, RangeMode.MOVING_AVERAGE])
def test_what_was_trained_is_what_is_exported(bits, mode, tmp_path):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxscript", reason="torch.onnx.export needs it")
    runtime = pytest.importorskip("onnxruntime")
    model, x = trained(bits, mode)
    converted = convert(model)
    model.eval()
    with torch.no_grad():
        expected = model(x)
        # But where folding the batch norm rounds a value, which was next to a tie, to the other side.
        apart = (converted(x) - expected).abs() > 1e-4
        assert apart.double().mean() <= 0.01
        expected = converted(x)
    path = tmp_path / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PyTorch's own
        batch = torch.export.Dim("batch")
        torch.onnx.export(converted, (x,), path, dynamo=True, opset_version=21, dynamic_shapes={"x": {0: batch}})
    graph = onnx.load(path).graph
    operators = [node.op_type for node in graph.node]
    assert operators.count("QuantizeLinear") == 4
    assert operators.count("DequantizeLinear") == 8
    stored = {tensor.data_type for tensor in graph.initializer if len(tensor.dims) > 1}
    assert stored == {onnx.TensorProto.FLOAT8E4M3FN if bits is QuantBits.FP8 else onnx.TensorProto.INT8}
    onnx.checker.check_model(onnx.load(path), full_check=True)
    # As it is written, and as ONNX Runtime optimises it: it computes int8 layers in integers, with biases rounded to
    # steps of the product's scale.
    margins = expected[:100].topk(2, dim=1).values
    margins = (margins[:, 0] - margins[:, 1]).numpy()
    size = expected.abs().max().item()
    for level in (runtime.GraphOptimizationLevel.ORT_DISABLE_ALL, runtime.GraphOptimizationLevel.ORT_ENABLE_ALL):
        options = runtime.SessionOptions()
        options.graph_optimization_level = level
        session = runtime.InferenceSession(path, options)
        (out,) = session.run(None, {session.get_inputs()[0].name: x[:100].numpy()})
        in_integers = bits is QuantBits.INT8 and level is runtime.GraphOptimizationLevel.ORT_ENABLE_ALL
        tolerance = (0.02 if in_integers else 1e-5) * size
        np.testing.assert_allclose(out, expected[:100], rtol=0, atol=tolerance)
        certain = margins > 2 * tolerance
        assert certain.mean() > 0.8
        assert (out.argmax(1) == expected[:100].argmax(1).numpy())[certain].all()


@pytest.mark.slow
@every_bits
def test_converted_weights_are_the_fake_quantised_ones(bits):
    model, _ = trained(bits)
    model.eval()
    converted = convert(model)
    for name, layer in model.named_modules():
        if hasattr(layer, "weight_quantizer"):
            weight = layer.weight
            if layer.batch_norm is not None:
                norm = layer.batch_norm
                factor = torch.rsqrt(norm.running_var + norm.eps) * norm.weight
                weight = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            assert torch.equal(converted.get_submodule(name).weight, layer.weight_quantizer(weight))
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in converted.modules())
