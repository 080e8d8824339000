# The int8 product on AVX-512 VNNI: vpdpbusd adds four products of unsigned and signed bytes to each of 16 sums,
# without saturation.

include "gemm_head.pxi"

cdef extern from *:
    """
    #include <immintrin.h>
    enum { QATCORE_LANES = 16, QATCORE_VECTORS = 4 };
    typedef int8_t qatcore_code;
    typedef __m512i qatcore_sums, qatcore_columns, qatcore_quad;
    static inline __m512i qatcore_zero(void) { return _mm512_setzero_si512(); }
    static inline __m512i qatcore_load_columns(const uint8_t *p) { return _mm512_loadu_si512(p); }
    static inline __m512i qatcore_load_quad(const int8_t *p)
    {
        int32_t quad;
        memcpy(&quad, p, 4);
        return _mm512_set1_epi32(quad);
    }
    static inline __m512i qatcore_multiply_add(__m512i sums, __m512i columns, __m512i quad)
    {
        return _mm512_dpbusd_epi32(sums, columns, quad);
    }
    static inline void qatcore_store(int32_t *p, __m512i sums, int add)
    {
        if (add) sums = _mm512_add_epi32(sums, _mm512_loadu_si512(p));
        _mm512_storeu_si512(p, sums);
    }
    """

cdef enum:
    SEGMENT_STRIDE = 64
    DEPTH_SEGMENTS = 64

include "gemm_tile.pxi"
include "gemm.pxi"
