# The int8 product on AMX: tdpbsud multiplies a tile of 16 rows and 64 codes by one of 64 rows and 16 columns.
# Two tiles of rows times two panels fill four of the eight tile registers with sums.
#
# The left operand's codes lie in tiles as well, a segment of 16 rows in 1,024 consecutive bytes: rows a power
# of two apart would fall into the same sets of the cache.

from libc.math cimport copysign, floor, trunc
from libc.stdint cimport INT64_MAX, int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

ctypedef fused floating:
    float
    double

include "_rounding.pxi"
include "_compiler.pxi"

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
        /* gcc 12 takes it to read eight bytes, and may leave the others unwritten. */
        __asm__ volatile("" : : "r"(&tiles) : "memory");
        _tile_loadconfig(&tiles);
    }
    static inline void qatcore_multiply_tiles(
        int more_rows, int more_columns, const int8_t *a, Py_ssize_t a_tile_row, const uint8_t *b, Py_ssize_t b_panel,
        Py_ssize_t segments, int add, int32_t *out)
    {
        /* gcc does not know that tile loads read memory: what was just written must be there. */
        __asm__ volatile("" ::: "memory");
        if (add) {
            _tile_loadd(0, out, 128);
            if (more_columns) _tile_loadd(1, out + 16, 128);
            if (more_rows) _tile_loadd(2, out + 512, 128);
            if (more_rows && more_columns) _tile_loadd(3, out + 528, 128);
        } else {
            _tile_zero(0);
            _tile_zero(1);
            _tile_zero(2);
            _tile_zero(3);
        }
        if (more_rows && more_columns)
            for (Py_ssize_t s = 0; s < segments; s++, a += 1024, b += 1024) {
                _tile_loadd(6, b, 64);
                _tile_loadd(4, a, 64);
                _tile_dpbsud(0, 4, 6);
                _tile_loadd(7, b + b_panel, 64);
                _tile_dpbsud(1, 4, 7);
                _tile_loadd(5, a + a_tile_row, 64);
                _tile_dpbsud(2, 5, 6);
                _tile_dpbsud(3, 5, 7);
            }
        else
            for (Py_ssize_t s = 0; s < segments; s++, a += 1024, b += 1024) {
                _tile_loadd(6, b, 64);
                _tile_loadd(4, a, 64);
                _tile_dpbsud(0, 4, 6);
                if (more_columns) {
                    _tile_loadd(7, b + b_panel, 64);
                    _tile_dpbsud(1, 4, 7);
                }
                if (more_rows) {
                    _tile_loadd(5, a + a_tile_row, 64);
                    _tile_dpbsud(2, 5, 6);
                }
            }
        _tile_stored(0, out, 128);
        if (more_columns) _tile_stored(1, out + 16, 128);
        if (more_rows) _tile_stored(2, out + 512, 128);
        if (more_rows && more_columns) _tile_stored(3, out + 528, 128);
        __asm__ volatile("" ::: "memory");
    }
    """
    void begin_tiles "qatcore_configure"() noexcept nogil
    void end_tiles "_tile_release"() noexcept nogil
    void multiply_tiles "qatcore_multiply_tiles"(
        bint, bint, const int8_t*, Py_ssize_t, const uint8_t*, Py_ssize_t, Py_ssize_t, bint, int32_t*
    ) noexcept nogil

ctypedef int8_t code_t

cdef enum:
    TILE_ROWS = 32
    TILE_COLUMNS = 32
    SEGMENT_STRIDE = 1024
    DEPTH_SEGMENTS = 32


cdef inline Py_ssize_t row_offset(Py_ssize_t row, Py_ssize_t row_codes) noexcept nogil:
    return row // 16 * 16 * row_codes + row % 16 * 64


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
    """out (32, 32) = or += the products of `quads` quads, of whole tiles: codes beyond are 0."""
    multiply_tiles(rows > 16, columns > 16, a, 16 * row_codes, b, panel_bytes, (quads + 15) // 16, add, out)


include "_gemm.pxi"
