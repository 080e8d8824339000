# Floating-point formats of at most 8 bits.  They are described by parameters, so that one loop serves them all.

cdef struct Minifloat:
    int32_t width      # bits in all, the sign's included
    int32_t mantissa   # bits of the mantissa
    int32_t exponent   # of the least normal value
    int32_t greatest   # code of the greatest finite value
    int32_t infinity   # code of infinity, and the least one of NaN: beyond all codes if there is none
    int32_t least_nan
    int32_t nan        # the code given to NaN, exclusive or that of the sign


cdef inline Minifloat minifloat(const int32_t[::1] layout) noexcept nogil:
    """The parameters, from an array of them in order."""
    cdef Minifloat f
    f.width = layout[0]
    f.mantissa = layout[1]
    f.exponent = layout[2]
    f.greatest = layout[3]
    f.infinity = layout[4]
    f.least_nan = layout[5]
    f.nan = layout[6]
    return f


cdef inline Minifloat e4m3() noexcept nogil:
    cdef Minifloat f
    f.width = 8
    f.mantissa = 3
    f.exponent = -6
    f.greatest = 0x7E
    f.infinity = 0x100
    f.least_nan = 0x7F
    f.nan = 0x7F
    return f


cdef inline int32_t greatest_bits(Minifloat f) noexcept nogil:
    """The greatest finite value, as a float32."""
    return (f.greatest << (23 - f.mantissa)) + ((126 + f.exponent) << 23)


cdef inline floating nearest_minifloat(floating x, Minifloat f) noexcept nogil:
    """The nearest value of the format, ties to even, saturating.

    The sign of zero is kept, and NaN in formats that have one; in others it is -0, and 0 where it is negative.
    Adding and subtracting 2**(e + 52 - m) in float64, 2**(e + 23 - m) in float32, leaves a multiple of 2**(e - m), the
    step of m bits of mantissa in the binade of 2**e (and that of the least normal values below), rounded once by the
    addition itself.
    """
    cdef int64_t bits, magnitude, clipped, result
    cdef int32_t bits32, magnitude32, clipped32, result32
    cdef double magic, rounded
    cdef float magic32, rounded32
    cdef bint has_nan = f.least_nan < 0x100
    if floating is float:
        bits32 = bits_of32(x)
        magnitude32 = bits32 & INT32_MAX
        clipped32 = least(magnitude32, greatest_bits(f))
        magic32 = float_of((most(clipped32 >> 23, 127 + f.exponent) + (23 - f.mantissa)) << 23)
        rounded32 = (float_of(clipped32) + magic32) - magic32
        result32 = bits_of32(rounded32) | (bits32 & ~INT32_MAX)
        if magnitude32 > INF32:
            if has_nan:
                result32 = bits32
            else:
                result32 = ~bits32 & ~INT32_MAX
        return float_of(result32)
    else:
        bits = bits_of(x)
        magnitude = bits & INT64_MAX
        clipped = least(magnitude, bits_of(float_of(greatest_bits(f))))
        magic = double_of((most(clipped >> 52, <int64_t> (1023 + f.exponent)) + (52 - f.mantissa)) << 52)
        rounded = (double_of(clipped) + magic) - magic
        result = bits_of(rounded) | (bits & ~INT64_MAX)
        if magnitude > INF64:
            if has_nan:
                result = bits
            else:
                result = ~bits & ~INT64_MAX
        return double_of(result)


cdef inline uint8_t minifloat_code(floating x, Minifloat f) noexcept nogil:
    """The code of the nearest value.

    As in `nearest_minifloat`, adding the right power of two leaves a multiple of the format's step: the last bits of
    the sum count the steps, 2**m to 2**(m + 1) in a normal binade, and codes count on from binade to binade, 2**m each,
    from that of the least normal values.  What that starts from, modulo 256, is in the power of two already.
    """
    cdef int32_t bits, magnitude, clipped, exponent, code
    cdef int32_t shift = 23 - f.mantissa
    cdef int32_t base = -((127 + f.exponent) * (1 << f.mantissa)) & 0xFF
    if floating is float:
        bits = bits_of32(x)
        magnitude = bits & INT32_MAX
        clipped = least(magnitude, greatest_bits(f))
        exponent = most(clipped & INF32, (127 + f.exponent) << 23)
        code = bits_of32(float_of(clipped) + float_of(exponent + ((shift << 23) + base))) + (exponent >> shift)
        code &= (1 << (f.width - 1)) - 1
        if magnitude > INF32:
            code = f.nan
        return <uint8_t> (code ^ <int32_t> (<uint32_t> (bits & ~INT32_MAX) >> (32 - f.width)))
    else:
        return minifloat_code(<float> nearest_minifloat(x, f), f)  # the formats' values are float32's


cdef inline float minifloat_value(uint8_t code, Minifloat f) noexcept nogil:
    """The value of a code, of whose byte the lowest bits count; for subnormal ones it is their number of steps."""
    cdef int32_t magnitude = code & ((1 << (f.width - 1)) - 1)
    cdef int32_t bits = (magnitude << (23 - f.mantissa)) + ((126 + f.exponent) << 23)
    cdef float step = float_of((127 + f.exponent - f.mantissa) << 23)
    if magnitude < 1 << f.mantissa:
        bits = bits_of32(<float> magnitude * step)
    if magnitude >= f.infinity:
        bits = INF32
    if magnitude >= f.least_nan:
        bits = 0x7FC00000
    return float_of(bits | (<int32_t> (<uint32_t> code << (32 - f.width)) & ~INT32_MAX))
