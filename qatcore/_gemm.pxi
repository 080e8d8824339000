# int8 x int8 -> int64.  Operands come widened to int16, so that the compiler can use the multiply-add of
# int16 pairs (pmaddwd), which is exact, and not the one of bytes, which saturates.

cdef enum:
    DEPTH = 1024      # of K at a time: partial sums in int32 are exact far beyond that
    COLUMNS = 64      # of the right operand at a time: they stay in L2


def multiply_int16(const int16_t[:, ::1] a, const int16_t[:, ::1] b, int64_t[:, :] out):
    """out = a @ b.T, exactly, for values of int8 or uint8 range.

    At most DEPTH products of at most 2**16 in magnitude are summed in int32, the rest in int64.
    """
    cdef Py_ssize_t rows = a.shape[0], columns = b.shape[0], depth = a.shape[1]
    cdef Py_ssize_t k0, k1, j0, j1, i, j, k
    cdef int32_t s00, s01, s10, s11, x0, x1, y0, y1
    with nogil:
        for i in range(rows):
            for j in range(columns):
                out[i, j] = 0
        for k0 in range(0, depth, 1024):  # DEPTH: a step must be a literal to stay a C loop
            k1 = min(k0 + DEPTH, depth)
            for j0 in range(0, columns, 64):  # COLUMNS
                j1 = min(j0 + COLUMNS, columns)
                i = 0
                while i + 1 < rows:
                    j = j0
                    while j + 1 < j1:
                        s00 = s01 = s10 = s11 = 0
                        for k in range(k0, k1):
                            x0 = a[i, k]
                            x1 = a[i + 1, k]
                            y0 = b[j, k]
                            y1 = b[j + 1, k]
                            s00 += x0 * y0
                            s01 += x0 * y1
                            s10 += x1 * y0
                            s11 += x1 * y1
                        out[i, j] += s00
                        out[i, j + 1] += s01
                        out[i + 1, j] += s10
                        out[i + 1, j + 1] += s11
                        j += 2
                    while j < j1:
                        out[i, j] += dot_int16(a, b, i, j, k0, k1)
                        out[i + 1, j] += dot_int16(a, b, i + 1, j, k0, k1)
                        j += 1
                    i += 2
                while i < rows:
                    for j in range(j0, j1):
                        out[i, j] += dot_int16(a, b, i, j, k0, k1)
                    i += 1


cdef inline int32_t dot_int16(
    const int16_t[:, ::1] a, const int16_t[:, ::1] b, Py_ssize_t i, Py_ssize_t j, Py_ssize_t k0, Py_ssize_t k1
) noexcept nogil:
    cdef int32_t total = 0, x, y
    cdef Py_ssize_t k
    for k in range(k0, k1):
        x = a[i, k]
        y = b[j, k]
        total += x * y
    return total
