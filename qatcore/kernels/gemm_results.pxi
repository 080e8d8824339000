# Turn a tile's sums into results.  Every micro-kernel includes this file once it knows TILE_COLUMNS.

ctypedef fused result:
    int64_t
    float
    double

cdef struct Tile:  # of sums, in rows of TILE_COLUMNS
    int32_t* sums
    const int32_t* row_sums
    Py_ssize_t rows
    Py_ssize_t width
    Py_ssize_t column  # where its first result belongs in a row
    Py_ssize_t place   # where its first result belongs in the whole result


cdef inline int32_t centred(int32_t total, int32_t row_sum) noexcept nogil:
    """Return sum a b from sum a (b + 128) and sum a; with at most 65,536 products everything fits int32."""
    return total - 128 * row_sum


cdef inline inlined finish_row(
    const int32_t* sums,
    Py_ssize_t width,
    int32_t row_sum,
    const double* column,
    Py_ssize_t n,
    bint simple,
    result* out,
) noexcept nogil:
    """Write a row of a tile as results to `out`; with a constant width, this compiles to vectors and nothing else.

    A floating-point result is ``(sum - row sum * columns[0] - columns[1]) * columns[2] + columns[3]``, where all
    but the last two operations are exact.  `simple` says that columns[0] is all zero or, for integers, that `out` has
    nothing yet to add to.
    """
    cdef Py_ssize_t j
    cdef double total
    for j in range(width):
        if result is int64_t:
            if simple:
                out[j] = centred(sums[j], row_sum)
            else:
                out[j] += centred(sums[j], row_sum)
        else:
            total = centred(sums[j], row_sum)
            if not simple:
                total -= <double> row_sum * column[j]
            out[j] = <result> ((total - column[n + j]) * column[2 * n + j] + column[3 * n + j])


cdef inline inlined finish_rows(
    Tile* tile, Py_ssize_t rows, Py_ssize_t width, const double* columns, Py_ssize_t n, bint simple, result* out
) noexcept nogil:
    """Remove the first rows from a tile, and write them as results to their places in rows of n."""
    cdef Py_ssize_t i
    cdef const double* column = NULL
    if result is not int64_t:
        column = columns + tile.column
    for i in range(rows):
        keep_iterations_apart()  # gcc 12 would split narrow tiles into vectors of a column's sums
        finish_row(tile.sums, width, tile.row_sums[0], column, n, simple, out + tile.place)
        tile.sums += TILE_COLUMNS
        tile.row_sums += 1
        tile.place += n
    tile.rows -= rows


cdef inline inlined finish_tile(
    Tile* tile, const double* columns, Py_ssize_t n, bint simple, result* out
) noexcept nogil:
    """Remove all rows from a tile, and write them as results; most tiles take a call with constants."""
    if tile.width == TILE_COLUMNS and simple:
        finish_rows(tile, tile.rows, TILE_COLUMNS, columns, n, True, out)
    elif tile.width == TILE_COLUMNS:
        finish_rows(tile, tile.rows, TILE_COLUMNS, columns, n, False, out)
    else:
        finish_rows(tile, tile.rows, tile.width, columns, n, simple, out)
