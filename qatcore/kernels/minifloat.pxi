# Floating-point formats of at most 8 bits.  Parameters describe the formats, so one loop serves them all.

cdef struct Minifloat:
    int32_t width      # bits in all, with the sign
    int32_t mantissa   # bits of the mantissa
    int32_t exponent   # of the least normal value
    int32_t greatest   # code of the greatest finite value
    int32_t infinity   # code of infinity, or 0x100, beyond all codes, if there is none
    int32_t least_nan  # least code of NaN, or 0x100 if there is none
    int32_t nan        # code given to NaN; the sign bit of a NaN flips the code's


cdef inline Minifloat minifloat(const int32_t[::1] layout) noexcept nogil:
    """Return the parameters from an array that has them in order."""
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
    """Return the greatest finite value, as the bits of a float32."""
    return (f.greatest << (23 - f.mantissa)) + ((126 + f.exponent) << 23)


cdef inline floating nearest_minifloat(floating x, Minifloat f) noexcept nogil:
    """Return the nearest value of the format, ties to even, saturating.

    Zero keeps its sign.  NaN stays NaN if the format has one; otherwise it becomes -0, or 0 if its sign bit is set.

    With m bits of mantissa, the step in the binade of 2**e is 2**(e - m).  Below the least normal values, it stays as
    it is there.  Adding 2**(e + 52 - m) in float64, or 2**(e + 23 - m) in float32, rounds to a multiple of this step,
    once.  Subtracting it again leaves this multiple.
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
    """Return the code of the nearest value.

    As in `nearest_minifloat`, adding the right power of two rounds to a multiple of the format's step.  So the last
    bits of the sum count steps: 2**m to 2**(m + 1) of them in a normal binade.  Codes count on from binade to binade,
    2**m in each, from the binade of the least normal values.  The power of two already holds the start of this count,
    modulo 256.
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
        return minifloat_code(<float> nearest_minifloat(x, f), f)  # float32 holds all values of the formats


cdef inline float minifloat_value(uint8_t code, Minifloat f) noexcept nogil:
    """Return the value of a code in the lowest bits of a byte; the code of a subnormal is its number of steps."""
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
