# Scalar formulas, which loops in the other files apply.  They use small inline functions rather than conditional
# expressions, which become branches and keep the compiler from vectorising a loop.

ctypedef fused word:
    int32_t  # the bits of a float32; signed integers have a vectorised minimum at every CPU level
    int64_t  # the bits of a float64

cdef double HALF_BELOW = 0.49999999999999994  # the largest double below one half
cdef uint64_t E4M3_REACH = 0x016800000000AA94  # see `reference_e4m3`; gcc would not shift a C constant in vectors

cdef extern from *:
    """
    #define QATCORE_MANTISSA64 0x000FFFFFFFFFFFFFLL
    #define QATCORE_INF64 0x7FF0000000000000LL
    #define QATCORE_BITS_448 0x407C000000000000LL
    #define QATCORE_BITS_2M6 0x3F90000000000000LL
    #define QATCORE_INF32 0x7F800000
    """
    const int64_t MANTISSA64 "QATCORE_MANTISSA64"
    const int64_t INF64 "QATCORE_INF64"
    const int64_t BITS_448 "QATCORE_BITS_448"      # the largest E4M3 value
    const int64_t BITS_2M6 "QATCORE_BITS_2M6"      # 2**-6, the smallest normal E4M3 value
    const int32_t INF32 "QATCORE_INF32"


cdef inline int64_t bits_of(double x) noexcept nogil:
    cdef int64_t bits
    memcpy(&bits, &x, 8)
    return bits


cdef inline double double_of(int64_t bits) noexcept nogil:
    cdef double x
    memcpy(&x, &bits, 8)
    return x


cdef inline int32_t bits_of32(float x) noexcept nogil:
    cdef int32_t bits
    memcpy(&bits, &x, 4)
    return bits


cdef inline float float_of(int32_t bits) noexcept nogil:
    cdef float x
    memcpy(&x, &bits, 4)
    return x


cdef inline word least(word a, word b) noexcept nogil:
    if a < b:
        return a
    return b


cdef inline word most(word a, word b) noexcept nogil:
    if a > b:
        return a
    return b


cdef inline double clamp(double v, double low, double high) noexcept nogil:
    if v < low:
        v = low
    if v > high:
        v = high
    return v


cdef inline double nan_to_zero(double v) noexcept nogil:
    if v != v:
        return 0.0
    return v


cdef inline double round_half_away(double v) noexcept nogil:
    """Return v rounded to the nearest integer, ties away from zero; exact for every double.

    Adding the largest double below 1/2 carries to the next integer if and only if the fraction is at least .5.
    """
    return trunc(v + copysign(HALF_BELOW, v))


cdef inline double integer_code(double x, double scale, double zero_point, double low, double high) noexcept nogil:
    """Return round_half_away(x / scale + zero_point), saturated; NaN gives 0, and no code is -0."""
    cdef double v = round_half_away(x / scale + zero_point)
    return nan_to_zero(clamp(v, low, high)) + 0.0


cdef inline double decode_integer(double code, int32_t zero_point, double scale) noexcept nogil:
    """Return (code - zero_point) * scale; the difference wraps in int32, as in the reference."""
    cdef int32_t q = <int32_t> code
    return <double> <int32_t> (<uint32_t> q - <uint32_t> zero_point) * scale


cdef inline double reference_e4m3(double x) noexcept nogil:
    """Return the reference's FP8: half away from zero, the mantissa clamped instead of carried, NaN to 0.

    The reference takes the exponent as floor(log2(|x|)), with a floating-point log2.  For the last doubles below a
    power of two, this log2 may round up to the integer.  From one double to the next, the exact logarithm changes by
    1.44 * 2**-53.  It rounds up if it is less than half an ulp below the integer.  `reach` is the number of doubles for
    which this happens: 0 in the binades of 2**-2 to 2**1, 1 in two more on either side, and 2 beyond.
    """
    cdef int64_t bits = bits_of(x)
    cdef int64_t magnitude = bits & INT64_MAX
    cdef int64_t clipped = least(magnitude, BITS_448)
    cdef int64_t fraction = clipped & MANTISSA64
    cdef int64_t reach = (E4M3_REACH >> <uint64_t> ((clipped >> 51) & 62)) & 3  # 2 bits per exponent, by its last five
    cdef int64_t most_fraction = most(MANTISSA64, fraction + reach)
    cdef int64_t eighth = <int64_t> 1 << 49
    cdef int64_t result = clipped - fraction + (least(fraction + (eighth >> 1), most_fraction) & ~(eighth - 1))
    cdef double steps = floor(double_of(clipped) * 512.0 + HALF_BELOW)
    if steps > 7.0:
        steps = 7.0
    if clipped < BITS_2M6:
        result = bits_of(steps / 512.0)
    result |= bits & ~INT64_MAX
    if <uint64_t> (magnitude - 1) >= <uint64_t> INF64:  # 0 or NaN in one comparison; two would be a branch
        result = 0
    return double_of(result)


# --- a natural logarithm from + - * / alone ---------------------------------------------------------
#
# The logarithms of libm and NumPy differ between machines in the last bit; this one cannot.  With x = 2**k m,
# m in [sqrt(1/2), sqrt(2)), and s = (m - 1) / (m + 1):
#
#     log x = k log 2 + 2 s + s^3 (2/3 + 2/5 s^2 + 2/7 s^4 + ...)
#
# The leading terms are kept as unevaluated sums of two doubles (Dekker 1971).  This leaves a relative error below
# 2**-64 before the one final rounding.  So the result is correctly rounded, except for about one argument in a
# thousand.

cdef inline double head(double a) noexcept nogil:
    """Return the upper 26 bits of a (Veltkamp's split)."""
    cdef double c = 134217729.0 * a
    return c - (c - a)


cdef inline double product_error(double a, double b, double p) noexcept nogil:
    """Return a * b - p exactly, where p is the rounded product (Dekker)."""
    cdef double a1 = head(a)
    cdef double b1 = head(b)
    cdef double a2 = a - a1
    cdef double b2 = b - b1
    return ((a1 * b1 - p) + a1 * b2 + a2 * b1) + a2 * b2


cdef inline double sum_error(double a, double b, double s) noexcept nogil:
    """Return a + b - s exactly, where s is the rounded sum (Knuth)."""
    cdef double bb = s - a
    return (a - (s - bb)) + (b - bb)


cdef inline double natural_log(double x) noexcept nogil:
    cdef int64_t bits
    cdef int64_t k = 0
    cdef double m, f, t, t_low, s, s_low, q, q_low, r, c, c_low, p, p_low, u, u_low, h, h_low, total
    if not x > 0.0:
        return -double_of(INF64) if x == 0.0 else double_of(INF64 | 1)
    if x == double_of(INF64):
        return x
    if x < 2.2250738585072014e-308:
        x *= 18014398509481984.0  # 2**54
        k = -54
    bits = bits_of(x)
    k += (bits >> 52) - 1023
    m = double_of((bits & MANTISSA64) | (<int64_t> 1023 << 52))
    if m > 1.4142135623730951:
        m *= 0.5
        k += 1
    f = m - 1.0
    t = m + 1.0
    t_low = sum_error(m, 1.0, t)
    s = f / t
    p = s * t
    s_low = ((f - p) - product_error(s, t, p) - s * t_low) / t
    q = s * s
    q_low = product_error(s, s, q) + 2.0 * s * s_low
    r = q * (2.0 / 5 + q * (2.0 / 7 + q * (2.0 / 9 + q * (2.0 / 11 + q * (2.0 / 13 + q * (2.0 / 15 + q * (
        2.0 / 17 + q * (2.0 / 19 + q * (2.0 / 21 + q * (2.0 / 23 + q * (2.0 / 25 + q * (2.0 / 27))))))))))))
    c = 0.66666666666666663 + r
    c_low = sum_error(0.66666666666666663, r, c) + 3.7007434154171883e-17
    p = q * c
    p_low = product_error(q, c, p) + (q * c_low + q_low * c)
    u = s * p
    u_low = product_error(s, p, u) + (s * p_low + s_low * p)
    h = 2.0 * s + u
    h_low = sum_error(2.0 * s, u, h) + (2.0 * s_low + u_low)
    r = k * 0.6931471803691238  # the upper 32 bits of log 2: exact for every k
    total = r + h
    return total + (sum_error(r, h, total) + (h_low + k * 1.9082149292705877e-10))
