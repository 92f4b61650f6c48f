# cython: language_level=3
"""Vectors as 128-bit lanes, each 4 floats or 2 doubles: planes turned to channels last, and back."""

from common cimport ceil_div, real, vd, vec, vf

cdef extern from *:
    """
    #define LANES static inline __attribute__((always_inline))
    #if defined(__AVX__)
    #include <immintrin.h>
    #endif

    /* Interleave the lower or upper halves of each 128-bit lane: one instruction each. */
    #define LANES_SHUFFLE(S, name, ...) \\
    LANES v##S name##_##S(v##S a, v##S b) { return SIMD_SHUFFLE_##S(a, b, __VA_ARGS__); }
    #if FASTCONV_VL == 16
    LANES_SHUFFLE(f, low, 0, 16, 1, 17, 4, 20, 5, 21, 8, 24, 9, 25, 12, 28, 13, 29)
    LANES_SHUFFLE(f, high, 2, 18, 3, 19, 6, 22, 7, 23, 10, 26, 11, 27, 14, 30, 15, 31)
    LANES_SHUFFLE(d, low, 0, 8, 2, 10, 4, 12, 6, 14)
    LANES_SHUFFLE(d, high, 1, 9, 3, 11, 5, 13, 7, 15)
    #elif FASTCONV_VL == 8
    LANES_SHUFFLE(f, low, 0, 8, 1, 9, 4, 12, 5, 13)
    LANES_SHUFFLE(f, high, 2, 10, 3, 11, 6, 14, 7, 15)
    LANES_SHUFFLE(d, low, 0, 4, 2, 6)
    LANES_SHUFFLE(d, high, 1, 5, 3, 7)
    #else
    LANES_SHUFFLE(f, low, 0, 4, 1, 5)
    LANES_SHUFFLE(f, high, 2, 6, 3, 7)
    LANES_SHUFFLE(d, low, 0, 2)
    LANES_SHUFFLE(d, high, 1, 3)
    #endif

    /* Each 128-bit lane of the vectors is a square matrix: transpose it. */
    LANES void transpose_f(vf *z)
    {
        vd a = (vd)low_f(z[0], z[1]), b = (vd)high_f(z[0], z[1]), c = (vd)low_f(z[2], z[3]), d = (vd)high_f(z[2], z[3]);
        z[0] = (vf)low_d(a, c);
        z[1] = (vf)high_d(a, c);
        z[2] = (vf)low_d(b, d);
        z[3] = (vf)high_d(b, d);
    }
    LANES void transpose_d(vd *z)
    {
        vd a = low_d(z[0], z[1]), b = high_d(z[0], z[1]);
        z[0] = a;
        z[1] = b;
    }

    /* 128-bit lane l from and to p + l * step; p counts elements of 4 or 8 bytes. */
    #if FASTCONV_VL == 8 && defined(__AVX__)
    #define LANES_LANES(S, type, vec) \\
    LANES vec load_lanes_##S(const type *p, Py_ssize_t step) \\
    { \\
        __m128 a = _mm_loadu_ps((const float *)p), b = _mm_loadu_ps((const float *)(p + step)); \\
        return (vec)_mm256_insertf128_ps(_mm256_castps128_ps256(a), b, 1); \\
    } \\
    LANES void store_lanes_##S(type *p, Py_ssize_t step, vec v) \\
    { \\
        _mm_storeu_ps((float *)p, _mm256_castps256_ps128((__m256)v)); \\
        _mm_storeu_ps((float *)(p + step), _mm256_extractf128_ps((__m256)v, 1)); \\
    }
    #elif FASTCONV_VL == 16 && defined(__AVX512F__)
    #define LANES_LANES(S, type, vec) \\
    LANES vec load_lanes_##S(const type *p, Py_ssize_t step) \\
    { \\
        __m512 v = _mm512_castps128_ps512(_mm_loadu_ps((const float *)p)); \\
        v = _mm512_insertf32x4(v, _mm_loadu_ps((const float *)(p + step)), 1); \\
        v = _mm512_insertf32x4(v, _mm_loadu_ps((const float *)(p + 2 * step)), 2); \\
        return (vec)_mm512_insertf32x4(v, _mm_loadu_ps((const float *)(p + 3 * step)), 3); \\
    } \\
    LANES void store_lanes_##S(type *p, Py_ssize_t step, vec v) \\
    { \\
        _mm_storeu_ps((float *)p, _mm512_castps512_ps128((__m512)v)); \\
        _mm_storeu_ps((float *)(p + step), _mm512_extractf32x4_ps((__m512)v, 1)); \\
        _mm_storeu_ps((float *)(p + 2 * step), _mm512_extractf32x4_ps((__m512)v, 2)); \\
        _mm_storeu_ps((float *)(p + 3 * step), _mm512_extractf32x4_ps((__m512)v, 3)); \\
    }
    #else
    #define LANES_LANES(S, type, vec) \\
    LANES vec load_lanes_##S(const type *p, Py_ssize_t step) \\
    { \\
        vec v; \\
        for (int l = 0; l < FASTCONV_VL / 4; l++) __builtin_memcpy((char *)&v + 16 * l, p + l * step, 16); \\
        return v; \\
    } \\
    LANES void store_lanes_##S(type *p, Py_ssize_t step, vec v) \\
    { for (int l = 0; l < FASTCONV_VL / 4; l++) __builtin_memcpy(p + l * step, (char *)&v + 16 * l, 16); }
    #endif
    LANES_LANES(f, float, vf)
    LANES_LANES(d, double, vd)
    """
    vf low_f(vf a, vf b) nogil
    vf high_f(vf a, vf b) nogil
    vd low_d(vd a, vd b) nogil
    vd high_d(vd a, vd b) nogil
    void transpose_f(vf* z) nogil
    void transpose_d(vd* z) nogil
    vf load_lanes_f(const float* p, Py_ssize_t step) nogil
    vd load_lanes_d(const double* p, Py_ssize_t step) nogil
    void store_lanes_f(float* p, Py_ssize_t step, vf v) nogil
    void store_lanes_d(double* p, Py_ssize_t step, vd v) nogil


cdef inline void transpose(vec* z) noexcept nogil:
    """The square matrix of each lane of 4 (or 2) vectors, turned."""
    if vec is vf:
        transpose_f(z)
    else:
        transpose_d(z)


cdef inline void interleave(vec* z) noexcept nogil:
    """The lower and the upper halves of two vectors' lanes, element by element in turns."""
    cdef vec lower
    if vec is vf:
        lower, z[1] = low_f(z[0], z[1]), high_f(z[0], z[1])
    else:
        lower, z[1] = low_d(z[0], z[1]), high_d(z[0], z[1])
    z[0] = lower


cdef inline void load_lanes(vec* out, const real* p, Py_ssize_t step) noexcept nogil:
    """Lane l from p + l * step."""
    if vec is vf:
        out[0] = load_lanes_f(<const float*> p, step)
    else:
        out[0] = load_lanes_d(<const double*> p, step)


cdef inline void store_lanes(real* p, Py_ssize_t step, vec v) noexcept nogil:
    """Lane l to p + l * step."""
    if vec is vf:
        store_lanes_f(<float*> p, step, v)
    else:
        store_lanes_d(<double*> p, step, v)


cdef inline void store_filters(
    const real* results,        # IN   [row][filter]: rows of one filter stand together in grad_weight
    real* out,                  # OUT  the first row of the first filter, K from filter to filter
    Py_ssize_t rows,
    Py_ssize_t filters,
    Py_ssize_t ldd,
    Py_ssize_t K,
    bint accumulate,
    vec* unused,
) noexcept nogil:
    """Rows of VL filters turned, 4 or 2 at once."""
    cdef:
        Py_ssize_t VL = sizeof(vec) // sizeof(real), quad = 16 // sizeof(real), vector, square, squares, k, r, i, j
        vec[4] z
        vec old
        real value
    for vector in range(ceil_div(filters, VL)):
        k = vector * VL
        squares = rows // quad if filters - k >= VL else 0
        for square in range(squares):
            r = square * quad
            for j in range(quad):
                z[j] = (<const vec*> (results + (r + j) * ldd + k))[0]
            transpose(&z[0])
            for j in range(quad):
                if accumulate:
                    load_lanes(&old, <const real*> out + (k + j) * K + r, quad * K)
                    z[j] = z[j] + old
                store_lanes(out + (k + j) * K + r, quad * K, z[j])
        for i in range(k, min(k + VL, filters)):
            for r in range(squares * quad, rows):
                value = results[r * ldd + i]
                if accumulate:
                    value = value + out[i * K + r]
                out[i * K + r] = value
