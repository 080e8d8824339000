"""What quantising as ONNX does has to give, by NumPy's division, exact fractions and ONNX Runtime; and hard input."""

import math
from fractions import Fraction

import numpy as np
import pytest
from digest import adversarial, random_bits, words
from inputs import E4M3, E4M3_VALUES

from qatcore import _dispatch

every_level = pytest.mark.parametrize("level", _dispatch.available_levels(), indirect=True)
both_types = pytest.mark.parametrize("kind", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)

LIMITS = {"int8": (-128, 127), "uint8": (0, 255), "float8_e4m3fn": (0, 0)}  # of zero points
INTEGER_FORMATS = [("int8", -128), ("int8", -3), ("int8", 127), ("uint8", 0), ("uint8", 131), ("uint8", 255)]
FORMATS = [*INTEGER_FORMATS, ("float8_e4m3fn", 0)]
every_format = pytest.mark.parametrize(("dtype", "zero_point"), FORMATS)
every_code_type = pytest.mark.parametrize("dtype", LIMITS)


# --- data ------------------------------------------------------------------------------------------------


def hard_scales(kind):
    """Around one and other powers of two, inexact, subnormal, at both ends."""
    info = np.finfo(kind)
    ones = [1.0, 1.0 - info.epsneg, 1.0 + info.eps, 2.0 - info.eps, 0.1, 1.0 / 3.0, 1e-3]
    ends = [info.smallest_subnormal, info.tiny * 0.3, info.tiny * (1.0 - info.eps), info.tiny, info.max / 3, info.max]
    return np.array([*ones, *ends], kind)


def near(x):
    """x and two neighbours on either side; some of what is not finite comes out as NaN."""
    integer = np.dtype(f"i{x.dtype.itemsize}")
    offsets = np.arange(-2, 3, dtype=integer)
    return (x.view(integer)[..., np.newaxis] + offsets).view(x.dtype).reshape(*x.shape[:-1], -1)


def near_multiples(points, scales):
    """Where x / scale is close to a point, a row a scale; the products are rounded once."""
    with np.errstate(over="ignore"):
        return near((points * scales.astype(np.float64)[:, np.newaxis]).astype(scales.dtype))


TIES = np.arange(-258, 258) + 0.5
# Between neighbours among E4M3's values, and where rounding would overflow.
MIDPOINTS = np.add(E4M3_VALUES, [*E4M3_VALUES[1:], 480.0]) / 2.0
E4M3_POINTS = np.concatenate([E4M3_VALUES, MIDPOINTS, [480.0, 512.0]])
E4M3_POINTS = np.concatenate([E4M3_POINTS, -E4M3_POINTS])


def hard_values(scale, dtype):
    """Hard ones for any scale, then for this."""
    scale = np.asarray(scale)
    points = E4M3_POINTS if dtype == "float8_e4m3fn" else TIES
    bits = random_bits(4_000, 60, scale.dtype)
    return np.concatenate([adversarial(scale.dtype), bits, near_multiples(points, scale.reshape(1))[0]])


SCALES = {
    "any": lambda mantissa, exponent, last: (mantissa, exponent),
    "mantissas of ones": lambda mantissa, exponent, last: (~np.zeros_like(mantissa), exponent),
    "above powers of two": lambda mantissa, exponent, last: (mantissa % 4, exponent),
    "near one": lambda mantissa, exponent, last: (mantissa, last // 2 - exponent % 2),
    "subnormal": lambda mantissa, exponent, last: (mantissa >> exponent % 20, exponent * 0),
    "small": lambda mantissa, exponent, last: (mantissa, 1 + exponent % 60),
    "great": lambda mantissa, exponent, last: (mantissa, last - exponent % 3),
}


def many_scales(name, kind, n):
    info = np.finfo(kind)
    mantissa, exponent = words(2 * n, 61).reshape(2, n)
    last = 2 * info.maxexp - 2  # the biased exponent of the greatest numbers
    mantissa, exponent = SCALES[name](mantissa >> np.uint64(64 - info.nmant), exponent % np.uint64(last + 1), last)
    bits = (exponent << np.uint64(info.nmant)) | (mantissa & np.uint64(2**info.nmant - 1))
    scales = np.maximum(bits, 1).astype(f"u{kind.itemsize}").view(kind)
    if name == "great":
        scales[0] = info.max
    return scales


# --- oracles ---------------------------------------------------------------------------------------------


def divided(x, scale):
    with np.errstate(all="ignore"):
        return x / scale


def nearest_e4m3(v):
    """The codes nearest to v by bisection over the midpoints."""
    magnitude = np.abs(v)
    code = np.searchsorted(MIDPOINTS[:-1], magnitude, side="left")  # a tie stays below ...
    tie = MIDPOINTS[np.minimum(code, 125)] == magnitude
    code += tie & (code < 126) & (code % 2 == 1)  # ... unless that code is odd
    code = np.where(np.isnan(v), 127, code) + np.where(np.signbit(v), 128, 0)
    return code.astype(np.uint8).view(E4M3)


def codes_of(quotient, zero_point, dtype):
    """What NumPy makes of x / scale."""
    if dtype == "float8_e4m3fn":
        return nearest_e4m3(quotient)
    least, greatest = LIMITS[dtype]
    steps = np.rint(np.where(np.isnan(quotient), 0.0, quotient))
    return (np.clip(steps, least - zero_point, greatest - zero_point) + zero_point).astype(dtype)


def values_of(codes, scale, zero_point):
    """(codes - zero_point) * scale in the scale's type."""
    steps = codes if codes.dtype == E4M3 else codes.astype(np.int32) - zero_point
    with np.errstate(over="ignore"):
        return steps.astype(scale.dtype) * scale


def rounded(exact, kind):
    """A fraction rounded to a float of a type, half to even."""
    info = np.finfo(kind)
    if not exact:
        return 0.0
    exponent = abs(exact.numerator).bit_length() - exact.denominator.bit_length()
    exponent -= abs(exact) < Fraction(2) ** exponent
    step = Fraction(2) ** (max(exponent, info.minexp) - info.nmant)
    result = round(exact / step) * step  # half to even
    if abs(result) > Fraction(float(info.max)):
        return math.inf if result > 0 else -math.inf
    return float(result)


def exact_code(x, scale, zero_point, dtype):
    """The code of x: the quotient rounded to their type, that rounded to a step, the step moved and saturated."""
    least, greatest = LIMITS[dtype]
    if math.isnan(x):
        return zero_point
    if math.isinf(x):
        return greatest if x > 0 else least
    quotient = rounded(Fraction(float(x)) / Fraction(float(scale)), x.dtype)
    if math.isinf(quotient):
        return greatest if quotient > 0 else least
    return min(max(round(Fraction(quotient)) + zero_point, least), greatest)


ONNX_TYPES = {"float32": "FLOAT", "int8": "INT8", "uint8": "UINT8", "float8_e4m3fn": "FLOAT8E4M3FN"}


def by_onnx_runtime(operator, x, scale, zero_point, axis=0):
    """The operator on the CPU.

    Its arguments are constants and codes of E4M3 leave as floats: from NumPy, the runtime takes no E4M3.
    """
    import onnx
    import onnxruntime

    def type_of(array):
        return getattr(onnx.TensorProto, ONNX_TYPES[array.dtype.name])

    arguments = {"x": x, "scale": scale, "zero_point": zero_point}
    constants = [
        onnx.helper.make_tensor(name, type_of(array), array.shape, array.tobytes(), raw=True)
        for name, array in arguments.items()
    ]
    nodes = [onnx.helper.make_node(operator, list(arguments), ["y"], axis=axis)]
    result = zero_point if operator == "QuantizeLinear" else scale
    if result.dtype == E4M3:
        nodes.append(onnx.helper.make_node("Cast", ["y"], ["values"], to=onnx.TensorProto.FLOAT))
    name, of = ("values", onnx.TensorProto.FLOAT) if result.dtype == E4M3 else ("y", type_of(result))
    outputs = [onnx.helper.make_tensor_value_info(name, of, x.shape)]
    graph = onnx.helper.make_graph(nodes, "graph", [], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 19)], ir_version=9)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # other tests fork
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0].astype(result.dtype)
