# Gradients of fake quantisation: the straight-through estimator, and learned step sizes.
#
# Let v = x / scale, let r be v rounded, and let low and high be the ends of the codes less the zero point.  Then the
# output is scale * clamp(r).  Differentiation treats rounding as the identity.  So a value is not clipped where
# low <= r <= high (in floating-point formats, low <= v <= high), and
#
#   d out / d x           is 1 where it is not clipped, else 0.
#   d out / d scale       is r - v where it is not clipped, else the nearer end.
#   d out / d zero point  is 0 where it is not clipped, else -scale.
#
# A NaN passes no gradient.  Sums are in float64, and their products are exact if the inputs are float32.  The order of
# the sums must not depend on the vector width or on the threads.  So a run has ABREAST sums side by side, which are
# added up in order.  Python cuts the array into parts that depend only on its size and on the number of scales.

cdef enum:
    ABREAST = 16
    HALF_EVEN = 0   # round, then add the zero point, as ONNX does
    HALF_AWAY = 1   # add the zero point, then round, as the reference does
    MINIFLOAT = 2   # to a floating-point format


cdef inline floating rounded(floating v, floating zero_point, int rounding, Minifloat f) noexcept nogil:
    """Return v rounded, less the zero point; integers are not clipped, floating-point formats saturate."""
    if rounding == HALF_AWAY:
        return <floating> (round_half_away(v + zero_point) - zero_point)
    if rounding == MINIFLOAT:
        return nearest_minifloat(v, f)
    if floating is float:
        return rintf(v)
    else:
        return rint(v)


cdef inline inlined add_gradients(
    const floating* grad,
    const floating* x,
    floating* grad_x,
    Py_ssize_t n,
    floating scale,
    floating zero_point,
    floating low,
    floating high,
    int rounding,
    Minifloat f,
    double* of_scale,
    double* of_zero_point,
) noexcept nogil:
    """Write the gradients for n values, and add their gradients for scale and zero point to n sums each.

    The gradients for the zero point are divided by -scale.
    """
    cdef Py_ssize_t i
    cdef floating v, r, end, slope, passed, clipped
    for i in range(n):
        v = x[i] / scale
        r = rounded(v, zero_point, rounding, f)
        end = r
        if rounding == MINIFLOAT:
            if v < low:
                r = low - 1.0
            if v > high:
                r = high + 1.0
        if end < low:
            end = low
        if end > high:
            end = high
        passed = 0.0
        clipped = grad[i]
        slope = end
        if r == end:
            passed = grad[i]
            clipped = 0.0
            slope = r - v
        if v != v:
            passed = 0.0
            clipped = 0.0
            slope = 0.0
        grad_x[i] = passed
        of_scale[i] += <double> grad[i] * <double> slope
        of_zero_point[i] += <double> clipped


cdef inline inlined quantize_dequantize_masked(
    const floating* x,
    floating* out,
    uint8_t* passes,
    Py_ssize_t n,
    floating scale,
    floating zero_point,
    floating low,
    floating high,
    int rounding,
    Minifloat f,
) noexcept nogil:
    """Do what `quantize_dequantize_integer` and `..._float` do, and note which values pass a gradient."""
    cdef Py_ssize_t i
    cdef floating v, r
    for i in range(n):
        v = x[i] / scale
        r = rounded(v, zero_point, rounding, f)
        if rounding == MINIFLOAT:
            passes[i] = (v >= low) & (v <= high)
        else:
            passes[i] = (r >= low) & (r <= high)
            if r != r:
                r = 0.0
            if r < low:
                r = low
            if r > high:
                r = high
            r += <floating> 0.0
        out[i] = r * scale


cdef inline inlined walk(
    const floating* grad,
    const floating[::1] x,
    floating[::1] out,
    uint8_t* passes,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Layout layout,
    floating least,
    floating greatest,
    int rounding,
    Minifloat f,
    double* sums,
    Py_ssize_t start,
    Py_ssize_t stop,
) noexcept nogil:
    """Run by run, compute values and note which of them pass; or, if there is `grad`, compute gradients and sums."""
    cdef Py_ssize_t i, j, end
    cdef floating s, z
    cdef double[ABREAST] of_scale
    cdef double[ABREAST] of_zero_point
    cdef Run run = run_at(start, layout)
    while start < stop:
        end = min(run.stop, stop)
        if layout.inner == 1:
            for i in range(start, end):
                j = run.scale + i - start
                z = <floating> zero_point[j]
                if grad == NULL:
                    quantize_dequantize_masked(
                        &x[i], &out[i], &passes[i], 1, scale[j], z, least - z, greatest - z, rounding, f
                    )
                else:
                    add_gradients(
                        &grad[i], &x[i], &out[i], 1, scale[j], z, least - z, greatest - z, rounding, f,
                        &sums[j], &sums[layout.scales + j],
                    )
        else:
            s = scale[run.scale]
            z = <floating> zero_point[run.scale]
            if grad == NULL:
                quantize_dequantize_masked(
                    &x[start], &out[start], &passes[start], end - start, s, z, least - z, greatest - z, rounding, f
                )
            else:
                memset(of_scale, 0, sizeof(of_scale))
                memset(of_zero_point, 0, sizeof(of_zero_point))
                while start + ABREAST <= end:
                    add_gradients(
                        &grad[start], &x[start], &out[start], ABREAST, s, z, least - z, greatest - z, rounding, f,
                        of_scale, of_zero_point,
                    )
                    start += ABREAST
                add_gradients(
                    &grad[0] + start, &x[0] + start, &out[0] + start, end - start, s, z, least - z, greatest - z,
                    rounding, f, of_scale, of_zero_point,
                )
                for i in range(ABREAST):
                    sums[run.scale] += of_scale[i]
                    sums[layout.scales + run.scale] += of_zero_point[i]
        start = end
        next_run(&run, layout)


def fake_quantize_masked(
    const floating[::1] x,
    floating[::1] out,
    uint8_t[::1] passes,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Py_ssize_t inner,
    Py_ssize_t pattern,
    Py_ssize_t repeats,
    floating least,
    floating greatest,
    const int32_t[::1] format,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """out = the values of the codes of x; passes = 1 where x was not clipped, else 0.

    `least` and `greatest` are the ends of the integer codes, or of a floating-point format's values.  `format` has the
    parameters of a floating-point format, and is empty for integers.
    """
    cdef Layout layout = layout_of(inner, pattern, repeats, scale.shape[0])
    cdef Minifloat f
    if start >= stop:  # there may be no first element
        return
    with nogil:
        if format.shape[0] == 0:
            memset(&f, 0, sizeof(f))
            walk(
                <const floating*> NULL, x, out, &passes[0], scale, zero_point, layout, least, greatest, HALF_EVEN, f,
                NULL, start, stop,
            )
        else:
            f = minifloat(format)
            walk(
                <const floating*> NULL, x, out, &passes[0], scale, zero_point, layout, least, greatest, MINIFLOAT, f,
                NULL, start, stop,
            )


def fake_quantize_gradients(
    const floating[::1] grad,
    const floating[::1] x,
    floating[::1] grad_x,
    const floating[::1] scale,
    const int32_t[::1] zero_point,
    Py_ssize_t inner,
    Py_ssize_t pattern,
    Py_ssize_t repeats,
    floating least,
    floating greatest,
    const int32_t[::1] format,
    bint half_away,
    double[:, ::1] sums,
    Py_ssize_t start,
    Py_ssize_t stop,
):
    """grad_x = the gradient for x; the gradients for scales and zero points are added to `sums` (2, scales).

    The gradients for zero points are divided by -scale.  `least`, `greatest` and `format` are as for
    `fake_quantize_masked`.  `half_away` selects the rounding of integers.
    """
    cdef Layout layout = layout_of(inner, pattern, repeats, scale.shape[0])
    cdef Minifloat f
    if start >= stop:
        return
    with nogil:
        if format.shape[0]:
            f = minifloat(format)
            walk(
                &grad[0], x, grad_x, NULL, scale, zero_point, layout, least, greatest, MINIFLOAT, f, &sums[0, 0],
                start, stop,
            )
        else:
            memset(&f, 0, sizeof(f))
            if half_away:
                walk(
                    &grad[0], x, grad_x, NULL, scale, zero_point, layout, least, greatest, HALF_AWAY, f, &sums[0, 0],
                    start, stop,
                )
            else:
                walk(
                    &grad[0], x, grad_x, NULL, scale, zero_point, layout, least, greatest, HALF_EVEN, f, &sums[0, 0],
                    start, stop,
                )
