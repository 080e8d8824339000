# The int8 product on AVX-VNNI, for CPUs that have it but lack AVX-512: vpdpbusd on 8 sums.

include "gemm_head.pxi"

cdef extern from *:
    """
    #include <immintrin.h>
    enum { QATCORE_LANES = 8, QATCORE_VECTORS = 2 };
    typedef int8_t qatcore_code;
    typedef __m256i qatcore_sums, qatcore_columns, qatcore_quad;
    static inline __m256i qatcore_zero(void) { return _mm256_setzero_si256(); }
    static inline __m256i qatcore_load_columns(const uint8_t *p) { return _mm256_loadu_si256((const __m256i *)p); }
    static inline __m256i qatcore_load_quad(const int8_t *p)
    {
        int32_t quad;
        memcpy(&quad, p, 4);
        return _mm256_set1_epi32(quad);
    }
    static inline __m256i qatcore_multiply_add(__m256i sums, __m256i columns, __m256i quad)
    {
    #ifdef QATCORE_EMULATE
        return _mm256_dpbusd_epi32(sums, columns, quad);
    #else
        return _mm256_dpbusd_avx_epi32(sums, columns, quad);
    #endif
    }
    static inline void qatcore_store(int32_t *p, __m256i sums, int add)
    {
        if (add) sums = _mm256_add_epi32(sums, _mm256_loadu_si256((const __m256i *)p));
        _mm256_storeu_si256((__m256i *)p, sums);
    }
    """

cdef enum:
    SEGMENT_STRIDE = 64
    DEPTH_SEGMENTS = 32

include "gemm_tile.pxi"
include "gemm.pxi"
