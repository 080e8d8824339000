# What compilers have to be told.

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
    # Ask for memory before it is needed, where the processor's own prefetching cannot know.
    void prefetch "QATCORE_PREFETCH"(const void*) noexcept nogil
    void prefetch_to_write "QATCORE_PREFETCH_TO_WRITE"(const void*) noexcept nogil
    # The result of functions that are too large to be inlined several times, by a compiler's own judgement, but
    # whose arguments have to be constants.
    ctypedef void inlined "QATCORE_INLINED"
    # Keep vectors within an iteration of the loop that this stands in.
    void keep_iterations_apart "QATCORE_APART"() noexcept nogil
