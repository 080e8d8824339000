"""A MaxPool whose places (Indices) are read is no mere move: they would be those of codes, which are often equal."""

import numpy as np
import onnx_models
import pytest
from onnx import TensorProto, helper
from onnx_models import AS_WRITTEN, OPTIMIZED, run, sqnr, tensor, value

import qatcore.onnx

pytestmark = pytest.mark.any_build

POOL = {"kernel_shape": [2, 2], "strides": [2, 2]}


def pooled(*, first, read):
    """A pool between convolutions, or behind the input, whose places may be an output and be read."""
    before = [helper.make_node("Conv", ["x", "w1"], ["c"], "first"), helper.make_node("Relu", ["c"], ["r"])]
    back = helper.make_node("MaxUnpool", ["d", "places"], ["u"], **POOL)
    return onnx_models.model(
        [
            *(before if first else []),
            helper.make_node("MaxPool", ["r" if first else "x"], ["p", "places"], "pool", **POOL),
            helper.make_node("Conv", ["p", "w2"], ["d"], "second", pads=[1] * 4),
            back if read else helper.make_node("Identity", ["d"], ["u"]),
            helper.make_node("Conv", ["u", "w3"], ["y"], "third", pads=[1] * 4),
        ],
        [value("x", ["N", 3, 16, 16])],
        [
            value("y", ["N", 4, None, None]),
            *([value("places", ["N", 3, 8, 8], TensorProto.INT64)] if read else []),
        ],
        [
            *([tensor("w1", onnx_models.normal(3, 3, 1, 1))] if first else []),
            tensor("w2", onnx_models.normal(3, 3, 3, 3) * 0.3),
            tensor("w3", onnx_models.normal(4, 3, 3, 3) * 0.3),
        ],
    )


def images():
    return {"x": onnx_models.rng().standard_normal((8, 3, 16, 16)).astype(np.float32)}


@pytest.mark.parametrize("level", [OPTIMIZED, AS_WRITTEN])
@pytest.mark.parametrize("options", [{}, {"activations": "int8"}, {"activations": "fp8", "weights": "fp8"}])
def test_places_are_those_of_floats(options, level):
    # ONNX Runtime takes a QuantizeLinear past such a pool too, where nothing keeps it from that.
    model = pooled(first=False, read=True)
    made = qatcore.onnx.quantize_model(model, [images()], **options)
    (exact, places), (found, chosen) = run(model, images()), run(made, images(), level)
    np.testing.assert_array_equal(chosen, places)
    assert sqnr(exact, found) > 10


@pytest.mark.parametrize("read", [False, True])
def test_a_pool_has_the_range_of_what_it_reads_unless_its_places_are_read(read):
    calibration = qatcore.onnx.calibrate(pooled(first=True, read=read), [images()])
    assert ("p" in calibration.collectors) == read
