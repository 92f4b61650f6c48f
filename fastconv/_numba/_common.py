"""What several kernel files use: common.pxd's twin."""

import numpy as np

from fastconv._numba._direct_simd import first_lanes, zip_high, zip_low
from fastconv._numba._jit import helper, shared
from fastconv._numba._late import Module
from fastconv._numba._pool_simd import sum_of_lanes
from fastconv._numba._simd import (
    VL_DOUBLE, VL_FLOAT, _with_python, broadcast, fma, get, itemsize, lanes, load, load_quad, put, store,
)  # fmt: skip
from fastconv._numba._straight import straight

_fields_type = Module("fastconv._numba._fields_type")

# Of a matrix product, MR filters x NV vectors of pixels: MR * NV accumulators, NV vectors and one broadcast must fit into
# the registers, 16 of them up to AVX2, 32 with AVX-512, whose products broadcast from memory by themselves; a single vector
# then makes the panel of cells that stays in the first-level cache a narrow one.
MR, NV = (16, 1) if VL_FLOAT == 16 else (6, 2)
# The tile of a gradient of the weight.
OUTER_MR, OUTER_NV = (8, 3) if VL_FLOAT == 16 else (MR, NV)
# Of tiles whose places are listed.
LISTED_MR, LISTED_NV = (8, 3) if VL_FLOAT == 16 else (MR, NV)
# Where vectors run along filters, whose number more often divides by two vectors than by three.
WINOGRAD_MR, WINOGRAD_NV = (12, 2) if VL_FLOAT == 16 else (MR, NV)
# Of a tile in one turn of its loop, which leaves room to decode for who else runs on the core; of one, each instruction
# reads at steps short enough for the hardware to fetch ahead.
DEPTHS = 1 if VL_FLOAT == 16 else min(4, VL_DOUBLE)
LISTED_DEPTHS = 4  # where there is nothing to fetch
CACHE_LINE = 64  # bytes
LINE = 16  # elements of a cache line, of float64 of two


@shared
def ceil_div(a, b):
    """ceil(a / b) for b > 0, also for negative a."""
    return -(-a // b)


@shared
def lines(elements):
    """So many, or a few more: what follows begins with a cache line, so that none of its vectors lies in two."""
    return ceil_div(elements, LINE) * LINE


@_with_python(lambda address, kind: kind(*(int(get(address, i, np.int64)) for i in range(len(kind._fields)))))
def fields_at(typingctx, address, kind):
    """A plan, as tasks get it: the integers at an address as the attributes of a named tuple, read where they are used."""

    def codegen(context, builder, signature, arguments):
        return arguments[0]

    return _fields_type.Fields(kind.instance_class)(address, kind), codegen


@straight
def read_words(words, first, count):
    """``count`` of the integers at an address, from the ``first`` on."""
    return [get(words, first + i, np.int64) for i in range(count)]


@straight
def put_words(words, values):
    """Write integers to an address, for `read_words`: dozens of arguments would be pushed for each call."""
    for i, value in enumerate(values):
        put(words, i, value)


@helper
def add_run(target, source, count, dtype):
    """target[i] += source[i] for i < count: a row of a map."""
    VL, quad, i = lanes(dtype), 16 // itemsize(dtype), 0
    while i + VL <= count:
        store(target, i, load(target, i, dtype) + load(source, i, dtype))
        i += VL
    while i + quad <= count:  # some lanes of a vector, as they are stored, would have the next row's loads wait
        store(target, i, load_quad(target, i, dtype) + load_quad(source, i, dtype))
        i += quad
    while i < count:
        put(target, i, get(target, i, dtype) + get(source, i, dtype))
        i += 1


@helper
def spread_run(target, source, count, dtype):
    """target[2 * i] += source[i] for i < count: what lies between is written again, but behind the last nothing is."""
    VL, quad, i = lanes(dtype), 16 // itemsize(dtype), 0
    while i + VL < count:
        x = load(source, i, dtype)
        zero = first_lanes(x, 0)
        store(target, 2 * i, load(target, 2 * i, dtype) + zip_low(x, zero))
        store(target, 2 * i + VL, load(target, 2 * i + VL, dtype) + zip_high(x, zero))
        i += VL
    while i + quad < count:
        y = load_quad(source, i, dtype)
        nothing = first_lanes(y, 0)
        store(target, 2 * i, load_quad(target, 2 * i, dtype) + zip_low(y, nothing))
        store(target, 2 * i + quad, load_quad(target, 2 * i + quad, dtype) + zip_high(y, nothing))
        i += quad
    while i < count:
        put(target, 2 * i, get(target, 2 * i, dtype) + get(source, i, dtype))
        i += 1


@helper
def scaled_sum(cells, n, factor, dtype):
    """The sum of factor * cell, by four vectors side by side, as each addition waits for the one before."""
    VL, each = lanes(dtype), broadcast(factor)
    sum0 = sum1 = sum2 = sum3 = broadcast(dtype.type(0))
    total = dtype.type(0)
    i = 0
    while i + 4 * VL <= n:
        sum0, sum1 = fma(each, load(cells, i, dtype), sum0), fma(each, load(cells, i + VL, dtype), sum1)
        sum2, sum3 = fma(each, load(cells, i + 2 * VL, dtype), sum2), fma(each, load(cells, i + 3 * VL, dtype), sum3)
        i += 4 * VL
    while i + VL <= n:
        sum0 = fma(each, load(cells, i, dtype), sum0)
        i += VL
    while i < n:
        total = total + factor * get(cells, i, dtype)
        i += 1
    return total + sum_of_lanes((sum0 + sum1) + (sum2 + sum3))


@helper
def clamp(value, low, high):
    """value within [low, high]; NaN stays NaN: both comparisons are false for it."""
    if value < low:
        return low
    if value > high:
        return high
    return value
