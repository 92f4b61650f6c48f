# cython: language_level=3
"""Maxima of windows on vectors: what the pool kernels and the max-pool fused behind a convolution share.

Windows are reduced first along the row, then over the rows: of equal maxima that still finds the first in row-major order,
and rows that windows share are reduced once: a ring holds the reduced rows that are still needed, image row ih in slot
ih & (slots - 1). `max_rows` does that for any windows. Those that networks have, where no cell is NaN, are done in one sweep:
`max_common` finds their indices too, `max_strided` and `max_sliding` values alone, which no order binds.

Lanes of a vector are windows that are neighbours in a row. A vector that meets columns outside the image masks them off.
Cells of one window are numbered with integers as wide as the elements: in float32 its rows must span fewer than 2**31 cells.
"""

from libc.math cimport INFINITY
from libc.stdint cimport INT32_MAX, int32_t

from common cimport (
    CACHE_LINE, GEO_DIL_H, GEO_DIL_W, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_STRIDE_H,
    GEO_STRIDE_W, ceil_div, int64_t, real, vec, vmax,
)
from common cimport VL_FLOAT as _VL_FLOAT

cdef extern from *:
    """
    #if defined(__AVX2__)
    #include <immintrin.h>
    #endif
    #define POOL static inline __attribute__((always_inline))
    #define POOL_RARE static __attribute__((noinline)) /* else it takes vectors through memory in the common case too */
    #if FASTCONV_VL == 16 && defined(__AVX512F__)
    typedef __mmask16 pool_flags; /* of NaNs: as a vector it would take a slow transfer for each note */
    #else
    typedef long long pool_flags __attribute__((vector_size(FASTCONV_VL * 4)));
    #endif
    typedef int vfi __attribute__((vector_size(FASTCONV_VL * 4), aligned(4), may_alias));
    typedef long long vdi __attribute__((vector_size(FASTCONV_VL * 4), aligned(8), may_alias));

    /* Every other element of two vectors, as 128-bit pieces allow: a[0] a[2] b[0] b[2] a[4] ... `untangle` puts the pairs
       of such a result into their places, once for all that was computed from it. NEXT: for each of them the one that
       follows it among the elements; for the last any. BEFORE, AFTER: each element's neighbour; at the end itself. */
    #if FASTCONV_VL == 16
    #define EVEN_F ((vfi){0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30})
    #define EVEN_D ((vdi){0, 8, 2, 10, 4, 12, 6, 14})
    #define NEXT_F ((vfi){1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 2, 15, 15})
    #define NEXT_D ((vdi){2, 3, 4, 5, 6, 7, 1, 7})
    #define PLACES ((vdi){0, 2, 4, 6, 1, 3, 5, 7})
    #define LOWER ((vfi){0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29})
    #define UPPER ((vfi){2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31})
    #define BEFORE_F ((vfi){0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14})
    #define BEFORE_D ((vdi){0, 0, 1, 2, 3, 4, 5, 6})
    #define AFTER_F ((vfi){1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 15})
    #define AFTER_D ((vdi){1, 2, 3, 4, 5, 6, 7, 7})
    #elif FASTCONV_VL == 8
    #define EVEN_F ((vfi){0, 2, 8, 10, 4, 6, 12, 14})
    #define EVEN_D ((vdi){0, 4, 2, 6})
    #define NEXT_F ((vfi){1, 4, 3, 6, 5, 2, 7, 7})
    #define NEXT_D ((vdi){2, 3, 1, 3})
    #define PLACES ((vdi){0, 2, 1, 3})
    #define LOWER ((vfi){0, 8, 1, 9, 4, 12, 5, 13})
    #define UPPER ((vfi){2, 10, 3, 11, 6, 14, 7, 15})
    #define BEFORE_F ((vfi){0, 0, 1, 2, 3, 4, 5, 6})
    #define BEFORE_D ((vdi){0, 0, 1, 2})
    #define AFTER_F ((vfi){1, 2, 3, 4, 5, 6, 7, 7})
    #define AFTER_D ((vdi){1, 2, 3, 3})
    #else
    #define EVEN_F ((vfi){0, 2, 4, 6})
    #define EVEN_D ((vdi){0, 2})
    #define NEXT_F ((vfi){1, 2, 3, 3})
    #define NEXT_D ((vdi){1, 1})
    #define PLACES ((vdi){0, 1})
    #define LOWER ((vfi){0, 4, 1, 5})
    #define UPPER ((vfi){2, 6, 3, 7})
    #define BEFORE_F ((vfi){0, 0, 1, 2})
    #define BEFORE_D ((vdi){0, 0})
    #define AFTER_F ((vfi){1, 2, 3, 3})
    #define AFTER_D ((vdi){1, 1})
    #endif

    #if defined(__clang__)
    #define POOL_SHUFFLE(VL, a, b, places) ({ \\
        __typeof__(a) a_ = (a), b_ = (b), v_ = a_; __typeof__(places) p_ = (places); \\
        for (int i_ = 0; i_ < VL; i_++) v_[i_] = p_[i_] < VL ? a_[p_[i_]] : b_[p_[i_] - VL]; \\
        v_; })
    #else
    #define POOL_SHUFFLE(VL, a, b, places) __builtin_shuffle(a, b, places)
    #endif

    /* A vector that two instructions need is loaded once: compilers would let both read memory, which most often means two
       cache lines each. */
    #if defined(__AVX512F__)
    #define POOL_KEEP(v) __asm__("" : "+v"(v))
    #elif defined(__AVX__)
    #define POOL_KEEP(v) __asm__("" : "+x"(v))
    #else
    #define POOL_KEEP(v)
    #endif

    /* A number that a short loop needs, as a variable of its own: one that lives long would stay in memory. */
    #define pool_own(n) __asm__("" : "+r"(n))

    #if FASTCONV_VL == 16 && defined(__AVX512F__)
    #define POOL_LOAD(pd, epu, set1, cells, lane, VL) { \\
        cells at; \\
        for (int i = 0; i < VL; i++) at[i] = i; \\
        at += (lane)column; \\
        return _mm512_mask_loadu_##pd( /* unsigned: what is negative is not below extent either */ \\
            _mm512_set1_##pd(border), _mm512_cmplt_##epu##_mask((__m512i)at, _mm512_##set1(extent)), row + column); }
    #define POOL_LOAD_f(type, vec, cells, VL) POOL_LOAD(ps, epu32, set1_epi32, cells, int, VL)
    #define POOL_LOAD_d(type, vec, cells, VL) POOL_LOAD(pd, epu64, set1_epi64, cells, long long, VL)
    #elif FASTCONV_VL == 8 && defined(__AVX2__)
    #define POOL_LOAD(pd, vec, cells, lane, VL) { \\
        const lane least = 1ULL << (8 * sizeof(lane) - 1); /* below it, what was negative is large: one comparison */ \\
        cells at; \\
        for (int i = 0; i < VL; i++) at[i] = i; \\
        cells inside = at + ((lane)column ^ least) < ((lane)extent ^ least); \\
        cells v = (cells)_mm256_maskload_##pd(row + column, (__m256i)inside); /* 0 outside */ \\
        return (vec)(v | (~inside & (cells)((vec){0} + border))); }
    #define POOL_LOAD_f(type, vec, cells, VL) POOL_LOAD(ps, vec, cells, int, VL)
    #define POOL_LOAD_d(type, vec, cells, VL) POOL_LOAD(pd, vec, cells, long long, VL)
    #else
    #define POOL_LOAD_f(type, vec, cells, VL) { \\
        vec v; \\
        for (int i = 0; i < VL; i++) v[i] = column + i >= 0 && column + i < extent ? row[column + i] : border; \\
        return v; }
    #define POOL_LOAD_d POOL_LOAD_f
    #endif

    #define POOL_HELPERS(S, type, vec, cells, VL, EVEN, NEXT, BEFORE, AFTER) \\
    /* Lane i: row[column + i]; border, and not read, where that is outside [0, extent). */ \\
    POOL vec load_##S(const type *row, Py_ssize_t column, Py_ssize_t extent, type border) \\
    POOL_LOAD_##S(type, vec, cells, VL) \\
    /* Lane i: row[column + offset + i * stride], border outside of the image; inside: there is no lane outside. */ \\
    POOL void tap_##S( \\
        vec *v, int inside, const type *row, Py_ssize_t column, Py_ssize_t offset, Py_ssize_t stride, Py_ssize_t extent, \\
        type border) \\
    { \\
        if (stride == 1) { \\
            *v = inside ? *(const vec *)(row + column + offset) : load_##S(row, column + offset, extent, border); \\
        } else if (stride == 2) { \\
            Py_ssize_t first = column + (offset & ~1); \\
            vec low = inside ? *(const vec *)(row + first) : load_##S(row, first, extent, border); \\
            vec high = inside ? *(const vec *)(row + first + VL) : load_##S(row, first + VL, extent, border); \\
            *v = offset & 1 ? POOL_SHUFFLE(VL, low, high, EVEN + 1) : POOL_SHUFFLE(VL, low, high, EVEN); \\
        } else { \\
            for (int i = 0; i < VL; i++) { \\
                Py_ssize_t at = column + offset + i * stride; \\
                (*v)[i] = inside || (at >= 0 && at < extent) ? row[at] : border; \\
            } \\
        } \\
    } \\
    POOL void pool_even_##S(vec *v, vec a, vec b) { *v = POOL_SHUFFLE(VL, a, b, EVEN); } \\
    POOL void pool_odd_##S(vec *v, vec a, vec b) { *v = POOL_SHUFFLE(VL, a, b, EVEN + 1); } \\
    POOL void pool_next_even_##S(vec *v, vec a) { *v = POOL_SHUFFLE(VL, a, a, NEXT); } \\
    POOL void pool_before_##S(vec *v, vec a) { *v = POOL_SHUFFLE(VL, a, a, BEFORE); } \\
    POOL void pool_after_##S(vec *v, vec a) { *v = POOL_SHUFFLE(VL, a, a, AFTER); } \\
    POOL void cells_of_##S(vec *v, Py_ssize_t first, Py_ssize_t stride) \\
    { \\
        cells at = EVEN; /* that names the columns of a tap's lanes, too */ \\
        if (stride == 1) for (int i = 0; i < VL; i++) at[i] = i; \\
        *v = (vec)(at + (type##_lane)first); \\
    } \\
    POOL void taps_outside_##S(vec *v, Py_ssize_t column, Py_ssize_t stride, Py_ssize_t extent) \\
    { \\
        vec at_; \\
        cells_of_##S(&at_, column, stride); \\
        cells at = (cells)at_; \\
        *v = (vec)((at < 0) | (at >= (type##_lane)extent)); \\
    } \\
    POOL void lanes_outside_##S(vec *v, Py_ssize_t column, Py_ssize_t extent) \\
    { \\
        cells at; \\
        for (int i = 0; i < VL; i++) at[i] = i; \\
        at += (type##_lane)column; \\
        *v = (vec)((at < 0) | (at >= (type##_lane)extent)); \\
    } \\
    POOL void pool_keep_##S(vec *v) { POOL_KEEP(*v); } \\
    POOL void put_halves_##S(type *p, vec v, Py_ssize_t step) \\
    { \\
        __builtin_memcpy(p, &v, sizeof v / 2); \\
        __builtin_memcpy(p + step, (const char *)&v + sizeof v / 2, sizeof v / 2); \\
    } \\
    POOL int has_flags_##S(vec v) \\
    { vdi bits = (vdi)v; long long any = 0; for (int i = 0; i < VL_DOUBLE; i++) any |= bits[i]; return any != 0; } \\
    POOL void untangle_##S(vec *v) { *v = (vec)POOL_SHUFFLE(VL_DOUBLE, (vdi)*v, (vdi)*v, PLACES); } \\
    POOL void ramp_##S(vec *v, int64_t first, int64_t step) \\
    { cells lane; for (int i = 0; i < VL; i++) lane[i] = i; *v = (vec)(lane * (type##_lane)step + (type##_lane)first); } \\
    POOL void spread_##S(vec *v, type number) { *v = number - (vec){0}; } /* - 0 keeps the sign of zeros */ \\
    POOL void add_cells_##S(vec *v, vec other) { *v = (vec)((cells)*v + (cells)other); } \\
    POOL void subtract_cells_##S(vec *v, vec from) { *v = (vec)((cells)from - (cells)*v); } \\
    POOL void add_flags_##S(vec *v, vec other) { *v = (vec)((cells)*v | (cells)other); } \\
    POOL_RARE void put_some_##S(type *p, vec v, Py_ssize_t count) \\
    { \\
        type lanes[VL]; \\
        __builtin_memcpy(lanes, &v, sizeof v); \\
        POOL_PUT(p, lanes, count) \\
    } \\
    POOL_RARE void put_some_cells_##S(int64_t *p, vec v, int64_t base, Py_ssize_t count) \\
    { \\
        int64_t lanes[VL]; \\
        for (int i = 0; i < VL; i++) lanes[i] = base + ((cells)v)[i]; \\
        POOL_PUT(p, lanes, count) \\
    } \\
    POOL void put_##S(type *p, vec v, Py_ssize_t count) \\
    { if (count >= VL) *(vec *)p = v; else put_some_##S(p, v, count); } \\
    POOL void put_cells_##S(int64_t *p, vec v, int64_t base, Py_ssize_t count) \\
    { \\
        if (count >= VL) for (int i = 0; i < VL; i++) p[i] = base + ((cells)v)[i]; \\
        else put_some_cells_##S(p, v, base, count); \\
    }

    /* The first `count` elements, fewer than VL, by two pieces that overlap. */
    #define POOL_PUT(to, from, count) \\
        POOL_PIECE(8, to, from, count) POOL_PIECE(4, to, from, count) POOL_PIECE(2, to, from, count) \\
        POOL_PIECE(1, to, from, count)
    #define POOL_PIECE(n, to, from, count) \\
        if (n < sizeof from / sizeof *from && count >= n) { \\
            __builtin_memcpy(to, from, n * sizeof *from); \\
            __builtin_memcpy(to + count - n, from + count - n, n * sizeof *from); \\
            return; \\
        }

    typedef int float_lane;
    typedef long long double_lane;
    POOL_HELPERS(f, float, vf, vfi, VL_FLOAT, EVEN_F, NEXT_F, BEFORE_F, AFTER_F)
    POOL_HELPERS(d, double, vd, vdi, VL_DOUBLE, EVEN_D, NEXT_D, BEFORE_D, AFTER_D)

    /* Cells as `untangle` would order them: in a float's the pieces hold pairs, each of which becomes one piece. */
    POOL void put_tangled_cells_f(int64_t *p, vf v)
    {
        *(vdi *)p = (vdi)POOL_SHUFFLE(VL_FLOAT, (vfi)v, (vfi){0}, LOWER);
        *(vdi *)(p + VL_DOUBLE) = (vdi)POOL_SHUFFLE(VL_FLOAT, (vfi)v, (vfi){0}, UPPER);
    }
    POOL void put_tangled_cells_d(int64_t *p, vd v)
    { untangle_d(&v); *(vdi *)p = (vdi)v; }

    #if FASTCONV_VL == 16 && defined(__AVX512F__)
    #define POOL_RULES(S, vec, pd) \\
    POOL void fold_max_##S(vec *best, vec value) \\
    { \\
        *best = _mm512_mask_mov_##pd( \\
            _mm512_max_##pd(value, *best), _mm512_cmp_##pd##_mask(value, value, _CMP_UNORD_Q), value); \\
    } \\
    POOL void fold_first_##S(vec *best, vec *where, vec value, vec cell) \\
    { \\
        __auto_type wins = _mm512_mask_cmp_##pd##_mask( \\
            _mm512_cmp_##pd##_mask(*best, *best, _CMP_ORD_Q), value, *best, _CMP_NLE_UQ); \\
        *best = _mm512_mask_mov_##pd(*best, wins, value); \\
        *where = _mm512_mask_mov_##pd(*where, wins, cell); \\
    }
    POOL_RULES(f, vf, ps)
    POOL_RULES(d, vd, pd)
    #define POOL_COMMON_RULES(S, vec, pd, epi) \\
    POOL void note_nan_##S(pool_flags *flags, vec a, vec b) \\
    { *flags = _kor_mask16(*flags, _mm512_cmp_##pd##_mask(a, b, _CMP_UNORD_Q)); } \\
    POOL void fold_larger_##S(vec *best, vec *where, vec value, vec cell) \\
    { \\
        __auto_type wins = _mm512_cmp_##pd##_mask(value, *best, _CMP_GT_OQ); \\
        *best = _mm512_max_##pd(value, *best); \\
        *where = _mm512_mask_mov_##pd(*where, wins, cell); \\
    } \\
    POOL void fold_second_##S(vec *best, vec *wins, vec value) \\
    { \\
        *wins = (vec)_mm512_maskz_set1_##epi(_mm512_cmp_##pd##_mask(value, *best, _CMP_GT_OQ), -1); \\
        *best = _mm512_max_##pd(value, *best); \\
    } \\
    POOL void replace_##S(vec *v, vec mask, vec by) \\
    { *v = _mm512_mask_mov_##pd(*v, _mm512_test_##epi##_mask((__m512i)mask, (__m512i)mask), by); }
    POOL_COMMON_RULES(f, vf, ps, epi32)
    POOL_COMMON_RULES(d, vd, pd, epi64)
    #else
    #define POOL_RULES(S, vec, cells) \\
    POOL void fold_max_##S(vec *best, vec value) \\
    { vec maximum = vmax_##S(value, *best); *best = SIMD_SELECT(value != value, value, maximum); } \\
    POOL void fold_first_##S(vec *best, vec *where, vec value, vec cell) \\
    { \\
        cells wins = (cells)~(value <= *best) & (cells)(*best == *best); \\
        *best = SIMD_SELECT(wins, value, *best); \\
        *where = SIMD_SELECT(wins, cell, *where); \\
    }
    POOL_RULES(f, vf, vfi)
    POOL_RULES(d, vd, vdi)
    #if FASTCONV_VL == 8 && defined(__AVX2__)
    #define UNORDERED_f(a, b) (vfi)_mm256_cmp_ps(a, b, _CMP_UNORD_Q)
    #define UNORDERED_d(a, b) (vdi)_mm256_cmp_pd(a, b, _CMP_UNORD_Q)
    #define PICK_f(mask, a, b) (vf)_mm256_blendv_ps((vf)(b), (vf)(a), (vf)(mask))
    #define PICK_d(mask, a, b) (vd)_mm256_blendv_pd((vd)(b), (vd)(a), (vd)(mask))
    #else
    #define UNORDERED_f(a, b) ((a != a) | (b != b))
    #define UNORDERED_d UNORDERED_f
    #define PICK_f SIMD_SELECT
    #define PICK_d SIMD_SELECT
    #endif
    #define POOL_COMMON_RULES(S, vec, cells) \\
    POOL void note_nan_##S(pool_flags *flags, vec a, vec b) { *flags |= (pool_flags)UNORDERED_##S(a, b); } \\
    POOL void fold_larger_##S(vec *best, vec *where, vec value, vec cell) \\
    { \\
        cells wins = value > *best; \\
        *best = vmax_##S(value, *best); \\
        *where = PICK_##S(wins, cell, *where); \\
    } \\
    POOL void fold_second_##S(vec *best, vec *wins, vec value) \\
    { *wins = (vec)(value > *best); *best = vmax_##S(value, *best); } \\
    POOL void replace_##S(vec *v, vec mask, vec by) { *v = PICK_##S((cells)mask, by, *v); }
    POOL_COMMON_RULES(f, vf, vfi)
    POOL_COMMON_RULES(d, vd, vdi)
    #endif

    #if FASTCONV_VL == 16 && defined(__AVX512F__)
    POOL int has_nan(pool_flags flags) { return flags != 0; }
    POOL pool_flags no_nan(void) { return 0; }
    #else
    POOL int has_nan(pool_flags flags)
    { long long any = 0; for (int i = 0; i < VL_DOUBLE; i++) any |= flags[i]; return any != 0; }
    POOL pool_flags no_nan(void) { return (pool_flags){0}; }
    #endif
    #define POOL_OF(name, v) _Generic((v), vf: name##_f, vd: name##_d)
    #define tap(v, inside, row, column, offset, stride, extent, border) \\
        POOL_OF(tap, *(v))(v, inside, (const void *)(row), column, offset, stride, extent, border)
    #define spread(v, number) POOL_OF(spread, *(v))(v, number)
    #define untangle(v) POOL_OF(untangle, *(v))(v)
    #define pool_even(v, a, b) POOL_OF(pool_even, a)(v, a, b)
    #define pool_odd(v, a, b) POOL_OF(pool_odd, a)(v, a, b)
    #define pool_next_even(v, a) POOL_OF(pool_next_even, a)(v, a)
    #define pool_before(v, a) POOL_OF(pool_before, a)(v, a)
    #define pool_after(v, a) POOL_OF(pool_after, a)(v, a)
    #define cells_of(v, first, stride) POOL_OF(cells_of, *(v))(v, first, stride)
    #define taps_outside(v, column, stride, extent) POOL_OF(taps_outside, *(v))(v, column, stride, extent)
    #define fold_second(best, wins, value) POOL_OF(fold_second, value)(best, wins, value)
    #define subtract_cells(v, from) POOL_OF(subtract_cells, from)(v, from)
    #define add_flags(v, other) POOL_OF(add_flags, other)(v, other)
    #define put_tangled_cells(p, v) POOL_OF(put_tangled_cells, v)(p, v)
    #define note_nan(flags, a, b) POOL_OF(note_nan, a)(flags, a, b)
    #define lanes_outside(v, column, extent) POOL_OF(lanes_outside, *(v))(v, column, extent)
    #define pool_keep(v) POOL_OF(pool_keep, *(v))(v)
    #define put_halves(p, value, step) POOL_OF(put_halves, value)((void *)(p), value, step)
    #define replace(v, mask, by) POOL_OF(replace, by)(v, mask, by)
    #define has_flags(v) POOL_OF(has_flags, v)(v)
    #define fold_larger(best, where, value, cell) POOL_OF(fold_larger, value)(best, where, value, cell)
    #define fold_max(best, value) POOL_OF(fold_max, value)(best, value)
    #define fold_first(best, where, value, cell) POOL_OF(fold_first, value)(best, where, value, cell)
    #define ramp(v, first, step) POOL_OF(ramp, *(v))(v, first, step)
    #define add_cells(v, other) POOL_OF(add_cells, other)(v, other)
    #define put(p, value, count) POOL_OF(put, value)((void *)(p), value, count)
    #define put_cells(p, cell, base, count) POOL_OF(put_cells, cell)(p, cell, base, count)
    """
    void SIMD_PREFETCH(...) nogil
    ctypedef long long pool_flags  # a flag for each lane
    # Macros over both vector types; v, best and where are pointers to vectors, value, other and cell are vectors.
    # Vectors of cells hold integers as wide as `real` in the bits of a vf or vd.
    # tap (v, inside, row, column, offset, stride, extent, border): lane i is row[column + offset + i * stride], or border
    # where that is not in [0, extent); with stride 2 not yet untangle.
    void tap(...) nogil
    void spread(...) nogil      # (v, number)             lane i: number
    void untangle(...) nogil    # (v)                     what was computed from such taps: each lane to its place
    void pool_even(...) nogil   # (v, a, b)               every other element of a, then b, not yet untangle
    void pool_odd(...) nogil    # (v, a, b)               the elements between them
    void pool_next_even(...) nogil  # (v, a)               a as pool_even gives it: each lane's next; in the last lane any
    void pool_before(...) nogil  # (v, a)                 each lane's neighbour below, the first lane itself
    void pool_after(...) nogil  # (v, a)                  each lane's neighbour above, the last lane itself
    void fold_max(...) nogil    # (best, value)           the maximum: NaN wins, of equals best (zeros have signs)
    void fold_first(...) nogil  # (best, where, value, cell)  where value is larger, or the first NaN: it and its cell
    void fold_larger(...) nogil  # (best, where, value, cell)  fold_first where neither is NaN
    void note_nan(...) nogil    # (flags, a, b)           flags the lanes where a or b is NaN
    bint has_nan(pool_flags flags) nogil  # whether a lane is flagged
    pool_flags no_nan() nogil   # ()                      no lane is flagged
    bint has_flags(...) nogil   # (v)                     whether a lane of a vector is flagged
    void lanes_outside(...) nogil  # (v, column, extent)  flags the lanes with column + lane outside of [0, extent)
    void pool_own(...) nogil         # (n)                     a number, in a register of its own
    void pool_keep(...) nogil   # (v)                     in a register, for those that need it
    void put_halves(...) nogil  # (p, value, step)        the lower lanes to p, the upper ones to p + step
    void replace(...) nogil     # (v, mask, by)           v = by in the lanes that mask flags
    void cells_of(...) nogil    # (v, first, stride)      cells: first + stride * i, in the order of a tap's lanes
    void taps_outside(...) nogil  # (v, column, stride, extent)  flags those of such cells that are not in [0, extent)
    void fold_second(...) nogil  # (best, wins, value)    fold_max of what is not NaN; flags the lanes where value is larger
    void subtract_cells(...) nogil  # (v, from)           cells: v = from - v
    void add_flags(...) nogil   # (v, other)              flags what other flags, too
    void put_tangled_cells(...) nogil  # (p, v)           untangled cells to memory, as 64 bits
    void ramp(...) nogil        # (v, first, step)        cells: lane i is first + i * step
    void add_cells(...) nogil   # (v, other)              cells: v += other
    void put(...) nogil         # (p, value, count)       the first count lanes to memory
    void put_cells(...) nogil   # (p, cell, base, count)  the first count cells + base to memory, as 64 bits


cdef inline Py_ssize_t span(Py_ssize_t kernel, Py_ssize_t dilation) noexcept nogil:
    """Cells from the first to the last of a window."""
    return (kernel - 1) * dilation + 1


cdef inline Py_ssize_t first_inside(Py_ssize_t position, Py_ssize_t dilation) noexcept nogil:
    """The first of position, position + dilation, ... that is not negative."""
    return position if position >= 0 else position + ceil_div(-position, dilation) * dilation


# ---------------------------------------------------------------------------------------------- rows for windows


cdef inline Py_ssize_t row_size(const int64_t* geometry) noexcept nogil:
    """Elements of a reduced row: OW in whole vectors."""
    return (geometry[GEO_OW] + _VL_FLOAT - 1) // _VL_FLOAT * _VL_FLOAT


cdef inline Py_ssize_t ring_slots(const int64_t* geometry) noexcept nogil:
    """Rows from the first to the last of a window, rounded up to a power of two."""
    cdef Py_ssize_t slots = 1
    while slots < span(geometry[GEO_KH], geometry[GEO_DIL_H]):
        slots *= 2
    return slots


cdef inline bint block_inside(
    Py_ssize_t column, Py_ssize_t lanes, Py_ssize_t stride_w, Py_ssize_t width, Py_ssize_t IW
) noexcept nogil:
    """Whether the taps of a vector of windows, the first at ``column``, read the image alone."""
    return column >= 0 and column + lanes * stride_w + (width - 1 if stride_w != 2 else (width - 1) & ~1) <= IW


cdef inline Py_ssize_t rows_inside(
    Py_ssize_t top, Py_ssize_t first, Py_ssize_t IH, Py_ssize_t KH, Py_ssize_t dil_h
) noexcept nogil:
    """Rows of the window at ``top`` that lie in the image, where ``first`` is the first of them."""
    if first == top and top + span(KH, dil_h) <= IH:
        return KH
    return ceil_div(min(top + span(KH, dil_h), IH) - first, dil_h)


cdef inline bint is_tiling(const int64_t* geometry) noexcept nogil:
    """Whether windows are 2x2 and tile the image without padding; a last column and last rows may be left over."""
    cdef Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW]
    return (
        geometry[GEO_KH] == 2 and geometry[GEO_KW] == 2 and geometry[GEO_STRIDE_H] == 2 and geometry[GEO_STRIDE_W] == 2
        and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_PAD_LEFT] == 0 and 2 * OH <= geometry[GEO_IH] and 2 * OW <= geometry[GEO_IW] <= 2 * OW + 1
    )


cdef inline bint is_seamless(const int64_t* geometry) noexcept nogil:
    """Whether windows do not overlap and rows of windows go on into the next plane as if it were the same."""
    return (
        geometry[GEO_STRIDE_H] == geometry[GEO_KH] and geometry[GEO_DIL_H] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_OH] * geometry[GEO_KH] == geometry[GEO_IH]
    )


# ---------------------------------------------------------------------------------------------- the common windows

# In this part windows are 2x2 at step 2, or 3x3 at step 2 or 1, and K, stride and inside are constants. A row outside of the
# image is replaced by the nearest inside: that is one of the same window, so the maximum stays, and its first cell.
# vmax and fold_larger keep the first of two values if it is NaN and lose the second: all seconds are looked at, in pairs.


cdef inline bint is_common(const int64_t* geometry) noexcept nogil:
    """Whether this part has the windows, each of which must meet the image."""
    cdef Py_ssize_t K = geometry[GEO_KH], stride = geometry[GEO_STRIDE_H]
    return (
        geometry[GEO_KW] == K and geometry[GEO_STRIDE_W] == stride and geometry[GEO_DIL_H] == geometry[GEO_DIL_W] == 1
        and ((K == 2 and stride == 2) or (K == 3 and (stride == 1 or stride == 2)))
        and geometry[GEO_PAD_TOP] < K and (geometry[GEO_OH] - 1) * stride - geometry[GEO_PAD_TOP] < geometry[GEO_IH]
        and geometry[GEO_PAD_LEFT] < K and (geometry[GEO_OW] - 1) * stride - geometry[GEO_PAD_LEFT] < geometry[GEO_IW]
    )


cdef inline Py_ssize_t first_row(Py_ssize_t oh, const Py_ssize_t stride, const int64_t* geometry) noexcept nogil:
    """The first image row of the windows of output row oh."""
    return max(oh * stride - geometry[GEO_PAD_TOP], 0)


cdef inline Py_ssize_t rows_alike(
    Py_ssize_t oh, Py_ssize_t oh_last, const Py_ssize_t K, const Py_ssize_t stride, const int64_t* geometry, Py_ssize_t* below
) noexcept nogil:
    """The end of the output rows that lie in the image as oh does: that one, or as many as lie inside; at most oh_last.

    below: (K) from the first row of a window to each of its rows, in elements.
    """
    cdef Py_ssize_t top = oh * stride - geometry[GEO_PAD_TOP], IH = geometry[GEO_IH], row
    for row in range(K):
        below[row] = (min(max(top + row, 0), IH - 1) - first_row(oh, stride, geometry)) * geometry[GEO_IW]
    return oh + 1 if top < 0 else max(oh + 1, min(oh_last, (IH - K - top) // stride + oh + 1))


cdef inline void max_of_columns(
    vec* value, vec low, vec high, pool_flags* flags, const Py_ssize_t K,
) noexcept nogil:
    """value: windows of the columns low, high, not yet untangled; of 3x3 ones the last lane of either is none."""
    # A window is an even column, the odd one and the next even one. A NaN in an even column stays.
    cdef vec between, after
    pool_even(value, low, high)
    pool_odd(&between, low, high)
    if K == 3:
        pool_next_even(&after, value[0])
        value[0] = vmax(after, vmax(between, value[0]))
    else:
        value[0] = vmax(between, value[0])
    note_nan(flags, between, value[0])


# First over the rows, all columns of two vectors, then along them. A NaN in the first row stays and is seen in a maximum; one
# in the third row is seen in the next row of windows, of which that is the first, or by `note_row`.
cdef inline void max_strided_block(
    const real* x,         # IN   an image row
    Py_ssize_t above, Py_ssize_t below1, Py_ssize_t below2,  # from there to the rows of the windows, in elements
    real* output,          # OUT  a vector of windows, of which only ``room`` elements may be written
    pool_flags* flags,     # OUT  of lanes that lost a NaN, or have one
    vec hidden_low, vec hidden_high,  # IN   lanes that lie outside of the image although they are read
    Py_ssize_t room, Py_ssize_t column, Py_ssize_t IW, const bint inside, const bint hides_low, const bint hides_high,
    const Py_ssize_t K,
) noexcept nogil:
    cdef Py_ssize_t lanes = sizeof(vec) // sizeof(real)
    cdef vec low, high, low1, high1, low2, high2, value
    if inside:  # as `fetch_ahead`
        SIMD_PREFETCH(x + column + 8 * IW)
        SIMD_PREFETCH(x + column + 9 * IW)
    tap(&low, inside, x + above, column, 0, 1, IW, -INFINITY)
    tap(&high, inside, x + above, column + lanes, 0, 1, IW, -INFINITY)
    tap(&low1, inside, x + below1, column, 0, 1, IW, -INFINITY)
    tap(&high1, inside, x + below1, column + lanes, 0, 1, IW, -INFINITY)
    pool_keep(&low1)
    pool_keep(&high1)
    note_nan(flags, low1, high1)
    if K == 3:
        tap(&low2, inside, x + below2, column, 0, 1, IW, -INFINITY)
        tap(&high2, inside, x + below2, column + lanes, 0, 1, IW, -INFINITY)
        low1 = vmax(low1, low2)
        high1 = vmax(high1, high2)
    low = vmax(low1, low)
    high = vmax(high1, high)
    spread(&value, -INFINITY)
    if hides_low:
        replace(&low, hidden_low, value)
    if hides_high:
        replace(&high, hidden_high, value)
    max_of_columns(&value, low, high, flags, K)
    untangle(&value)
    put(output, value, room)


cdef inline void note_row(
    pool_flags* flags, const real* row, Py_ssize_t blocks, Py_ssize_t column, Py_ssize_t IW, const bint inside, vec* like,
) noexcept nogil:
    """The last row of windows of which none follow."""
    cdef Py_ssize_t lanes = sizeof(vec) // sizeof(real)
    cdef vec low, high
    while blocks > 0:
        tap(&low, inside, row, column, 0, 1, IW, -INFINITY)
        tap(&high, inside, row, column + lanes, 0, 1, IW, -INFINITY)
        note_nan(flags, low, high)
        column += 2 * lanes - 2
        blocks -= 1


cdef inline void max_strided_pairs(
    const real* x,         # IN   where the windows of a plane begin, all columns of a row in one vector
    real* y,               # OUT  (rows * OW) of each plane, and what the last vector writes behind them
    pool_flags* flags, vec hidden, Py_ssize_t planes, Py_ssize_t rows, Py_ssize_t cells, Py_ssize_t OW, Py_ssize_t IW,
    Py_ssize_t below1, Py_ssize_t below2, const bint hides, const Py_ssize_t K,
) noexcept nogil:
    """Two output rows in one vector; behind an odd number of rows comes one that is overwritten later."""
    cdef Py_ssize_t row, down = 2 * IW, right = OW, skip = rows % 2 * OW
    cdef const real* x1
    cdef const real* x2
    cdef vec low, high, low1, high1, low2, high2, value, lowest
    cdef pool_flags seen = flags[0]
    spread(&lowest, -INFINITY)
    pool_own(down)
    pool_own(right)
    pool_own(skip)
    while planes > 0:
        pool_own(x)
        high2 = (<const vec*> x)[0]
        x1 = x + below1
        x2 = x + below2 if K == 3 else x
        row = rows
        while row > 0:
            pool_own(x1)
            pool_own(x2)
            low1 = (<const vec*> x1)[0]
            high1 = (<const vec*> (x1 + down))[0]
            pool_keep(&low1)
            pool_keep(&high1)
            note_nan(&seen, low1, high1)
            if K == 3:
                low2 = (<const vec*> x2)[0]
                pool_keep(&low2)
                low = vmax(low2, vmax(low1, high2))
                high2 = (<const vec*> (x2 + down))[0]
                pool_keep(&high2)
                high = vmax(high2, vmax(high1, low2))
            else:
                low = vmax(low1, (<const vec*> x2)[0])
                high = vmax(high1, (<const vec*> (x2 + down))[0])
            if hides:
                replace(&low, hidden, lowest)
                replace(&high, hidden, lowest)
            max_of_columns(&value, low, high, &seen, K)
            untangle(&value)
            put_halves(y, value, right)
            x1 += 2 * down
            x2 += 2 * down
            y += 2 * right
            row -= 2
        if K == 3:
            note_nan(&seen, low2, high2)
        y -= skip
        x += cells
        planes -= 1
    flags[0] = seen


cdef inline void max_strided_column(
    const real* x,         # IN   where the windows of a plane begin
    real* y,               # OUT  (rows * OW) of each plane, a vector in each row, and what it writes behind that
    pool_flags* flags, vec hidden_low, vec hidden_high, Py_ssize_t planes, Py_ssize_t rows, Py_ssize_t cells, Py_ssize_t OW,
    Py_ssize_t IW, Py_ssize_t below1, Py_ssize_t below2, const bint hides, const Py_ssize_t K,
) noexcept nogil:
    """Rows of one vector: the last row of 3x3 windows is the first of the next ones."""
    cdef Py_ssize_t lanes = sizeof(vec) // sizeof(real), row, down = 2 * IW, right = OW
    cdef const real* x1
    cdef const real* x2
    cdef vec low, high, low1, high1, low2, high2, value, lowest
    cdef pool_flags seen = flags[0]
    spread(&lowest, -INFINITY)
    pool_own(down)
    pool_own(right)
    while planes > 0:
        pool_own(x)
        low2 = (<const vec*> x)[0]
        high2 = (<const vec*> (x + lanes))[0]
        x1 = x + below1
        x2 = x + below2 if K == 3 else x
        row = rows
        while row > 0:
            pool_own(x1)
            pool_own(x2)
            low1 = (<const vec*> x1)[0]
            high1 = (<const vec*> (x1 + lanes))[0]
            pool_keep(&low1)
            pool_keep(&high1)
            note_nan(&seen, low1, high1)
            if K == 3:
                low = vmax(low1, low2)
                high = vmax(high1, high2)
                low2 = (<const vec*> x2)[0]
                high2 = (<const vec*> (x2 + lanes))[0]
                pool_keep(&low2)
                pool_keep(&high2)
                low = vmax(low2, low)
                high = vmax(high2, high)
            else:
                low = vmax(low1, (<const vec*> x2)[0])
                high = vmax(high1, (<const vec*> (x2 + lanes))[0])
            if hides:
                replace(&low, hidden_low, lowest)
                replace(&high, hidden_high, lowest)
            max_of_columns(&value, low, high, &seen, K)
            untangle(&value)
            (<vec*> y)[0] = value
            x1 += down
            x2 += down
            y += right
            row -= 1
        if K == 3:
            note_nan(&seen, low2, high2)
        x += cells
        planes -= 1
    flags[0] = seen


cdef inline void max_strided_rows(
    const real* x,         # IN   where the windows of a plane begin
    real* y,               # OUT  (rows * OW) of each plane, and what the last vector writes behind that
    pool_flags* flags, const vec* hidden, Py_ssize_t planes, Py_ssize_t rows, Py_ssize_t cells, Py_ssize_t blocks,
    Py_ssize_t OW, Py_ssize_t IW, Py_ssize_t below1, Py_ssize_t below2, const bint hides, const Py_ssize_t K,
) noexcept nogil:
    cdef Py_ssize_t lanes = sizeof(vec) // sizeof(real), windows = lanes if K == 2 else lanes - 1, block, row
    cdef Py_ssize_t down = 2 * IW, right = OW, between = blocks - 2 if hides else blocks, above
    cdef const real* first
    cdef const real* at
    cdef real* to
    cdef vec hidden_first = hidden[0], last_low = hidden[1], last_high = hidden[2]
    cdef pool_flags seen = flags[0]
    pool_own(down)
    pool_own(right)
    pool_own(between)
    pool_own(below1)
    pool_own(below2)
    while planes > 0:
        above = 0
        first = x
        row = rows
        while row > 0:
            at = first
            to = y
            if hides:
                max_strided_block(
                    at, above, below1, below2, to, &seen, hidden_first, hidden_first, lanes, 0, IW, True, True, False, K
                )
                at += 2 * windows
                to += windows
            block = between
            while block > 0:
                max_strided_block(
                    at, above, below1, below2, to, &seen, hidden_first, hidden_first, lanes, 0, IW, True, False, False, K
                )
                at += 2 * windows
                to += windows
                block -= 1
            if hides:
                max_strided_block(
                    at, above, below1, below2, to, &seen, last_low, last_high, lanes, 0, IW, True, True, True, K
                )
            above = below1 - IW  # below padding the second row came first
            first += down
            y += right
            row -= 1
        if K == 3:
            note_row(&seen, first - down + below2, blocks, 0, IW, True, &hidden_first)
        x += cells
        planes -= 1
    flags[0] = seen


# Rows that lie in the image alike, of planes that are alike.
cdef struct Strided:
    Py_ssize_t planes, rows, cells, blocks, OW, IW, below1, below2
    bint pairs


cdef inline void max_strided_part(
    const real* x,         # IN   where the windows begin
    real* y,               # OUT  as the functions above say
    pool_flags* flags, const vec* hidden, const Strided* part, const bint hides, const Py_ssize_t K,
) noexcept nogil:
    if part.blocks > 1:
        max_strided_rows(
            x, y, flags, hidden, part.planes, part.rows, part.cells, part.blocks, part.OW, part.IW, part.below1, part.below2,
            hides, K,
        )
    elif part.pairs:
        max_strided_pairs(
            x, y, flags, hidden[0], part.planes, part.rows, part.cells, part.OW, part.IW, part.below1, part.below2, hides, K
        )
    else:
        max_strided_column(
            x, y, flags, hidden[1], hidden[2], part.planes, part.rows, part.cells, part.OW, part.IW, part.below1, part.below2,
            hides, K,
        )


# Called by address, so that registers are all theirs.
cdef inline void max_strided_inner(
    const real* x, real* y, pool_flags* flags, const vec* hidden, const Strided* part
) noexcept nogil:
    max_strided_part(x, y, flags, hidden, part, False, 3)


cdef inline void max_strided_outer(
    const real* x, real* y, pool_flags* flags, const vec* hidden, const Strided* part
) noexcept nogil:
    max_strided_part(x, y, flags, hidden, part, True, 3)


cdef inline void max_tiles_inner(
    const real* x, real* y, pool_flags* flags, const vec* hidden, const Strided* part
) noexcept nogil:
    max_strided_part(x, y, flags, hidden, part, False, 2)


cdef inline void max_tiles_outer(
    const real* x, real* y, pool_flags* flags, const vec* hidden, const Strided* part
) noexcept nogil:
    max_strided_part(x, y, flags, hidden, part, True, 2)


cdef inline void max_strided_planes(
    const real* x,         # IN   a plane
    real* y,               # OUT  from row oh of its output plane on
    pool_flags* flags, const vec* hidden, Py_ssize_t oh, Py_ssize_t oh_last, Py_ssize_t planes, Py_ssize_t blocks, bint pairs,
    bint hides, const Py_ssize_t K, const int64_t* geometry,
) noexcept nogil:
    # How rows lie in the image is found once: of planes with few rows that would be most of the work
    cdef Py_ssize_t IW = geometry[GEO_IW], OW = geometry[GEO_OW], n, parts = 0, alike
    cdef Py_ssize_t first[3]
    cdef Py_ssize_t below[3]
    cdef Strided part[3]
    cdef void (*run)(const real*, real*, pool_flags*, const vec*, const Strided*) noexcept nogil
    if K == 3:
        run = max_strided_outer if hides else max_strided_inner
    else:
        run = max_tiles_outer if hides else max_tiles_inner
    pool_own(run)
    while oh < oh_last:
        alike = rows_alike(oh, oh_last, K, 2, geometry, &below[0])
        first[parts] = first_row(oh, 2, geometry) * IW - geometry[GEO_PAD_LEFT]
        part[parts] = Strided(1, alike - oh, geometry[GEO_IH] * IW, blocks, OW, IW, below[1], below[K - 1], pairs)
        oh = alike
        if parts == 1 and below[1] == IW and below[K - 1] == (K - 1) * IW and part[0].below1 == 0 and (
            part[0].below2 == IW if K == 3 else blocks > 1
        ):
            part[0].rows += part[1].rows  # one row of padding, which only the first one meets
        else:
            parts += 1
    if parts == 1:
        part[0].planes = planes
    while planes > 0:
        for n in range(parts):
            run(x + first[n], y, flags, hidden, &part[n])
            y += part[n].rows * OW
        x += part[0].cells
        planes -= part[0].planes


cdef inline Py_ssize_t whole_vectors(Py_ssize_t space, Py_ssize_t first, Py_ssize_t step) noexcept nogil:
    """How many vectors there is space for, if one takes ``first`` elements and each other ``step``."""
    return 0 if space < first else (space - first) // step + 1


cdef inline void max_strided_row(
    const real* x,         # IN   first row of the windows
    real* y,               # OUT  (OW), of which only ``room`` elements may be written
    pool_flags* flags, Py_ssize_t room, Py_ssize_t blocks, Py_ssize_t pad_left, Py_ssize_t IW, Py_ssize_t below1,
    Py_ssize_t below2, const Py_ssize_t K, vec* like,
) noexcept nogil:
    """A row that has no space around it."""
    cdef Py_ssize_t block, lanes = sizeof(vec) // sizeof(real), windows = lanes if K == 2 else lanes - 1
    cdef Py_ssize_t whole = min(whole_vectors(IW, 2 * lanes - pad_left, 2 * windows), whole_vectors(room, lanes, windows))
    cdef vec none
    spread(&none, 0)
    for block in range(blocks):
        if block < whole and (block > 0 or pad_left <= 0):
            max_strided_block(
                x, 0, below1, below2, y + windows * block, flags, none, none, lanes, 2 * windows * block - pad_left, IW, True,
                False, False, K,
            )
        else:
            max_strided_block(
                x, 0, below1, below2, y + windows * block, flags, none, none, room - windows * block,
                2 * windows * block - pad_left, IW, False, False, False, K,
            )
    if K == 3:
        note_row(flags, x + below2, blocks, -pad_left, IW, False, like)


cdef inline bint max_strided(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    Py_ssize_t oh_first, Py_ssize_t oh_last, Py_ssize_t planes, Py_ssize_t readable, Py_ssize_t room,
    const Py_ssize_t K, const int64_t* geometry, vec* like,
) noexcept nogil:
    """Rows [oh_first, oh_last) of ``planes`` output planes, at step 2; False, and any values, if a NaN was lost."""
    # Rows are counted through all planes. Windows across the left or right border read the end of the row before and the
    # row behind: [from_row, to_row) have those, and space for whole vectors.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t lanes = sizeof(vec) // sizeof(real), windows = lanes if K == 2 else lanes - 1
        Py_ssize_t blocks = (OW + windows - 1) // windows  # vectors of a row
        Py_ssize_t count = oh_last - oh_first, row = 0, rows, from_row, to_row, oh = oh_first, last, whole
        bint pairs = 2 * OW + K - 2 <= lanes  # a vector takes all columns of a row
        # Elements written for a row, and those read from its last image row on; of a pair from the first of the two
        Py_ssize_t width = OW + lanes // 2 if pairs else (blocks - 1) * windows + lanes
        Py_ssize_t reach = (2 * IW + lanes if pairs else 2 * width) - pad_left
        Py_ssize_t below[3]
        bint hides = pad_left > 0 or (OW - 1) * 2 - pad_left + K > IW
        real* y = output + oh_first * OW
        vec hidden[3]
        pool_flags flags
    flags = no_nan()
    lanes_outside(&hidden[0], -pad_left, IW)
    lanes_outside(&hidden[1], 2 * windows * (blocks - 1) - pad_left, IW)
    lanes_outside(&hidden[2], 2 * windows * (blocks - 1) - pad_left + lanes, IW)
    rows = to_row = planes * count
    from_row = min(max(pad_left, 0), 1)
    while to_row > from_row and (
        room - (to_row - 1) * OW < width
        or readable - (to_row - 1) // count * IH * IW
        - min((oh_first + (to_row - 1) % count) * 2 - geometry[GEO_PAD_TOP] + K - 1, IH - 1) * IW < reach
    ):
        to_row -= 1
    while row < rows:
        whole, last = 1, oh + 1
        if from_row <= row < to_row:
            if oh == oh_first:
                whole = max((to_row - row) // count, 1)
            last = min(oh_last, oh + to_row - row)
            max_strided_planes(x, y, &flags, &hidden[0], oh, last, whole, blocks, pairs, hides, K, geometry)
        else:
            rows_alike(oh, last, K, 2, geometry, &below[0])
            max_strided_row(
                x + first_row(oh, 2, geometry) * IW, y, &flags, room - row * OW, blocks, pad_left, IW, below[1], below[K - 1],
                K, like,
            )
        row += whole * (last - oh)
        y += whole * (last - oh) * OW
        oh = last
        if oh == oh_last:
            oh = oh_first
            x += whole * IH * IW
    return not has_nan(flags)


# Rows of planes that are alike, down one vector of columns.
cdef struct Sliding:
    Py_ssize_t planes, rows, top, column, room, IH, IW, OW


cdef enum:  # where a vector of windows lies in its rows
    INNER, LEFT, RIGHT, SIDE  # not at their ends, with a padding cell at the left or the right end, at an end without padding


cdef inline void max_sliding_inside(
    vec* reduced, const real* row, pool_flags* flags, const int place
) noexcept nogil:
    """No cell outside is read: its neighbour, of the same window, stands for it. Middle cells are not looked at."""
    cdef vec left, middle, right
    middle = (<const vec*> (row + 1))[0]
    pool_keep(&middle)
    if place == LEFT:
        pool_before(&left, middle)
    else:
        left = (<const vec*> row)[0]
    if place == RIGHT:
        pool_after(&right, middle)
    else:
        right = (<const vec*> (row + 2))[0]
    pool_keep(&right)
    if place == SIDE:
        note_nan(flags, left, right)
    reduced[0] = vmax(right, vmax(left, middle))


cdef inline void max_sliding_whole(
    const real* x,         # IN   a plane
    real* y,               # OUT  a vector of windows in each row
    pool_flags* flags, const Sliding* part, const int place, vec* like,
) noexcept nogil:
    """Two output rows at a time: each needs the two middle ones of four rows. Middle cells that are NaN stay."""
    cdef Py_ssize_t planes = part.planes, rows = part.rows, top = part.top, column = part.column
    cdef Py_ssize_t IW = part.IW, OW = part.OW, below = part.IH - 1, row, ih
    cdef const real* at
    cdef vec first, second, third, fourth, both
    cdef pool_flags seen = flags[0]
    while planes > 0:
        ih = top
        at = x + min(max(ih, 0), below) * IW + column
        max_sliding_inside(&first, at, &seen, place)
        at += IW if <size_t> ih < <size_t> below else 0
        ih += 1
        max_sliding_inside(&second, at, &seen, place)
        note_nan(&seen, first, second)
        row = rows
        while row > 0:
            at += IW if <size_t> ih < <size_t> below else 0
            ih += 1
            max_sliding_inside(&third, at, &seen, place)
            note_nan(&seen, second, third)
            both = vmax(second, third)
            (<vec*> y)[0] = vmax(first, both)
            y += OW
            if row == 1:
                break
            at += IW if <size_t> ih < <size_t> below else 0
            ih += 1
            max_sliding_inside(&fourth, at, &seen, place)
            (<vec*> y)[0] = vmax(fourth, both)
            y += OW
            first = third
            second = fourth
            row -= 2
        note_nan(&seen, first, second)
        x += (below + 1) * IW
        planes -= 1
    flags[0] = seen


cdef inline void max_sliding_row(
    vec* reduced, const real* row, pool_flags* flags, Py_ssize_t column, Py_ssize_t IW
) noexcept nogil:
    cdef vec middle, right
    tap(reduced, False, row, column, 0, 1, IW, -INFINITY)
    tap(&middle, False, row, column, 1, 1, IW, -INFINITY)
    tap(&right, False, row, column, 2, 1, IW, -INFINITY)
    pool_keep(&middle)
    pool_keep(&right)
    note_nan(flags, middle, right)
    reduced[0] = vmax(right, vmax(middle, reduced[0]))
    note_nan(flags, reduced[0], reduced[0])  # the left one stays


cdef inline void max_sliding_column(
    const real* x,         # IN   a plane
    real* y,               # OUT  a vector of windows in each row, exact or what it writes behind them
    pool_flags* flags, const Sliding* part, const bint exact, vec* like,
) noexcept nogil:
    # Copies: a vector may be stored to where part lies, for all that the compiler knows
    cdef Py_ssize_t planes = part.planes, rows = part.rows, top = part.top, column = part.column, room = part.room
    cdef Py_ssize_t IW = part.IW, OW = part.OW, below = part.IH - 1, row, ih
    cdef const real* at
    cdef vec first, second, third
    cdef pool_flags seen = flags[0]
    while planes > 0:
        ih = top
        at = x + min(max(ih, 0), below) * IW
        max_sliding_row(&second, at, &seen, column, IW)
        at += IW if <size_t> ih < <size_t> below else 0
        ih += 1
        max_sliding_row(&third, at, &seen, column, IW)
        row = rows
        while row > 0:
            at += IW if <size_t> ih < <size_t> below else 0
            ih += 1
            first = second
            second = third
            max_sliding_row(&third, at, &seen, column, IW)
            first = vmax(third, vmax(second, first))
            if exact:
                put(y, first, room)
                room -= OW
            else:
                (<vec*> y)[0] = first
            y += OW
            row -= 1
        note_nan(&seen, second, third)
        x += (below + 1) * IW
        planes -= 1
    flags[0] = seen


# Called by address, so that registers are all theirs.
cdef inline void max_sliding_inner(
    const real* x, real* y, pool_flags* flags, const Sliding* part, vec* like
) noexcept nogil:
    max_sliding_whole(x, y, flags, part, INNER, like)


cdef inline void max_sliding_left(
    const real* x, real* y, pool_flags* flags, const Sliding* part, vec* like
) noexcept nogil:
    max_sliding_whole(x, y, flags, part, LEFT, like)


cdef inline void max_sliding_right(
    const real* x, real* y, pool_flags* flags, const Sliding* part, vec* like
) noexcept nogil:
    max_sliding_whole(x, y, flags, part, RIGHT, like)


cdef inline void max_sliding_side(
    const real* x, real* y, pool_flags* flags, const Sliding* part, vec* like
) noexcept nogil:
    max_sliding_whole(x, y, flags, part, SIDE, like)


cdef inline void max_sliding_masked(
    const real* x, real* y, pool_flags* flags, const Sliding* part, vec* like
) noexcept nogil:
    max_sliding_column(x, y, flags, part, False, like)


cdef inline void max_sliding_exact(
    const real* x, real* y, pool_flags* flags, const Sliding* part, vec* like
) noexcept nogil:
    max_sliding_column(x, y, flags, part, True, like)


cdef inline bint max_sliding(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    Py_ssize_t oh_first, Py_ssize_t oh_last, Py_ssize_t planes, Py_ssize_t room, const int64_t* geometry, vec* like,
) noexcept nogil:
    """Rows [oh_first, oh_last) of ``planes`` output planes, 3x3 windows at step 1; False, and any values, if a NaN was lost."""
    # Down each vector of columns. The last one ends with the rows where these take several, and padding is one cell at most.
    # Else the last comes first: what it writes past the end of rows is overwritten by the others, and the first to_row rows,
    # counted through all planes, have room for that.
    cdef:
        Py_ssize_t IW = geometry[GEO_IW], OW = geometry[GEO_OW], count = oh_last - oh_first, rows = planes * count, row = 0
        Py_ssize_t lanes = sizeof(vec) // sizeof(real), blocks = (OW + lanes - 1) // lanes, oh = oh_first, last, block
        Py_ssize_t left = geometry[GEO_PAD_LEFT], right = OW - left + 2 - IW, to_row
        Sliding part
        pool_flags flags
        real* y = output + oh_first * OW
        void (*run)(const real*, real*, pool_flags*, const Sliding*, vec*) noexcept nogil
    flags = no_nan()
    if blocks > 1 and left <= 1 and right <= 1:
        part = Sliding(planes, count, oh - geometry[GEO_PAD_TOP], 0, 0, geometry[GEO_IH], IW, OW)
        for block in range(blocks):
            if block == 0:
                run = max_sliding_left if left == 1 else max_sliding_side
            elif block < blocks - 1:
                run = max_sliding_inner
            else:
                run = max_sliding_right if right == 1 else max_sliding_side
            pool_own(run)
            part.column = min(block * lanes, OW - lanes) - left
            run(x, y + part.column + left, &flags, &part, like)
        return not has_nan(flags)
    to_row = min(whole_vectors(room, blocks * lanes, OW), rows)
    while row < rows:
        last = min(oh_last, oh + (to_row if row < to_row else rows) - row)
        part = Sliding(1, last - oh, oh - geometry[GEO_PAD_TOP], 0, 0, geometry[GEO_IH], IW, OW)
        if oh == oh_first and last == oh_last and row < to_row:
            part.planes = (to_row - row) // count
        for block in range(blocks - 1, -1, -1):
            part.column = block * lanes - left
            part.room = room - row * OW - block * lanes
            run = max_sliding_masked if row < to_row else max_sliding_exact
            pool_own(run)
            run(x, y + block * lanes, &flags, &part, like)
        row += part.planes * part.rows
        y += part.planes * part.rows * OW
        oh = last
        if oh == oh_last:
            oh = oh_first
            x += part.planes * part.IH * IW
    return not has_nan(flags)


# How the lanes of a vector of windows meet the image's sides: which of them have tap 0, 1, 2 outside, and tap 0 to the left.
cdef enum:
    TO_THE_LEFT = 3
    SIDES = 4


cdef inline void reduce_row(
    vec* best,             # OUT  maxima along the row, as tap orders them
    vec* place,            # OUT  cells: 0 or less, minus the tap of each that has it
    pool_flags* flags,     # OUT  of lanes that lost a NaN
    const real* x,         # IN   image row
    const vec* outside,    # IN   (SIDES) where masked or across
    Py_ssize_t column, Py_ssize_t IW, const bint masked, const bint across, const Py_ssize_t K, const Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t lanes = sizeof(vec) // sizeof(real)
    cdef vec other, last, low, high, lowest, cell
    x += 0 if masked else column
    if masked:
        tap(best, False, x, column, 0, stride, IW, -INFINITY)
        tap(&other, False, x, column, 1, stride, IW, -INFINITY)
        if K == 3:
            tap(&last, False, x, column, 2, stride, IW, -INFINITY)
    elif stride == 2:
        low = (<const vec*> x)[0]
        high = (<const vec*> (x + lanes))[0]
        pool_keep(&high)
        pool_even(best, low, high)
        pool_odd(&other, low, high)
        if K == 3:
            pool_odd(&last, (<const vec*> (x + 1))[0], (<const vec*> (x + 1 + lanes))[0])
    else:
        best[0] = (<const vec*> x)[0]
        other = (<const vec*> (x + 1))[0]
        last = (<const vec*> (x + 2))[0]
    if across:
        spread(&lowest, -INFINITY)
        replace(best, outside[0], lowest)
        replace(&other, outside[1], lowest)
        if K == 3:
            replace(&last, outside[2], lowest)
    fold_second(best, place, other)
    if masked or across:
        add_flags(place, outside[TO_THE_LEFT])
    if K == 3:
        ramp(&cell, -2, 0)
        fold_larger(best, place, last, cell)
    note_nan(flags, other, last if K == 3 else other)


cdef inline void carry_row(
    const real* x,         # IN   image row
    real* carried,         # OUT  (size) reduced; places behind
    pool_flags* flags, const vec* sides, Py_ssize_t pad_left, Py_ssize_t IW, Py_ssize_t OW, Py_ssize_t size,
    const Py_ssize_t K, const Py_ssize_t stride, vec* like,
) noexcept nogil:
    # Masked: one row of a plane need not be fast, but the code short
    cdef Py_ssize_t block, lanes = sizeof(vec) // sizeof(real), blocks = (OW + lanes - 1) // lanes
    cdef vec best, place
    for block in range(blocks):
        reduce_row(
            &best, &place, flags, x, side_of(sides, block, blocks), column_of(block, OW, lanes, stride) - pad_left, IW, True,
            False, K, stride,
        )
        (<vec*> (carried + block * lanes))[0] = best
        (<vec*> (carried + size + block * lanes))[0] = place


cdef inline Py_ssize_t column_of(Py_ssize_t block, Py_ssize_t OW, Py_ssize_t lanes, const Py_ssize_t stride) noexcept nogil:
    """The first padded column of a vector of windows: where a row has several, the last one ends with it."""
    return min(block * lanes, max(OW - lanes, 0)) * stride


cdef inline const vec* side_of(const vec* sides, Py_ssize_t block, Py_ssize_t blocks) noexcept nogil:
    """Of the first vector of a row, of the last, of the others."""
    return sides + (0 if block == 0 else SIDES if block == blocks - 1 else 2 * SIDES)


cdef inline void max_common_block(
    const real* x,         # IN   first row of the windows
    const Py_ssize_t* below,  # IN   (K) from there to each row, in elements
    real* oldest,          # IN/OUT  carried: the first row reduced, which the last replaces
    const real* newer,     # IN   carried: the second
    real* output,          # OUT  a vector of windows, of which only ``room`` elements may be written
    int64_t* indices,      # OUT  the same
    pool_flags* flags, const vec* outside,
    Py_ssize_t room, Py_ssize_t first_cell, Py_ssize_t column, Py_ssize_t IW, Py_ssize_t size,
    const bint masked, const bint across, const Py_ssize_t K, const Py_ssize_t stride, vec* like,
) noexcept nogil:
    cdef Py_ssize_t row
    cdef vec value, where, other, place, last, step
    if stride == K:
        reduce_row(&value, &where, flags, x, outside, column, IW, masked, across, K, stride)
    else:
        value = (<const vec*> oldest)[0]
        where = (<const vec*> (oldest + size))[0]
    for row in range(1, K):
        if row < K - stride:
            other = (<const vec*> newer)[0]
            place = (<const vec*> (newer + size))[0]
        else:
            reduce_row(&other, &place, flags, x + below[row], outside, column, IW, masked, across, K, stride)
        if row == K - 1:
            note_nan(flags, other, last if K == 3 else other)
            if stride < K:
                (<vec*> oldest)[0] = other
                (<vec*> (oldest + size))[0] = place
        ramp(&step, -below[row], 0)
        add_cells(&place, step)
        fold_larger(&value, &where, other, place)
        last = other
    cells_of(&step, first_cell + column, stride)
    subtract_cells(&where, step)
    if stride == 2:
        untangle(&value)
        if not masked:
            put_tangled_cells(indices, where)
        else:
            untangle(&where)
    put(output, value, room)
    if masked or stride == 1:
        put_cells(indices, where, 0, room)


cdef enum:
    LONG_ROW = 128  # cells: of longer rows, which run through other levels of cache, the processor itself asks for too few


cdef inline void fetch_ahead(const real* row, Py_ssize_t count) noexcept nogil:
    """``count`` cells of the image rows that are read some output rows later."""
    cdef Py_ssize_t line
    for line in range(count * <Py_ssize_t> sizeof(real) // CACHE_LINE):
        SIMD_PREFETCH(<const char*> row + line * CACHE_LINE)


cdef inline bint max_common(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    int64_t* indices,      # OUT  the same
    real* ring,            # TMP  max_ring_size
    Py_ssize_t oh_first, Py_ssize_t oh_last, Py_ssize_t planes, Py_ssize_t readable, Py_ssize_t room,
    const Py_ssize_t K, const Py_ssize_t stride, const int64_t* geometry, vec* like,
) noexcept nogil:
    """Rows [oh_first, oh_last) of ``planes`` output planes and their indices; False, and any values, if a NaN was lost."""
    # K - stride reduced rows are carried from one output row to the next. Rows that meet the start or the end of what may be
    # read or written are masked. Windows across a side read the row before or behind.
    cdef:
        Py_ssize_t IW = geometry[GEO_IW], OW = geometry[GEO_OW], cells = geometry[GEO_IH] * IW
        Py_ssize_t pad_left = geometry[GEO_PAD_LEFT], size = row_size(geometry)
        Py_ssize_t lanes = sizeof(vec) // sizeof(real), blocks = (OW + lanes - 1) // lanes, width = max(OW, lanes)
        Py_ssize_t reach = (width - 1) * stride - pad_left + K  # of a row's vectors
        Py_ssize_t done = 0, n_across = 0, start = 0, stop = blocks, oh, alike, first, column, block, n
        Py_ssize_t[3] below
        Py_ssize_t[2] across
        bint crosses = (OW - 1) * stride - pad_left + K > IW, masked
        const real* rows
        real* oldest = ring
        real* newer = ring + 2 * size
        real* other
        real* y = output + oh_first * OW
        int64_t* where = indices + oh_first * OW
        vec[3 * SIDES] sides
        pool_flags flags
    flags = no_nan()
    for block in range(2):
        column = column_of(block * (blocks - 1), OW, lanes, stride) - pad_left
        for n in range(K):
            taps_outside(&sides[block * SIDES + n], column + n, stride, IW)
        taps_outside(&sides[block * SIDES + TO_THE_LEFT], column, stride, INT32_MAX)
    for n in range(SIDES):
        spread(&sides[2 * SIDES + n], 0)
    if pad_left > 0 or (blocks == 1 and crosses):
        across[0] = 0
        n_across = start = 1
    if blocks > 1 and crosses:
        stop = blocks - 1
        across[n_across] = stop
        n_across += 1
    while planes > 0:
        oh = oh_first
        while oh < oh_last:
            alike = rows_alike(oh, oh_last, K, stride, geometry, &below[0])
            first = first_row(oh, stride, geometry) * IW
            rows = x + first
            if oh == oh_first and stride < K:
                carry_row(rows, oldest, &flags, &sides[0], pad_left, IW, OW, size, K, stride, like)
                if stride < K - 1:
                    carry_row(rows + below[1], newer, &flags, &sides[0], pad_left, IW, OW, size, K, stride, like)
            while oh < alike:
                masked = (
                    (done == 0 and pad_left > 0) or room - done < width or readable - first - below[K - 1] < reach
                )
                if masked:
                    for block in range(blocks):
                        max_common_block(
                            rows, below, oldest + block * lanes, newer + block * lanes, y + column_of(block, OW, lanes, 1),
                            where + column_of(block, OW, lanes, 1), &flags, side_of(&sides[0], block, blocks),
                            OW, first, column_of(block, OW, lanes, stride) - pad_left, IW, size,
                            True, False, K, stride, like,
                        )
                else:
                    if IW > LONG_ROW:
                        fetch_ahead(rows + 8 * IW, stride * IW)
                    block = start
                    while block < stop:
                        max_common_block(
                            rows, below, oldest + block * lanes, newer + block * lanes, y + column_of(block, OW, lanes, 1),
                            where + column_of(block, OW, lanes, 1), &flags, NULL,
                            lanes, first, column_of(block, OW, lanes, stride) - pad_left, IW, size,
                            False, False, K, stride, like,
                        )
                        block += 1
                    for n in range(n_across):
                        block = across[n]
                        max_common_block(
                            rows, below, oldest + block * lanes, newer + block * lanes, y + column_of(block, OW, lanes, 1),
                            where + column_of(block, OW, lanes, 1), &flags, side_of(&sides[0], block, blocks),
                            lanes, first, column_of(block, OW, lanes, stride) - pad_left, IW, size,
                            False, True, K, stride, like,
                        )
                oh += 1
                done += OW
                first += stride * IW
                rows += stride * IW
                y += OW
                where += OW
                if stride < K - 1:
                    other = oldest
                    oldest = newer
                    newer = other
        x += cells
        readable -= cells
        planes -= 1
    return not has_nan(flags)


cdef inline bint max_windows(
    const real* x, real* output, int64_t* indices, real* ring, Py_ssize_t oh_first, Py_ssize_t oh_last,
    Py_ssize_t planes, Py_ssize_t readable, Py_ssize_t room, const int64_t* geometry, vec* like,
) noexcept nogil:
    if indices != NULL:
        if geometry[GEO_KH] == 2:
            return max_common(x, output, indices, ring, oh_first, oh_last, planes, readable, room, 2, 2, geometry, like)
        if geometry[GEO_STRIDE_H] == 2:
            return max_common(x, output, indices, ring, oh_first, oh_last, planes, readable, room, 3, 2, geometry, like)
        return max_common(x, output, indices, ring, oh_first, oh_last, planes, readable, room, 3, 1, geometry, like)
    if geometry[GEO_KH] == 2:
        return max_strided(x, output, oh_first, oh_last, planes, readable, room, 2, geometry, like)
    if geometry[GEO_STRIDE_H] == 2:
        return max_strided(x, output, oh_first, oh_last, planes, readable, room, 3, geometry, like)
    return max_sliding(x, output, oh_first, oh_last, planes, room, geometry, like)


# ---------------------------------------------------------------------------------------------------- any windows

# `like` only carries the type.
cdef inline void max_along_block(
    const real* x,         # IN   image row
    real* best,            # OUT  a vector of reduced windows
    real* columns,         # OUT  with_indices: theirs, integers as wide as real
    Py_ssize_t column, Py_ssize_t IW,
    const bint with_indices, const bint inside, const Py_ssize_t KW, const Py_ssize_t stride_w, Py_ssize_t dil_w, vec* like,
) noexcept nogil:
    cdef Py_ssize_t kw
    cdef vec value, other, where, cell
    tap(&value, inside, x, column, 0, stride_w, IW, -INFINITY)
    ramp(&where, 0, 0)
    for kw in range(1, KW):
        tap(&other, inside, x, column, kw * dil_w, stride_w, IW, -INFINITY)
        if with_indices:
            ramp(&cell, kw * dil_w, 0)
            fold_first(&value, &where, other, cell)
        else:
            fold_max(&value, other)
    if stride_w == 2:
        untangle(&value)
    (<vec*> best)[0] = value
    if with_indices:
        if stride_w == 2:
            untangle(&where)
        ramp(&cell, column, stride_w)
        add_cells(&where, cell)
        (<vec*> columns)[0] = where


cdef inline void max_along_row(
    const real* x,         # IN   image row
    real* best,            # OUT  (size)
    real* columns,         # OUT  (size) with_indices
    Py_ssize_t pad_left, Py_ssize_t IW, Py_ssize_t OW,
    Py_ssize_t readable,   # elements from x on: in lanes past the last window anything may stand
    const bint with_indices, const Py_ssize_t KW, const Py_ssize_t stride_w, Py_ssize_t dil_w, vec* like,
) noexcept nogil:
    cdef Py_ssize_t ow = 0, column = -pad_left, lanes = sizeof(vec) // sizeof(real)
    if (OW - 1) * stride_w - pad_left + span(KW, dil_w) > IW:
        readable = IW  # there are windows across the right border
    while ow < OW:
        if block_inside(column, lanes, stride_w, span(KW, dil_w), readable):
            max_along_block(x, best + ow, columns + ow, column, IW, with_indices, True, KW, stride_w, dil_w, like)
        else:
            max_along_block(x, best + ow, columns + ow, column, IW, with_indices, False, KW, stride_w, dil_w, like)
        ow += lanes
        column += lanes * stride_w


# The rows of a window lie in the ring from ``slot`` on, dil_h slots apart.
cdef inline void max_over_rows(
    const real* values,    # IN   ring
    const real* columns,   # IN   with_indices: ring
    real* output,          # OUT  (OW), of which only ``room`` elements may be written
    int64_t* indices,      # OUT  with_indices: (OW) the same
    Py_ssize_t room, int64_t first_cell, Py_ssize_t IW,
    const bint with_indices, Py_ssize_t slot, Py_ssize_t slots, const Py_ssize_t n_rows, Py_ssize_t dil_h,
    Py_ssize_t OW, Py_ssize_t size, vec* like,
) noexcept nogil:
    cdef Py_ssize_t ow = 0, row, at
    cdef vec value, where, cell
    while ow < OW:
        at = slot * size + ow
        value = (<const vec*> (values + at))[0]
        if with_indices:
            where = (<const vec*> (columns + at))[0]
        for row in range(1, n_rows):
            at = ((slot + row * dil_h) & (slots - 1)) * size + ow
            if with_indices:
                ramp(&cell, row * dil_h * IW, 0)
                add_cells(&cell, (<const vec*> (columns + at))[0])
                fold_first(&value, &where, (<const vec*> (values + at))[0], cell)
            else:
                fold_max(&value, (<const vec*> (values + at))[0])
        put(output + ow, value, room - ow)
        if with_indices:
            put_cells(indices + ow, where, first_cell, room - ow)
        ow += sizeof(vec) // sizeof(real)


cdef inline void correct_columns(real* columns, Py_ssize_t column, Py_ssize_t stride_w, Py_ssize_t dil_w) noexcept nogil:
    """Windows from ``column`` on, left of the image: where nothing beats the border's -inf, the first cell inside."""
    cdef Py_ssize_t ow = 0
    while column < 0:
        if real is float:
            if (<int32_t*> columns)[ow] < 0:
                (<int32_t*> columns)[ow] = <int32_t> first_inside(column, dil_w)
        else:
            if (<int64_t*> columns)[ow] < 0:
                (<int64_t*> columns)[ow] = first_inside(column, dil_w)
        ow += 1
        column += stride_w


cdef inline void max_rows(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    int64_t* indices,      # OUT  with_indices
    real* ring,            # TMP  max_ring_size
    Py_ssize_t oh_first, Py_ssize_t oh_last, Py_ssize_t readable, Py_ssize_t room,
    const bint with_indices, const int64_t* geometry, vec* like,
) noexcept nogil:
    """Output rows [oh_first, oh_last) of one plane."""
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t slots = ring_slots(geometry), size = row_size(geometry)
        real* values = ring
        real* columns = values + slots * size
        real* best
        real* column
        real* y
        int64_t* where
        const real* row
        Py_ssize_t oh, ow, top, first, slot, n_rows, reduced = 0

    for oh in range(oh_first, oh_last):
        # Image rows that no earlier window has met
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            row = x + reduced * IW
            best = values + (reduced & (slots - 1)) * size
            column = columns + (reduced & (slots - 1)) * size
            if stride_w == 1:
                max_along_row(row, best, column, pad_left, IW, OW, readable - reduced * IW, with_indices, KW, 1, dil_w, like)
            else:
                max_along_row(row, best, column, pad_left, IW, OW, readable - reduced * IW, with_indices, KW, stride_w, dil_w, like)
            if with_indices:
                correct_columns(column, -pad_left, stride_w, dil_w)
            reduced += 1

        y = output + oh * OW
        where = indices + oh * OW if with_indices else NULL
        first = first_inside(top, dil_h)
        if first >= IH:  # dilation steps over the whole image
            for ow in range(OW):
                y[ow] = -INFINITY
                if with_indices:
                    where[ow] = first * IW + first_inside(ow * stride_w - pad_left, dil_w)
            continue
        slot = first & (slots - 1)
        n_rows = rows_inside(top, first, IH, KH, dil_h)
        max_over_rows(
            values, columns, y, where, room - (oh - oh_first) * OW, first * IW, IW, with_indices, slot, slots, n_rows, dil_h, OW,
            size, like,
        )


cdef inline Py_ssize_t max_ring_size(const int64_t* geometry) noexcept nogil:
    """Elements for the rings of values and of columns."""
    return 2 * ring_slots(geometry) * row_size(geometry)


cdef inline void max_of_planes(
    const real* x,         # IN   a plane, others behind it
    real* output,          # OUT  its output plane
    int64_t* indices,      # OUT  or NULL
    real* ring,            # TMP  max_ring_size
    Py_ssize_t oh_first, Py_ssize_t oh_last,  # of one plane; of more than one all rows
    Py_ssize_t planes,
    Py_ssize_t readable,   # elements from x on: in lanes past the last window anything may stand
    Py_ssize_t room,       # elements from row oh_first of output on: what is written past a row, the next ones overwrite
    bint common,           # is_common
    const int64_t* geometry, vec* like,
) noexcept nogil:
    cdef:
        Py_ssize_t cells = geometry[GEO_IH] * geometry[GEO_IW], windows = geometry[GEO_OH] * geometry[GEO_OW], plane
        Py_ssize_t together = planes if common else 1
        bint done = False
    common = common and (indices == NULL or (geometry[GEO_PAD_LEFT] <= 1 and cells >> 31 == 0))
    for plane in range(planes):
        if common and plane % together == 0:
            done = max_windows(x, output, indices, ring, oh_first, oh_last, together, readable, room, geometry, like)
        if not done and indices == NULL:
            max_rows(x, output, indices, ring, oh_first, oh_last, readable, room, False, geometry, like)
        elif not done:
            max_rows(x, output, indices, ring, oh_first, oh_last, readable, room, True, geometry, like)
        x += cells
        output += windows
        if indices != NULL:
            indices += windows
        readable -= cells
        room -= windows
