# cython: language_level=3
"""Maxima of windows on vectors: what the pool kernels and the max-pool fused behind a convolution share.

Windows are reduced first along the row, then over the rows: of equal maxima that still finds the first in row-major order,
and rows that windows share are reduced once. A ring holds the reduced rows that are still needed: image row ih in slot
ih & (slots - 1). Windows of 2x2 that tile the plane share nothing and are done at one go.

Lanes of a vector are windows that are neighbours in a row. A vector that meets columns outside the image masks them off.
Cells of one window are numbered with integers as wide as the elements: in float32 its rows must span fewer than 2**31 cells.
"""

from libc.math cimport INFINITY
from libc.stdint cimport int32_t

from common cimport (
    GEO_DIL_H, GEO_DIL_W, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_STRIDE_H,
    GEO_STRIDE_W, ceil_div, int64_t, real, vec,
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
       of such a result into their places, once for all that was computed from it. */
    #if FASTCONV_VL == 16
    #define EVEN_F ((vfi){0, 2, 16, 18, 4, 6, 20, 22, 8, 10, 24, 26, 12, 14, 28, 30})
    #define EVEN_D ((vdi){0, 8, 2, 10, 4, 12, 6, 14})
    #define PLACES ((vdi){0, 2, 4, 6, 1, 3, 5, 7})
    #elif FASTCONV_VL == 8
    #define EVEN_F ((vfi){0, 2, 8, 10, 4, 6, 12, 14})
    #define EVEN_D ((vdi){0, 4, 2, 6})
    #define PLACES ((vdi){0, 2, 1, 3})
    #else
    #define EVEN_F ((vfi){0, 2, 4, 6})
    #define EVEN_D ((vdi){0, 2})
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
        cells at; \\
        for (int i = 0; i < VL; i++) at[i] = i; \\
        at += (lane)column; \\
        cells inside = (at >= 0) & (at < (lane)extent); \\
        vec v = (vec)_mm256_maskload_##pd(row + column, (__m256i)inside); \\
        return SIMD_SELECT(inside, v, ((vec){0} + border)); }
    #define POOL_LOAD_f(type, vec, cells, VL) POOL_LOAD(ps, vec, cells, int, VL)
    #define POOL_LOAD_d(type, vec, cells, VL) POOL_LOAD(pd, vec, cells, long long, VL)
    #else
    #define POOL_LOAD_f(type, vec, cells, VL) { \\
        vec v; \\
        for (int i = 0; i < VL; i++) v[i] = column + i >= 0 && column + i < extent ? row[column + i] : border; \\
        return v; }
    #define POOL_LOAD_d POOL_LOAD_f
    #endif

    #define POOL_HELPERS(S, type, vec, cells, VL, EVEN) \\
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
    POOL_HELPERS(f, float, vf, vfi, VL_FLOAT, EVEN_F)
    POOL_HELPERS(d, double, vd, vdi, VL_DOUBLE, EVEN_D)

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
    #endif

    #define POOL_OF(name, v) _Generic((v), vf: name##_f, vd: name##_d)
    #define tap(v, inside, row, column, offset, stride, extent, border) \\
        POOL_OF(tap, *(v))(v, inside, (const void *)(row), column, offset, stride, extent, border)
    #define spread(v, number) POOL_OF(spread, *(v))(v, number)
    #define untangle(v) POOL_OF(untangle, *(v))(v)
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
    void fold_max(...) nogil    # (best, value)           the maximum: NaN wins, of equals best (zeros have signs)
    void fold_first(...) nogil  # (best, where, value, cell)  where value is larger, or the first NaN: it and its cell
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


# ---------------------------------------------------------------------------------------------------- max pooling

# `like` only carries the type. with_indices and inside, and KW, n_rows and stride_w at the calls that matter, are constants:
# then the loops over a window are unrolled and all of it stays in registers.
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
    Py_ssize_t oh_first, Py_ssize_t oh_last,
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
        Py_ssize_t oh, ow, top, first, slot, n_rows, room, readable, reduced = 0
        Py_ssize_t end = min((oh_last - 1) * stride_h - pad_top + span(KH, dil_h), IH)  # of the image rows that are there

    for oh in range(oh_first, oh_last):
        # Image rows that no earlier window has met
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            row = x + reduced * IW
            readable = (end - reduced) * IW
            best = values + (reduced & (slots - 1)) * size
            column = columns + (reduced & (slots - 1)) * size
            if KW == 3 and dil_w == 1 and stride_w == 2:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, 3, 2, 1, like)
            elif KW == 3 and dil_w == 1 and stride_w == 1:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, 3, 1, 1, like)
            elif KW == 2 and dil_w == 1 and stride_w == 2:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, 2, 2, 1, like)
            elif stride_w == 1:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, KW, 1, dil_w, like)
            else:
                max_along_row(row, best, column, pad_left, IW, OW, readable, with_indices, KW, stride_w, dil_w, like)
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
        room = (oh_last - oh) * OW  # what is written past the end of the row, the next rows overwrite
        if n_rows == 3 and dil_h == 1:
            max_over_rows(values, columns, y, where, room, first * IW, IW, with_indices, slot, slots, 3, 1, OW, size, like)
        elif n_rows == 2 and dil_h == 1:
            max_over_rows(values, columns, y, where, room, first * IW, IW, with_indices, slot, slots, 2, 1, OW, size, like)
        else:
            max_over_rows(values, columns, y, where, room, first * IW, IW, with_indices, slot, slots, n_rows, dil_h, OW, size, like)


cdef inline void max_tiles_block(
    const real* x,         # IN   upper of two image rows
    real* output,          # OUT  a vector of windows, of which only ``room`` elements may be written
    int64_t* indices,      # OUT  with_indices: the same
    Py_ssize_t room, int64_t first_cell, Py_ssize_t column, Py_ssize_t IW,
    const bint with_indices, const bint inside, vec* like,
) noexcept nogil:
    cdef Py_ssize_t tile
    cdef vec value, other, where, cell
    tap(&value, inside, x, column, 0, 2, IW, -INFINITY)
    if not with_indices:
        # Both rows at once, then one of the other: shorter chains
        tap(&other, inside, x, column, 1, 2, IW, -INFINITY)
        fold_max(&value, other)
        tap(&where, inside, x + IW, column, 0, 2, IW, -INFINITY)
        tap(&other, inside, x + IW, column, 1, 2, IW, -INFINITY)
        fold_max(&where, other)
        fold_max(&value, where)
    else:
        ramp(&where, 0, 0)
        for tile in range(1, 4):
            tap(&other, inside, x + (tile >> 1) * IW, column, tile & 1, 2, IW, -INFINITY)
            ramp(&cell, (tile >> 1) * IW + (tile & 1), 0)
            fold_first(&value, &where, other, cell)
        untangle(&where)
        ramp(&cell, column, 2)
        add_cells(&where, cell)
        put_cells(indices, where, first_cell, room)
    untangle(&value)
    put(output, value, room)


cdef inline void max_tiles(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    int64_t* indices,      # OUT  with_indices
    Py_ssize_t oh_first, Py_ssize_t oh_last,
    const bint with_indices, const int64_t* geometry, vec* like,
) noexcept nogil:
    """Output rows [oh_first, oh_last) of one plane, where `is_tiling`."""
    cdef:
        Py_ssize_t IW = geometry[GEO_IW], OW = geometry[GEO_OW], oh, ow, at, lanes = sizeof(vec) // sizeof(real)
        const real* row
        int64_t* where = NULL
    for oh in range(oh_first, oh_last):
        row = x + 2 * oh * IW
        ow = 0
        while ow < OW:
            at = oh * OW + ow
            if with_indices:
                where = indices + at
            if block_inside(2 * ow, lanes, 2, 2, (2 * (oh_last - oh) - 1) * IW):  # from the lower row on
                max_tiles_block(
                    row, output + at, where, oh_last * OW - at, 2 * oh * IW, 2 * ow, IW, with_indices, True, like
                )
            else:
                max_tiles_block(
                    row, output + at, where, oh_last * OW - at, 2 * oh * IW, 2 * ow, IW, with_indices, False, like
                )
            ow += lanes


cdef inline Py_ssize_t max_ring_size(const int64_t* geometry) noexcept nogil:
    """Elements for the rings of values and of columns."""
    return 0 if is_tiling(geometry) else 2 * ring_slots(geometry) * row_size(geometry)


cdef inline void max_of_plane(
    const real* x,         # IN   a plane
    real* output,          # OUT  its output plane
    int64_t* indices,      # OUT  or NULL
    real* ring,            # TMP  max_ring_size
    Py_ssize_t oh_first, Py_ssize_t oh_last,
    const int64_t* geometry, vec* like,
) noexcept nogil:
    if is_tiling(geometry):
        if indices == NULL:
            max_tiles(x, output, indices, oh_first, oh_last, False, geometry, like)
        else:
            max_tiles(x, output, indices, oh_first, oh_last, True, geometry, like)
    elif indices == NULL:
        max_rows(x, output, indices, ring, oh_first, oh_last, False, geometry, like)
    else:
        max_rows(x, output, indices, ring, oh_first, oh_last, True, geometry, like)
