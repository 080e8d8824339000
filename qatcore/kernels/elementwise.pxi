# Apply the scalar formulas to whole arrays.  Channels lie along the leading axis: element i belongs to channel
# i // (n // channels).  A single channel is the whole array.

def fake_quantize_integer(
    const floating[::1] x, floating[::1] out, double scale, int32_t zero_point, double low, double high
):
    """out = dequantised code of x, computed in float64; a zero scale copies x."""
    cdef Py_ssize_t i
    with nogil:
        if scale == 0.0:
            for i in range(x.shape[0]):
                out[i] = x[i]
        else:
            for i in range(x.shape[0]):
                out[i] = <floating> decode_integer(
                    integer_code(x[i], scale, zero_point, low, high), zero_point, scale
                )


def encode_integer(
    const floating[::1] x,
    int8_t[::1] codes,
    const double[::1] scale,
    const int32_t[::1] zero_point,
    double low,
    double high,
):
    """codes = saturated integer codes of x, channel by channel."""
    cdef Py_ssize_t channel, i
    cdef Py_ssize_t inner = x.shape[0] // scale.shape[0]
    cdef double s, z
    with nogil:
        for channel in range(scale.shape[0]):
            s = scale[channel]
            z = zero_point[channel]
            for i in range(channel * inner, (channel + 1) * inner):
                codes[i] = <int8_t> <int32_t> integer_code(x[i], s, z, low, high)


def round_e4m3(const floating[::1] x, floating[::1] out):
    """out = nearest OCP E4M3 values."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(x.shape[0]):
            out[i] = nearest_minifloat(x[i], e4m3())


def round_e4m3_reference(const double[::1] x, double[::1] out):
    """out = the reference's FP8 values."""
    cdef Py_ssize_t i
    with nogil:
        for i in range(x.shape[0]):
            out[i] = reference_e4m3(x[i])


def encode_e4m3(const floating[::1] x, uint8_t[::1] codes, const double[::1] scale):
    """codes = E4M3 codes of x / scale, the quotient in float64, channel by channel."""
    cdef Py_ssize_t channel, i
    cdef Py_ssize_t inner = x.shape[0] // scale.shape[0]
    cdef double s
    with nogil:
        for channel in range(scale.shape[0]):
            s = scale[channel]
            for i in range(channel * inner, (channel + 1) * inner):
                codes[i] = minifloat_code(x[i] / s, e4m3())


def glorot_weights(double[::1] out, double limit, double largest):
    """out = uniform numbers on [-limit, limit] from the reference's 64-bit linear congruential generator.

    Each number comes from the upper 31 bits of the generator's state, divided by `largest`.
    """
    cdef Py_ssize_t i
    cdef uint64_t state = 0xDEADBEEFCAFEBABE
    with nogil:
        for i in range(out.shape[0]):
            state = state * <uint64_t> 6364136223846793005 + <uint64_t> 1442695040888963407
            out[i] = (<double> (state >> 33) / largest * 2.0 - 1.0) * limit
