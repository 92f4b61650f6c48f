"""What `im2col` and `winograd` share of vectors as 128-bit lanes (see _winograd_simd.py)."""

from fastconv._numba._common import ceil_div
from fastconv._numba._jit import helper
from fastconv._numba._simd import get, itemsize, lanes, load, outlined, put, registers, unroll, unrolled
from fastconv._numba._winograd_simd import load_lanes, store_lanes, transpose


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
    z: registers[4]
    VL, size = lanes(dtype), itemsize(dtype)
    quad = 16 // size
    for vector in range(ceil_div(filters, VL)):
        k = vector * VL
        squares = rows // 4 if filters - k >= VL else 0
        for square in range(squares):
            r = square * 4
            for j in unroll(4):
                z[j] = load(results, (r + j) * ldd + k, dtype)
            z[0], z[1], z[2], z[3] = transpose(z[0], z[1], z[2], z[3])
            for j in unroll(4):
                offset = r + j // quad * quad + (k + j % quad) * K
                if accumulate:
                    z[j] = z[j] + load_lanes(out, offset, quad * K, dtype)
                store_lanes(out, offset, quad * K, z[j])
        for i in range(k, min(k + VL, filters)):
            for r in range(squares * 4, rows):
                value = get(results, r * ldd + i, dtype)
                if accumulate:
                    value = value + get(out, i * K + r, dtype)
                put(out, i * K + r, value)


store_filters = helper(unrolled(store_filters))
