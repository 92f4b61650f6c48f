"""Convolution by its definition, and its two gradients. Formula and shapes: fastconv/_reference/direct.py.

Vectors lie along an output row. Image rows are read in place; a row outside the image is one row of zeros, so that
padding meets the weight as the definition says; columns outside are masked off. The last vector of a row overlaps the
one before; in depthwise layers, with AVX-512, it is a part of one.

The longest chains of additions, bias and `accumulate` included, for tolerances; channels: ICG, for grad_input OCG.
conv2d, grad_input with stride 1  max(KH*KW, DEPTH) + ceil(channels / max(DEPTH // (KH*KW), 1)) + 2
grad_input with a larger stride   DEPTH + KW + channels*KH*KW / DEPTH + 2
grad_input, weight not finite     KH*KW + OCG + 2
grad_weight                       FLUSH + FLUSH + N*OH*ceil(OW / VL) / (FLUSH * FLUSH / 2) + log2(VL) + CHUNKS + 1
grad_weight, 3x3 by columns       FLUSH + FLUSH + runs / FLUSH + log2(VL) + CHUNKS + 1; a run: a column of a band or of images
"""

from libc.string cimport memmove, memset

from common cimport (
    GEO_ACCUMULATE, GEO_DIL_H, GEO_DIL_W, GEO_G, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N, GEO_OC, GEO_OH,
    GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_POOL_KH, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H,
    GEO_STRIDE_H, GEO_STRIDE_W, Operands, ceil_div, clamp, each_task, fill, int64_t, lines, operands, prefetch,
    prefetch_second, real, start, start_of_row, team_join, vd, vec, vf, vmax, vmin,
)
from common cimport CACHE_LINE, VL_DOUBLE as _VL_DOUBLE
from common cimport VL_FLOAT as _VL_FLOAT
from fused_pool cimport max_pool_rows, pool_ring_size

team_join()

VL_FLOAT = _VL_FLOAT
VL_DOUBLE = _VL_DOUBLE

cdef enum:
    FILTERS = 4      # filters that share each loaded vector of pixels
    DEPTH = 256      # products after which a partial sum is put aside
    FLUSH = 64       # vectors after which grad_weight's partial sums are put aside
    TASK = 1 << 18   # multiply-adds of a task: ten microseconds, against a fraction of one to start it;
    FEW_TASKS = 4    # but so many tasks, for two or four threads to share
    TOGETHER = 4096  # elements of depthwise planes, images and results, whose columns are taken in turns
    CHUNKS = 16      # grad_weight: tasks that are worth splitting the sum for

cdef extern from *:
    """
    #if defined(__AVX2__)
    #include <immintrin.h>
    #endif
    #define DIRECT static inline __attribute__((always_inline))
    /* With AVX-512 any order of lanes costs one instruction, and some lanes are loaded and stored as fast as all. */
    enum { DIRECT_ORDERED = FASTCONV_VL == 16 };
    /* Elements of the rows, images and results, that the columns of a depthwise layer share; the next rows are fetched
       meanwhile: two bands are a first-level cache, of 32 KB before AVX-512, of 48 with it. */
    enum { DIRECT_BAND = FASTCONV_VL == 16 ? 6400 : 4096 };
    #define DIRECT_SELDOM(condition) __builtin_expect(!!(condition), 0)

    #define DIRECT_HELPERS(S, type, vec, VL) \\
    DIRECT vec either_##S(vec a, vec b) { return (vec)((simd_i##S)a | (simd_i##S)b); } \\
    /* v where the sign bit of `lanes` is set, else zero */ \\
    DIRECT vec chosen_##S(vec v, vec lanes) { return (vec)((simd_i##S)v & ((simd_i##S)lanes < 0)); } \\
    /* Lane i: row[column + i * stride]; zero where that column is outside [0, extent); with whole none is. */ \\
    DIRECT vec gather_##S(const type *row, Py_ssize_t column, Py_ssize_t stride, Py_ssize_t extent, int whole) \\
    { \\
        vec v; \\
        if (whole || (column >= 0 && column + (VL - 1) * stride < extent)) \\
            for (int i = 0; i < VL; i++) v[i] = row[column + i * stride]; \\
        else \\
            for (int i = 0; i < VL; i++, column += stride) v[i] = column >= 0 && column < extent ? row[column] : 0; \\
        return v; \\
    }
    DIRECT_HELPERS(f, float, vf, VL_FLOAT)
    DIRECT_HELPERS(d, double, vd, VL_DOUBLE)

    /* Both halves of the lanes, added until one is left. */
    #if FASTCONV_VL == 16 && defined(__AVX512F__)
    DIRECT float sum_lanes_f(vf v) { return _mm512_reduce_add_ps((__m512)v); }
    DIRECT double sum_lanes_d(vd v) { return _mm512_reduce_add_pd((__m512d)v); }
    #elif FASTCONV_VL == 8 && defined(__AVX__)
    DIRECT float sum_lanes_f(vf v)
    {
        __m128 sum = _mm256_castps256_ps128((__m256)v) + _mm256_extractf128_ps((__m256)v, 1);
        sum += _mm_movehl_ps(sum, sum);
        return sum[0] + sum[1];
    }
    DIRECT double sum_lanes_d(vd v)
    {
        __m128d sum = _mm256_castpd256_pd128((__m256d)v) + _mm256_extractf128_pd((__m256d)v, 1);
        return sum[0] + sum[1];
    }
    #else
    #define DIRECT_SUM_LANES(S, type, vec, VL) \\
    DIRECT type sum_lanes_##S(vec v) \\
    { \\
        for (int half = VL / 2; half; half /= 2) for (int i = 0; i < half; i++) v[i] += v[i + half]; \\
        return v[0]; \\
    }
    DIRECT_SUM_LANES(f, float, vf, VL_FLOAT)
    DIRECT_SUM_LANES(d, double, vd, VL_DOUBLE)
    #endif

    #if defined(__AVX512F__) && FASTCONV_VL == 16
    /* Lanes [first, last) to memory. */
    DIRECT void store_lanes_f(float *p, vf v, Py_ssize_t first, Py_ssize_t last)
    { _mm512_mask_storeu_ps(p, (__mmask16)((1u << last) - (1u << first)), (__m512)v); }
    DIRECT void store_lanes_d(double *p, vd v, Py_ssize_t first, Py_ssize_t last)
    { _mm512_mask_storeu_pd(p, (__mmask8)((1u << last) - (1u << first)), (__m512d)v); }
    #else
    #define DIRECT_STORE_LANES(S, type, vec, VL) \\
    /* Lanes [first, last) to memory, by two overlapping pieces where there are enough. */ \\
    DIRECT void store_lanes_##S(type *p, vec v, Py_ssize_t first, Py_ssize_t last) \\
    { \\
        type lanes[VL]; \\
        const type *from = lanes + first; \\
        Py_ssize_t count = last - first; \\
        __builtin_memcpy(lanes, &v, sizeof v); \\
        p += first; \\
        if (count >= VL / 2) { \\
            __builtin_memcpy(p, from, VL / 2 * sizeof *p); \\
            __builtin_memcpy(p + count - VL / 2, from + count - VL / 2, VL / 2 * sizeof *p); \\
        } else if (count >= VL / 4 && VL >= 4) { \\
            __builtin_memcpy(p, from, VL / 4 * sizeof *p); \\
            __builtin_memcpy(p + count - VL / 4, from + count - VL / 4, VL / 4 * sizeof *p); \\
        } else \\
            for (Py_ssize_t i = 0; i < count; i++) p[i] = from[i]; \\
    }
    DIRECT_STORE_LANES(f, float, vf, VL_FLOAT)
    DIRECT_STORE_LANES(d, double, vd, VL_DOUBLE)
    #endif

    /* inside: lanes whose sign bit says that column + i is in [0, extent). load_lanes: lane i is p[i]; zero, and not
       read, where the sign bit of that lane is not set. */
    #define DIRECT_INSIDE(S, type, vec, VL, lane_type, ...) \\
    DIRECT vec inside_##S(Py_ssize_t column, Py_ssize_t extent) \\
    { \\
        Py_ssize_t from = column < -VL ? -VL : column < extent ? column : extent; \\
        simd_i##S lane = {__VA_ARGS__}; \\
        lane += (lane_type)from; \\
        return (vec)((lane - (lane_type)extent) & ~lane); \\
    }
    #if FASTCONV_VL == 16
    DIRECT_INSIDE(f, float, vf, 16, int, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    DIRECT_INSIDE(d, double, vd, 8, long long, 0, 1, 2, 3, 4, 5, 6, 7)
    #elif FASTCONV_VL == 8
    DIRECT_INSIDE(f, float, vf, 8, int, 0, 1, 2, 3, 4, 5, 6, 7)
    DIRECT_INSIDE(d, double, vd, 4, long long, 0, 1, 2, 3)
    #else
    DIRECT_INSIDE(f, float, vf, 4, int, 0, 1, 2, 3)
    DIRECT_INSIDE(d, double, vd, 2, long long, 0, 1)
    #endif

    /* join_lanes: p[i] where the sign bit is set, elsewhere v, whose other lanes are zeros. */
    #if defined(__AVX512F__) && FASTCONV_VL == 16
    DIRECT vf join_lanes_f(vf v, const float *p, vf inside)
    { return (vf)_mm512_mask_loadu_ps((__m512)v, _mm512_movepi32_mask((__m512i)inside), p); }
    DIRECT vd join_lanes_d(vd v, const double *p, vd inside)
    { return (vd)_mm512_mask_loadu_pd((__m512d)v, _mm512_movepi64_mask((__m512i)inside), p); }
    DIRECT vf load_lanes_f(const float *p, vf inside)
    { return (vf)_mm512_maskz_loadu_ps(_mm512_movepi32_mask((__m512i)inside), p); }
    DIRECT vd load_lanes_d(const double *p, vd inside)
    { return (vd)_mm512_maskz_loadu_pd(_mm512_movepi64_mask((__m512i)inside), p); }
    #elif defined(__AVX2__) && FASTCONV_VL == 8
    DIRECT vf load_lanes_f(const float *p, vf inside) { return (vf)_mm256_maskload_ps(p, (__m256i)inside); }
    DIRECT vd load_lanes_d(const double *p, vd inside) { return (vd)_mm256_maskload_pd(p, (__m256i)inside); }
    #else
    /* Out of line: a branch for each lane, wherever a vector is loaded, would be more than a compiler takes. */
    #define DIRECT_LOAD_LANES(S, type, vec, VL) \\
    static __attribute__((noinline)) vec load_some_##S(const type *p, vec inside) \\
    { \\
        type lanes[VL]; \\
        vec v; \\
        for (int i = 0; i < VL; i++) lanes[i] = ((simd_i##S)inside)[i] < 0 ? p[i] : 0; \\
        __builtin_memcpy(&v, lanes, sizeof v); \\
        return v; \\
    } \\
    DIRECT vec load_lanes_##S(const type *p, vec inside) \\
    { \\
        /* the lanes inside are neighbours */ \\
        if (((simd_i##S)inside)[0] < 0 && ((simd_i##S)inside)[VL - 1] < 0) return *(const vec *)p; \\
        return load_some_##S(p, inside); \\
    }
    DIRECT_LOAD_LANES(f, float, vf, VL_FLOAT)
    DIRECT_LOAD_LANES(d, double, vd, VL_DOUBLE)
    #endif
    #if !defined(__AVX512F__) || FASTCONV_VL != 16
    DIRECT vf join_lanes_f(vf v, const float *p, vf inside)
    { return (vf)((simd_if)v | (simd_if)load_lanes_f(p, inside)); }
    DIRECT vd join_lanes_d(vd v, const double *p, vd inside)
    { return (vd)((simd_id)v | (simd_id)load_lanes_d(p, inside)); }
    #endif

    /* Two vectors in a row: their even or odd elements, in an order that costs one instruction (with AVX2 128-bit lanes
       stay where they are); in_order and out_of_order lead from that order to the natural one and back. Two vectors as
       one alternating pair: zip_low, zip_high. The lower half of one, the upper half of the other: halves. Every lane
       from the next one, or from the one before, round in a circle: following, preceding. */
    #define DIRECT_SHUFFLE(S, name, ...) \\
    DIRECT v##S name##_##S(v##S a, v##S b) { return SIMD_SHUFFLE_##S(a, b, __VA_ARGS__); }
    #if FASTCONV_VL == 16
    DIRECT_SHUFFLE(f, even, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30)
    DIRECT_SHUFFLE(f, odd, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)
    DIRECT_SHUFFLE(f, in_order, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    DIRECT_SHUFFLE(f, out_of_order, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15)
    DIRECT_SHUFFLE(f, halves, 0, 1, 2, 3, 4, 5, 6, 7, 24, 25, 26, 27, 28, 29, 30, 31)
    DIRECT_SHUFFLE(f, following, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0)
    DIRECT_SHUFFLE(f, preceding, 15, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14)
    DIRECT_SHUFFLE(f, zip_low, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23)
    DIRECT_SHUFFLE(f, zip_high, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)
    DIRECT_SHUFFLE(d, even, 0, 2, 4, 6, 8, 10, 12, 14)
    DIRECT_SHUFFLE(d, odd, 1, 3, 5, 7, 9, 11, 13, 15)
    DIRECT_SHUFFLE(d, in_order, 0, 1, 2, 3, 4, 5, 6, 7)
    DIRECT_SHUFFLE(d, out_of_order, 0, 1, 2, 3, 4, 5, 6, 7)
    DIRECT_SHUFFLE(d, halves, 0, 1, 2, 3, 12, 13, 14, 15)
    DIRECT_SHUFFLE(d, following, 1, 2, 3, 4, 5, 6, 7, 0)
    DIRECT_SHUFFLE(d, preceding, 7, 0, 1, 2, 3, 4, 5, 6)
    DIRECT_SHUFFLE(d, zip_low, 0, 8, 1, 9, 2, 10, 3, 11)
    DIRECT_SHUFFLE(d, zip_high, 4, 12, 5, 13, 6, 14, 7, 15)
    #elif FASTCONV_VL == 8
    DIRECT_SHUFFLE(f, even, 0, 2, 8, 10, 4, 6, 12, 14)
    DIRECT_SHUFFLE(f, odd, 1, 3, 9, 11, 5, 7, 13, 15)
    DIRECT_SHUFFLE(f, in_order, 0, 1, 4, 5, 2, 3, 6, 7)
    DIRECT_SHUFFLE(f, out_of_order, 0, 1, 4, 5, 2, 3, 6, 7)
    DIRECT_SHUFFLE(f, halves, 0, 1, 2, 3, 12, 13, 14, 15)
    DIRECT_SHUFFLE(f, following, 1, 2, 3, 4, 5, 6, 7, 0)
    DIRECT_SHUFFLE(f, preceding, 7, 0, 1, 2, 3, 4, 5, 6)
    DIRECT_SHUFFLE(f, zip_low, 0, 8, 1, 9, 2, 10, 3, 11)
    DIRECT_SHUFFLE(f, zip_high, 4, 12, 5, 13, 6, 14, 7, 15)
    DIRECT_SHUFFLE(d, even, 0, 4, 2, 6)
    DIRECT_SHUFFLE(d, odd, 1, 5, 3, 7)
    DIRECT_SHUFFLE(d, in_order, 0, 2, 1, 3)
    DIRECT_SHUFFLE(d, out_of_order, 0, 2, 1, 3)
    DIRECT_SHUFFLE(d, halves, 0, 1, 6, 7)
    DIRECT_SHUFFLE(d, following, 1, 2, 3, 0)
    DIRECT_SHUFFLE(d, preceding, 3, 0, 1, 2)
    DIRECT_SHUFFLE(d, zip_low, 0, 4, 1, 5)
    DIRECT_SHUFFLE(d, zip_high, 2, 6, 3, 7)
    #else
    DIRECT_SHUFFLE(f, even, 0, 2, 4, 6)
    DIRECT_SHUFFLE(f, odd, 1, 3, 5, 7)
    DIRECT_SHUFFLE(f, in_order, 0, 1, 2, 3)
    DIRECT_SHUFFLE(f, out_of_order, 0, 1, 2, 3)
    DIRECT_SHUFFLE(f, halves, 0, 1, 6, 7)
    DIRECT_SHUFFLE(f, following, 1, 2, 3, 0)
    DIRECT_SHUFFLE(f, preceding, 3, 0, 1, 2)
    DIRECT_SHUFFLE(f, zip_low, 0, 4, 1, 5)
    DIRECT_SHUFFLE(f, zip_high, 2, 6, 3, 7)
    DIRECT_SHUFFLE(d, even, 0, 2)
    DIRECT_SHUFFLE(d, odd, 1, 3)
    DIRECT_SHUFFLE(d, in_order, 0, 1)
    DIRECT_SHUFFLE(d, out_of_order, 0, 1)
    DIRECT_SHUFFLE(d, halves, 0, 3)
    DIRECT_SHUFFLE(d, following, 1, 0)
    DIRECT_SHUFFLE(d, preceding, 1, 0)
    DIRECT_SHUFFLE(d, zip_low, 0, 2)
    DIRECT_SHUFFLE(d, zip_high, 1, 3)
    #endif
    #if defined(__AVX512F__) && FASTCONV_VL == 16
    /* two loads */
    DIRECT vf fill_halves_f(const float *low, const float *high)
    { return (vf)_mm512_mask_broadcastss_ps(_mm512_set1_ps(*low), 0xff00, _mm_load_ss(high)); }
    DIRECT vd fill_halves_d(const double *low, const double *high)
    { return (vd)_mm512_mask_broadcastsd_pd(_mm512_set1_pd(*low), 0xf0, _mm_load_sd(high)); }
    #else
    DIRECT vf fill_halves_f(const float *low, const float *high) { return halves_f(vset_f(*low), vset_f(*high)); }
    DIRECT vd fill_halves_d(const double *low, const double *high) { return halves_d(vset_d(*low), vset_d(*high)); }
    #endif
    """
    enum:
        ORDERED "DIRECT_ORDERED"
        BAND "DIRECT_BAND"
    bint seldom "DIRECT_SELDOM"(bint condition) nogil
    vf either_f(vf a, vf b) nogil
    vd either_d(vd a, vd b) nogil
    vf chosen_f(vf v, vf lanes) nogil
    vd chosen_d(vd v, vd lanes) nogil
    float sum_lanes_f(vf v) nogil
    double sum_lanes_d(vd v) nogil
    void store_lanes_f(float* p, vf v, Py_ssize_t first, Py_ssize_t last) nogil
    void store_lanes_d(double* p, vd v, Py_ssize_t first, Py_ssize_t last) nogil
    vf gather_f(const float* row, Py_ssize_t column, Py_ssize_t stride, Py_ssize_t extent, bint whole) nogil
    vd gather_d(const double* row, Py_ssize_t column, Py_ssize_t stride, Py_ssize_t extent, bint whole) nogil
    vf inside_f(Py_ssize_t column, Py_ssize_t extent) nogil
    vd inside_d(Py_ssize_t column, Py_ssize_t extent) nogil
    vf load_lanes_f(const float* p, vf inside) nogil
    vd load_lanes_d(const double* p, vd inside) nogil
    vf join_lanes_f(vf v, const float* p, vf inside) nogil
    vd join_lanes_d(vd v, const double* p, vd inside) nogil
    vf even_f(vf a, vf b) nogil
    vd even_d(vd a, vd b) nogil
    vf odd_f(vf a, vf b) nogil
    vd odd_d(vd a, vd b) nogil
    vf in_order_f(vf a, vf b) nogil
    vd in_order_d(vd a, vd b) nogil
    vf out_of_order_f(vf a, vf b) nogil
    vd out_of_order_d(vd a, vd b) nogil
    vf fill_halves_f(const float* low, const float* high) nogil
    vd fill_halves_d(const double* low, const double* high) nogil
    vf following_f(vf a, vf b) nogil
    vd following_d(vd a, vd b) nogil
    vf preceding_f(vf a, vf b) nogil
    vd preceding_d(vd a, vd b) nogil
    vf zip_low_f(vf a, vf b) nogil
    vd zip_low_d(vd a, vd b) nogil
    vf zip_high_f(vf a, vf b) nogil
    vd zip_high_d(vd a, vd b) nogil


# ------------------------------------------------------------------------------------------------------ vector helpers


cdef inline vec in_order(vec v) noexcept nogil:
    if vec is vf:
        return in_order_f(v, v)
    else:
        return in_order_d(v, v)


cdef inline vec out_of_order(vec v) noexcept nogil:
    if vec is vf:
        return out_of_order_f(v, v)
    else:
        return out_of_order_d(v, v)


cdef inline vec even(vec a, vec b) noexcept nogil:
    if vec is vf:
        return even_f(a, b)
    else:
        return even_d(a, b)


cdef inline vec odd(vec a, vec b) noexcept nogil:
    if vec is vf:
        return odd_f(a, b)
    else:
        return odd_d(a, b)


cdef inline vec either(vec a, vec b) noexcept nogil:
    """Lanes that `inside` names in a or in b."""
    if vec is vf:
        return either_f(a, b)
    else:
        return either_d(a, b)


cdef inline vec chosen(vec v, vec lanes) noexcept nogil:
    """v in those lanes, zeros elsewhere."""
    if vec is vf:
        return chosen_f(v, lanes)
    else:
        return chosen_d(v, lanes)


cdef inline vec following(vec v) noexcept nogil:
    if vec is vf:
        return following_f(v, v)
    else:
        return following_d(v, v)


cdef inline vec preceding(vec v) noexcept nogil:
    if vec is vf:
        return preceding_f(v, v)
    else:
        return preceding_d(v, v)


cdef inline vec zip_low(vec a, vec b) noexcept nogil:
    if vec is vf:
        return zip_low_f(a, b)
    else:
        return zip_low_d(a, b)


cdef inline vec zip_high(vec a, vec b) noexcept nogil:
    if vec is vf:
        return zip_high_f(a, b)
    else:
        return zip_high_d(a, b)


cdef inline real sum_lanes(vec v, const real* unused) noexcept nogil:
    if vec is vf:
        return sum_lanes_f(v)
    else:
        return sum_lanes_d(v)


cdef inline void inside(vec* out, Py_ssize_t column, Py_ssize_t extent) noexcept nogil:
    """Which of the columns from ``column`` on are in [0, extent)."""
    if vec is vf:
        out[0] = inside_f(column, extent)
    else:
        out[0] = inside_d(column, extent)


cdef inline void load_lanes(vec* out, const real* p, vec lanes, bint plain) noexcept nogil:
    """A vector; without ``plain`` those of its lanes that `inside` names, elsewhere zeros."""
    if plain:
        out[0] = (<const vec*> p)[0]
    elif vec is vf:
        out[0] = load_lanes_f(<const float*> p, lanes)
    else:
        out[0] = load_lanes_d(<const double*> p, lanes)


cdef inline vec join_lanes(vec v, const real* p, vec lanes) noexcept nogil:
    """The lanes of p that `inside` names, beside those of v."""
    if vec is vf:
        return join_lanes_f(v, <const float*> p, lanes)
    else:
        return join_lanes_d(v, <const double*> p, lanes)


cdef inline void fill_halves(vec* out, const real* low, const real* high, bint pair) noexcept nogil:
    """The lower half of the lanes one value, the upper another; the first alone if not ``pair``."""
    if not pair:
        fill(out, low[0])
    elif vec is vf:
        out[0] = fill_halves_f(<const float*> low, <const float*> high)
    else:
        out[0] = fill_halves_d(<const double*> low, <const double*> high)


cdef inline void load(vec* out, const real* row, Py_ssize_t column, Py_ssize_t extent, bint plain) noexcept nogil:
    """Columns column .. of a row; with ``plain`` all of them exist, else those outside [0, extent) are zero."""
    cdef vec lanes
    inside(&lanes, column, extent)
    load_lanes(out, row + column, lanes, plain)


# How a vector of columns is loaded: all inside the row; some outside; every second one (out of order, see `even`);
# every stride-th one, some outside; every stride-th one, all inside.
cdef enum:
    PLAIN, MASKED, PAIRS, GATHER, WHOLE


cdef inline int mode_of(Py_ssize_t stride) noexcept nogil:
    return MASKED if stride == 1 else PAIRS if stride == 2 else GATHER


cdef inline void load_columns(
    vec* out, const real* row, Py_ssize_t column, Py_ssize_t stride, Py_ssize_t extent, int mode
) noexcept nogil:
    cdef vec a, b
    if mode <= MASKED:
        load(out, row, column, extent, mode == PLAIN)
    elif mode == PAIRS:
        load(&a, row, column, extent, False)
        load(&b, row, column + sizeof(vec) // sizeof(real), extent, False)
        out[0] = even(a, b)
    elif vec is vf:
        out[0] = gather_f(<const float*> row, column, stride, extent, mode == WHOLE)
    else:
        out[0] = gather_d(<const double*> row, column, stride, extent, mode == WHOLE)


cdef inline void store(
    real* out, vec value, Py_ssize_t first, Py_ssize_t last, bint accumulate, real act_min, real act_max
) noexcept nogil:
    """The epilogue: lanes [first, last), of which lane 0 would go to ``out``."""
    cdef vec low, high, old, lanes
    if accumulate:
        inside(&lanes, -first, last - first)
        load_lanes(&old, out, lanes, False)
        value = value + old
    fill(&low, act_min)
    fill(&high, act_max)
    value = vmin(high, vmax(low, value))
    if not ORDERED and last - first == <Py_ssize_t> (sizeof(vec) // sizeof(real)):
        (<vec*> out)[0] = value
    elif vec is vf:
        store_lanes_f(<float*> out, value, first, last)
    else:
        store_lanes_d(<double*> out, value, first, last)


# ----------------------------------------------------------------------------- convolution, and its adjoint of stride 1

# A convolution as the loops below read it. The adjoint of a convolution of stride 1 is one too: grad_output is the
# image, the steps through the weight swap its channel axes and walk its kernel backwards.
cdef struct Conv:
    Py_ssize_t N, G, C, F  # per group: C channels, F filters
    Py_ssize_t IH, IW, KH, KW, OH, OW
    Py_ssize_t stride_h, stride_w, pad_top, pad_left, dil_h, dil_w
    Py_ssize_t start, to_group, to_filter, to_channel, to_kh, to_kw  # steps through the weight
    bint accumulate
    Py_ssize_t pool_KH, buffered  # rows of a fused pool's window; convolution rows that a worker holds for it
    Py_ssize_t together           # filters of a unit
    Py_ssize_t rows, chunk, units, batch, n_tasks  # result rows of a plane and of a unit; units of a task
    Py_ssize_t K, planes          # depthwise: kernel extent, else 0; planes whose columns are taken in turns


cdef void share_out(Conv* conv, Py_ssize_t strided) noexcept nogil:
    # A unit is `together` filters on `chunk` rows of one image; tasks are of one size, and so is what they compute,
    # whatever the number of threads. `strided`: of the kernel, a result meets one cell in so many.
    cdef Py_ssize_t work, chunks
    conv.K = depthwise_extent(conv)
    conv.together = 1 if conv.K else FILTERS
    if conv.pool_KH and conv.buffered < conv.OH and conv.buffered * FILTERS > conv.OH:
        conv.together = 1
    work = max(min(conv.together, conv.F) * conv.C * conv.KH * conv.KW * conv.OH * conv.OW // strided, 1)
    chunks = max(min(work // TASK, ceil_div(conv.rows, 2)), 1)
    conv.chunk = max(ceil_div(ceil_div(conv.rows, chunks), 2) * 2, 2)
    conv.units = conv.N * conv.G * ceil_div(conv.F, conv.together) * ceil_div(conv.rows, conv.chunk)
    conv.batch = max(min(TASK // work, ceil_div(conv.units, FEW_TASKS)), 1)
    conv.planes = max(TOGETHER // max(conv.OH * conv.OW + conv.IH * conv.IW, 1), 1)
    conv.n_tasks = ceil_div(conv.units, conv.batch)


cdef Conv forward(const int64_t* geometry) noexcept nogil:
    cdef Conv conv
    cdef Py_ssize_t taps = geometry[GEO_KH] * geometry[GEO_KW]
    conv.N, conv.G = geometry[GEO_N], geometry[GEO_G]
    conv.C, conv.F = geometry[GEO_IC] // geometry[GEO_G], geometry[GEO_OC] // geometry[GEO_G]
    conv.IH, conv.IW = geometry[GEO_IH], geometry[GEO_IW]
    conv.KH, conv.KW = geometry[GEO_KH], geometry[GEO_KW]
    conv.OH, conv.OW = geometry[GEO_OH], geometry[GEO_OW]
    conv.stride_h, conv.stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    conv.pad_top, conv.pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    conv.dil_h, conv.dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    conv.start, conv.to_kh, conv.to_kw = 0, conv.KW, 1
    conv.to_channel, conv.to_filter, conv.to_group = taps, conv.C * taps, conv.F * conv.C * taps
    conv.pool_KH = geometry[GEO_POOL_KH]
    conv.accumulate = geometry[GEO_ACCUMULATE] != 0 and conv.pool_KH == 0
    conv.rows = geometry[GEO_POOL_OH] if conv.pool_KH else conv.OH
    conv.buffered = min(conv.OH, max(conv.pool_KH, 4096 // max(conv.OW, 1))) if conv.pool_KH else 0
    share_out(&conv, 1)
    return conv


cdef Conv adjoint(const int64_t* geometry) noexcept nogil:
    cdef Conv conv
    cdef Py_ssize_t taps = geometry[GEO_KH] * geometry[GEO_KW]
    conv.N, conv.G = geometry[GEO_N], geometry[GEO_G]
    conv.C, conv.F = geometry[GEO_OC] // geometry[GEO_G], geometry[GEO_IC] // geometry[GEO_G]
    conv.IH, conv.IW = geometry[GEO_OH], geometry[GEO_OW]
    conv.KH, conv.KW = geometry[GEO_KH], geometry[GEO_KW]
    conv.OH, conv.OW = geometry[GEO_IH], geometry[GEO_IW]
    conv.stride_h, conv.stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    conv.dil_h, conv.dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    conv.pad_top = conv.dil_h * (conv.KH - 1) - geometry[GEO_PAD_TOP]
    conv.pad_left = conv.dil_w * (conv.KW - 1) - geometry[GEO_PAD_LEFT]
    conv.start, conv.to_kh, conv.to_kw = taps - 1, -conv.KW, -1
    conv.to_channel, conv.to_filter, conv.to_group = conv.F * taps, taps, conv.F * conv.C * taps
    conv.pool_KH = conv.buffered = 0
    conv.accumulate = geometry[GEO_ACCUMULATE] != 0
    conv.rows = conv.OH
    share_out(&conv, conv.stride_h * conv.stride_w)
    if conv.stride_h > 1 and not (0 <= conv.pad_top < conv.KH and 0 <= conv.pad_left < conv.KW):
        conv.K = 0
    return conv


cdef Py_ssize_t depthwise_extent(const Conv* conv) noexcept nogil:
    # Kernel extent of the cases that depthwise_planes and adjoint_planes are made for; 0: not one of them.
    if (
        conv.C == 1 and conv.KH == conv.KW and conv.dil_h == conv.dil_w == 1 and conv.stride_h == conv.stride_w
        and (conv.stride_h == 1 and conv.KH in (3, 5, 7) or conv.stride_h == 2 and conv.KH in (3, 5))
    ):
        return conv.KH
    return 0


cdef inline void depthwise_products(
    vec* sums,            # INOUT  of the output rows that have begun, the youngest first
    const vec* x, const vec* taps, const vec* shift, int kh, int K, int stride, int phase,
) noexcept nogil:
    # What an image row adds by kernel row kh. A sum of its own, as adding to `sums` would be one long chain.
    cdef:
        int kw
        vec sum
    if kh >= K or kh % stride != phase:
        return
    if kh == 0:
        sum = shift[0] + x[0] * taps[0]
    else:
        sum = x[0] * taps[kh * K]
    for kw in range(1, K):
        sum = sum + x[kw] * taps[kh * K + kw]
    sums[kh // stride] = sum if kh == 0 else sums[kh // stride] + sum


cdef inline void depthwise_load(
    vec* x,               # OUT  K: the image under each column of the kernel
    const real* row,      # IN   an image row, from the first tap's column on
    const real* other,    # IN   where its second vector is
    const vec* lanes,     # IN   for each load: lanes in the row
    int K, int stride, bint inner, bint pair,
) noexcept nogil:
    # `inner`: under all lanes the middle of the kernel is inside the row. Only loads that reach further look at `lanes`.
    cdef:
        int kw, j
        vec a, b
    if stride == 1 and pair:
        # Zeros stand beside each row: its neighbours come from there
        load_lanes(&a, row, lanes[0], False)
        x[1] = join_lanes(a, other, lanes[1])
        x[0], x[2] = preceding(x[1]), following(x[1])
    elif stride == 1:
        for kw in range(K):
            load_lanes(&x[kw], row + kw, lanes[kw], inner and kw == K // 2)
    elif ORDERED:
        load_lanes(&a, row, lanes[0], False)
        load_lanes(&b, other, lanes[1], False)
        x[0], x[1] = even(a, b), odd(a, b)
        for kw in range(2, K):
            x[kw] = following(x[kw - 2])
    else:
        for kw in range(K):
            j = kw - 1 if kw % 2 == 0 and kw > 0 else kw
            load_lanes(&a, row + j, lanes[j], inner and j >= K // 2)
            load_lanes(&b, other + j, lanes[K + j], inner and j < K // 2)
            x[kw] = odd(a, b) if j < kw else even(a, b)


cdef inline void depthwise_lanes(
    vec* lanes,           # OUT  for each load of `depthwise_load`
    Py_ssize_t column, Py_ssize_t beside, Py_ssize_t IW,
    int K, int stride, bint pair,
) noexcept nogil:
    cdef:
        int i
    if pair and stride == 1:
        inside(&lanes[0], column, min(IW, column - beside))
        inside(&lanes[1], column + beside, IW)
    elif ORDERED and stride == 2:
        inside(&lanes[0], column, IW)
        inside(&lanes[1], column + beside, IW)
    else:
        for i in range(K * stride):
            inside(&lanes[i], column + i % K + i // K * beside, IW)


cdef inline void depthwise_step(
    vec* sums,            # INOUT  of the output rows that have begun, the youngest first
    const real* row,      # IN   an image row, whose number modulo stride is `phase` at the first tap of an output row
    const real* other,
    const vec* taps,      # IN   K x K
    const vec* shift,
    const vec* lanes,
    int K, int stride, int phase, bint inner, bint pair,
) noexcept nogil:
    # Each vector that is loaded serves all output rows that it belongs to. The kernel rows are written out: a compiler
    # does not unroll a loop as long as that, and then keeps no sum in a register.
    cdef:
        int j
        vec[7] x
    depthwise_load(&x[0], row, other, lanes, K, stride, inner, pair)
    if phase == 0:
        for j in range((K - 1) // stride, 0, -1):
            sums[j] = sums[j - 1]
    depthwise_products(sums, &x[0], taps, shift, 6, K, stride, phase)
    depthwise_products(sums, &x[0], taps, shift, 5, K, stride, phase)
    depthwise_products(sums, &x[0], taps, shift, 4, K, stride, phase)
    depthwise_products(sums, &x[0], taps, shift, 3, K, stride, phase)
    depthwise_products(sums, &x[0], taps, shift, 2, K, stride, phase)
    depthwise_products(sums, &x[0], taps, shift, 1, K, stride, phase)
    depthwise_products(sums, &x[0], taps, shift, 0, K, stride, phase)


# Planes as depthwise_column reads and writes them.
cdef struct Planes:
    Py_ssize_t count, F, filters  # planes of results; of those that read one image; of one sample
    Py_ssize_t IH, IW, OW
    Py_ssize_t to_image, to_out   # to the next image, to the next plane of results
    # To what is fetched into the cache meanwhile, from images and from results: of an adjoint from a row; else from a column's
    # begin to cells one behind the other, where `ahead` may lead to results, too
    Py_ssize_t ahead, out_ahead
    bint turned, accumulate       # the filter's cells from the last to the first


cdef inline void next_plane(
    const Planes* p, Py_ssize_t* plane, Py_ssize_t* f, Py_ssize_t* in_group, const real** image, real** out
) noexcept nogil:
    plane[0] += 1
    out[0] += p.to_out
    f[0] += 1
    in_group[0] += 1
    if in_group[0] == p.F:  # filters of one group read one image
        in_group[0] = 0
        image[0] += p.to_image
        if f[0] == p.filters:
            f[0] = 0


cdef inline Py_ssize_t fetched(int stride, Py_ssize_t VL) noexcept nogil:
    """Cells that a column fetches for each row of results: together the columns of a band fetch the next one."""
    # Those of images; of narrower vectors at a stride of 1 every second column fetches results instead
    return 4 * VL if stride == 2 else VL if ORDERED else 2 * VL


cdef inline void depthwise_fetch(const real* cells, const real* results, int stride, vec* unused) noexcept nogil:
    # In the order of memory: so the hardware fetches along, which down the rows of a plane it would not.
    cdef Py_ssize_t i = 0
    while i < fetched(stride, sizeof(vec) // sizeof(real)):
        if ORDERED:  # a line in a few cycles: too many for the first level to wait for
            prefetch_second(cells + i)
        else:
            prefetch(cells + i)
        i += CACHE_LINE // sizeof(real)
    if ORDERED:
        prefetch_second(results)


cdef inline void depthwise_store(
    const Planes* p,
    real* to,             # OUT  a vector of a row
    const vec* sums,
    vec low, vec high, real act_min, real act_max,
    const real* limit, Py_ssize_t skip, Py_ssize_t end, Py_ssize_t out_other, Py_ssize_t other_end,
    int K, int stride, bint inner, bint pair,
) noexcept nogil:
    cdef vec value = sums[(K - 1) // stride]
    if stride == 2:
        value = in_order(value)
    if inner:
        (<vec*> to)[0] = vmin(high, vmax(low, value))
    elif ORDERED or seldom(to > limit):
        store(to, value, skip, end, p.accumulate, act_min, act_max)
        if pair:
            store(to + out_other, value, sizeof(vec) // sizeof(real) // 2, other_end, p.accumulate, act_min, act_max)
    else:
        (<vec*> to)[0] = vmin(high, vmax(low, value))


cdef inline void depthwise_column(
    const Planes* p,
    const real* image,    # IN   of the first plane of results
    const real* zeros,    # IN   IW of them
    const real* weight,   # IN   all filters
    const real* bias,     # IN   all filters', or NULL
    Py_ssize_t f,         # filter of the first plane
    real act_min, real act_max,
    real* out,            # OUT  a vector of each row
    Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column,  # image row and column at the first tap
    const real* limit,    # beyond which a vector may not start; before, what it writes too far is written again
    Py_ssize_t skip, Py_ssize_t end,  # else: the lanes to write
    int K, int stride, bint inner, bint pair, vec* unused,
) noexcept nogil:
    # One vector wide, down the rows of a plane: every image row is loaded once, and no output row has to be one of a
    # block. The planes' columns are taken in turns: masks and the like serve many rows. A pair: two planes whose rows are
    # half a vector.
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), half = VL // 2, IH = p.IH, IW = p.IW, OW = p.OW
        Py_ssize_t in_group = f % p.F, plane = 0, ih, run, _
        Py_ssize_t beside = VL if not pair else -half if stride == 1 else 0, to_other = beside, out_other = 0, other_end = half
        int i
        vec[49] taps
        vec[7] sums
        vec[14] lanes
        vec shift, low, high
        real zero = 0
        const real* shifts = &zero
        const real* other_shift = &zero
        const real* fetch = image + p.ahead
        const real* out_fetch = out + p.out_ahead
        const real* filter
        const real* second
        const real* begin
        const real* outside
        const real* row
        const real* other
        real* to
    fill(&low, act_min)
    fill(&high, act_max)
    if pair and stride == 1:
        column += 1  # only the middle tap is loaded
    depthwise_lanes(&lanes[0], column, beside, IW, K, stride, pair)
    outside = zeros + column
    while plane < p.count:
        filter = second = weight + f * K * K
        if bias != NULL:
            shifts = other_shift = bias + f
        begin, to = image, out
        next_plane(p, &plane, &f, &in_group, &image, &out)
        if pair:
            to_other, out_other, other_end = beside, 0, half
            if plane < p.count:
                second = weight + f * K * K
                if bias != NULL:
                    other_shift = bias + f
                to_other, out_other, other_end = image - begin + beside, out - to - half, half + OW
                next_plane(p, &plane, &f, &in_group, &image, &out)
        if p.turned:
            for i in range(K * K):
                fill_halves(&taps[i], filter + K * K - 1 - i, second + K * K - 1 - i, pair)
        else:
            for i in range(K * K):
                fill_halves(&taps[i], filter + i, second + i, pair)
        fill_halves(&shift, shifts, other_shift, pair)
        for i in range(7):
            sums[i] = shift
        ih = top
        begin += top * IW + column
        for i in range(K - stride):
            row = begin if <size_t> ih < <size_t> IH else outside
            other = row + (to_other if row != outside else beside)
            depthwise_step(&sums[0], row, other, &taps[0], &shift, &lanes[0], K, stride, i % stride, inner, pair)
            ih += 1
            begin += IW
        # Output rows whose new image rows are all inside, and those below
        run = min((IH - ih) // stride, n_rows) if 0 <= ih < IH else 0
        for _ in range(run):
            if not pair:  # whole planes lie one behind the other
                depthwise_fetch(fetch, out_fetch, stride, unused)
                fetch += fetched(stride, VL)
                out_fetch += VL
            for i in range(1, stride + 1):
                depthwise_step(&sums[0], begin, begin + to_other, &taps[0], &shift, &lanes[0], K, stride, i % stride, inner, pair)
                begin += IW
            depthwise_store(p, to, &sums[0], low, high, act_min, act_max, limit, skip, end, out_other, other_end,
                            K, stride, inner, pair)
            to += OW
        ih += run * stride
        for _ in range(n_rows - run):
            for i in range(1, stride + 1):
                row = begin if <size_t> ih < <size_t> IH else outside
                other = row + (to_other if row != outside else beside)
                depthwise_step(&sums[0], row, other, &taps[0], &shift, &lanes[0], K, stride, i % stride, inner, pair)
                ih += 1
                begin += IW
            depthwise_store(p, to, &sums[0], low, high, act_min, act_max, limit, skip, end, out_other, other_end,
                            K, stride, inner, pair)
            to += OW


cdef inline void depthwise_column_of(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, const real* limit,
    Py_ssize_t skip, Py_ssize_t end, int K, int stride, bint pair, vec* unused,
) noexcept nogil:
    cdef Py_ssize_t VL = sizeof(vec) // sizeof(real)
    if ORDERED and (K == 3 or stride == 2) and pair:
        depthwise_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                         K, stride, False, True, unused)
    elif (
        not ORDERED and column + K // 2 >= 0 and column + K // 2 + stride * (VL - 1) < p.IW and p.OW >= VL
        and not p.accumulate
    ):
        depthwise_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                         K, stride, True, False, unused)
    else:
        depthwise_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                         K, stride, False, False, unused)


cdef void depthwise_3_1(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, const real* limit,
    Py_ssize_t skip, Py_ssize_t end, bint pair, vec* unused,
) noexcept nogil:
    depthwise_column_of(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                        3, 1, pair, unused)


cdef void depthwise_5_1(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, const real* limit,
    Py_ssize_t skip, Py_ssize_t end, bint pair, vec* unused,
) noexcept nogil:
    depthwise_column_of(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                        5, 1, pair, unused)


cdef void depthwise_7_1(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, const real* limit,
    Py_ssize_t skip, Py_ssize_t end, bint pair, vec* unused,
) noexcept nogil:
    depthwise_column_of(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                        7, 1, pair, unused)


cdef void depthwise_3_2(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, const real* limit,
    Py_ssize_t skip, Py_ssize_t end, bint pair, vec* unused,
) noexcept nogil:
    depthwise_column_of(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                        3, 2, pair, unused)


cdef void depthwise_5_2(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, const real* limit,
    Py_ssize_t skip, Py_ssize_t end, bint pair, vec* unused,
) noexcept nogil:
    depthwise_column_of(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                        5, 2, pair, unused)


cdef inline void depthwise_columns(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, const real* limit,
    Py_ssize_t skip, Py_ssize_t end, Py_ssize_t K, Py_ssize_t stride, bint pair, vec* unused,
) noexcept nogil:
    """`depthwise_column` with constants for kernel extent and stride. A function each: fewer registers are spilled."""
    if K == 3 and stride == 1:
        depthwise_3_1(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                      pair, unused)
    elif K == 5 and stride == 1:
        depthwise_5_1(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                      pair, unused)
    elif K == 7 and stride == 1:
        depthwise_7_1(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                      pair, unused)
    elif K == 3 and stride == 2:
        depthwise_3_2(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                      pair, unused)
    else:
        depthwise_5_2(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, limit, skip, end,
                      pair, unused)


cdef bint in_pairs(
    Py_ssize_t K, Py_ssize_t stride, Py_ssize_t IW, Py_ssize_t OW, Py_ssize_t pad_left, Py_ssize_t half
) noexcept nogil:
    # Whether rows of two planes, with what `depthwise_load` takes from beside them, are one vector.
    if stride == 2:
        return ORDERED and OW + (K - 1) // 2 <= half
    return ORDERED and K == 3 and OW < half and pad_left > 0 and IW + pad_left <= half


cdef void depthwise_planes(
    const Conv* conv,
    const real* input,    # IN   from the first plane's image on
    const real* zeros,
    const real* weight,   # IN   all filters
    const real* bias,
    Py_ssize_t f,         # filter of the first plane
    real act_min, real act_max,
    real* out,            # OUT  rows first .. last - 1 of some planes
    Py_ssize_t n_planes,
    Py_ssize_t first, Py_ssize_t last, vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), K = conv.K, stride = conv.stride_w, OW = conv.OW, F = conv.F
        Py_ssize_t pad_top = conv.pad_top, pad_left = conv.pad_left, in_group = f % F, width = VL, half = VL // 2
        Py_ssize_t band, ahead, out_ahead, oh, ow, block, n_rows, before, turns = 1 if ORDERED or stride == 2 else 2
        bint pair
        const real* limit
        Planes p
    p.filters, p.F, p.OW, p.to_out, p.accumulate = conv.G * F, F, OW, conv.OH * OW, conv.accumulate
    p.turned = conv.to_kw < 0
    p.IH, p.IW = conv.IH, conv.IW
    p.to_image = p.IH * p.IW
    if ORDERED and stride == 2:
        width -= (K - 1) // 2  # lanes whose last taps are in the two vectors that are loaded
    pair = in_pairs(K, stride, p.IW, OW, pad_left, half)
    band = ceil_div(last - first, max(ceil_div((last - first) * (stride * p.IW + OW), BAND), 1))
    if band < last - first:
        ahead, out_ahead = band * stride * p.IW, band * OW
    else:
        ahead, out_ahead = conv.planes * p.to_image, conv.planes * p.to_out
    # A vector that is wider than a row runs into the next one, which is written later
    limit = NULL if conv.accumulate else out + (n_planes - 1) * p.to_out + (last - first) * OW - VL
    while n_planes > 0:
        p.count = min(conv.planes, n_planes)
        oh = first
        while oh < last:
            n_rows = min(band, last - oh)
            ow = 0
            while ow < OW:
                block = ow if ORDERED else min(ow, max(OW - VL, 0))
                # Rows of results of the columns before that fetch the same
                before = ow // (turns * width) * n_rows * p.count
                p.ahead = ahead + oh * stride * p.IW + before * fetched(stride, VL)
                p.out_ahead = out_ahead - block + before * VL
                if ow % (turns * width):
                    p.ahead = out + (oh - first) * OW + out_ahead + before * fetched(stride, VL) - input
                depthwise_columns(&p, input, zeros, weight, bias, f, act_min, act_max, out + (oh - first) * OW + block,
                                  n_rows, oh * stride - pad_top, block * stride - pad_left, limit, ow - block,
                                  min(OW - block, width), K, stride, pair, unused)
                ow += width
            oh += n_rows
        n_planes -= p.count
        out += p.count * p.to_out
        f = (f + p.count) % p.filters
        in_group += p.count
        input += in_group // F * p.to_image
        in_group %= F


cdef inline void adjoint_products(
    vec* sums,            # INOUT  of the result rows that have begun, K x 2: even columns, odd ones
    const vec* x, const vec* taps, const vec* shift, int kh, int phase, int K, int odd,
) noexcept nogil:
    # What a row adds by kernel row kh to every second column.
    cdef:
        int kw = phase ^ odd, at = kh * 2 + phase
    if kh >= K:
        return
    if kh >= K - 2:
        sums[at] = shift[0] + x[(kw + odd) // 2] * taps[kh * K + kw]
    else:
        sums[at] = sums[at + 4] + x[(kw + odd) // 2] * taps[kh * K + kw]
    if kw + 2 < K:
        sums[at] = sums[at] + x[(kw + 2 + odd) // 2] * taps[kh * K + kw + 2]
    if kw + 4 < K:
        sums[at] = sums[at] + x[(kw + 4 + odd) // 2] * taps[kh * K + kw + 4]


cdef inline void adjoint_step(
    vec* sums, const real* row, const vec* taps, const vec* shift, const vec* lanes, int K, int odd, bint inner,
) noexcept nogil:
    cdef:
        int j
        vec[3] x
    for j in range((K + 1) // 2):
        load_lanes(&x[j], row - j, lanes[j], inner)
    adjoint_products(sums, &x[0], taps, shift, 0, 0, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 0, 1, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 1, 0, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 1, 1, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 2, 0, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 2, 1, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 3, 0, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 3, 1, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 4, 0, K, odd)
    adjoint_products(sums, &x[0], taps, shift, 4, 1, K, odd)


cdef inline void adjoint_store(
    const Planes* p,
    real* to,             # OUT  two vectors of a row
    vec even_columns, vec odd_columns, vec low, vec high, real act_min, real act_max,
    const real* limit, Py_ssize_t skip, Py_ssize_t end,
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real)
        vec a = zip_low(even_columns, odd_columns), b = zip_high(even_columns, odd_columns)
    if seldom(to > limit):
        if skip < min(end, VL):
            store(to, a, skip, min(end, VL), p.accumulate, act_min, act_max)
        if end > VL:
            store(to + VL, b, max(skip - VL, 0), end - VL, p.accumulate, act_min, act_max)
    else:
        (<vec*> to)[0] = vmin(high, vmax(low, a))
        (<vec*> (to + VL))[0] = vmin(high, vmax(low, b))


cdef inline void adjoint_column(
    const Planes* p,
    const real* image,    # IN   grad_output, of the first plane of results
    const real* zeros,    # IN   IW of them
    const real* weight,   # IN   all filters
    const real* bias,     # IN   all channels', or NULL
    Py_ssize_t f,         # filter of the first plane
    real act_min, real act_max,
    real* out,            # OUT  two vectors of each row
    Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column,  # row and column of grad_output at the first tap of row 0 or 1
    Py_ssize_t above,     # rows above row 0 that the first step would complete
    const real* limit, Py_ssize_t skip, Py_ssize_t end,  # as depthwise_column's
    int K, int odd, bint inner, vec* unused,
) noexcept nogil:
    # Down the rows of grad_output, each of which is loaded once and completes two rows. An input cell is one of four sums:
    # even and odd columns have a vector each.
    cdef:
        Py_ssize_t IH = p.IH, IW = p.IW, OW = p.OW, in_group = f % p.F, plane = 0, ih, oh
        int i, _i, J = (K + 1) // 2
        vec[25] taps
        vec[14] sums
        vec[3] lanes
        vec shift, low, high
        real zero = 0
        const real* shifts = &zero
        const real* filter
        const real* begin
        const real* outside = zeros + column
        real* to
    fill(&low, act_min)
    fill(&high, act_max)
    for i in range(J):
        inside(&lanes[i], column - i, IW)
    while plane < p.count:
        filter = weight + f * K * K
        if bias != NULL:
            shifts = bias + f
        begin, to = image, out
        next_plane(p, &plane, &f, &in_group, &image, &out)
        for i in range(K * K):
            fill(&taps[i], filter[i])
        fill(&shift, shifts[0])
        for i in range(14):
            sums[i] = shift
        ih = top - J + 1
        begin += ih * IW + column
        for _i in range(J - 1):
            adjoint_step(&sums[0], begin if <size_t> ih < <size_t> IH else outside, &taps[0], &shift, &lanes[0], K, odd, inner)
            ih += 1
            begin += IW
        oh = -above
        to -= above * OW
        while oh < n_rows:
            prefetch(begin + p.ahead)
            prefetch(to + p.out_ahead)
            prefetch(to + p.out_ahead + OW)
            adjoint_step(&sums[0], begin if <size_t> ih < <size_t> IH else outside, &taps[0], &shift, &lanes[0], K, odd, inner)
            if oh >= 0:
                adjoint_store(p, to, sums[0], sums[1], low, high, act_min, act_max, limit, skip, end)
            if oh + 1 < n_rows:
                adjoint_store(p, to + OW, sums[2], sums[3], low, high, act_min, act_max, limit, skip, end)
            ih += 1
            begin += IW
            oh += 2
            to += 2 * OW


cdef void adjoint_3_0(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, Py_ssize_t above,
    const real* limit, Py_ssize_t skip, Py_ssize_t end, bint inner, vec* unused,
) noexcept nogil:
    if inner:
        adjoint_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                       3, 0, True, unused)
    else:
        adjoint_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                       3, 0, False, unused)


cdef void adjoint_3_1(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, Py_ssize_t above,
    const real* limit, Py_ssize_t skip, Py_ssize_t end, bint inner, vec* unused,
) noexcept nogil:
    if inner:
        adjoint_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                       3, 1, True, unused)
    else:
        adjoint_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                       3, 1, False, unused)


cdef void adjoint_5_0(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, Py_ssize_t above,
    const real* limit, Py_ssize_t skip, Py_ssize_t end, bint inner, vec* unused,
) noexcept nogil:
    if inner:
        adjoint_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                       5, 0, True, unused)
    else:
        adjoint_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                       5, 0, False, unused)


cdef void adjoint_5_1(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, Py_ssize_t above,
    const real* limit, Py_ssize_t skip, Py_ssize_t end, bint inner, vec* unused,
) noexcept nogil:
    if inner:
        adjoint_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                       5, 1, True, unused)
    else:
        adjoint_column(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                       5, 1, False, unused)


cdef inline void adjoint_columns(
    const Planes* p, const real* image, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_rows, Py_ssize_t top, Py_ssize_t column, Py_ssize_t above,
    const real* limit, Py_ssize_t skip, Py_ssize_t end, Py_ssize_t K, Py_ssize_t odd, vec* unused,
) noexcept nogil:
    """`adjoint_column` with constants for kernel extent and the parity of the padding."""
    cdef bint inner = column - K // 2 >= 0 and column + <Py_ssize_t> (sizeof(vec) // sizeof(real)) <= p.IW
    if K == 3 and odd:
        adjoint_3_1(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                    inner, unused)
    elif K == 3:
        adjoint_3_0(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                    inner, unused)
    elif odd:
        adjoint_5_1(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                    inner, unused)
    else:
        adjoint_5_0(p, image, zeros, weight, bias, f, act_min, act_max, out, n_rows, top, column, above, limit, skip, end,
                    inner, unused)


cdef void adjoint_planes(
    const Conv* conv,
    const real* input,    # IN   from the first plane's image on
    const real* zeros,
    const real* weight,   # IN   all filters
    const real* bias,
    Py_ssize_t f,         # filter of the first plane
    real act_min, real act_max,
    real* out,            # OUT  rows first .. last - 1 of some planes
    Py_ssize_t n_planes,
    Py_ssize_t first, Py_ssize_t last, vec* unused,
) noexcept nogil:
    """The adjoint of a depthwise convolution of stride 2; `depthwise_planes` is that of stride 1, too."""
    cdef:
        Py_ssize_t K = conv.K, OW = conv.OW, F = conv.F, in_group = f % F, width = 2 * (sizeof(vec) // sizeof(real))
        Py_ssize_t pad_top = K - 1 - conv.pad_top, pad_left = K - 1 - conv.pad_left
        Py_ssize_t band, oh, ow, block, n_rows, above
        const real* end_of_planes = out + (n_planes - 1) * conv.OH * OW + (last - first) * OW
        const real* limit
        Planes p
    p.filters, p.F, p.OW, p.to_out, p.accumulate = conv.G * F, F, OW, conv.OH * OW, conv.accumulate
    p.IH, p.IW, p.to_image = conv.IH, conv.IW, conv.IH * conv.IW
    band = ceil_div(last - first, max(ceil_div((last - first) * (p.IW + 2 * OW), 2 * BAND), 1))
    if band < last - first:
        p.ahead, p.out_ahead = band // 2 * p.IW, band * OW
    else:
        p.ahead, p.out_ahead = conv.planes * p.to_image, conv.planes * p.to_out
    while n_planes > 0:
        p.count = min(conv.planes, n_planes)
        oh = first
        while oh < last:
            n_rows = min(band, last - oh)
            above = (oh + pad_top) % 2
            ow = 0
            while ow < OW:
                block = min(ow, max(OW - width + 1, 0) // 2 * 2)
                limit = NULL
                if not conv.accumulate and block + width <= OW:
                    limit = end_of_planes
                elif not conv.accumulate and OW < width:  # into the next row, which is written later
                    limit = end_of_planes - width
                adjoint_columns(&p, input, zeros, weight, bias, f, act_min, act_max, out + (oh - first) * OW + block, n_rows,
                                (oh + pad_top) // 2, block // 2 + (pad_left + 1) // 2, above, limit, ow - block,
                                min(OW - block, width), K, pad_left % 2, unused)
                ow += width
            oh += n_rows
        n_planes -= p.count
        out += p.count * p.to_out
        f = (f + p.count) % p.filters
        in_group += p.count
        input += in_group // F * p.to_image
        in_group %= F


cdef inline void planes_of(
    const Conv* conv, const real* input, const real* zeros, const real* weight, const real* bias, Py_ssize_t f,
    real act_min, real act_max, real* out, Py_ssize_t n_planes, Py_ssize_t first, Py_ssize_t last, vec* unused,
) noexcept nogil:
    if conv.to_kw < 0 and conv.stride_w == 2:
        adjoint_planes(conv, input, zeros, weight, bias, f, act_min, act_max, out, n_planes, first, last, unused)
    else:
        depthwise_planes(conv, input, zeros, weight, bias, f, act_min, act_max, out, n_planes, first, last, unused)


cdef inline void filters_block(
    const Conv* conv,
    const real* image,      # IN   planes of all channels
    const real* zeros,      # IN   IW of them
    const real* weight,     # IN   F filters
    Py_ssize_t top, Py_ssize_t left,  # image row and column at tap (0, 0)
    Py_ssize_t c_first, Py_ssize_t c_last,
    vec* sums,              # INOUT  F x V
    Py_ssize_t F, Py_ssize_t V, int mode,
) noexcept nogil:
    cdef:
        Py_ssize_t IH = conv.IH, IW = conv.IW, KH = conv.KH, KW = conv.KW
        Py_ssize_t dil_h = conv.dil_h, dil_w = conv.dil_w, stride_w = conv.stride_w
        Py_ssize_t to_filter = conv.to_filter, to_channel = conv.to_channel, to_kh = conv.to_kh, to_kw = conv.to_kw
        Py_ssize_t VL = sizeof(vec) // sizeof(real), c, kh, kw, f, v, ih
        const real* row
        const real* taps
        vec[4][4] acc
        vec[4] x
        vec tap
    for f in range(F):
        for v in range(V):
            acc[f][v] = sums[f * V + v]
    for c in range(c_first, c_last):
        for kh in range(KH):
            ih = top + kh * dil_h
            row = image + (c * IH + ih) * IW if 0 <= ih < IH else zeros
            taps = weight + c * to_channel + kh * to_kh
            for kw in range(KW):
                for v in range(V):
                    load_columns(&x[v], row, left + kw * dil_w + v * VL * stride_w, stride_w, IW, mode)
                for f in range(F):
                    fill(&tap, taps[f * to_filter])
                    for v in range(V):
                        acc[f][v] = acc[f][v] + x[v] * tap
                taps += to_kw
    for f in range(F):
        for v in range(V):
            sums[f * V + v] = acc[f][v]


cdef inline void filters_sums(
    const Conv* conv,
    const real* image,
    const real* zeros,
    const real* weight,
    const real* shift,      # IN   F
    Py_ssize_t top, Py_ssize_t left,
    vec* sums,              # OUT  F x V
    Py_ssize_t F, Py_ssize_t V, int mode,
) noexcept nogil:
    # Channels in groups of about DEPTH products; their sums are added up.
    cdef:
        vec[16] total
        Py_ssize_t i, c = 0, group = max(DEPTH // (conv.KH * conv.KW), 1)
    for i in range(F * V):
        fill(&sums[i], shift[i // V])
    filters_block(conv, image, zeros, weight, top, left, 0, min(group, conv.C), sums, F, V, mode)
    if group < conv.C:
        for i in range(F * V):
            total[i] = sums[i]
        c = group
        while c < conv.C:
            for i in range(F * V):
                fill(&sums[i], <real> 0)
            filters_block(conv, image, zeros, weight, top, left, c, min(c + group, conv.C), sums, F, V, mode)
            for i in range(F * V):
                total[i] = total[i] + sums[i]
            c += group
        for i in range(F * V):
            sums[i] = total[i]
    if mode == PAIRS:
        for i in range(F * V):
            sums[i] = in_order(sums[i])


cdef inline void filters_rows(
    const Conv* conv,
    const real* image,
    const real* zeros,
    const real* weight,
    const real* shift,
    real act_min, real act_max,
    real* out,              # OUT  rows first .. last - 1 of filter 0
    Py_ssize_t to_out,      # to the next filter's
    Py_ssize_t first, Py_ssize_t last,
    Py_ssize_t F, Py_ssize_t V, vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t OW = conv.OW, VL = sizeof(vec) // sizeof(real), width = V * VL
        Py_ssize_t reach = conv.dil_w * (conv.KW - 1) + conv.stride_w * (width - 1)
        bint accumulate = conv.accumulate, whole
        int mode = mode_of(conv.stride_w)
        Py_ssize_t oh, ow, block, top, left, skip, lanes, f, v
        vec[16] sums
        real* row
    for oh in range(first, last):
        ow = 0
        while ow < OW:
            block = min(ow, max(OW - width, 0))
            left = block * conv.stride_w - conv.pad_left
            top = oh * conv.stride_h - conv.pad_top
            whole = left >= 0 and left + reach < conv.IW
            if mode == MASKED and whole:
                filters_sums(conv, image, zeros, weight, shift, top, left, &sums[0], F, V, PLAIN)
            elif mode == MASKED:
                filters_sums(conv, image, zeros, weight, shift, top, left, &sums[0], F, V, MASKED)
            elif mode == PAIRS:
                filters_sums(conv, image, zeros, weight, shift, top, left, &sums[0], F, V, PAIRS)
            elif whole:
                filters_sums(conv, image, zeros, weight, shift, top, left, &sums[0], F, V, WHOLE)
            else:
                filters_sums(conv, image, zeros, weight, shift, top, left, &sums[0], F, V, GATHER)
            skip = ow - block if accumulate else 0
            lanes = VL if OW >= VL or (not accumulate and (last - oh - 1) * OW >= VL) else OW
            for f in range(F):
                row = out + f * to_out + (oh - first) * OW + block
                for v in range(V):
                    if skip < (v + 1) * VL:
                        store(row + v * VL, sums[f * V + v], max(skip - v * VL, 0), lanes, accumulate, act_min, act_max)
            ow += width


cdef void conv_rows(
    const Conv* conv,
    const real* image,      # IN   C planes
    const real* zeros,      # IN   IW of them
    const real* weight,     # IN   n_filters
    const real* bias,       # IN   n_filters, or NULL
    real act_min, real act_max,
    real* out,              # OUT  rows first .. last - 1 of each filter
    Py_ssize_t to_out,
    Py_ssize_t n_filters,
    Py_ssize_t first, Py_ssize_t last, vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t f = 0, i, VL = sizeof(vec) // sizeof(real)
        bint wide = conv.OW >= 2 * VL
        real[4] shift
    while f < n_filters:
        for i in range(FILTERS):
            shift[i] = bias[f + i] if bias != NULL and f + i < n_filters else 0
        if conv.K:
            i = 1
            planes_of(conv, image, zeros, weight - conv.start, bias + f if bias != NULL else NULL, 0, act_min, act_max,
                      out, 1, first, last, unused)
        elif f + FILTERS <= n_filters:
            i = FILTERS
            if wide:
                filters_rows(conv, image, zeros, weight, &shift[0], act_min, act_max, out, to_out, first, last,
                             FILTERS, 2, unused)
            else:
                filters_rows(conv, image, zeros, weight, &shift[0], act_min, act_max, out, to_out, first, last,
                             FILTERS, 1, unused)
        else:
            i = 1
            if conv.OW >= 4 * VL:
                filters_rows(conv, image, zeros, weight, &shift[0], act_min, act_max, out, to_out, first, last,
                             1, 4, unused)
            else:
                filters_rows(conv, image, zeros, weight, &shift[0], act_min, act_max, out, to_out, first, last,
                             1, 1, unused)
        f += i
        weight += i * conv.to_filter
        out += i * to_out


cdef void pooled_rows(
    const Conv* conv,
    const real* image,
    const real* zeros,
    const real* weight,
    const real* bias,
    real act_min, real act_max,
    real* pooled,           # OUT  planes of n_filters
    int64_t* indices,       # OUT  planes of n_filters, or NULL
    real* rows,             # n_filters x buffered rows
    Py_ssize_t n_filters,
    Py_ssize_t first, Py_ssize_t last,  # pooled rows
    const int64_t* geometry, vec* unused,
) noexcept nogil:
    # As many convolution rows as the buffer takes, then their pooled rows; rows that the next ones need too move up.
    cdef:
        Py_ssize_t OH = conv.OH, OW = conv.OW, buffered = conv.buffered, plane = conv.rows * geometry[GEO_POOL_OW]
        Py_ssize_t stride = geometry[GEO_POOL_STRIDE_H], pad = geometry[GEO_POOL_PAD_TOP]
        Py_ssize_t begin = 0, end = 0, kept, f, to, bottom
    while first < last:
        # Rows begin .. end - 1 are there; rows needed from now on start at `kept`
        kept = min(max(first * stride - pad, 0), OH)
        if kept < end:
            for f in range(n_filters):
                memmove(rows + f * buffered * OW, rows + (f * buffered + kept - begin) * OW,
                        (end - kept) * OW * sizeof(real))
        else:
            end = kept
        begin = kept
        to = first + 1
        while to < last and min(to * stride - pad + conv.pool_KH, OH) - begin <= buffered:
            to += 1
        bottom = max(min((to - 1) * stride - pad + conv.pool_KH, OH), end)
        conv_rows(conv, image, zeros, weight, bias, act_min, act_max, rows + (end - begin) * OW, buffered * OW,
                  n_filters, end, bottom, unused)
        end = bottom
        for f in range(n_filters):
            max_pool_rows(rows + f * buffered * OW, begin, first, to, pooled + f * plane,
                          indices + f * plane if indices != NULL else NULL, rows + n_filters * buffered * OW, geometry,
                          unused)
        first = to


cdef void conv_task(
    Py_ssize_t task,
    const Conv* conv,
    const real* input,
    const real* zeros,
    const real* weight,
    const real* bias,
    real act_min, real act_max,
    real* output,
    real* pooled,
    int64_t* indices,
    real* rows,
    const int64_t* geometry, vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t chunks = ceil_div(conv.rows, conv.chunk), blocks = ceil_div(conv.F, conv.together)
        Py_ssize_t plane = conv.rows * (geometry[GEO_POOL_OW] if conv.pool_KH else conv.OW)
        Py_ssize_t unit, first, last, block, group, image, f, n_filters
        const real* filters
    if conv.K and not conv.pool_KH and chunks == 1:  # units are whole planes
        unit = task * conv.batch
        planes_of(conv, input + unit // conv.F * conv.IH * conv.IW, zeros, weight, bias, unit % (conv.G * conv.F), act_min,
                  act_max, output + unit * plane, min(conv.batch, conv.units - unit), 0, conv.OH, unused)
        return
    for unit in range(task * conv.batch, min((task + 1) * conv.batch, conv.units)):
        first = unit % chunks * conv.chunk
        last = min(first + conv.chunk, conv.rows)
        block = unit // chunks % blocks
        image = unit // chunks // blocks  # of one group
        group = image % conv.G
        n_filters = min(conv.F - block * conv.together, conv.together)
        f = image * conv.F + block * conv.together
        filters = weight + conv.start + group * conv.to_group + block * conv.together * conv.to_filter
        if conv.pool_KH:
            pooled_rows(conv, input + image * conv.C * conv.IH * conv.IW, zeros, filters,
                        bias + (group * conv.F + block * conv.together) if bias != NULL else NULL, act_min, act_max,
                        pooled + f * plane, indices + f * plane if indices != NULL else NULL, rows, n_filters,
                        first, last, geometry, unused)
        else:
            conv_rows(conv, input + image * conv.C * conv.IH * conv.IW, zeros, filters,
                      bias + (group * conv.F + block * conv.together) if bias != NULL else NULL, act_min, act_max,
                      output + f * plane + first * conv.OW, plane, n_filters, first, last, unused)


# What the tasks of the forward, and of the adjoint of stride 1, share.
cdef struct Forward:
    const Operands* operands   # workspace: a row of zeros, then rows of each worker, so many elements
    Py_ssize_t slice
    double low, high
    Conv conv


cdef void conv2d_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef:
        const Forward* f = <const Forward*> job
        const Operands* o = f.operands
        Py_ssize_t rows = lines(f.conv.IW) + worker * f.slice
    if o.itemsize == sizeof(float):
        conv_task(
            task, &f.conv, <const float*> o.input, <const float*> o.workspace, <const float*> o.weight, <const float*> o.bias,
            <float> f.low, <float> f.high, <float*> o.output, <float*> o.pooled, o.indices, <float*> o.workspace + rows,
            o.geometry, <vf*> NULL,
        )
    else:
        conv_task(
            task, &f.conv, <const double*> o.input, <const double*> o.workspace, <const double*> o.weight,
            <const double*> o.bias, f.low, f.high, <double*> o.output, <double*> o.pooled, o.indices,
            <double*> o.workspace + rows, o.geometry, <vd*> NULL,
        )


cdef Py_ssize_t rows_of_worker(const Conv* conv, const int64_t* geometry) noexcept nogil:
    """Elements for rows of maps, and the ring of their pool."""
    return lines(min(conv.together, conv.F) * conv.buffered * conv.OW + pool_ring_size(geometry))


def conv2d_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: a row of zeros; for each worker rows for a fused pool."""
    cdef Conv conv = forward(&geometry[0])
    return lines(conv.IW) + n_workers * rows_of_worker(&conv, &geometry[0])


def conv2d(
    input, weight, bias, double act_min, double act_max, output, pooled, indices, workspace, geometry, int n_threads,
):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    cdef:
        Operands o = operands(input, weight, bias, output, pooled, indices, workspace, geometry)
        Conv conv = forward(o.geometry)
        Forward job = Forward(&o, rows_of_worker(&conv, o.geometry), act_min, act_max, conv)
    if conv.n_tasks == 0:
        return
    with nogil:
        memset(o.workspace, 0, conv.IW * o.itemsize)
        each_task(conv2d_entry, &job, conv.n_tasks, n_threads)


# ----------------------------------------------------------------------------------------------- gradient of the input


cdef bint finite(const real[:, :, :, ::1] weight) noexcept nogil:
    cdef Py_ssize_t i, size = weight.shape[0] * weight.shape[1] * weight.shape[2] * weight.shape[3]
    cdef const real* w = &weight[0, 0, 0, 0] if size else NULL
    cdef int others = 0
    for i in range(size):
        others |= w[i] - w[i] != 0
    return others == 0


cdef void exact_task(
    Py_ssize_t task,
    const real* grad_output,   # IN
    const real* weight,        # IN
    const real* bias,          # IN   or NULL
    real act_min, real act_max,
    real* grad_input,          # OUT
    const int64_t* geometry,   # IN
) noexcept nogil:
    # One plane of grad_input, when some weight is not finite: a zero that stands for a missing output must not meet it.
    cdef:
        Py_ssize_t IC = geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW], G = geometry[GEO_G]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t n = task // IC, channel = task % IC, ICG = IC // G, OCG = geometry[GEO_OC] // G
        Py_ssize_t ic = channel % ICG, group = channel // ICG, ih, iw, oc, kh, kw, oh, ow
        real zero = 0, total, partial
        real* cell = grad_input + task * IH * IW
    for ih in range(IH):
        for iw in range(IW):
            total = cell[0] if geometry[GEO_ACCUMULATE] else zero
            if bias != NULL:
                total += bias[channel]
            for oc in range(group * OCG, (group + 1) * OCG):
                partial = 0
                for kh in range(KH):
                    oh = ih + pad_top - kh * dil_h
                    if oh < 0 or oh % stride_h or oh // stride_h >= OH:
                        continue
                    for kw in range(KW):
                        ow = iw + pad_left - kw * dil_w
                        if ow < 0 or ow % stride_w or ow // stride_w >= OW:
                            continue
                        partial += (
                            grad_output[((n * G * OCG + oc) * OH + oh // stride_h) * OW + ow // stride_w]
                            * weight[((oc * ICG + ic) * KH + kh) * KW + kw]
                        )
                total += partial
            cell[0] = clamp(total, act_min, act_max)
            cell += 1


# Along one axis, input cell i meets kernel cells first, first + step, ..., and there outputs at, at - back, ...
cdef struct Meeting:
    Py_ssize_t first, step, at, back


cdef Meeting steps(Py_ssize_t stride, Py_ssize_t dil) noexcept nogil:
    cdef Meeting met
    cdef Py_ssize_t a = stride, b = dil
    while b:
        a, b = b, a % b
    met.step, met.back, met.first, met.at = stride // a, dil // a, 0, 0
    return met


cdef inline void meet(
    Meeting* met, Py_ssize_t i, Py_ssize_t pad, Py_ssize_t stride, Py_ssize_t dil, Py_ssize_t kernel
) noexcept nogil:
    # Cells from `step` on repeat those before
    cdef Py_ssize_t at = i + pad
    met.first = 0
    while met.first < min(kernel, met.step) and at % stride:
        met.first += 1
        at -= dil
    if at % stride:
        met.first = kernel
    met.at = at // stride


cdef inline void strided_block(
    const real* grad_output,  # IN   C planes
    const real* weight,       # IN   filters, channel of grad_input chosen
    real shift,
    Py_ssize_t C, Py_ssize_t to_filter, Py_ssize_t KH, Py_ssize_t KW, Py_ssize_t OH, Py_ssize_t OW,
    Meeting h, Meeting w,
    vec* out,                 # OUT  one vector of cells that are stride_w apart
) noexcept nogil:
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), c, kh, kw, oh, ow, depth = 0
        vec acc, total, x, tap
        const real* row
    fill(&acc, shift)
    fill(&total, <real> 0)
    for c in range(C):
        oh = h.at
        kh = h.first
        while kh < KH:
            if 0 <= oh < OH:
                row = grad_output + (c * OH + oh) * OW
                ow = w.at
                kw = w.first
                while kw < KW:
                    load(&x, row, ow, OW, ow >= 0 and ow + VL <= OW)
                    fill(&tap, weight[c * to_filter + kh * KW + kw])
                    acc = acc + x * tap
                    ow -= w.back
                    kw += w.step
                depth += KW
                if depth >= DEPTH:
                    depth = 0
                    total = total + acc
                    fill(&acc, <real> 0)
            oh -= h.back
            kh += h.step
    out[0] = acc + total


cdef void strided_task(
    Py_ssize_t task,
    Py_ssize_t batch,
    const real* grad_output,  # IN
    const real* weight,       # IN
    const real* bias,         # IN   or NULL
    real act_min, real act_max,
    real* grad_input,         # OUT
    const int64_t* geometry,  # IN
    vec* unused,
) noexcept nogil:
    # `batch` rows. Cells of one row that are stride_w apart meet the same kernel cells, and neighbouring outputs: a
    # vector.
    cdef:
        Py_ssize_t N = geometry[GEO_N], IC = geometry[GEO_IC], IH = geometry[GEO_IH], IW = geometry[GEO_IW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t G = geometry[GEO_G], ICG = IC // G, C = geometry[GEO_OC] // G, taps = KH * KW
        Py_ssize_t stride_w = geometry[GEO_STRIDE_W], VL = sizeof(vec) // sizeof(real)
        bint accumulate = geometry[GEO_ACCUMULATE] != 0
        Py_ssize_t flat, plane, ih, iw, channel, phase, lane, left
        Meeting h = steps(geometry[GEO_STRIDE_H], geometry[GEO_DIL_H])
        Meeting w = steps(stride_w, geometry[GEO_DIL_W]), next = w, begin, other_begin
        vec sum, other
        real[16] lanes
        real* row
        const real* dy
        const real* filters
        real shift, value
    meet(&w, 0, geometry[GEO_PAD_LEFT], stride_w, geometry[GEO_DIL_W], KW)
    meet(&next, 1, geometry[GEO_PAD_LEFT], stride_w, geometry[GEO_DIL_W], KW)
    begin, other_begin = w, next
    for flat in range(task * batch, min((task + 1) * batch, N * IC * IH)):
        plane, ih = flat // IH, flat % IH
        channel = plane % IC
        shift = bias[channel] if bias != NULL else 0
        dy = grad_output + (plane // IC * G + channel // ICG) * C * OH * OW
        filters = weight + (channel // ICG * C * ICG + channel % ICG) * taps
        row = grad_input + flat * IW
        meet(&h, ih, geometry[GEO_PAD_TOP], geometry[GEO_STRIDE_H], geometry[GEO_DIL_H], KH)
        if stride_w <= 2:
            w, next = begin, other_begin
            iw = 0
            while iw < IW:
                left = IW - iw
                strided_block(dy, filters, shift, C, ICG * taps, KH, KW, OH, OW, h, w, &sum)
                if stride_w == 1:
                    store(row + iw, sum, 0, min(left, VL), accumulate, act_min, act_max)
                else:
                    strided_block(dy, filters, shift, C, ICG * taps, KH, KW, OH, OW, h, next, &other)
                    store(row + iw, zip_low(sum, other), 0, min(left, VL), accumulate, act_min, act_max)
                    if left > VL:
                        store(row + iw + VL, zip_high(sum, other), 0, min(left - VL, VL), accumulate, act_min, act_max)
                w.at += VL
                next.at += VL
                iw += VL * stride_w
            continue
        for phase in range(min(stride_w, IW)):
            meet(&w, phase, geometry[GEO_PAD_LEFT], stride_w, geometry[GEO_DIL_W], KW)
            iw = phase
            while iw < IW:
                strided_block(dy, filters, shift, C, ICG * taps, KH, KW, OH, OW, h, w, &sum)
                (<vec*> &lanes[0])[0] = sum
                for lane in range(min(VL, ceil_div(IW - iw, stride_w))):
                    value = lanes[lane] + row[iw] if accumulate else lanes[lane]
                    row[iw] = clamp(value, act_min, act_max)
                    iw += stride_w
                w.at += VL


# What the other tasks of the gradient share.
cdef struct GradInput:
    Py_ssize_t itemsize, batch
    const void* grad_output
    const void* weight
    const void* bias
    double low, high
    void* grad_input
    const int64_t* geometry


cdef void exact_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const GradInput* d = <const GradInput*> job
    if d.itemsize == sizeof(float):
        exact_task(
            task, <const float*> d.grad_output, <const float*> d.weight, <const float*> d.bias, <float> d.low,
            <float> d.high, <float*> d.grad_input, d.geometry,
        )
    else:
        exact_task(
            task, <const double*> d.grad_output, <const double*> d.weight, <const double*> d.bias, d.low, d.high,
            <double*> d.grad_input, d.geometry,
        )


cdef void strided_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const GradInput* d = <const GradInput*> job
    if d.itemsize == sizeof(float):
        strided_task(
            task, d.batch, <const float*> d.grad_output, <const float*> d.weight, <const float*> d.bias, <float> d.low,
            <float> d.high, <float*> d.grad_input, d.geometry, <vf*> NULL,
        )
    else:
        strided_task(
            task, d.batch, <const double*> d.grad_output, <const double*> d.weight, <const double*> d.bias, d.low, d.high,
            <double*> d.grad_input, d.geometry, <vd*> NULL,
        )


def conv2d_grad_input_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: a row of zeros."""
    return geometry[GEO_OW]


def conv2d_grad_input(
    const real[:, :, :, ::1] grad_output,
    const real[:, :, :, ::1] weight,
    const real[::1] bias,
    double act_min,
    double act_max,
    real[:, :, :, ::1] grad_input,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """The adjoint in x, with the epilogue of a convolution (bias (IC,) or (0,)): a transposed convolution."""
    cdef Conv conv = adjoint(&geometry[0])
    if conv.n_tasks == 0:
        return
    cdef:
        Py_ssize_t planes = geometry[GEO_N] * geometry[GEO_IC]
        Py_ssize_t batch = max(TASK // max(conv.C * conv.KH * conv.KW * conv.OW // (conv.stride_h * conv.stride_w), 1), 1)
        GradInput job = GradInput(
            sizeof(real), batch, start(grad_output), start(weight), start_of_row(bias), act_min, act_max,
            <void*> start(grad_input), &geometry[0],
        )
        Operands o = Operands(
            sizeof(real), job.grad_output, job.weight, job.bias, job.grad_input, NULL, NULL, &workspace[0], &geometry[0]
        )
        Forward turned = Forward(&o, 0, act_min, act_max, conv)
    with nogil:
        if not finite(weight):
            each_task(exact_entry, &job, planes, n_threads)
        elif conv.K or conv.stride_h == conv.stride_w == 1:
            memset(&workspace[0], 0, conv.IW * sizeof(real))
            each_task(conv2d_entry, &turned, conv.n_tasks, n_threads)
        else:
            each_task(strided_entry, &job, ceil_div(planes * geometry[GEO_IH], batch), n_threads)


# ---------------------------------------------------------------------------------------------- gradient of the weight


cdef struct Sum:
    Py_ssize_t together, blocks, units  # filters of a unit; units: (group, block of filters, channel)
    Py_ssize_t rows, chunk, chunks      # output rows over all images, of a chunk; chunks
    Py_ssize_t batch, n_tasks           # units of a task


cdef Sum sum_of(const int64_t* geometry) noexcept nogil:
    # Few units: the sum itself is cut into chunks of rows. Nothing depends on the number of threads.
    cdef Sum s
    cdef Py_ssize_t G = geometry[GEO_G], F = geometry[GEO_OC] // G, work
    s.together = FILTERS if F >= FILTERS else 1
    s.blocks = ceil_div(F, s.together)
    s.units = G * s.blocks * (geometry[GEO_IC] // G)
    s.rows = geometry[GEO_N] * geometry[GEO_OH]
    work = max(s.together * geometry[GEO_KH] * geometry[GEO_KW] * s.rows * geometry[GEO_OW], 1)
    s.chunks = max(min(CHUNKS // max(s.units, 1), work // TASK, s.rows), 1)
    s.chunk = ceil_div(s.rows, s.chunks)
    s.chunks = max(ceil_div(s.rows, max(s.chunk, 1)), 1)
    s.batch = max(TASK // work, 1)
    s.n_tasks = ceil_div(s.units * s.chunks, s.batch)
    return s


cdef inline void grad_weight_run(
    const real* image,        # IN   the channel's plane in image 0
    const real* grad_output,  # IN   the first filter's plane in image 0
    const real* zeros,        # IN   IW of them
    vec* sums,                # INOUT  F x H x T: taps (kh, kw) .. (kh + H - 1, kw + T - 1) of F filters
    Py_ssize_t first, Py_ssize_t last,           # rows of all images
    Py_ssize_t ow_first, Py_ssize_t ow_last,
    Py_ssize_t kh, Py_ssize_t kw,
    const int64_t* geometry,
    Py_ssize_t F, Py_ssize_t H, Py_ssize_t T, int mode,
) noexcept nogil:
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t to_image = geometry[GEO_IC] * IH * IW, to_grad = geometry[GEO_OC] * OH * OW
        Py_ssize_t stride_h = geometry[GEO_STRIDE_H], stride_w = geometry[GEO_STRIDE_W]
        Py_ssize_t dil_h = geometry[GEO_DIL_H], dil_w = geometry[GEO_DIL_W]
        Py_ssize_t top = kh * dil_h - geometry[GEO_PAD_TOP], left = kw * dil_w - geometry[GEO_PAD_LEFT]
        Py_ssize_t VL = sizeof(vec) // sizeof(real), reach = (T - 1) * dil_w + VL
        Py_ssize_t n = first // OH, oh = first % OH, flat, ow, ih, column, end, f, h, t, i, along = 0
        const real* fetch = grad_output
        vec[4][3][5] acc
        vec[4] dy
        vec x
        const real* rows[3]
        const real* grads
    if to_grad == OW * geometry[GEO_OC]:  # filters are rows, as those of a Linear: the next ones lie behind these
        fetch += F * (OW + ow_first)
        along = F * VL
    for f in range(F):
        for h in range(H):
            for t in range(T):
                fill(&acc[f][h][t], <real> 0)
    for flat in range(first, last):  # no-cython-lint: n and oh count along
        for h in range(H):
            ih = oh * stride_h + top + h * dil_h
            rows[h] = image + n * to_image + ih * IW if 0 <= ih < IH else zeros
        grads = grad_output + n * to_grad + oh * OW
        ow = ow_first
        while ow < ow_last:
            column = ow * stride_w + left
            if mode == MASKED and column >= 0 and column + reach <= IW and ow + VL <= OW:
                if F == FILTERS and H * T == 1 and along:
                    i = 0
                    while i < F * VL:
                        prefetch_second(fetch + i)
                        i += CACHE_LINE // sizeof(real)
                    fetch += along
                for f in range(F):
                    load(&dy[f], grads + f * OH * OW, ow, OW, True)
                for h in range(H):
                    for t in range(T):
                        load(&x, rows[h], column + t * dil_w, IW, True)
                        for f in range(F):
                            acc[f][h][t] = acc[f][h][t] + x * dy[f]
            else:
                for f in range(F):
                    load(&dy[f], grads + f * OH * OW, ow, OW, False)
                    if mode == PAIRS:
                        dy[f] = out_of_order(dy[f])
                # Lanes behind the row's last output are zeros on both sides
                end = (min(OW - ow, VL) - 1) * stride_w + 1 + column
                for t in range(T):
                    for h in range(H):
                        load_columns(&x, rows[h], column + t * dil_w, stride_w, min(IW, end + t * dil_w), mode)
                        for f in range(F):
                            acc[f][h][t] = acc[f][h][t] + x * dy[f]
            ow += VL
        oh += 1
        if oh == OH:
            oh = 0
            n += 1
    for f in range(F):
        for h in range(H):
            for t in range(T):
                sums[(f * H + h) * T + t] = sums[(f * H + h) * T + t] + acc[f][h][t]


cdef inline void grad_weight_block(
    const real* image,
    const real* grad_output,
    const real* zeros,
    real* out,                # OUT  of F filters, to_out apart
    Py_ssize_t to_out,
    Py_ssize_t first, Py_ssize_t last,
    Py_ssize_t kh, Py_ssize_t kw,
    bint accumulate,
    const int64_t* geometry,
    Py_ssize_t F, Py_ssize_t H, Py_ssize_t T, int mode, vec* unused,
) noexcept nogil:
    # Runs of FLUSH vectors, whole rows or parts of one; FLUSH runs make a partial sum.
    cdef:
        Py_ssize_t OW = geometry[GEO_OW], KW = geometry[GEO_KW], VL = sizeof(vec) // sizeof(real)
        Py_ssize_t run = max(FLUSH // ceil_div(OW, VL), 1), i, f, h, t, ow, flushes = 0
        vec[12] partial, total
        real value
    for i in range(F * H * T):
        fill(&partial[i], <real> 0)
        fill(&total[i], <real> 0)
    while first < last:
        ow = 0
        while ow < OW:
            grad_weight_run(image, grad_output, zeros, &partial[0], first, min(first + run, last), ow,
                            min(ow + FLUSH * VL, OW), kh, kw, geometry, F, H, T, mode)
            ow += FLUSH * VL
            flushes += 1
            if flushes == FLUSH:
                flushes = 0
                for i in range(F * H * T):
                    total[i] = total[i] + partial[i]
                    fill(&partial[i], <real> 0)
        first += run
    for f in range(F):
        for h in range(H):
            for t in range(T):
                i = (f * H + h) * T + t
                value = sum_lanes(total[i] + partial[i], out)
                i = f * to_out + (kh + h) * KW + kw + t
                out[i] = out[i] + value if accumulate else value


cdef inline void column_row(
    vec* x, const real* row, const real* outside, Py_ssize_t ih, Py_ssize_t IH, Py_ssize_t to_other, Py_ssize_t beside,
    const vec* lanes, int stride, bint plain, bint pair,
) noexcept nogil:
    cdef bint exists = <size_t> ih < <size_t> IH
    depthwise_load(x, row if exists else outside, row + to_other if exists else outside + beside, lanes, 3, stride, plain,
                   pair)


cdef inline void column_grad(
    vec* dy, const real* row, Py_ssize_t to_other, const vec* there, const vec* other_there, int stride, bint plain,
    bint pair,
) noexcept nogil:
    load_lanes(dy, row, there[0], plain)
    if pair:
        dy[0] = join_lanes(dy[0], row + to_other, other_there[0])
    if stride == 2:
        dy[0] = out_of_order(dy[0])


cdef inline void column_products(
    vec* acc,             # INOUT  3 x 3
    const vec* x, vec dy, int kh,
) noexcept nogil:
    cdef int kw
    for kw in range(3):
        acc[3 * kh + kw] = acc[3 * kh + kw] + x[kw] * dy


cdef inline void column_sums(vec* sums, const vec* acc, vec there, int kh) noexcept nogil:
    cdef int kw
    for kw in range(3):
        sums[3 * kh + kw] = sums[3 * kh + kw] + chosen(acc[3 * kh + kw], there)


cdef inline void grad_weight_column(
    const real* image,        # IN   the channel's plane in the first image
    const real* grad_output,  # IN   the same, at the first row and column
    const real* zeros,        # IN   IW of them
    vec* sums,                # INOUT  3 x 3 taps
    Py_ssize_t n_images, Py_ssize_t n_rows,
    Py_ssize_t top, Py_ssize_t column,  # image row and column at the first tap
    Py_ssize_t n_lanes,
    const int64_t* geometry,
    int stride, bint plain, bint pair, vec* unused,
) noexcept nogil:
    # As depthwise_column: down the rows of a plane, each loaded once, of the image and of grad_output. A row meets up to
    # three rows of the other. A pair: two images whose rows are half a vector.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OW = geometry[GEO_OW], VL = sizeof(vec) // sizeof(real)
        Py_ssize_t to_image = geometry[GEO_IC] * IH * IW, to_grad = geometry[GEO_OC] * geometry[GEO_OH] * OW
        Py_ssize_t half = VL // 2, beside = VL if not pair else -half if stride == 1 else 0, ih, _oh
        Py_ssize_t to_other = beside + to_image if pair else beside, grad_other = to_grad - half
        Py_ssize_t ahead = IH * IW, grad_ahead = geometry[GEO_OH] * OW  # the next channel's rows, or the next band's
        vec[9] acc
        vec[6] lanes
        vec[3] x
        vec dy, older, oldest, there, other_there
        const real* row
        const real* dy_row
        const real* outside
        int i
    if n_rows < geometry[GEO_OH]:
        ahead, grad_ahead = n_rows * stride * IW, n_rows * OW
    if pair and stride == 1:
        column += 1
    depthwise_lanes(&lanes[0], column, beside, IW, 3, stride, pair)
    inside(&there, 0, n_lanes)
    inside(&other_there, -half, n_lanes)
    outside = zeros + column
    for i in range(3):  # loops of nine are not unrolled, and `acc` then is memory
        fill(&acc[i], <real> 0)
        fill(&acc[3 + i], <real> 0)
        fill(&acc[6 + i], <real> 0)
    while n_images > 0:
        n_images -= 2 if pair else 1
        ih = top
        row = image + top * IW + column
        dy_row = grad_output
        image += 2 * to_image if pair else to_image
        grad_output += 2 * to_grad if pair else to_grad
        column_row(&x[0], row, outside, ih, IH, to_other, beside, &lanes[0], stride, plain, pair)
        column_grad(&older, dy_row, grad_other, &there, &other_there, stride, plain, pair)
        column_products(&acc[0], &x[0], older, 0)
        if stride == 1:
            ih += 1
            row += IW
            column_row(&x[0], row, outside, ih, IH, to_other, beside, &lanes[0], stride, plain, pair)
            if n_rows > 1:
                dy_row += OW
                column_grad(&dy, dy_row, grad_other, &there, &other_there, stride, plain, pair)
                column_products(&acc[0], &x[0], dy, 0)
                column_products(&acc[0], &x[0], older, 1)
                for _oh in range(2, n_rows):
                    oldest, older = older, dy
                    ih += 1
                    row += IW
                    dy_row += OW
                    prefetch(row + ahead)
                    prefetch(dy_row + grad_ahead)
                    column_row(&x[0], row, outside, ih, IH, to_other, beside, &lanes[0], stride, plain, pair)
                    column_grad(&dy, dy_row, grad_other, &there, &other_there, stride, plain, pair)
                    column_products(&acc[0], &x[0], dy, 0)
                    column_products(&acc[0], &x[0], older, 1)
                    column_products(&acc[0], &x[0], oldest, 2)
                oldest, older = older, dy
                ih += 1
                row += IW
                column_row(&x[0], row, outside, ih, IH, to_other, beside, &lanes[0], stride, plain, pair)
                column_products(&acc[0], &x[0], oldest, 2)
            column_products(&acc[0], &x[0], older, 1)
        else:
            for _oh in range(1, n_rows):
                prefetch(dy_row + grad_ahead)
                prefetch(row + IW + ahead)
                if ORDERED:  # a column of two cache lines
                    prefetch(row + IW + ahead + VL)
                column_row(&x[0], row + IW, outside, ih + 1, IH, to_other, beside, &lanes[0], stride, plain, pair)
                column_products(&acc[0], &x[0], older, 1)
                ih += 2
                row += 2 * IW
                prefetch(row + ahead)
                if ORDERED:
                    prefetch(row + ahead + VL)
                dy_row += OW
                column_row(&x[0], row, outside, ih, IH, to_other, beside, &lanes[0], stride, plain, pair)
                column_grad(&dy, dy_row, grad_other, &there, &other_there, stride, plain, pair)
                column_products(&acc[0], &x[0], older, 2)
                column_products(&acc[0], &x[0], dy, 0)
                older = dy
            ih += 1
            row += IW
            column_row(&x[0], row, outside, ih, IH, to_other, beside, &lanes[0], stride, plain, pair)
            column_products(&acc[0], &x[0], older, 1)
        column_row(&x[0], row + IW, outside, ih + 1, IH, to_other, beside, &lanes[0], stride, plain, pair)
        column_products(&acc[0], &x[0], older, 2)
    # Lanes behind the row's last output are zeros in grad_output alone
    if pair:
        there = either(there, other_there)
    if stride == 2:
        there = out_of_order(there)
    column_sums(sums, &acc[0], there, 0)
    column_sums(sums, &acc[0], there, 1)
    column_sums(sums, &acc[0], there, 2)


cdef inline void grad_weight_column_of(
    const real* image, const real* grad_output, const real* zeros, vec* sums, Py_ssize_t n_images, Py_ssize_t n_rows,
    Py_ssize_t top, Py_ssize_t column, Py_ssize_t n_lanes, const int64_t* geometry, int stride, bint pair, vec* unused,
) noexcept nogil:
    cdef Py_ssize_t VL = sizeof(vec) // sizeof(real)
    if ORDERED and pair:
        grad_weight_column(image, grad_output, zeros, sums, n_images, n_rows, top, column, n_lanes, geometry, stride,
                           False, True, unused)
    elif not ORDERED and n_lanes == VL and column >= 0 and column + 3 + stride * (VL - 1) <= geometry[GEO_IW]:
        grad_weight_column(image, grad_output, zeros, sums, n_images, n_rows, top, column, n_lanes, geometry, stride,
                           True, False, unused)
    else:
        grad_weight_column(image, grad_output, zeros, sums, n_images, n_rows, top, column, n_lanes, geometry, stride,
                           False, False, unused)


# Functions of their own: fewer registers are spilled.
cdef void grad_weight_column_1(
    const real* image, const real* grad_output, const real* zeros, vec* sums, Py_ssize_t n_images, Py_ssize_t n_rows,
    Py_ssize_t top, Py_ssize_t column, Py_ssize_t n_lanes, const int64_t* geometry, bint pair, vec* unused,
) noexcept nogil:
    grad_weight_column_of(image, grad_output, zeros, sums, n_images, n_rows, top, column, n_lanes, geometry, 1, pair,
                          unused)


cdef void grad_weight_column_2(
    const real* image, const real* grad_output, const real* zeros, vec* sums, Py_ssize_t n_images, Py_ssize_t n_rows,
    Py_ssize_t top, Py_ssize_t column, Py_ssize_t n_lanes, const int64_t* geometry, bint pair, vec* unused,
) noexcept nogil:
    grad_weight_column_of(image, grad_output, zeros, sums, n_images, n_rows, top, column, n_lanes, geometry, 2, pair,
                          unused)


cdef inline void grad_weight_columns(
    const real* image,
    const real* grad_output,
    const real* zeros,
    real* out,                # OUT  3 x 3 taps
    Py_ssize_t first, Py_ssize_t last,
    bint accumulate,
    const int64_t* geometry,
    int stride, vec* unused,
) noexcept nogil:
    # Runs of up to FLUSH vectors, of one column of some images or of a band of one; FLUSH runs make a partial sum.
    cdef:
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t to_image = geometry[GEO_IC] * IH * IW, to_grad = geometry[GEO_OC] * OH * OW
        Py_ssize_t pad_top = geometry[GEO_PAD_TOP], pad_left = geometry[GEO_PAD_LEFT]
        Py_ssize_t VL = sizeof(vec) // sizeof(real), width = VL - 1 if ORDERED and stride == 2 else VL
        Py_ssize_t band = max(min(BAND // max(stride * IW + OW, 1), FLUSH), 1)
        Py_ssize_t n, oh, ow, n_rows, n_images, flushes = 0
        bint pair = in_pairs(3, stride, IW, OW, pad_left, VL // 2), paired
        const real* x
        const real* dy
        vec[9] partial, total
        real value
        int i
    for i in range(9):
        fill(&partial[i], <real> 0)
        fill(&total[i], <real> 0)
    n, oh = first // OH, first % OH
    while first < last:
        n_rows = min(OH - oh, last - first)
        n_images = 1
        if n_rows > band:
            n_rows = ceil_div(n_rows, ceil_div(n_rows, band))
        elif n_rows == OH:
            n_images = min(max(FLUSH // OH, 1) * (2 if pair else 1), (last - first) // OH)
        paired = pair and n_images > 1
        if paired:
            n_images -= n_images % 2
        x = image + n * to_image
        dy = grad_output + n * to_grad + oh * OW
        ow = 0
        while ow < OW:
            if stride == 1:
                grad_weight_column_1(x, dy + ow, zeros, &partial[0], n_images, n_rows, oh - pad_top, ow - pad_left,
                                     min(OW - ow, width), geometry, paired, unused)
            else:
                grad_weight_column_2(x, dy + ow, zeros, &partial[0], n_images, n_rows, 2 * oh - pad_top,
                                     2 * ow - pad_left, min(OW - ow, width), geometry, paired, unused)
            ow += width
            flushes += 1
            if flushes == FLUSH:
                flushes = 0
                for i in range(9):
                    total[i] = total[i] + partial[i]
                    fill(&partial[i], <real> 0)
        first += n_rows * n_images
        oh += n_rows
        if oh == OH:
            oh = 0
            n += n_images
    for i in range(9):
        value = sum_lanes(total[i] + partial[i], out)
        out[i] = out[i] + value if accumulate else value


cdef inline void grad_weight_units(
    Py_ssize_t task,
    const Sum* s,
    const real* input,        # IN
    const real* zeros,        # IN
    const real* grad_output,  # IN
    real* grad_weight,        # OUT  an array for each chunk
    bint accumulate,
    const int64_t* geometry,  # IN
    int mode, vec* unused,
) noexcept nogil:
    cdef:
        Py_ssize_t G = geometry[GEO_G], C = geometry[GEO_IC] // G, F = geometry[GEO_OC] // G
        Py_ssize_t IH = geometry[GEO_IH], IW = geometry[GEO_IW], OH = geometry[GEO_OH], OW = geometry[GEO_OW]
        Py_ssize_t KH = geometry[GEO_KH], KW = geometry[GEO_KW], taps = KH * KW
        Py_ssize_t unit, chunk, group, block, c, f, end, first, last, kh, kw, H, T
        bint columns = (
            mode != GATHER and KH == KW == 3 and geometry[GEO_DIL_H] == geometry[GEO_DIL_W] == 1
            and geometry[GEO_STRIDE_H] == geometry[GEO_STRIDE_W]
        )
        const real* image
        const real* grads
        real* out
    unit = task * s.batch
    chunk, c, block, group = unit // s.units, unit % C, unit // C % s.blocks, unit % s.units // (C * s.blocks)
    for unit in range(unit, min(unit + s.batch, s.units * s.chunks)):  # no-cython-lint: the others count along
        first, last = chunk * s.chunk, min((chunk + 1) * s.chunk, s.rows)
        f = block * s.together
        end = min(f + s.together, F)
        image = input + (group * C + c) * IH * IW
        while f < end:
            grads = grad_output + (group * F + f) * OH * OW
            out = grad_weight + ((chunk * G + group) * F + f) * C * taps + c * taps
            kh = 0
            if columns and f + FILTERS > end:
                grad_weight_columns(image, grads, zeros, out, first, last, accumulate, geometry,
                                    1 if mode == MASKED else 2, unused)
                kh = KH
            while kh < KH:
                H = 1
                kw = 0
                while kw < KW:
                    T = 1
                    if f + FILTERS <= end:
                        if KW - kw >= 3:
                            T = 3
                            grad_weight_block(image, grads, zeros, out, C * taps, first, last, kh, kw, accumulate,
                                              geometry, FILTERS, 1, 3, mode, unused)
                        else:
                            grad_weight_block(image, grads, zeros, out, C * taps, first, last, kh, kw, accumulate,
                                              geometry, FILTERS, 1, 1, mode, unused)
                    elif KW == 3 and KH - kh >= 3:
                        H = T = 3
                        grad_weight_block(image, grads, zeros, out, 0, first, last, kh, kw, accumulate, geometry,
                                          1, 3, 3, mode, unused)
                    elif KW == 5 and KH - kh >= 2:
                        H, T = 2, 5
                        grad_weight_block(image, grads, zeros, out, 0, first, last, kh, kw, accumulate, geometry,
                                          1, 2, 5, mode, unused)
                    elif KW - kw >= 5:
                        T = 5
                        grad_weight_block(image, grads, zeros, out, 0, first, last, kh, kw, accumulate, geometry,
                                          1, 1, 5, mode, unused)
                    elif KW - kw >= 3:
                        T = 3
                        grad_weight_block(image, grads, zeros, out, 0, first, last, kh, kw, accumulate, geometry,
                                          1, 1, 3, mode, unused)
                    else:
                        grad_weight_block(image, grads, zeros, out, 0, first, last, kh, kw, accumulate, geometry,
                                          1, 1, 1, mode, unused)
                    kw += T
                kh += H
            f += FILTERS if f + FILTERS <= end else 1
        c += 1
        if c == C:
            c = 0
            block += 1
            if block == s.blocks:
                block = 0
                group += 1
                if group == G:
                    group = 0
                    chunk += 1


cdef void grad_weight_task(
    Py_ssize_t task, const Sum* s, const real* input, const real* zeros, const real* grad_output, real* grad_weight,
    bint accumulate, const int64_t* geometry, vec* unused,
) noexcept nogil:
    cdef int mode = mode_of(geometry[GEO_STRIDE_W])
    if mode == MASKED:
        grad_weight_units(task, s, input, zeros, grad_output, grad_weight, accumulate, geometry, MASKED, unused)
    elif mode == PAIRS:
        grad_weight_units(task, s, input, zeros, grad_output, grad_weight, accumulate, geometry, PAIRS, unused)
    else:
        grad_weight_units(task, s, input, zeros, grad_output, grad_weight, accumulate, geometry, GATHER, unused)


# What its tasks share.
cdef struct GradWeight:
    Py_ssize_t itemsize
    const Sum* sum
    const void* input
    const void* zeros
    const void* grad_output
    void* chunks
    bint accumulate
    const int64_t* geometry


cdef void conv2d_grad_weight_entry(const void* job, Py_ssize_t task, int worker) noexcept nogil:
    cdef const GradWeight* d = <const GradWeight*> job
    if d.itemsize == sizeof(float):
        grad_weight_task(
            task, d.sum, <const float*> d.input, <const float*> d.zeros, <const float*> d.grad_output, <float*> d.chunks,
            d.accumulate, d.geometry, <vf*> NULL,
        )
    else:
        grad_weight_task(
            task, d.sum, <const double*> d.input, <const double*> d.zeros, <const double*> d.grad_output, <double*> d.chunks,
            d.accumulate, d.geometry, <vd*> NULL,
        )


cdef void add_chunks(
    const real* chunks, Py_ssize_t n_chunks, real* grad_weight, Py_ssize_t size, bint accumulate
) noexcept nogil:
    cdef Py_ssize_t i, chunk
    cdef real total
    for i in range(size):
        total = grad_weight[i] if accumulate else 0
        for chunk in range(n_chunks):
            total += chunks[chunk * size + i]
        grad_weight[i] = total


cdef Py_ssize_t weight_size(const int64_t* geometry) noexcept nogil:
    return geometry[GEO_OC] * (geometry[GEO_IC] // geometry[GEO_G]) * geometry[GEO_KH] * geometry[GEO_KW]


def conv2d_grad_weight_workspace(const int64_t[::1] geometry, Py_ssize_t n_workers):
    """Elements of workspace: a row of zeros, and the chunks of a sum that is cut."""
    cdef Sum s = sum_of(&geometry[0])
    return geometry[GEO_IW] + (s.chunks * weight_size(&geometry[0]) if s.chunks > 1 else 0)


def conv2d_grad_weight(
    const real[:, :, :, ::1] input,
    const real[:, :, :, ::1] grad_output,
    real[:, :, :, ::1] grad_weight,
    real[::1] workspace,
    const int64_t[::1] geometry,
    int n_threads,
):
    """The adjoint in the weight: grad_weight (OC, ICG, KH, KW), added to what is there with accumulate."""
    cdef Sum s = sum_of(&geometry[0])
    if s.n_tasks == 0:
        return
    cdef:
        bint accumulate = geometry[GEO_ACCUMULATE] != 0
        real* zeros = &workspace[0]
        real* out = &grad_weight[0, 0, 0, 0]
        real* chunks = zeros + geometry[GEO_IW] if s.chunks > 1 else out
        GradWeight job = GradWeight(
            sizeof(real), &s, start(input), zeros, start(grad_output), chunks, accumulate and s.chunks == 1, &geometry[0]
        )
    with nogil:
        memset(zeros, 0, geometry[GEO_IW] * sizeof(real))
        each_task(conv2d_grad_weight_entry, &job, s.n_tasks, n_threads)
        if s.chunks > 1:
            add_chunks(chunks, s.chunks, out, weight_size(&geometry[0]), accumulate)
