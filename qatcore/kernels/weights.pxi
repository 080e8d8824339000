# Weights to codes.  A row holds float32 weights that share a scale, or that keep their sum, and zeros up to a multiple
# of WEIGHT_LANES.  Zeros have no error, so they change nothing.

cdef enum:
    WEIGHT_LANES = 16  # also the steps below: a step must be a literal to stay a C loop; `_LANES` in weights.py agrees
    WEIGHT_CHUNK = 1024  # so many weights are added in float32
    MOST_FRACTIONS = 128

# How far the root of an error that is computed in float32 may be off.  A quotient is rounded twice, so it is off by at
# most 2**-23 of itself, and the root of the error by at most that part of the norm of the weights.  Each of the running
# sums has 64 terms, so its 68 roundings, with those of the halves, put the root off by 34 * 2**-24 of itself.
cdef double OFF_BY_QUOTIENTS = 1.2e-7
cdef double OFF_BY_SUMS = 2.5e-6


cdef inline float nearest_code32(float u, codes_of_format codes) noexcept nogil:
    """Return the value of the nearest code, in steps; of two equally near codes, any."""
    cdef float nearest
    if codes_of_format is IntegerCodes:
        nearest = rintf(u)
        if nearest < <float> codes.first:
            nearest = <float> codes.first
        if nearest > <float> codes.last:
            nearest = <float> codes.last
        return nearest
    else:
        return nearest_minifloat(u, codes.format)


cdef inline float lane_sum32(float* lanes) noexcept nogil:
    """Return the sum of WEIGHT_LANES numbers, and overwrite them: add the second half to the first, then again."""
    cdef Py_ssize_t j
    for j in range(8):
        lanes[j] += lanes[j + 8]
    for j in range(4):
        lanes[j] += lanes[j + 4]
    return (lanes[0] + lanes[2]) + (lanes[1] + lanes[3])


cdef double search_error(
    const float* x, Py_ssize_t n, double scale, double enough, codes_of_format codes
) noexcept nogil:
    """Return the squared error of codes times scale, in float32; if it is at least `enough`, any such number."""
    cdef float inverse = <float> (1.0 / scale)
    cdef float[WEIGHT_LANES] lanes
    cdef float u
    cdef double total = 0.0, unit = scale * scale
    cdef Py_ssize_t start, stop, i, j
    for start in range(0, n, 1024):
        stop = min(start + WEIGHT_CHUNK, n)
        for j in range(WEIGHT_LANES):
            lanes[j] = 0.0
        for i in range(start, stop, 16):
            for j in range(WEIGHT_LANES):
                u = x[i + j] * inverse
                u -= nearest_code32(u, codes)
                lanes[j] += u * u
        total += lane_sum32(lanes)
        if total * unit >= enough:
            break
    return total * unit


cdef double fitted_scale(const float* x, Py_ssize_t n, double scale, codes_of_format codes) noexcept nogil:
    """Return the scale with the least squared error for the codes q that weights x have with a scale.

    That is the sum of x * q, divided by the sum of q * q, here in float32.
    """
    cdef float inverse = <float> (1.0 / scale)
    cdef float[WEIGHT_LANES] products
    cdef float[WEIGHT_LANES] squares
    cdef float code
    cdef double of_products = 0.0, of_squares = 0.0
    cdef Py_ssize_t start, stop, i, j
    for start in range(0, n, 1024):
        stop = min(start + WEIGHT_CHUNK, n)
        for j in range(WEIGHT_LANES):
            products[j] = squares[j] = 0.0
        for i in range(start, stop, 16):
            for j in range(WEIGHT_LANES):
                code = nearest_code32(x[i + j] * inverse, codes)
                products[j] += x[i + j] * inverse * code
                squares[j] += code * code
        of_products += lane_sum32(products)
        of_squares += lane_sum32(squares)
    return of_products / of_squares / inverse if of_squares > 0.0 else scale


cdef double exact_error(const float* x, Py_ssize_t n, double scale, codes_of_format codes) noexcept nogil:
    """Return the squared error of codes times scale, in float64."""
    cdef double[LANES] lanes
    cdef double u
    cdef Py_ssize_t i, j
    for j in range(LANES):
        lanes[j] = 0.0
    for i in range(0, n, 8):
        for j in range(LANES):
            u = <double> x[i + j] / scale
            u -= nearest_code(u, codes)
            lanes[j] += u * u
    return lane_sum(lanes) * scale * scale


cdef double least_error(
    const float* x,
    Py_ssize_t n,
    double size,
    double largest,
    double greatest,
    const double* fractions,
    Py_ssize_t count,
    codes_of_format codes,
    Py_ssize_t* at,
) noexcept nogil:
    """Return the least squared error of some fractions of the scale that clips nothing, and store which one has it.

    There are at most MOST_FRACTIONS, and they ascend.  Of equally good ones, the last is taken.  A fraction that clips
    the largest weight by more than the whole error of another one is left out, and so are smaller ones.

    Errors are first computed in float32.  Those that may be the least are computed again in float64.  `size` is the
    norm of the weights.
    """
    cdef double[MOST_FRACTIONS] roots
    cdef double root, off, enough, error, least = double_of(INF64), bound = double_of(INF64)  # of the least root
    cdef Py_ssize_t i, first = 0
    for i in range(count - 1, -1, -1):
        if largest * (1.0 - fractions[i]) > bound:
            first = i + 1
            break
        off = size * OFF_BY_QUOTIENTS
        enough = (bound + off) * (1.0 + 2.0 * OFF_BY_SUMS)  # from here on, roundings cannot hide a root below the bound
        root = sqrt(search_error(x, n, fractions[i] * largest / greatest, enough * enough, codes))
        off += root * OFF_BY_SUMS
        roots[i] = root - off
        if root + off < bound:
            bound = root + off
    for i in range(count - 1, first - 1, -1):
        if roots[i] <= bound:
            error = exact_error(x, n, fractions[i] * largest / greatest, codes)
            if error < least:
                least = error
                at[0] = i
    return least


cdef double least_error_scale(
    const float* x,
    Py_ssize_t n,
    double largest,
    const double[::1] fractions,
    Py_ssize_t refinements,
    Py_ssize_t fits,
    double greatest,
    codes_of_format codes,
) noexcept nogil:
    """Return the scale with the least squared error for weights of this largest magnitude.

    The search tries fractions of the scale that clips nothing, and then, `refinements` times, finer ones between the
    neighbours of the best.  After that it fits the scale to its own codes, up to `fits` times, as long as that helps.
    """
    cdef double[MOST_FRACTIONS] tried
    cdef double[LANES] squares
    cdef double best, size, least, error, scale, low, high
    cdef Py_ssize_t i, j, refinement, at = 0, count = fractions.shape[0]
    for j in range(LANES):
        squares[j] = 0.0
    for i in range(0, n, 8):
        for j in range(LANES):
            squares[j] += <double> x[i + j] * x[i + j]
    size = sqrt(lane_sum(squares))
    for i in range(count):
        tried[i] = fractions[i]
    least = least_error(x, n, size, largest, greatest, tried, count, codes, &at)
    for refinement in range(refinements):
        best = tried[at]
        i = j = at
        while i > 0 and tried[i] == best:
            i -= 1
        while j < count - 1 and tried[j] == best:
            j += 1
        low = tried[i]
        high = tried[j]
        for i in range(32):
            tried[i] = low + i * ((high - low) / 32)
        tried[32] = high
        # The best so far takes its place among them.
        i = 33
        while i > 0 and tried[i - 1] > best:
            tried[i] = tried[i - 1]
            i -= 1
        tried[i] = best
        count = 34
        least = least_error(x, n, size, largest, greatest, tried, count, codes, &at)
    best = tried[at] * largest / greatest
    for i in range(fits):
        scale = fitted_scale(x, n, best, codes)
        error = exact_error(x, n, scale, codes)
        if not error < least:
            break
        least = error
        best = scale
    return best


def least_error_scales(
    const float[:, ::1] rows,
    const double[::1] fractions,
    Py_ssize_t refinements,
    Py_ssize_t fits,
    double greatest,
    bint is_float,
    double[::1] scale,
):
    """scale = the scale with the least squared error for each row; 0 for a row of zeros.

    `fractions` ascend to 1, and `greatest` is the greatest code.  Rows whose largest magnitude is below 2**-100 get the
    scale that clips nothing.
    """
    cdef Py_ssize_t row, i, n = rows.shape[1]
    cdef int32_t bits, found
    cdef double largest
    cdef const float* x
    cdef IntegerCodes integers
    cdef E4M3Codes floats
    integers.first = -greatest
    integers.last = greatest
    floats.format = e4m3()
    with nogil:
        for row in range(rows.shape[0]):
            x = &rows[row, 0]
            found = 0
            for i in range(n):
                bits = bits_of32(x[i]) & INT32_MAX
                found = most(found, bits)
            largest = float_of(found)
            if largest < 7.888609052210118e-31:  # 2**-100
                scale[row] = largest / greatest
            elif is_float:
                scale[row] = least_error_scale(x, n, largest, fractions, refinements, fits, greatest, floats)
            else:
                scale[row] = least_error_scale(x, n, largest, fractions, refinements, fits, greatest, integers)


cdef double threshold_of(const double* keys, Py_ssize_t n, Py_ssize_t wanted) noexcept nogil:
    """Return a number that `wanted` keys reach; if more keys reach it, some are equal to it.

    At least `wanted` keys are positive, and none is above 1/2.
    """
    cdef double low = 5e-324, high = 0.5000000000000001, middle
    cdef Py_ssize_t i, count
    while True:
        middle = low + 0.5 * (high - low)
        if not (middle > low and middle < high):
            return low
        count = 0
        for i in range(n):
            count += keys[i] >= middle
        if count == wanted:
            return middle
        if count > wanted:
            low = middle
        else:
            high = middle


def round_keeping_sums(
    const float[:, ::1] rows,
    const double[::1] scale,
    double greatest,
    int8_t[:, ::1] codes,
    double[:, ::1] powers,
    double[::1] keys,
):
    """codes = rows / scale, rounded so that the codes of a row have the sum of the quotients, to half a step.

    `powers` (rows, 2) become the sums of the squares of weights and of their errors.  `keys` has the length of a row.
    """
    cdef Py_ssize_t row, i, j, wanted, n = rows.shape[1]
    cdef double s, u, code, step, missing, threshold
    cdef double[LANES] signal
    cdef double[LANES] noise
    cdef double[LANES] rest
    cdef const float* x
    cdef int8_t* out
    cdef double* key = &keys[0]
    with nogil:
        for row in range(rows.shape[0]):
            s = scale[row]
            x = &rows[row, 0]
            out = &codes[row, 0]
            for j in range(LANES):
                rest[j] = 0.0
            for i in range(0, n, 8):
                for j in range(LANES):
                    u = clamp(<double> x[i + j] / s, -greatest, greatest)
                    code = rint(u)
                    out[i + j] = <int8_t> <int32_t> code
                    key[i + j] = u - code
                    rest[j] += u - code
            missing = rint(lane_sum(rest))
            if missing != 0.0:
                step = copysign(1.0, missing)
                wanted = <Py_ssize_t> fabs(missing)
                for i in range(n):
                    key[i] *= step
                threshold = threshold_of(key, n, wanted)
                for i in range(n):
                    wanted -= key[i] > threshold
                for i in range(n):
                    if key[i] > threshold:
                        out[i] += <int8_t> step
                    elif key[i] == threshold and wanted > 0:
                        out[i] += <int8_t> step
                        wanted -= 1
            for j in range(LANES):
                signal[j] = noise[j] = 0.0
            for i in range(0, n, 8):
                for j in range(LANES):
                    u = <double> x[i + j] - out[i + j] * s
                    signal[j] += <double> x[i + j] * x[i + j]
                    noise[j] += u * u
            powers[row, 0] = lane_sum(signal)
            powers[row, 1] = lane_sum(noise)
