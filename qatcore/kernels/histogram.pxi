# Ranges and histograms.  Floating-point values are read as the signed integers of their bits.  A value's order key is
# its bits, with all but the sign bit flipped for negatives, and compares like the value.  Integers have a vectorised
# minimum; floats have none, because of NaN.

cdef enum:
    BLOCK = 4096      # elements that stay in L1 while they are scanned and then counted
    FRACTION = 128    # bins in a binade: the top 7 mantissa bits
    TABLES = 4        # neighbours go to different tables, so that equal values do not wait for each other

cdef enum:  # what a scan finds, in order
    SCANNED_LOW_KEY     # order keys of the least and the greatest finite value, the type's extremes if there is none
    SCANNED_HIGH_KEY
    SCANNED_ZEROS
    SCANNED_NANS
    SCANNED_POSINFS
    SCANNED_NEGINFS
    SCANNED_LEAST       # as bits, a lower bound of the nonzero magnitudes
    SCANNED_GREATEST    # and the greatest finite magnitude
    SCANNED_LOWS        # how often the least and the greatest value occur
    SCANNED_HIGHS
    SCANNED             # how many these are


cdef inline int64_t occurrences(const word* x, Py_ssize_t n, word bits) noexcept nogil:
    cdef Py_ssize_t i
    cdef int64_t count = 0
    for i in range(n):
        count += x[i] == bits
    return count


cdef inline Py_ssize_t bin_of(word bits) noexcept nogil:
    """Return the bin of a value: sign, exponent and the top 7 mantissa bits."""
    if word is int32_t:
        return <Py_ssize_t> (<uint32_t> bits >> 16)
    else:
        return <Py_ssize_t> (<uint64_t> bits >> 45)


cdef inline word order_key(word bits) noexcept nogil:
    """Return the order key of bits, or the bits of an order key."""
    if word is int32_t:
        return bits ^ ((bits >> 31) & INT32_MAX)
    else:
        return bits ^ ((bits >> 63) & INT64_MAX)


cdef inline void scan_and_count(
    const word* x, Py_ssize_t n, int32_t* tables, Py_ssize_t table_size, int64_t* stats
) noexcept nogil:
    cdef word infinity, top, bits, magnitude, key
    cdef word low_key, high_key, low_magnitude, high_magnitude, block_low, block_high, block_least, block_most
    cdef Py_ssize_t start, stop, i
    cdef int32_t block_zeros
    cdef int64_t n_zero = 0, n_nan = 0, n_posinf = 0, n_neginf = 0, n_low = 0, n_high = 0
    cdef bint finite
    if word is int32_t:
        infinity = INF32
        top = INT32_MAX
    else:
        infinity = INF64
        top = INT64_MAX
    low_key = top
    high_key = -top - 1
    low_magnitude = top
    high_magnitude = 0
    for start in range(0, n, 4096):  # BLOCK: a step must be a literal to stay a C loop
        stop = min(start + BLOCK, n)
        block_low = top
        block_high = -top - 1
        block_least = top
        block_most = 0
        block_zeros = 0
        for i in range(start, stop):
            bits = x[i]
            magnitude = bits & top
            key = order_key(bits)
            block_low = least(block_low, key)
            block_high = most(block_high, key)
            block_least = least(block_least, (magnitude - 1) & top)  # a zero wraps to the top
            block_most = most(block_most, magnitude)
            block_zeros += magnitude == 0
        finite = block_most < infinity
        if not finite:  # some are not: scan again, one by one
            block_low = top
            block_high = -top - 1
            block_most = 0
            for i in range(start, stop):
                bits = x[i]
                magnitude = bits & top
                if magnitude < infinity:
                    key = order_key(bits)
                    block_low = least(block_low, key)
                    block_high = most(block_high, key)
                    block_most = most(block_most, magnitude)
                elif magnitude > infinity:
                    n_nan += 1
                elif bits > 0:
                    n_posinf += 1
                else:
                    n_neginf += 1
        n_zero += block_zeros
        # Count how often an extreme occurs only in blocks that reach it.
        if block_low < low_key:
            low_key = block_low
            n_low = 0
        if block_low == low_key:
            n_low += occurrences(&x[start], stop - start, order_key(low_key))
        if block_high > high_key:
            high_key = block_high
            n_high = 0
        if block_high == high_key:
            n_high += occurrences(&x[start], stop - start, order_key(high_key))
        low_magnitude = least(low_magnitude, block_least)
        high_magnitude = most(high_magnitude, block_most)
        if finite and block_low == block_high:  # all are equal: padding, masks, dead channels
            tables[bin_of(x[start])] += <int32_t> (stop - start)
            continue
        i = start
        while i + TABLES <= stop:
            tables[bin_of(x[i])] += 1
            tables[table_size + bin_of(x[i + 1])] += 1
            tables[2 * table_size + bin_of(x[i + 2])] += 1
            tables[3 * table_size + bin_of(x[i + 3])] += 1
            i += TABLES
        while i < stop:
            tables[bin_of(x[i])] += 1
            i += 1
    stats[SCANNED_LOW_KEY] = low_key
    stats[SCANNED_HIGH_KEY] = high_key
    stats[SCANNED_ZEROS] = n_zero
    stats[SCANNED_NANS] = n_nan
    stats[SCANNED_POSINFS] = n_posinf
    stats[SCANNED_NEGINFS] = n_neginf
    stats[SCANNED_LEAST] = low_magnitude
    stats[SCANNED_GREATEST] = high_magnitude
    stats[SCANNED_LOWS] = n_low
    stats[SCANNED_HIGHS] = n_high


def count_leading_bits(const word[::1] x, int32_t[:, ::1] tables, int64_t[::1] stats):
    """Count the values of x by sign, exponent and top 7 mantissa bits, and scan their range.

    `x` holds the bits of floats, at most 2**31 - 1 of them.  `tables` (4, 2**16 or 2**19) gains one count for every
    element, finite or not.  `stats` is set to these ten numbers:

    - The least and the greatest order key of the finite values; if there are none, the type's extremes.
    - How many zeros, NaNs, +inf and -inf there are.
    - The bits of a lower bound of the nonzero magnitudes, and of the greatest finite magnitude.
    - How often the least and the greatest key occur.
    """
    cdef const word* first = NULL
    if x.shape[0]:
        first = &x[0]
    with nogil:
        scan_and_count(first, x.shape[0], &tables[0, 0], tables.shape[1], &stats[0])


cdef inline int64_t drain_binade(
    int32_t* tables, Py_ssize_t table_size, Py_ssize_t binade, int64_t* counts
) noexcept nogil:
    """Move a binade's counts out of the tables, and add them to `counts`; return their sum."""
    cdef int64_t count, total = 0
    cdef Py_ssize_t j, t
    for j in range(FRACTION):
        count = 0
        for t in range(TABLES):
            count += tables[t * table_size + binade * FRACTION + j]
            tables[t * table_size + binade * FRACTION + j] = 0
        counts[j] += count
        total += count
    return total


def drain_leading_bits(
    int32_t[:, ::1] tables, int exponents, int first, int last, int32_t[::1] binades, int64_t[:, ::1] counts
):
    """Move the counts of the touched binades out of the tables and leave the tables all zero.

    `exponents` is the number of exponents of the type (256 or 2048); the finite nonzero values have exponents from
    `first` to `last`.  For each touched binade, `binades` gets its number, sign * exponents + exponent, and a row of
    `counts` has its 128 counts added.  Returns the number of touched binades, and the number of values with exponent 0.
    These are zeros and subnormals; their counts, and those of infinities and NaNs, are dropped.
    """
    cdef int sign, exponent
    cdef Py_ssize_t n = 0
    cdef int64_t lowest = 0
    cdef int64_t[FRACTION] unused
    with nogil:
        memset(unused, 0, sizeof(unused))
        for sign in range(2):
            for exponent in range(max(first, 1), last + 1):
                if drain_binade(&tables[0, 0], tables.shape[1], sign * exponents + exponent, &counts[n, 0]):
                    binades[n] = sign * exponents + exponent
                    n += 1
            lowest += drain_binade(&tables[0, 0], tables.shape[1], sign * exponents, unused)
            drain_binade(&tables[0, 0], tables.shape[1], (sign + 1) * exponents - 1, unused)
    return n, lowest


def scan_range(const double[::1] x):
    """Return the least and the greatest finite value of x, and how many values are finite.

    If none is finite, the two are +inf and -inf.  -0 counts as less than 0.
    """
    cdef int64_t low = INT64_MAX, high = -INT64_MAX - 1, block_low, block_high, bits, key
    cdef int64_t infinity = INF64
    cdef Py_ssize_t start, stop, i, finite = x.shape[0]
    with nogil:
        for start in range(0, x.shape[0], 4096):  # BLOCK
            stop = min(start + BLOCK, x.shape[0])
            block_low = INT64_MAX
            block_high = -INT64_MAX - 1
            for i in range(start, stop):
                key = order_key(bits_of(x[i]))
                block_low = least(block_low, key)
                block_high = most(block_high, key)
            if block_high >= infinity or block_low <= ~infinity:  # some are not finite: scan again, one by one
                block_low = INT64_MAX
                block_high = -INT64_MAX - 1
                for i in range(start, stop):
                    bits = bits_of(x[i])
                    if (bits & INT64_MAX) < infinity:
                        key = order_key(bits)
                        block_low = least(block_low, key)
                        block_high = most(block_high, key)
                    else:
                        finite -= 1
            low = least(low, block_low)
            high = most(high, block_high)
    if finite == 0:
        return double_of(INF64), -double_of(INF64), 0
    return double_of(order_key(low)), double_of(order_key(high)), finite


def rebuild_histogram(const double[::1] samples, double low, double high, double[::1] histogram):
    """histogram = the reference's: it counts samples in equal bins over [low, high], the last bin closed.

    An infinite range makes bin numbers NaN, which the reference casts to bin 0.
    """
    cdef double span, position
    cdef Py_ssize_t i, bins = histogram.shape[0]
    with nogil:
        span = high - low
        for i in range(bins):
            histogram[i] = 0.0
        for i in range(samples.shape[0]):
            position = clamp(nan_to_zero((samples[i] - low) / span * bins), 0.0, bins - 1)
            histogram[<Py_ssize_t> position] += 1.0
