# The int8 product on AVX-VNNI, for CPUs with it but without AVX-512: vpdpbusd on 8 sums.

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
    static inline __m256i qatcore_load_columns(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
    static inline __m256i qatcore_load_quad(const int8_t *p)
    {
        int32_t quad;
        memcpy(&quad, p, 4);
        return _mm256_set1_epi32(quad);
    }
    static inline void qatcore_store(int32_t *p, __m256i sums, int add)
    {
        if (add) sums = _mm256_add_epi32(sums, _mm256_loadu_si256((const __m256i *)p));
        _mm256_storeu_si256((__m256i *)p, sums);
    }
    """
    ctypedef struct sums_t "__m256i":
        pass
    ctypedef struct columns_t "__m256i":
        pass
    ctypedef struct quads_t "__m256i":
        pass
    sums_t zero_sums "_mm256_setzero_si256"() noexcept nogil
    columns_t load_columns "qatcore_load_columns"(const uint8_t*) noexcept nogil
    quads_t load_quad "qatcore_load_quad"(const int8_t*) noexcept nogil
    sums_t multiply_add "_mm256_dpbusd_avx_epi32"(sums_t, columns_t, quads_t) noexcept nogil
    void store_sums "qatcore_store"(int32_t*, sums_t, bint) noexcept nogil

ctypedef int8_t code_t

cdef enum:
    VECTOR_COLUMNS = 8
    VECTORS = 2
    PER_PANEL = 2
    TILE_ROWS = 6
    TILE_COLUMNS = 16
    SEGMENT_STRIDE = 64
    DEPTH_SEGMENTS = 32

include "_gemm_tile.pxi"
include "_gemm.pxi"
