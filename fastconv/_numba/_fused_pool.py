"""The max-pool that a convolution runs on rows it has just computed.

Meaning: fastconv/_reference/_common.py, max_pool.
"""

from fastconv._numba._jit import helper, shared
from fastconv._numba._max_pool import is_common, max_of_planes, max_ring_size
from fastconv._numba._simd import itemsize, outlined
from fastconv._problem import (
    GEO_OH, GEO_OW, GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_LEFT, GEO_POOL_PAD_TOP,
    GEO_POOL_STRIDE_H, GEO_POOL_STRIDE_W,
)  # fmt: skip


@shared
def pool_geometry(geometry):
    """The pool as a problem of its own, whose input is the convolution's map: GEOMETRY up to dil_w, as a tuple."""
    none = 0 * geometry[GEO_OH]
    return (
        none, none, geometry[GEO_OH], geometry[GEO_OW], none, geometry[GEO_POOL_KH], geometry[GEO_POOL_KW],
        geometry[GEO_POOL_OH], geometry[GEO_POOL_OW], none, geometry[GEO_POOL_STRIDE_H], geometry[GEO_POOL_STRIDE_W],
        geometry[GEO_POOL_PAD_TOP], none, geometry[GEO_POOL_PAD_LEFT], none, none + 1, none + 1,
    )  # fmt: skip


@shared
def pool_ring_size(geometry):
    """Elements of the ring that `max_pool_rows` needs; 0 without a pool."""
    return 0 if geometry[GEO_POOL_KH] == 0 else max_ring_size(pool_geometry(geometry))


@helper
def max_pool_rows(
    rows,  # IN   (count, OW): rows first_row .. of one map of the convolution
    first_row,
    pooled_from,
    pooled_to,
    pooled,  # OUT  (pool_OH, pool_OW), of which rows pooled_from .. pooled_to - 1 are written
    indices,  # OUT  the same, flat in the OH * OW plane; 0: none wanted
    ring,  # TMP  pool_ring_size
    geometry,
    dtype,
):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    outlined()
    pool = pool_geometry(geometry)
    end = (pooled_to - 1) * geometry[GEO_POOL_STRIDE_H] - geometry[GEO_POOL_PAD_TOP] + geometry[GEO_POOL_KH]
    max_of_planes(
        rows - first_row * geometry[GEO_OW] * itemsize(dtype), pooled, indices, ring, pooled_from, pooled_to, 1,
        min(end, geometry[GEO_OH]) * geometry[GEO_OW], (pooled_to - pooled_from) * geometry[GEO_POOL_OW], is_common(pool),
        pool, dtype,
    )  # fmt: skip
