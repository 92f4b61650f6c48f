"""What `im2col` and `winograd` share of vectors as 128-bit lanes (see _winograd_simd.py)."""

from fastconv._numba._common import ceil_div
from fastconv._numba._jit import helper
from fastconv._numba._simd import get, itemsize, lanes, load, outlined, put
from fastconv._numba._straight import straight
from fastconv._numba._winograd_simd import load_lanes, store_lanes, transpose


@straight
def store_square(results, ldd, r, k, out, K, accumulate, dtype):
    quad = 16 // itemsize(dtype)
    z = [load(results, (r + j) * ldd + k, dtype) for j in range(4)]
    for j, v in enumerate(transpose(*z)):
        offset = r + j // quad * quad + (k + j % quad) * K
        if accumulate:
            v = v + load_lanes(out, offset, quad * K, dtype)
        store_lanes(out, offset, quad * K, v)


@helper
def store_filters(
    results,  # IN   [row][filter]: rows of one filter stand together in grad_weight
    out,  # OUT  the first row of the first filter, K from filter to filter
    rows,
    filters,
    ldd,
    K,
    accumulate,
    dtype,
):
    """Rows of VL filters turned, 4 at once."""
    outlined()
    VL = lanes(dtype)
    for vector in range(ceil_div(filters, VL)):
        k = vector * VL
        squares = rows // 4 if filters - k >= VL else 0
        for square in range(squares):
            if accumulate:
                store_square(results, ldd, square * 4, k, out, K, True, dtype)
            else:
                store_square(results, ldd, square * 4, k, out, K, False, dtype)
        for i in range(k, min(k + VL, filters)):
            for r in range(squares * 4, rows):
                value = get(results, r * ldd + i, dtype)
                if accumulate:
                    value = value + get(out, i * K + r, dtype)
                put(out, i * K + r, value)
