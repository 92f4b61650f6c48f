/* The portable vector type: VL floats, VL / 2 doubles, on GCC and Clang vector extensions.

   Vectors are declared aligned to their element, so dereferencing a `vf *` or `vd *` is an
   unaligned load or store, and arithmetic is written plainly: a + b * c contracts to an FMA.
   FASTCONV_VL comes from setup.py (one value per ISA); tile shapes follow from the registers
   that the ISA has. */
#ifndef FASTCONV_SIMD_H
#define FASTCONV_SIMD_H

#ifndef FASTCONV_VL
#define FASTCONV_VL 4
#endif

#if defined(__SSE2__)
#include <immintrin.h>
#endif
#if defined(__AVX512F__)
#include <cpuid.h>
#endif

/* Kernels hand tile extents and flags to `cdef inline` functions as constants: those must be inlined, however large. */
#undef CYTHON_INLINE
#define CYTHON_INLINE inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(FASTCONV_VL * 4), aligned(4), may_alias));
typedef double vd __attribute__((vector_size(FASTCONV_VL * 4), aligned(8), may_alias));

/* GEMM tile: MR filters x NV vectors of pixels. MR * NV accumulators, NV vectors of pixels and one broadcast must fit into the
   registers: 16 of them up to AVX2, 32 with AVX-512, whose products broadcast from memory by themselves; a single vector then
   makes the panel of cells that stays in the first-level cache a narrow one. OUTER_MR, OUTER_NV: the tile of a gradient of the
   weight. LISTED_MR, LISTED_NV: of tiles whose places are listed. WINOGRAD_MR, WINOGRAD_NV: where vectors run along filters,
   whose number more often divides by two vectors than by three. LONE_SPAN: MR filled up to whole vectors. DEPTHS: of a tile in
   one turn of its loop, which leaves room to decode for who else runs on the core; of one, each instruction reads at steps
   short enough for the hardware to fetch ahead. LISTED_DEPTHS: where there is nothing to fetch. BLOCK_PIXELS, a multiple of
   every NV * VL: of the block of pixels that stays in the second-level cache, half a MB before AVX-512, one with it.
   RUN_CELLS: of a block, float32 cells that all filters meet before the next ones and results of a panel of filters: a
   first-level cache of them, or all. IN_PLACE_FILTERS: with more of them, cells are read often enough to be worth packing.
   TRIPLE_RUN_CELLS: the same where tiles are LISTED_MR x LISTED_NV wherever there are so many vectors. HEADED: vectors of a
   plane whose first pixels are worth a tile, so that no other vector lies in two lines. */
#if FASTCONV_VL == 16
enum { VL_FLOAT = 16, VL_DOUBLE = 8, MR = 16, NV = 1, DEPTHS = 1, BLOCK_PIXELS = 384 };
enum { LISTED_MR = 8, LISTED_NV = 3, OUTER_MR = 8, OUTER_NV = 3, WINOGRAD_MR = 12, WINOGRAD_NV = 2 };
enum { IN_PLACE_FILTERS = 2048, HEADED = 64, RUN_CELLS = 8192, TRIPLE_RUN_CELLS = 13056 };
#else
enum { VL_FLOAT = FASTCONV_VL, VL_DOUBLE = FASTCONV_VL / 2, MR = 6, NV = 2, DEPTHS = 4, BLOCK_PIXELS = 192 };
enum { LISTED_MR = MR, LISTED_NV = NV, OUTER_MR = MR, OUTER_NV = NV, WINOGRAD_MR = MR, WINOGRAD_NV = NV };
enum { IN_PLACE_FILTERS = 128, HEADED = 32, RUN_CELLS = 1 << 30, TRIPLE_RUN_CELLS = RUN_CELLS };
#endif
enum { LISTED_DEPTHS = 4, LONE_SPAN = (MR + VL_FLOAT - 1) / VL_FLOAT * VL_FLOAT };

/* Whether a tile of one vector, whose every product loads its factor, would wait for loads: cores that multiply two 512-bit
   vectors in a cycle load two. Zen 4, of AMD's family 19h, multiplies one. */
static inline int loads_are_scarce(void)
{
#if FASTCONV_VL == 16 && defined(__AVX512F__)
    unsigned eax, ebx, ecx, edx;
    return __get_cpuid(1, &eax, &ebx, &ecx, &edx) && (eax >> 8 & 0xf) + (eax >> 20 & 0xff) != 0x19;
#else
    return 0;
#endif
}

/* mask ? a : b for vectors (GCC's C has no such operator); mask comes from a comparison. */
#define SIMD_SELECT(mask, a, b) \
    ((__typeof__(a))(((mask) & (__typeof__(mask))(a)) | (~(mask) & (__typeof__(mask))(b))))

/* a > b ? a : b. Where one is NaN the result is b. */
#define SIMD_MAX(name, type) \
    static inline __attribute__((always_inline)) type name(type a, type b) \
    { return SIMD_SELECT(a > b, a, b); }
/* a < b ? a : b. Where one is NaN the result is b. */
#define SIMD_MIN(name, type) \
    static inline __attribute__((always_inline)) type name(type a, type b) \
    { return SIMD_SELECT(a < b, a, b); }

/* The same as one instruction, which compilers find in comparison and selection for the narrower vectors at best. */
#define SIMD_EXTREMUM(name, type, instruction) \
    static inline __attribute__((always_inline)) type name(type a, type b) { return (type)instruction(a, b); }
#define SIMD_EXTREMA(prefix) \
    SIMD_EXTREMUM(vmax_f, vf, prefix##_max_ps) SIMD_EXTREMUM(vmax_d, vd, prefix##_max_pd) \
    SIMD_EXTREMUM(vmin_f, vf, prefix##_min_ps) SIMD_EXTREMUM(vmin_d, vd, prefix##_min_pd)

#if FASTCONV_VL == 16 && defined(__AVX512F__)
SIMD_EXTREMA(_mm512)
#elif FASTCONV_VL == 8 && defined(__AVX__)
SIMD_EXTREMA(_mm256)
#elif FASTCONV_VL == 4 && defined(__SSE2__)
SIMD_EXTREMA(_mm)
#else
SIMD_MAX(vmax_f, vf)
SIMD_MAX(vmax_d, vd)
SIMD_MIN(vmin_f, vf)
SIMD_MIN(vmin_d, vd)
#endif

static inline __attribute__((always_inline)) vf vset_f(float x) { return x - (vf){0}; } /* x - 0 keeps -0.0 */
static inline __attribute__((always_inline)) vd vset_d(double x) { return x - (vd){0}; }

/* acc + a * b, in the register of acc. Left to itself GCC takes any form of the instruction, so that in a loop of several steps
   accumulators wander from register to register and, where all are in use, through memory. */
#define SIMD_FMA(name, type, suffix) \
    static inline __attribute__((always_inline)) type name(type acc, type a, type b) \
    { SIMD_ADD_PRODUCT(suffix); return acc; }
#if defined(__FMA__)
#define SIMD_ADD_PRODUCT(suffix) __asm__("vfmadd231" suffix " %2, %1, %0" : "+v"(acc) : "v"(a), "v"(b))
#elif defined(__SSE2__) && !defined(__AVX__)
#define SIMD_ADD_PRODUCT(suffix) __asm__("add" suffix " %1, %0" : "+x"(acc) : "x"(a * b))
#else
#define SIMD_ADD_PRODUCT(suffix) acc = acc + a * b
#endif
SIMD_FMA(vfma_f, vf, "ps")
SIMD_FMA(vfma_d, vd, "pd")

/* acc + *factor * b, the factor from memory. */
#if FASTCONV_VL == 16 && defined(__AVX512F__)
#define SIMD_FMA_AT(name, fma, set, type, real, form) \
    static inline __attribute__((always_inline)) type name(type acc, const real *factor, type b) \
    { __asm__("vfmadd231" form ", %2, %0" : "+v"(acc) : "m"(*factor), "v"(b)); return acc; }
#else
#define SIMD_FMA_AT(name, fma, set, type, real, form) \
    static inline __attribute__((always_inline)) type name(type acc, const real *factor, type b) \
    { return fma(acc, set(*factor), b); }
#endif
SIMD_FMA_AT(vfma_at_f, vfma_f, vset_f, vf, float, "ps %1%{1to16%}")
SIMD_FMA_AT(vfma_at_d, vfma_d, vset_d, vd, double, "pd %1%{1to8%}")

/* Lanes of a and b, one after the other, by constant numbers: Clang and new GCC have one name for it, older GCC another. */
typedef int simd_if __attribute__((vector_size(FASTCONV_VL * 4)));
typedef long long simd_id __attribute__((vector_size(FASTCONV_VL * 4)));
#if defined(__clang__) || __GNUC__ >= 12
#define SIMD_SHUFFLE_f(a, b, ...) (vf)__builtin_shufflevector(a, b, __VA_ARGS__)
#define SIMD_SHUFFLE_d(a, b, ...) (vd)__builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define SIMD_SHUFFLE_f(a, b, ...) (vf)__builtin_shuffle(a, b, (simd_if){__VA_ARGS__})
#define SIMD_SHUFFLE_d(a, b, ...) (vd)__builtin_shuffle(a, b, (simd_id){__VA_ARGS__})
#endif

#define SIMD_PREFETCH(p) __builtin_prefetch((const void *)(p), 0, 3)
/* Into the second-level cache, which can have more lines on the way than the first. */
#define SIMD_PREFETCH_SECOND(p) __builtin_prefetch((const void *)(p), 0, 2)

/* Keeps the loop that calls it as it is, for a few turns: neither unrolled nor made of vectors. */
#if defined(__GNUC__)
#define SIMD_ROLLED() __asm__ volatile("")
#else
#define SIMD_ROLLED()
#endif

/* p, of which the compiler knows no more than that: of the rows of a tile it would else keep an address each from one tile
   to the next, for which there are no registers. */
static inline __attribute__((always_inline)) void *opaque(void *p)
{
#if defined(__GNUC__)
    __asm__("" : "+r"(p));
#endif
    return p;
}

#endif
