# The micro-kernel for any CPU.  It widens bytes to int16, and multiplies and adds them in pairs (pmaddwd), which is
# exact; the instruction for bytes (pmaddubsw) saturates.  Each sum has two parts until it is stored.

cdef extern from *:
    """
    typedef int16_t qatcore_code;
    #if defined(__SSE4_1__)
    #include <immintrin.h>
    #endif
    /* Write four rows of 16 codes as the quads of 16 columns.  gcc's own code takes wide vectors and twice the time. */
    static inline void qatcore_interleave(uint8_t *out, const int8_t *row, Py_ssize_t stride)
    {
    #if defined(__SSE4_1__)
        const __m128i offset = _mm_set1_epi8(-128);
        const __m128i row0 = _mm_loadu_si128((const __m128i *)row);
        const __m128i row1 = _mm_loadu_si128((const __m128i *)(row + stride));
        const __m128i row2 = _mm_loadu_si128((const __m128i *)(row + 2 * stride));
        const __m128i row3 = _mm_loadu_si128((const __m128i *)(row + 3 * stride));
        const __m128i low01 = _mm_unpacklo_epi8(row0, row1), high01 = _mm_unpackhi_epi8(row0, row1);
        const __m128i low23 = _mm_unpacklo_epi8(row2, row3), high23 = _mm_unpackhi_epi8(row2, row3);
        _mm_storeu_si128((__m128i *)out, _mm_xor_si128(_mm_unpacklo_epi16(low01, low23), offset));
        _mm_storeu_si128((__m128i *)(out + 16), _mm_xor_si128(_mm_unpackhi_epi16(low01, low23), offset));
        _mm_storeu_si128((__m128i *)(out + 32), _mm_xor_si128(_mm_unpacklo_epi16(high01, high23), offset));
        _mm_storeu_si128((__m128i *)(out + 48), _mm_xor_si128(_mm_unpackhi_epi16(high01, high23), offset));
    #else
        for (int j = 0; j < 16; j++)
            for (int t = 0; t < 4; t++) out[4 * j + t] = (uint8_t)row[t * stride + j] ^ 0x80;
    #endif
    }
    #if defined(__AVX512BW__) && defined(__AVX512DQ__)
    enum { QATCORE_LANES = 8, QATCORE_VECTORS = 4 };
    typedef __m512i qatcore_sums, qatcore_columns, qatcore_quad;
    static inline __m512i qatcore_zero(void) { return _mm512_setzero_si512(); }
    static inline __m512i qatcore_load_columns(const uint8_t *p)
    {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256((const __m256i *)p));
    }
    static inline __m512i qatcore_load_quad(const int16_t *p)
    {
        int64_t quad;
        memcpy(&quad, p, 8);
        return _mm512_set1_epi64(quad);
    }
    static inline __m512i qatcore_multiply_add(__m512i sums, __m512i columns, __m512i quad)
    {
        return _mm512_add_epi32(sums, _mm512_madd_epi16(columns, quad));
    }
    static inline __m256i qatcore_total(__m512i sums)
    {
        return _mm512_cvtepi64_epi32(_mm512_add_epi32(sums, _mm512_srli_epi64(sums, 32)));
    }
    static inline void qatcore_store(int32_t *p, __m512i sums, int add)
    {
        __m256i total = qatcore_total(sums);
        if (add) total = _mm256_add_epi32(total, _mm256_loadu_si256((const __m256i *)p));
        _mm256_storeu_si256((__m256i *)p, total);
    }
    #elif defined(__AVX2__)
    enum { QATCORE_LANES = 4, QATCORE_VECTORS = 2 };
    typedef __m256i qatcore_sums, qatcore_columns, qatcore_quad;
    static inline __m256i qatcore_zero(void) { return _mm256_setzero_si256(); }
    static inline __m256i qatcore_load_columns(const uint8_t *p)
    {
        return _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)p));
    }
    static inline __m256i qatcore_load_quad(const int16_t *p)
    {
        int64_t quad;
        memcpy(&quad, p, 8);
        return _mm256_set1_epi64x(quad);
    }
    static inline __m256i qatcore_multiply_add(__m256i sums, __m256i columns, __m256i quad)
    {
        return _mm256_add_epi32(sums, _mm256_madd_epi16(columns, quad));
    }
    static inline __m128i qatcore_total(__m256i sums)
    {
        __m256i pairs = _mm256_add_epi32(sums, _mm256_srli_epi64(sums, 32));
        return _mm256_castsi256_si128(_mm256_permutevar8x32_epi32(pairs, _mm256_setr_epi32(0, 2, 4, 6, 0, 2, 4, 6)));
    }
    static inline void qatcore_store(int32_t *p, __m256i sums, int add)
    {
        __m128i total = qatcore_total(sums);
        if (add) total = _mm_add_epi32(total, _mm_loadu_si128((const __m128i *)p));
        _mm_storeu_si128((__m128i *)p, total);
    }
    #elif defined(__SSE4_1__)
    enum { QATCORE_LANES = 2, QATCORE_VECTORS = 2 };
    typedef __m128i qatcore_sums, qatcore_columns, qatcore_quad;
    static inline __m128i qatcore_zero(void) { return _mm_setzero_si128(); }
    static inline __m128i qatcore_load_columns(const uint8_t *p)
    {
        return _mm_cvtepu8_epi16(_mm_loadl_epi64((const __m128i *)p));
    }
    static inline __m128i qatcore_load_quad(const int16_t *p)
    {
        int64_t quad;
        memcpy(&quad, p, 8);
        return _mm_set1_epi64x(quad);
    }
    static inline __m128i qatcore_multiply_add(__m128i sums, __m128i columns, __m128i quad)
    {
        return _mm_add_epi32(sums, _mm_madd_epi16(columns, quad));
    }
    static inline __m128i qatcore_total(__m128i sums)
    {
        return _mm_shuffle_epi32(_mm_add_epi32(sums, _mm_srli_epi64(sums, 32)), 0x08);
    }
    static inline void qatcore_store(int32_t *p, __m128i sums, int add)
    {
        __m128i total = qatcore_total(sums);
        if (add) total = _mm_add_epi32(total, _mm_loadl_epi64((const __m128i *)p));
        _mm_storel_epi64((__m128i *)p, total);
    }
    #else
    enum { QATCORE_LANES = 4, QATCORE_VECTORS = 2 };
    typedef struct { int32_t sum[4]; } qatcore_sums;
    typedef const uint8_t *qatcore_columns;
    typedef const int16_t *qatcore_quad;
    static inline qatcore_sums qatcore_zero(void)
    {
        const qatcore_sums zero = {{0, 0, 0, 0}};
        return zero;
    }
    static inline const uint8_t *qatcore_load_columns(const uint8_t *p) { return p; }
    static inline const int16_t *qatcore_load_quad(const int16_t *p) { return p; }
    static inline qatcore_sums qatcore_multiply_add(qatcore_sums sums, const uint8_t *columns, const int16_t *quad)
    {
        for (int j = 0; j < 4; j++)
            for (int t = 0; t < 4; t++) sums.sum[j] += columns[4 * j + t] * quad[t];
        return sums;
    }
    static inline void qatcore_store(int32_t *p, qatcore_sums sums, int add)
    {
        for (int j = 0; j < 4; j++) p[j] = sums.sum[j] + (add ? p[j] : 0);
    }
    #endif
    """
    void interleave "qatcore_interleave"(uint8_t*, const int8_t*, Py_ssize_t) noexcept nogil

cdef enum:
    SEGMENT_STRIDE = 64
    DEPTH_SEGMENTS = 16

include "gemm_tile.pxi"
include "gemm.pxi"


def pack_int8(const int8_t[:, :] b, uint8_t[:, :, ::1] packed, Py_ssize_t first, Py_ssize_t stop):
    """Pack panels `first` up to `stop` of b (k, n), which has contiguous rows or contiguous columns.

    `packed` has shape (panels of 16 columns, segments of 64 rows, 1024).
    """
    cdef Py_ssize_t k = b.shape[0], n = b.shape[1], group, panel, panels, end, quad, t, j, width
    cdef Py_ssize_t row_stride = b.strides[0], column_stride = b.strides[1]
    cdef Py_ssize_t whole = k // 4, panel_bytes = packed.shape[1] * TILE_BYTES
    cdef const int8_t* start
    cdef uint8_t* out
    with nogil:
        for group in range(first, stop, 4):  # four panels use a whole cache line of a row
            end = min(group + 4, stop)
            for panel in range(group, end):
                if (panel + 1) * PANEL > n or k % SEGMENT:
                    memset(&packed[panel, 0, 0], 128, panel_bytes)  # code 0
            if row_stride == 1:  # a column's quads lie together
                for panel in range(group, end):
                    out = &packed[panel, 0, 0]
                    for j in range(min(n - panel * PANEL, <Py_ssize_t> PANEL)):
                        start = &b[0, 0] + (panel * PANEL + j) * column_stride
                        for quad in range(whole):
                            copy_quad(out + quad * 64 + 4 * j, start + 4 * quad)
            else:
                panels = min(n // PANEL, end) - group
                start = &b[0, 0] + group * PANEL
                interleave_panels(start, row_stride, whole, panels, &packed[group, 0, 0], panel_bytes)
                start += panels * PANEL
                for panel in range(group + panels, end):  # the last panel, if it is not full
                    out = &packed[panel, 0, 0]
                    for quad in range(whole):
                        for j in range(n - panel * PANEL):
                            for t in range(4):
                                out[64 * quad + 4 * j + t] = offset_code(start[(4 * quad + t) * row_stride + j])
            for panel in range(group, end):
                out = &packed[panel, 0, 0] + whole * 64
                width = min(n - panel * PANEL, <Py_ssize_t> PANEL)
                for t in range(k - 4 * whole):
                    start = &b[0, 0] + (4 * whole + t) * row_stride + panel * PANEL * column_stride
                    for j in range(width):
                        out[4 * j + t] = offset_code(start[j * column_stride])


cdef void interleave_panels(
    const int8_t* b, Py_ssize_t row_stride, Py_ssize_t quads, Py_ssize_t panels, uint8_t* out, Py_ssize_t panel_bytes
) noexcept nogil:
    """Pack full panels that lie side by side in contiguous rows."""
    cdef Py_ssize_t quad, panel, t
    for quad in range(quads):
        for t in range(4):
            prefetch(b + (16 + t) * row_stride)  # the processor cannot foresee rows that lie far apart
        for panel in range(panels):
            interleave(out + panel * panel_bytes + 64 * quad, b + panel * PANEL, row_stride)
        b += 4 * row_stride


cdef inline uint8_t offset_code(int8_t code) noexcept nogil:
    return <uint8_t> code ^ 0x80


cdef inline void copy_quad(uint8_t* out, const int8_t* quad) noexcept nogil:
    cdef uint32_t codes
    memcpy(&codes, quad, 4)
    codes ^= <uint32_t> 0x80808080
    memcpy(out, &codes, 4)
