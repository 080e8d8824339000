# Which builds of the kernels this machine can run.  Only the baseline build is asked: the others may not
# even be imported before the answer is known.

cdef extern from *:
    """
    #if defined(__x86_64__) && defined(__GNUC__)
    #include <cpuid.h>
    static int qatcore_cpu_level(void)
    {
        unsigned a, b, c, d, low, high;
        /* Leaf 1: FMA, MOVBE, OSXSAVE, AVX, F16C. */
        const unsigned v3_1c = 1u << 12 | 1u << 22 | 1u << 27 | 1u << 28 | 1u << 29;
        /* Leaf 7: BMI1, AVX2, BMI2; then AVX512 F, DQ, CD, BW, VL. */
        const unsigned v3_7b = 1u << 3 | 1u << 5 | 1u << 8;
        const unsigned v4_7b = 1u << 16 | 1u << 17 | 1u << 28 | 1u << 30 | 1u << 31;
        const unsigned lzcnt = 1u << 5;
        if (!__get_cpuid(1, &a, &b, &c, &d) || (c & v3_1c) != v3_1c) return 2;
        /* The operating system must save the wide registers: XCR0 bits 1-2, and 5-7 for AVX-512. */
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        if ((low & 0x6) != 0x6) return 2;
        if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || !(c & lzcnt)) return 2;
        if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (b & v3_7b) != v3_7b) return 2;
        if ((b & v4_7b) != v4_7b || (low & 0xe6) != 0xe6) return 3;
        return 4;
    }
    #else
    static int qatcore_cpu_level(void) { return 0; }
    #endif
    """
    int qatcore_cpu_level() noexcept nogil


def probe_cpu():
    """The x86-64 micro-architecture level of this machine (2, 3 or 4), or 0 on another architecture."""
    return qatcore_cpu_level()
