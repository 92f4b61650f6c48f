"""What this CPU can run. Baseline code: it is imported before any ISA level is."""

cdef extern from *:
    """
    #if defined(__x86_64__) && (defined(__GNUC__) || defined(__clang__))
    static int fastconv_cpu_level(void)
    {
        __builtin_cpu_init();
        if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi")
              && __builtin_cpu_supports("bmi2")))
            return 0;
        if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw")
              && __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq")
              && __builtin_cpu_supports("avx512vl")))
            return 1;
        return 2;
    }
    #else
    static int fastconv_cpu_level(void) { return 0; }
    #endif
    #ifdef _OPENMP
    static int fastconv_openmp(void) { return 1; }
    #else
    static int fastconv_openmp(void) { return 0; }
    #endif
    """
    int fastconv_cpu_level() nogil
    int fastconv_openmp() nogil


def level() -> int:
    """Index into ISAS of the highest level that this CPU and its operating system support."""
    return fastconv_cpu_level()


def openmp() -> bool:
    """Whether the extension was built with OpenMP."""
    return fastconv_openmp() != 0
