# ONNX's QuantizeLinear and DequantizeLinear: round half to even, then add the zero point, in the type of the
# scale.  Elements `start` to `stop` of flat arrays are worked on, so that threads may split them anywhere.
#
# Scales lie along an axis with `inner` elements behind it: element i has scale (i // inner) % channels.  Where
# `inner` is 1 the scales are a pattern that repeats, and a vector of them is loaded; else they are constant in a
# run of elements.  Python sees to it that runs and patterns are long.

cdef struct Run:  # elements with one scale, or with a stretch of the pattern
    Py_ssize_t stop
    Py_ssize_t channel  # of its first element


cdef inline Run run_from(Py_ssize_t start, Py_ssize_t stop, Py_ssize_t inner, Py_ssize_t channels) noexcept nogil:
    cdef Run run
    cdef Py_ssize_t row = start // inner
    run.channel = row % channels
    if inner == 1:
        run.stop = min(start + channels - run.channel, stop)
    else:
        run.stop = min((row + 1) * inner, stop)
    return run


cdef inline floating nearest_step(floating x, floating scale, floating low, floating high) noexcept nogil:
    """x in steps of the scale, from `low` to `high`; NaN gives 0, and there is no -0."""
    cdef floating v = x / scale
    if v != v:
        v = 0.0
    if v < low:
        v = low
    if v > high:
        v = high
    if floating is float:
        return rintf(v) + <float> 0.0
    else:
        return rint(v) + 0.0


# Codes are a quarter or an eighth of what is read, so reading has to run ahead of the computation; the processor's own
# prefetching stops at every page.  Asking for what lies a page ahead, a few lines at a time, is 1.15 times as fast for
# arrays beyond the caches; a whole page at once fills the queue of outstanding reads, and is slower than nothing.
# Where as much is written as read, or the computation takes longer than reading, asking does not help.

cdef enum:
    PAGE = 4096     # bytes
    STRETCH = 64    # elements


cdef inline inlined quantize_stretch(
    const floating* x, uint8_t* codes, Py_ssize_t n, floating scale, int32_t zero_point, floating low, floating high
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        codes[i] = <uint8_t> (<int32_t> nearest_step(x[i], scale, low, high) + zero_point)


cdef inline Py_ssize_t unaligned(const floating* x) noexcept nogil:
    """How many elements there are up to the next cache line: vectors of 64 bytes would all cross one."""
    return <Py_ssize_t> (-<size_t> x % 64 // sizeof(floating))


cdef inline void prefetch_stretch(const floating* x) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(0, STRETCH * <Py_ssize_t> sizeof(floating), 64):
        prefetch(<const char*> x + PAGE + i)


def quantize_integer(
    const floating[::1] x,
    uint8_t[::1] codes,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Py_ssize_t inner,
    int32_t least,
    int32_t greatest,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """codes = the bytes of codes from `least` to `greatest`, of either sign."""
    cdef Py_ssize_t i, j, end
    cdef floating s, low, high
    cdef int32_t z
    cdef Run run
    with nogil:
        while start < stop:
            run = run_from(start, stop, inner, scale.shape[0])
            if inner == 1:
                for i in range(start, run.stop):
                    j = run.channel + i - start
                    z = zero_point[j]
                    codes[i] = <uint8_t> (
                        <int32_t> nearest_step(x[i], scale[j], <floating> (least - z), <floating> (greatest - z)) + z
                    )
            else:
                s = scale[run.channel]
                z = zero_point[run.channel]
                low = <floating> (least - z)
                high = <floating> (greatest - z)
                end = min(start + unaligned(&x[0] + start), run.stop)
                quantize_stretch(&x[0] + start, &codes[0] + start, end - start, s, z, low, high)
                start = end
                while start + STRETCH <= run.stop:
                    prefetch_stretch(&x[start])
                    quantize_stretch(&x[start], &codes[start], STRETCH, s, z, low, high)
                    start += STRETCH
                quantize_stretch(&x[0] + start, &codes[0] + start, run.stop - start, s, z, low, high)
            start = run.stop


def quantize_dequantize_integer(
    const floating[::1] x,
    floating[::1] out,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Py_ssize_t inner,
    int32_t least,
    int32_t greatest,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = the values of the codes of x."""
    cdef Py_ssize_t i, j
    cdef floating s, low, high
    cdef Run run
    with nogil:
        while start < stop:
            run = run_from(start, stop, inner, scale.shape[0])
            if inner == 1:
                for i in range(start, run.stop):
                    j = run.channel + i - start
                    low = <floating> (least - zero_point[j])
                    high = <floating> (greatest - zero_point[j])
                    out[i] = nearest_step(x[i], scale[j], low, high) * scale[j]
            else:
                s = scale[run.channel]
                low = <floating> (least - zero_point[run.channel])
                high = <floating> (greatest - zero_point[run.channel])
                for i in range(start, run.stop):
                    out[i] = nearest_step(x[i], s, low, high) * s
            start = run.stop


def dequantize_integer(
    const uint8_t[::1] codes,
    floating[::1] out,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Py_ssize_t inner,
    int32_t least,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = (code - zero point) * scale, for the bytes of codes whose least one is `least`: -128 or 0."""
    cdef Py_ssize_t i, j
    cdef floating s
    cdef int32_t z
    cdef uint8_t sign = <uint8_t> least  # flipped and taken off again, it extends the byte
    cdef Run run
    with nogil:
        while start < stop:
            run = run_from(start, stop, inner, scale.shape[0])
            if inner == 1:
                for i in range(start, run.stop):
                    j = run.channel + i - start
                    out[i] = <floating> (<int32_t> (codes[i] ^ sign) + least - zero_point[j]) * scale[j]
            else:
                s = scale[run.channel]
                z = zero_point[run.channel] - least
                for i in range(start, run.stop):
                    out[i] = <floating> (<int32_t> (codes[i] ^ sign) - z) * s
            start = run.stop


def quantize_e4m3(
    const floating[::1] x,
    uint8_t[::1] codes,
    const floating[::1] scale,
    Py_ssize_t inner,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """codes = the E4M3 codes nearest to x / scale."""
    cdef Py_ssize_t i
    cdef floating s
    cdef Run run
    with nogil:
        while start < stop:
            run = run_from(start, stop, inner, scale.shape[0])
            if inner == 1:
                for i in range(start, run.stop):
                    codes[i] = e4m3_code(x[i] / scale[run.channel + i - start])
            else:
                s = scale[run.channel]
                for i in range(start, run.stop):
                    codes[i] = e4m3_code(x[i] / s)
            start = run.stop


def quantize_dequantize_e4m3(
    const floating[::1] x,
    floating[::1] out,
    const floating[::1] scale,
    Py_ssize_t inner,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = the values of the codes of x."""
    cdef Py_ssize_t i, j
    cdef floating s
    cdef Run run
    with nogil:
        while start < stop:
            run = run_from(start, stop, inner, scale.shape[0])
            if inner == 1:
                for i in range(start, run.stop):
                    j = run.channel + i - start
                    out[i] = nearest_e4m3(x[i] / scale[j]) * scale[j]
            else:
                s = scale[run.channel]
                for i in range(start, run.stop):
                    out[i] = nearest_e4m3(x[i] / s) * s
            start = run.stop


def dequantize_e4m3(
    const uint8_t[::1] codes,
    floating[::1] out,
    const floating[::1] scale,
    Py_ssize_t inner,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = the values of E4M3 codes times scale."""
    cdef Py_ssize_t i
    cdef floating s
    cdef Run run
    with nogil:
        while start < stop:
            run = run_from(start, stop, inner, scale.shape[0])
            if inner == 1:
                for i in range(start, run.stop):
                    out[i] = <floating> e4m3_value(codes[i]) * scale[run.channel + i - start]
            else:
                s = scale[run.channel]
                for i in range(start, run.stop):
                    out[i] = <floating> e4m3_value(codes[i]) * s
            start = run.stop
