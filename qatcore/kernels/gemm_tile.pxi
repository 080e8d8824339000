# The register tile of every micro-kernel that uses vector instructions.  It multiplies TILE_ROWS rows of the left
# operand by VECTORS vectors of LANES columns, and keeps all sums in registers.  A micro-kernel defines the parts that
# differ before it includes this file:
#
#   qatcore_code       The type of the left operand's codes.
#   qatcore_sums       A vector with the sums of LANES columns.
#   qatcore_columns    A vector with the next four rows of LANES columns.
#   qatcore_quad       A vector with four codes, repeated.
#   QATCORE_LANES      How many columns a vector has.
#   QATCORE_VECTORS    How many vectors of columns a tile has.
#   qatcore_zero(), qatcore_load_columns(), qatcore_load_quad(), qatcore_multiply_add(), qatcore_store()
#
# The tile itself is written in C, which allows an array with every element in a register.

cdef extern from *:
    """
    enum {
        QATCORE_ROWS = 6,
        QATCORE_COLUMNS = QATCORE_LANES * QATCORE_VECTORS,
        QATCORE_PER_PANEL = 16 / QATCORE_LANES,
    };
    #if defined(__clang__)
    #define QATCORE_UNROLL _Pragma("unroll")
    #elif defined(__GNUC__)
    #define QATCORE_UNROLL _Pragma("GCC unroll 8")
    #else
    #define QATCORE_UNROLL
    #endif
    /* Without this, gcc 12 holds every sum twice, in the loop and after it, and runs out of registers. */
    #if defined(__GNUC__) && defined(__SSE4_1__)
    #define QATCORE_KEEP(vector) __asm__("" : "+v"(vector))
    #else
    #define QATCORE_KEEP(vector) ((void)(vector))
    #endif
    #define QATCORE_EACH(i, n) QATCORE_UNROLL for (int i = 0; i < (n); i++)
    /* Each call passes `rows` and `vectors` as constants, so only the loop over quads is left. */
    static inline QATCORE_INLINED qatcore_multiply_vectors(
        const int rows, const int vectors, const qatcore_code *a, Py_ssize_t row_codes, const uint8_t *b,
        Py_ssize_t panel_bytes, Py_ssize_t quads, int add, int32_t *out)
    {
        qatcore_sums sums[QATCORE_ROWS][QATCORE_VECTORS];
        qatcore_columns columns[QATCORE_VECTORS];
        QATCORE_EACH(i, rows) QATCORE_EACH(j, vectors) sums[i][j] = qatcore_zero();
        for (Py_ssize_t k = 0; k < quads; k++, a += 4, b += 64) {
            QATCORE_EACH(j, vectors) columns[j] = qatcore_load_columns(
                b + j / QATCORE_PER_PANEL * panel_bytes + j % QATCORE_PER_PANEL * 4 * QATCORE_LANES);
            QATCORE_EACH(i, rows) {
                const qatcore_quad quad = qatcore_load_quad(a + i * row_codes);
                QATCORE_EACH(j, vectors) sums[i][j] = qatcore_multiply_add(sums[i][j], columns[j], quad);
            }
        }
        QATCORE_EACH(i, rows) QATCORE_EACH(j, vectors) QATCORE_KEEP(sums[i][j]);
        QATCORE_EACH(i, rows) QATCORE_EACH(j, vectors)
            qatcore_store(out + i * QATCORE_COLUMNS + j * QATCORE_LANES, sums[i][j], add);
    }
    """
    ctypedef int code_t "qatcore_code"  # C knows its real size
    int VECTOR_COLUMNS "QATCORE_LANES"
    int VECTORS "QATCORE_VECTORS"
    int TILE_ROWS "QATCORE_ROWS"
    int TILE_COLUMNS "QATCORE_COLUMNS"
    void multiply_vectors "qatcore_multiply_vectors"(
        int, int, const code_t*, Py_ssize_t, const uint8_t*, Py_ssize_t, Py_ssize_t, bint, int32_t*
    ) noexcept nogil


include "gemm_results.pxi"

cdef enum:
    BLOCK_BYTES = 1 << 19  # half of a usual L2
    COLUMN_BYTES = 0       # blocks are one tile wide


cdef inline Py_ssize_t row_offset(Py_ssize_t row, Py_ssize_t row_codes) noexcept nogil:
    return row * row_codes


cdef inline void begin_tiles() noexcept nogil:
    pass


cdef inline void end_tiles() noexcept nogil:
    pass


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
    if rows == 6:
        multiply_vectors(6, vectors, a, row_codes, b, panel_bytes, quads, add, out)
    elif rows == 5:
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
    """Set out (rows, TILE_COLUMNS) to the products of `quads` quads, or add them to it if `add`.

    `columns` is a multiple of VECTOR_COLUMNS.
    """
    cdef int vectors = columns // VECTOR_COLUMNS
    if VECTORS == 4 and vectors == 3:
        multiply_row_tile(rows, 3, a, row_codes, b, panel_bytes, quads, add, out)
    elif VECTORS == 4 and vectors == 1:
        multiply_row_tile(rows, 1, a, row_codes, b, panel_bytes, quads, add, out)
    elif VECTORS == 4 and vectors == 4:
        multiply_row_tile(rows, 4, a, row_codes, b, panel_bytes, quads, add, out)
    else:
        multiply_row_tile(rows, 2, a, row_codes, b, panel_bytes, quads, add, out)


cdef inline void prefetch_results(result* out, Py_ssize_t rows, Py_ssize_t width, Py_ssize_t n) noexcept nogil:
    """Prefetch the memory for a tile's results; the processor cannot foresee rows that lie far apart."""
    cdef Py_ssize_t i, j
    for i in range(rows):
        for j in range(0, width * <Py_ssize_t> sizeof(result), 64):
            prefetch_to_write(<char*> out + j)
        out += n


cdef inline inlined multiply_and_finish(
    Tile* tile,
    const code_t* codes,
    Py_ssize_t row_codes,
    const uint8_t* panels,
    Py_ssize_t panel_bytes,
    Py_ssize_t depth,
    bint add,
    bint last,
    Tile* waiting,
    const double* columns,
    Py_ssize_t n,
    bint simple,
    result* out,
) noexcept nogil:
    """Multiply a tile; after the last part of the depth, finish it at once, while its sums are in L1."""
    if last:
        prefetch_results(out + tile.place, tile.rows, tile.width, n)
    multiply_tile(
        <int> tile.rows,
        <int> min((tile.width + PANEL - 1) // PANEL * PANEL, <Py_ssize_t> TILE_COLUMNS),
        codes,
        row_codes,
        panels,
        panel_bytes,
        (depth + 3) // 4,
        add,
        tile.sums,
    )
    if last:
        finish_tile(tile, columns, n, simple, out)
