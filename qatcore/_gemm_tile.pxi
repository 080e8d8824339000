# The register tile of every micro-kernel made of vector instructions: TILE_ROWS rows of the left operand
# times VECTORS vectors of VECTOR_COLUMNS columns, all sums in registers.  What differs is in a few inline functions,
# defined before this file is included:
#
#   sums_t, columns_t, quads_t      vectors: sums of VECTOR_COLUMNS columns; their next four rows; four codes, repeated
#   zero_sums(), load_columns(), load_quad(), multiply_add(), store_sums()

cdef inline Py_ssize_t row_offset(Py_ssize_t row, Py_ssize_t row_codes) noexcept nogil:
    return row * row_codes


cdef inline void begin_tiles() noexcept nogil:
    pass


cdef inline void end_tiles() noexcept nogil:
    pass


cdef struct RowSums:  # of the greatest VECTORS; what a tile does not use vanishes
    sums_t v0
    sums_t v1
    sums_t v2
    sums_t v3


cdef struct Columns:
    columns_t v0
    columns_t v1
    columns_t v2
    columns_t v3


cdef inline inlined clear_sums(RowSums* sums) noexcept nogil:
    sums.v0 = zero_sums()
    sums.v1 = zero_sums()
    sums.v2 = zero_sums()
    sums.v3 = zero_sums()


cdef inline inlined load_vectors(
    Columns* columns, int vectors, const uint8_t* b, Py_ssize_t panel_bytes
) noexcept nogil:
    columns.v0 = load_columns(b)
    if vectors > 1:
        columns.v1 = load_columns(b + vector_offset(1, panel_bytes))
    if vectors > 2:
        columns.v2 = load_columns(b + vector_offset(2, panel_bytes))
    if vectors > 3:
        columns.v3 = load_columns(b + vector_offset(3, panel_bytes))


cdef inline Py_ssize_t vector_offset(int vector, Py_ssize_t panel_bytes) noexcept nogil:
    return vector // PER_PANEL * panel_bytes + vector % PER_PANEL * (4 * VECTOR_COLUMNS)


cdef inline inlined add_products(RowSums* sums, int vectors, const Columns* columns, quads_t quad) noexcept nogil:
    sums.v0 = multiply_add(sums.v0, columns.v0, quad)
    if vectors > 1:
        sums.v1 = multiply_add(sums.v1, columns.v1, quad)
    if vectors > 2:
        sums.v2 = multiply_add(sums.v2, columns.v2, quad)
    if vectors > 3:
        sums.v3 = multiply_add(sums.v3, columns.v3, quad)


cdef inline inlined store_row(const RowSums* sums, int vectors, bint add, int32_t* out) noexcept nogil:
    store_sums(out, sums.v0, add)
    if vectors > 1:
        store_sums(out + VECTOR_COLUMNS, sums.v1, add)
    if vectors > 2:
        store_sums(out + 2 * VECTOR_COLUMNS, sums.v2, add)
    if vectors > 3:
        store_sums(out + 3 * VECTOR_COLUMNS, sums.v3, add)


cdef inline inlined multiply_vectors(
    int rows,
    int vectors,
    const code_t* a,
    Py_ssize_t row_codes,
    const uint8_t* b,
    Py_ssize_t panel_bytes,
    Py_ssize_t quads,
    bint add,
    int32_t* out,
) noexcept nogil:
    """With `rows` and `vectors` constants at each call, only the loop over quads is left.

    Rows are written out: compilers keep sums that a loop indexes in memory, even where they unroll it.
    """
    cdef RowSums row0, row1, row2, row3, row4, row5
    cdef Columns columns
    cdef Py_ssize_t k
    clear_sums(&row0)
    clear_sums(&row1)
    clear_sums(&row2)
    clear_sums(&row3)
    clear_sums(&row4)
    clear_sums(&row5)
    for k in range(quads):
        load_vectors(&columns, vectors, b, panel_bytes)
        add_products(&row0, vectors, &columns, load_quad(a))
        if rows > 1:
            add_products(&row1, vectors, &columns, load_quad(a + row_codes))
        if rows > 2:
            add_products(&row2, vectors, &columns, load_quad(a + 2 * row_codes))
        if rows > 3:
            add_products(&row3, vectors, &columns, load_quad(a + 3 * row_codes))
        if rows > 4:
            add_products(&row4, vectors, &columns, load_quad(a + 4 * row_codes))
        if rows > 5:
            add_products(&row5, vectors, &columns, load_quad(a + 5 * row_codes))
        a += 4
        b += 64
    store_row(&row0, vectors, add, out)
    if rows > 1:
        store_row(&row1, vectors, add, out + TILE_COLUMNS)
    if rows > 2:
        store_row(&row2, vectors, add, out + 2 * TILE_COLUMNS)
    if rows > 3:
        store_row(&row3, vectors, add, out + 3 * TILE_COLUMNS)
    if rows > 4:
        store_row(&row4, vectors, add, out + 4 * TILE_COLUMNS)
    if rows > 5:
        store_row(&row5, vectors, add, out + 5 * TILE_COLUMNS)


cdef inline inlined multiply_row_tile(
    int rows,
    int vectors,
    const code_t* a,
    Py_ssize_t row_codes,
    const uint8_t* b,
    Py_ssize_t panel_bytes,
    Py_ssize_t quads,
    bint add,
    int32_t* out,
) noexcept nogil:
    if TILE_ROWS == 6 and rows == 6:
        multiply_vectors(6, vectors, a, row_codes, b, panel_bytes, quads, add, out)
    elif TILE_ROWS == 6 and rows == 5:
        multiply_vectors(5, vectors, a, row_codes, b, panel_bytes, quads, add, out)
    elif rows == 4:
        multiply_vectors(4, vectors, a, row_codes, b, panel_bytes, quads, add, out)
    elif rows == 3:
        multiply_vectors(3, vectors, a, row_codes, b, panel_bytes, quads, add, out)
    elif rows == 2:
        multiply_vectors(2, vectors, a, row_codes, b, panel_bytes, quads, add, out)
    else:
        multiply_vectors(1, vectors, a, row_codes, b, panel_bytes, quads, add, out)


cdef void multiply_tile(
    int rows,
    int columns,
    const code_t* a,
    Py_ssize_t row_codes,
    const uint8_t* b,
    Py_ssize_t panel_bytes,
    Py_ssize_t quads,
    bint add,
    int32_t* out,
) noexcept nogil:
    """out (rows, TILE_COLUMNS) = or += the products of `quads` quads; `columns` is a multiple of VECTOR_COLUMNS."""
    cdef int vectors = columns // VECTOR_COLUMNS
    if VECTORS == 4 and vectors == 3:
        multiply_row_tile(rows, 3, a, row_codes, b, panel_bytes, quads, add, out)
    elif VECTORS == 4 and vectors == 1:
        multiply_row_tile(rows, 1, a, row_codes, b, panel_bytes, quads, add, out)
    elif VECTORS == 4 and vectors == 4:
        multiply_row_tile(rows, 4, a, row_codes, b, panel_bytes, quads, add, out)
    else:
        multiply_row_tile(rows, 2, a, row_codes, b, panel_bytes, quads, add, out)
