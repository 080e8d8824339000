# The int8 product on AMX.  tdpbsud multiplies a tile of 16 rows and 64 codes by a tile of 64 rows and 16 columns.
# Two tiles of rows times two panels fill four of the eight tile registers with sums.
#
# The matrix unit and the vector units work at the same time: sums become results while the next sums are computed.
# The memory of results is not prefetched: its 32 rows may be 2**n bytes apart, and then share few sets of the cache.
#
# The left operand's codes lie in tiles as well: a segment of 16 rows takes 1,024 consecutive bytes.  Otherwise rows
# that are a power of two apart would fall into the same sets of the cache.

include "gemm_head.pxi"

cdef extern from *:
    """
    #ifdef QATCORE_EMULATE
    #include "emulated_amx.h"
    #else
    #include <immintrin.h>
    #endif
    /* Tile numbers must be literals.  Tiles 0 to 3 are sums (row tile, panel), 4 and 5 rows, 6 and 7 panels. */
    static void qatcore_configure(void)
    {
        struct { uint8_t palette, start_row, reserved[14]; uint16_t row_bytes[16]; uint8_t rows[16]; } tiles;
        memset(&tiles, 0, sizeof tiles);
        tiles.palette = 1;
        for (int i = 0; i < 8; i++) {
            tiles.row_bytes[i] = 64;
            tiles.rows[i] = 16;
        }
        /* gcc 12 assumes that the load reads only eight bytes, and may leave the others unwritten. */
        __asm__ volatile("" : : "r"(&tiles) : "memory");
        _tile_loadconfig(&tiles);
    }
    static inline void qatcore_load_sums(int more_rows, int more_columns, int add, const int32_t *sums)
    {
        /* gcc does not know that tile loads read memory, so force it to write everything first. */
        __asm__ volatile("" ::: "memory");
        if (add) {
            _tile_loadd(0, sums, 128);
            if (more_columns) _tile_loadd(1, sums + 16, 128);
            if (more_rows) _tile_loadd(2, sums + 512, 128);
            if (more_rows && more_columns) _tile_loadd(3, sums + 528, 128);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
    }
    static inline void qatcore_multiply_segment(
        int more_rows, int more_columns, const int8_t *a, Py_ssize_t a_tile_row, const uint8_t *b, Py_ssize_t b_panel)
    {
        _tile_loadd(6, b, 64);
        _tile_loadd(4, a, 64);
        _tile_dpbsud(0, 4, 6);
        if (more_rows && more_columns) {
            _tile_loadd(7, b + b_panel, 64);
            _tile_dpbsud(1, 4, 7);
            _tile_loadd(5, a + a_tile_row, 64);
            _tile_dpbsud(2, 5, 6);
            _tile_dpbsud(3, 5, 7);
        } else if (more_rows) {
            _tile_loadd(5, a + a_tile_row, 64);
            _tile_dpbsud(2, 5, 6);
        } else if (more_columns) {
            _tile_loadd(7, b + b_panel, 64);
            _tile_dpbsud(1, 4, 7);
        }
    }
    static inline void qatcore_store_sums(int more_rows, int more_columns, int32_t *sums)
    {
        _tile_stored(0, sums, 128);
        if (more_columns) _tile_stored(1, sums + 16, 128);
        if (more_rows) _tile_stored(2, sums + 512, 128);
        if (more_rows && more_columns) _tile_stored(3, sums + 528, 128);
        __asm__ volatile("" ::: "memory");
    }
    """
    void begin_tiles "qatcore_configure"() noexcept nogil
    void end_tiles "_tile_release"() noexcept nogil
    void load_sums "qatcore_load_sums"(bint, bint, bint, const int32_t*) noexcept nogil
    void multiply_segment "qatcore_multiply_segment"(
        bint, bint, const int8_t*, Py_ssize_t, const uint8_t*, Py_ssize_t
    ) noexcept nogil
    void store_sums "qatcore_store_sums"(bint, bint, int32_t*) noexcept nogil

ctypedef int8_t code_t

cdef enum:
    TILE_ROWS = 32
    TILE_COLUMNS = 32
    SEGMENT_STRIDE = 1024
    DEPTH_SEGMENTS = 64
    BLOCK_BYTES = 1 << 20  # every CPU with tiles has 2 MiB of L2
    COLUMN_BYTES = 1 << 19

include "gemm_results.pxi"


cdef inline Py_ssize_t row_offset(Py_ssize_t row, Py_ssize_t row_codes) noexcept nogil:
    return row // 16 * 16 * row_codes + row % 16 * 64


cdef inline inlined multiply_segments(
    const Tile* tile,
    const code_t* codes,
    Py_ssize_t row_codes,
    const uint8_t* panels,
    Py_ssize_t panel_bytes,
    Py_ssize_t segments,
    bint add,
    Tile waiting,
    Py_ssize_t width,
    const double* columns,
    Py_ssize_t n,
    bint simple,
    result* out,
) noexcept nogil:
    """Multiply a tile by whole segments, with zeros beyond the depth; after each one, finish some rows that wait."""
    cdef bint more_rows = tile.rows > 16, more_columns = tile.width > 16
    cdef Py_ssize_t share = (waiting.rows + segments - 1) // segments, segment
    load_sums(more_rows, more_columns, add, tile.sums)
    for segment in range(segments):
        multiply_segment(
            more_rows,
            more_columns,
            codes + segment * SEGMENT_STRIDE,
            16 * row_codes,
            panels + segment * TILE_BYTES,
            panel_bytes,
        )
        finish_rows(&waiting, min(share, waiting.rows), width, columns, n, simple, out)
    store_sums(more_rows, more_columns, tile.sums)


cdef void multiply_and_finish(
    const Tile* tile,
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
    """Multiply a tile, and finish the tile before it, whose sums have reached memory by now.

    Both tiles may have their sums in the same place: new sums are stored only after the waiting ones are used up.
    """
    cdef Py_ssize_t segments = (depth + SEGMENT - 1) // SEGMENT
    if waiting.width == TILE_COLUMNS and simple:  # as in finish_tile()
        multiply_segments(
            tile, codes, row_codes, panels, panel_bytes, segments, add, waiting[0], TILE_COLUMNS, columns, n, True, out
        )
    elif waiting.width == TILE_COLUMNS:
        multiply_segments(
            tile, codes, row_codes, panels, panel_bytes, segments, add, waiting[0], TILE_COLUMNS, columns, n, False, out
        )
    else:
        multiply_segments(
            tile, codes, row_codes, panels, panel_bytes, segments, add, waiting[0], waiting.width, columns, n, simple,
            out,
        )
    waiting.rows = 0
    if last:
        waiting[0] = tile[0]


include "gemm.pxi"
