"""The max-pool that a convolution runs on rows it has just computed.

Meaning: fastconv/_reference/_common.py, max_pool.
"""

import numpy as np  # geometry names, as many a line as fit

from fastconv._numba._jit import helper
from fastconv._numba._simd import get, outlined, put
from fastconv._problem import (
    GEO_OH, GEO_OW, GEO_POOL_KH, GEO_POOL_KW, GEO_POOL_OW, GEO_POOL_PAD_LEFT, GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H,
    GEO_POOL_STRIDE_W,
)  # fmt: skip


@helper
def max_pool_rows(
    rows,  # IN   (count, OW): rows first_row .. of one map of the convolution
    first_row,
    pooled_from,
    pooled_to,
    pooled,  # OUT  (pool_OH, pool_OW), of which rows pooled_from .. pooled_to - 1 are written
    indices,  # OUT  the same, flat in the OH * OW plane; 0: none wanted
    geometry,
    dtype,
):
    """Max over each window; padding is -inf, NaN wins, the first of equals in row-major order wins."""
    outlined()
    OH, OW, POW = geometry[GEO_OH], geometry[GEO_OW], geometry[GEO_POOL_OW]
    PKH, PKW = geometry[GEO_POOL_KH], geometry[GEO_POOL_KW]
    stride_h, stride_w = geometry[GEO_POOL_STRIDE_H], geometry[GEO_POOL_STRIDE_W]
    pad_top, pad_left = geometry[GEO_POOL_PAD_TOP], geometry[GEO_POOL_PAD_LEFT]
    for ph in range(pooled_from, pooled_to):
        row_from = max(ph * stride_h - pad_top, 0)
        row_to = min(ph * stride_h - pad_top + PKH, OH)
        for pw in range(POW):
            column_from = max(pw * stride_w - pad_left, 0)
            column_to = min(pw * stride_w - pad_left + PKW, OW)
            best = dtype.type(-np.inf)
            where = row_from * OW + column_from
            for row in range(row_from, row_to):
                for column in range(column_from, column_to):
                    value = get(rows, (row - first_row) * OW + column, dtype)
                    if value > best or (value != value and best == best):
                        best = value
                        where = row * OW + column
            put(pooled, ph * POW + pw, best)
            if indices != 0:
                put(indices, ph * POW + pw, np.int64(where))
