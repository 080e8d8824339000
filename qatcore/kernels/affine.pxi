# ONNX's QuantizeLinear and DequantizeLinear: round half to even, then add the zero point, in the type of the
# scale.  Elements `start` to `stop` of flat arrays are worked on, so that threads may split them anywhere.
#
# Scales lie in the order of the elements, in one of two ways.  With `inner` > 1 each one is for a run of `inner`
# elements, and after the last one comes the first again.  With `inner` 1 neighbours have different ones: `pattern` of
# them, which are loaded as vectors, come `repeats` times, then the next `pattern`.  Python makes patterns as
# long as a layout allows.

ctypedef fused codeword:
    uint8_t
    uint16_t

cdef struct Layout:
    Py_ssize_t inner
    Py_ssize_t pattern
    Py_ssize_t repeats
    Py_ssize_t scales

cdef struct Run:  # elements with one scale, or with a pattern of them
    Py_ssize_t stop
    Py_ssize_t scale    # that of its first element
    Py_ssize_t first    # of the pattern
    Py_ssize_t repeat   # of the pattern


cdef inline Layout layout_of(
    Py_ssize_t inner, Py_ssize_t pattern, Py_ssize_t repeats, Py_ssize_t scales
) noexcept nogil:
    cdef Layout layout
    layout.inner = inner
    layout.pattern = pattern
    layout.repeats = repeats
    layout.scales = scales
    return layout


cdef inline Run run_at(Py_ssize_t start, Layout layout) noexcept nogil:
    cdef Run run
    cdef Py_ssize_t row
    if layout.inner > 1:
        row = start // layout.inner
        run.stop = (row + 1) * layout.inner
        run.scale = row % layout.scales
        run.first = run.repeat = 0
    else:
        row = start // layout.pattern
        run.stop = (row + 1) * layout.pattern
        run.first = row // layout.repeats * layout.pattern % layout.scales
        run.repeat = row % layout.repeats
        run.scale = run.first + start % layout.pattern
    return run


cdef inline void next_run(Run* run, Layout layout) noexcept nogil:
    if layout.inner > 1:
        run.stop += layout.inner
        run.scale += 1
        if run.scale == layout.scales:
            run.scale = 0
    else:
        run.stop += layout.pattern
        run.repeat += 1
        if run.repeat == layout.repeats:
            run.repeat = 0
            run.first += layout.pattern
            if run.first == layout.scales:
                run.first = 0
        run.scale = run.first


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
    LONG = 256      # a run that long is worth its beginning and its end
    SHORT = 16      # elements of short runs: where their number is a constant, vectors of them need no loop


cdef inline inlined quantize_stretch(
    const floating* x,
    codeword* codes,
    Py_ssize_t n,
    floating scale,
    int32_t zero_point,
    floating low,
    floating high,
    int32_t mask,
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        codes[i] = <codeword> ((<int32_t> nearest_step(x[i], scale, low, high) + zero_point) & mask)


cdef inline int32_t sign_bit(int32_t least, int32_t greatest) noexcept nogil:
    """The bit of codes' sign, 0 if they have none; the least code of all may be left out."""
    if least < 0:
        return greatest + 1
    return 0


cdef inline Py_ssize_t unaligned(const floating* x) noexcept nogil:
    """How many elements there are up to the next cache line: vectors of 64 bytes would all cross one."""
    return <Py_ssize_t> (-<size_t> x % 64 // sizeof(floating))


cdef inline void prefetch_stretch(const floating* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(0, n * <Py_ssize_t> sizeof(floating), 64):
        prefetch(<const char*> x + PAGE + i)


def quantize_integer(
    const floating[::1] x,
    codeword[::1] codes,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Py_ssize_t inner,
    Py_ssize_t pattern,
    Py_ssize_t repeats,
    int32_t least,
    int32_t greatest,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """codes = those from `least` to `greatest`, of either sign, in the lowest bits."""
    cdef Py_ssize_t i, j, end, first
    cdef floating s, low, high
    cdef int32_t z
    cdef int32_t mask = greatest + sign_bit(least, greatest)
    cdef Layout layout = layout_of(inner, pattern, repeats, scale.shape[0])
    cdef Run run
    with nogil:
        run = run_at(start, layout)
        while start < stop:
            end = min(run.stop, stop)
            if inner == 1:
                for i in range(start, end):
                    j = run.scale + i - start
                    z = zero_point[j]
                    codes[i] = <codeword> ((
                        <int32_t> nearest_step(x[i], scale[j], <floating> (least - z), <floating> (greatest - z)) + z
                    ) & mask)
            else:
                s = scale[run.scale]
                z = zero_point[run.scale]
                low = <floating> (least - z)
                high = <floating> (greatest - z)
                if end - start >= LONG:
                    first = min(start + unaligned(&x[start]), end)
                    quantize_stretch(&x[start], &codes[start], first - start, s, z, low, high, mask)
                    start = first
                    while start + STRETCH <= end:
                        prefetch_stretch(&x[start], STRETCH)
                        quantize_stretch(&x[start], &codes[start], STRETCH, s, z, low, high, mask)
                        start += STRETCH
                elif end - start < 2 * SHORT:
                    while start + SHORT <= end:
                        quantize_stretch(&x[start], &codes[start], SHORT, s, z, low, high, mask)
                        start += SHORT
                else:
                    prefetch_stretch(&x[start], end - start)
                quantize_stretch(&x[0] + start, &codes[0] + start, end - start, s, z, low, high, mask)
            start = end
            next_run(&run, layout)


cdef inline inlined quantize_dequantize_stretch(
    const floating* x, floating* out, Py_ssize_t n, floating scale, floating low, floating high
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = nearest_step(x[i], scale, low, high) * scale


def quantize_dequantize_integer(
    const floating[::1] x,
    floating[::1] out,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Py_ssize_t inner,
    Py_ssize_t pattern,
    Py_ssize_t repeats,
    int32_t least,
    int32_t greatest,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = the values of the codes of x."""
    cdef Py_ssize_t i, j, end
    cdef floating s, low, high
    cdef Layout layout = layout_of(inner, pattern, repeats, scale.shape[0])
    cdef Run run
    with nogil:
        run = run_at(start, layout)
        while start < stop:
            end = min(run.stop, stop)
            if inner == 1:
                for i in range(start, end):
                    j = run.scale + i - start
                    low = <floating> (least - zero_point[j])
                    high = <floating> (greatest - zero_point[j])
                    out[i] = nearest_step(x[i], scale[j], low, high) * scale[j]
            else:
                s = scale[run.scale]
                low = <floating> (least - zero_point[run.scale])
                high = <floating> (greatest - zero_point[run.scale])
                if end - start < 2 * SHORT:
                    while start + SHORT <= end:
                        quantize_dequantize_stretch(&x[start], &out[start], SHORT, s, low, high)
                        start += SHORT
                quantize_dequantize_stretch(&x[0] + start, &out[0] + start, end - start, s, low, high)
            start = end
            next_run(&run, layout)


cdef inline inlined dequantize_stretch(
    const codeword* codes, floating* out, Py_ssize_t n, floating scale, int32_t zero_point, int32_t mask, int32_t sign
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <floating> (((<int32_t> codes[i] & mask) ^ sign) - zero_point) * scale


def dequantize_integer(
    const codeword[::1] codes,
    floating[::1] out,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Py_ssize_t inner,
    Py_ssize_t pattern,
    Py_ssize_t repeats,
    int32_t least,
    int32_t greatest,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = (code - zero point) * scale, for codes from `least` to `greatest`, of which the lowest bits count."""
    cdef Py_ssize_t i, j, end
    cdef floating s
    cdef int32_t z
    cdef int32_t sign = sign_bit(least, greatest)  # flipped and taken off again, it extends the code
    cdef int32_t mask = greatest + sign
    cdef Layout layout = layout_of(inner, pattern, repeats, scale.shape[0])
    cdef Run run
    with nogil:
        run = run_at(start, layout)
        while start < stop:
            end = min(run.stop, stop)
            if inner == 1:
                for i in range(start, end):
                    j = run.scale + i - start
                    out[i] = <floating> (((<int32_t> codes[i] & mask) ^ sign) - sign - zero_point[j]) * scale[j]
            else:
                s = scale[run.scale]
                z = zero_point[run.scale] + sign
                if end - start < 2 * SHORT:
                    while start + SHORT <= end:
                        dequantize_stretch(&codes[start], &out[start], SHORT, s, z, mask, sign)
                        start += SHORT
                dequantize_stretch(&codes[0] + start, &out[0] + start, end - start, s, z, mask, sign)
            start = end
            next_run(&run, layout)


cdef inline inlined quantize_float_stretch(
    const floating* x, uint8_t* codes, Py_ssize_t n, floating scale, Minifloat f
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        codes[i] = minifloat_code(x[i] / scale, f)


def quantize_float(
    const floating[::1] x,
    uint8_t[::1] codes,
    const floating[::1] scale,
    Py_ssize_t inner,
    Py_ssize_t pattern,
    Py_ssize_t repeats,
    const int32_t[::1] format,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """codes = those of the format's values nearest to x / scale."""
    cdef Py_ssize_t i, end
    cdef floating s
    cdef Minifloat f = minifloat(format)
    cdef Layout layout = layout_of(inner, pattern, repeats, scale.shape[0])
    cdef Run run
    with nogil:
        run = run_at(start, layout)
        while start < stop:
            end = min(run.stop, stop)
            if inner == 1:
                for i in range(start, end):
                    codes[i] = minifloat_code(x[i] / scale[run.scale + i - start], f)
            else:
                s = scale[run.scale]
                if end - start < 2 * SHORT:
                    while start + SHORT <= end:
                        quantize_float_stretch(&x[start], &codes[start], SHORT, s, f)
                        start += SHORT
                quantize_float_stretch(&x[0] + start, &codes[0] + start, end - start, s, f)
            start = end
            next_run(&run, layout)


cdef inline inlined quantize_dequantize_float_stretch(
    const floating* x, floating* out, Py_ssize_t n, floating scale, Minifloat f
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = nearest_minifloat(x[i] / scale, f) * scale


def quantize_dequantize_float(
    const floating[::1] x,
    floating[::1] out,
    const floating[::1] scale,
    Py_ssize_t inner,
    Py_ssize_t pattern,
    Py_ssize_t repeats,
    const int32_t[::1] format,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = the values of the codes of x."""
    cdef Py_ssize_t i, j, end
    cdef floating s
    cdef Minifloat f = minifloat(format)
    cdef Layout layout = layout_of(inner, pattern, repeats, scale.shape[0])
    cdef Run run
    with nogil:
        run = run_at(start, layout)
        while start < stop:
            end = min(run.stop, stop)
            if inner == 1:
                for i in range(start, end):
                    j = run.scale + i - start
                    out[i] = nearest_minifloat(x[i] / scale[j], f) * scale[j]
            else:
                s = scale[run.scale]
                if end - start < 2 * SHORT:
                    while start + SHORT <= end:
                        quantize_dequantize_float_stretch(&x[start], &out[start], SHORT, s, f)
                        start += SHORT
                quantize_dequantize_float_stretch(&x[0] + start, &out[0] + start, end - start, s, f)
            start = end
            next_run(&run, layout)


cdef inline inlined dequantize_float_stretch(
    const uint8_t* codes, floating* out, Py_ssize_t n, floating scale, Minifloat f
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        out[i] = <floating> minifloat_value(codes[i], f) * scale


def dequantize_float(
    const uint8_t[::1] codes,
    floating[::1] out,
    const floating[::1] scale,
    Py_ssize_t inner,
    Py_ssize_t pattern,
    Py_ssize_t repeats,
    const int32_t[::1] format,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = the values of codes times scale."""
    cdef Py_ssize_t i, end
    cdef floating s
    cdef Minifloat f = minifloat(format)
    cdef Layout layout = layout_of(inner, pattern, repeats, scale.shape[0])
    cdef Run run
    with nogil:
        run = run_at(start, layout)
        while start < stop:
            end = min(run.stop, stop)
            if inner == 1:
                for i in range(start, end):
                    out[i] = <floating> minifloat_value(codes[i], f) * scale[run.scale + i - start]
            else:
                s = scale[run.scale]
                if end - start < 2 * SHORT:
                    while start + SHORT <= end:
                        dequantize_float_stretch(&codes[start], &out[start], SHORT, s, f)
                        start += SHORT
                dequantize_float_stretch(&codes[0] + start, &out[0] + start, end - start, s, f)
            start = end
            next_run(&run, layout)
