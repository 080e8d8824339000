"""Oracles for ONNX's quantisation, by NumPy's division, exact fractions and ONNX Runtime, and hard input for them."""

import math
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
from inputs import E4M3_VALUES
from values import adversarial, random_bits, words

from qatcore._base import dispatch

every_level = pytest.mark.parametrize("level", dispatch.available_levels(), indirect=True)
both_types = pytest.mark.parametrize("kind", [np.dtype(np.float32), np.dtype(np.float64)], ids=str)

WIDTHS = {"int2": 2, "uint2": 2, "int4": 4, "uint4": 4, "int8": 8, "uint8": 8, "int16": 16, "uint16": 16}
LIMITS = {  # of zero points, and of integer codes
    name: (-(2 ** (width - 1)), 2 ** (width - 1) - 1) if name[0] == "i" else (0, 2**width - 1)
    for name, width in WIDTHS.items()
}
INTEGER_FORMATS = [
    *[("int8", -128), ("int8", -3), ("int8", 127), ("uint8", 0), ("uint8", 131), ("uint8", 255)],
    *[("int2", -2), ("int2", 1), ("uint2", 1), ("int4", -8), ("int4", 5), ("uint4", 0), ("uint4", 15)],
    *[("int16", -32768), ("int16", 77), ("uint16", 0), ("uint16", 65535)],
]

# For the floating-point formats.  FLOAT_VALUES holds the finite values of codes without a sign, in the order of the
# codes.  SIGNS holds the sign bit.  NAN_CODES holds the code of NaN, which is then XORed with the sign bit.
FLOAT_VALUES = {
    "float8_e4m3fn": np.array(E4M3_VALUES),
    "float8_e5m2": np.arange(0x7C, dtype=np.uint8).view(ml_dtypes.float8_e5m2).astype(np.float64),
    "float4_e2m1fn": np.array([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]),
}
NAN_CODES = {"float8_e4m3fn": 0x7F, "float8_e5m2": 0x7E, "float4_e2m1fn": 0x08}
SIGNS = {"float8_e4m3fn": 0x80, "float8_e5m2": 0x80, "float4_e2m1fn": 0x08}
FLOAT_TYPES = list(FLOAT_VALUES)
WIDTHS |= {"float8_e4m3fn": 8, "float8_e5m2": 8, "float4_e2m1fn": 4}
LIMITS |= dict.fromkeys(FLOAT_TYPES, (0, 0))

FORMATS = [*INTEGER_FORMATS, *((name, 0) for name in FLOAT_TYPES)]
every_format = pytest.mark.parametrize(("dtype", "zero_point"), FORMATS)
every_code_type = pytest.mark.parametrize("dtype", LIMITS)
every_float_type = pytest.mark.parametrize("dtype", FLOAT_TYPES)


def every_code(dtype):
    """Return all codes of a type."""
    width = WIDTHS[dtype]
    return np.arange(2**width, dtype=np.uint16 if width == 16 else np.uint8).view(dtype)


# --- data ------------------------------------------------------------------------------------------------


def hard_scales(kind):
    """Return scales near 1 and 2, inexact ones, subnormal ones, and the least and greatest of a type."""
    info = np.finfo(kind)
    ones = [1.0, 1.0 - info.epsneg, 1.0 + info.eps, 2.0 - info.eps, 0.1, 1.0 / 3.0, 1e-3]
    ends = [info.smallest_subnormal, info.tiny * 0.3, info.tiny * (1.0 - info.eps), info.tiny, info.max / 3, info.max]
    return np.array([*ones, *ends], kind)


def near(x):
    """Return x and two neighbours on either side; neighbours of infinities may be NaN."""
    integer = np.dtype(f"i{x.dtype.itemsize}")
    offsets = np.arange(-2, 3, dtype=integer)
    return (x.view(integer)[..., np.newaxis] + offsets).view(x.dtype).reshape(*x.shape[:-1], -1)


def near_multiples(points, scales):
    """Return values x for which x / scale is close to a point, a row for each scale."""
    with np.errstate(over="ignore"):
        return near((points * scales.astype(np.float64)[:, np.newaxis]).astype(scales.dtype))


TIES = np.arange(-258, 258) + 0.5
ENDS = np.array([-65536, -65535, -32769, -32768, 32766, 32767, 65534, 65535])
ENDS = np.concatenate([ENDS - 0.5, ENDS + 0.5])


def _midpoints(dtype):
    """Return the midpoints between neighbouring values, and the point beyond which rounding would overflow."""
    values = FLOAT_VALUES[dtype]
    return np.add(values, [*values[1:], 2.0 * values[-1] - values[-2]]) / 2.0


MIDPOINTS = {dtype: _midpoints(dtype) for dtype in FLOAT_TYPES}


def points_of(dtype):
    """Return quotients at which the code changes, and others."""
    if dtype not in FLOAT_VALUES:
        return TIES if WIDTHS[dtype] < 16 else np.concatenate([TIES, ENDS])
    values, midpoints = FLOAT_VALUES[dtype], MIDPOINTS[dtype]
    points = np.concatenate([values, midpoints, [2.0 * values[-1] - values[-2], 1.2 * values[-1]]])
    return np.concatenate([points, -points])


def hard_values(scale, dtype):
    """Return values that are hard for any scale, and then values that are hard for this scale."""
    scale = np.asarray(scale)
    bits = random_bits(4_000, 60, scale.dtype)
    return np.concatenate([adversarial(scale.dtype), bits, near_multiples(points_of(dtype), scale.reshape(1))[0]])


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


def nearest_float(v, dtype):
    """Return the codes nearest to v, by bisection over the midpoints."""
    midpoints, sign = MIDPOINTS[dtype], SIGNS[dtype]
    last = FLOAT_VALUES[dtype].size - 1
    magnitude = np.abs(v)
    code = np.searchsorted(midpoints[:-1], magnitude, side="left")  # a tie stays below ...
    tie = midpoints[np.minimum(code, last - 1)] == magnitude
    code += tie & (code < last) & (code % 2 == 1)  # ... unless that code is odd
    code = np.where(np.isnan(v), NAN_CODES[dtype], code) ^ np.where(np.signbit(v), sign, 0)
    return code.astype(np.uint8).view(dtype)


def codes_of(quotient, zero_point, dtype):
    """Return the codes of a quotient x / scale, by NumPy."""
    if dtype in FLOAT_VALUES:
        return nearest_float(quotient, dtype)
    least, greatest = LIMITS[dtype]
    steps = np.rint(np.where(np.isnan(quotient), 0.0, quotient))
    return (np.clip(steps, least - zero_point, greatest - zero_point) + zero_point).astype(dtype)


def values_of(codes, scale, zero_point):
    """Return (codes - zero_point) * scale in the type of the scale."""
    steps = codes if codes.dtype.name in FLOAT_VALUES else codes.astype(np.int32) - zero_point
    with np.errstate(over="ignore"):
        return steps.astype(scale.dtype) * scale


def rounded(exact, kind):
    """Return a fraction rounded to a floating type, half to even."""
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
    """Return the code of x: round the quotient to the type of x, then to an integer, add the zero point, saturate."""
    least, greatest = LIMITS[dtype]
    if math.isnan(x):
        return zero_point
    if math.isinf(x):
        return greatest if x > 0 else least
    quotient = rounded(Fraction(float(x)) / Fraction(float(scale)), x.dtype)
    if math.isinf(quotient):
        return greatest if quotient > 0 else least
    return min(max(round(Fraction(quotient)) + zero_point, least), greatest)


def by_onnx_runtime(operator, x, scale, zero_point, axis=0, block_size=0):
    """Return the result of an operator in ONNX Runtime, on the CPU.

    The arguments are constants of the model.  Codes without a NumPy type of their own come out as floats.
    """
    import onnx
    import onnxruntime

    arguments = {"x": x, "scale": scale, "zero_point": zero_point}
    constants = [onnx.numpy_helper.from_array(np.ascontiguousarray(array), n) for n, array in arguments.items()]
    # Without this attribute, opset 23 and later round the quotient of float16 to float16.
    precision = {"precision": onnx.TensorProto.FLOAT} if operator == "QuantizeLinear" else {}
    nodes = [onnx.helper.make_node(operator, list(arguments), ["y"], axis=axis, block_size=block_size, **precision)]
    result = zero_point if operator == "QuantizeLinear" else scale
    name, of = "y", result.dtype
    if of.kind == "V" or of.name.startswith("float8"):
        nodes.append(onnx.helper.make_node("Cast", ["y"], ["values"], to=onnx.TensorProto.FLOAT))
        name, of = "values", np.dtype(np.float32)
    outputs = [onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(of), x.shape)]
    graph = onnx.helper.make_graph(nodes, "graph", [], outputs, constants)
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 25)], ir_version=13)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1  # other tests fork
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {})[0].astype(result.dtype)
