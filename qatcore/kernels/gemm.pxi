# Exact int8 x int8 products: the loops around a micro-kernel.
#
# Every module that has a micro-kernel includes this file.  Before that, the module defines:
#
#   code_t                        The type in which the micro-kernel takes the left operand's codes.
#   TILE_ROWS, TILE_COLUMNS       The largest block of results that it computes at once.
#   DEPTH_SEGMENTS                How many segments of the depth it works through while its operands stay in cache.
#   BLOCK_BYTES                   How many bytes of the left operand's codes stay in L2.
#   COLUMN_BYTES                  How many bytes of the right operand stay there with them.
#   row_offset()                  Where it wants the codes of a row.
#   SEGMENT_STRIDE                How far apart it wants a row's segments of 64 codes.
#   multiply_and_finish()         Multiplies a tile, and turns its sums, or those of a tile that waits, into results.
#   begin_tiles(), end_tiles()    Set up and release the matrix unit, where there is one.
#
# The right operand is packed in the same layout for all micro-kernels.  It has panels of 16 columns, and a panel has
# quads of four rows.  A quad holds the four bytes of each of the 16 columns, offset to unsigned (code + 128).  So a
# quad is a cache line, and a segment of 16 quads (64 rows) is a tile of the matrix unit.  Every instruction that
# multiplies unsigned by signed bytes takes this layout as it is.  Rows are padded with code 0 to whole segments.
#
# sum a b = sum a (b + 128) - 128 sum a.  Sums in int32 are exact for 65,536 products of at most 128 * 255.

from libc.math cimport fabs, fabsf, rintf
from libc.stdlib cimport free, malloc
from libc.string cimport memset

cdef enum:
    SEGMENT = 64            # codes
    PANEL = 16              # columns
    TILE_BYTES = 1024       # a segment of a panel
    EXACT_SEGMENTS = 1024   # for so many, int32 sums stay exact
    ROW_QUANTUM = 96        # a multiple of every TILE_ROWS

ctypedef fused source:
    int8_t
    float
    double

cdef struct Encoding:  # of floating-point rows
    double scale
    double zero_point
    double low
    double high
    float reciprocal  # of the scale
    bint approximable


# A division in float64 defines the codes.  For float32 rows, a multiplication in float32 gives most codes as well, in
# a quarter of the time.  Let the zero point be at most 256 in magnitude, and let the value not saturate.  Then the
# error of v = x * (1 / scale) + zero point is at most 384 * 2**-23 + 2**-17 < 2**-14.  So a v that is farther than
# 2**-12 from every tie rounds to the same code.  If a segment has a v that is nearer, or is not finite, the whole
# segment is computed again by the definition.

cdef inline void allow_approximation(Encoding* encoding) noexcept nogil:
    encoding.reciprocal = 0.0
    encoding.approximable = (
        fabs(encoding.zero_point) <= 256.0
        and 2.0**-100 < encoding.scale < 2.0**100  # the reciprocal is then a normal float32
    )
    if encoding.approximable:
        encoding.reciprocal = <float> (1.0 / encoding.scale)


cdef inline int32_t approximate_segment(const float* row, code_t* codes, Encoding encoding) noexcept nogil:
    """Write a whole segment of codes; return how many of them are in doubt."""
    cdef int32_t doubtful = 0
    cdef float offset = <float> encoding.zero_point, low = <float> encoding.low, high = <float> encoding.high
    cdef float v, nearest
    cdef Py_ssize_t j
    for j in range(SEGMENT):
        v = row[j] * encoding.reciprocal + offset
        nearest = rintf(v)
        doubtful += not fabsf(v - nearest) < <float> (0.5 - 2.0**-12)
        if not nearest > low:  # also true for NaN
            nearest = low
        if nearest > high:
            nearest = high
        codes[j] = <code_t> <int32_t> nearest
    return doubtful


cdef inline inlined encode_segment(
    const source* row, Py_ssize_t width, code_t* codes, Encoding encoding
) noexcept nogil:
    cdef Py_ssize_t j
    for j in range(width):
        if source is int8_t:
            codes[j] = row[j]
        else:
            codes[j] = <code_t> <int32_t> integer_code(
                row[j], encoding.scale, encoding.zero_point, encoding.low, encoding.high
            )
    for j in range(width, SEGMENT):
        codes[j] = 0


cdef inline int32_t encode_row(
    const source* row, Py_ssize_t depth, code_t* codes, Encoding encoding
) noexcept nogil:
    """Write a row's codes by segments, with zeros after the last code; return the sum of the codes."""
    cdef Py_ssize_t start, j
    cdef int32_t total = 0
    cdef code_t* segment = codes
    for start in range(0, depth, 64):  # SEGMENT: a step must be a literal to stay a C loop
        if depth - start >= SEGMENT:
            if source is float:
                if encoding.approximable and not approximate_segment(row + start, segment, encoding):
                    segment += SEGMENT_STRIDE
                    continue
            encode_segment(row + start, SEGMENT, segment, encoding)  # with a constant width
        else:
            encode_segment(row + start, depth - start, segment, encoding)
        segment += SEGMENT_STRIDE
    if source is int8_t:
        for j in range(depth):
            total += row[j]
    else:
        segment = codes
        for start in range(0, depth, 64):  # SEGMENT
            for j in range(SEGMENT):
                total += segment[j]
            segment += SEGMENT_STRIDE
    return total


cdef inline void prefetch_columns(const double* column, Py_ssize_t width, Py_ssize_t n) noexcept nogil:
    """Prefetch the columns that finish a block's results; a product of few rows would wait for them."""
    cdef Py_ssize_t i, j
    for i in range(4):
        for j in range(0, width, 8):
            prefetch(column + j)
        column += n


cdef int multiply_blocks(
    const source* a,
    Py_ssize_t m,
    Py_ssize_t k,
    Encoding encoding,
    const uint8_t* packed,
    Py_ssize_t segments,
    Py_ssize_t first,
    Py_ssize_t stop,
    const double* columns,
    bint row_terms,
    result* out,
    Py_ssize_t n,
) noexcept nogil:
    """Multiply all rows by columns `first` up to `stop`, in blocks that stay in L2.

    Returns 0, or -1 if there is not enough memory.
    """
    cdef Py_ssize_t chunk_segments = min(segments, <Py_ssize_t> EXACT_SEGMENTS)
    cdef Py_ssize_t row_codes = (chunk_segments + 1) * SEGMENT  # one to spare: rows 2**n bytes apart share cache sets
    cdef Py_ssize_t block = max(
        BLOCK_BYTES // (row_codes * <Py_ssize_t> sizeof(code_t)) // ROW_QUANTUM, <Py_ssize_t> 1
    ) * ROW_QUANTUM
    cdef Py_ssize_t column_block = max(
        COLUMN_BYTES // (chunk_segments * SEGMENT) // TILE_COLUMNS, <Py_ssize_t> 1
    ) * TILE_COLUMNS
    cdef bint in_parts = chunk_segments > DEPTH_SEGMENTS
    cdef Py_ssize_t chunk, depth, i0, j0, k0, rows, i, j, end, padded
    cdef bint simple
    cdef code_t* codes
    cdef int32_t* sums
    cdef int32_t* row_sums
    cdef Tile tile, waiting
    block = min(block, (m + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS)
    codes = <code_t*> allocate(block * row_codes * <Py_ssize_t> sizeof(code_t))
    # If sums grow part by part, those of all tiles of a block are kept.
    sums = <int32_t*> allocate((block * column_block if in_parts else TILE_ROWS * TILE_COLUMNS) * 4)
    row_sums = <int32_t*> allocate(block * 4)
    if codes == NULL or sums == NULL or row_sums == NULL:
        release(codes)
        release(sums)
        release(row_sums)
        return -1
    memset(&waiting, 0, sizeof(waiting))
    begin_tiles()
    for chunk in range(0, segments, 1024):  # EXACT_SEGMENTS
        chunk_segments = min(segments - chunk, <Py_ssize_t> EXACT_SEGMENTS)
        depth = min(k - chunk * SEGMENT, chunk_segments * SEGMENT)
        simple = chunk == 0 if result is int64_t else not row_terms
        i0 = 0
        while i0 < m:
            rows = min(m - i0, block)
            for i in range(rows):
                row_sums[i] = encode_row(
                    a + (i0 + i) * k + chunk * SEGMENT, depth, codes + row_offset(i, row_codes), encoding
                )
            padded = (rows + TILE_ROWS - 1) // TILE_ROWS * TILE_ROWS
            for i in range(rows, padded):
                clear_row(codes + row_offset(i, row_codes), chunk_segments)
            j0 = first
            while j0 < stop:
                end = min(j0 + column_block, stop)
                if result is not int64_t:
                    prefetch_columns(columns + j0, end - j0, n)
                k0 = 0
                while k0 < chunk_segments:
                    i, j = 0, j0
                    while i < rows:
                        tile.sums = sums + (i * column_block + (j - j0) * TILE_ROWS if in_parts else 0)
                        tile.row_sums = row_sums + i
                        tile.rows = min(rows - i, <Py_ssize_t> TILE_ROWS)
                        tile.width = min(end - j, <Py_ssize_t> TILE_COLUMNS)
                        tile.column = j
                        tile.place = (i0 + i) * n + j
                        multiply_and_finish(
                            &tile,
                            codes + row_offset(i, row_codes) + k0 * SEGMENT_STRIDE,
                            row_codes,
                            packed + (j // PANEL * segments + chunk + k0) * TILE_BYTES + j % PANEL * 4,
                            segments * TILE_BYTES,
                            min(depth - k0 * SEGMENT, <Py_ssize_t> DEPTH_SEGMENTS * SEGMENT),
                            k0 > 0,
                            k0 + DEPTH_SEGMENTS >= chunk_segments,
                            &waiting,
                            columns,
                            n,
                            simple,
                            out,
                        )
                        if COLUMN_BYTES and j + TILE_COLUMNS < end:
                            j += TILE_COLUMNS
                        else:  # always if a block is one tile wide, so the compiler sees that j stays
                            j = j0
                            i += TILE_ROWS
                    k0 += DEPTH_SEGMENTS
                finish_tile(&waiting, columns, n, simple, out)
                j0 += column_block
            i0 += block
    end_tiles()
    release(codes)
    release(sums)
    release(row_sums)
    return 0


cdef inline void clear_row(code_t* codes, Py_ssize_t segments) noexcept nogil:
    cdef Py_ssize_t s
    for s in range(segments):
        memset(codes + s * SEGMENT_STRIDE, 0, SEGMENT * sizeof(code_t))


cdef inline void* allocate(Py_ssize_t n_bytes) noexcept nogil:
    """Return memory that starts at a cache line; in front of it is the address that malloc gave."""
    cdef char* base = <char*> malloc(<size_t> n_bytes + 72)
    cdef char* aligned
    if base == NULL:
        return NULL
    aligned = base + 72 - (<size_t> base + 72) % 64
    ((<void**> aligned) - 1)[0] = base
    return aligned


cdef inline void release(void* memory) noexcept nogil:
    if memory != NULL:
        free(((<void**> memory) - 1)[0])


def multiply(
    const int8_t[:, ::1] a, const uint8_t[:, :, ::1] packed, int64_t[:, ::1] out, Py_ssize_t first, Py_ssize_t stop
):
    """out[:, first:stop] = a @ b, exactly, for the packed b; `first` is a multiple of 16."""
    cdef Encoding none
    cdef int status
    memset(&none, 0, sizeof(none))
    with nogil:
        status = multiply_blocks(
            &a[0, 0], a.shape[0], a.shape[1], none, &packed[0, 0, 0], packed.shape[1], first, stop,
            <const double*> NULL, False, &out[0, 0], out.shape[1],
        )
    if status:
        raise MemoryError


def multiply_scaled(
    const source[:, ::1] a,
    const uint8_t[:, :, ::1] packed,
    const double[:, ::1] columns,
    bint row_terms,
    floating[:, ::1] out,
    double scale,
    double zero_point,
    double low,
    double high,
    Py_ssize_t first,
    Py_ssize_t stop,
):
    """out[:, first:stop] = (codes(a) @ b - row sums * columns[0] - columns[1]) * columns[2] + columns[3].

    Floating-point rows are first encoded by `integer_code`; int8 rows are codes.  The numbers in `columns` (4, n) must
    be small enough to keep every integer exact in float64, and b must have at most 65,536 rows.  Without `row_terms`,
    columns[0] is not read.
    """
    cdef Encoding encoding
    cdef int status
    encoding.scale = scale
    encoding.zero_point = zero_point
    encoding.low = low
    encoding.high = high
    allow_approximation(&encoding)
    with nogil:
        status = multiply_blocks(
            &a[0, 0], a.shape[0], a.shape[1], encoding, &packed[0, 0, 0], packed.shape[1], first, stop,
            &columns[0, 0], row_terms, &out[0, 0], out.shape[1],
        )
    if status:
        raise MemoryError
