# cython: language_level=3
"""What all kernels share: element and vector types, and the geometry vector's index names."""

from cpython.buffer cimport PyBUF_SIMPLE, PyBUF_WRITABLE, Py_buffer, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int64_t

ctypedef fused real:
    float
    double

cdef extern from "simd.h" nogil:
    ctypedef float vf
    ctypedef double vd
    enum:
        VL_FLOAT
        VL_DOUBLE
        MR
        NV
        WINOGRAD_MR
        WINOGRAD_NV
        OUTER_MR
        OUTER_NV
        LISTED_MR
        LISTED_NV
        LISTED_DEPTHS
        LONE_SPAN
        DEPTHS
        BLOCK_PIXELS
        RUN_CELLS
        IN_PLACE_FILTERS
        TRIPLE_RUN_CELLS
        HEADED
    bint loads_are_scarce()
    vf vmax_f(vf a, vf b)
    vd vmax_d(vd a, vd b)
    vf vmin_f(vf a, vf b)
    vd vmin_d(vd a, vd b)
    vf vset_f(float x)
    vd vset_d(double x)
    vf vfma_f(vf acc, vf a, vf b)
    vd vfma_d(vd acc, vd a, vd b)
    vf vfma_at_f(vf acc, const float* factor, vf b)
    vd vfma_at_d(vd acc, const double* factor, vd b)
    void* opaque(void* p)
    void rolled "SIMD_ROLLED"()
    void prefetch "SIMD_PREFETCH"(const void* p)
    void prefetch_second "SIMD_PREFETCH_SECOND"(const void* p)

cdef extern from "team.h":
    int team_join() except -1

cdef extern from "team.h" nogil:
    # One task of a job, which holds what its tasks share; of one of several workers, who has a slice of the workspace
    ctypedef void (*team_task)(const void* job, Py_ssize_t task, int worker) noexcept nogil
    void each_task(team_task function, const void* job, Py_ssize_t n_tasks, int n_threads)

# Used together with `real`: only (float, vf) and (double, vd) are ever called.
ctypedef fused vec:
    vf
    vd

# Order of fastconv/_problem.py: GEOMETRY (tests/test_contract.py compares).
cdef enum:
    GEO_N, GEO_IC, GEO_IH, GEO_IW, GEO_OC, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_G
    GEO_STRIDE_H, GEO_STRIDE_W, GEO_PAD_TOP, GEO_PAD_BOTTOM, GEO_PAD_LEFT, GEO_PAD_RIGHT, GEO_DIL_H, GEO_DIL_W
    GEO_ACCUMULATE, GEO_PAD_MODE, GEO_COUNT_INCLUDE_PAD, GEO_DIVISOR
    GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW
    GEO_POOL_STRIDE_H, GEO_POOL_STRIDE_W, GEO_POOL_PAD_TOP, GEO_POOL_PAD_LEFT
    GEO_TILE, GEO_TURNED

cdef enum:
    PAD_ZEROS, PAD_REFLECT, PAD_REPLICATE, PAD_CIRCULAR


cdef inline vec vfma(vec acc, vec a, vec b) noexcept nogil:
    """acc + a * b, in the register of acc."""
    if vec is vf:
        return vfma_f(acc, a, b)
    else:
        return vfma_d(acc, a, b)


cdef inline vec vfma_at(vec acc, const real* factor, vec b) noexcept nogil:
    """acc + factor[0] * b, in the register of acc."""
    if vec is vf:
        return vfma_at_f(acc, <const float*> factor, b)
    else:
        return vfma_at_d(acc, <const double*> factor, b)


cdef inline vec vmax(vec a, vec b) noexcept nogil:
    """a > b ? a : b; where one is NaN the result is b."""
    if vec is vf:
        return vmax_f(a, b)
    else:
        return vmax_d(a, b)


cdef inline vec vmin(vec a, vec b) noexcept nogil:
    """a < b ? a : b; where one is NaN the result is b."""
    if vec is vf:
        return vmin_f(a, b)
    else:
        return vmin_d(a, b)


cdef inline void fill(vec* out, real value) noexcept nogil:
    """out[0] = value in every lane."""
    if vec is vf:
        out[0] = vset_f(value)
    else:
        out[0] = vset_d(value)


cdef inline void add_outer(
    vec* acc,                 # INOUT [mr][step]
    const real** at,          # IN   mr places, each with a cell
    Py_ssize_t cell,          # so far behind it
    const real* y,            # IN   nv vectors
    const int mr,
    const int nv,             # constants at each call: acc stays in registers
    const int step,           # vectors from one row of acc to the next
) noexcept nogil:
    """acc[i][j] += at[i][cell] * y[j]."""
    cdef:
        vec[OUTER_NV] x
        vec factor
        Py_ssize_t i, j
    for j in range(nv):
        x[j] = (<const vec*> y)[j]
    for i in range(mr):
        fill(&factor, at[i][cell])
        for j in range(nv):
            acc[i * step + j] = vfma(acc[i * step + j], factor, x[j])


cdef inline real clamp(real value, real low, real high) noexcept nogil:
    """value within [low, high]; NaN stays NaN: both comparisons are false for it."""
    if value < low:
        return low
    if value > high:
        return high
    return value


cdef inline const real* start(const real[:, :, :, ::1] array) noexcept nogil:
    """The address of the first element; NULL if there is none, which no index may then name."""
    if array.shape[0] and array.shape[1] and array.shape[2] and array.shape[3]:
        return &array[0, 0, 0, 0]
    return NULL


cdef inline const real* cells_of(
    const real[:, :, :, ::1] array, Py_ssize_t N, Py_ssize_t C, Py_ssize_t H, Py_ssize_t W
) except? NULL:
    """The same of an array that must have so many cells along its axes: a build that checks indices sees whether it has."""
    if min(N, C, H, W) <= 0 or &array[N - 1, C - 1, H - 1, W - 1] == NULL:
        return NULL
    return &array[0, 0, 0, 0]


cdef inline const real* start_of_row(const real[::1] array) noexcept nogil:
    """The same of an array of one axis."""
    return &array[0] if array.shape[0] else NULL


cdef inline Py_ssize_t ceil_div(Py_ssize_t a, Py_ssize_t b) noexcept nogil:
    """ceil(a / b) for b > 0, also for negative a (// truncates here: cdivision)."""
    return (a + b - 1) // b if a > 0 else -(-a // b)


cdef enum:
    CACHE_LINE = 64  # bytes
    LINE = 16        # elements of a cache line, of float64 of two


cdef inline Py_ssize_t lines(Py_ssize_t elements) noexcept nogil:
    """So many, or a few more: what follows begins with a cache line, so that none of its vectors lies in two."""
    return ceil_div(elements, LINE) * LINE


cdef inline void* first_cell(object array, Py_ssize_t itemsize, int flags) except? NULL:
    """The address of a contiguous array's first cell, NULL if it has none."""
    # For calls so short that typed memoryviews, 0.3 us each, would show. The caller's reference keeps the array.
    cdef Py_buffer view
    PyObject_GetBuffer(array, &view, flags)
    PyBuffer_Release(&view)
    if view.itemsize != itemsize:
        raise TypeError(f"kernel: an array with cells of {view.itemsize} bytes among others of {itemsize}")
    return view.buf if view.len else NULL


cdef inline const void* address_in(object array, Py_ssize_t itemsize) except? NULL:
    return first_cell(array, itemsize, PyBUF_SIMPLE)


cdef inline void* address_out(object array, Py_ssize_t itemsize) except? NULL:
    return first_cell(array, itemsize, PyBUF_WRITABLE)


cdef inline Py_ssize_t real_itemsize(object array) except 0:
    cdef Py_ssize_t itemsize = array.itemsize
    if itemsize != sizeof(float) and itemsize != sizeof(double):
        raise TypeError(f"kernel: cells of {itemsize} bytes: they must be float32 or float64")
    return itemsize


# What the tasks of a kernel share that copies or adds cells of one array into another.
cdef struct Copy:
    Py_ssize_t itemsize
    const void* source
    void* target
    const int64_t* geometry


# The arrays of a convolution's forward kernel, by address; NULL for those without cells.
cdef struct Operands:
    Py_ssize_t itemsize
    const void* input
    const void* weight
    const void* bias
    void* output
    void* pooled
    int64_t* indices
    void* workspace
    const int64_t* geometry


cdef inline Operands operands(
    object input, object weight, object bias, object output, object pooled, object indices, object workspace, object geometry,
) except *:
    cdef Operands o
    o.itemsize = real_itemsize(input)
    o.input = address_in(input, o.itemsize)
    o.weight = address_in(weight, o.itemsize)
    o.bias = address_in(bias, o.itemsize)
    o.output = address_out(output, o.itemsize)
    o.pooled = address_out(pooled, o.itemsize)
    o.indices = <int64_t*> address_out(indices, sizeof(int64_t))
    o.workspace = address_out(workspace, o.itemsize)
    o.geometry = <const int64_t*> address_in(geometry, sizeof(int64_t))
    return o
