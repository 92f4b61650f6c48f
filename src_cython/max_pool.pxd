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
from libc.stdint cimport int32_t

from common cimport (
    GEO_DIL_H, GEO_DIL_W, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_STRIDE_H,
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
    typedef int vfi __attribute__((vector_size(FASTCONV_VL * 4), aligned(4), may_alias));
    typedef long long vdi __attribute__((vector_size(FASTCONV_VL * 4), aligned(8), may_alias));

    /* Every other element of two vectors, as 128-bit pieces allow: a[0] a[2] b[0] b[2] a[4] ... `untangle` puts the pairs
       of such a result into their places, once for all that was computed from it. NEXT: for each of them the one that
       follows it among the elements; for the last any. */
    #if FASTCONV_VL == 16
    #define EVEN_F ((vfi){0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30})
    #define EVEN_D ((vdi){0, 8, 2, 10, 4, 12, 6, 14})
    #define NEXT_F ((vfi){1, 4, 3, 6, 5, 8, 7, 10, 9, 12, 11, 14, 13, 2, 15, 15})
    #define NEXT_D ((vdi){2, 3, 4, 5, 6, 7, 1, 7})
    #define PLACES ((vdi){0, 2, 4, 6, 1, 3, 5, 7})
    #elif FASTCONV_VL == 8
    #define EVEN_F ((vfi){0, 2, 8, 10, 4, 6, 12, 14})
    #define EVEN_D ((vdi){0, 4, 2, 6})
    #define NEXT_F ((vfi){1, 4, 3, 6, 5, 2, 7, 7})
    #define NEXT_D ((vdi){2, 3, 1, 3})
    #define PLACES ((vdi){0, 2, 1, 3})
    #else
    #define EVEN_F ((vfi){0, 2, 4, 6})
    #define EVEN_D ((vdi){0, 2})
    #define NEXT_F ((vfi){1, 2, 3, 3})
    #define NEXT_D ((vdi){1, 1})
    #define PLACES ((vdi){0, 1})
    #endif

    #if defined(__clang__)
    #define POOL_SHUFFLE(VL, a, b, places) ({ \\
        __typeof__(a) a_ = (a), b_ = (b), v_ = a_; __typeof__(places) p_ = (places); \\
        for (int i_ = 0; i_ < VL; i_++) v_[i_] = p_[i_] < VL ? a_[p_[i_]] : b_[p_[i_] - VL]; \\
        v_; })
    #else
    #define POOL_SHUFFLE(VL, a, b, places) __builtin_shuffle(a, b, places)
    #endif

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

    #define POOL_HELPERS(S, type, vec, cells, VL, EVEN, NEXT) \\
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
    POOL void cells_of_##S(vec *v, int inside, Py_ssize_t column, Py_ssize_t stride) \\
    { \\
        cells at = EVEN; /* that names the columns of a tap's lanes, too */ \\
        if (stride == 1) for (int i = 0; i < VL; i++) at[i] = i; \\
        at += (type##_lane)column; \\
        if (!inside) at &= ~(at < 0); \\
        *v = (vec)at; \\
    } \\
    POOL void first_lanes_##S(vec *v, Py_ssize_t count) \\
    { cells lane; for (int i = 0; i < VL; i++) lane[i] = i; *v = (vec)(lane < (type##_lane)count); } \\
    POOL void replace_##S(vec *v, vec mask, vec by) { *v = SIMD_SELECT((cells)mask, by, *v); } \\
    POOL int has_flags_##S(vec v) \\
    { vdi bits = (vdi)v; long long any = 0; for (int i = 0; i < VL_DOUBLE; i++) any |= bits[i]; return any != 0; } \\
    POOL void untangle_##S(vec *v) { *v = (vec)POOL_SHUFFLE(VL_DOUBLE, (vdi)*v, (vdi)*v, PLACES); } \\
    POOL void ramp_##S(vec *v, int64_t first, int64_t step) \\
    { cells lane; for (int i = 0; i < VL; i++) lane[i] = i; *v = (vec)(lane * (type##_lane)step + (type##_lane)first); } \\
    POOL void spread_##S(vec *v, type number) { *v = number - (vec){0}; } /* - 0 keeps the sign of zeros */ \\
    POOL void add_cells_##S(vec *v, vec other) { *v = (vec)((cells)*v + (cells)other); } \\
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
    POOL_HELPERS(f, float, vf, vfi, VL_FLOAT, EVEN_F, NEXT_F)
    POOL_HELPERS(d, double, vd, vdi, VL_DOUBLE, EVEN_D, NEXT_D)

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
    POOL void note_nan_##S(vec *flags, vec a, vec b) \\
    { *flags = (vec)_mm512_mask_set1_##epi((__m512i)*flags, _mm512_cmp_##pd##_mask(a, b, _CMP_UNORD_Q), -1); } \\
    POOL void fold_larger_##S(vec *best, vec *where, vec value, vec cell) \\
    { \\
        __auto_type wins = _mm512_cmp_##pd##_mask(value, *best, _CMP_GT_OQ); \\
        *best = _mm512_max_##pd(value, *best); \\
        *where = _mm512_mask_mov_##pd(*where, wins, cell); \\
    }
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
    POOL void note_nan_##S(vec *flags, vec a, vec b) { *flags = (vec)((cells)*flags | UNORDERED_##S(a, b)); } \\
    POOL void fold_larger_##S(vec *best, vec *where, vec value, vec cell) \\
    { \\
        cells wins = value > *best; \\
        *best = vmax_##S(value, *best); \\
        *where = PICK_##S(wins, cell, *where); \\
    }
    POOL_COMMON_RULES(f, vf, vfi)
    POOL_COMMON_RULES(d, vd, vdi)
    #endif

    #define POOL_OF(name, v) _Generic((v), vf: name##_f, vd: name##_d)
    #define tap(v, inside, row, column, offset, stride, extent, border) \\
        POOL_OF(tap, *(v))(v, inside, (const void *)(row), column, offset, stride, extent, border)
    #define spread(v, number) POOL_OF(spread, *(v))(v, number)
    #define untangle(v) POOL_OF(untangle, *(v))(v)
    #define pool_even(v, a, b) POOL_OF(pool_even, a)(v, a, b)
    #define pool_odd(v, a, b) POOL_OF(pool_odd, a)(v, a, b)
    #define pool_next_even(v, a) POOL_OF(pool_next_even, a)(v, a)
    #define cells_of(v, inside, column, stride) POOL_OF(cells_of, *(v))(v, inside, column, stride)
    #define note_nan(flags, a, b) POOL_OF(note_nan, *(flags))(flags, a, b)
    #define first_lanes(v, count) POOL_OF(first_lanes, *(v))(v, count)
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
    void fold_max(...) nogil    # (best, value)           the maximum: NaN wins, of equals best (zeros have signs)
    void fold_first(...) nogil  # (best, where, value, cell)  where value is larger, or the first NaN: it and its cell
    void fold_larger(...) nogil  # (best, where, value, cell)  fold_first where neither is NaN
    void note_nan(...) nogil    # (flags, a, b)           flags the lanes where a or b is NaN
    bint has_flags(...) nogil   # (v)                     whether a lane is flagged
    void first_lanes(...) nogil  # (v, count)             flags the first count lanes
    void replace(...) nogil     # (v, mask, by)           v = by in the lanes that mask flags
    void cells_of(...) nogil    # (v, inside, column, stride)  cells: columns of the first tap of windows, 0 for those below it
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
    """Whether windows are 2x2 and tile the image without padding."""
    cdef Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW]
    return (
        geometry[GEO_KH] == 2 and geometry[GEO_KW] == 2 and geometry[GEO_STRIDE_H] == 2 and geometry[GEO_STRIDE_W] == 2
        and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_PAD_LEFT] == 0 and 2 * OH <= geometry[GEO_IH] and 2 * OW <= geometry[GEO_IW]
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


cdef inline void max_strided_block(
    const real* x,         # IN   first row of the windows
    Py_ssize_t below1, Py_ssize_t below2,  # from there to the others, in elements
    real* output,          # OUT  a vector of windows, of which only ``room`` elements may be written
    vec* flags,            # OUT  of lanes that lost a NaN, or have one
    vec hidden,            # IN   lanes, the first ones, that lie left of the image although they are read
    Py_ssize_t room, Py_ssize_t column, Py_ssize_t IW, const bint inside, const bint hides, const bint alone, const Py_ssize_t K,
) noexcept nogil:
    # First over the rows, all columns of two vectors; then windows are an even column, the odd one and the next even one.
    # The last of these is in no such vector: of 3x3 windows the last lane is none. A NaN in the first row or an even column
    # stays and is seen in a maximum; the second row and odd columns are looked at; the third, but `alone`, is a later first.
    cdef Py_ssize_t lanes = sizeof(vec) // sizeof(real)
    cdef vec low, high, low1, high1, low2, high2, value, between, after
    tap(&low, inside, x, column, 0, 1, IW, -INFINITY)
    tap(&high, inside, x, column + lanes, 0, 1, IW, -INFINITY)
    tap(&low1, inside, x + below1, column, 0, 1, IW, -INFINITY)
    tap(&high1, inside, x + below1, column + lanes, 0, 1, IW, -INFINITY)
    note_nan(flags, low1, high1)
    low = vmax(low1, low)
    high = vmax(high1, high)
    if K == 3:
        tap(&low2, inside, x + below2, column, 0, 1, IW, -INFINITY)
        tap(&high2, inside, x + below2, column + lanes, 0, 1, IW, -INFINITY)
        if alone:
            note_nan(flags, low2, high2)
        low = vmax(low2, low)
        high = vmax(high2, high)
    if hides:
        spread(&after, -INFINITY)
        replace(&low, hidden, after)
    pool_even(&value, low, high)
    pool_odd(&between, low, high)
    if K == 3:
        pool_next_even(&after, value)
        value = vmax(after, vmax(between, value))
    else:
        value = vmax(between, value)
    note_nan(flags, between, value)
    untangle(&value)
    put(output, value, room)


cdef inline Py_ssize_t whole_vectors(Py_ssize_t space, Py_ssize_t first, Py_ssize_t step) noexcept nogil:
    """How many vectors there is space for, if one takes ``first`` elements and each other ``step``."""
    return 0 if space < first else (space - first) // step + 1


cdef inline void max_strided_rows(
    const real* x,         # IN   where the windows begin
    real* y,               # OUT  (rows * OW), and what the last vector writes behind it
    vec* flags, vec hidden, Py_ssize_t rows, Py_ssize_t blocks, Py_ssize_t OW, Py_ssize_t IW, Py_ssize_t below1,
    Py_ssize_t below2, const bint hides, const Py_ssize_t K,
) noexcept nogil:
    cdef Py_ssize_t block, lanes = sizeof(vec) // sizeof(real), windows = lanes if K == 2 else lanes - 1, _
    cdef vec seen = flags[0], low, high
    for _ in range(rows):
        max_strided_block(x, below1, below2, y, &seen, hidden, lanes, 0, IW, True, hides, False, K)
        for block in range(1, blocks):
            max_strided_block(
                x + 2 * windows * block, below1, below2, y + windows * block, &seen, hidden, lanes, 0, IW, True, False, False, K
            )
        x += 2 * IW
        y += OW
    if K == 3:
        for block in range(blocks):
            tap(&low, True, x - 2 * IW + below2, 2 * windows * block, 0, 1, IW, -INFINITY)
            tap(&high, True, x - 2 * IW + below2, 2 * windows * block + lanes, 0, 1, IW, -INFINITY)
            note_nan(&seen, low, high)
    flags[0] = seen


cdef inline bint max_strided(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    Py_ssize_t oh_first, Py_ssize_t oh_last, Py_ssize_t planes, Py_ssize_t readable, Py_ssize_t room,
    const Py_ssize_t K, const int64_t* geometry, vec* like,
) noexcept nogil:
    """Rows [oh_first, oh_last) of ``planes`` output planes, at step 2; False, and any values, if a NaN was lost."""
    # Windows that begin left of the image read the end of the row before: but for the first row there is one.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t lanes = sizeof(vec) // sizeof(real), windows = lanes if K == 2 else lanes - 1
        Py_ssize_t blocks = (OW + windows - 1) // windows, whole  # vectors of a row
        Py_ssize_t width = (blocks - 1) * windows + lanes, reach = 2 * width - pad_left  # elements written for them, columns read
        Py_ssize_t oh, alike, block, first, columns, _
        Py_ssize_t below[3]
        bint crosses = (OW - 1) * 2 - pad_left + K > IW
        const real* rows
        const real* start = x + first_row(oh_first, 2, geometry) * IW
        real* y = output + oh_first * OW
        vec flags, hidden
    spread(&flags, 0)
    first_lanes(&hidden, pad_left)
    for _ in range(planes):
        oh = oh_first
        while oh < oh_last:
            first = first_row(oh, 2, geometry)
            alike = rows_alike(oh, oh_last, K, 2, geometry, &below[0])
            rows = x + first * IW
            columns = IW if crosses else readable - first * IW - below[K - 1]
            while alike > oh and (room - (alike - 1 - oh) * OW < width or columns - (alike - 1 - oh) * 2 * IW < reach):
                alike -= 1
            if alike > oh and rows - pad_left >= start:
                if pad_left > 0:
                    max_strided_rows(
                        rows - pad_left, y, &flags, hidden, alike - oh, blocks, OW, IW, below[1], below[K - 1], True, K
                    )
                else:
                    max_strided_rows(
                        rows - pad_left, y, &flags, hidden, alike - oh, blocks, OW, IW, below[1], below[K - 1], False, K
                    )
            else:
                alike = oh + 1
                whole = min(whole_vectors(columns, 2 * lanes - pad_left, 2 * windows), whole_vectors(room, lanes, windows))
                for block in range(blocks):
                    if block < whole and (block > 0 or pad_left <= 0):
                        max_strided_block(
                            rows, below[1], below[K - 1], y + windows * block, &flags, hidden, lanes,
                            2 * windows * block - pad_left, IW, True, False, True, K,
                        )
                    else:
                        max_strided_block(
                            rows, below[1], below[K - 1], y + windows * block, &flags, hidden, room - windows * block,
                            2 * windows * block - pad_left, IW, False, False, True, K,
                        )
            y += (alike - oh) * OW
            room -= (alike - oh) * OW
            oh = alike
        x += IH * IW
        readable -= IH * IW
    return not has_flags(flags)


cdef inline void max_sliding_column(
    const real* x,         # IN   a plane
    real* y,               # OUT  a vector of windows in each row
    vec* flags,            # OUT  of lanes that lost a NaN
    Py_ssize_t oh_first, Py_ssize_t oh_last, Py_ssize_t room, Py_ssize_t column, const bint inside, const int64_t* geometry,
) noexcept nogil:
    cdef Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW], ih
    cdef Py_ssize_t top = oh_first - geometry[GEO_PAD_TOP]
    cdef vec first, second, third, left, middle, right
    first = second = third = flags[0]  # any
    for ih in range(top, oh_last - geometry[GEO_PAD_TOP] + 2):
        first = second
        second = third
        tap(&left, inside, x + min(max(ih, 0), IH - 1) * IW, column, 0, 1, IW, -INFINITY)
        tap(&middle, inside, x + min(max(ih, 0), IH - 1) * IW, column, 1, 1, IW, -INFINITY)
        tap(&right, inside, x + min(max(ih, 0), IH - 1) * IW, column, 2, 1, IW, -INFINITY)
        note_nan(flags, middle, right)
        third = vmax(right, vmax(middle, left))
        if ih >= top + 2:
            note_nan(flags, second, third)
            put(y, vmax(third, vmax(second, first)), room)
            y += OW
            room -= OW


cdef inline bint max_sliding(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    Py_ssize_t oh_first, Py_ssize_t oh_last, Py_ssize_t readable, Py_ssize_t room, const int64_t* geometry, vec* like,
) noexcept nogil:
    """Output rows [oh_first, oh_last) of one plane, 3x3 windows at step 1; False, and any values, if a NaN was lost."""
    # Down each vector of columns, the last first: what it writes past the end of rows is overwritten by the others.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t lanes = sizeof(vec) // sizeof(real), ow = (OW - 1) // lanes * lanes, column_last
        bint crosses = OW - pad_left + 2 > IW
        vec flags
    spread(&flags, 0)
    column_last = (IW if crosses else readable - min(oh_last + 1 - geometry[GEO_PAD_TOP], IH - 1) * IW) - lanes - 2
    while ow >= 0:
        if 0 <= ow - pad_left <= column_last:
            max_sliding_column(
                x, output + oh_first * OW + ow, &flags, oh_first, oh_last, room - ow, ow - pad_left, True, geometry
            )
        else:
            max_sliding_column(
                x, output + oh_first * OW + ow, &flags, oh_first, oh_last, room - ow, ow - pad_left, False, geometry
            )
        ow -= lanes
    return not has_flags(flags)


cdef inline void reduce_row(
    vec* best,             # OUT  maxima along the row, as tap orders them
    vec* columns,          # OUT  theirs
    vec* flags,            # OUT  of lanes that lost a NaN
    const real* x,         # IN   image row
    Py_ssize_t column, Py_ssize_t IW,
    const bint inside, const Py_ssize_t K, const Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t kw
    cdef vec other, last, cell
    tap(best, inside, x, column, 0, stride, IW, -INFINITY)
    cells_of(columns, inside, column, stride)
    for kw in range(1, K):
        tap(&other, inside, x, column, kw, stride, IW, -INFINITY)
        cells_of(&cell, True, column + kw, stride)
        fold_larger(best, columns, other, cell)
        if kw == K - 1:
            note_nan(flags, other, last if K == 3 else other)
        last = other


cdef inline Py_ssize_t blocks_inside(
    Py_ssize_t pad_left, Py_ssize_t readable, Py_ssize_t lanes, const Py_ssize_t K, const Py_ssize_t stride
) noexcept nogil:
    """Vectors of windows, from the first of a row on, whose taps end within ``readable`` elements."""
    return max(readable + pad_left - (K - 1 if stride != 2 else (K - 1) & ~1), 0) // (lanes * stride)


cdef inline void carry_row(
    const real* x,         # IN   image row
    real* carried,         # OUT  (size) reduced; columns behind
    vec* flags,
    Py_ssize_t pad_left, Py_ssize_t IW, Py_ssize_t OW, Py_ssize_t size, const Py_ssize_t K, const Py_ssize_t stride,
) noexcept nogil:
    # As if no vector lay inside: one row of a plane need not be fast, but the code short
    cdef Py_ssize_t ow = 0, lanes = sizeof(vec) // sizeof(real)
    cdef vec best, columns
    while ow < OW:
        reduce_row(&best, &columns, flags, x, ow * stride - pad_left, IW, False, K, stride)
        (<vec*> (carried + ow))[0] = best
        (<vec*> (carried + size + ow))[0] = columns
        ow += lanes


cdef inline void max_common_block(
    const real* x,         # IN   first row of the windows
    const Py_ssize_t* below,  # IN   (K) from there to each row, in elements
    real* oldest,          # IN/OUT  carried: the first row reduced, which the last replaces
    const real* newer,     # IN   carried: the second
    real* output,          # OUT  a vector of windows, of which only ``room`` elements may be written
    int64_t* indices,      # OUT  the same
    vec* flags,
    Py_ssize_t room, int64_t first_cell, Py_ssize_t column, Py_ssize_t IW, Py_ssize_t size,
    const bint inside, const Py_ssize_t K, const Py_ssize_t stride,
) noexcept nogil:
    cdef Py_ssize_t row
    cdef vec value, where, other, last, cell, step
    if stride == K:
        reduce_row(&value, &where, flags, x, column, IW, inside, K, stride)
    else:
        value = (<const vec*> oldest)[0]
        where = (<const vec*> (oldest + size))[0]
    for row in range(1, K):
        if row < K - stride:
            other = (<const vec*> newer)[0]
            cell = (<const vec*> (newer + size))[0]
        else:
            reduce_row(&other, &cell, flags, x + below[row], column, IW, inside, K, stride)
        if row == K - 1:
            note_nan(flags, other, last if K == 3 else other)
            if stride < K:
                (<vec*> oldest)[0] = other
                (<vec*> (oldest + size))[0] = cell
        ramp(&step, below[row], 0)
        add_cells(&cell, step)
        fold_larger(&value, &where, other, cell)
        last = other
    if stride == 2:
        untangle(&value)
        untangle(&where)
    put(output, value, room)
    put_cells(indices, where, first_cell, room)


cdef inline bint max_common(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    int64_t* indices,      # OUT  the same
    real* ring,            # TMP  max_ring_size
    Py_ssize_t oh_first, Py_ssize_t oh_last, Py_ssize_t readable, Py_ssize_t room,
    const Py_ssize_t K, const Py_ssize_t stride, const int64_t* geometry, vec* like,
) noexcept nogil:
    """Output rows [oh_first, oh_last) of one plane; False, and any values, if a NaN was lost."""
    # K - stride reduced rows are carried from one output row to the next.
    cdef:
        Py_ssize_t IW = geometry[GEO_IW], OW = geometry[GEO_OW]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t size = row_size(geometry), lanes = sizeof(vec) // sizeof(real), blocks = (OW + lanes - 1) // lanes * lanes
        Py_ssize_t last_tap = blocks * stride - pad_left + K - 1  # of a row's vectors, or behind it
        Py_ssize_t oh = oh_first, alike, ow, ow_left = 0 if pad_left <= 0 else lanes, ow_right, first
        Py_ssize_t below[3]
        bint whole, crosses = (OW - 1) * stride - pad_left + K > IW
        const real* rows
        real* oldest = ring
        real* newer = ring + 2 * size
        real* other
        real* y = output + oh_first * OW
        int64_t* where = indices + oh_first * OW
        vec flags
    spread(&flags, 0)
    while oh < oh_last:
        # Output rows [oh, alike): one row that is not whole inside, or as many as are and have space for whole vectors
        first = first_row(oh, stride, geometry)
        alike = rows_alike(oh, oh_last, K, stride, geometry, &below[0])
        while alike > oh + 1 and (
            (not crosses and ((alike - 1) * stride - pad_top + K - 1) * IW + last_tap > readable)
            or (alike - 1 - oh_first) * OW + blocks > room
        ):
            alike -= 1
        ow_right = lanes * blocks_inside(
            pad_left, IW if crosses else readable - ((alike - 1 - oh) * stride + first) * IW - below[K - 1], lanes, K, stride
        )
        rows = x + first * IW
        if oh == oh_first:
            if stride < K:
                carry_row(rows, oldest, &flags, pad_left, IW, OW, size, K, stride)
            if stride < K - 1:
                carry_row(rows + below[1], newer, &flags, pad_left, IW, OW, size, K, stride)
        ow_right = min(min(ow_right, (room - (alike - 1 - oh_first) * OW) // lanes * lanes), blocks)
        whole = ow_left == 0 and ow_right == blocks
        while oh < alike:
            if whole:  # apart from the other rows, for then all that the loop needs is in registers
                ow = 0
                while ow < blocks:
                    max_common_block(
                        rows, below, oldest + ow, newer + ow, y + ow, where + ow, &flags, lanes,
                        first * IW, ow * stride - pad_left, IW, size, True, K, stride,
                    )
                    ow += lanes
            else:
                ow = 0
                while ow < blocks:
                    if ow_left <= ow < ow_right:
                        max_common_block(
                            rows, below, oldest + ow, newer + ow, y + ow, where + ow, &flags, lanes,
                            first * IW, ow * stride - pad_left, IW, size, True, K, stride,
                        )
                    else:
                        max_common_block(
                            rows, below, oldest + ow, newer + ow, y + ow, where + ow, &flags,
                            room - (oh - oh_first) * OW - ow, first * IW, ow * stride - pad_left, IW, size, False,
                            K, stride,
                        )
                    ow += lanes
            oh += 1
            first += stride
            rows += stride * IW
            y += OW
            where += OW
            if stride < K - 1:
                other = oldest
                oldest = newer
                newer = other
    return not has_flags(flags)


cdef inline bint max_windows(
    const real* x, real* output, int64_t* indices, real* ring, Py_ssize_t oh_first, Py_ssize_t oh_last,
    Py_ssize_t planes, Py_ssize_t readable, Py_ssize_t room, const int64_t* geometry, vec* like,
) noexcept nogil:
    if indices != NULL:
        if geometry[GEO_KH] == 2:
            return max_common(x, output, indices, ring, oh_first, oh_last, readable, room, 2, 2, geometry, like)
        if geometry[GEO_STRIDE_H] == 2:
            return max_common(x, output, indices, ring, oh_first, oh_last, readable, room, 3, 2, geometry, like)
        return max_common(x, output, indices, ring, oh_first, oh_last, readable, room, 3, 1, geometry, like)
    if geometry[GEO_KH] == 2:
        return max_strided(x, output, oh_first, oh_last, planes, readable, room, 2, geometry, like)
    if geometry[GEO_STRIDE_H] == 2:
        return max_strided(x, output, oh_first, oh_last, planes, readable, room, 3, geometry, like)
    return max_sliding(x, output, oh_first, oh_last, readable, room, geometry, like)


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
        Py_ssize_t together = planes if common and indices == NULL and geometry[GEO_STRIDE_H] == 2 else 1
        bint done = False
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
