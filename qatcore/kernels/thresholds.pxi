# What a candidate clipping range costs.  Every sum has an order of its own, so that the chosen range is
# the same on every machine: LANES running sums side by side, which a compiler may keep in one vector of
# any width, added up at the end.

cdef enum:
    LANES = 8  # also the steps below: a step must be a literal to stay a C loop


cdef inline double rounding_integral(double u) noexcept nogil:
    """The integral of (t - round(t))**2 from 0 to u."""
    cdef double nearest = floor(u + 0.5)
    cdef double f = u - nearest
    return nearest * (1.0 / 12) + f * f * f * (1.0 / 3)


cdef inline double integer_integral(double u, double low, double high) noexcept nogil:
    """The integral of (t - code(t))**2 from 0 to u for the integer codes low..high, unit scale.

    Beyond the last rounding interval, at distance d, the error is (1/2 + d)**2.
    """
    cdef double inside = clamp(u, low - 0.5, high + 0.5)
    cdef double d = u - inside
    return rounding_integral(inside) + d * (0.25 + 0.5 * fabs(d) + d * d * (1.0 / 3))


cdef inline double e4m3_integral(double u) noexcept nogil:
    """The same for E4M3: steps of 2**(e-3) in the binade of 2**e, of 2**-9 below 2**-6.

    Each whole step d contributes d**3 / 12; those below 2**e sum to
    (2/3) 2**-9 (6/7 2**-18 + 1/7 2**3e).
    """
    cdef int64_t bits = bits_of(u)
    cdef double magnitude = fabs(u)
    cdef double inside = clamp(magnitude, 0.0, 448.0)
    cdef int64_t exponent = bits_of(inside) & INF64
    cdef double base = double_of(exponent)
    cdef double step = base * 0.125
    cdef double below = (2.0 / 3 / 512) * ((6.0 / 7 / 262144) + base * base * base * (1.0 / 7))
    cdef double d = magnitude - inside
    if inside < 0.015625:
        base = 0.0
        step = 0.001953125
        below = 0.0
    cdef double total = below + step * step * step * rounding_integral((inside - base) / step)
    return copysign(total + d * d * d * (1.0 / 3), u)


cdef inline double lane_sum(double* lanes) noexcept nogil:
    return ((lanes[0] + lanes[4]) + (lanes[2] + lanes[6])) + ((lanes[1] + lanes[5]) + (lanes[3] + lanes[7]))


# A format's codes, as the two functions that differ from one format to the other know them.
cdef struct IntegerCodes:
    double first
    double last

cdef struct E4M3Codes:
    Minifloat format

ctypedef fused codes_of_format:
    IntegerCodes
    E4M3Codes


cdef inline double error_integral(double u, codes_of_format codes) noexcept nogil:
    if codes_of_format is IntegerCodes:
        return integer_integral(u, codes.first, codes.last)
    else:
        return e4m3_integral(u)


cdef inline double nearest_code(double u, codes_of_format codes) noexcept nogil:
    if codes_of_format is IntegerCodes:
        return clamp(round_half_away(u), codes.first, codes.last)
    else:
        return nearest_minifloat(u, codes.format)


cdef inline double squared_error(
    const double[::1] low,
    const double[::1] high,
    const double[::1] density,
    const int64_t[::1] interval_start,
    const double[::1] points,
    const double[::1] counts,
    const int64_t[::1] point_start,
    Py_ssize_t channel,
    double scale,
    codes_of_format codes,
) noexcept nogil:
    """Total squared error of quantising a channel's distribution with codes times scale.

    The distribution of channel c is mass of the given density on the intervals [low, high] from
    interval_start[c] up to interval_start[c + 1], and counted points likewise; the starts are multiples of LANES.
    """
    cdef double inverse = 1.0 / scale, u
    cdef double[LANES] lanes
    cdef Py_ssize_t i, j
    for j in range(LANES):
        lanes[j] = 0.0
    for i in range(interval_start[channel], interval_start[channel + 1], 8):
        for j in range(LANES):
            lanes[j] += density[i + j] * scale * (
                error_integral(high[i + j] * inverse, codes) - error_integral(low[i + j] * inverse, codes)
            )
    for i in range(point_start[channel], point_start[channel + 1], 8):
        for j in range(LANES):
            u = points[i + j] / scale
            u -= nearest_code(u, codes)
            lanes[j] += counts[i + j] * (u * u)
    return lane_sum(lanes) * scale * scale


def integer_squared_error(
    const double[::1] low,
    const double[::1] high,
    const double[::1] density,
    const int64_t[::1] interval_start,
    const double[::1] points,
    const double[::1] counts,
    const int64_t[::1] point_start,
    const double[:, ::1] scale,
    const double[:, ::1] first,
    const double[:, ::1] last,
    double[:, ::1] out,
    Py_ssize_t begin,
    Py_ssize_t stop,
):
    """out = the squared error of codes first..last times scale, some candidates for each channel.

    Of all candidates, channel after channel, those from `begin` up to `stop` are computed.
    """
    cdef Py_ssize_t index, channel, candidate
    cdef IntegerCodes codes
    with nogil:
        for index in range(begin, stop):
            channel = index // scale.shape[1]
            candidate = index % scale.shape[1]
            codes.first = first[channel, candidate]
            codes.last = last[channel, candidate]
            out[channel, candidate] = squared_error(
                low, high, density, interval_start, points, counts, point_start,
                channel, scale[channel, candidate], codes,
            )


def e4m3_squared_error(
    const double[::1] low,
    const double[::1] high,
    const double[::1] density,
    const int64_t[::1] interval_start,
    const double[::1] points,
    const double[::1] counts,
    const int64_t[::1] point_start,
    const double[:, ::1] scale,
    double[:, ::1] out,
    Py_ssize_t begin,
    Py_ssize_t stop,
):
    """The same for E4M3 codes."""
    cdef Py_ssize_t index, channel, candidate
    cdef E4M3Codes codes
    codes.format = e4m3()
    with nogil:
        for index in range(begin, stop):
            channel = index // scale.shape[1]
            candidate = index % scale.shape[1]
            out[channel, candidate] = squared_error(
                low, high, density, interval_start, points, counts, point_start,
                channel, scale[channel, candidate], codes,
            )


def moments(
    const double[::1] low,
    const double[::1] high,
    const double[::1] mass,
    const int64_t[::1] interval_start,
    const double[::1] points,
    const double[::1] counts,
    const int64_t[::1] point_start,
    const double[::1] centre,
    double[:, ::1] out,
):
    """Sums of (x - c) and of (x - c)**2 over the distribution of each channel, into out (2, channels)."""
    cdef Py_ssize_t channel, i, j
    cdef double c, a, b
    cdef double[LANES] first
    cdef double[LANES] second
    with nogil:
        for channel in range(centre.shape[0]):
            c = centre[channel]
            for j in range(LANES):
                first[j] = second[j] = 0.0
            for i in range(interval_start[channel], interval_start[channel + 1], 8):
                for j in range(LANES):
                    a = low[i + j] - c
                    b = high[i + j] - c
                    first[j] += mass[i + j] * (0.5 * (a + b))
                    second[j] += mass[i + j] * ((a * a + a * b + b * b) * (1.0 / 3))
            for i in range(point_start[channel], point_start[channel + 1], 8):
                for j in range(LANES):
                    a = points[i + j] - c
                    first[j] += counts[i + j] * a
                    second[j] += counts[i + j] * (a * a)
            out[0, channel] = lane_sum(first)
            out[1, channel] = lane_sum(second)


def natural_logs(const double[::1] x, double[::1] out):
    cdef Py_ssize_t i
    with nogil:
        for i in range(x.shape[0]):
            out[i] = natural_log(x[i])


def spread_counts(
    const double[::1] low, const double[::1] high, const double[::1] mass, double origin, double width, double[::1] bins
):
    """Add mass, uniform on each [low, high] (a point where they are equal), to bins of equal width."""
    cdef Py_ssize_t i, j, first, last, n = bins.shape[0]
    cdef double a, b, left, right
    with nogil:
        for i in range(low.shape[0]):
            a = (low[i] - origin) / width
            b = (high[i] - origin) / width
            first = <Py_ssize_t> clamp(a, 0.0, n - 1)
            last = <Py_ssize_t> clamp(b, 0.0, n - 1)
            if first == last or not b > a:
                bins[first] += mass[i]
                continue
            left = a
            for j in range(first, last + 1):
                right = b if j == last else j + 1.0
                bins[j] += mass[i] * ((right - left) / (b - a))
                left = right


def kl_prefix_sums(const double[::1] bins, const double[::1] cells, double[:, ::1] sums):
    """sums (4, bins + 1) = running sums of the mass m, of its being there, of m log m, and of the cells.

    `cells` are the non-empty bins of the original histogram, spread like their mass; one in a bin at most
    can vary by itself.
    """
    cdef Py_ssize_t i
    cdef double m
    with nogil:
        sums[0, 0] = sums[1, 0] = sums[2, 0] = sums[3, 0] = 0.0
        for i in range(bins.shape[0]):
            m = bins[i]
            sums[0, i + 1] = sums[0, i] + m
            sums[1, i + 1] = sums[1, i] + (m > 0.0)
            sums[2, i + 1] = sums[2, i] + (m * natural_log(m) if m > 0.0 else 0.0)
            sums[3, i + 1] = sums[3, i] + clamp(cells[i], 0.0, 1.0)


cdef inline double folded_edge(double kept, double clipped, double level) noexcept nogil:
    """What folding the clipped mass into an edge bin adds to sum p log(p / q)."""
    if not clipped > 0.0:
        return 0.0
    if not kept > 0.0:
        return double_of(INF64)  # mass where q has none
    return (
        (kept + clipped) * natural_log(kept + clipped) - kept * natural_log(kept) - clipped * natural_log(level)
    )


def kl_divergence_sweep(
    const double[::1] bins,
    const double[:, ::1] sums,
    const double[::1] edges,
    const int64_t[::1] first,
    const int64_t[::1] stop,
    double[::1] out,
):
    """Generalised KL divergence, in counts, of keeping bins first..stop-1, a candidate each.

    `edges` are the boundaries between the levels as fractions of the kept range, from 0 to 1.  The
    clipped mass is folded into the edge bins of P; Q is the kept mass of each level spread evenly over
    the level's non-empty bins.  Subtracted is the divergence that sampling alone causes, (m - 1) / 2 with m
    cells in a level.
    """
    cdef Py_ssize_t candidate, level, a, b, kept, levels = edges.shape[0] - 1, n = bins.shape[0]
    cdef double total, mass, filled, cells, q, q_first, q_last, below, above
    with nogil:
        for candidate in range(first.shape[0]):
            kept = stop[candidate] - first[candidate]
            total = sums[2, stop[candidate]] - sums[2, first[candidate]]
            q_first = q_last = 0.0
            b = first[candidate]
            for level in range(levels):
                a = b
                b = first[candidate] + <Py_ssize_t> (edges[level + 1] * kept)
                filled = sums[1, b] - sums[1, a]
                if filled > 0.0:
                    mass = sums[0, b] - sums[0, a]
                    q = mass / filled
                    total -= mass * natural_log(q)
                    cells = sums[3, b] - sums[3, a]
                    if cells > 1.0:
                        total -= 0.5 * (cells - 1.0)
                    if a == first[candidate]:
                        q_first = q
                    if b == stop[candidate] and a < b:
                        q_last = q
            below = sums[0, first[candidate]]
            above = sums[0, n] - sums[0, stop[candidate]]
            total += folded_edge(bins[first[candidate]], below, q_first)
            total += folded_edge(bins[stop[candidate] - 1], above, q_last)
            out[candidate] = total - (below + above)


# --- the reference's ---------------------------------------------------------------------------------

cdef double symmetric_divergence(const double[::1] p, const double[::1] q, Py_ssize_t n) noexcept nogil:
    cdef double forward = 0.0, backward = 0.0, a, b
    cdef Py_ssize_t i
    for i in range(n):
        a = p[i] + 1e-12
        b = q[i] + 1e-12
        forward += a * natural_log(a / b)
        backward += b * natural_log(b / a)
    return 0.5 * (forward + backward)


def kl_divergence_symmetric(const double[::1] p, const double[::1] q):
    """Half of KL(p, q) + KL(q, p), each value raised by 1e-12, over the shorter length."""
    cdef double result
    with nogil:
        result = symmetric_divergence(p, q, min(p.shape[0], q.shape[0]))
    return result


def kl_reference_sweep(const double[::1] p, int levels, double[::1] q, double[::1] mass, int64_t[::1] bin_count):
    """How many of the bins p the reference keeps.

    `q` (as long as p), `mass` and `bin_count` (as long as there are levels) are scratch space.
    """
    cdef Py_ssize_t kept, bin, level, start, end, n = p.shape[0], best_kept = n
    cdef double per_level, best = double_of(INF64), divergence
    with nogil:
        for kept in range(max(n // 2, 1), n + 1):
            per_level = <double> kept / levels
            for level in range(levels):
                mass[level] = 0.0
                bin_count[level] = 0
            for bin in range(kept):
                level = min(<Py_ssize_t> (bin / per_level), levels - 1)
                mass[level] += p[bin]
                bin_count[level] += 1
                q[bin] = 0.0
            for level in range(levels):
                if bin_count[level] == 0:
                    continue
                start = <Py_ssize_t> (level * per_level)
                end = min(<Py_ssize_t> -floor(-((level + 1) * per_level)), kept)
                for bin in range(start, end):
                    q[bin] = mass[level] / bin_count[level]
            divergence = symmetric_divergence(p, q, kept)
            if divergence < best:
                best = divergence
                best_kept = kept
    return best_kept
