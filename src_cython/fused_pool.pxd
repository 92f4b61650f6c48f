# cython: language_level=3
"""The max-pool that a convolution runs on rows it has just computed. Meaning: max_pool of fastconv/_reference."""

from common cimport (
    GEO_OH, GEO_OW, GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OW, GEO_POOL_PAD_LEFT, GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H,
    GEO_POOL_STRIDE_W, int64_t, real,
)
from libc.math cimport INFINITY


cdef inline void max_pool_rows(
    const real* rows,        # IN   (count, OW): rows first_row .. of one map of the convolution
    Py_ssize_t first_row,
    Py_ssize_t pooled_from,
    Py_ssize_t pooled_to,
    real* pooled,            # OUT  (pool_OH, pool_OW), of which rows pooled_from .. pooled_to - 1 are written
    int64_t* indices,        # OUT  the same, flat in the OH * OW plane; NULL: none wanted
    const int64_t* geometry,
) noexcept nogil:
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    cdef:
        Py_ssize_t OH = geometry[GEO_OH], OW = geometry[GEO_OW], POW = geometry[GEO_POOL_OW]
        Py_ssize_t PKH = geometry[GEO_POOL_KH], PKW = geometry[GEO_POOL_KW]
        Py_ssize_t stride_h = geometry[GEO_POOL_STRIDE_H], stride_w = geometry[GEO_POOL_STRIDE_W]
        Py_ssize_t pad_top = geometry[GEO_POOL_PAD_TOP], pad_left = geometry[GEO_POOL_PAD_LEFT]
        Py_ssize_t ph, pw, row, column, row_from, row_to, column_from, column_to
        int64_t where
        real best, value

    for ph in range(pooled_from, pooled_to):
        row_from = max(ph * stride_h - pad_top, 0)
        row_to = min(ph * stride_h - pad_top + PKH, OH)
        for pw in range(POW):
            column_from = max(pw * stride_w - pad_left, 0)
            column_to = min(pw * stride_w - pad_left + PKW, OW)
            best = -INFINITY
            where = row_from * OW + column_from
            for row in range(row_from, row_to):
                for column in range(column_from, column_to):
                    value = rows[(row - first_row) * OW + column]
                    if value > best or (value != value and best == best):
                        best = value
                        where = row * OW + column
            pooled[ph * POW + pw] = best
            if indices != NULL:
                indices[ph * POW + pw] = where
