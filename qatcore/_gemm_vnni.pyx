# The int8 product on AVX-512 VNNI: vpdpbusd adds four products of unsigned and signed bytes to each of 16 sums,
# without saturation.

from libc.math cimport copysign, floor, trunc
from libc.stdint cimport INT32_MAX, INT64_MAX, int8_t, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

ctypedef fused floating:
    float
    double

include "_rounding.pxi"
include "_compiler.pxi"

cdef extern from *:
    """
    #include <immintrin.h>
    static inline __m512i qatcore_load_quad(const int8_t *p)
    {
        int32_t quad;
        memcpy(&quad, p, 4);
        return _mm512_set1_epi32(quad);
    }
    static inline void qatcore_store(int32_t *p, __m512i sums, int add)
    {
        if (add) sums = _mm512_add_epi32(sums, _mm512_loadu_si512(p));
        _mm512_storeu_si512(p, sums);
    }
    """
    ctypedef struct sums_t "__m512i":
        pass
    ctypedef struct columns_t "__m512i":
        pass
    ctypedef struct quads_t "__m512i":
        pass
    sums_t zero_sums "_mm512_setzero_si512"() noexcept nogil
    columns_t load_columns "_mm512_loadu_si512"(const void*) noexcept nogil
    quads_t load_quad "qatcore_load_quad"(const int8_t*) noexcept nogil
    sums_t multiply_add "_mm512_dpbusd_epi32"(sums_t, columns_t, quads_t) noexcept nogil
    void store_sums "qatcore_store"(int32_t*, sums_t, bint) noexcept nogil

ctypedef int8_t code_t

cdef enum:
    VECTOR_COLUMNS = 16
    VECTORS = 4
    PER_PANEL = 1
    TILE_ROWS = 6
    TILE_COLUMNS = 64
    SEGMENT_STRIDE = 64
    DEPTH_SEGMENTS = 64

include "_gemm_tile.pxi"
include "_gemm.pxi"
