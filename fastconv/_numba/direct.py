"""Convolution by its definition, and its two gradients. Formula and shapes: fastconv/_reference/direct.py.

Vectors lie along an output row. Image rows are read in place; a row outside the image is one row of zeros, so that padding
meets the weight as the definition says; columns outside are masked off. The last vector of a row overlaps the one
before; in depthwise layers, with AVX-512, it is a part of one.

The longest chains of additions, bias and `accumulate` included, for tolerances; channels: ICG, for grad_input OCG.
conv2d, grad_input with stride 1  max(KH*KW, DEPTH) + ceil(channels / max(DEPTH // (KH*KW), 1)) + 2
grad_input with a larger stride   DEPTH + KW + channels*KH*KW / DEPTH + 2
grad_input, weight not finite     KH*KW + OCG + 2
grad_weight                       FLUSH + FLUSH + N*OH*ceil(OW / VL) / (FLUSH * FLUSH / 2) + log2(VL) + CHUNKS + 1
grad_weight, 3x3 by columns       FLUSH + FLUSH + runs / FLUSH + log2(VL) + CHUNKS + 1; a run: a column of a band or of images

Below the arrays of a task everything is an address (see _simd.py): ``dtype`` is the element type, ``size`` its bytes.
"""

from collections import namedtuple
from functools import lru_cache

import numpy as np

from fastconv._numba._common import CACHE_LINE, ceil_div, clamp, lines, put_words, read_words, scaled_sum
from fastconv._numba._direct_simd import (
    ORDERED, aligned, apart, even, first_lanes, following, halves, hidden, join_inside, load_inside, odd, preceding,
    store_lanes, untangle, within, zip_high, zip_low,
)  # fmt: skip
from fastconv._numba._fused_pool import max_pool_rows, pool_ring_size
from fastconv._numba._jit import const_int64, const_real, helper, index, int64, real, shared, task
from fastconv._numba._pool_simd import insert, sum_of_lanes
from fastconv._numba._simd import (
    VL_DOUBLE, VL_FLOAT, address, broadcast, clear, copy, fma, get, inlined, itemsize, lanes, load, local, outlined,
    prefetch, prefetch_second, put, rolled, store, vmax, vmin,
)  # fmt: skip
from fastconv._numba._straight import straight
from fastconv._problem import (
    GEO_ACCUMULATE, GEO_DIL_H, GEO_DIL_W, GEO_G, GEO_IC, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_N, GEO_OC, GEO_OH,
    GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_POOL_KH, GEO_POOL_OH, GEO_POOL_OW, GEO_POOL_PAD_TOP, GEO_POOL_STRIDE_H,
    GEO_STRIDE_H, GEO_STRIDE_W,
)  # fmt: skip

FILTERS = 4  # filters that share each loaded vector of pixels
DEPTH = 256  # products after which a partial sum is put aside
FLUSH = 64  # vectors after which grad_weight's partial sums are put aside
# Elements of the rows, images and results, that the columns of a depthwise layer share; the next rows are fetched meanwhile:
# two bands are a first-level cache, of 32 KB before AVX-512, of 48 with it
BAND = 6400 if ORDERED else 4096
TOGETHER = 4096  # elements of depthwise planes, images and results, whose columns are taken in turns
TASK = 1 << 18  # multiply-adds of a task: ten microseconds, against a fraction of one to start it;
FEW_TASKS = 4  # but so many tasks, for two or four threads to share
CHUNKS = 16  # grad_weight: tasks that are worth splitting the sum for


# ------------------------------------------------------------------------------------------------------ vector helpers


# How a vector of columns is loaded: all inside the row; some outside; every second one (out of order, see _direct_simd);
# every stride-th one, some outside; every stride-th one, all inside; of columns under a kernel, those under its middle
# inside the row. A mode is a constant of each compiled function.
PLAIN, MASKED, PAIRS, GATHER, WHOLE, INNER = range(6)


@shared
def mode_of(stride):
    return MASKED if stride == 1 else PAIRS if stride == 2 else GATHER


@straight
def gather_whole(row, column, stride, dtype):
    cells = hidden(row + column * itemsize(dtype))  # else an address is carried along for every lane
    v = broadcast(dtype.type(0))
    for i in range(lanes(dtype)):
        v = insert(v, i, get(cells, i * stride, dtype))
    return v


@helper
def gather_inside(row, column, stride, extent, dtype):
    outlined()
    lane = local(16, dtype)
    for i in range(lanes(dtype)):
        lane[i] = get(row, column, dtype) if 0 <= column < extent else dtype.type(0)
        column += stride
    return load(address(lane), 0, dtype)


@helper
def gather(row, column, stride, extent, dtype):
    """Lane i: row[column + i * stride]; zero where that column is outside [0, extent)."""
    if column >= 0 and column + (lanes(dtype) - 1) * stride < extent:
        return gather_whole(row, column, stride, dtype)
    return gather_inside(row, column, stride, extent, dtype)


@helper
def least(a, b):
    return min(a, b)


@straight
def load_columns(row, column, stride, extent, mode, dtype):
    if mode == PLAIN:
        return load(row, column, dtype)
    if mode == MASKED:
        return load_inside(row, column, extent, dtype)
    if mode == PAIRS:
        return even(load_inside(row, column, extent, dtype), load_inside(row, column + lanes(dtype), extent, dtype))
    if mode == WHOLE:
        return gather_whole(row, column, stride, dtype)
    return gather(row, column, stride, extent, dtype)


@helper
def epilogue(out, value, first, last, accumulate, act_min, act_max, dtype):
    """Lanes [first, last), of which lane 0 would go to ``out``."""
    if accumulate:
        value = value + load_inside(out + first * itemsize(dtype), -first, last - first, dtype)
    value = vmin(broadcast(act_max), vmax(broadcast(act_min), value))
    if not ORDERED and last - first == lanes(dtype):
        store(out, 0, value)
    else:
        store_lanes(out, value, first, last)


# -------------------------------------------------------------------------------- convolution, and its adjoint of stride 1

# A convolution as the loops below read it. The adjoint of a convolution of stride 1 is one too: grad_output is the image,
# the steps through the weight swap its channel axes and walk its kernel backwards.
Conv = namedtuple(
    "Conv",
    "N G C F "  # per group: C channels, F filters
    "IH IW KH KW OH OW "
    "stride_h stride_w pad_top pad_left dil_h dil_w "
    "start to_group to_filter to_channel to_kh to_kw "  # steps through the weight
    "accumulate "
    "pool_KH buffered "  # rows of a fused pool's window; convolution rows that a worker holds for it
    "together "  # filters of a unit
    "rows chunk units batch n_tasks "  # result rows of a plane and of a unit; units of a task
    "K planes",  # depthwise: kernel extent, else 0; planes whose columns are taken in turns
)


@shared
def depthwise_extent(C, KH, KW, stride_h, stride_w, dil_h, dil_w):
    # Kernel extent of the cases that depthwise_planes and adjoint_planes are made for; 0: not one of them.
    if C == 1 and KH == KW and dil_h == 1 and dil_w == 1 and stride_h == stride_w:
        if (stride_h == 1 and (KH == 3 or KH == 5 or KH == 7)) or (stride_h == 2 and (KH == 3 or KH == 5)):
            return KH
    return 0


@shared
def share_out(
    N, G, C, F, IH, IW, KH, KW, OH, OW, stride_h, stride_w, dil_h, dil_w, pool_KH, buffered, rows, strided
):  # fmt: skip
    # A unit is `together` filters on `chunk` rows of one image; tasks are of one size, and so is what they compute,
    # whatever the number of threads.
    # ``strided``: of the kernel, a result meets one cell in so many
    K = depthwise_extent(C, KH, KW, stride_h, stride_w, dil_h, dil_w)
    together = 1 if K else FILTERS
    if pool_KH and buffered < OH and buffered * FILTERS > OH:
        together = 1
    work = max(min(together, F) * C * KH * KW * OH * OW // strided, 1)
    chunks = max(min(work // TASK, ceil_div(rows, 2)), 1)
    chunk = max(ceil_div(ceil_div(rows, chunks), 2) * 2, 2)
    units = N * G * ceil_div(F, together) * ceil_div(rows, chunk)
    batch = max(min(TASK // work, ceil_div(units, FEW_TASKS)), 1)
    planes = max(TOGETHER // max(OH * OW + IH * IW, 1), 1)
    return together, chunk, units, batch, ceil_div(units, batch), K, planes


@shared
def forward(geometry):
    N, G = geometry[GEO_N], geometry[GEO_G]
    C, F = geometry[GEO_IC] // G, geometry[GEO_OC] // G
    KH, KW, OH, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_OH], geometry[GEO_OW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    pool_KH = geometry[GEO_POOL_KH]
    rows, buffered, accumulate = OH, 0, geometry[GEO_ACCUMULATE]
    if pool_KH:
        accumulate = 0
        rows = geometry[GEO_POOL_OH]
        buffered = min(OH, max(pool_KH, 4096 // max(OW, 1)))
    together, chunk, units, batch, n_tasks, K, planes = share_out(
        N, G, C, F, geometry[GEO_IH], geometry[GEO_IW], KH, KW, OH, OW, stride_h, stride_w, dil_h, dil_w, pool_KH,
        buffered, rows, 1,
    )  # fmt: skip
    return Conv(
        N, G, C, F, geometry[GEO_IH], geometry[GEO_IW], KH, KW, OH, OW, stride_h, stride_w, geometry[GEO_PAD_TOP],
        geometry[GEO_PAD_LEFT], dil_h, dil_w, 0, F * C * KH * KW, C * KH * KW, KH * KW, KW, 1,
        accumulate, pool_KH, buffered, together, rows, chunk, units, batch, n_tasks, K, planes,
    )  # fmt: skip


@shared
def adjoint(geometry):
    N, G = geometry[GEO_N], geometry[GEO_G]
    C, F = geometry[GEO_OC] // G, geometry[GEO_IC] // G
    KH, KW, OH, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_IH], geometry[GEO_IW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    accumulate = geometry[GEO_ACCUMULATE]
    IH, IW = geometry[GEO_OH], geometry[GEO_OW]
    pad_top, pad_left = dil_h * (KH - 1) - geometry[GEO_PAD_TOP], dil_w * (KW - 1) - geometry[GEO_PAD_LEFT]
    together, chunk, units, batch, n_tasks, K, planes = share_out(
        N, G, C, F, IH, IW, KH, KW, OH, OW, stride_h, stride_w, dil_h, dil_w, 0, 0, OH,
        stride_h * stride_w,
    )  # fmt: skip
    if stride_h > 1 and not (0 <= pad_top < KH and 0 <= pad_left < KW):
        K = 0
    return Conv(
        N, G, C, F, IH, IW, KH, KW, OH, OW, stride_h, stride_w, pad_top, pad_left, dil_h, dil_w,
        KH * KW - 1, F * C * KH * KW, KH * KW, F * KH * KW, -KW, -1,
        accumulate, 0, 0, together, OH, chunk, units, batch, n_tasks, K, planes,
    )  # fmt: skip


# Planes as depthwise_column reads and writes them: words in memory, as dozens of arguments would be pushed for each column.
(
    COUNT, FILTERS_OF_IMAGE, ALL_FILTERS,  # planes of results; of those that read one image; of one sample
    ROWS, COLUMNS, OUT_COLUMNS,  # of the image and of results
    TO_IMAGE, TO_OUT,  # bytes to the next image, to the next plane of results
    # Bytes to what is fetched into the cache meanwhile, from images and from results: of an adjoint from a row; else from a
    # column's begin to cells one behind the other, where AHEAD may lead to results, too
    AHEAD, OUT_AHEAD,
    TURNED, ACCUMULATE,  # the filter's cells from the last to the first
    ZEROS, WEIGHT, BIAS,  # addresses: IW zeros; all filters; their biases, or 0
) = range(15)  # fmt: skip


@helper
def word(planes, place):
    return get(planes, place, np.int64)


@helper
def put_word(planes, place, value):
    put(planes, place, np.int64(value))


@helper
def describe(p, conv, ahead, out_ahead, zeros, weight, bias, size):
    """All words but COUNT."""
    put_word(p, FILTERS_OF_IMAGE, conv.F)
    put_word(p, ALL_FILTERS, conv.G * conv.F)
    put_word(p, ROWS, conv.IH)
    put_word(p, COLUMNS, conv.IW)
    put_word(p, OUT_COLUMNS, conv.OW)
    put_word(p, TO_IMAGE, conv.IH * conv.IW * size)
    put_word(p, TO_OUT, conv.OH * conv.OW * size)
    put_word(p, AHEAD, ahead)
    put_word(p, OUT_AHEAD, out_ahead)
    put_word(p, TURNED, 1 if conv.to_kw < 0 else 0)
    put_word(p, ACCUMULATE, conv.accumulate)
    put_word(p, ZEROS, zeros)
    put_word(p, WEIGHT, weight)
    put_word(p, BIAS, bias)


@helper
def next_plane(p, plane, f, in_group, image, out):
    plane += 1
    out += word(p, TO_OUT)
    f += 1
    in_group += 1
    if in_group == word(p, FILTERS_OF_IMAGE):  # filters of one group read one image
        in_group = 0
        image += word(p, TO_IMAGE)
        if f == word(p, ALL_FILTERS):
            f = 0
    return plane, f, in_group, image, out


@helper
def row_at(image, at, plane_end, zeros):
    """A plane's row by where it begins there; one outside is zeros."""
    inlined()
    # A branch: loads that wait for a selected address take a fifth longer
    return image + at if within(at, plane_end) else zeros


@straight
def rows_at(image, to_other, at, plane_end, zeros, pair):
    row = row_at(image, at, plane_end, zeros)
    return row, row_at(image + to_other, at, plane_end, zeros) if pair else row


@straight
def cells_of(rows, column, IW, mode, dtype, K, stride, pair):
    """A row of an image, or a pair of two, under each column of the kernel."""
    row, other = rows
    VL = lanes(dtype)
    half = VL // 2
    if pair and stride == 1:  # zeros stand beside each row: its neighbours come from there
        middle = load_inside(row, column + 1, least(IW, column + 1 + half), dtype)
        middle = join_inside(middle, other, column + 1 - half, IW)
        return [preceding(middle), middle, following(middle)]
    if ORDERED and stride == 2:
        a = load_inside(row, column, IW, dtype)
        b = load_inside(other, column, IW, dtype) if pair else load_inside(row, column + VL, IW, dtype)
        x = [even(a, b), odd(a, b)]
        for kw in range(2, K):
            x.append(following(x[kw - 2]))
        return x

    def vector(at, in_middle):
        if mode == PLAIN or (mode == INNER and in_middle):
            return load(row, column + at, dtype)
        return load_inside(row, column + at, IW, dtype)

    if stride == 1:
        return [vector(kw, kw == K // 2) for kw in range(K)]
    x = []
    for kw in range(K):
        if kw == 0 or kw % 2:
            a, b = vector(kw, kw >= K // 2), vector(kw + VL, kw < K // 2)
            x.append(even(a, b))
        else:
            x.append(odd(a, b))
    return x


def in_memory(K, stride):
    """Whether the middle taps and what a sum starts from are read from memory, as operands: there are 16 registers."""
    return K == 3 and stride == 1 and not ORDERED


@straight
def taps_of(filter, second, turned, dtype, K, pair):
    cells = range(K * K - 1, -1, -1) if turned else range(K * K)
    taps = [broadcast(get(filter, cell, dtype)) for cell in cells]
    if pair:
        taps = [halves(tap, broadcast(get(second, cell, dtype))) for tap, cell in zip(taps, cells, strict=True)]
    return taps


@straight
def first_sums(kept, taps, shift, dtype, K, stride):
    if in_memory(K, stride):
        for kh in range(K):
            store(kept, kh * lanes(dtype), taps[kh * K + 1])
        store(kept, K * lanes(dtype), shift)
    return [shift] * ((K - 1) // stride + 1)


@shared
def fetched(stride, VL):
    """Cells that a column fetches for each row of results: together the columns of a band fetch the next one."""
    # Those of images; of narrower vectors at a stride of 1 every second column fetches results instead
    return 4 * VL if stride == 2 else VL if ORDERED else 2 * VL


@straight
def depthwise_fetch(cells, results, dtype, stride):
    """In the order of memory: so the hardware fetches along, which down the rows of a plane it would not."""
    for i in range(0, fetched(stride, lanes(dtype)) * itemsize(dtype), CACHE_LINE):
        if ORDERED:  # a line in a few cycles: too many for the first level to wait for
            prefetch_second(cells + i)
        else:
            prefetch(cells + i)
    if ORDERED:
        prefetch_second(results)


@straight
def add_image_rows(
    sums, taps, shift, kept, begin, to_other, at, to_row, plane_end, zeros, column, IW, dtype, K, stride, inner, pair
):  # fmt: skip
    """As many rows as the stride."""
    VL, spare = lanes(dtype), in_memory(K, stride)
    for i in range(stride):
        rows = rows_at(begin, to_other, at, plane_end, zeros, pair)
        x = cells_of(rows, column, IW, INNER if inner else MASKED, dtype, K, stride, pair)
        if i == stride - 1:
            sums = [shift, *sums[:-1]]
        # What the image row adds by each kernel row: sums of their own, as one would be a long chain
        for kh in range((i + 1) % stride, K, stride):
            if kh == 0:
                total = fma(x[0], taps[0], load(kept, K * VL, dtype) if spare else shift)
            else:
                total = x[0] * taps[kh * K]
            for kw in range(1, K):
                tap = load(kept, kh * VL, dtype) if kw == 1 and spare else taps[kh * K + kw]
                total = fma(x[kw], tap, total)
            sums[kh // stride] = total if kh == 0 else sums[kh // stride] + total
        at = at + to_row
    return sums


@helper
def depthwise_column(
    p,
    image,  # IN   of the first plane of results
    f,  # filter of the first plane
    in_group,
    act_min,
    act_max,
    out,  # OUT  a vector of each row
    n_rows,
    top,  # image row and column at the first tap
    column,
    limit,  # beyond which a vector may not start; before, what it writes too far is written again
    skip,  # else: the lanes to write
    end,
    dtype,
    K,  # literals
    stride,
    inner,  # under all lanes the middle of the kernel is inside the row, and all lanes are written
    pair,
):
    # One vector wide, down the rows of a plane: every image row is loaded once, and no output row has to be one of a
    # block. The planes' columns are taken in turns: masks and the like serve many rows. A pair: two planes whose rows are
    # half a vector.
    outlined()
    aligned()
    size, half, plane = itemsize(dtype), lanes(dtype) // 2, 0
    count, IW, OW = word(p, COUNT), word(p, COLUMNS), word(p, OUT_COLUMNS)
    zeros, weight, bias = word(p, ZEROS), word(p, WEIGHT), word(p, BIAS)
    # Where a row begins in its plane says whether it is in the image
    to_row, plane_end = IW * size, word(p, ROWS) * IW * size
    accumulate, turned = word(p, ACCUMULATE) != 0, word(p, TURNED) != 0
    fetch, out_fetch = image + word(p, AHEAD), out + word(p, OUT_AHEAD)
    low, high = broadcast(act_min), broadcast(act_max)
    memory = local(64, dtype)
    kept = hidden(address(memory))
    while plane < count:
        filter = second = weight + f * K * K * size
        shift = other_shift = get(bias, f, dtype) if bias != 0 else dtype.type(0)
        begin, to = image, out
        to_other, out_other, other_end = 0, 0, half
        plane, f, in_group, image, out = next_plane(p, plane, f, in_group, image, out)
        if pair and plane < count:
            second = weight + f * K * K * size
            if bias != 0:
                other_shift = get(bias, f, dtype)
            to_other, out_other, other_end = image - begin, out - to - half * size, half + OW
            plane, f, in_group, image, out = next_plane(p, plane, f, in_group, image, out)
        if turned:
            taps = taps_of(filter, second, True, dtype, K, pair)
        else:
            taps = taps_of(filter, second, False, dtype, K, pair)
        shift = broadcast(shift)
        if pair:
            shift = halves(shift, broadcast(other_shift))
        sums = first_sums(kept, taps, shift, dtype, K, stride)  # of output rows that have begun, the youngest first
        # Rows above only begin outputs
        oh, at = -((K - 1) // stride), (top + 1 - stride) * to_row
        while oh < n_rows:
            rolled()
            sums = add_image_rows(
                sums, taps, shift, kept, begin, to_other, at, to_row, plane_end, zeros, column, IW, dtype, K, stride, inner,
                pair,
            )  # fmt: skip
            at += stride * to_row
            if oh >= 0:
                if not pair:  # whole planes lie one behind the other
                    depthwise_fetch(fetch, out_fetch, dtype, stride)
                    fetch += fetched(stride, lanes(dtype)) * size
                    out_fetch += lanes(dtype) * size
                value = untangle(sums[-1]) if stride == 2 else sums[-1]
                if inner:
                    store(to, 0, vmin(high, vmax(low, value)))
                elif ORDERED:
                    epilogue(to, value, skip, end, accumulate, act_min, act_max, dtype)
                    if pair:
                        epilogue(to + out_other, value, half, other_end, accumulate, act_min, act_max, dtype)
                elif to > limit:
                    epilogue(to, value, skip, end, accumulate, act_min, act_max, dtype)
                else:
                    store(to, 0, vmin(high, vmax(low, value)))
                to += OW * size
            oh += 1


@helper
def depthwise_kinds(
    p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, inner, pair, dtype, K, stride
):  # fmt: skip
    """`depthwise_column` with literals for inner and pair."""
    inlined()
    if ORDERED == 0 and inner:
        depthwise_column(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, dtype, K, stride, True, False
        )  # fmt: skip
    elif ORDERED and pair:
        depthwise_column(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, dtype, K, stride, False, True
        )  # fmt: skip
    else:
        depthwise_column(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, dtype, K, stride, False, False
        )  # fmt: skip


@helper
def depthwise_columns(
    p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, K, stride, inner, pair, dtype
):  # fmt: skip
    """`depthwise_column` with literals for kernel extent, stride, inner and pair."""
    inlined()
    if K == 3 and stride == 1:
        depthwise_kinds(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, inner, pair, dtype, 3, 1
        )  # fmt: skip
    elif K == 3:
        depthwise_kinds(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, inner, pair, dtype, 3, 2
        )  # fmt: skip
    elif K == 5 and stride == 1:
        depthwise_kinds(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, inner, False, dtype, 5, 1
        )  # fmt: skip
    elif K == 5:
        depthwise_kinds(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, inner, pair, dtype, 5, 2
        )  # fmt: skip
    else:
        depthwise_kinds(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, limit, skip, end, inner, False, dtype, 7, 1
        )  # fmt: skip


@shared
def in_pairs(K, stride, IW, OW, pad_left, half):
    # Whether rows of two planes, with what is taken from beside them, are one vector.
    if stride == 2:
        return ORDERED and OW + (K - 1) // 2 <= half
    return ORDERED and K == 3 and OW < half and pad_left > 0 and IW + pad_left <= half


@helper
def depthwise_planes(
    conv,
    input,  # IN   from the first plane's image on
    zeros,
    weight,  # IN   all filters
    bias,
    f,  # filter of the first plane
    act_min,
    act_max,
    out,  # OUT  rows first .. last - 1 of some planes
    n_planes,
    first,
    last,
    dtype,
):
    outlined()
    size, VL, K, stride = itemsize(dtype), lanes(dtype), conv.K, conv.stride_w
    OW, F = conv.OW, conv.F
    IH, IW, pad_top, pad_left, in_group = conv.IH, conv.IW, conv.pad_top, conv.pad_left, f % F
    filters, to_out = conv.G * F, conv.OH * OW
    width, half = VL, VL // 2
    to_image = IH * IW
    plain = ORDERED == 0 and OW >= VL and conv.accumulate == 0
    if ORDERED and stride == 2:
        width -= (K - 1) // 2  # lanes whose last taps are in the two vectors that are loaded
    pair = 1 if in_pairs(K, stride, IW, OW, pad_left, half) else 0
    turns = 1 if ORDERED or stride == 2 else 2
    band = ceil_div(last - first, max(ceil_div((last - first) * (stride * IW + OW), BAND), 1))
    if band < last - first:
        ahead, out_ahead = band * stride * IW, band * OW
    else:
        ahead, out_ahead = conv.planes * to_image, conv.planes * to_out
    # A vector that is wider than a row runs into the next one, which is written later
    limit = 0 if conv.accumulate else out + ((n_planes - 1) * to_out + (last - first) * OW - VL) * size
    memory = local(15, np.int64)
    p = address(memory)
    describe(p, conv, ahead, out_ahead, zeros, weight, bias, size)
    while n_planes > 0:
        count = min(conv.planes, n_planes)
        put_word(p, COUNT, count)
        oh = first
        while oh < last:
            n_rows = min(band, last - oh)
            ow = 0
            while ow < OW:
                block = ow if ORDERED else min(ow, max(OW - VL, 0))
                # Rows of results of the columns before that fetch the same
                before = ow // (turns * width) * n_rows * count
                cells = (ahead + oh * stride * IW + before * fetched(stride, VL)) * size
                if ow % (turns * width):
                    cells = out + ((oh - first) * OW + out_ahead + before * fetched(stride, VL)) * size - input
                put_word(p, AHEAD, cells)
                put_word(p, OUT_AHEAD, (out_ahead - block + before * VL) * size)
                column = block * stride - pad_left
                middle, inner = column + K // 2, 0
                if plain and middle >= 0 and middle + stride * (VL - 1) < IW:
                    inner = 1
                depthwise_columns(
                    p, input, f, in_group, act_min, act_max, out + ((oh - first) * OW + block) * size, n_rows,
                    oh * stride - pad_top, column, limit, ow - block, min(OW - block, width), K, stride, inner, pair, dtype,
                )  # fmt: skip
                ow += width
            oh += n_rows
        n_planes -= count
        out += count * to_out * size
        f = (f + count) % filters
        in_group += count
        input += in_group // F * to_image * size
        in_group %= F


@straight
def pairs_of(shift, count):
    return [[shift, shift]] * count


@straight
def add_grad_row(sums, taps, shift, row, column, IW, dtype, K, odd, inner):
    x = [
        load(row, column - j, dtype) if inner else load_inside(row, column - j, IW, dtype) for j in range((K + 1) // 2)
    ]
    grown = []
    for kh in range(K):
        totals = [shift, shift] if kh >= K - 2 else sums[kh + 2]
        for kw in range(K):
            phase = (kw + odd) % 2
            total = fma(x[(kw + odd) // 2], taps[kh * K + kw], totals[phase])
            totals = [total, totals[1]] if phase == 0 else [totals[0], total]
        grown.append(totals)
    return grown


@helper
def store_grad_row(to, sums, limit, skip, end, accumulate, act_min, act_max, low, high, dtype):
    inlined()
    size, VL = itemsize(dtype), lanes(dtype)
    a = zip_low(sums[0], sums[1])
    b = zip_high(sums[0], sums[1])
    if to <= limit:
        store(to, 0, vmin(high, vmax(low, a)))
        store(to, VL, vmin(high, vmax(low, b)))
    else:
        if skip < min(end, VL):
            epilogue(to, a, skip, min(end, VL), accumulate, act_min, act_max, dtype)
        if end > VL:
            epilogue(to + VL * size, b, max(skip - VL, 0), end - VL, accumulate, act_min, act_max, dtype)


@helper
def adjoint_column(
    p,
    image,  # IN   grad_output, of the first plane of results
    f,  # filter of the first plane
    in_group,
    act_min,
    act_max,
    out,  # OUT  two vectors of each row
    n_rows,
    top,  # row and column of grad_output at the first tap of row 0 or 1
    column,
    above,  # rows above row 0 that the first step would complete
    limit,  # as depthwise_column's
    skip,
    end,
    dtype,
    K,  # literals
    odd,
    inner,
):
    # Down the rows of grad_output, each of which is loaded once and completes two rows. An input cell is one of four sums:
    # even and odd columns have a vector each.
    outlined()
    aligned()
    size = itemsize(dtype)
    plane, count, IW, OW = 0, word(p, COUNT), word(p, COLUMNS), word(p, OUT_COLUMNS)
    zeros, weight, bias = word(p, ZEROS), word(p, WEIGHT), word(p, BIAS)
    to_row, plane_end = IW * size, word(p, ROWS) * IW * size
    accumulate, ahead, out_ahead = word(p, ACCUMULATE) != 0, column * size + word(p, AHEAD), word(p, OUT_AHEAD)
    low, high = broadcast(act_min), broadcast(act_max)
    while plane < count:
        taps = taps_of(weight + f * K * K * size, 0, False, dtype, K, False)
        shift = broadcast(get(bias, f, dtype) if bias != 0 else dtype.type(0))
        begin, to = image, out
        plane, f, in_group, image, out = next_plane(p, plane, f, in_group, image, out)
        sums = pairs_of(shift, K)  # of the result rows that have begun: even columns, odd ones
        # Rows above only begin results
        oh, at = 1 - K - above, (top - (K - 1) // 2) * to_row
        to += oh * OW * size
        while oh < n_rows:
            rolled()
            prefetch(begin + at + ahead)
            prefetch(to + out_ahead)
            prefetch(to + OW * size + out_ahead)
            row = row_at(begin, at, plane_end, zeros)
            sums = add_grad_row(sums, taps, shift, row, column, IW, dtype, K, odd, inner)
            at += to_row
            if 0 <= oh < n_rows:
                store_grad_row(to, sums[0], limit, skip, end, accumulate, act_min, act_max, low, high, dtype)
            to += OW * size
            if 0 <= oh + 1 < n_rows:
                store_grad_row(to, sums[1], limit, skip, end, accumulate, act_min, act_max, low, high, dtype)
            to += OW * size
            oh += 2


@helper
def adjoint_kinds(
    p, image, f, in_group, act_min, act_max, out, n_rows, top, column, above, limit, skip, end, odd, inner, dtype, K
):  # fmt: skip
    """`adjoint_column` with literals for ``odd`` and ``inner``."""
    inlined()
    if odd and inner:
        adjoint_column(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, above, limit, skip, end, dtype, K, 1, True
        )  # fmt: skip
    elif odd:
        adjoint_column(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, above, limit, skip, end, dtype, K, 1, False
        )  # fmt: skip
    elif inner:
        adjoint_column(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, above, limit, skip, end, dtype, K, 0, True
        )  # fmt: skip
    else:
        adjoint_column(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, above, limit, skip, end, dtype, K, 0, False
        )  # fmt: skip


@helper
def adjoint_columns(
    p, image, f, in_group, act_min, act_max, out, n_rows, top, column, above, limit, skip, end, K, odd, inner, dtype
):  # fmt: skip
    """`adjoint_column` with literals for kernel extent, parity of the padding and ``inner``."""
    inlined()
    if K == 3:
        adjoint_kinds(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, above, limit, skip, end, odd, inner, dtype, 3
        )  # fmt: skip
    else:
        adjoint_kinds(
            p, image, f, in_group, act_min, act_max, out, n_rows, top, column, above, limit, skip, end, odd, inner, dtype, 5
        )  # fmt: skip


@helper
def adjoint_planes(
    conv,
    input,  # IN   from the first plane's image on
    zeros,
    weight,  # IN   all filters
    bias,
    f,  # filter of the first plane
    act_min,
    act_max,
    out,  # OUT  rows first .. last - 1 of some planes
    n_planes,
    first,
    last,
    dtype,
):
    """The adjoint of a depthwise convolution of stride 2; `depthwise_planes` is that of stride 1, too."""
    outlined()
    size, K, OW, F, width = itemsize(dtype), conv.K, conv.OW, conv.F, 2 * lanes(dtype)
    IH, IW, in_group, filters = conv.IH, conv.IW, f % F, conv.G * F
    pad_top, pad_left = K - 1 - conv.pad_top, K - 1 - conv.pad_left
    to_image, to_out = IH * IW, conv.OH * OW
    end_of_planes = out + ((n_planes - 1) * to_out + (last - first) * OW) * size
    band = ceil_div(last - first, max(ceil_div((last - first) * (IW + 2 * OW), 2 * BAND), 1))
    if band < last - first:
        ahead, out_ahead = band // 2 * IW * size, band * OW * size
    else:
        ahead, out_ahead = conv.planes * to_image * size, conv.planes * to_out * size
    memory = local(15, np.int64)
    p = address(memory)
    describe(p, conv, ahead, out_ahead, zeros, weight, bias, size)
    while n_planes > 0:
        count = min(conv.planes, n_planes)
        put_word(p, COUNT, count)
        oh = first
        while oh < last:
            n_rows = min(band, last - oh)
            above = (oh + pad_top) % 2
            ow = 0
            while ow < OW:
                block = min(ow, max(OW - width + 1, 0) // 2 * 2)
                limit = 0
                if conv.accumulate == 0 and block + width <= OW:
                    limit = end_of_planes
                elif conv.accumulate == 0 and OW < width:  # into the next row, which is written later
                    limit = end_of_planes - width * size
                column = block // 2 + (pad_left + 1) // 2
                inner = 1 if column - K // 2 >= 0 and column + lanes(dtype) <= IW else 0
                adjoint_columns(
                    p, input, f, in_group, act_min, act_max, out + ((oh - first) * OW + block) * size, n_rows,
                    (oh + pad_top) // 2, column, above, limit, ow - block, min(OW - block, width), K, pad_left % 2, inner, dtype,
                )  # fmt: skip
                ow += width
            oh += n_rows
        n_planes -= count
        out += count * to_out * size
        f = (f + count) % filters
        in_group += count
        input += in_group // F * to_image * size
        in_group %= F


@helper
def depthwise_units(
    planes_of, task, conv, input, zeros, weight, bias, act_min, act_max, output, dtype
):  # fmt: skip
    """Planes of a depthwise layer, whole ones together; ``planes_of``: depthwise_planes or adjoint_planes."""
    size, chunks = itemsize(dtype), ceil_div(conv.OH, conv.chunk)
    unit, end = task * conv.batch, min((task + 1) * conv.batch, conv.units)
    while unit < end:
        n_planes = end - unit if chunks == 1 else 1
        plane, first = unit // chunks, unit % chunks * conv.chunk
        planes_of(
            conv, input + plane // conv.F * conv.IH * conv.IW * size, zeros, weight, bias, plane % (conv.G * conv.F), act_min,
            act_max, output + (plane * conv.OH + first) * conv.OW * size, n_planes, first, min(first + conv.chunk, conv.OH),
            dtype,
        )  # fmt: skip
        unit += n_planes


# What the blocks of filters need of a convolution, which they read from memory for the same reason; C channels are summed in
# groups.
Loops = namedtuple("Loops", "IH IW KH KW dil_h dil_w stride_w to_filter to_channel to_kh to_kw C group")
LOOPS = len(Loops._fields)


@helper
def loops_in(words):
    return Loops(*read_words(words, 0, LOOPS))


@straight
def load_sums(sums, F, V, dtype):
    return [[load(sums, (f * V + v) * lanes(dtype), dtype) for v in range(V)] for f in range(F)]


@straight
def store_sums(acc, sums, dtype):
    for f, totals in enumerate(acc):
        for v, total in enumerate(totals):
            store(sums, (f * len(totals) + v) * lanes(dtype), total)


@straight
def add_tap(acc, row, column, stride, extent, taps, to_filter, mode, dtype):
    starts = [column + v * lanes(dtype) * stride for v in range(len(acc[0]))]
    x = [load_columns(row, start, stride, extent, mode, dtype) for start in starts]
    for f, totals in enumerate(acc):
        tap = broadcast(get(taps, f * to_filter, dtype))
        acc[f] = [fma(cells, tap, total) for cells, total in zip(x, totals, strict=True)]
    return acc


@helper
def filters_block(
    words,  # IN   Loops
    image,  # IN   planes of all channels
    zeros,  # IN   IW of them
    weight,  # IN   F filters
    top,  # image row and column at tap (0, 0)
    left,
    c_first,
    c_last,
    sums,  # INOUT  F x V
    dtype,
    F,  # literals
    V,
    mode,
):
    outlined()
    loops, size = loops_in(words), itemsize(dtype)
    IH, IW = loops.IH, loops.IW
    acc = load_sums(sums, F, V, dtype)
    for c in range(c_first, c_last):
        for kh in range(loops.KH):
            ih = top + kh * loops.dil_h
            row = image + (c * IH + ih) * IW * size if 0 <= ih < IH else zeros
            taps, column = weight + (c * loops.to_channel + kh * loops.to_kh) * size, left
            for _ in range(loops.KW):
                rolled()
                acc = add_tap(acc, row, column, loops.stride_w, IW, taps, loops.to_filter, mode, dtype)
                taps += loops.to_kw * size
                column += loops.dil_w
    store_sums(acc, sums, dtype)


@helper
def filters_of_mode(words, image, zeros, weight, top, left, c_first, c_last, sums, mode, dtype, F, V):
    """`filters_block` with its mode as a literal."""
    if mode == PLAIN:
        filters_block(words, image, zeros, weight, top, left, c_first, c_last, sums, dtype, F, V, PLAIN)
    elif mode == MASKED:
        filters_block(words, image, zeros, weight, top, left, c_first, c_last, sums, dtype, F, V, MASKED)
    elif mode == PAIRS:
        filters_block(words, image, zeros, weight, top, left, c_first, c_last, sums, dtype, F, V, PAIRS)
    elif mode == WHOLE:
        filters_block(words, image, zeros, weight, top, left, c_first, c_last, sums, dtype, F, V, WHOLE)
    else:
        filters_block(words, image, zeros, weight, top, left, c_first, c_last, sums, dtype, F, V, GATHER)


@helper
def filters_group(words, image, zeros, weight, top, left, c_first, c_last, sums, F, V, mode, dtype):
    """`filters_block` with 4 filters of 2 vectors or 1, or 1 filter of 4 or 1."""
    if F == 4 and V == 2:
        filters_of_mode(words, image, zeros, weight, top, left, c_first, c_last, sums, mode, dtype, 4, 2)
    elif F == 4:
        filters_of_mode(words, image, zeros, weight, top, left, c_first, c_last, sums, mode, dtype, 4, 1)
    elif V == 4:
        filters_of_mode(words, image, zeros, weight, top, left, c_first, c_last, sums, mode, dtype, 1, 4)
    else:
        filters_of_mode(words, image, zeros, weight, top, left, c_first, c_last, sums, mode, dtype, 1, 1)


@helper
def filters_sums(words, image, zeros, weight, bias, top, left, sums, F, V, mode, dtype):
    # Channels in groups of about DEPTH products; their sums are added up.
    outlined()
    size, VL, loops = itemsize(dtype), lanes(dtype), loops_in(words)
    C, group = loops.C, loops.group
    for i in range(F * V):
        shift = get(bias, i // V, dtype) if bias != 0 else dtype.type(0)
        store(sums, i * VL, broadcast(shift))
    filters_group(words, image, zeros, weight, top, left, np.int64(0), min(group, C), sums, F, V, mode, dtype)
    if group < C:
        memory = local(256, dtype)
        total = address(memory)
        copy(total, sums, F * V * VL * size)
        c = group
        while c < C:
            clear(sums, F * V * VL * size)
            filters_group(words, image, zeros, weight, top, left, c, min(c + group, C), sums, F, V, mode, dtype)
            for i in range(F * V):
                store(total, i * VL, load(total, i * VL, dtype) + load(sums, i * VL, dtype))
            c += group
        copy(sums, total, F * V * VL * size)
    if mode == PAIRS:
        for i in range(F * V):
            store(sums, i * VL, untangle(load(sums, i * VL, dtype)))


@helper
def filters_rows(
    conv,
    words,  # IN   Loops
    image,
    zeros,
    weight,
    bias,  # IN   F, or 0
    act_min,
    act_max,
    out,  # OUT  rows first .. last - 1 of filter 0
    to_out,  # to the next filter's
    first,
    last,
    F,
    V,
    dtype,
):
    OW, size, VL = conv.OW, itemsize(dtype), lanes(dtype)
    width = V * VL
    reach = conv.dil_w * (conv.KW - 1) + conv.stride_w * (width - 1)
    accumulate = conv.accumulate != 0
    memory = local(256, dtype)
    sums = address(memory)
    for oh in range(first, last):
        top = oh * conv.stride_h - conv.pad_top
        ow = 0
        while ow < OW:
            block = min(ow, max(OW - width, 0))
            left = block * conv.stride_w - conv.pad_left
            mode = mode_of(conv.stride_w)
            if left >= 0 and left + reach < conv.IW and mode != PAIRS:
                mode = PLAIN if mode == MASKED else WHOLE
            filters_sums(words, image, zeros, weight, bias, top, left, sums, F, V, mode, dtype)
            skip = ow - block if accumulate else 0
            lane = VL if OW >= VL or (not accumulate and (last - oh - 1) * OW >= VL) else OW
            for f in range(F):
                row = out + (f * to_out + (oh - first) * OW + block) * size
                for v in range(V):
                    if skip < (v + 1) * VL:
                        epilogue(
                            row + v * VL * size, load(sums, (f * V + v) * VL, dtype), max(skip - v * VL, 0), lane,
                            accumulate, act_min, act_max, dtype,
                        )  # fmt: skip
            ow += width


@helper
def conv_rows(
    conv,
    image,  # IN   C planes
    zeros,  # IN   IW of them
    weight,  # IN   n_filters
    bias,  # IN   n_filters, or 0
    act_min,
    act_max,
    out,  # OUT  rows first .. last - 1 of each filter
    to_out,
    n_filters,
    first,
    last,
    dtype,
):
    outlined()
    size, VL = itemsize(dtype), lanes(dtype)
    memory = local(LOOPS, np.int64)
    words = address(memory)
    put_words(words, Loops(
        conv.IH, conv.IW, conv.KH, conv.KW, conv.dil_h, conv.dil_w, conv.stride_w, conv.to_filter, conv.to_channel, conv.to_kh,
        conv.to_kw, conv.C, max(DEPTH // (conv.KH * conv.KW), 1),
    ))  # fmt: skip
    f = 0
    while f < n_filters:
        n = V = 1
        if f + FILTERS <= n_filters:
            n = FILTERS
            if conv.OW >= 2 * VL:
                V = 2
        elif conv.OW >= 4 * VL:
            V = 4
        filters_rows(conv, words, image, zeros, weight, bias, act_min, act_max, out, to_out, first, last, n, V, dtype)
        f += n
        weight += n * conv.to_filter * size
        out += n * to_out * size
        if bias != 0:
            bias += n * size


@helper
def pooled_rows(
    conv,
    image,
    zeros,
    weight,
    bias,
    act_min,
    act_max,
    pooled,  # OUT  planes of n_filters
    indices,  # OUT  planes of n_filters, or 0
    rows,  # n_filters x buffered rows
    n_filters,
    first,  # pooled rows
    last,
    geometry,
    dtype,
):
    # As many convolution rows as the buffer takes, then their pooled rows; rows that the next ones need too move up.
    OH, OW, buffered, size = conv.OH, conv.OW, conv.buffered, itemsize(dtype)
    plane = conv.rows * geometry[GEO_POOL_OW]
    stride, pad = geometry[GEO_POOL_STRIDE_H], geometry[GEO_POOL_PAD_TOP]
    begin, end = 0, 0
    while first < last:
        # Rows begin .. end - 1 are there; rows needed from now on start at `kept`
        kept = min(max(first * stride - pad, 0), OH)
        if kept < end:
            for f in range(n_filters):
                for row in range(end - kept):  # one by one: source and target may overlap
                    target = rows + (f * buffered + row) * OW * size
                    if kept > begin:
                        copy(target, target + (kept - begin) * OW * size, OW * size)
        else:
            end = kept
        begin = kept
        to = first + 1
        while to < last and min(to * stride - pad + conv.pool_KH, OH) - begin <= buffered:
            to += 1
        bottom = max(min((to - 1) * stride - pad + conv.pool_KH, OH), end)
        target = rows + (end - begin) * OW * size
        if conv.K:
            depthwise_planes(conv, image, zeros, weight, bias, 0, act_min, act_max, target, 1, end, bottom, dtype)
        else:
            conv_rows(
                conv, image, zeros, weight, bias, act_min, act_max, target, buffered * OW, n_filters, end, bottom, dtype
            )
        end = bottom
        for f in range(n_filters):
            places = indices + f * plane * 8 if indices != 0 else 0
            max_pool_rows(
                rows + f * buffered * OW * size, begin, first, to, pooled + f * plane * size, places,
                rows + n_filters * buffered * OW * size, geometry, dtype,
            )  # fmt: skip
        first = to


@shared
def rows_of_worker(conv):
    return min(conv.together, conv.F) * conv.buffered * conv.OW


@helper
def zeros_of(worker, conv, workspace, others, dtype):
    """A row of zeros for each worker, cleared here: in the driver, as Python, that would take 0.2 us of a call's 10."""
    zeros = address(workspace) + worker * lines(conv.IW + others) * itemsize(dtype)
    clear(zeros, conv.IW * itemsize(dtype))
    return zeros


@helper
def unit_of(conv, unit):
    """Which image of one group, which filters of it, which rows."""
    chunks, blocks = ceil_div(conv.rows, conv.chunk), ceil_div(conv.F, conv.together)
    first = unit % chunks * conv.chunk
    f = unit // chunks % blocks * conv.together
    image = unit // chunks // blocks
    return image, f, min(conv.F - f, conv.together), first, min(first + conv.chunk, conv.rows)


# Tasks of their own for each kind of layer, so that a call compiles what it needs. ``turned``: the gradient of the input,
# which then is the output, of a layer of stride 1.


@task
def conv2d_task(
    task: index,
    worker: index,
    turned: index,
    input: const_real[:, :, :, ::1],  # IN
    weight: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    output: real[:, :, :, ::1],  # OUT
    workspace: real[::1],
    geometry: const_int64[::1],  # IN
):
    conv, dtype = adjoint(geometry) if turned else forward(geometry), input.dtype
    zeros, size = zeros_of(worker, conv, workspace, 0, dtype), itemsize(dtype)
    for unit in range(task * conv.batch, min((task + 1) * conv.batch, conv.units)):
        image, f, n_filters, first, last = unit_of(conv, unit)
        group = image % conv.G
        filters = address(weight) + (conv.start + group * conv.to_group + f * conv.to_filter) * size
        conv_rows(
            conv, address(input) + image * conv.C * conv.IH * conv.IW * size, zeros, filters,
            address(bias) + (group * conv.F + f) * size if bias.size else 0, act_min, act_max,
            address(output) + ((image * conv.F + f) * conv.OH + first) * conv.OW * size, conv.OH * conv.OW, n_filters, first,
            last, dtype,
        )  # fmt: skip


@task
def depthwise_task(
    task: index,
    worker: index,
    turned: index,
    input: const_real[:, :, :, ::1],  # IN
    weight: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    output: real[:, :, :, ::1],  # OUT
    workspace: real[::1],
    geometry: const_int64[::1],  # IN
):
    conv, dtype = adjoint(geometry) if turned else forward(geometry), input.dtype
    depthwise_units(
        depthwise_planes, task, conv, address(input), zeros_of(worker, conv, workspace, 0, dtype), address(weight),
        address(bias) if bias.size else 0, act_min, act_max, address(output), dtype,
    )  # fmt: skip


@task
def adjoint_task(
    task: index,
    worker: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    weight: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    grad_input: real[:, :, :, ::1],  # OUT
    workspace: real[::1],
    geometry: const_int64[::1],  # IN
):
    conv, dtype = adjoint(geometry), grad_output.dtype
    depthwise_units(
        adjoint_planes, task, conv, address(grad_output), zeros_of(worker, conv, workspace, 0, dtype), address(weight),
        address(bias) if bias.size else 0, act_min, act_max, address(grad_input), dtype,
    )  # fmt: skip


@task
def pooled_task(
    task: index,
    worker: index,
    input: const_real[:, :, :, ::1],  # IN
    weight: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    pooled: real[:, :, :, ::1],  # OUT
    indices: int64[:, :, :, ::1],  # OUT
    workspace: real[::1],
    geometry: const_int64[::1],  # IN
):
    conv, dtype = forward(geometry), input.dtype
    zeros = zeros_of(worker, conv, workspace, rows_of_worker(conv) + pool_ring_size(geometry), dtype)
    size, plane = itemsize(dtype), conv.rows * geometry[GEO_POOL_OW]
    for unit in range(task * conv.batch, min((task + 1) * conv.batch, conv.units)):
        image, f, n_filters, first, last = unit_of(conv, unit)
        group, planes = image % conv.G, (image * conv.F + f) * plane
        pooled_rows(
            conv, address(input) + image * conv.C * conv.IH * conv.IW * size, zeros,
            address(weight) + (group * conv.to_group + f * conv.to_filter) * size,
            address(bias) + (group * conv.F + f) * size if bias.size else 0, act_min, act_max,
            address(pooled) + planes * size, address(indices) + planes * 8 if indices.size else 0,
            zeros + conv.IW * size, n_filters, first, last, geometry, dtype,
        )  # fmt: skip


@lru_cache(maxsize=1024)
def _planned(geometry):
    g = np.frombuffer(geometry, np.int64).tolist()
    return forward(g), adjoint(g), sum_of(g)


def plans(geometry):
    """Conv of the forward problem and of its adjoint, and Sum, for the drivers."""
    return _planned(geometry.tobytes())


def conv2d_workspace(geometry, n_workers):
    """Elements of workspace: for each worker a row of zeros, and rows for a fused pool."""
    conv = plans(geometry)[0]
    return n_workers * lines(conv.IW + rows_of_worker(conv) + pool_ring_size(geometry.tolist()))


def conv2d(input, weight, bias, act_min, act_max, output, pooled, indices, workspace, geometry, n_threads):
    """output = clamp((accumulate ? output : 0) + conv + bias, act_min, act_max)."""
    conv = plans(geometry)[0]
    if conv.pool_KH:
        pooled_task.run(
            conv.n_tasks, n_threads, input, weight, bias, act_min, act_max, pooled, indices, workspace, geometry
        )  # fmt: skip
    else:
        task = depthwise_task if conv.K else conv2d_task
        task.run(conv.n_tasks, n_threads, 0.0, input, weight, bias, act_min, act_max, output, workspace, geometry)


# ------------------------------------------------------------------------------------------------- gradient of the input


@task
def finite_task(
    task: index,
    weight: const_real[:, :, :, ::1],  # IN
    found: real[::1],  # OUT  its first element is 0, or NaN if some weight is not finite
):
    # The only task: NumPy would take twice the time, which small layers feel.
    found[0] = scaled_sum(address(weight), weight.size, weight.dtype.type(0), weight.dtype)


@task
def exact_task(
    task: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    weight: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    grad_input: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # One plane of grad_input, when some weight is not finite: a zero that stands for a missing output must not meet it.
    IC, IH, IW, G = geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_G]
    KH, KW, OH, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_OH], geometry[GEO_OW]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    n, channel, ICG, OCG = task // IC, task % IC, IC // G, geometry[GEO_OC] // G
    ic, group = channel % ICG, channel // ICG
    zero = weight.dtype.type(0)
    for ih in range(IH):
        for iw in range(IW):
            total = grad_input[n, channel, ih, iw] if geometry[GEO_ACCUMULATE] else zero
            if bias.size:
                total += bias[channel]
            for oc in range(group * OCG, (group + 1) * OCG):
                partial = zero
                for kh in range(KH):
                    oh = ih + pad_top - kh * dil_h
                    if oh < 0 or oh % stride_h or oh // stride_h >= OH:
                        continue
                    for kw in range(KW):
                        ow = iw + pad_left - kw * dil_w
                        if ow < 0 or ow % stride_w or ow // stride_w >= OW:
                            continue
                        partial += grad_output[n, oc, oh // stride_h, ow // stride_w] * weight[oc, ic, kh, kw]
                total += partial
            grad_input[n, channel, ih, iw] = clamp(total, act_min, act_max)


@helper
def meet(i, pad, stride, dil, step, kernel):
    """Along one axis, input cell i meets kernel cells first, first + step, ..., and there outputs at, at - back, ..."""
    at, first = i + pad, 0
    while first < min(kernel, step) and at % stride:
        first += 1
        at -= dil
    if at % stride:
        first = kernel
    return first, at // stride


@helper
def greatest_common_divisor(a, b):
    while b:
        a, b = b, a % b
    return a


@helper
def strided_block(
    grad_output,  # IN   C planes
    weight,  # IN   filters, channel of grad_input chosen
    shift,
    C,
    to_filter,
    KH,
    KW,
    OH,
    OW,
    kh_first,
    kh_step,
    oh_first,
    oh_back,
    kw_first,
    kw_step,
    ow_first,
    ow_back,
    dtype,
):
    """One vector of cells that are stride_w apart."""
    inlined()
    size, VL = itemsize(dtype), lanes(dtype)
    acc, total, depth = broadcast(shift), broadcast(dtype.type(0)), 0
    for c in range(C):
        oh, kh = oh_first, kh_first
        while kh < KH:
            if 0 <= oh < OH:
                row = grad_output + (c * OH + oh) * OW * size
                ow, kw = ow_first, kw_first
                while kw < KW:
                    if ow >= 0 and ow + VL <= OW:
                        x = load(row, ow, dtype)
                    else:
                        x = load_inside(row, ow, OW, dtype)
                    acc = fma(x, broadcast(get(weight, c * to_filter + kh * KW + kw, dtype)), acc)
                    ow -= ow_back
                    kw += kw_step
                depth += KW
                if depth >= DEPTH:
                    depth = 0
                    total = total + acc
                    acc = broadcast(dtype.type(0))
            oh -= oh_back
            kh += kh_step
    return acc + total


@task
def strided_task(
    task: index,
    batch: index,
    grad_output: const_real[:, :, :, ::1],  # IN
    weight: const_real[:, :, :, ::1],  # IN
    bias: const_real[::1],  # IN
    act_min: real,
    act_max: real,
    grad_input: real[:, :, :, ::1],  # OUT
    geometry: const_int64[::1],  # IN
):
    # `batch` rows. Cells of one row that are stride_w apart meet the same kernel cells, and neighbouring outputs: a vector.
    N, IC, IH, IW = geometry[GEO_N], geometry[GEO_IC], geometry[GEO_IH], geometry[GEO_IW]
    KH, KW, OH, OW = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_OH], geometry[GEO_OW]
    G, taps = geometry[GEO_G], KH * KW
    ICG, C = IC // G, geometry[GEO_OC] // G
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w, pad_left = geometry[GEO_DIL_H], geometry[GEO_DIL_W], geometry[GEO_PAD_LEFT]
    dtype = grad_output.dtype
    size, VL = itemsize(dtype), lanes(dtype)
    accumulate = geometry[GEO_ACCUMULATE] != 0
    divisor = greatest_common_divisor(stride_h, dil_h)
    kh_step, oh_back = stride_h // divisor, dil_h // divisor
    divisor = greatest_common_divisor(stride_w, dil_w)
    kw_step, ow_back = stride_w // divisor, dil_w // divisor
    start, start_at = meet(0, pad_left, stride_w, dil_w, kw_step, KW)
    other, other_at = meet(1, pad_left, stride_w, dil_w, kw_step, KW)
    lane = local(16, dtype)
    for flat in range(task * batch, min((task + 1) * batch, N * IC * IH)):
        plane, ih = flat // IH, flat % IH
        channel = plane % IC
        shift = bias[channel] if bias.size else dtype.type(0)
        dy = address(grad_output) + (plane // IC * G + channel // ICG) * C * OH * OW * size
        filters = address(weight) + (channel // ICG * C * ICG + channel % ICG) * taps * size
        row = address(grad_input) + flat * IW * size
        kh, oh = meet(ih, geometry[GEO_PAD_TOP], stride_h, dil_h, kh_step, KH)
        if stride_w <= 2:
            at, next_at = start_at, other_at
            iw = 0
            while iw < IW:
                left = IW - iw
                value = strided_block(
                    dy, filters, shift, C, ICG * taps, KH, KW, OH, OW, kh, kh_step, oh, oh_back, start, kw_step, at,
                    ow_back, dtype,
                )  # fmt: skip
                if stride_w == 1:
                    epilogue(row + iw * size, value, 0, min(left, VL), accumulate, act_min, act_max, dtype)
                else:
                    second = strided_block(
                        dy, filters, shift, C, ICG * taps, KH, KW, OH, OW, kh, kh_step, oh, oh_back, other, kw_step,
                        next_at, ow_back, dtype,
                    )  # fmt: skip
                    low, high = zip_low(value, second), zip_high(value, second)
                    epilogue(row + iw * size, low, 0, min(left, VL), accumulate, act_min, act_max, dtype)
                    if left > VL:
                        last = min(left - VL, VL)
                        epilogue(row + (iw + VL) * size, high, 0, last, accumulate, act_min, act_max, dtype)
                at += VL
                next_at += VL
                iw += VL * stride_w
            continue
        for phase in range(min(stride_w, IW)):
            kw, at = meet(phase, pad_left, stride_w, dil_w, kw_step, KW)
            iw = phase
            while iw < IW:
                value = strided_block(
                    dy, filters, shift, C, ICG * taps, KH, KW, OH, OW, kh, kh_step, oh, oh_back, kw, kw_step, at,
                    ow_back, dtype,
                )  # fmt: skip
                store(address(lane), 0, value)
                for i in range(min(VL, ceil_div(IW - iw, stride_w))):
                    cell = lane[i]
                    if accumulate:
                        cell += get(row, iw, dtype)
                    put(row, iw, clamp(cell, act_min, act_max))
                    iw += stride_w
                at += VL


def conv2d_grad_input_workspace(geometry, n_workers):
    """Elements of workspace: for each worker a row of zeros."""
    return n_workers * lines(max(int(geometry[GEO_OW]), 1))


def conv2d_grad_input(grad_output, weight, bias, act_min, act_max, grad_input, workspace, geometry, n_threads):
    """The adjoint in x, with the epilogue of a convolution (bias (IC,) or (0,)): a transposed convolution."""
    conv = plans(geometry)[1]
    if conv.n_tasks == 0:
        return
    arrays = (grad_output, weight, bias, act_min, act_max, grad_input)
    finite_task.run(1, 1, weight, workspace)
    if workspace[0] != 0:
        exact_task.run(conv.N * conv.G * conv.F, n_threads, *arrays, geometry)
    elif conv.stride_h == conv.stride_w == 1:
        task = depthwise_task if conv.K else conv2d_task
        task.run(conv.n_tasks, n_threads, 1.0, *arrays, workspace, geometry)
    elif conv.K:
        adjoint_task.run(conv.n_tasks, n_threads, *arrays, workspace, geometry)
    else:
        batch = max(TASK // max(conv.C * conv.KH * conv.KW * conv.OW // (conv.stride_h * conv.stride_w), 1), 1)
        n_tasks = ceil_div(conv.N * conv.G * conv.F * conv.OH, batch)
        strided_task.run(n_tasks, n_threads, batch, *arrays, geometry)


# ------------------------------------------------------------------------------------------------ gradient of the weight

Sum = namedtuple(
    "Sum",
    "together blocks units "  # filters of a unit; units: (group, block of filters, channel)
    "rows chunk chunks "  # output rows over all images, of a chunk; chunks
    "batch n_tasks",  # units of a task
)


@shared
def sum_of(geometry):
    # Few units: the sum itself is cut into chunks of rows. Nothing depends on the number of threads.
    G = geometry[GEO_G]
    F = geometry[GEO_OC] // G
    together = FILTERS if F >= FILTERS else 1
    blocks = ceil_div(F, together)
    units = G * blocks * (geometry[GEO_IC] // G)
    rows = geometry[GEO_N] * geometry[GEO_OH]
    work = max(together * geometry[GEO_KH] * geometry[GEO_KW] * rows * geometry[GEO_OW], 1)
    chunks = max(min(CHUNKS // max(units, 1), work // TASK, rows), 1)
    chunk = ceil_div(rows, chunks)
    chunks = max(ceil_div(rows, max(chunk, 1)), 1)
    batch = max(TASK // work, 1)
    return Sum(together, blocks, units, rows, chunk, chunks, batch, ceil_div(units * chunks, batch))


@helper
def row_of(plane, ih, IH, IW, zeros, dtype):
    return plane + ih * IW * itemsize(dtype) if 0 <= ih < IH else zeros


@straight
def no_sums(dtype, F, H, T):
    return [[[broadcast(dtype.type(0))] * T] * H] * F


@straight
def rows_of(plane, ih, dil_h, IH, IW, zeros, dtype, H):
    return [row_of(plane, ih + h * dil_h, IH, IW, zeros, dtype) for h in range(H)]


@straight
def add_products(acc, h, x, f, dy):
    """To row ``h`` of the taps of filter ``f``."""
    acc[f][h] = [fma(each, dy, total) for each, total in zip(x, acc[f][h], strict=True)]


# The pixels first, then gradients one by one: with the sums that is 16 registers, the other way round one more. Addresses and
# columns are hidden, else LLVM counts along with every sum of them there is, and has no registers for those.


@straight
def add_vector(acc, grads, to_filter, rows, offset, dil_w, dtype):
    grads, rows = hidden(grads), [hidden(row + offset) for row in rows]
    for h, row in enumerate(rows):
        x = [load(row, t * dil_w, dtype) for t in range(len(acc[0][h]))]
        for f in range(len(acc)):
            add_products(acc, h, x, f, load(grads, f * to_filter, dtype))
    return acc


@straight
def add_last_vector(acc, grads, to_filter, ow, OW, rows, column, stride, dil_w, IW, end, mode, dtype):
    grads, rows = hidden(grads), [hidden(row) for row in rows]
    for h, row in enumerate(rows):
        x = []
        for t in range(len(acc[0][h])):
            extent = least(IW, end + t * dil_w)
            x.append(load_columns(row, column + t * dil_w, stride, extent, mode, dtype))
        for f in range(len(acc)):
            dy = load_inside(grads + f * to_filter * itemsize(dtype), ow, OW, dtype)
            add_products(acc, h, x, f, apart(dy) if mode == PAIRS else dy)
    return acc


@straight
def add_to_sums(acc, sums, dtype):
    flat = [total for rows in acc for taps in rows for total in taps]
    for i, total in enumerate(flat):
        store(sums, i * lanes(dtype), load(sums, i * lanes(dtype), dtype) + total)


@straight
def flush_sums(partial, total, dtype, F, H, T):
    for i in range(F * H * T):
        store(total, i * lanes(dtype), load(total, i * lanes(dtype), dtype) + load(partial, i * lanes(dtype), dtype))
        store(partial, i * lanes(dtype), broadcast(dtype.type(0)))


@helper
def put_sum(out, place, value, accumulate, dtype):
    put(out, place, value + get(out, place, dtype) if accumulate else value)


@straight
def put_sums(partial, total, out, to_filter, to_row, accumulate, dtype, F, H, T):
    places = [f * to_filter + h * to_row + t for f in range(F) for h in range(H) for t in range(T)]
    for i, place in enumerate(places):
        at = i * lanes(dtype)
        put_sum(out, place, sum_of_lanes(load(total, at, dtype) + load(partial, at, dtype)), accumulate, dtype)


@helper
def grad_weight_run(
    image,  # IN   the channel's plane in image 0
    grad_output,  # IN   the first filter's plane in image 0
    zeros,  # IN   IW of them
    sums,  # INOUT  F x H x T: taps (kh, kw) .. (kh + H - 1, kw + T - 1) of F filters
    first,  # rows of all images
    last,
    ow_first,
    ow_last,
    kh,
    kw,
    geometry,
    dtype,
    F,  # literals
    H,
    T,
    mode,  # MASKED, PAIRS or GATHER
):
    outlined()
    IH, IW, OH, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OH], geometry[GEO_OW]
    to_image, to_grad = geometry[GEO_IC] * IH * IW, geometry[GEO_OC] * OH * OW
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    dil_h, dil_w = geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    top, left = kh * dil_h - geometry[GEO_PAD_TOP], kw * dil_w - geometry[GEO_PAD_LEFT]
    size, VL = itemsize(dtype), lanes(dtype)
    reach = (T - 1) * dil_w + VL
    n, oh = first // OH, first % OH
    fetch, along = grad_output, 0
    if to_grad == OW * geometry[GEO_OC]:  # filters are rows, as those of a Linear: the next ones lie behind these
        fetch, along = grad_output + F * (OW + ow_first) * size, F * VL * size
    acc = no_sums(dtype, F, H, T)
    for _ in range(first, last):
        rows = rows_of(image + n * to_image * size, oh * stride_h + top, dil_h, IH, IW, zeros, dtype, H)
        grads = grad_output + (n * to_grad + oh * OW) * size
        ow = ow_first
        while ow < ow_last:
            ow = hidden(ow)
            column = ow * stride_w + left
            if mode == MASKED and column >= 0 and column + reach <= IW and ow + VL <= OW:
                if F == FILTERS and H * T == 1 and along > 0:
                    for i in range(0, F * VL * size, CACHE_LINE):
                        prefetch_second(fetch + i)
                    fetch += along
                acc = add_vector(acc, grads + ow * size, OH * OW, rows, column * size, dil_w, dtype)
            else:  # lanes behind the row's last output are zeros on both sides
                end = (min(OW - ow, VL) - 1) * stride_w + 1 + column
                acc = add_last_vector(acc, grads, OH * OW, ow, OW, rows, column, stride_w, dil_w, IW, end, mode, dtype)
            ow += VL
        oh += 1
        if oh == OH:
            oh = 0
            n += 1
    add_to_sums(acc, sums, dtype)


@helper
def grad_weight_block(
    image,
    grad_output,
    zeros,
    out,  # OUT  of F filters, to_out apart
    to_out,
    first,
    last,
    kh,
    kw,
    accumulate,
    geometry,
    dtype,
    F,  # literals
    H,
    T,
):
    # Runs of FLUSH vectors, whole rows or parts of one; FLUSH runs make a partial sum.
    outlined()
    OW, KW, VL, size = geometry[GEO_OW], geometry[GEO_KW], lanes(dtype), itemsize(dtype)
    mode = mode_of(geometry[GEO_STRIDE_W])
    run, flushes = max(FLUSH // ceil_div(OW, VL), 1), 0
    memory = local(384, dtype)
    partial = address(memory)
    total = partial + F * H * T * VL * size
    clear(partial, 2 * F * H * T * VL * size)
    while first < last:
        end = min(first + run, last)
        ow = np.int64(0)  # a bare 0 is a type of its own, for which everything would be compiled once more
        while ow < OW:
            ow_end = min(ow + FLUSH * VL, OW)
            if mode == MASKED:
                grad_weight_run(
                    image, grad_output, zeros, partial, first, end, ow, ow_end, kh, kw, geometry, dtype, F, H, T, MASKED
                )  # fmt: skip
            elif mode == PAIRS:
                grad_weight_run(
                    image, grad_output, zeros, partial, first, end, ow, ow_end, kh, kw, geometry, dtype, F, H, T, PAIRS
                )  # fmt: skip
            else:
                grad_weight_run(
                    image, grad_output, zeros, partial, first, end, ow, ow_end, kh, kw, geometry, dtype, F, H, T, GATHER
                )  # fmt: skip
            ow = ow_end
            flushes += 1
            if flushes == FLUSH:
                flushes = 0
                flush_sums(partial, total, dtype, F, H, T)
        first = end
    put_sums(partial, total, out + (kh * KW + kw) * size, to_out, KW, accumulate, dtype, F, H, T)


@straight
def column_row(image, at, plane_end, zeros, column, IW, to_other, dtype, stride, mode, pair):
    return cells_of(rows_at(image, to_other, at, plane_end, zeros, pair), column, IW, mode, dtype, 3, stride, pair)


@straight
def column_grad(grad, to_grad, n_lanes, dtype, stride, mode, pair):
    dy = load(grad, 0, dtype) if mode == PLAIN else load_inside(grad, 0, n_lanes, dtype)
    if pair:
        dy = join_inside(dy, grad + to_grad, -(lanes(dtype) // 2), n_lanes)
    return apart(dy) if stride == 2 else dy


@straight
def add_row_products(acc, kh, x, dy):
    acc[kh] = [fma(cells, dy, total) for cells, total in zip(x, acc[kh], strict=True)]
    return acc


@straight
def add_column(acc, sums, n_lanes, dtype, stride, mode, pair):
    # Lanes behind the row's last output are zeros in grad_output alone
    VL = lanes(dtype)
    for i, value in enumerate(total for taps in acc for total in taps):
        if stride == 2:
            value = untangle(value)
        if pair:
            value = halves(first_lanes(value, n_lanes), first_lanes(value, VL // 2 + n_lanes))
        elif mode == MASKED:
            value = first_lanes(value, n_lanes)
        store(sums, i * VL, load(sums, i * VL, dtype) + value)


@helper
def grad_weight_column(
    image,  # IN   the channel's plane in the first image
    grad_output,  # IN   the same, at the first row and column
    zeros,  # IN   IW of them
    sums,  # INOUT  3 x 3 taps
    n_images,
    n_rows,
    top,  # image row and column at the first tap
    column,
    n_lanes,
    geometry,
    dtype,
    stride,  # literals
    mode,  # PLAIN or MASKED
    pair,
):
    # As depthwise_column: down the rows of a plane, each loaded once, of the image and of grad_output. A row meets up to
    # three rows of the other. A pair: two images whose rows are half a vector.
    outlined()
    aligned()
    size = itemsize(dtype)
    IH, IW, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    to_row, to_grad_row, plane_end = IW * size, OW * size, IH * IW * size
    to_image, to_grad = geometry[GEO_IC] * plane_end, geometry[GEO_OC] * geometry[GEO_OH] * to_grad_row
    ahead, grad_ahead = plane_end, geometry[GEO_OH] * to_grad_row  # the next channel's rows, or the next band's
    if n_rows < geometry[GEO_OH]:
        ahead, grad_ahead = n_rows * stride * to_row, n_rows * to_grad_row
    ahead, line = ahead + column * size, lanes(dtype) * size
    acc = no_sums(dtype, 1, 3, 3)[0]
    while n_images > 0:
        rolled()
        n_images -= 2 if pair else 1
        at, grad = top * to_row, grad_output
        x = column_row(image, at, plane_end, zeros, column, IW, to_image, dtype, stride, mode, pair)
        older = column_grad(grad, to_grad, n_lanes, dtype, stride, mode, pair)
        acc = add_row_products(acc, 0, x, older)
        if stride == 1:
            at += to_row
            x = column_row(image, at, plane_end, zeros, column, IW, to_image, dtype, stride, mode, pair)
            if n_rows > 1:
                grad += to_grad_row
                dy = column_grad(grad, to_grad, n_lanes, dtype, stride, mode, pair)
                acc = add_row_products(acc, 0, x, dy)
                acc = add_row_products(acc, 1, x, older)
                for _ in range(2, n_rows):
                    rolled()
                    oldest, older = older, dy
                    at += to_row
                    grad += to_grad_row
                    prefetch(image + at + ahead)
                    prefetch(grad + grad_ahead)
                    x = column_row(image, at, plane_end, zeros, column, IW, to_image, dtype, stride, mode, pair)
                    dy = column_grad(grad, to_grad, n_lanes, dtype, stride, mode, pair)
                    acc = add_row_products(acc, 0, x, dy)
                    acc = add_row_products(acc, 1, x, older)
                    acc = add_row_products(acc, 2, x, oldest)
                oldest, older = older, dy
                at += to_row
                x = column_row(image, at, plane_end, zeros, column, IW, to_image, dtype, stride, mode, pair)
                acc = add_row_products(acc, 2, x, oldest)
            acc = add_row_products(acc, 1, x, older)
        else:
            for _ in range(1, n_rows):
                rolled()
                at += to_row
                grad += to_grad_row
                prefetch(grad + grad_ahead)
                prefetch(image + at + ahead)
                if ORDERED:  # a column of two cache lines
                    prefetch(image + at + ahead + line)
                x = column_row(image, at, plane_end, zeros, column, IW, to_image, dtype, stride, mode, pair)
                acc = add_row_products(acc, 1, x, older)
                at += to_row
                prefetch(image + at + ahead)
                if ORDERED:
                    prefetch(image + at + ahead + line)
                x = column_row(image, at, plane_end, zeros, column, IW, to_image, dtype, stride, mode, pair)
                dy = column_grad(grad, to_grad, n_lanes, dtype, stride, mode, pair)
                acc = add_row_products(acc, 2, x, older)
                acc = add_row_products(acc, 0, x, dy)
                older = dy
            at += to_row
            x = column_row(image, at, plane_end, zeros, column, IW, to_image, dtype, stride, mode, pair)
            acc = add_row_products(acc, 1, x, older)
        at += to_row
        x = column_row(image, at, plane_end, zeros, column, IW, to_image, dtype, stride, mode, pair)
        acc = add_row_products(acc, 2, x, older)
        image += 2 * to_image if pair else to_image
        grad_output += 2 * to_grad if pair else to_grad
    add_column(acc, sums, n_lanes, dtype, stride, mode, pair)


@helper
def grad_weight_kinds(
    image, grad_output, zeros, sums, n_images, n_rows, top, at, n_lanes, geometry, pair, dtype, stride
):  # fmt: skip
    """`grad_weight_column` with literals for mode and pair."""
    inlined()
    VL = lanes(dtype)
    if ORDERED and pair:
        grad_weight_column(
            image, grad_output, zeros, sums, n_images, n_rows, top, at, n_lanes, geometry, dtype, stride, MASKED, True
        )  # fmt: skip
    elif ORDERED == 0 and n_lanes == VL and at >= 0 and at + 3 + stride * (VL - 1) <= geometry[GEO_IW]:
        grad_weight_column(
            image, grad_output, zeros, sums, n_images, n_rows, top, at, n_lanes, geometry, dtype, stride, PLAIN, False
        )  # fmt: skip
    else:
        grad_weight_column(
            image, grad_output, zeros, sums, n_images, n_rows, top, at, n_lanes, geometry, dtype, stride, MASKED, False
        )  # fmt: skip


@helper
def grad_weight_column_of(
    image, grad_output, zeros, sums, n_images, n_rows, top, at, n_lanes, geometry, stride, pair, dtype
):  # fmt: skip
    """`grad_weight_column` with literals for stride, mode and pair."""
    inlined()
    if stride == 1:
        grad_weight_kinds(
            image, grad_output, zeros, sums, n_images, n_rows, top, at, n_lanes, geometry, pair, dtype, 1
        )  # fmt: skip
    else:
        grad_weight_kinds(
            image, grad_output, zeros, sums, n_images, n_rows, top, at, n_lanes, geometry, pair, dtype, 2
        )  # fmt: skip


@helper
def grad_weight_columns(
    image, grad_output, zeros, out, first, last, accumulate, geometry, stride, band, images, pair, dtype
):
    # Runs of up to FLUSH vectors, of one column of some images or of a band of one; FLUSH runs make a partial sum.
    outlined()
    size, VL = itemsize(dtype), lanes(dtype)
    IH, IW, OH, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OH], geometry[GEO_OW]
    to_image, to_grad = geometry[GEO_IC] * IH * IW * size, geometry[GEO_OC] * OH * OW * size
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    width = VL - 1 if ORDERED and stride == 2 else VL
    flushes = 0
    memory = local(288, dtype)
    partial = address(memory)
    total = partial + 144 * size
    clear(partial, 9 * VL * size)
    clear(total, 9 * VL * size)
    n, oh = first // OH, first % OH
    while first < last:
        n_rows = min(OH - oh, last - first)
        n_images, paired = 1, 0
        if n_rows > band:
            n_rows = ceil_div(n_rows, ceil_div(n_rows, band))
        elif n_rows == OH:
            n_images = min(images, (last - first) // OH)
        if pair and n_images > 1:
            paired = 1
            n_images -= n_images % 2
        x, dy = image + n * to_image, grad_output + n * to_grad + oh * OW * size
        ow = 0
        while ow < OW:
            grad_weight_column_of(
                x, dy + ow * size, zeros, partial, n_images, n_rows, stride * oh - pad_top, stride * ow - pad_left,
                min(OW - ow, width), geometry, stride, paired, dtype,
            )  # fmt: skip
            ow += width
            flushes += 1
            if flushes == FLUSH:
                flushes = 0
                for i in range(9):
                    store(total, i * VL, load(total, i * VL, dtype) + load(partial, i * VL, dtype))
                clear(partial, 9 * VL * size)
        first += n_rows * n_images
        oh += n_rows
        if oh == OH:
            oh = 0
            n += n_images
    for i in range(9):
        value = sum_of_lanes(load(total, i * VL, dtype) + load(partial, i * VL, dtype))
        if accumulate:
            value += get(out, i, dtype)
        put(out, i, value)


@helper
def grad_weight_units(task, s, input, zeros, grad_output, grad_weight, accumulate, geometry, dtype):
    G, KH, KW, size = geometry[GEO_G], geometry[GEO_KH], geometry[GEO_KW], itemsize(dtype)
    C, F, taps = geometry[GEO_IC] // G, geometry[GEO_OC] // G, KH * KW
    IH, IW, OH, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OH], geometry[GEO_OW]
    stride = geometry[GEO_STRIDE_W]
    columns = (
        KH == 3 and KW == 3 and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1 and stride <= 2
        and geometry[GEO_STRIDE_H] == stride
    )  # fmt: skip
    # Of a run of `columns`: rows at most, whole images at most
    band = max(min(BAND // max(stride * IW + OW, 1), FLUSH), 1)
    pair = 1 if in_pairs(3, stride, IW, OW, geometry[GEO_PAD_LEFT], lanes(dtype) // 2) else 0
    images = max(FLUSH // max(OH, 1), 1) * (2 if pair else 1)
    unit, end_unit = task * s.batch, min((task + 1) * s.batch, s.units * s.chunks)
    chunk, rest = unit // s.units, unit % s.units
    c, block, group = rest % C, rest // C % s.blocks, rest // (C * s.blocks)
    while unit < end_unit:
        first, last = chunk * s.chunk, min((chunk + 1) * s.chunk, s.rows)
        f = block * s.together
        end = min(f + s.together, F)
        x = input + (group * C + c) * IH * IW * size
        while f < end:
            dy = grad_output + (group * F + f) * OH * OW * size
            out = grad_weight + (((chunk * G + group) * F + f) * C + c) * taps * size
            kh = np.int64(0)
            if columns and f + FILTERS > end:
                grad_weight_columns(
                    x, dy, zeros, out, first, last, accumulate, geometry, stride, band, images, pair, dtype
                )
                kh = KH
            while kh < KH:
                H = 1
                kw = np.int64(0)
                while kw < KW:
                    if f + FILTERS <= end:
                        tile, T = FILTERS, 3 if KW - kw >= 3 else 1
                    else:
                        tile, T = 1, 1
                        if KW == 3 and KH - kh >= 3:
                            H, T = 3, 3
                        elif KW - kw >= 5:
                            T = 5
                    if tile == FILTERS and T == 3:
                        grad_weight_block(
                            x, dy, zeros, out, C * taps, first, last, kh, kw, accumulate, geometry, dtype, FILTERS, 1, 3
                        )
                    elif tile == FILTERS:
                        grad_weight_block(
                            x, dy, zeros, out, C * taps, first, last, kh, kw, accumulate, geometry, dtype, FILTERS, 1, 1
                        )
                    elif H == 3:
                        grad_weight_block(
                            x, dy, zeros, out, C * taps, first, last, kh, kw, accumulate, geometry, dtype, 1, 3, 3
                        )
                    elif T == 5:
                        grad_weight_block(
                            x, dy, zeros, out, C * taps, first, last, kh, kw, accumulate, geometry, dtype, 1, 1, 5
                        )
                    else:
                        grad_weight_block(
                            x, dy, zeros, out, C * taps, first, last, kh, kw, accumulate, geometry, dtype, 1, 1, 1
                        )
                    kw += T
                kh += H
            f += FILTERS if f + FILTERS <= end else 1
        unit += 1
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


@task
def grad_weight_task(
    task: index,
    input: const_real[:, :, :, ::1],  # IN
    grad_output: const_real[:, :, :, ::1],  # IN
    grad_weight: real[:, :, :, ::1],  # OUT
    workspace: real[::1],  # a row of zeros, then chunks
    geometry: const_int64[::1],  # IN
):
    s = sum_of(geometry)
    dtype = input.dtype
    zeros, out = address(workspace), address(grad_weight)
    accumulate = geometry[GEO_ACCUMULATE] != 0
    if s.chunks > 1:
        accumulate = False
        out = zeros + geometry[GEO_IW] * itemsize(dtype)
    grad_weight_units(task, s, address(input), zeros, address(grad_output), out, accumulate, geometry, dtype)


@task
def add_chunks_task(
    task: index,
    chunks: index,
    grad_weight: real[:, :, :, ::1],  # OUT
    workspace: const_real[::1],
    geometry: const_int64[::1],  # IN
):
    # All entries: this is little work.
    dtype = grad_weight.dtype
    IW, size = geometry[GEO_IW], grad_weight.size
    out = address(grad_weight)
    for i in range(size):
        total = get(out, i, dtype) if geometry[GEO_ACCUMULATE] else dtype.type(0)
        for chunk in range(chunks):
            total += workspace[IW + chunk * size + i]
        put(out, i, total)


def weight_size(geometry):
    return geometry[GEO_OC] * (geometry[GEO_IC] // geometry[GEO_G]) * geometry[GEO_KH] * geometry[GEO_KW]


def conv2d_grad_weight_workspace(geometry, n_workers):
    """Elements of workspace: a row of zeros, and the chunks of a sum that is cut."""
    s = plans(geometry)[2]
    return geometry[GEO_IW] + (s.chunks * weight_size(geometry) if s.chunks > 1 else 0)


def conv2d_grad_weight(input, grad_output, grad_weight, workspace, geometry, n_threads):
    """The adjoint in the weight: grad_weight (OC, ICG, KH, KW), added to what is there with accumulate."""
    s = plans(geometry)[2]
    workspace[: geometry[GEO_IW]] = 0
    grad_weight_task.run(s.n_tasks, n_threads, input, grad_output, grad_weight, workspace, geometry)
    if s.chunks > 1:
        add_chunks_task.run(1, 1, s.chunks, grad_weight, workspace, geometry)
