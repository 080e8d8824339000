"""A user's program: what type checkers make of it is what happens.

`mypy --strict` and pyright read it beside an installed qatcore; test_sample.py runs it and has every `assert_type`
checked against the value.
"""
# pyright: strict

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import assert_type

import dask.array
import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx
import torch
from matplotlib.figure import Figure
from onnx import ModelProto, TensorProto, helper, numpy_helper

import qatcore
import qatcore.dask
import qatcore.onnx
import qatcore.plot
import qatcore.reference
import qatcore.torch
from qatcore import CalibMethod, CalibrationCollector, QatConfig, QatLayer, QuantBits, QuantizationSpec

RNG = np.random.default_rng(0)
Float32 = npt.NDArray[np.float32]
Float64 = npt.NDArray[np.float64]


def batches(n: int = 10) -> Iterator[Float32]:
    for _ in range(n):
        yield RNG.standard_normal((32, 8)).astype(np.float32)


def elements(x: Float32) -> None:
    # A scalar gives a scalar and an array an array, of their own type.
    assert_type(qatcore.quantize_int8(0.3, 0.5), float)
    assert_type(qatcore.quantize_int4(np.float32(0.3), 0.5), np.float32)
    assert_type(qatcore.quantize_fp8(x), Float32)
    assert_type(qatcore.reference.quantize_int8(0.3, 0.5), float)
    assert_type(qatcore.reference.quantize_fp8(x), Float64)

    # The codes' type is the one asked for.
    scale = np.full(8, 0.05)
    assert_type(qatcore.quantize(0.3, 0.5), np.int8)
    codes = assert_type(qatcore.quantize(x, scale, axis=1), npt.NDArray[np.int8])
    assert_type(qatcore.quantize(x, 0.05, 10, dtype="uint8"), npt.NDArray[np.uint8])
    assert_type(qatcore.quantize(x, 0.05, dtype=np.int16), npt.NDArray[np.int16])
    assert_type(qatcore.quantize(x, 0.05, out=codes), npt.NDArray[np.int8])
    assert_type(qatcore.dequantize(codes, scale, axis=1), Float32)
    assert_type(qatcore.dequantize(codes, scale, axis=1, dtype="float64"), Float64)
    values, passes = qatcore.fake_quantize(x, 0.05, dtype=QuantBits.INT4, return_mask=True)
    assert_type(values, Float32)
    assert_type(passes, npt.NDArray[np.bool_])
    _, of_scale, _ = qatcore.fake_quantize_backward(np.ones_like(x), x, 0.05, dtype="int4")
    assert_type(of_scale, float)
    _, of_scales, _ = qatcore.fake_quantize_backward(np.ones_like(x), x, scale, axis=1)
    assert_type(of_scales, Float64)

    small = qatcore.quantize(x, 0.5, dtype=ml_dtypes.int4)
    restored = qatcore.unpack_int4(qatcore.pack_int4(small), x.shape)
    assert_type(qatcore.dequantize(restored, 0.5), Float32)
    assert_type(qatcore.dequantize_mx(*qatcore.quantize_mx(x, "float4_e2m1fn", 8)), Float32)
    blocks, block_scale, tensor_scale = qatcore.quantize_nvfp4(x.reshape(-1, 16))
    assert_type(qatcore.dequantize_nvfp4(blocks, block_scale, tensor_scale), Float32)
    # Lists and tensors are array_like, too.
    assert_type(qatcore.quantize([[0.1, 0.2]], 0.1), npt.NDArray[np.int8])
    assert_type(qatcore.quantize(torch.ones(3), torch.tensor(0.1)), npt.NDArray[np.int8])


def blocks(x: Float32) -> dask.array.Array:
    return dask.array.from_array(x, chunks=16)  # type: ignore  # Dask says nothing of its types


def calibration(x: Float32) -> QuantizationSpec:
    scale, zero_point = qatcore.calibrate_layer(batches(), CalibMethod.MSE)
    assert_type(scale, float)
    assert_type(zero_point, int)
    scales, _ = qatcore.calibrate_layer(batches(), "min_max", axis=1)
    assert_type(scales, Float64)

    # What a collector answers depends on its axis; all functions take it as it is.
    collector = CalibrationCollector()
    collector.observe(x, x > -1.0)
    low, zero = collector.percentile_scale(99.9, bits="int4")
    assert_type(low, float)
    assert_type(zero, int)
    print(f"clipped: {qatcore.quantize_int4(9.0, low, zero):g}, {round(collector.sqnr(low, zero, bits='int4'), 1)} dB")
    channels = CalibrationCollector(axis=1)
    channels.observe(x)
    lows, zeros, method = channels.best_scale(symmetric=True)
    assert_type(lows, Float64)
    assert_type(zeros, npt.NDArray[np.int32])
    assert_type(method, CalibMethod)
    assert_type(channels.n_elements, npt.NDArray[np.int64])
    assert_type(channels.pooled().min_val, float)
    kept = {"channels": channels}
    qatcore.calibrate_model({"channels": batches()}, axis=1, collectors=kept)
    print(collector.summary())
    assert_type(qatcore.plot.histogram(collector, bits="int4"), Figure)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "calibration.npz")
        qatcore.save_calibration(path, {"fc": collector})
        loaded = assert_type(qatcore.load_calibration(path), dict[str, CalibrationCollector])
    # Of one from a file it is not known.
    either, _ = loaded["fc"].min_max_scale()
    assert_type(either, float | Float64)
    assert_type(qatcore.quantize(x, either), npt.NDArray[np.int8])

    [spec] = qatcore.dask.calibrate_model({"fc": blocks(x)}, "auto")
    assert_type(spec.bits, QuantBits)
    return spec


def layer(x: Float32, spec: QuantizationSpec) -> None:
    weights = RNG.standard_normal((4, 8))
    codes, scale, zero_point = qatcore.quantize_model_weights(weights)
    assert_type(codes, npt.NDArray[np.int8])
    assert_type(qatcore.dequantize_weights(codes, scale, zero_point), Float64)
    inputs = qatcore.quantize(x, spec.scale, spec.zero_point)
    packed = qatcore.PackedInt8Matrix(codes.T)
    assert_type(qatcore.int8_matmul(inputs, packed), npt.NDArray[np.int64])
    assert_type(qatcore.int8_linear(inputs, packed, scale * spec.scale, b_zero_point=zero_point), Float32)
    assert_type(qatcore.int8_linear(inputs, packed, 0.1, dtype=np.float64), Float64)

    trained = QatLayer.from_weights(weights, config=QatConfig("int4", per_channel=True))
    trained.activation_scale, trained.activation_zero_point = spec.scale, spec.zero_point
    trained.backward(trained.forward_train(x) - 1.0)
    if trained.grad_weights is not None:
        trained.weights = trained.weights - 0.1 * trained.grad_weights
    print("outputs:", trained.forward_infer(x).shape)


def network(x: Float32) -> None:
    model = qatcore.torch.prepare_qat(torch.nn.Sequential(torch.nn.Linear(8, 4)), QatConfig(QuantBits.INT8))
    assert_type(model, torch.nn.Sequential)
    model(torch.tensor(x))
    qatcore.torch.set_mode(model, "frozen")
    assert_type(qatcore.torch.convert(model), torch.nn.Sequential)
    quantizer = qatcore.torch.FakeQuantize("int8")
    assert_type(quantizer(torch.tensor(x)), torch.Tensor)
    assert_type(quantizer.zero_point, torch.Tensor)
    assert_type(qatcore.torch.fake_quantize(torch.ones(3), 0.1, dtype=torch.int8), torch.Tensor)


def graph() -> ModelProto:
    weight = numpy_helper.from_array(RNG.standard_normal((8, 4)).astype(np.float32), "w")
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", n]) for name, n in (("x", 8), ("y", 4))]
    body = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")], "g", ends[:1], ends[1:], [weight]
    )
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def exported() -> None:
    model, data = graph(), list(batches())
    found = qatcore.onnx.calibrate(model, data)
    assert_type(found.collectors, dict[str, CalibrationCollector])
    quantized = qatcore.onnx.quantize_model(model, data, calibration=found, method="auto", max_drop=5)
    assert_type(quantized, onnx.ModelProto)
    assert_type(qatcore.onnx.compare(model, quantized, data).score, tuple[float, float])
    [node] = qatcore.onnx.sensitivity(model, {"x": data[0]}, calibration=found, weights="int8")
    assert_type(node.sqnr, float)


def main() -> None:
    x = next(batches())
    elements(x)
    layer(x, calibration(x))
    network(x)
    exported()


if __name__ == "__main__":
    main()
