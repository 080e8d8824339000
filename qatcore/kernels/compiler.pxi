# Hints for the compiler.

cdef extern from *:
    """
    #if defined(__GNUC__)
    #define QATCORE_PREFETCH(p) __builtin_prefetch(p)
    #define QATCORE_PREFETCH_TO_WRITE(p) __builtin_prefetch(p, 1)
    #define QATCORE_INLINED __attribute__((always_inline)) void
    #define QATCORE_APART() __asm__ volatile("")
    #else
    #define QATCORE_PREFETCH(p) ((void)(p))
    #define QATCORE_PREFETCH_TO_WRITE(p) ((void)(p))
    #define QATCORE_INLINED void
    #define QATCORE_APART() ((void)0)
    #endif
    """
    # Ask for memory before it is needed, where the processor cannot foresee the need.
    void prefetch "QATCORE_PREFETCH"(const void*) noexcept nogil
    void prefetch_to_write "QATCORE_PREFETCH_TO_WRITE"(const void*) noexcept nogil
    # The result type of functions that must be inlined, so that their arguments are constants.  By its own judgement a
    # compiler would find them too large to inline several times.
    ctypedef void inlined "QATCORE_INLINED"
    # Keep the compiler from making vectors that span several iterations of the loop around this call.
    void keep_iterations_apart "QATCORE_APART"() noexcept nogil
