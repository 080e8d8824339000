# Histograms of many channels, to which values are added in place.  `accumulator.Arrays` holds these arrays:
#
#   stats (channels, 13)   A row of statistics for each channel, with the columns below.
#   values                 Finite nonzero values.  Each channel has a stretch of its own.  It holds all values if there
#                          are few, and otherwise only those that are not counted yet.
#   counts                 Rows of counts, one for each binade of a channel with more values.
#   owners                 Where each row of counts belongs: channel * 4096 + binade.
#   owned (channels, n)    The numbers of each channel's rows.  While a kernel works on a channel, a table has them by
#                          binade.
#   used                   How many rows and how many places for values are taken, and how often all this was changed.
#
# The rows of a channel lie far from the rows of the channel before.  If a thousand channels got a few values each,
# counting every value would wait for memory.  So values wait to be counted until a channel has many of them.  Which
# values wait is not part of a histogram; code that makes a histogram counts them first, in a copy.
#
# Each read or change of shared data is one call that keeps the GIL.  So no thread, signal or fork ever finds the data
# half changed.

cdef enum:
    LOW_KEY = 0       # order keys of the least and the greatest finite value
    HIGH_KEY = 1
    N_LOW = 2         # how often these two occur
    N_HIGH = 3
    N_ZERO = 4
    N_NAN = 5
    N_POSINF = 6
    N_NEGINF = 7
    N_NONZERO = 8     # finite values other than zero
    N_ROWS = 9        # rows of counts
    N_HELD = 10       # values in the channel's stretch
    FIRST_VALUE = 11  # where the stretch begins
    ROOM = 12         # how many values it can hold

    ROWS = 0
    PLACES = 1
    CHANGES = 2

    BINADES = 4096    # by sign and exponent of float64
    AHEAD = 8         # gathering prefetches so many rows ahead: the next row may be pages away
    TILE = 16         # channels gathered together: float32 values of one cache line
    TILES = 4         # cache lines gathered together from a row, to share the cost of finding the row's page


ctypedef fused element:
    float
    double
    int32_t
    int64_t

ctypedef fused gathered:
    double
    int32_t
    int64_t


cdef inline void gather(
    const element[:, :, :] x, Py_ssize_t channel, Py_ssize_t width, gathered[:, ::1] values
) noexcept nogil:
    """Copy `width` channels of x (outer, channels, inner), from `channel` on, to the front of their rows of values."""
    cdef Py_ssize_t o, i, t, u, k = 0, inner = x.shape[2], step = x.strides[1], row = values.shape[1]
    cdef Py_ssize_t tiled = width - width % TILE, line = max(step, <Py_ssize_t> 64)
    cdef const char* source
    cdef gathered* target
    # Do neighbours in memory belong to different channels?
    if inner < TILE and max(step, -step) < max(x.strides[0], -x.strides[0]):
        for o in range(x.shape[0]):
            if o + AHEAD < x.shape[0]:
                source = <const char*> &x[o + AHEAD, channel, 0]
                t = 0
                while t < width * step + 63:  # a row may begin anywhere in a cache line
                    prefetch(source + t)
                    t += line
            for i in range(inner):
                source = <const char*> &x[o, channel, i]
                target = &values[channel, k]
                for t in range(0, tiled, 16):  # TILE: a step must be a literal to stay a C loop
                    for u in range(TILE):  # a constant, so that the loop is unrolled
                        target[(t + u) * row] = <gathered> (<const element*> (source + (t + u) * step))[0]
                for t in range(tiled, width):
                    target[t * row] = <gathered> (<const element*> (source + t * step))[0]
                k += 1
    else:
        for t in range(width):
            k = 0
            for o in range(x.shape[0]):
                for i in range(inner):
                    values[channel + t, k + i] = <gathered> x[o, channel + t, i]
                k += inner


cdef inline int64_t occurrences_of(const double* x, Py_ssize_t n, int64_t bits) noexcept nogil:
    cdef Py_ssize_t i
    cdef int64_t count = 0
    for i in range(n):
        count += bits_of(x[i]) == bits
    return count


cdef inline void scan_values(double* x, Py_ssize_t n, int64_t* stats) noexcept nogil:
    """Fill the statistics of n values, and move the finite nonzero values to the front of x, in order."""
    cdef int64_t bits, magnitude, key
    cdef int64_t low = INT64_MAX, high = -INT64_MAX - 1, greatest = 0, zeros = 0
    cdef Py_ssize_t i, kept = n
    for i in range(n):
        bits = bits_of(x[i])
        magnitude = bits & INT64_MAX
        key = order_key(bits)
        low = least(low, key)
        high = most(high, key)
        greatest = most(greatest, magnitude)
        zeros += magnitude == 0
    stats[N_NAN] = stats[N_POSINF] = stats[N_NEGINF] = 0
    if greatest >= INF64:  # some are not finite: scan again, one by one
        low = INT64_MAX
        high = -INT64_MAX - 1
        for i in range(n):
            bits = bits_of(x[i])
            magnitude = bits & INT64_MAX
            if magnitude < INF64:
                low = least(low, order_key(bits))
                high = most(high, order_key(bits))
            elif magnitude > INF64:
                stats[N_NAN] += 1
            elif bits > 0:
                stats[N_POSINF] += 1
            else:
                stats[N_NEGINF] += 1
    if zeros or greatest >= INF64:
        kept = 0
        for i in range(n):
            magnitude = bits_of(x[i]) & INT64_MAX
            x[kept] = x[i]
            kept += (magnitude != 0) & (magnitude < INF64)
    # -0 counts as 0, as a least and as a greatest value.
    low += low == -1
    high += high == -1
    stats[LOW_KEY] = low
    stats[HIGH_KEY] = high
    stats[N_ZERO] = zeros
    stats[N_NONZERO] = kept
    stats[N_LOW] = zeros if low == 0 else occurrences_of(x, kept, order_key(low))
    stats[N_HIGH] = zeros if high == 0 else occurrences_of(x, kept, order_key(high))
    stats[N_ROWS] = 0
    stats[N_HELD] = kept


def gather_values(const floating[:, :, :] x, double[:, ::1] values, int64_t[:, ::1] stats, Py_ssize_t first):
    """Write the finite nonzero values of each channel of x (outer, channels, inner) to the front of its row.

    `stats` (channels, 13) is filled.  Rows of `values` have at least outer * inner elements.  `values` is part of a
    larger array, in which its first row has the number `first`.
    """
    cdef Py_ssize_t channel, t, width, n = x.shape[0] * x.shape[2]
    with nogil:
        for channel in range(0, x.shape[1], 64):  # TILES of them
            width = min(<Py_ssize_t> (TILES * TILE), x.shape[1] - channel)
            gather(x, channel, width, values)
            for t in range(channel, channel + width):
                scan_values(&values[t, 0], n, &stats[t, 0])
                stats[t, FIRST_VALUE] = (first + t) * values.shape[1]
                stats[t, ROOM] = stats[t, N_HELD]


cdef inline int64_t binade_of(double value) noexcept nogil:
    return <int64_t> (<uint64_t> bits_of(value) >> 52)


cdef inline void fill_table(
    const int32_t[:, ::1] owned, const int64_t[::1] owners, Py_ssize_t channel, Py_ssize_t n, int32_t* table
) noexcept nogil:
    """Enter a channel's n rows into the table; all other entries are -1."""
    cdef Py_ssize_t i
    for i in range(n):
        table[owners[owned[channel, i]] & (BINADES - 1)] = owned[channel, i]


cdef inline void clear_table(
    const int32_t[:, ::1] owned, const int64_t[::1] owners, Py_ssize_t channel, Py_ssize_t n, int32_t* table
) noexcept nogil:
    cdef Py_ssize_t i
    for i in range(n):
        table[owners[owned[channel, i]] & (BINADES - 1)] = -1


cdef inline int32_t row_of(
    int64_t binade,
    Py_ssize_t channel,
    int64_t* stats,
    int64_t[::1] owners,
    int32_t[:, ::1] owned,
    int64_t[:, ::1] counts,
    int64_t* used,
    int32_t* table,
) noexcept nogil:
    """Return the row of a channel's binade; if there is none, add a row of zeros."""
    cdef int32_t row = table[binade]
    if row < 0:
        row = <int32_t> used[0]
        used[0] += 1
        owners[row] = channel * BINADES + binade
        memset(&counts[row, 0], 0, FRACTION * sizeof(int64_t))
        owned[channel, stats[N_ROWS]] = row
        stats[N_ROWS] += 1
        table[binade] = row
    return row


cdef void count_values(
    const double* x,
    Py_ssize_t n,
    Py_ssize_t channel,
    int64_t* stats,
    int64_t[::1] owners,
    int32_t[:, ::1] owned,
    int64_t[:, ::1] counts,
    int64_t* used,
    int32_t* table,
    int32_t* found,
) noexcept nogil:
    """Count values in `found`, which has all bins, and add these counts to a channel's rows.

    `found` is all 0 before and afterwards.
    """
    cdef Py_ssize_t i, j
    cdef uint64_t bin
    cdef int32_t missing = 0, row
    cdef int32_t* own
    for i in range(n):
        bin = <uint64_t> bits_of(x[i]) >> 45
        missing = least(missing, table[bin >> 7])
        found[bin] += 1
    if missing < 0:
        for i in range(n):
            row_of(binade_of(x[i]), channel, stats, owners, owned, counts, used, table)
    # Going row by row lets the processor read ahead.  Going value by value would wait for every row.
    for i in range(stats[N_ROWS]):
        row = owned[channel, i]
        own = &found[(owners[row] & (BINADES - 1)) * FRACTION]
        for j in range(FRACTION):
            counts[row, j] += own[j]
        memset(own, 0, FRACTION * sizeof(int32_t))


cdef inline Py_ssize_t mark(int64_t binade, int32_t* table, int32_t* marked, Py_ssize_t n) noexcept nogil:
    """If a binade is not in the table yet, enter it there and in the list; return the length of the list."""
    if table[binade] == -1:
        table[binade] = -2
        marked[n] = <int32_t> binade
        n += 1
    return n


cdef inline int64_t room_for(int64_t n, int64_t limit) noexcept nogil:
    """Return how many values to make room for in a stretch that must hold n."""
    return min(4 * n, limit)


cdef inline void add_extreme(
    int64_t* own, int64_t other, int64_t* own_n, int64_t other_n, bint is_better
) noexcept nogil:
    if other == own[0]:
        own_n[0] += other_n
    elif is_better:
        own[0] = other
        own_n[0] = other_n


cdef bint holds_too_many(
    const int64_t[:, ::1] stats, const int64_t[:, ::1] others, Py_ssize_t first, int64_t largest
) noexcept nogil:
    """Return whether a sum of counts, for one channel or for all, would be more than `largest`."""
    cdef Py_ssize_t channel, i
    cdef int64_t total = 0, added
    for channel in range(stats.shape[0]):
        for i in range(N_LOW, N_NONZERO + 1):
            added = others[channel - first, i] if 0 <= channel - first < others.shape[0] else 0
            if stats[channel, i] > largest - added:
                return True
            if i >= N_ZERO:
                total += stats[channel, i] + added
                if total > largest:
                    return True
    return False


cdef inline int64_t most_held(
    const int64_t* mine, const int64_t* theirs, int64_t limit, int64_t pending
) noexcept nogil:
    """Return how many values a channel may hold once theirs are added to mine."""
    if mine[N_NONZERO] + theirs[N_NONZERO] <= limit:
        return limit
    return pending


def add_channels(
    object target,
    object source,
    Py_ssize_t first,
    int64_t limit,
    int64_t pending,
    int64_t largest,
    int32_t[:, ::1] tables,
    int32_t[::1] found,
):
    """Add the values and counts of source's channels to target's channels, from `first` on; add all or nothing.

    A channel of at most `limit` values has no counts.  In any other channel, at most `pending` values wait to be
    counted.  The first row of `tables` (2, 4096) is all -1 and `found` (2**19) is all 0, before and afterwards; the
    second row of `tables` is working memory.

    Returns None if all was added, and -1 if a count would be more than `largest`.  Otherwise it returns three numbers
    that the target must have room for: rows, rows of a channel, and places for values.  If an accumulator has got other
    arrays meanwhile, these are only what is used, and the caller tries again.
    """
    cdef Py_ssize_t channel, i, j, n, rows, width = 0
    cdef int64_t own, others, start, places, may_hold, binade
    cdef int32_t row, into
    cdef int32_t* table = &tables[0, 0]
    cdef int32_t* marked = &tables[1, 0]
    cdef int64_t* mine
    cdef const int64_t* theirs
    cdef const double* x
    own_arrays, other_arrays = target.arrays, source.arrays
    cdef int64_t[:, ::1] stats = own_arrays.stats
    cdef double[::1] values = own_arrays.values
    cdef int64_t[::1] owners = own_arrays.owners
    cdef int32_t[:, ::1] owned = own_arrays.owned
    cdef int64_t[:, ::1] counts = own_arrays.counts
    cdef int64_t[::1] used = own_arrays.used
    cdef const int64_t[:, ::1] other_stats = other_arrays.stats
    cdef const double[::1] other_values = other_arrays.values
    cdef const int64_t[::1] other_owners = other_arrays.owners
    cdef const int32_t[:, ::1] other_owned = other_arrays.owned
    cdef const int64_t[:, ::1] other_counts = other_arrays.counts
    if target.arrays is not own_arrays or source.arrays is not other_arrays:
        # Making a memoryview may start Python 3.11's garbage collector, which may run any code.
        return used[ROWS], 0, used[PLACES]
    if holds_too_many(stats, other_stats, first, largest):
        return -1

    rows = used[ROWS]
    places = used[PLACES]
    for channel in range(first, first + other_stats.shape[0]):
        mine = &stats[channel, 0]
        theirs = &other_stats[channel - first, 0]
        own = mine[N_HELD]
        others = theirs[N_HELD]
        may_hold = most_held(mine, theirs, limit, pending)
        if others <= may_hold:
            n = own + others if own + others <= may_hold else others
            if n > mine[ROOM]:
                places += room_for(n, may_hold)
        if own + others <= may_hold and theirs[N_ROWS] == 0:
            continue
        n = 0
        fill_table(owned, owners, channel, mine[N_ROWS], table)
        if own + others > may_hold:
            for i in range(mine[FIRST_VALUE], mine[FIRST_VALUE] + own):
                n = mark(binade_of(values[i]), table, marked, n)
        if others > may_hold:
            for i in range(theirs[FIRST_VALUE], theirs[FIRST_VALUE] + others):
                n = mark(binade_of(other_values[i]), table, marked, n)
        for i in range(theirs[N_ROWS]):
            n = mark(other_owners[other_owned[channel - first, i]] & (BINADES - 1), table, marked, n)
        for i in range(n):
            table[marked[i]] = -1
        clear_table(owned, owners, channel, mine[N_ROWS], table)
        rows += n
        width = max(width, <Py_ssize_t> mine[N_ROWS] + n)
    if rows > owners.shape[0] or width > owned.shape[1] or places > values.shape[0]:
        return rows, width, places

    for channel in range(first, first + other_stats.shape[0]):
        mine = &stats[channel, 0]
        theirs = &other_stats[channel - first, 0]
        own = mine[N_HELD]
        others = theirs[N_HELD]
        may_hold = most_held(mine, theirs, limit, pending)
        if own + others > may_hold or theirs[N_ROWS]:
            fill_table(owned, owners, channel, mine[N_ROWS], table)
            if own and own + others > may_hold:
                x = &values[mine[FIRST_VALUE]]
                count_values(x, own, channel, mine, owners, owned, counts, &used[ROWS], table, &found[0])
                own = 0
            if others > may_hold:
                x = &other_values[theirs[FIRST_VALUE]]
                count_values(x, others, channel, mine, owners, owned, counts, &used[ROWS], table, &found[0])
                others = 0
            for i in range(theirs[N_ROWS]):
                row = other_owned[channel - first, i]
                binade = other_owners[row] & (BINADES - 1)
                into = row_of(binade, channel, mine, owners, owned, counts, &used[ROWS], table)
                for j in range(FRACTION):
                    counts[into, j] += other_counts[row, j]
            clear_table(owned, owners, channel, mine[N_ROWS], table)
        if own + others > mine[ROOM]:
            start = used[PLACES]
            if own:
                memcpy(&values[start], &values[mine[FIRST_VALUE]], own * sizeof(double))
            mine[FIRST_VALUE] = start
            mine[ROOM] = room_for(own + others, may_hold)
            used[PLACES] += mine[ROOM]
        if others:
            memcpy(&values[mine[FIRST_VALUE] + own], &other_values[theirs[FIRST_VALUE]], others * sizeof(double))
        mine[N_HELD] = own + others
        mine[ROOM] = min(mine[ROOM], may_hold)
        add_extreme(
            &mine[LOW_KEY], theirs[LOW_KEY], &mine[N_LOW], theirs[N_LOW], theirs[LOW_KEY] < mine[LOW_KEY]
        )
        add_extreme(
            &mine[HIGH_KEY], theirs[HIGH_KEY], &mine[N_HIGH], theirs[N_HIGH], theirs[HIGH_KEY] > mine[HIGH_KEY]
        )
        for i in range(N_ZERO, N_NONZERO + 1):
            mine[i] += theirs[i]
    used[CHANGES] += 1
    return None


def measure_channels(object accumulator, bint with_room):
    """Return how many rows there are, the most rows of a channel, and how many places for values.

    Without `with_room`, only places that hold a value count.
    """
    arrays = accumulator.arrays
    cdef int64_t[:, ::1] stats = arrays.stats
    cdef int64_t[::1] used = arrays.used
    cdef Py_ssize_t channel
    cdef int64_t width = 0, places = 0
    for channel in range(stats.shape[0]):
        width = max(width, stats[channel, N_ROWS])
        places += stats[channel, ROOM] if with_room else stats[channel, N_HELD]
    return used[ROWS], width, places


def copy_channels(object accumulator, object own_arrays, object arrays, bint replace):
    """Copy the state of an accumulator from its own arrays into `arrays`, without places that no stretch uses.

    With `replace`, `arrays` become the accumulator's arrays, and stretches keep their room.  Without it, stretches have
    room only for the values that they hold.  `arrays` and `own_arrays` may share `values`, or `counts` and `owners`;
    what they share is not copied.  Returns False if `arrays` are too small, or if the accumulator has got other arrays
    meanwhile.  Then `arrays` are of no use.
    """
    cdef const int64_t[:, ::1] stats = own_arrays.stats
    cdef const double[::1] values = own_arrays.values
    cdef const int64_t[::1] owners = own_arrays.owners
    cdef const int32_t[:, ::1] owned = own_arrays.owned
    cdef const int64_t[:, ::1] counts = own_arrays.counts
    cdef const int64_t[::1] used = own_arrays.used
    cdef int64_t[:, ::1] new_stats = arrays.stats
    cdef double[::1] new_values = arrays.values
    cdef int64_t[::1] new_owners = arrays.owners
    cdef int32_t[:, ::1] new_owned = arrays.owned
    cdef int64_t[:, ::1] new_counts = arrays.counts
    cdef int64_t[::1] new_used = arrays.used
    cdef Py_ssize_t channel, i, n_rows = used[ROWS]
    cdef int64_t n, room, place = 0
    cdef bint has_values = arrays.values is own_arrays.values
    if accumulator.arrays is not own_arrays or n_rows > new_owners.shape[0]:
        return False
    for channel in range(stats.shape[0]):
        n = stats[channel, N_HELD]
        room = stats[channel, ROOM] if replace else n
        if has_values:
            place = stats[channel, FIRST_VALUE]
        elif place + room > new_values.shape[0]:
            return False
        elif n:
            memcpy(&new_values[place], &values[stats[channel, FIRST_VALUE]], n * sizeof(double))
        if stats[channel, N_ROWS] > new_owned.shape[1]:
            return False
        for i in range(N_HELD + 1):
            new_stats[channel, i] = stats[channel, i]
        new_stats[channel, FIRST_VALUE] = place
        new_stats[channel, ROOM] = room
        place += room
        for i in range(stats[channel, N_ROWS]):
            new_owned[channel, i] = owned[channel, i]
    if n_rows and arrays.counts is not own_arrays.counts:
        memcpy(&new_owners[0], &owners[0], n_rows * sizeof(int64_t))
        memcpy(&new_counts[0, 0], &counts[0, 0], n_rows * FRACTION * sizeof(int64_t))
    new_used[ROWS] = n_rows
    new_used[PLACES] = used[PLACES] if has_values else place
    new_used[CHANGES] = used[CHANGES]
    if replace:
        accumulator.arrays = arrays
    return True


cdef inline void add_run(int64_t* stats, const int64_t* run, int64_t n, double low, double high) noexcept nogil:
    """Add to `stats` what `scan_and_count` has found in n values; the finite ones are from `low` to `high`."""
    cdef int64_t low_key = order_key(bits_of(low + 0.0))  # -0 becomes 0
    cdef int64_t high_key = order_key(bits_of(high + 0.0))
    cdef int64_t infinite = run[SCANNED_NANS] + run[SCANNED_POSINFS] + run[SCANNED_NEGINFS]
    cdef int64_t lows, highs
    if n > infinite:
        lows = run[SCANNED_ZEROS] if low == 0.0 else run[SCANNED_LOWS]
        highs = run[SCANNED_ZEROS] if high == 0.0 else run[SCANNED_HIGHS]
        add_extreme(&stats[LOW_KEY], low_key, &stats[N_LOW], lows, low_key < stats[LOW_KEY])
        add_extreme(&stats[HIGH_KEY], high_key, &stats[N_HIGH], highs, high_key > stats[HIGH_KEY])
    stats[N_ZERO] += run[SCANNED_ZEROS]
    stats[N_NAN] += run[SCANNED_NANS]
    stats[N_POSINF] += run[SCANNED_POSINFS]
    stats[N_NEGINF] += run[SCANNED_NEGINFS]
    stats[N_NONZERO] += n - run[SCANNED_ZEROS] - infinite


def tabulate_channels(
    const word[:, :, :] x,
    word[:, ::1] buffer,
    int32_t[:, ::1] tables,
    int64_t[:, ::1] stats,
    int64_t[::1] owners,
    int32_t[:, ::1] owned,
    int64_t[:, ::1] counts,
    int64_t[::1] used,
    uint8_t[::1] incomplete,
    int32_t[:, ::1] row_tables,
):
    """Count a run of each channel with tables, and add the counts; x (outer, channels, inner) has the bits of floats.

    `tables` are those of `count_leading_bits`, all 0, and the first row of `row_tables` is all -1, before and
    afterwards.  For each channel there must be room for as many rows as the type has binades.  A row of `buffer` must
    have room for a channel's run, which is copied there unless it is in one piece.  Subnormals are not counted:
    `incomplete` is set to 1 for a channel that has some.
    """
    cdef Py_ssize_t channel, n = x.shape[0] * x.shape[2], table_size = tables.shape[1], exponents
    cdef int64_t sign, exponent, first, last, binade, lowest
    cdef int64_t[SCANNED] run
    cdef int64_t[FRACTION] found
    cdef int32_t row
    cdef Py_ssize_t i
    cdef int32_t* table = &row_tables[0, 0]
    cdef double low, high
    cdef bint in_place = x.shape[0] == 1 and x.strides[2] == sizeof(word)
    with nogil:
        if not in_place:
            gather(x, 0, x.shape[1], buffer)
        for channel in range(x.shape[1]):
            scan_and_count(
                &x[0, channel, 0] if in_place else &buffer[channel, 0], n, &tables[0, 0], table_size, run
            )
            if word is int32_t:
                exponents = 256
                first = run[SCANNED_LEAST] >> 23
                last = run[SCANNED_GREATEST] >> 23
                low = float_of(order_key(<int32_t> run[SCANNED_LOW_KEY]))
                high = float_of(order_key(<int32_t> run[SCANNED_HIGH_KEY]))
            else:
                exponents = 2048
                first = run[SCANNED_LEAST] >> 52
                last = run[SCANNED_GREATEST] >> 52
                low = double_of(order_key(run[SCANNED_LOW_KEY]))
                high = double_of(order_key(run[SCANNED_HIGH_KEY]))
            add_run(&stats[channel, 0], run, n, low, high)
            fill_table(owned, owners, channel, stats[channel, N_ROWS], table)
            lowest = 0
            for sign in range(2):
                for exponent in range(max(first, <int64_t> 1), last + 1):
                    memset(found, 0, sizeof(found))
                    if drain_binade(&tables[0, 0], table_size, sign * exponents + exponent, found):
                        binade = sign * 2048 + exponent
                        if word is int32_t:
                            binade += 1023 - 127
                        row = row_of(binade, channel, &stats[channel, 0], owners, owned, counts, &used[ROWS], table)
                        for i in range(FRACTION):
                            counts[row, i] += found[i]
                lowest += drain_binade(&tables[0, 0], table_size, sign * exponents, found)
                drain_binade(&tables[0, 0], table_size, (sign + 1) * exponents - 1, found)
            clear_table(owned, owners, channel, stats[channel, N_ROWS], table)
            if lowest > run[SCANNED_ZEROS]:
                incomplete[channel] = 1
