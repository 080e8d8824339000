# ONNX's QuantizeLinear and DequantizeLinear: round half to even, then add the zero point, in the type of the scale.
#
# There are six operations, and one loop over the runs of elements that share a scale: `over_runs`.  Each operation is a
# struct of its constants, and a line in `apply`; the compiler makes a copy of the loop for each.  Callers choose the
# elements, `start` to `stop` of flat arrays, so threads may split the arrays anywhere.
#
# Scales lie in the order of the elements, in one of two ways:
#
# - With `inner` > 1 each scale is for a run of `inner` elements.  The first scale follows the last one again.
# - With `inner` 1 neighbours have different scales.  A pattern of `pattern` scales, loaded as vectors, comes `repeats`
#   times; then the next pattern follows.  Python makes patterns as long as a layout allows.

ctypedef fused codeword:
    uint8_t
    uint16_t

cdef struct QuantizeInteger:
    int32_t least
    int32_t greatest
    int32_t mask      # of the code's bits

cdef struct QuantizeDequantizeInteger:
    int32_t least
    int32_t greatest

cdef struct DequantizeInteger:
    int32_t mask
    int32_t sign      # the bit of the code's sign: flipped and taken off again, it extends the code

cdef struct QuantizeFloat:
    Minifloat format

cdef struct QuantizeDequantizeFloat:
    Minifloat format

cdef struct DequantizeFloat:
    Minifloat format

ctypedef fused operation:
    QuantizeInteger
    QuantizeDequantizeInteger
    DequantizeInteger
    QuantizeFloat
    QuantizeDequantizeFloat
    DequantizeFloat

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


cdef inline int32_t sign_bit(int32_t least, int32_t greatest) noexcept nogil:
    """The bit of codes' sign, 0 if they have none; the least code of all may be left out."""
    if least < 0:
        return greatest + 1
    return 0


cdef inline inlined apply(
    operation op, const floating* x, codeword* codes, floating* out, Py_ssize_t i, floating scale, int32_t zero_point
) noexcept nogil:
    """Element i: of `x`, `codes` and `out` an operation reads one and writes one."""
    cdef int32_t steps
    if operation is QuantizeInteger:
        steps = <int32_t> nearest_step(
            x[i], scale, <floating> (op.least - zero_point), <floating> (op.greatest - zero_point)
        )
        codes[i] = <codeword> ((steps + zero_point) & op.mask)
    elif operation is QuantizeDequantizeInteger:
        out[i] = scale * nearest_step(
            x[i], scale, <floating> (op.least - zero_point), <floating> (op.greatest - zero_point)
        )
    elif operation is DequantizeInteger:
        steps = ((<int32_t> codes[i] & op.mask) ^ op.sign) - (op.sign + zero_point)
        out[i] = <floating> steps * scale
    elif operation is QuantizeFloat:
        codes[i] = minifloat_code(x[i] / scale, op.format)
    elif operation is QuantizeDequantizeFloat:
        out[i] = nearest_minifloat(x[i] / scale, op.format) * scale
    else:
        out[i] = <floating> minifloat_value(<uint8_t> codes[i], op.format) * scale


cdef inline int32_t zero_point_at(operation op, const int32_t* zero_point, Py_ssize_t i) noexcept nogil:
    """Floating-point codes have none."""
    if operation is QuantizeInteger:
        return zero_point[i]
    elif operation is QuantizeDequantizeInteger:
        return zero_point[i]
    elif operation is DequantizeInteger:
        return zero_point[i]
    else:
        return 0


cdef inline inlined stretch(
    operation op,
    const floating* x,
    codeword* codes,
    floating* out,
    Py_ssize_t start,
    Py_ssize_t n,
    floating scale,
    int32_t zero_point,
) noexcept nogil:
    """The n elements from `start`, which have one scale."""
    cdef Py_ssize_t i
    for i in range(start, start + n):
        apply(op, x, codes, out, i, scale, zero_point)


# Codes are a quarter or an eighth of what is read, so reading has to run ahead of the computation; the processor's own
# prefetching stops at every page.  Asking for what lies a page ahead, a few lines at a time, is 1.15 times as fast for
# arrays beyond the caches; a whole page at once fills the queue of outstanding reads, and is slower than nothing.
# Where as much is written as read, or the computation takes longer than reading, asking does not help.

cdef enum:
    PAGE = 4096     # bytes
    STRETCH = 64    # elements
    LONG = 256      # a run that long is worth its beginning and its end
    SHORT = 16      # elements of short runs: where their number is a constant, vectors of them need no loop


cdef inline Py_ssize_t unaligned(const floating* x) noexcept nogil:
    """How many elements there are up to the next cache line: vectors of 64 bytes would all cross one."""
    return <Py_ssize_t> (-<size_t> x % 64 // sizeof(floating))


cdef inline void prefetch_stretch(const floating* x, Py_ssize_t n) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(0, n * <Py_ssize_t> sizeof(floating), 64):
        prefetch(<const char*> x + PAGE + i)


cdef inline void over_runs(
    operation op,
    const floating* x,
    codeword* codes,
    floating* out,
    const floating* scale,
    const int32_t* zero_point,
    Layout layout,
    Py_ssize_t start,
    Py_ssize_t stop,
) noexcept nogil:
    cdef Py_ssize_t i, j, end, first
    cdef floating s
    cdef int32_t z
    cdef Run run = run_at(start, layout)
    while start < stop:
        end = min(run.stop, stop)
        if layout.inner == 1:
            for i in range(start, end):
                j = run.scale + i - start
                apply(op, x, codes, out, i, scale[j], zero_point_at(op, zero_point, j))
        else:
            s = scale[run.scale]
            z = zero_point_at(op, zero_point, run.scale)
            if end - start < 2 * SHORT:
                while start + SHORT <= end:
                    stretch(op, x, codes, out, start, SHORT, s, z)
                    start += SHORT
            elif operation is QuantizeInteger:
                if end - start < LONG:
                    prefetch_stretch(x + start, end - start)
                else:
                    first = min(start + unaligned(x + start), end)
                    stretch(op, x, codes, out, start, first - start, s, z)
                    start = first
                    while start + STRETCH <= end:
                        prefetch_stretch(x + start, STRETCH)
                        stretch(op, x, codes, out, start, STRETCH, s, z)
                        start += STRETCH
            stretch(op, x, codes, out, start, end - start, s, z)
        start = end
        next_run(&run, layout)


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
    cdef QuantizeInteger op
    op.least = least
    op.greatest = greatest
    op.mask = greatest + sign_bit(least, greatest)
    if start < stop:
        with nogil:
            over_runs(
                op, &x[0], &codes[0], <floating*> NULL, &scale[0], &zero_point[0],
                layout_of(inner, pattern, repeats, scale.shape[0]), start, stop,
            )


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
    cdef QuantizeDequantizeInteger op
    op.least = least
    op.greatest = greatest
    if start < stop:
        with nogil:
            over_runs(
                op, &x[0], <uint8_t*> NULL, &out[0], &scale[0], &zero_point[0],
                layout_of(inner, pattern, repeats, scale.shape[0]), start, stop,
            )


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
    cdef DequantizeInteger op
    op.sign = sign_bit(least, greatest)
    op.mask = greatest + op.sign
    if start < stop:
        with nogil:
            over_runs(
                op, <const floating*> NULL, <codeword*> &codes[0], &out[0], &scale[0], &zero_point[0],
                layout_of(inner, pattern, repeats, scale.shape[0]), start, stop,
            )


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
    cdef QuantizeFloat op
    op.format = minifloat(format)
    if start < stop:
        with nogil:
            over_runs(
                op, &x[0], &codes[0], <floating*> NULL, &scale[0], <const int32_t*> NULL,
                layout_of(inner, pattern, repeats, scale.shape[0]), start, stop,
            )


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
    cdef QuantizeDequantizeFloat op
    op.format = minifloat(format)
    if start < stop:
        with nogil:
            over_runs(
                op, &x[0], <uint8_t*> NULL, &out[0], &scale[0], <const int32_t*> NULL,
                layout_of(inner, pattern, repeats, scale.shape[0]), start, stop,
            )


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
    cdef DequantizeFloat op
    op.format = minifloat(format)
    if start < stop:
        with nogil:
            over_runs(
                op, <const floating*> NULL, <uint8_t*> &codes[0], &out[0], &scale[0], <const int32_t*> NULL,
                layout_of(inner, pattern, repeats, scale.shape[0]), start, stop,
            )
