"""What this CPU can run, and the threads that run it. Baseline code: it is imported before any ISA level is."""

from fastconv._threads import available_cpus

cdef extern from *:
    """
    #define FASTCONV_TEAM
    #include "team.h"
    """
    object team_capsule(int cpus)

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
    """
    int fastconv_cpu_level() nogil


def level() -> int:
    """Index into ISAS of the highest level that this CPU and its operating system support."""
    return fastconv_cpu_level()


run = team_capsule(available_cpus())  # what `team_join` finds
