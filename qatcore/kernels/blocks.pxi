# What microscaling and packing need: the greatest magnitude of every block, and several codes to a byte.

def greatest_magnitudes(
    const word[::1] x, word[::1] out, Py_ssize_t size, Py_ssize_t inner, Py_ssize_t start, Py_ssize_t stop
):
    """out = the greatest magnitude in each block; both x and out hold the bits of floats.

    The bits of NaN are above those of infinity.  A block has `size` elements, `inner` apart.  A row of blocks has
    `inner` of them side by side, in `x` and in `out`.  The rows from `start` up to `stop` are worked on.
    """
    cdef Py_ssize_t row, i, j
    cdef const word* values
    cdef word* greatest
    cdef word top, found
    if word is int32_t:
        top = INT32_MAX
    else:
        top = INT64_MAX
    with nogil:
        for row in range(start, stop):
            values = &x[row * size * inner]
            greatest = &out[row * inner]
            if inner == 1:
                found = 0
                for i in range(size):
                    found = most(found, values[i] & top)
                greatest[0] = found
            else:
                for j in range(inner):
                    greatest[j] = 0
                for i in range(size):
                    for j in range(inner):
                        greatest[j] = most(greatest[j], values[i * inner + j] & top)


cdef inline inlined pack(const uint8_t* codes, uint8_t* packed, Py_ssize_t n, int width) noexcept nogil:
    cdef Py_ssize_t i
    cdef int j, byte
    for i in range(n):
        byte = 0
        for j in range(8 // width):
            byte |= (codes[i * (8 // width) + j] & ((1 << width) - 1)) << (j * width)
        packed[i] = <uint8_t> byte


cdef inline inlined unpack(const uint8_t* packed, uint8_t* codes, Py_ssize_t n, int width) noexcept nogil:
    cdef Py_ssize_t i
    cdef int j
    for i in range(n):
        for j in range(8 // width):
            codes[i * (8 // width) + j] = <uint8_t> ((packed[i] >> (j * width)) & ((1 << width) - 1))


def pack_codes(const uint8_t[::1] codes, uint8_t[::1] packed, int width, Py_ssize_t start, Py_ssize_t stop):
    """packed = codes of `width` bits, 4 or 2, several to a byte, the first one in the lowest bits.

    Each code is in the lowest bits of a byte of `codes`.  Bytes `start` up to `stop` of `packed` are written.
    """
    with nogil:
        if width == 4:  # a constant; otherwise nothing is unrolled
            pack(&codes[start * 2], &packed[start], stop - start, 4)
        else:
            pack(&codes[start * 4], &packed[start], stop - start, 2)


def unpack_codes(const uint8_t[::1] packed, uint8_t[::1] codes, int width, Py_ssize_t start, Py_ssize_t stop):
    """codes = the codes in bytes `start` up to `stop` of `packed`, their upper bits 0; this undoes `pack_codes`."""
    with nogil:
        if width == 4:
            unpack(&packed[start], &codes[start * 2], stop - start, 4)
        else:
            unpack(&packed[start], &codes[start * 4], stop - start, 2)
