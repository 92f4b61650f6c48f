"""Maxima of windows on vectors: what the pool kernels and the max-pool fused behind a convolution share.

Windows are reduced first along the row, then over the rows: of equal maxima that still finds the first in row-major order,
and rows that windows share are reduced once: a ring holds the reduced rows that are still needed, image row ih in slot
ih & (slots - 1). `max_rows` does that for any windows. Those that networks have, where no cell is NaN, are done in one sweep:
`max_common` finds their indices too, `max_strided` and `max_sliding` values alone, which no order binds.

Lanes of a vector are windows that are neighbours in a row. A vector that meets columns outside the image masks them off.
Cells of one window are numbered with integers as wide as the elements: in float32 its rows must span fewer than 2**31 cells.
"""

import numpy as np

from fastconv._numba._jit import VL_FLOAT, helper, shared
from fastconv._numba._pool_simd import (
    add_cells, even, first_ones, fold_max, has_flags, insert, larger, load_cells, load_inside, next_even, not_negative, note_nan,
    odd, pick, ramp, same, store_cells, store_first, takes, untangle,
)  # fmt: skip
from fastconv._numba._simd import broadcast, get, inlined, itemsize, lanes, load, outlined, put, store, vmax
from fastconv._problem import (
    GEO_DIL_H, GEO_DIL_W, GEO_IH, GEO_IW, GEO_KH, GEO_KW, GEO_OH, GEO_OW, GEO_PAD_LEFT, GEO_PAD_TOP, GEO_STRIDE_H,
    GEO_STRIDE_W,
)  # fmt: skip


@shared
def span(kernel, dilation):
    """Cells from the first to the last of a window."""
    return (kernel - 1) * dilation + 1


@helper
def first_inside(position, dilation):
    """The first of position, position + dilation, ... that is not negative."""
    return position if position >= 0 else position + -(position // dilation) * dilation


# ---------------------------------------------------------------------------------------------- rows for windows


@shared
def row_size(geometry):
    """Elements of a reduced row: OW in whole vectors."""
    return -(-geometry[GEO_OW] // VL_FLOAT) * VL_FLOAT


@shared
def ring_slots(geometry):
    """Rows from the first to the last of a window, rounded up to a power of two."""
    slots = 1
    while slots < span(geometry[GEO_KH], geometry[GEO_DIL_H]):
        slots *= 2
    return slots


@helper
def block_inside(column, VL, stride_w, width, IW):
    """Whether the taps of a vector of windows, the first at ``column``, read the image alone."""
    return column >= 0 and column + VL * stride_w + (width - 1 if stride_w != 2 else (width - 1) // 2 * 2) <= IW


@helper
def rows_inside(top, first, IH, KH, dil_h):
    """Rows of the window at ``top`` that lie in the image, where ``first`` is the first of them."""
    if first == top and top + span(KH, dil_h) <= IH:
        return KH
    return -(-(min(top + span(KH, dil_h), IH) - first) // dil_h)


@shared
def is_tiling(geometry):
    """Whether windows are 2x2 and tile the image without padding."""
    return (
        geometry[GEO_KH] == 2 and geometry[GEO_KW] == 2 and geometry[GEO_STRIDE_H] == 2 and geometry[GEO_STRIDE_W] == 2
        and geometry[GEO_DIL_H] == 1 and geometry[GEO_DIL_W] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_PAD_LEFT] == 0 and 2 * geometry[GEO_OH] <= geometry[GEO_IH]
        and 2 * geometry[GEO_OW] <= geometry[GEO_IW]
    )  # fmt: skip


@helper
def tap(row, inside, column, offset, stride, extent, border, dtype):
    """Lane i: row[column + offset + i * stride], border outside of the image; inside: there is no lane outside.

    With stride 2 not yet `untangle`.
    """
    if stride == 1:
        return load(row, column + offset, dtype) if inside else load_inside(row, column + offset, extent, border, dtype)
    if stride == 2:
        first, VL = column + offset // 2 * 2, lanes(dtype)
        low = load(row, first, dtype) if inside else load_inside(row, first, extent, border, dtype)
        high = load(row, first + VL, dtype) if inside else load_inside(row, first + VL, extent, border, dtype)
        return odd(low, high) if offset % 2 else even(low, high)
    v = broadcast(border)
    for lane in range(lanes(dtype)):
        at = column + offset + lane * stride
        if inside or (at >= 0 and at < extent):
            v = insert(v, lane, get(row, at, dtype))
    return v


@helper
def put_first(to, offset, v, count, dtype):
    """The first ``count`` lanes to memory."""
    if count >= lanes(dtype):
        store(to, offset, v)
    else:
        store_first(to, offset, v, count)


# Rows and rings are given by their addresses.


@shared
def is_seamless(geometry):
    """Whether windows do not overlap and rows of windows go on into the next plane as if it were the same."""
    return (
        geometry[GEO_STRIDE_H] == geometry[GEO_KH] and geometry[GEO_DIL_H] == 1 and geometry[GEO_PAD_TOP] == 0
        and geometry[GEO_OH] * geometry[GEO_KH] == geometry[GEO_IH]
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- the common windows

# In this part windows are 2x2 at step 2, or 3x3 at step 2 or 1, and K, stride and inside are constants. A row outside of the
# image is replaced by the nearest inside: that is one of the same window, so the maximum stays, and its first cell.
# vmax and fold_larger keep the first of two values if it is NaN and lose the second: all seconds are looked at, in pairs.


@shared
def is_common(geometry):
    """Whether this part has the windows, each of which must meet the image."""
    K, stride = geometry[GEO_KH], geometry[GEO_STRIDE_H]
    return (
        geometry[GEO_KW] == K and geometry[GEO_STRIDE_W] == stride and geometry[GEO_DIL_H] == geometry[GEO_DIL_W] == 1
        and ((K == 2 and stride == 2) or (K == 3 and (stride == 1 or stride == 2)))
        and geometry[GEO_PAD_TOP] < K and (geometry[GEO_OH] - 1) * stride - geometry[GEO_PAD_TOP] < geometry[GEO_IH]
        and geometry[GEO_PAD_LEFT] < K and (geometry[GEO_OW] - 1) * stride - geometry[GEO_PAD_LEFT] < geometry[GEO_IW]
    )  # fmt: skip


@helper
def first_row(oh, stride, geometry):
    """The first image row of the windows of output row oh."""
    return max(oh * stride - geometry[GEO_PAD_TOP], 0)


@helper
def rows_alike(oh, oh_last, K, stride, geometry):
    """The end of the output rows that lie in the image as oh does: that one, or as many as lie inside; at most oh_last.

    Besides: from the first row of a window to its second and to its last, in elements.
    """
    top, first, IH = oh * stride - geometry[GEO_PAD_TOP], first_row(oh, stride, geometry), geometry[GEO_IH]
    below1 = (min(max(top + 1, 0), IH - 1) - first) * geometry[GEO_IW]
    below2 = (min(max(top + K - 1, 0), IH - 1) - first) * geometry[GEO_IW]
    alike = oh + 1 if top < 0 else max(oh + 1, min(oh_last, (IH - K - top) // stride + oh + 1))
    return alike, below1, below2


@helper
def max_strided_block(
    flags,  # IN   of lanes that lost a NaN, or have one
    hidden,  # IN   1 in lanes, the first ones, that lie left of the image although they are read
    x,  # IN   first row of the windows
    below1, below2,  # IN   from there to the others, in elements
    output,  # OUT  a vector of windows, of which only ``room`` elements may be written
    room, column, IW, inside, hides, alone, K, dtype,
):  # fmt: skip
    # First over the rows, all columns of two vectors; then windows are an even column, the odd one and the next even one.
    # The last of these is in no such vector: of 3x3 windows the last lane is none. A NaN in the first row or an even column
    # stays and is seen in a maximum; the second row and odd columns are looked at; the third, but `alone`, is a later first.
    inlined()
    VL, element, lowest = lanes(dtype), itemsize(dtype), dtype.type(-np.inf)
    low = tap(x, inside, column, 0, 1, IW, lowest, dtype)
    high = tap(x, inside, column + VL, 0, 1, IW, lowest, dtype)
    low1 = tap(x + below1 * element, inside, column, 0, 1, IW, lowest, dtype)
    high1 = tap(x + below1 * element, inside, column + VL, 0, 1, IW, lowest, dtype)
    flags = note_nan(flags, low1, high1)
    low, high = vmax(low1, low), vmax(high1, high)
    if K == 3:
        low2 = tap(x + below2 * element, inside, column, 0, 1, IW, lowest, dtype)
        high2 = tap(x + below2 * element, inside, column + VL, 0, 1, IW, lowest, dtype)
        if alone:
            flags = note_nan(flags, low2, high2)
        low, high = vmax(low2, low), vmax(high2, high)
    if hides:
        low = pick(same(hidden, ramp(1, 0, dtype)), broadcast(lowest), low)
    value, between = even(low, high), odd(low, high)
    if K == 3:
        value = vmax(next_even(value), vmax(between, value))
    else:
        value = vmax(between, value)
    put_first(output, 0, untangle(value), room, dtype)
    return note_nan(flags, between, value)


@helper
def whole_vectors(space, first, step):
    """How many vectors there is space for, if one takes ``first`` elements and each other ``step``."""
    return 0 if space < first else (space - first) // step + 1


@helper
def max_strided_rows(
    flags,
    hidden,
    x,  # IN   where the windows begin
    y,  # OUT  (rows * OW), and what the last vector writes behind it
    rows, blocks, OW, IW, below1, below2, hides, K, dtype,
):  # fmt: skip
    inlined()
    VL, element = lanes(dtype), itemsize(dtype)
    windows = VL if K == 2 else VL - 1
    for _ in range(rows):
        flags = max_strided_block(flags, hidden, x, below1, below2, y, VL, 0, IW, True, hides, False, K, dtype)
        for block in range(1, blocks):
            at = windows * block * element
            flags = max_strided_block(
                flags, hidden, x + 2 * at, below1, below2, y + at, VL, 0, IW, True, False, False, K, dtype
            )
        x += 2 * IW * element
        y += OW * element
    if K == 3:
        for block in range(blocks):
            last, column = x + (below2 - 2 * IW) * element, 2 * windows * block
            flags = note_nan(flags, load(last, column, dtype), load(last, column + VL, dtype))
    return flags


@helper
def max_strided(
    x,  # IN   a plane
    output,  # OUT  its output plane
    oh_first, oh_last, planes, readable, room, K, geometry, dtype,
):  # fmt: skip
    """Rows [oh_first, oh_last) of ``planes`` output planes, at step 2; False, and any values, if there is a NaN."""
    # Windows that begin left of the image read the end of the row before: but for the first row there is one.
    inlined()
    IH, IW, OW, pad_left = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_PAD_LEFT]
    VL, element = lanes(dtype), itemsize(dtype)
    windows = VL if K == 2 else VL - 1
    blocks = (OW + windows - 1) // windows  # vectors of a row
    width = (blocks - 1) * windows + VL  # elements written for them
    reach = 2 * width - pad_left  # columns read
    crosses = (OW - 1) * 2 - pad_left + K > IW
    start = x + first_row(oh_first, 2, geometry) * IW * element
    y, flags, hidden = output + oh_first * OW * element, ramp(0, 0, dtype), first_ones(pad_left, dtype)
    for _ in range(planes):
        oh = oh_first
        while oh < oh_last:
            first = first_row(oh, 2, geometry)
            alike, below1, below2 = rows_alike(oh, oh_last, K, 2, geometry)
            rows = x + first * IW * element
            columns = IW if crosses else readable - first * IW - below2
            while alike > oh and (room - (alike - 1 - oh) * OW < width or columns - (alike - 1 - oh) * 2 * IW < reach):
                alike -= 1
            left = rows - pad_left * element
            if alike > oh and left >= start:
                if pad_left > 0:
                    flags = max_strided_rows(
                        flags, hidden, left, y, alike - oh, blocks, OW, IW, below1, below2, True, K, dtype
                    )
                else:
                    flags = max_strided_rows(
                        flags, hidden, left, y, alike - oh, blocks, OW, IW, below1, below2, False, K, dtype
                    )
            else:
                alike = oh + 1
                whole = min(whole_vectors(columns, 2 * VL - pad_left, 2 * windows), whole_vectors(room, VL, windows))
                for block in range(blocks):
                    to, column = y + windows * block * element, 2 * windows * block - pad_left
                    if block < whole and (block > 0 or pad_left <= 0):
                        flags = max_strided_block(
                            flags, hidden, rows, below1, below2, to, VL, column, IW, True, False, True, K, dtype
                        )
                    else:
                        flags = max_strided_block(
                            flags, hidden, rows, below1, below2, to, room - windows * block, column, IW, False, False, True, K,
                            dtype,
                        )  # fmt: skip
            y += (alike - oh) * OW * element
            room -= (alike - oh) * OW
            oh = alike
        x += IH * IW * element
        readable -= IH * IW
    return not has_flags(flags)


@helper
def max_sliding_column(
    flags,  # IN   of lanes that lost a NaN
    x,  # IN   a plane
    y,  # OUT  a vector of windows in each row
    oh_first, oh_last, room, column, inside, geometry, dtype,
):  # fmt: skip
    inlined()
    IH, IW, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    top, element, lowest = oh_first - geometry[GEO_PAD_TOP], itemsize(dtype), dtype.type(-np.inf)
    second = third = broadcast(lowest)  # any
    for ih in range(top, oh_last - geometry[GEO_PAD_TOP] + 2):
        row = x + min(max(ih, 0), IH - 1) * IW * element
        first, second = second, third
        left = tap(row, inside, column, 0, 1, IW, lowest, dtype)
        middle = tap(row, inside, column, 1, 1, IW, lowest, dtype)
        right = tap(row, inside, column, 2, 1, IW, lowest, dtype)
        flags = note_nan(flags, middle, right)
        third = vmax(right, vmax(middle, left))
        if ih >= top + 2:
            flags = note_nan(flags, second, third)
            put_first(y, 0, vmax(third, vmax(second, first)), room, dtype)
            y += OW * element
            room -= OW
    return flags


@helper
def max_sliding(
    x,  # IN   a plane
    output,  # OUT  its output plane
    oh_first, oh_last, readable, room, geometry, dtype,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane, 3x3 windows at step 1; False, and any values, if a NaN was lost."""
    # Down each vector of columns, the last first: what it writes past the end of rows is overwritten by the others.
    inlined()
    IH, IW, OW, pad_left = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW], geometry[GEO_PAD_LEFT]
    VL, element, flags = lanes(dtype), itemsize(dtype), ramp(0, 0, dtype)
    crosses = OW - pad_left + 2 > IW
    columns = IW if crosses else readable - min(oh_last + 1 - geometry[GEO_PAD_TOP], IH - 1) * IW
    ow = (OW - 1) // VL * VL
    while ow >= 0:
        y = output + (oh_first * OW + ow) * element
        if 0 <= ow - pad_left <= columns - VL - 2:
            flags = max_sliding_column(flags, x, y, oh_first, oh_last, room - ow, ow - pad_left, True, geometry, dtype)
        else:
            flags = max_sliding_column(flags, x, y, oh_first, oh_last, room - ow, ow - pad_left, False, geometry, dtype)
        ow -= VL
    return not has_flags(flags)


@helper
def cells_of(inside, column, stride, dtype):
    """Cells: columns of the first tap of windows, 0 for those below it, in the order of `tap`."""
    at = even(ramp(0, 1, dtype), ramp(lanes(dtype), 1, dtype)) if stride == 2 else ramp(0, 1, dtype)
    at = add_cells(at, ramp(column, 0, dtype))
    return at if inside else not_negative(at)


@helper
def fold_larger(best, where, value, cell):
    """Where value is larger: it and its cell; for values that are no NaN."""
    return vmax(value, best), pick(larger(best, value), cell, where)


@helper
def reduce_row(
    flags,  # IN   of lanes that lost a NaN
    x,  # IN   image row
    column, IW, inside, K, stride, dtype,
):  # fmt: skip
    """Maxima along the row, as tap orders them; their columns; flags."""
    inlined()
    lowest = dtype.type(-np.inf)
    last = best = tap(x, inside, column, 0, stride, IW, lowest, dtype)
    columns = cells_of(inside, column, stride, dtype)
    for kw in range(1, K):
        other = tap(x, inside, column, kw, stride, IW, lowest, dtype)
        best, columns = fold_larger(best, columns, other, cells_of(True, column + kw, stride, dtype))
        if kw == K - 1:
            flags = note_nan(flags, other, last if K == 3 else other)
        last = other
    return best, columns, flags


@helper
def blocks_inside(pad_left, readable, VL, K, stride):
    """Vectors of windows, from the first of a row on, whose taps end within ``readable`` elements."""
    return max(readable + pad_left - (K - 1 if stride != 2 else (K - 1) // 2 * 2), 0) // (VL * stride)


@helper
def carry_row(
    flags,
    x,  # IN   image row
    carried,  # OUT  (size) reduced; columns behind
    pad_left, IW, OW, size, K, stride, dtype,
):  # fmt: skip
    # As if no vector lay inside: one row of a plane need not be fast, but the code short
    inlined()
    for ow in range(0, OW, lanes(dtype)):
        column = ow * stride - pad_left
        best, columns, flags = reduce_row(flags, x, column, IW, False, K, stride, dtype)
        store(carried, ow, best)
        store(carried, size + ow, columns)
    return flags


@helper
def max_common_block(
    flags,
    x,  # IN   first row of the windows
    below1, below2,  # IN   from there to the others, in elements
    oldest,  # IN/OUT  carried: the first row reduced, which the last replaces
    newer,  # IN   carried: the second
    output,  # OUT  a vector of windows, of which only ``room`` elements may be written
    indices,  # OUT  the same
    room, first_cell, column, IW, size, inside, K, stride, dtype,
):  # fmt: skip
    inlined()
    element = itemsize(dtype)
    if stride == K:
        value, where, flags = reduce_row(flags, x, column, IW, inside, K, stride, dtype)
    else:
        value, where = load(oldest, 0, dtype), load_cells(oldest, size, dtype)
    last = value
    for row in range(1, K):
        below = below1 if row == 1 else below2
        if row < K - stride:
            other, cell = load(newer, 0, dtype), load_cells(newer, size, dtype)
        else:
            other, cell, flags = reduce_row(flags, x + below * element, column, IW, inside, K, stride, dtype)
        if row == K - 1:
            flags = note_nan(flags, other, last if K == 3 else other)
            if stride < K:
                store(oldest, 0, other)
                store(oldest, size, cell)
        value, where = fold_larger(value, where, other, add_cells(cell, ramp(below, 0, dtype)))
        last = other
    put_first(output, 0, untangle(value) if stride == 2 else value, room, dtype)
    store_cells(indices, 0, untangle(where) if stride == 2 else where, first_cell, room)
    return flags


@helper
def max_common(
    x,  # IN   a plane
    output,  # OUT  its output plane
    indices,  # OUT  the same
    ring,  # TMP  max_ring_size
    oh_first, oh_last, readable, room, K, stride, geometry, dtype,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane; False, and any values, if a NaN was lost."""
    # K - stride reduced rows are carried from one output row to the next.
    inlined()
    IW, OW = geometry[GEO_IW], geometry[GEO_OW]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    size, VL, element = row_size(geometry), lanes(dtype), itemsize(dtype)
    blocks = (OW + VL - 1) // VL * VL
    last_tap = blocks * stride - pad_left + K - 1  # of a row's vectors, or behind it
    ow_left = 0 if pad_left <= 0 else VL
    crosses = (OW - 1) * stride - pad_left + K > IW
    oldest, newer = ring, ring + 2 * size * element
    y, where = output + oh_first * OW * element, indices + oh_first * OW * 8
    flags = ramp(0, 0, dtype)
    oh = oh_first
    while oh < oh_last:
        # Output rows [oh, alike): one row that is not whole inside, or as many as are and have space for whole vectors
        first = first_row(oh, stride, geometry)
        alike, below1, below2 = rows_alike(oh, oh_last, K, stride, geometry)
        while alike > oh + 1 and (
            (not crosses and ((alike - 1) * stride - pad_top + K - 1) * IW + last_tap > readable)
            or (alike - 1 - oh_first) * OW + blocks > room
        ):
            alike -= 1
        ow_right = VL * blocks_inside(
            pad_left, IW if crosses else readable - ((alike - 1 - oh) * stride + first) * IW - below2, VL, K, stride
        )
        rows = x + first * IW * element
        if oh == oh_first:
            if stride < K:
                flags = carry_row(flags, rows, oldest, pad_left, IW, OW, size, K, stride, dtype)
            if stride < K - 1:
                below = below1 * element
                flags = carry_row(flags, rows + below, newer, pad_left, IW, OW, size, K, stride, dtype)
        ow_right = min(min(ow_right, (room - (alike - 1 - oh_first) * OW) // VL * VL), blocks)
        whole = ow_left == 0 and ow_right == blocks
        while oh < alike:
            if whole:  # apart from the other rows, for then all that the loop needs is in registers
                ow = 0
                while ow < blocks:
                    flags = max_common_block(
                        flags, rows, below1, below2, oldest + ow * element, newer + ow * element, y + ow * element,
                        where + ow * 8, VL, first * IW, ow * stride - pad_left, IW, size, True, K, stride, dtype,
                    )  # fmt: skip
                    ow += VL
            else:
                for ow in range(0, blocks, VL):
                    if ow_left <= ow < ow_right:
                        flags = max_common_block(
                            flags, rows, below1, below2, oldest + ow * element, newer + ow * element, y + ow * element,
                            where + ow * 8, VL, first * IW, ow * stride - pad_left, IW, size, True, K, stride,
                            dtype,
                        )  # fmt: skip
                    else:
                        flags = max_common_block(
                            flags, rows, below1, below2, oldest + ow * element, newer + ow * element, y + ow * element,
                            where + ow * 8, room - (oh - oh_first) * OW - ow, first * IW, ow * stride - pad_left, IW, size,
                            False, K, stride, dtype,
                        )  # fmt: skip
            oh += 1
            first += stride
            rows += stride * IW * element
            y += OW * element
            where += OW * 8
            if stride < K - 1:
                oldest, newer = newer, oldest
    return not has_flags(flags)


@helper
def max_windows(x, output, indices, ring, oh_first, oh_last, planes, readable, room, geometry, dtype):
    outlined()
    if indices != 0:
        if geometry[GEO_KH] == 2:
            return max_common(x, output, indices, ring, oh_first, oh_last, readable, room, 2, 2, geometry, dtype)
        if geometry[GEO_STRIDE_H] == 2:
            return max_common(x, output, indices, ring, oh_first, oh_last, readable, room, 3, 2, geometry, dtype)
        return max_common(x, output, indices, ring, oh_first, oh_last, readable, room, 3, 1, geometry, dtype)
    if geometry[GEO_KH] == 2:
        return max_strided(x, output, oh_first, oh_last, planes, readable, room, 2, geometry, dtype)
    if geometry[GEO_STRIDE_H] == 2:
        return max_strided(x, output, oh_first, oh_last, planes, readable, room, 3, geometry, dtype)
    return max_sliding(x, output, oh_first, oh_last, readable, room, geometry, dtype)


# ---------------------------------------------------------------------------------------------------- any windows


@helper
def max_along_block(
    x,  # IN   image row
    best,  # OUT  a vector of reduced windows
    columns,  # OUT  with_indices: theirs, integers as wide as real
    column, IW, with_indices, inside, KW, stride_w, dil_w, dtype,
):  # fmt: skip
    lowest = dtype.type(-np.inf)
    value = tap(x, inside, column, 0, stride_w, IW, lowest, dtype)
    if not with_indices:
        for kw in range(1, KW):
            value = fold_max(value, tap(x, inside, column, kw * dil_w, stride_w, IW, lowest, dtype))
        store(best, 0, untangle(value) if stride_w == 2 else value)
        return
    where = ramp(0, 0, dtype)
    for kw in range(1, KW):
        other = tap(x, inside, column, kw * dil_w, stride_w, IW, lowest, dtype)
        won = takes(value, other)
        value, where = pick(won, other, value), pick(won, ramp(kw * dil_w, 0, dtype), where)
    if stride_w == 2:
        value, where = untangle(value), untangle(where)
    store(best, 0, value)
    store(columns, 0, add_cells(where, ramp(column, stride_w, dtype)))


@helper
def max_along_row(
    x,  # IN   image row
    best,  # OUT  (size)
    columns,  # OUT  (size) with_indices
    pad_left, IW, OW,
    readable,  # elements from x on: in lanes past the last window anything may stand
    with_indices, KW, stride_w, dil_w, dtype,
):  # fmt: skip
    VL, size = lanes(dtype), itemsize(dtype)
    column = -pad_left
    if (OW - 1) * stride_w - pad_left + span(KW, dil_w) > IW:
        readable = IW  # there are windows across the right border
    for ow in range(0, OW, VL):
        if block_inside(column, VL, stride_w, span(KW, dil_w), readable):
            max_along_block(
                x, best + ow * size, columns + ow * size, column, IW, with_indices, True, KW, stride_w, dil_w, dtype
            )
        else:
            max_along_block(
                x, best + ow * size, columns + ow * size, column, IW, with_indices, False, KW, stride_w, dil_w, dtype
            )
        column += VL * stride_w


# The rows of a window lie in the ring from ``slot`` on, dil_h slots apart.
@helper
def max_over_rows(
    values,  # IN   ring
    columns,  # IN   with_indices: ring
    output,  # OUT  (OW), of which only ``room`` elements may be written
    indices,  # OUT  with_indices: (OW) the same
    room, first_cell, IW, with_indices, slot, slots, n_rows, dil_h, OW, size, dtype,
):  # fmt: skip
    for ow in range(0, OW, lanes(dtype)):
        at = slot * size + ow
        value = load(values, at, dtype)
        if with_indices:
            where = load_cells(columns, at, dtype)
            for row in range(1, n_rows):
                at = ((slot + row * dil_h) & (slots - 1)) * size + ow
                other = load(values, at, dtype)
                won = takes(value, other)
                cell = add_cells(load_cells(columns, at, dtype), ramp(row * dil_h * IW, 0, dtype))
                value, where = pick(won, other, value), pick(won, cell, where)
            store_cells(indices, ow, where, first_cell, room - ow)
        else:
            for row in range(1, n_rows):
                at = ((slot + row * dil_h) & (slots - 1)) * size + ow
                value = fold_max(value, load(values, at, dtype))
        put_first(output, ow, value, room - ow, dtype)


@helper
def correct_columns(columns, column, stride_w, dil_w, dtype):
    """Windows from ``column`` on, left of the image: where nothing beats the border's -inf, the first cell inside."""
    ow = 0
    while column < 0:
        if itemsize(dtype) == 4:
            if get(columns, ow, np.int32) < 0:
                put(columns, ow, np.int32(first_inside(column, dil_w)))
        elif get(columns, ow, np.int64) < 0:
            put(columns, ow, np.int64(first_inside(column, dil_w)))
        ow += 1
        column += stride_w


@helper
def max_rows(
    x,  # IN   a plane
    output,  # OUT  its output plane
    indices,  # OUT  with_indices
    ring,  # TMP  max_ring_size
    oh_first, oh_last, readable, room, with_indices, geometry, dtype,
):  # fmt: skip
    """Output rows [oh_first, oh_last) of one plane."""
    outlined()
    IH, IW, OW = geometry[GEO_IH], geometry[GEO_IW], geometry[GEO_OW]
    KH, KW, dil_h, dil_w = geometry[GEO_KH], geometry[GEO_KW], geometry[GEO_DIL_H], geometry[GEO_DIL_W]
    stride_h, stride_w = geometry[GEO_STRIDE_H], geometry[GEO_STRIDE_W]
    pad_top, pad_left = geometry[GEO_PAD_TOP], geometry[GEO_PAD_LEFT]
    slots, size, element = ring_slots(geometry), row_size(geometry), itemsize(dtype)
    values, columns = ring, ring + slots * size * element
    reduced = 0

    for oh in range(oh_first, oh_last):
        # Image rows that no earlier window has met
        top = oh * stride_h - pad_top
        reduced = max(reduced, top)
        while reduced < min(top + span(KH, dil_h), IH):
            row, slot = x + reduced * IW * element, (reduced & (slots - 1)) * size * element
            best, column, space = values + slot, columns + slot, readable - reduced * IW
            if stride_w == 1:
                max_along_row(row, best, column, pad_left, IW, OW, space, with_indices, KW, 1, dil_w, dtype)
            else:
                max_along_row(row, best, column, pad_left, IW, OW, space, with_indices, KW, stride_w, dil_w, dtype)
            if with_indices:
                correct_columns(column, -pad_left, stride_w, dil_w, dtype)
            reduced += 1

        y, where = output + oh * OW * element, indices + oh * OW * 8
        first = first_inside(top, dil_h)
        if first >= IH:  # dilation steps over the whole image
            for ow in range(OW):
                put(y, ow, dtype.type(-np.inf))
                if with_indices:
                    put(where, ow, first * IW + first_inside(ow * stride_w - pad_left, dil_w))
            continue
        slot = first & (slots - 1)
        n_rows = rows_inside(top, first, IH, KH, dil_h)
        max_over_rows(
            values, columns, y, where, room - (oh - oh_first) * OW, first * IW, IW, with_indices, slot, slots, n_rows, dil_h, OW,
            size, dtype,
        )  # fmt: skip


@shared
def max_ring_size(geometry):
    """Elements for the rings of values and of columns."""
    return 2 * ring_slots(geometry) * row_size(geometry)


@helper
def max_of_planes(
    x,  # IN   a plane, others behind it
    output,  # OUT  its output plane
    indices,  # OUT  or 0
    ring,  # TMP  max_ring_size
    oh_first, oh_last,  # of one plane; of more than one all rows
    planes,
    readable,  # elements from x on: in lanes past the last window anything may stand
    room,  # elements from row oh_first of output on: what is written past a row, the next ones overwrite
    common,  # is_common
    geometry, dtype,
):  # fmt: skip
    cells, windows = geometry[GEO_IH] * geometry[GEO_IW], geometry[GEO_OH] * geometry[GEO_OW]
    together = planes if common and indices == 0 and geometry[GEO_STRIDE_H] == 2 else 1
    done = False
    for plane in range(planes):
        if common and plane % together == 0:
            done = max_windows(x, output, indices, ring, oh_first, oh_last, together, readable, room, geometry, dtype)
        if not done:
            max_rows(x, output, indices, ring, oh_first, oh_last, readable, room, indices != 0, geometry, dtype)
        x += cells * itemsize(dtype)
        output += windows * itemsize(dtype)
        if indices != 0:
            indices += windows * 8
        readable -= cells
        room -= windows
