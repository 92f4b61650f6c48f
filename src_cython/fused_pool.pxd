# cython: language_level=3
"""The max-pool that a convolution runs on rows it has just computed. Meaning: max_pool of fastconv/_reference."""

from common cimport (
    GEO_DIL_H, GEO_DIL_W, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_POOL_KH,
    GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_LEFT, GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H, GEO_POOL_STRIDE_W,
    GEO_STRIDE_H, GEO_STRIDE_W, int64_t, real, vec,
)
from max_pool cimport is_common, max_of_planes, max_ring_size

cdef enum:
    FIELDS = 64  # >= those of the geometry


cdef inline void pool_geometry(const int64_t* geometry, int64_t* pool) noexcept nogil:
    """The pool as a problem of its own, whose input is the convolution's map: the fields that `max_pool` reads."""
    pool[GEO_IH], pool[GEO_IW] = geometry[GEO_OH], geometry[GEO_OW]
    pool[GEO_OH], pool[GEO_OW] = geometry[GEO_POOL_OH], geometry[GEO_POOL_OW]
    pool[GEO_KH], pool[GEO_KW] = geometry[GEO_POOL_KH], geometry[GEO_POOL_KW]
    pool[GEO_STRIDE_H], pool[GEO_STRIDE_W] = geometry[GEO_POOL_STRIDE_H], geometry[GEO_POOL_STRIDE_W]
    pool[GEO_PAD_TOP], pool[GEO_PAD_LEFT] = geometry[GEO_POOL_PAD_TOP], geometry[GEO_POOL_PAD_LEFT]
    pool[GEO_DIL_H] = pool[GEO_DIL_W] = 1


cdef inline Py_ssize_t pool_ring_size(const int64_t* geometry) noexcept nogil:
    """Elements of the ring that `max_pool_rows` needs; 0 without a pool."""
    cdef int64_t[FIELDS] pool
    if geometry[GEO_POOL_KH] == 0:
        return 0
    pool_geometry(geometry, &pool[0])
    return max_ring_size(&pool[0])


cdef inline void max_pool_rows(
    const real* rows,        # IN   (count, OW): rows first_row .. of one map of the convolution
    Py_ssize_t first_row,
    Py_ssize_t pooled_from,
    Py_ssize_t pooled_to,
    real* pooled,            # OUT  (pool_OH, pool_OW), of which rows pooled_from .. pooled_to - 1 are written
    int64_t* indices,        # OUT  the same, flat in the OH * OW plane; NULL: none wanted
    real* ring,              # TMP  pool_ring_size
    const int64_t* geometry,
    vec* like,
) noexcept nogil:
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    cdef int64_t[FIELDS] pool
    cdef Py_ssize_t end = (pooled_to - 1) * geometry[GEO_POOL_STRIDE_H] - geometry[GEO_POOL_PAD_TOP] + geometry[GEO_POOL_KH]
    pool_geometry(geometry, &pool[0])
    max_of_planes(
        rows - first_row * geometry[GEO_OW], pooled, indices, ring, pooled_from, pooled_to, 1,
        min(end, geometry[GEO_OH]) * geometry[GEO_OW], (pooled_to - pooled_from) * geometry[GEO_POOL_OW],
        is_common(&pool[0]), &pool[0], like,
    )
