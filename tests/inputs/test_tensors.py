"""PyTorch's tensors are read wherever arrays are, and what cannot be read is refused in this package's words."""

import subprocess
import sys

import numpy as np
import pytest
from inputs import BFLOAT16, E4M3, FUNCTIONS, assert_same, each_function, of_kind, sample

import qatcore
from qatcore import CalibMethod, CalibrationCollector, InvalidArgumentError, QuantizationSpec

torch = pytest.importorskip("torch", reason="only who has PyTorch has tensors")

pytestmark = [
    pytest.mark.any_build,
    pytest.mark.filterwarnings("ignore::qatcore.CalibrationWarning"),
]


def tensor_of(x):
    """A tensor with the elements of an array, by their bits where PyTorch and NumPy have no type in common."""
    x = np.asarray(x)
    if x.dtype == BFLOAT16:
        return torch.tensor(x.view(np.int16)).view(torch.bfloat16)
    if x.dtype == E4M3:
        return torch.tensor(x.view(np.uint8)).view(torch.float8_e4m3fn)
    return torch.tensor(x)


def with_history(x):
    """What a layer of a model that trains gives."""
    tensor = tensor_of(x)
    return tensor.requires_grad_() * 1.0 if tensor.is_floating_point() and x.dtype != E4M3 else tensor


def strided(x):
    tensor = tensor_of(x)
    wide = torch.zeros([3 * n for n in tensor.shape], dtype=tensor.dtype)
    out = wide[tuple(slice(1, None, 3) for _ in tensor.shape)]
    out.copy_(tensor)
    return out


def transposed(x):
    return tensor_of(np.ascontiguousarray(x.T)).t()


def list_of_rows(x):
    return list(with_history(x))


def nested(x):
    """Tensors of no dimensions in lists of lists."""
    return [nested(row) for row in x] if x.ndim else with_history(x)


FORMS = {f.__name__: f for f in (tensor_of, with_history, strided, transposed, list_of_rows, nested)}


@each_function
@pytest.mark.parametrize("form", FORMS)
def test_as_the_array(name, form):
    function = FUNCTIONS[name]
    x = sample(function.kind)
    assert_same(function(FORMS[form](x)), function(x))


@pytest.mark.parametrize("name", of_kind("matrix", "vector"))
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float16, BFLOAT16], ids=lambda dtype: np.dtype(dtype).name)
def test_types(name, form, dtype):
    function = FUNCTIONS[name]
    x = sample(function.kind, dtype)
    assert_same(function(FORMS[form](x)), function(x))


@pytest.mark.parametrize("kind", ["float8_e4m3fn", "float8_e5m2"])
def test_fp8_codes(kind):
    codes = np.arange(256, dtype=np.uint8)
    given = torch.tensor(codes).view(getattr(torch, kind))
    assert_same(qatcore.dequantize(given, 0.5), qatcore.dequantize(codes.view(kind), 0.5))


def test_microscaling_and_packing():
    x = np.random.default_rng(3).normal(size=(4, 64)).astype(np.float32)
    for quantize, dequantize in (
        (qatcore.quantize_mx, qatcore.dequantize_mx),
        (qatcore.quantize_nvfp4, qatcore.dequantize_nvfp4),
    ):
        assert_same(quantize(with_history(x)), quantize(x))
        codes, scale, *rest = quantize(x)
        name = scale.dtype.name
        given = torch.tensor(scale.view(np.uint8)).view(getattr(torch, name))
        rest_given = [torch.tensor(float(each), requires_grad=True) for each in rest]
        assert_same(dequantize(codes, given, *rest_given), dequantize(codes, scale, *rest))
    codes = np.int8([1, -1, 7, -8])
    assert_same(qatcore.pack_int4(torch.tensor(codes)), qatcore.pack_int4(codes))
    packed = qatcore.pack_int4(codes)
    assert_same(qatcore.unpack_int4(torch.tensor(packed), 4), qatcore.unpack_int4(packed, 4))


def test_scales():
    """Scales and zero points that are learned, of no dimensions or several."""
    x = np.linspace(-1.0, 1.0, 12, dtype=np.float32).reshape(3, 4)
    scale, zero_point = np.float32([0.1, 0.2, 0.3]), np.int8([0, 1, -2])
    given = torch.nn.Parameter(torch.tensor(scale)), torch.tensor(zero_point)
    grad = np.ones_like(x)
    assert_same(qatcore.quantize(x, *given, axis=0), qatcore.quantize(x, scale, zero_point, axis=0))
    assert_same(
        qatcore.fake_quantize_backward(torch.tensor(grad), x, *given, axis=0),
        qatcore.fake_quantize_backward(grad, x, scale, zero_point, axis=0),
    )
    one = torch.nn.Parameter(torch.tensor(0.25)), torch.tensor(3)
    assert_same(qatcore.fake_quantize(x, *one), qatcore.fake_quantize(x, 0.25, 3))
    assert_same(qatcore.quantize_int8(x, *one), qatcore.quantize_int8(x, 0.25, 3))
    codes = qatcore.quantize(x, *one)
    assert_same(
        qatcore.int8_linear(codes, codes.T.copy(), one[0], a_zero_point=one[1]),
        qatcore.int8_linear(codes, codes.T.copy(), 0.25, a_zero_point=3),
    )
    layer = qatcore.QatLayer(4, 3)
    layer.activation_scale, layer.activation_zero_point = one
    assert (layer.activation_scale, layer.activation_zero_point) == (0.25, 3)
    spec = QuantizationSpec("a", *given, CalibMethod.MSE, axis=0)
    assert spec == QuantizationSpec("a", scale, zero_point, CalibMethod.MSE, axis=0)
    collector = CalibrationCollector()
    collector.observe(x)
    assert collector.sqnr(*one) == collector.sqnr(0.25, 3)


def test_one_dimension_is_one_batch():
    """And not one batch for each element."""
    x = np.linspace(-1.0, 3.0, 400)
    with pytest.warns(qatcore.CalibrationWarning, match="from 200 finite values"):
        given = qatcore.calibrate_layer(tensor_of(x[:200]), "mse")
    with pytest.warns(qatcore.CalibrationWarning, match="from 200 finite values"):
        assert given == qatcore.calibrate_layer(x[:200], "mse")
    collectors = {}
    qatcore.calibrate_model({"a": with_history(x)}, "mse", collectors=collectors)
    assert collectors["a"].n_elements == 400
    rows = qatcore.calibrate_layer(with_history(x.reshape(4, 100)), "mse")
    assert rows == qatcore.calibrate_layer(x, "mse")
    with pytest.raises(InvalidArgumentError, match="an array of 2 dimensions"):
        qatcore.calibrate_layer(with_history(x.reshape(4, 100)), "mse", axis=0)


def test_dask():
    dask = pytest.importorskip("qatcore.dask")
    x = np.random.default_rng(5).normal(size=(4, 100)).astype(np.float32)
    expected = CalibrationCollector()
    expected.observe(x)
    for given in (with_history(x), list(with_history(x)), with_history(x.reshape(-1)), [with_history(x)]):
        assert dask.collect(given).compute(scheduler="threads") == expected
    with pytest.raises(InvalidArgumentError, match="another array of 2 dimensions"):
        dask.collect(with_history(x), axis=0)


# --- what cannot be read -----------------------------------------------------------------------------------


@each_function
def test_another_device(name):
    function = FUNCTIONS[name]
    given = tensor_of(sample(function.kind)).to("meta")
    for each in (given, [given]):
        with pytest.raises(TypeError, match=rf"^({function.argument}): expected a tensor on the CPU, .*\.cpu\(\)"):
            function(each)


def test_another_device_for_a_number():
    scale = torch.tensor(0.5, device="meta")
    with pytest.raises(TypeError, match=r"^scale: expected a tensor on the CPU, got one on meta; pass it with"):
        qatcore.quantize_int8([1.0], scale)
    with pytest.raises(TypeError, match=r"^zero_point: expected a tensor on the CPU, got one on meta"):
        qatcore.quantize_int8([1.0], 0.5, torch.tensor(1, device="meta"))


def quantised():
    return torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8)


def under_vmap():
    """A tensor whose values there are not."""
    seen = []
    torch.func.vmap(lambda row: (seen.append(row), row)[1])(torch.ones(2, 3))
    return seen[0]


@pytest.mark.filterwarnings("ignore:.*:UserWarning", "ignore:.*:DeprecationWarning")
@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: torch.ones(3).to_sparse(), "float32"),
        (lambda: torch.ones(3, dtype=torch.complex64).conj(), "complex64"),
        (lambda: torch.zeros(3, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "float4_e2m1fn_x2"),
        (quantised, "qint8"),
        (under_vmap, "float32"),
    ],
)
def test_no_array_at_all(make, kind):
    tensor = make()
    collector = CalibrationCollector()
    with pytest.raises(TypeError, match=f"^x: expected a dense tensor of real numbers, got one of {kind}: "):
        collector.observe(tensor)
    assert collector == CalibrationCollector()


def test_complex_tensors():
    with pytest.raises(TypeError, match=r"^x: expected real numbers .*, got complex64"):
        CalibrationCollector().observe(torch.ones(3, dtype=torch.complex64))
    negated = torch.tensor([1 + 2j, 3 - 4j]).conj().imag  # PyTorch's lazy negation
    assert qatcore.quantize(negated, 1.0).tolist() == [-2, 4]


def test_uneven_tensors():
    with pytest.raises(InvalidArgumentError, match=r"^x: expected an array: "):
        qatcore.quantize_fp8([torch.ones(2), torch.ones(3)])


def test_results_are_arrays():
    """Which do not share memory with what was given."""
    x = torch.linspace(-1.0, 1.0, 5)
    for result in (qatcore.fake_quantize(x, 1.0), qatcore.quantize_int8(x, 1.0)):
        assert type(result) is np.ndarray
        assert result.dtype == np.float32
        assert not np.shares_memory(result, x.numpy())
    assert x.tolist() == torch.linspace(-1.0, 1.0, 5).tolist()
    dataset = qatcore.CalibrationDataset()
    dataset.push(x)
    x.zero_()
    assert dataset.data[0].any()


def test_pytorch_is_not_imported():
    program = "import sys, qatcore; qatcore.quantize([1.0], 0.5); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", program], check=True)
