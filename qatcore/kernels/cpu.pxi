# Find out which builds of the kernels this machine can run.  Only the baseline build answers: the others must not
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
    enum { QATCORE_AVXVNNI = 1, QATCORE_VNNI = 2, QATCORE_AMX = 4 };
    static int qatcore_cpu_features(void)
    {
        unsigned a, b, c, d, low, high, found = 0;
        const unsigned amx_7d = 1u << 24 | 1u << 25;  /* tiles, int8 */
        const int level = qatcore_cpu_level();
        if (level < 3 || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        if (level >= 4 && c & 1u << 11) found |= QATCORE_VNNI;
        if (level >= 4 && (d & amx_7d) == amx_7d && (low & 0x60000) == 0x60000) found |= QATCORE_AMX;
        if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && a & 1u << 4) found |= QATCORE_AVXVNNI;
    #ifdef QATCORE_EMULATE
        if (found & QATCORE_VNNI) found |= QATCORE_AMX | QATCORE_AVXVNNI;
    #endif
        return found;
    }
    #else
    static int qatcore_cpu_level(void) { return 0; }
    static int qatcore_cpu_features(void) { return 0; }
    #endif
    #if defined(__x86_64__) && defined(__linux__) && !defined(QATCORE_EMULATE)
    #include <unistd.h>
    #include <sys/syscall.h>
    /* Linux gives a process the tiles' eight kilobytes only if it asks (Documentation/arch/x86/xstate.rst). */
    static int qatcore_request_amx(void)
    {
        const int get = 0x1022, request = 0x1023, tile_data = 18;
        unsigned long granted = 0;
        if (!syscall(SYS_arch_prctl, get, &granted) && granted >> tile_data & 1) return 1;
        if (syscall(SYS_arch_prctl, request, tile_data)) return 0;
        return !syscall(SYS_arch_prctl, get, &granted) && granted >> tile_data & 1;
    }
    #elif defined(QATCORE_EMULATE)
    static int qatcore_request_amx(void) { return 1; }
    #else
    static int qatcore_request_amx(void) { return 0; }
    #endif
    """
    int qatcore_cpu_level() noexcept nogil
    int qatcore_cpu_features() noexcept nogil
    int qatcore_request_amx() noexcept nogil


def probe_cpu():
    """Return the x86-64 micro-architecture level of this machine (2, 3 or 4), or 0 on another architecture."""
    return qatcore_cpu_level()


def probe_gemm():
    """Return which GEMM modules this machine can run; the operating system may still refuse AMX to a process."""
    found = qatcore_cpu_features()
    return [name for bit, name in ((1, "avxvnni"), (2, "vnni"), (4, "amx")) if found & bit]


def request_amx():
    """Ask the operating system for the tile registers; return whether this process may use them."""
    return bool(qatcore_request_amx())
